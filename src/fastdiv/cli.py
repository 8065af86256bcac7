"""The command line: ``fastdiv demo`` and ``fastdiv compare``."""

import argparse
import io
import json
import math
import re
import sys
import time
import timeit
import warnings
from pathlib import Path

import numpy as np

from . import _backend
from .distributions import Mixture, MultivariateNormal, Normal
from .divergences import js_divergence, kl_divergence
from .estimate import AccuracyWarning, Estimate
from .families import log_ratio

MISSING = (None, "", "NA")
# Fewer complete rows than this say nothing about a density.
MIN_ROWS = 10
# Of all columns jointly a quadratic is fitted up to so many of them, where each sample has so many rows a coefficient.
MOST_QUADRATIC = 30
ROWS_PER_COEFFICIENT = 10
BAR_WIDTH = 8
# Where the simplex that ends a search by brute force stops.
NUMBER = r"[-+]?[0-9](?:[0-9.e+-]*[0-9])?"
DECIMALS = 3
SEED = 0


class UserError(Exception):
    """What the user can mend, in one sentence."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="fastdiv", description="How far two distributions are apart, in nats, with standard errors."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="real data, published figures and speed, measured now")
    compare = commands.add_parser(
        "compare",
        help="how far two samples are apart, column by column",
        description="For each numeric column that both files have, most different first, and for all of them jointly: "
        "JS, KL(A‖B) and KL(B‖A), by a logistic classifier that is asked for rows which it has not seen. Rows are "
        "samples; columns are matched by name (an NPY array's by position).",
    )
    compare.add_argument("a", metavar="A", help="CSV, Parquet or NPY file")
    compare.add_argument("b", metavar="B", help="CSV, Parquet or NPY file")
    compare.add_argument("--column", action="append", metavar="NAME", help="only this column (may be repeated)")
    compare.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        if arguments.command == "demo":
            _demo()
        else:
            _compare(arguments.a, arguments.b, arguments.column, arguments.json)
    except (UserError, OSError) as error:
        print(f"fastdiv: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiv: interrupted", file=sys.stderr)
        return 130
    return 0


def _extra(module):
    """Import a module that the cli extra brings."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(f"this needs {package}: pip install 'fastdiv[cli]'") from None


def _console(*, stderr=False):
    return _extra("rich.console").Console(stderr=stderr)


def _track(sequence, description):
    """Iterate with a progress bar on the terminal's standard error."""
    progress = _extra("rich.progress")
    console = _console(stderr=True)
    yield from progress.track(
        sequence, description=description, console=console, transient=True, disable=not console.is_terminal
    )


def _printable(text):
    """Keep a file's names from steering the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _table(title, columns, rows, caption=None):
    """Print a table; the first column is text, the others are numbers or drawn, and None is a line."""
    table = _extra("rich.table").Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=_extra("rich.box").SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    text = _extra("rich.text").Text
    for i, column in enumerate(columns):
        justify = "right" if i else "left"
        table.add_column(text(column), justify=justify, overflow="fold", no_wrap=i > 0, min_width=None if i else 12)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(text(_printable(cell)) if isinstance(cell, str) else cell for cell in row))
    console = _console()
    console.print()
    console.print(table)


def _numbers_or_text(entries):
    """Return entries as floats, missing ones as NaN, or as an object array where they are not all numbers."""
    try:
        return np.array([math.nan if entry in MISSING else float(entry) for entry in entries])
    except (TypeError, ValueError):
        return np.array([None if entry in MISSING else str(entry) for entry in entries], dtype=object)


def _read_arrow(path):
    """Return the columns of a CSV or Parquet file, by name."""
    arrow = _extra("pyarrow")
    if path.suffix.lower() == ".csv":
        table = _extra("pyarrow.csv").read_csv(path)
    else:
        table = _extra("pyarrow.parquet").read_table(path)
    repeated = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has more than one column named {repeated[0]!r}")
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_decimal(kind):
            columns[name] = column.cast(arrow.float64(), safe=False).to_numpy()
        elif arrow.types.is_boolean(kind) or arrow.types.is_null(kind):
            columns[name] = column.cast(arrow.int8()).cast(arrow.float64()).to_numpy()
        elif arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_dictionary(kind):
            columns[name] = _numbers_or_text(column.to_pylist())
        else:
            columns[name] = np.array([str(value) for value in column.to_pylist()], dtype=object)
    return columns


def _read_npy(path):
    """Return the columns of an NPY array, by name or position."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.names and array.ndim == 1:
        columns = {name: array[name] for name in array.dtype.names}
    elif array.ndim in (1, 2):
        columns = {str(i): column for i, column in enumerate(np.atleast_2d(array.T))}
    else:
        raise UserError(f"{path} must hold one or two dimensions, got an array of shape {array.shape}")
    return {
        name: column.astype(np.float64) if column.dtype.kind in "fiub" else np.array(list(map(str, column)), object)
        for name, column in columns.items()
    }


