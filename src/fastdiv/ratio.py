"""Density ratios from samples, by probabilistic classification."""

from __future__ import annotations

import math
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import assert_all_finite, compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    _get_feature_names,
    check_array,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from ._backend import kernels
from ._logistic import PolynomialTerms
from .functionals import effective_sample_size, estimate_of, functionals, kl_lower_bounds, warn_of_few

if TYPE_CHECKING:
    from typing import Self

    from ._arrays import ArrayLike, NDArray
    from .estimate import Estimate

__all__ = [
    "RatioClassifier",
    "RatioEstimator",
    "TermsAt",
    "checked_samples",
    "coefficient_moves",
    "log_odds_at",
    "row_blocks",
    "seeded",
    "with_intercept",
]

FLOATS = np.dtype(np.float64), np.dtype(np.float32)
LEAST_SPREAD = 1e-150
# Terms of a block of rows, which stay in cache, and how many are no burden on memory.
BLOCK_TERMS, AT_ONCE = 1 << 17, 1 << 20
# To find NaN quickly scikit-learn sums the data, and large values of both signs have no sum.
_summing_anything = np.errstate(over="ignore", invalid="ignore")
_validated, _as_checked_array = _summing_anything(validate_data), _summing_anything(check_array)


def _learns_in_parts(estimator):
    """Tell a solver that takes mini-batches."""
    solver = getattr(estimator, "solver", None)
    if solver not in ("sgd", "rmsprop", "adam"):
        raise AttributeError(f"partial_fit needs a solver that takes mini-batches, got solver={solver!r}")
    return True


