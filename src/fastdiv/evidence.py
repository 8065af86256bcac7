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
from .quadrature import BOUNDS, EPS, LOG_SMALLEST, REACH, carried, checked_bounds

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import Seed

__all__ = ["elbo", "log_evidence"]

# Points of the trapezoid rule on the line, at first and at most.
MIN_NODES, MAX_NODES = 1 << 8, 1 << 20
# In search of where a density is: so many points over all of z, and as many in the part of it next to the middle.
N_LOOKED_AT, CORE = 1 << 15, 16.0
# Peaks that are climbed, each on so many points between two neighbours, and how often; so many halvings to its feet.
MAX_PEAKS, N_CLIMBED, MAX_CLIMBS, N_HALVINGS = 64, 33, 14, 50
# Nats below the largest term at which terms count 0, and at which the ends of the line ought to be; by so many a peak
# has fallen where its width is taken.
DEPTH, SLIGHT, FALL = 100.0, 15.0, 0.1
# A peak has at most about so many times its height at a foot by its scale: a Gaussian up to 7, Laplace's up to 10.
MASS = 10.0
# The rate at which a tail falls off is that over so much of z.
TAIL = 6.0
# The trapezoid rule for q takes so many standard deviations to either side of a mean.
REACH_OF_GRID = 4.0
# Where points that weigh less make an integral infinite, they may be ones where the density underflows.
LEAST_MASS = 1e-10
# Of a central difference, in units of the distance over which the function changes: the cube root of the rounding.
STEP = 6e-6
# Draws in a block.
BLOCK_SIZE = 16000
# Of weights with a larger shape means are not to be trusted (Vehtari et al. 2024).
TRUSTED_SHAPE = 0.7


class Joint(Wrapped):
    """A log-density that need not be normalised, given by a function; on the line `like` hints at where it is."""

    def __init__(self, function, name, like):
        ends = np.full(() if like is None else like.event_shape, np.inf)
        super().__init__(function, function, (-ends, ends))
        self.name = name
        if like is not None and not like.event_shape:
            self.landmarks = like.landmarks

    def __repr__(self):
        return repr(self.wrapped)

    def logpdf_into(self, x, out, module, origin=None, backend=None):
        """Write the log-density at points that were drawn, of which each counts."""
        super().logpdf_into(x, out, module, origin, backend)
        check_where_it_counts(self, x if origin is None else x + origin, out)


def as_target(target, name, like=None):
    """Return a distribution, and whether it is one: a function is a log-density that need not be normalised.

    The latter has the dimensions of `like`.
    """
    if callable(target) and not (hasattr(target, "logpdf") or hasattr(target, "log_prob")):
        return Joint(target, name, like), False
    return check_distributions(**{name: target})[0], True


def check_where_it_counts(target, x, logs):
    """Raise ValueError where log-densities at points that count are NaN, or those of a function inf."""
    wrong = np.isnan(logs) | (np.isposinf(logs) & isinstance(target, Joint))
    if np.any(wrong):
        name, got = getattr(target, "name", repr(target)), f"{logs[wrong][0]} at {x[wrong][0]}"
        raise ValueError(f"{name} must not be NaN or inf where it counts, got {got}")


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
    by_differences = isinstance(base, Wrapped) and not base.has_score
    return log_density, differences if by_differences else score


