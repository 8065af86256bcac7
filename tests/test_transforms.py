"""Transforms against mpmath and SciPy, and round trips."""

import pickle

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, special, stats

from fastdiv import MultivariateNormal, Normal, Transformed, as_distribution, kl_divergence, transforms, unconstrain
from fastdiv.distributions import Distribution
from fastdiv.transforms import Affine, Compose, Exp, Interval, Inverse, Sigmoid, StickBreaking

INF, NAN = np.inf, np.nan
TOLERANCE = {np.float64: 1e-13, np.float32: 1e-5}
many = settings(deadline=None, derandomize=True, max_examples=200)

ELEMENTWISE = [
    Exp(),
    Sigmoid(),
    Interval(1, 4),
    Interval(-3, 0),
    Interval(2, INF),
    Interval(-INF, 2),
    Interval(-INF, INF),
    Affine(3, 2),
    Affine(3, -2),
    Compose(Affine(1, 0.5), Exp()),
    Compose(Exp(), Affine(0, -1)),
]
over_elementwise = pytest.mark.parametrize("transform", ELEMENTWISE, ids=repr)
ALL = [*ELEMENTWISE, StickBreaking(), Compose(Affine([0, 1], [1, -2]), StickBreaking())]
over_all = pytest.mark.parametrize("transform", ALL, ids=repr)


def in_mpmath(transform, x):
    """The point after an elementwise transform, exact."""
    if isinstance(transform, Compose):
        for part in transform.transforms:
            x = in_mpmath(part, x)
        return x
    if isinstance(transform, Affine):
        return transform.loc + transform.scale * x
    a, b = (mpmath.mpf(end) for end in transform.codomain)
    if mpmath.isinf(a):
        return x if mpmath.isinf(b) else b - mpmath.exp(-x)
    return a + mpmath.exp(x) if mpmath.isinf(b) else a + (b - a) / (1 + mpmath.exp(-x))


def exact(function, x):
    # At 700 the logistic function is 1 but for its 300th digit.
    with mpmath.workdps(400):
        return [float(function(mpmath.mpf(float(value)))) for value in x]


POINTS = np.array([-700.0, -40.5, -3.0, -1e-3, 0.0, 0.7, 5.0, 37.25, 300.0])


@over_elementwise
def test_points_and_their_jacobians_are_mpmaths(transform):
    def log_derivative(x):
        return mpmath.log(abs(mpmath.diff(lambda t: in_mpmath(transform, t), x, h=mpmath.mpf(10) ** -30)))

    assert_allclose(transform.forward(POINTS), exact(lambda x: in_mpmath(transform, x), POINTS), rtol=1e-13)
    assert_allclose(transform.log_abs_det_jacobian(POINTS), exact(log_derivative, POINTS), rtol=1e-14, atol=1e-15)
    near = POINTS[abs(POINTS) < 100]
    gradient = exact(lambda x: mpmath.diff(log_derivative, x, h=mpmath.mpf(10) ** -20), near)
    assert_allclose(transform.log_abs_det_jacobian_gradient(near), gradient, rtol=1e-12, atol=1e-14)
    assert_allclose(transform.pullback(POINTS, 3.0), 3 * exact_derivative(transform, POINTS), rtol=1e-12)


def exact_derivative(transform, x):
    return np.array(exact(lambda t: mpmath.diff(lambda s: in_mpmath(transform, s), t, h=mpmath.mpf(10) ** -30), x))


def test_the_logistic_function_and_its_jacobian_are_scipys():
    assert_allclose(Sigmoid().forward(POINTS), special.expit(POINTS), rtol=3e-16)
    y = np.array([1e-320, 1e-9, 0.2, 0.5 - 1e-12, 0.5, 0.7, 1 - 1e-12])
    assert_allclose(Sigmoid().inverse(y), special.logit(y), rtol=1e-14)
    assert_allclose(Sigmoid().log_abs_det_jacobian(POINTS), stats.logistic.logpdf(POINTS), rtol=1e-15)


@pytest.mark.parametrize(
    ("transform", "low", "high"),
    [
        (Exp(), 0, INF),
        (Sigmoid(), 0, 1),
        (Interval(1, 4), 1, 4),
        (Interval(-0.1, 0.3), -0.1, 0.3),
        (Interval(2, INF), 2, INF),
        (Interval(-INF, 2), -INF, 2),
        (Affine(3, 2), -INF, INF),
        (Affine(3, -2), INF, -INF),
    ],
    ids=repr,
)
def test_far_out_points_are_at_the_ends(transform, low, high):
    assert_array_equal(transform.forward([-INF, INF]), [low, high])
    assert_array_equal(transform.inverse([low, high]), [-INF, INF])
    if not isinstance(transform, Affine):
        assert_array_equal(transform.forward([-750.0, 750.0]), [low, high])


@pytest.mark.parametrize(
    ("transform", "x", "log_jacobian", "gradient"),
    [
        (Sigmoid(), [-1000, 1000, -1e300, -INF, INF], [-1000, -1000, -1e300, -INF, -INF], [1, -1, 1, 1, -1]),
        (Exp(), [-1000, 1000, -INF, INF], [-1000, 1000, -INF, INF], [1, 1, 1, 1]),
        (Interval(-INF, 5), [-1000, 1000], [1000, -1000], [-1, -1]),
        (Interval(1, 1 + np.e), [-1000, 1000], [-999, -999], [1, -1]),
        (Affine(1, -np.e), [-1000, INF], [1, 1], [0, 0]),
    ],
    ids=repr,
)
def test_jacobians_far_out(transform, x, log_jacobian, gradient):
    assert_allclose(transform.log_abs_det_jacobian(x), log_jacobian, rtol=1e-15)
    assert_array_equal(transform.log_abs_det_jacobian_gradient(x), gradient)


@over_elementwise
def test_what_is_outside_the_codomain_has_no_inverse(transform):
    low, high = transform.codomain
    outside = [end for end in (np.nextafter(low, -INF), np.nextafter(high, INF)) if np.isfinite(end)]
    assert np.isnan(transform.inverse([*outside, NAN])).all()
    assert np.isnan(transform.forward(NAN))
    assert np.isnan(transform.log_abs_det_jacobian(NAN))
    assert np.isnan(transform.log_abs_det_jacobian_gradient(NAN))


