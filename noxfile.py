"""Every measurement as a single command: ``nox -s NAME``; ``nox -l`` lists them."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import nox

nox.options.sessions = ["bench"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

# Numba compiles once for each environment instead of once for each benchmark.
CACHE = {"FASTDIV_NUMBA_CACHE": "1"}
SITE = Path(".asv/site")


@nox.session
def bench(session):
    """Run the ASV suite on a range of commits: -- HEAD~3..HEAD [--quick] [--bench REGEX]."""
    session.install("asv")
    session.run("python", "-m", "benchmarks.run", *session.posargs, env=CACHE)


@nox.session
def compare(session):
    """Run two commits in turn and compare them: -- BASE HEAD [--bench REGEX]."""
    session.install("asv")
    session.run("asv", "machine", "--yes", silent=True)
    session.run("asv", "continuous", "--show-stderr", *session.posargs, env=CACHE)


@nox.session
def publish(session):
    """Make the dashboard and its landing page from what has been run, in .asv/site."""
    session.install("asv")
    session.run("asv", "publish", "--no-pull")
    session.run("python", "-m", "benchmarks.site")


@nox.session
def preview(session):
    """Serve what has been published on this machine: [-- PORT]."""
    session.run("python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(SITE), *session.posargs)


@nox.session
def dashboard(session):
    """Look at what has been published in Chromium and keep screenshots in docs/."""
    session.install("asv", "playwright", "pytest", "pytest-benchmark", ".")
    screenshots = {"FASTDIV_SCREENSHOTS": str(Path("docs").absolute())}
    session.run("pytest", "tests/benchmarks/test_dashboard.py", *session.posargs, env=screenshots)


def _unpack(revision, folder):
    """Write the tree of a revision into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    archive = subprocess.run(["git", "archive", revision], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")


@nox.session(name="bench-gate")
def bench_gate(session):
    """Fail if a kernel or a call of the working tree is slower than at a commit: -- BASE."""
    (base,) = session.posargs or ["HEAD"]
    work = Path(session.create_tmp()).absolute()
    _unpack(base, work / "tree")
    session.install("mpmath", ".")
    folders = []
    for source in (work / "tree", Path.cwd()):
        folders.append(str(work / f"installed-{len(folders)}"))
        session.install("--no-deps", "--upgrade", "--target", folders[-1], str(source))
    session.run("python", "-m", "benchmarks.gate", *folders, env=CACHE)


@nox.session
def instructions(session):
    """Fail if a kernel executes over 3 % more instructions than committed: [-- --update]."""
    session.install("mpmath", ".")
    session.run("python", "-m", "benchmarks.instructions", *session.posargs)
