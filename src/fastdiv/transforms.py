"""Bijections between constrained and unconstrained spaces, and distributions carried through them.

A transform takes the unconstrained space to the constrained one; its `inv` is the way back.

Examples
--------
>>> from fastdiv import transforms
>>> interval = transforms.Interval(1, 4)
>>> interval.forward([-1000.0, 0.0, 1000.0])
array([1. , 2.5, 4. ])
>>> interval.inv.forward(2.5)
np.float64(0.0)
"""

from __future__ import annotations

import math
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, log_expit

from ._arrays import as_float_array
from .distributions import Distribution
from .families import check_distributions

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._arrays import ArrayLike, Floats, Seed

__all__ = [
    "Affine",
    "Compose",
    "Exp",
    "Interval",
    "Inverse",
    "Sigmoid",
    "StickBreaking",
    "Transform",
    "Transformed",
    "unconstrain",
]

# Nearer to the end of an interval than this, in parts of the end, points have lost digits of their distance from it.
NEAR = 2.0**-5
# The least distances at which a log-density, and its derivative, are known to many digits: in parts of the end, and
# where this is 0.
KNOWN_DENSITY = 2.0**-42, 2.0**-1021
KNOWN_SCORE = 2.0**-26, 1e-290


def _with_ends(y, ends):
    """Return points as float64, with those that are an end in their own precision at that end."""
    wide = y.astype(np.float64, copy=False)
    if y.dtype != np.float64:
        for end in ends:
            wide = np.where(y == np.asarray(end).astype(y.dtype), end, wide)
    return wide


def _like(value, x):
    """Return a value for each point, NaN for NaN."""
    return np.where(np.isnan(x), np.nan, value)


class Transform:
    r"""Base of the bijections; :math:`x` is a point before, :math:`y = T(x)` the point after.

    Attributes
    ----------
    domain, codomain : tuple
        Lower and upper ends of x, and of y: numbers, or arrays of shape (D,).
    event_dim : int
        0 where each number is transformed by itself; 1 where the last axis is transformed as one point.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> isinstance(transforms.Exp(), transforms.Transform)
    True
    """

    event_dim = 0
    domain = (-np.inf, np.inf)
    # Whether larger x give larger y; None where there is no such order.
    increasing: bool | None = True
    # Whether points before, and points after, are on the simplex.
    _on_simplex = (False, False)
    # Length of the last axis of x, where the transform knows it.
    _columns: int | None = None

    def forward(self, x: ArrayLike) -> Floats:
        """Transform points.

        Parameters
        ----------
        x : array_like, shape (...)
            Points; of shape (..., K-1) for `StickBreaking`. NaN gives NaN, and so does what lies outside the domain.

        Returns
        -------
        float or ndarray, shape (...)
            float32 for float32 points, else float64.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Interval(1, 4).forward(0.0)
        np.float64(2.5)
        """
        return self._at(x, "x", self._forward)

    def inverse(self, y: ArrayLike) -> Floats:
        """Transform points back.

        Parameters
        ----------
        y : array_like, shape (...)
            Points; of shape (..., K) for `StickBreaking`. NaN gives NaN, and so does what lies outside the codomain.

        Returns
        -------
        float or ndarray, shape (...)
            float32 for float32 points, else float64.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Exp().inverse([0.0, 1.0, -1.0])
        array([-inf,   0.,  nan])
        """
        return self._at(y, "y", self._inverse, after=True)

    def log_abs_det_jacobian(self, x: ArrayLike) -> Floats:
        r"""Logarithm of the absolute determinant of the Jacobian of `forward`, at x.

        Parameters
        ----------
        x : array_like, shape (...)
            Points before the transform, as in `forward`.

        Returns
        -------
        float or ndarray
            :math:`\log |\partial y / \partial x|` for each number, of the shape of `x`; for each point, without the
            last axis, where `event_dim` is 1.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Sigmoid().log_abs_det_jacobian([-1000.0, 0.0, 1000.0]).round(6)
        array([-1000.      ,    -1.386294, -1000.      ])
        """
        return self._at(x, "x", self._log_jacobian)

    def log_abs_det_jacobian_gradient(self, x: ArrayLike) -> Floats:
        """Gradient of `log_abs_det_jacobian` in x.

        Parameters
        ----------
        x : array_like, shape (...)
            Points before the transform, as in `forward`.

        Returns
        -------
        float or ndarray, of the shape of `x`
            The derivatives.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Sigmoid().log_abs_det_jacobian_gradient([-1000.0, 1.0, 1000.0]).round(6)
        array([ 1.      , -0.462117, -1.      ])
        """
        return self._at(x, "x", self._log_jacobian_gradient)

    def pullback(self, x: ArrayLike, gradient: ArrayLike) -> Floats:
        r"""Gradient in x of a function whose gradient in y is known.

        Parameters
        ----------
        x : array_like, shape (...)
            Points before the transform, as in `forward`.
        gradient : array_like
            The gradient in y at ``forward(x)``, of its shape.

        Returns
        -------
        float or ndarray, of the shape of `x`
            The Jacobian's transpose times `gradient`.

        Raises
        ------
        ValueError
            If `gradient` has not the shape of y.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Exp().pullback(0.0, 3.0)
        np.float64(3.0)
        """
        gradient = as_float_array(gradient, "gradient")
        shape = self._points(x, "x", False).shape
        if self.event_dim:
            shape = (*shape[:-1], *self._shape(shape[-1:]))
        try:
            gradient = np.broadcast_to(gradient, shape)
        except ValueError:
            raise ValueError(f"gradient must have the shape of y, {shape}, got {gradient.shape}") from None
        return self._at(x, "x", lambda x: self._pullback(x, gradient))

    @property
    def inv(self) -> Transform:
        """The inverse transform, with the methods of any other; its own `inv` is this one.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.Exp().inv.forward(1.0)
        np.float64(0.0)
        """
        return Inverse(self)

    def _parameters(self):
        return ()

    def _key(self):
        # Of two zeros that are equal, the one that is printed without a sign.
        return tuple((np.asarray(value) + 0.0).tolist() for value in self._parameters())

    def __eq__(self, other):
        return self._key() == other._key() if type(self) is type(other) else NotImplemented

    def __hash__(self):
        return hash((type(self), str(self._key())))

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(map(repr, self._key()))})"

    def _at(self, value, name, function, after=False):
        """Return a function of points before or after the transform, in the precision in which they came."""
        points = self._points(value, name, after)
        with np.errstate(all="ignore"):
            return function(self._widened(points, after)).astype(points.dtype, copy=False)[()]

    def _points(self, value, name, after):
        points = as_float_array(value, name)
        if self._columns is not None and points.shape[-1:] != (self._columns,):
            raise ValueError(f"{name} must have shape (..., {self._columns}), got {points.shape}")
        return points

    def _widened(self, points, after):
        return _with_ends(points, self.codomain if after else self.domain)

    def _image(self, low, high, inverse=False):
        """Return the ends of what lies between two ends, or between those of D coordinates."""
        function = self.inverse if inverse else self.forward
        if self._columns is not None:
            low, high = (np.broadcast_to(end, self._columns) for end in (low, high))
        ends = function(low), function(high)
        return _pair(np.minimum(*ends), np.maximum(*ends))

    def _shape(self, event_shape, inverse=False):
        """Return the shape of one point after the transform, given that of one before."""
        if self._columns is not None and event_shape != (self._columns,):
            raise ValueError(f"{self!r} transforms points of shape ({self._columns},), got {event_shape}")
        return event_shape


