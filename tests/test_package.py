"""How the package is put together."""

import ast
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fastdiv
from conftest import CYTHON_BUILDS

SOURCE = Path(fastdiv.__file__).parent
FLOORS = [
    ["_kernels", "_kernels_numba", "_kernels_numpy", "_cpu", "_arrays", "_arviz", "_progress"],
    ["_backend", "estimate"],
    ["distributions", "_logsumexp", "_logistic", "functionals"],
    ["_descent", "families"],
    ["transforms"],
    ["closed_form", "quadrature", "montecarlo"],
    ["divergences", "ratio", "mixture_model"],
    ["logistic"],
    ["calibration"],
    ["networks", "telescoping", "kernel_ratio", "neighbors", "evidence"],
    ["samples", "variational", "svi", "mcmc"],
    ["cli"],
    ["__init__", "__main__"],
]


# Mixture.entropy() is shorthand for fastdiv.entropy(mixture), imported when it is called.
SHORTHAND = ("distributions", "divergences")


def test_import_brings_numpy_and_nothing_heavier():
    code = (
        "import sys, fastdiv; fastdiv.Mixture([1], [0], [1]).logpdf(0.5); fastdiv.kl_normal(0, 1, 1, 2);"
        "print([m for m in ('scipy', 'numba', 'sklearn', 'matplotlib', 'pyarrow', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in fastdiv.__all__:
        assert hasattr(fastdiv, name)
    assert set(fastdiv.__all__) <= set(dir(fastdiv))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastdiv.nothing  # noqa: B018


def test_the_stub_describes_the_compiled_module():
    command = [sys.executable, "-m", "mypy.stubtest", "fastdiv._kernels"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files_import_only_from_floors_below():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    files = list(SOURCE.glob("*.py"))
    assert {path.stem for path in files} <= set(floor)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                for name in [node.module] if node.module else [alias.name for alias in node.names]:
                    below = floor[name] < floor[path.stem]
                    assert below or (path.stem, name) == SHORTHAND, f"{path.stem} imports {name}"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="for a free-threaded Python")
def test_the_kernels_leave_the_gil_off():
    code = "import sys, fastdiv; fastdiv.Normal().logpdf(0.5); print(sys._is_gil_enabled())"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="for nm on Linux")
@pytest.mark.parametrize("module", ["_cpu", *(name.removeprefix("fastdiv.") for name in CYTHON_BUILDS)])
def test_compiled_modules_need_no_vector_libm_and_no_openmp(module):
    (library,) = SOURCE.glob(f"{module}.*.so")
    command = ["nm", "--dynamic", "--undefined-only", library]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not [symbol for symbol in symbols if symbol.startswith(("_ZGV", "GOMP", "omp_", "__kmpc"))]


def test_subnormals_survive_the_import():
    assert sys.float_info.min / 2 > 0
