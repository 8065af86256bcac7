"""Times that can be compared on a noisy machine: short calls, interleaved in one process."""

import contextlib
import math
import time

import numpy as np

__all__ = ["interleaved"]


def _seconds(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(calls, seconds=1.0, batch_seconds=0.002, least_rounds=7, contexts=None):
    """Time calls in turn, forwards and backwards, for some seconds, and return seconds a call: rounds × calls.

    A batch repeats a call for `batch_seconds`, so that the clock's grain does not show, within the call's context,
    if it has one, which is not timed. The first round of batches is thrown away.
    """
    contexts = contexts or [contextlib.nullcontext()] * len(calls)

    def batch(j, repeats):
        with contexts[j]:
            return _seconds(calls[j], repeats)

    single = [min(batch(j, 1) for _ in range(3)) for j in range(len(calls))]
    repeats = [math.ceil(batch_seconds / once) for once in single]
    rounds = max(least_rounds, round(seconds / np.dot(single, repeats)))
    times = np.empty((rounds + 1, len(calls)))
    for i in range(rounds + 1):
        for j in range(len(calls))[:: 1 if i % 2 else -1]:
            times[i, j] = batch(j, repeats[j])
    return times[1:]
