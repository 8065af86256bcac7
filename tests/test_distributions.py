"""Densities, moments and samples against SciPy."""

import math
import pickle

import mpmath
import numpy as np
import pytest
from scipy import integrate, special, stats
from scipy.linalg import hilbert

from fastdiv import Mixture, MultivariateNormal, Normal, entropy, log_ratio, log_ratio_normal, optimal_classifier
from fastdiv.distributions import midpoint

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([-1.0, 0.5, 4.0])
STDS = np.array([0.5, 1.0, 2.0])
COVS = np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.9], [-0.9, 1.0]], [[0.3, 0.0], [0.0, 5.0]]])
MEANS_2D = np.array([[0.0, 0.0], [3.0, -1.0], [1.0, 4.0]])


def scipy_mixture_logpdf(components, x):
    terms = [np.log(w) + c.logpdf(x) for w, c in zip(WEIGHTS, components, strict=True)]
    return special.logsumexp(terms, axis=0)


def test_mixture_on_the_line_is_scipys(backend):
    x = np.linspace(-20, 20, 999)
    p = Mixture(WEIGHTS, MEANS, STDS)
    components = [stats.norm(m, s) for m, s in zip(MEANS, STDS, strict=True)]
    np.testing.assert_allclose(p.logpdf(x, backend=backend), scipy_mixture_logpdf(components, x), rtol=1e-13)
    np.testing.assert_allclose(p.pdf(x), np.exp(p.logpdf(x)), rtol=1e-15)
    np.testing.assert_allclose(
        p.cdf(x), sum(w * c.cdf(x) for w, c in zip(WEIGHTS, components, strict=True)), rtol=1e-13
    )
    assert p.log_prob(0.3) == p.logpdf(0.3)


def test_mixture_with_full_covariances_is_scipys(backend):
    x = np.random.default_rng(0).normal(scale=4, size=(500, 2))
    components = [stats.multivariate_normal(m, c) for m, c in zip(MEANS_2D, COVS, strict=True)]
    p = Mixture(WEIGHTS, MEANS_2D, covs=COVS)
    np.testing.assert_allclose(p.logpdf(x, backend=backend), scipy_mixture_logpdf(components, x), rtol=1e-12)


@pytest.mark.parametrize(
    "cov",
    [hilbert(8), [[1, 1 - 1e-12], [1 - 1e-12, 1]], 0.9999999 ** np.abs(np.subtract.outer(np.arange(9), np.arange(9)))],
    ids=["Hilbert", "two alike", "random walk"],
)
def test_nearly_singular_covariances_are_as_exact_as_their_condition_lets_them_be(cov, backend):
    cov, dims = np.array(cov), len(cov)
    mean = np.linspace(-9, 9, dims)
    x = mean + np.random.default_rng(0).normal(size=(5, dims)) * np.sqrt(np.diag(cov))
    with mpmath.workdps(60):
        factor = mpmath.cholesky(mpmath.matrix(cov.tolist()))
        log_norm = mpmath.fsum(mpmath.log(factor[i, i] * mpmath.sqrt(2 * mpmath.pi)) for i in range(dims))
        exact = []
        for point in x:
            z = mpmath.lu_solve(factor, mpmath.matrix(point.tolist()) - mpmath.matrix(mean.tolist()))
            exact.append(float(-mpmath.fsum(value**2 for value in z) / 2 - log_norm))
    error = np.finfo(float).eps * np.linalg.cond(cov)
    np.testing.assert_allclose(MultivariateNormal(mean, cov).logpdf(x, backend=backend), exact, rtol=error)


def test_mixture_with_diagonal_covariances_is_the_full_one(backend):
    x = np.random.default_rng(0).normal(scale=4, size=(500, 2))
    stds = np.array([[1.0, 2.0], [0.5, 0.5], [3.0, 0.1]])
    diagonal = Mixture(WEIGHTS, MEANS_2D, stds)
    full = Mixture(WEIGHTS, MEANS_2D, covs=[np.diag(s**2) for s in stds])
    np.testing.assert_allclose(diagonal.logpdf(x, backend=backend), full.logpdf(x, backend=backend), rtol=1e-13)


