"""What the kernels compute, in forty digits: slow, short, and past dispute.

A function has the name of its kernel; it takes the kernel's inputs, and what its outputs held before the call.
"""

import mpmath
import numpy as np

_mp = mpmath.MPContext()
_mp.dps = 40

# Elementwise on arrays of mpf. An exponent of mpmath does not underflow, so no sum of exponentials needs a shift.
_exp, _log = (np.frompyfunc(function, 1, 1) for function in (_mp.exp, _mp.log))
_carry = np.frompyfunc(lambda value: _mp.mpf(float(value)), 1, 1)


def _exact(*arrays):
    """Carry arrays of floats over, digit for digit."""
    return [_carry(np.asarray(array)) for array in arrays]


def ulp_error(values, truth, dtype):
    """Return the largest distance of values from the truth, in units of the truth's last place as a dtype."""
    values, truth = np.atleast_1d(values), np.atleast_1d(truth)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"values must be finite, got {values}")
    ulps = np.spacing(np.abs(truth.astype(dtype)))
    return float(np.max(np.abs(_carry(values) - truth) / _carry(ulps)))


def _logsumexp(terms):
    return _log(np.sum(_exp(terms), axis=-1))


def _log_norm(scales):
    return _log(scales * _mp.sqrt(2 * _mp.pi))


def mixture_logpdf(inputs, outputs):
    x, log_weights, means, stds = _exact(*inputs)
    return [_logsumexp(log_weights - _log_norm(stds) - ((x[:, None] - means) / stds) ** 2 / 2)]


def mixture_logpdf_diag(inputs, outputs):
    x, log_weights, means, stds = _exact(*inputs)
    squares = np.sum(((x[:, None] - means) / stds) ** 2, axis=-1)
    return [_logsumexp(log_weights - np.sum(_log_norm(stds), axis=-1) - squares / 2)]


def mixture_logpdf_full(inputs, outputs):
    x, log_weights, means, factors = _exact(*inputs)
    # Forward substitution, one coordinate at a time.
    z = x[:, None] - means
    for i in range(z.shape[-1]):
        z[..., i] -= np.sum(factors[:, i, :i] * z[..., :i], axis=-1)
        z[..., i] /= factors[:, i, i]
    log_norms = np.sum(_log_norm(np.diagonal(factors, axis1=1, axis2=2)), axis=-1)
    return [_logsumexp(log_weights - log_norms - np.sum(z**2, axis=-1) / 2)]


def logsumexp_rows(inputs, outputs):
    return [_logsumexp(*_exact(*inputs))]


def trapezoid_kl(inputs, outputs):
    *parameters, lower, upper, num, start, stop = inputs
    index = np.arange(start, stop).astype(object)
    x = lower + index * _mp.mpf(upper - lower) / (num - 1)
    log_p, log_q = (
        _logsumexp(log_weights - _log_norm(stds) - ((x[:, None] - means) / stds) ** 2 / 2)
        for log_weights, means, stds in (_exact(*parameters[:3]), _exact(*parameters[3:]))
    )
    halves = np.where((index == 0) | (index == num - 1), 2, 1)
    return [np.sum(_exp(log_p) * (log_p - log_q) / halves)]


def _mean_and_squares(count, total, squares):
    return [total / count, squares - total**2 / count]


def log_ratio_moments(inputs, outputs):
    log_p, log_q = _exact(*inputs)
    values = log_p - log_q
    return _mean_and_squares(len(values), np.sum(values), np.sum(values**2))


def merge_moments(inputs, outputs):
    count, total, squares = 0, 0, 0
    for n, mean, m2, _low, _high, residual in _exact(*inputs, *outputs):
        count, total, squares = count + n, total + n * (mean + residual), squares + m2 + n * (mean + residual) ** 2
    return _mean_and_squares(count, total, squares)


def logistic_sgd_epoch(inputs, outputs):
    X, y, sample_weight, permutation, batch_size, learning_rate, momentum, alpha = inputs
    X, y, sample_weight, learning_rate, momentum, alpha, coef, velocity = _exact(
        X, y, sample_weight, learning_rate, momentum, alpha, *outputs[:2]
    )
    X = np.column_stack([X, _carry(np.ones(len(X)))])
    penalty = np.append(_carry(np.ones(len(coef) - 1)), _mp.mpf(0)) * alpha
    loss = 0
    for start in range(0, len(permutation), batch_size):
        batch = permutation[start : start + batch_size]
        odds = _exp(X[batch] @ coef)
        loss += np.sum(sample_weight[batch] * (_log(1 + odds) - y[batch] * _log(odds)))
        residual = sample_weight[batch] * (y[batch] - odds / (1 + odds))
        velocity = momentum * velocity + learning_rate * (X[batch].T @ residual / len(batch) - penalty * coef)
        coef = coef + velocity
    return [coef, loss]
