"""The result has the shape and precision of what went in, and SciPy's values; what went in is not changed."""

import copy
import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

from fastdiv import (
    Mixture,
    MultivariateNormal,
    Normal,
    Transformed,
    kl_normal,
    log_ratio,
    log_ratio_normal,
    logsumexp,
    optimal_classifier,
    transforms,
    unconstrain,
)

BACKENDS = ["cython", "numba", "numpy"]
TOLERANCE = {np.float64: 1e-13, np.float32: 1e-5}
many = settings(deadline=None, derandomize=True, max_examples=100)


def nasty(*event):
    """Points in awkward forms, one axis or more of them before the axes of one point."""
    values = np.linspace(-3, 5, 24 * math.prod(event)).reshape(24, *event)
    single = values.astype(np.float32)
    unaligned = np.zeros(values.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(values.shape)
    unaligned[...] = values
    read_only = values.copy()
    read_only.flags.writeable = False
    return {
        "one": np.array(values[7]),
        "one of Python's numbers": values[7].tolist(),
        "one of Python's integers": np.full(event, 2).tolist(),
        "one float32": single[7],
        "list": values[:5].tolist(),
        "tuple of integers": tuple(np.rint(values[:5]).astype(int).tolist()),
        "length 1": values[:1],
        "empty": values[:0],
        "empty 3-d": values[:0].reshape(2, 0, 3, *event),
        "float16": values.astype(np.float16),
        "float32": single,
        "long double": values.astype(np.longdouble),
        "int64": np.rint(values).astype(np.int64),
        "uint8": np.rint(abs(values)).astype(np.uint8),
        "bool": values > 0,
        "strided": values[1::3],
        "strided float32": single[1::3],
        "strided last axis": np.repeat(values, 2, axis=-1)[..., ::2],
        "negative stride": values[::-1],
        "negative strides": np.flip(values),
        "Fortran order": np.asfortranarray(values.reshape(4, 6, *event)),
        "3-d": values.reshape(2, 3, 4, *event),
        "3-d transposed": np.moveaxis(values.reshape(2, 3, 4, *event), 0, 2),
        "byte-swapped": values.astype(values.dtype.newbyteorder()),
        "byte-swapped float32": single.astype(single.dtype.newbyteorder()),
        "read-only": read_only,
        "unaligned": unaligned,
        "one point broadcast": np.broadcast_to(values[7], (3, 4, *event)),
        "one number broadcast": np.broadcast_to(0.5, (3, 4, *event)),
    }


def over_nasty(*event):
    cases = nasty(*event)
    return pytest.mark.parametrize("x", cases.values(), ids=cases)


def precision(x):
    return np.float32 if np.asarray(x).dtype.type is np.float32 else np.float64


def check(function, truth, x, shape=None):
    """At `x`, `function` gives what `truth` gives, in `shape` (by default that of `x`) and its precision."""
    before, points = copy.deepcopy(x), np.array(x, np.float64)
    result, dtype = function(x), precision(x)
    assert isinstance(result, np.ndarray if shape or (shape is None and points.ndim) else dtype)
    assert result.shape == (points.shape if shape is None else shape)
    assert result.dtype == dtype
    assert_allclose(result, truth(points), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_array_equal(x, before, strict=isinstance(x, np.ndarray))


# On the line

LINE = {
    "normal": (Normal(1.5, 2.0), [(1.0, 1.5, 2.0)]),
    "mixture": (Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5]), [(0.4, -1, 0.75), (0.6, 4, 0.5)]),
    "zero weight": (Mixture([0.0, 0.3, 0.7], [0, -1, 2], [1, 2, 3]), [(0.3, -1, 2), (0.7, 2, 3)]),
}
over_line = pytest.mark.parametrize(("p", "components"), LINE.values(), ids=LINE)
over_backends = pytest.mark.parametrize("backend", BACKENDS)


def line_logpdf(components, x):
    return special.logsumexp([np.log(w) + stats.norm.logpdf(x, m, s) for w, m, s in components], axis=0)


def line_cdf(components, x):
    return sum(w * stats.norm.cdf(x, m, s) for w, m, s in components)


@over_nasty()
@over_line
def test_densities_on_the_line_are_scipys(p, components, x, backend):
    check(lambda x: p.logpdf(x, backend=backend), lambda x: line_logpdf(components, x), x)
    check(lambda x: p.log_prob(x, backend=backend), lambda x: line_logpdf(components, x), x)
    check(lambda x: p.pdf(x, backend=backend), lambda x: np.exp(line_logpdf(components, x)), x)


