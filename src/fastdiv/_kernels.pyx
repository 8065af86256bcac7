"""The Cython kernel set, the default.

Points are taken in blocks that stay in L1. A block's terms, one row per component, are filled by a
loop of its own for each family and then reduced by one shared logsumexp, whose inner loops run over the
points, so that the compiler can put points in vector lanes.

A kernel validates nothing: shapes and dtypes are the caller's business.
"""

from libc.math cimport INFINITY, fabs, isfinite, log, log1p
from libc.stdlib cimport free, malloc

cdef extern from "_vecmath.h" nogil:
    double fastdiv_exp(double x) noexcept
    float fastdiv_expf(float x) noexcept
    double fastdiv_log(double x) noexcept
    double fastdiv_log1p(double x) noexcept
    void fastdiv_prefetch(const void *address) noexcept


__all__ = [
    "log_ratio_moments",
    "logistic_sgd_epoch",
    "logsumexp_rows",
    "merge_moments",
    "mixture_logpdf",
    "mixture_logpdf_diag",
    "mixture_logpdf_full",
    "trapezoid_kl",
]

ctypedef fused floating:
    float
    double

cdef enum:
    BLOCK = 64  # points: 64 components of doubles fill a 32 KiB L1
    LANES = 8  # partial sums
    LINE = 8  # doubles in a cache line
    LINE_BYTES = 64
    AHEAD = 16  # rows between a prefetch and the use
    CHUNK = 256  # values whose mean and deviations are taken while they are in L1

cdef double HALF_LOG_2PI = 0.91893853320467274178
cdef double SQRT_HALF = 0.70710678118654752440


cdef inline Py_ssize_t _n_blocks(Py_ssize_t size, Py_ssize_t block_size) noexcept nogil:
    return (size + block_size - 1) // block_size


cdef inline void *_aligned(void *scratch) noexcept nogil:
    """Return the first cache line in scratch that has LINE_BYTES to spare: kernels whose vectors cross lines crawl."""
    return <void *> ((<size_t> scratch + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES)


cdef inline floating _exp(floating x) noexcept nogil:
    if floating is float:
        return fastdiv_expf(x)
    else:
        return fastdiv_exp(x)


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


cdef void _logsumexp_columns(
    const floating *terms, Py_ssize_t n_terms, Py_ssize_t n_points, floating *out
) noexcept nogil:
    """Reduce terms (n_terms, BLOCK) over its rows.

    A column without a finite maximum is not shifted: its -inf, inf and NaN then come out as exp and log make them.
    """
    cdef floating shift[BLOCK]
    cdef double total[BLOCK]
    cdef floating t
    cdef Py_ssize_t k, i
    if n_terms == 1:
        for i in range(n_points):
            out[i] = terms[i]
        return
    for i in range(n_points):
        shift[i] = terms[i]
        total[i] = 0
    for k in range(1, n_terms):
        for i in range(n_points):
            t = terms[k * BLOCK + i]
            shift[i] = t if t > shift[i] else shift[i]
    for i in range(n_points):
        shift[i] = shift[i] if isfinite(shift[i]) else 0
    for k in range(n_terms):
        for i in range(n_points):
            total[i] += _exp(terms[k * BLOCK + i] - shift[i])
    for i in range(n_points):
        out[i] = <floating> (shift[i] + fastdiv_log(total[i]))


cdef void _normal_terms(
    const floating *x,
    Py_ssize_t n_points,
    const floating *log_coefs,
    const floating *means,
    const floating *stds,
    Py_ssize_t n_components,
    floating *terms,
) noexcept nogil:
    cdef floating log_coef, mean, scale, z
    cdef Py_ssize_t k, i
    for k in range(n_components):
        log_coef = log_coefs[k]
        mean = means[k]
        scale = <floating> (SQRT_HALF / stds[k])
        for i in range(n_points):
            z = (x[i] - mean) * scale
            terms[k * BLOCK + i] = log_coef - z * z


cdef void _log_coefficients(
    const floating *log_weights,
    const floating *scales,
    Py_ssize_t n_components,
    Py_ssize_t n_scales,
    Py_ssize_t scale_stride,
    Py_ssize_t component_stride,
    floating *log_coefs,
) noexcept nogil:
    """Log of weight over the product of scales and sqrt(2 pi)."""
    cdef Py_ssize_t k, d
    cdef double log_coef
    for k in range(n_components):
        log_coef = log_weights[k] - n_scales * HALF_LOG_2PI
        for d in range(n_scales):
            log_coef -= log(scales[k * component_stride + d * scale_stride])
        log_coefs[k] = <floating> log_coef


cdef void _transpose_block(
    const floating *x, Py_ssize_t n_points, Py_ssize_t n_dims, floating *columns
) noexcept nogil:
    cdef Py_ssize_t i, d
    for i in range(n_points):
        for d in range(n_dims):
            columns[d * BLOCK + i] = x[i * n_dims + d]


def mixture_logpdf(
    const floating[::1] x,
    const floating[::1] log_weights,
    const floating[::1] means,
    const floating[::1] stds,
    floating[::1] out,
):
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t block, start, n_points
    cdef void *scratch = malloc(n_components * (BLOCK + 1) * sizeof(floating) + LINE_BYTES)
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *log_coefs = terms + n_components * BLOCK
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(&log_weights[0], &stds[0], n_components, 1, 0, 1, log_coefs)
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            _normal_terms(&x[start], n_points, log_coefs, &means[0], &stds[0], n_components, terms)
            _logsumexp_columns(terms, n_components, n_points, &out[start])
        free(scratch)


def mixture_logpdf_diag(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, ::1] stds,
    floating[::1] out,
):
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t n_dims = means.shape[1]
    cdef Py_ssize_t block, start, n_points, k, d, i
    cdef floating mean, scale, z
    cdef floating *row
    cdef void *scratch = malloc((n_components * (BLOCK + 1) + n_dims * BLOCK) * sizeof(floating) + LINE_BYTES)
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *columns = terms + n_components * BLOCK
    cdef floating *log_coefs = columns + n_dims * BLOCK
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(&log_weights[0], &stds[0, 0], n_components, n_dims, 1, n_dims, log_coefs)
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            _transpose_block(&x[start, 0], n_points, n_dims, columns)
            for k in range(n_components):
                row = terms + k * BLOCK
                for i in range(n_points):
                    row[i] = log_coefs[k]
                for d in range(n_dims):
                    mean = means[k, d]
                    scale = <floating> (SQRT_HALF / stds[k, d])
                    for i in range(n_points):
                        z = (columns[d * BLOCK + i] - mean) * scale
                        row[i] -= z * z
            _logsumexp_columns(terms, n_components, n_points, &out[start])
        free(scratch)


