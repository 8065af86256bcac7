"""Divergences on the line: the trapezoid rule, and an adaptive rule where scales are far apart."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import FLOAT64, as_count, broadcastable
from ._backend import kernels, map_blocks
from .distributions import check_distributions
from .estimate import AccuracyWarning, Estimate

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Floats
    from .distributions import Mixture

__all__ = ["trapezoid_kl", "trapezoid_kl_normal"]

EPS = np.finfo(np.float64).eps
# Standard deviations beyond which a Gaussian's mass, 2e-19, is under the rounding of the integral.
REACH = 9.0
# With more intervals than this, an adaptive rule is cheaper than a uniform one.
MAX_INTERVALS = 1 << 12
MAX_HALVINGS = 5
MAX_BISECTIONS = 60
# Under this tolerance there is only rounding.
MIN_RTOL = 1e-14
# Grid points in a block of work for one thread.
BLOCK_POINTS = 1 << 15
N_NODES = 16


def _check_on_line(p, method):
    if p.event_shape:
        raise ValueError(f"method {method!r} is for distributions on the line, got {p.event_shape[0]} dimensions")


def checked_bounds(bounds):
    """Return the ends of an interval as floats, or None for None."""
    if bounds is None:
        return None
    try:
        lower, upper = map(float, bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers, got {bounds!r}") from None
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"bounds must be finite and increasing, got {bounds!r}")
    return lower, upper


def _default_bounds(p, q):
    (low_p, high_p, std_p), (low_q, high_q, std_q) = p.extent, q.extent
    margin = 3 * max(std_p, std_q)
    return min(low_p, low_q) - margin, max(high_p, high_q) + margin


def trapezoid_kl(
    p: Mixture, q: Mixture, num: int = 1000, bounds: tuple[float, float] | None = None, *, backend: str | None = None
) -> float:
    r"""Kullback-Leibler divergence by the trapezoid rule on a uniform grid.

    Parameters
    ----------
    p, q : Normal or Mixture
        Distributions on the line.
    num : int
        Points of the grid, ends included, at least 2.
    bounds : (float, float), optional
        Ends of the grid. By default the smallest mean less three times the largest standard deviation, and the
        largest mean plus as much, over the components of both.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    float
        :math:`\int p \log(p/q)` in nats, on the bounds alone. Points where p is 0 count 0. For the number with an
        error bar, ``kl_divergence(p, q, method="trapezoid")``.

    Raises
    ------
    TypeError
        If `p` or `q` is not a distribution, or `num` not a whole number.
    ValueError
        In more than one dimension, or where `num` or `bounds` make no grid.

    Examples
    --------
    >>> from fastdiv import Mixture, Normal, trapezoid_kl
    >>> p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> round(trapezoid_kl(p, Normal(0, 1), num=10_000, bounds=(-5, 7)), 7)
    4.5455398
    """
    check_distributions(p=p, q=q)
    _check_on_line(p, "trapezoid")
    num = as_count(num, "num", 2)
    lower, upper = checked_bounds(bounds) or _default_bounds(p, q)
    module = kernels(backend)
    kernel, parameters = module.trapezoid_kl, (*p.ready(module)[1], *q.ready(module)[1])

    def work(start, stop):
        out = np.empty(1)
        kernel(*parameters, lower, upper, num, start, stop, out)
        return out[0]

    return math.fsum(map_blocks(work, num)) * (upper - lower) / (num - 1)


def trapezoid_kl_normal(
    loc: ArrayLike,
    scale: ArrayLike,
    q: Mixture,
    num: int = 500,
    reach: float = 4.0,
    *,
    backend: str | None = None,
) -> Floats:
    r"""Kullback-Leibler divergences of many Gaussians from one distribution, by the trapezoid rule.

    Each Gaussian has a grid of its own, uniform over so many of its standard deviations, as a search over `loc` and
    `scale` wants it.

    Parameters
    ----------
    loc, scale : array_like
        Means and standard deviations of the Gaussians, broadcast against each other.
    q : Normal or Mixture
        The distribution on the line that they are compared with.
    num : int
        Points of a grid, ends included, at least 2.
    reach : float
        The grid spans ``loc - reach * scale`` to ``loc + reach * scale``.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    float or ndarray
        :math:`\int n \log(n/q)` in nats, n a Gaussian's density, on its grid alone: the default `reach` leaves out
        6e-5 of its mass.

    Raises
    ------
    TypeError
        If `q` is not a distribution, `num` not a whole number, or a parameter not real.
    ValueError
        If `q` has more than one dimension, `num` is below 2, a parameter is not finite, `scale` or `reach` is not
        positive, or the shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdiv import Mixture, trapezoid_kl_normal
    >>> q = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> trapezoid_kl_normal(np.array([[-1.0], [4.0]]), [0.5, 1.0], q).round(4)
    array([[1.0442, 1.0108],
           [0.5108, 1.2086]])
    """
    check_distributions(q=q)
    _check_on_line(q, "trapezoid")
    num = as_count(num, "num", 2)
    loc, scale = (array.astype(np.float64) for array in broadcastable(loc=loc, scale=scale))
    if not (isinstance(reach, numbers.Real) and 0 < float(reach) < 1e100):
        raise ValueError(f"reach must be a positive number below 1e100, got {reach!r}")
    reach = float(reach)
    loc, scale = np.broadcast_arrays(loc, scale)
    shape, locs, scales = loc.shape, loc.flatten(), scale.flatten()
    kernel, parameters = kernels(backend).trapezoid_cross_entropy, q.kernel_parameters(FLOAT64)
    z = np.linspace(-reach, reach, num)
    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    mass = np.exp(log_density) * (2 * reach / (num - 1))
    mass[[0, -1]] *= 0.5
    out = np.empty(locs.size)

    def work(start, stop):
        kernel(locs[start:stop], scales[start:stop], mass, -reach, reach, *parameters, out[start:stop])

    map_blocks(work, locs.size, max(1, BLOCK_POINTS // num))
    return (out + mass @ log_density - mass.sum() * np.log(scales)).reshape(shape)[()]


def trapezoid(
    p: Mixture,
    q: Mixture | None = None,
    num: int | None = None,
    bounds: tuple[float, float] | None = None,
    backend: str | None = None,
) -> Estimate:
    """Return `trapezoid_kl`, or the integral of p log p, as an Estimate; its error is the distance to `integrate`."""
    num = 1000 if num is None else num
    if q is None:
        _check_on_line(p, "trapezoid")
        x = np.linspace(*(checked_bounds(bounds) or _default_bounds(p, p)), num)
        log_p = p.logpdf(x, backend=backend)
        value = float(np.trapezoid(np.where(log_p > -np.inf, np.exp(log_p) * log_p, 0), x))
    else:
        value = trapezoid_kl(p, q, num, bounds, backend=backend)
    converged = integrate(p, q, backend=backend)
    error = abs(value - converged) + converged.error
    return Estimate(value, error=error, method="trapezoid", n_evaluations=num)


def integrate(
    p: Mixture,
    q: Mixture | None = None,
    rtol: float | None = None,
    bounds: tuple[float, float] | None = None,
    backend: str | None = None,
) -> Estimate:
    """Return the mean of log p - log q under p as an Estimate, integrated until it has converged to `rtol`.

    Each component of p is integrated in its own coordinate z, where it is the standard normal: so narrow components
    keep their digits wherever they are. Without q, its logarithm counts 0.
    """
    _check_on_line(p, "quadrature")
    rtol = 1e-10 if rtol is None else max(rtol, MIN_RTOL)
    module = kernels(backend)
    lower, upper = checked_bounds(bounds) or (-math.inf, math.inf)
    parts = []
    for k in np.flatnonzero(p.weights):
        mean, std = p.means[k], p.stds[k]
        ends = max((lower - mean) / std, -REACH), min((upper - mean) / std, REACH)
        if ends[0] < ends[1]:
            parts.append((p.weights[k], *_integrate_component(p, q, k, *ends, rtol, module)))
    value = math.fsum(weight * part for weight, part, *_ in parts)
    error = math.fsum(weight * part for weight, _, part, *_ in parts)
    n_evaluations = sum(n for *_, n, _ in parts)
    if not all(converged for *_, converged in parts):
        message = f"quadrature did not converge to rtol={rtol}; its error is about {error:.2g}"
        warnings.warn(message, AccuracyWarning, stacklevel=4)
    if bounds is not None:
        whole = integrate(p, q, rtol, backend=backend)
        error += abs(value - whole) + whole.error
    return Estimate(value, error=error, method="quadrature", n_evaluations=n_evaluations)


@np.errstate(over="ignore", invalid="ignore")
def _integrate_component(p, q, k, lower, upper, rtol, module):
    """Return value, error, number of points and convergence of E[log p - log q] under component k of p.

    On the whole of z the integrand is smooth and vanishes at both ends, and the trapezoid rule converges exponentially
    once its step is under the finest standard deviation around (Trefethen & Weideman 2014). Where that would take too
    many points, or z is cut off, an adaptive Gauss-Legendre rule breaks at the components' centres, flanks and ends.
    """
    mean, std = p.means[k], p.stds[k]
    kept = [d for d in (p, q) if d is not None]
    local = [(d.kernel_parameters(FLOAT64)[0], (d.means - mean) / std, d.stds / std) for d in kept]
    means, stds = (np.concatenate([parameters[i] for parameters in local]) for i in (1, 2))
    # Without q the unit of x stays in the result.
    offset = 0.0 if q is not None else math.log(std)

    def integrand(z):
        """Return the integrand, and the rounding error of its logarithms, at the points z."""
        logs = np.empty((2, len(z)))
        logs[1] = offset
        for log, parameters in zip(logs, local, strict=False):
            module.mixture_logpdf(z, *parameters, log)
        weight = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return weight * (logs[0] - logs[1]), 4 * EPS * weight * (1 + np.abs(logs[0]) + np.abs(logs[1]))

    near = (means + REACH * stds > lower) & (means - REACH * stds < upper)
    intervals = math.ceil((upper - lower) / min(1.0, stds[near].min()))
    values, _ = integrand(np.linspace(lower, upper, 65))
    if np.any(np.isinf(values)):
        return math.inf, math.inf, 65, True
    if np.any(np.isnan(values)):
        # The components' scales are too far apart for float64.
        return math.nan, math.nan, 65, False
    result = None
    if upper - lower == 2 * REACH and intervals <= MAX_INTERVALS:
        result = _halved(integrand, lower, upper, intervals, rtol)
    if result is None:
        edges = np.unique(means[near] + np.outer([0, 1, -1, 3, -3, REACH, -REACH], stds[near]))
        edges = edges[(edges > lower) & (edges < upper)]
        result = _adaptive(integrand, np.concatenate([[lower], edges, [upper]]), rtol)
    return result


def _halved(integrand, lower, upper, intervals, rtol):
    """Halve the trapezoid rule's step until its value settles; None if it does not."""
    step = (upper - lower) / intervals
    coarse, rounding = (step * np.sum(part) for part in integrand(np.linspace(lower, upper, intervals + 1)))
    before = math.inf
    for _ in range(MAX_HALVINGS):
        middle = integrand(lower + step * (np.arange(intervals) + 0.5))
        fine, rounding = (coarse + step * np.sum(middle[0])) / 2, (rounding + step * np.sum(middle[1])) / 2
        step, intervals = step / 2, 2 * intervals
        change = abs(fine - coarse)
        # One small change may be chance.
        if max(before, change) <= max(rtol * abs(fine), rounding):
            return fine, max(before, change) + rounding, intervals + 1, True
        coarse, before = fine, change
    return None


