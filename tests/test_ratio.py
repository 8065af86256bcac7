"""The ratio classifier as a scikit-learn estimator and as an estimate of the log-ratio."""

import pickle

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon
from scipy.special import expit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastdiv import (
    AccuracyWarning,
    LogisticRatioClassifier,
    Normal,
    RatioFromClassifier,
    _backend,
    js_divergence,
    kl_divergence,
    log_ratio_normal,
    use_backend,
)
from fastdiv._descent import RowOrder, held_out
from fastdiv._logistic import LogisticLoss, PolynomialTerms
from fastdiv.functionals import certified_bounds, effective_sample_size, kl_lower_bounds, pareto_k
from fastdiv.ratio import coefficient_moves
from fastdiv.samples import divergences_from_samples

P, Q = Normal(1, 1), Normal(0, 2)

quietly = pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning")


def samples(n_p, n_q, seed=0):
    rng = np.random.default_rng(seed)
    return P.sample((n_p, 1), rng=rng), Q.sample((n_q, 1), rng=rng)


@parametrize_with_checks(
    [
        *(LogisticRatioClassifier(solver=solver) for solver in ("newton", "lbfgs", "sgd")),
        LogisticRatioClassifier(class_weight="balanced", warm_start=True),
        LogisticRatioClassifier(solver="sgd", schedule="invscaling", average=True),
    ]
)
@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning", "ignore::sklearn.exceptions.SkipTestWarning")
def test_it_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def penalised_optimum(model, X, y, weight=None):
    """scikit-learn's coefficients of the same terms, the intercept last."""
    total = len(X) if weight is None else weight.sum()
    exact = LogisticRegression(C=1 / (model.alpha * total), solver="newton-cholesky", tol=1e-12, max_iter=1000)
    exact.fit(model.terms_.transform(X), y, weight)
    return np.append(exact.coef_, exact.intercept_)


def fitted_coef(model):
    return np.append(model.coef_, model.intercept_)


