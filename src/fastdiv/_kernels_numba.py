"""The kernel set compiled by Numba at first call.

The loops are those of the Cython set. `FASTDIV_NUMBA_CACHE=1` keeps the compiled code beside this file, which
must then be writable; without it nothing is written.
"""

import os
from math import fabs, inf, isfinite, log, log1p, sqrt

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = [
    "log_ratio_moments",
    "logistic_sgd_epoch",
    "logsumexp_rows",
    "merge_moments",
    "mixture_logpdf",
    "mixture_logpdf_diag",
    "mixture_logpdf_full",
    "mixture_score",
    "mixture_score_diag",
    "mixture_score_full",
    "trapezoid_cross_entropy",
    "trapezoid_kl",
]

BLOCK = 256
GRID = 128
MIDDLE = 64
GENTLE = 100
GROUP = 8
STRIP = 32
ALIKE = 14
FEW = 4
LANES = 8
CHUNK = 256
HALF_LOG_2PI = 0.5 * log(2 * np.pi)
SQRT_HALF = sqrt(0.5)
LOG2_E = 1 / log(2)

# Multiplications and additions may fuse, as C compilers have them.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}
_kernel = njit(nogil=True, cache=os.environ.get("FASTDIV_NUMBA_CACHE") == "1", **OPTIONS)
# A loop is put in vectors only if what it calls is inlined.
_inline = njit(nogil=True, forceinline=True, **OPTIONS)


# The polynomials and the bits are those of _vecmath.h, where they are explained. Float32 constants keep float32
# arithmetic from becoming float64.
MAGIC = 6755399441055744.0 + 1023
EVEN = (0.24022650695910097, 0.009618129107606888, 0.0001540353044173605, 1.321544258792169e-06, 7.072585949269223e-09)
ODD = (0.6931471805599453, 0.0555041086648216, 0.0013333558146416936, 1.525273382983612e-05, 1.0178062445845774e-07)
LAST = 4.4549605981865186e-10
MAGIC32 = np.float32(12582912 + 127)
TERM32 = tuple(map(np.float32, (1, 0.6931472, 0.24022651, 0.05550357, 0.009618083, 0.0013390863, 0.00015453163)))
LEAST32 = np.float32(-127)
LOG_SERIES = (
    0.666666666666667,
    0.39999999999899444,
    0.2857142862600327,
    0.22222211130259878,
    0.18182889455674947,
    0.15331710618210773,
    0.14616585424888623,
)
ROOT_HALF = 0x3FE6A09E667F3BCD
ONE = 0x3FF0000000000000
LN2_HI = 6.93147180369123816490e-01
LN2_LO = 1.90821492927058770002e-10


def _exp2_term(x):
    """2**x for x <= 1023.4, and 0 instead of a subnormal number: a term of a sum whose largest is near 1."""


@overload(_exp2_term, jit_options={"forceinline": True, **OPTIONS})
def _exp2_term_of_type(x):
    def in_double(x):
        x = -1023.0 if x < -1023.0 else x
        shifted = x + MAGIC
        r = x - (shifted - MAGIC)
        r2 = r * r
        even = 1 + r2 * (EVEN[0] + r2 * (EVEN[1] + r2 * (EVEN[2] + r2 * (EVEN[3] + r2 * EVEN[4]))))
        odd = ODD[0] + r2 * (ODD[1] + r2 * (ODD[2] + r2 * (ODD[3] + r2 * (ODD[4] + r2 * LAST))))
        return (even + r * odd) * np.int64(np.float64(shifted).view(np.int64) << 52).view(np.float64)

    def in_float(x):
        x = LEAST32 if x < LEAST32 else x
        shifted = x + MAGIC32
        r = x - (shifted - MAGIC32)
        r2 = r * r
        even = TERM32[0] + r2 * (TERM32[2] + r2 * TERM32[4])
        odd = TERM32[1] + r2 * (TERM32[3] + r2 * (TERM32[5] + r * TERM32[6]))
        return (even + r * odd) * np.int32(np.float32(shifted).view(np.int32) << 23).view(np.float32)

    return in_float if x == types.float32 else in_double


