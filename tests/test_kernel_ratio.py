"""Density ratios as sums of Gaussian kernels, against the published formulas and against refits."""

import math
import pickle
from threading import Event, Thread

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import NotFittedError
from threadpoolctl import threadpool_info

from fastdiv import (
    AccuracyWarning,
    KLIEPRatio,
    LeastSquaresRatio,
    MultivariateNormal,
    Normal,
    js_divergence,
    kl_divergence,
    kl_divergence_from_samples,
    log_ratio,
)
from fastdiv.kernel_ratio import one_blas_thread
from fastdiv.samples import divergences_from_samples

P, Q = Normal(1, 1), Normal(0, 2)
KL = kl_divergence(P, Q)
BANDWIDTHS, PENALTIES = 10 ** np.linspace(-1, 1, 5), 10 ** np.linspace(-3, 1, 5)
ESTIMATORS = [LeastSquaresRatio(random_state=0), LeastSquaresRatio(0.1, random_state=0), KLIEPRatio(random_state=0)]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=["ulsif", "rulsif", "kliep"])


def samples(n_p, n_q, d=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 1, size=(n_p, d)), rng.normal(0, 2, size=(n_q, d))


def kernel(x, centres, bandwidth):
    return rbf_kernel(x, centres, gamma=0.5 / bandwidth**2)


def least_squares_weights(phi_p, phi_q, penalty, alpha):
    """Equation (2) of Yamada et al. (2013), with the weights below 0 cut off; Kanamori et al. (2009) for alpha = 0."""
    hessian = alpha * phi_p.T @ phi_p / len(phi_p) + (1 - alpha) * phi_q.T @ phi_q / len(phi_q)
    return np.maximum(np.linalg.solve(hessian + penalty * np.eye(phi_p.shape[1]), phi_p.mean(axis=0)), 0)


def score_by_refits(phi_p, phi_q, penalty, alpha):
    n, total = min(len(phi_p), len(phi_q)), 0.0
    for i in range(n):
        row_p, row_q = i * len(phi_p) // n, i * len(phi_q) // n
        rest = np.delete(phi_p, row_p, axis=0), np.delete(phi_q, row_q, axis=0)
        weights = least_squares_weights(*rest, penalty, alpha)
        ratio_p, ratio_q = phi_p[row_p] @ weights, phi_q[row_q] @ weights
        total += alpha * ratio_p**2 / 2 + (1 - alpha) * ratio_q**2 / 2 - ratio_p
    return total / n


def published_score(phi_p, phi_q, penalty):
    """The leave-one-out score of uLSIF in closed form, Kanamori et al. (2009), figure 2."""
    n_p, n_q = len(phi_p), len(phi_q)
    assert n_p == n_q
    b = phi_q.T @ phi_q / n_q + penalty * (n_q - 1) / n_q * np.eye(phi_p.shape[1])
    h = phi_p.mean(axis=0)
    inverse_q = np.linalg.solve(b, phi_q.T)
    denominator = n_q - np.sum(phi_q.T * inverse_q, axis=0)
    b0 = np.linalg.solve(b, h)[:, None] + inverse_q * (h @ inverse_q / denominator)
    b1 = np.linalg.solve(b, phi_p.T) + inverse_q * (np.sum(phi_p.T * inverse_q, axis=0) / denominator)
    b2 = np.maximum((n_q - 1) / (n_q * (n_p - 1)) * (n_p * b0 - b1), 0)
    return np.mean(np.sum(phi_q.T * b2, axis=0) ** 2) / 2 - np.mean(np.sum(phi_p.T * b2, axis=0))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("n_p", "n_q", "d"), [(30, 30, 1), (24, 50, 2), (41, 25, 3)])
def test_the_score_is_that_of_fits_without_the_pair(n_p, n_q, d, alpha):
    x_p, x_q = samples(n_p, n_q, d)
    settings = {"centres": x_p[:12], "bandwidths": BANDWIDTHS, "penalties": PENALTIES, "standardise": False}
    model = LeastSquaresRatio(alpha, **settings).fit_samples(x_p, x_q)
    phis = [(kernel(x_p, x_p[:12], s), kernel(x_q, x_p[:12], s)) for s in BANDWIDTHS]
    truth = [[score_by_refits(*phi, penalty, alpha) for penalty in PENALTIES] for phi in phis]
    np.testing.assert_allclose(model.scores_, truth, rtol=1e-9)
    best, cheapest = np.unravel_index(np.argmin(truth), model.scores_.shape)
    assert (model.bandwidth_, model.penalty_) == (BANDWIDTHS[best], PENALTIES[cheapest])
    weights = least_squares_weights(*phis[best], model.penalty_, alpha)
    np.testing.assert_allclose(model.weights_, weights, rtol=0, atol=1e-12 * weights.max())


