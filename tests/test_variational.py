"""Published fits, optima known in closed form, and what is refused."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats
from scipy.special import log_expit, polygamma

from fastdiv import (
    AccuracyWarning,
    Mixture,
    MultivariateNormal,
    Normal,
    Transformed,
    elbo,
    fit_kl,
    kl_divergence,
    transforms,
    trapezoid_kl_normal,
    unconstrain,
)

S4 = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
BOX = (-4, 8), (0.1, 3)
COIN_BOX = (-3, 3), (0.1, 1)
POSTERIOR = unconstrain(stats.beta(3, 4))
COVARIANCE = np.array([[2.0, 0.9, -0.3], [0.9, 1.0, 0.2], [-0.3, 0.2, 0.5]])
GAUSSIAN = MultivariateNormal([1, -2, 3], COVARIANCE)


def coin(x):
    """Likelihood of the flips 0, 1, 1, 0, 0 times a uniform prior, by the log-odds of heads."""
    prior = log_expit(x) + log_expit(-x)
    return prior + 2 * log_expit(x) + 3 * log_expit(-x)


def parameters(q):
    return float(q.loc), float(q.scale)


def slopes(q, score):
    """The derivatives of KL(q || p) in mean and standard deviation, by SciPy's quadrature."""

    def moment(k):
        def integrand(x):
            return q.pdf(x) * score(x) * ((x - q.loc) / q.scale) ** k

        edges = [q.loc + step * q.scale for step in range(-9, 10)]
        return math.fsum(integrate.quad(integrand, *ends, epsabs=1e-13)[0] for ends in itertools.pairwise(edges))

    return -moment(0), -moment(1) - 1 / q.scale


@pytest.mark.parametrize(
    ("target", "direction", "ranges", "published"),
    [
        (S4, "mode-seeking", BOX, (3.99992, 0.50034)),
        (S4, "mass-covering", BOX, (2.00011, 2.52480)),
        (POSTERIOR, "mode-seeking", COIN_BOX, (-0.32972, 0.81749)),
        (coin, "mode-seeking", COIN_BOX, (-0.32972, 0.81749)),
    ],
)
def test_s4_by_brute_force(target, direction, ranges, published):
    fit = fit_kl(target, direction=direction, method="brute", ranges=ranges)
    assert parameters(fit.distribution) == pytest.approx(published, abs=5e-6)
    assert parameters(fit.path[0]) == pytest.approx(published, abs=0.07)
    assert (fit.divergence is None) == (target is coin)


def test_brute_force_is_scipys():
    grid = [slice(*ends, 12j) for ends in BOX]
    expected = optimize.brute(lambda x: trapezoid_kl_normal(*x, S4) if x[1] > 0 else np.inf, grid)
    assert parameters(fit_kl(S4, method="brute", ranges=BOX, num_grid=12).distribution) == tuple(expected)


@pytest.mark.parametrize("direction", ["mode-seeking", "mass-covering"])
def test_brute_force_on_a_function_is_that_on_its_mixture(direction):
    options = {"direction": direction, "method": "brute", "ranges": BOX, "num_grid": 20}
    by_kernel, by_function = fit_kl(S4, **options), fit_kl(S4.logpdf, **options)
    assert parameters(by_kernel.distribution) == pytest.approx(parameters(by_function.distribution), rel=1e-9)