@pytest.mark.parametrize(("solver", "accuracy"), [("newton", 1e-8), ("lbfgs", 1e-8), ("sgd", 0.02)])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_reaches_the_optimum_of_the_penalised_loss(solver, accuracy, weighted):
    x_p, x_q = samples(3000, 2000)
    X, y = np.r_[x_p, x_q], np.repeat([1, 0], [3000, 2000])
    weight = np.random.default_rng(1).exponential(size=5000) if weighted else None
    tol = 1e-5 if solver == "sgd" else 1e-12
    model = LogisticRatioClassifier(degree=2, solver=solver, alpha=1e-3, tol=tol, random_state=0).fit(X, y, weight)
    np.testing.assert_allclose(fitted_coef(model), penalised_optimum(model, X, y, weight), rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_start_from_few_rows_ends_at_the_optimum_of_all(degree):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40_000, 3)) * [1e-3, 1, 1e5] + [1, 0, 1e6]
    y = X[:, 1] + rng.logistic(size=len(X)) > 0.5
    for order in (slice(None), np.argsort(y, kind="stable")):
        model = LogisticRatioClassifier(degree=degree, alpha=1e-4, tol=1e-12).fit(X[order], y[order])
        np.testing.assert_allclose(fitted_coef(model), penalised_optimum(model, X[order], y[order]), atol=1e-8)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_terms_are_scikit_learns(degree):
    X = np.random.default_rng(0).normal(3, 2, size=(20_000, 4))
    X[:, 2] = 5
    pipeline = make_pipeline(StandardScaler(), PolynomialFeatures(degree, include_bias=False), StandardScaler())
    terms = LogisticRatioClassifier(degree=degree).fit(X, X[:, 0] > X[:, 1]).terms_
    np.testing.assert_allclose(terms.transform(X), pipeline.fit_transform(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_threads_do_not_change_a_bit(threads, solver, dtype):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(100_000, 5)).astype(dtype)
    y, weight = X[:, 0] + rng.normal(size=len(X)) > 0, rng.uniform(0.5, 2, len(X))
    models = []
    for n in (1, 2):
        threads(n)
        models.append(LogisticRatioClassifier(degree=2, solver=solver).fit(X, y, weight))
    np.testing.assert_array_equal(fitted_coef(models[0]), fitted_coef(models[1]))
    np.testing.assert_array_equal(models[0].coef_covariance_, models[1].coef_covariance_)


def test_the_covariance_is_that_of_the_samples_moves():
    x_p, x_q = samples(3000, 2000)
    X, in_p = np.r_[x_p, x_q], np.arange(5000) < 3000
    weight = np.random.default_rng(1).exponential(size=5000)
    weight /= weight.mean()
    model = LogisticRatioClassifier(degree=2, tol=1e-12).fit(X, in_p, weight)
    moves = coefficient_moves(model.terms_.transform(X), in_p, model.decision_function(X), weight, model.alpha)
    np.testing.assert_allclose(model.coef_covariance_, moves.T @ moves, rtol=1e-6)


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("alpha", [0, 1e-12, 1e-3])
def test_separated_samples_end_with_a_finite_ratio(solver, alpha):
    x = np.random.default_rng(0).normal(size=(200, 2))
    with pytest.warns(AccuracyWarning, match="separates the samples"):
        model = LogisticRatioClassifier(solver=solver, alpha=alpha).fit(x, x[:, 0] > 0)
    assert model.separated_
    assert np.all(np.isfinite(fitted_coef(model)))
    assert model.n_iter_ < 200


@pytest.mark.parametrize("n_flipped", [0, 1, 40])
def test_a_start_that_knows_nothing_of_a_few_rows_does_no_harm(n_flipped):
    rng = np.random.default_rng(1)
    X = rng.standard_t(2, size=(40_000, 3))
    y = X[:, 0] > 0
    y[rng.choice(len(y), n_flipped, replace=False)] ^= True
    model = LogisticRatioClassifier(alpha=1e-9, tol=1e-10).fit(X, y)
    exact = LogisticRatioClassifier(alpha=1e-9, tol=1e-9, solver="lbfgs", max_iter=5000).fit(X, y)
    assert model.converged_
    assert model.loss_curve_[-1] == pytest.approx(exact.loss_curve_[-1], rel=1e-5)


def test_a_borrowed_hessian_that_leads_nowhere_is_dropped():
    X = np.random.default_rng(0).normal(size=(500, 2))
    y = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(float)
    weight = np.ones(500)
    loss = LogisticLoss(_backend.kernels(), PolynomialTerms(_backend.kernels(), X, weight, 1), X, y, weight, 1e-6)
    plain, _, _, _ = loss.newton(np.zeros(3), 100, 1e-12)
    misled, _, converged, _ = loss.newton(np.zeros(3), 100, 1e-12, 1e-30 * np.eye(3))
    assert converged
    np.testing.assert_allclose(misled, plain, rtol=1e-10)


def test_a_large_tolerance_leaves_no_step_unguarded():
    x_p, x_q = samples(500, 500)
    loose, tight = (LogisticRatioClassifier(degree=2, tol=tol).fit_samples(x_p, x_q) for tol in (10, 1e-3))
    assert loose.converged_
    np.testing.assert_array_equal(fitted_coef(loose), fitted_coef(tight))


@pytest.mark.parametrize("alpha", [0, 1e-6])
def test_features_that_say_the_same_share_the_coefficient(alpha):
    x_p, x_q = samples(500, 500)
    X, y = np.r_[x_p, x_q], np.repeat([1, 0], 500)
    single = LogisticRatioClassifier(alpha=alpha, tol=1e-12).fit(X, y)
    repeated = LogisticRatioClassifier(alpha=alpha, tol=1e-12).fit(np.c_[X, X, np.ones(1000)], y)
    assert repeated.coef_[0, :2].sum() == pytest.approx(single.coef_[0, 0], rel=1e-5)
    assert repeated.coef_[0, :2] == pytest.approx(single.coef_[0, 0] / 2, rel=1e-2)
    assert repeated.coef_[0, 2] == pytest.approx(0, abs=1e-9)


def test_the_log_ratio_of_two_gaussians_is_within_its_error():
    # log p/q is -x^2/2 + x - 1/2 + x^2/8 + log 2: its coefficients in x, from three points.
    points = np.array([[-1.0], [0.0], [1.0]])
    to_coefficients = np.linalg.inv(np.vander(points[:, 0], 3, increasing=True))
    within = 0
    for seed in range(200):
        model = LogisticRatioClassifier(degree=2).fit_samples(*samples(1000, 1000, seed))
        rows = np.column_stack([model.terms_.transform(points), np.ones(3)])
        covariance = to_coefficients @ rows @ model.coef_covariance_ @ rows.T @ to_coefficients.T
        error = to_coefficients @ model.log_ratio(points) - [np.log(2) - 0.5, 1, -0.375]
        within += np.all(np.abs(error) < 3 * np.sqrt(np.diag(covariance)))
    assert within >= 190


def test_quadratic_log_odds_find_the_log_ratio_of_two_gaussians():
    model = LogisticRatioClassifier(degree=2, random_state=0).fit_samples(*samples(50_000, 50_000))
    x = np.linspace(-2, 4, 50)
    np.testing.assert_allclose(model.log_ratio(x[:, None]), log_ratio_normal(x, 1, 1, 0, 2), atol=0.1)
    np.testing.assert_allclose(model.ratio(x[:, None]), np.exp(model.log_ratio(x[:, None])))


def test_the_prior_correction_makes_up_for_unequal_samples():
    x = np.linspace(-2, 4, 50)[:, None]
    even = LogisticRatioClassifier(degree=2, random_state=0).fit_samples(*samples(40_000, 40_000))
    uneven = LogisticRatioClassifier(degree=2, random_state=0).fit_samples(*samples(100_000, 20_000))
    np.testing.assert_allclose(uneven.log_ratio(x), even.log_ratio(x), atol=0.12)
    assert uneven.log_prior_ratio_ == pytest.approx(np.log(1 / 5))
    np.testing.assert_array_equal(uneven.log_ratio(x), uneven.decision_function(x) + uneven.log_prior_ratio_)


def test_weights_enter_the_prior_correction():
    x_p, x_q = samples(20_000, 20_000)
    weighted = LogisticRatioClassifier(degree=2, random_state=0)
    weighted.fit_samples(x_p, x_q, sample_weight_p=np.full(len(x_p), 3.0))
    plain = LogisticRatioClassifier(degree=2, random_state=0).fit_samples(x_p, x_q)
    assert weighted.log_prior_ratio_ == pytest.approx(-np.log(3))
    x = np.linspace(-2, 4, 50)[:, None]
    np.testing.assert_allclose(weighted.log_ratio(x), plain.log_ratio(x), atol=0.1)


def test_a_row_without_weight_is_as_if_it_were_not_there():
    x_p, x_q = samples(300, 300)
    plain = LogisticRatioClassifier(degree=2, random_state=0).fit_samples(x_p, x_q)
    weights = np.append(np.ones(300), 0.0)
    padded = LogisticRatioClassifier(degree=2, random_state=0)
    padded.fit_samples(np.append(x_p, [[1e6]], axis=0), x_q, sample_weight_p=weights)
    np.testing.assert_array_equal(padded.log_ratio(x_p), plain.log_ratio(x_p))


def test_one_dimensional_samples_are_one_feature():
    x_p, x_q = (x[:, 0] for x in samples(300, 300))
    model = LogisticRatioClassifier(random_state=0).fit_samples(x_p, x_q)
    np.testing.assert_array_equal(model.log_ratio(x_p), model.log_ratio(x_p[:, None]))
    assert model.kl_divergence(x_p) > 0
    assert model.js_divergence(x_p, x_q) > 0


def test_probabilities_labels_and_score():
    x_p, x_q = samples(500, 400)
    X, y = np.r_[x_p, x_q], np.repeat(["b-numerator", "a-denominator"], [500, 400])
    model = LogisticRatioClassifier(degree=2, random_state=0).fit(X, y)
    assert model.classes_.tolist() == ["a-denominator", "b-numerator"]
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-15)
    assert model.score(X, y) > 0.6
    assert len(model.loss_curve_) == model.n_iter_
    assert model.loss_curve_[-1] < model.loss_curve_[0] < 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_backends_fit_the_same_coefficients(dtype):
    x_p, x_q = (x.astype(dtype) for x in samples(500, 500))
    coefs = [
        fitted_coef(LogisticRatioClassifier(degree=2, tol=1e-10, backend=backend).fit_samples(x_p, x_q))
        for backend in ("numpy", "cython", "numba")
    ]
    assert coefs[0].dtype == dtype
    for coef in coefs[1:]:
        np.testing.assert_allclose(coef, coefs[0], rtol=1e-12 if dtype == np.float64 else 1e-5)