def test_ulsif_is_the_published_one_at_its_published_size():
    # More rows than a block holds; narrow kernels use all eigenvectors of H, wide ones few.
    x_p, x_q = samples(1000, 1000)
    bandwidths, penalties = 10 ** np.linspace(-3, 1, 9), 10 ** np.linspace(-3, 1, 9)
    centres = x_p[np.random.RandomState(3).choice(1000, 100, replace=False)]
    model = LeastSquaresRatio(bandwidths=bandwidths, penalties=penalties, standardise=False, random_state=3)
    model.fit_samples(x_p, x_q)
    np.testing.assert_array_equal(model.centres_, centres)
    truth = [
        [published_score(kernel(x_p, centres, s), kernel(x_q, centres, s), penalty) for penalty in penalties]
        for s in bandwidths
    ]
    np.testing.assert_allclose(model.scores_, truth, rtol=1e-9)
    best, cheapest = np.unravel_index(np.argmin(truth), (9, 9))
    assert (model.bandwidth_, model.penalty_) == (bandwidths[best], penalties[cheapest])
    phi = kernel(x_p, centres, model.bandwidth_), kernel(x_q, centres, model.bandwidth_)
    weights = least_squares_weights(*phi, model.penalty_, 0)
    np.testing.assert_allclose(model.weights_, weights, rtol=0, atol=1e-12 * weights.max())
    np.testing.assert_allclose(model.ratio(x_q), phi[1] @ weights, rtol=1e-11)


@pytest.mark.parametrize(("method", "alpha"), [("uLSIF", 0.0), ("RuLSIF", 0.1)])
def test_weights_of_densratio(method, alpha):
    densratio = pytest.importorskip("densratio").densratio
    x_p, x_q = samples(1000, 800)
    theirs = densratio(x_p, x_q, method, sigma=1.0, lambda_=0.1, alpha=alpha, verbose=False)
    settings = {"centres": theirs.kernel_info.centers, "bandwidths": 1.0, "penalties": 0.1, "standardise": False}
    ours = LeastSquaresRatio(alpha, **settings).fit_samples(x_p, x_q)
    np.testing.assert_allclose(ours.weights_, theirs.theta, rtol=0, atol=1e-12 * theirs.theta.max())


@pytest.mark.parametrize("bandwidth", [0.1, 0.5, 1.5, 6.0])
@pytest.mark.parametrize("d", [1, 3])
def test_kliep_satisfies_the_conditions_of_its_optimum(bandwidth, d):
    # Karush, Kuhn and Tucker: the mean of kernel / ratio under p is at most the kernel's mean under q, and equal to it
    # where the weight is positive.
    x_p, x_q = samples(600, 400, d)
    model = KLIEPRatio(centres=50, bandwidths=bandwidth, standardise=False, random_state=0).fit_samples(x_p, x_q)
    phi_p, means_q = kernel(x_p, model.centres_, bandwidth), kernel(x_q, model.centres_, bandwidth).mean(axis=0)
    gain = (phi_p / (phi_p @ model.weights_)[:, None]).mean(axis=0) / means_q
    assert np.all(model.weights_ >= 0)
    assert model.weights_ @ means_q == pytest.approx(1, abs=1e-12)
    assert gain.max() < 1 + 2e-8
    assert np.all(np.abs(gain - 1) * model.weights_ * means_q < 2e-8)
    assert model.converged_
    assert model.gap_ <= 1e-8


