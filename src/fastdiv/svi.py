"""Automatic differentiation variational inference: a Gaussian fitted to a posterior by stochastic gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache, cached_property
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_float_array, as_rng
from ._arviz import inference_data
from ._backend import kernels
from ._progress import progress_bar
from .estimate import Estimate, warn_of_accuracy
from .mixture_model import MixtureModel, logp_grad_by_all_rows, logp_grad_of

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import ArrayLike, NDArray, Seed

__all__ = ["ADVIResult", "ADVIState", "advi"]


@dataclass(frozen=True)
class Optimizer:
    """How a gradient makes a step: the kernels' code, and their numbers."""

    code: int
    n_arrays: int
    learning_rate: float
    momentum: float = 0.0
    decay: float = 0.0
    epsilon: float = 0.0


OPTIMIZERS = {
    "sgd": Optimizer(0, 1, 1e-3, momentum=0.9),
    "adagrad": Optimizer(1, 1, 0.1, epsilon=1e-6),
    "adagrad-window": Optimizer(2, 10, 1e-3, epsilon=0.1),
    "rmsprop": Optimizer(3, 1, 1e-3, decay=0.9, epsilon=1e-6),
    "adam": Optimizer(4, 2, 1e-2, momentum=0.9, decay=0.999, epsilon=1e-8),
}
FAMILIES = ("mean-field", "full-rank")
START_SCALE = 0.1
# Steps over whose mean loss is compared with that of as many before.
WINDOW = 500
# Values of the data, and steps, between two looks at Ctrl-C: some hundredths of a second.
CHUNK_VALUES = 1 << 22
CHUNK_STEPS = 1 << 12
PYTHON_STEPS = 32
# Draws for the bound and the shape of the weights' tail.
N_DRAWS = 2000
# Above this shape of the weights' tail the fit is not to be trusted (Vehtari et al. 2024).
MAX_PARETO_K = 0.7


@dataclass(eq=False)
class ADVIState:
    """All that a fit needs to go on, and to go on to the same bits; it pickles.

    Attributes
    ----------
    options : dict
        The family, optimizer, learning rate, batch size and number of draws.
    phi : ndarray
        The Gaussian: means, logarithms of the standard deviations (of the Cholesky factor's diagonal), and, for
        "full-rank", what is below the diagonal, row by row.
    moments : ndarray
        The optimizer's memory.
    losses : ndarray
        Those of all steps made.
    order : ndarray
        The rows in random order, of which mini-batches are stretches; so many of the first again as a stretch may go
        beyond the last. Empty without batches.
    noise, places : Generator
        Where the draws come from, and where the stretches begin.

    Examples
    --------
    >>> import pickle
    >>> from fastdiv import ADVIState, MixtureModel, advi
    >>> model = MixtureModel([[-1.0], [0.0], [1.0]], 1)
    >>> state = pickle.loads(pickle.dumps(advi(model, 2000, rng=0).state))
    >>> isinstance(state, ADVIState), len(advi(model, 500, state=state).losses)
    (True, 2500)
    """

    options: dict[str, Any]
    phi: NDArray[np.float64]
    moments: NDArray[np.float64]
    losses: NDArray[np.float64]
    order: NDArray[np.intp]
    noise: np.random.Generator
    places: np.random.Generator


