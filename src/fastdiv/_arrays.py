"""Checks of arguments that more than one room needs."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats: TypeAlias = np.floating | NDArray[np.floating]
    Seed: TypeAlias = np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | int | None

FLOAT64 = np.dtype(np.float64)


def as_float_array(value: ArrayLike, name: str) -> NDArray[np.floating]:
    """Return `value` as a float32 array if it is one, else as float64."""
    if type(value) is np.ndarray and value.dtype is FLOAT64:
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got an array of dtype {array.dtype}")
    # Comparing and casting by type also brings byte-swapped arrays to the machine's order.
    return array.astype(np.float32 if array.dtype.type is np.float32 else np.float64, copy=False)


def broadcastable(**parameters: ArrayLike) -> list[NDArray[np.floating]]:
    """Return arrays that broadcast against each other: finite but for x, the sigmas and scales positive."""
    arrays = []
    for name, value in parameters.items():
        array = as_float_array(value, name)
        if name != "x" and not np.all(np.isfinite(array)):
            raise ValueError(f"{name} must be finite, got {array.tolist()}")
        if name.startswith(("sigma", "scale")) and np.any(array <= 0):
            raise ValueError(f"{name} must be positive, got {array.tolist()}")
        arrays.append(array)
    try:
        np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{', '.join(parameters)} must broadcast against each other, got shapes {shapes}") from None
    return arrays


def as_count(value: int, name: str, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`."""
    try:
        count = operator.index(value)
        if count >= minimum:
            return count
        error = ValueError
    except TypeError:
        error = TypeError
    raise error(f"{name} must be a whole number, at least {minimum}, got {value!r}")


def as_rng(rng: Seed) -> np.random.Generator:
    """Return a `numpy.random.Generator` from what SPEC 7 allows for `rng`."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be a numpy.random.Generator or a seed, got {rng!r}: {error}") from None