@quietly
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"max_iter": 10, "tol": 0},
        {"average": True, "schedule": "constant"},
        {"schedule": "invscaling", "average": 400, "class_weight": "balanced"},
        {"early_stopping": True, "batch_size": 7, "alpha": 1e-2},
    ],
    ids=["adaptive", "averaged", "invscaling", "early stopping"],
)
def test_backends_descend_alike(options, dtype):
    x_p, x_q = (x.astype(dtype) for x in samples(500, 400))
    models = [
        LogisticRatioClassifier(2, "sgd", **options, random_state=3, backend=backend).fit_samples(x_p, x_q)
        for backend in ("numpy", "cython", "numba")
    ]
    assert models[0].coef_.dtype == dtype
    for model in models[1:]:
        if dtype == np.float32:
            np.testing.assert_allclose(fitted_coef(model), fitted_coef(models[0]), rtol=1e-3)
            continue
        assert model.n_iter_ == models[0].n_iter_
        np.testing.assert_allclose(fitted_coef(model), fitted_coef(models[0]), rtol=1e-9)
        np.testing.assert_allclose(model.coef_covariance_, models[0].coef_covariance_, rtol=1e-9)


def test_the_context_chooses_the_backend_too():
    x_p, x_q = samples(200, 200)
    expected = LogisticRatioClassifier(random_state=0, backend="numpy").fit_samples(x_p, x_q).coef_
    with use_backend("numpy"):
        np.testing.assert_array_equal(LogisticRatioClassifier(random_state=0).fit_samples(x_p, x_q).coef_, expected)


