"""The kernel contract, and each kernel against the NumPy reference and against mpmath."""

import importlib
import inspect
import itertools
from functools import cache, partial

import mpmath
import numpy as np
import pytest
from numba import njit
from scipy.special import logsumexp
from scipy.stats import norm

from benchmarks import exact
from benchmarks.exact import ulp_error
from benchmarks.table import CALLS, KERNELS, TABLE
from conftest import COMPILED, REFERENCE
from fastdiv import Mixture, _kernels_numba
from fastdiv import _kernels_numpy as reference
from fastdiv.distributions import FLOAT64
from fastdiv.montecarlo import new_moments


@pytest.mark.parametrize("name", [REFERENCE, *COMPILED])
def test_sets_export_the_same_kernels_with_the_same_signatures(name):
    module = importlib.import_module(name)
    assert module.__all__ == reference.__all__ == [row.name for row in KERNELS]
    for kernel in module.__all__:
        parameters = list(inspect.signature(getattr(module, kernel)).parameters)
        assert parameters == list(inspect.signature(getattr(reference, kernel)).parameters)


@pytest.mark.parametrize("n", [2, 63, 64, 257, 1000])
@pytest.mark.parametrize("k", [1, 3, 64])
@pytest.mark.parametrize("name", reference.__all__)
def test_sets_agree_in_float64(kernels, name, n, k):
    found = []
    for module in (reference, kernels):
        inputs, outputs = TABLE[name].load(n, k)
        getattr(module, name)(*inputs, *outputs)
        found.append(outputs)
    for wanted, output in zip(*found, strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("name", reference.__all__)
def test_float32_agrees_with_the_float64_reference(kernels, name, k):
    inputs, outputs = TABLE[name].load(1000, k, np.float32)
    others, _ = TABLE[name].load(1000, k, np.float32)
    inputs64 = [a.astype(np.float64) if getattr(a, "dtype", None) == np.float32 else a for a in others]
    _, expected = TABLE[name].load(1000, k)
    getattr(kernels, name)(*inputs, *outputs)
    getattr(reference, name)(*inputs64, *expected)
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5 * max(1, TABLE[name].least))


@cache
def truths(name, dtype):
    return TABLE[name].exact(*TABLE[name].load(100, 8, dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.name)
def test_kernels_are_within_64_ulp_of_the_truth(kernels, row, dtype):
    for answer, truth in zip(row.bind(None, 100, 8, dtype)(), truths(row.name, dtype), strict=True):
        assert ulp_error(answer, truth, dtype, row.least) < 64


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.name)
def test_calls_agree_with_every_kernel_set(kernels, row):
    for answer, expected in zip(row.bind(None, 1000)(), row.bind("numpy", 1000)(), strict=True):
        np.testing.assert_allclose(answer, expected, rtol=1e-10)


