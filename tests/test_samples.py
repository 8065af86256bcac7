"""Divergences from samples by classifiers of any kind."""

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
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
    TelescopingRatioClassifier,
    kl_divergence,
    kl_divergence_from_samples,
    log_ratio,
)
from fastdiv.samples import _in_sample, divergences_from_samples

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
    with pytest.raises(ValueError, match=r"estimator must be one of 'logistic', .*, or a classifier, got 'forest'"):
        kl_divergence_from_samples(*samples(50, 50), "forest")
    with pytest.raises(ValueError, match="telescoping must be None for an estimator that is no classifier, got 4"):
        kl_divergence_from_samples(*samples(50, 50), "knn", telescoping=4)


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


def test_log_ratios_that_are_too_large_are_told():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(0.5, 1, size=(100, 5)), rng.normal(size=(100, 5))
    with pytest.warns(AccuracyWarning, match="times as large: the classifier is overconfident"):
        slope = kl_divergence_from_samples(x_p, x_q, rng=0).diagnostics["calibration_slope"]
    assert slope < 0.8


def test_the_calibration_slope_is_near_1_where_the_model_is_right():
    slope = kl_divergence_from_samples(*samples(5000, 5000), rng=0).diagnostics["calibration_slope"]
    assert slope == pytest.approx(1, abs=0.1)


def test_a_feature_with_one_value_is_told():
    x_p, x_q = (np.column_stack([x, x**2, np.ones(len(x))]) for x in samples(200, 200))
    with pytest.warns(AccuracyWarning, match="feature 2 has the same value in all rows, which tells nothing"):
        with_constant = kl_divergence_from_samples(x_p, x_q, LogisticRatioClassifier(), rng=0)
    without = kl_divergence_from_samples(x_p[:, :2], x_q[:, :2], LogisticRatioClassifier(), rng=0)
    assert with_constant == pytest.approx(without, rel=1e-6)
    x_p[:, 1] = 3
    x_p, x_q = x_p[:, :2], x_q[:, :2]
    with pytest.warns(AccuracyWarning, match="feature 1 has one value in all of x_p and several in the other sample"):
        kl_divergence_from_samples(x_p, x_q, LogisticRatioClassifier(), rng=0)


def test_few_rows_beside_many_are_told_and_widen_the_interval():
    covered, told = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        with pytest.warns(AccuracyWarning) as caught:
            found = divergences_from_samples(rng.normal(size=(100, 5)), rng.normal(size=(2000, 5)), rng=seed)
        told += any("x_p has too few rows beside x_q's" in str(warning.message) for warning in caught)
        assert found["kl_qp"].diagnostics["bias"] == pytest.approx(20 / 2 * (1 / 100 - 1 / 2000))
        low, high = found["kl_qp"].confidence_interval()
        covered += low < 0 < high
    # Without the bias in the standard error they cover in some tenth of the cases.
    assert covered >= 50
    assert told >= 50


def test_telescoping_finds_what_one_ratio_cannot():
    p, q, scores = Normal(8, 1), Normal(0, 1), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x_p, x_q = p.sample(3000, rng=rng), q.sample(3000, rng=rng)
        estimate = kl_divergence_from_samples(x_p, x_q, LogisticRatioClassifier(), telescoping=8, rng=seed)
        assert abs(estimate.diagnostics["mean_ratio"] - 1) < 0.1
        assert estimate == pytest.approx(32, rel=0.07)
        scores.append((estimate - 32) / estimate.standard_error)
    assert 0.4 < np.std(scores) < 1.3
    with pytest.warns(AccuracyWarning, match="separated|beyond log n"):
        assert not abs(kl_divergence_from_samples(x_p, x_q, LogisticRatioClassifier(), rng=0) - 32) < 3.2


@pytest.mark.parametrize(("n_p", "n_q"), [(1000, 1000), (400, 3000), (3000, 400)])
def test_errors_of_a_telescoped_ratio_hold(n_p, n_q):
    scores = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        model = TelescopingRatioClassifier(LogisticRatioClassifier(), 4, random_state=seed)
        model.fit_samples(rng.normal(4, 1, n_p), rng.normal(0, 1, n_q))
        estimate = model.kl_divergence(rng.normal(4, 1, 1000))
        scores.append((estimate - 8) / estimate.standard_error)
    assert 0.75 < np.std(scores) < 1.25
    assert abs(np.mean(scores)) < 0.5