def _pair(low, high):
    return tuple(float(end) if np.ndim(end) == 0 else end for end in (low, high))


def _parameter(value, name):
    array = as_float_array(value, name).astype(np.float64)
    if array.ndim > 1 or not array.size:
        raise ValueError(f"{name} must be a number or an array of shape (D,), got an array of shape {array.shape}")
    array.setflags(write=False)
    return array


def _checked(**parameters):
    """Return numbers or arrays of one shape (D,)."""
    arrays = [_parameter(value, name) for name, value in parameters.items()]
    try:
        return np.broadcast_arrays(*arrays)
    except ValueError:
        names, shapes = " and ".join(parameters), " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{names} must have the same shape, got {shapes}") from None


class Interval(Transform):
    r"""From the real line to an interval, upwards: by the logistic function, or by exp where one end is infinite.

    .. math::

        (a, b): a + (b - a) / (1 + e^{-x}), \quad (a, \infty): a + e^x, \quad (-\infty, b): b - e^{-x}, \quad
        (-\infty, \infty): x

    Parameters
    ----------
    a, b : float or array_like, shape (D,)
        The ends, a < b, either or both of them infinite. Arrays are the ends of the D coordinates of the last axis.

    Raises
    ------
    ValueError
        If `a` is not less than `b`, or the interval is longer than any float.

    References
    ----------
    Kucukelbir et al. (2017), Automatic differentiation variational inference, section 2.3; Stan reference manual,
    "Constraint transforms".

    Examples
    --------
    >>> from fastdiv import transforms
    >>> transforms.Interval(1, 4).forward([-40.0, 0.0, 40.0])
    array([1. , 2.5, 4. ])
    >>> transforms.Interval([0, -float("inf")], [float("inf"), 5]).forward([0.0, 0.0])
    array([1., 4.])
    """

    def __init__(self, a: ArrayLike, b: ArrayLike) -> None:
        a, b = _checked(a=a, b=b)
        if not np.all(a < b):
            raise ValueError(f"a must be less than b, got a={a.tolist()} and b={b.tolist()}")
        with np.errstate(over="ignore"):
            if np.any(np.isinf(b - a) & np.isfinite(a) & np.isfinite(b)):
                raise ValueError(f"b - a must be finite, got a={a.tolist()} and b={b.tolist()}")
        self.a, self.b = self.codomain = _pair(a, b)
        self._columns = len(a) if a.ndim else None

    def _parameters(self):
        return self.codomain

    def _over_kinds(self, function, x):
        """Return a function of x, of whether a and of whether b is finite, and of a and b, at each coordinate."""
        bounded = np.isfinite(self.a), np.isfinite(self.b)
        if self._columns is None:
            return function(x, *bounded, self.a, self.b)
        out = np.empty(x.shape)
        for kind in {*zip(*(ends.tolist() for ends in bounded), strict=True)}:
            chosen = (bounded[0] == kind[0]) & (bounded[1] == kind[1])
            out[..., chosen] = function(x[..., chosen], *kind, self.a[chosen], self.b[chosen])
        return out

    def _forward(self, x):
        return self._over_kinds(_interval_forward, x)

    def _inverse(self, y):
        return self._over_kinds(_interval_inverse, y)

    def _log_jacobian(self, x):
        return self._over_kinds(_interval_log_jacobian, x)

    def _log_jacobian_gradient(self, x):
        return self._over_kinds(_interval_log_jacobian_gradient, x)

    def _derivative(self, x):
        return self._over_kinds(_interval_derivative, x)

    def _pullback(self, x, gradient):
        return self._derivative(x) * gradient

    def _inverse_pullback(self, x, gradient):
        return gradient / self._derivative(x)


