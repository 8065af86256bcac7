"""Random-walk Metropolis, its chains and what they say."""

import csv
import itertools
import math
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest

from conftest import published_rows
from fastdiv import AccuracyWarning, MetropolisResult, MixtureModel, _backend, mcmc, metropolis

NUTS = Path(__file__).parent / "data" / "s5_nuts.csv"
LINE = np.array([-2.0, -1.5, 2.5])


@pytest.fixture(scope="module")
def published():
    return MixtureModel(published_rows(), 2, concentration=0.1)


@pytest.fixture(scope="module")
def long_run(published):
    return metropolis(published, 20_000, rng=0).relabel()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 steps, so that a short run has many."""
    monkeypatch.setattr(mcmc, "CHUNK_STEPS", 64)


class Gaussian:
    """A correlated normal with means 1 and -2, standard deviations 0.5 and 3, and correlation 0.5."""

    dim = 2
    mean, covariance = np.array([1.0, -2.0]), np.array([[0.25, 0.75], [0.75, 9.0]])

    def logp_grad(self, theta, batch=None):
        slope = np.linalg.solve(self.covariance, self.mean - theta)
        return -0.5 * float((self.mean - theta) @ slope), slope


class Blocked(Gaussian):
    blocks = (slice(0, 2),)


class WithoutGradient:
    dim = 2

    def logp(self, theta):
        return Gaussian().logp_grad(theta)[0]


class Compiled:
    dim = 2

    @staticmethod
    @numba.njit
    def logp_grad(theta):
        u, v = (theta[0] - 1.0) / 0.5, (theta[1] + 2.0) / 3.0
        slope = np.array([(0.5 * v - u) / 0.375, (0.5 * u - v) / 2.25])
        return -(u * u - u * v + v * v) / 1.5, slope


gaussian = Compiled.logp_grad


class OfRows:
    """The same, of which each of four rows has a quarter."""

    dim, n_rows = 2, 4

    @staticmethod
    @numba.njit
    def logp_grad(theta, rows):
        logp, slope = gaussian(theta)
        return logp * len(rows) / 4, slope * len(rows) / 4


class Tempered(Gaussian):
    def logp_grad(self, theta, temperature=1.0):
        logp, slope = super().logp_grad(theta)
        return logp / temperature, slope / temperature


def summary_of(draws):
    """ArviZ's row for draws (chains, draws) of one quantity."""
    return MetropolisResult(None, draws[..., None], draws, *[None] * 5).summary().iloc[0]


def test_an_argument_with_a_default_of_its_own_is_not_rows():
    draws = [metropolis(model, 50, 10, rng=0).theta for model in (Gaussian(), Tempered())]
    np.testing.assert_array_equal(*draws)


def test_rows_must_be_counted_for_what_is_compiled():
    class Uncounted:
        dim, logp_grad = 2, staticmethod(OfRows.logp_grad)

    with pytest.raises(TypeError, match=r"needs model\.n_rows"):
        metropolis(Uncounted(), 10)


def in_errors(draws, truth):
    """How many Monte-Carlo errors the mean of draws lies from the truth."""
    return abs(draws.mean() - truth) / summary_of(draws)["mcse_mean"]


def test_the_published_posterior_is_that_of_nuts(long_run):
    with NUTS.open(encoding="utf-8") as file:
        truth = {row["quantity"]: {key: float(row[key]) for key in list(row)[1:]} for row in csv.DictReader(file)}
    weights, means = long_run.samples["weights"], long_run.samples["means"]
    if weights[..., 0].mean() > 0.5:
        weights, means = weights[..., ::-1], means[..., ::-1, :]
    draws = {f"weights[{k}]": weights[..., k] for k in range(2)}
    draws |= {f"means[{k},{d}]": means[..., k, d] for k in range(2) for d in range(2)}
    assert truth.keys() == draws.keys()
    for name, of_name in truth.items():
        found = summary_of(draws[name])
        for moment in ("mean", "sd"):
            error = math.hypot(found[f"mcse_{moment}"], of_name[f"mcse_{moment}"])
            assert abs(found[moment] - of_name[moment]) < 4 * error, (name, moment)
    assert long_run.summary()["r_hat"].max() < 1.01


