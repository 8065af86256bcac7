"""Published figures, closed forms, limits, and error bars that hold."""

import functools
import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from fastdiv import (
    AccuracyWarning,
    Mixture,
    MultivariateNormal,
    Normal,
    entropy,
    js_divergence,
    kl_divergence,
    kl_normal,
    log_ratio,
    log_ratio_normal,
    running_mean,
    trapezoid_kl,
    trapezoid_kl_normal,
)

S1 = Normal(1, 1), Normal(0, 2)
S1_KL = 0.44314718055994529
S2 = MultivariateNormal([1, 4], [1, 1]), MultivariateNormal([-3, 2], [6.25, 6.25])
S4 = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), Normal(0, 1)


def mpmath_kl_normal(mu_p, sigma_p, mu_q, sigma_q):
    with mpmath.workdps(60):
        mu_p, sigma_p, mu_q, sigma_q = map(mpmath.mpf, (mu_p, sigma_p, mu_q, sigma_q))
        ratio = sigma_p / sigma_q
        return (ratio**2 - 1 - 2 * mpmath.log(ratio) + ((mu_p - mu_q) / sigma_q) ** 2) / 2


def mpmath_kl_mixtures(p, q, points):
    def logpdf(d, x):
        parts = zip(d.weights.tolist(), d.means.tolist(), d.stds.tolist(), strict=True)
        return mpmath.log(mpmath.fsum(mpmath.mpf(w) * mpmath.npdf(x, m, s) for w, m, s in parts))

    with mpmath.workdps(30):
        return mpmath.quad(lambda x: mpmath.exp(logpdf(p, x)) * (logpdf(p, x) - logpdf(q, x)), points)


def test_s1_in_closed_form():
    assert abs(kl_divergence(*S1) - S1_KL) < 1e-15
    assert abs(kl_normal(1, 1, 0, 2) - S1_KL) < 1e-15


def test_closed_forms_at_the_ends_of_the_range():
    assert kl_normal(0, 1e200, 0, 1e-200) == math.inf
    assert kl_normal(0, 1e-200, 0, 1e200) == pytest.approx(400 * math.log(10) - 0.5, rel=1e-14)
    np.testing.assert_array_equal(log_ratio_normal([-np.inf, np.inf], 1, 1, 0, 2), [-np.inf, -np.inf])
    np.testing.assert_array_equal(log_ratio_normal([-np.inf, np.inf], 1, 2, 0, 2), [-np.inf, np.inf])
    stretched = [MultivariateNormal([0, 0], np.diag([c * 1e-24, c * 1e24])) for c in (1.0, 4.0)]
    estimate = kl_divergence(*stretched)
    assert estimate == pytest.approx(2 * kl_normal(0, 1, 0, 2), abs=estimate.error)
    assert estimate.error < 1e-12


def test_s2_in_closed_form():
    assert kl_divergence(*S2) == pytest.approx(2.5925815, abs=5e-8)
    full = [MultivariateNormal(d.means[0], np.diag(d.stds[0] ** 2)) for d in S2]
    assert kl_divergence(*full) == pytest.approx(kl_divergence(*S2), rel=1e-14)


@pytest.mark.parametrize("delta", [0.0, 1e-12, 1e-8, 1e-4, 0.04, 0.06, 0.3, 10.0, 1e9])
@pytest.mark.parametrize("shift", [0.0, 1e-9, 2.0])
def test_kl_normal_against_mpmath(delta, shift):
    for sigma_p, sigma_q in ((1.0, 1.0 + delta), (1.0 + delta, 1.0)):
        expected = mpmath_kl_normal(shift, sigma_p, 0, sigma_q)
        estimate = kl_divergence(Normal(shift, sigma_p), Normal(0, sigma_q))
        assert abs(mpmath.mpf(float(estimate)) - expected) <= estimate.error
        assert estimate.error <= 1e-13 * expected


