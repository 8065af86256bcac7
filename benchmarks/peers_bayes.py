"""Rows of `benchmarks.peers` on a Bayesian Gaussian mixture: steps of ADVI and of Metropolis.

Two components in 2-D with unit covariance; the answer is the first weight and the means. A call makes all its steps
from the same start, so that its time is that of the steps alone: PyMC and JAX compile at the first call only. They are
given the log-likelihood in the spelling that is faster: by a column for each component and `logaddexp`, or, PyMC's ADVI
of few rows at once, by an array of rows and components and `logsumexp`. Where the latter is the slower it is there too.
"""

import math
from functools import cache, partial

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks.peers_row import Row

CONCENTRATION, LEARNING_RATE = 0.1, 0.1
# Log-odds of the first weight, then the means row by row; each has this standard deviation at first.
START, START_SCALE = np.array([-1.0, -1.0, -1.0, 1.0, 1.0]), 0.1
# Of a walk in plain NumPy, which does not tune: times sqrt(n).
PROPOSAL = 2.5
CENTRES = ((-1, -1.5), (1, 1))


@cache
def _rows(n):
    """Return the published rows for n = 100, and as many others of the same kind for another n."""
    rng = np.random.RandomState(123)
    labels = np.array([rng.multinomial(1, (0.2, 0.8)) for _ in range(n)])
    draws = np.stack([rng.multivariate_normal(centre, np.eye(2), size=n) for centre in CENTRES], axis=1)
    return draws[labels == 1]


def _answer(theta):
    """Of unconstrained parameters (..., 5)."""
    return np.concatenate([expit(theta[..., :1]), theta[..., 1:]], axis=-1)


def _logp_grad(theta, x, n, mean_prior_scale):
    """Return the log-posterior by a batch of n rows, up to a constant, and its gradient, in plain NumPy."""
    log_w, means = -np.logaddexp(0, [-theta[0], theta[0]]), theta[1:].reshape(2, 2)
    away = x[:, None] - means
    parts = log_w - 0.5 * (away**2).sum(2)
    by_row = np.logaddexp(*parts.T)
    shares, factor = np.exp(parts - by_row[:, None]), n / len(x)
    logp = factor * by_row.sum() + CONCENTRATION * log_w.sum() - 0.5 * (means**2).sum() / mean_prior_scale**2
    counts = factor * shares.sum(0) + CONCENTRATION
    slopes = factor * (shares[:, :, None] * away).sum(0) - means / mean_prior_scale**2
    return logp, np.array([counts[0] - counts.sum() * expit(theta[0]), *slopes.ravel()])


@cache
def _mode(n, mean_prior_scale):
    """Return unconstrained parameters of the highest posterior density."""

    def loss(theta):
        logp, gradient = _logp_grad(theta, _rows(n), n, mean_prior_scale)
        return -logp / n, -gradient / n

    return minimize(loss, START, jac=True).x


def _pymc_model(n, mean_prior_scale, start, by_columns, batch_size=None):
    import pymc
    from pytensor import tensor as pt

    with pymc.Model() as model:
        weights = pymc.Dirichlet("weights", [CONCENTRATION] * 2, initval=[expit(start[0]), expit(-start[0])])
        means = [
            pymc.Normal(f"means_{k}", 0, mean_prior_scale, shape=2, initval=mean)
            for k, mean in enumerate(start[1:].reshape(2, 2))
        ]
        x = pymc.Minibatch(_rows(n), batch_size=batch_size) if batch_size else pt.as_tensor(_rows(n))
        log_w = pt.log(weights) - math.log(2 * math.pi)
        if by_columns:
            parts = [log_w[k] - 0.5 * sum((x[:, d] - means[k][d]) ** 2 for d in range(2)) for k in range(2)]
            log_likelihood = pt.logaddexp(*parts).sum()
        else:
            log_likelihood = pt.logsumexp(log_w - 0.5 * ((x[:, None] - pt.stack(means)) ** 2).sum(2), axis=1).sum()
        pymc.Potential("log-likelihood", n / (batch_size or n) * log_likelihood)
    return model


