"""`scipy.special.logsumexp` on the compiled kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_float_array
from ._backend import kernels, map_blocks

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Floats

__all__ = ["logsumexp"]

# Terms in a block of rows.
BLOCK_TERMS = 1 << 16


def logsumexp(
    a: ArrayLike,
    axis: int | tuple[int, ...] | None = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    backend: str | None = None,
) -> Floats:
    r"""Logarithm of a sum of exponentials, without overflow.

    The arguments and the answer are those of `scipy.special.logsumexp`, for real numbers.

    Parameters
    ----------
    a : array_like
        Exponents, of any shape.
    axis : int, tuple of int or None
        Axes to sum over, all by default.
    b : array_like, optional
        Factors of the exponentials, broadcast against `a`. A zero makes its term contribute nothing; where negative
        ones outweigh the others, the result is NaN.
    keepdims : bool
        Keep the summed axes, with length 1.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    float or ndarray
        :math:`\log \sum b\, e^a`; -inf for an empty sum; float32 for float32 input, else float64.

    Raises
    ------
    TypeError
        If `a` or `b` is not real.

    Notes
    -----
    The largest term is left out of the sum and enters through log1p, so that small remainders keep their digits
    (Blanchard, Higham & Higham 2021, eq. 1.3).

    Examples
    --------
    >>> from fastdiv import logsumexp
    >>> logsumexp([1000.0, 1000.0]).round(6)
    np.float64(1000.693147)
    >>> logsumexp([[0.0, 1.0], [2.0, 3.0]], axis=1).round(6)
    array([1.313262, 3.313262])
    """
    a = as_float_array(a, "a")
    if b is not None:
        weak = isinstance(b, (int, float))
        b = as_float_array(b, "b")
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ValueError(f"b must broadcast against a of shape {a.shape}, got shape {b.shape}") from None
        dtype = a.dtype if weak else np.result_type(a, b)
        return _weighted(a.astype(dtype, copy=False), b.astype(dtype, copy=False), axis, keepdims, backend)
    if a.ndim == 0:
        a, axis, keepdims = a.reshape(1), 0, False
    try:
        axes = np.lib.array_utils.normalize_axis_tuple(range(a.ndim) if axis is None else axis, a.ndim, "axis")
    except TypeError:
        raise TypeError(f"axis must be an integer, a tuple of integers or None, got {axis!r}") from None
    kept = tuple(size for i, size in enumerate(a.shape) if i not in axes)
    last = np.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim))
    n_rows = int(np.prod(kept, dtype=np.intp))
    n_terms = int(np.prod([a.shape[i] for i in axes], dtype=np.intp))
    rows = np.ascontiguousarray(last).reshape(n_rows, n_terms)
    out = np.full(n_rows, -np.inf, dtype=rows.dtype)
    if n_terms:
        kernel = kernels(backend).logsumexp_rows
        block = max(BLOCK_TERMS // n_terms, 1)
        map_blocks(lambda start, stop: kernel(rows[start:stop], out[start:stop]), n_rows, block)
    shape = tuple(1 if i in axes else size for i, size in enumerate(a.shape)) if keepdims else kept
    return out.reshape(shape)[()]


def _weighted(a, b, axis, keepdims, backend):
    a, b = np.broadcast_arrays(a, b)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # exp(a) may be inf where b is 0: such a term is nothing.
        shifted = np.where(b == 0, a.dtype.type(-np.inf), a + np.log(np.abs(b)))
        if not np.any(b < 0):
            return logsumexp(shifted, axis, keepdims=keepdims, backend=backend)
        positive = logsumexp(np.where(b < 0, a.dtype.type(-np.inf), shifted), axis, keepdims=keepdims, backend=backend)
        negative = logsumexp(np.where(b < 0, shifted, a.dtype.type(-np.inf)), axis, keepdims=keepdims, backend=backend)
        difference = positive + np.log1p(-np.exp(negative - positive))
        return np.where(negative == -np.inf, positive, difference)[()]