def numerical_gradient(p, x):
    """Central differences of the log-density, their error of sixth order."""
    step = 1e-2
    offsets, weights = np.array([-3, -2, -1, 1, 2, 3]) * step, np.array([-1, 9, -45, 45, -9, 1]) / (60 * step)
    around = [p.logpdf(x[..., None, :] + offset * np.eye(x.shape[-1])) for offset in offsets]
    return np.tensordot(weights, around, 1)


@pytest.mark.parametrize("covariances", [{"stds": np.sqrt([[1.0, 2.0], [0.5, 0.5], [3.0, 0.1]])}, {"covs": COVS}])
def test_scores_are_gradients_of_the_log_density(backend, covariances):
    x = np.random.default_rng(0).normal(scale=3, size=(100, 2))
    p = Mixture(WEIGHTS, MEANS_2D, **covariances)
    np.testing.assert_allclose(p.score(x, backend=backend), numerical_gradient(p, x), rtol=1e-6, atol=1e-6)


def test_the_score_of_a_gaussian_is_linear(backend):
    x = np.random.default_rng(0).normal(scale=4, size=(70, 2))
    np.testing.assert_allclose(Normal(1, 2).score(x, backend=backend), (1 - x) / 4, rtol=1e-15)
    for cov in COVS:
        p = MultivariateNormal([1, 2], cov)
        np.testing.assert_allclose(p.score(x, backend=backend), np.linalg.solve(cov, ([1, 2] - x).T).T, rtol=1e-13)


def test_scores_far_out_are_those_of_the_component_that_reaches_farthest(backend):
    p = Mixture([0.2, 0.5, 0.3, 0.0], [0.0, 1.0, -1.0, 0.0], [1.0, 3.0, 2.0, 50.0])
    x = np.array([1e100, -1e160, 1e300, np.inf, -np.inf, np.nan])
    np.testing.assert_allclose(p.score(x, backend=backend), [*(-x[:3] / 9), -np.inf, np.inf, np.nan], rtol=1e-14)
    far = Mixture(WEIGHTS, MEANS_2D, covs=COVS)
    points = np.array([[1e200, 3e200], [1e200, -3e200], [np.inf, 2.0], [np.nan, np.inf]])
    score = far.score(points, backend=backend)
    distances = [[d @ np.linalg.solve(c, d) for c in COVS] for d in np.array([[1.0, 3.0], [1.0, -3.0], [1.0, 0.0]])]
    nearest = np.argmin(distances, axis=1)
    expected = [-np.linalg.solve(COVS[k], x) for k, x in zip(nearest, points[:2], strict=False)]
    np.testing.assert_allclose(score[:2], expected, rtol=1e-13)
    precision = np.linalg.inv(COVS[nearest[2]])
    np.testing.assert_array_equal(score[2], -np.inf * precision[:, 0])
    assert np.isnan(score[3]).all()


@pytest.mark.parametrize(
    ("means", "std", "x", "expected"),
    [([0, 2.0**67], 1, 0.75 * 2.0**67, 2.0**65), ([1e200, -1e155], 1, 0.0, -1e155), ([0, 10], 1e-200, 9.0, np.inf)],
)
def test_scores_between_far_components_are_those_of_the_nearest(backend, means, std, x, expected):
    assert Mixture([0.5, 0.5], means, [std, std]).score(x, backend=backend) == pytest.approx(expected, rel=1e-14)


def test_scores_at_infinity_do_not_take_rounding_for_a_pull(backend):
    for rho in (0.3, 0.5, 0.9):
        p = MultivariateNormal([0, 0, 0], rho ** np.abs(np.subtract.outer(np.arange(3), np.arange(3))))
        np.testing.assert_array_equal(p.score([np.inf, 0, 0], backend=backend), [-np.inf, np.inf, 0])


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_nan_alone_has_nan_for_a_score(backend, dims):
    event = (2,) * bool(dims)
    scales = {"covs": [np.eye(2)]} if dims == 2 else {"stds": np.ones((1, *event))}
    p = Mixture([1.0], np.zeros((1, *event)), **scales)
    np.testing.assert_array_equal(p.score(np.full((3, *event), np.nan), backend=backend), np.full((3, *event), np.nan))
    assert np.isnan(p.score(np.full(event, np.nan), backend=backend)).all()


