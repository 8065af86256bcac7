"""Descent on mini-batches: the order of the rows, the passes over them, and the logistic one's state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ._progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._arrays import NDArray
    from ._logistic import PolynomialTerms

__all__ = ["LogisticDescent", "Passes", "RowOrder", "generator_of", "held_out", "polynomials_at_once"]

# Values of the data, and steps, between two looks at Ctrl-C: a few hundredths of a second, with NumPy a few tenths.
CHUNK_VALUES = 1 << 22
CHUNK_STEPS = 1 << 12
NONE = np.empty(0)


def generator_of(random: np.random.RandomState) -> np.random.Generator:
    """Return a generator seeded by scikit-learn's."""
    return np.random.default_rng(random.randint(1 << 32, size=4, dtype=np.uint32))


def held_out(in_p: NDArray[np.bool_], share: float, random: np.random.RandomState) -> NDArray[np.bool_]:
    """Choose the rows of the validation, the same share of each class."""
    held = np.zeros(len(in_p), dtype=bool)
    for rows in (np.flatnonzero(~in_p), np.flatnonzero(in_p)):
        n_held = min(round(share * len(rows)), len(rows) - 1)
        if n_held:
            held[random.permutation(rows)[:n_held]] = True
    return held


class RowOrder:
    """Rows in mini-batches, in another order at each pass.

    To put many rows in a new order costs as much as the steps over them. So it is done once; a pass begins at a place
    by chance and takes the batches from there on, around the end, in an order by chance.
    """

    def __init__(self, rows: NDArray[np.integer], batch_size: int, generator: np.random.Generator | None) -> None:
        self.n_rows = len(rows)
        self.batch_size = min(int(batch_size), self.n_rows)
        self._generator = generator
        if generator is not None:
            # Twice, for what goes on around the end.
            rows = np.tile(generator.permutation(rows), 2)
        self._rows = rows

    def chunks(self, n_steps: int) -> Iterator[NDArray[np.intp]]:
        """Give all rows, so many batches at a time; the last batch of all may be short."""
        size = self.batch_size
        if self._generator is None:
            for first in range(0, self.n_rows, n_steps * size):
                yield self._rows[first : first + n_steps * size].astype(np.intp, copy=False)
            return
        offset, n_last = self._generator.integers(self.n_rows), self.n_rows % size
        last = offset + self.n_rows - n_last
        batches = self._rows[offset:last].reshape(-1, size)
        order = self._generator.permutation(len(batches))
        for first in range(0, len(order), n_steps):
            yield batches.take(order[first : first + n_steps], axis=0).ravel().astype(np.intp, copy=False)
        if n_last:
            yield self._rows[last : last + n_last].astype(np.intp, copy=False)


def polynomials_at_once(terms: PolynomialTerms, X: NDArray[np.floating]) -> NDArray[np.floating] | None:
    """Return the polynomials of all rows, or None if they are so many that each pass makes them anew in parts."""
    return terms.polynomials(X) if terms.degree == 1 or len(X) * len(terms.centre) <= CHUNK_VALUES else None