@pytest.mark.parametrize("seed", range(3))
def test_chains_of_the_published_length_agree(published, seed):
    result = metropolis(published, 1000, 500, 2, rng=seed)
    assert result.relabel().summary()["r_hat"].max() < 1.05
    assert result.theta.shape == (2, 1000, 5)
    assert result.n_steps == 1500
    assert result.complete


def test_kernel_sets_give_the_same_chain(backend):
    models = MixtureModel(LINE[:, None], 2), MixtureModel(published_rows(), 3, cov="diag")
    for model in (*models, MixtureModel(published_rows().astype(np.float32), 1)):
        wanted = metropolis(model, 300, 200, rng=1)
        found = metropolis(model, 300, 200, rng=1, backend=backend)
        np.testing.assert_allclose(found.theta, wanted.theta, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.logp, wanted.logp, rtol=1e-9)
        np.testing.assert_array_equal(found.accept, wanted.accept)
        np.testing.assert_array_equal(found.scales, wanted.scales)


def test_log_densities_are_those_of_the_draws(long_run):
    for chain, draw in ((0, 0), (0, 19_999), (1, 12_345)):
        logp, _ = long_run.model.logp_grad(long_run.theta[chain, draw])
        assert math.isclose(long_run.logp[chain, draw], logp, rel_tol=1e-12)


def test_the_number_of_threads_changes_nothing(published, threads, small_chunks):
    threads(1)
    alone = metropolis(published, 500, chains=4, rng=3)
    threads(4)
    together = metropolis(published, 500, chains=4, rng=3)
    np.testing.assert_array_equal(alone.theta, together.theta)
    np.testing.assert_array_equal(alone.logp, together.logp)


def test_chains_run_on_threads(published, threads, monkeypatch):
    import threading

    seen = set()
    kernel = _backend.kernels().metropolis_mixture_steps
    both = threading.Barrier(2, timeout=60)

    def steps(*arguments):
        both.wait()
        seen.add(threading.get_ident())
        kernel(*arguments)

    replace_kernel(monkeypatch, steps)
    threads(2)
    metropolis(published, 10, 0, 2, rng=0)
    assert len(seen) == 2


def test_more_chains_leave_the_first_ones_alone(published):
    few, many = (metropolis(published, 100, chains=chains, rng=3) for chains in (1, 3))
    np.testing.assert_array_equal(few.theta[0], many.theta[0])
    assert not np.array_equal(many.theta[0], many.theta[1])


@pytest.mark.parametrize(
    "model", [Gaussian(), Blocked(), WithoutGradient(), Compiled(), OfRows()], ids=lambda m: type(m).__name__
)
def test_any_density_will_do(model):
    result = metropolis(model, 15_000, 1000, rng=0)
    sds = np.sqrt(np.diag(Gaussian.covariance))
    for i in range(2):
        draws = result.theta[..., i]
        assert in_errors(draws, Gaussian.mean[i]) < 4
        assert in_errors((draws - Gaussian.mean[i]) ** 2, sds[i] ** 2) < 4
    product = np.prod(result.theta - Gaussian.mean, axis=-1)
    assert in_errors(product, 0.75) < 4
    assert np.all((result.accept > 0.15) & (result.accept < 0.55))
    assert list(result.samples) == ["theta"]


def test_a_function_needs_a_start():
    result = metropolis(lambda theta: -abs(float(theta[0])), 20_000, start=[0.5], rng=0)
    # Laplace's distribution has variance 2.
    assert in_errors(result.theta[..., 0] ** 2, 2) < 4
    with pytest.raises(TypeError, match="come with a start"):
        metropolis(lambda theta: 0.0)


def test_a_bounded_density_stays_within_its_bounds():
    def logp(theta):
        return math.log(theta[0]) if 0 < theta[0] < 1 else -math.inf

    draws = metropolis(logp, 20_000, start=[0.5], rng=0).theta[..., 0]
    assert draws.min() > 0
    assert draws.max() < 1
    assert in_errors(draws, 2 / 3) < 4


