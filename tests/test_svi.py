"""Automatic differentiation variational inference: published figures, closed forms, and what it does when it fails."""

import pickle
from functools import cache, partial

import numpy as np
import pytest
from numba import njit
from scipy.stats import multivariate_normal

import fastdiv.svi
from conftest import published_rows
from fastdiv import AccuracyWarning, MixtureModel, advi

COV = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, -0.4], [0.0, -0.4, 0.5]])
PRECISION = np.linalg.inv(COV)
MEAN = np.array([1.0, -2.0, 0.5])


class Gaussian:
    """A Gaussian posterior, of which everything is known."""

    dim = 3

    def logp_grad(self, theta, batch=None):
        return -(theta - MEAN) @ PRECISION @ (theta - MEAN) / 2, PRECISION @ (MEAN - theta)


@njit
def compiled_gaussian(theta):
    return -(theta - MEAN) @ PRECISION @ (theta - MEAN) / 2, PRECISION @ (MEAN - theta)


def published_model():
    return MixtureModel(published_rows(), 2, concentration=0.1)


@pytest.fixture
def model():
    return published_model()


@pytest.mark.parametrize("seed", range(5))
def test_published_figures(model, seed):
    result = advi(model, 10_000, optimizer="adagrad", learning_rate=0.1, rng=seed)
    found = result.summary(rng=0)
    order = np.argsort(-found["weights"]["mean"])
    mean, sd = found["means"]["mean"][order], found["means"]["sd"][order]
    np.testing.assert_allclose(mean, [[0.821, 0.983], [-0.793, -1.490]], rtol=0, atol=0.1)
    np.testing.assert_allclose(sd, [[0.113, 0.116], [0.288, 0.322]], rtol=0.25)
    np.testing.assert_allclose(found["weights"]["mean"][order], [0.866, 0.134], rtol=0, atol=0.03)
    assert result.losses[-5000:].mean() == pytest.approx(321.6, abs=3)
    assert result.converged
    assert result.complete
    assert result.elbo.diagnostics["pareto_k"] < 0.7
    assert abs(-result.elbo - 321.6) < 3


def losses_of(backend, optimizer, family, batch_size):
    options = {"optimizer": optimizer, "family": family, "batch_size": batch_size, "n_draws": 2}
    options["learning_rate"] = 1e-4 if optimizer == "sgd" else None
    return advi(published_model(), 300, rng=1, backend=backend, **options).losses


losses_of_numpy = cache(partial(losses_of, "numpy"))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adagrad-window", "rmsprop", "adam"])
@pytest.mark.parametrize("family", ["mean-field", "full-rank"])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_every_kernel_set_takes_the_same_steps(kernels, optimizer, family, batch_size):
    case = optimizer, family, batch_size
    np.testing.assert_allclose(losses_of(None, *case), losses_of_numpy(*case), rtol=1e-9)


def test_losses_are_those_of_unknown_scales_too(kernels):
    X = published_rows()
    model = MixtureModel(X, 3, "diag", scale_prior=("inverse-gamma", 2.0, 1.0))
    losses = [advi(model, 300, rng=2, backend=backend).losses for backend in (None, "numpy")]
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_full_rank_finds_a_gaussian():
    result = advi(Gaussian(), 10_000, family="full-rank", optimizer="adam", n_draws=8, learning_rate=2e-3, rng=0)
    np.testing.assert_allclose(result.loc, MEAN, atol=0.05)
    np.testing.assert_allclose(result.cholesky @ result.cholesky.T, COV, atol=0.1)
    np.testing.assert_allclose(result.scale, np.sqrt(np.diag(COV)), rtol=0.05)
    # Where the Gaussian is the posterior, the bound is the evidence.
    evidence = np.log(2 * np.pi) * 1.5 + np.linalg.slogdet(COV)[1] / 2
    assert result.elbo == pytest.approx(evidence, abs=0.01)
    assert result.elbo.diagnostics["pareto_k"] < 0.5


def test_mean_field_finds_the_precisions():
    result = advi(Gaussian(), 10_000, optimizer="adam", n_draws=8, learning_rate=2e-3, rng=0)
    np.testing.assert_allclose(result.loc, MEAN, atol=0.05)
    # The best diagonal Gaussian has the diagonal of the precision (Bishop 2006, section 10.1.2).
    np.testing.assert_allclose(result.scale, np.diag(PRECISION) ** -0.5, rtol=0.05)
    assert result.sample(7, rng=1).shape == result.draws(7, rng=1)["theta"].shape == (7, 3)


