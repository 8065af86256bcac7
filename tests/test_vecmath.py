"""The elementary functions of `_vecmath.h`, compiled for every instruction set of this machine, against the truth.

Every 127th float32 is tried, or every single one with FASTDIV_EXHAUSTIVE=1; float64 is sampled.
"""

import ctypes
import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mpmath
import numpy as np
import pytest

from benchmarks.exact import ulp_error
from fastdiv import _backend
from fastdiv._cpu import cpu_level

FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
}
ULPS = {"exp": 1, "log": 1, "expm1": 2, "log1p": 2, "sigmoid": 2, "softplus": 2}
STRIDE = 1 if os.environ.get("FASTDIV_EXHAUSTIVE") == "1" else 127
CHUNK = 1 << 20

TRUTH = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "expm1": mpmath.expm1,
    "log1p": mpmath.log1p,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
# As C's Annex F has them, or the limits.
SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (-np.inf, 0.0), (np.inf, np.inf), (710.0, np.inf), (-746.0, 0.0)],
    "log": [(0.0, -np.inf), (-0.0, -np.inf), (1.0, 0.0), (-1.0, np.nan), (-np.inf, np.nan), (np.inf, np.inf)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (-np.inf, -1.0), (np.inf, np.inf), (710.0, np.inf)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -np.inf), (-2.0, np.nan), (-np.inf, np.nan), (np.inf, np.inf)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (-np.inf, 0.0), (np.inf, 1.0), (-746.0, 0.0), (710.0, 1.0)],
    "softplus": [(-np.inf, 0.0), (np.inf, np.inf), (-746.0, 0.0), (1e30, 1e30)],
}

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="session", params=_backend.CPUS[: cpu_level() + 1])
def library(request, tmp_path_factory):
    """The functions over arrays, compiled as the kernels are."""
    built = tmp_path_factory.mktemp("vecmath") / "vecmath.so"
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", *FLAGS[request.param]]
    header = Path(__file__).parents[1] / "src" / "fastdiv"
    source = Path(__file__).with_name("vecmath.c")
    subprocess.run(["cc", *flags, f"-I{header}", source, "-o", built, "-lm"], check=True)
    library = ctypes.CDLL(built)
    library.worst_ulp.restype = ctypes.c_double
    return library


def apply(function, x, dtype=None):
    y = np.empty(x.shape, dtype or x.dtype)
    function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_ssize_t(x.size))
    return y


@pytest.mark.parametrize("name", ULPS)
def test_every_float32_is_within_its_ulps(library, name):
    ours, libm = getattr(library, f"{name}_float"), getattr(library, f"{name}_libm")

    def worst(first):
        x = np.empty(CHUNK, np.float32)
        library.float_pattern(
            ctypes.c_uint32(first), ctypes.c_uint32(STRIDE), ctypes.c_void_p(x.ctypes.data), ctypes.c_ssize_t(CHUNK)
        )
        y, truth = apply(ours, x), apply(libm, x, np.float64)
        return library.worst_ulp(
            ctypes.c_void_p(y.ctypes.data), ctypes.c_void_p(truth.ctypes.data), ctypes.c_ssize_t(CHUNK)
        )

    with ThreadPoolExecutor() as pool:
        assert max(pool.map(worst, range(0, 1 << 32, CHUNK * STRIDE))) <= ULPS[name]


@functools.cache
def sampled(name):
    """Points where a function is a finite double, and its values there."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 1 << 64, 6000, dtype=np.uint64).view(np.float64)
    steps = np.ldexp(1.0, np.arange(-1074, 1024))
    edges = np.concatenate([steps, 1 - steps[:1075], np.arange(-745, 710) * np.log(2) / 2])
    x = np.concatenate([patterns, *(rng.uniform(-end, end, 4000) for end in (745, 40, 2, 1e-3)), edges, -edges])
    lower = {"log": 0, "log1p": -1}.get(name, -745)
    upper = {"log": np.inf, "log1p": np.inf, "softplus": np.inf}.get(name, 709.78)
    x = x[(x > lower) & (x < upper)]
    with mpmath.workdps(50):
        return x, np.array([TRUTH[name](mpmath.mpf(value)) for value in x.tolist()])


@pytest.mark.parametrize("name", ULPS)
def test_float64_is_within_its_ulps(library, name):
    x, truth = sampled(name)
    assert ulp_error(apply(getattr(library, f"{name}_double"), x), truth, np.float64) <= ULPS[name]


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="long double is double here")
@pytest.mark.parametrize("name", ULPS)
def test_float64_is_within_its_ulps_on_a_million_points(library, name):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-end, end, 250_000) for end in (0.3, 1, 3, 40)])
    x = np.abs(x) if name.startswith("log") else x
    wide = x.astype(np.longdouble)
    truth = {
        "sigmoid": lambda: 1 / (1 + np.exp(-wide)),
        "softplus": lambda: np.log1p(np.exp(wide)),
    }.get(name, lambda: getattr(np, name)(wide))()
    y = apply(getattr(library, f"{name}_double"), x)
    assert np.max(np.abs(y - truth) / np.spacing(np.abs(truth.astype(np.float64)))) <= ULPS[name]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ULPS)
def test_special_values_to_the_bit(library, name, dtype):
    x, expected = np.array([*SPECIAL[name], (np.nan, np.nan)], dtype).T.copy()
    y = apply(getattr(library, f"{name}_{'double' if dtype is np.float64 else 'float'}"), x)
    np.testing.assert_array_equal(y, expected)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(y[zero]), np.signbit(expected[zero]))


@functools.cache
def sampled_softplus(dtype):
    """Points, the true values there, and the true slopes."""
    # Up to where their smallest values are normal numbers.
    end = 700 if dtype is np.float64 else 80
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.uniform(-reach, reach, 3000) for reach in (end, 10, 1, 1e-3)]).astype(dtype)
    with mpmath.workdps(50):
        points = [mpmath.mpf(point) for point in x.tolist()]
        return x, *(np.array([TRUTH[name](point) for point in points]) for name in ("softplus", "sigmoid"))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_softplus_and_its_slope_are_within_4_ulp_and_x(library, dtype):
    x, *truths = sampled_softplus(dtype)
    values, slopes = np.empty((2, x.size), dtype)
    function = getattr(library, f"softplus_slope_{'double' if dtype is np.float64 else 'float'}")
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (x, values, slopes)), ctypes.c_ssize_t(x.size))
    with mpmath.workdps(50):
        for name, found, truth in zip(("softplus", "sigmoid"), (values, slopes), truths, strict=True):
            ulps = np.abs(found.tolist() - truth) / np.spacing(truth.astype(dtype)).tolist()
            allowed = 4 + np.maximum(0, -x.astype(np.float64))
            assert np.all(ulps < allowed), (name, x[ulps >= allowed])
    x = np.array([-np.inf, np.inf, np.nan, 0], dtype)
    values, slopes = np.empty((2, 4), dtype)
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (x, values, slopes)), ctypes.c_ssize_t(4))
    np.testing.assert_allclose(values, [0, np.inf, np.nan, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(slopes, [0, 1, np.nan, 0.5])
