"""The penalised logistic loss on standardised polynomial terms, its minimum and how far samples move it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv, dpotrf, dpotri

from ._backend import BLOCK_SIZE, map_blocks, ready

if TYPE_CHECKING:
    from types import ModuleType

    from ._arrays import NDArray

__all__ = ["LogisticLoss", "PolynomialTerms", "coefficient_covariance", "decrement", "lbfgs", "newton_from_few"]

# Values of the terms at once, and sums at once, whatever the data's size.
BLOCK_VALUES = 1 << 18
MOST_BLOCKS = 64
# A start from one run of rows in THINNING, where each class has so many rows per coefficient. It is fitted to within
# START_TOL: its own chance is larger.
THINNING = 16
RUN = 16
START_TOL = 1e-3
LEAST_ROWS = 1 << 14
ROWS_PER_COEFFICIENT = 10
# Under this share of the largest, an eigenvalue of the Hessian is rounding.
RIDGE = 1e-12
TINY = float(np.finfo(np.float64).tiny)
SUFFICIENT_DECREASE = 1e-4
LEAST_STEP = 2.0**-30


def _monomials(z, degree):
    """Return all products of up to `degree` columns, in scikit-learn's order."""
    n_features = z.shape[1]
    terms = np.empty((len(z), math.comb(n_features + degree, degree) - 1), dtype=z.dtype)
    terms[:, :n_features] = z
    # Where, among the last degree's terms, those without features before the j-th start.
    starts, stop = list(range(n_features)), n_features
    for _ in range(degree - 1):
        first, end = stop, stop
        next_starts = []
        for j, start in enumerate(starts):
            next_starts.append(end)
            width = first - start
            np.multiply(terms[:, start:first], z[:, j : j + 1], out=terms[:, end : end + width])
            end += width
        starts, stop = next_starts, end
    return terms