@_inline
def _log_normal(x):
    """Log of a normal positive float64."""
    bits = np.float64(x).view(np.int64) + (ONE - ROOT_HALF)
    k = np.float64((bits >> 52) - 1023)
    f = np.int64((bits & 0x000FFFFFFFFFFFFF) + ROOT_HALF).view(np.float64) - 1
    s = f / (2 + f)
    z = s * s
    z2 = z * z
    half_square = 0.5 * f * f
    series = LOG_SERIES[0] + z * LOG_SERIES[1] + z2 * (LOG_SERIES[2] + z * LOG_SERIES[3])
    series += z2 * z2 * (LOG_SERIES[4] + z * LOG_SERIES[5] + z2 * LOG_SERIES[6])
    return k * LN2_HI + (f - (half_square - (s * (half_square + z * series) + k * LN2_LO)))


@_inline
def _log1p(x):
    """Log of 1 + x for x from 0 to 1: what rounding takes from 1 + x is added (Kahan 1965)."""
    w = 1 + np.float64(x)
    return _log_normal(w) + (x - (w - 1)) / w


@_inline
def _two_sum(total, compensation, term):
    """Return the sum and what rounding took from it, added to the compensation (Neumaier 1974)."""
    s = total + term
    if not isfinite(s):
        return s, 0.0
    if fabs(total) >= fabs(term):
        return s, compensation + ((total - s) + term)
    return s, compensation + ((term - s) + total)


@_inline
def _exp(x):
    # libm is slow where it underflows.
    return 0.0 if x < -745.14 else np.exp(x)


@_kernel
def _column_shifts(terms, n_points, shift):
    """Find the largest of each column of terms (n_terms, BLOCK).

    A column without a finite maximum is not shifted: its -inf and NaN then come out as exp and log make them.
    """
    number = terms.dtype.type
    shift[:n_points] = terms[0, :n_points]
    for k in range(1, len(terms)):
        for i in range(n_points):
            shift[i] = terms[k, i] if terms[k, i] > shift[i] else shift[i]
    for i in range(n_points):
        shift[i] = shift[i] if isfinite(shift[i]) else number(0)


@_kernel
def _logsumexp_columns(terms, n_points, out):
    """Reduce terms (n_terms, BLOCK) over its rows."""
    number = terms.dtype.type
    n_terms = len(terms)
    if n_terms == 1:
        out[:n_points] = terms[0, :n_points]
        return
    shift = np.empty(BLOCK, terms.dtype)
    partial = np.empty(BLOCK, terms.dtype)
    total = np.zeros(BLOCK)
    _column_shifts(terms, n_points, shift)
    for first in range(0, n_terms, GROUP):
        partial[:] = 0
        for k in range(first, min(first + GROUP, n_terms)):
            for i in range(n_points):
                partial[i] += _exp2_term((terms[k, i] - shift[i]) * number(LOG2_E))
        for i in range(n_points):
            total[i] += partial[i]
    for i in range(n_points):
        out[i] = shift[i] + log(total[i])


@_kernel
def _responsibilities(terms, n_points):
    """Make each column of terms (n_terms, BLOCK) its softmax: NaN where all of them are -inf."""
    number = terms.dtype.type
    shift = np.empty(BLOCK, terms.dtype)
    total = np.zeros(BLOCK)
    _column_shifts(terms, n_points, shift)
    for k in range(len(terms)):
        for i in range(n_points):
            terms[k, i] = _exp2_term((terms[k, i] - shift[i]) * number(LOG2_E))
            total[i] += terms[k, i]
    for i in range(n_points):
        shift[i] = number(1 / total[i])
    for k in range(len(terms)):
        for i in range(n_points):
            terms[k, i] *= shift[i]


@_kernel
def _log_coefficients(log_weights, scales):
    """Log of weight over the product of a component's scales, a row of them, and sqrt(2 pi)."""
    log_coefs = np.empty_like(log_weights)
    for k in range(len(log_weights)):
        log_coef = log_weights[k] - scales.shape[1] * HALF_LOG_2PI
        for scale in scales[k]:
            log_coef -= log(scale)
        log_coefs[k] = log_coef
    return log_coefs


