"""The posterior density of a Bayesian mixture, against SciPy's densities."""

import doctest
import pickle

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import dirichlet, halfnorm, invgamma, multivariate_normal, norm

from fastdiv import MixtureModel

COV = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
CONCENTRATION = [0.3, 0.4, 2.0]
MODELS = {
    "identity": ({}, np.eye(3), None),
    "full": ({"cov": COV}, COV, None),
    "variances": ({"cov": [1.0, 2.0, 0.5]}, np.diag([1.0, 2.0, 0.5]), None),
    "half-normal": ({"cov": "diag", "scale_prior": ("half-normal", 0.7)}, None, halfnorm(scale=0.7)),
    "inverse-gamma": ({"cov": "diag", "scale_prior": ("inverse-gamma", 2.5, 0.7)}, None, invgamma(2.5, scale=0.7)),
}


@pytest.fixture
def X():
    return np.random.default_rng(1).normal(size=(50, 3))


def build(X, name):
    options, cov, prior = MODELS[name]
    return MixtureModel(X, 3, mean_prior_scale=1.5, concentration=CONCENTRATION, **options), cov, prior


def log_density(model, X, theta, cov, scale_prior):
    """By SciPy: likelihood, priors, and the Jacobian of the weights, their product, and of the stds."""
    found = model.constrain(theta)
    weights, means = found["weights"], found["means"]
    covs = [cov] * 3 if cov is not None else [np.diag(std**2) for std in found["stds"]]
    terms = [np.log(w) + multivariate_normal(m, c).logpdf(X) for w, m, c in zip(weights, means, covs, strict=True)]
    value = logsumexp(terms, axis=0).sum() + norm(0, 1.5).logpdf(means).sum()
    value += dirichlet(CONCENTRATION).logpdf(weights) + np.log(weights).sum()
    if cov is None:
        value += scale_prior.logpdf(found["stds"]).sum() + np.log(found["stds"]).sum()
    return value


