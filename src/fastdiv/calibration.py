"""Density ratios from the output of any classifier, calibrated by logistic regression."""

from __future__ import annotations

import math
import warnings
from numbers import Integral

import numpy as np
from scipy.special import logit
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import cross_val_predict
from sklearn.utils.validation import has_fit_parameter

from ._arrays import as_count
from ._backend import kernels
from ._logistic import PolynomialTerms
from .estimate import AccuracyWarning, warn_of_accuracy
from .functionals import FEW_ROWS
from .logistic import LogisticRatioClassifier
from .ratio import RatioClassifier

__all__ = ["CalibratedRatioClassifier", "RatioFromClassifier", "calibration_slope", "uncalibrated"]

# Below this slope of the labels in the log-odds of rows held out, or over its inverse, a classifier is ill calibrated.
GOOD_SLOPE = 0.8


def calibrated(output, in_p, weight, backend):
    """Return a logistic regression on the output of a classifier, which is the one to tell what is to be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        return LogisticRatioClassifier(backend=backend).fit(output[:, None], in_p, weight)


def calibration_slope(log_odds, in_p, weight, backend):
    """Return the slope of the labels in the log-odds of rows held out, its standard error, and the fit that gave it.

    The slope is NaN where there are too few rows, or nothing that it would be well-defined by.
    """
    again = None
    if min(np.count_nonzero(in_p), np.count_nonzero(~in_p)) >= FEW_ROWS and np.ptp(log_odds) > 0:
        again = calibrated(log_odds, in_p, weight, backend)
    if again is None or again.separated_:
        return math.nan, math.nan, None
    scale = float(again.terms_.scale[0])
    return scale * float(again.coef_[0, 0]), scale * math.sqrt(again.coef_covariance_[0, 0]), again


def uncalibrated(dtype):
    """Return a logistic regression that leaves its input as it is, and knows nothing of its error."""
    model = LogisticRatioClassifier()
    model.terms_ = PolynomialTerms(kernels(), np.array([[-1], [1]], dtype=dtype), np.ones(2, dtype=dtype), degree=1)
    model.coef_, model.intercept_ = np.ones((1, 1), dtype=dtype), np.zeros(1, dtype=dtype)
    model._scores = None
    return model


class CalibratedRatioClassifier(RatioClassifier):
    """Log-ratios by a logistic regression on one term: the output of a classifier, log-odds that are not calibrated.

    A subclass has the output in `_output`, and in `_fit` calls `_calibrate` with it.
    """

    def _calibrate(self, output, in_p, weight):
        self.calibration_ = calibrated(output, in_p, weight, self.backend)
        self.separated_ = self.calibration_.separated_
        if self.separated_:
            warn_of_accuracy(
                "the classifier separates the samples: the density ratio is unbounded on this evidence, and its "
                "estimate is finite only because a penalty keeps it so"
            )

    def _regression(self):
        return self.calibration_

    def _terms(self, X):
        return self.calibration_._terms(self._output(X)[:, None])


class RatioFromClassifier(CalibratedRatioClassifier):
    """Log-ratio of two densities by any of scikit-learn's classifiers, calibrated.

    The classifier's log-odds of rows that it has not been fitted to, by cross-validation, are the one feature of a
    logistic regression (Platt 1999), whose log-odds, corrected for the sizes of the samples, are the log-ratio.

    Parameters
    ----------
    estimator : estimator
        A classifier with `decision_function`, or else `predict_proba`.
    cv : int or splitter
        The cross-validation, as scikit-learn takes it: at least 2 parts, no more than the smaller sample has rows.
    backend : str or None
        The kernel set of the calibration, as in `use_backend`.

    Attributes
    ----------
    estimator_ : estimator
        The classifier, fitted to all rows.
    calibration_ : LogisticRatioClassifier
        The logistic regression on its log-odds.
    classes_ : ndarray, shape (2,)
        Labels; the second is the numerator's.
    log_prior_ratio_ : float
        log(n_q / n_p), by sample weight.
    separated_ : bool
        Whether the log-odds of all the numerator's samples are above those of all the others.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Warns
    -----
    AccuracyWarning
        If the classifier separates samples that it has not seen.

    Notes
    -----
    The fit to all rows is a little better than those that it is calibrated by, and its own spread is not in the
    standard errors; the calibration's is. Probabilities of 0 and 1 count as half a row in as many as were fitted.

    References
    ----------
    Platt, "Probabilistic outputs for support vector machines" (1999).

    Examples
    --------
    >>> from fastdiv import Normal, RatioFromClassifier
    >>> from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    >>> x_p, x_q = Normal(1, 1).sample((2000, 1), rng=1), Normal(0, 2).sample((2000, 1), rng=2)
    >>> model = RatioFromClassifier(QuadraticDiscriminantAnalysis()).fit_samples(x_p, x_q)
    >>> bool(abs(model.log_ratio([[0.0]])[0] - 0.193) < 0.2)
    True
    """

    def __init__(self, estimator: BaseEstimator, cv: int = 5, *, backend: str | None = None) -> None:
        self.estimator = estimator
        self.cv = cv
        self.backend = backend

    def _check_parameters(self):
        if not (hasattr(self.estimator, "decision_function") or hasattr(self.estimator, "predict_proba")):
            wanted = "a classifier with decision_function or predict_proba"
            raise TypeError(f"estimator must be {wanted}, got {type(self.estimator).__name__}")
        if isinstance(self.cv, Integral):
            as_count(self.cv, "cv", 2)

    def _fit(self, X, in_p, weight):
        self._check_finite(X)
        estimator, method = clone(self.estimator), self._method()
        fewest = min(np.count_nonzero(in_p), np.count_nonzero(~in_p))
        cv = max(min(self.cv, fewest), 2) if isinstance(self.cv, Integral) else self.cv
        params = {"sample_weight": weight} if has_fit_parameter(estimator, "sample_weight") else None
        output = cross_val_predict(estimator, X, in_p, cv=cv, method=method, params=params)
        self.estimator_ = estimator.fit(X, in_p, **(params or {}))
        self._n_rows = len(X)
        self._calibrate(self._log_odds_of(output, X.dtype), in_p, weight)

    def _method(self):
        return "decision_function" if hasattr(self.estimator, "decision_function") else "predict_proba"

    def _log_odds_of(self, output, dtype):
        if output.ndim == 2:
            least = 0.5 / self._n_rows
            output = logit(np.clip(output[:, 1], least, 1 - least))
        return output.astype(dtype)

    def _output(self, X):
        return self._log_odds_of(getattr(self.estimator_, self._method())(X), X.dtype)