@pytest.mark.parametrize("dims", [2, 5, 20])
def test_full_covariance_kl_within_its_error(dims):
    rng = np.random.default_rng(dims)
    for _ in range(20):
        factors = rng.normal(size=(2, dims, dims)) + 3 * np.eye(dims)
        cov_p, cov_q = (f @ f.T * 10 ** rng.uniform(-3, 3) for f in factors)
        cov_p, cov_q = (cov_p + cov_p.T) / 2, (cov_q + cov_q.T) / 2
        mean_p, mean_q = rng.normal(size=(2, dims))
        with mpmath.workdps(40):
            a, b = mpmath.matrix(cov_p.tolist()), mpmath.matrix(cov_q.tolist())
            precision = mpmath.inverse(b)
            trace = mpmath.fsum((precision[i, :] * a[:, i])[0] for i in range(dims))
            shift = mpmath.matrix(mean_p.tolist()) - mpmath.matrix(mean_q.tolist())
            square = (shift.T * precision * shift)[0]
            expected = (trace + square - dims + mpmath.log(mpmath.det(b) / mpmath.det(a))) / 2
        estimate = kl_divergence(MultivariateNormal(mean_p, cov_p), MultivariateNormal(mean_q, cov_q))
        assert abs(mpmath.mpf(float(estimate)) - expected) <= estimate.error
        assert estimate.error < 1e-8 * expected


def test_s4_by_trapezoid(backend):
    assert trapezoid_kl(*S4, num=10_000, bounds=(-5, 7), backend=backend) == pytest.approx(4.5455398, abs=5e-8)


@pytest.mark.parametrize("num", [2, 3, 1000, 20_001])
def test_trapezoid_is_numpys(backend, num):
    p, q = Mixture([0.5, 0.5], [4, 6], [0.75, 0.75]), Normal(5, 1)
    for first, second in ((p, q), (q, p)):
        x = np.linspace(4 - 3, 6 + 3, num)
        log_p = special.logsumexp([np.log(w) + stats.norm(m, s).logpdf(x) for w, m, s in _parts(first)], axis=0)
        log_q = special.logsumexp([np.log(w) + stats.norm(m, s).logpdf(x) for w, m, s in _parts(second)], axis=0)
        expected = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
        assert trapezoid_kl(first, second, num, backend=backend) == pytest.approx(expected, rel=1e-12)


def _parts(mixture):
    return zip(mixture.weights, mixture.means, mixture.stds, strict=True)


def test_trapezoid_of_many_gaussians_is_numpys(backend):
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(scale=5, size=(30, 1)), 10 ** rng.uniform(-3, 2, 20)
    for num in (2, 65, 500):
        x = loc[..., None] + scale[:, None] * np.linspace(-4, 4, num)
        log_p = stats.norm.logpdf(x, loc[..., None], scale[:, None])
        expected = np.trapezoid(np.exp(log_p) * (log_p - S4[0].logpdf(x)), x)
        found = trapezoid_kl_normal(loc, scale, S4[0], num, backend=backend)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_s4_mode_seeking():
    target, ranges = S4[0], ((-4, 8), (0.1, 3))
    best, _, (loc, scale), divergence = optimize.brute(
        lambda at: trapezoid_kl_normal(*at, target), ranges, Ns=100, full_output=True
    )
    np.testing.assert_allclose(best, [3.99992, 0.50034], atol=5e-6)
    np.testing.assert_allclose(trapezoid_kl_normal(loc, scale, target), divergence, rtol=1e-14)


def test_trapezoid_of_gaussians_whose_own_coordinate_overflows(backend):
    # A point, but for its entropy: to the mean of -log q is added 0.5 + log(scale sqrt(2 pi)), on the grid.
    mass = 1 - special.erfc(4 / math.sqrt(2))
    for loc, scale, q in [(1.0, 1e-310, Normal(0, 1)), (1e300, 1e-300, Normal(0, 1e300))]:
        expected = mass * (-q.logpdf(loc) - math.log(scale) - 0.5 * math.log(2 * math.pi) - 0.5)
        assert trapezoid_kl_normal(loc, scale, q, backend=backend) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.longdouble, Fraction])
def test_a_reach_is_any_real_number(kind):
    assert trapezoid_kl_normal(0, 1, S4[0], reach=kind(4)) == trapezoid_kl_normal(0, 1, S4[0])


def test_trapezoid_of_gaussians_where_q_has_no_density():
    assert trapezoid_kl_normal(0.0, 1e300, S4[0]) == np.inf
    assert trapezoid_kl_normal(0.0, 1.0, Normal(0, 1e-200)) == np.inf
    assert trapezoid_kl_normal([], 1.0, S4[0]).shape == (0,)


def test_points_without_density_count_nothing():
    assert trapezoid_kl(Normal(0, 1e-3), Normal(5, 1e-3), num=11, bounds=(1, 4)) == 0