def test_it_works_inside_scikit_learn():
    x_p, x_q = samples(500, 500)
    X, y = np.r_[x_p, x_q], np.repeat([1, 0], 500)
    pipeline = make_pipeline(StandardScaler(), LogisticRatioClassifier(degree=2, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.6
    assert clone(pipeline).fit(X, y).predict(X).shape == (1000,)


def test_data_frames_keep_their_feature_names():
    pandas = pytest.importorskip("pandas")
    x_p, x_q = (pandas.DataFrame(x, columns=["height"]) for x in samples(300, 300))
    X, y = pandas.concat([x_p, x_q]), np.repeat([1, 0], 300)
    model = LogisticRatioClassifier(random_state=0).fit(X, y)
    assert model.feature_names_in_.tolist() == ["height"]
    assert model.kl_divergence(x_p) > 0
    with pytest.raises(ValueError, match="feature names"):
        model.log_ratio(x_p.rename(columns={"height": "weight"}))
    by_samples = LogisticRatioClassifier(random_state=0).fit_samples(x_p, x_q)
    assert by_samples.feature_names_in_.tolist() == ["height"]
    assert by_samples.kl_divergence(x_p) > 0
    with pytest.raises(ValueError, match="must have the same columns"):
        by_samples.fit_samples(x_p, x_q.rename(columns={"height": "weight"}))


def test_estimates_on_new_samples_hold_the_spread_of_the_fit():
    truth = {"kl": kl_divergence(P, Q), "js": js_divergence(P, Q)}
    scores = {"kl": [], "js": []}
    for seed in range(100):
        model = LogisticRatioClassifier(degree=2, random_state=seed).fit_samples(*samples(500, 500, seed))
        x_p, x_q = samples(500, 500, seed + 1000)
        for name, estimate in (("kl", model.kl_divergence(x_p)), ("js", model.js_divergence(x_p, x_q))):
            scores[name].append((estimate - truth[name]) / estimate.standard_error)
    for name, score in scores.items():
        assert 0.75 < np.std(score) < 1.25, name
        assert np.mean(np.abs(score) < 1.96) >= 0.88, name


def test_weights_enter_the_standard_errors():
    truth, scores = kl_divergence(P, Q), []
    for seed in range(100):
        x_p, x_q = samples(800, 800, seed)
        weights = np.random.default_rng(seed).exponential(size=(2, 800))
        model = LogisticRatioClassifier(degree=2, random_state=seed).fit_samples(x_p, x_q, *weights)
        estimate = model.kl_divergence(P.sample((800, 1), rng=seed + 1000))
        scores.append((estimate - truth) / estimate.standard_error)
    assert 0.75 < np.std(scores) < 1.25


@pytest.mark.parametrize(("p", "q", "n"), [(P, Q, 500), (Normal(1, 1), Normal(0, 1), 1000), (Q, Q, 200)])
def test_intervals_of_cross_fitted_divergences_cover(p, q, n):
    truth = {"kl_pq": kl_divergence(p, q), "kl_qp": kl_divergence(q, p), "js": js_divergence(p, q)}
    covered = dict.fromkeys(truth, 0)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        found = divergences_from_samples(p.sample(n, rng=rng), q.sample(n, rng=rng), rng=seed)
        for name, estimate in found.items():
            low, high = estimate.confidence_interval()
            covered[name] += low < truth[name] < high
    for name, count in covered.items():
        # 95 % of 150 is 142.5, its standard deviation 2.7.
        assert count >= 0.88 * 150, name


def test_a_sample_against_itself_is_within_its_error_of_0():
    x = np.random.default_rng(0).normal(size=300)
    for estimate in divergences_from_samples(x, x, rng=0).values():
        assert abs(estimate) <= 2 * estimate.standard_error


def test_an_outlier_widens_the_error():
    x_p, x_q = np.random.default_rng(0).normal(size=(2, 1000))
    x_p[0] = 1e4
    for estimate in divergences_from_samples(x_p, x_q, rng=0).values():
        assert abs(estimate) <= 3 * estimate.standard_error


def test_more_than_log_n_nats_are_told():
    rng = np.random.default_rng(0)
    with pytest.warns(AccuracyWarning, match="beyond log n"):
        divergences_from_samples(Normal(5, 1).sample(300, rng=rng), Normal(0, 1).sample(300, rng=rng), rng=0)


def test_separated_samples_have_no_finite_error_but_a_lower_bound():
    with (
        pytest.warns(
            AccuracyWarning,
            match="the samples are separated: with 95 % confidence KL.* 2.2 and KL.* 2.2 nats",
        ),
        pytest.warns(AccuracyWarning, match="for large samples"),
    ):
        found = divergences_from_samples(np.linspace(0, 1, 49), np.linspace(5, 6, 49), rng=0)
    assert all(estimate.standard_error == np.inf for estimate in found.values())
    # Clopper and Pearson's end of 49 of 49 is 0.025^(1/49).
    least = 0.025 ** (1 / 49)
    bound = least * np.log(least / (1 - least)) + (1 - least) * np.log((1 - least) / least)
    assert found["kl_pq"].diagnostics["lower_bound"] == pytest.approx(bound, rel=1e-12)


def test_one_sample_has_no_finite_error():
    model = LogisticRatioClassifier(random_state=0).fit_samples(*samples(100, 100))
    assert model.kl_divergence([0.5]).standard_error == np.inf


def test_steps_that_diverge_are_refused():
    with pytest.raises(ValueError, match="the steps diverge"):
        LogisticRatioClassifier(solver="sgd", learning_rate=1e6, random_state=0).fit_samples(*samples(300, 300))


def descent(**options):
    """Passes over the rows as they come, whatever their loss."""
    options = {"shuffle": False, "schedule": "constant", "n_iter_no_change": 100, "tol": 0} | options
    return LogisticRatioClassifier(solver="sgd", **options)


def two_classes(n=300, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(1, 2, size=(n, n_features))
    return X, (X[:, 0] + rng.logistic(size=n) > 1.5).astype(int)


@quietly
@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
@pytest.mark.parametrize("average", [False, True, 400])
@pytest.mark.parametrize("weighted", [False, True])
def test_single_rows_make_the_steps_of_sgd_classifier(schedule, average, weighted):
    X, y = two_classes()
    weight = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else np.ones(len(X))
    options = {"alpha": 1e-3, "power_t": 0.3, "average": average, "max_iter": 3}
    model = descent(batch_size=1, momentum=0.0, schedule=schedule, learning_rate=0.05, **options).fit(X, y, weight)
    exact = SGDClassifier("log_loss", learning_rate=schedule, eta0=0.05, tol=None, shuffle=False, **options)
    exact.fit(model.terms_.transform(X), y, sample_weight=weight / weight.mean())
    np.testing.assert_allclose(fitted_coef(model), np.append(exact.coef_, exact.intercept_), rtol=1e-10)


@quietly
@pytest.mark.parametrize(("average", "first"), [(False, None), (True, 1), (65, 3), (640, 20), (300, 10), (10**6, None)])
def test_steps_and_their_mean_are_those_of_a_plain_loop(average, first):
    X, y = two_classes(310)
    options = {"schedule": "invscaling", "power_t": 0.5, "learning_rate": 0.1, "momentum": 0.8, "alpha": 1e-2}
    model = descent(batch_size=32, max_iter=2, average=average, **options).fit(X, y)
    rows = np.column_stack([(X - X.mean(axis=0)) / X.std(axis=0), np.ones(len(X))])
    coef, velocity, visited, t = np.zeros(4), np.zeros(4), [], 0
    for _ in range(2):
        for start in range(0, 310, 32):
            batch, t = slice(start, start + 32), t + 1
            gradient = rows[batch].T @ (expit(rows[batch] @ coef) - y[batch]) / len(y[batch])
            gradient[:-1] += 1e-2 * coef[:-1]
            velocity = 0.8 * velocity - 0.1 / np.sqrt(t) * gradient
            coef = coef + velocity
            visited.append(coef)
    # Step 10 is the short batch, which brings the rows to 310.
    expected = coef if first is None else np.mean(visited[first - 1 :], axis=0)
    np.testing.assert_allclose(fitted_coef(model), expected, rtol=1e-10)


@quietly
def test_terms_made_in_parts_are_those_made_at_once(monkeypatch):
    X, y = two_classes(500)
    models = []
    for chunk in (1 << 22, 1 << 9):
        monkeypatch.setattr("fastdiv._descent.CHUNK_VALUES", chunk)
        models.append(LogisticRatioClassifier(2, "sgd", max_iter=3, random_state=0).fit(X, y, np.linspace(1, 2, 500)))
    np.testing.assert_allclose(fitted_coef(models[1]), fitted_coef(models[0]), rtol=1e-12)


@pytest.mark.parametrize(("n", "batch_size"), [(1000, 32), (1024, 32), (7, 32), (7, 1)])
def test_each_pass_takes_every_row_once_in_another_order(n, batch_size):
    order = RowOrder(np.arange(n), batch_size, np.random.default_rng(0))
    passes = [np.concatenate(list(order.chunks(3))) for _ in range(20)]
    for rows in passes:
        np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    assert len({tuple(rows) for rows in passes}) > 5
    # Batches of several rows are others each time, and so are the rows of the short one.
    if n > batch_size > 1:
        assert len({tuple(rows[:batch_size]) for rows in passes}) == 20
        assert n % batch_size == 0 or len({tuple(rows[-(n % batch_size) :]) for rows in passes}) > 15


@pytest.mark.parametrize("schedule", ["adaptive", "invscaling", "constant"])
def test_every_schedule_comes_near_the_optimum(schedule):
    X, y = two_classes(5000)
    options = {"schedule": schedule, "average": schedule == "constant", "random_state": 0}
    model = LogisticRatioClassifier(solver="sgd", **options).fit(X, y)
    assert model.converged_
    np.testing.assert_allclose(fitted_coef(model), penalised_optimum(model, X, y), atol=0.05)


def test_steps_that_scatter_more_than_the_samples_are_told():
    X, y = two_classes(5000)
    with pytest.warns(AccuracyWarning, match="farther from the optimum than the standard errors hold"):
        model = LogisticRatioClassifier(solver="sgd", schedule="constant", learning_rate=0.2, random_state=0).fit(X, y)
    distance = fitted_coef(model) - penalised_optimum(model, X, y)
    assert distance @ np.linalg.solve(model.coef_covariance_, distance) > len(distance)


@quietly
def test_a_search_over_schedules():
    X, y = two_classes(600)
    grid = {"schedule": ["adaptive", "constant", "invscaling"], "average": [False, True]}
    search = GridSearchCV(LogisticRatioClassifier(solver="sgd", random_state=0), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.6


@quietly
def test_parts_in_turn_are_one_pass():
    X, y = two_classes(256)
    # Each part has the moments of the whole.
    X, y = np.tile(X, (4, 1)), np.concatenate([y, np.roll(y, 1), y, np.roll(y, 7)])
    weight = np.tile(np.random.default_rng(0).uniform(1, 3, 256), 4)
    model = descent(degree=2, schedule="invscaling", average=300, class_weight={0: 2.0, 1: 1.0}, max_iter=1)
    weight[y == 0] /= 2
    whole = clone(model).fit(X, y, weight)
    for rows in np.split(np.arange(1024), 4):
        model.partial_fit(X[rows], y[rows], [0, 1], weight[rows])
    np.testing.assert_allclose(fitted_coef(model), fitted_coef(whole), rtol=1e-10)
    assert model.log_prior_ratio_ == pytest.approx(whole.log_prior_ratio_, abs=1e-12)
    assert np.mean(model.loss_curve_) == pytest.approx(whole.loss_curve_[0])
    # Rows without weight are no rows.
    padded, nothing = np.concatenate([X[:256], X[:256]]), np.zeros(256)
    of_parts = clone(model).partial_fit(padded, np.tile(y[:256], 2), [0, 1], np.append(weight[:256], nothing))
    np.testing.assert_allclose(
        of_parts.log_ratio(X), clone(model).partial_fit(X[:256], y[:256], [0, 1], weight[:256]).log_ratio(X), rtol=1e-10
    )
    # A fit goes on in parts as one goes on in a copy of it.
    twin = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(
        fitted_coef(twin.partial_fit(X[:256], y[:256])), fitted_coef(whole.partial_fit(X[:256], y[:256]))
    )


@quietly
def test_a_warm_start_far_from_the_optimum_is_no_divergence():
    X, y = two_classes()
    model = descent(warm_start=True).fit(X, y).set_params(max_iter=1, learning_rate=1e-4)
    assert model.fit(X, 1 - y).loss_curve_[0] > 2 * np.log(2)


@quietly
def test_a_warm_start_takes_data_that_the_last_terms_can_hold():
    X, y = two_classes()
    model = LogisticRatioClassifier(2, warm_start=True).fit(X.astype(np.float32), y)
    with pytest.raises(ValueError, match="warm_start needs X near that of the last fit, got values from -"):
        model.fit((1e30 * X).astype(np.float32), y)


def test_what_parts_cannot_know():
    x_p, x_q = samples(2000, 2000)
    model = LogisticRatioClassifier(2, "sgd", average=1000, random_state=0)
    model.partial_fit(x_p[:1000], np.ones(1000), classes=[0, 1])
    assert np.isnan(model.log_ratio([0.0])[0])
    assert np.isfinite(model.decision_function([[0.0]])[0])
    for _ in range(20):
        model.partial_fit(np.r_[x_q, x_p], np.repeat([0, 1], 2000))
    assert model.log_prior_ratio_ == pytest.approx(np.log(40_000 / 41_000))
    x = np.linspace(-1, 3, 50)
    np.testing.assert_allclose(model.log_ratio(x), log_ratio_normal(x, 1, 1, 0, 2), atol=0.3)
    estimate = model.kl_divergence(x_p)
    assert estimate.standard_error == np.inf
    assert estimate.diagnostics["separated"] is None
    assert not model.converged_
    assert model.n_iter_ == len(model.loss_curve_) == 21


def test_parts_that_cannot_be_fitted_are_refused():
    X, y = two_classes()
    model = LogisticRatioClassifier(solver="sgd", random_state=0)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match=r"classes must be two labels, got \[0, 1, 2\]"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert not hasattr(model, "classes_")
    model.partial_fit(X, y, classes=[0, 1])
    before = model.log_ratio(X)
    for arguments, message in (
        ((X, y + 1), r"y must hold labels of \[0, 1\], got \[1, 2\]"),
        ((X, y, [0, 2]), "is not the same as on last call"),
        ((X[:, :2], y), "features"),
        ((X, y, None, np.zeros(len(y))), "(?i)sample.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(*arguments)
    for options, message in (
        ({"early_stopping": True}, "early_stopping must be False"),
        ({"class_weight": "balanced"}, "class_weight must be a dict or None"),
        ({"degree": 2}, "partial_fit needs the degree"),
        ({"learning_rate": 1e300}, "the steps diverge"),
    ):
        usual = {name: model.get_params()[name] for name in options}
        with pytest.raises(ValueError, match=message):
            model.set_params(**options).partial_fit(X, y)
        model.set_params(**usual)
    np.testing.assert_array_equal(model.log_ratio(X), before)
    with pytest.raises(AttributeError, match="partial_fit"):
        LogisticRatioClassifier().partial_fit(X, y, [0, 1])


@pytest.mark.parametrize("solver", ["newton", "sgd"])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weights_move_the_log_odds_and_not_the_log_ratio(solver, class_weight):
    x_p, x_q = samples(60_000, 20_000)
    plain = LogisticRatioClassifier(2, solver, random_state=0).fit_samples(x_p, x_q)
    weighted = LogisticRatioClassifier(2, solver, class_weight=class_weight, random_state=0).fit_samples(x_p, x_q)
    masses = 20_000 * 3.0, 60_000 * 0.5
    assert weighted.log_prior_ratio_ == pytest.approx(
        0 if class_weight == "balanced" else np.log(masses[0] / masses[1])
    )
    x = np.linspace(-1, 3, 50)[:, None]
    rows = np.column_stack([weighted.terms_.transform(x), np.ones(50)])
    error = np.sqrt(np.einsum("ij,jk,ik->i", rows, weighted.coef_covariance_, rows))
    assert np.all(np.abs(weighted.log_ratio(x) - log_ratio_normal(x[:, 0], 1, 1, 0, 2)) < 5 * error + 0.02)
    assert np.max(np.abs(weighted.log_ratio(x) - plain.log_ratio(x))) < 0.1
    assert np.min(np.abs(weighted.decision_function(x) - plain.decision_function(x))) > 0.3


def test_class_weights_are_sample_weights():
    X, y = two_classes()
    by_class = LogisticRatioClassifier(class_weight={0: 2.0, 1: 0.25}).fit(X, y, np.linspace(1, 2, 300))
    by_row = LogisticRatioClassifier().fit(X, y, np.linspace(1, 2, 300) * np.where(y, 0.25, 2.0))
    np.testing.assert_allclose(fitted_coef(by_class), fitted_coef(by_row), rtol=1e-12)
    np.testing.assert_allclose(by_class.coef_covariance_, by_row.coef_covariance_, rtol=1e-10)


@quietly
def test_early_stopping_returns_the_best_coefficients():
    X, y = two_classes(400, 20)
    options = {"solver": "sgd", "schedule": "constant", "learning_rate": 0.2, "validation_fraction": 0.3}
    model = LogisticRatioClassifier(early_stopping=True, random_state=0, **options).fit(X, y)
    assert model.n_iter_ == len(model.validation_loss_curve_) < 1000
    held = held_out(y == 1, 0.3, np.random.RandomState(0))
    assert held.sum() == round(0.3 * np.sum(y)) + round(0.3 * np.sum(1 - y))
    loss = log_loss(y[held], model.predict_proba(X[held])[:, 1])
    assert loss == pytest.approx(min(model.validation_loss_curve_), rel=1e-12)
    # The rows held out count neither for the prior correction nor for the covariance.
    assert model.log_prior_ratio_ == pytest.approx(np.log(np.sum(y[~held] == 0) / np.sum(y[~held])))
    other = model.terms_.transform(X[~held])
    moves = coefficient_moves(other, y[~held] == 1, model.decision_function(X[~held]), np.ones(len(other)), model.alpha)
    np.testing.assert_allclose(model.coef_covariance_, moves.T @ moves, rtol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "cython", "numba"])
def test_rows_held_out_do_not_say_whether_the_others_are_separated(backend):
    y = np.repeat([0, 1], 200)
    X = (2 * y - 1 + np.random.default_rng(0).uniform(-0.5, 0.5, 400))[:, None]
    X[held_out(y == 1, 0.1, np.random.RandomState(0))] *= -1
    model = LogisticRatioClassifier(solver="sgd", early_stopping=True, random_state=0, backend=backend)
    with pytest.warns(AccuracyWarning, match="the classifier separates the samples"):
        model.fit(X, y)
    assert model.separated_


def test_early_stopping_needs_rows_of_both_classes():
    with pytest.raises(ValueError, match="early_stopping needs rows of both"):
        LogisticRatioClassifier(solver="sgd", early_stopping=True).fit_samples(*samples(40, 2))


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("n", [500, 20_000])
def test_warm_start_begins_at_the_last_coefficients(solver, n):
    X, y = two_classes(n)
    model = LogisticRatioClassifier(solver=solver, warm_start=True, tol=1e-8).fit(X, y)
    expected = fitted_coef(model)
    model.fit(X, y)
    assert model.converged_
    assert model.n_iter_ <= 1
    np.testing.assert_allclose(fitted_coef(model), expected, atol=1e-6)


@quietly
def test_warm_start_of_passes_goes_on():
    X, y = two_classes(5000)
    model = LogisticRatioClassifier(solver="sgd", schedule="constant", learning_rate=1e-4, max_iter=2, random_state=0)
    model.set_params(warm_start=True)
    losses = [model.fit(X, y).loss_curve_ for _ in range(3)]
    assert np.all(np.diff(np.ravel(losses)) < 0)


def test_warm_start_needs_the_same_labels_and_terms():
    X, y = two_classes()
    model = LogisticRatioClassifier(warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match=r"warm_start needs the labels of the last fit, \[0, 1\], got \[1, 2\]"):
        model.fit(X, y + 1)
    with pytest.raises(ValueError, match="warm_start needs the degree and the number of terms"):
        model.fit(X[:, :2], y)
    with pytest.raises(ValueError, match="warm_start needs the degree and the number of terms"):
        model.set_params(degree=2).fit(X, y)
    assert model.classes_.tolist() == [0, 1]
    single = model.set_params(degree=1).fit(X.astype(np.float32), y)
    assert single.coef_.dtype == np.float64


def test_a_progress_bar_on_request(capsys):
    X, y = two_classes(5000)
    LogisticRatioClassifier(solver="sgd", verbose=True, early_stopping=True, random_state=0).fit(X, y)
    assert "held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"schedule": "optimal"}, ValueError, "schedule must be one of 'adaptive', 'constant', 'invscaling', got"),
        ({"power_t": -1}, ValueError, "power_t must be at least 0, got -1"),
        ({"average": -1}, ValueError, "average must be a whole number, at least 0"),
        ({"average": 0.5}, (TypeError, ValueError), "average must be a whole number"),
        ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change must be a whole number"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be above 0 and under 1"),
        ({"class_weight": "even"}, ValueError, "class_weight must be a dict, 'balanced' or None, got 'even'"),
        ({"class_weight": {0: 1.0, 7: 1.0}}, ValueError, "class_weight"),
        ({"class_weight": {0: -1.0, 1: 1.0}}, ValueError, "class_weight must be finite and at least 0"),
        ({"class_weight": {0: 0.0, 1: 1.0}}, ValueError, "weight in each class"),
    ],
)
def test_bad_parameters_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        LogisticRatioClassifier(solver="sgd", **options).fit(*two_classes())


@pytest.mark.parametrize("cv", [-3, 0, 1, np.int64(1)])
def test_fewer_than_two_parts_are_refused(cv):
    with pytest.raises(ValueError, match="cv must be a whole number, at least 2, got"):
        RatioFromClassifier(LogisticRegression(), cv=cv).fit_samples(*samples(50, 50))


def test_the_parts_are_as_scikit_learn_takes_them():
    x = samples(50, 50)
    by_number, by_splitter, usual, five = (
        RatioFromClassifier(LogisticRegression(), cv=cv).fit_samples(*x).log_ratio([[0.3]])
        for cv in (3, StratifiedKFold(3), None, 5)
    )
    assert by_number == by_splitter != usual == five


def test_a_seed_fixes_the_divergences():
    x_p, x_q = samples(100, 80)
    assert divergences_from_samples(x_p, x_q, rng=1) == divergences_from_samples(x_p, x_q, rng=1)
    assert divergences_from_samples(x_p, x_q, rng=1) != divergences_from_samples(x_p, x_q, rng=2)


def test_same_distributions_are_not_told_apart():
    rng = np.random.default_rng(0)
    found = divergences_from_samples(rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3)), rng=0)
    for estimate in found.values():
        assert abs(estimate) < 4 * estimate.standard_error


