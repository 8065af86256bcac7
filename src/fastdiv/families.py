"""Other libraries' distributions as ours, and what is asked of two distributions at a point."""

from __future__ import annotations

import math
import sys
import warnings
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_float_array, as_rng
from ._backend import kernels
from .distributions import LEVELS, Distribution, Mixture, MultivariateNormal, Normal, as_shape

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import ArrayLike, Floats, Seed

__all__ = ["as_distribution", "log_ratio", "optimal_classifier"]


@contextmanager
def _may_fail():
    """Let another library's quantiles fail: its solvers may, in the tails."""
    with suppress(ValueError, ArithmeticError, RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


class Wrapped(Distribution):
    """Another library's distribution, by its functions; on the line with `cdf` and `quantile` if it has them.

    Points outside the support are not shown to it: some libraries refuse them.
    """

    def __init__(self, wrapped, logpdf, support, *, score=None, draw=None, cdf=None, quantile=None):
        self.wrapped, self._logpdf, self._score, self._draw = wrapped, logpdf, score, draw
        self.event_shape = np.shape(support[0])
        self._support = support if self.event_shape else (float(support[0]), float(support[1]))
        if cdf is not None:
            self.cdf = cdf
        if quantile is not None:
            self.quantile = quantile

    def __repr__(self):
        return f"as_distribution({self.wrapped!r})"

    @property
    def support(self):
        """Lower and upper end of where the density is positive."""
        return self._support

    @property
    def has_score(self):
        """Whether the score is of a formula, and not by numerical differentiation."""
        return self._score is not None

    @cached_property
    def landmarks(self):
        """Points around which the density changes: none where there is nothing to find them by."""
        if hasattr(self, "quantile"):
            # Landmarks are hints, and the mass tells where they mislead.
            with _may_fail():
                return super().landmarks
        return np.empty(0) if self._draw is None else np.quantile(self.sample(999, rng=0), LEVELS)

    def _points(self, x):
        x = as_float_array(x, "x")
        if self.event_shape and x.shape[-1:] != self.event_shape:
            raise ValueError(f"x must have shape (..., {self.event_shape[0]}), got {x.shape}")
        return x

    def logpdf(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Logarithm of the density: -inf outside the support, NaN for NaN. No kernel set has a part in it."""
        kernels(backend)
        x = self._points(x)
        low, high = self._support
        inside, nan = (x >= low) & (x <= high) & np.isfinite(x), np.isnan(x)
        if self.event_shape:
            inside, nan = inside.all(axis=-1), nan.any(axis=-1)
        out = np.where(nan, np.nan, -np.inf)
        if np.any(inside):
            values, wanted = np.asarray(self._logpdf(x[inside])), (int(np.count_nonzero(inside)),)
            if self.event_shape and wanted == (1,) and values.ndim == 0:
                # To SciPy one row is one point.
                values = values[None]
            if values.shape != wanted:
                raise ValueError(f"{self!r} must give log-densities of shape {wanted}, got {values.shape}")
            out = out.astype(np.float32 if values.dtype == np.float32 else np.float64)
            out[inside] = values
        return out[()]

    def sample(self, shape: int | tuple[int, ...] = (), *, rng: Seed = None) -> Floats:
        """Draw independent samples; parameters and result as of `Mixture.sample`."""
        rng, shape = as_rng(rng), as_shape(shape)
        if self._draw is None:
            raise TypeError(f"{self!r} cannot be sampled: it has no sample or rvs that takes rng or random_state")
        draws = np.asarray(self._draw(math.prod(shape), rng), np.float64)
        return draws.reshape(shape + self.event_shape)[()]

    @cached_property
    def _quartiles(self):
        """The quartiles, or where there is nothing to find them by, three points of the support."""
        levels = np.array([0.25, 0.5, 0.75])
        if hasattr(self, "quantile"):
            with _may_fail():
                quartiles = np.asarray(self.quantile(levels), np.float64)
                if np.all(np.isfinite(quartiles)):
                    return quartiles
        if self._draw is not None:
            return np.quantile(self.sample(999, rng=0), levels, axis=0)
        low, high = self._support
        return np.linspace(np.maximum(low, np.minimum(-1, high - 2)), np.minimum(high, np.maximum(1, low + 2)), 5)[1:-1]

    def score(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Gradient of the log-density in x: 0 wherever there is no density."""
        kernels(backend)
        x = self._points(x)
        points = x.reshape(-1, *self.event_shape).astype(np.float64)
        density = self.logpdf(points)
        # At a pole the log-density falls without bound on the one side that is in the support.
        out = np.where(points == self._support[0], -np.inf, np.inf)
        out[density == -np.inf], out[np.isnan(density)] = 0.0, np.nan
        finite = np.isfinite(density)
        if np.any(finite):
            out[finite] = (self._score or self._differences)(points[finite])
        return out.reshape(x.shape)[()]

    def _differences(self, points):
        """Return the score by central differences of eighth order, one-sided at an end of the support.

        Their steps stay inside the support, and are halved until two of them agree to 1e-10 or rounding keeps them
        from it.
        """
        from scipy.differentiate import derivative

        low, high = self._support
        first, median, third = self._quartiles
        with np.errstate(over="ignore"):
            step = np.maximum((third - first) / 2, np.abs(points - median) / 8)
            room = np.minimum(points - low, high - points)
            step = np.minimum(step, np.where(room > 0, room, high - low) / 2)
        side = np.where(room > 0, 0, np.where(points == low, 1, -1))
        row, column = np.indices(points.shape) if self.event_shape else (np.arange(points.size), np.zeros(points.size))

        def along(values, row, column):
            if not self.event_shape:
                return self.logpdf(values)
            moved = np.broadcast_to(points[row], (*values.shape, points.shape[1])).copy()
            np.put_along_axis(moved, np.broadcast_to(column, values.shape)[..., None], values[..., None], -1)
            return self.logpdf(moved)

        tolerances = {"rtol": 1e-10, "atol": 0.0}
        result = derivative(
            along, points, args=(row, column), tolerances=tolerances, initial_step=step, step_direction=side
        )
        return result.df


def _parameter(value):
    """Return a parameter, perhaps a tensor, as a float64 array."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(value, np.float64)


def _mixture(weights, means, stds=None, covs=None):
    """Return a mixture of parameters that may come in float32, with its rounding in their sums and symmetry."""
    weights = _parameter(weights)
    if covs is not None:
        covs = (covs + covs.mT) / 2
    return Mixture(weights / weights.sum(), means, stds, covs=covs)


def _from_scipy(obj, stats):
    """Return the Gaussians of `scipy.stats` as ours, None for anything else."""
    if isinstance(getattr(obj, "dist", None), type(stats.norm)):
        return Normal(*obj.args, **obj.kwds)
    if isinstance(obj, stats.Normal):
        return Normal(obj.mu, obj.sigma)
    if isinstance(obj, stats.Mixture):
        parts = [_from_scipy(part, stats) for part in obj.components]
        if all(isinstance(part, Normal) for part in parts):
            return _mixture(obj.weights, [part.loc for part in parts], [part.scale for part in parts])
    if isinstance(obj, stats.gaussian_kde):
        if obj.d == 1:
            return _mixture(obj.weights, obj.dataset[0], np.full(obj.n, math.sqrt(obj.covariance[0, 0])))
        return _mixture(obj.weights, obj.dataset.T, covs=np.broadcast_to(obj.covariance, (obj.n, obj.d, obj.d)))
    if type(obj).__name__ == "multivariate_normal_frozen":
        return MultivariateNormal(obj.mean, obj.cov)
    return None


def _from_sklearn(obj):
    """Return a GaussianMixture of scikit-learn, whose points are rows, as ours."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(obj)
    (k, d), covs = obj.means_.shape, _parameter(obj.covariances_)
    if obj.covariance_type in ("diag", "spherical"):
        stds = np.sqrt(covs).reshape(k, -1) * np.ones(d)
        return _mixture(obj.weights_, obj.means_, stds)
    return _mixture(obj.weights_, obj.means_, covs=np.broadcast_to(covs, (k, d, d)))


def _gaussians(obj):
    """Return means, standard deviations and covariances of torch's Gaussians, None for anything else."""
    kind = type(obj).__name__
    if kind == "Independent" and obj.reinterpreted_batch_ndims == 1:
        obj, kind = obj.base_dist, type(obj.base_dist).__name__
    if kind == "Normal":
        return _parameter(obj.loc), _parameter(obj.scale), None
    if kind == "MultivariateNormal":
        factor = _parameter(obj.scale_tril)
        return _parameter(obj.loc), None, factor @ factor.mT
    return None


def _from_torch(obj, name):
    """Return the Gaussians of torch, and of what follows its interface, as ours; anything else by its log_prob."""
    if tuple(obj.batch_shape):
        raise ValueError(f"{name} must be one distribution, got a batch of shape {tuple(obj.batch_shape)}")
    mixed = type(obj).__name__ == "MixtureSameFamily"
    found = _gaussians(obj.component_distribution if mixed else obj)
    if found is not None:
        means, stds, covs = found
        if mixed:
            labels = obj.mixture_distribution if hasattr(obj, "mixture_distribution") else obj.mixing_distribution
            return _mixture(labels.probs, means, stds, covs)
        if stds is None or means.ndim:
            return MultivariateNormal(means, covs if stds is None else stds**2)
        return Normal(means, stds)
    if getattr(obj.support, "is_discrete", False):
        raise TypeError(f"{name} must have a density, got a discrete {type(obj).__name__}")
    constraint = getattr(obj.support, "base_constraint", obj.support)
    ends = [_parameter(getattr(constraint, *end)) for end in (("lower_bound", -np.inf), ("upper_bound", np.inf))]
    support = tuple(np.broadcast_to(end, tuple(obj.event_shape)) for end in ends)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(obj, torch.distributions.Distribution):
        return Wrapped(obj, obj.log_prob, support)
    dtype = _torch_draw(obj, 1, np.random.default_rng(0)).dtype
    return Wrapped(
        obj,
        partial(_torch_logpdf, obj, dtype, support),
        support,
        score=partial(_torch_score, obj, dtype),
        draw=partial(_torch_draw, obj),
    )


def _torch_logpdf(obj, dtype, ends, points):
    """Return the log-density, -inf where points of the distribution's own dtype fall on an end of the support."""
    import torch

    rounded, out = points.astype(dtype), np.full(len(points), -np.inf, dtype)
    apart = (rounded > ends[0]) & (rounded < ends[1])
    inside = obj.support.check(torch.as_tensor(rounded)).numpy() & (apart.all(axis=-1) if obj.event_shape else apart)
    with torch.no_grad():
        out[inside] = obj.log_prob(torch.as_tensor(rounded[inside])).numpy()
    return out


def _torch_score(obj, dtype, points):
    import torch

    tensor = torch.as_tensor(points.astype(dtype)).requires_grad_()
    # A density that does not depend on its point has no gradient to ask for.
    return torch.autograd.grad(obj.log_prob(tensor).sum() + 0 * tensor.sum(), tensor)[0].numpy()


def _torch_draw(obj, n, rng):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(1 << 62)))
        return obj.sample((n,)).numpy()