def test_compiled_functions_take_the_same_steps():
    by_object = advi(Gaussian(), 600, rng=3)
    by_function = advi(compiled_gaussian, 600, start=np.zeros(3), rng=3)
    np.testing.assert_allclose(by_function.losses, by_object.losses, rtol=1e-9)


def test_compiled_functions_see_the_rows():
    X = published_rows()

    @njit
    def density(theta, rows):
        some = X[rows]
        misfit = some - theta
        factor = len(X) / len(some)
        return -factor * np.sum(misfit**2) / 2 - theta @ theta / 2, factor * np.sum(misfit, axis=0) - theta

    class Model:
        dim, n_rows = 2, 100
        logp_grad = staticmethod(density)

    result = advi(Model(), 5000, batch_size=10, rng=4)
    np.testing.assert_allclose(result.loc, X.sum(axis=0) / 101, atol=0.1)

    mode = X.sum(axis=0) / 101
    evidence = -0.5 * np.sum((X - mode) ** 2) - 0.5 * mode @ mode + np.log(2 * np.pi / 101)
    assert result.elbo == pytest.approx(evidence, abs=1)
    with pytest.raises(TypeError, match="needs batch_size, for all rows their number"):
        advi(Model(), 10)


def test_compiled_functions_go_on():
    whole = advi(compiled_gaussian, 60, start=np.zeros(3), rng=3)
    part = advi(compiled_gaussian, 20, start=np.zeros(3), rng=3)
    np.testing.assert_array_equal(advi(compiled_gaussian, 40, state=part.state).losses, whole.losses)
    with pytest.raises(TypeError, match="batch_size is for models that have rows"):
        advi(compiled_gaussian, 10, start=np.zeros(3), batch_size=2)


def test_batches_of_many_rows():
    rng = np.random.default_rng(0)
    labels = rng.random(100_000) < 0.2
    X = rng.normal(size=(100_000, 2)) + np.where(labels[:, None], [-1, -1.5], [1, 1])
    result = advi(MixtureModel(X, 2, mean_prior_scale=10**0.5, concentration=0.1), 1500, batch_size=200, rng=1)
    found = result.summary(rng=0)
    order = np.argsort(-found["weights"]["mean"])
    np.testing.assert_allclose(found["means"]["mean"][order], [[1, 1], [-1, -1.5]], atol=0.1)
    np.testing.assert_allclose(found["weights"]["mean"][order], [0.8, 0.2], atol=0.02)


@pytest.mark.parametrize("batch_size", [None, 1, 20, 100])
def test_going_on_gives_the_same_bits(model, batch_size):
    whole = advi(model, 900, rng=5, batch_size=batch_size)
    part = advi(model, 123, rng=5, batch_size=batch_size)
    state = pickle.loads(pickle.dumps(part.state))
    for _ in range(2):
        # A state can be gone on from more than once.
        rest = advi(model, 777, state=state)
    np.testing.assert_array_equal(rest.losses, whole.losses)
    np.testing.assert_array_equal(rest.loc, whole.loc)
    np.testing.assert_array_equal(rest.scale, whole.scale)


def test_it_stops_where_the_losses_settle(model):
    result = advi(model, 1_000_000, tol=0.01, rng=7)
    assert result.converged
    assert 1000 <= len(result.losses) < 100_000
    assert len(result.losses) % 500 == 0


def test_steps_that_were_too_few_are_told(model):
    with pytest.warns(AccuracyWarning, match="still rose at the end"):
        result = advi(model, 1000, optimizer="adagrad-window", rng=8)
    assert not result.converged


def test_a_poor_fit_is_told():
    class Cauchy:
        dim = 1

        def logp_grad(self, theta, batch=None):
            return -np.log1p(theta[0] ** 2), -2 * theta / (1 + theta**2)

    result = advi(Cauchy(), 5000, rng=9)
    with pytest.warns(AccuracyWarning, match="Pareto shape"):
        assert result.elbo.diagnostics["pareto_k"] > 0.7


def test_the_bound_is_below_the_evidence():
    # One component: the evidence is known, and the posterior is normal.
    x = np.random.default_rng(10).normal(size=(30, 1))
    result = advi(MixtureModel(x, 1, mean_prior_scale=2.0), 10_000, optimizer="adam", rng=11)
    evidence = multivariate_normal(np.zeros(30), np.eye(30) + 4).logpdf(x[:, 0])
    assert abs(result.elbo - evidence) < 4 * result.elbo.standard_error + 1e-3