READERS = {".csv": _read_arrow, ".parquet": _read_arrow, ".pq": _read_arrow, ".npy": _read_npy}


def _read(path):
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path} must be a CSV, Parquet or NPY file, by its ending")
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty")
    try:
        with np.errstate(over="ignore"):
            columns = READERS[path.suffix.lower()](path)
    except UserError:
        raise
    except Exception as error:
        # Whatever a broken file makes a reader raise, the user can only mend the file.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as {path.suffix[1:].upper()}: {reason}") from None
    if not columns or not len(next(iter(columns.values()))):
        raise UserError(f"{path} is empty: it has no rows")
    return columns


def _listed(names):
    return ", ".join(map(repr, names))


def _first_text(column):
    """Return the row and value of a column's first entry that is not a number, and whether it has any number."""
    first, numbers = None, False
    for row, entry in enumerate(column, start=1):
        try:
            float(math.nan if entry is None else entry)
            numbers = numbers or entry is not None
        except ValueError:
            first = first or (row, entry)
    return first, numbers


def _numeric_columns(paths, tables, names):
    """Return the columns to compare, and those left out because neither side holds numbers."""
    for name in names or ():
        for path, table in zip(paths, tables, strict=True):
            if name not in table:
                raise UserError(f"{path} has no column {name!r}; it has {_listed(table)}")
    common = [name for name in tables[0] if name in tables[1]]
    if not common:
        raise UserError(
            f"{paths[0]} and {paths[1]} have no column in common: {_listed(tables[0])} against {_listed(tables[1])}"
        )
    numeric, text = [], []
    for name in dict.fromkeys(names) if names else common:
        is_text = [table[name].dtype == object for table in tables]
        found = [_first_text(table[name]) if t else (None, True) for table, t in zip(tables, is_text, strict=True)]
        if not names and all(is_text) and not any(numbers for _, numbers in found):
            text.append(name)
            continue
        for path, (first, _) in zip(paths, found, strict=True):
            if first:
                row, entry = first
                raise UserError(f"column {name!r} of {path} must be numeric, got {entry!r} in row {row}")
        numeric.append(name)
    if not numeric:
        raise UserError(f"{paths[0]} and {paths[1]} have no numeric column in common")
    return numeric, text


def _complete_rows(path, table, names):
    """Return the rows without missing values as a matrix, and how many were left out."""
    matrix = np.column_stack([table[name] for name in names])
    for name, column in zip(names, matrix.T, strict=True):
        infinite = np.isinf(column)
        if np.any(infinite):
            row = np.argmax(infinite)
            raise UserError(f"column {name!r} of {path} must be finite, got {column[row]} in row {row + 1}")
    missing = np.isnan(matrix)
    complete = ~missing.any(axis=1)
    if complete.sum() < MIN_ROWS:
        message = f"{path} must have at least {MIN_ROWS} complete rows, got {complete.sum()}"
        if missing.any():
            message += f"; column {names[np.argmax(missing.sum(axis=0))]!r} has the most missing values"
        raise UserError(message)
    return matrix[complete], int(np.sum(~complete))


