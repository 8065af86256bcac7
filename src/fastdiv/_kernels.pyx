"""The Cython kernel set, the default.

Points are taken in blocks that stay in L1, and inner loops run over the points, so that the compiler can put points in
vector lanes. On the line the exponentials of a block's terms are summed as they are made, in base 2, relative to a
bound that all its points share. In more dimensions, and where that sum loses its digits, the terms are written down,
one row per component, and reduced by one shared logsumexp.

A kernel validates nothing: shapes and dtypes are the caller's business.
"""

from libc.float cimport DBL_MAX, DBL_MIN
from libc.math cimport INFINITY, NAN, fabs, isfinite, log, log1p, pow, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc

cdef extern from "_vecmath.h" nogil:
    double fastdiv_exp(double x) noexcept
    float fastdiv_expf(float x) noexcept
    double fastdiv_exp2_term(double x) noexcept
    float fastdiv_exp2_termf(float x) noexcept
    double fastdiv_expm1(double x) noexcept
    float fastdiv_expm1f(float x) noexcept
    double fastdiv_log(double x) noexcept
    double fastdiv_log_normal(double x) noexcept
    float fastdiv_log_normalf(float x) noexcept
    double fastdiv_sigmoid(double x) noexcept
    float fastdiv_sigmoidf(float x) noexcept
    double fastdiv_softplus(double x) noexcept
    float fastdiv_softplusf(float x) noexcept
    double fastdiv_softplus_slope(double x, double *slope) noexcept
    float fastdiv_softplus_slopef(float x, float *slope) noexcept
    int fastdiv_multiply_lanes(const double *values, Py_ssize_t n, double *product, double *exponent) noexcept
    void fastdiv_prefetch(const void *address) noexcept
    void fastdiv_prefetch_second(const void *address) noexcept
    void fastdiv_triangle_product(
        const double *triangle,
        Py_ssize_t row_step,
        Py_ssize_t step,
        Py_ssize_t n_rows,
        const double *columns,
        Py_ssize_t column_step,
        const double *mean,
        Py_ssize_t n_points,
        int is_sum,
        double *out,
        double top,
        double *terms,
    ) noexcept
    void fastdiv_triangle_productf(
        const float *triangle,
        Py_ssize_t row_step,
        Py_ssize_t step,
        Py_ssize_t n_rows,
        const float *columns,
        Py_ssize_t column_step,
        const float *mean,
        Py_ssize_t n_points,
        int is_sum,
        float *out,
        float top,
        float *terms,
    ) noexcept
    void fastdiv_tile_products(
        const double *first,
        const double *second,
        const double *columns,
        Py_ssize_t stride,
        Py_ssize_t n_points,
        double *totals,
    ) noexcept
    void fastdiv_tile_productsf(
        const float *first,
        const float *second,
        const float *columns,
        Py_ssize_t stride,
        Py_ssize_t n_points,
        double *totals,
    ) noexcept


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

cdef enum:
    BLOCK = 64  # points: 64 components of doubles fill a 32 KiB L1
    GRID = 128  # points of a grid: from the middle a recurrence keeps its digits as far as the ends
    MIDDLE = 64
    GROUP = 8  # terms that are summed in their own precision, before the sum goes on in double
    STRIP = 32  # points whose sums stay in vector registers; FASTDIV_STRIP
    LANES = 8  # partial sums
    LINE = 64  # bytes of a cache line
    ALIKE = 14  # bits between the stds of a mixture whose score may be taken in one pass
    FEW = 4  # components, of which none is worth dropping
    GENTLE = 100  # change of an exponent that a recurrence may follow
    AHEAD = 32  # rows between a prefetch and the use
    ROWS = 128  # rows of a block: all pairs of columns are multiplied, all units or responsibilities are kept
    SOFTPLUS = 0
    TANH = 1
    RMSPROP = 0
    ADAM = 1
    VI_SGD = 0
    VI_ADAGRAD = 1
    VI_WINDOW = 2
    VI_ADAM = 4
    GRADIENT = 0
    HESSIAN = 1
    SCORES = 2
    RUNNING = 0
    FULL = 1
    CONVERGED = 2
    STUCK = 3
    STAGE = 0
    STATUS = 1
    SHARE = 2
    VALUE = 3
    DECREMENT = 4
    BORROWED = 5
    N_LOSSES = 6
    SCALE_PRIOR = 0
    MEAN_PRECISION = 1
    SCALE_A = 2
    SCALE_B = 3
    CONSTANT = 4
    FIXED = 0
    HALF_NORMAL = 1
    INVERSE_GAMMA = 2
    CHUNK = 256  # values whose mean and deviations are taken while they are in L1
    DIGITS = 256  # that a byte may be
    PLACES = 8  # bytes of a double

# Under this share of the largest, a pivot of a Hessian is rounding.
cdef double LEAST_RIDGE = 1e-12
cdef double SUFFICIENT_DECREASE = 1e-4
cdef double LEAST_SHARE = 2.0 ** -30
cdef double HALF_LOG_2PI = 0.91893853320467274178
cdef double SQRT_HALF = 0.70710678118654752440
cdef double LOG2_E = 1.44269504088896340736
cdef double SQRT_HALF_LOG2_E = 0.84932180028801904272


def ready(kernel, parameters):
    """Return a kernel for doubles and views of its parameters, so that no call has to choose or take them again.

    This is half of the time of a call for one point.
    """
    cdef const double[::1] vector
    cdef const double[:, ::1] matrix
    cdef const double[:, :, ::1] stack
    views = []
    for array in parameters:
        if array.ndim == 1:
            vector = array
            views.append(vector)
        elif array.ndim == 2:
            matrix = array
            views.append(matrix)
        else:
            stack = array
            views.append(stack)
    return kernel["double"], tuple(views)


cdef inline Py_ssize_t _n_blocks(Py_ssize_t size, Py_ssize_t block_size) noexcept nogil:
    return (size + block_size - 1) // block_size