@pytest.mark.parametrize("name", MODELS)
def test_log_density_is_that_of_scipy(kernels, X, name):
    model, cov, prior = build(X, name)
    for theta in np.random.default_rng(2).normal(size=(5, model.dim)):
        logp, _ = model.logp_grad(theta)
        assert logp == pytest.approx(log_density(model, X, theta, cov, prior), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_differences(X, name):
    model, _, _ = build(X, name)
    for theta in np.random.default_rng(3).normal(size=(3, model.dim)):
        _, grad = model.logp_grad(theta)
        steps = [[model.logp_grad(theta + sign * step)[0] for step in 1e-5 * np.eye(model.dim)] for sign in (1, -1)]
        np.testing.assert_allclose(grad, np.subtract(*steps) / 2e-5, rtol=1e-7, atol=1e-6)


def test_batches_are_unbiased(X):
    model, _, _ = build(X, "half-normal")
    theta = np.random.default_rng(4).normal(size=model.dim)
    whole = model.logp_grad(theta)
    parts = [model.logp_grad(theta, batch) for batch in np.random.default_rng(5).permutation(50).reshape(10, 5)]
    assert np.mean([logp for logp, _ in parts]) == pytest.approx(whole[0], rel=1e-12)
    np.testing.assert_allclose(np.mean([grad for _, grad in parts], axis=0), whole[1], rtol=1e-9, atol=1e-11)


def test_evidence_of_one_component_is_closed_form():
    # One component with a normal prior: the rows are jointly normal.
    x = np.array([0.3, -1.2, 0.8])
    model = MixtureModel(x[:, None], 1, mean_prior_scale=2.0)
    grid = np.linspace(-8, 8, 2001)
    evidence = np.trapezoid([np.exp(model.logp_grad([mean])[0]) for mean in grid], grid)
    assert np.log(evidence) == pytest.approx(multivariate_normal(np.zeros(3), np.eye(3) + 4).logpdf(x), rel=1e-10)


def test_far_parameters_stay_finite(X):
    model, _, _ = build(X, "identity")
    theta = np.array([800.0, -800.0, *np.linspace(-50, 50, 9)])
    logp, grad = model.logp_grad(theta)
    assert np.isfinite(logp)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_go_there_and_back(X, name):
    model, _, _ = build(X, name)
    theta = np.random.default_rng(6).normal(size=(4, 2, model.dim))
    found = model.constrain(theta)
    assert found["weights"].shape == (4, 2, 3)
    assert found["means"].shape == (4, 2, 3, 3)
    np.testing.assert_allclose(model.unconstrain(**found), theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_as_a_distribution_it_has_the_likelihood(X, name):
    model, _, _ = build(X, name)
    theta = np.random.default_rng(7).normal(size=model.dim)
    mixture = model.to_mixture(theta)
    doubled = MixtureModel(
        np.concatenate([X, X]), 3, **MODELS[name][0], mean_prior_scale=1.5, concentration=CONCENTRATION
    )
    gain = doubled.logp_grad(theta)[0] - model.logp_grad(theta)[0]
    assert gain == pytest.approx(mixture.logpdf(X).sum(), rel=1e-11)


@pytest.mark.parametrize("name", ["full", "half-normal"])
def test_float32_rows_are_computed_in_double(X, name):
    model, _, _ = build(X.astype(np.float32), name)
    other, _, _ = build(X.astype(np.float32).astype(np.float64), name)
    theta = np.random.default_rng(8).normal(size=model.dim)
    assert model.logp_grad(theta)[0] == other.logp_grad(theta)[0]


def test_far_rows_have_no_density(kernels):
    assert MixtureModel([[1e200], [0.0]], 2).logp_grad([0.0, 0.0, 1.0])[0] == -np.inf


def test_rows_are_its_own(X):
    model, _, _ = build(X, "identity")
    before = model.logp_grad(np.zeros(model.dim))[0]
    X += 100
    assert model.logp_grad(np.zeros(model.dim))[0] == before


@pytest.mark.parametrize("name", MODELS)
def test_order_of_components_leaves_the_mixture(X, name):
    model, _, _ = build(X, name)
    theta = np.random.default_rng(10).normal(size=(4, model.dim))
    order = np.array([[2, 0, 1]] * 4)
    moved, found = model.constrain(model.in_order(theta, order)), model.constrain(theta)
    for part, values in found.items():
        np.testing.assert_allclose(moved[part], values[:, [2, 0, 1]], rtol=1e-12)
    # Weights that underflow come back.
    theta[:, :2] = -9000, 3
    again = model.in_order(model.in_order(theta, order), np.argsort(order, axis=1))
    np.testing.assert_allclose(again, theta, rtol=1e-12)


def test_a_start_lies_among_the_rows():
    rng = np.random.default_rng(9)
    X = np.concatenate([rng.normal(size=(3000, 2)) + 20, rng.normal(size=(1000, 2)) - 20])
    means = MixtureModel(X, 2).constrain(MixtureModel(X, 2).start(0))["means"]
    np.testing.assert_allclose(np.sort(means[:, 0]), [-20, 20], atol=0.5)
    same = MixtureModel(np.ones((5, 2)), 3, "diag")
    assert np.all(np.isfinite(same.logp_grad(same.start(0))[1]))


def test_it_pickles_and_hands_its_density_over(X):
    model, _, _ = build(X, "full")
    theta = np.zeros(model.dim)
    other = pickle.loads(pickle.dumps(model))
    assert other.logp_grad(theta)[0] == model.logp_grad(theta)[0] == model.to_logp_grad()(theta)[0]


def test_examples_of_other_samplers_run():
    pytest.importorskip("nutpie")
    pytest.importorskip("blackjax")
    (examples,) = doctest.DocTestFinder().find(MixtureModel.to_logp_grad, globs={})
    for example in examples.examples:
        example.options.clear()
    assert doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 2.0], 2), {}, "X must have rows and columns"),
        (([[1.0, np.nan]], 2), {}, "X must be finite"),
        (([[1.0]], 0), {}, "n_components must be a whole number, at least 1, got 0"),
        (([[1.0]], 2, "full"), {}, "cov must be 'identity', 'diag' or an array of shape"),
        (([[1.0]], 2, [[-1.0]]), {}, "cov must be positive definite"),
        (([[1.0]], 2, np.eye(2)), {}, "cov must have shape"),
        (([[1.0]], 2), {"mean_prior_scale": 0}, "mean_prior_scale must be a positive number, from .* to .*, got 0.0"),
        (([[1.0]], 2), {"mean_prior_scale": 1e-200}, "mean_prior_scale must be a positive number.*, got 1e-200"),
        (([[1.0]], 2), {"mean_prior_scale": 1e200}, "mean_prior_scale must be a positive number.*, got 1e\\+200"),
        (([[1.0]], 2), {"concentration": 1e306}, "concentration must be positive.*, got 1e\\+306"),
        (([[1.0]], 2), {"concentration": [1, 2, 3]}, "concentration must be positive, a number or an array of shape"),
        (([[1.0]], 2, "diag"), {"scale_prior": "gamma"}, "scale_prior must be"),
        (([[1.0]], 2, "diag"), {"scale_prior": ("half-normal", 1, 2)}, "scale_prior must have 1 after 'half-normal'"),
        (([[1.0]], 2, "diag"), {"scale_prior": ("half-normal", 1e-200)}, "scale_prior must be.*, got 1e-200"),
        (([[1.0]], 2, "diag"), {"scale_prior": ("inverse-gamma", 1e306, 1)}, "scale_prior must be.*, got 1e\\+306"),
        (([[1.0]], 2, "diag"), {"scale_prior": ("inverse-gamma", 1, np.inf)}, "scale_prior must be.*, got inf"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MixtureModel(*arguments, **options)


@pytest.mark.parametrize("number", [1e-100, 1e100])
def test_priors_of_every_size_are_scipys(number):
    for prior, of_std in (
        (("half-normal", number), halfnorm(scale=number)),
        (("inverse-gamma", number, 2.0), invgamma(number, scale=2.0)),
    ):
        options = {"mean_prior_scale": number, "scale_prior": prior}
        logp, gradient = MixtureModel([[1.0]], 1, "diag", **options).logp_grad([0.5, 0.0])
        truth = norm(0.5).logpdf(1.0) + norm(0, number).logpdf(0.5) + of_std.logpdf(1.0)
        assert logp == pytest.approx(truth, rel=1e-12)
        assert np.all(np.isfinite(gradient))


def test_wrong_parameters_are_refused(X):
    model, _, _ = build(X, "identity")
    with pytest.raises(ValueError, match=r"theta must have shape \(11,\), got \(3,\)"):
        model.logp_grad(np.zeros(3))
    for batch in ([], [-1], [50], [[0]]):
        with pytest.raises(ValueError, match="batch must be some of the rows 0 to 49"):
            model.logp_grad(np.zeros(11), batch)
    for batch in (np.arange(50) < 10, [0.9, 1.7], "ab"):
        with pytest.raises(TypeError, match="batch must be row numbers"):
            model.logp_grad(np.zeros(11), batch)
    with pytest.raises(ValueError, match="theta must have shape"):
        model.to_logp_grad()(np.zeros(2))
    with pytest.raises(ValueError, match="weights must be positive and sum to 1"):
        model.unconstrain([0.5, 0.5, 0.0], np.zeros((3, 3)))
    with pytest.raises(TypeError, match="stds must be given if and only if cov is 'diag'"):
        model.unconstrain([0.5, 0.3, 0.2], np.zeros((3, 3)), np.ones((3, 3)))
