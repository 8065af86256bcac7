"""Divergences from samples alone: by a classifier that has not seen the point, or by nearest neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import KFold

from ._arrays import as_count, as_rng
from .estimate import warn_of_accuracy
from .neighbors import knn_kl_divergence
from .networks import MLPRatioClassifier
from .ratio import (
    FEW_ROWS,
    LogisticRatioClassifier,
    RatioClassifier,
    RatioFromClassifier,
    checked_samples,
    coefficient_moves,
    estimate_of,
    functionals,
    with_intercept,
)

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Seed
    from .estimate import Estimate

__all__ = ["divergences_from_samples", "kl_divergence_from_samples"]


def divergences_from_samples(
    x_p: ArrayLike,
    x_q: ArrayLike,
    *,
    estimator: str | BaseEstimator = "logistic",
    n_splits: int = 5,
    rng: Seed = None,
) -> dict[str, Estimate]:
    r"""Estimate KL both ways and JS from samples, each log-ratio by a classifier that has not seen the point.

    Parameters
    ----------
    x_p, x_q : array_like, shape (n_p, n_features), (n_q, n_features)
        Samples of p and q.
    estimator : {"logistic", "mlp", "knn"} or estimator
        ``LogisticRatioClassifier(degree=2)``, ``MLPRatioClassifier(early_stopping=True)``, a ratio classifier, or any
        classifier of scikit-learn's, which `RatioFromClassifier` then calibrates; or `knn_kl_divergence`, which is not
        cross-fitted, knows no JS, and has its own diagnostics and warnings.
    n_splits : int
        Parts that each sample is cut into; each part's log-ratios come from a fit to the others.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.

    Returns
    -------
    dict of Estimate
        "kl_pq", "kl_qp" and, but for "knn", "js", in nats. The standard errors hold the spread of the samples, that of
        the fit, and the distance to the value on the samples of the fit; where the samples are separated they are inf.

    Raises
    ------
    TypeError
        If `estimator` is no classifier.
    ValueError
        If `estimator` is a name that is not known, a sample has fewer than two rows, or the numbers of columns differ.

    Warns
    -----
    AccuracyWarning
        If the classifier separates the samples, a divergence is beyond log n nats, the estimated ratio does not
        integrate to 1, or a sample has under 50 rows.

    Notes
    -----
    Each divergence is a mean of some function of the log-ratio. The first part of its standard error is the root of
    the summed squares of the samples' influences: the deviation of a sample's own term, plus what the sample's score
    moves the fitted coefficients by, times the mean's gradient in them (van der Vaart 1998, example 5.25 and
    chapter 3). Influence vanishes where p and q coincide, and does not see a log-ratio that is extrapolated; the
    second part, the difference between the held-out and the fitted value, is what is left there.

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
    x_p, x_q = checked_samples(x_p, x_q)
    rng = as_rng(rng)
    if isinstance(estimator, str) and estimator == "knn":
        return {"kl_pq": knn_kl_divergence(x_p, x_q, rng=rng), "kl_qp": knn_kl_divergence(x_q, x_p, rng=rng)}
    n_splits = min(as_count(n_splits, "n_splits", 2), len(x_p), len(x_q))
    if n_splits < 2:
        raise ValueError(f"x_p and x_q must have at least 2 rows, got {len(x_p)} and {len(x_q)}")
    estimator = _ratio_classifier(estimator)

    def fitted(x_p, x_q):
        model = clone(estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=int(rng.integers(1 << 31)))
        return model.fit_samples(x_p, x_q)

    def folds(x):
        return KFold(n_splits, shuffle=True, random_state=int(rng.integers(1 << 31))).split(x)

    log_ratio_p, log_ratio_q = np.empty(len(x_p)), np.empty(len(x_q))
    for (fit_p, held_p), (fit_q, held_q) in zip(folds(x_p), folds(x_q), strict=True):
        model = fitted(x_p[fit_p], x_q[fit_q])
        log_ratio_p[held_p], log_ratio_q[held_q] = model.log_ratio(x_p[held_p]), model.log_ratio(x_q[held_q])
    model = fitted(x_p, x_q)
    in_sample, mean_ratio = _in_sample(model, x_p, x_q), _mean_ratio(log_ratio_q)
    estimates = {}
    for name, (means, _) in functionals(log_ratio_p, log_ratio_q).items():
        value, influence = in_sample[name]
        optimism = value - math.fsum(np.mean(part) for part in means.values())
        standard_error = math.inf if model.separated_ else math.hypot(influence, optimism)
        found = {"separated": model.separated_, "optimism": optimism, "mean_ratio": float(mean_ratio)}
        estimates[name] = estimate_of(means, standard_error, **found)
    if min(len(x_p), len(x_q)) < FEW_ROWS:
        warn_of_accuracy(f"the standard errors are for large samples, got {len(x_p)} and {len(x_q)} rows")
    known = math.log(min(len(x_p), len(x_q)))
    if max(estimates["kl_pq"], estimates["kl_qp"]) > known:
        warn_of_accuracy(
            f"a divergence beyond log n = {known:.2g} nats is more than samples of this size can tell: "
            "the estimate is likely too low"
        )
    elif not model.separated_ and abs(mean_ratio - 1) > 5 * mean_ratio.standard_error:
        warn_of_accuracy(
            f"the ratio's mean under q is {mean_ratio:.2g}, not 1: the classifier is no model of these samples"
        )
    return estimates


