"""Random-walk Metropolis: chains of draws from a posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_float_array, as_rng
from ._arviz import inference_data
from ._backend import kernels, map_blocks, one_blas_thread
from ._progress import progress_bar
from .estimate import warn_of_accuracy
from .mixture_model import MixtureModel, logp_grad_by_all_rows

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import ArrayLike, NDArray, Seed

__all__ = ["MetropolisResult", "MetropolisState", "metropolis"]

TUNE, CHAINS = 500, 2
# Starts of the optimiser, and digits of its optimum to keep: later ones differ between kernel sets.
N_STARTS = 4
DECIMALS = 5
# A standard deviation under this share of the data's is that of a component that has collapsed on a row.
LEAST_SPREAD = 1e-3
# Rows of a kernel's block.
BLOCK = 64
# Steps between two looks at the acceptance, as in PyMC.
INTERVAL = 100
# Values of the data, and steps, between two looks at Ctrl-C: some hundredths of a second.
CHUNK_VALUES = 1 << 26
CHUNK_STEPS = 1 << 12
PYTHON_STEPS = 32
# Beyond these the draws are not to be trusted at all; for final figures Vehtari et al. (2021) ask for 1.01 and 400.
MAX_R_HAT = 1.05
MIN_ESS = 100
# Draws without a move that are no accident.
MIN_STUCK = 1000
MAX_RELABELLINGS = 100


@dataclass(frozen=True, eq=False)
class MetropolisState:
    """All that chains need to go on, and to go on to the same bits; it pickles.

    Steps are made in chunks that are counted from the first, so that where a run ended does not show in the next: the
    state is that before the chunk in which it ended.

    Attributes
    ----------
    tune : int
        Length of the tuning.
    n_steps : int
        Steps made before the chunk.
    n_beyond : int
        Steps made of the chunk, which are made again.
    theta : ndarray, shape (chains, P)
    scales : ndarray, shape (chains, blocks)
        Standard deviations of the proposals.
    accepted : ndarray, shape (chains, blocks)
        Moves since the scales were last tuned.
    seed : SeedSequence
        From which, with the numbers of the chain and of its first step, the random numbers of each chunk come.

    Examples
    --------
    >>> import pickle
    >>> from fastdiv import MetropolisState, MixtureModel, metropolis
    >>> model = MixtureModel([[-1.0], [0.0], [1.0]], 1)
    >>> state = pickle.loads(pickle.dumps(metropolis(model, 1000, rng=0).state))
    >>> isinstance(state, MetropolisState), metropolis(model, 1000, state=state).n_steps
    (True, 2500)
    """

    tune: int
    n_steps: int
    n_beyond: int
    theta: NDArray[np.float64]
    scales: NDArray[np.float64]
    accepted: NDArray[np.float64]
    seed: np.random.SeedSequence


@dataclass(frozen=True, eq=False)
class MetropolisResult:
    """Draws from a posterior, in chains.

    Attributes
    ----------
    model : object
        Whose posterior it is.
    theta : ndarray, shape (chains, draws, P)
        Draws in the unconstrained space.
    logp : ndarray, shape (chains, draws)
        Their log-densities, in nats.
    accept : ndarray, shape (chains, blocks)
        Shares of the proposals that were accepted.
    scales : ndarray, shape (chains, blocks)
        Standard deviations of the proposals, as they were tuned.
    n_steps : int
        Steps that each chain has made, tuning and earlier runs included.
    complete : bool
        False after Ctrl-C.
    state : MetropolisState
        With which ``metropolis(model, draws, state=state)`` goes on.
    samples : dict of ndarray
        Draws in the original space: what the model's ``constrain`` makes of theta.
    label_switching : ndarray, shape (chains,)
        Share of each chain's draws that `relabel` gives other labels.

    Examples
    --------
    >>> from fastdiv import MixtureModel, metropolis
    >>> result = metropolis(MixtureModel([[-3.0], [-2.0], [3.0]], 2, mean_prior_scale=3.0), 1000, rng=0)
    >>> result.samples["means"].shape
    (2, 1000, 2, 1)
    >>> bool(result.label_switching.max() > 0)
    True
    >>> result.relabel().label_switching
    array([0., 0.])
    """

    model: Any
    theta: NDArray[np.float64]
    logp: NDArray[np.float64]
    accept: NDArray[np.float64]
    scales: NDArray[np.float64]
    n_steps: int
    complete: bool
    state: MetropolisState

    def __repr__(self):
        chains, draws = self.logp.shape
        ended = "" if self.complete else ", interrupted"
        return f"<MetropolisResult of {chains} chains, {draws} draws{ended}, {self.accept.mean():.2g} accepted>"

    @cached_property
    def samples(self) -> dict[str, NDArray[np.float64]]:  # noqa: D102
        return self.model.constrain(self.theta) if hasattr(self.model, "constrain") else {"theta": self.theta}

    def to_arviz(self) -> Any:
        """Return the draws as ArviZ's InferenceData, or, from its version 1 on, as a DataTree; needs ArviZ."""
        self._check_draws()
        return inference_data(posterior=self.samples, sample_stats={"lp": self.logp})

    def _check_draws(self):
        if not self.logp.size:
            raise ValueError("there are no draws: the run was interrupted before the first")

    def summary(self, **options: Any) -> Any:
        """Return ArviZ's table of mean, sd, interval, Monte-Carlo errors, bulk and tail ESS, and R-hat.

        Parameters
        ----------
        **options
            For `arviz.summary`.

        Warns
        -----
        AccuracyWarning
            If an R-hat is over 1.05, or a bulk ESS under 100.

        References
        ----------
        Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an
        improved R-hat, Bayesian Analysis 16.
        """
        data = self.to_arviz()
        import arviz

        table = arviz.summary(data, **{"round_to": "none", **options})
        if "r_hat" in table and table["r_hat"].max() > MAX_R_HAT:
            warn_of_accuracy(
                f"the chains do not agree, R-hat is {table['r_hat'].max():.3g}: make more draws, or relabel"
            )
        elif "ess_bulk" in table and table["ess_bulk"].min() < MIN_ESS:
            warn_of_accuracy(f"the draws are worth {table['ess_bulk'].min():.0f} independent ones: make more")
        return table

    @cached_property
    def label_switching(self) -> NDArray[np.float64]:  # noqa: D102
        return _is_switched(self._order).mean(axis=1)

    def relabel(self) -> MetropolisResult:
        """Return the same draws, each with its components in the order that comes nearest to the other draws.

        This is the order whose weights, means and standard deviations, in units of their spread, have the least
        squared distance from those of a pivot: first the draw of highest log-density, then the mean of the draws in
        their new order, until nothing changes. Log-densities stay; `state`, `accept` and `scales` keep the old order.

        Raises
        ------
        TypeError
            If the model is not a `MixtureModel`.
        ValueError
            If its concentrations differ, which gives components a meaning.

        References
        ----------
        Stephens (2000), Dealing with label switching in mixture models, Journal of the Royal Statistical Society B 62.
        Marin, Mengersen & Robert (2005), Bayesian modelling and inference on mixtures of distributions, section 4.
        """
        switched = _is_switched(self._order)
        theta = self.theta.copy()
        theta[switched] = self.model.in_order(theta[switched], self._order[switched])
        return replace(self, theta=theta)

    @cached_property
    def _order(self):
        """The components of each draw in their new order, (chains, draws, K)."""
        if not isinstance(self.model, MixtureModel):
            raise TypeError(f"only components of a MixtureModel have labels, got {self.model!r}")
        if np.ptp(self.model.kernel_parameters()[2]):
            raise ValueError("labels can only be changed where the concentrations of all components are the same")
        self._check_draws()
        n_components = self.model.n_components
        features = [value.reshape(self.logp.size, n_components, -1) for value in self.samples.values()]
        if "stds" in self.samples:
            features[-1] = np.log(features[-1])
        features = np.concatenate(features, axis=2)
        features = features / np.maximum(features.std(axis=(0, 1)), np.finfo(np.float64).tiny)
        order = _nearest_order(features, features[self.logp.argmax()])
        for _ in range(MAX_RELABELLINGS):
            last, order = order, _nearest_order(features, _in_order(features, order).mean(axis=0))
            if np.array_equal(order, last):
                break
        return order.reshape(*self.logp.shape, n_components)