def _compared(names, a, b, labels, degree=2):
    """Return the divergences and the warnings of one comparison, of some columns at once."""
    from .logistic import LogisticRatioClassifier
    from .samples import divergences_from_samples

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("always", AccuracyWarning)
        try:
            found = divergences_from_samples(a, b, estimator=LogisticRatioClassifier(degree), rng=SEED)
        except ValueError as error:
            what = f"column {names[0]!r}" if len(names) == 1 else "all columns at once"
            raise UserError(f"{what} cannot be compared: {str(error).splitlines()[0]}") from None
    messages = {str(w.message) for w in caught if w.category is AccuracyWarning}
    if len(names) > 1:
        # Each column has told its own.
        messages = {message for message in messages if not message.startswith("feature")}
    return found, sorted(_in_words_of_the_table(message, names, labels) for message in messages)


def _in_words_of_the_table(message, names, labels):
    """Return a warning with the columns' names and the samples' labels in it."""
    a, b = labels
    words = {"x_p": a, "x_q": b, "(p‖q)": f"({a}‖{b})", "(q‖p)": f"({b}‖{a})", "under q": f"under {b}"}
    for word, label in words.items():
        message = message.replace(word, label)
    return re.sub("^feature 0", "it", message)


def _some(names):
    """List a few of many names."""
    names = list(names)
    return f"{', '.join(names[:2])} and {len(names) - 2} more" if len(names) > 3 else ", ".join(names)


def _compare_columns(names, a, b, labels):
    """Return, most different first, (name, divergences, warnings) of each column."""
    results = [
        (name, *_compared([name], a[:, i], b[:, i], labels)) for i, name in enumerate(_track(names, "comparing"))
    ]
    return sorted(results, key=lambda result: -result[1]["js"])


def _compare_jointly(names, a, b, labels):
    """Return the degree of the log-odds, the divergences and the warnings of all columns at once."""
    columns = a.shape[1]
    n_coefficients = math.comb(columns + 2, 2)
    enough = columns <= MOST_QUADRATIC and min(len(a), len(b)) >= ROWS_PER_COEFFICIENT * n_coefficients
    degree = 2 if enough else 1
    return degree, *_compared(names, a, b, labels, degree)


def _without_method(estimate):
    return str(estimate).partition(" (")[0]


def _shown(value):
    """Return an estimate with its error, a number with the digits that figures are published with, a text as it is."""
    if isinstance(value, Estimate):
        return _without_method(value)
    return value if isinstance(value, str) else f"{value:.8g}"


def _decimal(value):
    return f"{round(value, DECIMALS) + 0.0:.{DECIMALS}f}"


def _row(name, found, notes):
    """Return the cells of one comparison."""
    js, kl = found["js"], [found["kl_pq"], found["kl_qp"]]
    low, high = js.confidence_interval()
    if js.diagnostics["separated"]:
        value, interval, *kl = (f"≥ {estimate.diagnostics['lower_bound']:.2f}" for estimate in (js, js, *kl))
        interval = ""
    else:
        value, interval = _decimal(js), f"{_decimal(low)} … {_decimal(high)}"
        kl = [f"{_decimal(estimate)} ± {_decimal(estimate.error)}" for estimate in kl]
    colour = "red" if notes else "green" if low <= 0 else "yellow"
    bar = _extra("rich.bar").Bar(math.log(2), 0, min(max(js, 0), math.log(2)), width=BAR_WIDTH, color=colour)
    return f"{name} *" if notes else name, bar, value, interval, *kl


def _in_common(notes):
    """Return notes that differ by numbers alone as one, without these."""
    numbers = [re.findall(NUMBER, note) for note in notes]
    shared = iter(values[0] if len(set(values)) == 1 else "…" for values in zip(*numbers, strict=True))
    return re.sub(NUMBER, lambda _: next(shared), notes[0])