@over_nasty()
@over_line
def test_distribution_functions_are_scipys(p, components, x):
    check(p.cdf, lambda x: line_cdf(components, x), x)


@st.composite
def views(draw, max_dims=4):
    """Arrays of numbers of moderate size and every layout that basic indexing and transposition make."""
    dtype = draw(st.sampled_from(["<f8", ">f8", "<f4", ">f4", "<i4", ">i8", "u1"]))
    least = 0 if dtype == "u1" else -30
    whole = dtype[-2] in "iu"
    elements = st.integers(least, 30) if whole else st.floats(least, 30, width=32)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=5))
    array = draw(hnp.arrays(np.dtype(dtype), shape, elements=elements))
    view = array.transpose(draw(st.permutations(range(array.ndim))))
    return view[draw(hnp.basic_indices(view.shape, max_dims=max_dims, allow_newaxis=True))]


@over_backends
@given(x=views())
@many
def test_any_array_on_the_line(backend, x):
    p, components = LINE["mixture"]
    check(lambda x: p.logpdf(x, backend=backend), lambda x: line_logpdf(components, x), x)


@over_nasty()
def test_transforms_are_scipys(x):
    check(transforms.Sigmoid().forward, special.expit, x)
    check(transforms.Sigmoid().log_abs_det_jacobian, stats.logistic.logpdf, x)
    check(transforms.Affine(1, -2).inverse, lambda x: (1 - x) / 2, x)
    check(Transformed(Normal(), transforms.Affine(1, -2)).logpdf, stats.norm(1, 2).logpdf, x)
    check(unconstrain(stats.gamma(1)).logpdf, stats.gumbel_l.logpdf, x)
    check(unconstrain(stats.uniform()).score, lambda x: 1 - 2 * special.expit(x), x)


# In D dimensions

MEANS = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
STDS = np.array([[1.0, 2.0, 0.5], [1.5, 1.0, 3.0]])
COVS = np.array([[[2.0, 1.0, 0.3], [1.0, 3.0, 0.5], [0.3, 0.5, 1.0]], np.diag([1.0, 2.0, 3.0])])
DIAGONAL = [np.diag(std**2) for std in STDS]
SPACE = {
    "normal, diagonal": (MultivariateNormal(MEANS[0], STDS[0] ** 2), [(1.0, MEANS[0], DIAGONAL[0])]),
    "normal, full": (MultivariateNormal(MEANS[0], COVS[0]), [(1.0, MEANS[0], COVS[0])]),
    "mixture, diagonal": (
        Mixture([0.4, 0.6], MEANS, STDS),
        [(0.4, MEANS[0], DIAGONAL[0]), (0.6, MEANS[1], DIAGONAL[1])],
    ),
    "mixture, full": (
        Mixture([0.4, 0.6], MEANS, covs=COVS),
        [(0.4, MEANS[0], COVS[0]), (0.6, MEANS[1], COVS[1])],
    ),
}
over_space = pytest.mark.parametrize(("p", "components"), SPACE.values(), ids=SPACE)


def space_logpdf(components, x):
    if not x.size:
        return np.empty(x.shape[:-1])
    terms = [np.log(w) + stats.multivariate_normal.logpdf(x.reshape(-1, 3), m, c) for w, m, c in components]
    return special.logsumexp(terms, axis=0).reshape(x.shape[:-1])


@over_nasty(3)
@over_space
def test_densities_in_space_are_scipys(p, components, x, backend):
    shape = np.shape(x)[:-1]
    check(lambda x: p.logpdf(x, backend=backend), lambda x: space_logpdf(components, x), x, shape)
    check(lambda x: p.pdf(x, backend=backend), lambda x: np.exp(space_logpdf(components, x)), x, shape)


@pytest.mark.parametrize("p", [MultivariateNormal([1.5], [4.0]), MultivariateNormal([1.5], [[4.0]])])
@over_nasty(1)
def test_one_dimension_is_the_line_with_an_axis_more(p, x, backend):
    truth = stats.norm(1.5, 2.0)
    check(lambda x: p.logpdf(x, backend=backend), lambda x: truth.logpdf(x[..., 0]), x, np.shape(x)[:-1])


@over_backends
@pytest.mark.parametrize("name", ["mixture, diagonal", "mixture, full"])
@given(x=views(max_dims=3))
@many
def test_any_array_in_space(name, backend, x):
    p, components = SPACE[name]
    x = np.stack([x, x[::-1] if x.ndim else x, x], axis=-1, dtype=x.dtype)
    check(lambda x: p.logpdf(x, backend=backend), lambda x: space_logpdf(components, x), x, x.shape[:-1])


