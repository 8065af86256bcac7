"""What a distribution is; Gaussian mixtures, their moments and samples. A Gaussian is a mixture of one."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import FLOAT64, as_count, as_float_array, as_rng
from ._backend import kernels, map_blocks, ready

if TYPE_CHECKING:
    from ._arrays import ArrayLike, Floats, NDArray, Seed
    from .estimate import Estimate

__all__ = ["Distribution", "Mixture", "MultivariateNormal", "Normal"]


def _parameter(value, name, ndim):
    array = as_float_array(value, name).astype(np.float64, order="C")
    if array.ndim not in ndim:
        wanted = " or ".join(map(str, ndim))
        raise ValueError(f"{name} must have {wanted} dimensions, got an array of shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    array.setflags(write=False)
    return array


# Of the quantiles between which a density is looked for.
LEVELS = np.array([1e-12, 1e-8, 1e-5, 1e-3, *np.linspace(0.01, 0.99, 15), 1 - 1e-3, 1 - 1e-5, 1 - 1e-8, 1 - 1e-12])


def as_shape(shape):
    """Return a shape of samples as a tuple of whole numbers."""
    return tuple(as_count(n, "shape", 0) for n in (shape if isinstance(shape, tuple | list) else (shape,)))


def _checked_weights(weights):
    weights = _parameter(weights, "weights", (1,))
    total = math.fsum(weights)
    if weights.size == 0:
        raise ValueError("weights must not be empty")
    if np.any(weights < 0):
        raise ValueError(f"weights must not be negative, got {weights.tolist()}")
    if abs(total - 1) > 1e-8:
        raise ValueError(f"weights must sum to 1, got a sum of {total!r}")
    weights = weights / total
    weights.setflags(write=False)
    return weights


def _checked_scales(stds, shape, name):
    stds = _parameter(stds, name, (len(shape),))
    if stds.shape != shape:
        raise ValueError(f"{name} must have the shape of means, {shape}, got {stds.shape}")
    if np.any(stds < np.finfo(np.float64).tiny):
        raise ValueError(f"{name} must be positive, got {stds.tolist()}")
    return stds


def _checked_choleskys(covs, shape, name="covs"):
    """Return covariances and their Cholesky factors; `shape` is that of the means, in a batch or, for cov, alone."""
    covs = _parameter(covs, name, (len(shape) + 1,))
    if covs.shape != (*shape, shape[-1]):
        raise ValueError(f"{name} must have shape {(*shape, shape[-1])}, got {covs.shape}")
    deviations = np.sqrt(np.abs(np.diagonal(covs, axis1=-2, axis2=-1)))
    if np.any(np.abs(covs - covs.mT) > 1e-10 * deviations[..., :, None] * deviations[..., None, :]):
        raise ValueError(f"{name} must be symmetric, got {covs.tolist()}")
    covs = (covs + covs.mT) / 2
    covs.setflags(write=False)
    try:
        choleskys = np.linalg.cholesky(covs)
    except np.linalg.LinAlgError:
        raise ValueError(f"{name} must be positive definite, got {covs.tolist()}") from None
    choleskys.setflags(write=False)
    return covs, choleskys


def _inverse_triangles(choleskys):
    from scipy.linalg.lapack import dtrtri

    return np.array([dtrtri(cholesky, lower=1)[0] for cholesky in choleskys], order="C")


def _of_shape(out, shape, dtype):
    """Return a result as the caller has its points: a number for a number."""
    if out.dtype is not dtype:
        with np.errstate(over="ignore"):
            out = out.astype(dtype, copy=False)
    return out if out.shape == shape else out.reshape(shape)[()]


class Distribution:
    """A density on the line or in D dimensions: what the divergences ask of p and q.

    A subclass gives `event_shape`, `logpdf`, `score` and `sample`, `support` where that is not everything, and on the
    line `cdf` and `quantile` where it has them.

    Attributes
    ----------
    event_shape : tuple
        () on the line, (D,) in D dimensions.
    """

    event_shape: tuple[int, ...] = ()

    @property
    def support(self) -> tuple[float, float] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end of where the density is positive: floats, or in D dimensions arrays of shape (D,)."""
        if not self.event_shape:
            return -math.inf, math.inf
        return np.full(self.event_shape, -np.inf), np.full(self.event_shape, np.inf)

    @cached_property
    def landmarks(self):
        """Points on the line around which the density changes, in order, for quadrature to break at."""
        if hasattr(self, "quantile"):
            marks = np.asarray(self.quantile(LEVELS), np.float64)
            return marks[np.isfinite(marks)]
        return np.quantile(self.sample(999, rng=0), LEVELS)

    def logpdf(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Logarithm of the density: -inf outside the support, NaN for NaN."""
        raise NotImplementedError

    def score(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Gradient of the log-density in x, 0 outside the support."""
        raise NotImplementedError

    def sample(self, shape: int | tuple[int, ...] = (), *, rng: Seed = None) -> Floats:
        """Draw independent samples."""
        raise NotImplementedError

    def logpdf_into(self, x, out, module, origin=None, backend=None):
        """Write the log-density at contiguous points, given less `origin`, into `out`; `module` is the backend's."""
        out[:] = self.logpdf(x if origin is None else x + origin, backend=backend)

    def log_prob(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Logarithm of the density, as `logpdf`."""
        return self.logpdf(x, backend=backend)

    def pdf(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Density; parameters as in `logpdf`.

        Examples
        --------
        >>> from fastdiv import Normal
        >>> Normal(1, 2).pdf(1.0).round(6)
        np.float64(0.199471)
        """
        return np.exp(self.logpdf(x, backend=backend))

    def pdf_derivative(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Gradient of the density in x, the density times the score; 0 where there is no density.

        Parameters and result as those of `score`.

        Examples
        --------
        >>> from fastdiv import Normal
        >>> Normal().pdf_derivative([1.0, 2.0]).round(6)
        array([-0.241971, -0.107982])
        """
        score = self.score(x, backend=backend)
        density = np.asarray(self.pdf(x, backend=backend))
        if self.event_shape:
            density = density[..., None]
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            return np.where(density == 0, density, density * score)[()]


class Mixture(Distribution):
    r"""Mixture of Gaussians.

    Its density is :math:`\sum_k w_k\, N(x; \mu_k, \Sigma_k)`; the log-density is a logsumexp over the components,
    which stays finite where the density itself underflows.

    Parameters
    ----------
    weights : array_like, shape (K,)
        Not negative, sum 1 (to 1e-8; then divided by their sum).
    means : array_like, shape (K,) or (K, D)
        Of shape (K,) for a mixture on the line, (K, D) for one in D dimensions.
    stds : array_like, shape (K,) or (K, D)
        Standard deviations, positive, of the shape of `means`: in D dimensions, diagonal covariances.
    covs : array_like, shape (K, D, D), optional
        Full covariances, in place of `stds`.

    Attributes
    ----------
    weights, means, stds, covs : ndarray
        As given, as read-only float64. `stds` is None where `covs` was given, and the other way about.
    n_components : int
        K.
    event_shape : tuple
        () on the line, (D,) in D dimensions.

    Raises
    ------
    ValueError
        If the weights are negative or do not sum to 1, a standard deviation is not positive, a covariance not
        symmetric and positive definite, a parameter not finite, or the shapes do not match.
    TypeError
        If neither or both of `stds` and `covs` are given, or a parameter is not real.

    Examples
    --------
    >>> from fastdiv import Mixture
    >>> p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> p.logpdf(0.0).round(6)
    np.float64(-2.436436)
    >>> p.pdf([[-1.0, 0.0], [4.0, 9.0]]).round(6)
    array([[0.212769, 0.087472],
           [0.478731, 0.      ]])
    """

    def __init__(
        self, weights: ArrayLike, means: ArrayLike, stds: ArrayLike | None = None, *, covs: ArrayLike | None = None
    ) -> None:
        if (stds is None) == (covs is None):
            raise TypeError("give either stds or covs, got " + ("neither" if stds is None else "both"))
        self.weights = _checked_weights(weights)
        self.means = _parameter(means, "means", (1, 2) if covs is None else (2,))
        if len(self.means) != len(self.weights):
            raise ValueError(f"means must have {len(self.weights)} rows, one per weight, got {len(self.means)}")
        if self.means.ndim == 2 and self.means.shape[1] == 0:
            raise ValueError(f"means must have at least one column, got shape {self.means.shape}")
        self.event_shape = self.means.shape[1:]
        self.n_components = len(self.weights)
        if covs is None:
            self.covs = None
            self.stds = self._scales = _checked_scales(stds, self.means.shape, "stds")
            self._kernel = "mixture_logpdf_diag" if self.event_shape else "mixture_logpdf"
            scales = self._scales.copy()
        else:
            self.stds = None
            self.covs, self._scales = _checked_choleskys(covs, self.means.shape)
            self._kernel = "mixture_logpdf_full"
            scales = _inverse_triangles(self._scales)
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights)
        # Writable copies: Numba compiles anew for every mix of read-only arguments.
        self._parameters = log_weights, self.means.copy(), scales
        self._parameters32 = None
        self._ready = {}

    def __getstate__(self):
        return self.__dict__ | {"_ready": {}}

    def __repr__(self):
        spread = f"stds={_short(self.stds)}" if self.covs is None else f"covs={_short(self.covs)}"
        return f"Mixture({_short(self.weights)}, {_short(self.means)}, {spread})"

    def kernel_parameters(self, dtype):
        """Return (log weights, means, stds or inverse Cholesky factors), contiguous and of `dtype`."""
        if dtype == FLOAT64:
            return self._parameters
        if self._parameters32 is None:
            self._parameters32 = tuple(a.astype(np.float32) for a in self._parameters)
        return self._parameters32

    def ready(self, module):
        """Return the float64 log-density of a kernel set and its parameters, ready to be called many times."""
        if module not in self._ready:
            self._ready[module] = ready(module, self._kernel, self._parameters)
        return self._ready[module]

    @cached_property
    def extent(self):
        """Smallest mean, largest mean, and largest standard deviation on the line."""
        return float(self.means.min()), float(self.means.max()), float(self.stds.max())

    @cached_property
    def _survives_float32(self):
        """Whether parameters rounded to float32 move no standardised point by more than 1e-6."""
        scales = self._scales if self.covs is None else np.diagonal(self._scales, axis1=1, axis2=2)
        limits = np.finfo(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = np.abs(self.means.astype(np.float32) - self.means) > 1e-6 * scales
        largest = max(np.abs(self._scales).max(), np.abs(self._parameters[2]).max())
        return scales.min() > 2 * limits.tiny and largest < limits.max / 4 and not np.any(moved)

    @cached_property
    def landmarks(self):
        """Means, and one, three and nine standard deviations from them."""
        used = self.weights > 0
        return np.unique(self.means[used] + np.outer([0, 1, -1, 3, -3, 9, -9], self.stds[used]))

    def logpdf_into(self, x, out, module, origin=None, backend=None):
        """Write the log-density at contiguous points, given less `origin`, into `out`, on the calling thread."""
        if x.dtype == FLOAT64 and origin is None:
            kernel, parameters = self.ready(module)
            kernel(x, *parameters, out)
        else:
            log_weights, means, scales = self.kernel_parameters(x.dtype)
            means = means if origin is None else means - origin
            getattr(module, self._kernel)(x, log_weights, means, scales, out)

    def _points(self, x):
        """Return points as a contiguous array, (n,) or (n, D), of the dtype to compute in."""
        if self.event_shape and x.shape[-1:] != self.event_shape:
            raise ValueError(f"x must have shape (..., {self.event_shape[0]}), got {x.shape}")
        dtype = FLOAT64 if x.dtype == FLOAT64 or not self._survives_float32 else x.dtype
        points = np.ascontiguousarray(x, dtype=dtype)
        return points if points.ndim == len(self.event_shape) + 1 else points.reshape(-1, *self.event_shape)

    def logpdf(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Logarithm of the density.

        Parameters
        ----------
        x : array_like, shape (...) or (..., D)
            Points. NaN gives NaN, ±inf gives -inf.
        backend : str, optional
            The kernel set, as in `use_backend`.

        Returns
        -------
        float or ndarray, shape (...)
            In nats; float32 for float32 points, else float64.

        Raises
        ------
        ValueError
            If the last axis of `x` does not have the mixture's D.
        TypeError
            If `x` is not real.

        Examples
        --------
        >>> from fastdiv import Mixture
        >>> Mixture([1.0], [[0.0, 0.0]], [[1.0, 1.0]]).logpdf([[0.0, 0.0], [3.0, 4.0]]).round(6)
        array([ -1.837877, -14.337877])
        """
        module = kernels(backend)
        if isinstance(x, float) and not self.event_shape:
            # In place: each point is read before its density is written.
            point = np.array((x,))
            kernel, parameters = self.ready(module)
            kernel(point, *parameters, point)
            return point[0]
        x = as_float_array(x, "x")
        points = self._points(x)
        out = np.empty(len(points), dtype=points.dtype)
        map_blocks(lambda start, stop: self.logpdf_into(points[start:stop], out[start:stop], module), len(points))
        if self.covs is not None and np.isnan(np.min(out, initial=0)):
            # Infinite coordinates have met zeros of the Cholesky factor.
            out[np.isnan(out) & ~np.isnan(points).any(axis=1)] = -np.inf
        return _of_shape(out, x.shape[: x.ndim - len(self.event_shape)], x.dtype)

    log_prob = logpdf

    def score(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        r"""Gradient of the log-density in x.

        .. math:: \nabla \log p(x) = \sum_k r_k(x)\, \Sigma_k^{-1} (\mu_k - x)

        with the responsibilities :math:`r_k(x) = w_k N(x; \mu_k, \Sigma_k) / p(x)`.

        Parameters
        ----------
        x : array_like, shape (...) or (..., D)
            Points. NaN gives NaN; on the line ±inf gives ∓inf.
        backend : str, optional
            The kernel set, as in `use_backend`.

        Returns
        -------
        float or ndarray, of the shape of `x`
            In nats per unit of x; float32 for float32 points, else float64.

        Raises
        ------
        ValueError
            If the last axis of `x` does not have the mixture's D.
        TypeError
            If `x` is not real.

        Examples
        --------
        >>> from fastdiv import Mixture, Normal
        >>> Normal(1, 2).score([1.0, 5.0])
        array([ 0., -1.])
        >>> Mixture([0.5, 0.5], [[0, 0], [4, 0]], [[1, 1], [1, 1]]).score([2.0, 3.0])
        array([ 0., -3.])
        """
        kernel = getattr(kernels(backend), self._kernel.replace("logpdf", "score"))
        x = as_float_array(x, "x")
        points = self._points(x)
        parameters = self.kernel_parameters(points.dtype)
        out = np.empty_like(points)
        map_blocks(lambda start, stop: kernel(points[start:stop], *parameters, out[start:stop]), len(points))
        if np.isnan(np.min(out, initial=0)):
            rows = (len(points), math.prod(self.event_shape))
            lost = np.isnan(out).reshape(rows).any(axis=1) & ~np.isnan(points).reshape(rows).any(axis=1)
            if lost.any():
                out[lost] = self._far_score(points[lost])
        return _of_shape(out, x.shape, x.dtype)

    @np.errstate(over="ignore", invalid="ignore")
    def _far_score(self, points):
        """Score where the densities of all components underflow: that of the nearest, or of the first of those.

        For a point with infinite coordinates they are compared, and all of them are infinite that these pull at.
        """
        x = points.reshape(len(points), -1).astype(np.float64)
        infinite = np.isinf(x)
        signs, recedes = np.where(infinite, np.sign(x), 0), infinite.any(axis=1, keepdims=True)
        used = np.flatnonzero(self.weights)
        means = self.means.reshape(self.n_components, -1)
        unit = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.abs(means[used]).max())
        nearest, score = np.full(len(x), np.inf), np.empty(x.shape)
        for k in used:
            away = np.where(recedes, signs, x / unit - means[k] / unit)
            width = self._scales[k].max()
            distance = np.linalg.norm(self._whiten(width * away, k), axis=1) / width
            pull = self._whiten(self._whiten(signs, k), k, transpose=True)
            pull[np.abs(pull) <= 1e-14 * np.abs(pull).max(axis=1, keepdims=True)] = 0
            rest = self._whiten(self._whiten(np.where(infinite, 0, means[k] - x), k), k, transpose=True)
            nearer = (distance < nearest) if k != used[0] else np.full(len(x), True)
            score[nearer] = np.where(pull == 0, rest, -np.inf * pull)[nearer]
            nearest[nearer] = distance[nearer]
        return score.reshape(points.shape).astype(points.dtype)

    def _whiten(self, x, k, transpose=False):
        """Multiply by the inverse of the Cholesky factor of component k, or its transpose."""
        if self.covs is None:
            return x / self.stds[k]
        whitener = self._parameters[2][k]
        return x @ (whitener if transpose else whitener.T)

    def cdf(self, x: ArrayLike) -> Floats:
        """Cumulative distribution function, on the line only.

        Parameters
        ----------
        x : array_like
            Points, of any shape.

        Returns
        -------
        float or ndarray
            Of the shape of `x`.

        Raises
        ------
        ValueError
            In D dimensions.

        Examples
        --------
        >>> from fastdiv import Normal
        >>> Normal().cdf([0.0, 1.959963984540054]).round(6)
        array([0.5  , 0.975])
        """
        from scipy.special import ndtr

        if self.event_shape:
            raise ValueError(f"cdf is for distributions on the line; this one has {self.event_shape[0]} dimensions")
        x = as_float_array(x, "x")
        total = np.zeros_like(x)
        for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True):
            total += weight * ndtr((x - mean) / std)
        return total[()]

    def quantile(self, u: ArrayLike) -> Floats:
        """Inverse of the cumulative distribution function, on the line only.

        Parameters
        ----------
        u : array_like
            Probabilities, of any shape. Outside [0, 1] they give NaN.

        Returns
        -------
        float or ndarray
            Of the shape of `u`.

        Raises
        ------
        ValueError
            In D dimensions.

        Notes
        -----
        A mixture's quantile lies between its components', where Chandrupatla's method finds it.

        Examples
        --------
        >>> from fastdiv import Normal
        >>> Normal().quantile([0.5, 0.975]).round(6)
        array([0.      , 1.959964])
        """
        from scipy.special import ndtri

        if self.event_shape:
            raise ValueError(
                f"quantile is for distributions on the line; this one has {self.event_shape[0]} dimensions"
            )
        u, used = as_float_array(u, "u"), self.weights > 0
        each = (self.means + self.stds * ndtri(u[..., None]))[..., used]
        low, high = np.array(each.min(axis=-1)), np.array(each.max(axis=-1))
        between = np.array(low < high)
        if np.any(between):
            from scipy.optimize.elementwise import find_root

            # Rounding must not leave the root outside.
            margin = 1e-9 * self.stds[used].max()
            bracket = low[between] - margin, high[between] + margin
            low[between] = find_root(lambda x, u: self.cdf(x) - u, bracket, args=(u[between],)).x
        return _of_shape(low, u.shape, u.dtype)

    def sample(self, shape: int | tuple[int, ...] = (), *, rng: Seed = None) -> Floats:
        """Draw independent samples.

        Parameters
        ----------
        shape : int or tuple of int
            How many.
        rng : Generator, int or None
            As `numpy.random.default_rng` takes it.

        Returns
        -------
        float or ndarray, shape `shape` or (*shape, D)
            The draws.

        Examples
        --------
        >>> from fastdiv import Mixture
        >>> Mixture([0.5, 0.5], [[0, 0], [9, 9]], [[1, 1], [1, 1]]).sample(3, rng=0).shape
        (3, 2)
        """
        rng, shape = as_rng(rng), as_shape(shape)
        size = math.prod(shape)
        component = rng.choice(self.n_components, size=size, p=self.weights)
        draws = np.empty((size, *self.event_shape))
        for k in range(self.n_components):
            chosen = component == k
            draws[chosen] = self.means[k] + self.sample_component(k, np.count_nonzero(chosen), rng)
        return draws.reshape(shape + self.event_shape)[()]

    def sample_component(self, k: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw `n` samples of component `k`, less its mean."""
        z = rng.standard_normal((n, *self.event_shape))
        if self.covs is None:
            z *= self.stds[k]
        else:
            z = z @ self._scales[k].T
        return z

    def mean(self) -> Floats:
        """Mean, a float or an array of shape (D,).

        Examples
        --------
        >>> from fastdiv import Mixture
        >>> Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]).mean()
        np.float64(2.0)
        """
        return self.weights @ self.means

    def variance(self) -> Floats:
        """Variance, a float or an array of shape (D,), one per dimension.

        Examples
        --------
        >>> from fastdiv import Mixture
        >>> Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]).variance().round(6)
        np.float64(6.375)
        """
        within = self.stds**2 if self.covs is None else np.diagonal(self.covs, axis1=1, axis2=2)
        return self.weights @ (within + (self.means - self.mean()) ** 2)

    def entropy(self) -> Estimate:
        """Differential entropy, in nats; shorthand for `fastdiv.entropy`.

        Returns
        -------
        Estimate
            In closed form for one component, by quadrature on the line, else by Monte Carlo.

        Examples
        --------
        >>> from fastdiv import Normal
        >>> round(Normal(0, 1).entropy(), 12)
        1.418938533205
        """
        from .divergences import entropy

        return entropy(self)


class Normal(Mixture):
    """Gaussian distribution on the line.

    Parameters
    ----------
    loc : float
        Mean.
    scale : float
        Standard deviation, positive.

    Raises
    ------
    ValueError
        If a parameter is not finite or not a single number, or `scale` is not positive.

    Examples
    --------
    >>> from fastdiv import Normal
    >>> Normal(1, 2).logpdf(0.0).round(6)
    np.float64(-1.737086)
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        loc, scale = _parameter(loc, "loc", (0,)), _checked_scales(scale, (), "scale")
        super().__init__([1.0], loc[None], scale[None])

    @property
    def loc(self) -> np.floating:
        """Mean."""
        return self.means[0]

    @property
    def scale(self) -> np.floating:
        """Standard deviation."""
        return self.stds[0]

    def __repr__(self):
        return f"Normal(loc={self.loc}, scale={self.scale})"


