import math
import pickle

import pytest

from fastdiv import AccuracyWarning, Estimate
from fastdiv.estimate import warn_of_accuracy


def test_it_is_a_float():
    estimate = Estimate(0.5, error=0.1, method="monte-carlo", standard_error=0.1, n_evaluations=10)
    assert isinstance(estimate, float)
    assert estimate + 1 == 1.5
    assert type(estimate + 1) is float
    assert f"{estimate:.3f}" == "0.500"
    assert {estimate: 1}[0.5] == 1


def test_intervals():
    sampled = Estimate(1.0, error=0.1, method="monte-carlo", standard_error=0.1)
    low, high = sampled.confidence_interval()
    assert (low, high) == pytest.approx((1 - 0.1959963984540054, 1 + 0.1959963984540054), rel=1e-14)
    assert sampled.confidence_interval(0.6826894921370859) == pytest.approx((0.9, 1.1), rel=1e-12)
    assert Estimate(1.0, error=1e-3, method="quadrature").confidence_interval(0.5) == (0.999, 1.001)
    unknown = Estimate(math.inf, error=math.inf, method="kliep", standard_error=math.inf)
    assert unknown.confidence_interval() == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (
            Estimate(0.43778, error=0.0084, method="monte-carlo", n_evaluations=5000),
            "0.4378 ± 0.0084 (monte-carlo, n=5000)",
        ),
        (Estimate(12345.6, error=78.0, method="monte-carlo"), "12346 ± 78 (monte-carlo)"),
        (Estimate(0.5, error=0.0, method="closed-form"), "0.5 ± 0 (closed-form)"),
        (Estimate(math.inf, error=math.nan, method="monte-carlo"), "inf ± nan (monte-carlo)"),
        (Estimate(1e300, error=1e284, method="quadrature"), "1e+300 ± 1e+284 (quadrature)"),
        (Estimate(1e-300, error=1e-310, method="quadrature"), "1e-300 ± 1e-310 (quadrature)"),
    ],
)
def test_representation(estimate, text):
    assert repr(estimate) == text


def test_it_survives_pickling():
    estimate = Estimate(0.5, error=0.1, method="m", standard_error=0.1, n_evaluations=3, diagnostics={"a": 1})
    copy = pickle.loads(pickle.dumps(estimate))
    assert (copy, vars(copy)) == (estimate, vars(estimate))


def test_the_warning_is_a_runtime_warning():
    assert issubclass(AccuracyWarning, RuntimeWarning)


def test_code_without_a_module_is_warned_too():
    with pytest.warns(AccuracyWarning, match="far off"):
        exec("warn('far off')", {"warn": warn_of_accuracy})
