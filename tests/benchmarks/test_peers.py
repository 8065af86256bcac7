import copy
import json

import pytest

from benchmarks import peers

REPORT = json.loads(peers.JSON.read_text(encoding="utf-8"))


def test_readme_shows_the_report():
    (shown,) = peers.MARKED.findall(peers.README.read_text(encoding="utf-8"))
    assert shown == peers.render(REPORT)


def test_report_has_every_row():
    assert [row["name"] for row in REPORT["rows"]] == list(peers.ROWS)


@pytest.mark.parametrize("name", peers.ROWS)
def test_answers(name):
    (row,) = peers.measure_rows([name], quick=True)
    for peer, result in row["peers"].items():
        assert result.get("missing") or result["right"], (peer, result)
    # Sums of Gaussian kernels have no kernel set.
    least = {"fastdiv", "NumPy" if name == "least-squares" else "fastdiv (numba)"}
    measured = {peer for peer in row["peers"] if "seconds" in row["peers"][peer]}
    assert least <= measured
    assert name == "least-squares" or least < measured


@pytest.fixture
def row():
    """Of two peers with right answers, fastdiv the faster."""
    result = {"first_call": 0.5, "error": 0.0, "right": True, "seconds": 0.001}
    ours, others = [copy.copy(result)], [result | {"seconds": 0.003}]
    return {"title": "a task", "tolerance": 0.1, "peers": {"fastdiv": ours, "other": others}}


def rendered(row, busy=0.0):
    about = {"date": "", "cpu": "", "system": "", "versions": {}, "threads": [1], "busy": [busy]}
    return peers.render(about | {"rows": [row]})


def test_fastest_is_bold(row):
    assert "| a task | **1** | other 3 |" in rendered(row)
    row["peers"]["other"][0]["seconds"] = 0.0005
    assert "| a task | 1 | other **0.5** |" in rendered(row)


def test_busy_machine_is_told(row):
    assert "busy" not in rendered(row, busy=0.05)
    assert "Others kept 0.5 of 1 CPUs busy meanwhile: times on 1 are too long." in rendered(row, busy=0.5)


def test_wrong_answer_is_marked(row):
    row["peers"]["other"][0] |= {"seconds": 0.0005, "error": 0.2, "right": False}
    text = rendered(row)
    assert "| a task | **1** | other 0.5† |" in text
    assert "† a task, other: off by 0.2, with 0.1 allowed" in text


def test_failure_is_marked(row):
    row["peers"]["other"] = [{"raised": "ValueError: no"}]
    text = rendered(row)
    assert "| a task | **1** | other ‡ |" in text
    assert "‡ a task, other: `ValueError: no`" in text


def test_missing_peer_is_marked(row):
    row["peers"]["other"] = [{"missing": True}]
    text = rendered(row)
    assert "| a task | **1** | other – |" in text
    assert text.rstrip().endswith("</details>")


def answered(answer):
    """What `measure` finds of a peer that answers so, where 0 is right."""
    row = peers.Row("", 0.0, 0.1, "", {"peer": lambda: lambda: answer()})
    return peers.measure(row, budget=0)["peer"]


def test_answers_are_compared():
    assert answered(lambda: 0.05)["right"]
    assert not answered(lambda: 0.5)["right"]
    assert "not finite" in answered(lambda: float("nan"))["raised"]
    assert "shape" in answered(lambda: [0.0])["raised"]
    assert answered(lambda: 1 / 0)["raised"] == "ZeroDivisionError: division by zero"


def test_missing_peer_is_told():
    def make():
        import a_library_that_nobody_has  # noqa: F401

    assert peers.measure(peers.Row("", 0.0, 0.1, "", {"peer": make}), budget=0) == {"peer": {"missing": True}}


def test_every_call_has_three_turns():
    calls = []
    peers.fastest({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0)
    assert calls == ["a", "b", "b", "a", "a", "b"]
