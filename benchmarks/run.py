"""Run the suite over commits and fail unless all of it ran: ``python -m benchmarks.run RANGE [--bench REGEX]``.

ASV alone ends well when an expression matches no benchmark, or when a commit has been left out.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["main", "unexecuted"]

ROOT = Path(__file__).parents[1]


def _output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _commits(revisions):
    """Return the hashes of a range as ASV reads it: along the first parents."""
    return _output("git", "rev-list", "--first-parent", *revisions.split()).split()


def unexecuted(results_dir, commits, patterns=(), since=0.0):
    """Return a line for each benchmark without a result, or with a failed one, on each commit.

    A value that is not applicable (NaN) is a result; one that failed (null) is not. What was written before `since`
    does not count.
    """
    expected = [
        name
        for name in json.loads((results_dir / "benchmarks.json").read_text(encoding="utf-8"))
        if name != "version" and (not patterns or any(re.search(pattern, name) for pattern in patterns))
    ]
    if not expected:
        return [f"no benchmark matches {' '.join(patterns)}"]
    problems = []
    for commit in commits:
        results = {}
        for path in results_dir.glob(f"*/{commit[:8]}*.json"):
            if path.stat().st_mtime >= since:
                results.update(json.loads(path.read_text(encoding="utf-8"))["results"])
        for name in expected:
            values = (results.get(name) or [None])[0]
            if values is None:
                problems.append(f"{commit[:8]} {name}: not run")
            elif None in values:
                problems.append(f"{commit[:8]} {name}: {values.count(None)} of {len(values)} failed")
    return problems


def main(revisions, bench=(), options=()):
    """Run ASV on the commits of a range and return what did not run."""
    commits = _commits(revisions)
    if not commits:
        return [f"no commit is in {revisions}"]
    patterns = [word for pattern in bench for word in ("--bench", pattern)]
    _output(sys.executable, "-m", "asv", "machine", "--yes")
    asv = [sys.executable, "-m", "asv", "run", "--show-stderr", *patterns, *options, revisions]
    start = time.time()
    status = subprocess.run(asv, cwd=ROOT, check=False).returncode
    results_dir = ROOT / json.loads((ROOT / "asv.conf.json").read_text(encoding="utf-8"))["results_dir"]
    problems = unexecuted(results_dir, commits, bench, start)
    if status:
        problems.append(f"asv run ended with status {status}")
    print("\n".join(problems) or f"{len(commits)} commits, everything ran")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("revisions", nargs="?", default="HEAD^!", help="a range of commits, as git writes it")
    parser.add_argument("--bench", action="append", default=[], metavar="REGEX", help="only these benchmarks")
    known, options = parser.parse_known_args()
    sys.exit(bool(main(known.revisions, known.bench, options)))