class ADVIResult:
    """A Gaussian over unconstrained parameters, and what it says of the constrained ones.

    Attributes
    ----------
    loc : ndarray, shape (P,)
        Means in the unconstrained space.
    scale : ndarray, shape (P,)
        Standard deviations there.
    cholesky : ndarray, shape (P, P)
        Lower Cholesky factor of the covariance; diagonal for "mean-field".
    losses : ndarray, shape (steps,)
        Minus the estimate of the evidence's lower bound at each step, in nats.
    converged : bool
        Whether the losses had settled when the steps ended.
    complete : bool
        False after Ctrl-C.
    elbo : Estimate
        The bound, by draws of the fitted Gaussian, with the shape of the tail of the importance weights,
        ``elbo.diagnostics["pareto_k"]``.
    state : ADVIState
        With which ``advi(model, n_steps, state=state)`` goes on.

    Examples
    --------
    >>> from fastdiv import MixtureModel, advi
    >>> result = advi(MixtureModel([[-1.0], [0.0], [1.0]], 1), 2000, optimizer="adam", n_draws=8, rng=0)
    >>> result.loc.shape, bool(abs(result.scale[0] - 0.5) < 0.05)
    ((1,), True)
    >>> sorted(result.draws(5, rng=0))
    ['means', 'weights']
    >>> state = result.state
    >>> len(advi(result.model, 500, state=state).losses)
    2500
    """

    def __init__(self, model: Any, state: ADVIState, converged: bool, complete: bool, backend: str | None) -> None:
        self.model, self.state, self.converged, self.complete = model, state, converged, complete
        self._backend = backend
        n_params = _n_params(state)
        self.losses = state.losses
        self.loc = state.phi[:n_params].copy()
        self.cholesky = np.diag(np.exp(state.phi[n_params : 2 * n_params]))
        if state.options["family"] == "full-rank":
            self.cholesky[np.tril_indices(n_params, -1)] = state.phi[2 * n_params :]
        self.scale = np.sqrt(np.sum(self.cholesky**2, axis=1))

    def __repr__(self):
        ended = "converged" if self.converged else "not converged"
        if not self.complete:
            ended = "interrupted"
        last = f", last losses {self.losses[-WINDOW:].mean():.6g}" if len(self.losses) else ""
        return f"<ADVIResult of {len(self.losses)} steps, {ended}{last}>"

    def sample(self, n: int, *, rng: Seed = None) -> NDArray[np.float64]:
        """Draw unconstrained parameters, (n, P)."""
        return self._place(as_rng(rng).standard_normal((as_count(n, "n", 0), len(self.loc))))

    def _place(self, noise):
        return self.loc + noise @ self.cholesky.T

    def draws(self, n: int, *, rng: Seed = None) -> dict[str, NDArray[np.float64]]:
        """Draw parameters in the original space: what the model's ``constrain`` makes of (n, P) ones."""
        theta = self.sample(n, rng=rng)
        return self.model.constrain(theta) if hasattr(self.model, "constrain") else {"theta": theta}

    def summary(self, n: int = 10_000, *, rng: Seed = None) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Return, for each parameter in the original space, "mean" and "sd" over `n` draws."""
        found = self.draws(n, rng=rng)
        return {name: {"mean": draws.mean(axis=0), "sd": draws.std(axis=0, ddof=1)} for name, draws in found.items()}

    def to_arviz(self, n: int = 1000, *, rng: Seed = None) -> Any:
        """Return `n` draws in the original space as ArviZ takes them, in one chain; needs ArviZ."""
        return inference_data(posterior={name: draws[None] for name, draws in self.draws(n, rng=rng).items()})

    @cached_property
    def elbo(self) -> Estimate:  # noqa: D102
        from .functionals import pareto_k

        noise = np.random.default_rng(0).standard_normal((N_DRAWS, len(self.loc)))
        log_q = -np.sum(noise**2, axis=1) / 2 - len(self.loc) * math.log(2 * math.pi) / 2
        log_q -= np.sum(np.log(np.diag(self.cholesky)))
        logp_grad = logp_grad_by_all_rows(self.model, self._backend)
        log_weights = np.array([logp_grad(theta)[0] for theta in self._place(noise)]) - log_q
        shape = pareto_k(log_weights)
        if shape > MAX_PARETO_K:
            warn_of_accuracy(
                f"the weights of the fitted Gaussian's draws have a Pareto shape of {shape:.2f}: it is far from the "
                "posterior, in its tails at least"
            )
        error = float(log_weights.std(ddof=1)) / math.sqrt(N_DRAWS)
        return Estimate(
            float(log_weights.mean()),
            error=error,
            method="monte-carlo",
            standard_error=error,
            n_evaluations=N_DRAWS,
            diagnostics={"pareto_k": shape, "std": float(log_weights.std(ddof=1))},
        )


@cache
def _without_rows(density):
    from numba import njit

    return njit(nogil=True)(lambda theta, rows: density(theta))


def _density(model, batch_size):
    """Return the function of parameters and rows that the steps call."""
    density, is_compiled, takes_rows = logp_grad_of(model)
    if batch_size and not takes_rows:
        raise TypeError("batch_size is for log-densities of parameters and rows")
    if is_compiled and takes_rows and not batch_size:
        raise TypeError("a compiled log-density of parameters and rows needs batch_size, for all rows their number")
    if batch_size:
        return density
    if is_compiled:
        return _without_rows(density)
    density = logp_grad_by_all_rows(model)
    return lambda theta, rows: density(theta)


def _advance(model, batch_size, backend):
    """Return a function that makes the steps of one chunk: (rows, noise, *optimizer, n_steps, phi, moments, losses)."""
    if isinstance(model, MixtureModel):
        x, *parameters = model.kernel_parameters()
        kernel = kernels(backend).advi_mixture_steps
        return lambda rows, noise, *rest: kernel(x, rows, noise, *parameters, *rest)
    density = _density(model, batch_size)
    if hasattr(density, "py_func"):
        from ._kernels_numba import advi_steps
    else:
        from ._kernels_numpy import advi_steps
    return lambda *arguments: advi_steps(density, *arguments)


def _n_params(state):
    """Return P of a state whose Gaussian has 2 P numbers, or P (P - 1) / 2 more."""
    if state.options["family"] == "mean-field":
        return len(state.phi) // 2
    return (math.isqrt(9 + 8 * len(state.phi)) - 3) // 2


def _begin(model, options, start, rng):
    rng = as_rng(rng)
    noise, places, first = rng.spawn(3)
    if start is None:
        start = model.start(first) if hasattr(model, "start") else np.zeros(model.dim)
    start = as_float_array(start, "start").astype(np.float64)
    dim = as_count(getattr(model, "dim", start.size), "model.dim", 1)
    if start.shape != (dim,) or not np.all(np.isfinite(start)):
        raise ValueError(f"start must be finite and have shape {(dim,)}, got {start.tolist()}")
    n_below = dim * (dim - 1) // 2 if options["family"] == "full-rank" else 0
    phi = np.concatenate([start, np.full(dim, math.log(START_SCALE)), np.zeros(n_below)])
    moments = np.zeros((OPTIMIZERS[options["optimizer"]].n_arrays, phi.size))
    order = np.empty(0, dtype=np.intp)
    if options["batch_size"]:
        order = places.permutation(model.n_rows).astype(np.intp, copy=False)
        order = np.concatenate([order, order[: options["batch_size"] - 1]])
    if not isinstance(model, MixtureModel):
        logp, gradient = _density(model, options["batch_size"])(start, order[: options["batch_size"]])
        if np.shape(logp) != () or np.shape(gradient) != (dim,) or not np.all(np.isfinite([logp, *gradient])):
            got = f"{logp!r} and {gradient!r}"
            raise ValueError(f"model must give a finite number and gradient of shape {(dim,)} at the start, got {got}")
    return ADVIState(options, phi, moments, np.empty(0), order, noise, places)


def _checked_options(model, family, optimizer, learning_rate, batch_size, n_draws):
    family, optimizer = family or "mean-field", optimizer or "adagrad"
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}")
    if optimizer not in tuple(OPTIMIZERS):
        raise ValueError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, got {optimizer!r}")
    if learning_rate is None:
        learning_rate = OPTIMIZERS[optimizer].learning_rate
    if not isinstance(learning_rate, Real):
        raise TypeError(f"learning_rate must be a number, got {learning_rate!r}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")
    if batch_size is not None:
        batch_size = as_count(batch_size, "batch_size", 1)
        if not hasattr(model, "n_rows"):
            raise TypeError("batch_size is for models that have rows, and say how many by n_rows")
        if batch_size > model.n_rows:
            raise ValueError(f"batch_size must be at most the number of rows, {model.n_rows}, got {batch_size}")
    return {
        "family": family,
        "optimizer": optimizer,
        "learning_rate": float(learning_rate),
        "batch_size": batch_size,
        "n_draws": 1 if n_draws is None else as_count(n_draws, "n_draws", 1),
    }


def _checked_state(state, model):
    if not isinstance(state, ADVIState):
        raise TypeError(f"state must be that of an ADVIResult, got {state!r}")
    dim, n_rows = _n_params(state), len(state.order) - (state.options["batch_size"] or 1) + 1
    if dim != getattr(model, "dim", dim) or n_rows not in (0, getattr(model, "n_rows", 0)):
        raise ValueError(f"state must be of the same model, got that of one with {dim} parameters and {n_rows} rows")
    return copy.deepcopy(state)


def _gain(losses):
    """Return by how much the mean loss of the last window is lower than that of the one before, and the noise of it."""
    if len(losses) < 2 * WINDOW:
        return math.inf, 0.0
    before, last = losses[-2 * WINDOW : -WINDOW], losses[-WINDOW:]
    return before.mean() - last.mean(), 3 * math.sqrt((last.var() + before.var()) / WINDOW)


def _has_settled(losses, tol):
    gain, noise = _gain(losses)
    return bool(abs(gain) <= max(tol, noise))


def advi(
    model: Any,
    n_steps: int,
    *,
    family: str | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    n_draws: int | None = None,
    tol: float | None = None,
    start: ArrayLike | None = None,
    state: ADVIState | None = None,
    rng: Seed = None,
    progress: bool = False,
    backend: str | None = None,
) -> ADVIResult:
    r"""Fit a Gaussian to a posterior by automatic differentiation variational inference.

    The evidence's lower bound

    .. math:: E_{\epsilon \sim N(0, I)}\,[\log p(\mu + L \epsilon, x)] + \sum_i \log L_{ii} + \tfrac P2 (1 + \log 2\pi)

    is climbed by its gradients at draws of :math:`\epsilon`; :math:`L` is diagonal for "mean-field", lower triangular
    for "full-rank", and its diagonal is carried in logarithms.

    Parameters
    ----------
    model : MixtureModel or object or function
        An object has ``dim`` and ``logp_grad(theta, batch)``, the log-density of unconstrained parameters (P,) and
        its gradient, for the rows of a mini-batch or for None, all of them, or ``logp_grad(theta)``; optionally
        ``n_rows``, ``start(rng)`` and ``constrain(theta)``. If ``logp_grad``, or the model itself, is compiled by
        Numba's ``njit``, so are the steps; one that takes rows needs `batch_size`.
    n_steps : int
        Steps to make.
    family : {"mean-field", "full-rank"}
        Gaussian with a diagonal covariance, the default, or a full one.
    optimizer : {"adagrad", "adagrad-window", "adam", "rmsprop", "sgd"}
        "adagrad" by default; "adagrad-window" sums the last ten squared gradients, as PyMC does by default; "sgd" has
        momentum 0.9.
    learning_rate : float, optional
        By default 0.1, 0.001, 0.01, 0.001 and 0.001 in that order.
    batch_size : int, optional
        Rows of a mini-batch, a stretch of the rows in random order; without it, each step takes all.
    n_draws : int
        Draws of a step, over which gradients are averaged; 1 by default.
    tol : float, optional
        Stop where the mean loss of 500 steps is not lower by `tol` nats than that of the 500 before.
    start : array_like, shape (P,), optional
        First means; else what ``model.start`` gives, or 0.
    state : ADVIState, optional
        Of an earlier result, to go on from, with its options; none of these may then be given.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.
    progress : bool
        Show a progress bar with the running loss; needs rich.
    backend : str, optional
        The kernel set, as in `use_backend`; the steps are the same under each.

    Returns
    -------
    ADVIResult
        After Ctrl-C during the steps that of those made until then, with ``complete`` False.

    Raises
    ------
    ValueError
        If an option is unknown or out of range, or the steps diverge.
    TypeError
        If `state` comes with options, or `batch_size` with a model that has no rows.

    Warns
    -----
    AccuracyWarning
        If the losses still fall at the end, or rise.

    References
    ----------
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), Automatic differentiation variational inference, Journal of
    Machine Learning Research 18.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdiv import Mixture, MixtureModel, advi
    >>> X = Mixture([0.2, 0.8], [[-3, -3], [3, 3]], [[1, 1], [1, 1]]).sample(500, rng=0)
    >>> result = advi(MixtureModel(X, 2, mean_prior_scale=5.0), 5000, rng=0)
    >>> result.converged
    True
    >>> sorted(result.summary(rng=0)["weights"]["mean"].round(1).tolist())
    [0.2, 0.8]
    """
    if not (hasattr(model, "logp_grad") and hasattr(model, "dim")) and not (
        hasattr(model, "py_func") and (start is not None or state is not None)
    ):
        wanted = "an object with dim and logp_grad, or a function compiled by njit with a start"
        raise TypeError(f"model must be a MixtureModel, {wanted}, got {type(model).__name__}")
    n_steps = as_count(n_steps, "n_steps", 1)
    if tol is not None and not (isinstance(tol, Real) and tol >= 0):
        raise ValueError(f"tol must not be negative, got {tol!r}")
    given = family, optimizer, learning_rate, batch_size, n_draws, start, rng
    if state is None:
        state = _begin(model, _checked_options(model, *given[:5]), start, rng)
    elif any(option is not None for option in given):
        raise TypeError("state brings its own options, start and rng: give none of them with it")
    else:
        state = _checked_state(state, model)
    complete = _climb(model, state, n_steps, tol, progress, backend)
    gain, noise = _gain(state.losses)
    if gain < -noise:
        warn_of_accuracy("the evidence's bound fell at the end: take a smaller learning_rate")
    elif complete and noise < gain < math.inf:
        warn_of_accuracy("the evidence's bound still rose at the end: take more steps, or larger ones")
    return ADVIResult(model, state, _has_settled(state.losses, tol or 0.0), complete, backend)


def _climb(model, state, n_steps, tol, progress, backend):
    """Make the steps, or, if they settle or on Ctrl-C, some of them; tell whether it was not Ctrl-C."""
    options = state.options
    optimizer, batch_size, n_draws = OPTIMIZERS[options["optimizer"]], options["batch_size"] or 0, options["n_draws"]
    numbers = options["learning_rate"], optimizer.momentum, optimizer.decay, optimizer.epsilon
    n_params = _n_params(state)
    advance = _advance(model, options["batch_size"], backend)
    stretches = np.lib.stride_tricks.sliding_window_view(state.order, batch_size)
    chunk = CHUNK_VALUES // (n_draws * (batch_size or getattr(model, "n_rows", 1)) * n_params)
    most = CHUNK_STEPS if isinstance(model, MixtureModel) else PYTHON_STEPS
    chunk = min(max(chunk, 1), most if tol is None else min(most, WINDOW))
    first = len(state.losses)
    losses = np.concatenate([state.losses, np.empty(n_steps)])
    # What a chunk comes to is taken over at once, or on Ctrl-C not at all.
    reached = first, state.phi, state.moments, state.noise.bit_generator.state, state.places.bit_generator.state
    try:
        with progress_bar(progress, n_steps, "progress") as show:
            while reached[0] < len(losses):
                made, phi, moments = reached[0], reached[1].copy(), reached[2].copy()
                size = min(chunk, len(losses) - made, WINDOW - made % WINDOW if tol is not None else chunk)
                rows = np.empty((size, 0), dtype=np.intp)
                if batch_size:
                    rows = stretches[state.places.integers(model.n_rows, size=size)]
                noise = state.noise.standard_normal((size, n_draws, n_params))
                part = losses[made : made + size]
                advance(rows, noise, optimizer.code, *numbers, made, phi, moments, part)
                if not (np.all(np.isfinite(phi)) and np.all(np.isfinite(part))):
                    raise ValueError(
                        f"the steps diverge: learning_rate={numbers[0]} is too large, or the density not finite"
                    )
                states = state.noise.bit_generator.state, state.places.bit_generator.state
                reached = made + size, phi, moments, *states
                show(size, lambda part=part: f"loss {part[-WINDOW:].mean():.5g}")
                if tol is not None and reached[0] % WINDOW == 0 and _has_settled(losses[: reached[0]], tol):
                    return True
        return True
    except KeyboardInterrupt:
        return False
    finally:
        made, state.phi, state.moments, *states = reached
        state.noise.bit_generator.state, state.places.bit_generator.state = states
        state.losses = losses[:made].copy()
