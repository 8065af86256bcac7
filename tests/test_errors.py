"""A wrong argument is refused by name, with what it got and what it wants; odd data have stated results."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError

import fastdiv
from fastdiv import (
    AccuracyWarning,
    Estimate,
    LogisticRatioClassifier,
    Mixture,
    MultivariateNormal,
    Normal,
    entropy,
    js_divergence,
    kl_divergence,
    kl_normal,
    log_ratio,
    log_ratio_normal,
    logsumexp,
    optimal_classifier,
    running_mean,
    trapezoid_kl,
    trapezoid_kl_normal,
)

NAN, INF = np.nan, np.inf
WRONG = (TypeError, ValueError)
P, Q = Normal(1, 1), Normal(0, 2)
MIXTURE = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
PLANE = MultivariateNormal([0, 0], [[2, 1], [1, 2]])
PLANE_MIXTURE = Mixture([0.4, 0.6], [[0, 0], [1, 1]], [[1, 2], [2, 1]])
SPACE = MultivariateNormal([0, 0, 0], [1, 1, 1])

RNG = np.random.default_rng(0)
X_P, X_Q = RNG.normal(0.5, 1, (50, 2)), RNG.normal(0, 1, (50, 2))
X, Y = np.vstack([X_P, X_Q]), np.repeat([1, 0], 50)
NO_ROWS = np.empty((0, 2))
PREDICTIONS = ["decision_function", "predict_proba", "predict", "log_ratio", "ratio"]


@pytest.fixture(scope="module")
def fitted():
    return LogisticRatioClassifier(random_state=0).fit(X, Y)


def refused(argument, got, wants):
    """Pattern of a message that names the argument, then what it wants and got in either order."""
    got = re.escape(got)
    return rf"(?<!\w){argument}(?!\w).*({wants}.*{got}|{got}.*{wants})"


# Parameters of distributions


@pytest.mark.parametrize(
    ("weights", "wants", "got"),
    [
        ([-0.1, 1.1], "negative", "-0.1"),
        ([0.5, 0.6], "sum to 1", "1.1"),
        ([0.5, 0.5 + 1e-7], "sum to 1", "1.0000000"),
        ([0.0, 0.0], "sum to 1", "0.0"),
        ([NAN, 0.5], "finite", "nan"),
        ([INF, 0.5], "finite", "inf"),
    ],
)
def test_weights_are_not_negative_and_sum_to_1(weights, wants, got):
    with pytest.raises(ValueError, match=refused("weights", got, wants)):
        Mixture(weights, [0, 1], [1, 1])


@pytest.mark.parametrize("excess", [1e-9, -1e-9])
def test_weights_within_the_tolerance_are_renormalised(excess):
    weights = Mixture([0.25, 0.75 + excess], [0, 1], [1, 1]).weights
    np.testing.assert_allclose(weights, np.array([0.25, 0.75 + excess]) / (1 + excess), rtol=2**-52)
    assert abs(weights.sum() - 1) <= 2**-53


@pytest.mark.parametrize("std", [0.0, -2.0])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("scale", lambda std: Normal(0, std)),
        ("stds", lambda std: Mixture([0.5, 0.5], [0, 1], [1, std])),
        ("stds", lambda std: Mixture([0.5, 0.5], [[0, 1], [0, 1]], [[1, 1], [1, std]])),
        ("cov", lambda std: MultivariateNormal([0, 0], [1, std])),
        ("scale", lambda std: trapezoid_kl_normal(0, [1, std], Q)),
        ("sigma_p", lambda std: kl_normal(0, std, 0, 1)),
        ("sigma_q", lambda std: kl_normal(0, 1, 0, [1, std])),
        ("sigma_p", lambda std: log_ratio_normal(0, 0, std, 0, 1)),
        ("sigma_q", lambda std: log_ratio_normal(0, 0, 1, 0, [1, std])),
    ],
)
def test_standard_deviations_and_variances_are_positive(argument, call, std):
    with pytest.raises(ValueError, match=refused(argument, str(std), "positive")):
        call(std)


@pytest.mark.parametrize(
    ("matrix", "wants"),
    [([[1.0, 2.0], [2.0, 1.0]], "positive definite"), ([[1.0, 0.5], [0.4, 1.0]], "symmetric")],
)
def test_covariances_are_symmetric_and_positive_definite(matrix, wants):
    with pytest.raises(ValueError, match=refused("covs", str(matrix), wants)):
        Mixture([0.5, 0.5], [[0, 0], [1, 1]], covs=[np.eye(2), matrix])
    with pytest.raises(ValueError, match=refused("cov", f"got {matrix}", wants)):
        MultivariateNormal([0, 0], matrix)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("loc", lambda value: Normal(value, 1)),
        ("scale", lambda value: Normal(0, value)),
        ("loc", lambda value: trapezoid_kl_normal([0, value], 1, Q)),
        ("mean", lambda value: MultivariateNormal([0, value], [1, 1])),
        ("cov", lambda value: MultivariateNormal([0, 0], [1, value])),
        ("cov", lambda value: MultivariateNormal([0, 0], [[1, value], [value, 1]])),
        ("means", lambda value: Mixture([0.5, 0.5], [0, value], [1, 1])),
        ("stds", lambda value: Mixture([0.5, 0.5], [0, 1], [1, value])),
        ("covs", lambda value: Mixture([1.0], [[0, 0]], covs=[[[1, value], [value, 1]]])),
    ],
)
def test_parameters_are_finite(argument, call, value):
    with pytest.raises(ValueError, match=refused(argument, str(value), "finite")):
        call(value)


@pytest.mark.parametrize("argument", ["mu_p", "sigma_p", "mu_q", "sigma_q"])
def test_nan_parameters_of_elementwise_functions_are_refused(argument):
    parameters = {"mu_p": 0, "sigma_p": 1, "mu_q": 0, "sigma_q": 1, argument: [1, NAN]}
    with pytest.raises(ValueError, match=refused(argument, "nan", "finite")):
        kl_normal(**parameters)
    with pytest.raises(ValueError, match=refused(argument, "nan", "finite")):
        log_ratio_normal(0.0, **parameters)


@pytest.mark.parametrize(
    ("argument", "got", "wants", "call"),
    [
        ("loc", "(2,)", "0 dimensions", lambda: Normal([0, 1], 1)),
        ("scale", "(2,)", "0 dimensions", lambda: Normal(0, [1, 1])),
        ("mean", "()", "1 dimension", lambda: MultivariateNormal(0, 1)),
        ("mean", "(1, 2)", "1 dimension", lambda: MultivariateNormal([[0, 0]], [1, 1])),
        ("mean", "(0,)", "at least one|empty", lambda: MultivariateNormal([], [])),
        ("cov", "(3,)", r"\(2,\)", lambda: MultivariateNormal([0, 0], [1, 1, 1])),
        ("cov", "(3, 3)", r"\(2, 2\)", lambda: MultivariateNormal([0, 0], np.eye(3))),
        ("weights", "(1, 2)", "1 dimension", lambda: Mixture([[0.5, 0.5]], [0, 1], [1, 1])),
        ("means", "3", "2", lambda: Mixture([0.5, 0.5], [0, 1, 2], [1, 1, 1])),
        ("stds", "(3,)", r"\(2,\)", lambda: Mixture([0.5, 0.5], [0, 1], [1, 1, 1])),
        ("stds", "()", "1 dimension", lambda: Mixture([0.5, 0.5], [0, 1], 1)),
        ("covs", "(2, 2)", "3 dimensions", lambda: Mixture([0.5, 0.5], [[0, 0], [1, 1]], covs=np.eye(2))),
        ("means", "(2,)", "2 dimensions", lambda: Mixture([0.5, 0.5], [0, 1], covs=[1, 1])),
        ("x", "(3,)", r"\(\.\.\., 2\)", lambda: PLANE.logpdf([0, 0, 0])),
        ("x", "()", r"\(\.\.\., 2\)", lambda: PLANE_MIXTURE.pdf(0.0)),
        ("x", "(3,)", r"\(\.\.\., 2\)", lambda: log_ratio([0, 0, 0], PLANE, PLANE_MIXTURE)),
        ("x", "(3,)", r"\(\.\.\., 2\)", lambda: optimal_classifier([0, 0, 0], PLANE, PLANE_MIXTURE)),
        ("b", "(3,)", r"\(2,\)", lambda: logsumexp([0.0, 1.0], b=[1, 2, 3])),
        ("axis", "1", "out of bounds", lambda: logsumexp([0.0, 1.0], axis=1)),
        ("axis", "1.5", "integer|whole number", lambda: logsumexp([0.0, 1.0], axis=1.5)),
        ("sigma_p", "(3,)", r"\(2,\)", lambda: kl_normal([0, 1], [1, 1, 1], 0, 1)),
        ("mu_p", "(3,)", r"\(2,\)", lambda: log_ratio_normal([0, 1], [1, 1, 1], 1, 0, 1)),
        ("values", "(1, 2)", "one dimension", lambda: running_mean([[1, 2]])),
        ("x", "(3,)", r"\(\.\.\., 2\)", lambda: PLANE.score([0, 0, 0])),
        ("loc", "(3,)", r"\(2,\)", lambda: trapezoid_kl_normal([0, 1, 2], [1, 1], Q)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(argument, got, wants, call):
    with pytest.raises(WRONG, match=refused(argument, got, wants)):
        call()


def test_weights_are_not_empty():
    with pytest.raises(ValueError, match="weights must not be empty"):
        Mixture([], [], [])


@pytest.mark.parametrize(("scales", "got"), [({}, "neither"), ({"stds": [1, 1], "covs": [1, 1]}, "both")])
def test_a_mixture_has_either_stds_or_covs(scales, got):
    with pytest.raises(TypeError, match=f"either stds or covs, got {got}"):
        Mixture([0.5, 0.5], [0, 1], **scales)


# Wrong types


@pytest.mark.parametrize("value", ["a", "1", None, 1j, object()], ids=repr)
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("loc", lambda value: Normal(value, 1)),
        ("scale", lambda value: Normal(0, value)),
        ("mean", lambda value: MultivariateNormal([0, value], [1, 1])),
        ("cov", lambda value: MultivariateNormal([0, 0], [1, value])),
        ("weights", lambda value: Mixture([1, value], [0, 1], [1, 1])),
        ("means", lambda value: Mixture([0.5, 0.5], [0, value], [1, 1])),
        ("stds", lambda value: Mixture([0.5, 0.5], [0, 1], [1, value])),
        ("covs", lambda value: Mixture([1], [[0, 0]], covs=[[[1, value], [0, 1]]])),
        ("x", MIXTURE.logpdf),
        ("x", MIXTURE.score),
        ("x", MIXTURE.pdf),
        ("x", MIXTURE.cdf),
        ("x", lambda value: PLANE.logpdf([0, value])),
        ("x", lambda value: log_ratio(value, P, Q)),
        ("x", lambda value: optimal_classifier([0, value], P, Q)),
        ("a", logsumexp),
        ("b", lambda value: logsumexp([0, 1], b=[1, value])),
        ("mu_p", lambda value: kl_normal(value, 1, 0, 1)),
        ("sigma_q", lambda value: kl_normal(0, 1, 0, value)),
        ("x", lambda value: log_ratio_normal(value, 0, 1, 0, 1)),
        ("sigma_p", lambda value: log_ratio_normal(0, 0, value, 0, 1)),
        ("values", lambda value: running_mean([1, value])),
        ("loc", lambda value: trapezoid_kl_normal(value, 1, Q)),
        ("scale", lambda value: trapezoid_kl_normal(0, value, Q)),
    ],
)
def test_numbers_are_real(argument, call, value):
    with pytest.raises(TypeError, match=refused(argument, "got an array of dtype", "real numbers")):
        call(value)


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError, match=r"\bx\b.*inhomogeneous"):
        MIXTURE.logpdf([[0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"\bweights\b.*inhomogeneous"):
        Mixture([[0.5], [0.5, 1]], [0, 1], [1, 1])


@pytest.mark.parametrize("value", [3, None, "Q", [0, 1]], ids=repr)
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("p", lambda value: kl_divergence(value, Q)),
        ("q", lambda value: kl_divergence(P, value)),
        ("p", lambda value: js_divergence(value, Q)),
        ("q", lambda value: js_divergence(P, value)),
        ("p", entropy),
        ("q", lambda value: trapezoid_kl(P, value)),
        ("q", lambda value: trapezoid_kl_normal(0, 1, value)),
        ("q", lambda value: log_ratio(0.0, P, value)),
        ("p", lambda value: optimal_classifier(0.0, value, Q)),
    ],
)
def test_distributions_are_distributions(argument, call, value):
    with pytest.raises(
        TypeError, match=refused(argument, type(value).__name__, "Normal, MultivariateNormal or Mixture")
    ):
        call(value)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, q: kl_divergence(p, q),
        lambda p, q: js_divergence(p, q),
        lambda p, q: trapezoid_kl(p, q),
        lambda p, q: log_ratio([0.0, 0.0], p, q),
        lambda p, q: optimal_classifier([0.0, 0.0], p, q),
    ],
    ids=["kl_divergence", "js_divergence", "trapezoid_kl", "log_ratio", "optimal_classifier"],
)
@pytest.mark.parametrize(("p", "q", "got"), [(P, PLANE, r"\(\).*\(2,\)"), (PLANE, SPACE, r"\(2,\).*\(3,\)")])
def test_p_and_q_have_the_same_dimensions(call, p, q, got):
    with pytest.raises(ValueError, match=f"p and q must have the same dimensions, got .*{got}"):
        call(p, q)


# Methods and their settings


@pytest.mark.parametrize("method", ["magic", None, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda method: kl_divergence(P, Q, method=method),
        lambda method: js_divergence(P, Q, method=method),
        lambda method: entropy(P, method=method),
    ],
    ids=["kl", "js", "entropy"],
)
def test_unknown_methods_are_refused(call, method):
    methods = "'auto', 'closed-form', 'quadrature', 'trapezoid', 'monte-carlo'"
    with pytest.raises(ValueError, match=refused("method", repr(method), methods)):
        call(method)


@pytest.mark.parametrize(
    ("method", "reason", "call"),
    [
        ("closed-form", "Gaussians", lambda method: kl_divergence(MIXTURE, Q, method=method)),
        ("closed-form", "Gaussians", lambda method: kl_divergence(PLANE, PLANE_MIXTURE, method=method)),
        ("closed-form", "no closed form", lambda method: entropy(MIXTURE, method=method)),
        ("closed-form", "no closed form", lambda method: js_divergence(P, Q, method=method)),
        ("quadrature", "2 dimensions", lambda method: kl_divergence(PLANE, PLANE_MIXTURE, method=method)),
        ("quadrature", "2 dimensions", lambda method: js_divergence(PLANE, PLANE_MIXTURE, method=method)),
        ("quadrature", "2 dimensions", lambda method: entropy(PLANE_MIXTURE, method=method)),
        ("trapezoid", "2 dimensions", lambda method: kl_divergence(PLANE, PLANE_MIXTURE, method=method)),
        ("trapezoid", "2 dimensions", lambda method: js_divergence(PLANE, PLANE_MIXTURE, method=method)),
    ],
)
def test_methods_that_do_not_apply_are_refused(method, reason, call):
    with pytest.raises(ValueError, match=f"method '{method}'.*{reason}"):
        call(method)


def test_the_line_alone_has_a_grid_and_a_cdf():
    with pytest.raises(ValueError, match=r"trapezoid.*on the line.*2 dimensions"):
        trapezoid_kl(PLANE, PLANE)
    with pytest.raises(ValueError, match=r"trapezoid.*on the line.*2 dimensions"):
        trapezoid_kl_normal(0, 1, PLANE)
    with pytest.raises(ValueError, match=r"cdf.*on the line.*2 dimensions"):
        PLANE.cdf([0.0, 0.0])


DRAWS = [
    lambda n: kl_divergence(MIXTURE, Q, method="monte-carlo", n=n, rng=0),
    lambda n: js_divergence(MIXTURE, Q, method="monte-carlo", n=n, rng=0),
    lambda n: entropy(MIXTURE, method="monte-carlo", n=n, rng=0),
]
POINTS = [
    lambda num: trapezoid_kl(MIXTURE, Q, num=num),
    lambda num: trapezoid_kl_normal(0, 1, MIXTURE, num),
    lambda num: kl_divergence(MIXTURE, Q, method="trapezoid", num=num),
    lambda num: js_divergence(MIXTURE, Q, num=num),
]


@pytest.mark.parametrize(
    ("argument", "least", "call"),
    [*(("n", 4, call) for call in DRAWS), *(("num", 2, call) for call in POINTS)],
)
def test_counts_are_whole_numbers_and_large_enough(argument, least, call):
    for count in (least - 1, 0, -5):
        with pytest.raises(ValueError, match=refused(argument, str(count), f"at least {least}")):
            call(count)
    for count in (2.5, "9", NAN, 9j):
        with pytest.raises(TypeError, match=refused(argument, repr(count), "whole number")):
            call(count)


BOUNDED = [
    lambda bounds: trapezoid_kl(P, Q, bounds=bounds),
    lambda bounds: kl_divergence(MIXTURE, Q, method="quadrature", bounds=bounds),
    lambda bounds: kl_divergence(MIXTURE, Q, method="trapezoid", bounds=bounds),
    lambda bounds: js_divergence(MIXTURE, Q, bounds=bounds),
    lambda bounds: entropy(MIXTURE, bounds=bounds),
]


@pytest.mark.parametrize("call", BOUNDED)
def test_bounds_are_two_finite_increasing_numbers(call):
    for bounds in [(1, 0), (0, 0), (0, NAN), (-INF, INF)]:
        with pytest.raises(ValueError, match=refused("bounds", repr(bounds), "finite and increasing")):
            call(bounds)
    for bounds in [(0,), (0, 1, 2), 3, "ab", (0, 1j), (None, 1)]:
        with pytest.raises(WRONG, match=refused("bounds", repr(bounds), "two numbers")):
            call(bounds)


@pytest.mark.parametrize("reach", [0, -1.0, 1e100, NAN, INF, "4", None], ids=repr)
def test_a_reach_is_a_positive_number(reach):
    with pytest.raises(WRONG, match=refused("reach", repr(reach), "positive number")):
        trapezoid_kl_normal(0, 1, Q, reach=reach)


@pytest.mark.parametrize("rtol", [0, -1, 1.5, NAN, INF, "x", 1j], ids=repr)
@pytest.mark.parametrize("method", ["quadrature", "monte-carlo"])
def test_rtol_is_between_0_and_1(method, rtol):
    for call in (lambda **k: kl_divergence(MIXTURE, Q, **k), lambda **k: entropy(MIXTURE, **k)):
        with pytest.raises(WRONG, match=refused("rtol", repr(rtol), "between 0 and 1")):
            call(method=method, rtol=rtol)


@pytest.mark.parametrize(
    "wrong", [{"n": -1}, {"num": 0}, {"bounds": (1, 0)}, {"rtol": -1}, {"backend": "fortran"}], ids=str
)
@pytest.mark.parametrize(
    "call", [lambda **k: kl_divergence(P, Q, **k), lambda **k: entropy(P, **k)], ids=["kl", "entropy"]
)
def test_settings_that_a_closed_form_does_not_need_are_checked_all_the_same(call, wrong):
    (argument,) = wrong
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*got"):
        call(method="closed-form", **wrong)


@pytest.mark.parametrize("rng", ["x", 1.5, -1], ids=repr)
@pytest.mark.parametrize(
    "call",
    [lambda rng: P.sample(2, rng=rng), lambda rng: kl_divergence(P, Q, method="monte-carlo", rng=rng)],
    ids=["sample", "kl_divergence"],
)
def test_rng_is_a_generator_or_a_seed(call, rng):
    with pytest.raises(WRONG, match=rf"\brng\b.*got.*{rng}"):
        call(rng)


@pytest.mark.parametrize("shape", [-1, (2, -1), 1.5, "a", None], ids=repr)
@pytest.mark.parametrize("p", [P, MIXTURE, PLANE], ids=["normal", "mixture", "multivariate"])
def test_sample_shapes_are_whole_numbers_not_negative(p, shape):
    with pytest.raises(WRONG, match=refused("shape", repr(shape), "whole number|integer|negative")):
        p.sample(shape)


@pytest.mark.parametrize("level", [0, 1, -0.5, NAN, "a"], ids=repr)
def test_a_confidence_level_is_between_0_and_1(level):
    estimate = Estimate(1.0, error=0.1, method="monte-carlo", standard_error=0.1, n_evaluations=9)
    with pytest.raises(WRONG, match=refused("level", repr(level), "between 0 and 1")):
        estimate.confidence_interval(level)


# Backend control


@pytest.mark.parametrize("name", ["fortran", "", "Cython", 3], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        fastdiv.set_backend,
        lambda name: fastdiv.use_backend(name).__enter__(),
        lambda name: MIXTURE.logpdf(0.0, backend=name),
        lambda name: PLANE.pdf([0.0, 0.0], backend=name),
        lambda name: logsumexp([0.0], backend=name),
        lambda name: log_ratio(0.0, P, Q, backend=name),
        lambda name: optimal_classifier(0.0, P, Q, backend=name),
        lambda name: trapezoid_kl(P, Q, backend=name),
        lambda name: kl_divergence(MIXTURE, Q, backend=name),
        lambda name: js_divergence(MIXTURE, Q, backend=name),
        lambda name: entropy(MIXTURE, backend=name),
        lambda name: LogisticRatioClassifier(backend=name).fit(X, Y),
    ],
    ids=[
        "set_backend",
        "use_backend",
        "logpdf",
        "pdf",
        "logsumexp",
        "log_ratio",
        "optimal_classifier",
        "trapezoid_kl",
        "kl_divergence",
        "js_divergence",
        "entropy",
        "classifier",
    ],
)
def test_unknown_backends_are_refused(call, name):
    with pytest.raises(WRONG, match=refused("backend", repr(name), "'cython', 'numba', 'numpy'")):
        call(name)
    assert fastdiv.get_backend() in {"cython", "numba", "numpy"}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n", [0, -1, 1.5, NAN, "2", None], ids=repr)
def test_the_number_of_threads_is_a_whole_number_of_at_least_1(n):
    with pytest.raises(WRONG, match=refused("n", repr(n), "whole number, at least 1")):
        fastdiv.set_num_threads(n)


@pytest.mark.parametrize(
    ("variable", "value", "wants"),
    [
        ("FASTDIV_CPU", "pentium", "'baseline', 'avx2', 'avx512'"),
        ("FASTDIV_BACKEND", "fortran", "'cython', 'numba', 'numpy'"),
        ("FASTDIV_NUM_THREADS", "many", "whole number, at least 1"),
        ("FASTDIV_NUM_THREADS", "1.5", "whole number, at least 1"),
        ("FASTDIV_NUM_THREADS", "0", "whole number, at least 1"),
        ("FASTDIV_NUM_THREADS", "-2", "whole number, at least 1"),
    ],
)
def test_nonsense_in_the_environment_is_refused(variable, value, wants):
    code = "import fastdiv; fastdiv.Normal().logpdf(0.0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.match("ValueError: " + refused(variable, repr(value), wants), done.stderr.splitlines()[-1])


# Classifiers


@pytest.mark.parametrize(
    ("parameters", "wants"),
    [
        ({"degree": 0}, "at least 1"),
        ({"degree": 1.5}, "whole number"),
        ({"degree": "2"}, "whole number"),
        ({"solver": "magic"}, "'newton', 'lbfgs', 'sgd'"),
        ({"alpha": -1}, "at least 0"),
        ({"alpha": NAN}, "at least 0"),
        ({"alpha": INF}, "finite|at least 0"),
        ({"alpha": "x"}, "number|at least 0"),
        ({"learning_rate": 0}, "positive"),
        ({"learning_rate": -1}, "positive"),
        ({"learning_rate": NAN}, "positive"),
        ({"learning_rate": INF}, "finite|positive"),
        ({"learning_rate": None}, "number|positive"),
        ({"momentum": 1}, "at least 0 and under 1"),
        ({"momentum": -0.1}, "at least 0 and under 1"),
        ({"momentum": NAN}, "at least 0 and under 1"),
        ({"momentum": "x"}, "number|at least 0 and under 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 2.5}, "whole number"),
        ({"max_iter": 0}, "at least 1"),
        ({"max_iter": 2.5}, "whole number"),
        ({"tol": -1}, "at least 0"),
        ({"tol": NAN}, "at least 0"),
        ({"tol": "x"}, "number|at least 0"),
    ],
    ids=str,
)
def test_bad_hyperparameters_are_refused(parameters, wants):
    ((name, value),) = parameters.items()
    with pytest.raises(WRONG, match=refused(name, repr(value), f"({wants})")):
        LogisticRatioClassifier(**parameters).fit(X, Y)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, np.ones(100), "y must hold two classes, got one class"),
        (X, np.arange(100) % 3, "Only binary classification is supported.*multiclass"),
        (X, np.linspace(0, 1, 100), "label type: continuous"),
        (X, Y[:-1], r"inconsistent numbers of samples.*\[100, 99\]"),
        (NO_ROWS, [], r"0 sample.*\(0, 2\).*minimum of 1"),
        (np.where(X > 1, NAN, X), Y, "X contains NaN"),
        (np.where(X > 1, INF, X), Y, "X contains infinity"),
    ],
)
def test_labelled_samples_that_cannot_be_fitted_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        LogisticRatioClassifier().fit(x, y)


@pytest.mark.parametrize("name", ["x_p", "x_q"])
@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (NO_ROWS, "empty|0 sample"),
        (np.full((3, 2), NAN), "NaN"),
        ([["a", "b"]], "number|float|real"),
        (None, "number|array|real"),
        (X_P * 1j, "[Cc]omplex|real"),
        (np.zeros((2, 2, 2)), "2 dimensions|2D|dim"),
    ],
    ids=["empty", "nan", "text", "none", "complex", "3-d"],
)
def test_samples_that_cannot_be_fitted_are_refused(name, sample, message):
    with pytest.raises(WRONG, match=rf"(?s)\b{name}\b.*({message})"):
        LogisticRatioClassifier().fit_samples(**({"x_p": X_P, "x_q": X_Q} | {name: sample}))


def test_samples_have_the_same_columns(fitted):
    with pytest.raises(ValueError, match="x_p and x_q must have as many columns, got 2 and 1"):
        LogisticRatioClassifier().fit_samples(X_P, X_Q[:, :1])
    for name in (*PREDICTIONS, "kl_divergence"):
        with pytest.raises(ValueError, match=r"has 1 features.*expecting 2 features"):
            getattr(fitted, name)(X_Q[:, :1])
    with pytest.raises(ValueError, match=r"has 1 features.*expecting 2 features"):
        fitted.js_divergence(X_P, X_Q[:, :1])


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("x_p", lambda model: model.kl_divergence(NO_ROWS)),
        ("x_p", lambda model: model.js_divergence(NO_ROWS, X_Q)),
        ("x_q", lambda model: model.js_divergence(X_P, NO_ROWS)),
    ],
)
def test_divergences_of_empty_samples_are_refused(fitted, argument, call):
    with pytest.raises(ValueError, match=rf"\b{argument}\b.*(empty|0 sample)"):
        call(fitted)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"sample_weight.*\(2,\).*\(100,\)"),
        (-np.ones(100), "[Nn]egative.*sample_weight|sample_weight.*negative"),
        (np.full(100, NAN), "sample_weight contains NaN"),
        (1.0 * Y, "sample_weight and class_weight must leave weight in each class, got 0.0 and 50.0"),
    ],
)
def test_bad_sample_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        LogisticRatioClassifier().fit(X, Y, sample_weight=weights)


def test_a_classifier_is_fitted_before_it_is_used():
    for name in (*PREDICTIONS, "kl_divergence"):
        with pytest.raises(NotFittedError, match="not fitted"):
            getattr(LogisticRatioClassifier(), name)(X_P)


def test_a_learning_rate_that_diverges_is_named():
    with pytest.raises(ValueError, match=r"diverge.*learning_rate=1e\+30 is too large"):
        LogisticRatioClassifier(solver="sgd", learning_rate=1e30, random_state=0).fit(X, Y)


# Numbers that are not to be trusted


def test_accuracy_warning_is_a_runtime_warning():
    assert issubclass(AccuracyWarning, RuntimeWarning)


def test_a_classifier_that_separates_the_samples_says_so():
    x_p, x_q = [[1.0], [2.0], [3.0]], [[-1.0], [-2.0], [-3.0]]
    model = LogisticRatioClassifier(random_state=0)
    with pytest.warns(AccuracyWarning, match="separates the samples"):
        estimate = model.fit_samples(x_p, x_q).kl_divergence(x_p)
    assert "separat" in str(estimate.diagnostics)


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "sgd"])
def test_a_classifier_that_has_not_converged_says_so(solver):
    model = LogisticRatioClassifier(solver=solver, max_iter=2, tol=1e-9, random_state=0)
    with pytest.warns(AccuracyWarning, match="max_iter=2"):
        estimate = model.fit_samples(X_P, X_Q).kl_divergence(X_P)
    assert "converge" in str(estimate.diagnostics)


def test_heavy_tailed_draws_say_so():
    p = Mixture([1 - 1e-6, 1e-6], [0, 0], [1, 1e5])
    with pytest.warns(AccuracyWarning, match="draws carry the variance"):
        estimate = kl_divergence(p, Q, method="monte-carlo", n=1000, rng=0)
    assert estimate.diagnostics["dominance"] > 0.1


def test_a_monte_carlo_divergence_may_be_negative():
    q = Normal(1.001, 1)
    estimates = [kl_divergence(P, q, method="monte-carlo", n=10, rng=seed) for seed in range(20)]
    assert min(estimates) < 0 < max(estimates)


@pytest.mark.parametrize("method", ["closed-form", "quadrature", "trapezoid", "monte-carlo"])
def test_the_divergence_is_infinite_where_q_has_no_density(method):
    p, q = Normal(0, 1), Normal(1e200, 1e-200)
    bounds = (-5, 5) if method in {"quadrature", "trapezoid"} else None
    assert kl_divergence(p, q, method=method, bounds=bounds, n=1000, rng=0) == INF


# Odd data


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("p", [P, MIXTURE], ids=["normal", "mixture"])
def test_nan_and_infinite_points_on_the_line(p, dtype, backend):
    x = np.array([NAN, INF, -INF], dtype)
    assert_array_equal(p.logpdf(x, backend=backend), [NAN, -INF, -INF])
    assert_array_equal(p.pdf(x, backend=backend), [NAN, 0, 0])
    assert_array_equal(p.cdf(x), [NAN, 1, 0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "p", [PLANE, MultivariateNormal([0, 1], [1, 2]), PLANE_MIXTURE], ids=["full", "diagonal", "mixture"]
)
def test_nan_and_infinite_points_in_the_plane(p, dtype, backend):
    infinite = np.array([[INF, 0], [0, -INF], [INF, INF], [INF, -INF], [-INF, INF]], dtype)
    assert_array_equal(p.logpdf(infinite, backend=backend), np.full(5, -INF))
    assert_array_equal(p.pdf(infinite, backend=backend), np.zeros(5))
    nan = np.array([[NAN, 0], [0, NAN], [INF, NAN], [NAN, NAN]], dtype)
    assert_array_equal(p.logpdf(nan, backend=backend), np.full(4, NAN))


def test_nan_points_have_nan_ratios(backend):
    assert_array_equal(log_ratio([0.0, NAN], P, P, backend=backend), [0, NAN])
    assert_array_equal(optimal_classifier([0.0, NAN], P, P, backend=backend), [0.5, NAN])
    assert_array_equal(log_ratio_normal([0.0, NAN], 1, 1, 1, 1), [0, NAN])


def test_nan_and_infinite_exponents(backend):
    a = [[NAN, 0], [-INF, -INF], [INF, 0]]
    assert_array_equal(logsumexp(a, axis=1, backend=backend), [NAN, -INF, INF])


@pytest.mark.parametrize("p", [P, MIXTURE, PLANE, PLANE_MIXTURE, SPACE])
def test_empty_points_have_an_empty_result(p, backend):
    points = np.empty((0, *p.event_shape))
    assert p.logpdf(points, backend=backend).shape == (0,)
    assert p.pdf(points, backend=backend).shape == (0,)
    assert p.score(points, backend=backend).shape == points.shape
    assert log_ratio(points, p, p, backend=backend).shape == (0,)
    assert optimal_classifier(points, p, p, backend=backend).shape == (0,)


def test_empty_arguments_of_elementwise_functions_have_an_empty_result():
    assert P.cdf([]).shape == (0,)
    assert kl_normal([], 1, 0, 1).shape == (0,)
    assert log_ratio_normal([], 0, 1, 0, 1).shape == (0,)
    assert [part.shape for part in running_mean([])] == [(0,), (0,)]


def test_an_empty_sum_is_0(backend):
    assert logsumexp([], backend=backend) == -INF
    assert_array_equal(logsumexp(np.empty((2, 0)), axis=1, backend=backend), [-INF, -INF])
    assert logsumexp(np.empty((0, 3)), axis=1, backend=backend).shape == (0,)