def _advi(n, n_steps, quick, batch_size=None, mean_prior_scale=1.0):
    n = min(n, 2000) if quick else n
    # For few rows at once PyMC is faster with arrays of rows and components.
    is_large = n > 1000 and not batch_size

    def fastdiv(backend):
        from fastdiv import MixtureModel, advi

        model = MixtureModel(_rows(n), 2, mean_prior_scale=mean_prior_scale, concentration=CONCENTRATION)
        options = {"learning_rate": LEARNING_RATE, "batch_size": batch_size, "start": START, "backend": backend}
        return lambda: _answer(advi(model, n_steps, optimizer="adagrad", rng=0, **options).loc)

    def plain():
        x, rng = _rows(n), np.random.default_rng(0)

        def call():
            phi, squares = np.concatenate([START, np.full(5, math.log(START_SCALE))]), np.zeros(10)
            for _ in range(n_steps):
                rows = x[rng.integers(n, size=batch_size)] if batch_size else x
                moved = np.exp(phi[5:]) * rng.standard_normal(5)
                _, slope = _logp_grad(phi[:5] + moved, rows, n, mean_prior_scale)
                gradient = np.concatenate([slope, slope * moved + 1])
                squares += gradient**2
                phi += LEARNING_RATE * gradient / np.sqrt(squares + 1e-6)
            return _answer(phi[:5])

        return call

    def pymc(by_columns):
        import pymc

        @cache
        def build():
            with _pymc_model(n, mean_prior_scale, START, by_columns, batch_size) as model:
                scales = {variable.name: START_SCALE for variable in model.value_vars}
                inference = pymc.ADVI(start_sigma=scales, random_seed=0)
                step = inference.objective.step_function(
                    obj_optimizer=pymc.adagrad(learning_rate=LEARNING_RATE),
                    score=True,
                    compile_kwargs={"mode": "NUMBA" if by_columns else "FAST_RUN"},
                )
            state = [(shared, shared.get_value()) for shared in step.get_shared()]
            return step, state, inference.approx.params_dict["mu"]

        def call():
            step, state, loc = build()
            for shared, value in state:
                shared.set_value(value)
            for _ in range(n_steps):
                step()
            # Its coordinate of two weights is half their log-odds.
            return _answer(loc.get_value() * [2, 1, 1, 1, 1])

        return call

    def numpyro(by_columns):
        import jax
        import numpyro
        from numpyro.distributions import Dirichlet, Normal
        from numpyro.infer import SVI, Trace_ELBO
        from numpyro.infer.autoguide import AutoNormal
        from numpyro.infer.initialization import init_to_value

        jax.config.update("jax_enable_x64", True)
        data = jax.numpy.asarray(_rows(n))

        def model(x):
            weights = numpyro.sample("weights", Dirichlet(np.full(2, CONCENTRATION)))
            means = numpyro.sample("means", Normal(np.zeros((2, 2)), mean_prior_scale).to_event(2))
            log_w = jax.numpy.log(weights) - math.log(2 * math.pi)
            if by_columns:
                parts = [log_w[k] - 0.5 * sum((x[:, d] - means[k, d]) ** 2 for d in range(2)) for k in range(2)]
                by_row = jax.numpy.logaddexp(*parts)
            else:
                by_row = jax.nn.logsumexp(log_w - 0.5 * ((x[:, None] - means) ** 2).sum(2), axis=1)
            numpyro.factor("log-likelihood", n / len(x) * by_row.sum())

        values = {"weights": expit([START[0], -START[0]]), "means": START[1:].reshape(2, 2)}
        guide = AutoNormal(model, init_loc_fn=init_to_value(values=values), init_scale=START_SCALE)
        svi = SVI(model, guide, numpyro.optim.Adagrad(LEARNING_RATE), Trace_ELBO())

        def step(state, key):
            # A plate's subsample shuffles all rows at each step.
            rows = data[jax.random.randint(key, (batch_size,), 0, n)] if batch_size else data
            return svi.update(state, rows)

        @jax.jit
        def fit(key):
            first, *_ = keys = jax.random.split(key, n_steps)
            state, losses = jax.lax.scan(step, svi.init(first, data[:batch_size]), keys)
            return svi.get_params(state), losses

        def call():
            found, _ = fit(jax.random.key(0))
            return _answer(np.concatenate([found["weights_auto_loc"], np.ravel(found["means_auto_loc"])]))

        return call

    batches = f"batches of {batch_size} of " if batch_size else ""
    return Row(
        f"ADVI of a mixture, {batches}{n:,} rows, {n_steps:,} steps",
        _answer(_mode(n, mean_prior_scale)),
        0.1,
        "what the steps' noise and the posterior's skewness leave; the truth is the posterior mode, by scipy.optimize",
        {
            "fastdiv": partial(fastdiv, None),
            "fastdiv (numba)": partial(fastdiv, "numba"),
            "NumPy": plain,
            "PyMC": partial(pymc, is_large),
            "NumPyro": partial(numpyro, True),
            "NumPyro (logsumexp)": partial(numpyro, False),
        }
        | ({"PyMC (logsumexp)": partial(pymc, False)} if is_large else {}),
    )