def grid_posterior(model, *axes):
    """Return unconstrained points on a grid, and their shares of the posterior by the trapezoid rule."""
    theta = np.array(list(itertools.product(*axes)))
    logp = np.array([model.logp_grad(point)[0] for point in theta])
    density = np.exp(logp - logp.max())
    return theta, density / density.sum()


@pytest.mark.parametrize("prior", [("half-normal", 2.0), ("inverse-gamma", 3.0, 2.0)])
def test_the_posterior_of_a_scale_is_that_of_quadrature(prior):
    model = MixtureModel(LINE[:, None], 1, cov="diag", mean_prior_scale=2.0, scale_prior=prior)
    theta, shares = grid_posterior(model, np.linspace(-12, 12, 161), np.linspace(-4, 6, 161))
    draws = metropolis(model, 30_000, 1000, rng=4).theta
    for i, power in itertools.product(range(2), (1, 2)):
        assert in_errors(draws[..., i] ** power, shares @ theta[:, i] ** power) < 4


def test_the_posterior_of_a_mixture_is_that_of_quadrature():
    model = MixtureModel(LINE[:, None], 2, concentration=2.0)
    axes = np.linspace(-9, 9, 41), np.linspace(-6, 6, 41), np.linspace(-6, 6, 41)
    theta, shares = grid_posterior(model, *axes)
    result = metropolis(model, 60_000, 1000, rng=4)
    weights, means = model.constrain(theta)["weights"], model.constrain(theta)["means"]
    draws = result.samples
    assert in_errors(draws["weights"][..., 0], shares @ weights[:, 0]) < 4
    assert in_errors(draws["weights"][..., 0] ** 2, shares @ weights[:, 0] ** 2) < 4
    assert in_errors(draws["means"][..., 0, 0] ** 2, shares @ means[:, 0, 0] ** 2) < 4
    product = draws["means"].prod(axis=(-1, -2))
    assert in_errors(product, shares @ means.prod(axis=(1, 2))) < 4


def test_scales_are_tuned_by_the_published_table():
    rates = [0, 0.0005, 0.001, 0.04, 0.1, 0.2, 0.3, 0.5, 0.6, 0.75, 0.8, 0.96, 1]
    factors = [0.1, 0.1, 0.5, 0.5, 0.9, 1, 1, 1, 1.1, 1.1, 2, 10, 10]
    np.testing.assert_array_equal(mcmc._tuned(np.full(13, 2.0), np.array(rates)), 2 * np.array(factors))


def test_tuning_ends_where_draws_begin(published):
    first = metropolis(published, 400, 250, rng=5)
    assert np.any(first.scales != 1)
    more = metropolis(published, 400, state=first.state)
    np.testing.assert_array_equal(first.scales, more.scales)
    np.testing.assert_array_equal(metropolis(published, 10, 99, rng=5).scales, 1)
    np.testing.assert_array_equal(metropolis(published, 10, 0, rng=5).scales, 1)


@pytest.mark.parametrize("draws", [1, 10, 64, 100, 128, 150])
def test_to_go_on_is_to_have_run_longer(published, small_chunks, draws):
    at_once = metropolis(published, 300, 130, rng=6)
    first = metropolis(published, draws, 130, rng=6)
    second = metropolis(published, 7, state=pickle.loads(pickle.dumps(first.state)))
    third = metropolis(published, 293 - draws, state=second.state)
    parts = first, second, third
    np.testing.assert_array_equal(np.concatenate([part.theta for part in parts], axis=1), at_once.theta)
    np.testing.assert_array_equal(np.concatenate([part.logp for part in parts], axis=1), at_once.logp)
    moves = sum(part.accept * part.theta.shape[1] for part in parts)
    np.testing.assert_allclose(moves / 300, at_once.accept, rtol=1e-12)
    assert third.n_steps == at_once.n_steps == 430
    for part in parts:
        assert pickle.loads(pickle.dumps(part)).logp.shape == part.logp.shape


