"""Divergences on the line: the trapezoid rule, and an adaptive rule for far scales, poles and heavy tails."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import FLOAT64, as_count, broadcastable
from ._backend import kernels, map_blocks
from .distributions import Midpoint, Mixture
from .estimate import Estimate, warn_of_accuracy
from .families import check_distributions

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import ArrayLike, Floats
    from .distributions import Distribution

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
# Beyond these, squares of points, and products of densities near a pole, leave float64.
LARGEST, SMALLEST = 1e150, 1e-290
# Where less of p than this is left, a q of 0 is one that has underflown, and its logarithm is this at most.
UNDERFLOWN, LOG_SMALLEST = 1e-20, -745.0
# A density's mass is looked for in finer panels until it is 1 to this, and must be.
MASS_ERROR = 1e-6
# A tail that falls off more slowly than exp(-this z) is taken for one that does not, 1 / x in x.
SLOWEST_TAIL = 1e-6
# A gap in a density is wider than this in z; less is what rounding makes of one point.
LEAST_GAP = 1e-9
# The share of an integral that may lie where float64 cannot see it.
MAX_TAIL = 1e-3
# More panels than this that have not converged are those of noise.
MAX_PANELS = 1 << 12
# Quantiles of three standard deviations, between which the trapezoid rule runs where there are none.
BOUNDS = 0.0013498980316300933, 0.9986501019683699
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
    if not (isinstance(p, Mixture) and isinstance(q, Mixture)):
        if not hasattr(p, "quantile"):
            raise ValueError(f"bounds must be given for {p!r}, which has no quantiles")
        return tuple(p.quantile(BOUNDS).tolist())
    (low_p, high_p, std_p), (low_q, high_q, std_q) = p.extent, q.extent
    margin = 3 * max(std_p, std_q)
    return min(low_p, low_q) - margin, max(high_p, high_q) + margin


def trapezoid_kl(
    p: Any, q: Any, num: int = 1000, bounds: tuple[float, float] | None = None, *, backend: str | None = None
) -> float:
    r"""Kullback-Leibler divergence by the trapezoid rule on a uniform grid.

    Parameters
    ----------
    p, q : distribution
        On the line: fastdiv's, or any that `as_distribution` takes.
    num : int
        Points of the grid, ends included, at least 2.
    bounds : (float, float), optional
        Ends of the grid. By default the smallest mean less three times the largest standard deviation, and the
        largest mean plus as much, over the components of both; unless both are mixtures of Gaussians, the quantiles
        of p that a Gaussian has at three standard deviations.
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
        In more than one dimension, where `num` or `bounds` make no grid, or where p has no quantiles for bounds.

    Examples
    --------
    >>> from fastdiv import Mixture, Normal, trapezoid_kl
    >>> p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> round(trapezoid_kl(p, Normal(0, 1), num=10_000, bounds=(-5, 7)), 7)
    4.5455398
    """
    p, q = check_distributions(p=p, q=q)
    _check_on_line(p, "trapezoid")
    num = as_count(num, "num", 2)
    module = kernels(backend)
    lower, upper = checked_bounds(bounds) or _default_bounds(p, q)
    if not (isinstance(p, Mixture) and isinstance(q, Mixture)):
        return _trapezoid(p, q, num, lower, upper, backend)
    kernel, parameters = module.trapezoid_kl, (*p.ready(module)[1], *q.ready(module)[1])

    def work(start, stop):
        out = np.empty(1)
        kernel(*parameters, lower, upper, num, start, stop, out)
        return out[0]

    return math.fsum(map_blocks(work, num)) * (upper - lower) / (num - 1)


def trapezoid_kl_normal(
    loc: ArrayLike,
    scale: ArrayLike,
    q: Any,
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
    q : distribution
        On the line, that they are compared with: fastdiv's, or any that `as_distribution` takes.
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
    (q,) = check_distributions(q=q)
    _check_on_line(q, "trapezoid")
    num = as_count(num, "num", 2)
    loc, scale = (array.astype(np.float64) for array in broadcastable(loc=loc, scale=scale))
    if not (isinstance(reach, numbers.Real) and 0 < float(reach) < 1e100):
        raise ValueError(f"reach must be a positive number below 1e100, got {reach!r}")
    reach = float(reach)
    loc, scale = np.broadcast_arrays(loc, scale)
    shape, locs, scales = loc.shape, loc.flatten(), scale.flatten()
    module = kernels(backend)
    z = np.linspace(-reach, reach, num)
    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    mass = np.exp(log_density) * (2 * reach / (num - 1))
    mass[[0, -1]] *= 0.5
    out = np.empty(locs.size)

    if isinstance(q, Mixture):
        kernel, parameters = module.trapezoid_cross_entropy, q.kernel_parameters(FLOAT64)

        def work(start, stop):
            kernel(locs[start:stop], scales[start:stop], mass, -reach, reach, *parameters, out[start:stop])

        map_blocks(work, locs.size, max(1, BLOCK_POINTS // num))
    else:
        for start in range(0, locs.size, max(1, BLOCK_POINTS // num)):
            block = slice(start, start + max(1, BLOCK_POINTS // num))
            x = locs[block, None] + scales[block, None] * z
            out[block] = -q.logpdf(x, backend=backend) @ mass
    return (out + mass @ log_density - mass.sum() * np.log(scales)).reshape(shape)[()]


def trapezoid(
    p: Distribution,
    q: Distribution | None = None,
    num: int | None = None,
    bounds: tuple[float, float] | None = None,
    backend: str | None = None,
) -> Estimate:
    """Return `trapezoid_kl`, or the integral of p log p, as an Estimate; its error is the distance to `integrate`."""
    num = 1000 if num is None else num
    if q is None:
        _check_on_line(p, "trapezoid")
        value = _trapezoid(p, None, num, *(checked_bounds(bounds) or _default_bounds(p, p)), backend)
    else:
        value = trapezoid_kl(p, q, num, bounds, backend=backend)
    converged = integrate(p, q, backend=backend)
    error = _distance(value, converged) + converged.error
    return Estimate(value, error=error, method="trapezoid", n_evaluations=num)


def _distance(a, b):
    return 0.0 if a == b else abs(a - b)


def _trapezoid(p, q, num, lower, upper, backend):
    x = np.linspace(lower, upper, num)
    log_p = p.logpdf(x, backend=backend)
    log_q = 0.0 if q is None else q.logpdf(x, backend=backend)
    with np.errstate(invalid="ignore"):
        return float(np.trapezoid(np.where(np.exp(log_p) > 0, np.exp(log_p) * (log_p - log_q), 0), x))


def integrate(
    p: Distribution,
    q: Distribution | None = None,
    rtol: float | None = None,
    bounds: tuple[float, float] | None = None,
    backend: str | None = None,
) -> Estimate:
    """Return the mean of log p - log q under p as an Estimate, integrated until it has converged to `rtol`.

    Mixtures are integrated component by component, each in z = (x - mean) / std of its own: so narrow components
    keep their digits wherever they are. Without q, its logarithm counts 0.
    """
    _check_on_line(p, "quadrature")
    rtol = 1e-10 if rtol is None else max(rtol, MIN_RTOL)
    ends = checked_bounds(bounds) or (-math.inf, math.inf)
    way = _integrate_mixtures if isinstance(p, Mixture) and (q is None or isinstance(q, Mixture)) else _integrate_any
    value, error, n_evaluations, converged, diagnostics = way(p, q, *ends, rtol, backend)
    if not converged:
        message = f"quadrature did not converge to rtol={rtol}; its error is about {error:.2g}"
        for name, total in diagnostics.get("mass", {}).items():
            message += f"; the mass of {name} is {total:.8g}"
        if diagnostics.get("underflow"):
            message += "; the density of q underflows where p has mass"
        warn_of_accuracy(message)
    if bounds is not None:
        whole = integrate(p, q, rtol, backend=backend)
        error += _distance(value, whole) + whole.error
    return Estimate(value, error=error, method="quadrature", n_evaluations=n_evaluations, diagnostics=diagnostics)


def _integrate_mixtures(p, q, lower, upper, rtol, backend):
    module = kernels(backend)
    parts = []
    for k in np.flatnonzero(p.weights):
        mean, std = p.means[k], p.stds[k]
        ends = max((lower - mean) / std, -REACH), min((upper - mean) / std, REACH)
        if ends[0] < ends[1]:
            parts.append((p.weights[k], *_integrate_component(p, q, k, *ends, rtol, module)))
    value = math.fsum(weight * part for weight, part, *_ in parts)
    error = math.fsum(weight * part for weight, _, part, *_ in parts)
    return value, error, sum(n for *_, n, _ in parts), all(converged for *_, converged in parts), {}


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


def carried(low, high, marks):
    """Carry a support to the real line of z: by the logistic function between two ends, exp from one, sinh from none.

    Return the map of z to x, the logarithm of its slope, and |x| in distances to the nearest end; its inverse; and the
    ends of z, where float64 no longer tells points from an end of the support, or squares of them overflow.
    """
    from scipy.special import expit, log_expit

    low, high, middle = float(low), float(high), float(np.median(marks)) if len(marks) else 0.0

    def nearest(end, scale):
        return max(4 * EPS * abs(end) / scale, SMALLEST / min(scale, 1.0))

    def farthest(scale):
        return LARGEST / max(scale, 1.0)

    if math.isfinite(high - low):
        width = high - low

        def to_x(z):
            distance = width * expit(-np.abs(z))
            x = np.where(z < 0, low + distance, high - distance)
            return x, math.log(width) + log_expit(z) + log_expit(-z), np.abs(x) / distance

        reach = math.log(nearest(low, width)), -math.log(nearest(high, width))
        return to_x, lambda x: np.log((x - low) / (high - x)), reach
    if math.isfinite(low) or math.isfinite(high):
        end, sign = (low, 1) if math.isfinite(low) else (high, -1)
        scale = abs(middle - end) or 1.0

        def to_x(z):
            distance = scale * np.exp(sign * z)
            x = end + sign * distance
            return x, np.log(distance), np.abs(x) / distance

        reach = math.log(nearest(end, scale)), math.log(farthest(scale))
        return to_x, lambda x: sign * np.log(sign * (x - end) / scale), reach if sign > 0 else (-reach[1], -reach[0])
    scale = (np.subtract(*np.quantile(marks, [0.75, 0.25])) if len(marks) else 0.0) or 1.0

    def to_x(z):
        slope = scale * np.cosh(z)
        x = middle + scale * np.sinh(z)
        return x, np.log(slope), np.abs(x) / slope

    reach = math.asinh(farthest(scale))
    return to_x, lambda x: np.arcsinh((x - middle) / scale), (-reach, reach)


class _OnZ:
    """A density carried to z, and the panels of z between its landmarks."""

    def __init__(self, p, backend):
        self.p, self.backend, self.n_evaluations = p, backend, 0
        self.to_x, self.to_z, self.reach = carried(*p.support, p.landmarks)
        if len(p.landmarks):
            marks = self.to_z(p.landmarks)
            outward = 2.0 ** np.arange(-1, 11)
            self.edges = self.within([*marks, *(np.min(marks) - outward), *(np.max(marks) + outward)])
        else:
            self.edges = self.within(np.arange(*self.reach))

    def within(self, marks, start=-math.inf, stop=math.inf):
        """Return panels between marks, from `start` to `stop` and no farther than z reaches."""
        start, stop = np.clip([start, stop], *self.reach)
        return np.unique(np.clip([start, *marks, stop], start, stop))

    def evaluate(self, z):
        """Return x, the log-density of x, the density of z, and the relative rounding of a logarithm's unit."""
        self.n_evaluations += len(z)
        x, log_slope, distances = self.to_x(z)
        log_p = self.p.logpdf(x, backend=self.backend)
        # Far out formulas overflow to NaN. Were it not far out, mass would be missing.
        log_p = np.where(np.isnan(log_p), np.array(-np.inf, log_p.dtype), log_p)
        weight = np.exp(log_p + log_slope)
        return x, np.where(weight > 0, log_p, 0.0), weight, np.finfo(log_p.dtype).eps * (4 + distances)

    def density(self, z):
        """Return the density of z and its rounding."""
        _, log_p, weight, unit = self.evaluate(z)
        return weight, unit * weight * (1 + np.abs(log_p))

    def mass(self, rtol):
        """Return the integral of the density and its error, in finer panels while some of it is missing."""
        while True:
            total, error, _, _ = _adaptive(self.density, self.edges, rtol)
            beyond = self.beyond(self.density)
            if -math.inf in beyond:
                return math.inf, 0.0
            error += np.sum(beyond)
            if not 1 - total > error + MASS_ERROR or 8 * len(self.edges) > 2 * MAX_PANELS:
                return float(total), float(error)
            self.edges = np.interp(np.arange(8 * len(self.edges) - 7) / 8, np.arange(len(self.edges)), self.edges)

    def beyond(self, integrand):
        """Return what an exponential tail holds beyond each end of z: infinity where it does not fall off.

        That is -inf where it does not although the points next to the end are exact, so that the integral is infinite.
        """
        rest = []
        for end, inward in zip(self.reach, (1, -1), strict=True):
            last, *before = np.abs(integrand(end + inward * np.array([0.0, 6.0, 12.0]))[0])
            exact = self.to_x(np.array([end]))[2][0] < 1e6
            # Of two rates the larger, since the integrand may pass through 0.
            rate = np.max(np.log(before / last) / [6.0, 12.0]) if last > SMALLEST else math.inf
            if rate > (SLOWEST_TAIL if exact else 0.05):
                rest.append(2 * last / rate)
            else:
                rest.append(-math.inf if exact else math.inf)
        return np.array(rest)