def mixture_logpdf_full(
    const floating[:, ::1] x,
    const floating[::1] log_weights,
    const floating[:, ::1] means,
    const floating[:, :, ::1] choleskys,
    floating[::1] out,
):
    cdef Py_ssize_t n_components = means.shape[0]
    cdef Py_ssize_t n_dims = means.shape[1]
    cdef Py_ssize_t block, start, n_points, k, d, e, i
    cdef floating mean, factor
    cdef floating *row
    cdef floating *z_d
    cdef floating *z_e
    cdef void *scratch = malloc((n_components * (BLOCK + 1) + 2 * n_dims * BLOCK) * sizeof(floating) + LINE_BYTES)
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *columns = terms + n_components * BLOCK
    cdef floating *z = columns + n_dims * BLOCK
    cdef floating *log_coefs = z + n_dims * BLOCK
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(
            &log_weights[0], &choleskys[0, 0, 0], n_components, n_dims, n_dims + 1, n_dims * n_dims, log_coefs
        )
        for block in range(_n_blocks(x.shape[0], BLOCK)):
            start = block * BLOCK
            n_points = min(x.shape[0] - start, <Py_ssize_t> BLOCK)
            _transpose_block(&x[start, 0], n_points, n_dims, columns)
            for k in range(n_components):
                row = terms + k * BLOCK
                for i in range(n_points):
                    row[i] = log_coefs[k]
                # Solve L z = (x - mean) / sqrt(2) by forward substitution, a dimension of all points at a time.
                for d in range(n_dims):
                    z_d = z + d * BLOCK
                    mean = means[k, d]
                    for i in range(n_points):
                        z_d[i] = (columns[d * BLOCK + i] - mean) * <floating> SQRT_HALF
                    for e in range(d):
                        z_e = z + e * BLOCK
                        factor = choleskys[k, d, e]
                        for i in range(n_points):
                            z_d[i] -= factor * z_e[i]
                    factor = 1 / choleskys[k, d, d]
                    for i in range(n_points):
                        z_d[i] *= factor
                        row[i] -= z_d[i] * z_d[i]
            _logsumexp_columns(terms, n_components, n_points, &out[start])
        free(scratch)


def logsumexp_rows(const floating[:, ::1] a, floating[::1] out):
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


