"""Other libraries' distributions as ours, and their divergences against closed forms and mpmath."""

import math
import pickle
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture

from fastdiv import (
    AccuracyWarning,
    Mixture,
    MultivariateNormal,
    Normal,
    as_distribution,
    entropy,
    js_divergence,
    kl_divergence,
    log_ratio,
    optimal_classifier,
    trapezoid_kl,
    trapezoid_kl_normal,
)
from fastdiv.distributions import Distribution

COV = [[2.0, 1.0], [1.0, 3.0]]
X = np.random.default_rng(0).normal(size=(200, 2)) @ np.linalg.cholesky(COV).T
NewBeta = stats.make_distribution(stats.beta)


# What is Gaussian is recognised


@pytest.mark.parametrize(
    ("obj", "kind"),
    [
        (stats.norm(1, 2), Normal),
        (stats.norm(scale=2), Normal),
        (stats.norm, Normal),
        (stats.Normal(mu=1, sigma=2), Normal),
        (stats.Normal(), Normal),
        (stats.Mixture([stats.Normal(mu=0, sigma=1), stats.Normal(mu=3, sigma=2)], weights=[0.3, 0.7]), Mixture),
        (stats.gaussian_kde(X[:, 0]), Mixture),
        (stats.gaussian_kde(X[:, 0], weights=np.arange(1, 201)), Mixture),
    ],
)
def test_gaussians_of_scipy_on_the_line_are_ours(obj, kind):
    x = np.linspace(-3, 4, 50)
    p = as_distribution(obj)
    assert type(p) is kind
    assert_allclose(p.logpdf(x), obj.logpdf(x), rtol=1e-11)


def test_gaussians_of_scipy_in_the_plane_are_ours():
    p = as_distribution(stats.multivariate_normal([1, 2], COV))
    assert type(p) is MultivariateNormal
    assert_allclose(p.logpdf(X), stats.multivariate_normal([1, 2], COV).logpdf(X), rtol=1e-12)
    kde = stats.gaussian_kde(X.T)
    assert_allclose(as_distribution(kde).logpdf(X), kde.logpdf(X.T), rtol=1e-11)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_mixtures_of_scikit_learn_are_ours(covariance_type):
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(X)
    p = as_distribution(model)
    assert type(p) is Mixture
    assert_allclose(p.logpdf(X), model.score_samples(X), rtol=1e-11)
    single = GaussianMixture(2, covariance_type=covariance_type, random_state=0).fit(X.astype(np.float32))
    assert_allclose(as_distribution(single).logpdf(X), single.score_samples(X), rtol=1e-5)


def test_divergences_of_recognised_gaussians_are_in_closed_form():
    estimate = kl_divergence(stats.norm(1, 1), stats.Normal(mu=0, sigma=2))
    assert estimate.method == "closed-form"
    assert estimate == kl_divergence(Normal(1, 1), Normal(0, 2))
    assert entropy(stats.norm(0, 3)) == pytest.approx(stats.norm(0, 3).entropy(), rel=1e-14)


def test_ours_are_handed_back():
    for p in (Normal(), Mixture([1], [[0, 0]], [[1, 1]]), as_distribution(stats.beta(2, 3))):
        assert as_distribution(p) is p


# The interface of torch.distributions


class Torchlike(SimpleNamespace):
    """What `as_distribution` asks of a distribution of torch."""

    batch_shape, event_shape = (), ()

    def log_prob(self, x):
        raise NotImplementedError


class Independent(Torchlike):
    pass


class MixtureSameFamily(Torchlike):
    pass


def torchlike(name, **parameters):
    return type(name, (Torchlike,), {})(**{key: np.asarray(value) for key, value in parameters.items()})