def test_brute_force_needs_no_ranges():
    q = fit_kl(Mixture([0.5, 0.5], [300, 301], [1, 1]), method="brute").distribution
    assert parameters(q) == pytest.approx((300.5, 1.12), abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_0_at_the_end_from_any_start(seed, backend):
    rng = np.random.default_rng(seed)
    corner = BOX[0][seed % 2], BOX[1][seed // 2]
    for start in (Normal(*corner), Normal(rng.uniform(*BOX[0]), rng.uniform(*BOX[1]))):
        fit = fit_kl(S4, start=start, rng=seed, backend=backend)
        assert np.abs(slopes(fit.distribution, S4.score)).max() < 1e-8
        assert fit.gradient_norm < 1e-9
        assert fit.path[0] is start
        assert [round(float(mode.loc)) for mode in fit.modes] == [4, -1]
        assert fit.modes[fit.mode].loc == pytest.approx(fit.distribution.loc)


def test_without_a_start_the_best_mode_is_taken():
    fit = fit_kl(S4, rng=0)
    assert fit.mode == 0
    assert fit.divergence == min(fit.divergence, *(kl_divergence(q, S4) for q in fit.modes))
    # No Gaussian does better than one that has its component's mass alone.
    assert fit.divergence < kl_divergence(Normal(4, 0.5), S4) < math.log(1 / 0.6) + 1e-4
    assert fit.elbo == -fit.divergence


def test_a_wide_gaussian_over_both_modes_is_a_third():
    p = Mixture([0.5, 0.5], [-3, 3], [1, 1])
    fit = fit_kl(p, start=Normal(0, 2), rng=0)
    assert fit.distribution.loc == pytest.approx(0, abs=1e-9)
    assert fit.distribution.scale > 2.5
    assert [round(abs(float(mode.loc))) for mode in fit.modes] == [3, 3, 0]
    assert fit.mode == 2


def test_a_saddle_is_left():
    # Two components that are one have the same gradient for ever.
    start = Mixture([0.5, 0.5], [1, 1], [2, 2])
    fit = fit_kl(S4, direction="mass-covering", n_components=2, start=start, rng=0)
    assert abs(fit.divergence) < 1e-12
    np.testing.assert_allclose(np.sort(fit.distribution.means), [-1, 4], rtol=1e-7)


def test_a_kink_is_no_obstacle():
    # E|x| = s sqrt(2 / pi) under N(0, s^2), so that -log s + s sqrt(2 / pi) is least at s = sqrt(pi / 2).
    q = fit_kl(stats.laplace(), rng=0).distribution
    assert parameters(q) == pytest.approx((0, math.sqrt(math.pi / 2)), abs=1e-6)


def test_the_coin_by_both_routes():
    fits = [fit_kl(target, rng=0) for target in (POSTERIOR, coin)]
    for fit in fits:
        assert np.abs(slopes(fit.distribution, lambda x: 3 - 7 / (1 + np.exp(-x)))).max() < 1e-8
    assert fits[0].divergence + fits[1].elbo == pytest.approx(math.log(1 / 60), abs=1e-10)
    assert fits[1].divergence is None


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (lambda x: np.where(x > 0, -x, -np.inf), {}),
        (lambda x: np.where(x > 0, -x, -np.inf), {"method": "brute", "ranges": ((1, 3), (0.1, 1))}),
        (stats.uniform(3, 2).logpdf, {}),
        (stats.gamma(20).logpdf, {}),
        (lambda x: np.where(x[:, 0] > 0, -(x**2).sum(1), -np.inf), {"start": MultivariateNormal([1, 1], [1, 1])}),
    ],
)
def test_a_function_that_is_0_somewhere_is_refused(target, options):
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match="target must be positive"):
        fit_kl(target, rng=0, **options)


def test_rounding_to_0_is_no_zero():
    def log_joint(x):
        with np.errstate(all="ignore"):
            p = 1 / (1 + np.exp(-x))
            return 3 * np.log(p) + 4 * np.log(1 - p)

    assert parameters(fit_kl(log_joint, rng=0).distribution) == pytest.approx((-0.329726, 0.817149), abs=1e-6)


@pytest.mark.parametrize("target", [S4, S4.logpdf])
def test_mass_covering_by_a_gaussian_is_moment_matching(target):
    fit = fit_kl(target, direction="mass-covering")
    assert fit.method == "moment-matching"
    assert parameters(fit.distribution) == pytest.approx((2, math.sqrt(6.375)), rel=1e-10)
    assert fit.divergence == pytest.approx(kl_divergence(S4, Normal(2, math.sqrt(6.375))), rel=1e-9)