def _print_notes(results):
    """Print each kind of warning once, with the columns that it is about."""
    kinds = {}
    for name, _, notes in results:
        for note in notes:
            kinds.setdefault(re.sub(NUMBER, "0", note), []).append((name, note))
    for told in kinds.values():
        names, notes = zip(*told, strict=True)
        text = f"* {_some(names)}: {_in_common(notes)}."
        _console().print(_printable(text), markup=False, highlight=False)


def _print_divergences(title, first_column, labels, results, joint=None):
    a, b = labels
    rows = [_row(*result) for result in results]
    caption = (
        "The bar is JS, of at most log 2: green where the interval holds 0, red where the numbers are not to be "
        "trusted. By logistic regression with quadratic log-odds, cross-fitted: the log-ratio of two Gaussians is "
        "quadratic; of other densities this sees what a quadratic can. Nothing is clamped: an estimate of nearly 0 may "
        "be negative. Intervals are of each row alone."
    )
    if joint is not None:
        degree, *found = joint
        together = "jointly"
        results = [*results, (together, *found)]
        rows += [None, _row(*results[-1])]
        if degree == 1:
            caption += " Jointly they are told apart by linear log-odds: for quadratic ones there are too few rows."
    columns = [first_column, "", "JS", "95 % interval", f"KL({a}‖{b})", f"KL({b}‖{a})"]
    _table(title, columns, rows, caption)
    _print_notes(results)


def _as_json(found, notes):
    """Return the divergences and warnings of one comparison as JSON takes them."""
    keys = {"kl_pq": "kl_ab", "kl_qp": "kl_ba", "js": "js"}
    report = {}
    for key, estimate in found.items():
        finite = math.isfinite(estimate.error)
        report[keys[key]] = {
            "value": float(estimate),
            "standard_error": estimate.standard_error if finite else None,
            "interval": list(estimate.confidence_interval()) if finite else None,
            "lower_bound": estimate.diagnostics["lower_bound"],
        }
    return report | {"warnings": notes}


def _compare(path_a, path_b, names, as_json):
    paths = (path_a, path_b)
    tables = [_read(path) for path in paths]
    chosen, text = _numeric_columns(paths, tables, names)
    unmatched = [[] if names else [name for name in x if name not in y] for x, y in (tables, tables[::-1])]
    (a, missing_a), (b, missing_b) = (_complete_rows(*pair, chosen) for pair in zip(paths, tables, strict=True))
    results = _compare_columns(chosen, a, b, "AB")
    joint = _compare_jointly(chosen, a, b, "AB") if len(chosen) > 1 else None
    if as_json:
        jointly = None
        if joint is not None:
            degree, *found = joint
            jointly = {"columns": chosen, "degree": degree, **_as_json(*found)}
        report = {
            "a": {"path": path_a, "rows": len(a), "rows_left_out": missing_a, "unmatched_columns": unmatched[0]},
            "b": {"path": path_b, "rows": len(b), "rows_left_out": missing_b, "unmatched_columns": unmatched[1]},
            "columns_left_out": text,
            "unit": "nat",
            "columns": [{"column": name, **_as_json(*found)} for name, *found in results],
            "jointly": jointly,
        }
        print(json.dumps(report, indent=2, allow_nan=False))
        return
    print(f"A: {path_a}, {len(a)} rows ({missing_a} left out for missing values)")
    print(f"B: {path_b}, {len(b)} rows ({missing_b} left out for missing values)")
    for label, listed in zip("AB", unmatched, strict=True):
        if listed:
            print(f"only in {label}: {_printable(', '.join(listed))}")
    if text:
        print(f"left out because they hold no numbers: {_printable(', '.join(text))}")
    _print_divergences("Divergences in nats, most different first", "column", "AB", results, joint)


def _demo():
    _console()  # a missing extra is told before any work
    _backend.show_config()
    _demo_real_data()
    _demo_figures()
    _demo_speed()


