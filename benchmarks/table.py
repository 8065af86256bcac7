"""Everything that is measured: each kernel, and the public calls over them, under every kernel set.

The parity tests, the ASV suite, the pytest benchmarks and the gates read this one table. It belongs to the checkout,
not to the package, so that a row means the same thing whichever version of fastdiv is installed.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import exact

__all__ = ["BACKENDS", "CALLS", "KERNELS", "TABLE", "Call", "Kernel"]

BACKENDS = ("numpy", "cython", "numba")

# Columns of the data in more than one dimension.
DIMENSIONS = 10


@dataclass(frozen=True)
class Kernel:
    """A kernel: how its arguments are made, and what of what it writes is the answer."""

    name: str
    family: str
    # (rng, n, k) -> the arrays and numbers it reads, the arrays it writes
    arguments: Callable
    # what makes a difference to it
    axes: tuple = ("dtype", "n", "k")
    # the last so many arrays stay in float64 whatever the data are
    n_accumulators: int = 0
    # outputs -> answers
    answers: Callable = lambda outputs: outputs
    # the size of the terms that an answer sums: the error of a smaller one counts in units of this one's last place
    least: float = 0.0

    def load(self, n, k=8, dtype="float64", seed=0):
        """Return a kernel's inputs and the arrays that it writes: call it as ``kernel(*inputs, *outputs)``."""
        inputs, outputs = self.arguments(np.random.default_rng(seed), n, k)
        arguments = [*inputs, *outputs]
        for i, argument in enumerate(arguments[: len(arguments) - self.n_accumulators]):
            if isinstance(argument, np.ndarray) and argument.dtype.kind == "f":
                arguments[i] = argument.astype(dtype)
        return tuple(arguments[: len(inputs)]), tuple(arguments[len(inputs) :])

    def exact(self, inputs, outputs):
        """Return the answers in exact arithmetic, from what `load` returned."""
        return getattr(exact, self.name)(inputs, outputs)

    def bind(self, backend, n, k=8, dtype="float64", seed=0):
        """Return a call without arguments that gives the kernel's answers."""
        from fastdiv import _backend

        kernel = getattr(_backend.kernels(backend), self.name, None)
        if kernel is None:
            raise NotImplementedError(f"this version has no {self.name}")
        inputs, outputs = self.load(n, k, dtype, seed)

        def call():
            kernel(*inputs, *outputs)
            return self.answers(outputs)

        return call


@dataclass(frozen=True)
class Call:
    """A public call over the kernels."""

    name: str
    family: str
    # (rng, n, k, dtype) -> a function of the backend
    make: Callable
    axes: tuple = ("dtype", "n", "k")
    threaded: bool = True

    def bind(self, backend, n, k=8, dtype="float64", seed=0):
        """Return a call without arguments that gives the answer."""
        call = self.make(np.random.default_rng(seed), n, k, dtype)
        return lambda: (call(backend),)


def _mixture(rng, n_components, *event_shape):
    log_weights = np.log(rng.dirichlet(np.full(n_components, 5.0)))
    means = rng.normal(scale=3, size=(n_components, *event_shape))
    return log_weights, means, rng.uniform(0.5, 2, size=means.shape)


def _line(rng, n, k):
    return (rng.normal(scale=3, size=n), *_mixture(rng, k)), (np.zeros(n),)


def _diagonal(rng, n, k):
    return (rng.normal(scale=3, size=(n, DIMENSIONS)), *_mixture(rng, k, DIMENSIONS)), (np.zeros(n),)


def _full(rng, n, k):
    log_weights, means, scales = _mixture(rng, k, DIMENSIONS)
    whiteners = np.tril(rng.normal(scale=0.1, size=(k, DIMENSIONS, DIMENSIONS)), -1)
    whiteners[:, range(DIMENSIONS), range(DIMENSIONS)] = 1 / scales
    return (rng.normal(scale=3, size=(n, DIMENSIONS)), log_weights, means, whiteners), (np.zeros(n),)


