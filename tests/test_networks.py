"""The network as a scikit-learn estimator, and the published figures of the network 1-10-20-1."""

import pickle
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from benchmarks import exact
from benchmarks.exact import ulp_error
from benchmarks.table import TABLE
from fastdiv import (
    AccuracyWarning,
    LogisticRatioClassifier,
    MLPRatioClassifier,
    MultivariateNormal,
    Normal,
    js_divergence,
    kl_divergence,
    kl_divergence_from_samples,
    log_ratio,
    set_num_threads,
)

P, Q = Normal(1, 1), Normal(0, 2)
KL, JS = kl_divergence(P, Q), js_divergence(P, Q)

quietly = pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning")


def samples(n_p, n_q, seed=0):
    rng = np.random.default_rng(seed)
    return P.sample((n_p, 1), rng=rng), Q.sample((n_q, 1), rng=rng)


def expected_failures(estimator):
    reason = "mini-batches of a random order do not see a row of weight 2 as they see two rows"
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}


@parametrize_with_checks([MLPRatioClassifier(max_iter=100)], expected_failed_checks=expected_failures)
@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning", "ignore::sklearn.exceptions.SkipTestWarning")
def test_it_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)


def four_steps(activation, solver):
    """What the kernel reads and writes."""
    inputs, outputs = TABLE["mlp_epoch"].load(100)
    return (*inputs[:4], 30, inputs[5], activation, solver, *inputs[8:]), outputs


@cache
def exact_four_steps(activation, solver):
    return exact.mlp_epoch(*four_steps(activation, solver))


@pytest.mark.parametrize("activation", [0, 1, 2])
@pytest.mark.parametrize("solver", [0, 1, 2])
def test_four_steps_are_those_of_forty_digits(kernels, activation, solver):
    inputs, outputs = four_steps(activation, solver)
    params, loss = exact_four_steps(activation, solver)
    kernels.mlp_epoch(*inputs, *outputs)
    assert ulp_error(outputs[0], params, np.float64, 1.0) < 16
    assert ulp_error(outputs[3], loss, np.float64) < 16


@cache
def network(layer_sizes):
    """What the kernel reads, and what it is to write."""
    rng = np.random.default_rng(0)
    sizes = np.array(layer_sizes)
    X, params = rng.normal(size=(150, sizes[0])), rng.normal(size=np.sum(sizes[1:] * (sizes[:-1] + 1)))
    inputs = X, sizes, 1, params
    return inputs, *exact.mlp_log_odds(inputs, None)


@pytest.mark.parametrize("layer_sizes", [(3, 1), (2, 5, 1), (4, 3, 70, 2, 1)])
def test_networks_of_any_depth(kernels, layer_sizes):
    inputs, truth = network(layer_sizes)
    out = np.empty(150)
    kernels.mlp_log_odds(*inputs, out)
    assert ulp_error(out, truth, np.float64, 10.0) < 64