def test_ctrl_c_gives_what_there_is(model, monkeypatch):
    advance = fastdiv.svi._advance
    calls = []

    def interrupted(*arguments):
        step = advance(*arguments)

        def one(*arguments):
            calls.append(1)
            step(*arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt

        return one

    monkeypatch.setattr(fastdiv.svi, "_advance", interrupted)
    result = advi(model, 100_000, rng=12)
    monkeypatch.undo()
    assert not result.complete
    assert "interrupted" in repr(result)
    assert len(result.losses) == fastdiv.svi.CHUNK_STEPS
    # What the interrupted chunk had drawn is drawn again.
    np.testing.assert_array_equal(advi(model, 100, state=result.state).losses, advi(model, 4196, rng=12).losses)


def test_ctrl_c_leaves_the_steps_of_a_slow_model():
    class Slow(Gaussian):
        n_calls = 0

        def logp_grad(self, theta):
            self.n_calls += 1
            if self.n_calls == 100:
                raise KeyboardInterrupt
            return Gaussian.logp_grad(self, theta)

    result = advi(Slow(), 10_000, rng=0)
    assert not result.complete
    assert len(result.losses) == 3 * fastdiv.svi.PYTHON_STEPS
    nothing = advi(Slow(), 10_000, rng=0, n_draws=4)
    assert "interrupted" in repr(nothing)


def test_losses_that_rise_have_not_settled():
    with pytest.warns(AccuracyWarning, match="smaller learning_rate"):
        found = advi(MixtureModel(published_rows()[:20], 2), 1000, optimizer="sgd", learning_rate=0.1, rng=0)
    assert not found.converged


def test_draws_are_handed_to_arviz(model):
    arviz = pytest.importorskip("arviz")
    data = advi(model, 500, rng=0).to_arviz(100, rng=1)
    assert data.posterior["means"].shape == (1, 100, 2, 2)
    assert arviz.__version__


def test_progress(model, capsys):
    pytest.importorskip("rich")
    advi(model, 2000, rng=13, progress=True)
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": "full"}, ValueError, "family must be one of 'mean-field', 'full-rank', got 'full'"),
        ({"optimizer": "lbfgs"}, ValueError, "optimizer must be one of 'sgd'"),
        ({"optimizer": ["adam"]}, ValueError, "optimizer must be one of 'sgd'"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": -1}, ValueError, "learning_rate must be positive, got -1"),
        ({"batch_size": 101}, ValueError, "batch_size must be at most the number of rows, 100, got 101"),
        ({"batch_size": 0.5}, TypeError, "batch_size must be a whole number"),
        ({"n_draws": 0}, ValueError, "n_draws must be a whole number, at least 1, got 0"),
        ({"tol": -1.0}, ValueError, "tol must not be negative"),
        ({"start": [0.0]}, ValueError, r"start must be finite and have shape \(5,\)"),
        ({"optimizer": "sgd", "learning_rate": 10.0}, ValueError, "the steps diverge: learning_rate=10.0 is too large"),
    ],
)
def test_wrong_arguments_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        advi(model, 1000, rng=0, **options)


def test_models_that_are_none_are_refused():
    with pytest.raises(TypeError, match="batch_size is for models that have rows"):
        advi(Gaussian(), 10, batch_size=2)
    for nothing in (None, 3.0, object(), lambda theta: theta):
        with pytest.raises(TypeError, match="model must be a MixtureModel, an object with dim and logp_grad"):
            advi(nothing, 10)


def test_a_state_brings_its_options(model):
    state = advi(model, 100, rng=0).state
    with pytest.raises(TypeError, match="state brings its own options"):
        advi(model, 100, state=state, optimizer="adam")


def test_states_of_other_models_are_refused(model):
    X = published_rows()
    state = advi(model, 100, rng=0, batch_size=10).state
    for other in (MixtureModel(X, 8, "diag"), MixtureModel(X[:5], 2), Gaussian()):
        with pytest.raises(ValueError, match="state must be of the same model"):
            advi(other, 10, state=state)
    for nothing in (3, advi(model, 10, rng=0)):
        with pytest.raises(TypeError, match="state must be that of an ADVIResult"):
            advi(model, 10, state=nothing)
    with pytest.raises(TypeError, match="state brings its own options"):
        advi(model, 10, state=state, start=np.zeros(5))


def test_densities_that_are_none_are_refused():
    class Model(Gaussian):
        def logp_grad(self, theta):
            return self.answer

    for answer in ((0.0, np.zeros(1)), (np.nan, np.zeros(3)), (np.zeros(2), np.zeros(3))):
        Model.answer = answer
        with pytest.raises(ValueError, match=r"model must give a finite number and gradient of shape \(3,\)"):
            advi(Model(), 10)