@pytest.mark.parametrize("scale", [1e-24, 1, 1e21])
@pytest.mark.parametrize("solver", ["newton", "sgd"])
def test_units_make_no_difference_in_float32(solver, scale):
    x_p, x_q = (x.astype(np.float32) for x in samples(500, 500))
    constant = np.full((500, 1), 0.1, dtype=np.float32)
    model = LogisticRatioClassifier(solver=solver, random_state=0).fit_samples(x_p, x_q)
    scaled = LogisticRatioClassifier(solver=solver, random_state=0)
    scaled.fit_samples(np.hstack([x_p * scale, constant]), np.hstack([x_q * scale, constant]))
    np.testing.assert_allclose(scaled.coef_[0], [model.coef_[0, 0], 0], rtol=0.01, atol=1e-3)
    assert abs(scaled.log_ratio(np.array([[0, 0.11]], dtype=np.float32)) - model.log_ratio([[0.0]])) < 0.01


def test_values_beyond_the_dtype_are_refused():
    x = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32)
    with pytest.raises(ValueError, match="X must have a spread that float32 can hold"):
        LogisticRatioClassifier().fit(x * np.float32(1e-42), np.repeat([0, 1], 50))


def test_warnings_point_at_the_caller():
    with pytest.warns(AccuracyWarning, match="no convergence") as told:
        LogisticRatioClassifier(max_iter=1).fit_samples(*samples(100, 100))
    assert told[0].filename == __file__