def test_scores_have_the_shape_and_dtype_of_the_points(backend):
    line, plane = Mixture(WEIGHTS, MEANS, STDS), Mixture(WEIGHTS, MEANS_2D, covs=COVS)
    for p, shape in [(line, ()), (line, (0,)), (line, (2, 3)), (plane, (2,)), (plane, (0, 2)), (plane, (3, 4, 2))]:
        for dtype in (np.float32, np.float64):
            x = np.full(shape, 0.5, dtype)
            score = p.score(x, backend=backend)
            assert (score.shape, score.dtype) == (shape, dtype)
            np.testing.assert_allclose(score, p.score(x.astype(np.float64)), rtol=1e-5)
    assert np.shape(line.score(0.5)) == ()
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 2\), got \(3,\)"):
        plane.score(np.zeros(3))


def test_gaussians_are_mixtures_of_one():
    assert Normal(1, 2).logpdf(0.5) == Mixture([1], [1], [2]).logpdf(0.5) == pytest.approx(stats.norm(1, 2).logpdf(0.5))
    cov = COVS[0]
    x = np.array([0.3, -2.0])
    expected = stats.multivariate_normal([1, 2], cov).logpdf(x)
    assert MultivariateNormal([1, 2], cov).logpdf(x) == pytest.approx(expected, rel=1e-14)
    assert MultivariateNormal([1, 2], [4, 9]).logpdf(x) == pytest.approx(stats.norm([1, 2], [2, 3]).logpdf(x).sum())


def test_float32_parameters_that_do_not_fit_are_computed_in_float64():
    x = np.array([0.0, 1e-30], dtype=np.float32)
    p = Normal(0, 1e-42)
    assert p.logpdf(x).dtype == np.float32
    np.testing.assert_allclose(p.logpdf(x), p.logpdf(x.astype(np.float64)), rtol=1e-6)


