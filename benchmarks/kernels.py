"""Every kernel of the table, by kernel set, dtype and size."""

import statistics
import time

import numpy as np

from fastdiv import _backend
from fastdiv._cases import CASES

KERNELS = sorted(CASES)
SIZES = [1000, 100_000]


class _Kernel:
    """Arguments of one kernel, its pages touched and its code compiled."""

    def load(self, name, backend, n, dtype="float64"):
        inputs, outputs = CASES[name](n, dtype=np.dtype(dtype))
        kernel = getattr(_backend.kernels(backend), name)
        kernel(*inputs, *outputs)
        return lambda: kernel(*inputs, *outputs)


class Time(_Kernel):
    params = (KERNELS, ["numpy", "cython", "numba"], ["float32", "float64"], SIZES)
    param_names = ("kernel", "backend", "dtype", "n")

    def setup(self, name, backend, dtype, n):
        self.call = self.load(name, backend, n, dtype=dtype)

    def time_kernel(self, name, backend, dtype, n):
        self.call()


class FractionOfNumpy(_Kernel):
    """Our time over the reference's: the median over interleaved pairs in one process."""

    params = (KERNELS, ["cython", "numba"], SIZES)
    param_names = ("kernel", "backend", "n")
    unit = "fraction of the NumPy reference's time"

    def setup(self, name, backend, n):
        self.ours, self.reference = (self.load(name, which, n) for which in (backend, "numpy"))

    def track_fraction_of_numpy(self, name, backend, n):
        def seconds(call, calls):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls

        calls = {call: max(1, int(0.005 / seconds(call, 1))) for call in (self.ours, self.reference)}
        pairs = [[seconds(call, calls[call]) for call in (self.ours, self.reference)] for _ in range(11)]
        return statistics.median(ours / reference for ours, reference in pairs)