def _draw_by(method, keyword, n, rng):
    return method(n, **{keyword: rng})


def _sampler(obj):
    """Return a function of how many and a generator, None if what there is cannot be seeded."""
    import inspect

    for name in ("sample", "rvs"):
        method = getattr(obj, name, None)
        if callable(method):
            parameters = inspect.signature(method).parameters
            for keyword in ("rng", "random_state"):
                if keyword in parameters:
                    return partial(_draw_by, method, keyword)
    return None


def _checked_support(support, name):
    try:
        low, high = (np.asarray(end, np.float64) for end in support)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers or of arrays of shape (D,), got {support!r}") from None
    if low.ndim > 1 or low.shape != high.shape or not np.all(low < high):
        raise ValueError(f"{name} must be a lower and an upper end, of shape () or (D,), got {support!r}")
    return low, high


def _by_methods(obj, name, support):
    """Return an object with a log-density, or a log-density alone with its support."""
    logpdf = getattr(obj, "logpdf", None) or getattr(obj, "log_prob", None) or obj
    if support is None:
        support = getattr(obj, "support", (-math.inf, math.inf))
        support = support() if callable(support) else support
        dims = tuple(getattr(obj, "event_shape", ())) or ((obj.dim,) if hasattr(obj, "dim") else ())
        low, high = _checked_support(support, f"the support of {name}")
        if low.ndim and not dims:
            raise ValueError(f"{name} must be one distribution, got {len(low)} in one {type(obj).__name__}")
        support = np.broadcast_to(low, dims), np.broadcast_to(high, dims)
    low, high = _checked_support(support, f"the support of {name}")
    if low.ndim:
        return Wrapped(obj, logpdf, (low, high), draw=_sampler(obj))
    quantile = getattr(obj, "quantile", None) or getattr(obj, "ppf", None) or getattr(obj, "icdf", None)
    return Wrapped(obj, logpdf, (low, high), draw=_sampler(obj), cdf=getattr(obj, "cdf", None), quantile=quantile)


