"""The Bayesian Gaussian mixture: data, priors, and the posterior density of its unconstrained parameters."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_count, as_float_array, as_rng
from ._backend import kernels
from .distributions import FLOAT64, Mixture, MultivariateNormal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._arrays import ArrayLike, NDArray, Seed

__all__ = ["MixtureModel"]

SCALE_PRIORS = {"half-normal": 1, "inverse-gamma": 2}
START_ROWS = 1000
NO_ROWS = np.empty(0, dtype=np.intp)
LOG_2PI = math.log(2 * math.pi)
# Of a prior's numbers: with squares and logarithms of gamma functions, and their products, there is room in float64.
LEAST, MOST = 1e-100, 1e100


def _positive(value, name, shape):
    array = as_float_array(value, name).astype(np.float64)
    if array.shape not in ((), shape) or not np.all((array >= LEAST) & (array <= MOST)):
        wanted = "a positive number" if shape == () else f"positive, a number or an array of shape {shape}"
        raise ValueError(f"{name} must be {wanted}, from {LEAST:g} to {MOST:g}, got {array.tolist()}")
    return np.array(np.broadcast_to(array, shape))


def _checked_data(X):
    X = as_float_array(X, "X")
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must have rows and columns, got an array of shape {X.shape}")
    if not np.all(np.isfinite(X)):
        raise ValueError("X must be finite, got NaN or infinity")
    return np.array(X, order="C")


def _scale_prior(prior):
    """Return the kernels' code of a prior of standard deviations, its two numbers, and its log norm."""
    if not (isinstance(prior, tuple) and prior and prior[0] in tuple(SCALE_PRIORS)):
        wanted = "('half-normal', scale) or ('inverse-gamma', shape, scale)"
        raise ValueError(f"scale_prior must be {wanted}, got {prior!r}")
    name, *numbers = prior
    if len(numbers) != SCALE_PRIORS[name]:
        raise ValueError(f"scale_prior must have {SCALE_PRIORS[name]} after {name!r}, got {numbers}")
    first, second = (float(_positive(number, "scale_prior", ())) for number in [*numbers, 1.0][:2])
    if name == "half-normal":
        return SCALE_PRIORS[name], first**-2, 0.0, math.log(2) - LOG_2PI / 2 - math.log(first)
    return SCALE_PRIORS[name], first, second, first * math.log(second) - math.lgamma(first)


