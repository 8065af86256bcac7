"""Gaussians and their mixtures fitted to a density by the Kullback-Leibler divergence, either way."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_rng
from ._backend import kernels
from ._logsumexp import logsumexp
from .distributions import Mixture, MultivariateNormal, Normal
from .divergences import kl_divergence
from .estimate import Estimate, warn_of_accuracy
from .evidence import (
    MAX_NODES,
    MIN_NODES,
    REACH_OF_GRID,
    Joint,
    LineRule,
    as_target,
    density_of,
    elbo,
    factors_of,
    mean_log_ratio,
    nodes_of,
    normal_nodes,
    refined_value,
    warn_of_narrow_peaks,
)
from .families import check_distributions
from .quadrature import checked_bounds, trapezoid_kl_normal

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import Seed

__all__ = ["KLFit", "fit_kl"]

DIRECTIONS = ("mode-seeking", "mass-covering")
METHODS = ("gradient", "brute")
COVARIANCES = ("full", "diag")
# Levels of refinement on the line, and the nodes in D dimensions that minima are looked for with.
N_LEVELS, COARSE_NODES = 7, 1 << 10
# A fit is done where the gradient is below this, in units of its own standard deviations, and doubtful over the other.
GRADIENT_TOLERANCE = 1e-9
DOUBTFUL_GRADIENT = 1e-6
# Two fits are one where their means, in standard deviations, and the logarithms of these differ by less.
SAME = 1e-3
# Of the numbers that parametrise a Cholesky factor, its logarithms among them.
FARTHEST = 200.0
# Up to so many parameters Newton's method ends a fit, and its curvature is looked at.
MAX_NEWTON = 60
# Nats below the peak from which a density does not become 0 by rounding, as log(1 - p) does from log(1e-16).
JUMP = 30.0
N_STARTS, MAX_REFINED = 8, 3
MAX_STEPS, MAX_SADDLES = 500, 3
N_DRAWS = 1 << 12


@dataclass(frozen=True)
class KLFit:
    """What `fit_kl` found.

    Attributes
    ----------
    distribution : Normal, MultivariateNormal or Mixture
        The fitted one.
    divergence : Estimate or None
        KL(q || target), or for mass covering KL(target || q), in nats, of a function once it is normalised; None for
        mode seeking on a function, where the `elbo` takes its place.
    elbo : Estimate or None
        The evidence lower bound of a mode-seeking fit: of a target that is normalised, minus the divergence.
    method : str
        "gradient", "brute", or "moment-matching" where this is the answer.
    modes : tuple
        The local minima that were found, best first, each a distribution.
    mode : int
        Which of them `distribution` is.
    path : tuple
        The distributions that were visited on the way to it, the start first.
    gradient_norm : float
        The largest entry of the gradient in the parameters at the end, with means in units of standard deviations and
        standard deviations in logarithms; NaN for brute force.

    Examples
    --------
    >>> from fastdiv import Mixture, Normal, fit_kl
    >>> fit = fit_kl(Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), start=Normal(0, 1), rng=0)
    >>> [round(float(q.loc), 3) for q in fit.modes], fit.mode, fit.gradient_norm < 1e-9
    ([4.0, -1.0], 1, True)
    >>> fit.path[0]
    Normal(loc=0.0, scale=1.0)
    """

    distribution: Mixture
    divergence: Estimate | None
    elbo: Estimate | None
    method: str
    modes: tuple[Mixture, ...]
    mode: int = 0
    path: tuple[Mixture, ...] = field(default=(), repr=False)
    gradient_norm: float = math.nan


class _Family:
    """Mixtures of K Gaussians in D dimensions as vectors of numbers about one of them, for which these are all 0.

    Component k has mean m + L a and Cholesky factor L B, with the m and L that it starts from: so the numbers, a and
    the entries of B, on the diagonal their logarithms, do not depend on units. The rest are the changes of the weights'
    log-ratios to the last one.
    """

    def __init__(self, start, covariance):
        self.start, self.covariance = start, covariance
        self.log_weights = np.log(start.weights)
        self.means = start.means.reshape(start.n_components, -1)
        self.factors = factors_of(start)
        k, d = self.means.shape
        self.rows, self.columns = np.tril_indices(d) if covariance == "full" else np.diag_indices(d)
        self.sizes = np.cumsum([k * d, k * len(self.rows)])
        self.n_parameters = int(self.sizes[-1]) + k - 1

    def unpack(self, theta):
        """Return log weights (K,), means (K, D) and Cholesky factors (K, D, D), and the B of these."""
        shift, entries, logits = np.split(theta, self.sizes)
        if np.any(np.abs(entries) > FARTHEST):
            raise FloatingPointError("a standard deviation is beyond float64")
        k, d = self.means.shape
        means = self.means + np.einsum("kij,kj->ki", self.factors, shift.reshape(k, d))
        inner = np.zeros((k, d, d))
        inner[:, self.rows, self.columns] = entries.reshape(k, -1)
        diagonal = np.einsum("kii->ki", inner)
        diagonal[...] = np.exp(diagonal)
        log_weights = self.log_weights + np.append(logits, 0.0)
        log_weights = log_weights - np.logaddexp.reduce(log_weights)
        return log_weights, means, self.factors @ inner, inner

    def gradient(self, theta, by_log_weights, by_means, by_factors):
        """Return the gradient in theta from those in what `unpack` returns, log weights taken to be free."""
        log_weights, _, _, inner = self.unpack(theta)
        by_shift = np.einsum("kji,kj->ki", self.factors, by_means)
        by_inner = self.factors.mT @ by_factors
        np.einsum("kii->ki", by_inner)[...] *= np.einsum("kii->ki", inner)
        by_logits = by_log_weights - np.exp(log_weights) * np.sum(by_log_weights)
        return np.concatenate([by_shift.ravel(), by_inner[:, self.rows, self.columns].ravel(), by_logits[:-1]])

    def distribution(self, theta):
        """Return the distribution with these parameters."""
        log_weights, means, factors, _ = self.unpack(theta)
        return _gaussians(np.exp(log_weights), means, factors, self.start.event_shape, self.covariance)


def _gaussians(weights, means, factors, event_shape, covariance):
    """Return a Normal, a MultivariateNormal or a Mixture."""
    stds = np.linalg.norm(factors, axis=2)
    if not event_shape:
        return Normal(means[0, 0], stds[0, 0]) if len(means) == 1 else Mixture(weights, means[:, 0], stds[:, 0])
    covs = factors @ factors.mT if covariance == "full" else stds**2
    if len(means) == 1:
        return MultivariateNormal(means[0], covs[0])
    return Mixture(weights, means, covs=covs) if covariance == "full" else Mixture(weights, means, stds)


def _log_density(x, weights_of_x, log_weights, means, factors):
    """Return log q and its gradient at the points x, (n, D), and what their weighted sum is in q's parameters.

    The gradient in log weights, means and factors of sum_i v_i log q(x_i), with the weights v of the points.
    """
    whiteners = np.linalg.inv(factors)
    u = (x - means[:, None]) @ whiteners.mT
    log_det = np.log(np.einsum("kii->ki", factors)).sum(axis=1)
    log_tops = log_weights - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
    logs = log_tops[:, None] - 0.5 * np.sum(u**2, axis=2)
    log_q = logsumexp(logs, axis=0)
    shares = np.exp(logs - log_q)
    pulls = shares[:, :, None] * (u @ whiteners)
    weighted = weights_of_x[:, None] * pulls
    total = shares @ weights_of_x
    by_factors = weighted.mT @ u - total[:, None, None] * whiteners.mT
    return log_q, -pulls.sum(axis=0), (total, weighted.sum(axis=1), by_factors)


def _mode_seeking(family, log_density, score, z, mass):
    """Return the function theta -> KL(q || target) and its gradient, expectations taken on nodes of N(0, I).

    The nodes, (n, D), move with q: x = mean + factor z. On the line derivatives are moments of log q - log p in z
    (Opper & Archambeau 2009, equations 8 and 9): they ask for no derivative of p, nor that it has one. In D dimensions
    they go by way of the score, and what log q at fixed x adds is kept, for on these nodes it is not quite 0.
    """

    def objective(theta):
        log_weights, means, factors, _ = family.unpack(theta)
        weights = np.exp(log_weights)
        x = (means[:, None] + z @ factors.mT).reshape(-1, z.shape[1])
        weights_of_x = np.outer(weights, mass).ravel()
        log_q, score_q, (by_log_weights, by_means, by_factors) = _log_density(
            x, weights_of_x, log_weights, means, factors
        )
        terms = (weights_of_x * (log_q - log_density(x))).reshape(len(weights), -1)
        if z.shape[1] == 1:
            by_means = terms @ z / factors[:, 0]
            by_factors = (terms @ (z**2 - 1) / factors[:, 0])[:, None]
        else:
            scales_of_x = np.repeat(np.linalg.norm(factors, axis=2), len(z), axis=0)
            by_x = (weights_of_x[:, None] * (score_q - score(x, scales_of_x))).reshape(len(weights), *z.shape)
            by_means, by_factors = by_means + by_x.sum(axis=1), by_factors + by_x.mT @ z
        by_log_weights = by_log_weights + terms.sum(axis=1)
        return np.sum(terms), family.gradient(theta, by_log_weights, by_means, by_factors)

    return objective


def _mass_covering(family, x, weights_of_x):
    """Return the function theta -> -E[log q] under the target, and its gradient, on weighted points of it."""

    def objective(theta):
        log_weights, means, factors, _ = family.unpack(theta)
        log_q, _, parts = _log_density(x, weights_of_x, log_weights, means, factors)
        return -(weights_of_x @ log_q), -family.gradient(theta, *parts)

    return objective


def _guarded(objective):
    """Return the function theta -> value and gradient, which are inf and NaN where they are not finite."""

    def guarded(theta):
        with np.errstate(all="ignore"):
            try:
                value, gradient = objective(theta)
            except (np.linalg.LinAlgError, FloatingPointError):
                value = math.inf
        return (value, gradient) if np.isfinite(value) else (math.inf, np.full_like(theta, np.nan))

    return guarded


def _largest(gradient):
    """Return the largest entry of a gradient, inf where there is none."""
    norm = np.abs(gradient).max()
    return norm if np.isfinite(norm) else math.inf


def _descend(objective, theta, thorough):
    """Return a local minimum, its value and the largest entry of its gradient, and the points on the way.

    BFGS, and if it has to be `thorough` then Newton's method (MINPACK's hybrid) on the gradient, which reaches zeros
    that a search by values, at rounding of these, does not. A saddle is left along its axis of most negative curvature.
    """
    from scipy.optimize import approx_fprime, minimize, root

    guarded = _guarded(objective)

    def searched(theta):
        # The line search shrinks back from inf, but not from NaN.
        value, gradient = guarded(theta)
        return value, np.nan_to_num(gradient)

    def gradient(theta):
        return guarded(theta)[1]

    def steps(x):
        path.append(x.copy())

    path = []
    for _ in range(MAX_SADDLES):
        theta = minimize(searched, theta, jac=True, method="BFGS", callback=steps, options={"maxiter": MAX_STEPS}).x
        if not thorough or len(theta) > MAX_NEWTON:
            break
        found = root(gradient, theta, tol=1e-14, options={"maxfev": 50 + 10 * len(theta)}).x
        # Another zero would be farther off.
        near = np.abs(found - theta).max() < 0.1
        if near and np.abs(gradient(found)).max() < np.abs(gradient(theta)).max():
            theta = found
            path.append(theta)
        hessian = _symmetric(approx_fprime(theta, gradient))
        if not np.all(np.isfinite(hessian)):
            break
        curvature, axes = np.linalg.eigh(hessian)
        if curvature[0] > -1e-4 * np.abs(curvature).max():
            break
        theta = theta + 0.1 * axes[:, 0]
    value, by_theta = guarded(theta)
    return theta, value, _largest(by_theta), path


def _symmetric(matrix):
    return (matrix + matrix.T) / 2


def _start_from(clouds, scale, covariance, event_shape):
    """Return the Gaussians that have the moments of clouds of points, each (n, D), and weigh as many as they are."""
    floor = np.diag((1e-2 * scale) ** 2)
    covs = np.array([np.atleast_2d(np.cov(cloud.T, bias=True)) + floor for cloud in clouds])
    if covariance == "diag":
        covs = covs * np.eye(len(scale))
    means = np.array([cloud.mean(axis=0) for cloud in clouds])
    sizes = np.array(list(map(len, clouds)))
    return _gaussians(sizes / sizes.sum(), means, np.linalg.cholesky(covs), event_shape, covariance)


def _starts(draws, n_components, covariance, event_shape, rng):
    """Return distributions to begin from, by k-means on draws of the target.

    For one Gaussian, all draws together and each of the clusters; for more, the clusters of several runs.
    """
    from scipy.cluster.vq import ClusterError, kmeans2

    n_clusters = N_STARTS if n_components == 1 else n_components
    scale = np.subtract(*np.quantile(draws, [0.84, 0.16], axis=0)) / 2
    runs = []
    for _ in range(1 if n_components == 1 else N_STARTS):
        # Of draws in a few places there are not as many clusters.
        with suppress(ClusterError):
            labels = kmeans2(draws / scale, n_clusters, minit="++", missing="raise", rng=rng)[1]
            runs.append([draws[labels == k] for k in range(n_clusters)])
    if n_components == 1:
        runs = [[cloud] for cloud in [draws, *(runs[0] if runs else [])]]
    elif not runs:
        runs = [np.array_split(draws, n_components)]
    return [_start_from(clouds, scale, covariance, event_shape) for clouds in runs]


def _draws(target, log_density, n, rng, around):
    """Return draws of the target, (n, D), or of something that resembles one that cannot be sampled."""
    with suppress(TypeError):
        return target.sample(n, rng=rng).reshape(n, -1)
    if not target.event_shape:
        x, logs = LineRule(target, log_density)(n)
        return x[rng.choice(len(x), n, p=np.exp(logs - logsumexp(logs)))]
    from scipy.optimize import minimize

    with np.errstate(all="ignore"):
        peak = minimize(lambda x: -log_density(x[None])[0], around)
    return rng.multivariate_normal(peak.x, 2 * _symmetric(peak.hess_inv), n)


def _moments(target, log_density, n, rng):
    """Return mean (D,) and covariance (D, D) of the target: exact, or by quadrature on the line, or of draws."""
    if isinstance(target, Mixture):
        means, factors = target.means.reshape(target.n_components, -1), factors_of(target)
        mean = target.weights @ means
        within = np.einsum("k,kij,klj->il", target.weights, factors, factors)
        return mean, within + np.einsum("k,ki,kj->ij", target.weights, means - mean, means - mean)
    if target.event_shape:
        draws = target.sample(n, rng=rng)
        return draws.mean(axis=0), np.atleast_2d(np.cov(draws.T))
    rule = LineRule(target, log_density)
    total = -math.inf

    def at(n):
        nonlocal total
        x, logs = rule(n)
        total = logsumexp(logs)
        weights = np.exp(logs - total)
        mean = weights @ x[:, 0]
        squares = weights * (x[:, 0] - mean) ** 2
        if max(squares[0], squares[-1]) > 1e-6 * squares.sum():
            raise ValueError(f"the target must have a variance for its moments to be matched, got {target!r}")
        return np.array([mean, squares.sum()])

    (mean, variance), change = refined_value(
        at, lambda found: 1e-12 * np.array([math.sqrt(found[1]), found[1]]), rule.least
    )
    if max(change[0] / math.sqrt(variance), change[1] / variance) > 1e-8:
        warn_of_accuracy(f"the target's moments have converged to {change} only")
    elif rule.log_missed - total > math.log(1e-8):
        warn_of_narrow_peaks()
    return np.array([mean]), np.array([[variance]])


def _same(a, b):
    """Whether two mixtures of as many Gaussians are nearly the same but for the order of their components."""
    spreads = [np.linalg.norm(factors_of(q), axis=2) for q in (a, b)]
    means = [q.means.reshape(q.n_components, -1) for q in (a, b)]
    gaps = np.abs(means[0][:, None] - means[1]) / spreads[1] + np.abs(np.log(spreads[0][:, None] / spreads[1]))
    gaps = gaps.max(axis=2) + np.abs(a.weights[:, None] - b.weights)
    return bool(np.all(gaps.min(axis=1) < SAME))


@dataclass
class _Minimum:
    """Where a descent has come to: a distribution, the value and the gradient's norm there, and the way."""

    distribution: Mixture
    value: float
    norm: float
    path: tuple[Mixture, ...]

    def descended(self, objectives, covariance, n, thorough=True):
        """Return the minimum that this leads to with nodes as many as `n`."""
        family = _Family(self.distribution, covariance)
        theta, value, norm, path = _descend(objectives(family, n), np.zeros(family.n_parameters), thorough)
        return _Minimum(family.distribution(theta), value, norm, self.path + tuple(map(family.distribution, path)))

    def refined(self, objectives, covariance, levels):
        """Return the minimum with more and more nodes, until the next level's gradient is 0 there, or no larger."""
        minimum, before = self, 0.0
        for n in levels:
            family = _Family(minimum.distribution, covariance)
            value, gradient = _guarded(objectives(family, n))(np.zeros(family.n_parameters))
            minimum = _Minimum(minimum.distribution, value, _largest(gradient), minimum.path)
            if minimum.norm < max(GRADIENT_TOLERANCE, 2 * before):
                break
            minimum = minimum.descended(objectives, covariance, n)
            before = minimum.norm
        return minimum