def test_moments_are_those_of_the_density():
    p = Mixture(WEIGHTS, MEANS, STDS)
    mean = integrate.quad(lambda x: x * p.pdf(x), -30, 40)[0]
    assert p.mean() == pytest.approx(mean, rel=1e-9)
    assert p.variance() == pytest.approx(integrate.quad(lambda x: (x - mean) ** 2 * p.pdf(x), -30, 40)[0], rel=1e-7)
    full = Mixture(WEIGHTS, MEANS_2D, covs=COVS)
    draws = full.sample(200_000, rng=0)
    np.testing.assert_allclose(full.mean(), draws.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(full.variance(), draws.var(axis=0), rtol=0.02)


def test_samples_follow_the_distribution():
    p = Mixture(WEIGHTS, MEANS, STDS)
    assert stats.kstest(p.sample(20_000, rng=1), p.cdf).pvalue > 0.001
    normal = MultivariateNormal([1, -2], COVS[1])
    draws = normal.sample((100, 50), rng=1)
    assert draws.shape == (100, 50, 2)
    standard = np.linalg.solve(np.linalg.cholesky(COVS[1]), (draws.reshape(-1, 2) - [1, -2]).T)
    assert stats.kstest(standard.ravel(), stats.norm.cdf).pvalue > 0.001


def test_a_seed_fixes_the_samples():
    p = Mixture(WEIGHTS, MEANS, STDS)
    np.testing.assert_array_equal(p.sample(10, rng=7), p.sample(10, rng=np.random.default_rng(7)))
    assert isinstance(p.sample(rng=0), float)


def test_entropy():
    assert Normal(3, 2).entropy() == pytest.approx(stats.norm(3, 2).entropy(), rel=1e-15)
    expected = stats.multivariate_normal([0, 0], COVS[0]).entropy()
    assert MultivariateNormal([0, 0], COVS[0]).entropy() == pytest.approx(expected, rel=1e-14)
    p = Mixture(WEIGHTS, MEANS, STDS)
    by_quad = integrate.quad(lambda x: -p.pdf(x) * p.logpdf(x), -30, 40, limit=200)[0]
    assert p.entropy() == pytest.approx(by_quad, rel=1e-8)
    # Far apart, a mixture's entropy is that of its label and of its parts.
    apart = Mixture([0.5, 0.5], [[-50, 0], [50, 0]], [[1, 1], [1, 1]])
    estimate = entropy(apart, n=20_000, rng=0)
    expected = np.log(2) + 1 + np.log(2 * np.pi)
    assert abs(estimate - expected) < 4 * estimate.standard_error


def test_entropy_far_from_the_origin():
    for p in (
        Mixture([0.5, 0.5], [0, 1e160], [1, 1]),
        Mixture([0.5, 0.5], [[0, 0], [1e9, 1e9]], [[1, 1], [1, 1]]),
    ):
        dims = max(len(p.event_shape) * 2, 1)
        estimate = p.entropy()
        assert abs(estimate - math.log(2) - dims * math.log(2 * math.pi * math.e) / 2) <= 4 * estimate.error


def test_covariances_with_the_asymmetry_of_rounding_are_taken():
    for seed in range(50):
        rotation = stats.ortho_group.rvs(3, random_state=seed)
        cov = (rotation * [2, 2, 2 + 1e-6]) @ rotation.T
        np.testing.assert_array_equal(MultivariateNormal(np.zeros(3), cov).covs[0], (cov + cov.T) / 2)


def test_infinite_points_have_no_density_under_a_full_covariance(backend):
    p = MultivariateNormal([0, 0], np.eye(2))
    points = [[np.inf, 0], [0, -np.inf], [np.inf, -np.inf], [np.nan, np.inf], [0, 0]]
    expected = [-np.inf, -np.inf, -np.inf, np.nan, -np.log(2 * np.pi)]
    np.testing.assert_allclose(p.logpdf(points, backend=backend), expected, rtol=1e-15)


def test_float32_points_do_not_round_the_parameters():
    for p, x in ((Normal(1e6 + 0.03, 1e-2), 1e6), (Normal(100.001, 0.01), 100.03125)):
        assert p.logpdf(np.float32(x)) == pytest.approx(p.logpdf(x), rel=1e-6)


def test_midpoint_is_the_mean_of_the_densities():
    x = np.random.default_rng(0).normal(scale=3, size=(50, 2))
    p, q = Mixture(WEIGHTS, MEANS_2D, covs=COVS), MultivariateNormal([1, 1], [4, 1])
    for pair in ((p, q), (q, p), (q, q), (p, p)):
        expected = (pair[0].pdf(x) + pair[1].pdf(x)) / 2
        np.testing.assert_allclose(midpoint(*pair).pdf(x), expected, rtol=1e-12)


def test_log_ratio_and_the_optimal_classifier():
    x = np.linspace(-5, 5, 500)
    p, q = Normal(1, 1), Normal(0, 2)
    closed = log_ratio_normal(x, 1, 1, 0, 2)
    np.testing.assert_allclose(log_ratio(x, p, q), closed, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(optimal_classifier(x, p, q), p.pdf(x) / (p.pdf(x) + q.pdf(x)), rtol=1e-13)
    np.testing.assert_allclose(optimal_classifier(x, p, q), special.expit(closed), rtol=1e-13)


def test_parameters_are_read_only_and_pickled():
    p = Mixture(WEIGHTS, MEANS_2D, covs=COVS)
    with pytest.raises(ValueError, match="read-only"):
        p.means[0, 0] = 1
    for original in (p, Normal(1, 2), MultivariateNormal([0, 0], [1, 2])):
        x = np.zeros((3, *original.event_shape))
        # A kernel set that has been used leaves views of the parameters, which cannot be pickled.
        expected = original.logpdf(x)
        copy = pickle.loads(pickle.dumps(original))
        np.testing.assert_array_equal(copy.logpdf(x), expected)
        assert repr(copy) == repr(original)


def test_representations():
    assert repr(Normal(1, 2)) == "Normal(loc=1.0, scale=2.0)"
    assert repr(MultivariateNormal([0, 1], [1, 4])) == "MultivariateNormal([0., 1.], [1., 4.])"
    assert repr(Mixture([0.5, 0.5], [0, 1], [1, 2])) == "Mixture([0.5, 0.5], [0., 1.], stds=[1., 2.])"