class MixtureModel:
    r"""Bayesian mixture of Gaussians with the labels summed out.

    .. math::

        w \sim \mathrm{Dirichlet}(\alpha), \quad \mu_k \sim N(0, s^2 I), \quad
        x_n \sim \sum_k w_k\, N(\mu_k, \Sigma_k),

    with one known covariance for all components, or an unknown diagonal one for each. Samplers and variational fits
    see its unconstrained parameters theta: the weights' K-1 sticks (`transforms.StickBreaking`), the means row by row,
    and the logarithms of the standard deviations where these are unknown. The density of theta has the Jacobian in it.

    Parameters
    ----------
    X : array_like, shape (n, D)
        Data, float32 or float64.
    n_components : int
        K.
    cov : {"identity", "diag"} or array_like, shape (D, D) or (D,)
        The components' covariance, or variances, if it is known; "diag" for standard deviations to be found, of each
        component its own.
    mean_prior_scale : float
        s, positive; as all numbers of priors from 1e-100 to 1e100.
    concentration : float or array_like, shape (K,)
        :math:`\alpha`, positive; one number stands for K equal ones.
    scale_prior : tuple
        Prior of the standard deviations, for ``cov="diag"``: ``("half-normal", scale)`` or
        ``("inverse-gamma", shape, scale)``.

    Attributes
    ----------
    dim : int
        Number of unconstrained parameters, P.
    n_rows, n_features, n_components : int
        n, D and K.
    blocks : list of slice
        Parameters that belong together: the sticks, each mean, the logarithms of each component's stds.

    Raises
    ------
    ValueError
        If the data are empty or not finite, or a parameter is out of range or has the wrong shape.
    TypeError
        If a parameter is not real, or `n_components` not whole.

    References
    ----------
    Bishop (2006), Pattern Recognition and Machine Learning, sections 9.2 and 10.2.

    Examples
    --------
    >>> import numpy as np
    >>> from fastdiv import MixtureModel
    >>> model = MixtureModel([[-2.0, 0.0], [-1.5, 0.5], [2.0, 1.0]], 2, mean_prior_scale=3.0)
    >>> model.dim
    5
    >>> logp, grad = model.logp_grad(np.zeros(5))
    >>> round(logp, 6), grad.round(6).tolist()
    (-20.720129, [0.0, -0.75, 0.75, -0.75, 0.75])
    """

    def __init__(
        self,
        X: ArrayLike,
        n_components: int,
        cov: str | ArrayLike = "identity",
        *,
        mean_prior_scale: float = 1.0,
        concentration: float | ArrayLike = 1.0,
        scale_prior: tuple = ("half-normal", 1.0),
    ) -> None:
        self.X = _checked_data(X)
        self.n_components = as_count(n_components, "n_components", 1)
        self.n_rows, self.n_features = n, n_dims = self.X.shape
        n_means = self.n_components * n_dims
        self._concentration = _positive(concentration, "concentration", (self.n_components,))
        scale = float(_positive(mean_prior_scale, "mean_prior_scale", ()))
        if isinstance(cov, str) and cov not in ("identity", "diag"):
            raise ValueError(f"cov must be 'identity', 'diag' or an array of shape {(n_dims, n_dims)}, got {cov!r}")
        self.has_scales = isinstance(cov, str) and cov == "diag"
        constant = math.lgamma(self._concentration.sum()) - math.fsum(map(math.lgamma, self._concentration))
        constant -= n_means * (LOG_2PI / 2 + math.log(scale)) + n * n_dims * LOG_2PI / 2
        code, first, second, log_norm = _scale_prior(scale_prior)
        if not self.has_scales:
            code = log_norm = 0
        constant += n_means * log_norm
        self.cov = None if self.has_scales else np.eye(n_dims)
        self._whitener, self._rows = np.eye(n_dims), self.X
        if not isinstance(cov, str):
            cov = as_float_array(cov, "cov")
            gaussian = MultivariateNormal(np.zeros(n_dims), np.diag(cov) if cov.ndim == 1 else cov)
            self.cov, self._whitener = gaussian.covs[0], gaussian.kernel_parameters(FLOAT64)[2][0]
            self._rows = np.ascontiguousarray(self.X @ self._whitener.T)
            constant += n * float(np.sum(np.log(np.diag(self._whitener))))
        self._prior = np.array([code, scale**-2, first, second, constant])
        self.blocks = [slice(0, self.n_components - 1)]
        for _ in range(self.n_components * (1 + self.has_scales)):
            self.blocks.append(slice(self.blocks[-1].stop, self.blocks[-1].stop + n_dims))
        self.dim = self.blocks[-1].stop

    def __repr__(self):
        cov = "'diag'" if self.has_scales else "known"
        return f"MixtureModel({self.n_rows} rows in {self.n_features}, {self.n_components} components, cov {cov})"

    def kernel_parameters(self) -> tuple[NDArray, ...]:
        """Return what the kernels take of the model: rows, then whitener, concentration and prior."""
        return self._rows, self._whitener, self._concentration, self._prior

    def logp_grad(
        self, theta: ArrayLike, batch: ArrayLike | None = None, *, backend: str | None = None
    ) -> tuple[float, NDArray[np.float64]]:
        """Log-density of unconstrained parameters, and its gradient.

        Parameters
        ----------
        theta : array_like, shape (P,)
            Unconstrained parameters.
        batch : array_like of int, optional
            Rows of a mini-batch: their log-likelihood counts n / len(batch) times, which leaves the sum over all rows
            as its mean over batches.
        backend : str, optional
            The kernel set, as in `use_backend`.

        Returns
        -------
        logp : float
            In nats, with every constant: the integral over theta is the evidence.
        grad : ndarray, shape (P,)

        Raises
        ------
        ValueError
            If `theta` does not have shape (P,), or a row is not there.

        Examples
        --------
        >>> from fastdiv import MixtureModel
        >>> logp, grad = MixtureModel([[0.0], [1.0]], 1).logp_grad([0.5], batch=[0, 0])
        >>> round(logp, 6), grad
        (-3.131816, array([-1.5]))
        """
        theta = np.ascontiguousarray(self._checked(theta, (self.dim,)))
        rows = NO_ROWS
        if batch is not None:
            rows = np.asarray(batch)
            if rows.dtype.kind not in "iu" and rows.size:
                raise TypeError(f"batch must be row numbers, got an array of dtype {rows.dtype}")
            rows = np.ascontiguousarray(rows, dtype=np.intp)
            if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= self.n_rows:
                raise ValueError(f"batch must be some of the rows 0 to {self.n_rows - 1}, got {batch!r}")
        out = np.empty(self.dim + 1)
        x, *parameters = self.kernel_parameters()
        kernels(backend).mixture_model_logp_grad(x, rows, *parameters, theta, out)
        return float(out[0]), out[1:]

    def to_logp_grad(self) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
        """Return the compiled density as a plain function of theta, for samplers of other libraries.

        Examples
        --------
        >>> import numpy as np
        >>> from fastdiv import MixtureModel
        >>> model = MixtureModel([[0.0], [1.0]], 1)
        >>> logp_grad = model.to_logp_grad()
        >>> logp_grad(np.array([0.5]))[1]
        array([-0.5])

        NUTS by nutpie, where weights have the shape (1,) and means (1, 1):

        >>> import nutpie  # doctest: +SKIP
        >>> compiled = nutpie.compiled_pyfunc.from_pyfunc(  # doctest: +SKIP
        ...     model.dim, model.to_logp_grad, lambda *_: model.constrain, ["float64"] * 2, [(1,), (1, 1)],
        ...     ["weights", "means"], make_initial_point_fn=model.start,
        ... )
        >>> trace = nutpie.sample(compiled, progress_bar=False, seed=0)  # doctest: +SKIP
        >>> bool(abs(trace.posterior["means"].mean() - 1 / 3) < 0.1)  # doctest: +SKIP
        True

        NUTS by BlackJAX:

        >>> import blackjax, jax  # doctest: +SKIP
        >>> jax.config.update("jax_enable_x64", True)  # doctest: +SKIP
        >>> def called(theta):  # doctest: +SKIP
        ...     shapes = jax.ShapeDtypeStruct((), theta.dtype), theta
        ...     return jax.pure_callback(logp_grad, shapes, theta, vmap_method="sequential")
        >>> logp = jax.custom_vjp(lambda theta: called(theta)[0])  # doctest: +SKIP
        >>> logp.defvjp(called, lambda grad, scale: (scale * grad,))  # doctest: +SKIP
        >>> tuning, steps = jax.random.split(jax.random.key(0))  # doctest: +SKIP
        >>> adaptation = blackjax.window_adaptation(blackjax.nuts, logp)  # doctest: +SKIP
        >>> (state, tuned), _ = adaptation.run(tuning, model.start(0), 1000)  # doctest: +SKIP
        >>> nuts = blackjax.nuts(logp, **tuned)  # doctest: +SKIP
        >>> _, (states, _) = blackjax.util.run_inference_algorithm(steps, nuts, 1000, state)  # doctest: +SKIP
        >>> draws = model.constrain(np.asarray(states.position))  # doctest: +SKIP
        >>> bool(abs(draws["means"].mean() - 1 / 3) < 0.1)  # doctest: +SKIP
        True
        """
        x, *parameters = self.kernel_parameters()
        kernel = kernels().mixture_model_logp_grad

        def logp_grad(theta):
            theta = np.ascontiguousarray(self._checked(theta, (self.dim,)))
            out = np.empty(self.dim + 1)
            kernel(x, NO_ROWS, *parameters, theta, out)
            return float(out[0]), out[1:]

        return logp_grad

    def constrain(self, theta: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Return the weights (..., K), means (..., K, D) and, where unknown, stds (..., K, D) of theta (..., P).

        Examples
        --------
        >>> from fastdiv import MixtureModel
        >>> MixtureModel([[0.0], [1.0]], 2).constrain([0.0, -1.0, 1.0])
        {'weights': array([0.5, 0.5]), 'means': array([[-1.],
               [ 1.]])}
        """
        from .transforms import StickBreaking

        theta = self._checked(theta, None)
        sticks = theta[..., : self.n_components - 1]
        weights = StickBreaking().forward(sticks) if self.n_components > 1 else np.ones((*theta.shape[:-1], 1))
        shape = (*theta.shape[:-1], self.n_components, self.n_features)
        size = self.n_components * self.n_features
        found = {"weights": weights, "means": theta[..., self.n_components - 1 :][..., :size].reshape(shape)}
        if self.has_scales:
            found["stds"] = np.exp(theta[..., self.dim - size :]).reshape(shape)
        return found

    def unconstrain(self, weights: ArrayLike, means: ArrayLike, stds: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return theta (..., P) of weights (..., K), means (..., K, D) and, where unknown, stds (..., K, D).

        Raises
        ------
        ValueError
            If shapes do not match, or weights or stds are out of range.
        TypeError
            If stds are missing, or given where the covariance is known.

        Examples
        --------
        >>> from fastdiv import MixtureModel
        >>> MixtureModel([[0.0], [1.0]], 2).unconstrain([0.5, 0.5], [[-1.0], [1.0]])
        array([ 0., -1.,  1.])
        """
        from .transforms import StickBreaking

        if (stds is not None) != self.has_scales:
            raise TypeError(f"stds must be given if and only if cov is 'diag', got {stds!r}")
        weights, means = (as_float_array(value, name) for value, name in ((weights, "weights"), (means, "means")))
        shape = (*weights.shape[:-1], self.n_components, self.n_features)
        if weights.shape[-1:] != (self.n_components,) or means.shape != shape:
            got = f"{weights.shape} and {means.shape}"
            raise ValueError(f"weights and means must have shapes (..., K) and (..., K, D), got {got}")
        if not np.all(np.abs(weights.sum(axis=-1) - 1) < 1e-8) or not np.all(weights > 0):
            raise ValueError(f"weights must be positive and sum to 1, got {weights}")
        if not np.all(np.isfinite(means)):
            raise ValueError(f"means must be finite, got {means}")
        parts = [means.reshape(*shape[:-2], -1)]
        if self.n_components > 1:
            parts.insert(0, StickBreaking().inverse(weights))
        if self.has_scales:
            stds = as_float_array(stds, "stds")
            if stds.shape != shape or not np.all((stds > 0) & np.isfinite(stds)):
                raise ValueError(f"stds must be positive and have the shape of means, {shape}, got {stds}")
            parts.append(np.log(stds).reshape(*shape[:-2], -1))
        return np.concatenate(parts, axis=-1).astype(np.float64)

    def in_order(self, theta: ArrayLike, order: ArrayLike) -> NDArray[np.float64]:
        """Return theta (..., P) with the components in another order, (..., K).

        Weights stay in logarithms, so that none is lost that underflows.

        Examples
        --------
        >>> from fastdiv import MixtureModel
        >>> MixtureModel([[0.0], [1.0]], 2).in_order([2.0, -1.0, 1.0], [1, 0])
        array([-2.,  1., -1.])
        """
        from .transforms import StickBreaking

        theta, order = self._checked(theta, None), np.asarray(order)
        n_sticks = self.n_components - 1
        rest = theta[..., n_sticks:].reshape(*theta.shape[:-1], 1 + self.has_scales, self.n_components, self.n_features)
        rest = np.take_along_axis(rest, order[..., None, :, None], axis=-2)
        rest = rest.reshape(*theta.shape[:-1], self.dim - n_sticks)
        if not n_sticks:
            return rest
        log_weights = np.take_along_axis(StickBreaking().log_forward(theta[..., :n_sticks]), order, axis=-1)
        beyond = np.logaddexp.accumulate(log_weights[..., ::-1], axis=-1)[..., ::-1][..., 1:]
        sticks = log_weights[..., :-1] - beyond + np.log(np.arange(n_sticks, 0, -1))
        return np.concatenate([sticks, rest], axis=-1)

    def to_mixture(self, theta: ArrayLike) -> Mixture:
        """Return the mixture of one theta (P,), as a distribution."""
        found = self.constrain(self._checked(theta, (self.dim,)))
        if self.has_scales:
            return Mixture(**found)
        return Mixture(**found, covs=np.broadcast_to(self.cov, (self.n_components, *self.cov.shape)))

    def start(self, rng: Seed = None) -> NDArray[np.float64]:
        """Return a theta to begin from: equal weights, and the means of rows about K that lie far apart.

        A row is chosen the more probably, the farther it is from those before (Arthur & Vassilvitskii 2007); of many
        rows a thousand are looked at.
        """
        rng = as_rng(rng)
        some = rng.choice(self.n_rows, START_ROWS, replace=False) if self.n_rows > START_ROWS else slice(None)
        rows = self.X[some].astype(np.float64)
        squares = np.full((self.n_components, len(rows)), np.inf)
        for k in range(self.n_components):
            nearest = squares.min(axis=0)
            far = np.isfinite(nearest).all() and nearest.sum() > 0
            chosen = rng.choice(len(rows), p=nearest / nearest.sum() if far else None)
            squares[k] = np.sum((rows - rows[chosen]) ** 2, axis=1)
        labels = squares.argmin(axis=0)
        means = [rows[labels == k].mean(axis=0) if k in labels else rows[0] for k in range(self.n_components)]
        parts = [np.zeros(self.n_components - 1), np.ravel(means)]
        if self.has_scales:
            spread = math.sqrt(max(squares.min(axis=0).mean() / self.n_features, np.finfo(np.float64).tiny))
            parts.append(np.full(parts[1].size, math.log(spread)))
        return np.concatenate(parts)

    def _checked(self, theta, shape):
        theta = as_float_array(theta, "theta").astype(np.float64, copy=False)
        if theta.shape[-1:] != (self.dim,) or (shape is not None and theta.shape != shape):
            raise ValueError(f"theta must have shape {shape or f'(..., {self.dim})'}, got {theta.shape}")
        return theta


def logp_grad_of(model):
    """Return any model's log-density with its gradient, whether Numba has compiled it, and whether it takes rows.

    The model is an object that has it, or itself the function.
    """
    function = getattr(model, "logp_grad", model)
    is_compiled = hasattr(function, "py_func")
    try:
        parameters = inspect.signature(function.py_func if is_compiled else function).parameters.values()
    except (TypeError, ValueError):
        # Of functions written in C.
        parameters = ()
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    # A second argument with another default is not rows.
    return function, is_compiled, any(each.default is each.empty or each.default is None for each in by_place[1:2])


def logp_grad_by_all_rows(model, backend=None):
    """Return a model's log-density with its gradient, as a function of the parameters alone."""
    if isinstance(model, MixtureModel):
        return partial(model.logp_grad, backend=backend)
    function, is_compiled, takes_rows = logp_grad_of(model)
    if not takes_rows:
        return function
    if is_compiled and not hasattr(model, "n_rows"):
        raise TypeError("a compiled log-density of parameters and rows needs model.n_rows, their number")
    rows = np.arange(model.n_rows) if is_compiled else None
    return lambda theta: function(theta, rows)
