"""fastdiv beside other libraries, each in its fastest spelling: ``python -m benchmarks.peers``."""

import argparse
import json
import math
import os
import platform
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from benchmarks import peers_bayes
from benchmarks.peers_row import Row

ROOT = Path(__file__).parents[1]
JSON, README = ROOT / "docs" / "peers.json", ROOT / "README.md"
MARKED = re.compile("(?<=<!-- peers -->\n).*(?=<!-- /peers -->)", flags=re.DOTALL)
MODULES = ["fastdiv", "numpy", "scipy", "sklearn", "torch", "jax", "numpyro", "pymc", "pytensor", "numexpr", "numba"]
MODULES += ["numba_stats", "gmm_divergence", "densratio"]
THREADS = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "FASTDIV")]
# Seconds that a peer is called for before the next has its turn, and that a row's peers share.
TURN, BUDGET = 0.02, 8.0


class Gaussians(NamedTuple):
    """A mixture: its scales are standard deviations (K,) or (K, D), or Cholesky factors (K, D, D)."""

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray

    @property
    def components(self):
        """Log-weight, mean and scale of each."""
        return list(zip(np.log(self.weights).tolist(), self.means, self.scales, strict=True))

    @property
    def covariances(self):
        """Of shape (K, D, D), with D = 1 on the line."""
        if self.scales.ndim == 3:
            return self.scales @ self.scales.mT
        variances = _columns(self.scales) ** 2
        return variances[..., None] * np.eye(variances.shape[1])


def _columns(x):
    return x.reshape(len(x), -1)


def _numpy_draws(p, n):
    rng = np.random.default_rng(0)

    def draw():
        component = rng.choice(len(p.weights), size=n, p=p.weights)
        return rng.normal(p.means[component], p.scales[component])

    return draw


class Library(NamedTuple):
    """How to write a mixture in a library so that it is fast; divergences are made of it on the library's arrays."""

    # Gaussians -> a function of points
    logpdf: Callable
    # Gaussians on the line, n -> a function without arguments
    draws: Callable = _numpy_draws
    compiled: Callable = lambda function: function
    array: Callable = lambda x: x
    xp: Any = np


def _by_products(p, xp, logsumexp):
    """Whiten points by matrix products with the inverses of the Cholesky factors."""
    whiten = np.linalg.inv(p.scales)
    constants = np.log(p.weights) + np.linalg.slogdet(whiten)[1] - 0.5 * p.means.shape[1] * math.log(2 * math.pi)
    parts = list(zip(constants, whiten, (whiten @ p.means[..., None])[..., 0], strict=True))
    return lambda x: logsumexp(xp.stack([c - 0.5 * ((x @ a.T - b) ** 2).sum(1) for c, a, b in parts]), axis=0)


def _scipy():
    from scipy.special import logsumexp
    from scipy.stats import multivariate_normal, norm

    def logpdf(p):
        if p.means.ndim == 1:
            parts = [(log_w, partial(norm.logpdf, loc=mean, scale=std)) for log_w, mean, std in p.components]
        else:
            normals = map(multivariate_normal, p.means, p.covariances)
            parts = [(log_w, normal.logpdf) for log_w, normal in zip(np.log(p.weights), normals, strict=True)]
        return lambda x: logsumexp([log_w + part(x) for log_w, part in parts], axis=0)

    return Library(logpdf)


def _scipy_mixture():
    from scipy.stats import Mixture, Normal

    def mixture(p):
        return Mixture([Normal(mu=mean, sigma=std) for _, mean, std in p.components], weights=p.weights)

    def draws(p, n):
        return partial(mixture(p).sample, n, rng=np.random.default_rng(0))

    return Library(lambda p: mixture(p).logpdf, draws)


def _scikit_learn():
    from sklearn.mixture import GaussianMixture

    def mixture(p):
        full = p.scales.ndim == 3
        mixture = GaussianMixture(len(p.weights), covariance_type="full" if full else "diag", random_state=0)
        mixture.weights_, mixture.means_ = p.weights, _columns(p.means)
        mixture.covariances_ = p.covariances if full else _columns(p.scales) ** 2
        mixture.precisions_cholesky_ = np.linalg.inv(p.scales).mT if full else 1 / _columns(p.scales)
        return mixture

    def draws(p, n):
        fitted = mixture(p)
        return lambda: fitted.sample(n)[0]

    return Library(lambda p: mixture(p).score_samples, draws, array=_columns)


def _torch(compiled=False):
    import torch
    from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

    def component(mean, scale):
        if scale.ndim == 2:
            return MultivariateNormal(mean, scale_tril=scale, validate_args=False)
        return Independent(Normal(mean, scale, validate_args=False), scale.ndim, validate_args=False)

    def logpdf(p):
        weights, means, scales = map(torch.as_tensor, p)
        if compiled and p.means.ndim == 1:
            # A loop over 64 components takes long to compile, and runs no faster.
            log_w, normals = weights.log()[:, None], Normal(means[:, None], scales[:, None], validate_args=False)
            return lambda x: torch.logsumexp(log_w + normals.log_prob(x), 0)
        parts = list(zip(weights.log(), map(component, means, scales), strict=True))
        return lambda x: torch.logsumexp(torch.stack([log_w + part.log_prob(x) for log_w, part in parts]), 0)

    def draws(p, n):
        weights, means, stds = map(torch.as_tensor, p)
        return partial(MixtureSameFamily(Categorical(weights), Normal(means, stds)).sample, (n,))

    def compile(function):
        torch.compiler.reset()
        return torch.compile(function)

    return Library(logpdf, draws, compile if compiled else lambda function: function, torch.as_tensor, torch)


