"""Divergences on the line by the trapezoid rule."""

import math
import warnings

import numpy as np

from ._arrays import as_count
from ._backend import kernels, map_blocks
from .distributions import Mixture, check_distributions
from .estimate import AccuracyWarning, Estimate

__all__ = ["trapezoid_kl"]

EPS = np.finfo(np.float64).eps
FLOAT64 = np.dtype(np.float64)
# Standard deviations beyond which a Gaussian's mass, 2e-19, is under the rounding of the integral.
REACH = 9.0
# More intervals than this at the finest component's own scale: an adaptive rule is cheaper than a uniform one.
MAX_INTERVALS = 1 << 14
MAX_HALVINGS = 6


def _check_on_line(p, q, method):
    if p.event_shape:
        raise ValueError(f"method {method!r} is for distributions on the line, got {p.event_shape[0]} dimensions")


def _checked_bounds(bounds):
    try:
        lower, upper = map(float, bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers, got {bounds!r}") from None
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"bounds must be finite and increasing, got {bounds!r}")
    return lower, upper


def _sums(p, q, lower, upper, num, module):
    """Return the trapezoid rule's value on `num` points, and the sum that bounds its rounding.

    `p` and `q` are kernel parameters.
    """

    def work(start, stop):
        out = np.empty(2)
        module.trapezoid_kl(*p, *q, lower, upper, num, start, stop, out)
        return out

    blocks = map_blocks(work, num)
    step = (upper - lower) / (num - 1)
    return step * math.fsum(out[0] for out in blocks), step * math.fsum(out[1] for out in blocks)


def trapezoid_kl(p, q, num=1000, bounds=None, *, backend=None):
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
    _check_on_line(p, q, "trapezoid")
    num = as_count(num, "num", 2)
    if bounds is None:
        means = p.means.tolist() + q.means.tolist()
        reach = 3 * max(p.stds.tolist() + q.stds.tolist())
        bounds = min(means) - reach, max(means) + reach
    lower, upper = _checked_bounds(bounds)
    module = kernels(backend)
    return _sums(p.kernel_parameters(FLOAT64), q.kernel_parameters(FLOAT64), lower, upper, num, module)[0]


def trapezoid(p, q, num=None, bounds=None, backend=None):
    """Return `trapezoid_kl` as an Estimate; its error is the distance to the converged integral."""
    num = 1000 if num is None else num
    value = trapezoid_kl(p, q, num, bounds, backend=backend)
    converged = integrate(p, q, backend=backend)
    error = abs(value - converged) + converged.error
    return Estimate(value, error=error, method="trapezoid", n_evaluations=num)


def integrate(p, q, rtol=None, bounds=None, backend=None):
    """Return KL(p || q) as an Estimate, integrated until it has converged to `rtol`.

    The integrand is smooth and vanishes at both ends, so the trapezoid rule converges exponentially once its
    step is under the finest standard deviation (Trefethen & Weideman 2014). Where the scales are too far apart for
    one step, an adaptive Gauss-Kronrod rule with the components' own breakpoints takes over. Shifting and scaling
    both distributions by the same amounts keeps the points' rounding out of the result.
    """
    _check_on_line(p, q, "quadrature")
    rtol = 1e-10 if rtol is None else rtol
    used = p.weights > 0
    centre = float(p.means[np.argmax(p.weights)])
    scale = 2.0 ** math.frexp(p.stds[used].min())[1]
    if bounds is not None:
        lower, upper = _checked_bounds(bounds)
        whole = integrate(p, q, rtol, backend=backend)
        p, q = (Mixture(d.weights, (d.means - centre) / scale, d.stds / scale) for d in (p, q))
        value, error, n, _ = _adaptive(p, q, (lower - centre) / scale, (upper - centre) / scale, rtol, backend)
        error += abs(value - whole) + whole.error
        return Estimate(value, error=error, method="quadrature", n_evaluations=n)
    p, q = (Mixture(d.weights, (d.means - centre) / scale, d.stds / scale) for d in (p, q))
    lower = np.min(p.means[used] - REACH * p.stds[used])
    upper = np.max(p.means[used] + REACH * p.stds[used])
    near = (q.weights > 0) & (q.means + REACH * q.stds > lower) & (q.means - REACH * q.stds < upper)
    finest = min(p.stds[used].min(), q.stds[near].min(initial=np.inf))
    intervals = (upper - lower) / finest
    result = None
    if intervals <= MAX_INTERVALS:
        result = _halved(p, q, lower, upper, math.ceil(intervals), rtol, kernels(backend))
    if result is None:
        result = _adaptive(p, q, lower, upper, rtol, backend)
    value, error, n, converged = result
    if not converged:
        message = f"quadrature did not converge to rtol={rtol}; its error is about {error:.2g}"
        warnings.warn(message, AccuracyWarning, stacklevel=4)
    return Estimate(value, error=error, method="quadrature", n_evaluations=n)


def _halved(p, q, lower, upper, intervals, rtol, module):
    """Halve the trapezoid rule's step until its value settles; None if it does not."""
    p, q = p.kernel_parameters(FLOAT64), q.kernel_parameters(FLOAT64)
    coarse, magnitude = _sums(p, q, lower, upper, intervals + 1, module)
    for _ in range(MAX_HALVINGS):
        # The new points lie halfway. Their sum too may halve its ends: the integrand is negligible there.
        half = (upper - lower) / (2 * intervals)
        middle, middle_magnitude = _sums(p, q, lower + half, upper - half, intervals, module)
        fine, magnitude = (coarse + middle) / 2, (magnitude + middle_magnitude) / 2
        intervals *= 2
        change, rounding = abs(fine - coarse), 4 * EPS * magnitude
        if change <= max(rtol * abs(fine), rounding):
            return fine, change + rounding, intervals + 1, True
        coarse = fine
    return None


def _adaptive(p, q, lower, upper, rtol, backend):
    """Integrate by Gauss-Kronrod panels that break at each component's centre, flanks and ends."""
    from scipy.integrate import quad_vec

    spreads = np.outer([0, 1, -1, 3, -3, REACH, -REACH], np.concatenate([p.stds, q.stds]))
    points = np.unique(np.concatenate([p.means, q.means]) + spreads)

    def integrand(x):
        log_p, log_q = p.logpdf(x, backend=backend), q.logpdf(x, backend=backend)
        density = math.exp(log_p)
        if density == 0:
            return np.zeros(2)
        ratio = log_p - log_q
        rounding = 4 * EPS * ((1 + abs(ratio)) * (1 + abs(log_p)) + abs(log_q))
        return density * np.array([ratio, rounding])

    points = points[(points > lower) & (points < upper)]
    (value, rounding), error, info = quad_vec(
        integrand, lower, upper, epsabs=1e-15, epsrel=rtol, points=points, limit=20_000, full_output=True
    )
    return value, error + rounding, info.neval, info.status == 0 or error <= max(rtol * abs(value), rounding)