def _demo_real_data():
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    malignant = data.target == list(data.target_names).index("malignant")
    results = _compare_columns(data.feature_names, data.data[malignant], data.data[~malignant], "MB")
    title = "Breast-cancer measurements: how far malignant (M) is from benign (B), in nats"
    _print_divergences(title, "measurement", "MB", results)


def _deviation(values):
    """Return the standard deviation of values, with its standard error."""
    std = np.std(values)
    fourth = np.mean((values - np.mean(values)) ** 4)
    return Estimate(std, error=math.sqrt((fourth - std**4) / len(values)) / (2 * std), method="monte-carlo")


def _losses(model, x_p, x_q):
    """Return the network's last losses, on the rows of its training and on those held out, with standard errors."""
    log_odds = model.decision_function(x_p), model.decision_function(x_q)
    spread = np.std(np.concatenate([np.logaddexp(0, -log_odds[0]), np.logaddexp(0, log_odds[1])]))
    n = len(x_p) + len(x_q)
    n_held = int(model.validation_fraction * n)
    for curve, rows in ((model.loss_curve_, n - n_held), (model.validation_loss_curve_, n_held)):
        yield Estimate(curve[-1], error=spread / math.sqrt(rows), method="classifier")


FIGURES_CAPTION = """S1: p = N(1, 1²), q = N(0, 2²), and a network 1-10-20-1 fitted to 500 samples of each.
S2: p = N((1, 4), I), q = N((−3, 2), 2.5² I).
S3: p = ½ N(4, .75²) + ½ N(6, .75²), q = N(5, 1²), 1000 points.
S4: p = .4 N(−1, .75²) + .6 N(4, .5²), q = N(0, 1); of densities what is published is the closed form.
Fits: of N(μ, σ²) to p and to the posterior of a coin, by its log-odds, after 0, 1, 1, 0, 0; published in float64.
S5: a Bayesian mixture of two Gaussians and 100 rows: the larger one's weight and mean; sd is the posterior's."""


def _figures():
    """Yield (system, quantity, published figure, ours) for what the five systems publish and this version gives."""
    from .networks import MLPRatioClassifier

    p, q = Normal(1, 1), Normal(0, 2)
    rng = np.random.default_rng(SEED)
    yield "S1", "KL(p‖q)", "0.44314718055994529", kl_divergence(p, q)
    yield "S1", "  5000 draws", "0.437779", kl_divergence(p, q, method="monte-carlo", n=5000, rng=rng)
    draws = p.sample((5000, 1), rng=rng)
    yield "S1", "  their deviation", "0.596", _deviation(log_ratio(draws[:, 0], p, q))
    x_p, x_q = p.sample((500, 1), rng=rng), q.sample((500, 1), rng=rng)
    model = MLPRatioClassifier(random_state=SEED).fit_samples(x_p, x_q)
    yield "S1", "  fitted ratio", "0.437814", model.kl_divergence(draws)
    yield "S1", "  its deviation", "0.580", _deviation(model.log_ratio(draws))
    training, validation = _losses(model, x_p, x_q)
    yield "S1", "training loss", "0.575", training
    yield "S1", "validation loss", "0.607", validation
    js = js_divergence(p, q, method="monte-carlo", n=10_000, rng=rng)
    yield "S1", "JS, 10 000 draws", "0.12771526", js
    yield "S1", "log 2 − JS", "0.565432", Estimate(math.log(2) - js, error=js.error, method=js.method)
    p, q = MultivariateNormal([1, 4], [1, 1]), MultivariateNormal([-3, 2], [6.25, 6.25])
    yield "S2", "KL(p‖q)", "2.5925815", kl_divergence(p, q)
    yield "S2", "  10 000 draws", "2.5925815", kl_divergence(p, q, method="monte-carlo", n=10_000, rng=rng)
    p, q = Mixture([0.5, 0.5], [4, 6], [0.75, 0.75]), Normal(5, 1)
    yield "S3", "KL(p‖q)", "—", kl_divergence(p, q, method="trapezoid")
    yield "S3", "KL(q‖p)", "—", kl_divergence(q, p, method="trapezoid")
    p, q = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), Normal(0, 1)
    yield "S4", "KL(p‖q) on (−5, 7)", "4.5455", kl_divergence(p, q, bounds=(-5, 7), num=10_000)
    yield "S4", "  10⁶ draws", "4.5453", kl_divergence(p, q, method="monte-carlo", n=10**6, rng=rng)
    yield from _constrained_figures()
    yield from _fitted_figures(p)
    yield from _posterior_figures()