def _metropolis(n, tune, draws, sds, quick):
    n = min(n, 2000) if quick else n
    mode = _mode(n, 1.0)

    def fastdiv(backend):
        from fastdiv import MixtureModel, metropolis

        model = MixtureModel(_rows(n), 2, concentration=CONCENTRATION)
        options = {"start": mode, "rng": 0, "backend": backend}
        return lambda: _answer(metropolis(model, draws, tune, 1, **options).theta).mean(axis=(0, 1))

    def plain():
        x, rng = _rows(n), np.random.default_rng(0)

        def call():
            theta, walk = mode.copy(), np.empty((tune + draws, len(mode)))
            current = _logp_grad(theta, x, n, 1.0)[0]
            for draw in walk:
                for block in (slice(0, 1), slice(1, 3), slice(3, 5)):
                    moved = theta.copy()
                    moved[block] += rng.normal(scale=PROPOSAL / math.sqrt(n), size=moved[block].size)
                    logp = _logp_grad(moved, x, n, 1.0)[0]
                    if logp - current > -rng.standard_exponential():
                        theta, current = moved, logp
                draw[:] = theta
            return _answer(walk[tune:]).mean(axis=0)

        return call

    def pymc(by_columns):
        import pymc

        @cache
        def build():
            with _pymc_model(n, 1.0, mode, by_columns) as model:
                return model.initial_point(), pymc.Metropolis(rng=0), [variable.name for variable in model.value_vars]

        def call():
            point, step, names = build()
            step.reset_tuning()
            for method in step.methods:
                method.tune = True
            for _ in range(tune):
                point, _ = step.step(point)
            step.stop_tuning()
            theta = np.empty((draws, len(mode)))
            for draw in theta:
                point, _ = step.step(point)
                draw[:] = np.concatenate([point[name] for name in names])
            return _answer(theta * [2, 1, 1, 1, 1]).mean(axis=0)

        return call

    return Row(
        f"Metropolis over a mixture's posterior, {n:,} rows, {tune + draws:,} sweeps",
        _answer(mode),
        sds * 3.5 / math.sqrt(n),
        "what the walk leaves, in sds of the least certain mean; the truth is the posterior mode, by scipy.optimize",
        {
            "fastdiv": partial(fastdiv, None),
            "fastdiv (numba)": partial(fastdiv, "numba"),
            "NumPy": plain,
            "PyMC": partial(pymc, True),
            "PyMC (logsumexp)": partial(pymc, False),
        },
    )


ROWS = {
    "advi": partial(_advi, 100, 5000),
    "advi-batches": partial(_advi, 100_000, 10_000, batch_size=200, mean_prior_scale=math.sqrt(10)),
    "advi-large": partial(_advi, 100_000, 100),
    "metropolis": partial(_metropolis, 100, 500, 2000, 0.6),
    "metropolis-large": partial(_metropolis, 100_000, 200, 50, 3.0),
}
