"""Measurements as single commands: ``nox -s NAME``; ``nox -l`` lists them."""

import shutil
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


def _wheel(session, revision, folder):
    """Build the wheel of a revision from nothing but its tree."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    session.run("git", "archive", f"--output={folder / 'tree.tar'}", revision, external=True)
    session.run("tar", "-xf", str(folder / "tree.tar"), "--one-top-level", "-C", str(folder), external=True)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(folder / "tree"))
    (wheel,) = folder.glob("*.whl")
    return str(wheel)


@nox.session(name="bench-gate")
def bench_gate(session):
    """Fail if a kernel or a call of the working tree is slower than at a commit: -- BASE."""
    base = session.posargs[0] if session.posargs else "HEAD"
    # Changes of tracked files as a commit that no branch knows; nothing where there are none.
    head = session.run("git", "stash", "create", external=True, silent=True).strip() or "HEAD"
    work = Path(session.create_tmp()).absolute()
    session.install("mpmath", "threadpoolctl", ".")
    wheels = {name: _wheel(session, revision, work / name) for name, revision in (("base", base), ("head", head))}
    folders = []
    for copy, wheel in (("first", wheels["base"]), ("again", wheels["base"]), ("changed", wheels["head"])):
        folders.append(str(work / copy))
        session.install("--no-deps", "--upgrade", "--target", folders[-1], wheel)
    session.run("python", "-m", "benchmarks.gate", *folders, env=CACHE)


@nox.session
def instructions(session):
    """Fail if a Cython kernel's instructions are not within 3 % of what is committed: [-- --update]."""
    session.install("mpmath", ".")
    session.run("python", "-m", "benchmarks.instructions", *session.posargs)