def _constrained_figures():
    """Yield the figures of a derivative, of a constrained density x (1 - x)² / B(2, 3), and of the logit of x."""
    from scipy.stats import beta

    from .families import as_distribution
    from .transforms import unconstrain

    log_density = as_distribution(lambda x: x**2 + np.log(x), support=(0, math.inf))
    p = unconstrain(beta(2, 3))
    yield "S4", "(x² + log x)′ at 2", "4.5", log_density.score(2.0)
    yield "S4", "Beta(2, 3) at ½", "1.5", p.base.pdf(0.5)
    yield "S4", "  its derivative", "-3", p.base.pdf_derivative(0.5)
    yield "S4", "  of the logit at 0", "0.375", p.pdf(0.0)


def _fitted_figures(p):
    """Yield the figures of Gaussians fitted to p and to a coin's posterior, and of the coin's evidence."""
    from scipy.special import log_expit
    from scipy.stats import beta

    from .evidence import log_evidence
    from .transforms import unconstrain
    from .variational import fit_kl

    def coin(x):
        """Likelihood of two heads and three tails, by the log-odds of heads, times a uniform prior."""
        return 3 * log_expit(x) + 4 * log_expit(-x)

    box, coins_box = ((-4, 8), (0.1, 3)), ((-3, 3), (0.1, 1))
    for name, target, direction, ranges, published in (
        ("mode seeking", p, "mode-seeking", box, ("3.99992", "0.50034")),
        ("mass covering", p, "mass-covering", box, ("2.00011", "2.52480")),
        ("coin", unconstrain(beta(3, 4)), "mode-seeking", coins_box, ("-0.32972", "0.81749")),
        ("  by its ELBO", coin, "mode-seeking", coins_box, ("-0.32972", "0.81749")),
    ):
        q = fit_kl(target, direction=direction, method="brute", ranges=ranges).distribution
        for what, value, figure in zip((f"{name}, μ", "  σ"), (q.loc, q.scale), published, strict=True):
            yield "S4", what, figure, f"{value:.5f}"
        if direction == "mass-covering":
            whole = fit_kl(target, direction=direction).distribution
            yield "S4", "  σ, whole line", "2.5248762", whole.scale
    yield "S4", "log evidence, (−4, 4)", "-4.094458", log_evidence(coin, bounds=(-4, 4), num=500)
    yield "S4", "  whole line", "-4.094345", log_evidence(coin)


def _posterior_figures():
    """Yield those of the Bayesian mixture: its published rows, a Gaussian fitted to its posterior, draws from it."""
    from .mcmc import metropolis
    from .mixture_model import MixtureModel
    from .svi import advi

    rng = np.random.RandomState(123)
    labels = np.argmax([rng.multinomial(1, (0.2, 0.8)) for _ in range(100)], axis=1)
    rows = [[rng.multivariate_normal(mean, np.eye(2)) for _ in range(100)] for mean in ([-1, -1.5], [1, 1])]
    model = MixtureModel(np.where(labels[:, None] == 0, *rows), 2, concentration=0.1)
    fit = advi(model, 5000, rng=SEED)
    chains = metropolis(model, rng=SEED).relabel().samples
    for draws, method, published in (
        (fit.draws(10_000, rng=SEED), "ADVI", ("0.866", "0.821")),
        ({name: np.concatenate(values) for name, values in chains.items()}, "Metropolis", ("0.858", "0.816")),
    ):
        larger = np.argmax(draws["weights"].mean(axis=0))
        parts = {f"weight, {method}": draws["weights"][:, larger], "  mean": draws["means"][:, larger, 0]}
        for (name, values), figure in zip(parts.items(), published, strict=True):
            yield "S5", name, figure, f"{values.mean():.3f}, sd {values.std():.3f}"
    losses = fit.losses[-1000:]
    yield "S5", "ADVI's loss", "321.6", Estimate(losses.mean(), error=losses.std() / math.sqrt(1000), method="advi")