class MultivariateNormal(Mixture):
    """Gaussian distribution in D dimensions.

    Parameters
    ----------
    mean : array_like, shape (D,)
        Mean.
    cov : array_like, shape (D, D) or (D,)
        Covariance, or the variances of a diagonal one.

    Raises
    ------
    ValueError
        If a parameter is not finite, the shapes do not match, a variance is not positive, or the covariance not
        symmetric and positive definite.

    Examples
    --------
    >>> from fastdiv import MultivariateNormal
    >>> MultivariateNormal([1, 4], [1, 1]).logpdf([1.0, 4.0]).round(6)
    np.float64(-1.837877)
    >>> MultivariateNormal([0, 0], [[2, 1], [1, 2]]).logpdf([1.0, 1.0]).round(6)
    np.float64(-2.720517)
    """

    def __init__(self, mean: ArrayLike, cov: ArrayLike) -> None:
        mean = _parameter(mean, "mean", (1,))
        if not mean.size:
            raise ValueError("mean must have at least one entry, got an empty array")
        cov = _parameter(cov, "cov", (1, 2))
        if cov.ndim == 1:
            cov = _checked_scales(cov, mean.shape, "cov")
            super().__init__([1.0], mean[None], np.sqrt(cov)[None])
        else:
            cov, _ = _checked_choleskys(cov, mean.shape, "cov")
            super().__init__([1.0], mean[None], covs=cov[None])

    def __repr__(self):
        cov = self.variance() if self.covs is None else self.covs[0]
        return f"MultivariateNormal({_short(self.means[0])}, {_short(cov)})"