class PolynomialTerms:
    """Polynomials of the standardised features, standardised in their turn.

    Attributes
    ----------
    centre, scale : ndarray, shape (n_terms,)
        What is taken from the polynomials, and what they are then multiplied by.
    """

    def __init__(self, X: NDArray[np.floating], weight: NDArray[np.floating], degree: int) -> None:
        self.degree = 1
        self.centre, self.scale = self._standardisation(X, weight)
        if degree > 1:
            self.degree = degree
            self._feature_centre, self._feature_scale = self.centre, self.scale
            self.centre, self.scale = self._standardisation(X, weight)

    def polynomials(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the terms before their standardisation: X itself for degree 1."""
        if self.degree == 1:
            return X
        return _monomials((X - self._feature_centre) * self._feature_scale, self.degree)

    def transform(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the terms, shape (n, n_terms), in the dtype of X."""
        terms = self.polynomials(X) - self.centre
        terms *= self.scale
        return terms.astype(X.dtype, copy=False)

    def _standardisation(self, X, weight):
        """Return means and inverse standard deviations by weight; the scale of a constant is 1."""

        def moments(start, stop):
            columns, mass = (
                part.astype(np.float64, copy=False) for part in (self.polynomials(X[start:stop]), weight[start:stop])
            )
            total = float(mass.sum())
            mean = mass @ columns / total
            deviations = columns - mean
            return total, mean, mass @ np.square(deviations, out=deviations)

        with np.errstate(all="ignore"):
            blocks = map_blocks(moments, len(X))
            total, mean, squares = blocks[0]
            if len(blocks) > 1:
                totals, means, squares = (np.array(part, dtype=np.float64) for part in zip(*blocks, strict=True))
                total = totals.sum()
                mean = totals @ means / total
                squares = squares.sum(axis=0) + totals @ np.square(means - mean)
            variance = squares / total
            # As scikit-learn's StandardScaler tells a constant; and as far as the data's own rounding goes.
            rounding = len(X) * np.finfo(np.float64).eps
            constant = variance <= rounding * variance + np.square(rounding * mean)
            constant |= variance <= np.square(4 * np.finfo(X.dtype).eps * mean)
            scale = 1 / np.sqrt(np.where(constant, 1, variance))
            centre, scale = mean.astype(X.dtype, copy=False), scale.astype(X.dtype, copy=False)
        return centre, scale


class Derivatives(NamedTuple):
    """The mean loss with its penalty, the derivatives of both, and the moments of the rows' own gradients.

    Of the Hessian and of the squares, the sum of the outer products, there is the lower triangle, or nothing. The sums
    are by class, 0 and 1, and in two more rows times the weights once more. The classes are separated if all log-odds
    of class 1 are above all others.
    """

    value: float
    gradient: NDArray[np.float64]
    hessian: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    is_separated: bool


class LogisticLoss:
    """The mean cross-entropy plus alpha/2 times the squared coefficients, the intercept's, which is last, apart."""

    def __init__(
        self,
        kernels: ModuleType,
        terms: PolynomialTerms,
        X: NDArray[np.floating],
        y: NDArray[np.floating],
        weight: NDArray[np.floating],
        alpha: float,
    ) -> None:
        self.kernels, self.terms, self.alpha = kernels, terms, alpha
        # Chosen once, or each call would choose by its arguments, which costs as much as a thousand rows.
        is_double = X.dtype == np.float64
        self.kernel = ready(kernels, "logistic_newton_pass", ())[0] if is_double else kernels.logistic_newton_pass
        self.X, self.y, self.weight = X, y, weight
        self.n_coefficients = len(terms.centre) + 1
        self.mass = float(weight.sum(dtype=np.float64))
        self.ridge = np.full(self.n_coefficients, float(alpha))
        self.ridge[-1] = 0
        self.eps = float(np.finfo(X.dtype).eps)

    def subset(self, rows: NDArray[np.intp]) -> LogisticLoss:
        """Return the loss of some rows."""
        return LogisticLoss(self.kernels, self.terms, self.X[rows], self.y[rows], self.weight[rows], self.alpha)

    def penalty(self, coef: NDArray[np.float64]) -> float:
        """Return the penalty alone."""
        return 0.5 * float(coef @ (self.ridge * coef))

    def __call__(self, coef: NDArray[np.float64], with_hessian: bool = True, with_scores: bool = False) -> Derivatives:
        """Return the loss and its derivatives, and with `with_scores` the moments of the rows' own gradients."""
        n, terms = self.n_coefficients, self.terms
        side = n if with_hessian else 0
        # Of the first degree there is nothing to write down.
        n_rows = len(self.X) if terms.degree == 1 else min(max(BLOCK_VALUES // n, 256), BLOCK_SIZE)
        shapes = (4 if with_scores else 2, n), (side, side), (n, n) if with_scores else (0, 0)
        rounded = coef.astype(self.X.dtype, copy=False)

        def work(start, stop):
            outputs = [*map(np.zeros, shapes), np.array([0.0, math.inf, -math.inf])]
            for first in range(start, stop, n_rows):
                rows = slice(first, min(first + n_rows, stop))
                columns = terms.polynomials(self.X[rows])
                self.kernel(columns, terms.centre, terms.scale, self.y[rows], self.weight[rows], rounded, *outputs)
            return outputs

        blocks = map_blocks(work, len(self.X), max(BLOCK_SIZE, -(-len(self.X) // MOST_BLOCKS)))
        sums, hessian, squares, out = blocks[0]
        for others in blocks[1:]:
            sums += others[0]
            hessian += others[1]
            squares += others[2]
            out[:] = out[0] + others[3][0], min(out[1], others[3][1]), max(out[2], others[3][2])
        shrinkage = self.ridge * coef
        gradient = (sums[0] + sums[1]) / self.mass + shrinkage
        if with_hessian:
            hessian /= self.mass
            hessian.reshape(-1)[:: n + 1] += self.ridge
        loss, least_of_p, largest_of_q = out.tolist()
        value = loss / self.mass + 0.5 * float(coef @ shrinkage)
        return Derivatives(value, gradient, hessian, sums, squares, least_of_p > largest_of_q)


def _newton_step(hessian, gradient):
    """Solve for the step, with as much added to the diagonal as makes the Hessian positive definite."""
    damped = hessian.copy()
    diagonal = damped.reshape(-1)[:: len(hessian) + 1]
    largest = max(float(diagonal.max()), TINY)
    ridge = RIDGE * largest
    while ridge < largest:
        diagonal += ridge
        _, step, info = dposv(damped, gradient, lower=1)
        if info == 0:
            return step
        ridge *= 1000
    return gradient / largest


def decrement(at: Derivatives) -> float:
    """Return the squared Newton decrement, about twice what the loss is above its minimum."""
    return float(at.gradient @ _newton_step(at.hessian, at.gradient))


def newton(
    loss: LogisticLoss, coef: NDArray[np.float64], max_iter: int, tol: float, hessian: NDArray[np.float64] | None = None
) -> tuple:
    """Minimise by Newton's method, its steps halved until the loss falls enough (Armijo 1966).

    The squared decrement g' H^-1 g is twice the decrease that a step foretells. Once it is at most `tol`, one more
    step is taken, which about squares it.

    Parameters
    ----------
    loss : LogisticLoss
        What is minimised.
    coef : ndarray
        The start.
    max_iter : int
        Most steps.
    tol : float
        The squared decrement at which the next step is the last.
    hessian : ndarray, optional
        A Hessian for the first step, from elsewhere.

    Returns
    -------
    coef, losses, converged, derivatives
        The minimum, the cross-entropy before each step, whether the decrement has come down, and the derivatives
        where it was, within a last step.
    """
    losses = []
    at, step_hessian = loss(coef, hessian is None), hessian
    while True:
        losses.append(at.value - loss.penalty(coef))
        step = _newton_step(at.hessian if step_hessian is None else step_hessian, at.gradient)
        decrement = float(at.gradient @ step)
        if step_hessian is None and decrement <= max(tol, loss.eps):
            return coef - step, losses, True, at
        # The next decrement will be about the square of this one.
        is_near = decrement * decrement <= tol
        share = 1.0
        while True:
            trial = coef - share * step
            found = loss(trial, with_scores=is_near)
            if found.value <= at.value - SUFFICIENT_DECREASE * share * decrement + 8 * loss.eps * at.value:
                break
            share /= 2
            if not share > LEAST_STEP:
                if step_hessian is None:
                    return coef, losses, False, at
                # The rows that it came from were too unlike these.
                trial, found = coef, loss(coef)
                break
        coef, at, step_hessian = trial, found, None
        if len(losses) == max_iter:
            return coef, losses, False, at


def newton_from_few(loss: LogisticLoss, coef: NDArray[np.float64], max_iter: int, tol: float) -> tuple:
    """Minimise by Newton's method, many rows from the minimum and with the Hessian of a few; return what it does."""
    rows = _some_rows(loss.y, len(coef))
    if rows is None:
        return newton(loss, coef, max_iter, tol)
    coef, _, _, at = newton_from_few(loss.subset(rows), coef, max_iter, START_TOL)
    return newton(loss, coef, max_iter, tol, at.hessian)


def _some_rows(y, n_coefficients):
    """Return one run of rows by chance from each THINNING, or None where they would be too few of a class."""
    n_runs = len(y) // (THINNING * RUN)
    if len(y) < LEAST_ROWS:
        return None
    # By chance, for rows may have a period, and always the same, for Newton's method has no need of a seed.
    runs = np.arange(n_runs) * THINNING + np.random.default_rng(0).integers(THINNING, size=n_runs)
    rows = (runs[:, None] * RUN + np.arange(RUN)).ravel()
    n_p = np.count_nonzero(y[rows])
    return rows if min(n_p, len(rows) - n_p) >= ROWS_PER_COEFFICIENT * n_coefficients else None


def lbfgs(loss: LogisticLoss, coef: NDArray[np.float64], max_iter: int, tol: float) -> tuple:
    """Minimise by SciPy's L-BFGS-B until no component of the gradient is beyond `tol`; return what `newton` does."""
    from scipy.optimize import minimize

    losses = []
    result = minimize(
        lambda coef: loss(coef, with_hessian=False)[:2],
        coef,
        method="L-BFGS-B",
        jac=True,
        callback=lambda intermediate_result: losses.append(
            intermediate_result.fun - loss.penalty(intermediate_result.x)
        ),
        options={"maxiter": max_iter, "maxfun": 20 * max_iter, "gtol": tol, "ftol": loss.eps},
    )
    return result.x, losses, bool(result.success), loss(result.x, with_scores=True)


def _inverse(hessian):
    """Invert from the lower triangle, or where that has no digits pseudo-invert."""
    factor, info = dpotrf(hessian, lower=1)
    diagonal = factor.diagonal()
    if info == 0 and diagonal.min() > 1e-7 * diagonal.max():
        return _symmetric(dpotri(factor, lower=1)[0])
    return np.linalg.pinv(_symmetric(hessian), hermitian=True)


def _symmetric(lower):
    whole = lower + lower.T
    whole.reshape(-1)[:: len(lower) + 1] /= 2
    return whole


def coefficient_covariance(loss: LogisticLoss, at: Derivatives) -> NDArray[np.float64]:
    """Return the sandwich covariance of the coefficients.

    The samples of a class are drawn given their number, so what their scores have in common is no noise; what the
    classes' weights move the intercept by, the prior correction takes back. Each score is taken less its class's mean
    times its weight.
    """
    squares = _symmetric(at.squares)
    squared = np.square(loss.weight)
    by_class = np.array([part.sum(where=loss.y == 1, dtype=np.float64) for part in (loss.weight, squared)])
    mass, squared_mass = np.array([[loss.mass, squared.sum(dtype=np.float64)] - by_class, by_class]).T
    means = at.sums[:2] / mass[:, None]
    shared = at.sums[2:].T @ means
    squares -= shared + shared.T - means.T @ (squared_mass[:, None] * means)
    inverse = _inverse(at.hessian) / loss.mass
    return inverse @ squares @ inverse