def true_log_ratios(n, seed):
    rng = np.random.default_rng(seed)
    return (log_ratio_normal(x.sample(n, rng=rng), 1, 1, 0, 2) for x in (P, Q))


def test_bounds_of_the_true_log_ratio_are_the_divergence():
    for means, _ in kl_lower_bounds(*true_log_ratios(200_000, 0)).values():
        error = sum(np.var(values) / len(values) for values in means.values()) ** 0.5
        assert abs(sum(map(np.mean, means.values())) - kl_divergence(P, Q)) < 4 * error < 0.02


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_bounds_are_in_order(degree):
    x_p, x_q = samples(1000, 1000)
    model = LogisticRatioClassifier(degree).fit_samples(x_p, x_q)
    new = samples(20_000, 20_000, 1)
    high, low = (model.kl_lower_bound(*new, kind) for kind in ("donsker-varadhan", "nwj"))
    assert low <= high <= kl_divergence(P, Q) + 4 * high.standard_error
    ratio = model.ratio(new[1])
    assert high == pytest.approx(model.log_ratio(new[0]).mean() - np.log(ratio.mean()), rel=1e-12)
    assert low == pytest.approx(model.log_ratio(new[0]).mean() + 1 - ratio.mean(), rel=1e-12)


@pytest.mark.parametrize("kind", ["donsker-varadhan", "nwj"])
def test_errors_of_the_bounds_hold(kind):
    scores = []
    for seed in range(100):
        model = LogisticRatioClassifier(2).fit_samples(*samples(4000, 4000, seed))
        bound = model.kl_lower_bound(*samples(1000, 1000, seed + 1000), kind)
        scores.append((bound - kl_divergence(P, Q)) / bound.standard_error)
    assert 0.8 < np.std(scores) < 1.2
    assert np.mean(np.abs(scores) < 1.96) >= 0.88