def _is_switched(order):
    return np.any(order != np.arange(order.shape[-1]), axis=-1)


def _in_order(values, order):
    """Return values (n, K, ...) with the components of each row in an order (n, K)."""
    return np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)


def _nearest_order(features, pivot):
    """Return the order of each draw's components, (n, K), in which features (n, K, F) come nearest to a pivot's."""
    from scipy.optimize import linear_sum_assignment

    distances = np.stack([np.sum((features - wanted) ** 2, axis=2) for wanted in pivot], axis=1)
    # Where the nearest components of the pivot's are all different, there is nothing better.
    order = distances.argmin(axis=2)
    for row in np.flatnonzero(np.any(np.sort(order, axis=1) != np.arange(order.shape[1]), axis=1)):
        order[row] = linear_sum_assignment(distances[row])[1]
    return order


class _MixtureWalk:
    """The steps of chains over a `MixtureModel`, by the kernel."""

    def __init__(self, model, chains, backend):
        self.dim, self.blocks, self.first = model.dim, model.blocks, model.start
        values = model.n_rows * len(model.blocks) * (model.n_features + model.n_components)
        self.chunk = min(max(CHUNK_VALUES // values, 1), CHUNK_STEPS)
        self.chains_at_once = 1
        # By one kernel set, so that chains begin at the same mode under each.
        self.logp_grad = logp_grad_by_all_rows(model, "cython")
        self.lowest = np.full(model.dim, -np.inf)
        if model.has_scales:
            with np.errstate(divide="ignore"):
                lowest = np.log(LEAST_SPREAD * model.X.std(axis=0, dtype=np.float64))
            self.lowest[-model.n_components * model.n_features :] = np.tile(lowest, model.n_components)
        self._data, *self._parameters = model.kernel_parameters()
        self._kernel = kernels(backend).metropolis_mixture_steps
        self._rooms = np.empty((chains, model.n_components + 2, -(-model.n_rows // BLOCK) * BLOCK))

    def logp(self, theta):
        return self.logp_grad(theta)[0]

    def run(self, chain, noise, thresholds, scales, theta, *written):
        self._kernel(self._data, noise, thresholds, scales, *self._parameters, theta, self._rooms[chain], *written)


class _PythonWalk:
    """The steps of chains over any log-density, one chain after the other."""

    chunk = PYTHON_STEPS

    def __init__(self, model, chains, start):
        self.logp_grad = logp_grad_by_all_rows(model) if hasattr(model, "logp_grad") else None
        self._density = getattr(model, "logp", None) or self.logp_grad or model
        dim = getattr(model, "dim", None if start is None else np.shape(start)[-1:])
        if not callable(self._density) or not isinstance(dim, int | np.integer | tuple) or dim == ():
            wanted = "have dim, and logp_grad(theta) or logp(theta), or be a function and come with a start"
            raise TypeError(f"model must {wanted}, got {model!r}")
        self.dim = as_count(dim[0] if isinstance(dim, tuple) else dim, "model.dim", 1)
        self.blocks = list(getattr(model, "blocks", [slice(i, i + 1) for i in range(self.dim)]))
        if not all(isinstance(block, slice) for block in self.blocks):
            raise TypeError(f"model.blocks must be slices, got {self.blocks}")
        moved = np.zeros(self.dim, dtype=bool)
        for block in self.blocks:
            moved[block] = True
        if not moved.all():
            raise ValueError(f"model.blocks must hold all of the {self.dim} parameters, got {self.blocks}")
        self.first = getattr(model, "start", lambda rng: rng.standard_normal(self.dim))
        self.chains_at_once = chains
        self.lowest = np.full(self.dim, -np.inf)

    def logp(self, theta):
        value = self._density(theta)
        return float(value[0] if isinstance(value, tuple) else value)

    def run(self, chain, noise, thresholds, scales, theta, draws, logps, accepted):
        current = self.logp(theta)
        for step in range(len(noise)):
            for i, block in enumerate(self.blocks):
                moved = theta.copy()
                moved[block] += scales[i] * noise[step, block]
                value = self.logp(moved)
                if value - current > -thresholds[step, i]:
                    theta[:], current = moved, value
                    accepted[i] += 1
            draws[step], logps[step] = theta, current


def _mode(walk, rng):
    """Return the highest of the optima found from several starts, or, if there is none to be used, a start."""
    from scipy.optimize import minimize

    def loss(theta):
        if walk.logp_grad is None:
            return -walk.logp(theta)
        value, gradient = walk.logp_grad(theta)
        return -value, -gradient

    best, least = None, math.inf
    bounds = [(lowest, None) for lowest in walk.lowest]
    for _ in range(N_STARTS):
        first = walk.first(rng)
        with one_blas_thread(), np.errstate(all="ignore"):
            found = minimize(loss, first, jac=walk.logp_grad is not None, method="L-BFGS-B", bounds=bounds)
        if -math.inf < found.fun < least and np.all(found.x > walk.lowest):
            best, least = np.round(found.x, DECIMALS), found.fun
    return first if best is None else best


def _begin(walk, tune, chains, start, rng):
    rng = as_rng(rng)
    seed = np.random.SeedSequence(rng.integers(1 << 32, size=8).tolist())
    theta = as_float_array(_mode(walk, rng) if start is None else start, "start").astype(np.float64)
    if theta.shape not in ((walk.dim,), (chains, walk.dim)):
        raise ValueError(f"start must have shape {(walk.dim,)} or {(chains, walk.dim)}, got {theta.shape}")
    theta = np.array(np.broadcast_to(theta, (chains, walk.dim)), order="C")
    densities = [walk.logp(row.copy()) for row in theta]
    if not np.all(np.isfinite(densities)):
        raise ValueError(f"start must have finite log-densities, got {densities} at {theta.tolist()}")
    shape = chains, len(walk.blocks)
    return MetropolisState(tune, 0, 0, theta, np.ones(shape), np.zeros(shape), seed)


def _advance(walk, state, draws, logps):
    """Return the state after as many steps as there are draws to be written."""
    theta, accepted, n_steps = state.theta.copy(), state.accepted.copy(), logps.shape[1]

    def work(start, stop):
        for chain in range(start, stop):
            noise, decisions = _generators(state, chain)
            walk.run(
                chain,
                noise.standard_normal((n_steps, walk.dim)),
                decisions.standard_exponential((n_steps, len(walk.blocks))),
                state.scales[chain],
                theta[chain],
                draws[chain],
                logps[chain],
                accepted[chain],
            )

    map_blocks(work, len(theta), walk.chains_at_once, least=1)
    return replace(state, n_steps=state.n_steps + n_steps, n_beyond=0, theta=theta, accepted=accepted)


def _generators(state, chain):
    """Return where the noise of a chunk comes from, and what decides on its proposals: fewer steps draw the same."""
    for use in range(2):
        seed = np.random.SeedSequence(state.seed.entropy, spawn_key=(chain, state.n_steps, use))
        yield np.random.Generator(np.random.SFC64(seed))


def _tuned(scales, rates):
    """Return scales that bring the acceptance nearer to a third, by PyMC's table."""
    bounds = [rates < 0.001, rates < 0.05, rates < 0.2, rates > 0.95, rates > 0.75, rates > 0.5]
    return scales * np.select(bounds, [0.1, 0.5, 0.9, 10.0, 2.0, 1.1], 1.0)


def _moves(walk):
    """Tell which blocks there is something in: a mixture of one component has no sticks."""
    return np.array([np.arange(walk.dim)[block].size > 0 for block in walk.blocks])


def _tune(walk, state):
    """Return the state after a chunk of the tuning."""
    n_steps = min(walk.chunk, INTERVAL - state.n_steps % INTERVAL, state.tune - state.n_steps)
    chains = len(state.theta)
    state = _advance(walk, state, np.empty((chains, n_steps, walk.dim)), np.empty((chains, n_steps)))
    if state.n_steps % INTERVAL == 0:
        scales = np.where(_moves(walk), _tuned(state.scales, state.accepted / INTERVAL), 1.0)
        state = replace(state, scales=scales, accepted=np.zeros_like(scales))
    return state


def _share_of_moves(draws, blocks):
    """Return the share of steps at which each block moved, (chains, blocks), of draws that begin with the start."""
    moved = draws[:, 1:] != draws[:, :-1]
    n_moves = np.stack([np.count_nonzero(moved[:, :, block].any(axis=2), axis=1) for block in blocks], axis=1)
    return n_moves / max(moved.shape[1], 1)


def _sample(model, walk, state, n_draws, progress):
    chains, repeated = len(state.theta), state.n_beyond
    n_rows, done, complete = repeated + n_draws, 0, True
    theta, logp = np.empty((chains, n_rows + 1, walk.dim)), np.empty((chains, n_rows))
    theta[:, 0] = state.theta
    try:
        with progress_bar(progress, max(state.tune - state.n_steps, 0) + n_rows, "progress") as show:
            while state.n_steps < state.tune:
                before, state = state.n_steps, _tune(walk, state)
                theta[:, 0] = state.theta
                show(state.n_steps - before, lambda: "tuning")
            while done < n_rows:
                n_steps = min(walk.chunk, n_rows - done)
                part = slice(done, done + n_steps)
                after = _advance(walk, state, theta[:, 1:][:, part], logp[:, part])
                is_whole = n_steps == walk.chunk
                state, done = after if is_whole else replace(state, n_beyond=n_steps), done + n_steps
                show(n_steps, lambda part=part: f"log-density {logp[:, part].mean():.5g}")
    except KeyboardInterrupt:
        complete = False
    accept = _share_of_moves(theta[:, repeated : 1 + done], walk.blocks)
    stuck = np.flatnonzero(np.any(accept == 0, axis=0) & _moves(walk))
    if len(stuck) and done - repeated >= MIN_STUCK:
        warn_of_accuracy(f"no move of block {stuck[0]} was accepted, its scale is far too large: tune for more steps")
    return MetropolisResult(
        model=model,
        theta=theta[:, 1 + repeated : 1 + done],
        logp=logp[:, repeated:done],
        accept=accept,
        scales=state.scales,
        n_steps=state.n_steps + state.n_beyond,
        complete=complete,
        state=state,
    )


def metropolis(
    model: Any,
    draws: int = 1000,
    tune: int | None = None,
    chains: int | None = None,
    *,
    start: ArrayLike | None = None,
    rng: Seed = None,
    progress: bool = False,
    state: MetropolisState | None = None,
    backend: str | None = None,
) -> MetropolisResult:
    r"""Draw from a posterior by random-walk Metropolis.

    At each step each block of parameters in turn gets a proposal, :math:`\theta_b + s_b z` with standard normal z,
    which is accepted with probability

    .. math:: \min\left(1, \frac{p(\theta' \mid x)}{p(\theta \mid x)}\right).

    During the tuning, each :math:`s_b`, at first 1, is changed every 100 steps by the table that PyMC uses, until 20 to
    50 % are accepted; after it, it stays. The chains of a `MixtureModel` run on threads, and have the same bits for any
    number of them.

    Parameters
    ----------
    model : MixtureModel or object or function
        An object has ``dim``, P, and ``logp(theta)``, the log-density of unconstrained parameters (P,), or
        ``logp_grad(theta)``, that and its gradient, or ``logp_grad(theta, batch)``, as `advi` takes it, which is
        called for all rows; optionally ``blocks``, slices of the parameters that move together (else each moves alone),
        ``start(rng)`` and ``constrain(theta)``. A function of parameters alone, of either kind, needs `start`.
    draws : int
        Draws of each chain.
    tune : int
        Steps before them, 500 by default.
    chains : int
        Number of chains, 2 by default.
    start : array_like, shape (P,) or (chains, P), optional
        Where chains begin. Else all begin at a mode: the highest one that L-BFGS finds from four of ``model.start``,
        or from draws of a standard normal. Modes at which a standard deviation of a `MixtureModel` is a thousandth of
        that of the data are passed over, where a component has collapsed on a row; if there is no other, chains begin
        at ``model.start``.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.
    progress : bool
        Show a progress bar; needs rich.
    state : MetropolisState, optional
        Of an earlier result of the same model, to go on from, with its chains, scales and seed, and what is left
        of its tuning; then none of `tune`, `chains`, `start` and `rng` may be given. The draws are those, to the last
        bit, that the earlier run would have given next.
    backend : str, optional
        The kernel set, as in `use_backend`; the draws are the same under each, up to rounding.

    Returns
    -------
    MetropolisResult
        After Ctrl-C during the steps, that of the draws until then, as many of each chain, with ``complete`` False.

    Raises
    ------
    ValueError
        If an argument is out of range or of the wrong shape, or the density is not finite at the start.
    TypeError
        If the model has no log-density, or `state` comes with what it brings itself.

    Warns
    -----
    AccuracyWarning
        If in a thousand draws or more a block of parameters never moved.

    References
    ----------
    Metropolis, Rosenbluth, Rosenbluth, Teller & Teller (1953), Equation of state calculations by fast computing
    machines, Journal of Chemical Physics 21. Salvatier, Wiecki & Fonnesbeck (2016), Probabilistic programming in Python
    using PyMC3, PeerJ Computer Science 2, for the table.

    Examples
    --------
    >>> from fastdiv import Mixture, MixtureModel, metropolis
    >>> X = Mixture([0.2, 0.8], [[-3, -3], [3, 3]], [[1, 1], [1, 1]]).sample(500, rng=0)
    >>> model = MixtureModel(X, 2, mean_prior_scale=5.0)
    >>> result = metropolis(model, 5000, rng=0)
    >>> sorted(result.samples["weights"].mean(axis=(0, 1)).round(1).tolist())
    [0.2, 0.8]
    >>> more = metropolis(model, 1000, state=result.state)
    >>> more.n_steps
    6500

    Any density will do:

    >>> normal = metropolis(lambda theta: -0.5 * float(theta @ theta), 4000, start=[0.0], rng=0)
    >>> bool(abs(normal.theta.std() - 1) < 0.1)
    True
    """
    draws = as_count(draws, "draws", 1)
    if state is not None:
        if not isinstance(state, MetropolisState):
            raise TypeError(f"state must be that of a MetropolisResult, got {state!r}")
        if any(given is not None for given in (tune, chains, start, rng)):
            raise TypeError("state brings its own tune, chains, start and rng: give none of them with it")
        chains = len(state.theta)
    else:
        tune = TUNE if tune is None else as_count(tune, "tune", 0)
        chains = CHAINS if chains is None else as_count(chains, "chains", 1)
    if isinstance(model, MixtureModel):
        walk = _MixtureWalk(model, chains, backend)
    else:
        walk = _PythonWalk(model, chains, start if state is None else state.theta)
    if state is None:
        state = _begin(walk, tune, chains, start, rng)
    elif (state.theta.shape[1], state.scales.shape[1]) != (walk.dim, len(walk.blocks)):
        raise ValueError(
            f"state must be of a model with {walk.dim} parameters in {len(walk.blocks)} blocks, got one with "
            f"{state.theta.shape[1]} in {state.scales.shape[1]}"
        )
    return _sample(model, walk, state, draws, progress)