def test_kliep_is_at_the_maximum_that_slsqp_finds():
    x_p, x_q = samples(300, 200)
    model = KLIEPRatio(centres=8, bandwidths=0.8, standardise=False, random_state=0).fit_samples(x_p, x_q)
    phi_p, means_q = kernel(x_p, model.centres_, 0.8), kernel(x_q, model.centres_, 0.8).mean(axis=0)
    found = minimize(
        lambda weights: -np.mean(np.log(phi_p @ weights)),
        np.full(8, 1 / means_q.sum()),
        jac=lambda weights: -np.mean(phi_p / (phi_p @ weights)[:, None], axis=0),
        bounds=[(0, None)] * 8,
        constraints={"type": "eq", "fun": lambda weights: means_q @ weights - 1, "jac": lambda _: means_q},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert model.kl_divergence(x_p) == pytest.approx(-found.fun, abs=1e-7)
    np.testing.assert_allclose(model.ratio(x_p), phi_p @ found.x, rtol=1e-3)


def test_kliep_chooses_the_bandwidth_by_the_likelihood_of_parts_left_out():
    x_p, x_q = samples(200, 150)
    model = KLIEPRatio(centres=x_p[:20], bandwidths=BANDWIDTHS, cv=4, standardise=False, random_state=7)
    model.fit_samples(x_p, x_q)
    folds = KFold(4, shuffle=True, random_state=np.random.RandomState(7).randint(1 << 31))
    truth = []
    for bandwidth in BANDWIDTHS:
        densities = kernel(x_p, x_p[:20], bandwidth) / kernel(x_q, x_p[:20], bandwidth).mean(axis=0)
        log_ratios = []
        for rows, held in folds.split(x_p):
            # The steps of expectation and maximisation for the shares of a mixture.
            shares = np.full(20, 1 / 20)
            for _ in range(3000):
                shares *= np.mean(densities[rows] / (densities[rows] @ shares)[:, None], axis=0)
            log_ratios.extend(np.log(densities[held] @ shares))
        truth.append(np.mean(log_ratios))
    np.testing.assert_allclose(model.scores_, truth, atol=2e-3)
    assert model.bandwidth_ == BANDWIDTHS[np.argmax(truth)]


def test_kliep_passes_over_bandwidths_that_do_not_reach():
    x_p, x_q = samples(200, 200)
    model = KLIEPRatio(bandwidths=[1e-9, 0.5], random_state=0).fit_samples(x_p, x_q)
    assert model.bandwidth_ == 0.5
    assert model.scores_[0] == -math.inf
    with pytest.raises(ValueError, match=r"bandwidths must reach from the centres to the samples, got \[1e-09\]"):
        KLIEPRatio(bandwidths=1e-9).fit_samples(x_p, x_q)
    with pytest.raises(ValueError, match="bandwidths must reach from the centres to the samples"):
        LeastSquaresRatio(centres=[[1e6]], bandwidths=0.1).fit_samples(x_p, x_q)


def test_kliep_tells_that_it_has_not_converged():
    with pytest.warns(AccuracyWarning, match="no convergence in 1 steps, max_iter=1: the mean log-ratio may rise by"):
        model = KLIEPRatio(bandwidths=0.5, max_iter=1, random_state=0).fit_samples(*samples(200, 200))
    assert not model.converged_
    assert model.gap_ > model.tol


@every_estimator
def test_ratio_of_gaussians(estimator):
    x_p, x_q = samples(4000, 4000)
    model = clone(estimator).fit_samples(x_p, x_q)
    x = np.linspace(-1, 3, 50)
    assert np.mean((model.log_ratio(x) - log_ratio(x, P, Q)) ** 2) ** 0.5 < 0.15
    np.testing.assert_allclose(np.log(model.ratio(x)), model.log_ratio(x), atol=1e-12)
    fresh_p, fresh_q = samples(4000, 4000, seed=1)
    found = model.kl_divergence(fresh_p)
    assert found == pytest.approx(np.mean(model.log_ratio(fresh_p)), abs=1e-12)
    assert abs(found - KL) < 0.05
    assert abs(model.js_divergence(fresh_p, fresh_q) - js_divergence(P, Q)) < 0.02
    assert found.method == model.method
    assert found.diagnostics["bandwidth"] == model.bandwidth_


@every_estimator
def test_ratio_in_two_dimensions_from_unequal_samples(estimator):
    x_p, x_q = samples(1500, 3000, d=2)
    model = clone(estimator).fit_samples(x_p, x_q)
    p, q = MultivariateNormal([1, 1], [1, 1]), MultivariateNormal([0, 0], [4, 4])
    x = np.stack(np.meshgrid(np.linspace(0, 2, 9), np.linspace(0, 2, 9)), axis=-1).reshape(-1, 2)
    assert np.mean((model.log_ratio(x) - log_ratio(x, p, q)) ** 2) ** 0.5 < 0.25


@pytest.mark.parametrize(
    ("estimator", "within"),
    [
        (LeastSquaresRatio(bandwidths=1.0, penalties=0.1), 0.15),
        (LeastSquaresRatio(0.3, bandwidths=1.0, penalties=0.1), 0.15),
        # Which of its weights are 0 changes from sample to sample, and the covariance takes them as given.
        (KLIEPRatio(bandwidths=1.0), 0.3),
    ],
    ids=["ulsif", "rulsif", "kliep"],
)
def test_standard_errors_are_the_spread_over_samples(estimator, within):
    fresh = P.sample((500, 1), rng=0)
    model = clone(estimator).set_params(centres=np.linspace(-1, 3, 6)[:, None], standardise=False)
    own = np.std(model.fit_samples(*samples(400, 300)).log_ratio(fresh)) / math.sqrt(500)
    values, fitted = [], []
    for seed in range(200):
        found = model.fit_samples(*samples(400, 300, seed=seed)).kl_divergence(fresh)
        values.append(found)
        fitted.append(found.standard_error**2)
    assert math.sqrt(np.mean(fitted) - own**2) == pytest.approx(np.std(values), rel=within)


@every_estimator
def test_units_of_the_features_do_not_matter(estimator):
    x_p, x_q = samples(300, 400, d=2)
    scale, shift = np.array([1e-3, 50.0]), np.array([7.0, -3.0])
    model, moved = clone(estimator), clone(estimator)
    there = moved.fit_samples(scale * x_p + shift, scale * x_q + shift).log_ratio(scale * x_p + shift)
    np.testing.assert_allclose(there, model.fit_samples(x_p, x_q).log_ratio(x_p), atol=1e-6)
    raw = clone(estimator).set_params(standardise=False).fit_samples(x_p, x_q)
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    turned = clone(raw).fit_samples(x_p @ turn, x_q @ turn).log_ratio(x_p @ turn)
    np.testing.assert_allclose(turned, raw.log_ratio(x_p), atol=1e-6)


@every_estimator
def test_a_constant_feature_says_nothing(estimator):
    x_p, x_q = samples(200, 200)
    wide_p, wide_q = (np.column_stack([x, np.full(len(x), 1e9 / 3)]) for x in (x_p, x_q))
    model = clone(estimator).fit_samples(x_p, x_q)
    wide = clone(estimator).fit_samples(wide_p, wide_q)
    np.testing.assert_allclose(wide.log_ratio(wide_p), model.log_ratio(x_p), atol=1e-9)


@every_estimator
def test_samples_without_any_spread_have_the_ratio_1(estimator):
    model = clone(estimator).set_params(centres=1)
    if isinstance(model, LeastSquaresRatio):
        model.set_params(penalties=1e-12)
    assert model.fit_samples(np.ones(20), np.ones(30)).ratio([1.0]) == pytest.approx(1, abs=1e-9)


@every_estimator
def test_far_from_all_centres_the_log_ratio_is_finite(estimator):
    model = clone(estimator).set_params(standardise=False).fit_samples(*samples(200, 200))
    near, far = model.log_ratio([3e3, 3e5])
    assert near < -1e4
    furthest = model.centres_[np.flatnonzero(model.weights_)].max()
    assert far == pytest.approx(-0.5 * ((3e5 - furthest) / model.bandwidth_) ** 2, rel=1e-3)
    assert model.ratio([3e5]) == 0


@every_estimator
def test_float32(estimator):
    x_p, x_q = samples(300, 300, d=2)
    double = clone(estimator).fit_samples(x_p, x_q).log_ratio(x_p)
    single = (
        clone(estimator).fit_samples(x_p.astype(np.float32), x_q.astype(np.float32)).log_ratio(x_p.astype(np.float32))
    )
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-3)


