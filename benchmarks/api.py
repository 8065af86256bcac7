"""What a user times first: the import, and calls where overhead counts."""

import subprocess
import sys

import numpy as np

import fastdiv


class Import:
    timeout = 120

    def _import(self, module):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    def time_import_fastdiv(self):
        self._import("fastdiv")

    def time_import_numpy(self):
        self._import("numpy")


class Calls:
    params = ["cython", "numba"]
    param_names = ("backend",)

    def setup(self, backend):
        fastdiv.set_num_threads(1)
        fastdiv.set_backend(backend)
        self.p = fastdiv.Mixture([0.5, 0.5], [4, 6], [0.75, 0.75])
        self.q = fastdiv.Normal(5, 1)
        self.x = np.linspace(0.5, 9.5, 1000)
        self.time_trapezoid_kl(backend)
        self.time_logpdf(backend)
        self.time_monte_carlo(backend)

    def time_logpdf_of_a_scalar(self, backend):
        self.p.logpdf(0.3)

    def time_logpdf(self, backend):
        self.p.logpdf(self.x)

    def time_trapezoid_kl(self, backend):
        fastdiv.trapezoid_kl(self.p, self.q)

    def time_quadrature(self, backend):
        fastdiv.kl_divergence(self.p, self.q)

    def time_monte_carlo(self, backend):
        fastdiv.kl_divergence(self.p, self.q, method="monte-carlo", n=100_000, rng=0)


class Threads:
    params = [1, 2]
    param_names = ("threads",)

    def setup(self, threads):
        fastdiv.set_num_threads(threads)
        self.p = fastdiv.Mixture(np.full(8, 1 / 8), np.arange(8.0), np.ones(8))
        self.x = np.random.default_rng(0).normal(size=1_000_000)

    def time_logpdf(self, threads):
        self.p.logpdf(self.x)

    def peakmem_logpdf(self, threads):
        self.p.logpdf(self.x)

    def peakmem_monte_carlo(self, threads):
        fastdiv.kl_divergence(self.p, fastdiv.Normal(), method="monte-carlo", n=10**7, rng=0)