def test_epochs_in_parts_are_the_epoch(kernels):
    whole, parts = (TABLE["mlp_epoch"].load(1000) for _ in range(2))
    kernels.mlp_epoch(*whole[0], *whole[1])
    rows, loss = parts[0][3], 0.0
    for start in range(0, 1000, 300):
        kernels.mlp_epoch(*parts[0][:3], rows[start : start + 300], *parts[0][4:-1], start // 100, *parts[1])
        loss += parts[1][-1][0]
    np.testing.assert_array_equal(parts[1][0], whole[1][0])
    assert loss == pytest.approx(whole[1][-1][0], rel=1e-14)


def test_the_published_network_over_fifty_seeds():
    losses, errors = [], []
    for seed in range(50):
        model = MLPRatioClassifier(random_state=seed).fit_samples(*samples(500, 500, seed))
        losses.append((model.loss_curve_[-1], model.validation_loss_curve_[-1]))
        errors.append(model.kl_divergence(P.sample((5000, 1), rng=seed + 1000)) - KL)
    training, validation = np.mean(losses, axis=0)
    assert 0.55 < training < 0.59
    assert 0.56 < validation < 0.61
    # 500 samples of each leave a standard deviation of 0.037: of a correct logistic regression, 82 in 100 are within.
    assert np.mean(np.abs(errors) < 0.05) >= 0.7


def test_estimates_hold_the_spread_of_the_fit():
    scores = []
    for seed in range(60):
        model = MLPRatioClassifier(random_state=seed).fit_samples(*samples(500, 500, seed))
        x_p, x_q = samples(500, 500, seed + 1000)
        pairs = (model.kl_divergence(x_p), KL), (model.js_divergence(x_p, x_q), JS)
        scores.append([(estimate - truth) / estimate.standard_error for estimate, truth in pairs])
    deviations = np.sqrt(np.mean(np.square(scores), axis=0))
    assert np.all((deviations > 0.75) & (deviations < 1.4))


@quietly
def test_cross_fitting_widens_the_error_by_what_the_network_misses():
    p, q = MultivariateNormal(np.zeros(5), np.ones(5)), MultivariateNormal(np.zeros(5), np.full(5, 2.25))
    x_p, x_q = p.sample(500, rng=0), q.sample(500, rng=1)
    fitted = MLPRatioClassifier(random_state=0).fit_samples(x_p, x_q).kl_divergence(p.sample(500, rng=2))
    crossed = kl_divergence_from_samples(x_p, x_q, "mlp", rng=0)
    assert crossed.standard_error > 1.5 * fitted.standard_error
    assert abs(crossed - kl_divergence(p, q)) < 4 * crossed.standard_error


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("solver", ["rmsprop", "adam", "sgd"])
def test_backends_train_the_same_weights(dtype, solver):
    x_p, x_q = (x.astype(dtype) for x in samples(300, 300))
    fits = [
        MLPRatioClassifier(solver=solver, max_iter=50, random_state=3, backend=backend).fit_samples(x_p, x_q)
        for backend in ("numpy", "cython", "numba")
    ]
    assert fits[0].coefs_[0].dtype == dtype
    for fit in fits[1:]:
        for coefs, expected in zip(fit.coefs_, fits[0].coefs_, strict=True):
            np.testing.assert_allclose(coefs, expected, rtol=0, atol=1e-9 if dtype == np.float64 else 1e-3)
        np.testing.assert_allclose(fit.loss_curve_, fits[0].loss_curve_, rtol=1e-9 if dtype == np.float64 else 1e-4)


@pytest.mark.parametrize("activation", ["softplus", "tanh", "relu"])
@pytest.mark.parametrize("solver", ["rmsprop", "adam", "sgd"])
def test_activations_and_solvers_find_the_log_ratio(activation, solver):
    rate = 0.05 if solver == "sgd" else 3e-3
    model = MLPRatioClassifier(activation=activation, solver=solver, learning_rate=rate, max_iter=60, random_state=0)
    model.fit_samples(*samples(20_000, 20_000))
    x = np.linspace(-1, 3, 50)
    assert np.mean((model.log_ratio(x[:, None]) - log_ratio(x, P, Q)) ** 2) ** 0.5 < 0.15


def test_a_log_ratio_that_is_no_polynomial():
    p, q = MultivariateNormal([1, 0], [1, 1]), MultivariateNormal([0, 0], [[2, 1], [1, 2]])
    x_p, x_q = p.sample(20_000, rng=1), q.sample(20_000, rng=2)
    model = MLPRatioClassifier(max_iter=30, random_state=0).fit_samples(x_p, x_q)
    assert abs(model.kl_divergence(p.sample(20_000, rng=3)) - kl_divergence(p, q)) < 0.05


def test_the_prior_correction_makes_up_for_unequal_samples():
    x = np.linspace(-1, 3, 50)[:, None]
    even = MLPRatioClassifier(max_iter=60, random_state=0).fit_samples(*samples(20_000, 20_000))
    uneven = MLPRatioClassifier(max_iter=60, random_state=0).fit_samples(*samples(50_000, 10_000))
    np.testing.assert_allclose(uneven.log_ratio(x), even.log_ratio(x), atol=0.2)
    assert uneven.log_prior_ratio_ == pytest.approx(np.log(1 / 5))


def test_weights_count_as_rows_do():
    x_p, x_q = samples(20_000, 20_000)
    weighted = MLPRatioClassifier(max_iter=60, random_state=0)
    weighted.fit_samples(x_p, x_q, sample_weight_p=np.full(len(x_p), 3.0))
    plain = MLPRatioClassifier(max_iter=60, random_state=0).fit_samples(x_p, x_q)
    assert weighted.log_prior_ratio_ == pytest.approx(-np.log(3))
    x = np.linspace(-1, 3, 50)[:, None]
    np.testing.assert_allclose(weighted.log_ratio(x), plain.log_ratio(x), atol=0.2)


def test_a_seed_fixes_the_fit_whatever_the_threads(threads):
    x_p, x_q = samples(20_000, 20_000)
    predictions = []
    for n_threads in (1, 2, 2):
        set_num_threads(n_threads)
        model = MLPRatioClassifier(max_iter=3, random_state=5).fit_samples(x_p, x_q)
        predictions.append(model.log_ratio(x_p))
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(predictions[1], predictions[2])


def test_curves_and_attributes():
    model = MLPRatioClassifier((4, 3), max_iter=20, random_state=0).fit_samples(*samples(300, 200))
    assert [coefs.shape for coefs in model.coefs_] == [(1, 4), (4, 3), (3, 1)]
    assert [intercepts.shape for intercepts in model.intercepts_] == [(4,), (3,), (1,)]
    assert model.n_iter_ == len(model.loss_curve_) == len(model.validation_loss_curve_) == 20
    assert model.loss_curve_[-1] < model.loss_curve_[0] < 1
    without = MLPRatioClassifier(max_iter=2, validation_fraction=0, random_state=0).fit_samples(*samples(300, 200))
    assert without.validation_loss_curve_ == []


def test_early_stopping_returns_to_the_best_weights():
    x_p, x_q = samples(150, 150)
    options = {"hidden_layer_sizes": (64, 64), "learning_rate": 1e-2, "random_state": 0, "validation_fraction": 0.4}
    stopped = MLPRatioClassifier(early_stopping=True, max_iter=500, **options).fit_samples(x_p, x_q)
    assert stopped.n_iter_ < 500
    best = int(np.argmin(stopped.validation_loss_curve_)) + 1
    same = MLPRatioClassifier(max_iter=best, **options).fit_samples(x_p, x_q)
    np.testing.assert_array_equal(stopped.coefs_[0], same.coefs_[0])


def test_a_network_that_learns_by_heart_is_told():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(2, 400, 10))
    model = MLPRatioClassifier((100, 100), "relu", learning_rate=3e-3, validation_fraction=0.3, random_state=0)
    with pytest.warns(AccuracyWarning, match="by heart"):
        model.fit_samples(x_p + 0.3, x_q)