@_kernel
def _line_table(log_weights, stds):
    """Return a mixture's table and its largest log-coefficient.

    Its rows are log-coefficients and scales; and the same in base 2, the coefficients less the largest.
    """
    table = np.empty((4, len(stds)), log_weights.dtype)
    table[0] = _log_coefficients(log_weights, stds.reshape(-1, 1))
    top = np.float64(table[0].max())
    for k in range(len(stds)):
        table[1, k] = SQRT_HALF / stds[k]
        table[2, k] = (table[0, k] - top) * LOG2_E
        table[3, k] = sqrt(0.5 * LOG2_E) / stds[k]
    return table, top


@_kernel
def _relevant(low, high, means, table, extra, bounds, relevant):
    """List the components that can move the density between two points by half a last place, or some bits less.

    There a component's term lies between its values at the nearest and the farthest point: its bounds, the upper ones
    first. A component counts if its upper bound reaches the largest lower one. Return how many do, and the largest
    upper bound, in base 2.
    """
    number = means.dtype.type
    uppers, lowers = bounds
    floor = peak = number(-inf)
    for k in range(len(means)):
        near = max(low - means[k], means[k] - high, number(0)) * table[3, k]
        far = max(high - means[k], means[k] - low) * table[3, k]
        uppers[k] = table[2, k] - near * near
        lowers[k] = table[2, k] - far * far
        floor = lowers[k] if lowers[k] > floor else floor
        peak = uppers[k] if uppers[k] > peak else peak
    slack = (40 if means.itemsize == 4 else 70) + extra
    n_relevant = 0
    for k in range(len(means)):
        relevant[n_relevant] = k
        n_relevant += uppers[k] >= floor - slack
    return n_relevant, peak if isfinite(peak) else number(0)


@_kernel
def _shifted_terms(x, means, table, terms):
    """Terms of a mixture on the line, to be shifted by the largest at each point."""
    for k in range(len(means)):
        log_coef, scale, mean = table[0, k], table[1, k], means[k]
        for i in range(len(x)):
            z = (x[i] - mean) * scale
            terms[k, i] = log_coef - z * z


@_kernel
def _normal_slopes(x, responsibilities, means, scales, out):
    """Sum the components' scores (mean - x) / std^2 by their responsibilities; nothing is 0 times infinity."""
    total = np.zeros(BLOCK, x.dtype)
    for k in range(len(means)):
        mean, scale = means[k], scales[k]
        for i in range(len(x)):
            share = responsibilities[k, i]
            slope = (mean - x[i]) * scale * scale * 2
            total[i] += share * slope if share != 0 else x.dtype.type(0)
    for i in range(len(x)):
        out[i] = total[i]


@_kernel
def _line_block(x, means, table, top, unit, out):
    """Log-density of a mixture on the line, or its derivative, at a block of points.

    Which is wanted is known when the function is compiled: the density if unit is None.

    One pass sums the exponentials of all terms less a bound that they share. Where nearly nothing of a sum is left,
    or slopes are too unlike for one unit, which is 0 then, each point's terms are written down and shifted by their own
    maximum.
    """
    n_components, n_points = len(means), len(x)
    number = x.dtype.type
    least = 1e-26 if x.itemsize == 4 else 1e-280
    n_lost = 0
    if n_components == 1 or n_points < LANES or (unit is not None and unit == 0):
        n_lost = 1
    else:
        # Only arrays that are made in the function are known not to overlap.
        points, partial, partial_slope = np.empty(STRIP, x.dtype), np.empty(STRIP, x.dtype), np.empty(STRIP, x.dtype)
        total, slope, result = np.empty(STRIP), np.empty(STRIP), np.empty(STRIP)
        relevant = np.arange(n_components)
        n_relevant, peak = n_components, number(0)
        if n_components >= FEW:
            low, high = number(inf), number(-inf)
            for i in range(n_points):
                low = x[i] if x[i] < low else low
                high = x[i] if x[i] > high else high
            bounds = np.empty((2, n_components), x.dtype)
            n_relevant, peak = _relevant(low, high, means, table, 0 if unit is None else 2 * ALIKE, bounds, relevant)
        offset = top + peak / LOG2_E
        for start in range(0, n_points, STRIP):
            n_left = min(n_points - start, STRIP)
            for i in range(STRIP):
                points[i] = x[min(start + i, n_points - 1)]
                total[i] = 0
                slope[i] = 0
            for first in range(0, n_relevant, GROUP):
                for i in range(STRIP):
                    partial[i] = 0
                    partial_slope[i] = 0
                for j in range(first, min(first + GROUP, n_relevant)):
                    k = relevant[j]
                    mean = means[k]
                    scale = table[3, k]
                    log2_coef = table[2, k] - peak
                    if unit is None:
                        for i in range(STRIP):
                            z = (points[i] - mean) * scale
                            partial[i] += _exp2_term(log2_coef - z * z)
                    else:
                        relative_scale = scale / unit
                        for i in range(STRIP):
                            z = (points[i] - mean) * scale
                            term = _exp2_term(log2_coef - z * z)
                            partial[i] += term
                            partial_slope[i] += term * (z * relative_scale)
                for i in range(STRIP):
                    total[i] += partial[i]
                    slope[i] += partial_slope[i]
            for i in range(STRIP):
                n_lost += not total[i] >= least
            if unit is None:
                for i in range(STRIP):
                    result[i] = offset + _log_normal(total[i])
            else:
                for i in range(STRIP):
                    result[i] = -2 / LOG2_E * unit * (slope[i] / total[i])
                for i in range(STRIP):
                    n_lost += not isfinite(result[i])
            for i in range(n_left):
                out[start + i] = result[i]
    if n_lost:
        terms = np.empty((n_components, n_points), x.dtype)
        _shifted_terms(x, means, table, terms)
        if unit is None:
            _logsumexp_columns(terms, n_points, out)
        else:
            _responsibilities(terms, n_points)
            _normal_slopes(x, terms, means, table[1], out)