# Ratios


@over_nasty()
def test_ratios_on_the_line_are_scipys(x, backend):
    (p, p_parts), (q, q_parts) = LINE["mixture"], LINE["normal"]

    def truth(x):
        return line_logpdf(p_parts, x) - line_logpdf(q_parts, x)

    check(lambda x: log_ratio(x, p, q, backend=backend), truth, x)
    check(lambda x: optimal_classifier(x, p, q, backend=backend), lambda x: special.expit(truth(x)), x)


@over_nasty(3)
def test_ratios_in_space_are_scipys(x, backend):
    (p, p_parts), (q, q_parts) = SPACE["mixture, full"], SPACE["normal, diagonal"]
    shape = np.shape(x)[:-1]

    def truth(x):
        return space_logpdf(p_parts, x) - space_logpdf(q_parts, x)

    check(lambda x: log_ratio(x, p, q, backend=backend), truth, x, shape)
    check(lambda x: optimal_classifier(x, p, q, backend=backend), lambda x: special.expit(truth(x)), x, shape)


# Sums of exponentials


def scipy_logsumexp(a, axis=None, b=None, keepdims=False):
    """SciPy's values in the shape of NumPy's sums, which SciPy does not keep for 0-d and empty arrays."""
    shape = np.sum(a, axis=axis, keepdims=keepdims).shape
    return special.logsumexp(a, axis=axis, b=b).reshape(shape) if a.size else np.full(shape, -np.inf)


def axes(ndim):
    """Every kind of axis that an array of `ndim` axes has."""
    if ndim == 0:
        return [None, ()]
    return [None, (), *range(-ndim, ndim), tuple(range(ndim)), *((k, -1) for k in range(ndim - 1))]


def check_logsumexp(a, backend, **keywords):
    truth = scipy_logsumexp(np.array(a, np.float64), **keywords)
    check(lambda a: logsumexp(a, backend=backend, **keywords), lambda _: truth, a, truth.shape)


@over_nasty()
def test_sums_over_all_axes_are_scipys(x, backend):
    check_logsumexp(x, backend=backend)
    check_logsumexp(x, keepdims=True, backend=backend)


@pytest.mark.parametrize("keepdims", [False, True])
@over_nasty(2, 3)
def test_sums_over_any_axes_are_scipys(x, keepdims, backend):
    for axis in axes(np.ndim(x)):
        check_logsumexp(x, axis=axis, keepdims=keepdims, backend=backend)


@over_nasty(2, 3)
def test_sums_with_factors_are_scipys(x, backend):
    dtype, shape = precision(x), np.shape(x)
    whole = np.resize([1.0, 0.0, -0.25, 2.0, 0.5], shape).astype(dtype)
    last = np.array([0.5, 0.0, -0.125], dtype)
    none = np.broadcast_to(dtype(0), shape)
    for b in (whole, whole[..., ::-1], np.asfortranarray(whole), last, none, dtype(2)):
        for axis in (None, -1, (-2, -1)):
            before = b.copy()
            check_logsumexp(x, axis=axis, b=b, backend=backend)
            assert_array_equal(b, before)


@pytest.mark.parametrize(
    ("a", "b", "truth"),
    [
        ([0.0, 0.0], [0.0, 0.0], -np.inf),
        ([0.0, 0.0], [1.0, -1.0], -np.inf),
        ([0.0, 0.0], [-1.0, 0.5], np.nan),
        ([0.0, 0.0], [0.0, -1.0], np.nan),
        ([0.0, 0.0], [3.0, -1.0], np.log(2)),
        ([1e4, 1e4], [0.0, 0.0], -np.inf),
        ([1e4, 1e4], [1.0, -1.0], -np.inf),
        ([1e4, 1e4], [3.0, -1.0], 1e4 + np.log(2)),
        ([700.0, -700.0], [0.0, 3.0], -700 + np.log(3)),
        ([np.inf, 0.0], [0.0, 3.0], np.log(3)),
        ([np.inf, 0.0], [1.0, -1.0], np.inf),
        ([np.inf, 0.0], [-1.0, 1.0], np.nan),
        ([-np.inf, 0.0], [-1.0, 3.0], np.log(3)),
        ([-np.inf, -np.inf], [1.0, -1.0], -np.inf),
    ],
)
def test_zero_and_negative_factors_at_the_limits(a, b, truth, backend):
    assert_allclose(logsumexp(a, b=b, backend=backend), truth, rtol=1e-13)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_factors_broadcast_against_exponents(axis, backend):
    a, b = np.linspace(-1, 1, 4).reshape(4, 1), np.array([[1.0, 2.0, 0.0]])
    truth = special.logsumexp(np.broadcast_to(a, (4, 3)), axis=axis, b=b)
    assert_allclose(logsumexp(a, axis=axis, b=b, backend=backend), truth, rtol=1e-13)


