"""A row of `benchmarks.peers`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Row:
    """A task: its right answer, how far off is still right and why, and what makes each peer's call.

    What makes a call imports and converts; the call gives the answer, and compiles when it is called first.
    """

    title: str
    truth: Any
    tolerance: float
    why: str
    peers: dict[str, Callable]

    def error(self, answer):
        answer = np.asarray(answer, dtype=np.float64)
        if answer.shape != np.shape(self.truth):
            raise ValueError(f"an answer of shape {answer.shape}, not {np.shape(self.truth)}")
        error = float(np.max(np.abs(answer - self.truth)))
        if not math.isfinite(error):
            raise ValueError("an answer that is not finite")
        return error