def _distinct(minima, tolerance=DOUBTFUL_GRADIENT):
    """Return the minima without repetition, best first, those that have not converged only where all are such."""
    converged = [minimum for minimum in minima if minimum.norm < tolerance] or minima
    kept = []
    for minimum in sorted(converged, key=lambda minimum: minimum.value):
        if not any(_same(minimum.distribution, other.distribution) for other in kept):
            kept.append(minimum)
    return kept


def _check_positive(target, log_density, depth):
    """Raise ValueError where a function on the line falls to 0 from within so many nats of its peak."""
    if isinstance(target, Joint) and not target.event_shape:
        zero = LineRule(target, log_density).zero(depth)
        if zero is not None:
            raise ValueError(f"target must be positive everywhere for mode seeking, got -inf from about {zero:.4g} on")


def _by_gradient(target, direction, n_components, covariance, start, n, rng, backend):
    """Return the parts of a KLFit that do not need its divergence: distribution, modes, mode, path, gradient norm."""
    log_density, score = density_of(target, backend)
    dimensions = math.prod(target.event_shape)
    around = np.zeros(dimensions) if start is None else start.means.reshape(n_components, -1)[0]
    draws = _draws(target, log_density, N_DRAWS, rng, around)
    starts = _starts(draws, n_components, covariance, target.event_shape, rng)
    if n_components == 1 and isinstance(target, Mixture) and target.n_components <= N_STARTS:
        factors = factors_of(target)
        parts = zip(target.means.reshape(len(factors), 1, -1), factors[:, None], strict=True)
        starts += [_gaussians([1.0], mean, factor, target.event_shape, covariance) for mean, factor in parts]

    elif isinstance(target, Mixture) and target.n_components == n_components and np.all(target.weights > 0):
        means, factors = target.means.reshape(n_components, -1), factors_of(target)
        starts.append(_gaussians(target.weights, means, factors, target.event_shape, covariance))
    if direction == "mode-seeking":
        nodes, least = cache(lambda n: normal_nodes(n, dimensions, rng)), MIN_NODES
    else:
        nodes, least = nodes_of(target, log_density, rng)
        nodes = cache(nodes)

    def objectives(family, n):
        if direction == "mode-seeking":
            return _mode_seeking(family, log_density, score, *nodes(n))
        return _mass_covering(family, *nodes(n))

    n = max(n // n_components, COARSE_NODES)
    levels = [COARSE_NODES, n]
    if dimensions == 1:
        levels = [least << i for i in range(N_LEVELS) if least << i <= MAX_NODES]
    minima = [_Minimum(q, math.inf, math.inf, (q,)).descended(objectives, covariance, levels[0], False) for q in starts]
    coarse = _distinct(minima, 1e-2)[: None if n_components == 1 else MAX_REFINED]
    kept = _distinct([minimum.refined(objectives, covariance, levels) for minimum in coarse])
    taken = kept[0]
    if start is not None:
        taken = _Minimum(start, math.inf, math.inf, (start,)).descended(objectives, covariance, levels[0])
        taken = taken.refined(objectives, covariance, levels)
        kept = _distinct([*kept, taken])
    if not math.isfinite(taken.value):
        raise ValueError(
            "target must be positive wherever the fit has mass, and finite: every divergence from where the fit began "
            f"is infinite, got {taken.distribution!r}"
        )
    if not taken.norm < DOUBTFUL_GRADIENT:
        if direction == "mode-seeking":
            _check_positive(target, log_density, math.inf)
        warn_of_accuracy(f"the fit has not converged: its gradient is {taken.norm:.2g}")
    modes = tuple(minimum.distribution for minimum in kept)
    mode = next((i for i, mode in enumerate(modes) if _same(taken.distribution, mode)), None)
    return taken.distribution, modes, mode, taken.path, float(taken.norm)


def _checked_ranges(ranges, target, log_density, rng):
    """Return the corners of the box of means and standard deviations that is searched."""
    if ranges is None:
        mean, variance = (part.item() for part in _moments(target, log_density, N_DRAWS, rng))
        std = math.sqrt(variance)
        return (mean - 3 * std, mean + 3 * std), (std / 30, 1.2 * std)
    try:
        locs, scales = (tuple(map(float, pair)) for pair in ranges)
        for low, high in (locs, scales):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"ranges must be two pairs of increasing finite numbers, got {ranges!r}") from None
    if scales[0] <= 0:
        raise ValueError(f"ranges must have positive standard deviations, got {ranges!r}")
    return locs, scales


