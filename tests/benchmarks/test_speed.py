"""Kernel sets side by side; `--benchmark-enable` times them, otherwise each runs once."""

import pytest

from benchmarks.table import BACKENDS, TABLE


@pytest.mark.parametrize("n", [1000, 100_000])
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_speed(benchmark, backend, name, n):
    call = TABLE[name].bind(backend, n)
    if benchmark.enabled:
        call()
    benchmark.group = f"{name}, n = {n}"
    benchmark(call)