cdef inline void *_aligned(void *scratch) noexcept nogil:
    """Return the first cache line in scratch that has LINE to spare: kernels whose vectors cross lines crawl."""
    return <void *> ((<size_t> scratch + LINE - 1) // LINE * LINE)


cdef inline floating _exp(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_expf(x)
    else:
        return fastdiv_exp(x)


cdef inline floating _exp2_term(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_exp2_termf(x)
    else:
        return fastdiv_exp2_term(x)


cdef inline floating _log_normal(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_log_normalf(x)
    else:
        return fastdiv_log_normal(x)


cdef inline floating _sigmoid(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_sigmoidf(x)
    else:
        return fastdiv_sigmoid(x)


cdef inline floating _softplus(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_softplusf(x)
    else:
        return fastdiv_softplus(x)


cdef inline floating _expm1(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_expm1f(x)
    else:
        return fastdiv_expm1(x)


cdef inline floating _softplus_slope(floating x, floating *slope) noexcept nogil:
    if floating is float:
        return fastdiv_softplus_slopef(x, slope)
    else:
        return fastdiv_softplus_slope(x, slope)


cdef inline double _sum(const double *values, Py_ssize_t n) noexcept nogil:
    """Add values up in LANES partial sums, which the compiler keeps in vector registers."""
    cdef double partial[LANES]
    cdef double total = 0
    cdef Py_ssize_t i, lane
    for lane in range(LANES):
        partial[lane] = 0
    for i in range(n // LANES):
        for lane in range(LANES):
            partial[lane] += values[i * LANES + lane]
    for i in range(n // LANES * LANES, n):
        total += values[i]
    for lane in range(LANES):
        total += partial[lane]
    return total


cdef inline void _range(const floating *values, Py_ssize_t n, floating *low, floating *high) noexcept nogil:
    cdef floating lows[LANES]
    cdef floating highs[LANES]
    cdef floating value
    cdef Py_ssize_t i, lane
    for lane in range(LANES):
        lows[lane] = INFINITY
        highs[lane] = -INFINITY
    for i in range(n // LANES):
        for lane in range(LANES):
            value = values[i * LANES + lane]
            lows[lane] = value if value < lows[lane] else lows[lane]
            highs[lane] = value if value > highs[lane] else highs[lane]
    low[0] = INFINITY
    high[0] = -INFINITY
    for lane in range(LANES):
        low[0] = lows[lane] if lows[lane] < low[0] else low[0]
        high[0] = highs[lane] if highs[lane] > high[0] else high[0]
    for i in range(n // LANES * LANES, n):
        low[0] = values[i] if values[i] < low[0] else low[0]
        high[0] = values[i] if values[i] > high[0] else high[0]


cdef inline void _two_sum(double *total, double *compensation, double term) noexcept nogil:
    """Add a term to a sum and its rounding error to the compensation (Neumaier 1974)."""
    cdef double s = total[0] + term
    if not isfinite(s):
        compensation[0] = 0
    elif fabs(total[0]) >= fabs(term):
        compensation[0] += (total[0] - s) + term
    else:
        compensation[0] += (term - s) + total[0]
    total[0] = s


cdef inline void _column_shifts(const floating *terms, Py_ssize_t n_terms, floating *shift) noexcept nogil:
    """Find the largest of each column of a strip of terms (n_terms, BLOCK).

    A column without a finite maximum is not shifted: its -inf and NaN then come out as exp and log make them.
    """
    cdef floating t
    cdef Py_ssize_t k, i
    for i in range(STRIP):
        shift[i] = terms[i]
    for k in range(1, n_terms):
        for i in range(STRIP):
            t = terms[k * BLOCK + i]
            shift[i] = t if t > shift[i] else shift[i]
    for i in range(STRIP):
        shift[i] = shift[i] if isfinite(shift[i]) else 0


cdef void _logsumexp_columns(
    const floating *terms, Py_ssize_t n_terms, Py_ssize_t n_points, floating *out
) noexcept nogil:
    """Reduce terms (n_terms, BLOCK) over its rows; to the end of a strip, whatever is there is reduced and not kept."""
    cdef floating shift[STRIP]
    cdef floating partial[STRIP]
    cdef double total[STRIP]
    cdef const floating *strip
    cdef Py_ssize_t start, group, k, i
    if n_terms == 1:
        for i in range(n_points):
            out[i] = terms[i]
        return
    for start in range(_n_blocks(n_points, STRIP)):
        strip = terms + start * STRIP
        _column_shifts(strip, n_terms, shift)
        for i in range(STRIP):
            total[i] = 0
        for group in range(_n_blocks(n_terms, GROUP)):
            for i in range(STRIP):
                partial[i] = 0
            for k in range(group * GROUP, min((group + 1) * GROUP, n_terms)):
                for i in range(STRIP):
                    partial[i] += _exp2_term((strip[k * BLOCK + i] - shift[i]) * <floating> LOG2_E)
            for i in range(STRIP):
                total[i] += partial[i]
        for i in range(STRIP):
            partial[i] = <floating> (shift[i] + fastdiv_log(total[i]))
        for i in range(min(n_points - start * STRIP, <Py_ssize_t> STRIP)):
            out[start * STRIP + i] = partial[i]


cdef void _responsibilities(floating *terms, Py_ssize_t n_terms, Py_ssize_t n_points) noexcept nogil:
    """Make each column of terms (n_terms, BLOCK) its softmax: NaN where all of them are -inf."""
    cdef floating shift[STRIP]
    cdef double total[STRIP]
    cdef floating *strip
    cdef floating t
    cdef Py_ssize_t start, k, i
    for start in range(_n_blocks(n_points, STRIP)):
        strip = terms + start * STRIP
        _column_shifts(strip, n_terms, shift)
        for i in range(STRIP):
            total[i] = 0
        for k in range(n_terms):
            for i in range(STRIP):
                t = _exp2_term((strip[k * BLOCK + i] - shift[i]) * <floating> LOG2_E)
                strip[k * BLOCK + i] = t
                total[i] += t
        for i in range(STRIP):
            shift[i] = <floating> (1 / total[i])
        for k in range(n_terms):
            for i in range(STRIP):
                strip[k * BLOCK + i] *= shift[i]


cdef void _log_coefficients(
    const floating *log_weights,
    const floating *scales,
    Py_ssize_t n_components,
    Py_ssize_t n_scales,
    Py_ssize_t scale_stride,
    Py_ssize_t component_stride,
    int power,
    floating *log_coefs,
) noexcept nogil:
    """Log of weight over the product of scales, to a power of 1 or -1, and sqrt(2 pi)."""
    cdef Py_ssize_t k, d
    cdef double log_coef
    for k in range(n_components):
        log_coef = log_weights[k] - n_scales * HALF_LOG_2PI
        for d in range(n_scales):
            log_coef -= power * log(scales[k * component_stride + d * scale_stride])
        log_coefs[k] = <floating> log_coef


cdef void _normal_terms(
    const floating *x,
    Py_ssize_t n_points,
    const floating *log_coefs,
    const floating *means,
    const floating *scales,
    Py_ssize_t n_components,
    floating *terms,
) noexcept nogil:
    cdef floating log_coef, mean, scale, z
    cdef Py_ssize_t k, i
    for k in range(n_components):
        log_coef = log_coefs[k]
        mean = means[k]
        scale = scales[k]
        for i in range(n_points):
            z = (x[i] - mean) * scale
            terms[k * BLOCK + i] = log_coef - z * z


cdef inline void _load_strip(const floating *x, Py_ssize_t n_left, floating *points) noexcept nogil:
    """Copy the next STRIP of the n points that are left, the last one again to fill it."""
    cdef Py_ssize_t i
    if n_left >= STRIP:
        for i in range(STRIP):
            points[i] = x[i]
    else:
        for i in range(STRIP):
            points[i] = x[min(i, n_left - 1)]


cdef void _normal_slopes(
    const floating *x,
    Py_ssize_t n_points,
    const floating *responsibilities,
    const floating *means,
    const floating *scales,
    Py_ssize_t n_components,
    Py_ssize_t stride,
    floating *out,
) noexcept nogil:
    """Sum the components' scores (mean - x) / std^2 by their responsibilities; nothing is 0 times infinity."""
    cdef floating points[STRIP]
    cdef floating half[STRIP]
    cdef floating mean, scale, share, slope
    cdef Py_ssize_t strip, start, k, i
    for strip in range(_n_blocks(n_points, STRIP)):
        start = strip * STRIP
        _load_strip(x + start, n_points - start, points)
        for i in range(STRIP):
            half[i] = 0
        for k in range(n_components):
            mean = means[k * stride]
            scale = scales[k * stride]
            for i in range(STRIP):
                share = responsibilities[k * BLOCK + start + i]
                slope = (mean - points[i]) * scale * scale
                half[i] += share * slope if share != 0 else 0
        for i in range(min(n_points - start, <Py_ssize_t> STRIP)):
            out[start + i] = 2 * half[i]


cdef double _line_table(
    const floating *log_weights, const floating *stds, Py_ssize_t n_components, floating *table
) noexcept nogil:
    """Fill a mixture's table and return the largest log-coefficient.

    Its rows are log-coefficients and scales; and the same in base 2, the coefficients less the largest.
    """
    cdef floating *log_coefs = table
    cdef floating *scales = table + n_components
    cdef floating *log2_coefs = table + 2 * n_components
    cdef floating *scales_2 = table + 3 * n_components
    cdef double top = -INFINITY
    cdef Py_ssize_t k
    _log_coefficients(log_weights, stds, n_components, 1, 0, 1, 1, log_coefs)
    for k in range(n_components):
        top = log_coefs[k] if log_coefs[k] > top else top
    for k in range(n_components):
        scales[k] = <floating> (SQRT_HALF / stds[k])
        log2_coefs[k] = <floating> ((log_coefs[k] - top) * LOG2_E)
        scales_2[k] = <floating> (SQRT_HALF_LOG2_E / stds[k])
    return top


cdef Py_ssize_t _relevant(
    floating low,
    floating high,
    const floating *means,
    const floating *table,
    Py_ssize_t n_components,
    bint is_score,
    floating *bounds,
    Py_ssize_t *relevant,
    floating *peak,
) noexcept nogil:
    """List the components that can move the density, or the score, between two points by half a last place.

    Return how many.

    There a component's term lies between its values at the nearest and the farthest point: its bounds, the upper ones
    first. A component counts if its upper bound reaches the largest lower one; peak is the largest upper one.
    """
    cdef const floating *log2_coefs = table + 2 * n_components
    cdef const floating *scales_2 = table + 3 * n_components
    cdef floating *uppers = bounds
    cdef floating *lowers = bounds + n_components
    cdef floating near, far, floor, unused
    cdef floating slack = (40 if floating is float else 70) + (2 * ALIKE if is_score else 0)
    cdef Py_ssize_t n_relevant = 0, k
    for k in range(n_components):
        near = low - means[k] if low > means[k] else (means[k] - high if high < means[k] else 0)
        far = high - means[k] if high - means[k] > means[k] - low else means[k] - low
        near *= scales_2[k]
        far *= scales_2[k]
        uppers[k] = log2_coefs[k] - near * near
        lowers[k] = log2_coefs[k] - far * far
    _range(lowers, n_components, &unused, &floor)
    _range(uppers, n_components, &unused, peak)
    peak[0] = peak[0] if isfinite(peak[0]) else 0
    for k in range(n_components):
        relevant[n_relevant] = k
        n_relevant += uppers[k] >= floor - slack
    return n_relevant


cdef inline void _line_strip(
    const floating *points,
    const floating *means,
    const floating *table,
    Py_ssize_t n_components,
    const Py_ssize_t *relevant,
    Py_ssize_t n_relevant,
    floating peak,
    bint is_score,
    floating unit,
    floating *total,
    floating *slope,
) noexcept nogil:
    """Sum the relevant components' terms at STRIP points, relative to the peak; for a score, their slopes per unit."""
    cdef const floating *log2_coefs = table + 2 * n_components
    cdef const floating *scales_2 = table + 3 * n_components
    cdef double totals[STRIP]
    cdef double slopes[STRIP]
    cdef floating mean, scale, relative_scale, log2_coef, z, term
    cdef Py_ssize_t n_groups = _n_blocks(n_relevant, GROUP)
    cdef Py_ssize_t group, j, k, i
    for i in range(STRIP):
        totals[i] = 0
        slopes[i] = 0
    # Without components, as where all parameters are NaN, the sums are 0.
    for group in range(max(n_groups, 1)):
        for i in range(STRIP):
            total[i] = 0
            slope[i] = 0
        for j in range(group * GROUP, min((group + 1) * GROUP, n_relevant)):
            k = relevant[j]
            mean = means[k]
            scale = scales_2[k]
            relative_scale = scale / unit
            log2_coef = log2_coefs[k] - peak
            for i in range(STRIP):
                z = (points[i] - mean) * scale
                term = _exp2_term(log2_coef - z * z)
                total[i] += term
                if is_score:
                    slope[i] += term * (z * relative_scale)
        if n_groups > 1:
            for i in range(STRIP):
                totals[i] += total[i]
                total[i] = <floating> totals[i]
            if is_score:
                for i in range(STRIP):
                    slopes[i] += slope[i]
                    slope[i] = <floating> slopes[i]


cdef inline void _line_block(
    const floating *x,
    Py_ssize_t n_points,
    const floating *means,
    const floating *table,
    double top,
    Py_ssize_t n_components,
    const Py_ssize_t *relevant,
    Py_ssize_t n_relevant,
    floating peak,
    bint is_score,
    floating unit,
    floating *terms,
    floating *out,
) noexcept nogil:
    """Log-density of a mixture on the line, or its derivative, at a block of points.

    One pass sums the exponentials of all terms less a bound that they share. Where nearly nothing of a sum is left,
    or slopes are too unlike for one unit, which is 0 then, each point's terms are written down and shifted by their own
    maximum.
    """
    cdef floating points[STRIP]
    cdef floating total[STRIP]
    cdef floating slope[STRIP]
    cdef floating lost[STRIP]
    cdef floating *result
    cdef floating offset = <floating> (top + peak / LOG2_E)
    cdef floating least = 1e-26 if floating is float else 1e-280
    cdef Py_ssize_t strip, start, i, n_lost = 0
    if n_components == 1 or n_points < LANES or unit == 0:
        n_lost = 1
    else:
        for i in range(STRIP):
            lost[i] = 0
        for strip in range(_n_blocks(n_points, STRIP)):
            start = strip * STRIP
            _load_strip(x + start, n_points - start, points)
            _line_strip(points, means, table, n_components, relevant, n_relevant, peak, is_score, unit, total, slope)
            result = &out[start] if n_points - start >= STRIP else points
            for i in range(STRIP):
                lost[i] += not total[i] >= least
            if is_score:
                for i in range(STRIP):
                    result[i] = <floating> (-2 / LOG2_E) * unit * (slope[i] / total[i])
                    lost[i] += not isfinite(result[i])
            else:
                for i in range(STRIP):
                    result[i] = offset + _log_normal(total[i])
            if result == points:
                for i in range(n_points - start):
                    out[start + i] = points[i]
        for i in range(STRIP):
            n_lost += lost[i] > 0
    if n_lost:
        _normal_terms(x, n_points, table, means, table + n_components, n_components, terms)
        if is_score:
            _responsibilities(terms, n_components, n_points)
            _normal_slopes(x, n_points, terms, means, table + n_components, n_components, 1, out)
        else:
            _logsumexp_columns(terms, n_components, n_points, out)


cdef void _shifted_grid(
    double lower,
    double step,
    Py_ssize_t first,
    const double *table,
    Py_ssize_t n_components,
    double *terms,
    double *out,
) noexcept nogil:
    """Log-density at GRID points of a uniform grid, each point's terms shifted by their own maximum."""
    cdef double x[BLOCK]
    cdef Py_ssize_t block, start, i
    for block in range(GRID // BLOCK):
        start = block * BLOCK
        for i in range(BLOCK):
            x[i] = lower + (first + start + i) * step
        _normal_terms(x, BLOCK, table, table + 4 * n_components, table + n_components, n_components, terms)
        _logsumexp_columns(terms, n_components, BLOCK, out + start)


cdef double _grid_table(
    const floating *log_weights,
    const floating *means,
    const floating *stds,
    Py_ssize_t n_components,
    double step,
    double *table,
) noexcept nogil:
    """Fill a mixture's table in double and return its top: the rows of `_line_table`, means, decays of the ratio."""
    cdef double *exact_means = table + 4 * n_components
    cdef double *decays = table + 5 * n_components
    cdef double *exact_weights = table + 6 * n_components
    cdef double *exact_stds = table + 7 * n_components
    cdef double z
    cdef Py_ssize_t k
    for k in range(n_components):
        exact_weights[k] = log_weights[k]
        exact_means[k] = means[k]
        exact_stds[k] = stds[k]
        z = LANES * step * (SQRT_HALF_LOG2_E / exact_stds[k])
        decays[k] = fastdiv_exp2_term(-2 * z * z)
    return _line_table(exact_weights, exact_stds, n_components, table)


cdef Py_ssize_t _grid_sums(
    double lower,
    double step,
    Py_ssize_t first,
    const double *table,
    Py_ssize_t n_components,
    double *bounds,
    Py_ssize_t *relevant,
    double *total,
    double *peak,
) noexcept nogil:
    """Sum a block's densities on a uniform grid, relative to the top and the peak; return how many are lost.

    LANES points on, a Gaussian is multiplied by a ratio, and the ratio by a constant. Both start anew in the middle of
    each block, before rounding adds up, and where the Gaussian changes too much within a block every point has an exp.
    """
    cdef const double *log2_coefs = table + 2 * n_components
    cdef const double *scales = table + 3 * n_components
    cdef const double *means = table + 4 * n_components
    cdef const double *decays = table + 5 * n_components
    cdef double stride = LANES * step
    cdef double low, high, mean, scale, log2_coef, decay, z, term, ratio, back_term, back_ratio
    cdef Py_ssize_t n_relevant, n_lost = 0, i, j, k, lane
    for i in range(GRID):
        total[i] = 0
    low = lower + first * step
    high = lower + (first + GRID - 1) * step
    n_relevant = _relevant(low, high, means, table, n_components, False, bounds, relevant, peak)
    for j in range(n_relevant):
        k = relevant[j]
        mean = means[k]
        scale = scales[k]
        decay = decays[k]
        log2_coef = log2_coefs[k] - peak[0]
        if bounds[k] - bounds[n_components + k] < GENTLE:
            for lane in range(LANES):
                z = ((lower + (first + MIDDLE + lane) * step) - mean) * scale
                term = _exp2_term(log2_coef - z * z)
                ratio = _exp2_term(-(2 * z + stride * scale) * stride * scale)
                back_ratio = decay / ratio
                back_term = term * back_ratio
                for i in range(MIDDLE // LANES):
                    total[MIDDLE + i * LANES + lane] += term
                    term *= ratio
                    ratio *= decay
                    total[MIDDLE - (i + 1) * LANES + lane] += back_term
                    back_ratio *= decay
                    back_term *= back_ratio
        else:
            for i in range(GRID):
                z = ((lower + (first + i) * step) - mean) * scale
                total[i] += _exp2_term(log2_coef - z * z)
    for i in range(GRID):
        n_lost += not total[i] >= 1e-280
    return n_lost


cdef void _transpose_block(
    const floating *x, Py_ssize_t n_points, Py_ssize_t n_dims, floating *columns
) noexcept nogil:
    """Write points as columns (n_dims, BLOCK), the last one again up to the end of its strip."""
    cdef Py_ssize_t i, d
    for d in range(n_dims):
        for i in range(n_points):
            columns[d * BLOCK + i] = x[i * n_dims + d]
        for i in range(n_points, _n_blocks(n_points, STRIP) * STRIP):
            columns[d * BLOCK + i] = x[(n_points - 1) * n_dims + d]


cdef void _write_rows(const floating *columns, Py_ssize_t n_points, Py_ssize_t n_dims, floating *out) noexcept nogil:
    cdef Py_ssize_t i, d
    for d in range(n_dims):
        for i in range(n_points):
            out[i * n_dims + d] = columns[d * BLOCK + i]


cdef void _diag_terms(
    const floating *columns,
    Py_ssize_t n_points,
    const floating *log_coefs,
    const floating *means,
    const floating *scales,
    Py_ssize_t n_components,
    Py_ssize_t n_dims,
    floating *terms,
) noexcept nogil:
    cdef floating term[STRIP]
    cdef const floating *column
    cdef floating mean, scale, z
    cdef Py_ssize_t k, strip, d, i
    for k in range(n_components):
        for strip in range(_n_blocks(n_points, STRIP)):
            for i in range(STRIP):
                term[i] = log_coefs[k]
            for d in range(n_dims):
                column = columns + d * BLOCK + strip * STRIP
                mean = means[k * n_dims + d]
                scale = scales[k * n_dims + d]
                for i in range(STRIP):
                    z = (column[i] - mean) * scale
                    term[i] -= z * z
            for i in range(STRIP):
                terms[k * BLOCK + strip * STRIP + i] = term[i]


cdef inline void _triangle_product(
    const floating *triangle,
    Py_ssize_t row_step,
    Py_ssize_t step,
    Py_ssize_t n_rows,
    const floating *columns,
    Py_ssize_t column_step,
    const floating *mean,
    Py_ssize_t n_points,
    bint is_sum,
    floating *out,
    floating top,
    floating *terms,
) noexcept nogil:
    if floating is float:
        fastdiv_triangle_productf(
            triangle, row_step, step, n_rows, columns, column_step, mean, n_points, is_sum, out, top, terms
        )
    else:
        fastdiv_triangle_product(
            triangle, row_step, step, n_rows, columns, column_step, mean, n_points, is_sum, out, top, terms
        )


cdef void _full_slopes(
    Py_ssize_t n_points,
    const floating *responsibilities,
    const floating *factors,
    Py_ssize_t n_components,
    Py_ssize_t n_dims,
    const floating *zeros,
    floating *z,
    floating *slopes,
) noexcept nogil:
    """Sum -W' z of all components, scaled z (K, n_dims, BLOCK) and factors W, by their responsibilities."""
    cdef floating share[BLOCK]
    cdef floating unused[BLOCK]
    cdef Py_ssize_t last = (n_dims - 1) * BLOCK
    cdef floating *column
    cdef Py_ssize_t k, d, i
    for i in range(n_dims * BLOCK):
        slopes[i] = 0
    for k in range(n_components):
        for i in range(BLOCK):
            share[i] = -2 * responsibilities[k * BLOCK + i]
        for d in range(n_dims):
            column = z + (k * n_dims + d) * BLOCK
            for i in range(BLOCK):
                column[i] = share[i] * column[i] if share[i] != 0 else 0
        _triangle_product(
            factors + (k + 1) * n_dims * n_dims - 1,
            -1,
            -n_dims,
            n_dims,
            z + k * n_dims * BLOCK + last,
            -BLOCK,
            zeros,
            n_points,
            True,
            slopes + last,
            <floating> 0,
            unused,
        )


cdef int _line(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    bint is_score,
    floating *out,
) except -1:
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t n_relevant = n_components
    cdef Py_ssize_t block, start, n_points, k
    cdef double top
    cdef floating least, unit, low, high
    cdef floating peak = 0
    cdef void *scratch = malloc(n_components * ((BLOCK + 4) * sizeof(floating) + sizeof(Py_ssize_t)) + LINE)
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *table = terms + n_components * BLOCK
    cdef Py_ssize_t *relevant = <Py_ssize_t *> (table + 4 * n_components)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        top = _line_table(&log_weights[0], &stds[0], n_components, table)
        _range(table + 3 * n_components, n_components, &least, &unit)
        unit = unit if unit <= least * (1 << ALIKE) else 0
        for k in range(n_components):
            relevant[k] = k
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            if n_components >= FEW and start % CHUNK == 0:
                _range(&x[start], min(x.shape[0] - start, <Py_ssize_t> CHUNK), &low, &high)
                n_relevant = _relevant(low, high, &means[0], table, n_components, is_score, terms, relevant, &peak)
            # Two calls, so that each is compiled for itself.
            if is_score:
                _line_block(
                    &x[start],
                    n_points,
                    &means[0],
                    table,
                    top,
                    n_components,
                    relevant,
                    n_relevant,
                    peak,
                    True,
                    unit,
                    terms,
                    &out[start],
                )
            else:
                _line_block(
                    &x[start],
                    n_points,
                    &means[0],
                    table,
                    top,
                    n_components,
                    relevant,
                    n_relevant,
                    peak,
                    False,
                    1,
                    terms,
                    &out[start],
                )
        free(scratch)
    return 0


cpdef void mixture_logpdf(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    floating[::1] out,
) except *:
    _line(x, log_weights, means, stds, False, &out[0])


cpdef void mixture_score(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    floating[::1] out,
) except *:
    _line(x, log_weights, means, stds, True, &out[0])


cdef int _diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    bint is_score,
    floating *out,
) except -1:
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t n_dims = means.shape[1]
    cdef Py_ssize_t block, start, n_points, k, d
    cdef void *scratch = malloc(
        (n_components * (BLOCK + n_dims + 1) + 2 * n_dims * BLOCK) * sizeof(floating) + LINE
    )
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *columns = terms + n_components * BLOCK
    cdef floating *slopes = columns + n_dims * BLOCK
    cdef floating *scales = slopes + n_dims * BLOCK
    cdef floating *log_coefs = scales + n_components * n_dims
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(&log_weights[0], &stds[0, 0], n_components, n_dims, 1, n_dims, 1, log_coefs)
        for k in range(n_components):
            for d in range(n_dims):
                scales[k * n_dims + d] = <floating> (SQRT_HALF / stds[k, d])
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            _transpose_block(&x[start, 0], n_points, n_dims, columns)
            _diag_terms(columns, n_points, log_coefs, &means[0, 0], scales, n_components, n_dims, terms)
            if is_score:
                _responsibilities(terms, n_components, n_points)
                for d in range(n_dims):
                    _normal_slopes(
                        columns + d * BLOCK,
                        n_points,
                        terms,
                        &means[0, d],
                        scales + d,
                        n_components,
                        n_dims,
                        slopes + d * BLOCK,
                    )
                _write_rows(slopes, n_points, n_dims, out + start * n_dims)
            else:
                _logsumexp_columns(terms, n_components, n_points, out + start)
        free(scratch)
    return 0


cpdef void mixture_logpdf_diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    floating[::1] out,
) except *:
    _diag(x, log_weights, means, stds, False, &out[0])


cpdef void mixture_score_diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    floating[:, ::1] out,
) except *:
    _diag(x, log_weights, means, stds, True, &out[0, 0])


cdef int _full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] whiteners,
    bint is_score,
    floating *out,
) except -1:
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t n_dims = means.shape[1]
    cdef Py_ssize_t n_factors = n_components * n_dims * n_dims
    cdef Py_ssize_t block, start, n_points, k, i
    # A score needs every component's z once more, a density none.
    cdef Py_ssize_t n_z = n_components * n_dims * BLOCK if is_score else 0
    cdef void *scratch = malloc(
        (n_components * (BLOCK + 1) + n_dims * (2 * BLOCK + 1) + n_z + n_factors) * sizeof(floating) + LINE
    )
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *columns = terms + n_components * BLOCK
    cdef floating *slopes = columns + n_dims * BLOCK
    cdef floating *z = slopes + n_dims * BLOCK
    cdef floating *factors = z + n_z
    cdef floating *log_coefs = factors + n_factors
    cdef floating *zeros = log_coefs + n_components
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(
            &log_weights[0], &whiteners[0, 0, 0], n_components, n_dims, n_dims + 1, n_dims * n_dims, -1, log_coefs
        )
        # So that squares overflow only where their halves do.
        for i in range(n_factors):
            factors[i] = (&whiteners[0, 0, 0])[i] * <floating> SQRT_HALF
        for i in range(n_dims):
            zeros[i] = 0
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            _transpose_block(&x[start, 0], n_points, n_dims, columns)
            for k in range(n_components):
                _triangle_product(
                    factors + k * n_dims * n_dims,
                    n_dims,
                    1,
                    n_dims,
                    columns,
                    BLOCK,
                    &means[k, 0],
                    n_points,
                    False,
                    z + k * n_dims * BLOCK if is_score else NULL,
                    log_coefs[k],
                    terms + k * BLOCK,
                )
            if is_score:
                _responsibilities(terms, n_components, n_points)
                _full_slopes(n_points, terms, factors, n_components, n_dims, zeros, z, slopes)
                _write_rows(slopes, n_points, n_dims, out + start * n_dims)
            else:
                _logsumexp_columns(terms, n_components, n_points, out + start)
        free(scratch)
    return 0


cpdef void mixture_logpdf_full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] whiteners,
    floating[::1] out,
) except *:
    _full(x, log_weights, means, whiteners, False, &out[0])


cpdef void mixture_score_full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] whiteners,
    floating[:, ::1] out,
) except *:
    _full(x, log_weights, means, whiteners, True, &out[0, 0])


cpdef void logsumexp_rows(const floating[:, ::1] a, floating[::1] out) except *:
    cdef Py_ssize_t n_terms = a.shape[1]
    cdef Py_ssize_t block, row, start, k
    cdef floating shift, t, is_tie
    cdef double total, compensation, remainder, ties
    with nogil:
        for row in range(a.shape[0]):
            shift = <floating> -INFINITY
            for k in range(n_terms):
                shift = a[row, k] if a[row, k] > shift else shift
            if not isfinite(shift):
                shift = 0
            total = compensation = 0
            ties = -1
            for block in range(_n_blocks(n_terms, CHUNK)):
                start = block * CHUNK
                remainder = 0
                for k in range(start, min(start + CHUNK, n_terms)):
                    t = a[row, k] - shift
                    is_tie = t == 0
                    ties += is_tie
                    remainder += _exp(t) - is_tie
                _two_sum(&total, &compensation, remainder)
            out[row] = <floating> (shift + log1p(total + compensation + ties))


cpdef void trapezoid_kl(
    const floating[::1] log_weights_p,
    const floating[::1] means_p,
    const floating[::1] stds_p,
    const floating[::1] log_weights_q,
    const floating[::1] means_q,
    const floating[::1] stds_q,
    double lower,
    double upper,
    Py_ssize_t num,
    Py_ssize_t start,
    Py_ssize_t stop,
    double[::1] out,
) except *:
    cdef Py_ssize_t n_p = means_p.shape[0]
    cdef Py_ssize_t n_q = means_q.shape[0]
    cdef Py_ssize_t n_terms = max(n_p, n_q)
    cdef Py_ssize_t block, first, n_points, n_lost, i
    cdef double step = (upper - lower) / (num - 1)
    cdef double top_p, top_q, peak_p, peak_q, offset_p, offset_q, density, log_ratio
    cdef double sum_p[GRID]
    cdef double sum_q[GRID]
    cdef double integrand[GRID]
    cdef double total = 0, compensation = 0
    cdef void *scratch = malloc(
        (n_terms * BLOCK + 8 * (n_p + n_q)) * sizeof(double) + n_terms * sizeof(Py_ssize_t) + LINE
    )
    cdef double *terms = <double *> _aligned(scratch)
    cdef double *p = terms + n_terms * BLOCK
    cdef double *q = p + 8 * n_p
    cdef Py_ssize_t *relevant = <Py_ssize_t *> (q + 8 * n_q)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        top_p = _grid_table(&log_weights_p[0], &means_p[0], &stds_p[0], n_p, step, p)
        top_q = _grid_table(&log_weights_q[0], &means_q[0], &stds_q[0], n_q, step, q)
        for block in range(_n_blocks(stop - start, GRID)):
            first = start + block * GRID
            n_points = min(stop - first, <Py_ssize_t> GRID)
            n_lost = _grid_sums(lower, step, first, p, n_p, terms, relevant, sum_p, &peak_p)
            n_lost += _grid_sums(lower, step, first, q, n_q, terms, relevant, sum_q, &peak_q)
            if not n_lost:
                offset_p = top_p + peak_p / LOG2_E
                offset_q = top_q + peak_q / LOG2_E
                density = fastdiv_exp(offset_p)
                for i in range(GRID):
                    log_ratio = fastdiv_log_normal(sum_p[i] / sum_q[i]) + (offset_p - offset_q)
                    integrand[i] = density * sum_p[i] * log_ratio
            else:
                _shifted_grid(lower, step, first, p, n_p, terms, sum_p)
                _shifted_grid(lower, step, first, q, n_q, terms, sum_q)
                for i in range(GRID):
                    density = fastdiv_exp(sum_p[i])
                    log_ratio = sum_p[i] - sum_q[i]
                    integrand[i] = density * log_ratio if density != 0 else 0
            if first == 0:
                integrand[0] *= 0.5
            if first + n_points == num:
                integrand[n_points - 1] *= 0.5
            _two_sum(&total, &compensation, _sum(integrand, n_points))
        out[0] = total + compensation
        free(scratch)


cpdef void trapezoid_cross_entropy(
    const floating[::1] locs,
    const floating[::1] scales,
    const floating[::1] mass,
    double lower,
    double upper,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    double[::1] out,
) except *:
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t num = mass.shape[0]
    cdef Py_ssize_t j, k, block, first, n_points, i
    cdef double step = (upper - lower) / (num - 1)
    cdef double top, peak, offset, z
    cdef bint is_far
    cdef double log_q[GRID]
    cdef double total, compensation
    cdef void *scratch = malloc(
        n_components * ((BLOCK + 14) * sizeof(double) + sizeof(Py_ssize_t)) + LINE
    )
    cdef double *terms = <double *> _aligned(scratch)
    cdef double *table = terms + n_components * BLOCK
    cdef double *local = table + 8 * n_components
    cdef Py_ssize_t *relevant = <Py_ssize_t *> (local + 6 * n_components)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        top = _grid_table(&log_weights[0], &means[0], &stds[0], n_components, step, table)
        for j in range(locs.shape[0]):
            # The mixture in the coordinate z of the Gaussian, its densities per unit of x.
            is_far = False
            for k in range(n_components):
                local[k] = table[k]
                local[n_components + k] = table[n_components + k] * scales[j]
                local[2 * n_components + k] = table[2 * n_components + k]
                local[3 * n_components + k] = table[3 * n_components + k] * scales[j]
                local[4 * n_components + k] = (table[4 * n_components + k] - locs[j]) / scales[j]
                z = LANES * step * local[3 * n_components + k]
                local[5 * n_components + k] = fastdiv_exp2_term(-2 * z * z)
                if not (isfinite(local[4 * n_components + k]) and 0 < local[n_components + k] < INFINITY):
                    is_far = True
            total = compensation = 0
            for block in range(_n_blocks(num, GRID)):
                first = block * GRID
                n_points = min(num - first, <Py_ssize_t> GRID)
                if is_far:
                    # Only x has room for it.
                    _shifted_grid(
                        locs[j] + lower * scales[j], step * scales[j], first, table, n_components, terms, log_q
                    )
                elif _grid_sums(lower, step, first, local, n_components, terms, relevant, log_q, &peak):
                    _shifted_grid(lower, step, first, local, n_components, terms, log_q)
                else:
                    offset = top + peak / LOG2_E
                    for i in range(GRID):
                        log_q[i] = offset + fastdiv_log_normal(log_q[i])
                for i in range(n_points):
                    log_q[i] = mass[first + i] * log_q[i] if mass[first + i] != 0 else 0
                _two_sum(&total, &compensation, _sum(log_q, n_points))
            out[j] = -(total + compensation)
        free(scratch)


cdef void _merge_moments(
    double *moments, double count, double mean, double residual, double m2, double low, double high
) noexcept nogil:
    """Merge a sample's moments into the running ones (Chan, Golub & LeVeque 1979).

    A mean is carried with what rounding took from it: the running ones in moments[5], the sample's in residual.
    """
    cdef double total = moments[0] + count
    cdef double delta = (mean - moments[1]) + (residual - moments[5])
    if count == 0:
        return
    moments[2] += m2 + delta * delta * (moments[0] * count / total)
    if isfinite(delta):
        _two_sum(&moments[1], &moments[5], delta * (count / total))
    else:
        moments[1] += mean
        moments[5] = 0
    moments[0] = total
    moments[3] = low if low < moments[3] else moments[3]
    moments[4] = high if high > moments[4] else moments[4]


cpdef void merge_moments(const double[::1] other, double[::1] out) except *:
    _merge_moments(&out[0], other[0], other[1], other[5], other[2], other[3], other[4])


cpdef void log_ratio_moments(const floating[::1] log_p, const floating[::1] log_q, double[::1] out) except *:
    cdef Py_ssize_t block, start, n, i
    cdef double values[CHUNK]
    cdef double squares[CHUNK]
    cdef double mean, drift, low, high
    with nogil:
        for block in range(_n_blocks(log_p.shape[0], CHUNK)):
            start = block * CHUNK
            n = min(log_p.shape[0] - start, <Py_ssize_t> CHUNK)
            for i in range(n):
                values[i] = <double> log_p[start + i] - log_q[start + i]
            _range(values, n, &low, &high)
            mean = _sum(values, n) / n
            for i in range(n):
                values[i] -= mean
                squares[i] = values[i] * values[i]
            drift = _sum(values, n) / n
            drift = drift if isfinite(drift) else 0
            _merge_moments(&out[0], n, mean, drift, _sum(squares, n) - n * drift * drift, low, high)


ctypedef fused integer:
    int32_t
    int64_t


cdef inline integer _flip(integer bits) noexcept nogil:
    """Turn a float's bits into an integer of its rank, or back: those of negative ones grow with the magnitude."""
    cdef int shift = 8 * sizeof(integer) - 1
    return bits ^ ((bits >> shift) & ~(<integer> 1 << shift))


cdef inline Py_ssize_t _digit(integer key, Py_ssize_t place) noexcept nogil:
    """Return a byte of a key; the last has the sign, and its negatives come first."""
    cdef Py_ssize_t digit = <Py_ssize_t> (key >> 8 * place) & (DIGITS - 1)
    return digit ^ (DIGITS // 2) if place == sizeof(integer) - 1 else digit


cdef void _sort_bits(const integer *values, Py_ssize_t n, integer *scratch, integer *out) noexcept nogil:
    """Sort floats by their bits, a byte at a time, the last first (Knuth 1998, section 5.2.5)."""
    cdef Py_ssize_t counts[PLACES][DIGITS]
    cdef integer *source = out
    cdef integer *target = scratch
    cdef Py_ssize_t i, place, digit, start, count
    for place in range(<Py_ssize_t> sizeof(integer)):
        for digit in range(DIGITS):
            counts[place][digit] = 0
    for i in range(n):
        out[i] = _flip(values[i])
        for place in range(<Py_ssize_t> sizeof(integer)):
            counts[place][_digit(out[i], place)] += 1
    for place in range(<Py_ssize_t> sizeof(integer)):
        if n == 0 or counts[place][_digit(source[0], place)] == n:
            continue
        start = 0
        for digit in range(DIGITS):
            count = counts[place][digit]
            counts[place][digit] = start
            start += count
        for i in range(n):
            digit = _digit(source[i], place)
            target[counts[place][digit]] = source[i]
            counts[place][digit] += 1
        source, target = target, source
    for i in range(n):
        out[i] = _flip(source[i])


cpdef void radix_sort(const floating[::1] values, floating[::1] scratch, floating[::1] out) except *:
    cdef Py_ssize_t n = values.shape[0]
    with nogil:
        if floating is float:
            _sort_bits(<const int32_t *> &values[0], n, <int32_t *> &scratch[0], <int32_t *> &out[0])
        else:
            _sort_bits(<const int64_t *> &values[0], n, <int64_t *> &scratch[0], <int64_t *> &out[0])


cpdef void neighbor_distances(
    const floating[::1] points, const floating[::1] x, Py_ssize_t k, floating[::1] out, floating[::1] following
) except *:
    cdef Py_ssize_t n_points = points.shape[0]
    cdef Py_ssize_t first = 0, last = n_points, middle, i
    cdef floating below, above
    with nogil:
        while x.shape[0] > 0 and first < last:
            middle = (first + last) // 2
            if points[middle] < x[0]:
                first = middle + 1
            else:
                last = middle
        first = max(min(first - k, n_points - k), 0)
        for i in range(x.shape[0]):
            # The k nearest begin at `first`: never further back than those of the x before.
            while first + k < n_points and points[first + k] - x[i] < x[i] - points[first]:
                first += 1
            out[i] = max(x[i] - points[first], points[first + k - 1] - x[i])
            below = x[i] - points[first - 1] if first > 0 else <floating> INFINITY
            above = points[first + k] - x[i] if first + k < n_points else <floating> INFINITY
            following[i] = min(below, above)


cdef inline void _standardised_row(
    const floating *point, Py_ssize_t n_features, const floating *centre, const floating *scale, floating *out
) noexcept nogil:
    cdef floating values[LANES]
    cdef Py_ssize_t group, first, lane, j
    if n_features < LANES:
        for j in range(n_features):
            out[j] = (point[j] - centre[j]) * scale[j]
        return
    for group in range(_n_blocks(n_features, LANES)):
        # The last group begins as early as makes it whole.
        first = min(group * LANES, n_features - LANES)
        for lane in range(LANES):
            values[lane] = (point[first + lane] - centre[first + lane]) * scale[first + lane]
        for lane in range(LANES):
            out[first + lane] = values[lane]


cpdef void column_moments(
    const floating[:, ::1] X,
    const floating[::1] sample_weight,
    double[::1] means,
    double[::1] squares,
    double[::1] out,
) except *:
    cdef Py_ssize_t n_features = X.shape[1]
    cdef Py_ssize_t block, start, n_points, n_ahead, i, j, k
    cdef double weights[ROWS]
    cdef double values[ROWS]
    cdef double products[ROWS]
    cdef double squared[ROWS]
    cdef double total = 0, shift, delta
    cdef const floating *x = &X[0, 0]
    with nogil:
        for i in range(ROWS):
            values[i] = 0
        for j in range(n_features):
            means[j] = 0
            squares[j] = 0
        for block in range(_n_blocks(X.shape[0], ROWS)):
            start = block * ROWS
            n_points = min(X.shape[0] - start, <Py_ssize_t> ROWS)
            n_ahead = min(X.shape[0] - start - n_points, <Py_ssize_t> ROWS) * n_features
            for i in range(n_points):
                weights[i] = sample_weight[start + i]
            for i in range(n_points, ROWS):
                weights[i] = 0
            total += _sum(weights, ROWS)
            for j in range(n_features):
                for i in range(ROWS * <Py_ssize_t> sizeof(floating) // LINE):
                    k = j * ROWS + i * (LINE // <Py_ssize_t> sizeof(floating))
                    if k < n_ahead:
                        fastdiv_prefetch_second(x + n_points * n_features + k)
                shift = X[0, j]
                for i in range(n_points):
                    values[i] = x[i * n_features + j] - shift
                for i in range(ROWS):
                    products[i] = weights[i] * values[i]
                    squared[i] = products[i] * values[i]
                means[j] += _sum(products, ROWS)
                squares[j] += _sum(squared, ROWS)
            x += n_points * n_features
        for j in range(n_features):
            delta = means[j] / total
            squares[j] -= means[j] * delta
            means[j] = X[0, j] + delta
        out[0] = total


cpdef void logistic_sgd_epoch(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const Py_ssize_t[::1] permutation,
    Py_ssize_t batch_size,
    double learning_rate,
    double power_t,
    double momentum,
    double alpha,
    Py_ssize_t n_steps,
    floating[::1] coef,
    floating[::1] velocity,
    double[::1] coef_sum,
    double[::1] out,
) except *:
    cdef Py_ssize_t n_rows = permutation.shape[0]
    cdef Py_ssize_t n_features = X.shape[1]
    cdef Py_ssize_t n_columns = n_features + 1
    cdef Py_ssize_t width = _n_blocks(n_columns, LANES) * LANES
    cdef bint has_sum = coef_sum.shape[0] > 0
    cdef Py_ssize_t start, stop, first, n_points, block, batch, group, lane, line, i, j, row
    cdef floating rate, shrink, slope
    cdef floating memory = <floating> momentum
    cdef floating partial[LANES]
    cdef floating logits[BLOCK]
    cdef floating targets[BLOCK]
    cdef floating weights[BLOCK]
    cdef floating losses[BLOCK]
    cdef floating steps[BLOCK]
    cdef const char *ahead
    cdef const floating *x
    cdef double total = 0, compensation = 0, loss, rate_now
    cdef void *scratch = malloc((BLOCK + 2) * width * sizeof(floating) + LINE)
    cdef floating *rows = <floating *> _aligned(scratch)
    cdef floating *step = rows + BLOCK * width
    cdef floating *current = step + width
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for i in range(BLOCK):
            for j in range(width):
                rows[i * width + j] = 1 if j == n_features else 0
        for j in range(width):
            step[j] = velocity[j] if j < n_columns else 0
            current[j] = coef[j] if j < n_columns else 0
        for batch in range(_n_blocks(n_rows, batch_size)):
            start = batch * batch_size
            stop = min(start + batch_size, n_rows)
            rate_now = learning_rate
            if power_t != 0:
                rate_now /= pow(<double> (n_steps + batch + 1), power_t)
            rate = <floating> (rate_now / (stop - start))
            shrink = <floating> (rate_now * alpha)
            for j in range(n_features):
                step[j] = memory * step[j] - shrink * current[j]
            step[n_features] *= memory
            loss = 0
            for block in range(_n_blocks(stop - start, BLOCK)):
                first = start + block * BLOCK
                n_points = min(stop - first, <Py_ssize_t> BLOCK)
                for i in range(n_points):
                    row = permutation[min(first + i + AHEAD, n_rows - 1)]
                    ahead = <const char *> &X[row, 0]
                    for line in range(_n_blocks(n_features * sizeof(floating), LINE)):
                        fastdiv_prefetch_second(ahead + line * LINE)
                    fastdiv_prefetch_second(&X[row, n_features - 1])
                    fastdiv_prefetch_second(&y[row])
                    fastdiv_prefetch_second(&sample_weight[row])
                    row = permutation[first + i]
                    _standardised_row(&X[row, 0], n_features, &centre[0], &scale[0], rows + i * width)
                    targets[i] = y[row]
                    weights[i] = sample_weight[row]
                for i in range(n_points):
                    x = rows + i * width
                    for lane in range(LANES):
                        partial[lane] = 0
                    for group in range(width // LANES):
                        for lane in range(LANES):
                            partial[lane] += x[group * LANES + lane] * current[group * LANES + lane]
                    logits[i] = ((partial[0] + partial[4]) + (partial[1] + partial[5])) + (
                        (partial[2] + partial[6]) + (partial[3] + partial[7])
                    )
                for i in range(n_points):
                    losses[i] = weights[i] * (_softplus_slope(logits[i], &slope) - targets[i] * logits[i])
                    steps[i] = rate * weights[i] * (targets[i] - slope)
                for i in range(n_points):
                    loss += losses[i]
                for i in range(n_points):
                    x = rows + i * width
                    for j in range(width):
                        step[j] += steps[i] * x[j]
            for j in range(width):
                current[j] += step[j]
            if has_sum:
                for j in range(n_columns):
                    coef_sum[j] += current[j]
            _two_sum(&total, &compensation, loss)
        for j in range(n_columns):
            velocity[j] = step[j]
            coef[j] = current[j]
        free(scratch)
        out[0] = total + compensation


cdef void _standardised_columns(
    const floating *x,
    Py_ssize_t n_points,
    Py_ssize_t n_features,
    const floating *centre,
    const floating *scale,
    floating *columns,
) noexcept nogil:
    """Write standardised points as columns (n_features, ROWS)."""
    cdef floating mean, factor
    cdef Py_ssize_t i, j
    for j in range(n_features):
        mean = centre[j]
        factor = scale[j]
        for i in range(n_points):
            columns[j * ROWS + i] = (x[i * n_features + j] - mean) * factor
        for i in range(n_points, ROWS):
            columns[j * ROWS + i] = 0


cdef void _linear(
    const floating *columns, Py_ssize_t n_features, const floating *coef, floating *logits
) noexcept nogil:
    """Write the log-odds of ROWS points."""
    cdef floating logit[STRIP]
    cdef floating factor
    cdef const floating *column
    cdef Py_ssize_t strip, i, j
    for strip in range(ROWS // STRIP):
        for i in range(STRIP):
            logit[i] = coef[n_features]
        for j in range(n_features):
            factor = coef[j]
            column = columns + j * ROWS + strip * STRIP
            for i in range(STRIP):
                logit[i] += factor * column[i]
        for i in range(STRIP):
            logits[strip * STRIP + i] = logit[i]


cdef inline void _tile_products(
    const floating *first, const floating *second, const floating *columns, Py_ssize_t n_points, double *totals
) noexcept nogil:
    if floating is float:
        fastdiv_tile_productsf(first, second, columns, ROWS, n_points, totals)
    else:
        fastdiv_tile_products(first, second, columns, ROWS, n_points, totals)


cdef double *_triangle_products(
    const floating *weights,
    const floating *columns,
    Py_ssize_t n_columns,
    Py_ssize_t n_points,
    floating *rows,
    double *totals,
) noexcept nogil:
    """Add the weighted products of all columns, in tiles down to the diagonal; return where the tiles end."""
    cdef Py_ssize_t pair, tile, k, i
    cdef const floating *column
    for pair in range(_n_blocks(n_columns, 2)):
        for k in range(2):
            # Beside the last one of an odd number is a copy that counts nothing.
            column = columns + min(2 * pair + k, n_columns - 1) * ROWS
            for i in range(ROWS):
                rows[k * ROWS + i] = weights[i] * column[i]
        for tile in range(_n_blocks(min(2 * pair + 2, n_columns), 4)):
            _tile_products(rows, rows + ROWS, columns + 4 * tile * ROWS, n_points, totals)
            totals += 8 * LANES
    return totals


cdef const double *_triangle_sums(const double *totals, Py_ssize_t n_columns, double *out) noexcept nogil:
    """Add the lanes of the tiles to the lower triangle of a matrix; return where the tiles end."""
    cdef Py_ssize_t pair, tile, k, j
    for pair in range(_n_blocks(n_columns, 2)):
        for tile in range(_n_blocks(min(2 * pair + 2, n_columns), 4)):
            for k in range(2 * pair, min(2 * pair + 2, n_columns)):
                for j in range(4 * tile, min(4 * tile + 4, k + 1)):
                    out[k * n_columns + j] += _sum(totals + (4 * (k - 2 * pair) + j - 4 * tile) * LANES, LANES)
            totals += 8 * LANES
    return totals


cdef bint _logistic_pass(
    const floating *x,
    Py_ssize_t n_rows,
    Py_ssize_t n_features,
    const floating *centre,
    const floating *scale,
    const floating *y,
    const floating *sample_weight,
    const floating *coef,
    Py_ssize_t n_sums,
    double *sums,
    double *hessian,
    double *squares,
    double *out,
) noexcept nogil:
    """Do what `logistic_newton_pass` does, without a Hessian or squares where they are NULL; tell if memory failed."""
    cdef Py_ssize_t n_columns = n_features + 1
    cdef Py_ssize_t n_stored = _n_blocks(n_columns, 4) * 4
    cdef Py_ssize_t n_matrices = (hessian != NULL) + (squares != NULL)
    cdef Py_ssize_t n_totals = (_n_blocks(n_columns, 2) * n_matrices + n_sums // 2) * n_stored * 2 * LANES
    cdef Py_ssize_t block, start, n_points, n_padded, n_ahead, pair, tile, i, j, k
    cdef floating probability, residual, low, high
    cdef const floating *targets
    cdef const floating *weights
    cdef floating last_targets[ROWS]
    cdef floating last_weights[ROWS]
    cdef floating logits[ROWS]
    cdef floating residuals[4 * ROWS]
    cdef floating curvatures[ROWS]
    cdef floating squared[ROWS]
    cdef double losses[ROWS]
    cdef double masses[4 * LANES]
    cdef floating lows[LANES]
    cdef floating highs[LANES]
    cdef double total = 0, compensation = 0
    cdef double *tile_totals
    cdef const double *lanes
    cdef void *scratch = malloc(n_totals * sizeof(double) + (n_stored + 2) * ROWS * sizeof(floating) + LINE)
    cdef double *totals = <double *> _aligned(scratch)
    cdef floating *columns = <floating *> (totals + n_totals)
    cdef floating *rows = columns + n_stored * ROWS
    if scratch == NULL:
        return True
    for i in range(n_totals):
        totals[i] = 0
    for i in range(4 * LANES):
        masses[i] = 0
    for i in range(LANES):
        lows[i] = INFINITY
        highs[i] = -INFINITY
    for i in range(n_features * ROWS, n_stored * ROWS):
        columns[i] = 1 if i < n_columns * ROWS else 0
    for block in range(_n_blocks(n_rows, ROWS)):
        start = block * ROWS
        n_points = min(n_rows - start, <Py_ssize_t> ROWS)
        n_padded = _n_blocks(n_points, LANES) * LANES
        _standardised_columns(x, n_points, n_features, centre, scale, columns)
        _linear(columns, n_features, coef, logits)
        targets = y + start
        weights = sample_weight + start
        if n_points < ROWS:
            for i in range(n_points):
                last_targets[i] = targets[i]
                last_weights[i] = weights[i]
            for i in range(n_points, ROWS):
                last_targets[i] = 0
                last_weights[i] = 0
            targets = last_targets
            weights = last_weights
        for i in range(ROWS):
            losses[i] = weights[i] * (_softplus_slope(logits[i], &probability) - targets[i] * logits[i])
            residual = weights[i] * (probability - targets[i])
            residuals[i] = residual * (1 - targets[i])
            residuals[ROWS + i] = residual * targets[i]
            squared[i] = residual * residual
            curvatures[i] = weights[i] * probability * (1 - probability)
        _two_sum(&total, &compensation, _sum(losses, ROWS))
        if n_sums == 4:
            for i in range(2 * ROWS):
                residuals[2 * ROWS + i] = weights[i % ROWS] * residuals[i]
        tile_totals = totals
        x += n_points * n_features
        n_ahead = min(n_rows - start - n_points, <Py_ssize_t> ROWS) * n_features
        for pair in range(n_sums // 2):
            for tile in range(n_stored // 4):
                # The next block's lines are sent for while there is work to do: all at once, they would queue.
                for i in range(4 * ROWS * <Py_ssize_t> sizeof(floating) // LINE):
                    k = 4 * ROWS * tile + i * (LINE // <Py_ssize_t> sizeof(floating))
                    if pair == 0 and k < n_ahead:
                        fastdiv_prefetch_second(x + k)
                _tile_products(
                    residuals + 2 * pair * ROWS,
                    residuals + (2 * pair + 1) * ROWS,
                    columns + 4 * tile * ROWS,
                    n_padded,
                    tile_totals,
                )
                tile_totals += 8 * LANES
        if hessian != NULL:
            tile_totals = _triangle_products(curvatures, columns, n_columns, n_padded, rows, tile_totals)
        if squares != NULL:
            _triangle_products(squared, columns, n_columns, n_padded, rows, tile_totals)
            for i in range(ROWS // LANES):
                for j in range(LANES):
                    k = i * LANES + j
                    low = logits[k] if targets[k] * weights[k] > 0 else <floating> INFINITY
                    high = logits[k] if (1 - targets[k]) * weights[k] > 0 else <floating> -INFINITY
                    lows[j] = low if low < lows[j] else lows[j]
                    highs[j] = high if high > highs[j] else highs[j]
            for i in range(ROWS // LANES):
                for j in range(LANES):
                    k = i * LANES + j
                    masses[j] += weights[k] * (1 - targets[k])
                    masses[LANES + j] += weights[k] * targets[k]
                    masses[2 * LANES + j] += <double> weights[k] * weights[k] * (1 - targets[k])
                    masses[3 * LANES + j] += <double> weights[k] * weights[k] * targets[k]
    lanes = totals
    for pair in range(n_sums // 2):
        for tile in range(n_stored // 4):
            for k in range(2):
                for j in range(4 * tile, min(4 * tile + 4, n_columns)):
                    sums[(2 * pair + k) * n_columns + j] += _sum(lanes + (4 * k + j - 4 * tile) * LANES, LANES)
            lanes += 8 * LANES
    if hessian != NULL:
        lanes = _triangle_sums(lanes, n_columns, hessian)
    if squares != NULL:
        _triangle_sums(lanes, n_columns, squares)
        for i in range(LANES):
            out[1] = min(out[1], lows[i])
            out[2] = max(out[2], highs[i])
        for i in range(4):
            out[3 + i] += _sum(masses + i * LANES, LANES)
    out[0] += total + compensation
    free(scratch)
    return False


cpdef void logistic_newton_pass(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const floating[::1] coef,
    double[:, ::1] sums,
    double[:, ::1] hessian,
    double[:, ::1] squares,
    double[::1] out,
) except *:
    cdef bint failed
    with nogil:
        failed = _logistic_pass(
            &X[0, 0],
            X.shape[0],
            X.shape[1],
            &centre[0],
            &scale[0],
            &y[0],
            &sample_weight[0],
            &coef[0],
            sums.shape[0],
            &sums[0, 0],
            &hessian[0, 0] if hessian.shape[0] > 0 else NULL,
            &squares[0, 0] if squares.shape[0] > 0 else NULL,
            &out[0],
        )
    if failed:
        raise MemoryError


cdef bint _factorise(double *matrix, Py_ssize_t n, double ridge, double *pivots) noexcept nogil:
    """Factorise a matrix with a ridge added, given its lower triangle; tell if it is positive definite.

    It is U' diag(1 / pivots) U; above the diagonal is what U has there, on it U has the pivots.
    """
    cdef double factor
    cdef Py_ssize_t i, j, k
    for i in range(n):
        pivots[i] = matrix[i * n + i] + ridge
        for j in range(i):
            matrix[j * n + i] = matrix[i * n + j]
    for j in range(n):
        if not pivots[j] > 0:
            return False
        for i in range(j + 1, n):
            factor = matrix[j * n + i] / pivots[j]
            pivots[i] -= factor * matrix[j * n + i]
            for k in range(i + 1, n):
                matrix[i * n + k] -= factor * matrix[j * n + k]
    return True


cdef double _newton_step(double *matrix, Py_ssize_t n, double *pivots, double *vector) noexcept nogil:
    """Make a gradient the step that the Hessian, its lower triangle, makes of it; return their product.

    To the diagonal is added as much as makes the Hessian positive definite.
    """
    cdef double largest = DBL_MIN, damping = 0, decrement = 0, ridge
    cdef Py_ssize_t i, j
    for i in range(n):
        largest = matrix[i * n + i] if matrix[i * n + i] > largest else largest
    ridge = LEAST_RIDGE * largest
    while ridge < largest:
        damping += ridge
        if _factorise(matrix, n, damping, pivots):
            for j in range(n):
                decrement += vector[j] * vector[j] / pivots[j]
                vector[j] /= pivots[j]
                for i in range(j + 1, n):
                    vector[i] -= matrix[j * n + i] * vector[j]
            for j in range(n - 1, -1, -1):
                for i in range(j + 1, n):
                    vector[j] -= matrix[j * n + i] / pivots[j] * vector[i]
            return decrement
        ridge *= 1000
    for j in range(n):
        decrement += vector[j] * vector[j] / largest
        vector[j] /= largest
    return decrement


cdef bint _newton_update(
    Py_ssize_t n,
    const double *ridge,
    double mass,
    double tol,
    double slack,
    double *coef,
    double *step,
    double *metric,
    const double *sums,
    const double *hessian,
    const double *out,
    double[::1] losses,
    double *state,
    double *pivots,
) noexcept nogil:
    """Judge the pass at the end of a step, and make or shorten the next; tell if that needs a pass."""
    cdef double share = state[SHARE]
    cdef double value = out[0] / mass
    cdef double penalty = 0, trial
    cdef bint is_borrowed = state[STAGE] == GRADIENT
    cdef Py_ssize_t n_losses = <Py_ssize_t> state[N_LOSSES]
    cdef Py_ssize_t j, k
    for j in range(n):
        trial = coef[j] - share * step[j]
        penalty += 0.5 * ridge[j] * trial * trial
    if not value + penalty <= state[VALUE] * (1 + slack) - SUFFICIENT_DECREASE * share * state[DECREMENT]:
        state[SHARE] = share / 2
        if share / 2 > LEAST_SHARE:
            return True
        if state[BORROWED] == 0:
            state[STATUS] = STUCK
            return False
        # The rows that its Hessian came from were too unlike these.
        state[BORROWED] = 0
        state[SHARE] = 0
        state[STAGE] = HESSIAN
        return True
    if n_losses == losses.shape[0]:
        state[STATUS] = FULL
        return False
    losses[n_losses] = value
    state[N_LOSSES] += 1
    for j in range(n):
        coef[j] -= share * step[j]
        step[j] = (sums[j] + sums[n + j]) / mass + ridge[j] * coef[j]
    if not is_borrowed:
        for j in range(n):
            for k in range(j + 1):
                metric[j * n + k] = hessian[j * n + k] / mass
            metric[j * n + j] += ridge[j]
    state[DECREMENT] = _newton_step(metric, n, pivots, step)
    state[VALUE] = value + penalty
    state[SHARE] = 1
    state[BORROWED] = is_borrowed
    if not is_borrowed and state[DECREMENT] <= tol:
        state[STATUS] = CONVERGED
        return False
    # The next decrement will be about the square of this one.
    state[STAGE] = SCORES if state[DECREMENT] * state[DECREMENT] <= tol else HESSIAN
    return True


cpdef void logistic_newton_steps(
    const floating[:, ::1] X,
    const floating[::1] centre,
    const floating[::1] scale,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const double[::1] ridge,
    double mass,
    double tol,
    double slack,
    double[:, ::1] metric,
    double[::1] coef,
    double[::1] step,
    double[:, ::1] sums,
    double[:, ::1] hessian,
    double[:, ::1] squares,
    double[::1] out,
    double[::1] losses,
    double[::1] state,
) except *:
    cdef Py_ssize_t n = coef.shape[0]
    cdef Py_ssize_t stage, i, j
    cdef bint failed = False
    cdef void *scratch = malloc(n * (sizeof(double) + sizeof(floating)))
    cdef double *pivots = <double *> scratch
    cdef floating *trial = <floating *> (pivots + n)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        state[STATUS] = RUNNING
        state[N_LOSSES] = 0
        while True:
            if X.shape[0] > 0:
                stage = <Py_ssize_t> state[STAGE]
                for i in range(n):
                    trial[i] = <floating> (coef[i] - state[SHARE] * step[i])
                    for j in range(n):
                        hessian[i, j] = 0
                        squares[i, j] = 0
                    for j in range(4):
                        sums[j, i] = 0
                for i in range(out.shape[0]):
                    out[i] = 0
                out[1] = INFINITY
                out[2] = -INFINITY
                failed = _logistic_pass(
                    &X[0, 0],
                    X.shape[0],
                    X.shape[1],
                    &centre[0],
                    &scale[0],
                    &y[0],
                    &sample_weight[0],
                    trial,
                    4 if stage == SCORES else 2,
                    &sums[0, 0],
                    &hessian[0, 0] if stage != GRADIENT else NULL,
                    &squares[0, 0] if stage == SCORES else NULL,
                    &out[0],
                )
                if failed:
                    break
            if not _newton_update(
                n,
                &ridge[0],
                mass,
                tol,
                slack,
                &coef[0],
                &step[0],
                &metric[0, 0],
                &sums[0, 0],
                &hessian[0, 0],
                &out[0],
                losses,
                &state[0],
                pivots,
            ):
                break
            if X.shape[0] == 0:
                break
        free(scratch)
    if failed:
        raise MemoryError


cdef Py_ssize_t _n_units(const Py_ssize_t *layer_sizes, Py_ssize_t n_layers) noexcept nogil:
    """Count a network's units, with the constant 1 that each layer but the last hands on, which is its bias."""
    cdef Py_ssize_t n_units = 0, layer
    for layer in range(n_layers):
        n_units += layer_sizes[layer] + 1
    return n_units


cdef void _affine(
    const floating *weights, Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t n_rows, const floating *inputs, floating *out
) noexcept nogil:
    """Multiply weights (n_out, n_in) by inputs (n_in, ROWS)."""
    cdef floating total[BLOCK]
    cdef floating weight
    cdef Py_ssize_t strip, start, unit, i, row
    for unit in range(n_out):
        for strip in range(_n_blocks(n_rows, BLOCK)):
            start = strip * BLOCK
            for row in range(BLOCK):
                total[row] = 0
            for i in range(n_in):
                weight = weights[unit * n_in + i]
                for row in range(BLOCK):
                    total[row] += weight * inputs[i * ROWS + start + row]
            for row in range(BLOCK):
                out[unit * ROWS + start + row] = total[row]


cdef void _activate(Py_ssize_t activation, Py_ssize_t n_rows, floating *values, floating *slopes) noexcept nogil:
    """Replace the values of a unit by its activations, and write their derivatives."""
    cdef floating value, slope
    cdef Py_ssize_t row
    if activation == SOFTPLUS:
        for row in range(n_rows):
            values[row] = _softplus_slope(values[row], &slope)
            slopes[row] = slope
    elif activation == TANH:
        for row in range(n_rows):
            value = _expm1(-2 * values[row] if values[row] > 0 else 2 * values[row])
            value /= 2 + value
            values[row] = -value if values[row] > 0 else value
            slopes[row] = 1 - value * value
    else:
        for row in range(n_rows):
            slopes[row] = values[row] > 0
            values[row] = 0 if values[row] <= 0 else values[row]


cdef inline floating _dot(const floating *a, const floating *b, Py_ssize_t n) noexcept nogil:
    """Multiply two rows of ROWS in 2 * LANES partial sums, joined two and two; behind n one of the rows is 0."""
    cdef floating partial[2 * LANES]
    cdef Py_ssize_t start, lane
    for lane in range(2 * LANES):
        partial[lane] = 0
    for start in range(_n_blocks(n, 2 * LANES)):
        for lane in range(2 * LANES):
            partial[lane] += a[start * 2 * LANES + lane] * b[start * 2 * LANES + lane]
    for lane in range(LANES):
        partial[lane] += partial[lane + LANES]
    for lane in range(LANES // 2):
        partial[lane] += partial[lane + LANES // 2]
    for lane in range(LANES // 4):
        partial[lane] += partial[lane + LANES // 4]
    return partial[0] + partial[1]


cdef floating *_forward(
    const Py_ssize_t *layer_sizes,
    Py_ssize_t n_layers,
    Py_ssize_t activation,
    const floating *params,
    Py_ssize_t n_rows,
    floating *values,
    floating *slopes,
) noexcept nogil:
    """Fill in the values of all layers after the first, and return those of the last: the log-odds."""
    cdef Py_ssize_t n_padded = _n_blocks(n_rows, 2 * LANES) * 2 * LANES
    cdef Py_ssize_t layer, n_in, n_out, unit
    for layer in range(n_layers - 1):
        n_in = layer_sizes[layer] + 1
        n_out = layer_sizes[layer + 1]
        _affine(params, n_in, n_out, n_rows, values, values + n_in * ROWS)
        params += n_in * n_out
        values += n_in * ROWS
        slopes += n_in * ROWS
        if layer < n_layers - 2:
            for unit in range(n_out):
                _activate(activation, n_padded, values + unit * ROWS, slopes + unit * ROWS)
    return values


cdef void _backward(
    const Py_ssize_t *layer_sizes,
    Py_ssize_t n_layers,
    const floating *params,
    Py_ssize_t n_rows,
    const floating *values,
    floating *slopes,
    floating *gradient,
) noexcept nogil:
    """Add to the gradient, given the loss's derivatives in the log-odds in the place of the last layer's slopes.

    All three pointers are behind the last layer's first unit or weight, and go back from there.
    """
    cdef floating total[BLOCK]
    cdef floating weight
    cdef const floating *deltas
    cdef Py_ssize_t layer, n_in, n_out, strip, start, unit, i, row
    for layer in range(n_layers - 2, -1, -1):
        n_in = layer_sizes[layer] + 1
        n_out = layer_sizes[layer + 1]
        params -= n_in * n_out
        gradient -= n_in * n_out
        values -= n_in * ROWS
        deltas = slopes
        slopes -= n_in * ROWS
        for unit in range(n_out):
            for i in range(n_in):
                gradient[unit * n_in + i] += _dot(deltas + unit * ROWS, values + i * ROWS, n_rows)
        if layer == 0:
            return
        for i in range(n_in - 1):
            for strip in range(_n_blocks(n_rows, BLOCK)):
                start = strip * BLOCK
                for row in range(BLOCK):
                    total[row] = 0
                for unit in range(n_out):
                    weight = params[unit * n_in + i]
                    for row in range(BLOCK):
                        total[row] += weight * deltas[unit * ROWS + start + row]
                for row in range(BLOCK):
                    slopes[i * ROWS + start + row] *= total[row]


cdef void _descend(
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    Py_ssize_t n_steps,
    const floating *gradient,
    Py_ssize_t n_params,
    floating *params,
    floating *velocity,
    floating *square,
) noexcept nogil:
    """Make one step of RMSprop (Tieleman & Hinton 2012), Adam (Kingma & Ba 2015) or descent with momentum."""
    cdef floating memory = <floating> momentum
    cdef floating fresh = <floating> (1 - momentum)
    cdef floating square_memory = <floating> decay
    cdef floating square_fresh = <floating> (1 - decay)
    cdef floating tiny = <floating> epsilon
    cdef floating rate = <floating> learning_rate
    cdef Py_ssize_t i
    if solver == RMSPROP:
        for i in range(n_params):
            square[i] = square_memory * square[i] + square_fresh * gradient[i] * gradient[i]
            params[i] -= rate * gradient[i] / <floating> sqrt(square[i] + tiny)
    elif solver == ADAM:
        rate = <floating> (learning_rate * sqrt(1 - pow(decay, n_steps)) / (1 - pow(momentum, n_steps)))
        for i in range(n_params):
            velocity[i] = memory * velocity[i] + fresh * gradient[i]
            square[i] = square_memory * square[i] + square_fresh * gradient[i] * gradient[i]
            params[i] -= rate * velocity[i] / (<floating> sqrt(square[i]) + tiny)
    else:
        for i in range(n_params):
            velocity[i] = memory * velocity[i] - rate * gradient[i]
            params[i] += velocity[i]


cpdef void mlp_log_odds(
    const floating[:, ::1] X,
    const Py_ssize_t[::1] layer_sizes,
    Py_ssize_t activation,
    const floating[::1] params,
    floating[::1] out,
) except *:
    cdef Py_ssize_t n_layers = layer_sizes.shape[0]
    cdef Py_ssize_t n_features = layer_sizes[0]
    cdef Py_ssize_t n_units = _n_units(&layer_sizes[0], n_layers)
    cdef Py_ssize_t block, start, n_rows, i, row
    cdef void *scratch = malloc(2 * n_units * ROWS * sizeof(floating) + LINE)
    cdef floating *values = <floating *> _aligned(scratch)
    cdef floating *slopes = values + n_units * ROWS
    cdef floating *log_odds
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for i in range(n_units * ROWS):
            values[i] = 1
        for block in range(_n_blocks(X.shape[0], ROWS)):
            start = block * ROWS
            n_rows = min(X.shape[0] - start, <Py_ssize_t> ROWS)
            for i in range(n_features):
                for row in range(n_rows):
                    values[i * ROWS + row] = X[start + row, i]
            log_odds = _forward(&layer_sizes[0], n_layers, activation, &params[0], n_rows, values, slopes)
            for row in range(n_rows):
                out[start + row] = log_odds[row]
        free(scratch)


cpdef void mlp_epoch(
    const floating[:, ::1] X,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const Py_ssize_t[::1] permutation,
    Py_ssize_t batch_size,
    const Py_ssize_t[::1] layer_sizes,
    Py_ssize_t activation,
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    double alpha,
    Py_ssize_t n_steps,
    floating[::1] params,
    floating[::1] velocity,
    floating[::1] square,
    double[::1] out,
) except *:
    cdef Py_ssize_t n_layers = layer_sizes.shape[0]
    cdef Py_ssize_t n_units = _n_units(&layer_sizes[0], n_layers)
    cdef Py_ssize_t n_params = params.shape[0]
    cdef Py_ssize_t batch, start, stop, block, first, n_rows, layer, _unit, i, row
    cdef void *scratch = malloc((2 * n_units * ROWS + n_params) * sizeof(floating) + LINE)
    cdef floating *values = <floating *> _aligned(scratch)
    cdef floating *slopes = values + n_units * ROWS
    cdef floating *gradient = slopes + n_units * ROWS
    cdef floating *log_odds
    cdef floating *deltas
    cdef floating targets[ROWS]
    cdef floating weights[ROWS]
    cdef floating losses[ROWS]
    cdef floating share, slope
    cdef double total = 0, compensation = 0, loss
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for i in range(n_units * ROWS):
            values[i] = 1
        for batch in range(_n_blocks(permutation.shape[0], batch_size)):
            start = batch * batch_size
            stop = min(start + batch_size, permutation.shape[0])
            share = <floating> (1.0 / (stop - start))
            for i in range(n_params):
                gradient[i] = 0
            for block in range(_n_blocks(stop - start, ROWS)):
                first = start + block * ROWS
                n_rows = min(stop - first, <Py_ssize_t> ROWS)
                for row in range(n_rows):
                    for i in range(layer_sizes[0]):
                        values[i * ROWS + row] = X[permutation[first + row], i]
                    targets[row] = y[permutation[first + row]]
                    weights[row] = sample_weight[permutation[first + row]]
                for row in range(n_rows, ROWS):
                    targets[row] = 0
                    weights[row] = 0
                log_odds = _forward(&layer_sizes[0], n_layers, activation, &params[0], n_rows, values, slopes)
                deltas = slopes + (log_odds - values)
                for row in range(ROWS):
                    losses[row] = weights[row] * (_softplus_slope(log_odds[row], &slope) - targets[row] * log_odds[row])
                    deltas[row] = share * weights[row] * (slope - targets[row])
                loss = 0
                for row in range(n_rows):
                    loss += losses[row]
                _two_sum(&total, &compensation, loss)
                _backward(
                    &layer_sizes[0], n_layers, &params[0] + n_params, n_rows, log_odds, deltas, gradient + n_params
                )
            i = 0
            for layer in range(n_layers - 1):
                for _unit in range(layer_sizes[layer + 1]):
                    for row in range(layer_sizes[layer]):
                        gradient[i + row] += <floating> alpha * params[i + row]
                    i += layer_sizes[layer] + 1
            _descend(
                solver,
                learning_rate,
                momentum,
                decay,
                epsilon,
                n_steps + batch + 1,
                gradient,
                n_params,
                &params[0],
                &velocity[0],
                &square[0],
            )
        free(scratch)
        out[0] = total + compensation


cdef struct Posterior:
    # Of a Bayesian mixture: what it is, and room for where its components are and for a block of rows.
    Py_ssize_t n_components
    Py_ssize_t n_dims
    Py_ssize_t n_params
    Py_ssize_t n_sums  # a component's: of responsibilities, of these by differences, and by standardised squares
    bint is_fixed
    const double *whitener
    const double *concentration
    const double *prior
    double *log_weights
    double *shares
    double *means
    double *slopes
    double *log_coefs
    double *columns
    double *terms
    double *lanes


cdef void *_new_posterior(
    Posterior *of, const double *whitener, Py_ssize_t n_dims, const double[::1] concentration, const double[::1] prior
) noexcept nogil:
    """Fill in what a posterior is; return what is to be freed, or NULL."""
    cdef Py_ssize_t n_components = concentration.shape[0]
    cdef Py_ssize_t n_means = n_components * n_dims
    cdef void *scratch
    cdef double *room
    of.n_components = n_components
    of.n_dims = n_dims
    of.is_fixed = prior[SCALE_PRIOR] == FIXED
    of.n_params = n_components - 1 + n_means * (1 if of.is_fixed else 2)
    of.n_sums = 1 + n_dims * (1 if of.is_fixed else 2)
    of.whitener = whitener
    of.concentration = &concentration[0]
    of.prior = &prior[0]
    scratch = malloc(
        (n_components * (ROWS + of.n_sums * LANES + 3) + 2 * n_means + n_dims * ROWS) * sizeof(double) + LINE
    )
    if scratch != NULL:
        room = <double *> _aligned(scratch)
        of.columns = room
        of.terms = of.columns + n_dims * ROWS
        of.lanes = of.terms + n_components * ROWS
        of.means = of.lanes + n_components * of.n_sums * LANES
        of.slopes = of.means + n_means
        of.log_weights = of.slopes + n_means
        of.shares = of.log_weights + n_components
        of.log_coefs = of.shares + n_components
    return scratch


cdef void _break_sticks(const double *theta, const Posterior *of) noexcept nogil:
    """Find the log weights that sticks break off, and the share of the rest that each takes."""
    cdef double rest = 0, odds
    cdef Py_ssize_t k
    for k in range(of.n_components - 1):
        odds = theta[k] - log(<double> (of.n_components - 1 - k))
        of.shares[k] = fastdiv_sigmoid(odds)
        of.log_weights[k] = rest - fastdiv_softplus(-odds)
        rest -= fastdiv_softplus(odds)
    of.log_weights[of.n_components - 1] = rest


cdef void _place_component(const double *theta, Py_ssize_t k, const Posterior *of) noexcept nogil:
    """Find a component's mean, whitened, its reciprocal stds, and minus the sum of their logarithms."""
    cdef Py_ssize_t n_dims = of.n_dims
    cdef const double *mean = theta + of.n_components - 1 + k * n_dims
    cdef const double *log_std = mean + of.n_components * n_dims
    cdef double total
    cdef Py_ssize_t d, j
    of.log_coefs[k] = 0
    for d in range(n_dims):
        if of.is_fixed:
            total = 0
            for j in range(n_dims):
                total += of.whitener[d * n_dims + j] * mean[j]
            of.means[k * n_dims + d] = total
            of.slopes[k * n_dims + d] = 1
        else:
            of.means[k * n_dims + d] = mean[d]
            of.slopes[k * n_dims + d] = fastdiv_exp(-log_std[d])
            of.log_coefs[k] -= log_std[d]


cdef void _place(const double *theta, Py_ssize_t changed, double *weights, const Posterior *of) noexcept nogil:
    """Take a component's place, or the weights (-1), from theta."""
    cdef Py_ssize_t k
    if changed >= 0:
        _place_component(theta, changed, of)
        return
    _break_sticks(theta, of)
    for k in range(of.n_components):
        weights[k] = fastdiv_exp(of.log_weights[k])


cdef double _log_prior(const double *theta, const Posterior *of) noexcept nogil:
    """Find the log-density of the prior in the unconstrained space, with the constant."""
    cdef Py_ssize_t n_means = of.n_components * of.n_dims
    cdef const double *mean = theta + of.n_components - 1
    cdef const double *log_std = mean + n_means
    cdef const double *prior = of.prior
    cdef double value = prior[CONSTANT], squares = 0
    cdef Py_ssize_t i
    for i in range(of.n_components):
        value += of.concentration[i] * of.log_weights[i]
    for i in range(n_means):
        squares += mean[i] * mean[i]
    if prior[SCALE_PRIOR] == HALF_NORMAL:
        for i in range(n_means):
            value += log_std[i] - 0.5 * prior[SCALE_A] / (of.slopes[i] * of.slopes[i])
    elif prior[SCALE_PRIOR] == INVERSE_GAMMA:
        for i in range(n_means):
            value -= prior[SCALE_A] * log_std[i] + prior[SCALE_B] * of.slopes[i]
    return value - 0.5 * prior[MEAN_PRECISION] * squares


cdef inline Py_ssize_t _width(Py_ssize_t n_points) noexcept nogil:
    """Round a number of points up to whole lanes."""
    return _n_blocks(n_points, LANES) * LANES


cdef inline void _gather_block(
    const floating *x, Py_ssize_t n_dims, const Py_ssize_t *rows, Py_ssize_t start, Py_ssize_t n_points, double *columns
) noexcept nogil:
    """Write rows as columns (n_dims, ROWS), the last one again to fill lanes; without `rows`, those from start on."""
    cdef Py_ssize_t width = _width(n_points), i, d, row
    if rows == NULL and n_dims == 2:
        # A stride that the compiler knows is a shuffle of vectors.
        for i in range(n_points):
            columns[i] = x[2 * (start + i)]
            columns[ROWS + i] = x[2 * (start + i) + 1]
    elif rows == NULL:
        for d in range(n_dims):
            for i in range(n_points):
                columns[d * ROWS + i] = x[(start + i) * n_dims + d]
    else:
        for i in range(n_points):
            row = rows[start + i]
            for d in range(n_dims):
                columns[d * ROWS + i] = x[row * n_dims + d]
    for d in range(n_dims):
        for i in range(n_points, width):
            columns[d * ROWS + i] = columns[d * ROWS + n_points - 1]


cdef inline double _lanes_sum(const double *lanes) noexcept nogil:
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))


cdef inline void _component_squares(const Posterior *of, Py_ssize_t k, Py_ssize_t width, double *out) noexcept nogil:
    """Find the squared distances of a block from a component's mean, in its standard deviations."""
    cdef const double *mean = of.means + k * of.n_dims
    cdef const double *slope = of.slopes + k * of.n_dims
    cdef const double *column
    cdef double y, z
    cdef Py_ssize_t first = of.n_dims % 2, d, pair, i
    # The compiler takes the conditions out of the loops.
    if first:
        for i in range(width):
            z = of.columns[i] - mean[0]
            if not of.is_fixed:
                z *= slope[0]
            out[i] = z * z
    for pair in range(of.n_dims // 2):
        d = first + 2 * pair
        column = of.columns + d * ROWS
        for i in range(width):
            y = column[i] - mean[d]
            z = column[ROWS + i] - mean[d + 1]
            if not of.is_fixed:
                y *= slope[d]
                z *= slope[d + 1]
            out[i] = (y * y + z * z) + (out[i] if d > 0 else 0)


cdef inline double _log2_coef(const Posterior *of, Py_ssize_t k) noexcept nogil:
    return (of.log_coefs[k] + of.log_weights[k]) * LOG2_E


cdef inline double _above(double term) noexcept nogil:
    """Return a term, or, for -inf, the least number: -inf less itself would be NaN."""
    return -DBL_MAX if term < -DBL_MAX else term


cdef inline void _share_by_two(const Posterior *of, Py_ssize_t width, double *largest, double *total) noexcept nogil:
    """Do what `_share` does for two components, with one exponential: the larger term becomes 1."""
    cdef double *first = of.terms
    cdef double *second = of.terms + ROWS
    cdef double first_coef = _log2_coef(of, 0)
    cdef double second_coef = _log2_coef(of, 1)
    cdef double a, b, term, inverse, lesser
    cdef Py_ssize_t i
    _component_squares(of, 0, width, first)
    _component_squares(of, 1, width, second)
    for i in range(width):
        a = first_coef - 0.5 * LOG2_E * first[i]
        b = second_coef - 0.5 * LOG2_E * second[i]
        largest[i] = b if b > a else a
        term = _exp2_term(-fabs(_above(b) - a))
        inverse = 1 / (1 + term)
        lesser = term * inverse
        total[i] = 1 + term
        first[i] = lesser if b > a else inverse
        second[i] = inverse if b > a else lesser


cdef inline void _share(const Posterior *of, Py_ssize_t width, double *largest, double *total) noexcept nogil:
    """Find the responsibilities of a block's components, and the largest term of each point and their sum beside it."""
    cdef double inverse[ROWS]
    cdef double t, coef
    cdef double *terms
    cdef Py_ssize_t k, i
    for i in range(width):
        largest[i] = -INFINITY
        total[i] = 0
    for k in range(of.n_components):
        terms = of.terms + k * ROWS
        coef = _log2_coef(of, k)
        _component_squares(of, k, width, terms)
        for i in range(width):
            t = coef - 0.5 * LOG2_E * terms[i]
            terms[i] = t
            largest[i] = t if t > largest[i] else largest[i]
    for k in range(of.n_components):
        terms = of.terms + k * ROWS
        for i in range(width):
            t = _exp2_term(terms[i] - _above(largest[i]))
            terms[i] = t
            total[i] += t
    for i in range(width):
        inverse[i] = 1 / total[i]
    for k in range(of.n_components):
        terms = of.terms + k * ROWS
        for i in range(width):
            terms[i] *= inverse[i]


cdef double _block_likelihood(const Posterior *of, Py_ssize_t n_points) noexcept nogil:
    """Find the log-likelihood of a block, up to a constant.

    The terms become responsibilities, which are 0 beyond the points.
    """
    cdef double largest[ROWS]
    cdef double total[ROWS]
    cdef double product[LANES]
    cdef double shift[LANES]
    cdef Py_ssize_t width = _width(n_points), k, i, lane
    if of.n_components == 2:
        _share_by_two(of, width, largest, total)
    else:
        _share(of, width, largest, total)
    for i in range(n_points, width):
        largest[i] = 0
        total[i] = 1
        for k in range(of.n_components):
            of.terms[k * ROWS + i] = 0
    for lane in range(LANES):
        product[lane] = 1
        shift[lane] = 0
    for i in range(width // LANES):
        for lane in range(LANES):
            # Each total is between 1 and the number of components.
            product[lane] *= total[i * LANES + lane]
            shift[lane] += largest[i * LANES + lane]
    for lane in range(LANES):
        product[lane] = fastdiv_log(product[lane])
    return _lanes_sum(product) + _lanes_sum(shift) / LOG2_E


cdef inline void _add_lanes(const double *values, Py_ssize_t width, double *lanes) noexcept nogil:
    """Add values up in LANES partial sums."""
    cdef double total[LANES]
    cdef Py_ssize_t i, lane
    for lane in range(LANES):
        total[lane] = lanes[lane]
    for i in range(width // LANES):
        for lane in range(LANES):
            total[lane] += values[i * LANES + lane]
    for lane in range(LANES):
        lanes[lane] = total[lane]


cdef inline void _add_first(
    const double *shares, const double *column, double mean, Py_ssize_t width, double *lanes
) noexcept nogil:
    """Add products of shares and differences from the mean up."""
    cdef double total[LANES]
    cdef Py_ssize_t i, lane
    for lane in range(LANES):
        total[lane] = lanes[lane]
    for i in range(width // LANES):
        for lane in range(LANES):
            total[lane] += shares[i * LANES + lane] * (column[i * LANES + lane] - mean)
    for lane in range(LANES):
        lanes[lane] = total[lane]


cdef inline void _add_second(
    const double *shares, const double *column, double mean, double slope, Py_ssize_t width, double *lanes
) noexcept nogil:
    """Add products of shares and squares of standardised differences from the mean up."""
    cdef double total[LANES]
    cdef double z
    cdef Py_ssize_t i, lane
    for lane in range(LANES):
        total[lane] = lanes[lane]
    for i in range(width // LANES):
        for lane in range(LANES):
            z = (column[i * LANES + lane] - mean) * slope
            total[lane] += shares[i * LANES + lane] * z * z
    for lane in range(LANES):
        lanes[lane] = total[lane]


cdef void _add_derivatives(const Posterior *of, Py_ssize_t width) noexcept nogil:
    """Add the sums of a block's responsibilities, and of these by differences and standardised squares, up in lanes."""
    cdef Py_ssize_t n_dims = of.n_dims, k, d
    cdef const double *mean
    cdef const double *shares
    cdef double *sums
    for k in range(of.n_components):
        mean = of.means + k * n_dims
        shares = of.terms + k * ROWS
        sums = of.lanes + k * of.n_sums * LANES
        _add_lanes(shares, width, sums)
        for d in range(n_dims):
            _add_first(shares, of.columns + d * ROWS, mean[d], width, sums + (1 + d) * LANES)
        if not of.is_fixed:
            for d in range(n_dims):
                _add_second(
                    shares,
                    of.columns + d * ROWS,
                    mean[d],
                    of.slopes[k * n_dims + d],
                    width,
                    sums + (1 + n_dims + d) * LANES,
                )


cdef double _logp_grad(
    const Posterior *of,
    const floating *x,
    Py_ssize_t n,
    const Py_ssize_t *rows,
    Py_ssize_t n_rows,
    const double *theta,
    double *gradient,
) noexcept nogil:
    cdef Py_ssize_t n_components = of.n_components
    cdef Py_ssize_t n_dims = of.n_dims
    cdef Py_ssize_t n_means = n_components * n_dims
    cdef const double *mean = theta + n_components - 1
    cdef double *slope = gradient + n_components - 1
    cdef const double *sums
    cdef const double *prior = of.prior
    cdef double factor = 1, value = 0, beyond, count, total, std
    cdef Py_ssize_t block, start, n_points, k, d, j
    if n_rows > 0:
        factor = <double> n / n_rows
    else:
        rows = NULL
        n_rows = n
    _break_sticks(theta, of)
    for k in range(n_components):
        _place_component(theta, k, of)
    for k in range(n_components * of.n_sums * LANES):
        of.lanes[k] = 0
    for block in range(_n_blocks(n_rows, ROWS)):
        start = block * ROWS
        n_points = min(n_rows - start, <Py_ssize_t> ROWS)
        _gather_block(x, n_dims, rows, start, n_points, of.columns)
        value += _block_likelihood(of, n_points)
        _add_derivatives(of, _width(n_points))
    beyond = 0
    for k in range(n_components - 1, -1, -1):
        count = factor * _lanes_sum(of.lanes + k * of.n_sums * LANES) + of.concentration[k]
        if k < n_components - 1:
            gradient[k] = count * (1 - of.shares[k]) - of.shares[k] * beyond
        beyond += count
    for k in range(n_components):
        sums = of.lanes + k * of.n_sums * LANES
        for d in range(n_dims):
            if of.is_fixed:
                total = 0
                for j in range(n_dims):
                    total += _lanes_sum(sums + (1 + j) * LANES) * of.whitener[j * n_dims + d]
            else:
                total = _lanes_sum(sums + (1 + d) * LANES) * of.slopes[k * n_dims + d] * of.slopes[k * n_dims + d]
                count = _lanes_sum(sums)
                slope[n_means + k * n_dims + d] = factor * (_lanes_sum(sums + (1 + n_dims + d) * LANES) - count)
            slope[k * n_dims + d] = factor * total - prior[MEAN_PRECISION] * mean[k * n_dims + d]
    if prior[SCALE_PRIOR] == HALF_NORMAL:
        for k in range(n_means):
            std = 1 / of.slopes[k]
            slope[n_means + k] += 1 - prior[SCALE_A] * std * std
    elif prior[SCALE_PRIOR] == INVERSE_GAMMA:
        for k in range(n_means):
            slope[n_means + k] += prior[SCALE_B] * of.slopes[k] - prior[SCALE_A]
    return factor * value + _log_prior(theta, of)


cpdef void mixture_model_logp_grad(
    const floating[:, ::1] x,
    const Py_ssize_t[::1] rows,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    const double[::1] theta,
    double[::1] out,
) except *:
    cdef Posterior of
    cdef void *scratch = _new_posterior(&of, &whitener[0, 0], x.shape[1], concentration, prior)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        out[0] = _logp_grad(
            &of, &x[0, 0], x.shape[0], &rows[0] if rows.shape[0] else NULL, rows.shape[0], &theta[0], &out[1]
        )
        free(scratch)


cdef void _ascend(
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    Py_ssize_t n_steps,
    const double *gradient,
    double[::1] phi,
    double[:, ::1] state,
) noexcept nogil:
    cdef Py_ssize_t size = phi.shape[0], window, i, j
    cdef double *first = &state[0, 0]
    cdef double g, total, rate
    if solver == VI_SGD:
        for i in range(size):
            first[i] = momentum * first[i] + learning_rate * gradient[i]
            phi[i] += first[i]
    elif solver == VI_ADAM:
        rate = learning_rate * sqrt(1 - pow(decay, n_steps)) / (1 - pow(momentum, n_steps))
        for i in range(size):
            g = gradient[i]
            first[i] = decay * first[i] + (1 - decay) * (g * g)
            first[size + i] = momentum * first[size + i] + (1 - momentum) * g
            phi[i] += rate * first[size + i] / (sqrt(first[i]) + epsilon)
    else:
        window = (n_steps - 1) % state.shape[0]
        for i in range(size):
            g = gradient[i]
            if solver == VI_ADAGRAD:
                first[i] += g * g
            elif solver == VI_WINDOW:
                first[window * size + i] = g * g
            else:
                first[i] = decay * first[i] + (1 - decay) * (g * g)
        for i in range(size):
            total = first[i]
            for j in range(1, state.shape[0]):
                total += first[j * size + i]
            phi[i] += learning_rate * gradient[i] / sqrt(total + epsilon)


cpdef void advi_mixture_steps(
    const floating[:, ::1] x,
    const Py_ssize_t[:, ::1] rows,
    const double[:, :, ::1] noise,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    Py_ssize_t solver,
    double learning_rate,
    double momentum,
    double decay,
    double epsilon,
    Py_ssize_t n_steps,
    double[::1] phi,
    double[:, ::1] state,
    double[::1] losses,
) except *:
    cdef Py_ssize_t n_params = noise.shape[2]
    cdef Py_ssize_t size = phi.shape[0]
    cdef Py_ssize_t n_draws = noise.shape[1]
    cdef Py_ssize_t step, draw, i, j, below
    cdef bint is_full = size > 2 * n_params
    cdef double value, entropy
    cdef const double *z
    cdef Posterior of
    cdef void *scratch = _new_posterior(&of, &whitener[0, 0], x.shape[1], concentration, prior)
    cdef double *room = <double *> malloc((size + 3 * n_params) * sizeof(double))
    cdef double *gradient = room
    cdef double *scale = gradient + size
    cdef double *theta = scale + n_params
    cdef double *slope = theta + n_params
    if scratch == NULL or room == NULL:
        free(scratch)
        free(room)
        raise MemoryError
    with nogil:
        for step in range(noise.shape[0]):
            value = 0
            entropy = n_params * (0.5 + HALF_LOG_2PI)
            for i in range(n_params):
                scale[i] = fastdiv_exp(phi[n_params + i])
                entropy += phi[n_params + i]
            for i in range(size):
                gradient[i] = 0
            for draw in range(n_draws):
                z = &noise[step, draw, 0]
                below = 2 * n_params
                for i in range(n_params):
                    theta[i] = phi[i] + scale[i] * z[i]
                    if is_full:
                        for j in range(i):
                            theta[i] += phi[below + j] * z[j]
                        below += i
                value += _logp_grad(
                    &of,
                    &x[0, 0],
                    x.shape[0],
                    &rows[step, 0] if rows.shape[1] else NULL,
                    rows.shape[1],
                    theta,
                    slope,
                )
                below = 2 * n_params
                for i in range(n_params):
                    gradient[i] += slope[i] / n_draws
                    gradient[n_params + i] += slope[i] * z[i] * scale[i] / n_draws
                    if is_full:
                        for j in range(i):
                            gradient[below + j] += slope[i] * z[j] / n_draws
                        below += i
            for i in range(n_params):
                gradient[n_params + i] += 1
            losses[step] = -value / n_draws - entropy
            _ascend(solver, learning_rate, momentum, decay, epsilon, n_steps + step + 1, gradient, phi, state)
        free(room)
        free(scratch)


cdef double _all_likelihood(const Posterior *of, const floating *x, Py_ssize_t n) noexcept nogil:
    """Find the log-likelihood of all rows, where that is seldom wanted: responsibilities come with it."""
    cdef double value = 0
    cdef Py_ssize_t block, start, n_points
    for block in range(_n_blocks(n, ROWS)):
        start = block * ROWS
        n_points = min(n - start, <Py_ssize_t> ROWS)
        _gather_block(x, of.n_dims, NULL, start, n_points, of.columns)
        value += _block_likelihood(of, n_points)
    return value


cdef double _keep_densities(
    const Posterior *of, const floating *x, Py_ssize_t n, double **densities, double *shifts
) noexcept nogil:
    """Write down the components' densities at all rows, each row's relative to its largest, whose logs are summed.

    The logarithms that are kept are in base 2, their sum is not.
    """
    cdef double coef, t, total = 0
    cdef double *terms
    cdef double *density
    cdef double *largest
    cdef Py_ssize_t block, start, n_points, width, k, i
    for block in range(_n_blocks(n, ROWS)):
        start = block * ROWS
        n_points = min(n - start, <Py_ssize_t> ROWS)
        width = _width(n_points)
        _gather_block(x, of.n_dims, NULL, start, n_points, of.columns)
        largest = shifts + start
        for i in range(width):
            largest[i] = -INFINITY
        for k in range(of.n_components):
            terms = of.terms + k * ROWS
            coef = of.log_coefs[k] * LOG2_E
            _component_squares(of, k, width, terms)
            for i in range(width):
                t = coef - 0.5 * LOG2_E * terms[i]
                terms[i] = t
                largest[i] = t if t > largest[i] else largest[i]
        for k in range(of.n_components):
            terms = of.terms + k * ROWS
            density = densities[k] + start
            for i in range(width):
                density[i] = _exp2_term(terms[i] - largest[i])
        for i in range(n_points):
            total += largest[i]
    return total / LOG2_E


cdef inline void _fresh_densities(
    const Posterior *of, Py_ssize_t k, Py_ssize_t width, const double *shift, double *out
) noexcept nogil:
    """Write a block's densities under a component, relative to a shift: infinity where a double cannot hold them."""
    cdef double coef = of.log_coefs[k] * LOG2_E, t
    cdef Py_ssize_t i
    _component_squares(of, k, width, of.terms)
    for i in range(width):
        t = coef - 0.5 * LOG2_E * of.terms[i] - shift[i]
        # 1024 for NaN too.
        out[i] = _exp2_term(t if t < 1024 else 1024)


cdef inline void _weighted_sum(
    const double *weights,
    double **densities,
    Py_ssize_t n_components,
    Py_ssize_t changed,
    Py_ssize_t start,
    Py_ssize_t width,
    double *out,
) noexcept nogil:
    """Sum a block's densities times the weights; the changed component's, if any, are those after the others'."""
    cdef const double *density
    cdef const double *other
    cdef double weight, other_weight
    cdef Py_ssize_t first = n_components % 2, k, pair, i
    if first:
        density = densities[n_components if changed == 0 else 0] + start
        weight = weights[0]
        for i in range(width):
            out[i] = weight * density[i]
    for pair in range(n_components // 2):
        k = first + 2 * pair
        density = densities[n_components if k == changed else k] + start
        other = densities[n_components if k + 1 == changed else k + 1] + start
        weight = weights[k]
        other_weight = weights[k + 1]
        for i in range(width):
            out[i] = (weight * density[i] + other_weight * other[i]) + (out[i] if k > 0 else 0)


cdef double _changed_likelihood(
    const Posterior *of,
    const floating *x,
    Py_ssize_t n,
    Py_ssize_t changed,
    const double *weights,
    double **densities,
    const double *shifts,
) noexcept nogil:
    """Find the log-likelihood relative to the shifts, with the densities of one component, or none (-1), taken anew.

    These are written after the others'. Logarithms are taken of products. NaN, and the rest is not written, if a sum of
    densities is beyond what keeps all digits.
    """
    cdef double total[ROWS]
    cdef double product[LANES]
    cdef double exponent[LANES]
    cdef Py_ssize_t block, start, n_points, width, i, lane
    for lane in range(LANES):
        product[lane] = 1
        exponent[lane] = 0
    for block in range(_n_blocks(n, ROWS)):
        start = block * ROWS
        n_points = min(n - start, <Py_ssize_t> ROWS)
        width = _width(n_points)
        if changed >= 0:
            _gather_block(x, of.n_dims, NULL, start, n_points, of.columns)
            _fresh_densities(of, changed, width, shifts + start, densities[of.n_components] + start)
        _weighted_sum(weights, densities, of.n_components, changed, start, width, total)
        for i in range(n_points, width):
            total[i] = 1
        if fastdiv_multiply_lanes(total, width, product, exponent):
            return NAN
    for lane in range(LANES):
        product[lane] = exponent[lane] / LOG2_E + fastdiv_log(product[lane])
    return _lanes_sum(product)


cpdef void metropolis_mixture_steps(
    const floating[:, ::1] x,
    const double[:, ::1] noise,
    const double[:, ::1] thresholds,
    const double[::1] scales,
    const double[:, ::1] whitener,
    const double[::1] concentration,
    const double[::1] prior,
    double[::1] theta,
    double[:, ::1] terms,
    double[:, ::1] draws,
    double[::1] logps,
    double[::1] accepted,
) except *:
    cdef Py_ssize_t n = x.shape[0]
    cdef Py_ssize_t n_dims = x.shape[1]
    cdef Py_ssize_t n_components = concentration.shape[0]
    cdef Py_ssize_t n_params = theta.shape[0]
    cdef Py_ssize_t step, block, first, size, changed, i
    cdef double current, value, shift
    cdef bint is_kept
    cdef Posterior of
    cdef void *scratch = _new_posterior(&of, &whitener[0, 0], n_dims, concentration, prior)
    cdef double *moved = <double *> malloc((n_params + n_components) * sizeof(double))
    cdef double *weights = moved + n_params
    cdef double **densities = <double **> malloc((n_components + 1) * sizeof(double *))
    if scratch == NULL or moved == NULL or densities == NULL:
        free(scratch)
        free(moved)
        free(densities)
        raise MemoryError
    with nogil:
        for i in range(n_components + 1):
            densities[i] = &terms[i, 0]
        for i in range(n_params):
            moved[i] = theta[i]
        for i in range(-1, n_components):
            _place(moved, i, weights, &of)
        current = _all_likelihood(&of, &x[0, 0], n) + _log_prior(&theta[0], &of)
        shift = _keep_densities(&of, &x[0, 0], n, densities, &terms[n_components + 1, 0])
        for step in range(noise.shape[0]):
            first = 0
            for block in range(accepted.shape[0]):
                size = n_dims if block else n_components - 1
                if size == 0:
                    continue
                changed = (block - 1) % n_components if block else -1
                for i in range(first, first + size):
                    moved[i] = theta[i] + scales[block] * noise[step, i]
                _place(moved, changed, weights, &of)
                value = shift + _changed_likelihood(
                    &of, &x[0, 0], n, changed, weights, densities, &terms[n_components + 1, 0]
                )
                is_kept = value == value
                if not is_kept:
                    value = _all_likelihood(&of, &x[0, 0], n)
                value += _log_prior(moved, &of)
                if value - current > -thresholds[step, block]:
                    current = value
                    accepted[block] += 1
                    for i in range(first, first + size):
                        theta[i] = moved[i]
                    if not is_kept:
                        shift = _keep_densities(&of, &x[0, 0], n, densities, &terms[n_components + 1, 0])
                    elif changed >= 0:
                        densities[changed], densities[n_components] = densities[n_components], densities[changed]
                else:
                    for i in range(first, first + size):
                        moved[i] = theta[i]
                    _place(moved, changed, weights, &of)
                first += size
            for i in range(n_params):
                draws[step, i] = theta[i]
            logps[step] = current
        free(densities)
        free(moved)
        free(scratch)