def _jax():
    import jax
    import jax.numpy as jnp
    from jax.scipy.special import logsumexp
    from jax.scipy.stats import norm

    jax.config.update("jax_enable_x64", True)

    def compiled(function):
        jitted = jax.jit(function)
        return lambda *arguments: jitted(*arguments).block_until_ready()

    def logpdf(p):
        log_w = np.log(p.weights)
        if p.scales.ndim == 1:
            return lambda x: logsumexp(log_w + norm.logpdf(x[:, None], p.means, p.scales), axis=1)
        if p.scales.ndim == 2:
            return lambda x: logsumexp(log_w + norm.logpdf(x[:, None], p.means, p.scales).sum(2), axis=1)
        return _by_products(p, jnp, logsumexp)

    def draws(p, n):
        weights, means, stds = map(jnp.asarray, p)

        def draw(key):
            key_component, key_z = jax.random.split(key)
            component = jax.random.choice(key_component, len(weights), (n,), p=weights)
            return means[component] + stds[component] * jax.random.normal(key_z, (n,))

        return partial(compiled(draw), jax.random.key(0))

    return Library(logpdf, draws, compiled, jnp.asarray, jnp)


def _numpyro():
    import jax
    from numpyro.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

    library = _jax()

    def mixture(p):
        weights, means, scales = map(library.array, p)
        if p.scales.ndim == 3:
            return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=scales))
        return MixtureSameFamily(Categorical(weights), Normal(means, scales).to_event(p.scales.ndim - 1))

    def draws(p, n):
        return partial(library.compiled(lambda key: mixture(p).sample(key, (n,))), jax.random.key(0))

    return library._replace(logpdf=lambda p: mixture(p).log_prob, draws=draws)


def _pymc():
    import pymc
    import pytensor
    from pytensor import tensor as pt

    def compiled(function):
        @cache
        def build(ndim):
            x = pt.tensor("x", dtype="float64", shape=(None,) * ndim)
            # On the line Numba is the faster linker; triangular systems it solves slower.
            return pytensor.function([x], function(x), mode="NUMBA" if ndim == 1 else "FAST_RUN", trust_input=True)

        return lambda x: build(x.ndim)(x)

    def logpdf(p):
        def component(mean, scale, x):
            if p.scales.ndim == 2:
                return pymc.logp(pymc.Normal.dist(mean, scale), x).sum(1)
            return pymc.logp(pymc.MvNormal.dist(mean, chol=scale), x)

        if p.scales.ndim == 1:
            return partial(pymc.logp, pymc.NormalMixture.dist(*p))
        return lambda x: pt.logsumexp(pt.stack([log_w + component(*part, x) for log_w, *part in p.components]), axis=0)

    def draws(p, n):
        build = cache(lambda: pymc.compile([], pymc.NormalMixture.dist(*p, size=n), mode="NUMBA", random_seed=0))
        return lambda: build()()

    def trapezoid(y, x):
        return pt.sum((y[1:] + y[:-1]) * pt.diff(x)) / 2

    return Library(logpdf, draws, compiled, xp=SimpleNamespace(exp=pt.exp, mean=pt.mean, trapezoid=trapezoid))


def _density_text(p):
    heights = p.weights / p.scales / math.sqrt(2 * math.pi)
    terms = zip(heights.tolist(), (-0.5 / p.scales**2).tolist(), p.means.tolist(), strict=True)
    return "(" + " + ".join(f"{height} * exp({rate} * (x - ({mean}))**2)" for height, rate, mean in terms) + ")"


def _numexpr():
    import numexpr

    # Densities are summed, not their logarithms: so one writes it here, and no point is far out.
    return Library(lambda p: numexpr.NumExpr(f"log{_density_text(p)}", [("x", np.float64)]))


def _numba_stats():
    import numba
    from numba_stats import norm

    def logpdf(p):
        weights, means, stds = p

        @numba.njit(parallel=True)
        def logpdf(x):
            # As with numexpr.
            density = np.zeros_like(x)
            for k in range(len(weights)):
                density += weights[k] * norm.pdf(x, means[k], stds[k])
            return np.log(density)

        return logpdf

    return Library(logpdf)


def _gmm_divergence():
    from gmm_divergence import GaussianMixture

    def logpdf(p):
        return GaussianMixture(p.weights, _columns(p.means), p.covariances).logpdf

    return Library(logpdf, array=_columns)


LIBRARIES = {
    "SciPy": _scipy,
    "scipy.stats.Mixture": _scipy_mixture,
    "scikit-learn": _scikit_learn,
    "PyTorch": _torch,
    "PyTorch (compiled)": partial(_torch, compiled=True),
    "JAX": _jax,
    "NumPyro": _numpyro,
    "PyMC": _pymc,
    "numexpr": _numexpr,
    "numba-stats": _numba_stats,
    "gmm-divergence": _gmm_divergence,
}
ON_THE_LINE = {"scipy.stats.Mixture", "numexpr", "numba-stats"}


