"""What log-ratios at samples answer: divergences, bounds on them, effective sample sizes."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv, expit, logsumexp, rel_entr, softmax

from .estimate import Estimate, warn_of_accuracy

__all__ = [
    "certified_bounds",
    "effective_sample_size",
    "estimate_of",
    "functionals",
    "kl_lower_bounds",
    "pareto_k",
    "warn_of_few",
]

# Of fewer rows a mean is not normal enough for its standard error.
FEW_ROWS = 50
# Of a tail this short nothing can be said.
SHORT_TAIL = 4


def functionals(x_p=None, x_q=None):
    """Return, by divergence, the terms whose means over the samples add up to it, and their slopes in the log-ratio.

    The arguments are the log-ratios at the samples; divergences that need a sample which is not there are left out.
    """
    found = {}
    if x_p is not None:
        found["kl_pq"] = {"x_p": x_p}, {"x_p": np.ones(len(x_p))}
    if x_q is not None:
        found["kl_qp"] = {"x_q": -x_q}, {"x_q": -np.ones(len(x_q))}
    if x_p is not None and x_q is not None:
        values = {"x_p": (math.log(2) - np.logaddexp(0, -x_p)) / 2, "x_q": (math.log(2) - np.logaddexp(0, x_q)) / 2}
        found["js"] = values, {"x_p": expit(-x_p) / 2, "x_q": -expit(x_q) / 2}
    return found


def kl_lower_bounds(x_p, x_q):
    """Return lower bounds on KL(p || q) as `functionals` returns divergences.

    The logarithm of Donsker and Varadhan's mean is taken to be linear about it: the terms add up to the bound, and
    their spread is its standard error by the delta method.
    """
    x_p, x_q = x_p.astype(np.float64), x_q.astype(np.float64)
    log_mean = logsumexp(x_q) - math.log(len(x_q))
    slope = np.ones(len(x_p))
    with np.errstate(over="ignore"):
        share, ratio = np.exp(x_q - log_mean), np.exp(x_q)
    return {
        "donsker-varadhan": ({"x_p": x_p, "x_q": 1 - share - log_mean}, {"x_p": slope, "x_q": -share}),
        "nwj": ({"x_p": x_p, "x_q": 1 - ratio}, {"x_p": slope, "x_q": -ratio}),
    }


def estimate_of(means, standard_error, *, method="classifier", **diagnostics):
    """Return an Estimate that is the sum of the means."""
    return Estimate(
        math.fsum(np.mean(values, dtype=np.float64) for values in means.values()),
        error=standard_error,
        method=method,
        standard_error=standard_error,
        n_evaluations=sum(map(len, means.values())),
        diagnostics=diagnostics | {f"std_{x}": float(np.std(values)) for x, values in means.items()},
    )


def effective_sample_size(log_ratio):
    """Return the squared sum of the ratios over the sum of their squares (Kong 1992)."""
    weights = softmax(log_ratio.astype(np.float64))
    return float(1 / (weights @ weights))


def pareto_k(log_weights):
    """Return the shape of the generalised Pareto distribution that fits the largest weights, k-hat.

    Weights with shape k have finite moments up to 1/k: above 0.7 a mean of them is not to be trusted at any practical
    number of draws (Vehtari et al. 2024, section 3). The tail is the largest min(n / 5, 3 sqrt(n)) weights, the shape
    the posterior mean that Zhang & Stephens (2009) give, drawn towards 1/2 by a prior worth ten weights. It is -inf
    where the largest weights are all equal, and inf where the tail has too few to tell.
    """
    logs = np.asarray(log_weights, dtype=np.float64)
    n_tail = math.ceil(min(len(logs) / 5, 3 * math.sqrt(len(logs))))
    if n_tail <= SHORT_TAIL or not math.isfinite(logs.max()):
        return math.inf
    largest = np.sort(np.partition(logs, -n_tail - 1)[-n_tail - 1 :]) - logs.max()
    if largest[0] == 0:
        return -math.inf
    # Beside the largest weight what is below the cutoff counts 0, and nothing may underflow.
    cutoff = max(largest[0], math.log(1e-290))
    tail = largest[largest > cutoff]
    excess = np.exp(tail) * -np.expm1(cutoff - tail)
    return _generalised_pareto_shape(excess) if len(excess) > SHORT_TAIL else math.inf


def _generalised_pareto_shape(x):
    """Return the shape for sorted positive values: Zhang & Stephens's mean of theta = -shape / scale, and its shape.

    The weights of the mean are the likelihood, at the best shape for each theta of a grid that their prior chose.
    """
    n = len(x)
    quartile = x[int(n / 4 + 0.5) - 1]
    m = 30 + math.isqrt(n)
    theta = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(m) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-theta[:, None] * x).mean(axis=1)
    theta = theta @ softmax(n * (np.log(-theta / shapes) - shapes - 1))
    shape = np.log1p(-theta * x).mean()
    return float((n * shape + 10 * 0.5) / (n + 10))


def warn_of_few(size, n):
    """Warn where a mean under q of something times the ratio is that of a few samples."""
    if size < FEW_ROWS:
        warn_of_accuracy(
            f"the ratio leaves {size:.2g} effective samples of x_q's {n}: a few of them carry its means, "
            "and standard errors are too small"
        )


def certified_bounds(log_ratio_p, log_ratio_q, level=0.95):
    """Return lower bounds on the divergences that hold with confidence `level`, whatever the densities.

    The arguments are log-ratios of one fit that has not seen the samples; of cross-fitted ones, whose signs depend on
    each other a little, the confidence is nearly that. A log-ratio's sign is one bit, and of no
    function of the samples do the divergences exceed those of the samples themselves (Cover & Thomas 2006, section
    2.8). How often it is positive under p and q lies, each time but in half of 1 - `level`, beyond the ends that
    Clopper & Pearson (1934) give. No bound from n samples that always holds is much beyond log n (McAllester & Stratos
    2020).
    """
    error = (1 - level) / 2
    hits, misses = np.count_nonzero(log_ratio_p > 0), np.count_nonzero(log_ratio_q > 0)
    least = betaincinv(hits, len(log_ratio_p) - hits + 1, error) if hits else 0.0
    most = betaincinv(misses + 1, len(log_ratio_q) - misses, 1 - error) if misses < len(log_ratio_q) else 1.0
    p, q = (np.array([share, 1 - share]) for share in (max(least, most), most))
    middle = (p + q) / 2
    js = np.sum(rel_entr(p, middle) + rel_entr(q, middle)) / 2
    return {"kl_pq": float(np.sum(rel_entr(p, q))), "kl_qp": float(np.sum(rel_entr(q, p))), "js": float(js)}