@over_elementwise
@given(x=st.floats(-30, 30))
@many
def test_inverse_undoes_forward(transform, x):
    y = transform.forward(x)
    # A point is known as well as the numbers around its transform tell them apart.
    error = np.spacing(abs(y)) / abs(transform.pullback(x, 1.0)) + 4 * np.finfo(float).eps * (1 + abs(x))
    assert abs(transform.inverse(y) - x) <= 4 * error
    assert transform.inv.inv == transform
    assert transform.inv.forward(y) == transform.inverse(y)


@over_elementwise
@given(data=st.data())
@many
def test_forward_undoes_inverse(transform, data):
    low, high = (np.clip(end, -1e6, 1e6) for end in transform.codomain)
    y = data.draw(st.floats(low, high, exclude_min=True, exclude_max=True))
    x = transform.inverse(y)
    assume(abs(x) < 700)
    relative = 1e-13 * (1 + abs(x))
    assert_allclose(transform.forward(x), y, rtol=relative, atol=1e-15 * max(abs(low), abs(high)) * np.isfinite(low))


@over_all
def test_the_inverse_is_a_transform(transform):
    x = np.random.default_rng(0).normal(size=(5, 2))
    y, inverse = transform.forward(x), transform.inv
    assert_allclose(inverse.log_abs_det_jacobian(y), -transform.log_abs_det_jacobian(x), rtol=1e-12, atol=1e-14)
    assert_array_equal(inverse.domain, transform.codomain)
    assert_array_equal(inverse.codomain, transform.domain)
    gradient = np.random.default_rng(1).normal(size=y.shape)
    back = transform.pullback(x, inverse.pullback(y, transform.pullback(x, gradient)))
    assert_allclose(back, transform.pullback(x, gradient), rtol=1e-11, atol=1e-13)
    # The sum of the two log-Jacobians is 0, and so is its gradient.
    total = transform.log_abs_det_jacobian_gradient(x) + transform.pullback(x, inverse.log_abs_det_jacobian_gradient(y))
    assert_allclose(total, 0, atol=1e-12)


@over_all
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_precision_are_kept(transform, dtype):
    columns = 2
    for shape in [(), (0,), (3, 1)]:
        shape = (*shape, columns)
        x = np.linspace(-2, 2, int(np.prod(shape))).reshape(shape).astype(dtype)
        wide = x.astype(np.float64)
        y = transform.forward(x)
        for result, truth in [
            (y, transform.forward(wide)),
            (transform.log_abs_det_jacobian(x), transform.log_abs_det_jacobian(wide)),
            (transform.log_abs_det_jacobian_gradient(x), transform.log_abs_det_jacobian_gradient(wide)),
            (transform.inverse(y), wide),
        ]:
            assert (result.dtype, result.shape) == (dtype, truth.shape)
            assert_allclose(result, truth, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        before = x.copy()
        transform.pullback(x, y)
        assert_array_equal(x, before)


@over_elementwise
def test_a_number_gives_a_number(transform):
    for x in (1, 1.0, np.float32(1)):
        assert isinstance(transform.forward(x), np.float32 if isinstance(x, np.float32) else float)
        assert np.shape(transform.log_abs_det_jacobian(x)) == ()


def test_ends_in_single_precision_are_ends():
    for a, b in [(0.1, 0.3), (1 / 3, INF), (-INF, 1e300), (0.1, 1e300)]:
        transform = Interval(a, b)
        y = transform.forward(np.array([-INF, INF], np.float32))
        assert y.dtype == np.float32
        assert_array_equal(transform.inverse(y), [-INF, INF])


def test_ends_may_differ_by_coordinate():
    a, b = np.array([0, 0, 1, 2, -INF, -INF]), np.array([INF, 1, 4, INF, 2, INF])
    transform, alone = Interval(a, b), [Interval(*ends) for ends in zip(a, b, strict=True)]
    x = np.random.default_rng(0).normal(size=(3, 4, 6))
    for method in ("forward", "log_abs_det_jacobian", "log_abs_det_jacobian_gradient"):
        truth = np.stack([getattr(t, method)(x[..., i]) for i, t in enumerate(alone)], axis=-1)
        assert_array_equal(getattr(transform, method)(x), truth)
    assert_allclose(transform.inverse(transform.forward(x)), x, rtol=1e-12)
    assert_allclose(
        transform.pullback(x, x), np.stack([t.pullback(x[..., i], x[..., i]) for i, t in enumerate(alone)], -1)
    )
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 6\), got \(3,\)"):
        transform.forward(np.zeros(3))


@given(x=hnp.arrays(np.float64, 20, elements=st.floats(-800, 800)), a=st.floats(-1e9, 1e9), width=st.floats(1e-9, 1e9))
@many
def test_points_stay_in_their_interval_and_in_order(x, a, width):
    assume(a < a + width)
    transform = Interval(a, a + width)
    y = transform.forward(np.sort(x))
    assert np.all((y >= transform.a) & (y <= transform.b))
    assert np.all(np.diff(y) >= -np.spacing(np.abs(y[1:])))
    assert not np.isnan(transform.inverse(y)).any()


# Stick breaking


def exact_log_det(x):
    """By the numerical Jacobian of the first weights, exact."""
    size, step = len(x), mpmath.mpf(10) ** -40
    columns = []
    for k in range(size):
        moved = [[mpmath.mpf(float(v)) + sign * step * (i == k) for i, v in enumerate(x)] for sign in (1, -1)]
        columns.append([])
        for up, down in zip(*(exact_weights(point)[:-1] for point in moved), strict=True):
            columns[-1].append((up - down) / (2 * step))
    return mpmath.log(abs(mpmath.det(mpmath.matrix(columns))))


def exact_weights(x):
    left, weights = mpmath.mpf(1), []
    for k, value in enumerate(x):
        share = 1 / (1 + (len(x) - k) * mpmath.exp(-value))
        weights.append(left * share)
        left *= 1 - share
    return [*weights, left]