def _short(array):
    return np.array2string(array, separator=", ", threshold=8).replace("\n", "")


class Midpoint(Distribution):
    """The mixture (p + q) / 2 of any two distributions."""

    def __init__(self, p, q):
        self.parts, self.event_shape = (p, q), p.event_shape

    @property
    def support(self):
        """The least interval, or box, that holds the supports of both."""
        (low_p, high_p), (low_q, high_q) = (part.support for part in self.parts)
        return np.minimum(low_p, low_q), np.maximum(high_p, high_q)

    @cached_property
    def landmarks(self):
        """Those of both, and the ends of their supports, where the density may jump."""
        marks = np.concatenate([np.r_[part.landmarks, part.support] for part in self.parts])
        return np.unique(marks[np.isfinite(marks)])

    def logpdf(self, x, *, backend=None):
        """Logarithm of the density."""
        return np.logaddexp(*(part.logpdf(x, backend=backend) for part in self.parts)) - math.log(2)


def midpoint(p: Distribution, q: Distribution) -> Distribution:
    """Return the mixture (p + q) / 2."""
    if not (isinstance(p, Mixture) and isinstance(q, Mixture)):
        return Midpoint(p, q)
    weights = np.concatenate([p.weights, q.weights]) / 2
    means = np.concatenate([p.means, q.means])
    if p.covs is None and q.covs is None:
        return Mixture(weights, means, np.concatenate([p.stds, q.stds]))
    return Mixture(weights, means, covs=np.concatenate([_full(p), _full(q)]))


def _full(p):
    return p.covs if p.covs is not None else np.stack([np.diag(std**2) for std in p.stds])
