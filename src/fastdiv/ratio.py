"""Density ratios from samples, by probabilistic classification."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import cross_val_predict
from sklearn.utils import assert_all_finite, check_random_state, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    _get_feature_names,
    check_array,
    check_is_fitted,
    column_or_1d,
    has_fit_parameter,
    validate_data,
)

from ._arrays import as_count
from ._backend import kernels
from ._descent import LogisticDescent, Passes, RowOrder, generator_of, held_out, polynomials_at_once
from ._logistic import LogisticLoss, PolynomialTerms, coefficient_covariance, lbfgs, newton_from_few
from .estimate import AccuracyWarning, warn_of_accuracy
from .functionals import FEW_ROWS, effective_sample_size, estimate_of, functionals, kl_lower_bounds, warn_of_few

if TYPE_CHECKING:
    from typing import Self

    from ._arrays import ArrayLike, NDArray
    from .estimate import Estimate

__all__ = ["CalibratedRatioClassifier", "LogisticRatioClassifier", "RatioClassifier", "RatioFromClassifier"]

FLOATS = (np.float64, np.float32)
SOLVERS = ("newton", "lbfgs", "sgd")
SCHEDULES = ("adaptive", "constant", "invscaling")
# An adaptive learning rate is multiplied by DECAY until it is MIN_RATE of the first one.
DECAY = 0.2
MIN_RATE = 1e-4
# Below this slope of the labels in the log-odds of rows held out, or over its inverse, a classifier is ill calibrated.
GOOD_SLOPE = 0.8
LEAST_SPREAD = 1e-150


def _learns_in_parts(estimator):
    """Tell a solver that takes mini-batches."""
    solver = getattr(estimator, "solver", None)
    if solver not in ("sgd", "rmsprop", "adam"):
        raise AttributeError(f"partial_fit needs a solver that takes mini-batches, got solver={solver!r}")
    return True


class RatioClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of two samples as an estimator of their log-ratio: a logistic regression on terms of X.

    A subclass checks its parameters in `_check_parameters`, fits in `_fit` to rows, whether they are the numerator's,
    and weights of mean 1, and has the terms in `_terms`.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _check_numbers(self, **wanted):
        """Check parameters given what they are to be, in words and as a function."""
        for name, (words, valid) in wanted.items():
            value = getattr(self, name)
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and valid(value)):
                raise ValueError(f"{name} must be {words}, got {value!r}")

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to labelled samples.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Samples of both distributions.
        y : array_like, shape (n,)
            Two labels; the larger one marks the numerator's samples.
        sample_weight : array_like, shape (n,), optional
            Weights of the samples; the prior correction uses their sums.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range, the labels are not two, or the fit diverges.
        """
        self._check_parameters()
        with self._whole():
            self._fit_labelled(X, y, sample_weight)
        return self

    @contextmanager
    def _whole(self):
        """Leave the last fit whole where this one fails."""
        before = vars(self).copy()
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    @available_if(_learns_in_parts)
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Make one pass over some rows, from where the last fit or call left off.

        The features keep the standardisation, and the weights the unit, of the rows of the first call. The prior
        correction is by all rows so far; it is NaN until both classes have come. What the earlier rows would say of
        the coefficients is not known any more: standard errors are inf, and `separated_` is None.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Samples, of both distributions or of one.
        y : array_like, shape (n,)
            Labels among `classes`; the larger one marks the numerator's samples.
        classes : array_like, shape (2,), optional
            The two labels; the first call needs them.
        sample_weight : array_like, shape (n,), optional
            Weights of the samples.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range or has no meaning here (early stopping, balanced classes), the labels are
            not those of the earlier calls, or the steps diverge.
        """
        self._check_parameters()
        if self.early_stopping:
            raise ValueError("partial_fit has no rows to hold out: early_stopping must be False, got True")
        if getattr(self, "class_weight", None) == "balanced":
            raise ValueError("partial_fit does not know all rows: class_weight must be a dict or None, got 'balanced'")
        with self._whole():
            self._fit_part(X, y, classes, sample_weight)
        return self

    def _fit_part(self, X, y, classes, sample_weight):
        is_first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=FLOATS, order="C", reset=is_first)
        check_classification_targets(y)
        _check_partial_fit_first_call(self, classes)
        if len(self.classes_) != 2:
            raise ValueError(f"classes must be two labels, got {self.classes_.tolist()}")
        if not np.all(np.isin(y, self.classes_)):
            raise ValueError(f"y must hold labels of {self.classes_.tolist()}, got {np.unique(y).tolist()}")
        in_p = y == self.classes_[1]
        weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        weight = self._with_class_weight(weight, in_p)
        masses = np.bincount(in_p, weights=weight, minlength=2)
        if not masses.sum() > 0:
            raise ValueError("sample_weight must leave weight, got none")
        if is_first:
            self._masses, self._weight_unit = np.zeros(2), masses.sum() / np.count_nonzero(weight)
        self._masses = self._masses + masses
        n_q, n_p = self._masses
        self.log_prior_ratio_ = math.log(n_q / n_p) if n_q > 0 and n_p > 0 else math.nan
        kept = weight > 0
        self._go_on(X[kept], in_p[kept], (weight[kept] / self._weight_unit).astype(X.dtype, copy=False))

    def _with_class_weight(self, weight, in_p):
        """Multiply weights by those of the classes."""
        class_weight = getattr(self, "class_weight", None)
        if class_weight is None:
            return weight
        if class_weight == "balanced":
            masses = np.bincount(in_p, weights=weight, minlength=2)
            factors = masses.sum() / (2 * np.where(masses > 0, masses, 1))
        else:
            factors = compute_class_weight(class_weight, classes=self.classes_, y=self.classes_)
            if not np.all((factors >= 0) & np.isfinite(factors)):
                raise ValueError(f"class_weight must be finite and at least 0, got {class_weight!r}")
        return weight * factors.astype(weight.dtype)[in_p.astype(np.intp)]

    def _fit_labelled(self, X, y, sample_weight):
        last = getattr(self, "classes_", None)
        X, self.classes_, in_p = self._checked_labels(X, y)
        if getattr(self, "warm_start", False) and last is not None and not np.array_equal(last, self.classes_):
            raise ValueError(
                f"warm_start needs the labels of the last fit, {last.tolist()}, got {self.classes_.tolist()}"
            )
        if sample_weight is None and getattr(self, "class_weight", None) is None:
            weight = np.ones(len(X), dtype=X.dtype)
            n_p = np.count_nonzero(in_p)
            n_q = len(X) - n_p
            self._weight_unit = 1.0
        else:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
            weight = self._with_class_weight(weight, in_p)
            n_q, n_p = np.bincount(in_p, weights=weight)
            if not (n_p > 0 and n_q > 0):
                raise ValueError(f"sample_weight and class_weight must leave weight in each class, got {n_q} and {n_p}")
            self._check_finite(X)
            if not np.all(weight > 0):
                X, in_p, weight = X[weight > 0], in_p[weight > 0], weight[weight > 0]
            self._weight_unit = weight.sum(dtype=np.float64) / len(weight)
            weight = (weight / self._weight_unit).astype(X.dtype)
        self._masses = np.array([n_q, n_p], dtype=np.float64)
        self.log_prior_ratio_ = math.log(n_q / n_p)
        self._fit(X, in_p, weight)

    def _regression(self):
        """Return what has the coefficients of the terms."""
        return self

    def _standardised(self, X, weight, degree):
        terms = PolynomialTerms(kernels(self.backend), X, weight, degree)
        scale = terms.scale.tolist()
        if not (all(map(math.isfinite, [*terms.centre.tolist(), *scale])) and min(scale) > 0):
            self._check_finite(X)
            raise ValueError(f"X must have a spread that {X.dtype} can hold, up to its power {degree}")
        if 1.0 in terms.feature_scale.tolist():
            # Constants have that scale; and what is taken for one because its square is 0.
            spread = np.ptp(X, axis=0)[terms.feature_scale == 1]
            if np.any((spread > 0) & (spread < LEAST_SPREAD)):
                raise ValueError(f"X must have a spread whose square float64 can hold, got one of {spread.min()}")
        return terms

    def _check_finite(self, X):
        assert_all_finite(X, estimator_name=type(self).__name__, input_name="X")

    def _checked_labels(self, X, y):
        """Return the data, the two classes, and where the second one is."""
        if _is_plain(X) and type(y) is np.ndarray and y.shape == X.shape[:1] and y.dtype.kind in "biuf":
            # What scikit-learn asks of them is known at sight, and it takes ten times as long as a small fit to ask.
            # Whether X is finite its moments will tell.
            low, high = sorted((y[0], y[(y != y[0]).argmax()]))
            in_p = y == high
            if (
                low < high
                and np.count_nonzero(in_p) + np.count_nonzero(y == low) == len(y)
                and float(low).is_integer()
                and float(high).is_integer()
            ):
                self.n_features_in_ = X.shape[1]
                vars(self).pop("feature_names_in_", None)
                return X, np.array([low, high]), in_p
        X, y = validate_data(self, X, y, dtype=FLOATS, order="C")
        check_classification_targets(y)
        classes, labels = np.unique(column_or_1d(y), return_inverse=True)
        if len(classes) > 2:
            raise ValueError(f"Only binary classification is supported. The type of the target is {type_of_target(y)}.")
        if len(classes) < 2:
            raise ValueError(f"y must hold two classes, got one class: {classes[0]!r}")
        return X, classes, labels == 1

    def fit_samples(
        self,
        x_p: ArrayLike,
        x_q: ArrayLike,
        sample_weight_p: ArrayLike | None = None,
        sample_weight_q: ArrayLike | None = None,
    ) -> Self:
        """Fit to samples of p, the numerator, and q, the denominator.

        Parameters
        ----------
        x_p, x_q : array_like, shape (n_p, n_features), (n_q, n_features)
            Samples. One-dimensional arrays are taken as one feature; data frames must have the same columns.
        sample_weight_p, sample_weight_q : array_like, shape (n_p,), (n_q,), optional
            Weights of the samples.

        Returns
        -------
        self
            With labels 1 for p and 0 for q.

        Raises
        ------
        ValueError
            If a sample is empty, or the numbers of features differ.
        """
        names = _get_feature_names(x_p)
        x_p, x_q = checked_samples(x_p, x_q)
        weight = None
        if sample_weight_p is not None or sample_weight_q is not None:
            weight = np.concatenate(
                [
                    _check_sample_weight(sample_weight_p, x_p, dtype=x_p.dtype),
                    _check_sample_weight(sample_weight_q, x_q, dtype=x_q.dtype),
                ]
            )
        self.fit(np.concatenate([x_p, x_q]), np.repeat([1, 0], [len(x_p), len(x_q)]), weight)
        if names is not None:
            self.feature_names_in_ = names
        return self

    def _log_odds(self, terms):
        regression = self._regression()
        return terms @ regression.coef_[0] + regression.intercept_[0]

    def decision_function(self, X: ArrayLike) -> NDArray[np.floating]:
        """Log-odds of the numerator's class, as the sizes of the samples make them.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Points.

        Returns
        -------
        ndarray, shape (n,)
            log P(p | x) - log P(q | x), in nats.
        """
        check_is_fitted(self)
        return self._log_odds(self._terms(validate_data(self, X, dtype=FLOATS, reset=False)))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Probabilities of the two classes, shape (n, 2), in the order of `classes_`."""
        log_odds = self.decision_function(X)
        return np.column_stack([expit(-log_odds), expit(log_odds)])

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the likelier class of each point, shape (n,)."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(np.intp)]

    def log_ratio(self, X: ArrayLike) -> NDArray[np.floating]:
        """Estimated log p(x) - log q(x).

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Points. A one-dimensional array is taken as one feature.

        Returns
        -------
        ndarray, shape (n,)
            The log-odds plus log(n_q / n_p), in nats.
        """
        return self.decision_function(_as_matrix(X)) + self.log_prior_ratio_

    def ratio(self, X: ArrayLike) -> NDArray[np.floating]:
        """Estimated p(x) / q(x), shape (n,)."""
        return np.exp(self.log_ratio(X))

    def kl_divergence(self, x_p: ArrayLike) -> Estimate:
        """Estimate KL(p || q) as the mean log-ratio over samples of p.

        Parameters
        ----------
        x_p : array_like, shape (n, n_features)
            Samples of p. On the samples of the fit, the estimate is optimistic.

        Returns
        -------
        Estimate
            In nats. Its standard error holds the spread of these samples and that of the fitted coefficients, taken as
            independent. Of a classifier that is calibrated it is the calibration's: what the classifier itself has
            missed is in that of `kl_divergence_from_samples`.
        """
        return self._estimates(x_p=x_p)["kl_pq"]

    def js_divergence(self, x_p: ArrayLike, x_q: ArrayLike) -> Estimate:
        """Estimate the Jensen-Shannon divergence from the log-ratio at samples of both.

        Parameters
        ----------
        x_p, x_q : array_like, shape (n, n_features)
            Samples of p and of q.

        Returns
        -------
        Estimate
            In nats, with a standard error as in `kl_divergence`.

        Notes
        -----
        It is log 2 less the cross-entropy of the samples, each with half the weight. No classifier's expected
        cross-entropy is below log 2 - JS, which the true ratio has: on samples that were not fitted to, this is a
        lower bound but for their chance (Goodfellow et al. 2014, theorem 1).
        """
        return self._estimates(x_p=x_p, x_q=x_q)["js"]

    def kl_lower_bound(self, x_p: ArrayLike, x_q: ArrayLike, kind: str = "donsker-varadhan") -> Estimate:
        r"""Estimate a lower bound on KL(p || q), which the true ratio reaches.

        Of any function r, not of a density ratio alone,
        :math:`E_p \log r - \log E_q r` (Donsker & Varadhan 1983) and the lower
        :math:`E_p \log r + 1 - E_q r` (Nguyen, Wainwright & Jordan 2010) are at most KL(p || q).

        Parameters
        ----------
        x_p, x_q : array_like, shape (n_p, n_features), (n_q, n_features)
            Samples of p and of q. On the samples of the fit it may be no bound.
        kind : {"donsker-varadhan", "nwj"}
            Which of the two.

        Returns
        -------
        Estimate
            In nats, with a standard error as in `kl_divergence`, of the logarithm by the delta method. In
            `diagnostics`, "effective_sample_size" is how many samples of q carry the mean of r.

        Raises
        ------
        ValueError
            If `kind` is not known, or a sample does not fit.

        Warns
        -----
        AccuracyWarning
            If the effective sample size is under 50.

        Examples
        --------
        >>> from fastdiv import LogisticRatioClassifier, Normal
        >>> x_p, x_q = Normal(1, 1).sample((2, 5000), rng=1), Normal(0, 2).sample((2, 5000), rng=2)
        >>> model = LogisticRatioClassifier(degree=2).fit_samples(x_p[0], x_q[0])
        >>> bound = model.kl_lower_bound(x_p[1], x_q[1])
        >>> bool(abs(bound - 0.443147) < 4 * bound.standard_error)
        True
        >>> bool(model.kl_lower_bound(x_p[1], x_q[1], "nwj") <= bound)
        True
        """
        kinds = "donsker-varadhan", "nwj"
        if kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(map(repr, kinds))}, got {kind!r}")
        with np.errstate(invalid="ignore"):
            bound = self._estimates(kl_lower_bounds, x_p=x_p, x_q=x_q)[kind]
        warn_of_few(bound.diagnostics["effective_sample_size"], len(x_q))
        return bound

    def importance_weights(self, x_q: ArrayLike) -> tuple[NDArray[np.float64], float]:
        """Weights that make samples of q stand for p.

        Parameters
        ----------
        x_q : array_like, shape (n, n_features)
            Samples of q.

        Returns
        -------
        weights : ndarray, shape (n,)
            The ratios over their sum, so that ``weights @ f(x_q)`` estimates the mean of f under p; `ratio` has them
            as they are.
        effective_sample_size : float
            One over the sum of the squared weights: n where all weigh the same, 1 where one weighs all (Kong 1992).

        Raises
        ------
        ValueError
            If `x_q` is empty or does not fit.

        Warns
        -----
        AccuracyWarning
            If the effective sample size is under 50.

        Examples
        --------
        >>> from fastdiv import LogisticRatioClassifier, Normal
        >>> x_p, x_q = Normal(1, 1).sample(5000, rng=1), Normal(0, 2).sample(5000, rng=2)
        >>> model = LogisticRatioClassifier(degree=2).fit_samples(x_p, x_q)
        >>> weights, size = model.importance_weights(x_q)
        >>> bool(abs(weights @ x_q - 1) < 0.1), 2000 < size < 5000
        (True, True)
        """
        check_is_fitted(self)
        with _naming("x_q"):
            log_ratio = self.log_ratio(x_q).astype(np.float64)
        size = effective_sample_size(log_ratio)
        warn_of_few(size, len(log_ratio))
        return softmax(log_ratio), size

    def _estimates(self, answers=functionals, **samples):
        check_is_fitted(self)
        terms = {}
        for name, x in samples.items():
            with _naming(name):
                terms[name] = self._terms(validate_data(self, _as_matrix(x), dtype=FLOATS, reset=False))
        log_ratios = {name: self._log_odds(t) + self.log_prior_ratio_ for name, t in terms.items()}
        diagnostics = self._diagnostics()
        if "x_q" in log_ratios:
            diagnostics["effective_sample_size"] = effective_sample_size(log_ratios["x_q"])
        estimates = {}
        for name, (means, slopes) in answers(**log_ratios).items():
            gradient = sum(slope @ with_intercept(terms[x]) / len(slope) for x, slope in slopes.items())
            # One sample says nothing of its spread.
            variance = sum(np.var(v, ddof=1) / len(v) if len(v) > 1 else math.inf for v in means.values())
            variance += gradient @ self._regression().coef_covariance_ @ gradient
            standard_error = math.inf if math.isnan(variance) else math.sqrt(variance)
            estimates[name] = estimate_of(means, standard_error, **diagnostics)
        return estimates

    def _ratios_at(self, x_p, x_q):
        """Return, of each ratio that is estimated, its logarithm at samples of its numerator and its denominator."""
        return [(self.log_ratio(x_p), self.log_ratio(x_q))]

    def _moves(self, X, terms, in_p):
        """Return what the rows of a fit without weights moved its coefficients by, and which rows go together."""
        weight = self._with_class_weight(np.ones(len(X)), in_p)
        alpha = self._regression().alpha
        moves = coefficient_moves(terms, in_p, self._log_odds(terms), weight / weight.mean(), alpha)
        return moves, np.arange(len(X))

    def _diagnostics(self):
        return {"separated": self.separated_}