@over_backends
@given(data=st.data(), a=views(), keepdims=st.booleans())
@many
def test_any_sum(backend, data, a, keepdims):
    axis = data.draw(st.none() | hnp.valid_tuple_axes(a.ndim))
    factors = st.sampled_from([0.0, 0.5, 1.0, 3.0])
    b = data.draw(st.none() | hnp.arrays(precision(a), a.shape, elements=factors))
    check_logsumexp(a, axis=axis, b=b, keepdims=keepdims, backend=backend)


# Elementwise formulas


broadcastable = partial(hnp.mutually_broadcastable_shapes, min_side=0, max_dims=3)


def kl_truth(mu_p, sigma_p, mu_q, sigma_q):
    return np.log(sigma_q / sigma_p) + (sigma_p**2 + (mu_p - mu_q) ** 2) / (2 * sigma_q**2) - 0.5


@over_nasty()
def test_kl_normal_takes_any_array(x):
    tolerance = TOLERANCE[precision(x)]
    before, points = copy.deepcopy(x), np.array(x, np.float64)
    result = kl_normal(x, 1.5, 0.5, 2.0)
    assert result.shape == points.shape
    assert_allclose(result, kl_truth(points, 1.5, 0.5, 2.0), rtol=tolerance, atol=tolerance)
    assert_array_equal(x, before, strict=isinstance(x, np.ndarray))


@over_nasty()
def test_log_ratio_normal_takes_any_array(x):
    tolerance = TOLERANCE[precision(x)]
    before, points = copy.deepcopy(x), np.array(x, np.float64)
    result = log_ratio_normal(x, 1.5, 0.5, 0.0, 2.0)
    truth = stats.norm.logpdf(points, 1.5, 0.5) - stats.norm.logpdf(points, 0.0, 2.0)
    assert result.shape == points.shape
    assert_allclose(result, truth, rtol=tolerance, atol=tolerance)
    assert_array_equal(x, before, strict=isinstance(x, np.ndarray))


@given(shapes=broadcastable(num_shapes=4), seed=st.integers(0, 99))
@many
def test_kl_normal_broadcasts(shapes, seed):
    rng = np.random.default_rng(seed)
    parameters = [rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes]
    result = kl_normal(*parameters)
    assert isinstance(result, np.ndarray if shapes.result_shape else np.float64)
    assert result.shape == shapes.result_shape
    assert_allclose(result, kl_truth(*parameters), rtol=1e-13, atol=1e-13)


@given(shapes=broadcastable(num_shapes=5), seed=st.integers(0, 99))
@many
def test_log_ratio_normal_broadcasts(shapes, seed):
    rng = np.random.default_rng(seed)
    x, mu_p, sigma_p, mu_q, sigma_q = (rng.uniform(0.5, 2, shape) for shape in shapes.input_shapes)
    result = log_ratio_normal(x, mu_p, sigma_p, mu_q, sigma_q)
    truth = stats.norm.logpdf(x, mu_p, sigma_p) - stats.norm.logpdf(x, mu_q, sigma_q)
    assert isinstance(result, np.ndarray if shapes.result_shape else np.float64)
    assert result.shape == shapes.result_shape
    assert_allclose(result, truth, rtol=1e-13, atol=1e-13)


# Samples


@pytest.mark.parametrize("shape", [(), 0, 1, 5, np.int64(5), (2, 3), [2, 3], (2, 0, 3)], ids=repr)
@pytest.mark.parametrize("name", [*LINE, *SPACE])
def test_samples_have_the_shape_that_was_asked_for(name, shape):
    p, _ = (LINE | SPACE)[name]
    draws = p.sample(shape, rng=0)
    expected = np.empty(shape).shape + p.event_shape
    assert isinstance(draws, np.ndarray if expected else np.float64)
    assert draws.shape == expected
    assert draws.dtype == np.float64
    assert np.isfinite(draws).all()
