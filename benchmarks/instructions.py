"""Do the Cython kernels execute as many instructions as committed? ``python -m benchmarks.instructions [--update]``.

Callgrind counts them, so the answer depends on the compiler and a little on NumPy and Python, not on the machine or its
load. Valgrind does not know AVX-512: the counts are of the AVX2 build.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

__all__ = ["changes", "main"]

COMMITTED = Path(__file__).with_name("instructions.json")
LIMIT = 0.03
DTYPES = ("float32", "float64")  # in the order of Cython's specialisations
N_POINTS, N_COMPONENTS = 10_000, 8
# A line of callgrind_annotate: count, share, file, specialisation, name. A kernel that has no specialisation takes no
# points, and what a call costs would hide what it does.
MODULE = r"_7fastdiv_\d+_kernels_avx2_"
LINE = re.compile(rf"\s*([\d,]+) .*:__pyx_pw{MODULE}\d+__pyx_fuse_(\d)__pyx_f{MODULE}(\w+)")


def _call_every_kernel():
    from .table import KERNELS

    for row in KERNELS:
        for dtype in DTYPES:
            row.bind("cython", N_POINTS, N_COMPONENTS, dtype)()


def _count():
    """Return the instructions of each kernel, by name and dtype."""
    for program in ("valgrind", "callgrind_annotate"):
        if not shutil.which(program):
            raise FileNotFoundError(f"{program} is missing: install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile")
        python = [sys.executable, "-c", f"from {__spec__.name} import _call_every_kernel as call; call()"]
        valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={profile}", *python]
        environment = {**os.environ, "FASTDIV_CPU": "avx2", "PYTHONHASHSEED": "0"}
        subprocess.run(valgrind, check=True, env=environment)
        annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(profile)]
        report = subprocess.run(annotate, check=True, capture_output=True, text=True).stdout
    counts = Counter()
    for count, specialisation, name in LINE.findall(report):
        counts[f"{name} {DTYPES[int(specialisation)]}"] += int(count.replace(",", ""))
    if not counts:
        raise LookupError("callgrind names no kernel as Cython is known to name them")
    return dict(sorted(counts.items()))


def _tools():
    """Return what else the counts depend on."""
    compiler = subprocess.run(["cc", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
    return {"cc": compiler, "python": platform.python_version(), "numpy": np.__version__}


def changes(counts, committed):
    """Return a line for each kernel whose count is not within the limit of the committed one."""
    lines = []
    for name in sorted({*counts, *committed}):
        now, before = counts.get(name), committed.get(name)
        if now is None or before is None:
            lines.append(f"{name}: {'not counted' if now is None else 'not committed'}")
        elif abs(now - before) > LIMIT * before:
            lines.append(f"{name}: {before:,} before, {now:,} now ({now / before - 1:+.1%})")
    return lines


def main(update):
    """Compare the counts with the committed ones, or commit to new ones, and return what changed."""
    tools = _tools()
    counts = _count()
    if update:
        COMMITTED.write_text(json.dumps({"tools": tools, "counts": counts}, indent=2) + "\n", encoding="utf-8")
        return []
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    for name, count in counts.items():
        print(f"{name:32} {count:>12,} {count / committed['counts'].get(name, count) - 1:+.2%}")
    problems = changes(counts, committed["counts"])
    if problems and tools != committed["tools"]:
        problems.append(f"the committed counts are those of {committed['tools']}; here are {tools}")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the counts down instead of comparing them")
    sys.exit("\n".join(main(parser.parse_args().update)) or None)