@_kernel
def mixture_logpdf(x, log_weights, means, stds, out):
    table, top = _line_table(log_weights, stds)
    for start in range(0, len(x), BLOCK):
        _line_block(x[start : start + BLOCK], means, table, top, None, out[start : start + BLOCK])


@_kernel
def mixture_score(x, log_weights, means, stds, out):
    table, top = _line_table(log_weights, stds)
    unit = table[3].max()
    unit = unit if unit <= table[3].min() * (1 << ALIKE) else x.dtype.type(0)
    for start in range(0, len(x), BLOCK):
        _line_block(x[start : start + BLOCK], means, table, top, unit, out[start : start + BLOCK])


# Whether the density or the score is wanted, the dimensions of `out` tell, when the function is compiled.
@_kernel
def _diag(x, log_weights, means, stds, out):
    n_components, n_dims = means.shape
    log_coefs = _log_coefficients(log_weights, stds)
    terms = np.empty((n_components, BLOCK), dtype=x.dtype)
    for start in range(0, len(x), BLOCK):
        points = x[start : start + BLOCK]
        for k in range(n_components):
            terms[k] = log_coefs[k]
            for d in range(n_dims):
                mean = means[k, d]
                scale = x.dtype.type(SQRT_HALF / stds[k, d])
                for i in range(len(points)):
                    z = (points[i, d] - mean) * scale
                    terms[k, i] -= z * z
        if out.ndim == 1:
            _logsumexp_columns(terms, len(points), out[start:])
        else:
            _responsibilities(terms, len(points))
            for d in range(n_dims):
                scales = (SQRT_HALF / stds[:, d]).astype(x.dtype)
                _normal_slopes(points[:, d], terms, means[:, d], scales, out[start : start + BLOCK, d])


@_kernel
def mixture_logpdf_diag(x, log_weights, means, stds, out):
    _diag(x, log_weights, means, stds, out)


@_kernel
def mixture_score_diag(x, log_weights, means, stds, out):
    _diag(x, log_weights, means, stds, out)