@every_estimator
def test_few_rows(estimator):
    x_p, x_q = samples(5, 2)
    model = clone(estimator).set_params(bandwidths=3.0).fit_samples(x_p, x_q)
    assert len(model.centres_) == 5
    assert np.all(np.isfinite(model.log_ratio(x_q)))
    assert model.kl_divergence(x_p[:1]).standard_error == math.inf
    with pytest.raises(ValueError, match="x_p and x_q must have at least 2 rows, got 1 and 2"):
        clone(estimator).fit_samples(x_p[:1], x_q)


@parametrize_with_checks([LeastSquaresRatio(), LeastSquaresRatio(0.1), KLIEPRatio()])
@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning", "ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@every_estimator
def test_as_a_scikit_learn_estimator(estimator):
    x_p, x_q = samples(200, 200, d=2)
    with pytest.raises(NotFittedError):
        clone(estimator).log_ratio(x_p)
    with pytest.raises(NotFittedError):
        clone(estimator).kl_divergence(x_p)
    model = clone(estimator).fit_samples(x_p, x_q)
    again = clone(model)
    assert again.get_params() == estimator.get_params()
    assert not hasattr(again, "weights_")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).log_ratio(x_p), model.log_ratio(x_p))
    X, y = np.concatenate([x_q, x_p]), np.repeat(["a", "b"], 200)
    np.testing.assert_array_equal(again.fit(X, y).log_ratio(x_p), model.log_ratio(x_p))
    frames = [pd.DataFrame(x, columns=["height", "weight"]) for x in (x_p, x_q)]
    named = clone(estimator).fit_samples(*frames)
    assert list(named.feature_names_in_) == ["height", "weight"]
    np.testing.assert_array_equal(named.log_ratio(frames[0]), model.log_ratio(x_p))
    assert not hasattr(named.fit_samples(x_p, x_q), "feature_names_in_")
    named.fit(pd.concat(frames[::-1]), y)
    assert list(named.feature_names_in_) == ["height", "weight"]
    assert not hasattr(named.fit(X, y), "feature_names_in_")


