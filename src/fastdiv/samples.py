"""Divergences from samples alone, by ratios that have not seen the point or by nearest neighbours."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.model_selection import KFold

from ._arrays import as_count, as_rng
from .calibration import GOOD_SLOPE, RatioFromClassifier, calibration_slope
from .estimate import AccuracyWarning, warn_of_accuracy
from .functionals import FEW_ROWS, certified_bounds, estimate_of, functionals
from .kernel_ratio import KernelRatio, KLIEPRatio, LeastSquaresRatio
from .logistic import LogisticRatioClassifier
from .neighbors import knn_estimate
from .networks import MLPRatioClassifier
from .ratio import RatioEstimator, TermsAt, checked_samples, log_odds_at, row_blocks, seeded, with_intercept
from .telescoping import TelescopingRatioClassifier

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Seed
    from .estimate import Estimate

__all__ = ["divergences_from_samples", "kl_divergence_from_samples"]

# Beyond this standard error a calibration slope says nothing.
KNOWN_SLOPE = 0.2
# Means of the ratio that are so far from 1 are told, the second of sums of kernels.
ROUNDING, SHRUNK = 1e-6, 0.1


def divergences_from_samples(
    x_p: ArrayLike,
    x_q: ArrayLike,
    *,
    estimator: str | BaseEstimator = "logistic",
    telescoping: int | None = None,
    n_splits: int = 5,
    rng: Seed = None,
) -> dict[str, Estimate]:
    r"""Estimate KL both ways and JS from samples, each log-ratio by a fit that has not seen the point.

    Parameters
    ----------
    x_p, x_q : array_like, shape (n_p, n_features), (n_q, n_features)
        Samples of p and q.
    estimator : {"logistic", "mlp", "ulsif", "rulsif", "kliep", "knn"} or estimator
        ``LogisticRatioClassifier(degree=2)``, ``MLPRatioClassifier(early_stopping=True)``, ``LeastSquaresRatio()``,
        ``LeastSquaresRatio(alpha=0.1)``, ``KLIEPRatio()``, another of these classes, or any classifier of
        scikit-learn's, which `RatioFromClassifier` then calibrates; or `knn_kl_divergence`, which is not cross-fitted,
        knows no JS, and has its own diagnostics and warnings.
    telescoping : int, optional
        Bridges between samples that are far apart: the estimator, a classifier, in a `TelescopingRatioClassifier`.
    n_splits : int
        Parts that each sample is cut into; each part's log-ratios come from a fit to the others.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it. It seeds estimators whose `random_state` is None.

    Returns
    -------
    dict of Estimate
        "kl_pq", "kl_qp" and, but for "knn", "js", in nats. The standard errors hold the spread of the samples, that of
        the fit, and the distance to the value on the samples of the fit; where the samples are separated they are inf.
        In `diagnostics`, with a classifier:

        - "lower_bound": what the divergence is not below, with nearly 95 % confidence, whatever the densities;
        - "separated": whether the classifier separates the samples;
        - "optimism": how much larger the value is on the samples of the fit;
        - "mean_ratio": the mean of the estimated ratio under q, which ought to be 1;
        - "calibration_slope": what the held-out log-ratios should be multiplied by, 1 if they are calibrated, and NaN
          where under 50 rows or separated ones cannot tell;
        - "bias": what unequal samples may add.

        With bridges, the mean ratio and the slope are those of the bridge that does worst.

    Raises
    ------
    TypeError
        If `estimator` is no classifier.
    ValueError
        If `estimator` is a name that is not known, a sample has fewer rows than the estimator needs, the columns
        differ, or `telescoping` is given and the estimator no classifier.

    Warns
    -----
    AccuracyWarning
        If the classifier separates the samples, a divergence is beyond log n nats, the held-out log-ratios are not
        calibrated, the estimated ratio does not integrate to 1, a feature has one value in a sample, a sample has
        under 50 rows, or so much fewer than the other that the bias is most of the error.

    Notes
    -----
    Each divergence is a mean of some function of the log-ratio. The first part of its standard error is the root of
    the summed squares of the samples' influences: the deviation of a sample's own term, plus what the sample's score
    moves the fitted coefficients by, times the mean's gradient in them (van der Vaart 1998, example 5.25 and
    chapter 3). Influence vanishes where p and q coincide, and does not see a log-ratio that is extrapolated; the
    second part, the difference between the held-out and the fitted value, is what is left there. Where one sample is
    smaller, a third is the bias k/2 (1/n_p - 1/n_q) of the mean over the larger, by k coefficients that the smaller
    determines (Akaike 1974).

    For sums of kernels the first part is the spread of the held-out terms, and for a KL, which is off by the log of
    the ratio's mean under the denominator to first order, that log and its spread. "kl_qp" then comes from a fit with
    p and q exchanged: one over a sum of kernels is no ratio where the sum vanishes. Of the 95 % intervals
    for KL(p || q) of N(1, 1) from N(0, 4), and of two unit Gaussians in the plane around 1/2 from two of variance 1.69
    around 0, with 500 samples of each and 100 seeds, these held the truth: 96 and 97 by uLSIF, 94 and 96 by RuLSIF, 98
    and 100 by KLIEP. Where the ratio is unbounded, as of two Gaussians of one width, they are wide, the values of
    uLSIF and KLIEP off by up to a third, and in the plane 34 of 40 by uLSIF held the truth, for JS 32. Where the
    relative ratio that RuLSIF fits comes within half a row of its bound, 1 / alpha, the ratio is cut off, with a
    warning; see `LeastSquaresRatio`.

    A log-ratio that the classifier cannot follow, or has too few samples for, makes the value too low by more than the
    standard error knows: with a network in five dimensions and 500 samples of each, by some two of them.

    Examples
    --------
    >>> from fastdiv import Normal
    >>> from fastdiv.samples import divergences_from_samples
    >>> x_p, x_q = Normal(1, 1).sample(4000, rng=1), Normal(0, 2).sample(4000, rng=2)
    >>> found = divergences_from_samples(x_p, x_q, rng=0)
    >>> bool(abs(found["kl_pq"] - 0.443) < 4 * found["kl_pq"].standard_error)
    True
    """
    return _divergences(x_p, x_q, estimator, telescoping, n_splits, rng, ["kl_pq", "kl_qp"])


def _divergences(x_p, x_q, estimator, telescoping, n_splits, rng, directions):
    """Return the divergences; those of the KL that take an estimate of their own only in the directions asked for."""
    x_p, x_q = checked_samples(x_p, x_q)
    rng = as_rng(rng)
    n_splits, samples = as_count(n_splits, "n_splits", 2), {"kl_pq": (x_p, x_q), "kl_qp": (x_q, x_p)}
    is_knn = isinstance(estimator, str) and estimator == "knn"
    estimator = None if is_knn else _ratio_estimator(estimator)
    if telescoping is not None:
        if is_knn or isinstance(estimator, KernelRatio):
            raise ValueError(f"telescoping must be None for an estimator that is no classifier, got {telescoping!r}")
        estimator = TelescopingRatioClassifier(estimator, as_count(telescoping, "telescoping", 1))
    if is_knn:
        return {name: knn_estimate(*samples[name], rng=rng, p=name[-2], q=name[-1]) for name in directions}
    least = 3 if isinstance(estimator, KernelRatio) else 2
    if min(len(x_p), len(x_q)) < least:
        raise ValueError(f"x_p and x_q must have at least {least} rows, got {len(x_p)} and {len(x_q)}")
    _warn_of_samples(x_p, x_q)
    if not isinstance(estimator, KernelRatio):
        return _by_classifier(x_p, x_q, *_cross_fitted(x_p, x_q, estimator, n_splits, rng), directions)
    found = {}
    for name in directions:
        part = _by_kernels(*samples[name], *_cross_fitted(*samples[name], estimator, n_splits, rng), *name[-2:])
        found |= {name: part["kl_pq"]} | ({"js": part["js"]} if name == "kl_pq" else {})
    return found


def _cross_fitted(x_p, x_q, estimator, n_splits, rng):
    """Return a fit, the log-ratios at both samples of fits that have not seen them, and those of the single bridges."""
    n_splits = min(n_splits, len(x_p), len(x_q))

    def fitted(x_p, x_q):
        model = seeded(estimator, lambda: int(rng.integers(1 << 31)))
        with warnings.catch_warnings():
            # Told once, with a lower bound, by what is made of it.
            warnings.filterwarnings("ignore", "the (classifier|ratio) separates", AccuracyWarning)
            return model.fit_samples(x_p, x_q)

    def folds(x):
        return KFold(n_splits, shuffle=True, random_state=int(rng.integers(1 << 31))).split(x)

    log_ratio_p, log_ratio_q, of_folds = np.empty(len(x_p)), np.empty(len(x_q)), []
    for (fit_p, held_p), (fit_q, held_q) in zip(folds(x_p), folds(x_q), strict=True):
        model = fitted(x_p[fit_p], x_q[fit_q])
        ratios = model._ratios_at(x_p[held_p], x_q[held_q])
        whole = ratios[0] if len(ratios) == 1 else (model.log_ratio(x_p[held_p]), model.log_ratio(x_q[held_q]))
        log_ratio_p[held_p], log_ratio_q[held_q] = whole
        of_folds.append(ratios)
    ratios = [[np.concatenate(part) for part in zip(*ratio, strict=True)] for ratio in zip(*of_folds, strict=True)]
    return fitted(x_p, x_q), log_ratio_p, log_ratio_q, ratios


def _by_classifier(x_p, x_q, model, log_ratio_p, log_ratio_q, ratios, directions):
    """Return the divergences by the held-out log-ratios of a classifier, and warn of what is wrong with them."""
    in_sample, n_terms = _in_sample(model, x_p, x_q)
    bounds = certified_bounds(log_ratio_p, log_ratio_q)
    mean_ratio, (slope, shifts) = _checks(ratios)
    biases = _biases(len(x_p), len(x_q), n_terms // len(ratios))
    estimates = {}
    for name, (means, _) in functionals(log_ratio_p, log_ratio_q).items():
        value, influence = in_sample[name]
        optimism = value - math.fsum(np.mean(part) for part in means.values())
        estimates[name] = estimate_of(
            means,
            math.inf if model.separated_ else math.hypot(influence, optimism, biases[name]),
            lower_bound=bounds[name],
            separated=model.separated_,
            optimism=optimism,
            bias=biases[name],
            mean_ratio=float(mean_ratio),
            calibration_slope=slope,
        )
    asked = {f"KL({name[-2]}‖{name[-1]})": estimates[name] for name in directions}
    if not _warn_of_size(asked, len(ratios) * math.log(min(len(x_p), len(x_q)))):
        _warn_of_fit({name: estimates[name] for name in directions}, mean_ratio, slope, shifts)
    return estimates


def _by_kernels(x_p, x_q, model, log_ratio_p, log_ratio_q, ratios, p, q):
    """Return KL(p || q) and JS by the held-out log-ratios of a sum of kernels, and warn of what is wrong with them.

    Warnings and diagnostics call the samples by p and q, for here they may be exchanged.

    JS is stationary in the ratio, so a small error of the fit leaves it alone. That of KL(p || q) is by first order
    the log of the ratio's mean under q, and its noise the spread of the ratio there.
    """
    bounds = certified_bounds(log_ratio_p, log_ratio_q)
    mean_ratio, estimates = _mean_ratio(log_ratio_q), {}
    with np.errstate(invalid="ignore", divide="ignore"):
        in_sample = functionals(model.log_ratio(x_p), model.log_ratio(x_q))
        held_out = functionals(log_ratio_p, log_ratio_q)
        for name in ("kl_pq", "js"):
            means = held_out[name][0]
            value = math.fsum(np.mean(part) for part in in_sample[name][0].values())
            optimism = value - math.fsum(np.mean(part) for part in means.values())
            parts = [np.std(part) / math.sqrt(len(part)) for part in means.values()]
            if name == "kl_pq":
                parts += [np.float64(mean_ratio.standard_error) / mean_ratio, np.log(mean_ratio)]
            estimates[name] = estimate_of(
                {f"x_{p}" if x == "x_p" else f"x_{q}": part for x, part in means.items()},
                math.inf if model.separated_ else math.hypot(*parts, optimism),
                method=model.method,
                lower_bound=bounds[name],
                separated=model.separated_,
                optimism=optimism,
                mean_ratio=float(mean_ratio),
            )
    asked = {f"KL({p}‖{q})": estimates["kl_pq"]}
    if not _warn_of_size(asked, math.log(min(len(x_p), len(x_q)))):
        # The penalty on the weights shrinks the ratio, which the standard error knows.
        _warn_of_mean(mean_ratio, q, SHRUNK)
    return estimates


def _warn_of_size(asked, known):
    """Warn of divergences that the samples cannot tell; return whether there are any."""
    bounds = " and ".join(f"{name} is at least {kl.diagnostics['lower_bound']:.2g}" for name, kl in asked.items())
    at_least = f"with 95 % confidence {bounds} nats"
    if any(kl.diagnostics["separated"] for kl in asked.values()):
        warn_of_accuracy(f"the samples are separated: {at_least}, and may be infinite")
    elif max(asked.values()) > known:
        warn_of_accuracy(
            f"a divergence beyond log n = {known:.2g} nats is more than samples of this size can tell: "
            f"the estimate is likely too low; {at_least}"
        )
    else:
        return False
    return True


def _warn_of_fit(estimates, mean_ratio, slope, shifts):
    """Warn of a ratio that is not one."""
    for name, estimate in estimates.items():
        bias = estimate.diagnostics["bias"]
        if 2 * bias**2 > estimate.standard_error**2:
            few, many = ("x_p", "x_q") if name == "kl_qp" else ("x_q", "x_p")
            warn_of_accuracy(
                f"{few} has too few rows beside {many}'s for the coefficients that are fitted: "
                f"the mean over {many} may be too high by {bias:.2g} nats"
            )
    if any(shifts.get(name, 0) > estimate.standard_error for name, estimate in estimates.items()):
        warn_of_accuracy(
            f"by the rows held out the log-ratio should be {slope:.2g} times as large: the classifier is "
            f"{'over' if slope < 1 else 'under'}confident"
        )
    else:
        _warn_of_mean(mean_ratio, "q", ROUNDING)


def _warn_of_mean(mean_ratio, q, least):
    if math.isinf(mean_ratio) or abs(mean_ratio - 1) > max(5 * mean_ratio.standard_error, least):
        warn_of_accuracy(f"the ratio's mean under {q} is {mean_ratio:.4g}, not 1: the fit is no model of these samples")


def _warn_of_samples(x_p, x_q):
    """Warn of samples that tell little, however they are compared."""
    if min(len(x_p), len(x_q)) < FEW_ROWS:
        warn_of_accuracy(f"the standard errors are for large samples, got {len(x_p)} and {len(x_q)} rows")
    constant_p, constant_q = (np.flatnonzero(x.min(axis=0) == x.max(axis=0)) for x in (x_p, x_q))
    for name, alone in (("x_p", np.setdiff1d(constant_p, constant_q)), ("x_q", np.setdiff1d(constant_q, constant_p))):
        if alone.size:
            warn_of_accuracy(
                f"{_features(alone)} one value in all of {name} and several in the other sample: "
                "if that is no chance, the density ratio is unbounded"
            )
    both = np.intersect1d(constant_p, constant_q)
    same = x_p[0, both] == x_q[0, both]
    if np.any(same):
        warn_of_accuracy(f"{_features(both[same])} the same value in all rows, which tells nothing")
    if not np.all(same):
        warn_of_accuracy(
            f"{_features(both[~same])} one value in x_p and another in x_q: the density ratio is unbounded"
        )


def _features(indices):
    """Begin a sentence on features."""
    listed = ", ".join(map(str, indices))
    return f"feature {listed} has" if len(indices) == 1 else f"features {listed} have"


def _checks(ratios):
    """Return, each of the ratio that does worst, the mean under q, and the calibration slope and what it shifts."""
    means = [_mean_ratio(low) for _, low in ratios]
    slopes = [_calibration(*ratio) for ratio in ratios]
    mean_ratio = max(means, key=lambda mean: abs(mean - 1) - 5 * mean.standard_error)
    return mean_ratio, max(slopes, key=lambda found: sum(found[1].values()))


def _calibration(log_ratio_p, log_ratio_q):
    """Return the calibration slope of held-out log-ratios, and if it is far from 1 what it shifts their means by.

    Where p and q are hardly different, the slope is that of noise, and not known.
    """
    log_ratio = np.concatenate([log_ratio_p, log_ratio_q])
    in_p = np.arange(len(log_ratio)) < len(log_ratio_p)
    slope, error, again = calibration_slope(log_ratio, in_p, np.ones(len(log_ratio)), None)
    if again is None or not 3 * error < abs(slope - 1) or GOOD_SLOPE <= slope <= 1 / GOOD_SLOPE or error > KNOWN_SLOPE:
        return slope, {}
    moved = again.log_ratio(log_ratio) - log_ratio
    return slope, {name: abs(float(np.mean(moved[rows]))) for name, rows in (("kl_pq", in_p), ("kl_qp", ~in_p))}


def _biases(n_p, n_q, n_coefficients):
    """Return, by divergence, by how much the smaller sample makes a mean over the larger too high.

    Of k coefficients the maximum likelihood on n rows loses k/2n nats (Akaike 1974), which equal samples lose on both
    sides of the ratio and the influence function does not see.
    """
    lopsided = "kl_qp" if n_p < n_q else "kl_pq"
    return {"kl_pq": 0.0, "kl_qp": 0.0, "js": 0.0, lopsided: n_coefficients / 2 * abs(1 / n_p - 1 / n_q)}


def _ratio_estimator(estimator):
    """Return the estimator of the ratio that is asked for."""
    if isinstance(estimator, str):
        named = {
            "logistic": LogisticRatioClassifier(degree=2),
            "mlp": MLPRatioClassifier(early_stopping=True),
            "ulsif": LeastSquaresRatio(),
            "rulsif": LeastSquaresRatio(alpha=0.1),
            "kliep": KLIEPRatio(),
        }
        if estimator not in named:
            wanted = ", ".join(map(repr, [*named, "knn"]))
            raise ValueError(f"estimator must be one of {wanted}, or a classifier, got {estimator!r}")
        return named[estimator]
    if isinstance(estimator, RatioEstimator):
        return estimator
    if not (isinstance(estimator, BaseEstimator) and is_classifier(estimator)):
        raise TypeError(f"estimator must be a name or a classifier, got {type(estimator).__name__}")
    return RatioFromClassifier(estimator)


def _mean_ratio(log_ratio):
    """Return the mean of the ratio under q, which is 1 for the true one."""
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(log_ratio)
        return estimate_of({"x_q": ratio}, float(np.std(ratio, ddof=1)) / math.sqrt(len(ratio)))


def _in_sample(model, x_p, x_q):
    """Return, on the samples of the fit, each divergence and the norm of its influence; and how many terms vary."""
    rows_of = {"x_p": slice(0, len(x_p)), "x_q": slice(len(x_p), None)}
    X = np.concatenate([x_p, x_q])
    in_p = np.arange(len(X)) < len(x_p)
    terms = TermsAt(model, X)
    log_ratio = log_odds_at(model, terms) + model.log_prior_ratio_
    answers = functionals(*(log_ratio[rows] for rows in rows_of.values()))
    slopes = np.zeros((len(X), len(answers)))
    for k, (_, slope_of) in enumerate(answers.values()):
        for x, slope in slope_of.items():
            slopes[rows_of[x], k] = slope / len(slope)
    gradients, least, largest = 0.0, math.inf, -math.inf
    for rows in row_blocks(terms):
        block = terms[rows]
        gradients += with_intercept(block).T @ slopes[rows]
        least, largest = np.minimum(least, block.min(axis=0)), np.maximum(largest, block.max(axis=0))
    influences, units = model._moves(X, terms, in_p, gradients)
    found = {}
    for (name, (means, _)), influence in zip(answers.items(), influences.T, strict=True):
        for x, values in means.items():
            influence[rows_of[x]] += (values - values.mean()) / len(values)
        value = math.fsum(np.mean(values) for values in means.values())
        found[name] = value, float(np.linalg.norm(np.bincount(units, influence)))
    return found, int(np.count_nonzero(largest > least))


def kl_divergence_from_samples(
    x_p: ArrayLike,
    x_q: ArrayLike,
    estimator: str | BaseEstimator = "logistic",
    *,
    telescoping: int | None = None,
    n_splits: int = 5,
    rng: Seed = None,
) -> Estimate:
    """Estimate KL(p || q) from samples of both, by a cross-fitted classifier or by nearest neighbours.

    Parameters
    ----------
    x_p, x_q, estimator, telescoping, n_splits, rng
        As in `divergences_from_samples`.

    Returns
    -------
    Estimate
        "kl_pq" of `divergences_from_samples`, in nats. Its standard error holds the spread of the samples and that of
        the fit; `diagnostics` hold a lower bound and what else tells how far it is to be trusted.

    Raises
    ------
    TypeError, ValueError
        As in `divergences_from_samples`.

    Warns
    -----
    AccuracyWarning
        As in `divergences_from_samples`.

    Examples
    --------
    >>> from fastdiv import Normal, kl_divergence_from_samples
    >>> x_p, x_q = Normal(1, 1).sample(4000, rng=1), Normal(0, 2).sample(4000, rng=2)
    >>> estimate = kl_divergence_from_samples(x_p, x_q, rng=0)
    >>> low, high = estimate.confidence_interval()
    >>> bool(low < 0.443147 < high)
    True
    """
    return _divergences(x_p, x_q, estimator, telescoping, n_splits, rng, ["kl_pq"])["kl_pq"]