class LineRule:
    """The trapezoid rule for a density on the line, where the support is carried to the real line.

    It runs where the density is within so many nats of its peak, on each such stretch by itself: for what is analytic
    inside the support it converges exponentially, whatever the tails (Trefethen & Weideman 2014, section 5). A peak is
    seen where the log-density rises at one of the points that are looked at. Their distances are 1e-3 of those from
    the middle (0, or the median of the target's landmarks), or of the scale (1, or the landmarks' quartiles), and
    beyond some 1e6 scales 2e-2.
    """

    def __init__(self, target, log_density):
        self.target, self.log_density, self.n_evaluations = target, log_density, 0
        self.to_x, to_z, self.reach = carried(*target.support, target.landmarks)
        with np.errstate(all="ignore"):
            marks = to_z(target.landmarks)
        core = np.clip([-CORE, CORE], *self.reach)
        z = np.concatenate([np.linspace(*ends, N_LOOKED_AT) for ends in (self.reach, core)] + [marks])
        self.z = np.unique(np.clip(z[np.isfinite(z)], *self.reach))
        try:
            self.logs = self.at(self.z)
        except Exception as error:
            if isinstance(target, Joint):
                wanted = "q" if target.name == "log_joint" else "start"
                error.add_note(f"The points were those of the line, (n,); in D dimensions give {wanted}.")
            raise
        self.largest, peaks = self._peaks()
        self.windows, scales, heights = self._windows(peaks)
        self.least, self.narrow, self.log_missed = self._least(peaks, scales, heights)
        self.log_beyond = self._log_beyond()

    def at(self, z):
        """Return the log-density in z, blockwise: a function may need memory for each of its data."""
        self.n_evaluations += z.size
        out = np.empty(z.shape)
        flat, logs = z.ravel(), out.reshape(-1)
        with np.errstate(all="ignore"):
            for start in range(0, flat.size, BLOCK_SIZE):
                x, log_slope, _ = self.to_x(flat[start : start + BLOCK_SIZE])
                logs[start : start + BLOCK_SIZE] = self.log_density(x[:, None]) + log_slope
        return out

    def _climbed(self, logs):
        """Return where the highest local maxima are between the points that are looked at, and how high they are."""
        padded = np.concatenate([[-np.inf], logs, [-np.inf]])
        peaks = np.flatnonzero((logs > padded[:-2]) & (logs >= padded[2:]))
        peaks = peaks[np.argsort(-logs[peaks], kind="stable")[:MAX_PEAKS]]
        low, high = self.z[np.maximum(peaks - 1, 0)], self.z[np.minimum(peaks + 1, len(logs) - 1)]
        best, height = self.z[peaks], logs[peaks]
        for _ in range(MAX_CLIMBS):
            z = np.linspace(low, high, N_CLIMBED, axis=1)
            values = self.at(z)
            values[np.isnan(values)] = -np.inf
            top = values.argmax(axis=1)
            row, last = np.arange(len(peaks)), height
            higher = values[row, top] > height
            best, height = np.where(higher, z[row, top], best), np.where(higher, values[row, top], height)
            low, high = z[row, np.maximum(top - 1, 0)], z[row, np.minimum(top + 1, N_CLIMBED - 1)]
            if not np.any(height > last + 1):
                break
        return best, height

    def _peaks(self):
        """Return the density's logarithm where it is largest, and where the peaks are that count."""
        logs = np.where(np.isnan(self.logs), -np.inf, self.logs)
        largest = logs.max()
        if np.isfinite(largest):
            peaks, heights = self._climbed(logs)
            largest = heights.max()
        if not np.isfinite(largest):
            raise ValueError(f"the log-density must be finite somewhere, and inf nowhere, got a maximum of {largest}")
        fall = largest - max(logs[0], logs[-1])
        if fall < 1:
            raise ValueError("the density must fall off towards infinity, for its integral to be finite")
        if fall < SLIGHT:
            warn_of_accuracy("the density falls off slowly towards the ends of its support: some of it may be missing")
        return largest, peaks[heights > largest - DEPTH]

    def _windows(self, peaks):
        """Return the stretches of z, (W, 2), outside of which the density counts 0, and the scales of the peaks.

        The scale of a peak is that of a Gaussian that falls as it does, to both sides. Return also how high the peaks
        are at the feet where it is taken: a pole may be any higher.
        """
        steps = np.diff(self.z).max() * 0.5 ** np.arange(N_HALVINGS)
        feet = np.clip(np.hstack([peaks[:, None] - steps, peaks[:, None], peaks[:, None] + steps]), *self.reach)
        values = self.at(feet)
        z, first = np.unique(np.concatenate([self.z, feet.ravel()]), return_index=True)
        inside = np.concatenate([self.logs, values.ravel()])[first] > self.largest - DEPTH
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
        windows = z[np.clip(edges.reshape(-1, 2) - np.array([1, 0]), 0, len(z) - 1)]
        if len(windows) > MAX_PEAKS:
            windows = np.array([[windows[0, 0], windows[-1, 1]]])
        before, tops, after = np.split(values, [len(steps), len(steps) + 1], axis=1)
        feet = np.fmax(before, after)
        falls = tops - feet
        scales = np.where(falls > FALL, steps / np.sqrt(2 * np.clip(falls, FALL, 1)), steps[0])
        nearest = np.arange(len(peaks)), scales.argmin(axis=1)
        return windows, scales[nearest], feet[nearest]

    def _least(self, peaks, scales, heights):
        """Return the least number of points at which each peak that counts has one per standard deviation.

        Return also where the peaks are that would take too many, and the logarithm of about as much as these hold.
        """
        log_masses = heights + np.log(scales)
        counted = log_masses > log_masses.max() + math.log(EPS)
        low, high = self.windows[np.searchsorted(self.windows[:, 0], peaks, side="right") - 1].T
        numbers = np.where(counted, len(self.windows) * (high - low) / scales, 0.0)
        narrow = numbers > MAX_NODES // 4
        least = int(np.clip(math.ceil(numbers.max()), MIN_NODES, MAX_NODES // 4))
        return least, peaks[narrow], float(logsumexp(log_masses[narrow] + math.log(MASS)))

    def _log_beyond(self):
        """Return the logarithm of about how much there is beyond the ends of z, where tails are exponential."""
        step = min(TAIL, (self.reach[1] - self.reach[0]) / 4)
        last, before = self.at(np.array([self.reach, np.add(self.reach, (step, -step))]))
        counted = last > self.largest - DEPTH
        # Next to an end of the support points are rounded to as much as their distance from it: hence twice.
        return _log_tails(last[counted], before[counted] - last[counted], step) + math.log(2)

    def zero(self, depth):
        """Return where the density becomes 0, from within so many nats of its peak and not by underflow, or None."""
        empty = self.logs == -np.inf
        # One point alone may be a pole of the log-density.
        wide = empty & (np.append(empty[1:], True) | np.append(True, empty[:-1]))
        jumps = np.flatnonzero(wide[1:] != wide[:-1])
        jumps = jumps[np.maximum(self.logs[jumps], self.logs[jumps + 1]) > self.largest - depth]
        inside, outside = (np.where(wide[jumps] == side, self.z[jumps], self.z[jumps + 1]) for side in (False, True))
        # Near enough to tell underflow, and not so near that what falls to 0 continuously seems one.
        for _ in range(10):
            middle = (inside + outside) / 2
            is_zero = self.at(middle) == -np.inf
            inside, outside = np.where(is_zero, inside, middle), np.where(is_zero, middle, outside)
        with np.errstate(all="ignore"):
            zeros = outside[self.log_density(self.to_x(inside)[0][:, None]) > 0.9 * LOG_SMALLEST]
        return float(self.to_x(zeros)[0][0]) if len(zeros) else None

    def __call__(self, n):
        """Return at least n points, (m, 1), and the logarithms of the terms that sum to the integral."""
        each = -(-max(n, self.least) // len(self.windows)) + 1
        z = np.linspace(*self.windows.T, each, axis=1)
        logs, x = self.at(z), self.to_x(z)[0]
        check_where_it_counts(self.target, x, logs)
        logs[:, [0, -1]] -= math.log(2)
        logs += np.log(np.diff(self.windows) / (each - 1))
        return x.reshape(-1, 1), logs.ravel()


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


def nodes_of(target, log_density, rng):
    """Return the function of n that gives weighted points of the target, (n, D) and (n,), for expectations under it.

    Of a mixture on the line these are n for each component. Return also the least n to begin with.
    """
    if isinstance(target, Mixture):
        means, factors = target.means.reshape(target.n_components, -1), factors_of(target)

        def of_mixture(n):
            z, mass = normal_nodes(n if means.shape[1] == 1 else -(-n // len(means)), means.shape[1], rng)
            x = (means[:, None] + z @ factors.mT).reshape(-1, means.shape[1])
            return x, np.outer(target.weights, mass).ravel()

        return of_mixture, MIN_NODES
    if target.event_shape:
        return lambda n: (target.sample(n, rng=rng).reshape(n, -1), np.full(n, 1 / n)), MIN_NODES
    rule = LineRule(target, log_density)

    def on_line(n):
        x, logs = rule(n)
        return x, np.exp(logs - logsumexp(logs))

    return on_line, rule.least


def refined_value(at, tolerance, n=MIN_NODES, largest=MAX_NODES):
    """Return at(n) with n doubled until it has changed twice by no more than the tolerance, and the change.

    Where it is infinite, or doubled it would be over the largest, this is the end.
    """
    value, before = at(n), np.inf
    while True:
        if not np.all(np.isfinite(value)):
            return value, np.inf
        n = 2 * n - 1
        last, value = value, at(n)
        if not np.all(np.isfinite(value)):
            return value, np.inf
        change = np.abs(value - last)
        worst = np.maximum(before, change)
        if np.all(worst <= tolerance(value)) or n >= largest:
            return value, worst
        before = change


def _rounding(value):
    return 16 * EPS * (1 + abs(value))


def _checked_error(error, limit, missed):
    """Return the error of a rule and of the peaks it misses, with a warning if either is over the limit."""
    if not error <= limit:
        # Next to a pole |x|^-a a doubling leaves 2^(a - 1) of the rest: four times is enough up to an a of about 0.7.
        error *= 4
        warn_of_accuracy(f"quadrature has not converged; its error is about {error + missed:.2g}")
    elif missed > limit:
        warn_of_narrow_peaks()
    return error + missed


def warn_of_narrow_peaks():
    """Warn that the rule is too coarse for a peak that has been seen."""
    warn_of_accuracy("a peak is so narrow beside the rest of the density that some of it may be missing")


def mean_log_ratio(p, q, rtol=None, backend=None):
    """Return E[log p - log q] under p on the line, for densities that need not be normalised.

    What p is normalised by is in the number.
    """
    log_p, log_q = (density_of(d, backend)[0] for d in (p, q))
    n_evaluations, doubtful, total, tail_error, missed = 0, False, 0.0, 0.0, 0.0
    is_mixture = isinstance(p, Mixture)
    rule = None if is_mixture else LineRule(p, log_p)
    nodes = nodes_of(p, log_p, None)[0] if is_mixture else rule

    def at(n):
        nonlocal n_evaluations, doubtful, total, tail_error
        if is_mixture:
            x, weights = nodes(n)
            logs = log_p(x)
        else:
            x, terms = nodes(n)
            total = logsumexp(terms)
            weights = np.exp(terms - total)
            logs = np.where(weights > 0, log_p(x) - (total if isinstance(p, Joint) else 0.0), 0.0)
        n_evaluations += len(x)
        x, logs, weights = (part[weights > 0] for part in (x, logs, weights))
        others = log_q(x)
        check_where_it_counts(q, x, others)
        doubtful = 0 < weights @ (others == -np.inf) < LEAST_MASS
        ratios = logs - others
        if not is_mixture:
            # Beyond the ends the log-ratio goes on about as it goes towards them.
            tail_error = 2 * math.exp(rule.log_beyond - total) * (1 + np.abs(ratios[[0, -1]]).max())
        return float(weights @ ratios)

    value, change = refined_value(
        at,
        lambda value: max(_rounding(value), (rtol or 1e-12) * abs(value)),
        MIN_NODES if is_mixture else rule.least,
        MAX_NODES // p.n_components if is_mixture else MAX_NODES,
    )
    if math.isinf(value):
        if doubtful:
            warn_of_accuracy("the integral is infinite because of points that hardly count: a density may underflow")
        return Estimate(value, error=math.inf, method="quadrature", n_evaluations=n_evaluations)
    if not is_mixture and len(rule.narrow):
        x = rule.to_x(rule.narrow)[0][:, None]
        ratios = log_p(x) - (total if isinstance(p, Joint) else 0.0) - log_q(x)
        missed = math.exp(rule.log_missed - total) * (1 + np.abs(ratios - value).max())
        n_evaluations += len(x)
    limit = max(1e-8, rtol or 0.0) * (1 + abs(value))
    error = _checked_error(change + _rounding(value), limit, missed) + tail_error
    return Estimate(value, error=error, method="quadrature", n_evaluations=n_evaluations)


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
        Ends of the integral. By default the trapezoid rule takes four standard deviations to either side of q's means,
        and the quantiles of a Gaussian's three where q is no mixture of Gaussians.

    Returns
    -------
    Estimate
        :math:`E_q[\log p(x, \theta) - \log q(\theta)]`, in nats. It is the log-evidence less KL(q || posterior)
        (Blei, Kucukelbir & McAuliffe 2017, section 2.2). Where `log_joint` is -inf and q is not, it is -inf ± inf.

    Raises
    ------
    TypeError
        If `q` is not a distribution, or `log_joint` neither one nor a function.
    ValueError
        If they have different dimensions, a setting is out of range, or `log_joint` is NaN or inf where q has mass.

    Examples
    --------
    >>> from scipy.special import log_expit
    >>> from fastdiv import Normal, elbo
    >>> coin = lambda x: 3 * log_expit(x) + 4 * log_expit(-x)  # flips 0, 1, 1, 0, 0, a uniform prior, and the logit
    >>> round(elbo(Normal(-0.33, 0.817), coin), 6)
    -4.096546
    """
    (q,) = check_distributions(q=q)
    target, _ = as_target(log_joint, "log_joint", q)
    check_distributions(q=q, log_joint=target)
    if method == "trapezoid" or (method == "auto" and not (num is None and bounds is None)):
        num = 500 if num is None else num
        if bounds is None and isinstance(target, Joint) and not q.event_shape and not isinstance(q, Mixture):
            if not hasattr(q, "quantile"):
                raise ValueError(f"bounds must be given for {q!r}, which has no quantiles")
            bounds = tuple(q.quantile(BOUNDS).tolist())
        if bounds is None and isinstance(q, Mixture) and not q.event_shape:
            bounds = np.min(q.means - REACH_OF_GRID * q.stds), np.max(q.means + REACH_OF_GRID * q.stds)
    if isinstance(target, Joint) and not q.event_shape and method != "monte-carlo":
        kl = _kl_from_joint(q, target, method, rtol, bounds, num, backend)
    else:
        kl = kl_divergence(q, target, method=method, rtol=rtol, n=n, rng=rng, bounds=bounds, num=num, backend=backend)
    found = vars(kl)
    if kl.standard_error is not None:
        # Of log-ratios that hardly vary the rounding is more.
        error = math.hypot(kl.standard_error, _rounding(kl))
        found = {**found, "error": error, "standard_error": error}
    return Estimate(-kl, **found)


def _kl_from_joint(q, target, method, rtol, bounds, num, backend):
    """Return the integral of q log(q / target) on the line, for a target that need not be normalised."""
    if method not in ("auto", "quadrature", "trapezoid"):
        raise ValueError(f"method must be 'auto', 'quadrature', 'trapezoid' or 'monte-carlo', got {method!r}")
    if rtol is not None and not (isinstance(rtol, Real) and 0 < rtol < 1):
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}")
    converged = mean_log_ratio(q, target, rtol, backend)
    if method == "quadrature" or bounds is None:
        return converged
    x = np.linspace(*checked_bounds(bounds), as_count(num, "num", 2))
    log_q, log_joint = (d.logpdf(x, backend=backend) for d in (q, target))
    counted = np.exp(log_q) > 0
    check_where_it_counts(target, x[counted], log_joint[counted])
    with np.errstate(invalid="ignore"):
        terms = np.where(counted, np.exp(log_q) * (log_q - log_joint), 0.0)
    value = float(np.trapezoid(terms, x))
    distance = 0.0 if value == converged else abs(value - converged)
    return Estimate(value, error=distance + converged.error, method="trapezoid", n_evaluations=num)


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
        is refined until it has converged. A peak is not seen where it is narrower than some 1e-4 of its distance from
        0, next to 0 than 1e-4, or beyond 1e6 than 1e-2 of that distance, and rises from nothing, -inf, or from what
        falls off more steeply: integrate such by `bounds` or `q`.
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
        :math:`\log\int p(x, \theta)\,d\theta`, in nats. By quadrature the error is that of the rule and of what is
        beyond its ends, or beyond the `bounds`, if the density falls off there as it does at these. By importance
        sampling, :math:`\log\frac1n\sum_i p(x, \theta_i)/q(\theta_i)`, it is the standard error by the delta
        method, and "pareto_k" and "effective_sample_size" are in `diagnostics`.

    Raises
    ------
    TypeError
        If `log_joint` is neither a distribution nor a function.
    ValueError
        If `q` and `bounds` are both given, `num` without `bounds`, or the dimensions do not match; if the log-density
        is NaN where it counts, infinite at a point of the rule, or -inf at all of them.

    Warns
    -----
    AccuracyWarning
        If the rule has not converged, or a peak is too narrow for it, whatever is beyond its ends; or if Pareto's k is
        over 0.7: then the mean of the weights is not to be trusted (Vehtari et al. 2024).

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
    n, rng = as_count(n, "n", 2), as_rng(rng)
    if q is not None:
        if bounds is not None or num is not None:
            raise ValueError("bounds and num are for quadrature: give either them or q")
        return _by_importance_sampling(log_joint, q, n, rng, backend)
    target, _ = as_target(log_joint, "log_joint")
    if target.event_shape:
        raise ValueError(f"q must be given in {target.event_shape[0]} dimensions, to draw from")
    log_density, _ = density_of(target, backend)
    bounds = checked_bounds(bounds)
    if bounds is None and num is not None:
        raise ValueError("bounds must be given where num is")
    if bounds is None:
        rule = LineRule(target, log_density)
        value, change = refined_value(lambda n: float(logsumexp(rule(n)[1])), _rounding, rule.least)
        missed, tail_error = (float(np.logaddexp(0, log - value)) for log in (rule.log_missed, rule.log_beyond))
        error = _checked_error(change + _rounding(value), 1e-8, missed) + tail_error
        return Estimate(value, error=error, method="quadrature", n_evaluations=rule.n_evaluations)
    num = 500 if num is None else as_count(num, "num", 2)

    def at(n):
        return float(logsumexp(_trapezoid_terms(target, log_density, bounds, n)))

    value = at(num)
    if not math.isfinite(value):
        raise ValueError(f"the log-density must be finite somewhere, and inf nowhere, got a sum of {value} on {bounds}")
    converged, change = refined_value(at, lambda later: max(_rounding(later), 1e-3 * abs(later - value)), num)
    log_beyond = _log_beyond(log_density, bounds, (bounds[1] - bounds[0]) / (num - 1))
    error = abs(value - converged) + change + _rounding(value) + float(np.logaddexp(0, log_beyond - converged))
    return Estimate(value, error=error, method="trapezoid", n_evaluations=num)


def _trapezoid_terms(target, log_density, bounds, n):
    """Return the logarithms of the terms of the trapezoid rule."""
    x = np.linspace(*bounds, n)
    logs = np.array(log_density(x[:, None]), dtype=np.float64)
    check_where_it_counts(target, x, logs)
    logs[[0, -1]] -= math.log(2)
    return logs + math.log((bounds[1] - bounds[0]) / (n - 1))


def _log_beyond(log_density, bounds, step):
    """Return the logarithm of about how much of a density there is outside the bounds, -inf where it ends there.

    A tail that goes on as it goes over its bound is exponential, and where the density is log-concave has no more.
    """
    with np.errstate(all="ignore"):
        here, there = (log_density(np.add(bounds, away)[:, None]) for away in ((0, 0), (-step, step)))
    counted = np.isfinite(here) & np.isfinite(there)
    return _log_tails(here[counted], here[counted] - there[counted], step)


def _log_tails(logs, falls, step):
    """Return the logarithm of what exponential tails hold that have these logarithms, and these falls over a step."""
    with np.errstate(divide="ignore"):
        return float(logsumexp(logs - np.log(np.maximum(falls, 0) / step)))


def _by_importance_sampling(log_joint, q, n, rng, backend):
    """Return the log-evidence from draws of q, with its standard error by the delta method."""
    from .functionals import effective_sample_size, pareto_k

    (q,) = check_distributions(q=q)
    target, _ = as_target(log_joint, "log_joint", q)
    check_distributions(q=q, log_joint=target)
    seeds = np.random.SeedSequence(rng.integers(1 << 32, size=8).tolist()).spawn(-(-n // BLOCK_SIZE))

    def work(start, stop):
        x = q.sample(stop - start, rng=np.random.Generator(np.random.SFC64(seeds[start // BLOCK_SIZE])))
        logs = target.logpdf(x, backend=backend)
        check_where_it_counts(target, x, logs)
        return logs - q.logpdf(x, backend=backend)

    if isinstance(q, Mixture) and isinstance(target, Mixture):
        found = map_blocks(work, n, BLOCK_SIZE)
    else:
        # Other libraries' code is called on the calling thread only.
        found = [work(start, min(start + BLOCK_SIZE, n)) for start in range(0, n, BLOCK_SIZE)]
    log_weights = np.concatenate(found)
    value = float(logsumexp(log_weights)) - math.log(n)
    shape, standard_error, size = pareto_k(log_weights), math.inf, 0.0
    if math.isfinite(value):
        weights = np.exp(log_weights - value)
        standard_error = math.hypot(float(np.std(weights, ddof=1)) / math.sqrt(n), _rounding(value))
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