def test_to_go_on_is_to_have_run_longer_in_python():
    at_once = metropolis(Gaussian(), 50, 25, rng=6)
    first = metropolis(Gaussian(), 17, 25, rng=6)
    second = metropolis(Gaussian(), 33, state=first.state)
    np.testing.assert_array_equal(np.concatenate([first.theta, second.theta], axis=1), at_once.theta)


def replace_kernel(monkeypatch, steps):
    module = types.SimpleNamespace(metropolis_mixture_steps=steps)
    monkeypatch.setattr(mcmc, "kernels", lambda backend: module)


def interrupt(monkeypatch, n_calls):
    """Have Ctrl-C come in the call of the kernel after so many."""
    kernel, calls = _backend.kernels().metropolis_mixture_steps, itertools.count()

    def steps(*arguments):
        if next(calls) == n_calls:
            raise KeyboardInterrupt
        kernel(*arguments)

    replace_kernel(monkeypatch, steps)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n_calls", [0, 1, 5, 6, 7, 8, 13])
def test_ctrl_c_returns_what_there_is(published, threads, small_chunks, monkeypatch, n_calls, n_threads):
    threads(n_threads)
    whole = metropolis(published, 300, 130, rng=7)
    with monkeypatch.context() as patch:
        interrupt(patch, n_calls)
        part = metropolis(published, 300, 130, rng=7)
    # 130 steps of tuning are chunks of 64, 36 and 30; two chains are two calls.
    n_draws = max(n_calls // 2 - 3, 0) * 64
    assert not part.complete
    assert part.theta.shape == (2, n_draws, 5)
    assert part.n_steps == sum([64, 36, 30][: n_calls // 2]) + n_draws
    np.testing.assert_array_equal(part.theta, whole.theta[:, :n_draws])
    rest = metropolis(published, 300 - n_draws, state=part.state)
    assert rest.complete
    np.testing.assert_array_equal(rest.theta, whole.theta[:, n_draws:])
    np.testing.assert_array_equal(rest.scales, whole.scales)


def test_ctrl_c_while_a_chunk_is_repeated_keeps_the_state(published, small_chunks, monkeypatch):
    first = metropolis(published, 100, rng=8)
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        nothing = metropolis(published, 100, state=first.state)
    assert nothing.theta.shape == (2, 0, 5)
    again, wanted = (metropolis(published, 100, state=state) for state in (nothing.state, first.state))
    np.testing.assert_array_equal(again.theta, wanted.theta)
    for question in (nothing.summary, nothing.relabel):
        with pytest.raises(ValueError, match="no draws"):
            question()
    assert "interrupted" in repr(nothing)


def test_ctrl_c_in_a_density_of_python():
    calls = itertools.count()

    def logp(theta):
        if next(calls) == 1000:
            raise KeyboardInterrupt
        return -0.5 * float(theta @ theta)

    result = metropolis(logp, 1000, 0, start=[0.0], rng=0)
    assert not result.complete
    assert 0 < result.theta.shape[1] < 1000
    assert np.all(np.isfinite(result.theta))


def switched(result, order):
    """The same result with the components of each draw in an order (chains, draws, K)."""
    flat = order.reshape(-1, order.shape[-1])
    rows = np.arange(len(flat))[:, None]
    draws = {}
    for name, value in result.samples.items():
        draws[name] = value.reshape(len(flat), *value.shape[2:])[rows, flat].reshape(value.shape)
    return replace(result, theta=result.model.unconstrain(**draws))


@pytest.mark.parametrize("cov", ["identity", "diag"])
def test_relabelling_undoes_switches(cov):
    rng = np.random.default_rng(9)
    centres = np.array([[-6, 0], [0, 6], [6, -6], [0, 0]])
    model = MixtureModel(centres[rng.integers(4, size=400)] + rng.normal(size=(400, 2)), 4, cov, mean_prior_scale=5.0)
    clean = metropolis(model, 500, rng=9).relabel()
    np.testing.assert_array_equal(clean.label_switching, 0)
    order = rng.permuted(np.tile(np.arange(4), (2, 500, 1)), axis=2)
    order[0, :200] = np.arange(4)
    mixed = switched(clean, order)
    found = mixed.relabel()
    np.testing.assert_array_equal(found.label_switching, 0)
    names = np.array([found.samples["means"][0, 0, k] @ [1, 10] for k in range(4)])
    wanted = np.array([clean.samples["means"][0, 0, k] @ [1, 10] for k in range(4)])
    back = switched(found, np.broadcast_to([np.abs(names - name).argmin() for name in wanted], (2, 500, 4)))
    np.testing.assert_allclose(back.theta, clean.theta, rtol=1e-9, atol=1e-9)
    pivot = mixed.logp.argmax()
    is_other = np.any(order.reshape(-1, 4) != order.reshape(-1, 4)[pivot], axis=1).reshape(2, 500)
    np.testing.assert_array_equal(mixed.label_switching, is_other.mean(axis=1))


def test_the_nearest_order_is_the_best_of_all():
    rng = np.random.default_rng(10)
    features, pivot = rng.normal(size=(300, 4, 2)), rng.normal(size=(4, 2))
    order = mcmc._nearest_order(features, pivot)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(4), (300, 1)))
    costs = [np.sum((features[:, list(p)] - pivot) ** 2, axis=(1, 2)) for p in itertools.permutations(range(4))]
    found = np.sum((features[np.arange(300)[:, None], order] - pivot) ** 2, axis=(1, 2))
    np.testing.assert_allclose(found, np.min(costs, axis=0), rtol=1e-12)


def test_relabelled_draws_keep_their_densities():
    result = metropolis(MixtureModel(LINE[:, None], 2, mean_prior_scale=3.0), 3000, rng=11)
    assert np.all(result.label_switching > 0.05)
    found = result.relabel()
    moved = np.argwhere(np.any(found.theta != result.theta, axis=2))
    assert len(moved) == round(result.label_switching.sum() * 3000)
    for chain, draw in moved[::97]:
        assert math.isclose(found.model.logp_grad(found.theta[chain, draw])[0], result.logp[chain, draw], rel_tol=1e-9)


def test_labels_that_mean_something_stay():
    with pytest.raises(ValueError, match="concentrations"):
        metropolis(MixtureModel(LINE[:, None], 2, concentration=[1.0, 2.0]), 10, rng=0).relabel()
    with pytest.raises(TypeError, match="MixtureModel"):
        _ = metropolis(Gaussian(), 10, rng=0).label_switching


def test_chains_do_not_begin_at_a_collapsed_component():
    # Two equal rows: a component on them alone has a density without bound as its standard deviations go to 0.
    rows = np.concatenate([np.random.default_rng(12).normal(size=(60, 2)), [[2.0, 2.0]] * 4])
    model = MixtureModel(rows, 3, cov="diag", mean_prior_scale=3.0)
    for seed in range(5):
        theta = mcmc._mode(mcmc._MixtureWalk(model, 1, None), np.random.default_rng(seed))
        assert model.constrain(theta)["stds"].min() > mcmc.LEAST_SPREAD * rows.std(axis=0).min()


def test_chains_begin_at_a_mode(published):
    theta = metropolis(published, 1, 0, chains=1, rng=0).state.theta[0]
    value, slope = published.logp_grad(theta)
    assert np.abs(slope).max() < 0.01
    assert value == pytest.approx(-318.3038, abs=1e-3)


def test_starts_may_be_given(published):
    starts = np.array([[1.8, 0.8, 1.0, -0.8, -1.5], [1.5, 0.7, 1.1, -0.7, -1.4]])
    both = metropolis(published, 50, 0, start=starts, rng=1)
    alone = metropolis(published, 50, 0, start=starts[0], rng=1)
    np.testing.assert_array_equal(both.theta[0], alone.theta[0])
    assert not np.array_equal(both.theta[1], alone.theta[1])


def test_the_summary_is_that_of_arviz(long_run):
    table = long_run.summary()
    assert len(table) == 6
    assert {"mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"} <= set(table.columns)
    assert table.loc["weights[0]", "mean"] == pytest.approx(long_run.samples["weights"][..., 0].mean(), rel=1e-12)
    assert list(long_run.summary(var_names=["weights"]).index) == ["weights[0]", "weights[1]"]
    data = long_run.to_arviz()
    np.testing.assert_array_equal(data.posterior["means"], long_run.samples["means"])
    np.testing.assert_array_equal(data.sample_stats["lp"], long_run.logp)


def test_newer_arviz_takes_groups_by_name(long_run, monkeypatch):
    newer = types.SimpleNamespace(__version__="1.2.0", from_dict=lambda groups: groups)
    monkeypatch.setitem(sys.modules, "arviz", newer)
    assert set(long_run.to_arviz()) == {"posterior", "sample_stats"}


def test_without_arviz_there_is_a_hint(long_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"fastdiv\[bayes\]"):
        long_run.summary()


def test_chains_that_do_not_agree_are_told(published):
    theta = metropolis(published, 1, 0, chains=1, rng=0).state.theta[0]
    swapped = published.unconstrain(**{k: v[::-1] for k, v in published.constrain(theta).items()})
    result = metropolis(published, 1000, start=[theta, swapped], rng=0)
    with pytest.warns(AccuracyWarning, match="R-hat"):
        result.summary()
    assert sorted(result.label_switching) == [0, 1]
    assert result.relabel().summary()["r_hat"].max() < 1.05


def test_chains_that_stand_still_are_told():
    model = MixtureModel(LINE[:, None], 1, cov=[1e-14])
    with pytest.warns(AccuracyWarning, match="block 1"):
        metropolis(model, 1000, 0, rng=0)


def test_too_few_draws_are_told(published):
    with pytest.warns(AccuracyWarning, match="are worth"):
        metropolis(published, 400, rng=1).summary()


def test_a_progress_bar_on_request(published, capsys):
    metropolis(published, 100, rng=0, progress=True)
    shown = capsys.readouterr().out
    assert "600/600" in shown
    assert "log-density" in shown


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "draws must be a whole number, at least 1, got 0", {"draws": 0}),
        (TypeError, "draws", {"draws": 1.5}),
        (ValueError, "tune", {"tune": -1}),
        (ValueError, "chains", {"chains": 0}),
        (ValueError, r"start must have shape \(5,\) or \(2, 5\), got \(4,\)", {"start": [0.0] * 4}),
        (ValueError, r"got \(3, 5\)", {"start": np.zeros((3, 5))}),
        (ValueError, "finite log-densities", {"start": [math.nan] * 5}),
        (TypeError, "start", {"start": ["a"] * 5}),
        (TypeError, "rng", {"rng": "seed"}),
        (ValueError, "backend", {"backend": "fortran"}),
        (TypeError, "state must be that of a MetropolisResult", {"state": 3}),
    ],
)
def test_bad_arguments_are_refused(published, error, match, arguments):
    with pytest.raises(error, match=match):
        metropolis(published, **arguments)


def test_a_state_comes_alone_and_fits_the_model(published):
    state = metropolis(published, 10, rng=0).state
    for arguments in ({"rng": 1}, {"start": np.zeros(5)}, {"chains": 3}, {"tune": 100}):
        with pytest.raises(TypeError, match="state brings its own"):
            metropolis(published, 10, state=state, **arguments)
    with pytest.raises(ValueError, match="state must be of a model with 8 parameters in 4 blocks"):
        metropolis(MixtureModel(published.X, 3), 10, state=state)


@pytest.mark.parametrize("model", [object(), types.SimpleNamespace(dim=2), types.SimpleNamespace(logp=len), 3])
def test_models_without_a_density_are_refused(model):
    with pytest.raises(TypeError, match="model must have dim"):
        metropolis(model, 10, rng=0)


def test_models_whose_blocks_leave_parameters_out_are_refused():
    model = Gaussian()
    model.blocks = [slice(0, 1)]
    with pytest.raises(ValueError, match="all of the 2 parameters"):
        metropolis(model, 10, rng=0)