@pytest.mark.parametrize(
    "target",
    [
        stats.t(5, 1, 2),
        stats.gamma(0.3),
        stats.beta(3, 4),
        stats.uniform(1, 3),
        stats.gumbel_r(3, 10),
        stats.laplace(1e3, 1e-3),
    ],
)
def test_moments_of_any_distribution_on_the_line(target):
    q = fit_kl(target, direction="mass-covering").distribution
    assert parameters(q) == pytest.approx((target.mean(), target.std()), rel=1e-9)


def test_moments_of_the_posterior_on_the_real_line():
    # The mean and variance of a Beta variable's log-odds are differences of polygamma functions.
    expected = polygamma(0, 3) - polygamma(0, 4), math.sqrt(polygamma(1, 3) + polygamma(1, 4))
    for target in (POSTERIOR, coin):
        assert parameters(fit_kl(target, direction="mass-covering").distribution) == pytest.approx(expected, rel=1e-10)


def test_mass_covering_sees_a_narrow_mode():
    q = fit_kl(Mixture([0.5, 0.5], [0, 20], [1, 0.01]).logpdf, direction="mass-covering").distribution
    assert parameters(q) == pytest.approx((10, math.sqrt(100 + 0.5 * (1 + 1e-4))), rel=1e-12)


@pytest.mark.parametrize("scale", [0.05, 0.02])
def test_mass_covering_by_two_gaussians_sees_a_narrow_peak(scale):
    peak, ends = stats.laplace(3.1, scale), [-15, 3.1 - 40 * scale, 3.1, 3.1 + 40 * scale, 15]

    def log_density(x):
        return np.logaddexp(stats.norm.logpdf(x), peak.logpdf(x)) - math.log(2)

    with pytest.warns(AccuracyWarning, match="has not converged; its error is about"):
        q = fit_kl(log_density, direction="mass-covering", n_components=2, rng=0).distribution
    k = np.argmin(q.stds)

    def mean(function):
        """Under the target, of what the narrow component is responsible for."""

        def integrand(x):
            share = q.weights[k] * stats.norm.pdf(x, q.means[k], q.stds[k]) / q.pdf(x)
            return np.exp(log_density(x)) * share * function(x)

        return sum(integrate.quad(integrand, *pair, epsabs=1e-12)[0] for pair in itertools.pairwise(ends))

    # Where the gradient is 0, components have the moments of what they are responsible for.
    assert mean(np.ones_like) == pytest.approx(q.weights[k], abs=1e-6)
    assert mean(lambda x: x - q.means[k]) == pytest.approx(0, abs=1e-6 * scale)
    assert mean(lambda x: (x - q.means[k]) ** 2) == pytest.approx(q.weights[k] * q.stds[k] ** 2, rel=1e-6)


def test_a_start_says_where_a_function_has_its_mass():
    def log_density(x):
        with np.errstate(divide="ignore"):
            return np.log(stats.norm.pdf(x, 1e4, 0.01))

    with pytest.raises(ValueError, match="finite somewhere"):
        fit_kl(log_density, direction="mass-covering")
    q = fit_kl(log_density, start=Normal(1e4 + 1, 1), direction="mass-covering").distribution
    assert parameters(q) == pytest.approx((1e4, 0.01), rel=1e-7)


def test_one_dimension_of_an_array():
    p = Transformed(MultivariateNormal([0], [1]), transforms.Affine(1, 2))
    q = fit_kl(p, direction="mass-covering", rng=0).distribution
    np.testing.assert_allclose(q.means[0], 1, atol=0.15)
    np.testing.assert_allclose(q.covs[0], 4, atol=0.4)


def test_brute_force_takes_the_tails():
    q = fit_kl(stats.gamma(2), direction="mass-covering", method="brute").distribution
    assert parameters(q) == pytest.approx((2, math.sqrt(2)), rel=0.01)


def test_a_mixture_of_as_many_starts_at_itself():
    p = Mixture([0.3, 0.3, 0.4], [-1, 4, 4.5], [0.75, 0.5, 0.1])
    fit = fit_kl(p, n_components=3, direction="mass-covering", rng=0)
    assert abs(fit.divergence) < 1e-12


def test_a_distribution_without_variance_has_no_moments_to_match():
    with pytest.raises(ValueError, match="must have a variance"):
        fit_kl(stats.cauchy(), direction="mass-covering")