def _brute_objective(target, direction, num, bounds, backend):
    """Return the function (locs, scales) -> divergences by the trapezoid rule, but for a constant."""
    if direction == "mass-covering":
        x = np.linspace(*bounds, num)
        mass = target.pdf(x, backend=backend) * (x[1] - x[0])
        mass[[0, -1]] *= 0.5
        centre = 0.5 * (x[0] + x[-1])
        total, first, second = (mass @ (x - centre) ** k for k in range(3))

        def cross_entropy(locs, scales):
            away = locs - centre
            return total * np.log(scales) + 0.5 * (second - 2 * away * first + away**2 * total) / scales**2

        return cross_entropy
    return lambda locs, scales: trapezoid_kl_normal(locs, scales, target, num, REACH_OF_GRID, backend=backend)


def _by_brute_force(target, direction, ranges, num_grid, num, bounds, rng, backend):
    """Return distribution and path: the best of a grid, then Nelder and Mead's simplex from there."""
    from scipy.optimize import fmin

    log_density, _ = density_of(target, backend)
    locs, scales = _checked_ranges(ranges, target, log_density, rng)
    bounds = checked_bounds(bounds)
    if bounds is None:
        margin = 3 * scales[1] if ranges is None else 0.0
        bounds = locs[0] - margin, locs[1] + margin
        inside = np.clip(bounds, *target.support)
        # The rule has to have the ends of the support for its points, but where the density has a pole.
        if np.all(target.logpdf(inside, backend=backend) < np.inf):
            bounds = tuple(inside.tolist())
    objective = _brute_objective(target, direction, num, bounds, backend)
    locs, scales = np.linspace(*locs, num_grid), np.linspace(*scales, num_grid)
    values = objective(locs[:, None], scales)
    if not np.any(np.isfinite(values)):
        raise ValueError("ranges must hold a Gaussian with a finite divergence; there is none on the grid")
    best = np.unravel_index(np.nanargmin(values), values.shape)
    path = [(locs[best[0]], scales[best[1]])]
    found = fmin(
        lambda x: objective(*x) if x[1] > 0 else math.inf, path[0], disp=False, callback=lambda x: path.append(tuple(x))
    )
    return Normal(*found), bounds, tuple(Normal(*point) for point in path)


