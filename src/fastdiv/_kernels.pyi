from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "advi_mixture_steps",
    "column_moments",
    "log_ratio_moments",
    "logistic_newton_pass",
    "logistic_newton_steps",
    "logistic_sgd_epoch",
    "logsumexp_rows",
    "merge_moments",
    "metropolis_mixture_steps",
    "mixture_logpdf",
    "mixture_logpdf_diag",
    "mixture_logpdf_full",
    "mixture_model_logp_grad",
    "mixture_score",
    "mixture_score_diag",
    "mixture_score_full",
    "mlp_epoch",
    "mlp_log_odds",
    "neighbor_distances",
    "radix_sort",
    "trapezoid_cross_entropy",
    "trapezoid_kl",
]

_F = TypeVar("_F", np.float32, np.float64)

def advi_mixture_steps(
    x: NDArray[_F],
    rows: NDArray[np.intp],
    noise: NDArray[np.float64],
    whitener: NDArray[np.float64],
    concentration: NDArray[np.float64],
    prior: NDArray[np.float64],
    solver: int,
    learning_rate: float,
    momentum: float,
    decay: float,
    epsilon: float,
    n_steps: int,
    phi: NDArray[np.float64],
    state: NDArray[np.float64],
    losses: NDArray[np.float64],
) -> None: ...
def column_moments(
    X: NDArray[_F],
    sample_weight: NDArray[_F],
    means: NDArray[np.float64],
    squares: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def log_ratio_moments(log_p: NDArray[_F], log_q: NDArray[_F], out: NDArray[np.float64]) -> None: ...
def logistic_newton_pass(
    X: NDArray[_F],
    centre: NDArray[_F],
    scale: NDArray[_F],
    y: NDArray[_F],
    sample_weight: NDArray[_F],
    coef: NDArray[_F],
    sums: NDArray[np.float64],
    hessian: NDArray[np.float64],
    squares: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def logistic_newton_steps(
    X: NDArray[_F],
    centre: NDArray[_F],
    scale: NDArray[_F],
    y: NDArray[_F],
    sample_weight: NDArray[_F],
    ridge: NDArray[np.float64],
    mass: float,
    tol: float,
    slack: float,
    metric: NDArray[np.float64],
    coef: NDArray[np.float64],
    step: NDArray[np.float64],
    sums: NDArray[np.float64],
    hessian: NDArray[np.float64],
    squares: NDArray[np.float64],
    out: NDArray[np.float64],
    losses: NDArray[np.float64],
    state: NDArray[np.float64],
) -> None: ...
def logistic_sgd_epoch(
    X: NDArray[_F],
    centre: NDArray[_F],
    scale: NDArray[_F],
    y: NDArray[_F],
    sample_weight: NDArray[_F],
    permutation: NDArray[np.intp],
    batch_size: int,
    learning_rate: float,
    power_t: float,
    momentum: float,
    alpha: float,
    n_steps: int,
    coef: NDArray[_F],
    velocity: NDArray[_F],
    coef_sum: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def logsumexp_rows(a: NDArray[_F], out: NDArray[_F]) -> None: ...
def merge_moments(other: NDArray[np.float64], out: NDArray[np.float64]) -> None: ...
def metropolis_mixture_steps(
    x: NDArray[_F],
    noise: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    scales: NDArray[np.float64],
    whitener: NDArray[np.float64],
    concentration: NDArray[np.float64],
    prior: NDArray[np.float64],
    theta: NDArray[np.float64],
    terms: NDArray[np.float64],
    draws: NDArray[np.float64],
    logps: NDArray[np.float64],
    accepted: NDArray[np.float64],
) -> None: ...
def mixture_logpdf(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], stds: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mixture_logpdf_diag(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], stds: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mixture_logpdf_full(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], whiteners: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mixture_model_logp_grad(
    x: NDArray[_F],
    rows: NDArray[np.intp],
    whitener: NDArray[np.float64],
    concentration: NDArray[np.float64],
    prior: NDArray[np.float64],
    theta: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def mixture_score(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], stds: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mixture_score_diag(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], stds: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mixture_score_full(
    x: NDArray[_F], log_weights: NDArray[_F], means: NDArray[_F], whiteners: NDArray[_F], out: NDArray[_F]
) -> None: ...
def mlp_epoch(
    X: NDArray[_F],
    y: NDArray[_F],
    sample_weight: NDArray[_F],
    permutation: NDArray[np.intp],
    batch_size: int,
    layer_sizes: NDArray[np.intp],
    activation: int,
    solver: int,
    learning_rate: float,
    momentum: float,
    decay: float,
    epsilon: float,
    alpha: float,
    n_steps: int,
    params: NDArray[_F],
    velocity: NDArray[_F],
    square: NDArray[_F],
    out: NDArray[np.float64],
) -> None: ...
def mlp_log_odds(
    X: NDArray[_F], layer_sizes: NDArray[np.intp], activation: int, params: NDArray[_F], out: NDArray[_F]
) -> None: ...
def neighbor_distances(
    points: NDArray[_F], x: NDArray[_F], k: int, out: NDArray[_F], following: NDArray[_F]
) -> None: ...
def radix_sort(values: NDArray[_F], scratch: NDArray[_F], out: NDArray[_F]) -> None: ...
def trapezoid_cross_entropy(
    locs: NDArray[_F],
    scales: NDArray[_F],
    mass: NDArray[_F],
    lower: float,
    upper: float,
    log_weights: NDArray[_F],
    means: NDArray[_F],
    stds: NDArray[_F],
    out: NDArray[np.float64],
) -> None: ...
def trapezoid_kl(
    log_weights_p: NDArray[_F],
    means_p: NDArray[_F],
    stds_p: NDArray[_F],
    log_weights_q: NDArray[_F],
    means_q: NDArray[_F],
    stds_q: NDArray[_F],
    lower: float,
    upper: float,
    num: int,
    start: int,
    stop: int,
    out: NDArray[np.float64],
) -> None: ...
def ready(
    kernel: Callable[..., None], parameters: Iterable[NDArray[np.float64]]
) -> tuple[Callable[..., None], tuple[memoryview, ...]]: ...
