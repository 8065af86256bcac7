"""Is head slower than base? ``python -m benchmarks.gate BASE HEAD``, two folders with fastdiv installed in each.

Both copies, and base a second time, run in one process, in turn, on this checkout's table. A row fails only where
head is slower by more than a share of base's time, by more than a span of time, and by more than what base against
base shows; and it has to fail in every one of several looks.
"""

import argparse
import gc
import importlib
import itertools
import sys

import numpy as np
from threadpoolctl import threadpool_limits

from .table import TABLE
from .timing import interleaved

__all__ = ["Copy", "is_slower", "main", "measure"]

RELATIVE_LIMIT = 0.08
ABSOLUTE_LIMIT = 200e-9
# Times the difference between base and base.
NOISE_LIMIT = 2.0
LOOKS = 6
SIZES = (100, 10_000)
BACKENDS = ("cython", "numba")


class Copy:
    """A copy of fastdiv in a folder: what is imported inside the ``with`` block is this copy."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.modules = {}
        with self:
            self.package = importlib.import_module("fastdiv")
            if not self.package.__file__.startswith(self.folder):
                raise ImportError(f"fastdiv must come from {self.folder}, got {self.package.__file__}")
            self.package.set_num_threads(1)

    @staticmethod
    def _take():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "fastdiv"}

    def __enter__(self):
        self._others = self._take()
        sys.modules.update(self.modules)
        sys.path.insert(0, self.folder)

    def __exit__(self, *error):
        sys.path.remove(self.folder)
        self.modules = self._take()
        sys.modules.update(self._others)

    def bind(self, name, backend, n):
        """Return a call of a row of the table, made once already."""
        with self:
            call = TABLE[name].bind(backend, n)
            call()
        return call


def excess(times):
    """Return base's time, by how much head's is longer, and by how much base's differ, all by their minima."""
    base, again, head = np.min(times, axis=0)
    return base, head - (base + again) / 2, abs(base - again)


def seems_slower(times):
    """Say whether head is slower than the limits allow, if noise is left out."""
    base, more, _ = excess(times)
    return more > max(RELATIVE_LIMIT * base, ABSOLUTE_LIMIT)


def is_slower(times):
    """Judge times, in seconds: rounds × base, base again, head."""
    _, more, noise = excess(times)
    return bool(seems_slower(times) and more > NOISE_LIMIT * noise)


def measure(copies, name, backend, n, seconds=0.3):
    """Time a row under each copy, and again in fresh memory while head seems slower."""
    times, looks = np.empty((0, len(copies))), []
    for _ in range(LOOKS):
        # The memory of earlier looks is kept, so that each look gets other addresses.
        looks.append([copy.bind(name, backend, n) for copy in copies])
        threadpool_limits(1)
        gc.disable()
        times = np.concatenate([times, interleaved(looks[-1], seconds, contexts=copies, least_rounds=11)])
        gc.enable()
        if not seems_slower(times):
            break
    return times


def main(base, head):
    """Print a line a row and return how many are slower."""
    copies = [Copy(base), Copy(base), Copy(head)]
    n_slower = 0
    for name, backend, n in itertools.product(TABLE, BACKENDS, SIZES):
        if n != SIZES[0] and "n" not in TABLE[name].axes:
            continue
        try:
            copies[0].bind(name, backend, n)
        except (NotImplementedError, TypeError) as reason:
            print(f"{name}, {backend}: not compared, base says: {reason}")
            continue
        times = measure(copies, name, backend, n)
        base_time, more, noise = (1e6 * seconds for seconds in excess(times))
        slower = is_slower(times)
        n_slower += slower
        print(
            f"{name:28} {backend:7} n = {n:<7} {base_time:10.2f} µs {more / base_time:+7.1%} ± {noise / base_time:.1%}",
            "SLOWER" if slower else "",
            flush=True,
        )
    return n_slower


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("base")
    parser.add_argument("head")
    sys.exit(f"{n_slower} slower" if (n_slower := main(**vars(parser.parse_args()))) else None)