def as_distribution(obj: Any, support: tuple[float, float] | tuple[ArrayLike, ArrayLike] | None = None) -> Distribution:
    """Another library's distribution, with the methods that ours have.

    Parameters
    ----------
    obj : object
        One of these, on the line or in D dimensions:

        - a frozen distribution of `scipy.stats`, one of SciPy's newer infrastructure, such as ``scipy.stats.Normal()``
          or one by ``scipy.stats.make_distribution``, or a ``gaussian_kde``;
        - a fitted ``GaussianMixture`` of scikit-learn;
        - a distribution of ``torch.distributions``, without batch dimensions;
        - any object with a method ``logpdf`` or ``log_prob`` of many points at once, and perhaps ``support``,
          ``event_shape``, ``cdf``, ``ppf`` or ``quantile``, and ``rvs`` or ``sample`` that takes ``rng`` or
          ``random_state``;
        - a function that gives the log-density of many points at once, with `support`;
        - a distribution of fastdiv's, which is handed back.
    support : (float, float) or (array_like, array_like), optional
        Ends of where the density is positive, in D dimensions of shape (D,). For a function it must be given.

    Returns
    -------
    Distribution
        A `Normal`, `MultivariateNormal` or `Mixture` where `obj` is Gaussian or a mixture of Gaussians, so that
        kernels and closed forms apply. Any other has `logpdf`, in float64 unless `obj` gives float32, `pdf`,
        `pdf_derivative`, `sample` and `support`, and a `score`: torch's, or by numerical differentiation, to about 1e-9
        where the log-density is exact to float64.

    Raises
    ------
    TypeError
        If `obj` is nothing of this, or discrete.
    ValueError
        If `obj` is more than one distribution, or `support` not a lower and an upper end.

    Examples
    --------
    >>> from scipy import stats
    >>> from fastdiv import as_distribution
    >>> as_distribution(stats.norm(1, 2))
    Normal(loc=1.0, scale=2.0)
    >>> p = as_distribution(stats.beta(2, 3))
    >>> p.support
    (0.0, 1.0)
    >>> p.pdf_derivative([-1.0, 0.5, 2.0]).round(6)
    array([ 0., -3.,  0.])
    >>> q = as_distribution(lambda x: -x, support=(0, float("inf")))
    >>> q.logpdf([-1.0, 2.0])
    array([-inf,  -2.])
    """
    return _as_distribution(obj, "obj", support)