def test_warm_start_goes_on():
    x_p, x_q = samples(300, 300)
    model = MLPRatioClassifier(max_iter=30, warm_start=True, random_state=0).fit_samples(x_p, x_q)
    before = model.loss_curve_[-1]
    assert model.fit_samples(x_p, x_q).loss_curve_[0] < before + 0.02
    cold = clone(model).set_params(warm_start=False).fit_samples(x_p, x_q)
    assert cold.loss_curve_[0] > before + 0.05


def test_warm_start_needs_the_same_layers():
    model = MLPRatioClassifier(max_iter=2, warm_start=True, random_state=0).fit_samples(*samples(300, 300))
    with pytest.raises(ValueError, match="warm_start needs the layers"):
        model.fit_samples(*np.random.default_rng(0).normal(size=(2, 300, 3)))
    with pytest.raises(ValueError, match="warm_start needs the layers"):
        model.set_params(hidden_layer_sizes=(5,)).fit_samples(*samples(300, 300))
    # Single precision goes on in double.
    model.set_params(hidden_layer_sizes=(10, 20)).fit_samples(*(x.astype(np.float32) for x in samples(300, 300)))
    assert model.coefs_[0].dtype == np.float64


def test_warm_start_needs_the_same_labels():
    X, y = np.concatenate(samples(100, 100)), np.repeat([1, 0], 100)
    model = MLPRatioClassifier(max_iter=2, warm_start=True, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"warm_start needs the labels of the last fit, \[0, 1\], got \[1, 2\]"):
        model.fit(X, y + 1)
    model.fit(X, y)


