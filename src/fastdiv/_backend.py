"""Which kernel set runs, and on how many threads. Knows nothing of the mathematics."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "get_backend",
    "get_num_threads",
    "set_backend",
    "set_num_threads",
    "show_config",
    "use_backend",
]

MODULES = {
    "cython": None,  # by the CPU
    "numba": "fastdiv._kernels_numba",
    "numpy": "fastdiv._kernels_numpy",
}

CPUS = ("baseline", "avx2", "avx512")

# Points in a block: a few hundred KiB of temporaries, and 50 microseconds of work or more.
BLOCK_SIZE = 8192


def _from_environment(variable, default, choices):
    """Return what an environment variable, if it is set and not empty, chooses."""
    asked = os.environ.get(variable) or default
    if asked not in choices:
        raise ValueError(f"{variable} must be one of {', '.join(map(repr, choices))}, got {asked!r}")
    return asked


_default = _from_environment("FASTDIV_BACKEND", "cython", MODULES)
_scoped = ContextVar("fastdiv_backend", default=None)
_loaded = {}


def _cython_module():
    """Name the build of the Cython kernels for this CPU, or the one that FASTDIV_CPU asks for."""
    from ._cpu import cpu_level

    asked = _from_environment("FASTDIV_CPU", CPUS[cpu_level()], CPUS)
    if CPUS.index(asked) > cpu_level():
        raise ValueError(f"FASTDIV_CPU={asked!r} was asked for and this CPU goes up to {CPUS[cpu_level()]!r}")
    return "fastdiv._kernels" if asked == "baseline" else f"fastdiv._kernels_{asked}"


def _load(name):
    if name not in MODULES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, MODULES))}, got {name!r}")
    if name not in _loaded:
        try:
            _loaded[name] = import_module(MODULES[name] or _cython_module())
        except ImportError as error:
            raise ImportError(f"backend {name!r} was asked for and cannot be imported: {error}") from error
    return _loaded[name]


def _name(backend=None):
    return (_scoped.get() or _default) if backend is None else backend


def kernels(backend=None):
    """Return the kernel module that `backend`, or else the current choice, names."""
    name = _name(backend)
    return _loaded.get(name) or _load(name)


def ready(module, name, parameters):
    """Return a kernel of float64 and its parameters in the form that costs least to call with again and again."""
    kernel = getattr(module, name)
    return module.ready(kernel, parameters) if hasattr(module, "ready") else (kernel, parameters)


def get_backend() -> str:
    """Return the name of the kernel set that runs when a call names none.

    Returns
    -------
    str
        ``"cython"``, ``"numba"`` or ``"numpy"``.

    Examples
    --------
    >>> import fastdiv
    >>> fastdiv.get_backend()
    'cython'
    """
    name = _name()
    _load(name)
    return name


def set_backend(name: str) -> None:
    """Choose the kernel set for the whole process.

    Parameters
    ----------
    name : {"cython", "numba", "numpy"}
        A set that cannot be imported is refused; nothing falls back in silence.

    Raises
    ------
    ValueError
        If there is no such kernel set.
    ImportError
        If it cannot be imported.

    Examples
    --------
    >>> import fastdiv
    >>> fastdiv.set_backend("cython")
    """
    global _default
    _load(name)
    _default = name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose the kernel set inside a ``with`` block, for this thread or task only.

    Parameters
    ----------
    name : {"cython", "numba", "numpy"}
        As in `set_backend`.

    Examples
    --------
    >>> import fastdiv
    >>> with fastdiv.use_backend("numpy"):
    ...     fastdiv.get_backend()
    'numpy'
    """
    _load(name)
    token = _scoped.set(name)
    try:
        yield
    finally:
        _scoped.reset(token)


