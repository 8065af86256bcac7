"""What the gates let pass and what they stop; the measuring itself is theirs."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastdiv
from benchmarks import gate, instructions, run, timing
from benchmarks.exact import ulp_error
from benchmarks.table import KERNELS

RNG = np.random.default_rng(0)


def times(base, again, head, rounds=20):
    """Times whose minima are given, with the one-sided noise of a busy machine above them."""
    minima = np.array([base, again, head])
    return minima * np.vstack([np.ones(3), 1 + RNG.exponential(0.5, (rounds, 3))])


@pytest.mark.parametrize(
    ("base", "again", "head", "slower"),
    [
        (1e-4, 1e-4, 1.15e-4, True),
        (1e-4, 1.01e-4, 1.15e-4, True),
        (1e-4, 1e-4, 1e-4, False),
        (1e-4, 1e-4, 0.5e-4, False),
        (1e-4, 1e-4, 1.05e-4, False),  # within the relative limit
        (1e-6, 1e-6, 1.15e-6, False),  # within the absolute limit
        (1e-4, 1.1e-4, 1.2e-4, False),  # within the noise
    ],
)
def test_slower_is_beyond_all_three_limits(base, again, head, slower):
    assert gate.is_slower(times(base, again, head)) is slower


def test_copies_of_the_package_live_side_by_side():
    before = {name: module for name, module in sys.modules.items() if name.startswith("fastdiv")}
    copies = [gate.Copy(Path(fastdiv.__file__).parents[1]) for _ in range(2)]
    assert len({id(package) for package in (fastdiv, *(copy.package for copy in copies))}) == 3
    call = copies[0].bind("Mixture.logpdf", backend="cython", n=10)
    assert np.all(np.isfinite(call()[0]))
    after = {name: module for name, module in sys.modules.items() if name.startswith("fastdiv")}
    assert after == before


def test_a_copy_comes_from_its_folder(tmp_path):
    with pytest.raises(ImportError, match="must come from"):
        gate.Copy(tmp_path)


@pytest.fixture
def one_row(monkeypatch):
    monkeypatch.setattr(gate, "TABLE", {"merge_moments": gate.TABLE["merge_moments"]})
    return [Path(fastdiv.__file__).parents[1]] * 3


def test_the_gate_counts_what_is_slower(one_row, monkeypatch, capsys):
    monkeypatch.setattr(gate, "measure", lambda *arguments: times(1e-4, 1e-4, 2e-4))
    assert gate.main(one_row) == (len(gate.BACKENDS), 0)
    assert capsys.readouterr().out.count("SLOWER") == len(gate.BACKENDS)


def test_the_gate_counts_what_it_cannot_compare(one_row, monkeypatch, capsys):
    signatures = iter(["(a)", "(a, b)"] * len(gate.BACKENDS))
    monkeypatch.setattr(gate.Copy, "signature", lambda *arguments: next(signatures))
    assert gate.main(one_row) == (0, len(gate.BACKENDS))
    assert "base has (a), head has (a, b)" in capsys.readouterr().out


def test_a_row_that_seems_slower_is_looked_at_again(monkeypatch):
    monkeypatch.setattr(gate, "interleaved", lambda *arguments, **options: times(1e-4, 1e-4, next(heads)))
    copies = [gate.Copy(Path(fastdiv.__file__).parents[1])] * 3
    heads = iter([2e-4, 1.5e-4, 1.01e-4])
    found = gate.measure(copies, "merge_moments", {"backend": "cython", "n": 1})
    assert not gate.is_slower(found)
    assert next(heads, None) is None
    heads = iter([1.2e-4] * gate.LOOKS)
    assert gate.is_slower(gate.measure(copies, "merge_moments", {"backend": "cython", "n": 1}))
    assert next(heads, None) is None


def test_calls_are_timed_in_turn_both_ways_round(monkeypatch):
    log = []
    calls = [lambda name=name: log.append(name) for name in "ab"]
    monkeypatch.setattr(timing, "_seconds", lambda call, repeats: call() or 1.0)
    assert timing.interleaved(calls, seconds=4, batch_seconds=1, least_rounds=3).shape == (3, 2)
    assert "".join(log) == "aaabbb" + "baab" * 2


def test_instruction_counts_may_move_by_three_percent():
    committed = {"steady": 1000, "slower": 1000, "faster": 1000, "gone": 1000}
    lines = instructions.changes({"steady": 1029, "slower": 1031, "faster": 969, "new": 5}, committed)
    assert [line.partition(":")[0] for line in lines] == ["faster", "gone", "new", "slower"]


def test_every_kernel_has_a_committed_count():
    counts = json.loads(instructions.COMMITTED.read_text(encoding="utf-8"))["counts"]
    assert {name.partition(" ")[0] for name in counts} == {row.name for row in KERNELS if row.axes}
    assert min(counts.values()) > 1000


@pytest.fixture
def results(tmp_path):
    """ASV's results of one commit: one benchmark that ran, one that failed for one choice; a third was not run."""
    folder = tmp_path / "machine"
    folder.mkdir()
    (tmp_path / "benchmarks.json").write_text(json.dumps({"a.good": {}, "b.bad": {}, "c.absent": {}, "version": 2}))
    ran = {"a.good": [[1.0, float("nan")], []], "b.bad": [[1.0, None], []]}
    (folder / "0123456789-env.json").write_text(json.dumps({"results": ran}))
    return tmp_path


def test_a_run_is_whole_only_if_everything_gave_a_result(results):
    commit = "0123456789abcdef"
    assert run.unexecuted(results, [commit], ["good"]) == []
    assert run.unexecuted(results, [commit]) == ["01234567 b.bad: 1 of 2 failed", "01234567 c.absent: not run"]
    assert run.unexecuted(results, ["fedcba98"], ["good"]) == ["fedcba98 a.good: not run"]
    assert run.unexecuted(results, [commit], ["good"], since=time.time() + 60) == ["01234567 a.good: not run"]
    assert run.unexecuted(results, [commit], ["nothing"]) == ["no benchmark matches nothing"]


def test_an_answer_that_is_not_finite_has_no_error_in_ulp():
    with pytest.raises(ValueError, match="must be finite"):
        ulp_error(np.array([np.nan, 1.0]), np.array([1.0, 1.0], dtype=object), "float64")