def _peers(fastdiv, other, names=LIBRARIES):
    ours = {"fastdiv": partial(fastdiv, None), "fastdiv (numba)": partial(fastdiv, "numba")}
    return ours | {name: partial(other, LIBRARIES[name]) for name in names}


def _log_density(n_components, kind, quick, d=10, n=100_000, names=LIBRARIES):
    n, line = 1000 if quick else n, kind == "1-D"
    rng = np.random.default_rng(0)
    shape = (n_components,) if line else (n_components, d)
    means, scales = rng.normal(scale=3, size=shape), rng.uniform(0.5, 2, size=shape)
    if kind == "full":
        scales = np.tril(rng.normal(scale=min(0.3, 3 / d), size=(*shape, d)), -1) + scales[..., None] * np.eye(d)
    p = Gaussians(rng.dirichlet(np.full(n_components, 5.0)), means, scales)
    x = rng.normal(scale=3, size=(n, *shape[1:]))

    def fastdiv(backend):
        import fastdiv

        mixture = fastdiv.Mixture(*p[:2], covs=p.covariances) if kind == "full" else fastdiv.Mixture(*p)
        return lambda: mixture.logpdf(x, backend=backend)

    def other(library):
        library = library()
        logpdf, points = library.compiled(library.logpdf(p)), library.array(x)
        return lambda: logpdf(points)

    def by_products():
        from scipy.special import logsumexp

        logpdf = _by_products(p, np, logsumexp)
        return lambda: logpdf(x)

    return Row(
        f"log-density at {n:,} points, {kind if line else f'{d}-D, {kind} covariance'}, K = {n_components}",
        _scipy().logpdf(p)(x),
        1e-10,
        "rounding, with room for squares that cancel; the truth is SciPy's",
        _peers(fastdiv, other, [name for name in names if line or name not in ON_THE_LINE])
        | ({"NumPy (matrix products)": by_products} if kind == "full" else {}),
    )


def _trapezoid(n, quick):
    p = Gaussians(np.array([0.5, 0.5]), np.array([4.0, 6.0]), np.array([0.75, 0.75]))
    q = Gaussians(np.array([1.0]), np.array([5.0]), np.array([1.0]))
    x = np.linspace(1, 9, n)

    def fastdiv(backend):
        import fastdiv

        mixtures = fastdiv.Mixture(*p), fastdiv.Mixture(*q)
        return lambda: fastdiv.trapezoid_kl(*mixtures, n, (1, 9), backend=backend)

    def other(library):
        library = library()
        log_p, log_q, xp = library.logpdf(p), library.logpdf(q), library.xp

        def kl(x):
            a, b = log_p(x), log_q(x)
            return xp.trapezoid(xp.exp(a) * (a - b), x.ravel())

        kl, points = library.compiled(kl), library.array(x)
        return lambda: kl(points)

    def numexpr():
        import numexpr

        integrand = f"{_density_text(p)} * log({_density_text(p)} / {_density_text(q)})"
        integrand = numexpr.NumExpr(integrand, [("x", np.float64)])
        return lambda: np.trapezoid(integrand(x), x)

    return Row(
        f"KL by the trapezoid rule, {n:,} points",
        other(_scipy)(),
        1e-10,
        "rounding; the truth is NumPy's trapezoid on SciPy's densities",
        _peers(fastdiv, other) | {"numexpr": numexpr},
    )


def _score(quick):
    n, k = 1000 if quick else 100_000, 8
    rng = np.random.default_rng(0)
    means, scales = rng.normal(scale=3, size=k), rng.uniform(0.5, 2, size=k)
    p = Gaussians(rng.dirichlet(np.full(k, 5.0)), means, scales)
    x = rng.normal(scale=3, size=n)

    def fastdiv(backend):
        import fastdiv

        mixture = fastdiv.Mixture(*p)
        return lambda: mixture.score(x, backend=backend)

    def scipy():
        from scipy.special import softmax
        from scipy.stats import norm

        def call():
            z = (x[:, None] - means) / scales
            return np.sum(softmax(np.log(p.weights) + norm.logpdf(z) - np.log(scales), axis=1) * -z / scales, axis=1)

        return call

    def torch():
        import torch

        log_p = _torch().logpdf(p)

        def call():
            points = torch.tensor(x, requires_grad=True)
            return torch.autograd.grad(log_p(points).sum(), points)[0]

        return call

    def jax():
        from jax import grad

        library = _jax()
        log_p, points = library.logpdf(p), library.array(x)
        score = library.compiled(grad(lambda x: log_p(x).sum()))
        return lambda: score(points)

    return Row(
        f"score at {n:,} points, 1-D, K = {k}",
        scipy()(),
        1e-10,
        "rounding; the truth is the mean of the components' scores under SciPy's softmax",
        _peers(fastdiv, None, []) | {"SciPy": scipy, "PyTorch": torch, "JAX": jax},
    )


