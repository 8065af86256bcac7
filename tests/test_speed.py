"""Kernel sets side by side; `--benchmark-enable` times them, otherwise each runs once."""

import pytest

from fastdiv import _backend
from fastdiv._cases import CASES


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("name", sorted(CASES))
def test_kernel_speed(benchmark, backend, name, n):
    inputs, outputs = CASES[name](n)
    kernel = getattr(_backend.kernels(backend), name)
    kernel(*inputs, *outputs)
    benchmark.group = f"{name} n={n}"
    benchmark(kernel, *inputs, *outputs)
