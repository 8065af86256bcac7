"""The command line: what it prints, and one clear sentence where it cannot go on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fastdiv import MultivariateNormal, Normal, js_divergence, kl_divergence
from fastdiv.cli import main

pytest.importorskip("pyarrow")
pytest.importorskip("rich")
import pyarrow as pa
from pyarrow import csv, parquet


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    a = {"same": rng.normal(size=800), "far": Normal(1, 1).sample(800, rng=rng)}
    b = {"far": Normal(0, 2).sample(600, rng=rng), "same": rng.normal(size=600), "only_b": np.zeros(600)}
    return a, b


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A writer of a named file in the working directory, by its ending."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def write(name, content):
        if isinstance(content, str):
            (tmp_path / name).write_text(content, encoding="utf-8")
        elif name.endswith(".csv"):
            csv.write_csv(pa.table(content), name)
        elif name.endswith(".parquet"):
            parquet.write_table(pa.table(content), name)
        else:
            np.save(name, content)
        return name

    return write


def numbers(*rows):
    return "\n".join(["x,y", *rows, *(f"{i % 7},{i % 5}" for i in range(30))])


def test_compare_prints_the_most_different_column_first(write, columns, capsys):
    a, b = (write(name, content) for name, content in zip(("a.csv", "b.parquet"), columns, strict=True))
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "A: a.csv, 800 rows (0 left out for missing values)" in out
    assert "KL(A‖B)" in out
    assert out.index("far") < out.index("same")
    assert "only in B: only_b" in out
    assert "quadratic log-odds" in " ".join(out.split())


def test_compare_as_json_holds_the_truth(write, columns, capsys):
    a, b = (write(name, content) for name, content in zip(("a.csv", "b.parquet"), columns, strict=True))
    assert main(["compare", a, b, "--json", "--column", "far"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["a"] == {"path": "a.csv", "rows": 800, "rows_left_out": 0, "unmatched_columns": []}
    (column,) = report["columns"]
    p, q = Normal(1, 1), Normal(0, 2)
    truths = {"kl_ab": kl_divergence(p, q), "kl_ba": kl_divergence(q, p), "js": js_divergence(p, q)}
    for name, truth in truths.items():
        assert abs(column[name]["value"] - truth) < 4 * column[name]["standard_error"]
    assert column["warnings"] == []


def test_npy_columns_are_matched_by_position_and_structured_ones_by_name(write, columns, capsys):
    a, b = columns
    write("a.npy", np.column_stack([a["same"], a["far"]]))
    write("b.npy", np.column_stack([b["same"], b["far"]]))
    assert main(["compare", "a.npy", "b.npy", "--json"]) == 0
    assert [c["column"] for c in json.loads(capsys.readouterr().out)["columns"]] == ["1", "0"]
    write("s.npy", np.rec.fromarrays([a["far"]], names="far").view(np.ndarray))
    write("b.csv", b)
    assert main(["compare", "s.npy", "b.csv", "--json"]) == 0
    assert [c["column"] for c in json.loads(capsys.readouterr().out)["columns"]] == ["far"]


def test_rows_with_missing_values_are_counted_reported_and_left_out(write, columns, capsys):
    write("a.csv", numbers(",1", "2,NA", "NaN,3"))
    write("b.csv", numbers())
    assert main(["compare", "a.csv", "b.csv"]) == 0
    assert "A: a.csv, 30 rows (3 left out for missing values)" in capsys.readouterr().out
    assert main(["compare", "a.csv", "b.csv", "--json", "--column", "x"]) == 0
    report = json.loads(capsys.readouterr().out)["a"]
    assert (report["rows"], report["rows_left_out"]) == (31, 2)


def test_columns_of_text_are_left_out_and_named(write, capsys):
    for name in ("a.csv", "b.csv"):
        write(name, "label,x\n" + "\n".join(f"cell{i},{i % 9}" for i in range(40)))
    assert main(["compare", "a.csv", "b.csv"]) == 0
    assert "left out because they hold no numbers: label" in capsys.readouterr().out


def test_separated_samples_are_told(write, capsys):
    write("a.npy", np.linspace(0, 1, 50))
    write("b.npy", np.linspace(5, 6, 50))
    assert main(["compare", "a.npy", "b.npy"]) == 0
    out = capsys.readouterr().out
    assert "0 *" in out
    # 50 of 50: Clopper and Pearson's end is 0.025^(1/50).
    assert out.count("≥ 2.20") == 2
    assert "* 0: the samples are separated: with 95 % confidence KL(A‖B) is at least 2.2 and KL" in out
    assert main(["compare", "a.npy", "b.npy", "--json"]) == 0
    (column,) = json.loads(capsys.readouterr().out)["columns"]
    assert column["js"]["standard_error"] is None
    assert column["js"]["interval"] is None
    assert column["kl_ab"]["lower_bound"] == pytest.approx(2.20, abs=0.01)
    assert any("samples are separated" in warning for warning in column["warnings"])


def test_all_columns_are_compared_jointly(write, capsys):
    # Each column alone is the same on both sides; together they are not.
    rng = np.random.default_rng(0)
    covariance = np.array([[1, 0.8], [0.8, 1]])
    write("a.npy", rng.multivariate_normal([0, 0], covariance, 2000))
    write("b.npy", rng.normal(size=(2000, 2)))
    assert main(["compare", "a.npy", "b.npy", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jointly = report["jointly"]
    assert jointly["columns"] == ["0", "1"]
    assert jointly["degree"] == 2
    truth = kl_divergence(MultivariateNormal([0, 0], covariance), MultivariateNormal([0, 0], np.eye(2)))
    low, high = jointly["kl_ab"]["interval"]
    assert low < truth < high
    assert 0 < jointly["kl_ab"]["lower_bound"] < truth
    for column in report["columns"]:
        assert column["kl_ab"]["interval"][0] < 0.01
    assert main(["compare", "a.npy", "b.npy"]) == 0
    assert "jointly" in capsys.readouterr().out
    assert main(["compare", "a.npy", "b.npy", "--column", "0"]) == 0
    assert "jointly" not in capsys.readouterr().out


def test_many_columns_of_few_rows_are_compared_by_straight_lines(write, capsys):
    rng = np.random.default_rng(0)
    write("a.npy", rng.normal(size=(200, 10)))
    write("b.npy", rng.normal(size=(200, 10)))
    assert main(["compare", "a.npy", "b.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jointly"]["degree"] == 1
    assert main(["compare", "a.npy", "b.npy"]) == 0
    assert "linear log-odds" in " ".join(capsys.readouterr().out.split())


def test_a_warning_is_told_once_in_the_words_of_the_table(write, capsys):
    table = {name: np.full(60, 3.0) for name in ("u", "v", "w", "x")} | {"y": np.arange(60.0)}
    write("a.csv", table)
    write("b.csv", table)
    assert main(["compare", "a.csv", "b.csv"]) == 0
    out = capsys.readouterr().out
    assert "* u, v and 2 more: it has the same value in all rows, which tells nothing." in out
    assert out.count("the same value") == 1


@pytest.mark.parametrize(
    ("a", "arguments", "sentence"),
    [
        (None, [], "there is no file a.csv"),
        ("", [], "a.csv is empty"),
        ("x,y\n", [], "a.csv is empty"),
        ("u,v\n1,2\n", [], "a.csv and b.csv have no column in common"),
        (numbers("1,two"), [], "column 'y' of a.csv must be numeric, got 'two' in row 1"),
        (numbers("1,None"), [], "column 'y' of a.csv must be numeric, got 'None' in row 1"),
        (numbers("1,1e300"), [], "column 'y' cannot be compared: "),
        (numbers("1,-inf"), [], "column 'y' of a.csv must be finite, got -inf in row 1"),
        (
            "x,y\n" + ",2\n" * 20,
            [],
            "a.csv must have at least 10 complete rows, got 0; column 'x' has the most missing",
        ),
        (numbers("1,inf"), [], "column 'y' of a.csv must be finite, got inf in row 1"),
        (numbers(), ["--column", "z"], "a.csv has no column 'z'; it has 'x', 'y'"),
        ("x,y\n1,2\n3,4\n", [], "a.csv must have at least 10 complete rows, got 2"),
        ("x,x\n1,2\n", [], "a.csv has more than one column named 'x'"),
        ("x,y\n1,2\n3\n", [], "a.csv cannot be read as CSV: CSV parse error"),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence_and_status_2(write, capsys, a, arguments, sentence):
    write("b.csv", numbers())
    if a is not None:
        write("a.csv", a)
    assert main(["compare", "a.csv", "b.csv", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fastdiv: {sentence}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "x\n1\n", "a.txt must be a CSV, Parquet or NPY file, by its ending"),
        ("a.npy", "not an array", "a.npy cannot be read as NPY: "),
        ("a.npy", "", "a.npy is empty"),
        ("a.npy", np.zeros((0, 2)), "a.npy is empty"),
        ("a.npy", np.array([{}]), "a.npy cannot be read as NPY: "),
        ("a.npy", np.zeros((3, 3), dtype=[("x", float)]), "a.npy and b.csv have no column in common"),
        ("a.npy", np.zeros((20, 2, 2)), "a.npy must hold one or two dimensions, got an array of shape (20, 2, 2)"),
        ("a.parquet", "not a table", "a.parquet cannot be read as PARQUET: "),
        ("a.parquet", "", "a.parquet is empty"),
    ],
)
def test_files_that_cannot_be_read(write, capsys, name, content, sentence):
    write("b.csv", numbers())
    write(name, content)
    assert main(["compare", name, "b.csv"]) == 2
    assert capsys.readouterr().err.startswith(f"fastdiv: {sentence}")


def test_names_are_shown_as_they_are(write, capsys):
    for name in ("a.csv", "b.csv"):
        write(name, "[red]x[/red],[/y],z\x1b[2J\n" + "\n".join(f"{i},{i % 7},{i % 5}" for i in range(40)))
    assert main(["compare", "a.csv", "b.csv"]) == 0
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "[/y]" in out
    assert "z?[2J" in out


def test_a_folder_is_no_file(write, tmp_path, capsys):
    write("b.csv", numbers())
    (tmp_path / "a.csv").mkdir()
    assert main(["compare", "a.csv", "b.csv"]) == 2
    assert capsys.readouterr().err == "fastdiv: a.csv is a folder\n"


def test_output_survives_a_terminal_without_unicode(write, columns, tmp_path):
    write("a.csv", columns[0])
    command = [sys.executable, "-m", "fastdiv", "compare", "a.csv", "a.csv"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr


def test_a_missing_extra_is_named(write, monkeypatch, capsys):
    write("b.csv", numbers())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["compare", "b.csv", "b.csv"]) == 2
    assert "pip install 'fastdiv[cli]'" in capsys.readouterr().err


def test_demo_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "fastdiv", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "140"})
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for text in (
        "worst perimeter",
        "0.44314718055994529",
        "4.5455",
        "Beta(2, 3) at ½",
        "by its ELBO, μ",
        "full covariance",
        "logistic ratio",
    ):
        assert text in result.stdout