@quietly
@pytest.mark.parametrize("solver", ["rmsprop", "adam", "sgd"])
def test_parts_in_turn_are_passes(solver):
    X, y = np.concatenate(samples(100, 80)), np.repeat([1, 0], [100, 80])
    # In one batch the order of the rows makes no difference.
    options = {"solver": solver, "batch_size": 180, "learning_rate": 1e-2, "random_state": 0}
    whole = MLPRatioClassifier(max_iter=5, validation_fraction=0, **options).fit(X, y)
    parts = MLPRatioClassifier(**options)
    for _ in range(5):
        parts.partial_fit(X, y, classes=[0, 1])
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-12)
    for coefs, expected in zip(parts.coefs_, whole.coefs_, strict=True):
        np.testing.assert_allclose(coefs, expected, rtol=1e-8, atol=1e-12)
    # And a fit goes on in parts.
    np.testing.assert_allclose(
        whole.partial_fit(X, y).decision_function(X), parts.partial_fit(X, y).decision_function(X), rtol=1e-8
    )


def test_what_parts_cannot_know():
    x_p, x_q = samples(2000, 2000)
    model = MLPRatioClassifier(random_state=0, learning_rate=3e-3)
    model.partial_fit(x_p[:1000], np.ones(1000), classes=[0, 1])
    assert np.isnan(model.log_ratio([0.0])[0])
    for _ in range(60):
        model.partial_fit(np.r_[x_q, x_p], np.repeat([0, 1], 2000))
    x = np.linspace(-1, 3, 50)
    assert np.mean((model.log_ratio(x) - log_ratio(x, P, Q)) ** 2) ** 0.5 < 0.2
    assert model.kl_divergence(x_p).standard_error == np.inf
    assert model.separated_ is None
    assert model.n_iter_ == len(model.loss_curve_) == 61
    before = model.log_ratio(x)
    with pytest.raises(ValueError, match="partial_fit needs the layers"):
        model.set_params(hidden_layer_sizes=(5,)).partial_fit(x_p, np.ones(2000))
    with pytest.raises(ValueError, match="early_stopping must be False"):
        model.set_params(hidden_layer_sizes=(10, 20), early_stopping=True).partial_fit(x_p, np.ones(2000))
    with pytest.raises(ValueError, match="the steps diverge"):
        model.set_params(early_stopping=False, solver="sgd", learning_rate=1e300).partial_fit(x_p, np.ones(2000))
    np.testing.assert_array_equal(model.log_ratio(x), before)


def test_early_stopping_needs_rows_of_both_classes():
    with pytest.raises(ValueError, match="early_stopping needs rows of both"):
        MLPRatioClassifier(early_stopping=True).fit_samples(*samples(40, 2))


def test_a_fit_that_fails_leaves_the_last_one():
    x_p, x_q = samples(300, 300)
    model = MLPRatioClassifier(solver="sgd", max_iter=5, warm_start=True, random_state=0).fit_samples(x_p, x_q)
    before = model.log_ratio(x_p)
    with pytest.raises(ValueError, match="the steps diverge"):
        model.set_params(learning_rate=1e9).fit_samples(x_p, x_q)
    np.testing.assert_array_equal(model.log_ratio(x_p), before)
    with pytest.raises(ValueError, match="the steps diverge"):
        model.set_params(warm_start=False, hidden_layer_sizes=(200,)).fit_samples(np.c_[x_p, x_p], np.c_[x_q, x_q])
    np.testing.assert_array_equal(model.log_ratio(x_p), before)
    model.set_params(learning_rate=1e-3).fit_samples(x_p, x_q)
    failed = MLPRatioClassifier(solver="sgd", learning_rate=1e9)
    with pytest.raises(ValueError, match="the steps diverge"):
        failed.fit_samples(x_p, x_q)
    with pytest.raises(NotFittedError):
        failed.predict(x_p)