def test_gaussians_with_torchs_interface_are_recognised():
    p = as_distribution(torchlike("Normal", loc=1.0, scale=2.0))
    assert repr(p) == "Normal(loc=1.0, scale=2.0)"
    factor = np.linalg.cholesky(COV)
    p = as_distribution(torchlike("MultivariateNormal", loc=[1.0, 2.0], scale_tril=factor))
    assert_allclose(p.logpdf(X), stats.multivariate_normal([1, 2], COV).logpdf(X), rtol=1e-12)
    base = torchlike("Normal", loc=[0.0, 1.0], scale=[1.0, 2.0])
    p = as_distribution(Independent(base_dist=base, reinterpreted_batch_ndims=1))
    assert_allclose(p.logpdf(X), stats.norm([0, 1], [1, 2]).logpdf(X).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("labels", ["mixture_distribution", "mixing_distribution"])
def test_mixtures_with_torchs_interface_are_recognised_in_float32_too(labels):
    probs = np.array([0.2, 0.3, 0.5], np.float32)
    line = torchlike("Normal", loc=[0.0, 1.0, 2.0], scale=[1.0, 2.0, 3.0])
    labels = {labels: SimpleNamespace(probs=probs)}
    p = as_distribution(MixtureSameFamily(component_distribution=line, **labels))
    truth = Mixture([0.2, 0.3, 0.5], [0, 1, 2], [1, 2, 3])
    assert_allclose(p.logpdf(X), truth.logpdf(X), rtol=1e-6)
    factors = np.array([np.linalg.cholesky(COV)] * 3, np.float32)
    plane = torchlike("MultivariateNormal", loc=np.zeros((3, 2)), scale_tril=factors)
    p = as_distribution(MixtureSameFamily(component_distribution=plane, **labels))
    assert_allclose(p.logpdf(X), stats.multivariate_normal([0, 0], COV).logpdf(X), rtol=1e-5)


def test_other_densities_with_torchs_interface_are_taken_by_log_prob():
    support = SimpleNamespace(lower_bound=0.0)
    p = as_distribution(Torchlike(support=support, log_prob=lambda x: -x))
    assert p.support == (0, math.inf)
    assert_array_equal(p.logpdf([-1.0, 2.0]), [-math.inf, -2.0])
    q = as_distribution(Torchlike(support=support, log_prob=lambda x: math.log(2) - 2 * x))
    assert kl_divergence(p, q) == pytest.approx(1 - math.log(2), rel=1e-12)


def test_torch():
    torch = pytest.importorskip("torch")
    families = torch.distributions
    half, three = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    p, q = families.Gamma(half[1], three[1]), families.Gamma(three[0], half[0])
    estimate = kl_divergence(p, q)
    assert abs(estimate - float(families.kl_divergence(p, q))) <= estimate.error + 1e-13
    state = torch.random.get_rng_state()
    draws = as_distribution(p).sample(5, rng=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert_array_equal(draws, as_distribution(p).sample(5, rng=3))
    assert_allclose(as_distribution(p).score([-1.0, 0.5, 2.0]), [0, 1, -0.5], rtol=1e-14)
    assert as_distribution(p).has_score
    assert_array_equal(as_distribution(families.Uniform(0.0, 2.0)).score([-1.0, 0.5]), [0, 0])
    single = families.Beta(torch.tensor(3.0), torch.tensor(4.0))
    estimate = kl_divergence(single, stats.beta(2, 2))
    assert as_distribution(single).logpdf([0.5]).dtype == np.float32
    assert abs(estimate - kl_divergence(stats.beta(3, 4), stats.beta(2, 2))) <= estimate.error < 1e-5
    normal = families.Normal(torch.tensor(1.0, requires_grad=True), 2.0)
    assert repr(as_distribution(normal)) == "Normal(loc=1.0, scale=2.0)"


# Densities and their derivatives


CONSTRAINED = {
    "Beta(2,2)": (stats.beta(2, 2), lambda x: 6 * x * (1 - x), lambda x: 6 - 12 * x),
    "Beta(2,3)": (stats.beta(2, 3), lambda x: 12 * x * (1 - x) ** 2, lambda x: 12 * (1 - x) * (1 - 3 * x)),
    "Gamma(1,1)": (stats.gamma(1), lambda x: np.exp(-x), lambda x: -np.exp(-x)),
    "Uniform(1,4)": (stats.uniform(1, 3), lambda x: np.full_like(x, 1 / 3), np.zeros_like),
    "new Beta(2,3)": (NewBeta(a=2, b=3), lambda x: 12 * x * (1 - x) ** 2, lambda x: 12 * (1 - x) * (1 - 3 * x)),
}


@pytest.mark.parametrize(("obj", "pdf", "derivative"), CONSTRAINED.values(), ids=CONSTRAINED)
def test_constrained_densities_and_their_derivatives(obj, pdf, derivative):
    p = as_distribution(obj)
    low, high = p.support
    x = np.linspace(low, min(high, 30), 303)[1:-1]
    assert_allclose(p.pdf(x), pdf(x), rtol=1e-12)
    assert_allclose(p.log_prob(x), np.log(pdf(x)), rtol=1e-11, atol=1e-14)
    # A zero of the derivative is one to what the density itself is rounded to.
    assert_allclose(p.pdf_derivative(x), derivative(x), rtol=1e-8, atol=1e-9 * pdf(x).max())
    assert_allclose(p.score(x), derivative(x) / pdf(x), rtol=1e-8, atol=1e-9)
    outside = np.array([low - 1, low - 1e-9, -math.inf, high + 1e-9, math.inf])
    outside = outside[(outside < low) | (outside > high)]
    assert_array_equal(p.pdf(outside), 0)
    assert_array_equal(p.pdf_derivative(outside), 0)
    assert_array_equal(p.score(outside), 0)
    assert_array_equal([p.logpdf(math.nan), p.score(math.nan), p.pdf_derivative(math.nan)], math.nan)


def test_scores_near_the_ends_of_the_support_and_at_them():
    p = as_distribution(stats.beta(2, 3))
    x = np.array([1e-100, 1e-10, 1e-3, 0.999])
    assert_allclose(p.score(x), 1 / x - 2 / (1 - x), rtol=1e-8)
    assert as_distribution(stats.gamma(1)).score(0.0) == pytest.approx(-1, rel=1e-9)
    assert as_distribution(stats.weibull_max(1)).score(0.0) == pytest.approx(1, rel=1e-9)
    # No density at the ends of the one, poles at those of the other.
    assert_array_equal(p.score([0.0, 1.0]), [0, 0])
    assert_array_equal(as_distribution(stats.beta(0.5, 0.5)).score([0.0, 1.0]), [-math.inf, math.inf])
    assert_array_equal(as_distribution(stats.beta(0.5, 0.5)).pdf_derivative([0.0, 1.0]), [-math.inf, math.inf])


def test_scores_far_out_and_on_other_scales():
    x = np.array([-1e8, -3.0, 0.5, 1e4, 1e12])
    assert_allclose(as_distribution(stats.t(3)).score(x), -4 * x / (3 + x**2), rtol=1e-7)
    needle = as_distribution(stats.laplace(0.25, 1e-9))
    # Points there are told apart by 5e-8 of the scale.
    assert_allclose(needle.score(0.25 + np.array([-1e-9, 2e-9])), [1e9, -1e9], rtol=1e-5)
    function = as_distribution(lambda x: math.log(2 / math.pi) - np.logaddexp(x, -x), (-math.inf, math.inf))
    assert_allclose(function.score(x[1:4]), -np.tanh(x[1:4]), rtol=1e-8)


def test_densities_and_scores_in_the_plane():
    t = stats.multivariate_t([1, 2], COV, df=3)
    p = as_distribution(t)
    assert_array_equal(p.support, [[-math.inf] * 2, [math.inf] * 2])
    assert_allclose(p.logpdf(X.reshape(20, 10, 2)), t.logpdf(X).reshape(20, 10), rtol=1e-15)
    away = X - [1, 2]
    pulled = np.linalg.solve(COV, away.T).T
    score = -5 * pulled / (3 + np.sum(away * pulled, axis=1))[:, None]
    assert_allclose(p.score(X), score, rtol=1e-8, atol=1e-10)
    assert_allclose(p.pdf_derivative(X), score * t.pdf(X)[:, None], rtol=1e-8, atol=1e-12)
    assert_array_equal(p.score([[math.nan, 0.0]]), [[math.nan, math.nan]])
    assert p.sample((3, 4), rng=0).shape == (3, 4, 2)


def test_one_row_of_a_distribution_in_the_plane():
    t = stats.multivariate_t([0, 0], np.eye(2), df=5)
    p, x, score = as_distribution(t), [1.0, 2.0], [-0.7, -1.4]
    assert p.logpdf(x) == t.logpdf(x)
    assert p.logpdf(x).shape == ()
    assert_array_equal(p.logpdf([x]), [t.logpdf(x)])
    assert_allclose(p.score(x), score, rtol=1e-9)
    assert_allclose(p.score([x]), [score], rtol=1e-9)
    upper = as_distribution(t, support=([0, 0], [math.inf, math.inf]))
    assert_array_equal(upper.logpdf([x, [-1.0, 2.0], [math.nan, 0.0]]), [t.logpdf(x), -math.inf, math.nan])
    assert_allclose(upper.score([x, [-1.0, 2.0]]), [score, [0, 0]], rtol=1e-9)


def test_whether_a_score_has_a_formula():
    assert not as_distribution(stats.beta(2, 3)).has_score
    assert not as_distribution(lambda x: -x, support=(0, math.inf)).has_score


def test_results_have_the_shape_of_the_points_and_the_precision_of_the_density():
    p = as_distribution(stats.beta(2, 3))
    for shape in ((), (0,), (3,), (2, 0), (2, 3)):
        for function in (p.logpdf, p.pdf, p.score, p.pdf_derivative, p.cdf):
            assert np.shape(function(np.full(shape, 0.5))) == shape
    assert p.logpdf(np.float32(0.5)).dtype == np.float64
    single = as_distribution(lambda x: np.zeros(len(x), np.float32), (0, 1))
    assert single.logpdf([0.5]).dtype == np.float32
    assert_array_equal(single.logpdf([0.5, 2.0, math.nan]), [0, -math.inf, math.nan])


def test_samples_cdf_and_quantiles_are_theirs():
    for obj in (stats.beta(2, 3), NewBeta(a=2, b=3)):
        p = as_distribution(obj)
        draws = p.sample((100, 20), rng=1)
        assert draws.shape == (100, 20)
        assert stats.kstest(draws.ravel(), stats.beta(2, 3).cdf).pvalue > 0.001
        assert_array_equal(draws, p.sample((100, 20), rng=np.random.default_rng(1)))
        assert np.shape(p.sample(rng=0)) == ()
        assert_allclose(p.cdf([0.1, 0.5]), stats.beta(2, 3).cdf([0.1, 0.5]), rtol=1e-12)
        assert_allclose(p.quantile([0.1, 0.5]), stats.beta(2, 3).ppf([0.1, 0.5]), rtol=1e-9)
    copy = pickle.loads(pickle.dumps(as_distribution(stats.beta(2, 3))))
    assert copy.logpdf(0.5) == stats.beta(2, 3).logpdf(0.5)


class Triangle:
    """2x on (0, 1), with the names that `words` gives its methods."""

    support = (0, 1)

    def logpdf(self, x):
        assert np.all((x > 0) & (x < 1))
        return np.log(2 * x)

    def rvs(self, size, random_state):
        return np.sqrt(random_state.random(size))


def test_objects_with_a_log_density():
    p = as_distribution(Triangle())
    assert p.support == (0, 1)
    assert_array_equal(p.logpdf([-1.0, 0.5, 2.0]), [-math.inf, 0, -math.inf])
    assert entropy(p) == pytest.approx(0.5 - math.log(2), rel=1e-10)
    estimate = entropy(p, method="monte-carlo", rng=0)
    assert abs(estimate - 0.5 + math.log(2)) < 4 * estimate.standard_error
    assert as_distribution(Triangle(), support=(0, 0.5)).logpdf(0.7) == -math.inf


def test_functions_with_their_support():
    p = as_distribution(lambda x: -x, support=(0, math.inf))
    q = as_distribution(lambda x: math.log(0.5) - x / 2, support=(0, math.inf))
    assert kl_divergence(p, q) == pytest.approx(math.log(2) - 0.5, rel=1e-12)
    assert kl_divergence(p, stats.expon(scale=2)) == pytest.approx(math.log(2) - 0.5, rel=1e-12)
    assert p.score(3.0) == pytest.approx(-1, rel=1e-9)
    plane = as_distribution(lambda x: np.log(4 * x[:, 0] * x[:, 1]), support=([0, 0], [1, 1]))
    assert_allclose(plane.logpdf([[0.5, 0.25], [0.5, 1.5]]), [math.log(0.5), -math.inf])
    assert_allclose(plane.score([0.5, 0.25]), [2, 4], rtol=1e-8)


# Divergences on the line


@mpmath.workdps(40)
def mp_beta(a, b, c, d):
    a, b, c, d = map(mpmath.mpf, (a, b, c, d))
    terms = (a - c) * mpmath.psi(0, a) + (b - d) * mpmath.psi(0, b) + (c - a + d - b) * mpmath.psi(0, a + b)
    return mpmath.log(mpmath.beta(c, d)) - mpmath.log(mpmath.beta(a, b)) + terms


@mpmath.workdps(40)
def mp_gamma(a, s, c, t):
    a, s, c, t = map(mpmath.mpf, (a, s, c, t))
    logs = mpmath.loggamma(c) - mpmath.loggamma(a) + c * mpmath.log(t / s)
    return (a - c) * mpmath.psi(0, a) + logs + a * (s - t) / t


def entropy_of_t(nu):
    nu = mpmath.mpf(nu)
    spread = mpmath.psi(0, (nu + 1) / 2) - mpmath.psi(0, nu / 2)
    return (nu + 1) / 2 * spread + mpmath.log(mpmath.sqrt(nu) * mpmath.beta(nu / 2, 0.5))


def closed_forms():
    log_2pi = mpmath.log(2 * mpmath.pi)
    for a in [(3, 4, 2, 2), (2, 3, 0.5, 0.5), (1, 1, 2, 3), (0.1, 3, 0.2, 5), (50, 70, 2, 2), (2, 2, 1000, 1000)]:
        yield f"beta {a}", stats.beta(*a[:2]), stats.beta(*a[2:]), mp_beta(*a), 1e-7
    for a in [(1, 1, 2, 3), (5, 2, 0.5, 1), (0.1, 1, 2, 1), (0.05, 1, 1, 1), (100, 1e-3, 2, 5), (1, 1000, 1, 1e-3)]:
        p, q = (stats.gamma(shape, scale=scale) for shape, scale in (a[:2], a[2:]))
        yield f"gamma {a}", p, q, mp_gamma(*a), 1e-10
    yield "poles", stats.beta(0.5, 0.5), stats.beta(2, 2), mp_beta(0.5, 0.5, 2, 2), 1e-5
    yield "far poles", stats.beta(0.5, 0.5, 1000), stats.beta(2, 2, 1000), mp_beta(0.5, 0.5, 2, 2), 1e-3
    yield "big parameters", stats.beta(1e6, 2e6), stats.uniform(), mp_beta(1e6, 2e6, 1, 1), 1e-6
    yield "new infrastructure", NewBeta(a=3, b=4), NewBeta(a=2, b=2), mp_beta(3, 4, 2, 2), 1e-10
    yield "exponential", stats.expon(scale=2), stats.expon(scale=3), mpmath.log(1.5) - mpmath.mpf(1) / 3, 1e-10
    yield "mirrored", stats.weibull_max(1), stats.weibull_max(1, scale=2), mpmath.log(2) - 0.5, 1e-10
    yield "uniform", stats.uniform(), stats.beta(2, 3), mp_beta(1, 1, 2, 3), 1e-10
    gap = log_2pi / 2 - mpmath.log(2)
    yield "laplace", stats.laplace(), stats.norm(), gap, 1e-10
    yield "laplace far out", stats.laplace(1e6, 1e-3), stats.norm(1e6, 1e-3), gap, 1e-5
    truth = -log_2pi / 2 - 0.5 + mpmath.log(2) + mpmath.sqrt(2 / mpmath.pi)
    yield "kink", Normal(), stats.laplace(), truth, 1e-10
    yield "lognormal", stats.lognorm(1), stats.norm(), (mpmath.exp(2) - 1) / 2, 1e-10
    for nu in (5, 2.1):
        truth = -entropy_of_t(nu) + log_2pi / 2 + mpmath.mpf(nu) / (2 * mpmath.mpf(nu) - 4)
        yield f"t({nu})", stats.t(nu), stats.norm(), truth, 1e-9
    yield "heavy tails", stats.cauchy(), stats.cauchy(3, 2), mpmath.log(mpmath.mpf(18) / 8), 1e-10
    yield "underflow of q", stats.pareto(1.5), stats.pareto(3), 1 - mpmath.log(2), 1e-10
    narrow = stats.truncnorm(-5e5, 5e5, 0.5, 1e-6)
    yield "narrow in wide", narrow, stats.uniform(), -(log_2pi + 1) / 2 + mpmath.log(10) * 6, 1e-8
    yield "wide in narrow", stats.uniform(), stats.truncnorm(-500, 500, 0.5, 1e-3), mp_wide(), 1e-10
    yield "poles inside", stats.dgamma(0.5), stats.dgamma(2), mp_gamma(0.5, 1, 2, 1), 1e-8
    yield "zeros inside", stats.dgamma(2), stats.dgamma(3), mp_gamma(2, 1, 3, 1), 1e-9
    yield "zero off the origin", stats.laplace(-4.1), stats.dgamma(1.1, -4.1), mp_gamma(1, 1, 1.1, 1), 1e-9


def mp_wide():
    return mpmath.mpf(1e6) / 24 + mpmath.log(2 * mpmath.pi) / 2 + mpmath.log(mpmath.mpf(1e-3))


CLOSED_FORMS = {name: case for name, *case in closed_forms()}


@pytest.mark.filterwarnings("ignore:quadrature did not converge")
@pytest.mark.parametrize(("p", "q", "truth", "error"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_divergences_are_those_of_closed_forms_within_their_error(p, q, truth, error):
    estimate = kl_divergence(p, q)
    assert estimate.method == "quadrature"
    assert abs(estimate - truth) <= estimate.error + 1e-15 * abs(truth)
    assert estimate.error <= error * max(1, abs(truth))


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_looser_tolerance_costs_less_and_its_error_holds(rtol):
    for p, q, truth, _ in (CLOSED_FORMS[name] for name in ("kink", "heavy tails", "t(2.1)")):
        estimate = kl_divergence(p, q, rtol=rtol)
        assert abs(estimate - truth) <= estimate.error
        assert estimate.n_evaluations <= kl_divergence(p, q).n_evaluations


@pytest.mark.parametrize(
    ("p", "truth"),
    [
        (stats.beta(3, 4), stats.beta(3, 4).entropy()),
        (stats.beta(0.5, 0.5), math.log(math.pi / 4)),
        (stats.gamma(1), 1),
        (stats.uniform(1, 3), math.log(3)),
        (stats.cauchy(), math.log(4 * math.pi)),
        (stats.cauchy(1e8, 1e-2), math.log(4 * math.pi * 1e-2)),
        (stats.laplace(5, 2), 1 + math.log(4)),
        (stats.rv_histogram(([1, 3, 4], [0.0, 1.0, 3.0, 4.0]), density=False), None),
    ],
)
def test_entropies_are_those_of_closed_forms_within_their_error(p, truth):
    if truth is None:
        mass = np.array([1, 3, 4]) / 8
        truth = -np.sum(mass * np.log(mass / [1, 2, 1]))
    estimate = entropy(p)
    assert abs(estimate - truth) <= estimate.error + 4e-15
    assert estimate.error < 1e-5


def mp_js(p, q, points):
    def integrand(x):
        densities = p(x), q(x)
        middle = sum(densities) / 2
        return sum(d * mpmath.log(d / middle) for d in densities if d > 0) / 2

    with mpmath.workdps(20):
        return mpmath.quad(integrand, points)


def test_jensen_shannon_is_mpmaths():
    def beta(x):
        return 60 * x**2 * (1 - x) ** 3 if x < 1 else mpmath.mpf(0)

    cases = [
        (stats.beta(3, 4), stats.beta(2, 2), mp_js(beta, lambda x: 6 * x * (1 - x), [0, 0.1, 0.5, 0.9, 1])),
        (
            stats.beta(3, 4),
            stats.uniform(0.5),
            mp_js(beta, lambda x: mpmath.mpf(x >= 0.5), [0, 0.25, 0.5, 0.8, 1, 1.5]),
        ),
        (Normal(), stats.laplace(), mp_js(mpmath.npdf, lambda x: mpmath.exp(-abs(x)) / 2, [-60, -9, -3, 0, 3, 9, 60])),
        (stats.uniform(), stats.uniform(2), mpmath.log(2)),
    ]
    for p, q, truth in cases:
        estimate = js_divergence(p, q)
        assert abs(estimate - truth) <= estimate.error + 1e-15
        assert estimate.error < 1e-11
        assert js_divergence(q, p) == pytest.approx(estimate, rel=1e-10)


@pytest.mark.parametrize("method", ["auto", "quadrature", "monte-carlo"])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (stats.expon(), stats.uniform()),
        (Normal(), stats.beta(2, 2)),
        (stats.uniform(), stats.uniform(0, 0.5)),
        (stats.weibull_max(1), stats.expon()),
    ],
)
def test_a_support_that_reaches_beyond_the_others_makes_it_infinite(p, q, method):
    estimate = kl_divergence(p, q, method=method, rng=0)
    assert (estimate, estimate.error, estimate.method) == (math.inf, 0, "support")


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (stats.t(2), stats.norm()),
        (stats.cauchy(), stats.norm()),
        (stats.uniform(), stats.invgamma(1)),
        (stats.pareto(1), stats.expon(1)),
        (stats.uniform(0, 3), stats.rv_histogram(([1, 0, 1], [0.0, 1.0, 2.0, 3.0]), density=False)),
    ],
    ids=["variance", "tails", "end", "mean", "gap"],
)
def test_divergences_that_diverge_are_infinite(p, q):
    estimate = kl_divergence(p, q)
    assert (estimate, estimate.method) == (math.inf, "quadrature")