def _interval_forward(x, above, below, a, b):
    if above and below:
        distance = (b - a) * expit(-np.abs(x))
        return np.where(x < 0, a + distance, b - distance)
    return a + np.exp(x) if above else b - np.exp(-x) if below else x


def _interval_inverse(y, above, below, a, b):
    if above and below:
        left, right = y - a, b - y
        ratio = left / right
        # Where the ends are about equally far, the logarithm of the ratio is left to log1p.
        return np.where((ratio > 0.5) & (ratio < 2), np.log1p((left - right) / right), np.log(left) - np.log(right))
    return np.log(y - a) if above else -np.log(b - y) if below else y


def _interval_log_jacobian(x, above, below, a, b):
    if above and below:
        distance = np.abs(x)
        return np.log(b - a) - distance - 2 * np.log1p(np.exp(-distance))
    return x if above else -x if below else _like(0.0, x)


def _interval_log_jacobian_gradient(x, above, below, a, b):
    return -np.tanh(x / 2) if above and below else _like(float(above) - float(below), x)


def _interval_derivative(x, above, below, a, b):
    if above and below:
        return (b - a) * expit(x) * expit(-x)
    return np.exp(x) if above else np.exp(-x) if below else _like(1.0, x)


class Exp(Interval):
    """From the real line to the positive numbers by exp.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> transforms.Exp().forward([-float("inf"), 0.0])
    array([0., 1.])
    """

    def __init__(self) -> None:
        super().__init__(0.0, np.inf)

    def _parameters(self):
        return ()


class Sigmoid(Interval):
    """From the real line to (0, 1) by the logistic function; the inverse is the logit.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> transforms.Sigmoid().forward([-float("inf"), 0.0, float("inf")])
    array([0. , 0.5, 1. ])
    """

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def _parameters(self):
        return ()