def _as_distribution(obj, name, support=None):
    if isinstance(obj, Distribution):
        if support is not None:
            raise TypeError(f"support is for a log-density without one, got {name}={obj!r} with its own")
        return obj
    stats = sys.modules.get("scipy.stats")
    if stats is not None and isinstance(obj, stats.rv_continuous):
        if obj.shapes:
            raise TypeError(f"{name} must be frozen, got scipy.stats.{obj.name} without {obj.shapes}")
        obj = obj()
    found = None if support is not None else _recognised(obj, name, stats)
    if found is None and _has_density(obj, support):
        found = _by_methods(obj, name, support)
    if found is None:
        hint = " (of a function, give the support to as_distribution)" if callable(obj) else ""
        raise TypeError(
            f"{name} must be a Normal, MultivariateNormal or Mixture, or what as_distribution takes, "
            f"got {type(obj).__name__}{hint}"
        )
    return found


def _recognised(obj, name, stats):
    if stats is not None and (found := _from_scipy(obj, stats)) is not None:
        return found
    if type(obj).__name__ == "GaussianMixture" and type(obj).__module__.startswith("sklearn."):
        return _from_sklearn(obj)
    if hasattr(obj, "log_prob") and hasattr(obj, "batch_shape"):
        return _from_torch(obj, name)
    return None