def test_what_float64_cannot_see_is_in_the_error():
    for p, q, truth in [
        (stats.t(2.01), stats.norm(), -entropy_of_t(2.01) + math.log(2 * math.pi) / 2 + 2.01 / 0.02),
        (stats.beta(0.1, 0.1), stats.uniform(), mp_beta(0.1, 0.1, 1, 1)),
        (stats.beta(1, 0.05), stats.uniform(), mp_beta(1, 0.05, 1, 1)),
    ]:
        with pytest.warns(AccuracyWarning, match="did not converge"):
            estimate = kl_divergence(p, q)
        assert 0.1 < abs(estimate - truth) <= estimate.error


def test_densities_that_do_not_integrate_to_1_are_told():
    twice = as_distribution(lambda x: np.full(len(x), math.log(2)), (0, 1))
    for p, q, name in ((twice, stats.uniform(), "p"), (stats.uniform(), twice, "q")):
        with pytest.warns(AccuracyWarning, match=f"the mass of {name} is 2"):
            estimate = kl_divergence(p, q)
        assert estimate.error == math.inf
        assert estimate.diagnostics["mass"][name] == pytest.approx(2, rel=1e-9)


def test_a_density_that_underflows_where_p_has_mass_is_told():
    # log pdf by SciPy is the logarithm of a number that underflows, here already at probability 1e-6 of p.
    with pytest.warns(AccuracyWarning, match="the density of q underflows"):
        estimate = kl_divergence(stats.levy(), stats.invweibull(2))
    assert (estimate, estimate.diagnostics["underflow"]) == (math.inf, True)