@pytest.mark.parametrize("method", ["quadrature", "trapezoid"])
def test_errors_on_the_line_hold(method):
    rng = np.random.default_rng(11)
    for _ in range(30):
        p = Normal(rng.normal(), 10 ** rng.uniform(-2, 2))
        q = Normal(p.loc + 3 * p.scale * rng.normal(), p.scale * 10 ** rng.uniform(-1, 1))
        expected = mpmath_kl_normal(p.loc, p.scale, q.loc, q.scale)
        estimate = kl_divergence(p, q, method=method)
        assert abs(estimate - expected) <= estimate.error
        if method == "quadrature":
            assert estimate.error <= 1e-9 * expected


def test_quadrature_of_mixtures_against_mpmath():
    p = Mixture([0.3, 0.7], [-2, 1], [0.5, 1.5])
    q = Mixture([0.6, 0.4], [0, 2], [2.0, 0.3])
    for first, second in ((p, q), (q, p)):
        expected = mpmath_kl_mixtures(first, second, [-30, -4, -2, 0, 1, 1.5, 2, 2.5, 4, 30])
        estimate = kl_divergence(first, second)
        assert abs(estimate - expected) <= estimate.error <= 1e-9


def test_quadrature_where_scales_are_far_apart():
    p = Mixture([0.5, 0.5], [0.3, 0.3], [1.0, 1e-7])
    q = Mixture([0.5, 0.5], [0, -2], [1e3, 1e-4])
    knots = [0.3 + s * x for x in (1e-7, 1e-6, 1e-5, 1e-3, 0.1, 1, 3, 12) for s in (-1, 1)]
    knots += [-2 + s * x for x in (1e-4, 1e-3, 2e-3, 1e-2) for s in (-1, 0, 1)]
    expected = mpmath_kl_mixtures(p, q, sorted({*knots, 0.3}))
    estimate = kl_divergence(p, q)
    assert estimate.method == "quadrature"
    assert abs(estimate - expected) <= max(estimate.error, 1e-12 * expected)
    assert estimate.error <= 1e-9 * expected


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        # Each pair's parts lie so far apart that its divergence is the weighted sum of theirs.
        (([0.9, 0.1], [0, 1e8], [1, 1e-9]), ([0.9, 0.1], [0, 1e8], [1, 2e-9]), 0.1 * (math.log(2) - 3 / 8)),
        (([1.0], [1e6], [1e-12]), ([1.0], [1e6], [2e-12]), math.log(2) - 3 / 8),
        # Two needles in a standard normal: mean of -log(2 s sqrt(2 pi)) - 1/2 + log sqrt(2 pi) + x^2 / 2.
        (([0.5, 0.5], [0, 1], [1e-12, 1e-12]), ([1.0], [0], [1]), -math.log(2e-12) - 0.5 + 0.25),
    ],
)
@pytest.mark.parametrize("method", ["quadrature", "monte-carlo"])
def test_needles_far_from_the_origin_keep_their_digits(p, q, truth, method):
    estimate = kl_divergence(Mixture(*p), Mixture(*q), method=method, rng=0, n=20_000)
    assert abs(estimate - truth) <= max(4 * estimate.error, 1e-14 * truth)
    assert 0 < estimate.error < (1e-8 if method == "quadrature" else 0.05)


def density_times_log_ratio(x, p, q):
    return p.pdf(x) * (p.logpdf(x) - q.logpdf(x))


def test_random_mixtures_against_quad_in_many_panels():
    rng = np.random.default_rng(5)
    for _ in range(40):
        k = rng.integers(1, 6)
        p, q = (Mixture(rng.dirichlet(np.ones(k)), rng.normal(size=k), 10 ** rng.uniform(-3, 3, k)) for _ in "pq")
        knots = np.unique(np.concatenate([d.means + s * d.stds for d in (p, q) for s in range(-12, 13)]))
        integrand = functools.partial(density_times_log_ratio, p=p, q=q)
        panels = [integrate.quad(integrand, *ends, epsabs=1e-13, epsrel=1e-12) for ends in itertools.pairwise(knots)]
        expected = math.fsum(value for value, _ in panels)
        for rtol in (1e-2, 1e-6, None):
            estimate = kl_divergence(p, q, method="quadrature", rtol=rtol)
            assert abs(estimate - expected) <= estimate.error + 1e-11 * (1 + expected)
        assert estimate.error <= 1e-9 * (1 + expected)


def test_scales_that_float64_cannot_hold_together_are_told():
    with pytest.warns(AccuracyWarning, match="did not converge"):
        assert np.isnan(entropy(Mixture([0.5, 0.5], [0, 1e200], [1e-200, 1e150])))