def test_one_bridge_is_the_ratio_itself():
    x_p, x_q = samples(800, 800)
    plain = LogisticRatioClassifier(2).fit_samples(x_p, x_q)
    telescoped = TelescopingRatioClassifier(LogisticRatioClassifier(2), 1, random_state=0).fit_samples(x_p, x_q)
    np.testing.assert_allclose(telescoped.log_ratio(x_p), plain.log_ratio(x_p), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(telescoped.kl_divergence(x_p), plain.kl_divergence(x_p), rtol=1e-6)


def test_bridges_with_any_ratio_classifier():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(4, 1, (2000, 2)), rng.normal(0, 1, (2000, 2))
    for estimator in (RatioFromClassifier(LogisticRegression()), MLPRatioClassifier((8,), max_iter=20)):
        model = TelescopingRatioClassifier(estimator, 6, random_state=0).fit_samples(x_p, x_q)
        assert len(model.bridges_) == 6
        assert model.score(np.r_[x_p, x_q], np.repeat([1, 0], 2000)) > 0.99
        assert model.log_ratio(x_p).mean() > 4


def test_weights_of_a_telescoped_ratio():
    # Rows of weight 0 are as if they were not there, and weights move p where they say.
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(0, 1, 20_000), rng.normal(-3, 1, 20_000)
    model = TelescopingRatioClassifier(LogisticRatioClassifier(), 4, random_state=0)
    model.fit_samples(x_p, x_q, sample_weight_p=np.exp(x_p - 0.5))
    # exp(x - 1/2) makes N(1, 1) of N(0, 1): the log-ratio to N(-3, 1) is 4 x + 4.
    np.testing.assert_allclose(model.log_ratio([-1.0, 0.0]), [0, 4], atol=0.5)


@parametrize_with_checks([TelescopingRatioClassifier(LogisticRatioClassifier(), 2)])
@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning", "ignore::sklearn.exceptions.SkipTestWarning")
def test_the_telescope_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def test_wrong_bridges_are_refused():
    with pytest.raises(ValueError, match="telescoping must be a whole number, at least 1, got 0"):
        kl_divergence_from_samples(*samples(100, 100), telescoping=0)
    with pytest.raises(ValueError, match="n_bridges must be a whole number, at least 1, got 0"):
        TelescopingRatioClassifier(LogisticRatioClassifier(), 0).fit_samples(*samples(100, 100))
    with pytest.raises(TypeError, match="estimator must be a ratio classifier of one ratio, got LogisticRegression"):
        TelescopingRatioClassifier(LogisticRegression()).fit_samples(*samples(100, 100))


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1, 1: 20}], ids=["balanced", "by hand"])
def test_class_weights_leave_the_standard_error(class_weight):
    def mean_error(**options):
        estimator = LogisticRatioClassifier(2, **options)
        found = [kl_divergence_from_samples(*samples(400, 2000, seed), estimator, rng=0) for seed in range(10)]
        return np.mean([estimate.standard_error for estimate in found])

    # As the spread over 60 samples does: 0.036, and with class weights 0.036 and 0.038.
    assert mean_error(class_weight=class_weight) == pytest.approx(mean_error(), rel=0.15)


@pytest.mark.parametrize("telescoping", [None, 3])
def test_errors_in_parts_are_those_at_once(monkeypatch, telescoping):
    found = []
    for size in (1 << 20, 0):
        monkeypatch.setattr("fastdiv.ratio.BLOCK_TERMS", size)
        monkeypatch.setattr("fastdiv.ratio.AT_ONCE", size)
        estimates = divergences_from_samples(*samples(900, 700), telescoping=telescoping, rng=0)
        found.append([(value, value.standard_error) for value in estimates.values()])
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_errors_of_many_terms_take_little_memory():
    # 230 terms of 20000 rows are 37 MB.
    x_p, x_q = np.random.default_rng(0).normal(size=(2, 10_000, 20))
    model = LogisticRatioClassifier(2).fit_samples(x_p, x_q)
    tracemalloc.start()
    try:
        _in_sample(model, x_p, x_q)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_a_seed_is_for_what_has_none():
    x_p, x_q = samples(60, 60)
    found = [
        kl_divergence_from_samples(x_p, x_q, estimator, rng=rng)
        for estimator, rng in (
            (RandomForestClassifier(5), 0),
            (RandomForestClassifier(5), 0),
            (RandomForestClassifier(5, random_state=3), 0),
        )
    ]
    assert found[0] == found[1] != found[2]