def test_densities_that_overflow_to_nan_far_out_keep_their_divergences():
    # SciPy's formula is 0 times infinity near 0.
    estimate = entropy(stats.levy())
    assert abs(estimate - (1 + 3 * np.euler_gamma + math.log(16 * math.pi)) / 2) <= estimate.error + 1e-15
    assert estimate.error < 1e-10


def test_a_density_of_infinite_mass_is_told():
    with pytest.warns(AccuracyWarning, match="the mass of p is inf"):
        entropy(stats.vonmises(4))


def test_quantiles_that_a_solver_does_not_find_are_done_without():
    class Logistic:
        logpdf = staticmethod(stats.logistic.logpdf)

        def ppf(self, u):
            raise ValueError("solver cannot continue")

        def rvs(self, size, rng):
            return rng.logistic(size=size)

    estimate = entropy(Logistic())
    assert abs(estimate - 2) <= estimate.error < 1e-10
    assert as_distribution(Logistic()).score(0.5) == pytest.approx(-math.tanh(0.25), rel=1e-9)


def test_quantiles_are_asked_for_as_an_array():
    exponential = SimpleNamespace(logpdf=lambda x: -x, support=(0, math.inf), ppf=lambda u: -np.log1p(-u))
    assert as_distribution(exponential).score(2.0) == pytest.approx(-1, rel=1e-9)


