"""Divergences by Monte Carlo, stratified by component, and running means."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_float_array, as_rng
from ._backend import kernels, map_blocks
from .distributions import Mixture
from .estimate import AccuracyWarning, Estimate

if TYPE_CHECKING:
    from ._arrays import ArrayLike, NDArray, Seed
    from .distributions import Distribution

__all__ = ["running_mean"]

# Draws in a block: with both log-densities they stay in L2, and 128 kB of them are few enough for malloc to keep.
BLOCK_SIZE = 16000
DEFAULT_N = 100_000
PILOT_N = 10_000
MAX_N = 10**9
# Share of the variance that one draw may carry; of two draws in a component each carries a half.
MAX_DOMINANCE = 0.4


def new_moments() -> NDArray[np.float64]:
    """Return the moments of nothing: count, mean, M2, min, max, and the mean's rounding error."""
    return np.array([0.0, 0.0, 0.0, np.inf, -np.inf, 0.0])


def strata(p):
    """Return the weights of the parts that are sampled apart: the components of a mixture, all of anything else."""
    return p.weights if isinstance(p, Mixture) else np.ones(1)


def _allocate(weights, n):
    """Share `n` draws among the components by weight, two at the least where the weight is not 0."""
    exact = n * weights
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    short = (weights > 0) & (counts < 2)
    needed = int(np.sum(2 - counts[short]))
    counts[short] = 2
    while needed:
        largest = np.argmax(counts)
        taken = min(needed, int(counts[largest]) - 2)
        counts[largest] -= taken
        needed -= taken
    return counts


def _draw(p, k, n, rng):
    """Return `n` draws of component k of a mixture, less its mean, and that; of anything else draws and None."""
    if isinstance(p, Mixture):
        return p.sample_component(k, n, rng), p.means[k]
    return p.sample(n, rng=rng), None


def _component_moments(p, q, counts, rng, backend):
    """Return the moments of log p - log q over `counts[k]` draws of each component k of p.

    Every block has a seed of its own, so the draws do not depend on which thread takes which block. Draws are kept
    less their component's mean, so that it takes no digits from them. Without q, its logarithm counts 0. Other
    libraries' code is called on the calling thread only.
    """
    module = kernels(backend)
    tasks = [
        (k, min(BLOCK_SIZE, count - start))
        for k, count in enumerate(counts.tolist())
        for start in range(0, count, BLOCK_SIZE)
    ]
    seeds = np.random.SeedSequence(rng.integers(1 << 32, size=8).tolist()).spawn(len(tasks))

    def work(index, _):
        k, n = tasks[index]
        x, origin = _draw(p, k, n, np.random.Generator(np.random.SFC64(seeds[index])))
        log_p, log_q, moments = np.empty(n), np.zeros(n), new_moments()
        p.logpdf_into(x, log_p, module, origin, backend)
        if q is not None:
            q.logpdf_into(x, log_q, module, origin, backend)
        module.log_ratio_moments(log_p, log_q, moments)
        return moments

    if isinstance(p, Mixture) and (q is None or isinstance(q, Mixture)):
        found = map_blocks(work, len(tasks), 1)
    else:
        found = [work(index, None) for index in range(len(tasks))]
    totals = [new_moments() for _ in counts]
    for (k, _), moments in zip(tasks, found, strict=True):
        module.merge_moments(moments, totals[k])
    return np.array(totals)


def degrees_of_freedom(variances, freedoms):
    """Return the degrees of freedom of a sum of independent variances (Satterthwaite 1946), inf if all are 0."""
    variances, freedoms = np.asarray(variances), np.asarray(freedoms)
    used = variances != 0
    if not np.any(used):
        return math.inf
    return float(np.sum(variances) ** 2 / np.sum(variances[used] ** 2 / freedoms[used]))