def test_columns_are_matched_by_name_or_refused():
    pandas = pytest.importorskip("pandas")
    x_p, x_q = (
        pandas.DataFrame(np.random.default_rng(seed).normal(size=(60, 2)), columns=["a", "b"]) for seed in (0, 1)
    )
    for estimator in ("logistic", "ulsif", "knn"):
        with pytest.raises(ValueError, match="x_p and x_q must have the same columns, got "):
            kl_divergence_from_samples(x_p, x_q[["b", "a"]], estimator)


def told(call):
    """Return the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_words_are_those_of_the_samples_that_were_given():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(100, 2)), np.repeat(rng.normal(size=(100, 1)), 2, axis=1)
    messages = told(lambda: divergences_from_samples(x_p, x_q, estimator="knn", rng=0))
    assert "the 2 columns of x_q are linearly dependent: q has no density, and nothing is estimated" in messages
    found = divergences_from_samples(*samples(200, 400), estimator="ulsif", rng=0)
    assert "std_x_p" in found["kl_pq"].diagnostics
    assert "std_x_q" in found["kl_qp"].diagnostics


def test_constants_that_differ_are_told():
    x_p, x_q = (np.column_stack([np.full(60, value), np.arange(60)]) for value in (1, 0))
    message = "feature 0 has one value in x_p and another in x_q: the density ratio is unbounded"
    assert told(lambda: kl_divergence_from_samples(x_p, x_q))[0] == message


@pytest.mark.parametrize("unit", [1e-140, 1e200])
def test_units_do_not_matter_to_neighbors(unit):
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(2, 200, 2))
    found = [kl_divergence_from_samples(scale * x_p, scale * x_q, "knn", rng=0) for scale in (1, unit)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_spreads_beyond_the_largest_number():
    x_p, x_q = np.random.default_rng(0).uniform(-1, 1, size=(2, 200))
    x_q **= 3
    found = [kl_divergence_from_samples(scale * x_p, scale * x_q, "knn", rng=0) for scale in (1, 1.7e308)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0].standard_error == pytest.approx(found[1].standard_error, rel=1e-9)
    for estimator in ("logistic", "mlp", "ulsif", "kliep"):
        with pytest.raises(ValueError, match="must have a spread that float64 can hold"):
            kl_divergence_from_samples(1.7e308 * x_p, 1.7e308 * x_q, estimator)


@pytest.mark.parametrize("make", [np.asarray, np.ndarray.tolist])
def test_points_beyond_the_largest_sum(make):
    x_p, x_q = samples(200, 200)
    far = np.repeat([[1e308], [-1e308]], 100, axis=0)
    model = LogisticRatioClassifier().fit_samples(x_p, x_q)
    np.testing.assert_allclose(model.log_ratio(make(far)) / model.log_ratio(far / 1e290), 1e290, rtol=1e-12)
    assert model.kl_divergence(make(far)).standard_error == math.inf
    with pytest.raises(ValueError, match="X must have a spread that float64 can hold"):
        LogisticRatioClassifier().fit(make(far), make(np.arange(200) % 2))
    with pytest.raises(ValueError, match="X must have a spread that float64 can hold"):
        LogisticRatioClassifier(solver="sgd").partial_fit(make(far), np.arange(200) % 2, [0, 1])
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers: Input X contains NaN"):
        model.js_divergence(x_p, np.append(far, [[np.nan]], axis=0))


def test_a_spread_whose_square_vanishes_is_refused():
    with pytest.raises(ValueError, match="X must have a spread whose square float64 can hold, got one of "):
        kl_divergence_from_samples(1e-200 * np.arange(60.0), 1e-200 * np.arange(60.0, 120.0))