@pytest.mark.parametrize(
    ("target", "direction", "variances"),
    [
        (GAUSSIAN, "mode-seeking", 1 / np.diag(np.linalg.inv(COVARIANCE))),
        (GAUSSIAN.logpdf, "mode-seeking", 1 / np.diag(np.linalg.inv(COVARIANCE))),
        (GAUSSIAN, "mass-covering", np.diag(COVARIANCE)),
    ],
)
def test_diagonal_gaussians(target, direction, variances):
    """One way the variances given the others, the other way the marginal ones (Bishop 2006, section 10.1.2)."""
    start = None if target is GAUSSIAN else MultivariateNormal(np.zeros(3), np.ones(3))
    q = fit_kl(target, direction=direction, covariance="diag", start=start, rng=0).distribution
    np.testing.assert_allclose(q.means[0], GAUSSIAN.means[0], rtol=1e-6)
    np.testing.assert_allclose(q.stds[0] ** 2, variances, rtol=1e-6)


def test_a_full_gaussian_is_recovered():
    fit = fit_kl(GAUSSIAN, rng=0)
    np.testing.assert_allclose(fit.distribution.covs[0], COVARIANCE, atol=1e-7)
    assert len(fit.modes) == 1
    assert fit.divergence < 1e-12
    assert fit_kl(GAUSSIAN, direction="mass-covering").divergence < 1e-12


