"""The kernels under other people's code: compiled by Cython or Numba, and in pools of processes."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numba import njit, prange

import fastdiv
from fastdiv import Mixture, _backend, _kernels_numba

P = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
X = np.linspace(-5, 7, 100_000)

CALLER = """
# cython: language_level=3
from fastdiv cimport _kernels{build} as kernels
"""

FUNCTION = """
def logpdf_{dtype}(x, log_weights, means, stds, out):
    cdef const {dtype}[::1] points = x
    cdef const {dtype}[::1] w = log_weights, m = means, s = stds
    cdef {dtype}[::1] result = out
    kernels.mixture_logpdf(points, w, m, s, result)
"""

BUILD = """
from setuptools import Extension, setup
from Cython.Build import cythonize
setup(ext_modules=cythonize([Extension(name, [name + ".pyx"]) for name in {names}], include_path=[{folder!r}]))
"""


def test_cython_code_cimports_the_kernels(tmp_path):
    builds = {name.removeprefix("fastdiv._kernels") for name in ["fastdiv._kernels", _backend.kernels().__name__]}
    names = [f"caller{build}" for build in builds]
    functions = "".join(FUNCTION.format(dtype=dtype) for dtype in ("double", "float"))
    for name, build in zip(names, builds, strict=True):
        (tmp_path / f"{name}.pyx").write_text(CALLER.format(build=build) + functions)
    folder = str(Path(fastdiv.__file__).parents[1])
    (tmp_path / "setup.py").write_text(BUILD.format(names=names, folder=folder))
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "CFLAGS": "-O1"})
    code = (
        "import sys, numpy as np, importlib, fastdiv\n"
        "p = fastdiv.Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])\n"
        "for name in sys.argv[1:]:\n"
        "    caller = importlib.import_module(name)\n"
        "    for dtype, logpdf in ((np.float64, caller.logpdf_double), (np.float32, caller.logpdf_float)):\n"
        "        x = np.linspace(-5, 7, 1000, dtype=dtype); out = np.empty_like(x)\n"
        "        logpdf(x, *p.kernel_parameters(x.dtype), out)\n"
        "        np.testing.assert_allclose(out, p.logpdf(x), rtol=1e-13 if dtype == np.float64 else 1e-5)\n"
    )
    subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, check=True)


@njit(parallel=True)
def densities_of_many(x, log_weights, means, stds, out):
    for j in prange(len(means)):
        _kernels_numba.mixture_logpdf(x, log_weights[j], means[j], stds[j], out[j])


def test_numba_code_calls_the_kernels():
    mixtures = [P, Mixture([0.1, 0.9], [0, 1], [3, 2])]
    parameters = [np.array(part) for part in zip(*(p.kernel_parameters(X.dtype) for p in mixtures), strict=True)]
    out = np.empty((2, X.size))
    densities_of_many(X, *parameters, out)
    np.testing.assert_allclose(out, [p.logpdf(X) for p in mixtures], rtol=1e-13)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_calls_from_a_pool_of_processes(method):
    expected = P.logpdf(X)
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        for result in pool.map(partial(Mixture.logpdf, P), [X] * 4):
            np.testing.assert_array_equal(result, expected)