def test_warnings_of_another_librarys_solver_are_not_shown():
    estimate = kl_divergence(stats.beta(0.5, 2), stats.uniform())
    assert estimate == pytest.approx(float(mp_beta(0.5, 2, 1, 1)), rel=1e-6)


def test_samplers_that_take_both_keywords_are_given_rng():
    class Both:
        support = (0, 1)
        logpdf = staticmethod(np.zeros_like)

        def rvs(self, size, random_state=None, rng=None):
            assert random_state is None
            return rng.random(size)

    assert_array_equal(as_distribution(Both()).sample(3, rng=0), np.random.default_rng(0).random(3))


def test_a_needle_that_is_not_found_is_told():
    needle = stats.norm(500, 1e-9)
    with pytest.warns(AccuracyWarning, match="the mass of p is 0"):
        estimate = entropy(as_distribution(needle.logpdf, (0, 1000)))
    assert estimate.error == math.inf


def test_divergences_do_not_depend_on_units():
    truth = kl_divergence(stats.gamma(3), stats.lognorm(1))
    for scale in (1e-100, 1e-9, 1e9, 1e100):
        estimate = kl_divergence(stats.gamma(3, scale=scale), stats.lognorm(1, scale=scale))
        assert abs(estimate - truth) <= estimate.error + truth.error < 1e-9