def _gradients(arguments):
    """Make the output as large as the points."""

    def with_gradients(rng, n, k):
        inputs, _ = arguments(rng, n, k)
        return inputs, (np.zeros_like(inputs[0]),)

    return with_gradients


def _rows(rng, n, k):
    return (rng.normal(scale=10, size=(n, k)),), (np.zeros(n),)


def _grid(rng, n, k):
    return (*_mixture(rng, k), *_mixture(rng, k), -15.0, 15.0, n, 0, n), (np.zeros(1),)


def _gaussians(rng, n, k):
    z = np.linspace(-4, 4, n)
    locs, scales = rng.normal(scale=3, size=4), rng.uniform(0.5, 2, size=4)
    return (locs, scales, np.exp(-z * z / 2), -4.0, 4.0, *_mixture(rng, k)), (np.zeros(4),)


def _no_moments():
    return np.array([0.0, 0.0, 0.0, np.inf, -np.inf, 0.0])


def _log_densities(rng, n, k):
    return (rng.normal(size=n), rng.normal(size=n)), (_no_moments(),)


def _moments(rng, n, k):
    some, others = (np.array([count, rng.normal(), count, -4.0, 4.0, 1e-17]) for count in (1000.0, 3000.0))
    return (some,), (others,)


def _mean_and_m2(outputs):
    (moments,) = outputs
    return (moments[1] + moments[5], moments[2])


def _labelled(rng, n):
    features = rng.normal(size=(n, DIMENSIONS))
    target = features[:, 0] + rng.normal(size=n) > 0
    return features, target.astype(np.float64), rng.uniform(0.5, 1.5, n)


def _descent(rng, n, k):
    features, target, weight = _labelled(rng, n)
    rows = rng.permutation(n).astype(np.intp)
    state = np.zeros((3, DIMENSIONS + 1))
    centre, scale = rng.normal(scale=0.1, size=DIMENSIONS), rng.uniform(0.9, 1.1, DIMENSIONS)
    inputs = features, centre, scale, target, weight, rows, 32, 0.05, 0.25, 0.9, 1e-4, 7
    return inputs, (*state, np.zeros(1))


def _standardised(rng, n, k):
    features, target, weight = _labelled(rng, n)
    target[:2] = 0, 1
    centre, scale = rng.normal(size=DIMENSIONS), rng.uniform(0.5, 2, DIMENSIONS)
    side = DIMENSIONS + 1
    out = np.array([0.0, np.inf, -np.inf, 0.0, 0.0, 0.0, 0.0])
    outputs = np.zeros((4, side)), np.zeros((side, side)), np.zeros((side, side)), out
    return (features, centre, scale, target, weight, rng.normal(scale=0.3, size=side)), outputs


def _unsorted(rng, n, k):
    return (rng.normal(size=n), np.zeros(n)), (np.zeros(n),)


def _sorted_points(rng, n, k):
    return (np.sort(rng.normal(size=n + k)), np.sort(rng.normal(size=n)), k), (np.zeros(n), np.zeros(n))


def _newton(rng, n, k):
    """Two steps, whatever they lead to, and a look at the end of the second."""
    inputs, sums = _standardised(rng, n, k)
    side = DIMENSIONS + 1
    ridge = np.append(np.full(DIMENSIONS, 0.1), 0.0)
    tol, slack = -1.0, 1.0
    state = np.array([1.0, 0.0, 1.0, np.inf, 0.0, 0.0, 0.0])
    inputs = (*inputs[:5], ridge, float(n), tol, slack, np.zeros((side, side)))
    return inputs, (*np.zeros((2, side)), *sums, np.zeros(2), state)


def _steps_and_losses(outputs):
    coef, step, *_, losses, _ = outputs
    return coef, step, losses


def _columns(rng, n, k):
    means, scales = rng.normal(scale=100, size=DIMENSIONS), rng.uniform(0.5, 2, DIMENSIONS)
    inputs = rng.normal(means, scales, size=(n, DIMENSIONS)), rng.uniform(0.5, 1.5, n)
    return inputs, (*np.zeros((2, DIMENSIONS)), np.zeros(1))