@every_estimator
def test_a_fit_that_fails_leaves_the_last_one_whole(estimator):
    x_p, x_q = samples(100, 100)
    model = clone(estimator).fit_samples(x_p, x_q)
    before = model.log_ratio(x_p)
    with pytest.raises(ValueError, match="bandwidths must reach"):
        model.set_params(centres=[[1e9]], bandwidths=1e-3).fit_samples(x_p, x_q)
    np.testing.assert_array_equal(model.log_ratio(x_p), before)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (LeastSquaresRatio(1.0), ValueError, "alpha must be at least 0 and under 1, got 1.0"),
        (LeastSquaresRatio("0.1"), TypeError, "alpha must be a number, got '0.1'"),
        (LeastSquaresRatio(centres=0), ValueError, "centres must be a whole number, at least 1, got 0"),
        (LeastSquaresRatio(centres=[[0.0, 1.0]]), ValueError, "centres must have 1 columns, as the samples, got 2"),
        (
            LeastSquaresRatio(bandwidths=[1.0, 0.0]),
            ValueError,
            r"bandwidths must be numbers from 1e-70 to 1e\+70, at least one, got \[1.0, 0.0\]",
        ),
        (LeastSquaresRatio(centres=0.5), ValueError, "centres must be rows of finite numbers"),
        (KLIEPRatio(centres=[0.0, np.nan]), ValueError, "centres must be rows of finite numbers"),
        (LeastSquaresRatio(bandwidths=[]), ValueError, r"bandwidths must be numbers .*at least one, got \[\]"),
        (LeastSquaresRatio(bandwidths=[1e-170]), ValueError, r"bandwidths must be numbers .*got \[1e-170\]"),
        (KLIEPRatio(bandwidths=[1e200]), ValueError, r"bandwidths must be numbers .*got \[1e\+200\]"),
        (LeastSquaresRatio(penalties=-1.0), ValueError, r"penalties must be numbers .*got \[-1.0\]"),
        (LeastSquaresRatio(penalties=[1e-300]), ValueError, r"penalties must be numbers .*got \[1e-300\]"),
        (LeastSquaresRatio(penalties=1e-70), ValueError, r"penalties must be larger than rounding .*got \[1e-70\]"),
        (LeastSquaresRatio(0.1, penalties=1e-30), ValueError, r"penalties must be larger .*got \[1e-30\]"),
        (KLIEPRatio(cv=1), ValueError, "cv must be a whole number, at least 2, got 1"),
        (KLIEPRatio(max_iter=0), ValueError, "max_iter must be a whole number, at least 1, got 0"),
        (KLIEPRatio(tol=-1), ValueError, "tol must be at least 0, got -1"),
        (KLIEPRatio(tol=None), TypeError, "tol must be a number, got None"),
    ],
)
def test_wrong_parameters(model, error, message):
    with pytest.raises(error, match=message):
        model.fit_samples(*samples(50, 50))