def trapezoid_kl(
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
):
    cdef Py_ssize_t n_p = means_p.shape[0]
    cdef Py_ssize_t n_q = means_q.shape[0]
    cdef Py_ssize_t n_terms = max(n_p, n_q)
    cdef Py_ssize_t block, first, n_points, i
    cdef double step = (upper - lower) / (num - 1)
    cdef double density, log_ratio
    cdef double integrand[BLOCK]
    cdef double total = 0, compensation = 0
    cdef floating x[BLOCK]
    cdef floating log_p[BLOCK]
    cdef floating log_q[BLOCK]
    cdef void *scratch = malloc((n_terms * BLOCK + n_p + n_q) * sizeof(floating) + LINE_BYTES)
    cdef floating *terms = <floating *> _aligned(scratch)
    cdef floating *log_coefs = terms + n_terms * BLOCK
    if scratch == NULL:
        raise MemoryError
    with nogil:
        _log_coefficients(&log_weights_p[0], &stds_p[0], n_p, 1, 0, 1, log_coefs)
        _log_coefficients(&log_weights_q[0], &stds_q[0], n_q, 1, 0, 1, log_coefs + n_p)
        for block in range(_n_blocks(stop - start, BLOCK)):
            first = start + block * BLOCK
            n_points = min(stop - first, <Py_ssize_t> BLOCK)
            for i in range(n_points):
                x[i] = <floating> (lower + (first + i) * step)
            if first + n_points == num:
                x[n_points - 1] = <floating> upper
            _normal_terms(x, n_points, log_coefs, &means_p[0], &stds_p[0], n_p, terms)
            _logsumexp_columns(terms, n_p, n_points, log_p)
            _normal_terms(x, n_points, log_coefs + n_p, &means_q[0], &stds_q[0], n_q, terms)
            _logsumexp_columns(terms, n_q, n_points, log_q)
            for i in range(n_points):
                density = _exp(<double> log_p[i])
                density *= 0.5 if first + i == 0 or first + i == num - 1 else 1
                log_ratio = <double> log_p[i] - log_q[i]
                log_ratio = log_ratio if density != 0 else 0
                integrand[i] = density * log_ratio
            _two_sum(&total, &compensation, _sum(integrand, n_points))
        out[0] = total + compensation
        free(scratch)


cdef inline void _range(const double *values, Py_ssize_t n, double *low, double *high) noexcept nogil:
    cdef double lows[LANES]
    cdef double highs[LANES]
    cdef double value
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


def merge_moments(const double[::1] other, double[::1] out):
    _merge_moments(&out[0], other[0], other[1], other[5], other[2], other[3], other[4])


def log_ratio_moments(const floating[::1] log_p, const floating[::1] log_q, double[::1] out):
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


def logistic_sgd_epoch(
    const floating[:, ::1] X,
    const floating[::1] y,
    const floating[::1] sample_weight,
    const Py_ssize_t[::1] permutation,
    Py_ssize_t batch_size,
    double learning_rate,
    double momentum,
    double alpha,
    floating[::1] coef,
    floating[::1] velocity,
    double[::1] out,
):
    cdef Py_ssize_t n_rows = permutation.shape[0]
    cdef Py_ssize_t n_features = X.shape[1]
    cdef Py_ssize_t start, stop, first, n_points, block, batch, i, j, row
    cdef floating logit, hinge, odds, probability, rate
    cdef floating memory = <floating> momentum
    cdef floating shrink = <floating> (learning_rate * alpha)
    cdef floating logits[BLOCK]
    cdef floating targets[BLOCK]
    cdef floating weights[BLOCK]
    cdef floating steps[BLOCK]
    cdef double total = 0, compensation = 0, loss
    cdef void *scratch = malloc((n_features + 1) * sizeof(floating) + LINE_BYTES)
    cdef floating *step = <floating *> _aligned(scratch)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        for j in range(n_features + 1):
            step[j] = velocity[j]
        for batch in range(_n_blocks(n_rows, batch_size)):
            start = batch * batch_size
            stop = min(start + batch_size, n_rows)
            rate = <floating> (learning_rate / (stop - start))
            for j in range(n_features):
                step[j] = memory * step[j] - shrink * coef[j]
            step[n_features] *= memory
            loss = 0
            for block in range(_n_blocks(stop - start, BLOCK)):
                first = start + block * BLOCK
                n_points = min(stop - first, <Py_ssize_t> BLOCK)
                for i in range(n_points):
                    row = permutation[min(first + i + AHEAD, n_rows - 1)]
                    for j in range(_n_blocks(n_features, LINE)):
                        fastdiv_prefetch(&X[row, j * LINE])
                    fastdiv_prefetch(&y[row])
                    fastdiv_prefetch(&sample_weight[row])
                    row = permutation[first + i]
                    logit = coef[n_features]
                    for j in range(n_features):
                        logit += X[row, j] * coef[j]
                    logits[i] = logit
                    targets[i] = y[row]
                    weights[i] = sample_weight[row]
                for i in range(n_points):
                    hinge = logits[i] if logits[i] > 0 else 0
                    odds = _exp(logits[i] - 2 * hinge)
                    loss += weights[i] * (fastdiv_log1p(odds) + hinge - targets[i] * logits[i])
                    probability = (1 if logits[i] > 0 else odds) / (1 + odds)
                    steps[i] = rate * weights[i] * (targets[i] - probability)
                for i in range(n_points):
                    row = permutation[first + i]
                    for j in range(n_features):
                        step[j] += steps[i] * X[row, j]
                    step[n_features] += steps[i]
            for j in range(n_features + 1):
                coef[j] += step[j]
            _two_sum(&total, &compensation, loss)
        for j in range(n_features + 1):
            velocity[j] = step[j]
        free(scratch)
        out[0] = total + compensation