@_kernel
def _full(x, log_weights, means, choleskys, out):
    n_components, n_dims = means.shape
    diagonals = np.empty_like(means)
    for d in range(n_dims):
        diagonals[:, d] = choleskys[:, d, d]
    log_coefs = _log_coefficients(log_weights, diagonals)
    terms = np.empty((n_components, BLOCK), dtype=x.dtype)
    # The score needs every component's z once more, the density none.
    stored = 1 if out.ndim == 1 else n_components
    z = np.empty((stored, n_dims, BLOCK), dtype=x.dtype)
    slopes = np.empty((n_dims, BLOCK), dtype=x.dtype)
    root, root_2 = x.dtype.type(SQRT_HALF), x.dtype.type(1 / SQRT_HALF)
    for start in range(0, len(x), BLOCK):
        points = x[start : start + BLOCK]
        for k in range(n_components):
            j = k % stored
            terms[k] = log_coefs[k]
            # Solve L z = (x - mean) / sqrt(2) by forward substitution, a dimension of all points at a time.
            for d in range(n_dims):
                for i in range(len(points)):
                    z[j, d, i] = (points[i, d] - means[k, d]) * root
                for e in range(d):
                    factor = choleskys[k, d, e]
                    for i in range(len(points)):
                        z[j, d, i] -= factor * z[j, e, i]
                factor = x.dtype.type(1 / choleskys[k, d, d])
                for i in range(len(points)):
                    z[j, d, i] *= factor
                    terms[k, i] -= z[j, d, i] * z[j, d, i]
        if out.ndim == 1:
            _logsumexp_columns(terms, len(points), out[start:])
        else:
            _responsibilities(terms, len(points))
            slopes[:] = 0
            for k in range(n_components):
                # Solve the transpose by backward substitution, in place.
                for d in range(n_dims - 1, -1, -1):
                    for e in range(d + 1, n_dims):
                        factor = choleskys[k, e, d]
                        for i in range(len(points)):
                            z[k, d, i] -= factor * z[k, e, i]
                    factor = x.dtype.type(1 / choleskys[k, d, d])
                    for i in range(len(points)):
                        z[k, d, i] *= factor
                        share = terms[k, i] * root_2
                        slopes[d, i] -= share * z[k, d, i] if share != 0 else x.dtype.type(0)
            for i in range(len(points)):
                for d in range(n_dims):
                    out[start + i, d] = slopes[d, i]


@_kernel
def mixture_logpdf_full(x, log_weights, means, choleskys, out):
    _full(x, log_weights, means, choleskys, out)


@_kernel
def mixture_score_full(x, log_weights, means, choleskys, out):
    _full(x, log_weights, means, choleskys, out)


@_kernel
def logsumexp_rows(a, out):
    n_terms = a.shape[1]
    for row in range(len(a)):
        shift = -inf
        for k in range(n_terms):
            shift = a[row, k] if a[row, k] > shift else shift
        shift = shift if isfinite(shift) else 0.0
        total = compensation = 0.0
        ties = -1
        for start in range(0, n_terms, CHUNK):
            remainder = 0.0
            for k in range(start, min(start + CHUNK, n_terms)):
                if a[row, k] == shift:
                    ties += 1
                else:
                    remainder += _exp(a[row, k] - shift)
            total, compensation = _two_sum(total, compensation, remainder)
        out[row] = shift + log1p(total + compensation + ties)


