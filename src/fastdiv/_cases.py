"""Inputs for every kernel: the one table that tests, benchmarks and the demo's speed table read."""

import numpy as np

from .montecarlo import new_moments

__all__ = ["CASES"]

# Columns of the data in more than one dimension.
DIMENSIONS = 10


def _mixture(rng, n_components, *event_shape):
    log_weights = np.log(rng.dirichlet(np.full(n_components, 5.0)))
    means = rng.normal(scale=3, size=(n_components, *event_shape))
    return log_weights, means, rng.uniform(0.5, 2, size=means.shape)


def _line(rng, n, k):
    return (rng.normal(scale=3, size=n), *_mixture(rng, k)), (np.empty(n),)


def _diagonal(rng, n, k):
    return (rng.normal(scale=3, size=(n, DIMENSIONS)), *_mixture(rng, k, DIMENSIONS)), (np.empty(n),)


def _full(rng, n, k):
    log_weights, means, scales = _mixture(rng, k, DIMENSIONS)
    factors = np.tril(rng.normal(scale=0.3, size=(k, DIMENSIONS, DIMENSIONS)), -1)
    factors[:, range(DIMENSIONS), range(DIMENSIONS)] = scales
    return (rng.normal(scale=3, size=(n, DIMENSIONS)), log_weights, means, factors), (np.empty(n),)


def _rows(rng, n, k):
    return (rng.normal(scale=10, size=(n, k)),), (np.empty(n),)


def _grid(rng, n, k):
    return (*_mixture(rng, k), *_mixture(rng, k), -15.0, 15.0, n, 0, n), (np.empty(1),)


def _log_densities(rng, n, k):
    return (rng.normal(size=n), rng.normal(size=n)), (new_moments(),)


def _moments(rng, n, k):
    some = new_moments()
    some[:5] = n, rng.normal(), n, -4.0, 4.0
    return (some,), (some.copy(),)


def _labelled(rng, n, k):
    features = rng.normal(size=(n, DIMENSIONS))
    target = (features[:, 0] + rng.normal(size=n) > 0).astype(np.float64)
    state = np.zeros((2, DIMENSIONS + 1))
    rows = rng.permutation(n).astype(np.intp)
    return (features, target, rng.uniform(0.5, 1.5, n), rows, 32, 0.05, 0.9, 1e-4), (*state, np.empty(1))


# Accumulators stay in float64 whatever the data are.
_MAKERS = {
    "mixture_logpdf": (_line, ()),
    "mixture_logpdf_diag": (_diagonal, ()),
    "mixture_logpdf_full": (_full, ()),
    "logsumexp_rows": (_rows, ()),
    "trapezoid_kl": (_grid, (-1,)),
    "log_ratio_moments": (_log_densities, (-1,)),
    "merge_moments": (_moments, (-2, -1)),
    "logistic_sgd_epoch": (_labelled, (-1,)),
}


def _case(maker, wide):
    def make(n, k=8, dtype=np.float64, seed=0):
        """Return a kernel's inputs and the arrays that it writes: call it as ``kernel(*inputs, *outputs)``."""
        inputs, outputs = maker(np.random.default_rng(seed), n, k)
        arguments = [*inputs, *outputs]
        for i, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray) and argument.dtype.kind == "f" and i - len(arguments) not in wide:
                arguments[i] = argument.astype(dtype)
        return tuple(arguments[: len(inputs)]), tuple(arguments[len(inputs) :])

    return make


CASES = {name: _case(*entry) for name, entry in _MAKERS.items()}