STICKS = [
    np.zeros(1),
    np.zeros(4),
    np.array([0.3, -2.0, 1.5]),
    np.array([-300.0, 20.0, 3.0]),
    np.array([30.0, -60.0, 40.0, 1.0, 0.0]),
]


@pytest.mark.parametrize("x", STICKS, ids=str)
def test_weights_and_their_determinant_are_mpmaths(x):
    transform = StickBreaking()
    with mpmath.workdps(300):
        weights = exact_weights([mpmath.mpf(float(value)) for value in x])
        log_weights, log_det = [float(mpmath.log(w)) for w in weights], float(exact_log_det(x))
        weights = [float(w) for w in weights]
    assert_allclose(transform.log_forward(x), log_weights, rtol=1e-14, atol=1e-16)
    assert_allclose(transform.forward(x), weights, rtol=1e-13)
    assert_allclose(transform.log_abs_det_jacobian(x), log_det, rtol=1e-13)


def test_zero_is_carried_to_equal_weights():
    for size in (1, 2, 9):
        assert_allclose(StickBreaking().forward(np.zeros(size)), 1 / (size + 1), rtol=1e-15)
        assert_allclose(StickBreaking().inverse(np.full(size + 1, 1 / (size + 1))), 0, atol=1e-14)
        gradient = StickBreaking().log_abs_det_jacobian_gradient(np.zeros(size))
        assert_allclose(gradient, 0, atol=1e-14)


def test_weights_that_underflow_have_their_logarithms():
    log_weights = StickBreaking().log_forward([-1000.0, 900.0, 1000.0])
    assert_allclose(
        log_weights, [-1000 - np.log(3), -2 * np.exp(-900.0), np.log(2) - 900, -1900 + np.log(2)], rtol=1e-14
    )
    assert_array_equal(StickBreaking().log_forward([INF, 0.0]), [0, -INF, -INF])
    assert_array_equal(StickBreaking().log_forward([-INF, -INF]), [-INF, -INF, 0])


@pytest.mark.parametrize("vertex", range(4))
def test_points_near_a_vertex_have_exact_inverses(vertex):
    weights = np.array([1e-300, 3e-200, 2e-30, 5e-17])
    weights[vertex] = 1
    with mpmath.workdps(400):
        parts = [mpmath.mpf(float(w)) for w in weights]
        truth = [float(mpmath.log(parts[k] / mpmath.fsum(parts[k + 1 :]) * (3 - k))) for k in range(3)]
    assert_allclose(StickBreaking().inverse(weights), truth, rtol=1e-14)
    assert_allclose(StickBreaking().forward(truth), weights, rtol=1e-12)


def test_points_of_the_boundary_come_back():
    for weights in (np.eye(4)[0], np.eye(4)[2], np.eye(4)[3], np.array([0, 0.5, 0, 0.5])):
        x = StickBreaking().inverse(weights)
        assert not np.isnan(x).any()
        assert_array_equal(StickBreaking().forward(x), weights)


@pytest.mark.parametrize("y", [[0.5, 0.6], [-0.1, 1.1], [0.5, 0.499], [NAN, 0.5]])
def test_what_is_off_the_simplex_has_no_inverse(y):
    assert np.isnan(StickBreaking().inverse(y)).all()


