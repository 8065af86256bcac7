"""The divergence by nearest neighbours, and its kernels, against cKDTree and closed forms."""

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma

from fastdiv import (
    AccuracyWarning,
    MultivariateNormal,
    Normal,
    kl_divergence,
    kl_divergence_from_samples,
    knn_kl_divergence,
)
from fastdiv.samples import divergences_from_samples

P, Q = Normal(1, 1), Normal(0, 2)
KL = kl_divergence(P, Q)


def pair(d):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d)) / 2
    p, q = MultivariateNormal(np.full(d, 0.5), np.eye(d)), MultivariateNormal(np.zeros(d), np.eye(d) + root @ root.T)
    return p, q, rng


def published(x_p, x_q, k):
    """Pérez-Cruz 2008, equation 14."""
    n, d = x_p.shape
    (rho,) = cKDTree(x_p).query(x_p, [k + 1])[0].T
    (nu,) = cKDTree(x_q).query(x_p, [k])[0].T
    return d * np.mean(np.log(nu / rho)) + math.log(len(x_q) / (n - 1))


# What lies on the line: plain, in the tails, far off, with duplicates, on a grid, two values, one value.
LINES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy": lambda rng, n: rng.standard_cauchy(n) ** 3,
    "tiny and huge": lambda rng, n: rng.normal(size=n) * 10.0 ** rng.integers(-20, 20, n),
    "far off": lambda rng, n: 1e9 + rng.normal(size=n),
    "duplicates": lambda rng, n: np.repeat(rng.normal(size=n), 3)[:n],
    "grid": lambda rng, n: np.round(rng.normal(size=n), 1),
    "two values": lambda rng, n: rng.integers(2, size=n) * 2.0 - 1,
    "one value": lambda rng, n: np.full(n, -3.0),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("n", [1, 2, 10, 3000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_sort_is_numpys(kernels, line, n, dtype):
    values = line(np.random.default_rng(n), n).astype(dtype)
    before, scratch, out = values.copy(), np.empty_like(values), np.empty_like(values)
    kernels.radix_sort(values, scratch, out)
    np.testing.assert_array_equal(out, np.sort(values))
    np.testing.assert_array_equal(values, before)


def test_the_sort_takes_infinities_zeros_and_nothing(kernels):
    for values in ([np.inf, -1.0, -np.inf, 5e-324, 0.0, -5e-324, 1.0], [0.0, -0.0, 0.0, -0.0], []):
        values = np.array(values)
        out = np.empty_like(values)
        kernels.radix_sort(values, np.empty_like(values), out)
        np.testing.assert_array_equal(out, np.sort(values))


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize(("n_points", "n"), [(1, 1), (1, 5), (5, 1), (7, 20), (40, 40), (300, 100)])
def test_distances_are_those_of_the_tree_to_the_bit(kernels, line, n_points, n):
    rng = np.random.default_rng(n)
    points, x = np.sort(line(rng, n_points)), np.sort(line(rng, n))
    tree = cKDTree(points[:, None])
    for k in sorted({1, 2, 5, n_points - 1, n_points} & set(range(1, n_points + 1))):
        found = np.empty((2, n))
        kernels.neighbor_distances(points, x, k, *found)
        np.testing.assert_array_equal(found, tree.query(x[:, None], k=[k, k + 1])[0].T)


@pytest.mark.parametrize(("n_points", "n"), [(30_000, 2000), (2000, 30_000)])
def test_distances_among_many_points(kernels, n_points, n):
    rng = np.random.default_rng(0)
    points, x, found = np.sort(rng.normal(size=n_points)), np.sort(rng.normal(0, 2, size=n)), np.empty((2, n))
    kernels.neighbor_distances(points, x, 5, *found)
    np.testing.assert_array_equal(found, cKDTree(points[:, None]).query(x[:, None], k=[5, 6])[0].T)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_distances_in_single_precision(kernels, k):
    rng = np.random.default_rng(0)
    points, x = np.sort(rng.normal(size=400).astype(np.float32)), np.sort(rng.normal(size=300).astype(np.float32))
    found = np.empty((2, 300), dtype=np.float32)
    kernels.neighbor_distances(points, x, k, *found)
    # A difference of floats is rounded once, and rounding keeps the order.
    expected = np.sort(np.abs(x[:, None] - points), axis=1)[:, k - 1 : k + 1].T
    np.testing.assert_array_equal(found, expected)


def test_distances_do_not_depend_on_where_a_block_begins(kernels):
    rng = np.random.default_rng(0)
    points, x = np.sort(rng.normal(size=1000)), np.sort(rng.normal(0, 2, size=1000))
    whole, parts = np.empty((2, 1000)), np.empty((2, 1000))
    kernels.neighbor_distances(points, x, 5, *whole)
    for start in range(0, 1000, 37):
        rows = slice(start, start + 37)
        kernels.neighbor_distances(points, x[rows], 5, parts[0, rows], parts[1, rows])
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_published_formula(kernels, d, k):
    p, q, rng = pair(d)
    x_p, x_q = p.sample(1000, rng=rng), q.sample(1700, rng=rng)
    scale = np.std(np.concatenate([x_p, x_q]), axis=0)
    estimate = knn_kl_divergence(x_p, x_q, k, rng=0)
    assert estimate == pytest.approx(published(x_p / scale, x_q / scale, k), rel=1e-13)
    assert (estimate.method, estimate.n_evaluations) == ("knn", 2700)
    assert estimate.diagnostics["tied"] == 0


@pytest.mark.parametrize("d", [1, 2, 5])
def test_intervals_cover(d):
    p, q, rng = pair(d)
    truth, covered, values = kl_divergence(p, q), 0, []
    for _ in range(100):
        values.append(knn_kl_divergence(p.sample(2000, rng=rng), q.sample(2000, rng=rng), rng=rng))
        low, high = values[-1].confidence_interval()
        covered += low < truth < high
    # 95 % of 100 has a standard deviation of 2.2. In five dimensions most of the error is bias, and covers more.
    assert covered >= 89
    sampling = np.mean([value.diagnostics["sampling_error"] for value in values])
    # A standard deviation of 100 has one of 7 %.
    assert sampling == pytest.approx(np.std(values), rel=0.25)


def test_the_bias_shows_in_the_error():
    p, q, rng = pair(5)
    estimate = knn_kl_divergence(p.sample(2000, rng=rng), q.sample(2000, rng=rng), 20, rng=rng)
    found = estimate.diagnostics
    assert 0 < estimate - kl_divergence(p, q) < 2 * found["bias"]
    assert estimate.standard_error == math.hypot(found["bias"], found["sampling_error"]) > 2 * found["sampling_error"]


def test_more_samples_are_more_exact():
    errors = []
    for n in (500, 5000, 50_000):
        estimate = knn_kl_divergence(P.sample(n, rng=n), Q.sample(n, rng=n + 1), rng=0)
        assert abs(estimate - KL) < 4 * estimate.standard_error
        errors.append(estimate.standard_error)
    # The square root of a hundred times the rows, and the spread of a standard error from 20 parts.
    assert 4 < errors[0] / errors[2] < 25


def test_samples_need_not_be_of_a_size():
    for n_p, n_q in ((20_000, 1000), (1000, 20_000)):
        estimate = knn_kl_divergence(P.sample(n_p, rng=0), Q.sample(n_q, rng=1), rng=0)
        assert abs(estimate - KL) < 3 * estimate.standard_error < 0.3


@pytest.mark.parametrize("d", [1, 3])
def test_order_and_threads_do_not_matter(d, threads):
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(20_000, d)), rng.normal(0.5, 1, size=(20_000, d))
    threads(1)
    one = knn_kl_divergence(x_p, x_q, rng=0)
    threads(3)
    three = knn_kl_divergence(x_p, x_q, rng=0)
    assert one == three
    assert one.standard_error == three.standard_error
    shuffled = rng.permutation(x_p), rng.permutation(x_q)
    assert knn_kl_divergence(*shuffled, rng=0) == pytest.approx(one, rel=1e-12)
    assert knn_kl_divergence(x_p, x_q, rng=1) == one


def test_a_seed_fixes_the_error(backend):
    x_p, x_q = P.sample(500, rng=0), Q.sample(500, rng=1)
    first, second, by_default = (
        knn_kl_divergence(x_p, x_q, rng=3, **options) for options in ({"backend": backend}, {"backend": backend}, {})
    )
    assert first == second == by_default
    assert first.diagnostics == second.diagnostics == by_default.diagnostics


@pytest.mark.parametrize("d", [1, 3])
def test_units_do_not_matter(d):
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(1000, d)), rng.normal(0.5, 1, size=(1000, d))
    units, origin = 10.0 ** rng.integers(-9, 9, d), rng.normal(size=d)
    expected = knn_kl_divergence(x_p, x_q, rng=0)
    moved = knn_kl_divergence((x_p + origin) * units, (x_q + origin) * units, rng=0)
    assert moved == pytest.approx(expected, rel=1e-9)
    assert moved.standard_error == pytest.approx(expected.standard_error, rel=1e-9)