def test_variances_that_nearly_coincide_within_the_error():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = 2 ** rng.uniform(-3, 3, 3) * (1 + np.outer([0, 1], 10 ** rng.uniform(-15, -10, 3)))
        expected = sum(mpmath_kl_normal(0, mpmath.sqrt(x), 0, mpmath.sqrt(y)) for x, y in zip(a, b, strict=True))
        estimate = kl_divergence(MultivariateNormal(np.zeros(3), a), MultivariateNormal(np.zeros(3), b))
        assert abs(estimate - expected) <= estimate.error


def test_an_infinite_divergence_is_inf():
    narrow = Mixture([0.5, 0.5], [0, 1], [1e-170, 1e-170])
    for method in ("quadrature", "monte-carlo"):
        assert kl_divergence(Normal(0, 1), narrow, method=method, rng=0) == math.inf


def test_quadrature_does_not_depend_on_units():
    p, q = S4
    estimate = kl_divergence(p, q)
    for scale, shift in ((1e-9, 0.0), (1e9, 0.0), (1.0, 1e6)):
        moved = [Mixture(d.weights, d.means * scale + shift, d.stds * scale) for d in (p, q)]
        assert kl_divergence(*moved) == pytest.approx(estimate, rel=1e-9)


def test_bounds_that_cut_off_mass_show_in_the_error():
    truth = kl_divergence(*S4)
    for method in ("trapezoid", "quadrature"):
        cut = kl_divergence(*S4, method=method, bounds=(-5, 4))
        assert 1 < abs(cut - truth) <= cut.error * (1 + 1e-9)


def test_identical_distributions_have_no_divergence():
    p = S4[0]
    for method in ("quadrature", "trapezoid", "monte-carlo"):
        assert abs(kl_divergence(p, p, method=method)) <= kl_divergence(p, p, method=method).error + 1e-15
        assert abs(js_divergence(p, p, method=method, rng=0)) <= 1e-12
    assert kl_divergence(Normal(1, 2), Normal(1, 2)) == 0


def test_js_of_s1():
    expected = 0.12771526  # 10 000 draws of each, published
    estimate = js_divergence(*S1, method="monte-carlo", n=10_000, rng=0)
    exact = js_divergence(*S1)
    assert abs(expected - exact) < 4 * estimate.standard_error
    assert abs(estimate - exact) < 4 * estimate.standard_error
    p, q = stats.norm(1, 1), stats.norm(0, 2)

    def integrand(x):
        m = (p.pdf(x) + q.pdf(x)) / 2
        return (special.rel_entr(p.pdf(x), m) + special.rel_entr(q.pdf(x), m)) / 2

    assert exact == pytest.approx(integrate.quad(integrand, -25, 25, epsabs=1e-12)[0], abs=1e-11)


def test_js_lies_between_0_and_log_2_and_is_symmetric():
    far = js_divergence(Normal(0, 1), Normal(100, 1))
    assert far == pytest.approx(math.log(2), rel=1e-12)
    assert js_divergence(*S1) == pytest.approx(js_divergence(*S1[::-1]), rel=1e-12)
    estimate = js_divergence(*S2, n=20_000, rng=0)
    assert estimate.method == "monte-carlo"
    assert 0 < estimate < math.log(2)


def test_s2_by_monte_carlo():
    estimate = kl_divergence(*S2, method="monte-carlo", n=10_000, rng=0)
    assert abs(estimate - 2.5925815) < 4 * estimate.standard_error
    assert estimate.n_evaluations == 10_000
    assert estimate.error == estimate.standard_error


def test_s4_by_monte_carlo(backend):
    estimate = kl_divergence(*S4, method="monte-carlo", n=10**6, rng=0, backend=backend)
    assert abs(estimate - 4.5455398) < 4 * estimate.standard_error


@pytest.mark.parametrize(("p", "q", "truth"), [(*S1, S1_KL), (*S4, 4.5455397818)])
def test_standard_errors_hold_over_seeds(p, q, truth):
    estimates = [kl_divergence(p, q, method="monte-carlo", n=5000, rng=seed) for seed in range(1000)]
    scores = [(e - truth) / e.standard_error for e in estimates]
    assert np.mean(np.abs(scores) < 4) >= 0.99
    mean_error = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
    assert mean_error == pytest.approx(np.std(estimates), rel=0.1)
    assert abs(np.mean(scores)) < 4 / np.sqrt(1000)