class Affine(Transform):
    """Multiply by `scale` and add `loc`.

    Parameters
    ----------
    loc, scale : float or array_like, shape (D,)
        Finite, and `scale` not 0; a negative one turns the order round.

    Raises
    ------
    ValueError
        If a parameter is not finite, `scale` is 0, or the shapes do not match.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> transforms.Affine(1, -2).forward([0.0, 3.0])
    array([ 1., -5.])
    """

    codomain = (-np.inf, np.inf)

    def __init__(self, loc: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> None:
        loc, scale = _checked(loc=loc, scale=scale)
        for name, array in (("loc", loc), ("scale", scale)):
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{name} must be finite, got {array.tolist()}")
        if np.any(scale == 0):
            raise ValueError(f"scale must not be 0, got {scale.tolist()}")
        self.loc, self.scale = _pair(loc, scale)
        self._columns = len(loc) if loc.ndim else None
        self.increasing = None if loc.ndim else self.scale > 0

    def _parameters(self):
        return self.loc, self.scale

    def _forward(self, x):
        return self.loc + self.scale * x

    def _inverse(self, y):
        return (y - self.loc) / self.scale

    def _log_jacobian(self, x):
        return _like(np.log(np.abs(self.scale)), x)

    def _log_jacobian_gradient(self, x):
        return _like(0.0, x)

    def _pullback(self, x, gradient):
        return self.scale * gradient

    def _inverse_pullback(self, x, gradient):
        return gradient / self.scale


class StickBreaking(Transform):
    r"""From K-1 real numbers to the simplex of K weights: each takes its share of what those before have left.

    .. math::

        w_k = v_k \prod_{j<k} (1 - v_j), \quad v_k = 1 / (1 + (K-1-k)\, e^{-x_k}), \quad k = 0, \dots, K-2,

    and the last weight is the rest; 0 is carried to equal weights. The determinant is that of the first K-1 weights,
    so that densities are those of these, as in `scipy.stats.dirichlet`. What lies off the simplex by more than rounding
    has no inverse; where a point of the boundary leaves coordinates open, `inverse` gives 0 for them.

    References
    ----------
    Betancourt (2012), Cruising the simplex; Stan reference manual, "Simplex transform".

    Examples
    --------
    >>> from fastdiv import transforms
    >>> stick_breaking = transforms.StickBreaking()
    >>> stick_breaking.forward([0.0, 0.0, 0.0])
    array([0.25, 0.25, 0.25, 0.25])
    >>> stick_breaking.inverse([1e-300, 1.0, 0.0]).round(6)
    array([-690.082381,         inf])
    """

    event_dim = 1
    codomain = (0.0, 1.0)
    increasing = None
    _on_simplex = (False, True)

    def log_forward(self, x: ArrayLike) -> Floats:
        """Logarithms of the weights, right also where these underflow.

        Parameters
        ----------
        x : array_like, shape (..., K-1)
            Points.

        Returns
        -------
        ndarray, shape (..., K)
            The logarithms of `forward`.

        Examples
        --------
        >>> from fastdiv import transforms
        >>> transforms.StickBreaking().log_forward([-1000.0, 0.0]).round(4)
        array([-1.0006931e+03, -6.9310000e-01, -6.9310000e-01])
        """
        return self._at(x, "x", self._log_weights)

    def _image(self, low, high, inverse=False):
        shape = self._shape(np.shape(low), inverse) if np.ndim(low) else ()
        return _pair(*(np.full(shape, end) for end in (self.domain if inverse else self.codomain)))

    def _shape(self, event_shape, inverse=False):
        if len(event_shape) != 1 or event_shape[0] < 1 + inverse:
            wanted = "(K,)" if inverse else "(K-1,)"
            raise ValueError(f"{self!r} transforms points of shape {wanted} with K at least 2, got {event_shape}")
        return (event_shape[0] + (-1 if inverse else 1),)

    def _points(self, value, name, after):
        points = as_float_array(value, name)
        if points.ndim == 0 or points.shape[-1] < 1 + after:
            wanted = "(..., K)" if after else "(..., K-1)"
            raise ValueError(f"{name} must have shape {wanted} with K at least 2, got {points.shape}")
        return points

    def _widened(self, points, after):
        wide = points.astype(np.float64, copy=False)
        if not after:
            return wide
        off = np.abs(wide.sum(axis=-1) - 1) > np.sqrt(np.finfo(points.dtype).eps)
        return np.where((off | (wide < 0).any(axis=-1))[..., None], np.nan, wide)

    @staticmethod
    def _left(n):
        """Return K-1-k, how many more weights each of the n shares leaves to be taken."""
        return np.arange(n, 0, -1.0)

    def _log_shares(self, x):
        """Return the logarithms of each share, and of what it leaves."""
        logits = x - np.log(self._left(x.shape[-1]))
        return log_expit(logits), log_expit(-logits)

    def _log_weights(self, x):
        share, rest = self._log_shares(x)
        log_left = np.cumsum(rest, axis=-1)
        log_weights = np.concatenate([share, log_left[..., -1:]], axis=-1)
        log_weights[..., 1:-1] += log_left[..., :-1]
        return log_weights

    def _forward(self, x):
        return np.exp(self._log_weights(x))

    def _inverse(self, y):
        rest = _sums_after(y)
        x = np.log(y[..., :-1]) - np.log(rest) + np.log(self._left(rest.shape[-1]))
        return np.where((y[..., :-1] == 0) & (rest == 0), 0, x)

    def _log_jacobian(self, x):
        share, rest = self._log_shares(x)
        return np.sum(share + self._left(x.shape[-1]) * rest, axis=-1)

    def _log_jacobian_gradient(self, x):
        left = self._left(x.shape[-1])
        logits = x - np.log(left)
        return expit(-logits) - left * expit(logits)

    def _pullback(self, x, gradient):
        share, rest = map(np.exp, self._log_shares(x))
        pull = self._forward(x) * gradient
        return rest * pull[..., :-1] - share * _sums_after(pull)

    def _inverse_pullback(self, x, gradient):
        y = self._forward(x)
        by_rest = np.cumsum((gradient / _sums_after(y))[..., ::-1], axis=-1)[..., ::-1]
        return np.concatenate([gradient / y[..., :-1] + by_rest, np.zeros((*by_rest.shape[:-1], 1))], axis=-1)


def _sums_after(values):
    """Return the sum of what comes after each value but the last."""
    return np.cumsum(values[..., :0:-1], axis=-1)[..., ::-1]


class Inverse(Transform):
    """A transform the other way about; `transform.inv` makes it.

    Parameters
    ----------
    transform : Transform
        What it undoes.

    Raises
    ------
    TypeError
        If `transform` is not a transform.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> logit = transforms.Sigmoid().inv
    >>> logit
    Inverse(Sigmoid())
    >>> logit.log_abs_det_jacobian(0.5).round(6)
    np.float64(1.386294)
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = checked_transform(transform, "transform")
        self.domain, self.codomain = transform.codomain, transform.domain
        self.event_dim, self.increasing = transform.event_dim, transform.increasing
        self._on_simplex = transform._on_simplex[::-1]

    @property
    def inv(self) -> Transform:
        """The transform that this one undoes."""
        return self.transform

    def _key(self):
        return (self.transform,)

    def _points(self, value, name, after):
        return self.transform._points(value, name, not after)

    def _widened(self, points, after):
        return self.transform._widened(points, not after)

    def _image(self, low, high, inverse=False):
        return self.transform._image(low, high, not inverse)

    def _shape(self, event_shape, inverse=False):
        return self.transform._shape(event_shape, not inverse)

    def _forward(self, x):
        return self.transform._inverse(x)

    def _inverse(self, y):
        return self.transform._forward(y)

    def _log_jacobian(self, x):
        return -self.transform._log_jacobian(self._forward(x))

    def _log_jacobian_gradient(self, x):
        y = self._forward(x)
        return -self.transform._inverse_pullback(y, self.transform._log_jacobian_gradient(y))

    def _pullback(self, x, gradient):
        return self.transform._inverse_pullback(self._forward(x), gradient)

    def _inverse_pullback(self, x, gradient):
        return self.transform._pullback(self._forward(x), gradient)


class Compose(Transform):
    """One transform after another, the first one first.

    Parameters
    ----------
    *transforms : Transform
        At least one.

    Attributes
    ----------
    transforms : tuple
        The parts; those of a composition among them in its place.

    Raises
    ------
    TypeError
        If one of them is not a transform.
    ValueError
        If there are none, if nothing that one gives is in the domain of the next, or if on the simplex another one
        stands than `StickBreaking` and its inverse: it would lead off it.

    Examples
    --------
    >>> from fastdiv import transforms
    >>> above_one = transforms.Compose(transforms.Affine(0, 2), transforms.Exp(), transforms.Affine(1, 1))
    >>> above_one.forward(0.0)
    np.float64(2.0)
    >>> above_one.domain, above_one.codomain
    ((-inf, inf), (1.0, inf))
    >>> above_one.inv.forward(2.0)
    np.float64(0.0)
    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ValueError("transforms must not be empty")
        parts = []
        for i, transform in enumerate(transforms):
            checked_transform(transform, f"transforms[{i}]")
            parts += transform.transforms if isinstance(transform, Compose) else [transform]
        self.transforms = tuple(parts)
        for before, after in pairwise(parts):
            if before._on_simplex[1] != after._on_simplex[0]:
                raise ValueError(f"on the simplex only StickBreaking and its inverse may meet, got {self!r}")
        self._on_simplex = parts[0]._on_simplex[0], parts[-1]._on_simplex[1]
        self.event_dim = max(part.event_dim for part in parts)
        falling = [part.increasing is False for part in parts]
        self.increasing = None if any(part.increasing is None for part in parts) else sum(falling) % 2 == 0
        self.domain = self._ends(parts[::-1], inverse=True)
        self.codomain = self._ends(parts)

    def _ends(self, parts, inverse=False):
        """Return the ends of what the parts, in their order, make of all that they can take."""
        low, high = -np.inf, np.inf
        for part in parts:
            ends = part.codomain if inverse else part.domain
            low, high = np.maximum(low, ends[0]), np.minimum(high, ends[1])
            if not np.all(low < high):
                raise ValueError(f"each transform must take what the one before it gives, got {self!r}")
            low, high = part._image(low, high, inverse)
        return low, high

    @property
    def inv(self) -> Transform:
        """The inverses of the parts, the last one first."""
        return Compose(*(part.inv for part in self.transforms[::-1]))

    def _key(self):
        return self.transforms

    def _image(self, low, high, inverse=False):
        for part in self.transforms[::-1] if inverse else self.transforms:
            low, high = part._image(low, high, inverse)
        return low, high

    def _points(self, value, name, after):
        return self.transforms[-after]._points(value, name, after)

    def _widened(self, points, after):
        return self.transforms[-after]._widened(points, after)

    def _shape(self, event_shape, inverse=False):
        for part in self.transforms[::-1] if inverse else self.transforms:
            event_shape = part._shape(event_shape, inverse)
        return event_shape

    def _steps(self, x):
        """Return the parts, each with the points that it gets."""
        steps = []
        for part in self.transforms:
            steps.append((part, part._points(x, "x", False)))
            x = part._forward(x)
        return steps

    def _forward(self, x):
        last, x = self._steps(x)[-1]
        return last._forward(x)

    def _inverse(self, y):
        return self.inv._forward(y)

    def _log_jacobian(self, x):
        terms = [(part.event_dim, part._log_jacobian(x)) for part, x in self._steps(x)]
        return sum(term.sum(axis=-1) if dim < self.event_dim else term for dim, term in terms)

    def _log_jacobian_gradient(self, x):
        *steps, (last, x) = self._steps(x)
        gradient = last._log_jacobian_gradient(x)
        for part, x in reversed(steps):
            gradient = part._log_jacobian_gradient(x) + part._pullback(x, gradient)
        return gradient

    def _pullback(self, x, gradient):
        for part, point in reversed(self._steps(x)):
            gradient = part._pullback(point, gradient)
        return gradient

    def _inverse_pullback(self, x, gradient):
        return self.inv._pullback(self._forward(x), gradient)


def checked_transform(value: Transform, name: str) -> Transform:
    """Return `value` if it is a transform."""
    if not isinstance(value, Transform):
        raise TypeError(f"{name} must be a transform of fastdiv.transforms, got {type(value).__name__}")
    return value


class Transformed(Distribution):
    r"""Distribution of what a transform makes of a random number.

    With :math:`y = T(x)` and x drawn from the base, its density is

    .. math:: p(y) = p_{\text{base}}(T^{-1}(y))\, |\det \partial T^{-1} / \partial y|

    Parameters
    ----------
    base : distribution
        Of x; anything that `as_distribution` takes.
    transform : Transform
        From x to y.

    Attributes
    ----------
    base : Distribution
        As `as_distribution` gives it.
    transform : Transform
        As given.
    event_shape : tuple
        () on the line, (D,) in D dimensions; one more or one less than the base's for `StickBreaking`.

    Raises
    ------
    TypeError
        If `base` is not a distribution, or `transform` not a transform.
    ValueError
        If the base's support is not in the transform's domain, its dimensions are not the transform's, or the base was
        carried to the simplex and the transform is not one of the simplex.

    Notes
    -----
    At an end of the support density and score are those at the base's end, or where the transform has no slope there,
    the density is its limit and the score that of a point close by; in D dimensions there is no density on the
    boundary. `cdf` and `quantile` are there on the line where the base has them.

    Where an `Interval` undone carries the base's whole support to the line, as by `unconstrain`, tails are right also
    where a point of the interval rounds to its end: there the density goes on as a power of the distance from the end.
    In D dimensions it does not, and a point that rounds to the boundary has no density.

    Examples
    --------
    >>> from fastdiv import Normal, Transformed, transforms
    >>> lognormal = Transformed(Normal(0, 1), transforms.Exp())
    >>> lognormal.pdf([-1.0, 0.0, 1.0]).round(6)
    array([0.      , 0.      , 0.398942])
    >>> lognormal.support
    (0.0, inf)
    """

    def __init__(self, base: Any, transform: Transform) -> None:
        (self.base,) = check_distributions(base=base)
        self.transform = checked_transform(transform, "transform")
        self.event_shape = transform._shape(self.base.event_shape)
        if isinstance(self.base, Transformed) and self.base.transform._on_simplex[1] and not transform._on_simplex[0]:
            raise ValueError(f"base is on the simplex, which only StickBreaking().inv leads from, got {transform!r}")
        ends = tuple(self.base.support)
        if not (np.all(ends[0] >= transform.domain[0]) and np.all(ends[1] <= transform.domain[1])):
            raise ValueError(
                f"base must have its support in the transform's domain, {transform.domain}, got the support {ends}"
            )
        self._support = transform._image(*ends)
        self._inverse = transform.inv
        bounded = not self.event_shape and any(map(math.isfinite, ends))
        self._to_line = bounded and isinstance(self._inverse, Interval) and self._inverse.codomain == ends
        # What is back on the whole line is what it was there, also where points round on the way.
        is_back = isinstance(self.base, Transformed) and self.base.transform == self._inverse
        self._original = self.base.base if is_back and np.all(np.isinf(self._support)) else None

    def __repr__(self):
        return f"Transformed({self.base!r}, {self.transform!r})"

    @property
    def support(self) -> tuple:
        """Lower and upper end of where the density is positive: floats, or in D dimensions arrays of shape (D,)."""
        return self._support

    @cached_property
    def landmarks(self):
        """Those of the base, transformed."""
        if self._original is not None:
            return self._original.landmarks
        marks = np.sort(self.transform.forward(self.base.landmarks))
        return marks[np.isfinite(marks)]

    def logpdf(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Logarithm of the density.

        Parameters
        ----------
        x : array_like, shape (...) or (..., D)
            Points after the transform.
        backend : str, optional
            The kernel set of the base, as in `use_backend`.

        Returns
        -------
        float or ndarray, shape (...)
            In nats: -inf outside the support, NaN for NaN; float32 for float32 points, else float64.

        Raises
        ------
        ValueError
            If the last axis of `x` does not have the distribution's D.

        Examples
        --------
        >>> from scipy import stats
        >>> from fastdiv import Transformed, transforms
        >>> p = Transformed(stats.gamma(1), transforms.Exp().inv)
        >>> p.logpdf([-800.0, 0.0]), stats.gumbel_l().logpdf([-800.0, 0.0])
        (array([-800.,   -1.]), array([-800.,   -1.]))
        """
        x = self._points(x)
        y = _with_ends(x, self._support)
        with np.errstate(all="ignore"):
            out = self._interior_logpdf(y, backend)
            out = np.where(self._inside(y), out, np.where(self._any(np.isnan(y)), np.nan, -np.inf))
            for end, inwards, base_end in self._finite_ends():
                if np.any(y == end):
                    out = np.where(y == end, self._limit(end, inwards, base_end, backend), out)
        return out.astype(x.dtype, copy=False)[()]

    def score(self, x: ArrayLike, *, backend: str | None = None) -> Floats:
        """Gradient of the log-density in x: 0 wherever there is no density.

        Parameters
        ----------
        x : array_like, shape (...) or (..., D)
            Points after the transform.
        backend : str, optional
            The kernel set of the base, as in `use_backend`.

        Returns
        -------
        float or ndarray, of the shape of `x`
            In nats per unit of x. On the simplex it is that in the first weights, and the last entry is 0.

        Raises
        ------
        ValueError
            If the last axis of `x` does not have the distribution's D.

        Examples
        --------
        >>> from fastdiv import Normal, Transformed, transforms
        >>> Transformed(Normal(0, 1), transforms.Exp()).score([-1.0, 1.0])
        array([ 0., -1.])
        """
        x = self._points(x)
        y = _with_ends(x, self._support)
        density = np.asarray(self.logpdf(y, backend=backend))
        with np.errstate(all="ignore"):
            out = self._interior_score(y, backend)
            for end, inwards, base_end in self._finite_ends():
                if np.any(y == end):
                    slope = self._score_at(end, inwards, base_end, backend)
                    out = np.where(y == end, np.where(density == np.inf, -np.inf * inwards, slope), out)
        density = density[..., None] if self.event_shape else density
        out = np.where(np.isnan(density), np.nan, np.where(density == -np.inf, 0.0, out))
        return out.astype(x.dtype, copy=False)[()]

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
            The base's samples, transformed.

        Examples
        --------
        >>> from fastdiv import Normal, Transformed, transforms
        >>> bool(Transformed(Normal(0, 1), transforms.Exp()).sample(9, rng=0).min() > 0)
        True
        """
        if self._original is not None:
            return self._original.sample(shape, rng=rng)
        return self.transform.forward(self.base.sample(shape, rng=rng))

    @property
    def cdf(self) -> Callable[[ArrayLike], Floats]:
        """Cumulative distribution function, on the line, where the base has one.

        Examples
        --------
        >>> from fastdiv import Normal, Transformed, transforms
        >>> Transformed(Normal(0, 1), transforms.Exp()).cdf([-1.0, 1.0])
        array([0. , 0.5])
        """
        if self._original is not None:
            return self._original.cdf
        return partial(_transformed_cdf, self.base.cdf, self.transform, self._support)

    @property
    def quantile(self) -> Callable[[ArrayLike], Floats]:
        """Inverse of the cumulative distribution function, on the line, where the base has one.

        Examples
        --------
        >>> from scipy import stats
        >>> from fastdiv import Transformed, transforms
        >>> Transformed(stats.uniform(), transforms.Exp().inv).quantile(0.5).round(6)
        np.float64(-0.693147)
        """
        if self._original is not None:
            return self._original.quantile
        return partial(_transformed_quantile, self.base.quantile, self.transform)

    def _points(self, x):
        x = as_float_array(x, "x")
        if self.event_shape and x.shape[-1:] != self.event_shape:
            raise ValueError(f"x must have shape (..., {self.event_shape[0]}), got {x.shape}")
        return x

    def _any(self, values):
        return values.any(axis=-1) if self.event_shape else values

    def _inside(self, y):
        """Whether points are inside the support, and not on its boundary."""
        low, high = self._support
        outside = ~((y > low) & (y < high))
        if not self.event_shape:
            return ~outside
        return ~self._any(outside) & np.isfinite(self._inverse.forward(y)).all(axis=-1)

    def _finite_ends(self):
        """Return the ends on the line that are points, each with the direction inwards and the end of the base."""
        if self.event_shape:
            return []
        base_ends = self.base.support if self.transform.increasing else self.base.support[::-1]
        return [ends for ends in zip(self._support, (1, -1), base_ends, strict=True) if np.isfinite(ends[0])]

    def _interior_logpdf(self, y, backend):
        if self._original is not None:
            return self._original.logpdf(y, backend=backend)
        if self._to_line:
            density = _carried_logpdf(self.base, self._inverse, y, backend)
        else:
            density = self.base.logpdf(self._inverse.forward(y), backend=backend)
        log_jacobian = self._inverse.log_abs_det_jacobian(y)
        one_by_one = self.event_shape and not self._inverse.event_dim
        return density + (log_jacobian.sum(axis=-1) if one_by_one else log_jacobian)

    def _interior_score(self, y, backend):
        if self._original is not None:
            return self._original.score(y, backend=backend)
        if self._to_line:
            pulled = _carried_score(self.base, self._inverse, y, backend)
        else:
            pulled = self._inverse.pullback(y, self.base.score(self._inverse.forward(y), backend=backend))
        return pulled + self._inverse.log_abs_det_jacobian_gradient(y)

    def _limit(self, end, inwards, base_end, backend):
        """Return the log-density's limit at an end: infinite if it has a slope in the logarithm of the distance."""
        there = self.base.logpdf(base_end, backend=backend) - self.transform.log_abs_det_jacobian(base_end)
        if self._slopes(base_end) and not np.isnan(there):
            return there
        low, high = self._support
        nearest = max(4 * np.spacing(abs(end)), np.finfo(np.float64).tiny)
        farthest = min(2.0**16 * nearest, high / 4 - low / 4)
        distances = np.geomspace(nearest, farthest, 3)
        values = self._interior_logpdf(end + inwards * distances, backend)
        slopes = np.diff(values) / np.diff(np.log(distances))
        # The slope of a power stays as it is; that towards a finite limit falls with the distance.
        lasts = abs(slopes[0]) > max(1e-6, abs(slopes[1]) / 2)
        return np.copysign(np.inf, -slopes[0]) if lasts else values[0]

    def _slopes(self, base_end):
        """Whether the transform has a slope at an end of the base, neither 0 nor infinite."""
        return np.isfinite(base_end) and np.isfinite(self.transform.log_abs_det_jacobian(base_end))

    def _score_at(self, end, inwards, base_end, backend):
        """Return the score at an end, or near it where the transform has no slope there."""
        if self._slopes(base_end):
            gradient = self.base.score(base_end, backend=backend)
            gradient = gradient - self.transform.log_abs_det_jacobian_gradient(base_end)
            there = self.transform._inverse_pullback(np.float64(base_end), gradient)
            if not np.isnan(there):
                return there
        # As far from the end as lets both rounding and the way from there be small.
        scale = abs(np.median(self.landmarks) - end) if len(self.landmarks) else 1.0
        near = end + inwards * max(KNOWN_SCORE[0] * scale, 4 * np.spacing(abs(end)))
        return self._interior_score(near, backend)


def _transformed_cdf(cdf, transform, support, x):
    x = as_float_array(x, "x")
    y = np.clip(_with_ends(x, support), *support)
    below = cdf(transform.inverse(y))
    return np.asarray(below if transform.increasing else 1 - below).astype(x.dtype, copy=False)[()]


def _transformed_quantile(quantile, transform, u):
    u = as_float_array(u, "u")
    return transform.forward(quantile(u if transform.increasing else 1 - u))


def _anchored(interval, y, known):
    """Return points of an interval, moved to where a density is known if they are too near to an end.

    Return also which points are near an end, which end it is, and the direction in which the inside is from there.
    """
    a, b = interval.codomain
    at_a = y < 0 if np.isfinite(a) and np.isfinite(b) else np.full(y.shape, np.isfinite(a))
    end, inwards = np.where(at_a, a, b), np.where(at_a, 1.0, -1.0)
    x = interval.forward(y)
    distance = np.abs(x - end)
    near = distance <= np.maximum(NEAR * np.abs(end), known[1])
    least = np.minimum(np.maximum(known[0] * np.abs(end), known[1]), (b - a) / 8)
    return np.where(distance < least, end + inwards * least, x), near, end, inwards


def _carried_logpdf(base, interval, y, backend):
    """Return the base's log-density at points of an interval, also at those that round to its end.

    Near an end a density is a power of the distance, whose logarithm y still knows: the log-density is taken where
    there is a distance, and goes on from there along its secant.
    """
    x, near, end, inwards = _anchored(interval, y, KNOWN_DENSITY)
    out = np.array(base.logpdf(x, backend=backend), np.float64)
    if np.any(near):
        x, y, end, inwards = (values[near] for values in (x, y, end, inwards))
        farther = end + 2 * (x - end)
        distance = np.abs(x - end)
        slope = (base.logpdf(farther, backend=backend) - out[near]) / np.log(np.abs(farther - end) / distance)
        width = interval.b - interval.a
        log_distance = inwards * y if np.isinf(width) else math.log(width) + log_expit(-np.abs(y))
        out[near] += np.where(np.isfinite(slope), slope * (log_distance - np.log(distance)), 0)
    return out


def _carried_score(base, interval, y, backend):
    """Return the derivative in y of the base's log-density at points of an interval, as `_carried_logpdf` takes it."""
    x, near, end, _ = _anchored(interval, y, KNOWN_SCORE)
    rate = 1.0 if np.isinf(interval.b - interval.a) else expit(np.abs(y))
    step = np.where(near, np.abs(x - end) * rate, interval.pullback(y, 1.0))
    return base.score(x, backend=backend) * step


def unconstrain(dist: Any) -> Distribution:
    """Carry a distribution to the whole line by a transform that its support calls for.

    Parameters
    ----------
    dist : distribution
        Anything that `as_distribution` takes.

    Returns
    -------
    Transformed
        By the logarithm of what lives on the positive numbers, by the logit of what lives on (0, 1), else by an
        `Interval` undone: the logit of the place between two finite ends, the logarithm of the distance from one. In D
        dimensions each coordinate goes by its own ends, and what a transform carried to the simplex by
        `StickBreaking` undone. ``.transform.inv`` leads back. What already lives on the
        whole line is handed back as it is.

    Raises
    ------
    TypeError
        If `dist` is not a distribution.

    References
    ----------
    Kucukelbir et al. (2017), Automatic differentiation variational inference, section 2.3.

    Examples
    --------
    >>> from scipy import stats
    >>> from fastdiv import unconstrain
    >>> p = unconstrain(stats.uniform(1, 3))
    >>> p.transform.inv
    Interval(1.0, 4.0)
    >>> p.pdf([0.0, 1.0]) - stats.logistic().pdf([0.0, 1.0])
    array([0., 0.])
    >>> p.transform.inv.forward(0.0)
    np.float64(2.5)
    """
    (dist,) = check_distributions(dist=dist)
    if isinstance(dist, Transformed) and dist.transform._on_simplex[1]:
        return Transformed(dist, StickBreaking().inv)
    low, high = dist.support
    if np.all(np.isinf(low)) and np.all(np.isinf(high)):
        return dist
    names = {(0.0, np.inf): Exp, (0.0, 1.0): Sigmoid}
    named = None if dist.event_shape else names.get((low, high))
    return Transformed(dist, (named() if named else Interval(low, high)).inv)