def test_a_fit_in_two_dimensions_is_near_the_best():
    p = Mixture([0.7, 0.3], [[0, 0], [1, 1]], [[1, 2], [2, 1]])
    fit = fit_kl(p, rng=0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(weights, weights).ravel() / (2 * np.pi)

    def kl(theta):
        factor = np.array([[math.exp(theta[2]), 0], [theta[3], math.exp(theta[4])]])
        return -theta[2] - theta[4] - mass @ p.logpdf(theta[:2] + z @ factor.T)

    best = optimize.minimize(kl, [0, 0, 0, 0, 0], tol=1e-8).x
    found = np.linalg.cholesky(fit.distribution.covs[0])
    theta = [*fit.distribution.means[0], math.log(found[0, 0]), found[1, 0], math.log(found[1, 1])]
    np.testing.assert_allclose(theta, best, atol=5e-3)


@pytest.mark.parametrize("direction", ["mode-seeking", "mass-covering"])
@pytest.mark.parametrize("target", [S4, S4.logpdf])
def test_a_mixture_of_two_finds_two(direction, target):
    fit = fit_kl(target, direction=direction, n_components=2, rng=0)
    order = np.argsort(fit.distribution.means)
    for found, expected in zip(("weights", "means", "stds"), (S4.weights, S4.means, S4.stds), strict=True):
        np.testing.assert_allclose(getattr(fit.distribution, found)[order], expected, rtol=1e-7)
    assert abs(fit.divergence if fit.divergence is not None else fit.elbo) < 1e-12


@pytest.mark.parametrize("direction", ["mode-seeking", "mass-covering"])
def test_a_mixture_of_two_in_two_dimensions(direction):
    p = Mixture([0.7, 0.3], [[0, 0], [4, 1]], [[1, 2], [2, 1]])
    fit = fit_kl(p, direction=direction, n_components=2, covariance="diag", rng=0)
    order = np.argsort(fit.distribution.means[:, 0])
    np.testing.assert_allclose(fit.distribution.weights[order], p.weights, atol=0.01)
    np.testing.assert_allclose(fit.distribution.means[order], p.means, atol=0.02)
    np.testing.assert_allclose(fit.distribution.stds[order], p.stds, atol=0.02)
    assert abs(fit.divergence) < 1e-3


def test_more_components_come_closer():
    p = stats.gumbel_r()
    divergences = [fit_kl(p, n_components=k, direction="mass-covering", rng=0).divergence for k in (1, 2, 3)]
    assert divergences[0] > 3 * divergences[1] > 9 * divergences[2] > 0


def test_draws_of_a_distribution_in_more_dimensions():
    p = stats.multivariate_t([1, 2], [[2, 0.5], [0.5, 1]], df=8)
    fit = fit_kl(p, direction="mass-covering", n=100_000, rng=0)
    np.testing.assert_allclose(fit.distribution.means[0], [1, 2], atol=0.03)
    np.testing.assert_allclose(fit.distribution.covs[0], np.array([[2, 0.5], [0.5, 1]]) * 8 / 6, atol=0.08)
    assert fit.divergence.standard_error > 0


def test_a_seed_gives_a_fit():
    p = Mixture([0.7, 0.3], [[0, 0], [1, 1]], [[1, 2], [2, 1]])
    fits = [fit_kl(p, covariance="diag", rng=7).distribution for _ in range(2)]
    np.testing.assert_array_equal(fits[0].means, fits[1].means)


def test_a_fit_that_gets_nowhere_is_told():
    # Wider and wider is better and better.
    with pytest.warns(AccuracyWarning, match="not converged"):
        fit_kl(lambda x: np.zeros(len(x)), start=MultivariateNormal([0, 0], [1, 1]), covariance="diag", n=64, rng=0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([S4], {"direction": "both"}, "direction must be one of 'mode-seeking', 'mass-covering', got 'both'"),
        ([S4], {"method": "grid"}, "method must be one of 'gradient', 'brute', got 'grid'"),
        ([S4], {"covariance": "spherical"}, "covariance must be one of 'full', 'diag', got 'spherical'"),
        ([S4], {"method": "brute", "ranges": ((8, -4), (0.1, 3))}, "ranges must be two pairs of increasing"),
        ([S4], {"method": "brute", "ranges": ((-4, 8), (3, 0.1))}, "ranges must be two pairs of increasing"),
        ([S4], {"method": "brute", "ranges": (-4, 8)}, "ranges must be two pairs of increasing"),
        ([S4], {"method": "brute", "ranges": ((-4, 8), (0, 3))}, "ranges must have positive standard deviations"),
        ([S4], {"method": "brute", "n_components": 2}, "method 'brute' is for one Gaussian on the line"),
        ([GAUSSIAN], {"method": "brute"}, "method 'brute' is for one Gaussian on the line"),
        ([S4], {"n_components": 0}, "n_components must be a whole number, at least 1, got 0"),
        ([S4], {"num_grid": 1}, "num_grid must be a whole number, at least 2, got 1"),
        ([S4], {"bounds": (8, -4)}, "bounds must be finite and increasing"),
        ([S4], {"bounds": (-4, 8)}, "ranges and bounds are for method 'brute'"),
        ([S4], {"ranges": BOX}, "ranges and bounds are for method 'brute'"),
        ([S4], {"start": S4}, "start must be a mixture of 1 Gaussians"),
        ([S4], {"start": 3.0}, "start must be a mixture of 1 Gaussians"),
        ([S4], {"start": GAUSSIAN}, "start and target must have the same dimensions"),
        ([GAUSSIAN], {"start": GAUSSIAN, "covariance": "diag"}, "start must have diagonal covariances"),
        ([stats.beta(3, 4)], {}, r"target must be positive everywhere for mode seeking, got the support \(0.0, 1.0\)"),
        ([lambda x: np.zeros(len(x))], {}, "density must fall off towards infinity"),
        ([lambda x: 0.0], {}, r"must give log-densities of shape \(16000,\), got \(\)"),
        ([lambda x: np.full(len(x), np.nan)], {}, "log-density must be finite somewhere"),
    ],
)
def test_what_is_wrong_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        fit_kl(*arguments, **options)


@pytest.mark.parametrize("target", [3.0, "normal", stats.gamma, stats.poisson(3)])
def test_what_is_no_density_is_refused(target):
    with pytest.raises(TypeError, match="target must"):
        fit_kl(target)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(TypeError, match="cannot be sampled"):
        fit_kl(GAUSSIAN.logpdf, start=GAUSSIAN, direction="mass-covering")


def test_the_elbo_of_a_fit_is_its_distributions():
    fit = fit_kl(coin, rng=0)
    assert fit.elbo == elbo(fit.distribution, coin)
