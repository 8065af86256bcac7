"""What ASV measures of a family of the table's rows; a file per family says which."""

import abc
import ctypes
import itertools

import numpy as np
from threadpoolctl import threadpool_limits

from fastdiv import get_num_threads, set_num_threads

from .exact import ulp_error
from .table import BACKENDS, TABLE, Call, Kernel
from .timing import interleaved

__all__ = ["FractionOfNumpy", "MaxUlpError", "PeakMemory", "ThreadScaling", "Time"]

COMPILED = ["cython", "numba"]
DTYPES = ["float64", "float32"]
SIZES = [1000, 10_000, 100_000]
COMPONENTS = [2, 8, 64]
# As many as the process may use, until somebody sets it.
AVAILABLE = get_num_threads()
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

        cls.skip_params = [values for values in itertools.product(*cls.params) if cls.skips(*values)]

    @classmethod
    def skips(cls, name, *values):
        """Say whether a choice is too large, or differs from another only where the row does not care."""
        chosen = cls.chosen(values)
        idle = set(DATA_AXES) - set(TABLE[name].axes)
        repeats = any(axis in idle and value != cls.axes[axis][0] for axis, value in chosen.items())
        return repeats or chosen.get("n", 1) * chosen.get("k", 1) > cls.most_terms

    @classmethod
    def chosen(cls, values):
        """Name the values of the axes."""
        return dict(zip(cls.param_names[1:], values, strict=True))


class Time(Suite):
    """A call's time."""

    axes = {"backend": list(BACKENDS), "dtype": DTYPES, "n": SIZES, "k": COMPONENTS}

    def setup(self, name, *values):
        self.call = TABLE[name].bind(**self.chosen(values))
        self.call()

    def time_call(self, *_):
        self.call()


def _glibc(name, *arguments):
    """Call a function of glibc, where that is the C library."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function:
        function(*arguments)


class FractionOfNumpy(Suite):
    """Our time over the reference's, both on one thread and interleaved in one process.

    A call's speed depends on where its memory lies, and a shared machine only ever adds time, often for longer than a
    median could see past: so a side's time is its least over several bindings, each in memory of its own. Freed memory
    is kept meanwhile, or chance would decide whether a call's arrays cost page faults.
    """

    axes = {"backend": COMPILED, "n": SIZES, "k": [8, 64]}
    unit = "of the NumPy reference's time"
    seconds = 3.0
    n_bindings = 10

    def setup(self, name, *values):
        chosen = self.chosen(values)
        row, backend = TABLE[name], chosen.pop("backend")
        self.bind = lambda: [row.bind(side, **chosen) for side in (backend, "numpy")]
        for call in self.bind():
            call()
        set_num_threads(1)

    def track_fraction_of_numpy(self, *_):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        _glibc("mallopt", M_TRIM_THRESHOLD, 1 << 30)
        _glibc("mallopt", M_MMAP_MAX, 0)
        times, bound = [], []
        with threadpool_limits(1):
            for _ in range(self.n_bindings):
                bound.append(self.bind())
                _glibc("malloc_trim", 0)
                times.append(interleaved(bound[-1], self.seconds / self.n_bindings, least_rounds=3))
        ours, reference = np.min(np.concatenate(times), axis=0)
        return ours / reference


class MaxUlpError(Suite):
    """The largest error on a hundred points, in units in the last place of the data's dtype."""

    axes = {"backend": list(BACKENDS), "dtype": DTYPES, "k": COMPONENTS}
    unit = "ulp"
    n_points = 100

    @staticmethod
    def covers(row):
        return isinstance(row, Kernel)

    def setup(self, name, *values):
        row, chosen = TABLE[name], self.chosen(values)
        self.call = row.bind(n=self.n_points, **chosen)
        self.dtype = chosen.pop("dtype")
        del chosen["backend"]
        self.least = row.least
        self.truths = row.exact(*row.load(self.n_points, dtype=self.dtype, **chosen))

    def track_max_ulp_error(self, *_):
        pairs = zip(self.call(), self.truths, strict=True)
        return max(ulp_error(answer, truth, self.dtype, self.least) for answer, truth in pairs)


class ThreadScaling(Suite):
    """The time on several threads over the time on one: the median over interleaved pairs in one process."""

    axes = {"backend": COMPILED, "threads": [2, 4]}
    unit = "of one thread's time"
    n_points = 1_000_000
    seconds = 3.0

    @staticmethod
    def covers(row):
        return isinstance(row, Call) and row.threaded

    def setup(self, name, backend, threads):
        if threads > AVAILABLE:
            raise NotImplementedError("more threads than processors")
        self.call = TABLE[name].bind(backend, self.n_points)

    def track_thread_scaling(self, _name, _backend, threads):
        def on(n_threads):
            set_num_threads(n_threads)
            self.call()

        # Batches so long that a new pool of threads does not show.
        several, one = interleaved(
            [lambda: on(threads), lambda: on(1)], self.seconds, batch_seconds=self.seconds / 30
        ).T
        return np.median(several / one)


class PeakMemory(Suite):
    """The process's memory at its highest during a call, the libraries included."""

    # Numba's compiler would take more than any call.
    axes = {"backend": ["numpy", "cython"], "n": [1000, 1_000_000], "k": [8]}
    most_terms = np.inf  # calls go through blocks

    @staticmethod
    def covers(row):
        return isinstance(row, Call)

    def setup(self, name, *values):
        self.call = TABLE[name].bind(**self.chosen(values))

    def peakmem_call(self, *_):
        self.call()
