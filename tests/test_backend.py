"""The choice of a kernel set, and results that do not depend on the number of threads."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastdiv
from fastdiv import LogisticRatioClassifier, Mixture, Normal, _backend
from fastdiv._cpu import cpu_level

P = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
Q = Normal(0, 1)


def run(code, **environment):
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_the_module_that_was_asked_for_is_the_one_that_runs(backend, monkeypatch):
    calls = []
    module = _backend.kernels(backend)
    kernel = module.mixture_logpdf
    monkeypatch.setattr(module, "mixture_logpdf", lambda *args: (calls.append(backend), kernel(*args)))
    monkeypatch.setattr(module, "ready", lambda *kernel_and_parameters: kernel_and_parameters, raising=False)
    p = fastdiv.Normal(1, 2)
    p.logpdf(0.3, backend=backend)
    with fastdiv.use_backend(backend):
        p.logpdf(np.zeros(3))
        assert fastdiv.get_backend() == backend
    assert calls == [backend] * 2


def test_argument_beats_context_beats_process_default():
    fastdiv.set_backend("numba")
    try:
        assert fastdiv.get_backend() == "numba"
        with fastdiv.use_backend("numpy"):
            assert fastdiv.get_backend() == "numpy"
            assert _backend.kernels("cython").__name__.startswith("fastdiv._kernels")
            assert _backend.kernels().__name__ == "fastdiv._kernels_numpy"
        assert fastdiv.get_backend() == "numba"
    finally:
        fastdiv.set_backend("cython")


def test_a_context_belongs_to_its_thread():
    with fastdiv.use_backend("numpy"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fastdiv.get_backend).result() == "cython"


def test_the_environment_sets_the_defaults():
    code = "import fastdiv; print(fastdiv.get_backend(), fastdiv.get_num_threads())"
    assert run(code, FASTDIV_BACKEND="numpy", FASTDIV_NUM_THREADS="3").stdout.split() == ["numpy", "3"]
    assert run(code, OMP_NUM_THREADS="3").stdout.split() == ["cython", "3"]
    assert run(code, OMP_NUM_THREADS="3", FASTDIV_NUM_THREADS="2").stdout.split() == ["cython", "2"]


def test_a_worker_of_joblib_uses_the_threads_that_it_was_given():
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(fastdiv.get_num_threads)() for _ in range(2)) == [1, 1]


@pytest.mark.parametrize("cpu", _backend.CPUS)
def test_fastdiv_cpu_forces_a_build(cpu):
    if _backend.CPUS.index(cpu) > cpu_level():
        pytest.skip(f"this CPU has no {cpu}")
    code = "import fastdiv; fastdiv.Normal().logpdf(0.0); fastdiv.show_config()"
    expected = "fastdiv._kernels)" if cpu == "baseline" else f"fastdiv._kernels_{cpu})"
    assert expected in run(code, FASTDIV_CPU=cpu).stdout


def test_a_missing_backend_is_an_error():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import fastdiv\n"
        "try: fastdiv.Normal().logpdf(0.0, backend='numba')\n"
        "except ImportError as error: print(error)"
    )
    assert "backend 'numba' was asked for and cannot be imported" in run(code).stdout


def test_same_bits_for_any_number_of_threads(backend, threads):
    rng = np.random.default_rng(0)
    x = rng.normal(scale=3, size=100_003)
    plane = Mixture([0.5, 0.5], [[0, 0], [1, 1]], [[1, 1], [2, 2]])
    rows = rng.normal(size=(50_000, 7))
    found = []
    for n in (1, 2, 7):
        threads(n)
        with fastdiv.use_backend(backend):
            mc = fastdiv.kl_divergence(P, Q, method="monte-carlo", n=200_000, rng=5)
            found.append(
                (
                    P.logpdf(x).tobytes(),
                    plane.logpdf(rows[:, :2]).tobytes(),
                    plane.score(rows[:, :2]).tobytes(),
                    fastdiv.logsumexp(rows, axis=1).tobytes(),
                    fastdiv.trapezoid_kl(P, Q, num=100_001),
                    fastdiv.trapezoid_kl_normal(rows[:6000, 0], 0.5, P, 50).tobytes(),
                    float(mc),
                    mc.standard_error,
                    float(fastdiv.js_divergence(P, Q, method="monte-carlo", n=100_000, rng=6)),
                )
            )
    assert found[0] == found[1] == found[2]


def test_backends_draw_the_same_samples():
    estimates = [
        fastdiv.kl_divergence(P, Q, method="monte-carlo", n=50_000, rng=1, backend=b) for b in _backend.MODULES
    ]
    assert estimates == pytest.approx([estimates[0]] * 3, rel=1e-13)


def test_calls_from_many_threads_at_once(threads):
    threads(2)
    x = np.random.default_rng(0).normal(size=300_000)
    expected = P.logpdf(x)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(P.logpdf, [x] * 16):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_pool_of_its_own():
    code = (
        "import os, warnings, numpy as np, fastdiv\n"
        "warnings.simplefilter('ignore')\n"
        "fastdiv.set_num_threads(2)\n"
        "x = np.zeros(100_000); before = fastdiv.Normal().logpdf(x)\n"
        "child = os.fork()\n"
        "same = np.array_equal(fastdiv.Normal().logpdf(x), before)\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same)"
    )
    assert run(code).stdout.split() == ["0", "True"]


def test_work_stops_at_the_first_error(threads):
    threads(2)
    done = []

    def work(start, stop):
        if start == 0:
            raise RuntimeError("first block")
        time.sleep(0.001)
        done.append(start)

    with pytest.raises(RuntimeError, match="first block"):
        _backend.map_blocks(work, 10_000, 10)
    assert len(done) < 100


def long_fit():
    X = np.random.default_rng(0).normal(size=(300_000, 20))
    LogisticRatioClassifier(solver="sgd", max_iter=10**9, tol=0, learning_rate=1e-9).fit(X, X[:, 0] > 0)


def long_fit_by_numpy():
    x = np.random.default_rng(0).normal(size=(1_000_000, 1))
    LogisticRatioClassifier(solver="sgd", max_iter=10**9, tol=0, learning_rate=1e-9, backend="numpy").fit(
        x, x[:, 0] > 0
    )


def long_monte_carlo():
    fastdiv.kl_divergence(P, Q, method="monte-carlo", n=10**9)


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C, also where the test run was started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("work", [long_fit, long_fit_by_numpy, long_monte_carlo])
def test_ctrl_c_stops_long_work_within_a_second(work, threads):
    threads(2)
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(1.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - sent[0] < 1
    timer.join()
    # The process is as good as before.
    assert fastdiv.kl_divergence(P, Q, method="monte-carlo", n=100_000, rng=0) == pytest.approx(4.5455, abs=0.05)