def test_a_bound_that_few_samples_carry_is_told():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(3, 1, (2, 1000)), rng.normal(0, 1, (2, 1000))
    model = LogisticRatioClassifier().fit_samples(x_p[0], x_q[0])
    with pytest.warns(AccuracyWarning, match="the ratio leaves .* effective samples of x_q's 1000"):
        bound = model.kl_lower_bound(x_p[1], x_q[1])
    assert bound.diagnostics["effective_sample_size"] < 50
    with pytest.warns(AccuracyWarning, match="effective samples of x_q's 1000"):
        model.importance_weights(x_q[1])


def test_a_ratio_that_overflows_has_no_finite_bound():
    model = LogisticRatioClassifier().fit_samples(*samples(200, 200))
    with pytest.warns(AccuracyWarning, match="effective samples"):
        bound = model.kl_lower_bound([0.0, 1.0], [0.0, 1e4], "nwj")
    assert (bound, bound.standard_error) == (-np.inf, np.inf)


def test_weights_make_q_stand_for_p():
    x_p, x_q = samples(5000, 5000)
    model = LogisticRatioClassifier(2).fit_samples(x_p, x_q)
    weights, size = model.importance_weights(x_q)
    np.testing.assert_allclose(weights, model.ratio(x_q) / model.ratio(x_q).sum(), rtol=1e-12)
    assert size == pytest.approx(model.ratio(x_q).sum() ** 2 / (model.ratio(x_q) ** 2).sum(), rel=1e-12)
    assert weights @ x_q[:, 0] == pytest.approx(1, abs=0.1)
    # 1 + chi^2 of N(1, 1) from N(0, 4) is 4/sqrt(7) exp(1/7).
    assert size / 5000 == pytest.approx(np.sqrt(7) / 4 * np.exp(-1 / 7), abs=0.05)


