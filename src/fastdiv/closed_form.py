"""Divergences and log-ratios of Gaussians by their formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._arrays import broadcastable
from .distributions import Mixture
from .estimate import Estimate

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Floats
    from .distributions import Distribution

__all__ = ["kl_normal", "log_ratio_normal"]

EPS = np.finfo(np.float64).eps
# artanh(y) / y^3 - 1 / y^2 in powers of y^2, highest first: to 1e-18 for |y| < 0.2.
ARTANH = 1 / np.arange(25.0, 1.0, -2.0)


def _log_excess(ratio, ratio_minus_one, log_ratio):
    """Return t - log(1 + t) for t = ratio**2 - 1, without cancellation near ratio 1.

    Near 1, log(1 + t) = 2 artanh(y) with y = t / (2 + t), and t - 2y = t y.
    """
    t = ratio_minus_one * (ratio + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = t / (t + 2)
        near = y * (t - 2 * y**2 * np.polyval(ARTANH, y**2))
        return np.where(np.abs(y) < 0.2, near, t - 2 * log_ratio)


def kl_normal(mu_p: ArrayLike, sigma_p: ArrayLike, mu_q: ArrayLike, sigma_q: ArrayLike) -> Floats:
    r"""Kullback-Leibler divergence between Gaussians on the line, elementwise.

    Parameters
    ----------
    mu_p, sigma_p, mu_q, sigma_q : array_like
        Means and standard deviations of p and q, broadcast against each other.

    Returns
    -------
    float or ndarray
        :math:`\log\frac{\sigma_q}{\sigma_p} + \frac{\sigma_p^2 + (\mu_p - \mu_q)^2}{2 \sigma_q^2} - \frac12`, in
        nats, to 64 units of rounding also where p and q nearly coincide.

    Raises
    ------
    ValueError
        If a standard deviation is not positive or a parameter not finite.
    TypeError
        If a parameter is not real.

    References
    ----------
    Kullback & Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> from fastdiv import kl_normal
    >>> kl_normal(1, 1, 0, 2)
    np.float64(0.4431471805599453)
    >>> kl_normal([0, 1], 1, 0, 1)
    array([0. , 0.5])
    """
    mu_p, sigma_p, mu_q, sigma_q = broadcastable(mu_p=mu_p, sigma_p=sigma_p, mu_q=mu_q, sigma_q=sigma_q)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        ratio = sigma_p / sigma_q
        # Where the ratio overflows, the difference of logarithms does not.
        log_ratio = np.where((ratio > 0) & np.isfinite(ratio), np.log(ratio), np.log(sigma_p) - np.log(sigma_q))
        excess = _log_excess(ratio, (sigma_p - sigma_q) / sigma_q, log_ratio)
        return (0.5 * (excess + ((mu_p - mu_q) / sigma_q) ** 2))[()]


def log_ratio_normal(x: ArrayLike, mu_p: ArrayLike, sigma_p: ArrayLike, mu_q: ArrayLike, sigma_q: ArrayLike) -> Floats:
    r"""Log-ratio of two Gaussian densities on the line, elementwise.

    Parameters
    ----------
    x : array_like
        Points.
    mu_p, sigma_p, mu_q, sigma_q : array_like
        Means and standard deviations of p and q. All are broadcast against each other.

    Returns
    -------
    float or ndarray
        :math:`\log\sigma_q - \log\sigma_p + \frac12 (r_q^2 - r_p^2)`, with :math:`r = (x - \mu) / \sigma`, in nats.
        The difference of squares is taken as a product, which does not overflow before the result does.

    Raises
    ------
    ValueError
        If a standard deviation is not positive or a parameter not finite.
    TypeError
        If an argument is not real.

    Examples
    --------
    >>> from fastdiv import log_ratio_normal
    >>> log_ratio_normal([0.0, 1.0], 1, 1, 0, 2).round(6)
    array([0.193147, 0.818147])
    """
    x, mu_p, sigma_p, mu_q, sigma_q = broadcastable(x=x, mu_p=mu_p, sigma_p=sigma_p, mu_q=mu_q, sigma_q=sigma_q)
    with np.errstate(over="ignore", invalid="ignore"):
        r_p, r_q = (x - mu_p) / sigma_p, (x - mu_q) / sigma_q
        value = np.log(sigma_q) - np.log(sigma_p) + 0.5 * (r_q - r_p) * (r_q + r_p)
        # At infinity the wider density wins, and between equals the nearer one.
        limit = np.where(sigma_p == sigma_q, (mu_p - mu_q) * np.sign(x), sigma_p - sigma_q)
        limit = np.where(limit == 0, 0.0, np.copysign(np.inf, limit))
    return np.where(np.isinf(x), limit, value)[()]


def applies(p: Distribution, q: Distribution) -> bool:
    """Whether there is a formula: whether both are Gaussians."""
    return isinstance(p, Mixture) and isinstance(q, Mixture) and p.n_components == q.n_components == 1


def kl(p: Mixture, q: Mixture) -> Estimate:
    """Return KL(p || q) of two Gaussians as an Estimate whose error bounds the rounding."""
    if p.covs is None and q.covs is None:
        value = float(np.sum(kl_normal(p.means[0], p.stds[0], q.means[0], q.stds[0])))
        error = 64 * EPS * value
        if p.event_shape:
            # The standard deviations may be rounded roots of variances.
            error += 2 * EPS * float(np.sum(np.abs((p.stds[0] / q.stds[0]) ** 2 - 1) + EPS))
        return Estimate(value, error=error, method="closed-form")
    return _kl_full(p, q)


def _covariance(p):
    return np.diag(p.stds[0] ** 2) if p.covs is None else p.covs[0]


def _kl_full(p, q):
    """Sum of the one-dimensional divergences along the axes that diagonalise both covariances.

    With Sigma = L L^T, the squared singular values of L_q^-1 L_p are the ratios of variances along them. Dividing by
    q's standard deviations first keeps units out of the rounding.
    """
    from scipy.linalg import solve_triangular, svdvals

    stds = np.sqrt(np.diagonal(_covariance(q)))
    factor_p, factor_q = (np.linalg.cholesky(_covariance(d) / np.outer(stds, stds)) for d in (p, q))
    shift = (p.means[0] - q.means[0]) / stds
    whitened = solve_triangular(factor_q, np.column_stack([factor_p, shift]), lower=True)
    ratios = svdvals(whitened[:, :-1])
    value = 0.5 * float(np.sum(_log_excess(ratios, ratios - 1, np.log(ratios))) + np.sum(whitened[:, -1] ** 2))
    spread = ratios[0] / ratios[-1] + ratios[0] ** 2 + 2 * value
    error = 32 * len(ratios) * EPS * np.linalg.cond(factor_q) * spread
    return Estimate(value, error=error, method="closed-form")


def entropy(p: Mixture) -> Estimate:
    """Return the entropy of a single Gaussian."""
    stds = np.sqrt(np.diagonal(_covariance(p))) if p.event_shape else p.stds
    factor = np.linalg.cholesky(p.covs[0] / np.outer(stds, stds)) if p.covs is not None else np.eye(len(stds))
    logs = np.log(stds) + np.log(np.diagonal(factor)) + 0.5 * np.log(2 * np.pi * np.e)
    error = 16 * EPS * (np.sum(np.abs(logs)) + len(logs) * np.linalg.cond(factor) ** 2)
    return Estimate(np.sum(logs), error=error, method="closed-form")