def test_wrong_samples():
    x_p, x_q = samples(50, 50)
    model = LeastSquaresRatio()
    with pytest.raises(ValueError, match="x_p and x_q must have as many columns, got 1 and 2"):
        model.fit_samples(x_p, np.repeat(x_q, 2, axis=1))
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers"):
        model.fit_samples(x_p, np.full_like(x_q, np.nan))
    with pytest.raises(ValueError, match="x_p and x_q must have the same columns"):
        model.fit_samples(pd.DataFrame(x_p, columns=["a"]), pd.DataFrame(x_q, columns=["b"]))
    with pytest.raises(ValueError, match="y must hold two classes, got one class"):
        model.fit(np.concatenate([x_p, x_q]), np.zeros(100))
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(np.concatenate([x_p, x_q]), np.repeat([0.0, np.nan], 50))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(np.where(x_p > x_p.min(), x_p, np.nan), np.arange(50) % 2)
    for huge in (1e200, 5e307):
        with pytest.raises(ValueError, match="x_p and x_q must have a spread that float64 can hold"):
            model.fit_samples(huge * (2 + np.sign(x_p)), huge * (2 + np.sign(x_q)))
    model.fit_samples(x_p, x_q)
    with pytest.raises(ValueError, match="X contains NaN"):
        model.log_ratio([np.nan])
    with pytest.raises(ValueError, match="x_q must be rows of finite numbers"):
        model.importance_weights([[0.0, 1.0]])
    with pytest.raises(ValueError, match="x_p must be rows of finite numbers"):
        model.kl_divergence([np.inf])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_relative_ratio_beyond_its_bound_is_cut_off_with_a_warning(dtype):
    # Under p alone the relative ratio is 1 / alpha = 2, and a small penalty lets the fit overshoot.
    x_p, x_q = np.linspace(-1, 1, 200, dtype=dtype), np.linspace(-1, 60, 200, dtype=dtype)
    model = LeastSquaresRatio(0.5, centres=[0.0, 2.0], bandwidths=1.0, penalties=1e-9, standardise=False)
    model.fit_samples(x_p, x_q)
    relative = kernel(x_p[:, None].astype(np.float64), model.centres_, 1.0) @ model.weights_
    # Half a row of 400.
    cut = 1 - relative / 2 < 1 / 800
    assert 0 < cut.sum() < 200
    ratio, rtol = np.exp(model.log_ratio(x_p)), 1e-9 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(ratio[~cut], (relative / (2 - relative))[~cut], rtol=rtol)
    np.testing.assert_allclose(ratio[cut], 800 * np.minimum(relative[cut], 2) / 2, rtol=rtol)
    with pytest.warns(AccuracyWarning, match="the relative ratio is within half a row of 1 / alpha, or beyond it"):
        estimate = model.kl_divergence(x_p)
    assert estimate == pytest.approx(np.log(ratio).mean(), rel=1e-5)
    assert estimate.diagnostics["cut"] == cut.sum()
    assert estimate.standard_error > 0.5
    with pytest.warns(AccuracyWarning, match="1 / alpha"):
        assert math.isfinite(kl_divergence_from_samples(x_p, x_q, model, rng=0))


@pytest.mark.filterwarnings("ignore::fastdiv.AccuracyWarning")
@pytest.mark.parametrize("mean", [1.5, 2.0])
def test_rulsif_of_gaussians_whose_ratio_is_unbounded(mean):
    p, q = Normal(mean, 1), Normal(0, 1)
    covered = {"kl_pq": 0, "js": 0}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x_p, x_q = p.sample(500, rng=rng), q.sample(500, rng=rng)
        found = divergences_from_samples(x_p, x_q, estimator="rulsif", rng=rng)
        for name, truth in (("kl_pq", kl_divergence(p, q)), ("js", js_divergence(p, q))):
            assert abs(found[name] - truth) < 0.5 * truth
            covered[name] += abs(found[name] - truth) < 2 * found[name].standard_error
    assert min(covered.values()) >= 3


@every_estimator
def test_a_width_that_reaches_nowhere_else_leaves_finite_divergences(estimator):
    x_p, x_q = samples(20, 20)
    model = clone(estimator).set_params(centres=x_p, bandwidths=1e3).fit_samples(x_p, x_q)
    model.bandwidth_ = 1e-70
    estimate = model.kl_divergence([-5.0, 7.0])
    assert math.isfinite(estimate)
    assert estimate < -1e138


