"""Density ratios from samples, by logistic regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils import check_random_state

from ._arrays import as_count
from ._backend import kernels
from ._descent import LogisticDescent, Passes, RowOrder, generator_of, held_out, polynomials_at_once
from ._logistic import LogisticLoss, coefficient_covariance, lbfgs, newton_from_few
from .estimate import warn_of_accuracy
from .ratio import RatioClassifier

if TYPE_CHECKING:
    from ._arrays import NDArray

__all__ = ["LogisticRatioClassifier"]

CHOICES = {"solver": ("newton", "lbfgs", "sgd"), "schedule": ("adaptive", "constant", "invscaling")}
NUMBERS = {
    "alpha": ("at least 0", lambda alpha: alpha >= 0),
    "learning_rate": ("positive", lambda rate: rate > 0),
    "power_t": ("at least 0", lambda power: power >= 0),
    "momentum": ("at least 0 and under 1", lambda momentum: 0 <= momentum < 1),
    "tol": ("at least 0", lambda tol: tol >= 0),
    "validation_fraction": ("above 0 and under 1", lambda share: 0 < share < 1),
}
# An adaptive learning rate is multiplied by DECAY until it is MIN_RATE of the first one.
DECAY = 0.2
MIN_RATE = 1e-4


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
        self._check_choices(CHOICES)
        weights = self.class_weight
        if not (weights is None or isinstance(weights, dict) or (isinstance(weights, str) and weights == "balanced")):
            raise ValueError(f"class_weight must be a dict, 'balanced' or None, got {weights!r}")
        self._check_numbers(NUMBERS)

    def _fit(self, X, in_p, weight):
        random, start = check_random_state(self.random_state) if self.solver == "sgd" else None, None
        held = self._held_out(in_p, weight, random)
        if self.warm_start and hasattr(self, "coef_"):
            X, weight, start = self._last_fit("warm_start", X, weight)
        else:
            self.terms_ = self._standardised(X, weight if held is None else np.where(held, 0, weight), self.degree)
        loss = LogisticLoss(kernels(self.backend), self.terms_, X, in_p.astype(X.dtype), weight, self.alpha)
        validation = None
        if held is not None:
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
            return None
        held = held_out(in_p, self.validation_fraction, random)
        if not (held[in_p].any() and held[~in_p].any()):
            raise ValueError(f"early_stopping needs rows of both classes to hold out, got {len(held)} rows")
        n_q, n_p = np.bincount(in_p, weights=np.where(held, 0, weight))
        self._masses = n_q * self._weight_unit, n_p * self._weight_unit
        self.log_prior_ratio_ = math.log(n_q / n_p)
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