def _check_choices(direction, method, covariance):
    for name, value, choices in (
        ("direction", direction, DIRECTIONS),
        ("method", method, METHODS),
        ("covariance", covariance, COVARIANCES),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _checked_start(start, n_components, covariance):
    """Return the distribution to start from in the family that is fitted."""
    if not isinstance(start, Mixture) or start.n_components != n_components:
        raise ValueError(f"start must be a mixture of {n_components} Gaussians, got {start!r}")
    if np.any(start.weights == 0):
        raise ValueError(f"start must have weights that are not 0, got {start!r}")
    if covariance == "diag" and start.covs is not None:
        raise ValueError(f"start must have diagonal covariances, as covariance='diag' says, got {start!r}")
    if covariance == "full" and start.event_shape and start.covs is None:
        return _gaussians(start.weights, start.means, factors_of(start), start.event_shape, covariance)
    return start


def fit_kl(
    target: Any,
    *,
    direction: str = "mode-seeking",
    method: str = "gradient",
    n_components: int = 1,
    covariance: str = "full",
    start: Mixture | None = None,
    ranges: tuple[tuple[float, float], tuple[float, float]] | None = None,
    num_grid: int = 100,
    num: int = 500,
    bounds: tuple[float, float] | None = None,
    n: int = N_DRAWS,
    rng: Seed = None,
    backend: str | None = None,
) -> KLFit:
    r"""Fit a Gaussian, or a mixture of Gaussians, to a density by the Kullback-Leibler divergence.

    Mode seeking is :math:`\min_q D(q\|p)`, which is large where q has mass and p has none: q settles on a mode. Mass
    covering is :math:`\min_q D(p\|q)`, and q covers all that p has (Minka 2005, section 2).

    Parameters
    ----------
    target : distribution or callable
        p: a distribution of fastdiv's, one that `as_distribution` takes, or a function that gives the logarithm of a
        density that need not be normalised, such as that of likelihood and prior, at points (n,) or (n, D). Then mode
        seeking maximises the evidence lower bound.
    direction : {"mode-seeking", "mass-covering"}
        Which divergence is minimised.
    method : {"gradient", "brute"}
        "gradient" goes from several starts, on nodes that move with q, to where the gradient of the whole divergence
        is 0. On the line the nodes are those of a trapezoid rule that is refined until it does not matter, in D
        dimensions `n` quasi-random ones. "brute", for one Gaussian on the line, takes the best of a grid, and polishes
        it as `scipy.optimize.brute` does, to 1e-4: mode seeking integrates on the mean and four standard deviations to
        either side, mass covering on `bounds`, both by the trapezoid rule.
    n_components : int
        Components of q.
    covariance : {"full", "diag"}
        Covariances of q in D dimensions.
    start : Normal, MultivariateNormal or Mixture, optional
        Where to begin; the fit is then the local minimum that this leads to. A function in D dimensions needs it, and
        one on the line is looked at more closely there, which is all that brute force and moment matching take it for.
    ranges : ((float, float), (float, float)), optional
        The grid's means and standard deviations, from and to. By default three of the target's standard deviations
        about its mean, and from a thirtieth of them to 1.2 of them.
    num_grid, num : int
        For brute force: points of each side of the grid, and of the trapezoid rule.
    bounds : (float, float), optional
        Ends of the integral for mass covering by brute force; by default the range of the means inside the support,
        with three of the largest standard deviations to either side where no `ranges` are given.
    n : int
        Nodes in D dimensions, shared among the components, or draws of a target that is no mixture.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    KLFit
        The distribution, its divergence, and the other local minima.

    Raises
    ------
    TypeError
        If `target` is neither a distribution nor a function, or cannot be sampled where draws are needed: for mass
        covering in D dimensions.
    ValueError
        If mode seeking has a target that is 0 somewhere, where the divergence of any Gaussian is infinite; if a method
        is not for the target, or a setting is not one of those above.

    Warns
    -----
    AccuracyWarning
        If the gradient is not 0 at the end.

    Notes
    -----
    Mass covering by one Gaussian is moment matching: q has the target's mean and covariance (Bishop 2006, section
    10.7), in D dimensions those of `n` draws unless the target is a mixture of Gaussians. On the line gradients are
    moments of the log-ratio (Opper & Archambeau 2009); in D dimensions they follow the nodes (Kingma & Welling 2014)
    and are those of the divergence on these, so that the fit's own error, of about 1 / `n`, is not in `gradient_norm`;
    the divergence is that of fresh draws, with its standard error. Every local minimum that the starts lead to is in
    `KLFit.modes`, of a mixture the best three. What a function on the line has far from `start`, or 0, is looked for
    as in `log_evidence`.

    References
    ----------
    Blei, Kucukelbir & McAuliffe, "Variational inference: a review for statisticians", JASA 112 (2017).

    Minka, "Divergence measures and message passing", Microsoft Research TR-2005-173 (2005).

    Examples
    --------
    >>> from fastdiv import Mixture, Normal, fit_kl
    >>> p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> fit = fit_kl(p, rng=0)
    >>> q = fit.distribution
    >>> round(float(q.loc), 5), round(float(q.scale), 5), len(fit.modes), fit.mode
    (3.99987, 0.50025, 2, 0)
    >>> fit_kl(p, start=Normal(0, 1), rng=0).mode
    1
    >>> q = fit_kl(p, direction="mass-covering").distribution
    >>> round(float(q.loc), 7), round(float(q.scale), 7)
    (2.0, 2.5248762)
    >>> q = fit_kl(p, method="brute", ranges=((-4, 8), (0.1, 3))).distribution
    >>> round(float(q.loc), 5), round(float(q.scale), 5)
    (3.99992, 0.50034)
    """
    _check_choices(direction, method, covariance)
    n_components, n = as_count(n_components, "n_components", 1), as_count(n, "n", 2)
    num_grid, num = as_count(num_grid, "num_grid", 2), as_count(num, "num", 2)
    rng = as_rng(rng)
    kernels(backend)
    checked_bounds(bounds)
    start = None if start is None else _checked_start(start, n_components, covariance)
    if method == "gradient" and not (ranges is None and bounds is None):
        raise ValueError("ranges and bounds are for method 'brute'")
    target, normalised = as_target(target, "target", start)
    if start is not None:
        check_distributions(start=start, target=target)
    if direction == "mode-seeking" and np.any(np.isfinite(target.support)):
        raise ValueError(
            f"target must be positive everywhere for mode seeking, got the support {target.support}: "
            "carry it to the whole line first"
        )
    log_density, _ = density_of(target, backend)
    if direction == "mode-seeking":
        _check_positive(target, log_density, JUMP)
    ends = {}
    if method == "brute":
        if target.event_shape or n_components > 1:
            raise ValueError("method 'brute' is for one Gaussian on the line")
        q, bounds, path = _by_brute_force(target, direction, ranges, num_grid, num, bounds, rng, backend)
        reach = (q.loc - REACH_OF_GRID * q.scale, q.loc + REACH_OF_GRID * q.scale)
        ends = {"method": "trapezoid", "num": num, "bounds": reach if direction == "mode-seeking" else bounds}
        modes, mode, norm = (q,), 0, math.nan
    elif direction == "mass-covering" and n_components == 1:
        mean, cov = _moments(target, log_density, n, rng)
        cov = cov if covariance == "full" else np.diag(np.diagonal(cov))
        q = _gaussians([1.0], mean[None], np.linalg.cholesky(cov)[None], target.event_shape, covariance)
        method, modes, mode, path, norm = "moment-matching", (q,), 0, (q,), 0.0
    else:
        q, modes, mode, path, norm = _by_gradient(target, direction, n_components, covariance, start, n, rng, backend)
    divergence = bound = None
    if direction == "mass-covering":
        if normalised:
            divergence = kl_divergence(target, q, rng=rng, backend=backend, **ends)
        else:
            divergence = mean_log_ratio(target, q, backend=backend)
    else:
        bound = elbo(q, target, rng=rng, backend=backend, **ends)
        divergence = Estimate(-bound, **vars(bound)) if normalised else None
    return KLFit(q, divergence, bound, method, modes, mode, path, norm)
