"""What ASV measures of a family of the table's rows; a file per family says which."""

import abc
import itertools
import os

import numpy as np
from threadpoolctl import threadpool_limits

from fastdiv import set_num_threads

from .exact import ulp_error
from .table import BACKENDS, TABLE, Call, Kernel
from .timing import interleaved

__all__ = ["FractionOfNumpy", "MaxUlpError", "PeakMemory", "ThreadScaling", "Time"]

COMPILED = ["cython", "numba"]
DTYPES = ["float64", "float32"]
SIZES = [1000, 10_000, 100_000]
COMPONENTS = [2, 8, 64]
DATA_AXES = ("dtype", "n", "k")


class Suite(abc.ABC):
    """Benchmarks of a family: their parameters are its rows' names and whatever `axes` says."""

    axes = {}
    # Points times components: the reference keeps an array of so many terms for each dimension.
    most_terms = 1_000_000
    timeout = 300

    @property
    @abc.abstractmethod
    def family(self):
        """The family of the table's rows."""

    @staticmethod
    def covers(row):
        """Say whether a row of the family is measured here."""
        return True

    def __init_subclass__(cls):
        if "family" not in vars(cls):
            return
        rows = [row for row in TABLE.values() if row.family == cls.family and cls.covers(row)]
        axes = {
            axis: choices
            for axis, choices in cls.axes.items()
            if axis not in DATA_AXES or any(axis in row.axes for row in rows)
        }
        cls.param_names = ("name", *axes)
        cls.params = [[row.name for row in rows], *axes.values()]

        def skipped(name, *values):
            """Say whether this repeats another choice, but for what makes no difference to the row, or is too large."""
            chosen = dict(zip(axes, values, strict=True))
            idle = set(DATA_AXES) - set(TABLE[name].axes)
            repeats = any(axis in idle and value != axes[axis][0] for axis, value in chosen.items())
            return repeats or chosen.get("n", 1) * chosen.get("k", 1) > cls.most_terms

        cls.skip_params = [values for values in itertools.product(*cls.params) if skipped(*values)]


class Time(Suite):
    """A call's time."""

    axes = {"backend": list(BACKENDS), "dtype": DTYPES, "n": SIZES, "k": COMPONENTS}

    def setup(self, name, backend, dtype, n, k=8):
        self.call = TABLE[name].bind(backend, n, k, dtype)
        self.call()

    def time_call(self, name, backend, dtype, n, k=8):
        self.call()


class FractionOfNumpy(Suite):
    """Our time over the reference's, both on one thread: the median over interleaved pairs in one process."""

    axes = {"backend": COMPILED, "n": SIZES, "k": [8, 64]}
    unit = "of the NumPy reference's time"

    def setup(self, name, backend, n, k=8):
        self.pair = [TABLE[name].bind(which, n, k) for which in (backend, "numpy")]
        for call in self.pair:
            call()
        set_num_threads(1)
        threadpool_limits(1)  # of the libraries that are loaded by now

    def track_fraction_of_numpy(self, name, backend, n, k=8):
        ours, reference = interleaved(self.pair, seconds=0.5).T
        return np.median(ours / reference)


class MaxUlpError(Suite):
    """The largest error on a hundred points, in units in the last place of the data's dtype."""

    axes = {"backend": list(BACKENDS), "dtype": DTYPES, "k": COMPONENTS}
    unit = "ulp"
    n_points = 100

    @staticmethod
    def covers(row):
        return isinstance(row, Kernel)

    def setup(self, name, backend, dtype="float64", k=8):
        row = TABLE[name]
        self.truths = row.exact(*row.load(self.n_points, k, dtype))
        self.call = row.bind(backend, self.n_points, k, dtype)

    def track_max_ulp_error(self, name, backend, dtype="float64", k=8):
        return max(ulp_error(answer, truth, dtype) for answer, truth in zip(self.call(), self.truths, strict=True))


class ThreadScaling(Suite):
    """The time on several threads over the time on one: the median over interleaved pairs in one process."""

    axes = {"backend": COMPILED, "threads": [2, 4]}
    unit = "of one thread's time"
    n_points = 1_000_000

    @staticmethod
    def covers(row):
        return isinstance(row, Call) and row.threaded

    def setup(self, name, backend, threads):
        if threads > os.cpu_count():
            raise NotImplementedError("more threads than processors")
        self.call = TABLE[name].bind(backend, self.n_points)

    def track_thread_scaling(self, name, backend, threads):
        def on(n_threads):
            set_num_threads(n_threads)
            self.call()

        several, one = interleaved([lambda: on(threads), lambda: on(1)], seconds=3, batch_seconds=0.1).T
        return np.median(several / one)


class PeakMemory(Suite):
    """The process's memory at its highest during a call, the libraries included."""

    axes = {"backend": list(BACKENDS), "n": [1000, 1_000_000], "k": [8]}
    most_terms = np.inf  # calls go through blocks

    @staticmethod
    def covers(row):
        return isinstance(row, Call)

    def setup(self, name, backend, n, k=8):
        self.call = TABLE[name].bind(backend, n, k)

    def peakmem_call(self, name, backend, n, k=8):
        self.call()