def test_equal_weights_are_as_many_samples():
    assert effective_sample_size(np.full(300, -1000.0)) == pytest.approx(300, rel=1e-12)
    assert effective_sample_size(np.array([0.0, -1000.0])) == 1


@pytest.mark.parametrize("shape", [-0.5, 0.1, 0.5, 0.7, 1.0, 2.0])
def test_pareto_k_finds_the_shape_of_pareto_weights(shape):
    draws = stats.genpareto(shape).rvs(size=(20, 100_000), random_state=np.random.default_rng(0))
    found = [pareto_k(np.log(weights)) for weights in draws]
    # Of the 949 weights in a tail, in units of the least deviation that an unbiased estimate can have (Smith 1985).
    deviation = (1 + max(shape, -0.4)) / np.sqrt(949)
    assert np.mean(found) == pytest.approx(shape, abs=0.02 + 3 * deviation / np.sqrt(20))
    assert np.std(found) < 1.7 * deviation


@pytest.mark.parametrize("n", [26, 200, 5000])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pareto_k_is_arvizs(n):
    arviz = pytest.importorskip("arviz")
    rng = np.random.default_rng(n)
    for logs in (rng.normal(size=n), 5 * rng.normal(size=n), rng.standard_cauchy(n), np.log(rng.random(n)) - 1e4):
        assert pareto_k(logs) == pytest.approx(float(arviz.psislw(logs)[1]), rel=1e-9)


def test_pareto_k_of_weights_without_a_tail():
    assert pareto_k(np.full(1000, 3.0)) == -np.inf
    assert pareto_k(np.where(np.arange(1000) < 500, 0.0, -np.inf)) == -np.inf
    assert pareto_k(np.append(np.full(999, -800.0), 0.0)) == np.inf
    for unusable in (np.zeros(20), np.full(99, -np.inf), *(np.append(np.zeros(99), last) for last in (np.inf, np.nan))):
        assert pareto_k(unusable) == np.inf


def test_js_is_log_2_less_the_cross_entropy_of_even_classes():
    model = LogisticRatioClassifier(2).fit_samples(*samples(2000, 500))
    x_p, x_q = samples(3000, 1000, 1)
    log_ratio = np.concatenate([model.log_ratio(x_p), model.log_ratio(x_q)])
    in_p = np.arange(4000) < 3000
    loss = log_loss(in_p, 1 / (1 + np.exp(-log_ratio)), sample_weight=np.where(in_p, 1 / 3000, 1 / 1000))
    assert model.js_divergence(x_p, x_q) == pytest.approx(np.log(2) - loss, rel=1e-12)


def test_js_of_another_classifier_than_bayes_is_lower():
    straight, square = (LogisticRatioClassifier(degree).fit_samples(*samples(5000, 5000)) for degree in (1, 2))
    new, truth = samples(50_000, 50_000, 1), js_divergence(P, Q)
    low, high = straight.js_divergence(*new), square.js_divergence(*new)
    assert low < truth - 4 * low.standard_error
    assert abs(high - truth) < 3 * high.standard_error


def test_certified_bounds_hold():
    truth = {"kl_pq": kl_divergence(P, Q), "kl_qp": kl_divergence(Q, P), "js": js_divergence(P, Q)}
    held = dict.fromkeys(truth, 0)
    for seed in range(200):
        for name, bound in certified_bounds(*true_log_ratios(100, seed)).items():
            held[name] += bound <= truth[name]
    assert min(held.values()) >= 190
    assert set(certified_bounds(-np.ones(100), np.ones(100)).values()) == {0.0}


def test_certified_bounds_find_the_divergence_of_one_bit():
    # P(T > 0) is 0.8 under p and 0.3 under q: n is so large that the ends are the shares.
    bounds = certified_bounds(np.repeat([1.0, -1.0], [800_000, 200_000]), np.repeat([1.0, -1.0], [300_000, 700_000]))
    p, q = np.array([0.8, 0.2]), np.array([0.3, 0.7])
    assert bounds["kl_pq"] == pytest.approx(np.sum(p * np.log(p / q)), rel=0.01)
    assert bounds["kl_qp"] == pytest.approx(np.sum(q * np.log(q / p)), rel=0.01)
    assert bounds["js"] == pytest.approx(jensenshannon(p, q) ** 2, rel=0.02)


def test_what_is_no_bound_or_no_sample_is_refused():
    model = LogisticRatioClassifier().fit_samples(*samples(100, 100))
    with pytest.raises(ValueError, match="kind must be one of 'donsker-varadhan', 'nwj', got 'fenchel'"):
        model.kl_lower_bound(*samples(100, 100), "fenchel")
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers"):
        model.kl_lower_bound([0.0, 1.0], [0.0, np.nan])
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers"):
        model.importance_weights(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers"):
        model.importance_weights([])
