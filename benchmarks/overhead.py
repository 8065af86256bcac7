"""What a user waits for before any arithmetic: the import, and the cost of a call."""

import subprocess
import sys

import numpy as np

import fastdiv

from .table import BACKENDS


def _import_seconds(module):
    """Import a module in a fresh interpreter and return the time of the import alone."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


class Import:
    timeout = 120
    unit = "of NumPy's import time"

    def time_import(self):
        _import_seconds("fastdiv")

    def track_import_fraction_of_numpy(self):
        return np.median([_import_seconds("fastdiv") / _import_seconds("numpy") for _ in range(11)])


class Calls:
    """Calls so small that only their overhead shows."""

    params = list(BACKENDS)
    param_names = ("backend",)

    def setup(self, backend):
        fastdiv.set_backend(backend)
        self.p = fastdiv.Mixture([0.5, 0.5], [4, 6], [0.75, 0.75])
        self.q = fastdiv.Normal(5, 1)
        self.time_logpdf_of_a_scalar(backend)
        self.time_trapezoid_kl(backend)

    def time_logpdf_of_a_scalar(self, backend):
        self.p.logpdf(0.3)

    def time_trapezoid_kl(self, backend):
        fastdiv.trapezoid_kl(self.p, self.q)

    def time_kl_normal(self, backend):
        fastdiv.kl_normal(0.0, 1.0, 1.0, 2.0)

    def time_mixture(self, backend):
        fastdiv.Mixture([0.5, 0.5], [4, 6], [0.75, 0.75])