def _brute_force(quick):
    side, num, reach = (5, 50, 4) if quick else (100, 500, 4)
    p = Gaussians(np.array([0.4, 0.6]), np.array([-1.0, 4.0]), np.array([0.75, 0.5]))
    locs, scales = np.linspace(-4, 8, side), np.linspace(0.1, 3, side)
    z = np.linspace(-reach, reach, num)
    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)

    def fastdiv(backend):
        import fastdiv

        q = fastdiv.Mixture(*p)
        return lambda: fastdiv.trapezoid_kl_normal(locs, scales[:, None], q, num, reach, backend=backend)

    def other(library):
        library = library()
        log_p, xp = library.logpdf(p), library.xp
        grid, log_weights = map(xp.asarray, (z, log_density))
        rows = [library.array((locs[:, None] + scale * z).ravel()) for scale in scales]

        def divergences(x, log_scale):
            log_ratio = log_weights - log_scale - log_p(x).reshape(side, num)
            return xp.trapezoid(xp.exp(log_weights) * log_ratio, grid)

        divergences = library.compiled(divergences)
        return lambda: xp.stack([divergences(x, math.log(scale)) for x, scale in zip(rows, scales, strict=True)])

    def one_by_one():
        import torch
        from scipy.optimize import brute

        log_p, grid, log_weights = _torch().logpdf(p), torch.as_tensor(z), torch.as_tensor(log_density)

        def divergence(at):
            loc, scale = map(float, at)
            log_ratio = log_weights - math.log(scale) - log_p(loc + scale * grid)
            return float(torch.trapezoid(torch.exp(log_weights) * log_ratio, grid))

        ranges = (-4, 8), (0.1, 3)
        return lambda: brute(divergence, ranges, Ns=side, finish=None, full_output=True)[3].T

    names = ["SciPy", "scikit-learn", "PyTorch", "PyTorch (compiled)", "JAX"]
    return Row(
        f"KL of {side} × {side} Gaussians from a mixture, {num} points each",
        other(_scipy)(),
        1e-9,
        "rounding; the truth is NumPy's trapezoid on SciPy's densities",
        _peers(fastdiv, other, names) | {"PyTorch (scipy.optimize.brute)": one_by_one},
    )


def _monte_carlo(quick):
    from scipy.integrate import quad

    n = 10_000 if quick else 1_000_000
    p = Gaussians(np.array([0.4, 0.6]), np.array([-1.0, 4.0]), np.array([0.75, 0.5]))
    q = Gaussians(np.array([0.5, 0.5]), np.array([0.0, 3.0]), np.array([2.0, 1.0]))

    def moment(power):
        log_p, log_q = (_scipy().logpdf(mixture) for mixture in (p, q))
        return quad(lambda x: np.exp(log_p(x)) * (log_p(x) - log_q(x)) ** power, -12, 12, points=[-1, 4])[0]

    def fastdiv(backend):
        import fastdiv

        mixtures = fastdiv.Mixture(*p), fastdiv.Mixture(*q)
        return lambda: fastdiv.kl_divergence(*mixtures, method="monte-carlo", n=n, rng=0, backend=backend)

    def other(library):
        library = library()
        log_p, log_q, draw = library.logpdf(p), library.logpdf(q), library.draws(p, n)
        kl = library.compiled(lambda x: library.xp.mean(log_p(x) - log_q(x)))
        return lambda: kl(draw())

    def gmm_divergence():
        from gmm_divergence import GaussianMixture, divergence, kl_divergence, sampling

        mixtures = [GaussianMixture(d.weights, _columns(d.means), d.covariances) for d in (p, q)]
        estimator = divergence.MonteCarlo(sampling=sampling.Draw(n_samples=n, rng=0))
        return lambda: kl_divergence(*mixtures, estimator=estimator).value

    kl = moment(1)
    return Row(
        f"KL by Monte Carlo, {n:,} draws",
        kl,
        6 * math.sqrt((moment(2) - kl**2) / n),
        "six standard errors; the truth is scipy.integrate.quad's",
        _peers(fastdiv, other) | {"gmm-divergence": gmm_divergence},
    )


