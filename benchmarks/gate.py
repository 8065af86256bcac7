"""Is head slower than base? ``python -m benchmarks.gate BASE BASE_AGAIN HEAD``, folders with fastdiv installed in each.

The three copies run in one process, in turn, on this checkout's table. A row fails only where head's least time is
longer than base's by more than a share of it, by more than a span of time, and by more than what base against base
shows; while it seems longer it is looked at again, in fresh memory.
"""

import argparse
import gc
import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from .table import TABLE
from .timing import interleaved

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
        self.folder = str(Path(folder).resolve())
        self.modules = {}
        with self:
            self.package = importlib.import_module("fastdiv")
            if not Path(self.package.__file__).resolve().is_relative_to(self.folder):
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

    def bind(self, name, **chosen):
        """Return a call of a row of the table, made once already."""
        with self:
            call = TABLE[name].bind(**chosen)
            call()
        return call

    def signature(self, name, backend):
        """Return a kernel's signature, None if there is no such kernel."""
        with self:
            kernel = getattr(self.package._backend.kernels(backend), name, None)
        return kernel and str(inspect.signature(kernel))


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


def measure(copies, name, chosen, seconds=0.3):
    """Time a row under each copy, and again in fresh memory while head seems slower."""
    times, looks = np.empty((0, len(copies))), []
    for _ in range(LOOKS):
        # The memory of earlier looks is kept, so that each look gets other addresses.
        looks.append([copy.bind(name, **chosen) for copy in copies])
        gc.disable()
        with threadpool_limits(1):
            times = np.concatenate([times, interleaved(looks[-1], seconds, contexts=copies, least_rounds=11)])
        gc.enable()
        if not seems_slower(times):
            break
    return times


def choices(row):
    """Yield what a row is measured at: small and large, and large in float32."""
    small, large = SIZES
    for backend in BACKENDS:
        yield {"backend": backend, "n": small}
        if "n" in row.axes:
            yield {"backend": backend, "n": large}
            if "dtype" in row.axes:
                yield {"backend": backend, "n": large, "dtype": "float32"}


def main(folders):
    """Print a line a row, and return how many are slower and how many could not be compared."""
    copies = [Copy(folder) for folder in folders]
    base, _, head = copies
    n_slower = n_left_out = 0
    for name, row in TABLE.items():
        for chosen in choices(row):
            what = f"{name:28} {', '.join(f'{axis} = {value}' for axis, value in chosen.items()):46}"
            signatures = [copy.signature(name, chosen["backend"]) for copy in (base, head)]
            if len(set(signatures)) > 1:
                n_left_out += 1
                print(f"{what} not compared: base has {signatures[0]}, head has {signatures[1]}")
                continue
            times = measure(copies, name, chosen)
            slower = is_slower(times)
            n_slower += slower
            base_time, more, noise = excess(times)
            change = f"{more / base_time:+7.1%} ± {noise / base_time:.1%}"
            print(f"{what} {1e6 * base_time:10.2f} µs {change} {'SLOWER' if slower else ''}", flush=True)
    return n_slower, n_left_out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("folders", nargs=3, metavar="FOLDER", help="base, base again, head")
    n_slower, n_left_out = main(parser.parse_args().folders)
    print(f"{n_slower} slower, {n_left_out} not compared")
    sys.exit(n_slower > 0)