@_kernel
def _grid_sums(lower, step, first, means, table, total):
    """Sum a block's densities on a uniform grid; return their offset in base 2 and how many are lost.

    LANES points on, a Gaussian is multiplied by a ratio, and the ratio by a constant. Both start anew in the middle of
    each block, before rounding adds up, and where the Gaussian changes too much within a block every point has an exp.
    """
    sums = np.zeros(GRID)
    bounds, relevant = np.empty((2, len(means))), np.empty(len(means), np.intp)
    low, high = lower + first * step, lower + (first + GRID - 1) * step
    n_relevant, peak = _relevant(low, high, means, table, 0, bounds, relevant)
    stride = LANES * step
    for j in range(n_relevant):
        k = relevant[j]
        mean, scale = means[k], table[3, k]
        log2_coef = table[2, k] - peak
        if bounds[0, k] - bounds[1, k] < GENTLE:
            decay = _exp2_term(-2 * (stride * scale) * (stride * scale))
            for lane in range(LANES):
                z = ((lower + (first + MIDDLE + lane) * step) - mean) * scale
                term = _exp2_term(log2_coef - z * z)
                ratio = _exp2_term(-(2 * z + stride * scale) * stride * scale)
                back_ratio = decay / ratio
                back_term = term * back_ratio
                for i in range(MIDDLE // LANES):
                    sums[MIDDLE + i * LANES + lane] += term
                    term *= ratio
                    ratio *= decay
                    sums[MIDDLE - (i + 1) * LANES + lane] += back_term
                    back_ratio *= decay
                    back_term *= back_ratio
        else:
            for i in range(GRID):
                z = ((lower + (first + i) * step) - mean) * scale
                sums[i] += _exp2_term(log2_coef - z * z)
    n_lost = 0
    for i in range(GRID):
        n_lost += not sums[i] >= 1e-280
        total[i] = sums[i]
    return peak, n_lost


@_kernel
def trapezoid_kl(log_weights_p, means_p, stds_p, log_weights_q, means_q, stds_q, lower, upper, num, start, stop, out):
    step = (upper - lower) / (num - 1)
    exact_p, exact_q = means_p.astype(np.float64), means_q.astype(np.float64)
    table_p, top_p = _line_table(log_weights_p.astype(np.float64), stds_p.astype(np.float64))
    table_q, top_q = _line_table(log_weights_q.astype(np.float64), stds_q.astype(np.float64))
    sum_p, sum_q, x = np.empty(GRID), np.empty(GRID), np.empty(GRID)
    total = compensation = 0.0
    for first in range(start, stop, GRID):
        n_points = min(stop - first, GRID)
        peak_p, n_lost_p = _grid_sums(lower, step, first, exact_p, table_p, sum_p)
        peak_q, n_lost_q = _grid_sums(lower, step, first, exact_q, table_q, sum_q)
        integrand = np.empty(GRID)
        if n_lost_p + n_lost_q == 0:
            offset_p, offset_q = top_p + peak_p / LOG2_E, top_q + peak_q / LOG2_E
            density = np.exp(offset_p)
            for i in range(GRID):
                log_ratio = _log_normal(sum_p[i] / sum_q[i]) + (offset_p - offset_q)
                integrand[i] = density * sum_p[i] * log_ratio
        else:
            for i in range(GRID):
                x[i] = lower + (first + i) * step
            for means, table, log_density in ((exact_p, table_p, sum_p), (exact_q, table_q, sum_q)):
                terms = np.empty((len(means), GRID))
                _shifted_terms(x, means, table, terms)
                _logsumexp_columns(terms, GRID, log_density)
            for i in range(GRID):
                density = _exp(sum_p[i])
                log_ratio = sum_p[i] - sum_q[i]
                integrand[i] = density * log_ratio if density != 0 else 0.0
        if first == 0:
            integrand[0] *= 0.5
        if first + n_points == num:
            integrand[n_points - 1] *= 0.5
        integral = 0.0
        for i in range(n_points):
            integral += integrand[i]
        total, compensation = _two_sum(total, compensation, integral)
    out[0] = total + compensation


@_kernel
def trapezoid_cross_entropy(locs, scales, mass, lower, upper, log_weights, means, stds, out):
    n_components, num = len(means), len(mass)
    step = (upper - lower) / (num - 1)
    table, top = _line_table(log_weights.astype(np.float64), stds.astype(np.float64))
    # The mixture in the coordinate z of a Gaussian, its densities per unit of x.
    local, local_means, exact_means = table.copy(), np.empty(n_components), means.astype(np.float64)
    sums, log_q, x = np.empty(GRID), np.empty(GRID), np.empty(GRID)
    terms = np.empty((n_components, GRID))
    for j in range(len(locs)):
        is_far = False
        for k in range(n_components):
            local[1, k] = table[1, k] * scales[j]
            local[3, k] = table[3, k] * scales[j]
            local_means[k] = (exact_means[k] - locs[j]) / scales[j]
            is_far |= not (isfinite(local_means[k]) and 0 < local[1, k] < inf)
        total = compensation = 0.0
        for first in range(0, num, GRID):
            n_points = min(num - first, GRID)
            peak, n_lost = 0.0, 0
            if not is_far:
                peak, n_lost = _grid_sums(lower, step, first, local_means, local, sums)
            if is_far:
                # Only x has room for it.
                for i in range(GRID):
                    x[i] = (locs[j] + lower * scales[j]) + (first + i) * (step * scales[j])
                _shifted_terms(x, exact_means, table, terms)
                _logsumexp_columns(terms, GRID, log_q)
            elif n_lost:
                for i in range(GRID):
                    x[i] = lower + (first + i) * step
                _shifted_terms(x, local_means, local, terms)
                _logsumexp_columns(terms, GRID, log_q)
            else:
                offset = top + peak / LOG2_E
                for i in range(GRID):
                    log_q[i] = offset + _log_normal(sums[i])
            integral = 0.0
            for i in range(n_points):
                integral += mass[first + i] * log_q[i] if mass[first + i] != 0 else 0.0
            total, compensation = _two_sum(total, compensation, integral)
        out[j] = -(total + compensation)


@_kernel
def _merge_moments(moments, count, mean, residual, m2, low, high):
    """Merge a sample's moments into the running ones (Chan, Golub & LeVeque 1979).

    A mean is carried with what rounding took from it: the running ones in moments[5], the sample's in residual.
    """
    if count == 0:
        return
    total = moments[0] + count
    delta = (mean - moments[1]) + (residual - moments[5])
    moments[2] += m2 + delta * delta * (moments[0] * count / total)
    if isfinite(delta):
        moments[1], moments[5] = _two_sum(moments[1], moments[5], delta * (count / total))
    else:
        moments[1] += mean
        moments[5] = 0.0
    moments[0] = total
    moments[3] = low if low < moments[3] else moments[3]
    moments[4] = high if high > moments[4] else moments[4]


@_kernel
def merge_moments(other, out):
    _merge_moments(out, other[0], other[1], other[5], other[2], other[3], other[4])


@_kernel
def log_ratio_moments(log_p, log_q, out):
    values = np.empty(CHUNK)
    for start in range(0, len(log_p), CHUNK):
        n = min(len(log_p) - start, CHUNK)
        mean = 0.0
        low, high = inf, -inf
        for i in range(n):
            values[i] = np.float64(log_p[start + i]) - log_q[start + i]
            mean += values[i]
            low = values[i] if values[i] < low else low
            high = values[i] if values[i] > high else high
        mean /= n
        m2 = drift = 0.0
        for i in range(n):
            deviation = values[i] - mean
            drift += deviation
            m2 += deviation * deviation
        drift = drift / n if isfinite(drift) else 0.0
        _merge_moments(out, n, mean, drift, m2 - n * drift * drift, low, high)


@_kernel
def logistic_sgd_epoch(
    X, y, sample_weight, permutation, batch_size, learning_rate, momentum, alpha, coef, velocity, out
):
    n_rows = len(permutation)
    n_features = X.shape[1]
    number = X.dtype.type
    logits, targets, weights = np.empty(BLOCK, X.dtype), np.empty(BLOCK, X.dtype), np.empty(BLOCK, X.dtype)
    losses, steps = np.empty(BLOCK, X.dtype), np.empty(BLOCK, X.dtype)
    total = compensation = 0.0
    for start in range(0, n_rows, batch_size):
        stop = min(start + batch_size, n_rows)
        rate = number(learning_rate / (stop - start))
        for j in range(n_features):
            velocity[j] = number(momentum) * velocity[j] - number(learning_rate * alpha) * coef[j]
        velocity[n_features] *= number(momentum)
        loss = 0.0
        for first in range(start, stop, BLOCK):
            n_points = min(stop - first, BLOCK)
            # Loads alone, so that those of many rows are under way at a time.
            for i in range(n_points):
                row = permutation[first + i]
                logit = coef[n_features]
                for j in range(n_features):
                    logit += X[row, j] * coef[j]
                logits[i] = logit
                targets[i] = y[row]
                weights[i] = sample_weight[row]
            for i in range(n_points):
                odds = _exp2_term(-abs(logits[i]) * number(LOG2_E))
                hinge = logits[i] if logits[i] > 0 else number(0)
                probability = (odds if logits[i] < 0 else number(1)) / (number(1) + odds)
                losses[i] = weights[i] * (hinge + number(_log1p(odds)) - targets[i] * logits[i])
                steps[i] = rate * weights[i] * (targets[i] - probability)
            for i in range(n_points):
                row = permutation[first + i]
                loss += losses[i]
                for j in range(n_features):
                    velocity[j] += steps[i] * X[row, j]
                velocity[n_features] += steps[i]
        for j in range(n_features + 1):
            coef[j] += velocity[j]
        total, compensation = _two_sum(total, compensation, loss)
    out[0] = total + compensation