def test_batches_of_many_blocks_agree(kernels):
    params = []
    for module in (reference, kernels):
        inputs, outputs = TABLE["mlp_epoch"].load(1000)
        module.mlp_epoch(*inputs[:4], 300, *inputs[5:], *outputs)
        params.append(outputs[0])
    np.testing.assert_allclose(*params, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n_features", [1, 2, 3, 4, 7, 13])
@pytest.mark.parametrize(("n_sums", "n_hessian", "n_squares"), [(2, 0, 0), (2, 1, 0), (4, 0, 1), (4, 1, 1)])
def test_newton_passes_of_any_width_agree(kernels, n_features, n_sums, n_hessian, n_squares):
    rng = np.random.default_rng(n_features)
    side = n_features + 1
    X, y = rng.normal(size=(300, n_features)), rng.integers(2, size=300).astype(np.float64)
    inputs = X, rng.normal(size=n_features), rng.uniform(0.5, 2, n_features), y, rng.uniform(0.5, 2, 300)
    found = []
    for module in (reference, kernels):
        outputs = [np.zeros((n_sums, side)), *(np.zeros((side * n, side * n)) for n in (n_hessian, n_squares))]
        outputs.append(np.array([0.0, np.inf, -np.inf, 0.0, 0.0, 0.0, 0.0]))
        module.logistic_newton_pass(*inputs, np.linspace(-1, 1, side), *outputs)
        found.append(outputs)
    for expected, output in zip(*found, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


def test_rows_without_weight_separate_nothing(kernels):
    (X, centre, scale, y, weight, coef), outputs = TABLE["logistic_newton_pass"].load(300)
    log_odds = (X - centre) * scale @ coef[:-1] + coef[-1]
    weight[[*np.argsort(log_odds)[:100], *np.argsort(log_odds)[-100:]]] = 0
    kernels.logistic_newton_pass(X, centre, scale, y, weight, coef, *outputs)
    expected = log_odds[(y == 1) & (weight > 0)].min(), log_odds[(y == 0) & (weight > 0)].max()
    np.testing.assert_allclose(outputs[-1][1:3], expected, rtol=1e-12)


def test_moments_far_from_zero(kernels):
    X = np.repeat([[1e9, 3.0], [1e9 + 1, 3.0]], 500, axis=0)
    means, squares, total = np.empty(2), np.empty(2), np.empty(1)
    kernels.column_moments(X, np.full(1000, 0.5), means, squares, total)
    np.testing.assert_allclose(means, [1e9 + 0.5, 3], rtol=1e-15)
    np.testing.assert_allclose(squares, [125, 0], rtol=1e-12)
    assert total == 500


def test_newton_steps_go_on_where_they_stopped(kernels):
    coefs = []
    for room in (1, 2, 20):
        (*data, _, _, metric), (coef, *others, _, state) = TABLE["logistic_newton_steps"].load(300)
        while state[1] < 2:
            kernels.logistic_newton_steps(*data, 1e-6, 1e-15, metric, coef, *others, np.empty(room), state)
        assert state[1] == 2
        coefs.append(coef)
    np.testing.assert_array_equal(coefs[0], coefs[2])
    np.testing.assert_array_equal(coefs[1], coefs[2])


def test_sgd_agrees_after_ten_epochs(kernels):
    coefs = []
    for module in (reference, kernels):
        inputs, outputs = TABLE["logistic_sgd_epoch"].load(5000)
        for _ in range(10):
            module.logistic_sgd_epoch(*inputs, *outputs)
        coefs.append(outputs[0])
    np.testing.assert_allclose(*coefs, rtol=1e-10)


@pytest.mark.parametrize("n_features", [1, 7, 8, 9, 16, 25])
@pytest.mark.parametrize("batch_size", [1, 32, 150])
def test_sgd_of_any_width_agrees(kernels, n_features, batch_size):
    rng = np.random.default_rng(n_features)
    X, y = rng.normal(size=(300, n_features)), rng.integers(2, size=300).astype(np.float64)
    data = X, rng.normal(size=n_features), rng.uniform(0.5, 2, n_features), y, rng.uniform(0.5, 2, 300)
    rest = rng.permutation(300), batch_size, 0.05, 0.5, 0.9, 1e-3, 3
    found = []
    for module in (reference, kernels):
        outputs = *np.zeros((3, n_features + 1)), np.zeros(1)
        module.logistic_sgd_epoch(*data, *rest, *outputs)
        found.append(outputs)
    for output, expected in zip(*found, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-11)


def test_sgd_in_parts_is_the_epoch(kernels):
    whole, parts = (TABLE["logistic_sgd_epoch"].load(1000) for _ in range(2))
    kernels.logistic_sgd_epoch(*whole[0], *whole[1])
    *data, rows, batch_size, rate, power_t, momentum, alpha, n_steps = parts[0]
    loss = 0.0
    for start in range(0, 1000, 320):
        options = batch_size, rate, power_t, momentum, alpha, n_steps + start // 32
        kernels.logistic_sgd_epoch(*data, rows[start : start + 320], *options, *parts[1])
        loss += parts[1][-1][0]
    for part, expected in zip(parts[1][:3], whole[1][:3], strict=True):
        np.testing.assert_array_equal(part, expected)
    assert loss == pytest.approx(whole[1][-1][0], rel=1e-14)


def mpmath_logpdf(x, mixture):
    """The log-density to 50 digits; mpmath's exponents do not underflow."""
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for weight, mean, std in zip(mixture.weights, mixture.means, mixture.stds, strict=True):
            z = (mpmath.mpf(x) - mpmath.mpf(float(mean))) / mpmath.mpf(float(std))
            norm = mpmath.mpf(float(std)) * mpmath.sqrt(2 * mpmath.pi)
            total += mpmath.mpf(float(weight)) / norm * mpmath.exp(-z * z / 2)
        return mpmath.log(total)


@pytest.fixture(scope="module")
def random_mixtures():
    """1000 mixtures of 1 to 64 components, stds from 1e-12 to 1e12, points to 1e150, and the true log-densities."""
    rng = np.random.default_rng(2026)
    cases = []
    for i in range(1000):
        k = 1 + i % 64
        scale = 10 ** rng.uniform(-3, 3)
        stds = 10 ** rng.uniform(-12, 12, k)
        mixture = Mixture(rng.dirichlet(np.ones(k)), rng.normal(scale=scale, size=k), stds)
        near = mixture.means[i % k] + mixture.stds[i % k] * rng.normal()
        x = near if i % 2 else rng.choice([-1, 1]) * 10 ** rng.uniform(-10, 150)
        cases.append((mixture, float(x), mpmath_logpdf(float(x), mixture)))
    return cases


def test_mixture_logpdf_against_mpmath(kernels, random_mixtures):
    largest = mpmath.mpf(np.finfo(np.float64).max)
    for mixture, x, expected in random_mixtures:
        value = mixture.logpdf(x)
        if expected < -largest:
            assert value == -np.inf, (mixture, x)
        else:
            error = abs(mpmath.mpf(float(value)) - expected)
            assert error <= 1e-13 * max(1, abs(expected)), (mixture, x, value, expected)


def test_log_densities_are_minus_inf_only_where_a_float_cannot_hold_them(kernels):
    p = Mixture([0.3, 0.7], [0.0, 1.0], [1.0, 2.0])
    assert p.logpdf(1e150) == pytest.approx(-1.25e299, rel=1e-13)
    # The square overflows and half of a quarter of it does not.
    assert p.logpdf(3.7e154) == pytest.approx(-0.125 * 3.7e154 * 3.7e154, rel=1e-13)
    assert p.logpdf(1e155) == -np.inf
    assert Mixture([0.5, 0.5], [0, 0], [1e-300, 1e-300]).logpdf(0.0) == pytest.approx(689.856589, rel=1e-9)


@pytest.fixture
def spread_mixture():
    """64 components, most of which count for nothing at any one point."""
    rng = np.random.default_rng(5)
    return Mixture(rng.dirichlet(np.full(64, 5.0)), rng.normal(scale=50, size=64), rng.uniform(0.5, 2, 64))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sorted_points_have_the_densities_of_shuffled_ones(kernels, spread_mixture, dtype):
    rng = np.random.default_rng(6)
    x = np.sort(np.concatenate([spread_mixture.sample(5000, rng=rng), np.linspace(-400, 400, 999)])).astype(dtype)
    order = rng.permutation(x.size)
    whole = spread_mixture.logpdf(x)
    rtol = 1e-13 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(whole[order], spread_mixture.logpdf(x[order]), rtol=rtol, atol=rtol)
    terms = norm.logpdf(x[:, None].astype(np.float64), spread_mixture.means, spread_mixture.stds)
    expected = logsumexp(terms + np.log(spread_mixture.weights), axis=1)
    np.testing.assert_allclose(whole, expected, rtol=rtol, atol=rtol)


def test_a_point_is_not_disturbed_by_its_neighbours(kernels, spread_mixture):
    x = np.tile([0.0, 1e4, np.nan, -1e200, np.inf, 3.0, -np.inf, 20.0], 30)
    alone = np.array([spread_mixture.logpdf(point) for point in x.tolist()])
    np.testing.assert_allclose(spread_mixture.logpdf(x), alone, rtol=1e-14)
    np.testing.assert_array_equal(alone[2:5], [np.nan, -np.inf, -np.inf])


def test_trapezoid_kl_on_grids_too_coarse_or_too_wide_for_a_recurrence(kernels):
    rng = np.random.default_rng(7)
    for num in [2, 3, 64, 65, 500, 1000, 4099] * 20:
        p, q = (
            Mixture(rng.dirichlet(np.ones(k)), rng.normal(scale=3, size=k), 10 ** rng.uniform(-2, 1, k))
            for k in rng.integers(1, 12, 2)
        )
        arguments = *p.kernel_parameters(FLOAT64), *q.kernel_parameters(FLOAT64)
        reach = 10 ** rng.uniform(-1, 3)
        values = np.empty((2, 1))
        for module, out in zip((reference, kernels), values, strict=True):
            module.trapezoid_kl(*arguments, -reach, reach, num, 0, num, out)
        # Rounding a point moves it by so many standard deviations.
        moved = np.spacing(reach) / min(p.stds.min(), q.stds.min())
        np.testing.assert_allclose(values[1], values[0], rtol=1e-12 + 20 * moved, atol=1e-12)


def test_a_zero_weight_contributes_nothing(kernels):
    x = np.array([-3.0, 0.0, 50.0])
    with_zero = Mixture([0.4, 0.0, 0.6], [0, 50, 1], [1, 1e-6, 2])
    without = Mixture([0.4, 0.6], [0, 1], [1, 2])
    np.testing.assert_array_equal(with_zero.logpdf(x), without.logpdf(x))
    np.testing.assert_allclose(with_zero.score(x), without.score(x), rtol=1e-14)


def mpmath_score(x, mixture):
    """The score, and how large the terms are whose sum it is, with the rounding of their exponents."""
    with mpmath.workdps(50):
        parts = []
        for weight, mean, std in zip(
            *(a.tolist() for a in (mixture.weights, mixture.means, mixture.stds)), strict=True
        ):
            z = (mpmath.mpf(x) - mean) / std
            parts.append((mpmath.mpf(weight) / std * mpmath.exp(-z * z / 2), -z / std, z * z))
        total = mpmath.fsum(term for term, *_ in parts)
        expected = mpmath.fsum(term * slope for term, slope, _ in parts) / total
        return expected, mpmath.fsum(term * abs(slope) * (1 + z2) for term, slope, z2 in parts) / total


@pytest.fixture(scope="module")
def random_scores(random_mixtures):
    return [(mixture, x, *mpmath_score(x, mixture)) for mixture, x, _ in random_mixtures]


def test_score_against_mpmath(kernels, random_scores):
    for mixture, x, expected, size in random_scores:
        for value in (mixture.score(x), *mixture.score(np.full(9, x))):
            assert abs(mpmath.mpf(float(value)) - expected) <= 4e-15 * size, (mixture, x, value, expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_component_that_carries_the_score_and_not_the_density_is_kept(kernels, dtype):
    # Where the narrow one's density falls under the wide ones' rounding, and its slope does not.
    narrow = 1e-2 if dtype == np.float32 else 1e-4
    for wide in (1.0, 1e2, 1e4, 1e8):
        p = Mixture([0.5, 0.3, 0.1, 0.1], [0] * 4, [wide, narrow, wide, wide])
        x = (narrow * np.linspace(5, 13, 64)).astype(dtype)
        for point, value in zip(x, p.score(x), strict=True):
            expected, size = mpmath_score(float(point), p)
            assert abs(mpmath.mpf(float(value)) - expected) <= 20 * np.finfo(dtype).eps * size, (p, point, value)


@pytest.mark.parametrize(("dtype", "std"), [(np.float64, 1e60), (np.float64, 1e-150), (np.float32, 1e23)])
def test_scores_do_not_depend_on_the_unit(kernels, dtype, std):
    p = Mixture([0.5, 0.5], [0, 0], [std, std])
    z = np.linspace(-35, 35, 99) if dtype == np.float64 else np.linspace(-10, 10, 99)
    np.testing.assert_allclose(p.score((std * z).astype(dtype)).astype(np.float64) * std, -z, rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_component_that_overflows_leaves_the_others_alone(kernels, dims):
    covs = np.array([np.eye(dims), np.eye(dims)])
    covs[:, -1, -1] = 1e-300, 1e20
    x = np.zeros((1, dims))
    x[0, -1] = 1e160
    assert Mixture([0.5, 0.5], np.zeros((2, dims)), covs=covs).logpdf(x) == pytest.approx(-5e299, rel=1e-13)


def test_scores_of_sorted_points_are_those_of_shuffled_ones(kernels, spread_mixture):
    rng = np.random.default_rng(8)
    x = np.sort(np.concatenate([spread_mixture.sample(5000, rng=rng), np.linspace(-400, 400, 999)]))
    order = rng.permutation(x.size)
    alone = np.array([spread_mixture.score(point) for point in x.tolist()])
    np.testing.assert_allclose(spread_mixture.score(x), alone, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(spread_mixture.score(x[order]), alone[order], rtol=1e-11, atol=1e-11)


def test_logsumexp_rows_keeps_small_remainders(kernels):
    rows = np.array([[0.0, -50.0], [1e4, 1e4], [-1e4, -1e4], [0.0, -800.0], [-np.inf, -np.inf], [np.inf, 1.0]])
    out = np.empty(len(rows))
    kernels.logsumexp_rows(rows, out)
    expected = [np.exp(-50), 1e4 + np.log(2), -1e4 + np.log(2), 0.0, -np.inf, np.inf]
    np.testing.assert_allclose(out, expected, rtol=1e-15)


def test_moments_of_a_large_offset_keep_their_digits(kernels):
    # Integers near 1e9: every sum in exact arithmetic is known.
    values = 1e9 + np.arange(10_001.0) % 7
    moments = new_moments()
    kernels.log_ratio_moments(values, np.zeros_like(values), moments)
    exact = np.arange(10_001) % 7
    assert moments[0] == 10_001
    assert moments[1] + moments[5] == pytest.approx(1e9 + exact.mean(), rel=1e-16)
    assert moments[2] == pytest.approx(np.sum((exact - exact.mean()) ** 2), rel=1e-12)
    assert (moments[3], moments[4]) == (1e9, 1e9 + 6)


def test_moments_far_from_zero_keep_the_spread(kernels):
    exact = np.arange(1000) % 8 / 8  # in binary, at any offset below 2^49
    for offset in (1e9, 2.0**45):
        moments = new_moments()
        kernels.log_ratio_moments(offset + exact, np.zeros(1000), moments)
        assert moments[2] == pytest.approx(np.sum((exact - exact.mean()) ** 2), rel=1e-12)


def test_moments_merge_as_if_taken_at_once(kernels):
    rng = np.random.default_rng(3)
    log_p, log_q = rng.normal(size=(2, 5000))
    whole, merged = new_moments(), new_moments()
    kernels.log_ratio_moments(log_p, log_q, whole)
    for part in np.split(np.arange(5000), [0, 1, 700, 4999]):
        moments = new_moments()
        kernels.log_ratio_moments(log_p[part], log_q[part], moments)
        kernels.merge_moments(moments, merged)
    np.testing.assert_allclose(merged[:5], whole[:5], rtol=1e-13)


def test_moments_of_an_infinite_ratio(kernels):
    moments = new_moments()
    kernels.log_ratio_moments(np.zeros(600), np.where(np.arange(600) == 400, -np.inf, 0.0), moments)
    assert moments[1] == np.inf
    assert np.isnan(moments[2])


def test_an_sgd_step_is_the_gradient_step(kernels):
    # One batch from zero: probabilities are 1/2, so the step is rate * mean of weight (y - 1/2) x.
    X = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    y, weight = np.array([1.0, 0.0, 1.0]), np.array([1.0, 2.0, 0.5])
    data = X, np.zeros(2), np.ones(2), y, weight, np.arange(3, dtype=np.intp), 3
    coef, velocity, none, out = np.zeros(3), np.zeros(3), np.empty(0), np.empty(1)
    kernels.logistic_sgd_epoch(*data, 0.1, 0.0, 0.9, 0.0, 0, coef, velocity, none, out)
    step = 0.1 * np.mean((weight * (y - 0.5))[:, None] * np.column_stack([X, np.ones(3)]), axis=0)
    np.testing.assert_allclose(coef, step, rtol=1e-15)
    assert out[0] == pytest.approx(weight.sum() * np.log(2), rel=1e-15)
    # The second: momentum times the first step, less the penalty's pull, plus the new gradient.
    before = coef.copy()
    kernels.logistic_sgd_epoch(*data, 0.1, 0.0, 0.9, 0.5, 1, coef, velocity, none, out)
    residual = weight * (y - 1 / (1 + np.exp(-(X @ before[:2] + before[2]))))
    gradient = np.append(X.T @ residual / 3 - 0.5 * before[:2], residual.mean())
    np.testing.assert_allclose(coef - before, 0.9 * step + 0.1 * gradient, rtol=1e-13)


def posterior(n, n_components, scale_prior, n_dims=3, seed=0):
    """Rows, what is known of a Bayesian mixture of them, and its number of parameters."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_dims)) + rng.choice([-1.5, 1.5], size=(n, 1))
    whitener = np.eye(n_dims) + np.tril(rng.normal(scale=0.2, size=(n_dims, n_dims)))
    known = whitener, rng.uniform(0.1, 2, n_components), np.array([scale_prior, 0.3, 1.3, 0.8, -5.0])
    return x, known, n_components - 1 + n_components * n_dims * (2 if scale_prior else 1)


def batch_of(rng, n, shape):
    return rng.integers(n, size=shape).astype(np.intp)


@pytest.mark.parametrize("scale_prior", [0, 1, 2])
@pytest.mark.parametrize("n_components", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 128, 129, 300])
def test_posteriors_of_any_size_agree(kernels, n, n_components, scale_prior):
    x, known, n_params = posterior(n, n_components, scale_prior)
    rng = np.random.default_rng(n)
    theta = rng.normal(scale=0.5, size=n_params)
    for size in (0, 1, 40, 150):
        rows = batch_of(rng, n, size)
        found = np.empty((2, 1 + n_params))
        for module, out in zip((reference, kernels), found, strict=True):
            module.mixture_model_logp_grad(x, rows, *known, theta, out)
        np.testing.assert_allclose(found[1], found[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("component", [0, 1])
def test_a_density_that_is_not_a_number_is_not_zero(kernels, component):
    x, known, n_params = posterior(20, 2, 1, n_dims=2)
    theta, out = np.zeros(n_params), np.empty(1 + n_params)
    # A row at the mean of a component whose reciprocal standard deviations are infinite.
    theta[1:5].reshape(2, 2)[component], theta[5:].reshape(2, 2)[component] = x[3], -800
    with np.errstate(all="ignore"):
        kernels.mixture_model_logp_grad(x, np.empty(0, np.intp), *known, theta, out)
    assert np.isnan(out[0])


@pytest.mark.parametrize("scale_prior", [0, 1, 2])
def test_gradients_are_differences_of_the_exact_density(kernels, scale_prior):
    x, known, n_params = posterior(5, 3, scale_prior, n_dims=2)
    theta, rows = np.random.default_rng(4).normal(size=n_params), np.array([4, 0, 4], dtype=np.intp)
    out = np.empty(1 + n_params)
    kernels.mixture_model_logp_grad(x, rows, *known, theta, out)
    step = np.eye(n_params, dtype=object) * mpmath.mpf(2) ** -40
    exactly = [exact._carry(array) for array in (x[rows], np.array(5 / 3), *known)]
    factor = exact._mp.mpf(5) / 3

    def density(theta):
        return exact._log_posterior(exactly[0], factor, *exactly[2:], theta)[0]

    carried = exact._carry(theta)
    differences = [(density(carried + move) - density(carried - move)) * mpmath.mpf(2) ** 39 for move in step]
    np.testing.assert_allclose(out[0], float(density(carried)), rtol=1e-14)
    np.testing.assert_allclose(out[1:], np.array(differences, dtype=float), rtol=1e-12, atol=1e-13)


def test_a_row_far_from_all_components_counts_as_the_nearest_has_it(kernels):
    x, known, n_params = posterior(50, 3, 1)
    x[7] = 1e3
    theta = np.random.default_rng(5).normal(scale=0.5, size=n_params)
    found = np.empty((2, 1 + n_params))
    for module, out in zip((reference, kernels), found, strict=True):
        module.mixture_model_logp_grad(x, np.empty(0, np.intp), *known, theta, out)
    assert found[1, 0] < -1e5
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


def variational(solver, is_full, n_params, n_steps, n_rows, n):
    """What a kernel of ADVI reads of batches, noise and the solver, and what it moves on, for so many steps."""
    rng = np.random.default_rng(solver)
    noise, size = rng.normal(size=(n_steps, 2, n_params)), 2 * n_params + is_full * n_params * (n_params - 1) // 2
    phi = rng.normal(scale=0.1, size=size)
    phi[n_params : 2 * n_params] -= 1
    options = solver, 1e-5 if solver == 0 else 0.05, 0.8, 0.9, 1e-6
    return batch_of(rng, n, (n_steps, n_rows)), noise, options, phi, np.zeros(((1, 1, 7, 1, 2)[solver], size))


def steps(module, solver, is_full, scale_prior, n_components, n_rows):
    x, known, n_params = posterior(130, n_components, scale_prior)
    rows, noise, options, *phi_state = variational(solver, is_full, n_params, 20, n_rows, 130)
    losses = np.empty(20)
    module.advi_mixture_steps(x, rows, noise, *known, *options, 0, *phi_state, losses)
    return *phi_state, losses


@cache
def reference_steps(*case):
    return steps(reference, *case)


@pytest.mark.parametrize("solver", range(5))
@pytest.mark.parametrize("is_full", [False, True])
def test_variational_steps_agree(kernels, solver, is_full):
    for case in itertools.product(range(3), (1, 2, 5), (0, 33)):
        wanted, found = (take(solver, is_full, *case) for take in (reference_steps, partial(steps, kernels)))
        for expected, output in zip(wanted, found, strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("solver", range(5))
def test_variational_steps_go_on_where_they_stopped(kernels, solver):
    x, known, n_params = posterior(70, 2, 1)
    found = []
    for cuts in ([], [5], [1, 12]):
        rows, noise, options, phi, state = variational(solver, True, n_params, 20, 33, 70)
        losses = np.empty(20)
        for start, stop in zip([0, *cuts], [*cuts, 20], strict=True):
            part = slice(start, stop)
            kernels.advi_mixture_steps(x, rows[part], noise[part], *known, *options, start, phi, state, losses[part])
        found.append((phi, state, losses))
    for outputs in found[1:]:
        for output, expected in zip(outputs, found[0], strict=True):
            np.testing.assert_array_equal(output, expected)


def test_the_bound_rises(kernels):
    x, known, n_params = posterior(100, 2, 0)
    rows, noise, options, phi, state = variational(1, False, n_params, 2000, 0, 100)
    losses = np.empty(2000)
    kernels.advi_mixture_steps(x, rows, noise, *known, *options, 0, phi, state, losses)
    assert losses[1000:].mean() < losses[:100].mean() - 10


def test_numba_steps_along_compiled_functions_of_the_user():
    data = np.random.default_rng(6).normal(2, 1.5, size=50)

    @njit
    def logp_grad(theta, rows):
        """A normal of unknown mean and logarithm of the standard deviation, both with a standard normal prior."""
        batch = data[rows] if len(rows) else data
        z = (batch - theta[0]) * np.exp(-theta[1])
        factor = len(data) / len(batch)
        value = factor * np.sum(-0.5 * z * z - theta[1]) - 0.5 * np.sum(theta * theta)
        return value, factor * np.array([np.sum(z) * np.exp(-theta[1]), np.sum(z * z - 1)]) - theta

    for is_full, n_rows in np.ndindex(2, 2):
        found = []
        for module, function in ((reference, logp_grad.py_func), (_kernels_numba, logp_grad)):
            rows, noise, options, *phi_state = variational(4, is_full, 2, 300, 7 * n_rows, 50)
            losses = np.empty(300)
            module.advi_steps(function, rows, noise, *options, 0, *phi_state, losses)
            found.append((*phi_state, losses))
        for expected, output in zip(*found, strict=True):
            np.testing.assert_allclose(output, expected, rtol=1e-10, atol=1e-10)
        assert found[0][0][0] == pytest.approx(2, abs=0.5)


def walk(module, x, known, theta, scale, n_steps=200):
    """Draws, their log-densities and how often each block moved."""
    rng = np.random.default_rng(7)
    n_components, n_dims = len(known[1]), x.shape[1]
    n_blocks = 1 + (theta.size - n_components + 1) // n_dims
    noise, thresholds = rng.normal(size=(n_steps, theta.size)), rng.exponential(size=(n_steps, n_blocks))
    room, outputs = (
        np.empty((n_components + 2, -(-len(x) // 64) * 64)),
        (np.empty_like(noise), np.empty(n_steps), np.zeros(n_blocks)),
    )
    scales = np.full(n_blocks, scale)
    module.metropolis_mixture_steps(x, noise, thresholds, scales, *known, theta.copy(), room, *outputs)
    return outputs


def assert_same_walks(found, wanted):
    np.testing.assert_array_equal(found[2], wanted[2])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-10)


@cache
def reference_walk(n, n_components, scale_prior):
    """What is walked over, and the walk of the NumPy set."""
    x, known, n_params = posterior(n, n_components, scale_prior, n_dims=2)
    case = x, known, np.zeros(n_params), 1 / np.sqrt(n)
    return case, walk(reference, *case)


@pytest.mark.parametrize("scale_prior", [0, 1, 2])
@pytest.mark.parametrize("n_components", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 33, 300])
def test_walks_agree(kernels, n, n_components, scale_prior):
    case, wanted = reference_walk(n, n_components, scale_prior)
    found = walk(kernels, *case)
    assert_same_walks(found, wanted)
    accepted = found[2]
    # One component has no weights to move.
    assert np.all(accepted[n_components == 1 :] > 0)
    assert np.all(accepted < 200)
    assert n_components > 1 or accepted[0] == 0


@cache
def reference_walk_from_afar(n_components, sticks, scale):
    x, known, n_params = posterior(300, n_components, 0, n_dims=2)
    theta = np.full(n_params, 300.0)
    theta[: n_components - 1] = sticks
    case = x, known, theta, scale
    return case, walk(reference, *case)


@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_walks_from_where_relative_densities_overflow(kernels, n_components):
    # A weight may be so small that its product with what a double cannot hold would not be large.
    for sticks, scale in itertools.product((0, -70), (0.5, 20.0)):
        case, wanted = reference_walk_from_afar(n_components, sticks, scale)
        assert_same_walks(walk(kernels, *case), wanted)


def test_walks_with_a_row_far_from_all_components(kernels):
    x, known, n_params = posterior(300, 2, 2, n_dims=2)
    x[7] = 1e3
    case = x, known, np.zeros(n_params), 0.3
    assert_same_walks(walk(kernels, *case), walk(reference, *case))


def test_walks_draw_from_the_posterior(kernels):
    # Of one row and one component: a normal prior, a normal likelihood, a normal posterior.
    x, precision = np.array([[3.0]]), 0.5
    known = np.eye(1), np.ones(1), np.array([0, precision, 0, 0, 0])
    draws, logps, _ = walk(kernels, x, known, np.zeros(1), 2.0, 5000)
    assert draws.mean() == pytest.approx(3 / (1 + precision), abs=0.1)
    assert draws.std() == pytest.approx(1 / np.sqrt(1 + precision), rel=0.1)
    expected = -0.5 * (3 - draws[:, 0]) ** 2 - 0.5 * precision * draws[:, 0] ** 2
    np.testing.assert_allclose(logps, expected, rtol=1e-9, atol=1e-9)