def test_constant_columns_do_not_matter():
    x_p, x_q = P.sample((300, 1), rng=0), Q.sample((300, 1), rng=1)
    with_constant = [np.column_stack([np.full(300, 0.1), x]) for x in (x_p, x_q)]
    assert knn_kl_divergence(*with_constant, rng=0) == knn_kl_divergence(x_p, x_q, rng=0)


def test_single_precision_and_lists_are_taken():
    x_p, x_q = P.sample(1000, rng=0).astype(np.float32), Q.sample(1000, rng=1).astype(np.float32)
    estimate = knn_kl_divergence(x_p, x_q, rng=0)
    assert estimate == knn_kl_divergence(x_p.astype(np.float64), x_q.tolist(), rng=0)
    assert abs(estimate - KL) < 3 * estimate.standard_error


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.filterwarnings("ignore:.*rows of x_p are there more than:fastdiv.AccuracyWarning")
def test_atoms_count(d):
    # Both distributions on the same few points: the divergence is that of their probabilities.
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(4, d))
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    x_p, x_q = atoms[rng.choice(4, 3000, p=p)], atoms[rng.choice(4, 3000, p=q)]
    estimate = knn_kl_divergence(x_p, x_q, rng=0)
    assert estimate.diagnostics["tied"] == 1
    assert abs(estimate - np.sum(p * np.log(p / q))) < 3 * estimate.standard_error < 0.2