def _adaptive(integrand, edges, rtol):
    """Halve the panels between `edges` until Gauss-Legendre on a panel and on its halves agree."""
    nodes, weights = np.polynomial.legendre.leggauss(N_NODES)

    def rule(left, right):
        half = (right - left) / 2
        z = (left + half)[:, None] + half[:, None] * nodes
        return [half * (part.reshape(z.shape) @ weights) for part in integrand(z.ravel())]

    left, right = edges[:-1], edges[1:]
    whole, _ = rule(left, right)
    before = np.full(whole.size, math.inf)
    value = error = 0.0
    n_evaluations = whole.size * N_NODES
    for _ in range(MAX_BISECTIONS):
        ends = np.column_stack([left, (left + right) / 2, right])
        left, right = ends[:, :2].ravel(), ends[:, 1:].ravel()
        halves, rounding = rule(left, right)
        n_evaluations += halves.size * N_NODES
        pairs, rounding = halves.reshape(-1, 2).sum(axis=1), rounding.reshape(-1, 2).sum(axis=1)
        change = np.abs(pairs - whole)
        # Across a kink of log q one small change may be chance: the panel's and its parent's must both be small.
        worst = np.maximum(before, change)
        tolerance = rtol * abs(value + np.sum(pairs)) / len(edges)
        open_ = worst > np.maximum(tolerance, rounding)
        value += np.sum(pairs[~open_])
        error += np.sum((worst + rounding)[~open_])
        if not np.any(open_):
            return value, error, n_evaluations, True
        whole, left, right = (part[np.repeat(open_, 2)] for part in (halves, left, right))
        before = np.repeat(change[open_], 2)
    value += np.sum(whole)
    return value, error + np.sum((change + rounding)[open_]), n_evaluations, False