def _params_and_loss(outputs):
    params, *_, loss = outputs
    return params, loss


def _network(rng, n, k):
    """One feature and two hidden layers, of 10 and 20 units, with softplus."""
    features = rng.normal(size=(n, 1))
    layer_sizes = np.array([1, 10, 20, 1])
    params = rng.normal(scale=0.5, size=np.sum(layer_sizes[1:] * (layer_sizes[:-1] + 1)))
    return (features, layer_sizes, 0, params), (np.zeros(n),)


def _training(rng, n, k):
    (features, layer_sizes, activation, params), _ = _network(rng, n, k)
    target = (features[:, 0] + rng.normal(size=n) > 0).astype(np.float64)
    rows = rng.permutation(n).astype(np.intp)
    data = features, target, rng.uniform(0.5, 1.5, n), rows
    state = params, np.zeros_like(params), rng.uniform(0.5, 1.5, params.size)
    return (*data, 100, layer_sizes, activation, 0, 1e-3, 0.9, 0.9, 1e-7, 1e-4, 0), (*state, np.zeros(1))


def _posterior(rng, n, k, scale_prior=0):
    """A Bayesian mixture of k components in the plane: rows, what is known of it, and its number of parameters."""
    prior = np.array([scale_prior, 0.1, 2.0, 1.5, -3.0])
    whitener = np.array([[1.2, 0.0], [-0.4, 0.8]])
    known = whitener, rng.uniform(0.5, 1.5, k), prior
    return rng.normal(scale=2, size=(n, 2)), known, k - 1 + 2 * k * (2 if scale_prior else 1)


def _parameters(rng, n, k):
    x, known, n_params = _posterior(rng, n, k)
    return (x, np.arange(0, dtype=np.intp), *known, rng.normal(size=n_params)), (np.zeros(1 + n_params),)