def test_ties_are_counted_in_a_common_ball():
    x_p, x_q = np.array([0.0, 0, 0, 1, 2]), np.array([0.0, 0.5, 1, 1, 4])
    # By hand, for k = 1: radii 0, 0, 0, 1 and 1 of x_p, whose balls hold so many of the others and of x_q.
    others, theirs = [2, 2, 2, 4, 1], [1, 1, 1, 4, 2]
    with (
        pytest.warns(AccuracyWarning, match="60% of the rows of x_p are there more than n_neighbors=1 times"),
        pytest.warns(AccuracyWarning, match="a standard error"),
    ):
        estimate = knn_kl_divergence(x_p, x_q, 1)
    assert estimate == pytest.approx(np.mean(digamma(others) - digamma(theirs)) + math.log(5 / 4))
    assert estimate.diagnostics == {"tied": 1.0}
    assert estimate.standard_error == math.inf


@pytest.mark.parametrize("decimals", [3, 2, 1])
@pytest.mark.filterwarnings("ignore:.*rows of x_p are there more than:fastdiv.AccuracyWarning")
def test_rounded_samples(decimals):
    x_p, x_q = P.sample(5000, rng=0), Q.sample(5000, rng=1)
    estimate = knn_kl_divergence(np.round(x_p, decimals), np.round(x_q, decimals), rng=0)
    assert abs(estimate - knn_kl_divergence(x_p, x_q, rng=0)) < 0.04
    assert abs(estimate - KL) < 3 * estimate.standard_error < 0.15