def _logistic(quick):
    from scipy.optimize import minimize
    from scipy.special import expit

    n, d = 2000 if quick else 100_000, 10
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(n, d)), rng.normal(size=d)
    y = (rng.random(n) < expit(x @ weights - 0.5)).astype(np.float64)
    columns, some = np.column_stack([x, np.ones(n)]), x[:1000]

    def loss(coef):
        log_odds = columns @ coef
        return np.mean(np.logaddexp(0, log_odds) - y * log_odds), columns.T @ (expit(log_odds) - y) / n

    def fastdiv(backend):
        from fastdiv import LogisticRatioClassifier

        model = LogisticRatioClassifier(random_state=0, backend=backend)
        return lambda: model.fit(x, y).decision_function(some)

    def scikit_learn():
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=np.inf)
        return lambda: model.fit(x, y).decision_function(some)

    def stochastic():
        from sklearn.linear_model import SGDClassifier

        # With the default steps its log-odds are off by some tenths.
        steps = {"learning_rate": "adaptive", "eta0": 0.01, "alpha": 1e-6, "random_state": 0}
        model = SGDClassifier(loss="log_loss", **steps)
        return lambda: model.fit(x, y).decision_function(some)

    def torch():
        import torch

        data, target = torch.as_tensor(columns), torch.as_tensor(y)

        def call():
            coef = torch.zeros(d + 1, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([coef], max_iter=100, line_search_fn="strong_wolfe")

            def closure():
                optimizer.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(data @ coef, target)
                loss.backward()
                return loss

            optimizer.step(closure)
            return (data[:1000] @ coef).detach()

        return call

    return Row(
        f"logistic regression, {n:,} × {d}",
        columns[:1000] @ minimize(loss, np.zeros(d + 1), jac=True, method="BFGS", options={"gtol": 1e-8}).x,
        0.015 * math.sqrt(100_000 / n),
        "the least standard error of a fitted log-odds; the truth is scipy.optimize's",
        _peers(fastdiv, None, []) | {"scikit-learn": scikit_learn, "scikit-learn (SGD)": stochastic, "PyTorch": torch},
    )


def _descent(quick):
    n, d, n_epochs = 20_000 if quick else 100_000, 10, 10
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = (rng.random(n) < 1 / (1 + np.exp(-x @ rng.normal(scale=0.5, size=d)))).astype(int)

    def loss(model):
        return lambda: np.mean(np.logaddexp(0, np.where(y, -1, 1) * model.fit(x, y).decision_function(x)))

    def fastdiv(backend):
        from fastdiv import LogisticRatioClassifier

        options = {"schedule": "constant", "average": True, "tol": 0, "n_iter_no_change": n_epochs}
        return loss(
            LogisticRatioClassifier(solver="sgd", max_iter=n_epochs, random_state=0, backend=backend, **options)
        )

    def scikit_learn():
        from sklearn.linear_model import SGDClassifier

        options = {"average": True, "max_iter": n_epochs, "tol": None, "random_state": 0}
        return loss(SGDClassifier(loss="log_loss", **options))

    def optimum():
        from scipy.optimize import minimize
        from scipy.special import expit

        signs = np.where(y, 1.0, -1.0)
        columns = np.column_stack([x, np.ones(n)])

        def value(coef):
            margins = signs * (columns @ coef)
            return np.mean(np.logaddexp(0, -margins)), -(signs * expit(-margins)) @ columns / n

        return minimize(value, np.zeros(d + 1), jac=True, method="BFGS", options={"gtol": 1e-8}).fun

    return Row(
        f"logistic regression by {n_epochs} passes of averaged SGD, {n:,} × {d}",
        optimum(),
        0.03 if quick else 0.005,
        "what ten passes leave of the loss; the truth is its least, by scipy.optimize",
        _peers(fastdiv, None, []) | {"scikit-learn": scikit_learn},
    )


def _from_samples(quick):
    n, rng = 1000, np.random.default_rng(0)
    x_p, x_q = rng.normal(1, 1, size=(n, 1)), rng.normal(0, 2, size=(n, 1))

    def fastdiv(backend):
        from fastdiv import LogisticRatioClassifier

        model = LogisticRatioClassifier(degree=2, random_state=0, backend=backend)
        return lambda: model.fit_samples(x_p, x_q).kl_divergence(x_p)

    def scikit_learn():
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures

        model = make_pipeline(PolynomialFeatures(2, include_bias=False), LogisticRegression(C=np.inf))
        x, y = np.concatenate([x_p, x_q]), np.repeat([1, 0], n)
        return lambda: np.mean(model.fit(x, y).decision_function(x_p))

    def densratio(method):
        from densratio import densratio

        np.random.seed(0)  # noqa: NPY002 - its centres come from there
        return lambda: np.mean(np.log(densratio(x_p, x_q, method, verbose=False).compute_density_ratio(x_p)))

    return Row(
        f"KL from {n:,} samples of each",
        math.log(2) - 0.25,
        6 * 0.596 / math.sqrt(n),
        "six standard errors of the mean log-ratio; the truth is the closed form",
        _peers(fastdiv, None, [])
        | {
            "scikit-learn": scikit_learn,
            "densratio": partial(densratio, "uLSIF"),
            "densratio (KLIEP)": partial(densratio, "KLIEP"),
        },
    )


def _neighbors(quick):
    n, k, rng = 1000 if quick else 100_000, 5, np.random.default_rng(0)
    x_p, x_q = rng.normal(1, 1, size=(n, 1)), rng.normal(0, 2, size=(n, 1))

    def fastdiv(backend):
        from fastdiv import knn_kl_divergence

        return lambda: knn_kl_divergence(x_p, x_q, k, rng=0, backend=backend)

    def scipy():
        from scipy.spatial import cKDTree

        def call():
            (rho,), (nu,) = cKDTree(x_p).query(x_p, [k + 1])[0].T, cKDTree(x_q).query(x_p, [k])[0].T
            return np.mean(np.log(nu / rho)) + math.log(n / (n - 1))

        return call

    def scikit_learn():
        from sklearn.neighbors import NearestNeighbors

        def call():
            rho = NearestNeighbors(n_neighbors=k).fit(x_p).kneighbors()[0][:, -1]
            nu = NearestNeighbors(n_neighbors=k).fit(x_q).kneighbors(x_p)[0][:, -1]
            return np.mean(np.log(nu / rho)) + math.log(n / (n - 1))

        return call

    return Row(
        f"KL from {n:,} samples of each by nearest neighbours, 1-D",
        math.log(2) - 0.25,
        6 * 1.35 / math.sqrt(n),
        "six standard errors of the estimate; the truth is the closed form",
        _peers(fastdiv, None, []) | {"SciPy": scipy, "scikit-learn": scikit_learn},
    )


def _least_squares(quick):
    n, rng = 1000, np.random.default_rng(0)
    x_p, x_q = rng.normal(1, 1, size=(n, 1)), rng.normal(0, 2, size=(n, 1))
    # densratio's own.
    grid = 10 ** np.linspace(-3, 1, 9)

    def fastdiv(backend):
        from fastdiv import LeastSquaresRatio

        model = LeastSquaresRatio(bandwidths=grid, penalties=grid, standardise=False, random_state=0)
        return lambda: np.mean(model.fit_samples(x_p, x_q).log_ratio(x_p))

    def numpy():
        from scipy.spatial.distance import cdist

        rng = np.random.default_rng(0)

        def scores(kernels_p, kernels_q):
            """By the formulas of Kanamori, Hido & Sugiyama (2009), figure 2, from one eigendecomposition."""
            values, vectors = np.linalg.eigh(kernels_q.T @ kernels_q / n)
            turned_p, turned_q, mean = kernels_p @ vectors, kernels_q @ vectors, kernels_p.mean(axis=0) @ vectors
            for penalty in grid:
                inverse = 1 / (values + penalty * (n - 1) / n)
                solved_q = turned_q * inverse
                unit = n - np.vecdot(turned_q, solved_q)
                b_0 = mean * inverse + solved_q * (solved_q @ mean / unit)[:, None]
                b_1 = turned_p * inverse + solved_q * (np.vecdot(turned_p, solved_q) / unit)[:, None]
                weights = np.maximum((b_0 - b_1 / n) @ vectors.T, 0)
                yield np.mean(np.vecdot(kernels_q, weights) ** 2) / 2 - np.mean(np.vecdot(kernels_p, weights))

        def call():
            centres = x_p[rng.choice(n, 100, replace=False)]
            squares = [cdist(x, centres, "sqeuclidean") for x in (x_p, x_q)]
            kernels = [[np.exp(-0.5 / bandwidth**2 * of_sample) for of_sample in squares] for bandwidth in grid]
            found = np.array([list(scores(*pair)) for pair in kernels])
            best, cheapest = np.unravel_index(np.argmin(found), found.shape)
            kernels_p, kernels_q = kernels[best]
            hessian = kernels_q.T @ kernels_q / n + grid[cheapest] * np.eye(len(centres))
            weights = np.maximum(np.linalg.solve(hessian, kernels_p.mean(axis=0)), 0)
            return np.mean(np.log(kernels_p @ weights))

        return call

    def densratio():
        from densratio import densratio

        np.random.seed(0)  # noqa: NPY002 - its centres come from there
        return lambda: np.mean(np.log(densratio(x_p, x_q, verbose=False).compute_density_ratio(x_p)))

    return Row(
        f"uLSIF with its cross-validation, {n:,} samples of each",
        math.log(2) - 0.25,
        6 * 0.596 / math.sqrt(n),
        "six standard errors of the mean log-ratio; the truth is the closed form",
        {"fastdiv": partial(fastdiv, None), "NumPy": numpy, "densratio": densratio},
    )


def _network(quick):
    """The published classifier: 400 training rows of each of two Gaussians, 250 passes in batches of 100."""
    n, n_epochs, batch_size, rate, sizes = 400, 10 if quick else 250, 100, 1e-3, (1, 10, 20, 1)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(1, 1, (n, 1)), rng.normal(0, 2, (n, 1))]).astype(np.float32)
    y = np.repeat([1, 0], n)

    def fastdiv(backend):
        from fastdiv import MLPRatioClassifier

        model = MLPRatioClassifier(max_iter=n_epochs, validation_fraction=0, random_state=0, backend=backend)
        return lambda: model.fit(x, y).loss_curve_[-1]

    def scikit_learn():
        from sklearn.neural_network import MLPClassifier

        # It has neither softplus nor RMSprop.
        same = {"hidden_layer_sizes": sizes[1:-1], "activation": "tanh", "batch_size": batch_size, "alpha": 0}
        model = MLPClassifier(max_iter=n_epochs, tol=0, n_iter_no_change=n_epochs, random_state=0, **same)
        return lambda: model.fit(x, y).loss_

    def torch():
        import torch
        from torch.nn import Linear, Sequential, Softplus

        data, target = torch.as_tensor(x), torch.as_tensor(y, dtype=torch.float32)[:, None]
        loss_of = torch.nn.functional.binary_cross_entropy_with_logits

        def call():
            torch.manual_seed(0)
            network = Sequential(Linear(1, 10), Softplus(), Linear(10, 20), Softplus(), Linear(20, 1))
            optimizer = torch.optim.RMSprop(network.parameters(), rate, alpha=0.9, eps=1e-7)
            for _ in range(n_epochs):
                for rows in torch.randperm(2 * n).split(batch_size):
                    optimizer.zero_grad()
                    loss_of(network(data[rows]), target[rows]).backward()
                    optimizer.step()
            return loss_of(network(data), target).detach()

        return call

    def jax():
        import jax
        from jax import nn

        data, target = jax.numpy.asarray(x), jax.numpy.asarray(y, dtype=np.float32)
        glorot = nn.initializers.glorot_uniform()

        def loss_of(params, rows):
            values = data[rows]
            for i, (weights, biases) in enumerate(params):
                values = values @ weights + biases
                values = nn.softplus(values) if i < len(params) - 1 else values[:, 0]
            return (nn.softplus(values) - target[rows] * values).mean()

        def step(state, rows):
            params, squares = state
            gradient = jax.grad(loss_of)(params, rows)
            squares = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * g**2, squares, gradient)
            params = jax.tree.map(lambda p, s, g: p - rate * g / (s + 1e-7) ** 0.5, params, squares, gradient)
            return (params, squares), None

        def epoch(state, key):
            return jax.lax.scan(step, state, jax.random.permutation(key, 2 * n).reshape(-1, batch_size))

        @jax.jit
        def train(key):
            keys = jax.random.split(key, len(sizes))
            ends = zip(keys, sizes[:-1], sizes[1:], strict=False)
            params = [(glorot(k, (a, b), np.float32), jax.numpy.zeros(b, np.float32)) for k, a, b in ends]
            state = params, jax.tree.map(jax.numpy.zeros_like, params)
            (params, _), _ = jax.lax.scan(epoch, state, jax.random.split(keys[-1], n_epochs))
            return loss_of(params, jax.numpy.arange(2 * n))

        return lambda: train(jax.random.key(0)).block_until_ready()

    return Row(
        f"a network 1-10-20-1, {n_epochs} passes over {2 * n} rows, float32",
        math.log(2) - 0.12771526,
        0.15 if quick else 0.03,
        "what the training rows move the least cross-entropy by, log 2 less the Jensen-Shannon divergence",
        _peers(fastdiv, None, []) | {"scikit-learn": scikit_learn, "PyTorch": torch, "JAX": jax},
    )