@given(x=hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.floats(-15, 15)))
@many
def test_stick_breaking_and_back(x):
    transform = StickBreaking()
    y = transform.forward(x)
    assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    assert_allclose(transform.inverse(y), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transform", [StickBreaking(), Compose(Affine(1, [2, -1, 0.5]), StickBreaking())], ids=repr)
def test_gradients_in_space_are_numerical_ones(transform):
    x, step = np.random.default_rng(0).normal(size=(7, 3)), 1e-5
    around = [(x + step * row, x - step * row) for row in np.eye(3)]
    slopes = [
        (transform.log_abs_det_jacobian(up) - transform.log_abs_det_jacobian(down)) / (2 * step) for up, down in around
    ]
    assert_allclose(transform.log_abs_det_jacobian_gradient(x), np.stack(slopes, axis=-1), rtol=1e-7, atol=1e-8)
    gradient = np.random.default_rng(1).normal(size=(7, 4))
    slopes = [
        np.sum(gradient * (transform.forward(up) - transform.forward(down)), -1) / (2 * step) for up, down in around
    ]
    assert_allclose(transform.pullback(x, gradient), np.stack(slopes, axis=-1), rtol=1e-7, atol=1e-8)


# Composition and the rest


def test_compositions():
    chain = Compose(Affine(1, 0.5), Exp(), Affine(0, -3))
    assert_allclose(chain.forward(POINTS[1:]), -3 * np.exp(1 + POINTS[1:] / 2), rtol=1e-14)
    assert_allclose(chain.inverse(-3 * np.exp(2)), 2, rtol=1e-14)
    assert (chain.domain, chain.codomain, chain.increasing) == ((-INF, INF), (-INF, 0), False)
    assert Compose(Compose(Affine(1, 0.5), Exp()), Affine(0, -3)) == chain
    assert chain.inv == Compose(Affine(0, -3).inv, Exp().inv, Affine(1, 0.5).inv)
    assert chain.inv.inv == chain
    assert Compose(Affine(-1, 1), Exp().inv).domain == (1, INF)
    # Twice exp: the log-Jacobian is x + exp(x).
    twice = Compose(Exp(), Exp())
    assert twice.codomain == (1, INF)
    assert_allclose(twice.log_abs_det_jacobian([-50.0, 1.0]), [-50, 1 + np.e], rtol=1e-15)
    assert_allclose(twice.log_abs_det_jacobian_gradient(1.0), 1 + np.e, rtol=1e-15)


@pytest.mark.parametrize(
    "parts",
    [
        (StickBreaking(), Affine(0, 2)),
        (Affine(1), StickBreaking(), Interval(0, 1).inv),
        (Exp(), StickBreaking().inv),
        (StickBreaking(), StickBreaking()),
        (StickBreaking(), Affine(0, 0.5), StickBreaking().inv),
        (Compose(Affine(1), StickBreaking()), Affine(0, 2)),
        (Inverse(Compose(Affine(1), StickBreaking()).inv), Affine(0, 2)),
    ],
    ids=repr,
)
def test_nothing_leads_off_the_simplex(parts):
    with pytest.raises(ValueError, match="on the simplex only StickBreaking and its inverse may meet"):
        Compose(*parts)


def test_densities_on_the_simplex_have_mass_1():
    base = MultivariateNormal([0.3, -0.7], [[1.0, 0.3], [0.3, 0.5]])
    there = Compose(Affine(0, 2), StickBreaking())
    p = Transformed(base, there)
    # The trapezoid rule in the logits of the first weight, and of the second one's share of the rest.
    logits = np.linspace(-15, 15, 301)
    first, share = np.meshgrid(special.expit(logits), special.expit(logits))
    second = (1 - first) * share
    area = first * (1 - first) ** 2 * share * (1 - share) * (logits[1] - logits[0]) ** 2
    weights = np.stack([first, second, 1 - first - second], axis=-1)
    assert np.sum(p.pdf(weights) * area) == pytest.approx(1, rel=1e-9)
    for back in (unconstrain(p), Transformed(base, Compose(there, StickBreaking().inv))):
        z = np.random.default_rng(0).normal(size=(5, 2))
        assert_allclose(back.logpdf(z), MultivariateNormal([0.6, -1.4], [[4.0, 1.2], [1.2, 2.0]]).logpdf(z), rtol=1e-12)
    with pytest.raises(ValueError, match="base is on the simplex, which only StickBreaking"):
        Transformed(p, Affine(0, 2))


def test_compositions_add_up_the_coordinates_of_a_point():
    shift, x = np.array([0.5, -1.0]), np.random.default_rng(0).normal(size=(6, 2))
    chain = Compose(Affine(shift, [2, 3]), StickBreaking())
    moved = shift + [2, 3] * x
    assert chain.event_dim == 1
    expected = np.log(6) + StickBreaking().log_abs_det_jacobian(moved)
    assert_allclose(chain.log_abs_det_jacobian(x), expected, rtol=1e-14)
    assert_allclose(chain.inverse(chain.forward(x)), x, rtol=1e-11)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: Interval(1, 1), ValueError, "a must be less than b, got a=1.0 and b=1.0"),
        (lambda: Interval(NAN, 1), ValueError, "a must be less than b"),
        (lambda: Interval(INF, INF), ValueError, "a must be less than b"),
        (lambda: Interval(-1e308, 1e308), ValueError, "b - a must be finite"),
        (lambda: Interval("a", 1), TypeError, "a must be real numbers"),
        (lambda: Interval([[0]], 1), ValueError, r"a must be a number or an array of shape \(D,\)"),
        (lambda: Interval([0, 1], [2, 3, 4]), ValueError, "a and b must have the same shape"),
        (lambda: Affine(0, 0), ValueError, "scale must not be 0"),
        (lambda: Affine(INF, 1), ValueError, "loc must be finite"),
        (lambda: Affine(0, [1, NAN]), ValueError, "scale must be finite"),
        (lambda: Compose(), ValueError, "transforms must not be empty"),
        (
            lambda: Compose(Exp(), np.exp),
            TypeError,
            r"transforms\[1\] must be a transform of fastdiv.transforms, got ufunc",
        ),
        (lambda: Compose(Interval(-2, -1), Exp().inv), ValueError, "each transform must take what the one before it"),
        (lambda: Inverse(np.exp), TypeError, "transform must be a transform"),
        (lambda: Exp().forward("x"), TypeError, "x must be real numbers"),
        (lambda: Exp().inverse([1j]), TypeError, "y must be real numbers"),
        (
            lambda: Exp().pullback([1, 2], [1, 2, 3]),
            ValueError,
            r"gradient must have the shape of y, \(2,\), got \(3,\)",
        ),
        (lambda: StickBreaking().pullback([1, 2], [1, 2]), ValueError, r"the shape of y, \(3,\), got \(2,\)"),
        (lambda: StickBreaking().forward(0.0), ValueError, r"x must have shape \(\.\.\., K-1\)"),
        (lambda: StickBreaking().inverse([1.0]), ValueError, r"y must have shape \(\.\.\., K\)"),
        (lambda: Affine([1, 2], 1).inverse([1, 2, 3]), ValueError, r"y must have shape \(\.\.\., 2\), got \(3,\)"),
        (lambda: Compose(Exp(), Affine([1, 2])).forward(1.0), ValueError, r"x must have shape \(\.\.\., 2\), got \(\)"),
    ],
)
def test_wrong_arguments_are_named(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@over_all
def test_transforms_are_compared_printed_and_pickled(transform):
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    assert hash(copy) == hash(transform)
    assert repr(copy) == repr(transform)
    assert eval(repr(transform), vars(transforms) | {"inf": INF}) == transform
    assert sum(transform == other for other in ALL) == 1
    assert transform.inv != transform
    assert transform != 3


def test_transforms_that_are_equal_have_one_hash():
    for one, other in [(Affine(0.0), Affine(-0.0)), (Interval([0, 0.0], 1), Interval([0, -0.0], 1))]:
        assert one == other
        assert hash(one) == hash(other)
        assert hash(one.inv) == hash(other.inv)


# Distributions carried through


class Dirichlet(Distribution):
    def __init__(self, alpha):
        self.alpha, self.event_shape = np.array(alpha), (len(alpha),)

    @property
    def support(self):
        return np.zeros(len(self.alpha)), np.ones(len(self.alpha))

    def logpdf(self, x, *, backend=None):
        return stats.dirichlet.logpdf(x.reshape(-1, x.shape[-1]).T, self.alpha).reshape(x.shape[:-1])

    def score(self, x, *, backend=None):
        return (self.alpha - 1) / x

    def sample(self, shape=(), *, rng=None):
        return np.random.default_rng(rng).dirichlet(self.alpha, shape)


LINE = np.array([-700.0, -300.0, -40.0, -20.0, -3.0, -0.5, 0.0, 1.0, 2.5])
TAILS = np.concatenate([LINE, -LINE])
POSITIVE = np.array([1e-307, 1e-20, 0.1, 1.0, 3.0, 1e20, 1e300])
FAMILIES = {
    "Beta(2, 2)": (stats.beta(2, 2), Sigmoid()),
    "Beta(2, 3)": (stats.beta(2, 3), Sigmoid()),
    "Gamma(1, 1)": (stats.gamma(1), Exp()),
    "Uniform(1, 4)": (stats.uniform(1, 3), Interval(1, 4)),
    "Uniform(1, 4), new": (stats.Uniform(a=1, b=4), Interval(1, 4)),
    "Gamma(2, 1), new": (stats.make_distribution(stats.gamma)(a=2.0), Exp()),
    "Pareto": (stats.pareto(3), Interval(1, INF)),
    "reflected": (stats.weibull_max(1.5), Interval(-INF, 0)),
}
over_families = pytest.mark.parametrize(("family", "transform"), FAMILIES.values(), ids=FAMILIES)


CLOSED_FORMS = {
    "lognormal": (Transformed(Normal(0.3, 0.7), Exp()), stats.lognorm(0.7, scale=np.exp(0.3)), POSITIVE),
    "exponential": (Transformed(stats.gumbel_l(), Exp()), stats.expon(), POSITIVE[:5]),
    "uniform": (Transformed(stats.logistic(), Sigmoid()), stats.uniform(), np.array([1e-300, 0.3, 0.5, 1 - 1e-15])),
    "exponential, of its power": (
        Transformed(stats.pareto(3), Exp().inv),
        stats.expon(0, 1 / 3),
        np.array([1e-9, 0.1, 2]),
    ),
    "log-logistic": (Transformed(stats.logistic(), Exp()), stats.fisk(1), POSITIVE[1:5]),
    "normal": (Transformed(Normal(1, 2), Affine(3, -4)), stats.norm(-1, 8), LINE),
    "reversed Gumbel": (unconstrain(stats.gamma(1)), stats.gumbel_l(), LINE),
    "reversed Gumbel, moved": (unconstrain(stats.expon(2)), stats.gumbel_l(), LINE),
    "Gumbel": (unconstrain(stats.weibull_max(1)), stats.gumbel_r(), -LINE),
    "log-gamma": (unconstrain(stats.gamma(2.5)), stats.loggamma(2.5), LINE),
    "normal again": (unconstrain(stats.lognorm(2)), stats.norm(0, 2), TAILS),
    "logistic": (unconstrain(stats.uniform()), stats.logistic(), TAILS),
    "logistic, wide": (unconstrain(stats.uniform(1, 3)), stats.logistic(), TAILS),
}
over_closed_forms = pytest.mark.parametrize(("p", "truth", "x"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)


@over_closed_forms
def test_transformed_densities_are_scipys(p, truth, x):
    assert_allclose(p.logpdf(x), truth.logpdf(x), rtol=1e-12, atol=1e-15)
    assert_allclose(p.logpdf(x[abs(x) < 30]), truth.logpdf(x[abs(x) < 30]), rtol=1e-13, atol=1e-15)
    assert p.support == truth.support()
    near = x[abs(x) < 30]
    assert_allclose(p.cdf(near), truth.cdf(near), rtol=1e-12, atol=1e-15)
    draws = p.sample((100, 20), rng=0)
    assert draws.shape == (100, 20)
    assert stats.kstest(draws.ravel(), truth.cdf).pvalue > 0.001


@over_closed_forms
def test_scores_are_numerical_derivatives(p, truth, x):
    near = x[(abs(x) < 5) & (np.min(abs(x - np.array(p.support)[:, None]), axis=0) > 0.01)]
    step = 1e-3
    offsets, weights = np.array([-2, -1, 1, 2]), np.array([1, -8, 8, -1]) / (12 * step)
    slopes = weights @ truth.logpdf(near + step * offsets[:, None])
    assert_allclose(p.score(near), slopes, rtol=1e-7, atol=1e-7)
    assert_allclose(p.pdf_derivative(near), p.pdf(near) * p.score(near), rtol=1e-14)


@over_families
def test_the_support_chooses_the_transform(family, transform):
    p = unconstrain(family)
    assert p.transform.inv == transform
    assert p.support == (-INF, INF)
    z = np.linspace(-6, 6, 101)
    x = transform.forward(z)
    assert_allclose(p.pdf(z), family.pdf(x) * np.exp(transform.log_abs_det_jacobian(z)), rtol=1e-13)
    assert_allclose(p.base.logpdf(x), Transformed(p, p.transform.inv).logpdf(x), rtol=1e-12, atol=1e-14)
    assert integrate.quad(p.pdf, -60, 60, points=[-5, 0, 5])[0] == pytest.approx(1, rel=1e-9)
    assert stats.kstest(p.sample(5000, rng=0), p.cdf).pvalue > 0.001
    assert_allclose(p.cdf(p.quantile([0.1, 0.5, 0.9])), [0.1, 0.5, 0.9], rtol=1e-12)


def test_what_lives_on_the_line_is_left_as_it_is():
    for p in (Normal(1, 2), MultivariateNormal([0, 0], [1, 1])):
        assert unconstrain(p) is p
    assert unconstrain(stats.norm(1, 2)).loc == 1
    assert unconstrain(unconstrain(stats.beta(2, 3))).base.support == (0, 1)


def exact_logit_beta(a, b, z):
    """Log-density of the logit of a beta variable."""
    return -a * mpmath.log(1 + mpmath.exp(-z)) - b * mpmath.log(1 + mpmath.exp(z)) - mpmath.log(mpmath.beta(a, b))


@pytest.mark.parametrize(("a", "b"), [(2, 2), (2, 3), (3, 4), (0.5, 0.5), (0.1, 9.5), (50, 0.2)])
def test_tails_are_right_where_points_round_to_the_ends(a, b):
    z = np.concatenate([TAILS, [-5000.0, -745.2, 15.0, 30.0, 36.0, 36.8, 38.0, 5000.0]])
    p, x = unconstrain(stats.beta(a, b)), Sigmoid().forward(z)
    assert {0.0, 1.0} <= set(x)
    assert_allclose(p.logpdf(z), exact(lambda z: exact_logit_beta(a, b, z), z), rtol=1e-12 * max(1, a / b))
    assert_allclose(p.score(z), a - (a + b) * special.expit(z), rtol=1e-6 * max(1, a / b), atol=1e-12)


def test_tails_of_a_moved_family_are_as_right_as_its_own_rounding_lets_them_be():
    z = np.array([-5000.0, -700.0, -40.0, -10.0, 0.0, 10.0, 40.0, 700.0, 5000.0])
    p = unconstrain(stats.beta(3, 4, loc=1, scale=3))
    assert_allclose(p.logpdf(z), exact(lambda z: exact_logit_beta(3, 4, z), z), rtol=1e-3)
    assert_allclose(p.score(z), 3 - 7 * special.expit(z), rtol=1e-4)


def test_the_coin():
    # Flips 0, 1, 1, 0, 0 and a uniform prior: the posterior is Beta(3, 4).
    posterior = unconstrain(stats.beta(3, 4))
    z = np.linspace(-30, 30, 101)
    assert_allclose(posterior.logpdf(z), exact(lambda z: exact_logit_beta(3, 4, z), z), rtol=1e-12)
    x = special.expit(z[40:61])
    assert_allclose(posterior.pdf(z[40:61]), 60 * x**3 * (1 - x) ** 4, rtol=1e-12)
    assert posterior.score(np.log(3 / 4)) == pytest.approx(0, abs=1e-8)


def test_constrained_densities_and_their_derivatives():
    x = np.array([-0.5, 0.2, 0.5, 1.5])
    for a, b in [(2, 2), (2, 3)]:
        p = Transformed(unconstrain(stats.beta(a, b)), Sigmoid())
        inside = x[1:3]
        density = inside ** (a - 1) * (1 - inside) ** (b - 1) / special.beta(a, b)
        assert_allclose(p.pdf(x), [0, *density, 0], rtol=1e-13)
        slope = density * ((a - 1) / inside - (b - 1) / (1 - inside))
        assert_allclose(p.score(x), [0, *(slope / density), 0], rtol=1e-8, atol=1e-8)
        assert_allclose(p.pdf_derivative(x), [0, *slope, 0], rtol=1e-8, atol=1e-8)


def test_the_derivative_of_a_function_is_its_closed_form():
    p = as_distribution(lambda x: x**2 + np.log(x), support=(0, INF))
    assert p.score(2.0) == pytest.approx(4.5, rel=1e-10)
    assert_allclose(p.pdf_derivative([-2.0, 2.0]), [0, 9 * np.exp(4)], rtol=1e-10)
    # In z = log x it is exp(2 z) + 2 z.
    assert unconstrain(p).score(np.log(2)) == pytest.approx(10, rel=1e-10)


@pytest.mark.parametrize(
    ("p", "x", "density", "score"),
    [
        (Transformed(Normal(), Exp()), [-1, 0, INF, NAN], [-INF, -INF, -INF, NAN], [0, 0, 0, NAN]),
        (Transformed(stats.gumbel_l(), Exp()), [-1, 0], [-INF, 0], [0, -1]),
        (Transformed(stats.pareto(3), Exp().inv), [-1, 0], [-INF, np.log(3)], [0, -3]),
        (Transformed(stats.logistic(), Sigmoid()), [0, 1, 2], [0, 0, -INF], [0, 0, 0]),
        (Transformed(stats.logistic(0, 0.5), Sigmoid()), [0, 1], [-INF, -INF], [0, 0]),
        (Transformed(stats.logistic(0, 2), Sigmoid()), [0, 1], [INF, INF], [-INF, INF]),
        (Transformed(stats.logistic(2), Interval(1, 5)), [1, 5], [-2 - np.log(4), 2 - np.log(4)], None),
        (Transformed(stats.expon(), Affine(1, -2)), [1, 2], [-np.log(2), -INF], [0.5, 0]),
        (Transformed(stats.t(3), Exp()), [0], [INF], [-INF]),
        (Transformed(stats.expon(scale=1e-3), Affine(1000, 1)), [1000], [np.log(1000)], [-1000]),
        (Transformed(stats.beta(1, 3), Affine(1e6, 1)), [1e6, 1e6 + 1], [np.log(3), -INF], [-2, 0]),
        (Transformed(stats.beta(3, 1), Affine(1e6, -1)), [1e6, 1e6 - 1], [-INF, np.log(3)], [0, -2]),
        (Transformed(stats.beta(0.5, 0.5), Affine(1e6, 1)), [1e6, 1e6 + 1], [INF, INF], [-INF, INF]),
        (Transformed(stats.uniform(), Affine(0.1, 3)), [0.1, 0.1 + 3], [-np.log(3), -np.log(3)], [0, 0]),
        (Transformed(stats.logistic(0, 2), Interval(1e6, 1e6 + 1)), [1e6, 1e6 + 1], [INF, INF], [-INF, INF]),
        (unconstrain(stats.gamma(1)), [-INF, INF, 800, NAN], [-INF, -INF, -INF, NAN], [0, 0, 0, NAN]),
        (unconstrain(stats.beta(2, 3)), [-INF, INF, NAN], [-INF, -INF, NAN], [0, 0, NAN]),
    ],
)
def test_at_the_ends_of_the_support_densities_are_their_limits(p, x, density, score):
    assert_allclose(p.logpdf(x), density, atol=1e-12)
    assert_allclose(p.pdf(x), np.exp(density), atol=1e-12)
    if score is not None:
        assert_allclose(p.score(x), score, atol=3e-5)


def test_a_finite_limit_is_not_taken_for_a_pole_where_the_scale_is_small():
    # The limit is that of a point a few roundings from the end.
    p = Transformed(stats.logistic(), Compose(Exp(), Affine(1e6, 1)))
    assert p.logpdf(1e6) == pytest.approx(0, abs=1e-8)
    p = Transformed(stats.logistic(2), Interval(1e6, 1e6 + 1e-3))
    assert p.logpdf(1e6) == pytest.approx(-2 - np.log(1e-3), abs=1e-5)


def test_distribution_functions_beyond_the_support():
    p = Transformed(stats.gamma(2), Affine(1, -2))
    assert p.support == (-INF, 1)
    x = np.array([-INF, -9.0, 0.0, 1.0, 3.0, INF, NAN])
    assert_allclose(p.cdf(x), stats.gamma(2).sf((1 - x) / 2), rtol=1e-14)
    u = np.array([0, 0.1, 0.9, 1])
    assert_allclose(p.quantile(u), 1 - 2 * stats.gamma(2).isf(u), rtol=1e-12)
    lognormal = Transformed(Normal(), Exp())
    assert_array_equal(lognormal.cdf([-1.0, 0.0, 1.0, INF]), [0, 0, 0.5, 1])
    with pytest.raises(ValueError, match="quantile is for distributions on the line"):
        Transformed(MultivariateNormal([0, 0], [1, 1]), Exp()).quantile(0.5)
    assert not hasattr(Transformed(Box([1, 1, 1]), Affine(1, 2)), "quantile")


def test_coordinates_one_by_one():
    p = Transformed(MultivariateNormal([0.3, -1.0], [0.49, 4.0]), Exp())
    parts = [stats.lognorm(0.7, scale=np.exp(0.3)), stats.lognorm(2, scale=np.exp(-1.0))]
    x = np.random.default_rng(0).lognormal(size=(4, 5, 2))
    assert_allclose(p.logpdf(x), sum(part.logpdf(x[..., i]) for i, part in enumerate(parts)), rtol=1e-13)
    assert_allclose(p.score(x), -(1 + (np.log(x) - [0.3, -1.0]) / [0.49, 4.0]) / x, rtol=1e-12)
    assert_array_equal(p.support, [[0, 0], [INF, INF]])
    assert_array_equal(p.logpdf([[1.0, -1.0], [0.0, 1.0], [NAN, 1.0], [INF, 1.0]]), [-INF, -INF, NAN, -INF])
    assert_array_equal(p.score([[1.0, -1.0], [NAN, 1.0]]), [[0, 0], [NAN, NAN]])
    draws = p.sample(4000, rng=0)
    for i, part in enumerate(parts):
        assert stats.kstest(draws[:, i], part.cdf).pvalue > 0.001


def test_the_dirichlet_on_the_simplex_and_off_it():
    alpha = np.array([0.5, 1.0, 3.0, 2.0])
    dirichlet = Dirichlet(alpha)
    p = Transformed(dirichlet, StickBreaking().inv)
    assert (p.event_shape, len(p.support[0])) == ((3,), 3)
    z = np.random.default_rng(0).normal(size=(6, 3))
    with mpmath.workdps(60):
        log_det = [float(exact_log_det(point)) for point in z]
        truth = [float(exact_dirichlet(alpha, point)) for point in z]
    assert_allclose(p.logpdf(z), truth, rtol=1e-13)
    assert_allclose(p.logpdf(z), dirichlet.logpdf(StickBreaking().forward(z)) + log_det, rtol=1e-13)
    assert_allclose(p.score(z), numerical_gradient(p, z), rtol=1e-6, atol=1e-8)
    again = Transformed(p, StickBreaking())
    w = dirichlet.sample(50, rng=0)
    assert_allclose(again.logpdf(w), dirichlet.logpdf(w), rtol=1e-11)
    assert_allclose(again.sample(9, rng=1).sum(axis=-1), 1, rtol=1e-13)
    assert_array_equal(again.logpdf([[0.5, 0.6, 0.0, 0.0], [0.5, 0.5, 0.1, -0.1], [NAN, 0, 0, 1]]), [-INF, -INF, NAN])
    # Only the first weights are free: along them, the last one takes what they give.
    along = np.concatenate([np.eye(3), -np.ones((3, 1))], axis=1)
    slopes = (again.logpdf(w[0] + 1e-6 * along) - again.logpdf(w[0] - 1e-6 * along)) / 2e-6
    assert_allclose(again.score(w[0])[:3], slopes, rtol=1e-5)
    assert again.score(w[0])[3] == 0


def exact_dirichlet(alpha, z):
    weights = exact_weights([mpmath.mpf(float(value)) for value in z])
    log_density = mpmath.fsum((mpmath.mpf(float(a)) - 1) * mpmath.log(w) for a, w in zip(alpha, weights, strict=True))
    gammas = mpmath.fsum(mpmath.loggamma(float(a)) for a in alpha)
    return log_density + mpmath.loggamma(float(sum(alpha))) - gammas + exact_log_det(z)


def numerical_gradient(p, x):
    """Central differences of the log-density, their error of sixth order."""
    step = 1e-2
    offsets, weights = np.array([-3, -2, -1, 1, 2, 3]) * step, np.array([-1, 9, -45, 45, -9, 1]) / (60 * step)
    around = [p.logpdf(x[..., None, :] + offset * np.eye(x.shape[-1])) for offset in offsets]
    return np.tensordot(weights, around, 1)


def test_a_gaussian_on_the_simplex_has_the_gradient_of_its_density():
    p = Transformed(MultivariateNormal([0.5, -1.0], [[1.0, 0.3], [0.3, 2.0]]), Compose(Affine([1, 0]), StickBreaking()))
    back = Transformed(p, StickBreaking().inv)
    z = np.random.default_rng(0).normal(size=(5, 2))
    assert_allclose(back.logpdf(z), MultivariateNormal([1.5, -1.0], [[1.0, 0.3], [0.3, 2.0]]).logpdf(z), rtol=1e-12)
    assert_allclose(back.score(z), MultivariateNormal([1.5, -1.0], [[1.0, 0.3], [0.3, 2.0]]).score(z), rtol=1e-9)


class Box(Dirichlet):
    """Independent: exponential, uniform on (1, 4), normal."""

    @property
    def support(self):
        return np.array([0, 1, -INF]), np.array([INF, 4, INF])

    def logpdf(self, x, *, backend=None):
        return -x[..., 0] - np.log(3) + stats.norm.logpdf(x[..., 2])


def test_each_coordinate_is_unconstrained_by_its_own_ends():
    p = unconstrain(Box([1, 1, 1]))
    assert p.transform.inv == Interval([0, 1, -INF], [INF, 4, INF])
    z = np.random.default_rng(0).normal(size=(5, 3))
    truth = stats.gumbel_l.logpdf(z[:, 0]) + stats.logistic.logpdf(z[:, 1]) + stats.norm.logpdf(z[:, 2])
    assert_allclose(p.logpdf(z), truth, rtol=1e-13)
    assert_array_equal(p.support, [[-INF] * 3, [INF] * 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_shape_and_precision_of_the_points(backend, dtype):
    line = [Transformed(Normal(), Exp()), unconstrain(stats.gamma(2)), unconstrain(stats.uniform(0.1, 0.2))]
    for p, shape in [(p, shape) for p in line for shape in [(), (0,), (2, 3)]]:
        x = np.full(shape, 0.5, dtype)
        for result in (p.logpdf(x, backend=backend), p.score(x, backend=backend), p.pdf(x), p.pdf_derivative(x)):
            assert (result.shape, result.dtype) == (shape, dtype)
        assert_allclose(p.logpdf(x), p.logpdf(x.astype(np.float64)), rtol=1e-6)
    p = Transformed(stats.logistic(), Interval(0.1, 0.3))
    assert_allclose(p.logpdf(np.array([0.1, 0.3], dtype)), -np.log(0.2), rtol=1e-6)
    plane = Transformed(MultivariateNormal([0, 0], [1, 1]), StickBreaking())
    x = np.full((4, 3), 1 / 3, dtype)
    assert (plane.logpdf(x).shape, plane.logpdf(x).dtype) == ((4,), dtype)
    assert (plane.score(x).shape, plane.score(x).dtype) == ((4, 3), dtype)


def test_divergences_do_not_see_a_transform():
    p, q = Normal(0, 1), Normal(1, 2)
    for transform in (Exp(), Sigmoid(), Affine(3, -2), Interval(1, INF)):
        carried = kl_divergence(Transformed(p, transform), Transformed(q, transform))
        assert carried == pytest.approx(kl_divergence(p, q), rel=1e-9)
    p, q = stats.beta(2, 3), stats.beta(3, 4)
    assert kl_divergence(unconstrain(p), unconstrain(q)) == pytest.approx(kl_divergence(p, q), rel=1e-9)
    # The tails of a Gaussian reach beyond where the logistic function is 1.
    posterior = unconstrain(q)
    for q in (Normal(0, 5), Normal(60, 1)):
        z = np.linspace(q.loc - 12 * q.scale, q.loc + 12 * q.scale, 2001)
        log_ratio = q.logpdf(z) - exact(lambda z: exact_logit_beta(3, 4, z), z)
        # The trapezoid rule, which converges geometrically.
        truth = np.sum(q.pdf(z) * log_ratio) * (z[1] - z[0])
        assert kl_divergence(q, posterior) == pytest.approx(truth, rel=1e-9)


@given(x=st.floats(-50, 50), a=st.floats(0.2, 20), scale=st.floats(0.1, 10))
@many
def test_there_and_back_the_density_is_the_same(x, a, scale):
    base = stats.gamma(a, scale=scale)
    y = np.exp(x)
    there = unconstrain(base)
    back = Transformed(there, there.transform.inv)
    assert_allclose(back.logpdf(y), base.logpdf(y), rtol=1e-12, atol=1e-12)


def test_back_on_the_line_all_is_what_it_was():
    base = Normal(0, 100)
    back = unconstrain(Transformed(base, Sigmoid()))
    assert_array_equal(back.landmarks, base.landmarks)
    x, u = np.linspace(-1e3, 1e3, 9), np.linspace(0.01, 0.99, 9)
    for name, points in (("logpdf", x), ("score", x), ("cdf", x), ("quantile", u)):
        assert_array_equal(getattr(back, name)(points), getattr(base, name)(points))
    assert_array_equal(back.sample(9, rng=0), base.sample(9, rng=0))


@pytest.mark.parametrize("transform", [Exp(), Sigmoid(), Interval(1, 4), Compose(Affine(3, 2), Exp())])
def test_what_was_carried_from_the_line_is_carried_back_as_it_was(transform):
    base, z = Normal(0, 10), np.array([-800.0, -60.0, 0.5, 30.0, 60.0, 800.0])
    back = Transformed(Transformed(base, transform), transform.inv)
    assert_array_equal(back.logpdf(z), base.logpdf(z))
    assert_array_equal(back.score(z), base.score(z))


def test_what_was_carried_to_the_simplex_is_carried_back_as_it_was():
    base, z = MultivariateNormal([0, 0], [100, 100]), np.array([[-50.0, 2.0], [1.0, 50.0]])
    back = unconstrain(Transformed(base, StickBreaking()))
    assert_array_equal(back.logpdf(z), base.logpdf(z))
    assert_array_equal(back.score(z), base.score(z))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: Transformed(3, Exp()), TypeError, "base must be"),
        (lambda: Transformed(Normal(), np.exp), TypeError, "transform must be a transform"),
        (lambda: Transformed(Normal(), Exp().inv), ValueError, "base must have its support in the transform's domain"),
        (lambda: Transformed(stats.uniform(0, 5), Interval(1, 4).inv), ValueError, "base must have its support"),
        (lambda: Transformed(Normal(), StickBreaking()), ValueError, r"points of shape \(K-1,\)"),
        (lambda: Transformed(Normal(), Affine([1, 2])), ValueError, r"points of shape \(2,\), got \(\)"),
        (lambda: unconstrain("beta"), TypeError, "dist must be"),
        (lambda: Transformed(MultivariateNormal([0, 0], [1, 1]), Exp()).logpdf([1.0]), ValueError, "x must have shape"),
        (lambda: unconstrain(stats.gamma(2)).logpdf(0.0, backend="abacus"), ValueError, "backend"),
    ],
)
def test_wrong_distributions_are_named(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_transformed_distributions_are_printed_and_pickled():
    p = Transformed(Normal(0, 1), Exp())
    assert repr(p) == "Transformed(Normal(loc=0.0, scale=1.0), Exp())"
    for original in (p, unconstrain(stats.beta(2, 3))):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.logpdf(0.3) == original.logpdf(0.3)
        assert copy.transform == original.transform