@pytest.mark.filterwarnings("ignore:the estimate grows with the samples:fastdiv.AccuracyWarning")
def test_repeated_rows_are_told():
    x_p, x_q = np.repeat(P.sample(200, rng=0), 10), Q.sample(2000, rng=1)
    with pytest.warns(AccuracyWarning, match="100% of the rows of x_p are there more than n_neighbors=5 times"):
        assert math.isfinite(knn_kl_divergence(x_p, x_q, rng=0))
    # A few do no harm, and are not told.
    assert knn_kl_divergence(np.append(P.sample(2000, rng=0), [0.0] * 20), x_q, rng=0).diagnostics["tied"] < 0.05


@pytest.mark.filterwarnings("ignore:the estimate grows with the samples:fastdiv.AccuracyWarning")
def test_dependent_columns_are_told():
    rng = np.random.default_rng(0)
    x_p, x_q = rng.normal(size=(500, 2)), rng.normal(size=(500, 3))
    with pytest.warns(AccuracyWarning, match="the 3 columns of x_p are linearly dependent"):
        knn_kl_divergence(np.column_stack([x_p, x_p @ [1, 2]]), x_q, rng=0)


def test_a_divergence_too_large_for_the_samples_is_told():
    # Four standard deviations apart it is 8 nats, and log n is 7.6.
    with pytest.warns(AccuracyWarning, match="grows with the samples"):
        assert knn_kl_divergence(Normal(4, 1).sample(2000, rng=0), Normal().sample(2000, rng=1), rng=0) < 7


def test_few_rows_have_no_error_bar():
    x_p, x_q = P.sample(39, rng=0), Q.sample(39, rng=1)
    with pytest.warns(AccuracyWarning, match="with n_neighbors=5 takes 40 rows of both samples, got 39 and 39"):
        estimate = knn_kl_divergence(x_p, x_q)
    assert estimate == pytest.approx(published(x_p[:, None], x_q[:, None], 5))
    assert estimate.standard_error == math.inf
    assert knn_kl_divergence(P.sample(40, rng=0), Q.sample(40, rng=1), rng=0).diagnostics["degrees_of_freedom"] == 1


def test_as_few_rows_as_there_can_be():
    with pytest.warns(AccuracyWarning, match="a standard error"):
        assert knn_kl_divergence([0.0, 1.0], [3.0], 1) == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_by_name():
    x_p, x_q = Normal(0, 1).sample((800, 2), rng=0), Normal(0.5, 1).sample((800, 2), rng=1)
    forward, back = knn_kl_divergence(x_p, x_q, rng=0), knn_kl_divergence(x_q, x_p, rng=0)
    estimate = kl_divergence_from_samples(x_p, x_q, "knn", rng=0)
    assert (estimate, estimate.diagnostics) == (forward, forward.diagnostics)
    assert divergences_from_samples(x_p, x_q, estimator="knn", rng=0) == {"kl_pq": forward, "kl_qp": back}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be a whole number, at least 1, got 0"),
        ({"n_neighbors": 2.0}, TypeError, "n_neighbors must be a whole number, at least 1, got 2.0"),
        ({"n_neighbors": 10}, ValueError, "n_neighbors must be under the rows of x_p.*10 and 12, got 10"),
        ({"x_q": [1.0]}, ValueError, "n_neighbors must be.*no more than those of x_q, 10 and 1, got 5"),
        ({"x_q": np.ones((9, 2))}, ValueError, "x_p and x_q must have as many columns, got 1 and 2"),
        ({"x_p": [np.nan] * 9}, ValueError, "x_p must be rows of finite numbers"),
        ({"x_q": []}, ValueError, "x_q must be rows of finite numbers"),
        ({"rng": "seed"}, TypeError, "rng must be"),
        ({"backend": "fortran"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        knn_kl_divergence(**({"x_p": np.arange(10.0), "x_q": np.arange(12.0)} | arguments))


@pytest.mark.parametrize("power", [3, 5])
def test_no_distance_is_tied_because_another_is_large(power):
    rng = np.random.default_rng(0)
    x_p, x_q = rng.standard_cauchy(2000), 2 * rng.standard_cauchy(2000)
    # The divergence of a monotone function of the samples is theirs.
    plain, found = (knn_kl_divergence(*parts, rng=0) for parts in ((x_p, x_q), (x_p**power, x_q**power)))
    assert found.diagnostics["tied"] == 0
    assert found == pytest.approx(plain, abs=0.01)