class LogisticRatioClassifier(RatioClassifier):
    r"""Log-ratio of two densities by logistic regression on samples of both.

    The probability that a point came from the numerator p and not from the denominator q is modelled as
    :math:`\sigma(\beta \cdot t(x) + \beta_0)` with polynomial terms t; the log-odds, corrected for the sizes of the
    samples, are the log-ratio: :math:`\log \frac{p}{q}(x) = \beta \cdot t(x) + \beta_0 + \log(n_q / n_p)`. Between
    two Gaussians the log-ratio is a polynomial of degree 2.

    The fit minimises the mean cross-entropy plus alpha/2 times the squared coefficients. "newton" takes Newton steps,
    which are halved until the loss falls; many rows start from the optimum of one in 16. "lbfgs" is SciPy's L-BFGS-B,
    for terms in such number that their Hessian costs too much. "sgd" is mini-batch gradient descent with momentum; its
    parameters are named as in scikit-learn's `SGDClassifier`.

    Parameters
    ----------
    degree : int
        Degree of the polynomial log-odds.
    solver : {"newton", "lbfgs", "sgd"}
        How the loss is minimised.
    alpha : float
        Strength of the L2 penalty; the intercept is free.
    learning_rate : float
        Step size of "sgd" at the start.
    schedule : {"adaptive", "constant", "invscaling"}
        How the step size of "sgd" goes on: a fifth of it each time that the loss has settled, until it is 1e-4 of the
        first; the same; or over the number of the step to the power `power_t`. The last two stop where the loss has
        settled.
    power_t : float
        The power of "invscaling".
    momentum : float
        Share of the last step of "sgd" in the next, at least 0 and under 1.
    average : bool or int
        Whether the coefficients are the mean over the steps of "sgd", or as a number, over those from the one on that
        brings the rows seen to it (Polyak & Juditsky 1992).
    batch_size : int
        Rows in a step of "sgd".
    shuffle : bool
        Whether "sgd" takes the rows in another order at each pass, or as they come.
    max_iter : int
        Most steps of "newton" or "lbfgs", passes over the data of "sgd".
    tol : float
        When the fit has converged. "newton": a step foretells a decrease of the loss of at most tol/2, or 5e-4 if tol
        is beyond 1e-3, which leaves about its square. "lbfgs": no derivative of the loss is beyond tol. "sgd": see
        `n_iter_no_change`.
    n_iter_no_change : int
        The loss of "sgd" has settled once it has not fallen by `tol` in so many passes.
    early_stopping : bool
        Whether "sgd" holds out rows, watches their loss, and returns to the best coefficients by it.
    validation_fraction : float
        Share of each class that `early_stopping` holds out. It has no part in the coefficients, their covariance and
        the prior correction.
    class_weight : dict, "balanced" or None
        Weights of the labels, which multiply those of the rows; "balanced" gives both classes the same. The log-odds
        of `decision_function` move with them, the log-ratio does not.
    warm_start : bool
        Whether `fit` starts from the coefficients of the last one, with its terms.
    verbose : bool
        Whether "sgd" shows a progress bar with the losses; it needs rich.
    random_state : int, RandomState or None
        Orders the rows of each pass of "sgd" and chooses those held out; the others do without chance.
    backend : str or None
        The kernel set, as in `use_backend`.

    Attributes
    ----------
    classes_ : ndarray, shape (2,)
        Labels; the second is the numerator's.
    coef_ : ndarray, shape (1, n_terms)
        Coefficients of the standardised polynomial terms that `terms_` makes of X.
    intercept_ : ndarray, shape (1,)
        Intercept.
    coef_covariance_ : ndarray, shape (n_terms + 1, n_terms + 1)
        Sandwich covariance of the coefficients and the intercept; NaN after `partial_fit`.
    terms_ : PolynomialTerms
        The transformation of X into terms, ``terms_.transform(X)``: the features less their means over their standard
        deviations, the products of up to `degree` of them in scikit-learn's order, and those standardised in turn.
    log_prior_ratio_ : float
        log(n_q / n_p), by sample weight.
    loss_curve_ : list of float
        Mean cross-entropy, in nats: before each step of "newton", after each step of "lbfgs", during each pass of
        "sgd", of each call of `partial_fit`.
    validation_loss_curve_ : list of float
        Mean cross-entropy of the rows that `early_stopping` holds out, after each pass.
    n_iter_ : int
        Steps or passes made.
    converged_, separated_ : bool
        Whether the loss has settled within `max_iter` of them, and whether the log-odds of all the numerator's samples
        are above those of all the others. After `partial_fit` False and None: it cannot know.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Warns
    -----
    AccuracyWarning
        If `max_iter` was not enough, the steps of "sgd" scatter the coefficients by more than the covariance holds, or
        the classifier separates the samples: then the ratio is unbounded, and only the penalty keeps the estimate
        finite.

    References
    ----------
    Sugiyama, Suzuki & Kanamori, "Density Ratio Estimation in Machine Learning" (2012), chapter 4.

    Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Boyd & Vandenberghe, "Convex Optimization" (2004), section 9.5.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdiv import LogisticRatioClassifier, Normal
    >>> rng = np.random.default_rng(0)
    >>> x_p, x_q = Normal(1, 1).sample((5000, 1), rng=rng), Normal(0, 2).sample((5000, 1), rng=rng)
    >>> model = LogisticRatioClassifier(degree=2).fit_samples(x_p, x_q)
    >>> bool(abs(model.log_ratio([[0.0]])[0] - 0.193) < 0.1)
    True
    """

    def __init__(
        self,
        degree: int = 1,
        solver: str = "newton",
        *,
        alpha: float = 1e-6,
        learning_rate: float = 0.05,
        schedule: str = "adaptive",
        power_t: float = 0.5,
        momentum: float = 0.9,
        average: bool | int = False,
        batch_size: int = 32,
        shuffle: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-5,
        n_iter_no_change: int = 5,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        class_weight: dict | str | None = None,
        warm_start: bool = False,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
        backend: str | None = None,
    ) -> None:
        self.degree = degree
        self.solver = solver
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.power_t = power_t
        self.momentum = momentum
        self.average = average
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state
        self.backend = backend

    def _check_parameters(self):
        as_count(self.degree, "degree", 1)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            as_count(getattr(self, name), name, 1)
        if not isinstance(self.average, np.bool_):
            as_count(self.average, "average", 0)
        for name, choices in (("solver", SOLVERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                wanted = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {wanted}, got {getattr(self, name)!r}")
        weights = self.class_weight
        if not (weights is None or isinstance(weights, dict) or (isinstance(weights, str) and weights == "balanced")):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {weights!r}")
        self._check_numbers(
            alpha=("at least 0", lambda alpha: alpha >= 0),
            learning_rate=("positive", lambda rate: rate > 0),
            power_t=("at least 0", lambda power: power >= 0),
            momentum=("at least 0 and under 1", lambda momentum: 0 <= momentum < 1),
            tol=("at least 0", lambda tol: tol >= 0),
            validation_fraction=("above 0 and under 1", lambda share: 0 < share < 1),
        )

    def _fit(self, X, in_p, weight):
        random, start = check_random_state(self.random_state) if self.solver == "sgd" else None, None
        held = self._held_out(in_p, weight, random)
        if self.warm_start and hasattr(self, "coef_"):
            X, weight, start = self._last_fit("warm_start", X, weight)
        else:
            self.terms_ = self._standardised(X, np.where(held, 0, weight) if held.any() else weight, self.degree)
        loss = LogisticLoss(kernels(self.backend), self.terms_, X, in_p.astype(X.dtype), weight, self.alpha)
        validation = None
        if held.any():
            validation = loss.subset(np.flatnonzero(held))
            loss = LogisticLoss(loss.kernels, loss.terms, X, loss.y, np.where(held, 0, weight), self.alpha)
        coef, at = self._minimise(loss, start, validation, random)
        self.coef_, self.intercept_ = coef[None, :-1].astype(X.dtype), coef[-1:].astype(X.dtype)
        self._scores, self.separated_ = at, at.is_separated
        if self.separated_:
            warn_of_accuracy(
                "the classifier separates the samples: the density ratio is unbounded on this evidence, and only "
                f"the penalty alpha={self.alpha} keeps the estimate finite"
            )

    def _last_fit(self, name, X, weight):
        """Return the data in the dtype of the last fit, and its coefficients."""
        last, wanted = (self.terms_.degree, len(self.terms_.centre)), (self.degree, self._n_terms(X))
        if last != wanted:
            raise ValueError(f"{name} needs the degree and the number of terms of the last fit, {last}, got {wanted}")
        dtype = self.coef_.dtype
        X, weight = X.astype(dtype, copy=False), weight.astype(dtype, copy=False)
        self._check_finite(X)
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.all(np.isfinite(self.terms_.transform(np.stack([X.min(axis=0), X.max(axis=0)])))):
                raise ValueError(f"{name} needs X near that of the last fit, got values from {X.min()} to {X.max()}")
        return X, weight, np.append(self.coef_, self.intercept_)

    def _n_terms(self, X):
        return math.comb(X.shape[1] + self.degree, self.degree) - 1

    def _held_out(self, in_p, weight, random):
        """Choose the rows that are held out; what is left of the classes makes the prior correction."""
        if not (self.solver == "sgd" and self.early_stopping):
            return np.False_
        held = held_out(in_p, self.validation_fraction, random)
        if not (held[in_p].any() and held[~in_p].any()):
            raise ValueError(f"early_stopping needs rows of both classes to hold out, got {len(held)} rows")
        n_q, n_p = np.bincount(in_p, weights=np.where(held, 0, weight))
        self._masses, self.log_prior_ratio_ = np.array([n_q, n_p]) * self._weight_unit, math.log(n_q / n_p)
        return held

    @property
    def coef_covariance_(self) -> NDArray[np.float64]:
        """Covariance of the coefficients and the intercept; computed when asked for."""
        n = self.coef_.size + 1
        return np.full((n, n), np.nan) if self._scores is None else coefficient_covariance(self._scores)

    def _minimise(self, loss, start, validation, random):
        """Set the loss curves, n_iter_ and converged_; return the coefficients and the moments of the scores there."""
        solve = {"newton": newton_from_few, "lbfgs": lbfgs}.get(self.solver)
        if self.solver == "newton" and start is not None:
            solve = LogisticLoss.newton
        if start is None:
            start = np.zeros(loss.n_coefficients)
            start[-1] = -self.log_prior_ratio_ if solve else 0
        self.validation_loss_curve_, self._descent = [], None
        if solve:
            coef, self.loss_curve_, self.converged_, at = solve(loss, start, self.max_iter, self.tol)
        else:
            coef, at = self._descend(loss, start, validation, random), None
        if at is None or not at.squares.size:
            at = loss.scores(coef)
        self.n_iter_ = len(self.loss_curve_)
        if not self.converged_:
            unit = "steps" if solve else "passes"
            value = loss(coef)[0] - loss.penalty(coef)
            warn_of_accuracy(f"no convergence in max_iter={self.max_iter} {unit}; the loss is {value:.6g}")
        elif not (solve or at.is_separated) and loss.decrement(coef, at) * loss.mass > len(coef):
            # The samples' own chance makes it so large.
            warn_of_accuracy(
                "the last steps have left the coefficients farther from the optimum than the standard errors hold: "
                "use average or another schedule"
            )
        return coef, at

    def _descend(self, loss, start, validation, random):
        """Make passes until the loss has settled; set the curves and converged_, return the coefficients."""
        passes = Passes(self.max_iter, self.tol, self.n_iter_no_change, self.early_stopping, self.verbose)
        self._descent = descent = LogisticDescent(start.astype(loss.X.dtype))
        self._rate, self.converged_ = self.learning_rate, False
        rows = np.arange(len(loss.X), dtype=np.int32 if len(loss.X) < 1 << 31 else np.intp)
        if validation is not None:
            rows = rows[loss.weight > 0]
        order = RowOrder(rows, self.batch_size, generator_of(random) if self.shuffle else None)

        columns = polynomials_at_once(loss.terms, loss.X)

        def one_pass():
            return self._pass(descent, loss.X, columns, loss.y, loss.weight, order) / loss.mass

        def held_out_loss():
            coef = descent.found()
            return validation(coef)[0] - validation.penalty(coef)

        passes.run(one_pass, descent.found, None if validation is None else held_out_loss, self._slow_down)
        self.loss_curve_, self.validation_loss_curve_ = passes.losses, passes.held_out_losses
        if self.loss_curve_[-1] > 2 * math.log(2) and self.loss_curve_[-1] > loss(start)[0]:
            # With all coefficients zero it is log 2; a warm start may be anywhere.
            raise self._divergence()
        if passes.best is None:
            return descent.found()
        # What comes next starts from there.
        self._descent = None
        return passes.best

    def _slow_down(self):
        """Lower the learning rate, and tell whether it has come to its end."""
        if self.schedule == "adaptive":
            self._rate *= DECAY
        self.converged_ = self.schedule != "adaptive" or self._rate <= MIN_RATE * self.learning_rate
        return self.converged_

    def _pass(self, descent, X, columns, y, weight, order):
        """Make one pass of a descent and return the sum of the losses."""
        loss = descent.run(
            kernels(self.backend).logistic_sgd_epoch,
            self.terms_,
            X,
            columns,
            y,
            weight,
            order,
            learning_rate=self._rate,
            power_t=float(self.power_t) if self.schedule == "invscaling" else 0.0,
            momentum=self.momentum,
            alpha=self.alpha,
            average=int(self.average),
        )
        if not (math.isfinite(loss) and np.all(np.isfinite(descent.coef))):
            raise self._divergence()
        return loss

    def _divergence(self):
        return ValueError(f"the steps diverge: learning_rate={self.learning_rate} is too large for these data")

    def _go_on(self, X, in_p, weight):
        if hasattr(self, "coef_"):
            X, weight, start = self._last_fit("partial_fit", X, weight)
        else:
            self.terms_, self.loss_curve_ = self._standardised(X, weight, self.degree), []
            start = np.zeros(self._n_terms(X) + 1)
        last = getattr(self, "_descent", None)
        descent = LogisticDescent(start.astype(X.dtype)) if last is None else last.copy()
        generator = generator_of(check_random_state(self.random_state)) if self.shuffle else None
        self._rate = self.learning_rate
        order = RowOrder(np.arange(len(X)), self.batch_size, generator)
        loss = self._pass(descent, X, polynomials_at_once(self.terms_, X), in_p.astype(X.dtype), weight, order)
        self._descent, coef = descent, descent.found()
        self.coef_, self.intercept_ = coef[None, :-1].astype(X.dtype), coef[-1:].astype(X.dtype)
        self._scores, self.separated_, self.converged_ = None, None, False
        self.loss_curve_ = [*self.loss_curve_, loss / float(weight.sum(dtype=np.float64))]
        self.validation_loss_curve_, self.n_iter_ = [], len(self.loss_curve_)

    def _terms(self, X):
        return self.terms_.transform(X)

    def _diagnostics(self):
        return super()._diagnostics() | {"converged": self.converged_}


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
        The cross-validation, as scikit-learn takes it; no more parts than the smaller sample has rows.
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


def _is_plain(X):
    """Tell an array that the kernels take as it is."""
    return type(X) is np.ndarray and X.dtype in FLOATS and X.ndim == 2 and X.flags.c_contiguous and X.size > 0


def seeded(estimator, draw):
    """Return a copy of an estimator, with what has no `random_state` of its own seeded by ``draw()``."""
    twin = clone(estimator)
    parameters = sorted(twin.get_params().items())
    return twin.set_params(
        **{name: draw() for name, value in parameters if value is None and name.split("__")[-1] == "random_state"}
    )


def with_intercept(terms):
    return np.column_stack([terms, np.ones(len(terms))]).astype(np.float64, copy=False)


def coefficient_moves(terms, in_p, log_odds, weight, alpha):
    """Return what each sample moves the coefficients by: its score, centred in its class, over the Hessian.

    The samples of a class are drawn given their number, so what their scores have in common is no noise; what the
    classes' weights move the intercept by, the prior correction takes back.
    """
    terms, weight = with_intercept(terms), weight.astype(np.float64)
    log_odds = log_odds.astype(np.float64)
    penalty = len(terms) * np.diag([alpha] * (terms.shape[1] - 1) + [0.0])
    hessian = (terms.T * (weight * expit(log_odds) * expit(-log_odds))) @ terms + penalty
    scores = (weight * (in_p - expit(log_odds)))[:, None] * terms
    for rows in (in_p, ~in_p):
        scores[rows] -= np.outer(weight[rows], scores[rows].sum(axis=0) / weight[rows].sum())
    return scores @ np.linalg.pinv(hessian, hermitian=True)


@contextmanager
def _naming(name):
    """Put the argument's name before what scikit-learn says of it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} must be rows of finite numbers: {error}") from None


def _as_matrix(x):
    """Take a one-dimensional sample as one feature."""
    return np.reshape(x, (-1, 1)) if np.ndim(x) == 1 else x


def checked_samples(x_p, x_q):
    """Return two samples as matrices with the same columns."""
    names = [_get_feature_names(x) for x in (x_p, x_q)]
    if all(name is not None for name in names) and list(names[0]) != list(names[1]):
        raise ValueError(f"x_p and x_q must have the same columns, got {list(names[0])} and {list(names[1])}")
    samples = []
    for name, x in (("x_p", x_p), ("x_q", x_q)):
        with _naming(name):
            samples.append(check_array(_as_matrix(x), dtype=FLOATS, order="C"))
    x_p, x_q = samples
    if x_p.shape[1] != x_q.shape[1]:
        raise ValueError(f"x_p and x_q must have as many columns, got {x_p.shape[1]} and {x_q.shape[1]}")
    return x_p, x_q