@every_estimator
def test_weights_make_samples_of_q_stand_for_p(estimator):
    x_p, x_q = samples(2000, 3000)
    model = clone(estimator).fit_samples(x_p, x_q)
    weights, size = model.importance_weights(x_q)
    ratio = model.ratio(x_q)
    np.testing.assert_allclose(weights, ratio / ratio.sum(), rtol=1e-9)
    assert size == pytest.approx(ratio.sum() ** 2 / (ratio @ ratio))
    assert abs(weights @ x_q[:, 0] - 1) < 0.1
    with pytest.warns(AccuracyWarning, match="effective samples of x_q's 10"):
        model.importance_weights(x_q[:10])


@every_estimator
def test_lower_bounds(estimator):
    model = clone(estimator).fit_samples(*samples(2000, 2000))
    x_p, x_q = samples(5000, 5000, seed=1)
    for kind, of_mean in (("donsker-varadhan", lambda mean: -math.log(mean)), ("nwj", lambda mean: 1 - mean)):
        bound = model.kl_lower_bound(x_p, x_q, kind)
        assert bound == pytest.approx(model.log_ratio(x_p).mean() + of_mean(model.ratio(x_q).mean()), rel=1e-12)
        assert KL - 0.1 < bound < KL + 4 * bound.standard_error < KL + 0.2


def test_two_threads_leave_blas_as_they_found_it():
    def n_threads():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    entered, done = Event(), Event()

    def other():
        with one_blas_thread():
            entered.set()
            assert done.wait(60)

    before = n_threads()
    if before == {1}:
        pytest.skip("BLAS has one thread here anyway")
    thread = Thread(target=other)
    with one_blas_thread():
        thread.start()
        assert entered.wait(60)
        assert n_threads() == {1}
    done.set()
    thread.join()
    assert n_threads() == before


@every_estimator
def test_separated_samples_are_told(estimator):
    x_p, x_q = samples(100, 100)
    with pytest.warns(AccuracyWarning, match="the ratio separates the samples"):
        model = clone(estimator).fit_samples(x_p, x_q - 30)
    assert model.separated_


@pytest.mark.parametrize("name", ["ulsif", "rulsif", "kliep"])
def test_divergences_by_name(name):
    x_p, x_q = samples(1000, 1200)
    found = divergences_from_samples(x_p, x_q, estimator=name, rng=0)
    for key, truth in (("kl_pq", KL), ("js", js_divergence(P, Q))):
        assert abs(found[key] - truth) < 3 * found[key].standard_error < 0.3
    assert found["kl_pq"] == kl_divergence_from_samples(x_p, x_q, name, rng=0)
    assert found["kl_pq"].diagnostics["mean_ratio"] == pytest.approx(1, abs=0.1)


@every_estimator
@pytest.mark.parametrize("d", [1, 2])
def test_intervals_cover(estimator, d):
    model = clone(estimator).set_params(centres=40, bandwidths=[0.5, 1.0, 2.0])
    rng = np.random.default_rng(d)
    p, q = MultivariateNormal(np.full(d, 0.7), np.ones(d)), MultivariateNormal(np.zeros(d), np.full(d, 1.7))
    truth, covered = kl_divergence(p, q), 0
    for _ in range(20):
        estimate = kl_divergence_from_samples(p.sample(200, rng=rng), q.sample(200, rng=rng), model, rng=rng)
        low, high = estimate.confidence_interval()
        covered += low < truth < high < truth + 1
    # With 95 % of them, fewer than 16 of 20 are one time in 400.
    assert covered >= 16


def test_the_other_divergence_is_by_the_other_ratio():
    # That of q to p: the inverse of a sum of kernels explodes where the sum vanishes.
    x_p, x_q = P.sample((1000, 1), rng=0), Normal(0.5, 1).sample((1000, 1), rng=1)
    found = divergences_from_samples(x_p, x_q, estimator="ulsif", rng=0)
    truth = kl_divergence(Normal(0.5, 1), P)
    assert abs(found["kl_qp"] - truth) < 3 * found["kl_qp"].standard_error < 0.3


def test_three_rows_are_needed_to_leave_some_out():
    with pytest.raises(ValueError, match="x_p and x_q must have at least 3 rows, got 2 and 50"):
        kl_divergence_from_samples(*samples(2, 50), "ulsif")