def test_a_copy_predicts_the_same():
    x_p, x_q = samples(300, 300)
    model = MLPRatioClassifier(max_iter=5, random_state=0).fit_samples(x_p, x_q)
    expected = model.log_ratio(x_p)
    model.coefs_[0][:] = 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).log_ratio(x_p), expected)


def test_constant_features_are_no_evidence():
    y = np.repeat([0, 1], 500)
    model = MLPRatioClassifier(max_iter=3, random_state=0).fit(np.full((1000, 2), 0.1, dtype=np.float32), y)
    np.testing.assert_allclose(model.log_ratio([[0.1, 0.1]]), 0, atol=1e-6)


def test_without_hidden_layers_it_is_logistic_regression():
    x_p, x_q = samples(500, 500)
    model = MLPRatioClassifier((), max_iter=2, batch_size=10**18, random_state=0).fit_samples(x_p, x_q)
    logistic = LogisticRatioClassifier().fit_samples(x_p, x_q)
    np.testing.assert_allclose(model.log_ratio(x_p), logistic.log_ratio(x_p), atol=1e-3)


def test_the_penalty_shrinks_the_weights():
    sizes = [
        np.sum(MLPRatioClassifier(alpha=alpha, random_state=0).fit_samples(*samples(300, 300)).coefs_[1] ** 2)
        for alpha in (0, 0.1)
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_samples_that_are_apart_are_told_once_and_here():
    with pytest.warns(AccuracyWarning, match="separates the samples") as told:
        MLPRatioClassifier(max_iter=50, random_state=0).fit_samples(np.linspace(0, 1, 99), np.linspace(5, 6, 99))
    assert [warning.filename for warning in told] == [__file__]


def test_it_works_inside_scikit_learn():
    x_p, x_q = samples(300, 300)
    X, y = np.r_[x_p, x_q], np.repeat([1, 0], 300)
    model = MLPRatioClassifier(max_iter=60, random_state=0)
    assert cross_val_score(make_pipeline(StandardScaler(), model), X, y, cv=3).mean() > 0.6
    search = GridSearchCV(model, {"hidden_layer_sizes": [(5,), (10, 20)]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.6
    assert CalibratedClassifierCV(model, cv=2).fit(X, y).predict_proba(X).shape == (600, 2)


def test_a_progress_bar_on_request(capsys):
    MLPRatioClassifier(max_iter=3, verbose=True, random_state=0).fit_samples(*samples(100, 100))
    assert "held out" in capsys.readouterr().out


@quietly
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "sigmoid"}, ValueError, "activation must be one of 'softplus', 'tanh', 'relu'"),
        ({"solver": "lbfgs"}, ValueError, "solver must be one of 'rmsprop', 'adam', 'sgd'"),
        ({"hidden_layer_sizes": (10, 0)}, ValueError, "each of hidden_layer_sizes must be a whole number, at least 1"),
        ({"hidden_layer_sizes": 10}, TypeError, "hidden_layer_sizes must be a tuple"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive"),
        ({"rho": 1.0}, ValueError, "rho must be at least 0 and under 1"),
        ({"epsilon": "small"}, TypeError, "epsilon must be a number"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be at least 0 and under 1"),
        ({"early_stopping": True, "validation_fraction": 0}, ValueError, "early_stopping needs"),
        ({"solver": "sgd", "learning_rate": 1e9}, ValueError, "the steps diverge"),
    ],
)
def test_what_is_wrong_is_named(options, error, message):
    with pytest.raises(error, match=message):
        MLPRatioClassifier(random_state=0, **options).fit_samples(*samples(200, 200))
