"""The kernel set compiled by Numba at first call.

The loops are those of the Cython set. `FASTDIV_NUMBA_CACHE=1` keeps the compiled code beside this file, which
must then be writable; without it nothing is written.
"""

import os
from math import fabs, inf, isfinite, log, log1p, sqrt

import numpy as np
from numba import njit

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

BLOCK = 64
CHUNK = 256
HALF_LOG_2PI = 0.5 * log(2 * np.pi)
SQRT_HALF = sqrt(0.5)

_kernel = njit(nogil=True, error_model="numpy", cache=os.environ.get("FASTDIV_NUMBA_CACHE") == "1")


@_kernel
def _two_sum(total, compensation, term):
    """Return the sum and what rounding took from it, added to the compensation (Neumaier 1974)."""
    s = total + term
    if not isfinite(s):
        return s, 0.0
    if fabs(total) >= fabs(term):
        return s, compensation + ((total - s) + term)
    return s, compensation + ((term - s) + total)


@_kernel
def _exp(x):
    # libm is slow where it underflows.
    return 0.0 if x < -745.14 else np.exp(x)


@_kernel
def _logsumexp_columns(terms, n_points, out):
    """Reduce terms (n_terms, BLOCK) over its rows.

    A column without a finite maximum is not shifted: its -inf, inf and NaN then come out as exp and log make them.
    """
    n_terms = len(terms)
    for i in range(n_points):
        shift = terms[0, i]
        for k in range(1, n_terms):
            shift = terms[k, i] if terms[k, i] > shift else shift
        if n_terms > 1:
            if not isfinite(shift):
                shift = terms.dtype.type(0)
            total = 0.0
            for k in range(n_terms):
                total += _exp(terms[k, i] - shift)
            shift += log(total)
        out[i] = shift


@_kernel
def _normal_terms(x, log_coefs, means, stds, terms):
    for k in range(len(means)):
        log_coef = log_coefs[k]
        mean = means[k]
        scale = x.dtype.type(SQRT_HALF / stds[k])
        for i in range(len(x)):
            z = (x[i] - mean) * scale
            terms[k, i] = log_coef - z * z


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
def mixture_logpdf(x, log_weights, means, stds, out):
    log_coefs = _log_coefficients(log_weights, stds.reshape(-1, 1))
    terms = np.empty((len(means), BLOCK), dtype=x.dtype)
    for start in range(0, len(x), BLOCK):
        points = x[start : start + BLOCK]
        _normal_terms(points, log_coefs, means, stds, terms)
        _logsumexp_columns(terms, len(points), out[start:])


@_kernel
def mixture_logpdf_diag(x, log_weights, means, stds, out):
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
        _logsumexp_columns(terms, len(points), out[start:])


@_kernel
def mixture_logpdf_full(x, log_weights, means, choleskys, out):
    n_components, n_dims = means.shape
    diagonals = np.empty_like(means)
    for d in range(n_dims):
        diagonals[:, d] = choleskys[:, d, d]
    log_coefs = _log_coefficients(log_weights, diagonals)
    terms = np.empty((n_components, BLOCK), dtype=x.dtype)
    z = np.empty((n_dims, BLOCK), dtype=x.dtype)
    root = x.dtype.type(SQRT_HALF)
    for start in range(0, len(x), BLOCK):
        points = x[start : start + BLOCK]
        for k in range(n_components):
            terms[k] = log_coefs[k]
            # Solve L z = (x - mean) / sqrt(2) by forward substitution, a dimension of all points at a time.
            for d in range(n_dims):
                for i in range(len(points)):
                    z[d, i] = (points[i, d] - means[k, d]) * root
                for e in range(d):
                    factor = choleskys[k, d, e]
                    for i in range(len(points)):
                        z[d, i] -= factor * z[e, i]
                factor = x.dtype.type(1 / choleskys[k, d, d])
                for i in range(len(points)):
                    z[d, i] *= factor
                    terms[k, i] -= z[d, i] * z[d, i]
        _logsumexp_columns(terms, len(points), out[start:])


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
def trapezoid_kl(log_weights_p, means_p, stds_p, log_weights_q, means_q, stds_q, lower, upper, num, start, stop, out):
    dtype = means_p.dtype
    step = (upper - lower) / (num - 1)
    log_coefs_p = _log_coefficients(log_weights_p, stds_p.reshape(-1, 1))
    log_coefs_q = _log_coefficients(log_weights_q, stds_q.reshape(-1, 1))
    terms_p = np.empty((len(means_p), BLOCK), dtype=dtype)
    terms_q = np.empty((len(means_q), BLOCK), dtype=dtype)
    x, log_p, log_q = np.empty(BLOCK, dtype=dtype), np.empty(BLOCK, dtype=dtype), np.empty(BLOCK, dtype=dtype)
    total = compensation = 0.0
    for first in range(start, stop, BLOCK):
        n_points = min(stop - first, BLOCK)
        for i in range(n_points):
            x[i] = lower + (first + i) * step
        if first + n_points == num:
            x[n_points - 1] = upper
        _normal_terms(x[:n_points], log_coefs_p, means_p, stds_p, terms_p)
        _logsumexp_columns(terms_p, n_points, log_p)
        _normal_terms(x[:n_points], log_coefs_q, means_q, stds_q, terms_q)
        _logsumexp_columns(terms_q, n_points, log_q)
        integral = 0.0
        for i in range(n_points):
            density = _exp(np.float64(log_p[i]))
            if first + i == 0 or first + i == num - 1:
                density *= 0.5
            if density != 0:
                log_ratio = np.float64(log_p[i]) - log_q[i]
                integral += density * log_ratio
        total, compensation = _two_sum(total, compensation, integral)
    out[0] = total + compensation


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
    total = compensation = 0.0
    for start in range(0, n_rows, batch_size):
        stop = min(start + batch_size, n_rows)
        for j in range(n_features):
            velocity[j] = number(momentum) * velocity[j] - number(learning_rate * alpha) * coef[j]
        velocity[n_features] *= number(momentum)
        loss = 0.0
        for i in range(start, stop):
            row = permutation[i]
            logit = coef[n_features]
            for j in range(n_features):
                logit += X[row, j] * coef[j]
            hinge = logit if logit > 0 else number(0)
            odds = number(_exp(logit - 2 * hinge))
            loss += sample_weight[row] * (log1p(odds) + hinge - y[row] * logit)
            probability = (number(1) if logit > 0 else odds) / (number(1) + odds)
            step = number(learning_rate / (stop - start)) * sample_weight[row] * (y[row] - probability)
            for j in range(n_features):
                velocity[j] += step * X[row, j]
            velocity[n_features] += step
        for j in range(n_features + 1):
            coef[j] += velocity[j]
        total, compensation = _two_sum(total, compensation, loss)
    out[0] = total + compensation