def test_bounds_cut_the_integral():
    p, q = stats.beta(3, 4), stats.beta(2, 2)
    truth = kl_divergence(p, q)
    parts = [kl_divergence(p, q, method="quadrature", bounds=ends) for ends in ((-1, 0.3), (0.3, 0.6), (0.6, 7))]
    assert sum(parts) == pytest.approx(truth, abs=1e-13)
    assert all(abs(part - truth) <= part.error for part in parts)
    assert kl_divergence(p, q, method="quadrature", bounds=(2, 3)) == 0
    # On bounds where both have mass it is finite, of an infinite divergence.
    cut = kl_divergence(stats.expon(), stats.uniform(), method="quadrature", bounds=(0, 0.5))
    assert cut == pytest.approx(-(1 - 1.5 * math.exp(-0.5)), rel=1e-10)
    assert cut.error == math.inf


def test_the_trapezoid_rule_counts_0_where_p_is_0():
    p, q = stats.beta(3, 4), stats.beta(2, 2)
    x = np.linspace(-1, 2, 3001)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(p.pdf(x) > 0, p.pdf(x) * np.log(p.pdf(x) / q.pdf(x)), 0)
    expected = np.trapezoid(values, x)
    assert trapezoid_kl(p, q, 3001, (-1, 2)) == pytest.approx(expected, rel=1e-12)
    estimate = kl_divergence(p, q, bounds=(-1, 2), num=3001)
    assert estimate.method == "trapezoid"
    assert abs(estimate - mp_beta(3, 4, 2, 2)) <= estimate.error < 1e-6
    assert trapezoid_kl(stats.expon(), stats.uniform(), bounds=(0, 2)) == math.inf
    assert trapezoid_kl(p, q) == trapezoid_kl(p, q, bounds=tuple(p.ppf(stats.norm.cdf([-3, 3]))))
    assert_allclose(
        trapezoid_kl_normal([[0.0], [1.0]], [0.5, 2.0], stats.laplace(), 301),
        [[trapezoid_kl(Normal(m, s), stats.laplace(), 301, (m - 4 * s, m + 4 * s)) for s in (0.5, 2)] for m in (0, 1)],
        rtol=1e-12,
    )


