import importlib

import numpy as np
import pytest

from fastdiv import _backend
from fastdiv._cpu import cpu_level

CYTHON_BUILDS = ["fastdiv._kernels", *(f"fastdiv._kernels_{cpu}" for cpu in _backend.CPUS[1 : cpu_level() + 1])]
COMPILED = [*CYTHON_BUILDS, "fastdiv._kernels_numba"]
REFERENCE = "fastdiv._kernels_numpy"


@pytest.fixture(params=[REFERENCE, *COMPILED], ids=lambda name: name.removeprefix("fastdiv._kernels") or "_baseline")
def kernels(request, monkeypatch):
    """Every kernel set that runs on this machine, each Cython build apart, in the place of the current one."""
    module = importlib.import_module(request.param)
    monkeypatch.setitem(_backend._loaded, _backend.get_backend(), module)
    return module


@pytest.fixture(params=["cython", "numba", "numpy"])
def backend(request):
    return request.param


@pytest.fixture
def threads():
    """A setter of the number of threads, put back afterwards."""
    before = _backend.get_num_threads()
    yield _backend.set_num_threads
    _backend.set_num_threads(before)


def published_rows():
    """The hundred rows of the published Bayesian mixture."""
    rng = np.random.RandomState(123)
    labels = np.argmax([rng.multinomial(1, (0.2, 0.8)) for _ in range(100)], axis=1)
    first, second = (
        np.array([rng.multivariate_normal(mean, np.eye(2)) for _ in range(100)]) for mean in ([-1, -1.5], [1, 1])
    )
    assert np.bincount(labels).tolist() == [13, 87]
    return np.where(labels[:, None] == 0, first, second)