def _has_density(obj, support):
    bases = {base.__name__ for base in type(obj).__mro__}
    # Points of the other multivariate ones are not rows, or not on all of space.
    if "DiscreteDistribution" in bases or ("multi_rv_frozen" in bases and "multivariate_t_frozen" not in bases):
        return False
    if isinstance(obj, type):
        return False
    return hasattr(obj, "logpdf") or hasattr(obj, "log_prob") or (callable(obj) and support is not None)


def check_distributions(**distributions):
    """Return distributions as ours; refuse what is not one, and distributions on different spaces."""
    found = []
    for name, value in distributions.items():
        value = value if isinstance(value, Distribution) else _as_distribution(value, name)
        found.append(value)
        if value.event_shape != found[0].event_shape:
            got = f"{found[0].event_shape} and {value.event_shape}"
            raise ValueError(f"{' and '.join(distributions)} must have the same dimensions, got event shapes {got}")
    return found


def log_ratio(x: ArrayLike, p: Any, q: Any, *, backend: str | None = None) -> Floats:
    """Log-ratio of two densities, log p(x) - log q(x).

    Parameters
    ----------
    x : array_like, shape (...) or (..., D)
        Points.
    p, q : distribution
        Numerator and denominator: fastdiv's, or any that `as_distribution` takes.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    float or ndarray, shape (...)
        In nats. NaN where both log-densities are -inf.

    Raises
    ------
    TypeError
        If `p` or `q` is not a distribution.
    ValueError
        If they have different dimensions.

    Examples
    --------
    >>> from fastdiv import Normal, log_ratio
    >>> log_ratio([0.0, 1.0], Normal(1, 1), Normal(0, 2)).round(6)
    array([0.193147, 0.818147])
    """
    p, q = check_distributions(p=p, q=q)
    with np.errstate(invalid="ignore"):
        return p.logpdf(x, backend=backend) - q.logpdf(x, backend=backend)


def optimal_classifier(x: ArrayLike, p: Any, q: Any, *, backend: str | None = None) -> Floats:
    """Probability that a point came from p and not from q, both equally likely.

    It is p / (p + q), the sigmoid of the log-ratio (Sugiyama, Suzuki & Kanamori 2012, section 4.1).

    Parameters
    ----------
    x, p, q, backend
        As in `log_ratio`.

    Returns
    -------
    float or ndarray, shape (...)
        Between 0 and 1.

    Examples
    --------
    >>> from fastdiv import Normal, optimal_classifier
    >>> optimal_classifier(0.0, Normal(1, 1), Normal(0, 2)).round(6)
    np.float64(0.548137)
    """
    from scipy.special import expit

    return expit(log_ratio(x, p, q, backend=backend))