def test_log_ratios_and_the_optimal_classifier():
    x = np.array([-1.0, 0.25, 0.5])
    p, q = stats.beta(3, 4), stats.uniform(-2, 4)
    assert_allclose(log_ratio(x, p, q), p.logpdf(x) - q.logpdf(x), rtol=1e-14)
    assert_allclose(optimal_classifier(x, p, q), p.pdf(x) / (p.pdf(x) + q.pdf(x)), rtol=1e-13)


# By Monte Carlo


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (stats.beta(3, 4), stats.beta(2, 2)),
        (stats.beta(3, 4), Normal(0, 1)),
        (S4 := Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), stats.laplace()),
    ],
)
def test_standard_errors_hold_over_seeds(p, q):
    truth = kl_divergence(p, q)
    estimates = [kl_divergence(p, q, method="monte-carlo", n=2000, rng=seed) for seed in range(200)]
    scores = [(e - truth) / e.standard_error for e in estimates]
    assert np.max(np.abs(scores)) < 5
    assert np.std(scores) == pytest.approx(1, abs=0.2)


def test_js_by_monte_carlo():
    estimate = js_divergence(stats.beta(3, 4), stats.uniform(0.5), method="monte-carlo", rng=0)
    assert abs(estimate - js_divergence(stats.beta(3, 4), stats.uniform(0.5))) < 4 * estimate.standard_error


def test_divergences_in_the_plane_are_by_monte_carlo():
    p, q = stats.multivariate_t([0, 0], COV, df=5), stats.multivariate_normal([0, 0], COV)
    estimate = entropy(p, rng=0)
    assert estimate.method == "monte-carlo"
    assert abs(estimate - p.entropy()) < 4 * estimate.standard_error
    # E[log q] under p is that of a Gaussian, its quadratic form larger by nu / (nu - 2).
    log_det = math.log(np.linalg.det(COV))
    truth = -p.entropy() + math.log(2 * math.pi) + log_det / 2 + 5 / 3
    estimate = kl_divergence(p, q, rng=1)
    assert abs(estimate - truth) < 4 * estimate.standard_error
    assert kl_divergence(q, as_distribution(lambda x: 0 * x[:, 0], ([0, 0], [1, 1]))).method == "support"


def test_a_seed_fixes_the_draws_for_any_number_of_threads(threads):
    p, q = stats.beta(3, 4), stats.beta(2, 2)
    results = set()
    for n in (1, 3):
        threads(n)
        results |= {kl_divergence(p, q, method="monte-carlo", n=100_000, rng=7) for _ in range(2)}
    assert len(results) == 1


def test_rtol_sets_the_number_of_draws():
    estimate = kl_divergence(stats.beta(3, 4), stats.beta(2, 2), method="monte-carlo", rtol=0.01, rng=0)
    assert 0.5 < estimate.standard_error / (0.01 * estimate) < 1.1