def _ratio_classifier(estimator):
    """Return the ratio classifier that is asked for."""
    if isinstance(estimator, str):
        named = {"logistic": LogisticRatioClassifier(degree=2), "mlp": MLPRatioClassifier(early_stopping=True)}
        if estimator not in named:
            wanted = ", ".join(map(repr, [*named, "knn"]))
            raise ValueError(f"estimator must be one of {wanted}, or a classifier, got {estimator!r}")
        return named[estimator]
    if isinstance(estimator, RatioClassifier):
        return estimator
    if not (isinstance(estimator, BaseEstimator) and is_classifier(estimator)):
        raise TypeError(f"estimator must be a name or a classifier, got {type(estimator).__name__}")
    return RatioFromClassifier(estimator)


def _mean_ratio(log_ratio):
    """Return the mean of the ratio under q, which is 1 for the true one."""
    ratio = np.exp(log_ratio)
    return estimate_of({"x_q": ratio}, float(np.std(ratio, ddof=1)) / math.sqrt(len(ratio)))


def _in_sample(model, x_p, x_q):
    """Return, on the samples of the fit, each divergence and the norm of its influence function."""
    rows = {"x_p": slice(0, len(x_p)), "x_q": slice(len(x_p), None)}
    X = np.concatenate([x_p, x_q])
    in_p = np.arange(len(X)) < len(x_p)
    terms, log_odds = model._terms(X), model.decision_function(X)
    moves = coefficient_moves(terms, in_p, log_odds, np.ones(len(X)), model._regression().alpha)
    log_ratio = log_odds + model.log_prior_ratio_
    found = {}
    for name, (means, slopes) in functionals(log_ratio[rows["x_p"]], log_ratio[rows["x_q"]]).items():
        gradient = sum(slope @ with_intercept(terms[rows[x]]) / len(slope) for x, slope in slopes.items())
        influence = moves @ gradient
        for x, values in means.items():
            influence[rows[x]] += (values - values.mean()) / len(values)
        value = math.fsum(np.mean(values) for values in means.values())
        found[name] = value, float(np.linalg.norm(influence))
    return found


def kl_divergence_from_samples(
    x_p: ArrayLike,
    x_q: ArrayLike,
    estimator: str | BaseEstimator = "logistic",
    *,
    n_splits: int = 5,
    rng: Seed = None,
) -> Estimate:
    """Estimate KL(p || q) from samples of both, by a cross-fitted classifier or by nearest neighbours.

    Parameters
    ----------
    x_p, x_q, estimator, n_splits, rng
        As in `divergences_from_samples`.

    Returns
    -------
    Estimate
        In nats. Its standard error holds the spread of the samples and that of the fit. In `diagnostics`, with a
        classifier, "mean_ratio" is the mean of the estimated ratio under q, which ought to be 1, "optimism" how much
        larger the value is on the samples of the fit, and "separated" whether the classifier separates them.

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
    if isinstance(estimator, str) and estimator == "knn":
        return knn_kl_divergence(x_p, x_q, rng=rng)
    return divergences_from_samples(x_p, x_q, estimator=estimator, n_splits=n_splits, rng=rng)["kl_pq"]