ROWS = {
    "log-density-2": partial(_log_density, 2, "1-D"),
    "log-density-8": partial(_log_density, 8, "1-D"),
    "log-density-64": partial(_log_density, 64, "1-D"),
    "log-density-large": partial(_log_density, 8, "1-D", n=10_000_000, names=["SciPy", "JAX"]),
    "log-density-diagonal": partial(_log_density, 8, "diagonal"),
    "log-density-full-2": partial(_log_density, 8, "full", d=2),
    "log-density-full": partial(_log_density, 8, "full"),
    "log-density-full-50": partial(_log_density, 8, "full", d=50, names=["SciPy", "scikit-learn", "PyTorch", "JAX"]),
    "score": _score,
    "brute-force": _brute_force,
    "trapezoid-1000": partial(_trapezoid, 1000),
    "trapezoid-100000": partial(_trapezoid, 100_000),
    "monte-carlo": _monte_carlo,
    "logistic": _logistic,
    "descent": _descent,
    "from-samples": _from_samples,
    "neighbors": _neighbors,
    "least-squares": _least_squares,
    "network": _network,
    **peers_bayes.ROWS,
}


def fastest(calls, budget):
    """Return the fewest seconds of each call, in turns one way round and the other, three or a share of the budget."""
    best, spent, turns = dict.fromkeys(calls, math.inf), dict.fromkeys(calls, 0.0), 0
    while due := [name for name in calls if turns < 3 or spent[name] < budget / len(calls)]:
        for name in due[:: -1 if turns % 2 else 1]:
            seconds = 0.0
            while seconds <= min(TURN, budget):
                start = perf_counter()
                calls[name]()
                once = perf_counter() - start
                best[name], seconds = min(best[name], once), seconds + once
            spent[name] += seconds
        turns += 1
    return best


