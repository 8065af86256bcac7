"""Checks of arguments that more than one room needs."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats: TypeAlias = np.floating | NDArray[np.floating]
    Seed: TypeAlias = np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | int | None


def as_float_array(value: ArrayLike, name: str) -> NDArray[np.floating]:
    """Return `value` as a float32 array if it is one, else as float64."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got an array of dtype {array.dtype}")
    # Comparing and casting by type also brings byte-swapped arrays to the machine's order.
    return array.astype(np.float32 if array.dtype.type is np.float32 else np.float64, copy=False)


def as_count(value: int, name: str, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`."""
    wanted = f"{name} must be a whole number, at least {minimum}, got {value!r}"
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(wanted) from None
    if count < minimum:
        raise ValueError(wanted)
    return count


def as_rng(rng: Seed) -> np.random.Generator:
    """Return a `numpy.random.Generator` from what SPEC 7 allows for `rng`."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng must be a numpy.random.Generator or a seed, got {rng!r}: {error}") from None