class RatioEstimator(BaseEstimator):
    """What a fit to samples of p and of q says of the ratio of their densities.

    A subclass makes of X in `_terms` what `_log_ratio` takes. For the spread of the fit it has the covariance of its
    parameters in `_covariance_of_fit`, and in `_mean_slope` the mean over the points of a slope times the gradient of
    the log-ratio in them; the name of its kind of estimate is in `method`.
    """

    def _check_choices(self, choices):
        for name, among in choices.items():
            if getattr(self, name) not in among:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, among))}, got {getattr(self, name)!r}")

    def _check_numbers(self, wanted):
        """Check parameters given what they are to be, in words and as a function."""
        for name, (words, valid) in wanted.items():
            value = getattr(self, name)
            # To ask for Real alone takes five times as long.
            if not isinstance(value, float | Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not (math.isfinite(value) and valid(value)):
                raise ValueError(f"{name} must be {words}, got {value!r}")

    def _whole(self, fit, *arguments):
        """Fit, and leave the last fit whole where this one fails."""
        before = vars(self).copy()
        try:
            fit(*arguments)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    @_summing_anything
    def _check_finite(self, X):
        assert_all_finite(X, estimator_name=type(self).__name__, input_name="X")

    def _checked_labels(self, X, y):
        """Return the data, the two classes, and where the second one is."""
        if _is_plain(X) and type(y) is np.ndarray and y.shape == X.shape[:1] and y.dtype.kind in "biuf":
            # What scikit-learn asks of them is known at sight, and it takes ten times as long as a small fit to ask.
            # Whether X is finite its moments will tell.
            first = y == y[0]
            classes = np.array([y[0], y[first.argmin()]])
            other = y == classes[1]
            n_known, (one, two) = np.count_nonzero(first) + np.count_nonzero(other), classes.tolist()
            if n_known == len(y) and float(one).is_integer() and float(two).is_integer():
                self.n_features_in_ = X.shape[1]
                vars(self).pop("feature_names_in_", None)
                classes.sort()
                return X, classes, other if one < two else first
        X, y = _validated(self, X, y, dtype=FLOATS, order="C")
        check_classification_targets(y)
        classes, labels = np.unique(column_or_1d(y), return_inverse=True)
        if len(classes) > 2:
            raise ValueError(f"Only binary classification is supported. The type of the target is {type_of_target(y)}.")
        if len(classes) < 2:
            raise ValueError(f"y must hold two classes, got one class: {classes[0]!r}")
        return X, classes, labels == 1

    def _fit_samples(self, x_p, x_q, *weights):
        """Fit to two samples, with labels 1 and 0; the names of their columns are p's."""
        names = _get_feature_names(x_p)
        x_p, x_q = samples = checked_samples(x_p, x_q)
        if any(weight is not None for weight in weights):
            pairs = zip(weights, samples, strict=True)
            weights = [np.concatenate([_check_sample_weight(weight, x, dtype=x.dtype) for weight, x in pairs])]
        else:
            weights = []
        self.fit(np.concatenate(samples), np.repeat([1, 0], [len(x_p), len(x_q)]), *weights)
        if names is not None:
            self.feature_names_in_ = names
        return self

    def _checked(self, X):
        check_is_fitted(self)
        return _validated(self, _as_matrix(X), dtype=FLOATS, reset=False)

    def log_ratio(self, X: ArrayLike) -> NDArray[np.floating]:
        """Estimated log p(x) - log q(x).

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Points. A one-dimensional array is taken as one feature.

        Returns
        -------
        ndarray, shape (n,)
            In nats; float32 for float32 points, else float64.
        """
        X = self._checked(X)
        return self._log_ratio(self._terms(X)).astype(X.dtype, copy=False)

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
            In nats. Its standard error holds the spread of these samples and that of the fitted coefficients or
            weights, taken as independent. Of a classifier that is calibrated it is the calibration's. What a model
            cannot follow or has missed, a width of kernels among it, is, as far as it can be seen, in that of
            `kl_divergence_from_samples`.

        Warns
        -----
        AccuracyWarning
            If the ratio is cut off at a sample, as `LeastSquaresRatio` says; `diagnostics` has at how many in "cut".
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

        Warns
        -----
        AccuracyWarning
            As in `kl_divergence`.

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

    def _at(self, **samples):
        """Return the terms and the log-ratios at samples, by name, and what else an estimate from them has to say."""
        terms = {}
        for name, x in samples.items():
            with _naming(name):
                terms[name] = self._terms(self._checked(x))
        log_ratios, diagnostics = {name: self._log_ratio(values) for name, values in terms.items()}, self._diagnostics()
        if "x_q" in log_ratios:
            diagnostics["effective_sample_size"] = effective_sample_size(log_ratios["x_q"])
        return terms, log_ratios, diagnostics

    @np.errstate(over="ignore", invalid="ignore")
    def _estimates(self, answers=functionals, **samples):
        check_is_fitted(self)
        terms, log_ratios, diagnostics = self._at(**samples)
        estimates = {}
        for name, (means, slopes) in answers(**log_ratios).items():
            gradient = sum(self._mean_slope(terms[x], slope) for x, slope in slopes.items())
            # One sample says nothing of its spread.
            variance = sum(np.var(v, ddof=1) / len(v) if len(v) > 1 else math.inf for v in means.values())
            variance += gradient @ self._covariance_of_fit() @ gradient
            # Where it is negative, nothing of it is left but rounding; where NaN, nothing is known.
            standard_error = math.sqrt(variance) if variance >= 0 else math.inf
            estimates[name] = estimate_of(means, standard_error, method=self.method, **diagnostics)
        return estimates

    def _ratios_at(self, x_p, x_q):
        """Return, of each ratio that is estimated, its logarithm at samples of its numerator and its denominator."""
        _, log_ratios, _ = self._at(x_p=x_p, x_q=x_q)
        return [tuple(log_ratios.values())]

    def _diagnostics(self):
        return {"separated": self.separated_}


class RatioClassifier(ClassifierMixin, RatioEstimator):
    """A classifier of two samples as an estimator of their log-ratio: a logistic regression on terms of X.

    A subclass checks its parameters in `_check_parameters`, fits in `_fit` to rows, whether they are the numerator's,
    and weights of mean 1, and has the terms in `_terms`.
    """

    method = "classifier"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

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
        self._whole(self._fit_labelled, X, y, sample_weight)
        return self

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
        self._whole(self._fit_part, X, y, classes, sample_weight)
        return self

    def _fit_part(self, X, y, classes, sample_weight):
        is_first = not hasattr(self, "classes_")
        X, y = _validated(self, X, y, dtype=FLOATS, order="C", reset=is_first)
        check_classification_targets(y)
        _check_partial_fit_first_call(self, classes)
        if len(self.classes_) != 2:
            raise ValueError(f"classes must be two labels, got {self.classes_.tolist()}")
        if not np.all(np.isin(y, self.classes_)):
            raise ValueError(f"y must hold labels of {self.classes_.tolist()}, got {np.unique(y).tolist()}")
        in_p = y == self.classes_[1]
        weight = _checked_weight(sample_weight, X)
        weight = self._with_class_weight(weight, in_p)
        masses = np.bincount(in_p, weights=weight, minlength=2)
        if not masses.sum() > 0:
            raise ValueError("sample_weight must leave weight, got none")
        if is_first:
            self._masses, self._weight_unit = np.zeros(2), masses.sum() / np.count_nonzero(weight)
        self._masses = np.add(self._masses, masses)
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
            weight = np.empty(len(X), dtype=X.dtype)
            weight.fill(1)
            n_p = np.count_nonzero(in_p)
            n_q = len(X) - n_p
            self._weight_unit = 1.0
        else:
            weight = _checked_weight(sample_weight, X)
            weight = self._with_class_weight(weight, in_p)
            n_q, n_p = np.bincount(in_p, weights=weight)
            if not (n_p > 0 and n_q > 0):
                raise ValueError(f"sample_weight and class_weight must leave weight in each class, got {n_q} and {n_p}")
            self._check_finite(X)
            if not np.all(weight > 0):
                X, in_p, weight = X[weight > 0], in_p[weight > 0], weight[weight > 0]
            self._weight_unit = weight.sum(dtype=np.float64) / len(weight)
            weight = (weight / self._weight_unit).astype(X.dtype)
        self._masses = n_q, n_p
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
        return self._fit_samples(x_p, x_q, sample_weight_p, sample_weight_q)

    def _log_odds(self, terms):
        regression = self._regression()
        return terms @ regression.coef_[0] + regression.intercept_[0]

    def _log_ratio(self, terms):
        return self._log_odds(terms) + self.log_prior_ratio_

    def _covariance_of_fit(self):
        return self._regression().coef_covariance_

    def _mean_slope(self, terms, slope):
        return slope @ with_intercept(terms) / len(slope)

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
        return self._log_odds(self._terms(_validated(self, X, dtype=FLOATS, reset=False)))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Probabilities of the two classes, shape (n, 2), in the order of `classes_`."""
        log_odds = self.decision_function(X)
        return np.column_stack([expit(-log_odds), expit(log_odds)])

    def predict(self, X: ArrayLike) -> NDArray:
        """Return the likelier class of each point, shape (n,)."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(np.intp)]

    def _moves(self, X, terms, in_p, gradients):
        """Return what rows of a fit without weights moved functions of its coefficients by, and which go together."""
        weight = self._with_class_weight(np.ones(len(X)), in_p)
        alpha = self._regression().alpha
        moves = coefficient_moves(terms, in_p, log_odds_at(self, terms), weight / weight.mean(), alpha, gradients)
        return moves, np.arange(len(X))


def _is_plain(X):
    """Tell an array that the kernels take as it is."""
    return type(X) is np.ndarray and X.dtype in FLOATS and X.ndim == 2 and X.flags.c_contiguous and X.size > 0


def _checked_weight(weight, X):
    """Check weights as scikit-learn does, which takes longer than a small fit; those of a plain array at sight."""
    is_plain = type(weight) is np.ndarray and weight.dtype == X.dtype and weight.shape == X.shape[:1]
    if is_plain and weight.min() >= 0 and weight.max() < math.inf and weight.any():
        return weight
    return _check_sample_weight(weight, X, dtype=X.dtype, ensure_non_negative=True)


def seeded(estimator, draw):
    """Return a copy of an estimator, with what has no `random_state` of its own seeded by ``draw()``."""
    twin = clone(estimator)
    parameters = sorted(twin.get_params().items())
    return twin.set_params(
        **{name: draw() for name, value in parameters if value is None and name.split("__")[-1] == "random_state"}
    )


def with_intercept(terms):
    """Append a column of ones."""
    return np.column_stack([terms, np.ones(len(terms))]).astype(np.float64, copy=False)


class TermsAt:
    """A classifier's terms at rows, made anew at each look where all at once would be many more than the data."""

    def __init__(self, model, X):
        self.shape = len(X), model._regression().coef_.size
        self._model, self._X, self._whole = model, X, None
        if math.prod(self.shape) <= max(AT_ONCE, X.size):
            self._whole = model._terms(X)

    def __getitem__(self, rows):
        return self._model._terms(self._X[rows]) if self._whole is None else self._whole[rows]


def row_blocks(terms):
    """Return slices of rows, in each of which there are few terms."""
    n, n_terms = terms.shape
    size = max(BLOCK_TERMS // n_terms, 256)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def log_odds_at(model, terms):
    """Return a classifier's log-odds, block by block."""
    return np.concatenate([model._log_odds(terms[rows]) for rows in row_blocks(terms)])


def coefficient_moves(terms, in_p, log_odds, weight, alpha, gradients=None):
    """Return what each sample moves the coefficients by: its score, centred in its class, over the Hessian.

    The samples of a class are drawn given their number, so what their scores have in common is no noise; what the
    classes' weights move the intercept by, the prior correction takes back. Given the gradients of functions of the
    coefficients, (n_coefficients, n_functions), it is what each sample moves these by.
    """
    weight, log_odds, classes = weight.astype(np.float64), log_odds.astype(np.float64), in_p.astype(np.intp)
    residual, curvature = weight * (in_p - expit(log_odds)), weight * expit(log_odds) * expit(-log_odds)
    by_class = np.column_stack([np.where(in_p, 0, residual), np.where(in_p, residual, 0)])
    hessian, sums = np.diag(np.append(np.full(terms.shape[1], len(in_p) * alpha), 0.0)), 0.0
    for rows in row_blocks(terms):
        block = with_intercept(terms[rows])
        hessian += (block.T * curvature[rows]) @ block
        sums += by_class[rows].T @ block
    directions = np.linalg.pinv(hessian, hermitian=True)
    if gradients is not None:
        directions = directions @ gradients
    shared = sums / np.bincount(classes, weight)[:, None] @ directions
    moves = np.empty((len(in_p), directions.shape[1]))
    for rows in row_blocks(terms):
        np.matmul(with_intercept(terms[rows]), directions, out=moves[rows])
        moves[rows] *= residual[rows, None]
        moves[rows] -= weight[rows, None] * shared[classes[rows]]
    return moves


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
            samples.append(_as_checked_array(_as_matrix(x), dtype=FLOATS, order="C"))
    x_p, x_q = samples
    if x_p.shape[1] != x_q.shape[1]:
        raise ValueError(f"x_p and x_q must have as many columns, got {x_p.shape[1]} and {x_q.shape[1]}")
    return x_p, x_q