def test_stratified_draws_beat_simple_ones():
    p, q = S4
    stratified = kl_divergence(p, q, method="monte-carlo", n=10_000, rng=0)
    simple = log_ratio(p.sample(10_000, rng=0), p, q)
    assert stratified.standard_error < 0.6 * simple.std() / np.sqrt(10_000)
    assert stratified.diagnostics["std"] == pytest.approx(simple.std(), rel=0.05)


def test_rtol_sets_the_number_of_draws():
    estimate = kl_divergence(*S2, method="monte-carlo", rtol=2e-3, rng=0)
    assert estimate.standard_error < 2e-3 * estimate
    assert estimate.standard_error > 0.5e-3 * estimate


def test_small_weights_get_their_draws():
    p = Mixture([1 - 1e-6, 1e-6, 0.0], [0, 5, 9], [1, 1, 1])
    estimate = kl_divergence(p, Normal(0, 2), method="monte-carlo", n=1000, rng=0)
    assert estimate.n_evaluations == 1000
    assert np.isfinite(estimate.standard_error)


def test_a_few_draws_that_carry_the_variance_are_told():
    # Two draws of the wide component carry log-ratios of half a million.
    p = Mixture([1 - 1e-4, 1e-4], [0, 0], [1, 1e3])
    with pytest.warns(AccuracyWarning, match="carry the variance"):
        estimate = kl_divergence(p, Normal(0, 1), method="monte-carlo", n=1000, rng=0)
    assert estimate.diagnostics["dominance"] > 0.4


def test_an_estimate_without_spread_has_an_interval_of_no_width():
    for p in (Normal(0, 1), S4[0]):
        assert kl_divergence(p, p, method="monte-carlo", n=1000, rng=0).confidence_interval() == (0, 0)
        assert np.all(np.isfinite(js_divergence(p, p, method="monte-carlo", n=1000, rng=0).confidence_interval()))


def test_running_mean():
    values = np.random.default_rng(0).normal(size=1000) + 1e6
    mean, standard_error = running_mean(values)
    for i in (2, 10, 1000):
        assert mean[i - 1] == pytest.approx(math.fsum(values[:i]) / i, rel=1e-15)
        assert standard_error[i - 1] == pytest.approx(np.std(values[:i], ddof=1) / np.sqrt(i), rel=1e-7)
    assert np.isnan(standard_error[0])
    estimates, errors = running_mean(log_ratio(S2[0].sample(10_000, rng=1), *S2))
    assert abs(estimates[-1] - 2.5925815) < 4 * errors[-1]


def test_running_mean_before_an_infinity_is_unharmed():
    mean, _ = running_mean([1.0, 2.0, 3.0, np.inf, 5.0])
    np.testing.assert_array_equal(mean, [1, 1.5, 2, np.inf, np.inf])


@pytest.mark.filterwarnings("ignore:a few of the 150 draws")
def test_intervals_of_few_draws_are_wide_enough():
    p = Mixture(np.full(50, 0.02), np.linspace(-3, 3, 50), np.ones(50))
    q = Normal(0, 2)
    truth = kl_divergence(p, q)
    covered = 0
    for seed in range(400):
        low, high = kl_divergence(p, q, method="monte-carlo", n=150, rng=seed).confidence_interval()
        covered += low < truth < high
    assert covered >= 0.92 * 400


def test_running_mean_survives_a_jump():
    mean, standard_error = running_mean(np.r_[1e9, np.zeros(9)])
    np.testing.assert_allclose(mean, 1e9 / np.arange(1, 11), rtol=1e-14)
    np.testing.assert_allclose(standard_error[1:], 1e9 / np.arange(2, 11), rtol=1e-12)


def test_auto_takes_the_first_way_that_applies():
    assert kl_divergence(*S1).method == "closed-form"
    assert kl_divergence(*S4).method == "quadrature"
    assert kl_divergence(*S4, bounds=(-5, 7)).method == "trapezoid"
    assert kl_divergence(*S4, num=500).method == "trapezoid"
    plane = Mixture([0.5, 0.5], [[0, 0], [1, 1]], [[1, 1], [2, 2]])
    assert kl_divergence(plane, S2[1], n=100).method == "monte-carlo"


@pytest.mark.parametrize("method", ["closed-form", "quadrature", "trapezoid", "monte-carlo"])
def test_methods_agree(method):
    estimate = kl_divergence(*S1, method=method, rng=3)
    assert abs(estimate - S1_KL) <= 4 * estimate.error