def _variational(rng, n, k):
    """Three steps of RMSprop at two draws of a mean-field Gaussian each, on half of the rows, the stds half-normal."""
    x, known, n_params = _posterior(rng, n, k, 1)
    rows, noise = rng.integers(n, size=(3, (n + 1) // 2)), rng.normal(size=(3, 2, n_params))
    phi = np.concatenate([rng.normal(size=n_params), np.full(n_params, -1.0)])
    squares = n * rng.uniform(0.5, 1.5, size=(1, phi.size))
    return (x, rows, noise, *known, 3, 0.01, 0.9, 0.9, 1e-6, 2), (phi, squares, np.zeros(3))


def _phi_and_losses(outputs):
    phi, _, losses = outputs
    return phi, losses


def _walk(rng, n, k):
    x, known, n_params = _posterior(rng, n, k)
    noise, thresholds = rng.normal(size=(3, n_params)), rng.exponential(size=(3, 1 + k))
    inputs = x, noise, thresholds, np.full(1 + k, 3 / np.sqrt(n)), *known, rng.normal(size=n_params)
    return (*inputs, np.zeros((k + 2, -(-n // 64) * 64))), (np.zeros_like(noise), np.zeros(3), np.zeros(1 + k))


def _make_logpdf(rng, n, k, dtype):
    from fastdiv import Mixture

    log_weights, means, stds = _mixture(rng, k)
    mixture = Mixture(np.exp(log_weights), means, stds)
    x = rng.normal(scale=3, size=n).astype(dtype)
    return lambda backend: mixture.logpdf(x, backend=backend)


def _make_score(rng, n, k, dtype):
    from fastdiv import Mixture

    log_weights, means, stds = _mixture(rng, k)
    mixture = Mixture(np.exp(log_weights), means, stds)
    x = rng.normal(scale=3, size=n).astype(dtype)
    return lambda backend: mixture.score(x, backend=backend)


def _make_sorted(rng, n, k, dtype):
    from fastdiv import Mixture

    # Of which at any point a few count.
    mixture = Mixture(rng.dirichlet(np.full(k, 5.0)), rng.normal(scale=50, size=k), rng.uniform(0.5, 2, size=k))
    x = np.sort(mixture.sample(n, rng=rng).astype(dtype))
    return lambda backend: mixture.logpdf(x, backend=backend)


def _make_kl(generator, k, **options):
    import fastdiv

    p, q = (
        fastdiv.Mixture(np.exp(log_weights), means, stds)
        for log_weights, means, stds in (_mixture(generator, k), _mixture(generator, k))
    )

    def call(backend):
        with fastdiv.use_backend(backend or fastdiv.get_backend()):
            return fastdiv.kl_divergence(p, q, **options)

    return call


def _make_trapezoid(rng, n, k, dtype):
    return _make_kl(rng, k, method="trapezoid", num=n)


def _make_trapezoid_of_many(rng, n, k, dtype):
    import fastdiv

    log_weights, means, stds = _mixture(rng, k)
    q = fastdiv.Mixture(np.exp(log_weights), means, stds)
    n_gaussians = max(n // 100, 1)
    locs, scales = rng.normal(scale=3, size=n_gaussians), rng.uniform(0.5, 2, n_gaussians)
    return lambda backend: fastdiv.trapezoid_kl_normal(locs, scales, q, num=100, backend=backend)


def _make_grid_search(rng, n, k, dtype):
    import fastdiv

    log_weights, means, stds = _mixture(rng, k)
    target = fastdiv.Mixture(np.exp(log_weights), means, stds)
    ranges, num_grid = ((-6, 6), (0.2, 3)), max(math.isqrt(n // 100), 2)

    def call(backend):
        fit = fastdiv.fit_kl(target, method="brute", ranges=ranges, num_grid=num_grid, num=100, backend=backend)
        return np.array([fit.distribution.loc, fit.distribution.scale])

    return call


def _make_quadrature(rng, n, k, dtype):
    return _make_kl(rng, k, method="quadrature")


def _make_monte_carlo(rng, n, k, dtype):
    return _make_kl(rng, k, method="monte-carlo", n=n, rng=0)


def _make_fit(rng, n, k, dtype, **options):
    from fastdiv import LogisticRatioClassifier

    features = rng.normal(size=(n, DIMENSIONS)).astype(dtype)
    target = features[:, 0] + rng.normal(size=n) > 0

    def call(backend):
        with warnings.catch_warnings():
            # Where the passes are few on purpose.
            warnings.simplefilter("ignore", RuntimeWarning)
            return LogisticRatioClassifier(**options, backend=backend).fit(features, target).coef_

    return call


def _make_training(rng, n, k, dtype):
    from fastdiv import MLPRatioClassifier

    features = rng.normal(size=(n, DIMENSIONS)).astype(dtype)
    target = features[:, 0] + rng.normal(size=n) > 0

    def call(backend):
        with warnings.catch_warnings():
            # Five passes over some thousand rows on purpose.
            warnings.simplefilter("ignore", RuntimeWarning)
            model = MLPRatioClassifier(max_iter=5, random_state=0, backend=backend).fit(features, target)
        return np.concatenate([coefs.ravel() for coefs in model.coefs_])

    return call


def _make_neighbors(rng, n, k, dtype):
    from fastdiv import knn_kl_divergence

    x_p, x_q = rng.normal(size=n).astype(dtype), rng.normal(0, 2, n).astype(dtype)
    return lambda backend: knn_kl_divergence(x_p, x_q, rng=0, backend=backend)


def _posterior_model(rng, n, k, dtype):
    from fastdiv import MixtureModel

    return MixtureModel(rng.normal(scale=2, size=(n, 2)).astype(dtype), k, mean_prior_scale=3.0)


def _make_advi(rng, n, k, dtype):
    from fastdiv import advi

    model = _posterior_model(rng, n, k, dtype)
    return lambda backend: advi(model, 10, rng=0, backend=backend).loc


def _make_metropolis(rng, n, k, dtype):
    from fastdiv import metropolis

    model = _posterior_model(rng, n, k, dtype)
    start = model.start(0)
    return lambda backend: metropolis(model, 3, 0, 2, start=start, rng=0, backend=backend).theta


KERNELS = [
    Kernel("advi_mixture_steps", "variational", _variational, n_accumulators=14, answers=_phi_and_losses, least=1.0),
    Kernel("column_moments", "ratio", _columns, ("dtype", "n"), 3),
    Kernel("log_ratio_moments", "montecarlo", _log_densities, ("dtype", "n"), 1, _mean_and_m2),
    Kernel("logistic_newton_pass", "ratio", _standardised, ("dtype", "n"), 4, least=10.0),
    Kernel("logistic_newton_steps", "ratio", _newton, ("dtype", "n"), 13, _steps_and_losses, least=1.0),
    Kernel("logistic_sgd_epoch", "ratio", _descent, ("dtype", "n"), 2),
    Kernel("logsumexp_rows", "mixture", _rows),
    Kernel("merge_moments", "montecarlo", _moments, (), 2, _mean_and_m2),
    Kernel("metropolis_mixture_steps", "variational", _walk, ("dtype", "n"), 11),
    Kernel("mixture_logpdf", "mixture", _line),
    Kernel("mixture_logpdf_diag", "mixture", _diagonal),
    Kernel("mixture_logpdf_full", "mixture", _full),
    Kernel("mixture_model_logp_grad", "variational", _parameters, n_accumulators=6, least=10.0),
    Kernel("mixture_score", "mixture", _gradients(_line), least=1.0),
    Kernel("mixture_score_diag", "mixture", _gradients(_diagonal), least=10.0),
    Kernel("mixture_score_full", "mixture", _gradients(_full), least=10.0),
    Kernel("mlp_epoch", "ratio", _training, ("dtype", "n"), 1, _params_and_loss, least=1.0),
    Kernel("mlp_log_odds", "ratio", _network, ("dtype", "n"), least=1.0),
    Kernel("neighbor_distances", "ratio", _sorted_points, ("dtype", "n")),
    Kernel("radix_sort", "ratio", _unsorted, ("dtype", "n")),
    Kernel("trapezoid_cross_entropy", "quadrature", _gaussians, n_accumulators=1),
    Kernel("trapezoid_kl", "quadrature", _grid, n_accumulators=1),
]

CALLS = [
    Call("LogisticRatioClassifier.fit", "ratio", _make_fit, ("dtype", "n")),
    Call(
        "LogisticRatioClassifier.fit, sgd",
        "ratio",
        partial(_make_fit, solver="sgd", max_iter=5, random_state=0),
        ("dtype", "n"),
        threaded=False,
    ),
    Call("MLPRatioClassifier.fit", "ratio", _make_training, ("dtype", "n"), threaded=False),
    Call("Mixture.logpdf", "mixture", _make_logpdf),
    Call("Mixture.logpdf, sorted", "mixture", _make_sorted),
    Call("Mixture.score", "mixture", _make_score),
    Call("advi", "variational", _make_advi, ("dtype", "n"), threaded=False),
    Call("fit_kl, brute", "quadrature", _make_grid_search, ("n", "k")),
    Call("kl_divergence, monte-carlo", "montecarlo", _make_monte_carlo, ("n", "k")),
    Call("kl_divergence, quadrature", "quadrature", _make_quadrature, ("k",), threaded=False),
    Call("kl_divergence, trapezoid", "quadrature", _make_trapezoid, ("n", "k")),
    Call("knn_kl_divergence", "ratio", _make_neighbors, ("dtype", "n")),
    Call("metropolis", "variational", _make_metropolis, ("dtype", "n")),
    Call("trapezoid_kl_normal", "quadrature", _make_trapezoid_of_many, ("n", "k")),
]

TABLE = {row.name: row for row in [*KERNELS, *CALLS]}