def _available_cpus():
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _initial_threads():
    # Joblib and Dask tell their workers by OMP_NUM_THREADS how many threads each may use.
    inherited = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    default = inherited if inherited.isdecimal() and int(inherited) > 0 else str(_available_cpus())
    asked = os.environ.get("FASTDIV_NUM_THREADS") or default
    if not (asked.isdecimal() and int(asked) > 0):
        raise ValueError(f"FASTDIV_NUM_THREADS must be a whole number, at least 1, got {asked!r}")
    return int(asked)


_num_threads = _initial_threads()
_pool = None
_pool_lock = threading.Lock()


def _forget_pool():
    """Leave the pool of a parent process alone: its threads do not exist in the child."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def get_num_threads() -> int:
    """Return how many threads large work is spread over.

    Examples
    --------
    >>> import fastdiv
    >>> fastdiv.get_num_threads() >= 1
    True
    """
    return _num_threads


def set_num_threads(n: int) -> None:
    """Choose how many threads large work is spread over.

    The result of a call does not depend on it, to the last bit. The default is the number of CPUs open to the
    process, or the environment variable ``FASTDIV_NUM_THREADS``, or else ``OMP_NUM_THREADS``.

    Parameters
    ----------
    n : int
        At least 1.

    Examples
    --------
    >>> import fastdiv
    >>> before = fastdiv.get_num_threads()
    >>> fastdiv.set_num_threads(1)
    >>> fastdiv.set_num_threads(before)
    """
    global _num_threads, _pool
    n = as_count(n, "n", 1)
    with _pool_lock:
        if n != _num_threads and _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None
        _num_threads = n


def _submit(function, arguments):
    global _pool
    with _pool_lock:
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor

            _pool = ThreadPoolExecutor(_num_threads, thread_name_prefix="fastdiv")
        return [_pool.submit(function, argument) for argument in arguments]


def map_blocks(work, size, block_size=BLOCK_SIZE, least=2):
    """Call ``work(start, stop)`` on consecutive blocks and return the results in order.

    Blocks depend on the size alone, so the results do not depend on the number of threads. Each thread takes
    every n-th block, at least `least` of them, the calling thread the first; an exception, Ctrl-C included, stops all
    of them at their next block.
    """
    if size <= block_size:
        return [work(0, size)] if size else []
    starts = range(0, size, block_size)
    workers = min(_num_threads, len(starts) // least)
    if workers <= 1:
        return [work(start, min(start + block_size, size)) for start in starts]
    results = [None] * len(starts)
    stopped = threading.Event()

    def stripe(first):
        try:
            for index in range(first, len(starts), workers):
                if stopped.is_set():
                    return
                results[index] = work(starts[index], min(starts[index] + block_size, size))
        except BaseException:
            stopped.set()
            raise

    futures = _submit(stripe, range(1, workers))
    stripe(0)
    try:
        for future in futures:
            future.result()
    except BaseException:
        stopped.set()
        raise
    return results


@cache
def _blas_controller():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


_limits_blas = threading.Lock()


@contextmanager
def one_blas_thread():
    """Keep BLAS to this thread: its own threads win nothing on blocks, and wait for each other on a busy machine.

    The limit is the process's. A second thread that came in now and left later would put back what it had found, so
    it leaves the limit alone.
    """
    if not _limits_blas.acquire(blocking=False):
        yield
        return
    try:
        with _blas_controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _limits_blas.release()


def show_config() -> None:
    """Print the versions, the kernel set and the number of threads in use.

    Examples
    --------
    >>> import fastdiv
    >>> fastdiv.show_config()  # doctest: +ELLIPSIS
    fastdiv      ...
    python       ...
    numpy        ...
    backend      cython (fastdiv._kernels...)
    threads      ...
    """
    import platform
    from importlib.metadata import version

    name = get_backend()
    for key, value in {
        "fastdiv": version("fastdiv"),
        "python": f"{platform.python_version()} on {platform.machine()}",
        "numpy": np.__version__,
        "backend": f"{name} ({kernels().__name__})",
        "threads": get_num_threads(),
    }.items():
        print(f"{key:<12} {value}")
