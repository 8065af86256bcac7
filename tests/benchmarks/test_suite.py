"""The ASV suite measures everything in the table, and every benchmark runs."""

import importlib
import inspect
import math
import pkgutil

import pytest

import benchmarks
from benchmarks.suite import Suite
from benchmarks.table import CALLS, KERNELS, TABLE
from fastdiv import _kernels_numpy


def _suites():
    for module in pkgutil.iter_modules(benchmarks.__path__):
        for _, suite in inspect.getmembers(importlib.import_module(f"benchmarks.{module.name}"), inspect.isclass):
            if issubclass(suite, Suite) and not inspect.isabstract(suite):
                yield suite


SUITES = list(_suites())


def _measured(measure):
    """Return the rows that some suite has a benchmark for."""
    return {name for suite in SUITES if hasattr(suite, measure) for name in suite.params[0]}


@pytest.mark.parametrize("measure", ["time_call", "track_fraction_of_numpy", "track_max_ulp_error"])
def test_every_kernel_of_the_contract_is_measured(measure):
    assert set(_kernels_numpy.__all__) <= _measured(measure)


def test_every_call_is_measured():
    calls = {row.name for row in CALLS}
    assert calls <= _measured("time_call")
    assert calls <= _measured("track_fraction_of_numpy")
    assert calls <= _measured("peakmem_call")
    assert {row.name for row in CALLS if row.threaded} <= _measured("track_thread_scaling")
    assert set(TABLE) == calls | {row.name for row in KERNELS}


def _chosen(suite):
    """Return, for each row, the first choice that is not skipped."""
    for name in suite.params[0]:
        yield name, *(choices[0] for choices in suite.params[1:])


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"{suite.__module__}.{suite.__name__}")
def test_every_benchmark_runs(suite, threads):
    for chosen in _chosen(suite):
        assert chosen not in suite.skip_params
        benchmark = suite()
        try:
            benchmark.setup(*chosen)
        except NotImplementedError as reason:
            pytest.skip(str(reason))
        (measure,) = (name for name in dir(suite) if name.startswith(("time_", "track_", "peakmem_")))
        value = getattr(benchmark, measure)(*chosen)
        if measure.startswith("track_"):
            assert math.isfinite(value)
            assert value >= 0