def monte_carlo(
    p: Distribution,
    q: Distribution | None = None,
    n: int | None = None,
    rtol: float | None = None,
    rng: Seed = None,
    backend: str | None = None,
) -> Estimate:
    """Return the mean of log p - log q over draws of p, with its standard error.

    Component k of p gets its share of the draws, and with weight w_k, mean m_k and variance v_k of its n_k draws the
    estimate is sum w_k m_k, its squared standard error sum w_k^2 v_k / n_k (Cochran 1977, section 5.3).
    """
    rng, weights = as_rng(rng), strata(p)
    used = np.count_nonzero(weights)
    if n is None:
        n = max(DEFAULT_N, 2 * used)
        if rtol is not None:
            pilot = monte_carlo(p, q, max(PILOT_N, 2 * used), rng=rng, backend=backend)
            wanted = pilot.n_evaluations * (pilot.standard_error / (rtol * max(abs(pilot), 1e-300))) ** 2
            wanted = 1.1 * wanted if math.isfinite(wanted) else 0
            n = int(min(max(wanted, pilot.n_evaluations), MAX_N))
    n = as_count(n, "n", 2 * used)
    counts = _allocate(weights, n)
    count, mean, m2, low, high, residual = _component_moments(p, q, counts, rng, backend).T
    chosen = counts > 0
    weights, count, mean, m2 = weights[chosen], count[chosen], (mean + residual)[chosen], m2[chosen]
    value = float(weights @ mean)
    with np.errstate(invalid="ignore"):
        variance = m2 / (count - 1)
        parts = weights**2 * variance / count
        spread = weights @ (variance + (mean - value) ** 2)
        extreme = np.maximum(high[chosen] - mean, mean - low[chosen]) ** 2
        # The largest share of the squared standard error that one draw carries.
        dominance = np.max(parts * extreme / np.where(m2 > 0, m2, 1)) / np.sum(parts) if np.any(parts > 0) else 0.0
    standard_error = math.sqrt(np.sum(parts)) if math.isfinite(value) else math.inf
    if n >= 100 and math.isfinite(value) and not dominance < MAX_DOMINANCE:
        warnings.warn(
            f"a few of the {n} draws carry the variance: the estimate and its standard error are not to be trusted",
            AccuracyWarning,
            stacklevel=4,
        )
    diagnostics = {
        "degrees_of_freedom": degrees_of_freedom(parts, count - 1),
        "std": float(np.sqrt(spread)),
        "min": float(low.min()),
        "max": float(high.max()),
        "dominance": float(dominance),
    }
    return Estimate(
        value,
        error=standard_error,
        method="monte-carlo",
        standard_error=standard_error,
        n_evaluations=n,
        diagnostics=diagnostics,
    )


def running_mean(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of the first 1, 2, 3, … values, and the standard error of each.

    Parameters
    ----------
    values : array_like, shape (n,)
        A sequence, such as the log-ratios at Monte-Carlo draws.

    Returns
    -------
    mean : ndarray, shape (n,)
        Cumulative mean.
    standard_error : ndarray, shape (n,)
        Its standard error, from the cumulative sample variance; the first is NaN.

    Raises
    ------
    ValueError
        If `values` does not have one dimension.
    TypeError
        If `values` is not real.

    Notes
    -----
    Sums are taken of deviations from the overall mean, and squares as products of deviations from the previous and
    the new mean (Welford 1962), so that a large common offset costs no digits.

    Examples
    --------
    >>> from fastdiv import running_mean
    >>> mean, standard_error = running_mean([1.0, 3.0, 2.0])
    >>> mean
    array([1., 2., 2.])
    >>> standard_error.round(6)
    array([    nan, 1.     , 0.57735])
    """
    values = as_float_array(values, "values").astype(np.float64)
    if values.ndim != 1:
        raise ValueError(f"values must have one dimension, got an array of shape {values.shape}")
    if values.size == 0:
        return values, values.copy()
    count = np.arange(1, values.size + 1)
    finite = np.isfinite(values)
    offset = values[finite].mean() if np.any(finite) else 0.0
    deviation = values - offset
    with np.errstate(invalid="ignore"):
        mean = np.cumsum(deviation) / count
        m2 = np.cumsum((deviation - np.concatenate([[0.0], mean[:-1]])) * (deviation - mean))
        m2[0] = 0
        standard_error = np.sqrt(m2 / (count * (count - 1)))
    return mean + offset, standard_error
