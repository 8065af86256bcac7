"""The penalised logistic loss on standardised polynomial terms, its minimum and how far samples move it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.linalg.lapack import dposv, dpotrs

from ._backend import BLOCK_SIZE, map_blocks, ready

if TYPE_CHECKING:
    from types import ModuleType

    from ._arrays import NDArray

__all__ = ["LogisticLoss", "PolynomialTerms", "coefficient_covariance", "lbfgs", "newton_from_few"]

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
# A step is the last without a look at where it ends only if it foretells a decrease of half of this.
UNGUARDED = 1e-3
# Under this share of the largest, a pivot of a Hessian is rounding.
RIDGE = 1e-12
# Steps between two looks at Ctrl-C, in one block of rows.
CHUNK_STEPS = 16
FLOAT64 = np.dtype(np.float64)
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in (FLOAT64, np.dtype(np.float32))}
# The state of `logistic_newton_steps`.
GRADIENT, HESSIAN, SCORES = range(3)
RUNNING, FULL, CONVERGED, STUCK = range(4)


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


def _kernel_for(kernels, name, dtype):
    """Return a kernel, that for doubles chosen once: to choose by the arguments costs as much as a thousand rows."""
    return ready(kernels, name, ())[0] if dtype == FLOAT64 else getattr(kernels, name)


class PolynomialTerms:
    """Polynomials of the standardised features, standardised in their turn.

    Attributes
    ----------
    feature_centre, feature_scale : ndarray, shape (n_features,)
        What is taken from the features, and what they are then multiplied by.
    centre, scale : ndarray, shape (n_terms,)
        The same of the polynomials.
    """

    def __init__(self, kernels: ModuleType, X: NDArray[np.floating], weight: NDArray[np.floating], degree: int) -> None:
        self.degree = 1
        moments = _kernel_for(kernels, "column_moments", X.dtype)
        self.centre, self.scale = self._standardisation(moments, X, weight)
        self.feature_centre, self.feature_scale = self.centre, self.scale
        if degree > 1:
            self.degree = degree
            self.centre, self.scale = self._standardisation(moments, X, weight)

    def polynomials(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the terms before their standardisation: X itself for degree 1."""
        if self.degree == 1:
            return X
        return _monomials((X - self.feature_centre) * self.feature_scale, self.degree)

    def transform(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the terms, shape (n, n_terms), in the dtype of X."""
        terms = self.polynomials(X) - self.centre
        terms *= self.scale
        return terms.astype(X.dtype, copy=False)

    def _standardisation(self, moments, X, weight):
        """Return means and inverse standard deviations by weight; the scale of a constant is 1."""

        def work(start, stop):
            columns = self.polynomials(X[start:stop])
            out = np.empty(2 * columns.shape[1] + 1)
            means, squares, total = out[: columns.shape[1]], out[columns.shape[1] : -1], out[-1:]
            moments(columns, weight[start:stop], means, squares, total)
            return means, squares, total

        blocks = map_blocks(work, len(X))
        mean, squares, total = blocks[0]
        if len(blocks) > 1:
            means, squares, totals = map(np.array, zip(*blocks, strict=True))
            with np.errstate(all="ignore"):
                total = totals.sum(axis=0)
                mean = totals[:, 0] @ means / total
                squares = squares.sum(axis=0) + totals[:, 0] @ np.square(means - mean)
        # As scikit-learn's StandardScaler tells a constant; and as far as the data's own rounding goes.
        rounding, (mass,) = max(len(X) * EPS[FLOAT64], 4 * EPS[X.dtype]), total.tolist()
        scale = [
            1.0 if square / mass <= (rounding * centre) * (rounding * centre) else 1 / math.sqrt(square / mass)
            for square, centre in zip(squares.tolist(), mean.tolist(), strict=True)
        ]
        if X.dtype == FLOAT64:
            return mean, np.array(scale)
        with np.errstate(over="ignore"):
            return mean.astype(X.dtype), np.array(scale, dtype=X.dtype)


class Scores(NamedTuple):
    """The Hessian of the mean loss with its penalty, and the moments of the rows' scores, their losses' gradients.

    Of the Hessian and of the squares, the sum of the scores' outer products, there is the lower triangle, or nothing.
    The sums are by class, 0 and 1, and in two more rows times the weights once more; so are the masses, of the weights
    and of their squares. The classes are separated if all log-odds of class 1 are above all others.
    """

    hessian: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    masses: NDArray[np.float64]
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
        self.X, self.y, self.weight = X, y, weight
        self.n_coefficients = n = len(terms.centre) + 1
        self.mass = float(np.add.reduce(weight, dtype=np.float64))
        self.ridge = np.zeros(n)
        self.ridge[:-1] = alpha
        self.eps = EPS[X.dtype]
        # Of the first degree there is nothing to write down.
        self.n_rows = len(X) if terms.degree == 1 else min(max(BLOCK_VALUES // n, 256), BLOCK_SIZE)
        # A block of rows alone stays as it is from pass to pass.
        self.columns = terms.polynomials(X) if len(X) <= min(self.n_rows, BLOCK_SIZE) else None

    def subset(self, rows: NDArray[np.intp]) -> LogisticLoss:
        """Return the loss of some rows."""
        return LogisticLoss(self.kernels, self.terms, self.X[rows], self.y[rows], self.weight[rows], self.alpha)

    def penalty(self, coef: NDArray[np.float64]) -> float:
        """Return the penalty alone."""
        return 0.5 * float(coef @ (self.ridge * coef))

    def __call__(self, coef: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the loss and its gradient."""
        sums, _, _, out = self._sums(coef, False, False)
        return out[0] / self.mass + self.penalty(coef), (sums[0] + sums[1]) / self.mass + self.ridge * coef

    def scores(self, coef: NDArray[np.float64]) -> Scores:
        """Return what the covariance needs."""
        sums, hessian, squares, out = self._sums(coef, True, True)
        return _scores(hessian / self.mass + np.diag(self.ridge), sums, squares, out)

    def decrement(self, coef: NDArray[np.float64], at: Scores) -> float:
        """Return the squared Newton decrement, about twice what the loss is above its minimum."""
        gradient = (at.sums[0] + at.sums[1]) / self.mass + self.ridge * coef
        damping = RIDGE * at.hessian.diagonal().max()
        _, step, info = dposv(at.hessian + damping * np.eye(len(coef)), gradient, lower=1)
        return float(gradient @ step) if info == 0 else math.inf

    def _sums(self, coef, with_hessian, with_scores):
        """Return what `logistic_newton_pass` adds up."""
        n, terms = self.n_coefficients, self.terms
        side = n if with_hessian else 0
        shapes = (4 if with_scores else 2, n), (side, side), (n, n) if with_scores else (0, 0)
        rounded = coef.astype(self.X.dtype, copy=False)
        kernel = _kernel_for(self.kernels, "logistic_newton_pass", self.X.dtype)

        def work(start, stop):
            outputs = [*map(np.zeros, shapes), np.array([0.0, math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0])]
            for first in range(start, stop, self.n_rows):
                rows = slice(first, min(first + self.n_rows, stop))
                columns = terms.polynomials(self.X[rows]) if self.columns is None else self.columns
                kernel(columns, terms.centre, terms.scale, self.y[rows], self.weight[rows], rounded, *outputs)
            return outputs

        blocks = map_blocks(work, len(self.X), max(BLOCK_SIZE, -(-len(self.X) // MOST_BLOCKS)))
        totals = blocks[0]
        for others in blocks[1:]:
            least, largest = min(totals[3][1], others[3][1]), max(totals[3][2], others[3][2])
            for total, other in zip(totals, others, strict=True):
                total += other
            totals[3][1:3] = least, largest
        return totals

    def newton(
        self, coef: NDArray[np.float64], max_iter: int, tol: float, hessian: NDArray[np.float64] | None = None
    ) -> tuple:
        """Minimise by Newton's method, its steps halved until the loss falls enough (Armijo 1966).

        The squared decrement g' H^-1 g is twice the decrease that a step foretells. Once it is at most `tol`, one more
        step is taken, which about squares it.

        Parameters
        ----------
        coef : ndarray
            The start.
        max_iter : int
            Most steps.
        tol : float
            The squared decrement at which the next step is the last, if it is at most UNGUARDED.
        hessian : ndarray, optional
            A Hessian for the first step, from elsewhere, its lower triangle.

        Returns
        -------
        coef, losses, converged, scores
            The minimum, the cross-entropy before each step, whether the decrement has come down, and the moments
            of the scores where it was, within a last step, without squares where they were not looked for.
        """
        n, terms = self.n_coefficients, self.terms
        steps = _kernel_for(self.kernels, "logistic_newton_steps", self.X.dtype)
        tol = max(min(tol, UNGUARDED), self.eps)
        coef, step = coef.astype(np.float64), np.zeros(n)
        stage, metric = (HESSIAN, np.empty((n, n))) if hessian is None else (GRADIENT, hessian.copy())
        status, share, losses = RUNNING, 1.0, []
        state = np.array([stage, status, share, math.inf, 0.0, 0.0, 0.0])
        columns, outputs = self.columns, (np.empty((4, n)), np.empty((n, n)), np.empty((n, n)), np.empty(7))
        while status == RUNNING or (status == FULL and len(losses) < max_iter):
            if self.columns is None:
                columns, outputs = self.X[:0], self._sums(coef - share * step, stage != GRADIENT, stage == SCORES)
            found = np.empty(min(max_iter - len(losses), CHUNK_STEPS))
            steps(
                columns,
                terms.centre,
                terms.scale,
                self.y,
                self.weight,
                self.ridge,
                self.mass,
                tol,
                8 * self.eps,
                metric,
                coef,
                step,
                *outputs,
                found,
                state,
            )
            stage, status, share, _, _, _, n_losses = state.tolist()
            losses += found[: int(n_losses)].tolist()
        sums, _, squares, out = outputs
        if status != CONVERGED or stage != SCORES:
            squares = squares[:0]
        if status != STUCK:
            coef -= share * step
        return coef, losses, status == CONVERGED, _scores(metric, sums, squares, out)


def _scores(hessian, sums, squares, out):
    return Scores(hessian, sums, squares, out[3:].reshape(2, 2), bool(out[1] > out[2]))


def newton_from_few(loss: LogisticLoss, coef: NDArray[np.float64], max_iter: int, tol: float) -> tuple:
    """Minimise by Newton's method, many rows from the minimum and with the Hessian of a few; return what it does."""
    rows = _some_rows(loss.y, len(coef))
    if rows is None:
        return loss.newton(coef, max_iter, tol)
    coef, _, _, at = newton_from_few(loss.subset(rows), coef, max_iter, START_TOL)
    return loss.newton(coef, max_iter, tol, at.hessian)


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
        loss,
        coef,
        method="L-BFGS-B",
        jac=True,
        callback=lambda intermediate_result: losses.append(
            intermediate_result.fun - loss.penalty(intermediate_result.x)
        ),
        options={"maxiter": max_iter, "maxfun": 20 * max_iter, "gtol": tol, "ftol": loss.eps},
    )
    return result.x, losses, bool(result.success), loss.scores(result.x)


def coefficient_covariance(at: Scores) -> NDArray[np.float64]:
    """Return the sandwich covariance of the coefficients.

    The samples of a class are drawn given their number, so what their scores have in common is no noise; what the
    classes' weights move the intercept by, the prior correction takes back. Each score is taken less its class's mean
    times its weight.
    """
    mass, squared_mass = at.masses[:, :, None]
    means = at.sums[:2] / mass
    half = at.squares - (at.sums[2:] - 0.5 * squared_mass * means).T @ means
    half.reshape(-1)[:: len(half) + 1] -= 0.5 * at.squares.diagonal()
    squares = (half + half.T) / np.square(mass.sum())
    factor, moves, info = dposv(at.hessian, squares, lower=1)
    pivots = factor.diagonal().tolist()
    if info == 0 and min(pivots) > 1e-7 * max(pivots):
        return dpotrs(factor, moves.T, lower=1)[0]
    # The Hessian has no digits left to solve with.
    lower = np.tril(at.hessian)
    inverse = np.linalg.pinv(lower + np.tril(lower, -1).T, hermitian=True)
    return inverse @ squares @ inverse