def _demo_figures():
    rows = [
        (f"{system}  {quantity}", published, _shown(value))
        for system, quantity, published, value in _track(_figures(), "figures")
    ]
    _table("Published figures and ours, in nats", ["figure", "published", "fastdiv"], rows, FIGURES_CAPTION)


def _seconds(function):
    """Return the time of the first call, and the least of later ones, over rounds of a twentieth of a second."""
    timer, start = timeit.Timer(function), time.perf_counter()
    function()
    first, once = time.perf_counter() - start, timer.timeit(1)
    calls = math.ceil(0.05 / once)
    rounds = timer.repeat(3, calls) if calls > 1 else [once, timer.timeit(1)]
    return first, min(rounds) / calls


def _speed_calls():
    """Return calls of every kernel family, by name."""
    from ._logsumexp import logsumexp
    from .logistic import LogisticRatioClassifier
    from .mixture_model import MixtureModel
    from .networks import MLPRatioClassifier
    from .quadrature import trapezoid_kl
    from .svi import advi

    n, columns, k = 100_000, 10, 8
    rng = np.random.default_rng(SEED)
    weights, x, X = np.full(k, 1 / k), rng.normal(size=n), rng.normal(size=(n, columns))
    p, q = (Mixture(weights, rng.normal(size=k), rng.uniform(0.5, 2, k)) for _ in range(2))
    means, variances = rng.normal(size=(k, columns)), rng.uniform(0.5, 2, (k, columns))
    diagonal = Mixture(weights, means, np.sqrt(variances))
    full = Mixture(weights, means, covs=variances[:, None] * np.eye(columns) + 0.5)
    y = X[:, 0] + rng.normal(size=n) > 0
    posterior = MixtureModel(X[:100, :2], 2)
    return {
        "mixture log-density": lambda: p.logpdf(x),
        "diagonal covariance": lambda: diagonal.logpdf(X),
        "full covariance": lambda: full.logpdf(X),
        "logsumexp": lambda: logsumexp(X, axis=1),
        "trapezoid KL": lambda: trapezoid_kl(p, q, n),
        "Monte-Carlo KL": lambda: kl_divergence(p, q, method="monte-carlo", n=n, rng=SEED),
        "logistic ratio, n/10": lambda: LogisticRatioClassifier(random_state=SEED).fit(X[: n // 10], y[: n // 10]),
        "ADVI, 100 rows": lambda: advi(posterior, 900, rng=SEED),
        "network, 5 passes": lambda: MLPRatioClassifier(max_iter=5, random_state=SEED).fit(X, y),
    }


def _demo_speed():
    rows = []
    for name, call in _track(_speed_calls().items(), "timing"):
        times = {}
        for backend in ("numpy", "cython", "numba"):
            with _backend.use_backend(backend):
                first, times[backend] = _seconds(call)
        ratios = [f"{times['numpy'] / times[backend]:.1f}×" for backend in ("cython", "numba")]
        rows.append((name, *(f"{1e3 * seconds:.2f}" for seconds in times.values()), f"{1e3 * first:.0f}", *ratios))
    _table(
        "Speed: milliseconds a call, and how many times as fast as numpy",
        ["call", "numpy", "cython", "numba", "numba 1st", "cython", "numba"],
        rows,
        f"float64, n = 100,000 points, 8 components, 10 columns, {_backend.get_num_threads()} threads. "
        "Numba's first call compiles.",
    )