# Refusals


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        (3, TypeError, "p must be .*got int"),
        (np, TypeError, "p must be .*got module"),
        (lambda x: -x, TypeError, r"p must be .*got function \(of a function, give the support"),
        (stats.beta, TypeError, "p must be frozen, got scipy.stats.beta without a, b"),
        (stats.Normal, TypeError, "p must be .*got ABCMeta"),
        (stats.binom(3, 0.5), TypeError, "p must be .*got rv_discrete_frozen"),
        *([(stats.Binomial(n=3, p=0.5), TypeError, "p must be .*got Binomial")] if hasattr(stats, "Binomial") else []),
        (stats.dirichlet([1, 2, 3]), TypeError, "p must be .*got dirichlet_frozen"),
        (stats.beta([1, 2], 2), ValueError, "p must be one distribution, got 2"),
        (Torchlike(batch_shape=(3,)), ValueError, r"p must be one distribution, got a batch of shape \(3,\)"),
        (Torchlike(support=SimpleNamespace(is_discrete=True)), TypeError, "p must have a density, got a discrete"),
        (GaussianMixture(), NotFittedError, "not fitted"),
        (Torchlike(support=SimpleNamespace(), event_shape=(2,)), ValueError, "p and q must have the same dimensions"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(obj, error, message):
    with pytest.raises(error, match=message):
        kl_divergence(obj, Normal())


@pytest.mark.parametrize("support", [(1, 0), (0, 0), (0, math.nan), ([0, 1], [1, 1]), ([0], 1)], ids=str)
def test_supports_are_a_lower_and_an_upper_end(support):
    with pytest.raises(ValueError, match=r"the support of obj must be a lower and an upper end.*got"):
        as_distribution(lambda x: x, support)


def test_other_wrong_arguments_are_refused():
    p = as_distribution(lambda x: -x, (0, math.inf))
    with pytest.raises(TypeError, match=r"the support of obj must be a pair .*got 3"):
        as_distribution(lambda x: x, 3)
    with pytest.raises(TypeError, match="support is for a log-density without one"):
        as_distribution(Normal(), (0, 1))
    with pytest.raises(TypeError, match="cannot be sampled"):
        kl_divergence(p, stats.expon(), method="monte-carlo")
    with pytest.raises(ValueError, match="bounds must be given"):
        kl_divergence(p, stats.expon(), method="trapezoid")
    with pytest.raises(ValueError, match=r"must give log-densities of shape \(2,\), got \(\)"):
        as_distribution(lambda x: 0.0, (0, 1)).logpdf([0.5, 0.5])
    with pytest.raises(ValueError, match="'closed-form' is for two Gaussians"):
        kl_divergence(stats.beta(3, 4), stats.beta(2, 2), method="closed-form")
    with pytest.raises(ValueError, match="n must be a whole number, at least 2"):
        kl_divergence(stats.beta(3, 4), stats.beta(2, 2), method="monte-carlo", n=1)
    with pytest.raises(ValueError, match="backend must be one of"):
        as_distribution(stats.beta(3, 4)).logpdf(0.5, backend="fortran")
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 2\), got \(3,\)"):
        as_distribution(stats.multivariate_t([0, 0])).logpdf([0.0, 0.0, 0.0])


# What all distributions share


def test_a_subclass_that_gives_the_least_has_its_divergences():
    class Logistic(Distribution):
        def logpdf(self, x, *, backend=None):
            x = np.asarray(x)
            return special.log_expit(x) + special.log_expit(-x)

        def sample(self, shape=(), *, rng=None):
            return np.random.default_rng(rng).logistic(size=shape)

    estimate = entropy(Logistic())
    assert abs(estimate - 2) <= estimate.error < 1e-10
    assert kl_divergence(Logistic(), stats.logistic(0, 2)) > 0


def test_derivatives_of_mixture_densities():
    p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    x = np.array([-5.0, 0.0, 3.0, 1e6])
    parts = [w * stats.norm(m, s).pdf(x) * (m - x) / s**2 for w, m, s in ((0.4, -1, 0.75), (0.6, 4, 0.5))]
    assert_allclose(p.pdf_derivative(x), sum(parts), rtol=1e-12)
    assert_array_equal(p.pdf_derivative([math.inf, math.nan]), [0, math.nan])
    plane = MultivariateNormal([0, 1], COV)
    assert_allclose(plane.pdf_derivative(X), plane.score(X) * plane.pdf(X)[:, None], rtol=1e-13)
    assert p.support == (-math.inf, math.inf)
    assert_array_equal(plane.support, [[-math.inf] * 2, [math.inf] * 2])


def test_quantiles_of_mixtures_are_inverses():
    u = np.array([1e-20, 1e-5, 0.1, 0.3, 0.5, 0.999])
    for p in (
        Mixture([0.2, 0.5, 0.3, 0.0], [-1, 0.5, 4, 900], [0.5, 1, 2, 1]),
        Mixture([0.5, 0.5], [0, 1e3], [1, 1e-1]),
        Mixture([0.5, 0.5], [1, 1], [2, 2]),
        Normal(1, 2),
    ):
        assert_allclose(p.cdf(p.quantile(u)), u, rtol=1e-12)
        assert_array_equal(p.quantile([0, 1, math.nan, 2]), [-math.inf, math.inf, math.nan, math.nan])
        assert p.quantile(u.reshape(2, 3)).shape == (2, 3)
        assert np.shape(p.quantile(0.3)) == ()
    assert_allclose(Normal(1, 2).quantile(u), stats.norm(1, 2).ppf(u), rtol=1e-14)
    with pytest.raises(ValueError, match="quantile is for distributions on the line"):
        MultivariateNormal([0, 1], COV).quantile(0.5)