class LogisticDescent:
    """Coefficients on their way down the logistic loss, which can go on over other rows."""

    def __init__(self, coef: NDArray[np.floating]) -> None:
        self.coef, self.velocity = coef.copy(), np.zeros_like(coef)
        self.coef_sum = np.zeros(len(coef))
        self.n_steps = self.n_rows = self.n_averaged = 0

    def copy(self) -> LogisticDescent:
        """Return a copy that goes its own way."""
        twin = LogisticDescent(self.coef)
        twin.velocity, twin.coef_sum = self.velocity.copy(), self.coef_sum.copy()
        twin.n_steps, twin.n_rows, twin.n_averaged = self.n_steps, self.n_rows, self.n_averaged
        return twin

    def found(self) -> NDArray[np.float64]:
        """Return the mean of the coefficients that were to be averaged, or the last ones (Polyak & Juditsky 1992)."""
        return self.coef_sum / self.n_averaged if self.n_averaged else self.coef.astype(np.float64)

    def run(
        self,
        epoch: Callable,
        terms: PolynomialTerms,
        X: NDArray[np.floating],
        columns: NDArray[np.floating] | None,
        y: NDArray[np.floating],
        weight: NDArray[np.floating],
        order: RowOrder,
        *,
        learning_rate: float,
        power_t: float,
        momentum: float,
        alpha: float,
        average: int,
    ) -> float:
        """Make a pass over the rows in order; return the sum of their losses on the way.

        The columns are those of `polynomials_at_once`. The mean is over the steps from the one on that brings the rows
        seen to `average`, or none if that is 0.
        """
        size, n_terms = order.batch_size, len(terms.centre)
        total, out = 0.0, np.empty(1)
        for rows in order.chunks(min(max(CHUNK_VALUES // (n_terms * size), 1), CHUNK_STEPS)):
            data = columns, terms.centre, terms.scale, y, weight, rows
            if columns is None:
                data = terms.polynomials(X[rows]), *data[1:3], y[rows], weight[rows], np.arange(len(rows))
            for start, stop, coef_sum in self._parts(len(rows), size, average):
                part = data[-1][start:stop]
                options = size, learning_rate, power_t, momentum, alpha, self.n_steps
                epoch(*data[:-1], part, *options, self.coef, self.velocity, coef_sum, out)
                n_steps = -(-len(part) // size)
                self.n_steps += n_steps
                self.n_rows += len(part)
                self.n_averaged += n_steps if coef_sum.size else 0
                total += float(out[0])
        return total

    def _parts(self, n_rows, size, average):
        """Give the rows before and after the mean begins, and where their coefficients are to be added."""
        first = n_rows
        if average and self.n_rows + n_rows >= average:
            first = max(-(-(average - self.n_rows) // size) - 1, 0) * size
        if first > 0:
            yield 0, first, NONE
        if first < n_rows:
            yield first, n_rows, self.coef_sum


class Passes:
    """Passes over the rows, until their losses have settled.

    Attributes
    ----------
    losses, held_out_losses : list of float
        The mean loss of each pass, and of the rows held out after it.
    best : ndarray or None
        The parameters after the pass with the least loss of the rows held out, if that is watched.
    """

    def __init__(self, max_iter: int, tol: float, n_iter_no_change: int, early_stopping: bool, verbose: bool) -> None:
        self.max_iter, self.tol, self.n_iter_no_change = max_iter, tol, n_iter_no_change
        self.early_stopping, self.verbose = early_stopping, verbose
        self.losses, self.held_out_losses, self.best = [], [], None
        self._least = self._reference = math.inf
        self._n_worse = 0

    def run(self, one: Callable, params: Callable, held_out_loss: Callable | None, settled: Callable) -> None:
        """Make passes by ``one()``, which returns the loss, until ``settled()`` is true where it no longer falls."""
        with progress_bar(self.verbose, self.max_iter, "verbose") as show:
            while len(self.losses) < self.max_iter:
                self.losses.append(one())
                if held_out_loss is not None:
                    self.held_out_losses.append(held_out_loss())
                show(1, self._last_losses)
                if self._has_stalled(params) and settled():
                    break

    def _has_stalled(self, params):
        """Tell whether the loss has not fallen by `tol` in `n_iter_no_change` passes."""
        loss = (self.held_out_losses if self.early_stopping else self.losses)[-1]
        if self.early_stopping and loss < self._least:
            self._least, self.best = loss, params().copy()
        self._n_worse = 0 if loss < self._reference - self.tol else self._n_worse + 1
        self._reference = loss if self._n_worse == 0 else self._reference
        if self._n_worse < self.n_iter_no_change:
            return False
        self._n_worse = 0
        return True

    def _last_losses(self):
        text = f"loss {self.losses[-1]:.4f}"
        return f"{text}, held out {self.held_out_losses[-1]:.4f}" if self.held_out_losses else text
