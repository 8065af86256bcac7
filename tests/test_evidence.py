"""The evidence and its lower bound: conjugate models, the identity between them, and error bars that hold."""

import math
import threading

import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln, digamma, gammaln, log_expit, xlog1py, xlogy

from fastdiv import (
    AccuracyWarning,
    Mixture,
    MultivariateNormal,
    Normal,
    elbo,
    entropy,
    fit_kl,
    kl_divergence,
    log_evidence,
    unconstrain,
)

FLIPS = np.array([0, 1, 1, 0, 0])
PRIOR = unconstrain(stats.beta(1, 1))
POSTERIOR = unconstrain(stats.beta(3, 4))
LOG_EVIDENCE = math.log(1 / 60)
GAUSSIANS = [Normal(mu, sigma) for mu, sigma in np.random.default_rng(0).uniform([-3, 0.1], [3, 1], (100, 2))]


def coin(x):
    """Likelihood of the flips times the prior, by the log-odds of heads."""
    return PRIOR.logpdf(x) + FLIPS.sum() * log_expit(x) + (1 - FLIPS).sum() * log_expit(-x)


def regression(n=20):
    """A linear model with known noise: its log-joint, its posterior, and its log-evidence."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = X @ [1, -1, 0.5] + rng.normal(scale=0.5, size=n)

    def log_joint(beta):
        return stats.norm(scale=0.5).logpdf(y - beta @ X.T).sum(axis=1) - 0.5 * np.sum(
            beta**2 + np.log(2 * np.pi), axis=1
        )

    cov = np.linalg.inv(np.eye(3) + X.T @ X / 0.25)
    evidence = stats.multivariate_normal(np.zeros(n), X @ X.T + 0.25 * np.eye(n)).logpdf(y)
    return log_joint, MultivariateNormal(cov @ X.T @ y / 0.25, (cov + cov.T) / 2), evidence


def test_the_coins_evidence():
    published = log_evidence(coin, bounds=(-4, 4), num=500)
    assert published == pytest.approx(-4.094458, abs=5e-7)
    # What the bounds cut off is most of the error, and the error tells it.
    assert 0.9 * published.error < LOG_EVIDENCE - published < published.error
    assert log_evidence(coin) == pytest.approx(LOG_EVIDENCE, abs=1e-13)
    assert log_evidence(coin).error < 1e-12


@pytest.mark.parametrize("q", GAUSSIANS[:3])
def test_the_difference_that_was_published(q):
    at = Normal(-1, 1)
    ends = {"bounds": (-5, 3), "num": 500}
    assert kl_divergence(at, POSTERIOR, **ends) + elbo(at, coin, num=500) == pytest.approx(-4.094085, abs=5e-7)
    # It is the evidence times the mass of q on four standard deviations to either side.
    ends = {"bounds": (q.loc - 4 * q.scale, q.loc + 4 * q.scale), "num": 500}
    mass = stats.norm.cdf(4) - stats.norm.cdf(-4)
    found = kl_divergence(q, POSTERIOR, **ends) + elbo(q, coin, **ends)
    assert found == pytest.approx(mass * LOG_EVIDENCE, abs=1e-6)


def test_the_divergence_is_the_evidence_less_its_bound():
    for q in GAUSSIANS:
        assert kl_divergence(q, POSTERIOR) + elbo(q, coin) == pytest.approx(LOG_EVIDENCE, abs=1e-10)
        ends = {"bounds": (q.loc - 5 * q.scale, q.loc + 5 * q.scale), "num": 500}
        assert kl_divergence(q, POSTERIOR, **ends) + elbo(q, coin, **ends) == pytest.approx(LOG_EVIDENCE, abs=1e-4)


@pytest.mark.parametrize(
    ("log_density", "expected"),
    [
        (lambda x: -0.5 * x**2, 0.5 * math.log(2 * math.pi)),
        (lambda x: -0.5 * ((x - 1e6) / 1e-3) ** 2, math.log(1e-3) + 0.5 * math.log(2 * math.pi)),
        (lambda x: -np.abs(x), math.log(2)),
        (lambda x: -np.log1p(x**2), math.log(math.pi)),
        (lambda x: x - np.exp(x), 0.0),
        (lambda x: 300.5 * x - np.exp(x), gammaln(300.5)),
        (lambda x: 700 - x**4, 700 + gammaln(0.25) - math.log(2)),
        (Mixture([0.4, 0.6], [-50, 1], [1e-2, 3]), 0.0),
        (stats.gamma(0.3), 0.0),
        (stats.beta(3, 4), 0.0),
    ],
)
def test_integrals_over_the_line(log_density, expected):
    estimate = log_evidence(log_density)
    assert estimate == pytest.approx(expected, abs=estimate.error + 1e-13 * abs(expected))
    assert estimate.error < 1e-8
    assert estimate.method == "quadrature"


@pytest.mark.parametrize(
    ("means", "stds"), [([0, 20], [1, 0.01]), ([0, 1e6], [1, 0.01]), ([0, 3e4], [1, 1]), ([-7, 5, 300], [1e-3, 1, 0.1])]
)
def test_modes_far_apart_and_narrow(means, stds):
    p = Mixture(np.full(len(means), 1 / len(means)), means, stds)
    estimate = log_evidence(lambda x: p.logpdf(x) + math.log(2))
    assert estimate == pytest.approx(math.log(2), abs=1e-11)
    assert estimate.error < 1e-9


@pytest.mark.parametrize("std", [1, 0.02])
def test_a_mode_beyond_one_that_underflows(std):
    def log_density(x):
        with np.errstate(divide="ignore"):
            return np.log(0.5 * stats.norm.pdf(x, 0, 1) + 0.5 * stats.norm.pdf(x, 200, std))

    assert log_evidence(log_density) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"bounds": (-1, 1)}, {"q": Normal(), "rng": 0}])
def test_what_is_no_log_density_where_it_counts_is_refused(options, value):
    def log_joint(x):
        return np.where(x > 0, value, -(x**2))

    message = f"must not be NaN or inf where it counts, got {value} at|inf nowhere, got a maximum of {value}"
    with pytest.raises(ValueError, match=message):
        log_evidence(log_joint, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["quadrature", "trapezoid", "monte-carlo"])
def test_every_method_of_the_elbo_refuses_what_is_no_log_density_where_it_counts(method, value):
    with pytest.raises(ValueError, match=f"log_joint must not be NaN or inf where it counts, got {value} at .?1[1-9]"):
        elbo(Normal(10), lambda x: np.where(x > 11, value, -(x**2)), method=method, rng=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_in_more_dimensions_too(value):
    message = rf"log_joint must not be NaN or inf where it counts, got {value} at \[1[1-9]\."
    with pytest.raises(ValueError, match=message):
        elbo(MultivariateNormal([10, 0], [1, 1]), lambda x: np.where(x[:, 0] > 11, value, -(x[:, 0] ** 2)), rng=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_where_the_approximation_is_0_all_is_allowed(value):
    bound = elbo(Normal(), lambda x: np.where(x > 60, value, -x * x / 2), bounds=(-5, 70), num=200)
    assert abs(bound - 0.5 * math.log(2 * math.pi)) <= bound.error < 1e-4


@pytest.mark.parametrize("std", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("mean", [0.3, 1.2345, 3.0])
def test_a_narrow_peak_in_a_wide_one_is_not_passed_over(mean, std):
    p = Mixture([0.5, 0.5], [0, mean], [1, std])
    found = log_evidence(p.logpdf)
    assert abs(found) <= found.error < 1e-12
    moments = fit_kl(p.logpdf, direction="mass-covering").distribution
    np.testing.assert_allclose([moments.loc, moments.scale**2], [p.mean(), p.variance()], rtol=1e-9)


@pytest.mark.parametrize("p", [stats.beta(0.5, 0.5), stats.beta(3, 0.6), stats.arcsine(2, 3)])
def test_what_is_lost_next_to_an_end_of_the_support_is_in_the_error(p):
    found = log_evidence(p)
    assert abs(found) <= found.error < 1e-6


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.1, 0.5), (2, 3), (3, 0.6)])
def test_bounds_lose_no_more_next_to_an_end_of_the_support(a, b):
    # The divergence of Beta(a, b) from Beta(3, 4), in closed form.
    kl = betaln(3, 4) - betaln(a, b) + (a - 3) * digamma(a) + (b - 4) * digamma(b) + (7 - a - b) * digamma(a + b)
    found = elbo(stats.beta(a, b), lambda x: xlogy(2, x) + xlog1py(3, -x) - betaln(3, 4))
    assert abs(found + kl) <= found.error < 1e-4


def test_a_pole_within_the_support_is_told_and_in_the_error():
    with pytest.warns(AccuracyWarning, match="has not converged") as told:
        found = log_evidence(stats.dgamma(0.5))
    assert len(told) == 1
    assert abs(found) <= found.error < 0.01


@pytest.mark.parametrize("mean", [0, 1e-9])
def test_a_peak_that_is_too_narrow_for_the_rule_is_told_and_in_the_error(mean):
    p = Mixture([0.5, 0.5], [0, mean], [1, 1e-9])
    with pytest.warns(AccuracyWarning, match="so narrow beside the rest") as told:
        found = log_evidence(p.logpdf)
    assert len(told) == 1
    assert abs(found) <= found.error < 3
    with pytest.warns(AccuracyWarning, match="so narrow beside the rest"):
        fit = fit_kl(p.logpdf, direction="mass-covering")
    assert abs(fit.divergence - kl_divergence(p, fit.distribution)) <= fit.divergence.error < 300


def test_nan_where_it_does_not_count_is_nothing():
    truth = 0.5 * math.log(math.pi)
    assert log_evidence(lambda x: np.where(np.abs(x) > 50, np.nan, -(x**2))) == pytest.approx(truth, abs=1e-13)


@pytest.mark.parametrize("method", ["quadrature", "trapezoid", "monte-carlo"])
def test_a_bound_that_is_infinite(method):
    bound = elbo(Normal(), lambda x: np.where(x > 0, -np.inf, -(x**2)), method=method, rng=0)
    assert (bound, bound.error, bound.method) == (-math.inf, math.inf, method)


def test_a_bound_that_is_infinite_by_underflow_is_told():
    def log_joint(x):
        with np.errstate(divide="ignore"):
            return np.log(stats.norm.pdf(5 * x))

    with pytest.warns(AccuracyWarning, match="may underflow"):
        assert elbo(Normal(), log_joint) == -math.inf


def test_errors_are_not_below_rounding():
    q = Normal(-0.33, 1)
    assert log_evidence(q.logpdf, q=q, rng=0).standard_error > 1e-15
    exact = elbo(q, lambda x: q.logpdf(x) - 1000, method="monte-carlo", n=100, rng=0)
    assert abs(exact + 1000) <= exact.standard_error < 1e-10


def test_all_points_are_counted():
    seen = []

    def log_joint(x):
        seen.append(len(x))
        return -(x**2)

    assert log_evidence(log_joint).n_evaluations == sum(seen)
    p = Mixture(np.full(20, 0.05), np.arange(20), np.ones(20))
    seen.clear()
    assert elbo(p, log_joint).n_evaluations == sum(seen)


def test_rough_integrands_of_many_components_take_no_more_points():
    p = Mixture(np.full(20, 0.05), np.arange(20), np.ones(20))
    seen = []

    def log_joint(x):
        seen.append(len(x))
        return -np.sqrt(np.abs(x - 0.3))

    with pytest.warns(AccuracyWarning, match="not converged"):
        elbo(p, log_joint)
    assert max(seen) < 1 << 21


def test_a_function_in_more_dimensions_is_told_what_it_lacks():
    with pytest.raises(IndexError) as raised:
        log_evidence(lambda x: -(x[:, 0] ** 2))
    assert raised.value.__notes__ == ["The points were those of the line, (n,); in D dimensions give q."]


def test_other_libraries_are_called_on_this_thread(threads):
    threads(4)
    callers = set()

    def log_joint(x):
        callers.add(threading.get_ident())
        return -(x**2)

    log_evidence(log_joint, q=Normal(), n=200_000, rng=0)
    assert callers == {threading.get_ident()}


@pytest.mark.parametrize("num", [20, 100, 500])
def test_the_trapezoid_rules_error(num):
    def log_density(x):
        return xlogy(3, x) + xlog1py(0.5, -x)

    estimate = log_evidence(log_density, bounds=(0, 1), num=num)
    truth = betaln(4, 1.5)
    assert abs(estimate - truth) < estimate.error < 4 * abs(estimate - truth)
    assert (estimate.method, estimate.n_evaluations) == ("trapezoid", num)


def test_bounds_beyond_which_nothing_falls_off():
    assert log_evidence(lambda x: np.zeros(len(x)), bounds=(0, 1)).error == math.inf
    with pytest.raises(ValueError, match="must fall off"):
        log_evidence(lambda x: np.zeros(len(x)))


def test_a_density_that_falls_off_slowly_is_told():
    with pytest.warns(AccuracyWarning, match="falls off slowly"):
        log_evidence(lambda x: -0.51 * np.log1p(x**2))


def test_a_regressions_evidence():
    log_joint, posterior, truth = regression()
    exact = log_evidence(log_joint, q=posterior, n=1000, rng=0)
    assert exact == pytest.approx(truth, abs=1e-10)
    wide = MultivariateNormal(posterior.means[0], 2 * posterior.covs[0])
    estimates = [log_evidence(log_joint, q=wide, n=2000, rng=seed) for seed in range(200)]
    z = np.array([(estimate - truth) / estimate.standard_error for estimate in estimates])
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.15
    assert max(estimate.diagnostics["pareto_k"] for estimate in estimates) < 0.7


def test_draws_from_too_narrow_a_distribution_are_told():
    log_joint, posterior, _ = regression()
    narrow = MultivariateNormal(posterior.means[0], posterior.covs[0] / 8)
    with pytest.warns(AccuracyWarning, match=r"Pareto k is .*, over 0.7"):
        estimate = log_evidence(log_joint, q=narrow, n=20_000, rng=0)
    # Weights of a Gaussian from one of an eighth of its variance have moments up to 8/7.
    assert estimate.diagnostics["pareto_k"] == pytest.approx(7 / 8, abs=0.2)
    assert estimate.diagnostics["effective_sample_size"] < 5000


def test_an_integral_of_nothing():
    with pytest.warns(AccuracyWarning, match="Pareto k is inf"):
        assert log_evidence(lambda x: np.full(len(x), -np.inf), q=Normal(), n=100, rng=0) == -math.inf


def test_importance_sampling_is_the_same_for_any_number_of_threads(threads):
    found = []
    for n in (1, 2, 5):
        threads(n)
        found.append(log_evidence(coin, q=Normal(-0.3, 1), n=100_000, rng=0))
    assert len(set(found)) == 1


def test_the_elbo_of_a_regression():
    log_joint, posterior, truth = regression()
    assert elbo(posterior, log_joint, n=1000, rng=0) == pytest.approx(truth, abs=1e-9)
    q = MultivariateNormal(posterior.means[0] + 0.1, 2 * posterior.covs[0])
    estimates = [elbo(q, log_joint, n=1000, rng=seed) for seed in range(200)]
    z = [(estimate - truth + kl_divergence(q, posterior)) / estimate.standard_error for estimate in estimates]
    assert abs(np.mean(z)) < 0.25
    assert 0.85 < np.std(z) < 1.15


def test_the_elbo_on_a_distribution_is_minus_the_divergence():
    p, q = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), Normal(1, 2)
    assert elbo(q, p) == -kl_divergence(q, p)
    assert elbo(q, p.logpdf) == pytest.approx(-kl_divergence(q, p), rel=1e-12)
    assert elbo(q, Normal(0, 1)).method == "closed-form"
    assert elbo(stats.logistic(), Normal(0, 1).logpdf) == pytest.approx(
        entropy(stats.logistic()) - 0.5 * (math.log(2 * math.pi) + math.pi**2 / 3), rel=1e-12
    )


def test_the_elbo_by_the_trapezoid_rule_is_numpys():
    q = Normal(-1, 0.5)
    x = np.linspace(-3, 1, 500)
    expected = np.trapezoid(q.pdf(x) * (coin(x) - q.logpdf(x)), x)
    found = elbo(q, coin, method="trapezoid")
    assert found == pytest.approx(expected, rel=1e-12)
    assert abs(found - elbo(q, coin)) <= found.error
    assert elbo(q, coin, bounds=(-3, 1), num=500) == found
    p, x = stats.logistic(), np.linspace(*stats.logistic.ppf(stats.norm.cdf([-3, 3])), 7)
    expected = np.trapezoid(p.pdf(x) * (coin(x) - p.logpdf(x)), x)
    assert elbo(p, coin, method="trapezoid", num=7) == pytest.approx(expected, rel=1e-9)
    assert elbo(q, coin, method="monte-carlo", n=20_000, rng=0) == pytest.approx(elbo(q, coin), abs=0.02)


def test_the_elbo_where_the_joint_is_nothing():
    assert elbo(Normal(), stats.beta(3, 4)) == -math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_evidence(coin, bounds=(4, -4)), "bounds must be finite and increasing"),
        (lambda: log_evidence(coin, bounds=(-4, 4), num=1), "num must be a whole number, at least 2"),
        (lambda: log_evidence(coin, num=500), "bounds must be given where num is"),
        (lambda: log_evidence(coin, bounds=(-4, 4), q=Normal()), "give either them or q"),
        (lambda: log_evidence(coin, q=Normal(), n=1), "n must be a whole number, at least 2"),
        (lambda: log_evidence(MultivariateNormal([0, 0], [1, 1])), "q must be given in 2 dimensions"),
        (lambda: log_evidence(lambda x: 1.0), r"must give log-densities of shape \(16000,\), got \(\)"),
        (lambda: log_evidence(coin, n=0), "n must be a whole number, at least 2"),
        (lambda: log_evidence(stats.beta(0.5, 0.5), bounds=(0, 1)), "inf nowhere, got a sum of inf"),
        (lambda: log_evidence(stats.beta(3, 4), bounds=(2, 3)), "finite somewhere, and inf nowhere, got a sum of -inf"),
        (lambda: elbo(Normal(), coin, method="closed-form"), "method must be"),
        (lambda: elbo(Normal(), coin, method="simpson"), "method must be"),
        (lambda: elbo(Normal(), coin, rtol=2), "rtol must be between 0 and 1"),
        (lambda: elbo(Normal(), coin, num=1), "num must be a whole number, at least 2"),
        (lambda: elbo(Normal(), MultivariateNormal([0, 0], [1, 1])), "must have the same dimensions"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: elbo(Normal(), 3.0),
        lambda: elbo(coin, coin),
        lambda: log_evidence("coin"),
        lambda: log_evidence(coin, rng="a"),
    ],
)
def test_what_is_no_density_is_refused(call):
    with pytest.raises(TypeError, match="must"):
        call()
