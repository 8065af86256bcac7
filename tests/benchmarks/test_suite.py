"""The ASV suite measures everything in the table, and every benchmark runs."""

import importlib
import inspect
import math
import pkgutil

import pytest

import benchmarks
import fastdiv
from benchmarks import mixture, overhead
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


def test_every_row_has_a_name_of_its_own():
    assert len(TABLE) == len(KERNELS) + len(CALLS)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: f"{suite.__module__}.{suite.__name__}")
def test_every_benchmark_runs(suite, threads, monkeypatch):
    monkeypatch.setattr(suite, "seconds", 0.01, raising=False)
    monkeypatch.setattr(suite, "n_bindings", 1, raising=False)
    monkeypatch.setattr(benchmarks.suite.ThreadScaling, "n_points", 100_000)
    monkeypatch.setattr(benchmarks.suite, "AVAILABLE", 2)
    (measure,) = (name for name in dir(suite) if name.startswith(("time_", "track_", "peakmem_")))
    for name in suite.params[0]:
        chosen = (name, *(choices[0] for choices in suite.params[1:]))
        assert chosen not in suite.skip_params
        benchmark = suite()
        benchmark.setup(*chosen)
        value = getattr(benchmark, measure)(*chosen)
        if measure.startswith("track_"):
            assert math.isfinite(value)
            assert value >= 0


def test_more_threads_than_processors_are_not_measured(monkeypatch):
    monkeypatch.setattr(benchmarks.suite, "AVAILABLE", 1)
    with pytest.raises(NotImplementedError):
        mixture.ThreadScaling().setup("Mixture.logpdf", "cython", 2)


def test_overheads_run():
    backend = fastdiv.get_backend()
    calls = overhead.Calls()
    for name in overhead.Calls.params:
        calls.setup(name)
        calls.time_kl_normal(name)
        calls.time_mixture(name)
    fastdiv.set_backend(backend)
    overhead.Import().time_import()
    assert 0 < overhead._import_seconds("fastdiv") < 60
