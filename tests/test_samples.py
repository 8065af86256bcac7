"""Divergences from samples by classifiers of any kind."""

import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastdiv import (
    AccuracyWarning,
    LogisticRatioClassifier,
    MLPRatioClassifier,
    MultivariateNormal,
    Normal,
    RatioFromClassifier,
    kl_divergence,
    kl_divergence_from_samples,
    log_ratio,
)

P, Q = Normal(1, 1), Normal(0, 2)
KL = kl_divergence(P, Q)


def samples(n_p, n_q, seed=0):
    rng = np.random.default_rng(seed)
    return P.sample((n_p, 1), rng=rng), Q.sample((n_q, 1), rng=rng)


def expected_failures(estimator):
    reason = "folds of the cross-validation do not see a row of weight 2 as they see two rows"
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}


@parametrize_with_checks([RatioFromClassifier(LogisticRegression())], expected_failed_checks=expected_failures)
@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning", "ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_adapter_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "classifier",
    [
        QuadraticDiscriminantAnalysis(),
        GaussianNB(),
        make_pipeline(PolynomialFeatures(2), LogisticRegression()),
        make_pipeline(PolynomialFeatures(2), LinearSVC()),
        HistGradientBoostingClassifier(max_leaf_nodes=4, max_iter=40, random_state=0),
    ],
    ids=lambda classifier: type(classifier).__name__,
)
def test_any_classifier_gives_a_ratio(classifier):
    x_p, x_q = samples(10_000, 5000)
    model = RatioFromClassifier(classifier).fit_samples(x_p, x_q)
    x = np.linspace(-1, 3, 50)
    assert np.mean((model.log_ratio(x[:, None]) - log_ratio(x, P, Q)) ** 2) ** 0.5 < 0.15
    assert model.log_prior_ratio_ == pytest.approx(math.log(1 / 2))
    assert abs(model.kl_divergence(P.sample((10_000, 1), rng=1)) - KL) < 0.05


def test_the_adapter_calibrates():
    # Naive Bayes counts twins twice: its log-odds are twice too large.
    (x_p, x_q), point = samples(20_000, 20_000), np.array([[0.5]])
    single, twins = (
        RatioFromClassifier(GaussianNB()).fit_samples(np.repeat(x_p, k, axis=1), np.repeat(x_q, k, axis=1))
        for k in (1, 2)
    )
    np.testing.assert_allclose(twins.log_ratio(np.repeat(point, 2, axis=1)), single.log_ratio(point), atol=0.02)
    assert twins.calibration_.n_features_in_ == 1


def test_probabilities_of_0_and_1_stay_finite():
    model = RatioFromClassifier(DecisionTreeClassifier(random_state=0)).fit_samples(*samples(500, 500))
    assert np.all(np.isfinite(model.log_ratio(np.linspace(-5, 5, 100)[:, None])))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(TypeError, match="estimator must be a classifier with decision_function"):
        RatioFromClassifier(LinearRegression()).fit_samples(*samples(50, 50))
    with pytest.raises(TypeError, match="estimator must be a name or a classifier, got LinearRegression"):
        kl_divergence_from_samples(*samples(50, 50), LinearRegression())
    with pytest.raises(
        ValueError, match="estimator must be one of 'logistic', 'mlp', 'knn', or a classifier, got 'for"
    ):
        kl_divergence_from_samples(*samples(50, 50), "forest")


@pytest.mark.parametrize(
    "estimator",
    ["logistic", "mlp", LogisticRatioClassifier(2, solver="lbfgs"), QuadraticDiscriminantAnalysis()],
    ids=["logistic", "mlp", "lbfgs", "quadratic discriminant"],
)
def test_estimators_by_name_and_as_objects(estimator):
    x_p, x_q = samples(3000, 3000)
    estimate = kl_divergence_from_samples(x_p, x_q, estimator, rng=0)
    assert abs(estimate - KL) < 4 * estimate.standard_error < 0.2
    assert estimate == kl_divergence_from_samples(x_p, x_q, estimator, rng=0)
    assert abs(estimate.diagnostics["mean_ratio"] - 1) < 0.2
    assert not estimate.diagnostics["separated"]


def test_an_estimator_is_left_as_it_was():
    model = MLPRatioClassifier(max_iter=5)
    before = clone(model).get_params()
    kl_divergence_from_samples(*samples(200, 200), model, rng=0)
    assert model.get_params() == before
    assert not hasattr(model, "coefs_")


@pytest.mark.parametrize("d", [1, 2, 5])
def test_intervals_cover(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) / 2
    p, q = MultivariateNormal(np.full(d, 0.5), np.eye(d)), MultivariateNormal(np.zeros(d), np.eye(d) + root @ root.T)
    truth, covered = kl_divergence(p, q), 0
    for _ in range(150):
        low, high = kl_divergence_from_samples(p.sample(2000, rng=rng), q.sample(2000, rng=rng)).confidence_interval()
        covered += low < truth < high
    # 95 % of 150 is 142.5, its standard deviation 2.7.
    assert covered >= 134


def test_a_ratio_that_does_not_integrate_to_1_is_told():
    # A straight line for the log-ratio of N(0, 1) to N(0, 1/9) is far off, and on both sides.
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(2, 1, size=2000), rng.normal(0, 1 / 3, size=2000)
    with pytest.warns(AccuracyWarning, match="the ratio's mean under q"):
        kl_divergence_from_samples(x_p, x_q, LogisticRatioClassifier(degree=1), rng=0)
