"""Expectations under a density that need not be normalised: the evidence lower bound, and the evidence."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_rng
from ._backend import map_blocks
from ._logsumexp import logsumexp
from .distributions import Mixture
from .divergences import kl_divergence
from .estimate import Estimate, warn_of_accuracy
from .families import Wrapped, check_distributions
from .quadrature import EPS, REACH, _carried, checked_bounds

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import Seed

__all__ = ["elbo", "log_evidence"]

# Points of the trapezoid rule on the line, at first and at most.
MIN_NODES, MAX_NODES = 1 << 8, 1 << 20
# In search of where a density is: so many points, and how often they close in on it.
N_LOOKED_AT, MAX_ZOOMS = 2049, 60
# Nats below the largest term at which terms count 0, and at which the ends of the line ought to be.
DEPTH, SLIGHT = 100.0, 15.0
# The trapezoid rule for q takes so many standard deviations to either side of a mean.
REACH_OF_GRID = 4.0
# Of a central difference, in units of the distance over which the function changes: the cube root of the rounding.
STEP = 6e-6
# Draws in a block.
BLOCK_SIZE = 16000
# Of weights with a larger shape means are not to be trusted (Vehtari et al. 2024).
TRUSTED_SHAPE = 0.7


class Joint(Wrapped):
    """A log-density that need not be normalised, given by a function."""

    def __init__(self, function, event_shape):
        ends = np.full(event_shape, np.inf)
        super().__init__(function, function, (-ends, ends))

    def __repr__(self):
        return repr(self.wrapped)


def as_target(target, name, event_shape=()):
    """Return a distribution, and whether it is one: a function is a log-density that need not be normalised."""
    if callable(target) and not (hasattr(target, "logpdf") or hasattr(target, "log_prob")):
        return Joint(target, event_shape), False
    return check_distributions(**{name: target})[0], True


def density_of(target, backend):
    """Return the log-density at points (n, D), and its gradient there, by differences where there is no formula.

    The latter takes the distances in which x varies, (n, D), for the steps of the differences.
    """
    from .transforms import Transformed

    event = (slice(None), *([slice(None)] if target.event_shape else [0]))

    def log_density(x):
        return target.logpdf(x[event], backend=backend)

    def score(x, _):
        return target.score(x[event], backend=backend).reshape(x.shape)

    def differences(x, scales):
        out = np.empty_like(x)
        for i in range(x.shape[1]):
            steps = np.zeros_like(x)
            steps[:, i] = STEP * scales[:, i]
            ends = x + steps, x - steps
            out[:, i] = (log_density(ends[0]) - log_density(ends[1])) / (ends[0] - ends[1])[:, i]
        return out

    base = target
    while isinstance(base, Transformed):
        base = base.base
    by_differences = isinstance(base, Wrapped) and base._score is None
    return log_density, differences if by_differences else score


def line_rule(target, log_density, n):
    """Return points on the line, (n, 1), and the logarithms of the terms whose sum is the integral of a density.

    The trapezoid rule where the support is carried to the real line, between the ends of what is within so many nats
    of the largest term: for what is analytic inside the support it converges exponentially, whatever the tails
    (Trefethen & Weideman 2014, section 5).
    """
    to_x, _, ends = _carried(*target.support, target.landmarks)

    def at(z):
        with np.errstate(all="ignore"):
            x, log_slope, _ = to_x(z)
            terms = log_density(x[:, None]) + log_slope
        return x[:, None], np.where(np.isnan(terms), -np.inf, terms)

    for zoom in range(MAX_ZOOMS):
        z = np.linspace(*ends, N_LOOKED_AT)
        terms = at(z)[1]
        largest = terms.max()
        if not np.isfinite(largest):
            raise ValueError(f"the log-density must be finite somewhere, and inf nowhere, got a maximum of {largest}")
        fall = largest - max(terms[0], terms[-1])
        if zoom == 0 and fall < 1:
            raise ValueError("the density must fall off towards infinity, for its integral to be finite")
        if zoom == 0 and fall < SLIGHT:
            warn_of_accuracy("the density falls off slowly towards the ends of its support: some of it may be missing")
        inside = np.flatnonzero(terms > largest - DEPTH)
        ends = z[max(inside[0] - 1, 0)], z[min(inside[-1] + 1, len(z) - 1)]
        if len(inside) > N_LOOKED_AT / 4:
            break
    x, terms = at(np.linspace(*ends, n))
    return x, terms + math.log((ends[1] - ends[0]) / (n - 1))


def factors_of(q):
    """Return the Cholesky factors of the components of q, (K, D, D)."""
    if q.covs is not None:
        return np.linalg.cholesky(q.covs)
    return q.stds.reshape(q.n_components, -1)[:, :, None] * np.eye(math.prod(q.event_shape))


def normal_nodes(n, dimensions, rng):
    """Return nodes z, (n, D), and weights for expectations under N(0, I), right for the first two moments.

    On the line those of the trapezoid rule, beyond its first doublings exact for what is analytic; in D dimensions
    scrambled Sobol points, made to have mean 0 and covariance I.
    """
    if dimensions == 1:
        z = np.linspace(-REACH, REACH, n)
        mass = np.exp(-0.5 * z * z)
        return z[:, None], mass / mass.sum()
    from scipy.special import ndtri
    from scipy.stats import qmc

    u = qmc.Sobol(dimensions, rng=rng).random_base2(math.ceil(math.log2(n)))
    z = ndtri(np.clip(u, 1e-12, 1 - 1e-12))
    z -= z.mean(axis=0)
    whitener = np.linalg.inv(np.linalg.cholesky(np.cov(z.T, bias=True)))
    return z @ whitener.T, np.full(len(z), 1 / len(z))


def nodes_of(target, log_density, n, rng):
    """Return weighted points of the target, (n, D) and (n,), for expectations under it."""
    if isinstance(target, Mixture):
        means, factors = target.means.reshape(target.n_components, -1), factors_of(target)
        z, mass = normal_nodes(n if means.shape[1] == 1 else -(-n // len(means)), means.shape[1], rng)
        x = (means[:, None] + z @ factors.mT).reshape(-1, means.shape[1])
        return x, np.outer(target.weights, mass).ravel()
    if not target.event_shape:
        x, logs = line_rule(target, log_density, n)
        return x, np.exp(logs - logsumexp(logs))
    return target.sample(n, rng=rng), np.full(n, 1 / n)


def refined_value(at, tolerance, n=MIN_NODES):
    """Return at(n) with n doubled until it has changed twice by no more than the tolerance, the change, and n."""
    value, before = at(n), np.inf
    while True:
        n = 2 * n - 1
        last, value = value, at(n)
        change = np.abs(value - last)
        worst = np.maximum(before, change)
        if np.all(worst <= tolerance(value)) or n >= MAX_NODES or not np.all(np.isfinite(value)):
            return value, worst, n
        before = change


def _rounding(value):
    return 16 * EPS * (1 + abs(value))


def mean_log_ratio(p, log_p, log_q, rtol=None):
    """Return E[log p - log q] under p on the line, for functions of points (n, 1) that need not be normalised.

    What p is normalised by is in the number.
    """

    def at(n):
        if isinstance(p, Joint):
            x, logs = line_rule(p, log_p, n)
            total = logsumexp(logs)
            weights, logs = np.exp(logs - total), np.where(logs > -np.inf, log_p(x) - total, 0.0)
        else:
            x, weights = nodes_of(p, log_p, n, None)
            logs = log_p(x)
        used = weights > 0
        return float(weights[used] @ (logs[used] - log_q(x[used])))

    value, change, n = refined_value(at, lambda value: max(_rounding(value), (rtol or 1e-12) * abs(value)))
    error = change + _rounding(value)
    if not error <= max(1e-8, rtol or 0.0) * (1 + abs(value)):
        warn_of_accuracy(f"quadrature has not converged; its error is about {error:.2g}")
    return Estimate(value, error=error, method="quadrature", n_evaluations=n)


def elbo(
    q: Any,
    log_joint: Any,
    *,
    method: str = "auto",
    rtol: float | None = None,
    n: int | None = None,
    rng: Seed = None,
    bounds: tuple[float, float] | None = None,
    num: int | None = None,
    backend: str | None = None,
) -> Estimate:
    r"""Evidence lower bound of q on a density that need not be normalised.

    Parameters
    ----------
    q : distribution
        The approximation to the posterior.
    log_joint : callable or distribution
        The logarithm of likelihood times prior, at points (n,) or (n, D).
    method, rtol, n, rng, num, backend
        As in `kl_divergence`: on the line quadrature, or the trapezoid rule, of 500 points unless `num` says
        otherwise; Monte Carlo in D dimensions.
    bounds : (float, float), optional
        Ends of the integral. By default the trapezoid rule takes four standard deviations to either side of q's means.

    Returns
    -------
    Estimate
        :math:`E_q[\log p(x, \theta) - \log q(\theta)]`, in nats. It is the log-evidence less KL(q || posterior)
        (Blei, Kucukelbir & McAuliffe 2017, section 2.2).

    Raises
    ------
    TypeError
        If `q` is not a distribution, or `log_joint` neither one nor a function.
    ValueError
        If they have different dimensions, or a setting is out of range.

    Examples
    --------
    >>> from scipy.special import log_expit
    >>> from fastdiv import Normal, elbo
    >>> coin = lambda x: 3 * log_expit(x) + 4 * log_expit(-x)  # flips 0, 1, 1, 0, 0, a uniform prior, and the logit
    >>> round(elbo(Normal(-0.33, 0.817), coin), 6)
    -4.096546
    """
    (q,) = check_distributions(q=q)
    target, _ = as_target(log_joint, "log_joint", q.event_shape)
    check_distributions(q=q, log_joint=target)
    if method == "trapezoid" or (method == "auto" and not (num is None and bounds is None)):
        num = 500 if num is None else num
        if bounds is None and isinstance(q, Mixture) and not q.event_shape:
            bounds = np.min(q.means - REACH_OF_GRID * q.stds), np.max(q.means + REACH_OF_GRID * q.stds)
    if isinstance(target, Joint) and not q.event_shape and method != "monte-carlo":
        kl = _kl_from_joint(q, target, method, rtol, bounds, num, backend)
    else:
        kl = kl_divergence(q, target, method=method, rtol=rtol, n=n, rng=rng, bounds=bounds, num=num, backend=backend)
    return Estimate(-kl, **vars(kl))


def _kl_from_joint(q, target, method, rtol, bounds, num, backend):
    """Return the integral of q log(q / target) on the line, for a target that need not be normalised."""
    if method not in ("auto", "quadrature", "trapezoid"):
        raise ValueError(f"method must be 'auto', 'quadrature', 'trapezoid' or 'monte-carlo', got {method!r}")
    if rtol is not None and not (isinstance(rtol, Real) and 0 < rtol < 1):
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}")
    log_q, log_joint = (density_of(d, backend)[0] for d in (q, target))
    converged = mean_log_ratio(q, log_q, log_joint, rtol)
    if method == "quadrature" or bounds is None:
        return converged
    x = np.linspace(*checked_bounds(bounds), as_count(num, "num", 2))
    logs = log_q(x[:, None])
    with np.errstate(invalid="ignore"):
        terms = np.where(logs > -np.inf, np.exp(logs) * (logs - log_joint(x[:, None])), 0.0)
    value = float(np.trapezoid(terms, x))
    return Estimate(value, error=abs(value - converged) + converged.error, method="trapezoid", n_evaluations=num)


def log_evidence(
    log_joint: Any,
    bounds: tuple[float, float] | None = None,
    num: int | None = None,
    *,
    q: Any = None,
    n: int = 100_000,
    rng: Seed = None,
    backend: str | None = None,
) -> Estimate:
    r"""Logarithm of the integral of a density that need not be normalised.

    Parameters
    ----------
    log_joint : callable or distribution
        The logarithm of likelihood times prior, at points (n,) or (n, D).
    bounds : (float, float), optional
        Ends of the integral on the line, by the trapezoid rule. Without them it is that of all the line, and the rule
        is refined until it has converged.
    num : int, optional
        Points between the bounds, 500 by default.
    q : distribution, optional
        What to draw from, for importance sampling: an approximation to the posterior with tails that are no lighter.
        In D dimensions it has to be given.
    n : int
        Draws of `q`.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    Estimate
        :math:`\log\int p(x, \theta)\,d\theta`, in nats. By quadrature the error is that of the rule, and with
        `bounds` also of what is beyond them, if the density falls off there as it does at the bounds. By importance
        sampling, :math:`\log\frac1n\sum_i p(x, \theta_i)/q(\theta_i)`, it is the standard error by the delta
        method, and "pareto_k" and "effective_sample_size" are in `diagnostics`.

    Raises
    ------
    TypeError
        If `log_joint` is neither a distribution nor a function.
    ValueError
        If `q` and `bounds` are both given, `num` without `bounds`, or the dimensions do not match.

    Warns
    -----
    AccuracyWarning
        If the rule has not converged, or if Pareto's k is over 0.7: then the mean of the weights is not to be trusted
        (Vehtari et al. 2024).

    References
    ----------
    Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance sampling", JMLR 25 (2024).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.special import log_expit
    >>> from fastdiv import Normal, log_evidence
    >>> coin = lambda x: 3 * log_expit(x) + 4 * log_expit(-x)  # flips 0, 1, 1, 0, 0, a uniform prior, and the logit
    >>> round(log_evidence(coin, bounds=(-4, 4), num=500), 6)
    -4.094458
    >>> bool(np.isclose(log_evidence(coin), np.log(1 / 60), rtol=0, atol=1e-12))
    True
    >>> estimate = log_evidence(coin, q=Normal(-0.33, 1), rng=0)
    >>> low, high = estimate.confidence_interval(0.999)
    >>> bool(low < np.log(1 / 60) < high)
    True
    """
    if q is not None:
        if bounds is not None or num is not None:
            raise ValueError("bounds and num are for quadrature: give either them or q")
        return _by_importance_sampling(log_joint, q, as_count(n, "n", 2), as_rng(rng), backend)
    target, _ = as_target(log_joint, "log_joint")
    if target.event_shape:
        raise ValueError(f"q must be given in {target.event_shape[0]} dimensions, to draw from")
    log_density, _ = density_of(target, backend)
    bounds = checked_bounds(bounds)
    if bounds is None and num is not None:
        raise ValueError("bounds must be given where num is")
    if bounds is None:
        value, change, n = refined_value(lambda n: float(logsumexp(line_rule(target, log_density, n)[1])), _rounding)
        error = change + _rounding(value)
        if not error <= 1e-8:
            warn_of_accuracy(f"quadrature has not converged; its error is about {error:.2g}")
        return Estimate(value, error=error, method="quadrature", n_evaluations=n)
    num = 500 if num is None else as_count(num, "num", 2)

    def at(n):
        return float(logsumexp(_trapezoid_terms(log_density, bounds, n)))

    value = at(num)
    converged, change, _ = refined_value(at, lambda later: max(_rounding(later), 1e-3 * abs(later - value)), num)
    beyond = _beyond(log_density, bounds, (bounds[1] - bounds[0]) / (num - 1)) - converged
    error = abs(value - converged) + change + _rounding(value) + float(np.logaddexp(0, beyond))
    return Estimate(value, error=error, method="trapezoid", n_evaluations=num)


def _trapezoid_terms(log_density, bounds, n):
    """Return the logarithms of the terms of the trapezoid rule."""
    x = np.linspace(*bounds, n)
    logs = np.array(log_density(x[:, None]), dtype=np.float64)
    logs[[0, -1]] -= math.log(2)
    return logs + math.log((bounds[1] - bounds[0]) / (n - 1))


def _beyond(log_density, bounds, step):
    """Return the logarithm of about how much of a density there is outside the bounds, -inf where it ends there.

    A tail that goes on as it goes over its bound is exponential, and where the density is log-concave has no more.
    """
    total = -math.inf
    for end, outward in ((bounds[0], -step), (bounds[1], step)):
        with np.errstate(all="ignore"):
            here, there = log_density(np.array([[end], [end + outward]]))
        if np.isfinite(here) and np.isfinite(there):
            total = np.logaddexp(total, here - math.log((here - there) / step) if here > there else math.inf)
    return total


def _by_importance_sampling(log_joint, q, n, rng, backend):
    """Return the log-evidence from draws of q, with its standard error by the delta method."""
    from .functionals import effective_sample_size, pareto_k

    (q,) = check_distributions(q=q)
    target, _ = as_target(log_joint, "log_joint", q.event_shape)
    check_distributions(q=q, log_joint=target)
    seeds = np.random.SeedSequence(rng.integers(1 << 32, size=8).tolist()).spawn(-(-n // BLOCK_SIZE))

    def work(start, stop):
        x = q.sample(stop - start, rng=np.random.Generator(np.random.SFC64(seeds[start // BLOCK_SIZE])))
        return target.logpdf(x, backend=backend) - q.logpdf(x, backend=backend)

    log_weights = np.concatenate(map_blocks(work, n, BLOCK_SIZE))
    value = float(logsumexp(log_weights)) - math.log(n)
    shape, standard_error, size = pareto_k(log_weights), math.inf, 0.0
    if math.isfinite(value):
        weights = np.exp(log_weights - value)
        standard_error = float(np.std(weights, ddof=1)) / math.sqrt(n)
        size = effective_sample_size(log_weights)
    if not shape <= TRUSTED_SHAPE:
        warn_of_accuracy(
            f"the weights' Pareto k is {shape:.2g}, over {TRUSTED_SHAPE}: their mean and its standard error are not to "
            "be trusted"
        )
    return Estimate(
        value,
        error=standard_error,
        method="importance-sampling",
        standard_error=standard_error,
        n_evaluations=n,
        diagnostics={"pareto_k": shape, "effective_sample_size": size},
    )