def first(make, row):
    """Return a peer's call, and its first call's seconds and error; or None, and why there is none."""
    try:
        call = make()
        start = perf_counter()
        answer = call()
        seconds = perf_counter() - start
        error = row.error(answer)
    except ModuleNotFoundError:
        return None, {"missing": True}
    except Exception as error:
        return None, {"raised": f"{type(error).__name__}: {error}"}
    return call, {"first_call": seconds, "error": error, "right": error <= row.tolerance}


def measure(row, budget=BUDGET):
    """Compare the answers of a row's peers, then time them on as many threads as this process has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        firsts = {name: first(make, row) for name, make in row.peers.items()}
        seconds = fastest({name: call for name, (call, _) in firsts.items() if call}, budget)
    return {name: found | ({"seconds": seconds[name]} if call else {}) for name, (call, found) in firsts.items()}


def measure_rows(names, quick=False):
    found = []
    for name in names:
        row = ROWS[name](quick)
        about = {"name": name, "title": row.title, "tolerance": row.tolerance, "why": row.why}
        found.append(about | {"peers": measure(row, 0.0 if quick else BUDGET)})
    return found


def _cpu_seconds_of_others():
    """Return the CPU time of all but this process and its children, as far as Linux tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *rest = map(int, stat.read_text(encoding="utf-8").split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def on_cpus(cpus, *arguments):
    """Measure in a fresh process, whose libraries find so many threads, CPUs and nothing compiled from the start.

    Also returned is how many CPUs others kept busy meanwhile.
    """
    os.environ |= dict.fromkeys(THREADS, str(len(cpus)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    start, others = perf_counter(), _cpu_seconds_of_others()
    with TemporaryDirectory() as compiled, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        os.environ |= {"PYTENSOR_FLAGS": f"base_compiledir={compiled}", "TORCHINDUCTOR_CACHE_DIR": compiled}
        found = pool.submit(measure_rows, *arguments).result()
    return found, (_cpu_seconds_of_others() - others) / (perf_counter() - start)


def _versions():
    distributions = packages_distributions()
    found = [distributions[module][0] for module in MODULES if module in distributions]
    return {"Python": platform.python_version()} | {name: version(name) for name in found}


def _cpu():
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def report(names, quick=False):
    """Measure on one thread and on all; a peer has a result for each number of threads, in that order."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    threads = sorted({1, len(cpus)})
    runs, busy = zip(*(on_cpus(cpus[:n], names, quick) for n in threads), strict=True)
    for row, *others in zip(*runs, strict=True):
        for name, result in row["peers"].items():
            row["peers"][name] = [result, *(other["peers"][name] for other in others)]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
        "threads": threads,
        "busy": busy,
        "rows": runs[0],
    }


def _short(value, digits):
    return f"{float(f'{value:.{digits}g}'):.12g}"


def _mark(result):
    return "–" if "missing" in result else "‡" if "raised" in result else "" if result["right"] else "†"


def _figures(row, turn):
    """Return milliseconds and multiples of fastdiv's time by peer, the fastest first; or the mark that says why not."""
    marks = {name: _mark(runs[turn]) for name, runs in row["peers"].items()}
    seconds = {name: runs[turn].get("seconds", math.inf) for name, runs in row["peers"].items()}
    best = min((seconds[name] for name in seconds if not marks[name]), default=math.nan)

    def figure(value, name, digits):
        bold = "**" if seconds[name] == best else ""
        return marks[name] if math.isinf(seconds[name]) else f"{bold}{_short(value, digits)}{marks[name]}{bold}"

    return {
        name: (figure(1000 * time, name, 3), figure(time / seconds["fastdiv"], name, 2))
        for name, time in sorted(seconds.items(), key=lambda item: item[1])
    }


def _summary(rows):
    yield "| | fastdiv, ms | the others, as multiples of its time |"
    yield "|---|--:|---|"
    for row in rows:
        figures = _figures(row, 0)
        ours, _ = figures.pop("fastdiv")
        yield f"| {row['title']} | {ours} | {', '.join(f'{name} {figure}' for name, (_, figure) in figures.items())} |"


def _details(rows, threads):
    yield f"| | | {' | '.join(f'on {n}' for n in threads)} | first call | error |"
    yield "|---|---|" + "--:|" * (len(threads) + 2)
    for row in rows:
        title, columns = row["title"], [_figures(row, turn) for turn in range(len(threads))]
        for name in columns[0]:
            result = row["peers"][name][0]
            times = " | ".join(column[name][0] for column in columns)
            first_call = _short(1000 * result["first_call"], 2) if "first_call" in result else ""
            error = f"{result['error']:.1g}" if "error" in result else ""
            yield f"| {title} | {name} | {times} | {first_call} | {error} |"
            title = ""


def _notes(rows):
    for row in rows:
        for name, runs in row["peers"].items():
            found = next((result for result in runs if _mark(result)), {"missing": True})
            if "raised" in found:
                yield f"‡ {row['title']}, {name}: `{found['raised'].splitlines()[0]}`"
            elif "missing" not in found:
                yield f"† {row['title']}, {name}: off by {found['error']:.1g}, with {row['tolerance']:.1g} allowed"


def _disturbance(n_threads, busy):
    if busy > 0.1:
        yield f"Others kept {_short(busy, 2)} of {n_threads} CPUs busy meanwhile: times on {n_threads} are too long."


def render(report):
    """Return the README's tables."""
    rows, threads = report["rows"], report["threads"]
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    lines = [
        f"On one of {threads[-1]} CPUs ({report['cpu']}, {report['system']}), {report['date']}:",
        "",
        *_summary(rows),
        "",
        f"<details><summary>Milliseconds of every peer on {' and on '.join(map(str, threads))}</summary>",
        "",
        *_details(rows, threads),
        "",
        f"{versions}.",
        *_disturbance(threads[-1], report["busy"][-1]),
        "",
        "</details>",
        *(line for note in _notes(rows) for line in ("", note)),
    ]
    return "\n".join(lines) + "\n"


def write(report):
    """Write the JSON, and the tables into the README."""
    JSON.parent.mkdir(exist_ok=True)
    JSON.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = MARKED.sub(lambda _: render(report), README.read_text(encoding="utf-8"))
    README.write_text(readme, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description="Time fastdiv beside other libraries; write README.md and docs/peers.json."
    )
    parser.add_argument("--only", metavar="ROW", choices=ROWS, help=f"print one row, write nothing: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="print small rows, write nothing")
    options = parser.parse_args()
    found = report([options.only] if options.only else list(ROWS), options.quick)
    if options.only or options.quick:
        print(render(found))
    else:
        write(found)


if __name__ == "__main__":
    main()