@np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")
def _integrate_any(p, q, lower, upper, rtol, backend):
    """Return value, error, number of points, convergence and diagnostics of E[log p - log q] on a part of the line.

    In z poles at the ends of the support and heavy tails fall off exponentially. What lies beyond the ends of z is in
    the error, and so is what the densities' masses lack of 1.
    """
    on_z = _OnZ(p, backend)
    masses = {}
    for name, part in (("p", on_z), ("q", None if q is None else _OnZ(q, backend))):
        if part is not None and not isinstance(part.p, Mixture | Midpoint):
            masses[name] = part.mass(rtol)

    counted = UNDERFLOWN

    def integrand(z):
        x, log_p, weight, unit = on_z.evaluate(z)
        log_q = np.zeros(len(z)) if q is None else q.logpdf(x, backend=backend)
        unit = np.maximum(unit, 4 * np.finfo(log_q.dtype).eps)
        log_q = np.where(~(log_q > -math.inf) & (weight < counted), LOG_SMALLEST, log_q)
        log_q = np.where(weight > 0, log_q, 0.0)
        return weight * (log_p - log_q), unit * weight * (1 + np.abs(log_p) + np.abs(log_q))

    ends = on_z.to_z(np.clip([lower, upper], *p.support))
    edges = on_z.within(on_z.edges, *ends)
    if q is not None:
        low, high = p.support
        marks = np.append(q.landmarks, q.support)
        edges = on_z.within([*edges, *on_z.to_z(marks[(marks > low) & (marks < high)])], *ends)
    if len(edges) < 2:
        return 0.0, 0.0, on_z.n_evaluations, True, {}
    value, error, _, converged = _adaptive(integrand, edges, rtol)
    zeros, underflow = _zeros(q, on_z.to_x, edges) if q is not None and value == math.inf else (True, False)
    if not zeros:
        # Rounding has put a point onto a single one at which q is 0.
        counted = math.inf
        value, error, _, converged = _adaptive(integrand, edges, rtol)
    # Towards a pole the panels that are left halve the rest only in two steps.
    error = error if converged else 4 * error
    beyond = on_z.beyond(integrand)[[ends[0] < on_z.reach[0], ends[1] > on_z.reach[1]]]
    normalised = all(abs(1 - total) <= mass_error + MASS_ERROR for total, mass_error in masses.values())
    diagnostics = {"mass": {name: total for name, (total, _) in masses.items()}}
    if value == math.inf or -math.inf in beyond:
        diagnostics["underflow"] = underflow
        return math.inf, math.inf, on_z.n_evaluations, normalised and not underflow, diagnostics
    error += np.sum(beyond)
    if normalised:
        error += sum(abs(1 - total) for total, _ in masses.values()) * (1 + abs(value))
    else:
        # What the mass that was not found would have brought is not known.
        error = math.inf
    converged &= error < math.inf and np.sum(beyond) <= MAX_TAIL * abs(value)
    return value, error, on_z.n_evaluations, converged, diagnostics


def _zeros(q, to_x, edges):
    """Return whether a density is 0 between points, and whether it underflows to that: its logarithm is not -inf."""

    def is_zero(z):
        return q.logpdf(to_x(z)[0]) == -np.inf

    z = np.interp((np.arange(64 * len(edges) - 64) + 0.5) / 64, np.arange(len(edges)), edges)
    zero = is_zero(z)
    jumps = np.flatnonzero(zero[1:] != zero[:-1])
    inside, outside = (np.where(zero[jumps] == side, z[jumps], z[jumps + 1]) for side in (False, True))
    for _ in range(60):
        middle = (inside + outside) / 2
        beyond = is_zero(middle)
        inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
    width = np.sum(zero * np.repeat(np.diff(edges) / 64, 64))
    return width > LEAST_GAP, bool(np.any(q.logpdf(to_x(inside)[0]) < 0.9 * LOG_SMALLEST))


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
        if len(left) > MAX_PANELS:
            break
    value += np.sum(whole)
    return value, error + np.sum((change + rounding)[open_]), n_evaluations, False
