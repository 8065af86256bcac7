"""What a user waits for before any arithmetic: the import, and the cost of a call."""

import subprocess
import sys

import numpy as np

import fastdiv

from .timing import interleaved


class Import:
    timeout = 120
    unit = "of NumPy's import time"

    def _import(self, module):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    def time_import(self):
        self._import("fastdiv")

    def track_import_fraction_of_numpy(self):
        calls = [lambda module=module: self._import(module) for module in ("fastdiv", "numpy")]
        ours, reference = interleaved(calls).T
        return np.median(ours / reference)


class Calls:
    """Calls so small that only their overhead shows."""

    params = ["numpy", "cython", "numba"]
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
