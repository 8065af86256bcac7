"""What the kernels compute, in forty digits: slow, short, and past dispute.

A function has the name of its kernel; it takes the kernel's inputs, and what its outputs held before the call.
"""

from itertools import pairwise

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


def ulp_error(values, truth, dtype, least=0.0):
    """Return the largest distance of values from the truth, in units of the last place of the truth, or `least`."""
    values, truth = np.atleast_1d(values), np.atleast_1d(truth)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"values must be finite, got {values}")
    ulps = np.spacing(np.maximum(np.abs(truth.astype(dtype)), np.dtype(dtype).type(least)))
    return float(np.max(np.abs(_carry(values) - truth) / _carry(ulps)))


def _logsumexp(terms):
    return _log(np.sum(_exp(terms), axis=-1))


def _log_norm(scales):
    return _log(scales * _mp.sqrt(2 * _mp.pi))


def _line_terms(x, log_weights, means, stds):
    """Return the components' log-densities with their weights, and their scores."""
    z = (x[:, None] - means) / stds
    return log_weights - _log_norm(stds) - z**2 / 2, -z / stds


def _diag_terms(x, log_weights, means, stds):
    z = (x[:, None] - means) / stds
    return log_weights - np.sum(_log_norm(stds), axis=-1) - np.sum(z**2, axis=-1) / 2, -z / stds


def _full_terms(x, log_weights, means, whiteners):
    """Return the components' log-densities with their weights, and the whitened points."""
    z = np.sum((x[:, None] - means)[..., None, :] * whiteners, axis=-1)
    log_norms = np.sum(_log_norm(1 / np.diagonal(whiteners, axis1=1, axis2=2)), axis=-1)
    return log_weights - log_norms - np.sum(z**2, axis=-1) / 2, z


def _mean_score(terms, scores):
    weights = _exp(terms - _logsumexp(terms)[:, None])
    return np.sum(weights.reshape(*terms.shape, *[1] * (scores.ndim - 2)) * scores, axis=1)


def mixture_logpdf(inputs, outputs):
    return [_logsumexp(_line_terms(*_exact(*inputs))[0])]


def mixture_logpdf_diag(inputs, outputs):
    return [_logsumexp(_diag_terms(*_exact(*inputs))[0])]


def mixture_logpdf_full(inputs, outputs):
    return [_logsumexp(_full_terms(*_exact(*inputs))[0])]


def mixture_score(inputs, outputs):
    return [_mean_score(*_line_terms(*_exact(*inputs)))]


def mixture_score_diag(inputs, outputs):
    return [_mean_score(*_diag_terms(*_exact(*inputs)))]


def mixture_score_full(inputs, outputs):
    *others, whiteners = _exact(*inputs)
    terms, z = _full_terms(*others, whiteners)
    return [_mean_score(terms, -np.sum(z[..., None] * whiteners, axis=-2))]


def logsumexp_rows(inputs, outputs):
    return [_logsumexp(*_exact(*inputs))]


def trapezoid_cross_entropy(inputs, outputs):
    locs, scales, density, lower, upper, *parameters = inputs
    locs, scales, density = _exact(locs, scales, density)
    z = lower + np.arange(len(density)).astype(object) * _mp.mpf(upper - lower) / (len(density) - 1)
    terms = (_line_terms(loc + scale * z, *_exact(*parameters))[0] for loc, scale in zip(locs, scales, strict=True))
    return [np.array([-np.sum(density * _logsumexp(part)) for part in terms])]


def trapezoid_kl(inputs, outputs):
    *parameters, lower, upper, num, start, stop = inputs
    index = np.arange(start, stop).astype(object)
    x = lower + index * _mp.mpf(upper - lower) / (num - 1)
    log_p, log_q = (_logsumexp(_line_terms(x, *_exact(*part))[0]) for part in (parameters[:3], parameters[3:]))
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


def column_moments(inputs, outputs):
    X, weight = _exact(*inputs)
    means = weight @ X / np.sum(weight)
    return [means, weight @ (X - means) ** 2, np.sum(weight)]


def logistic_sgd_epoch(inputs, outputs):
    X, centre, scale, y, weight, permutation, batch_size, learning_rate, power_t, momentum, alpha, n_steps = inputs
    X, centre, scale, y, weight, learning_rate, power_t, momentum, alpha, coef, velocity, coef_sum = _exact(
        X, centre, scale, y, weight, learning_rate, power_t, momentum, alpha, *outputs[:3]
    )
    X = np.column_stack([(X - centre) * scale, _carry(np.ones(len(X)))])
    penalty = np.append(_carry(np.ones(len(coef) - 1)), _mp.mpf(0)) * alpha
    loss = 0
    for step, start in enumerate(range(0, len(permutation), batch_size), n_steps + 1):
        batch = permutation[start : start + batch_size]
        odds = _exp(X[batch] @ coef)
        loss += np.sum(weight[batch] * (_log(1 + odds) - y[batch] * _log(odds)))
        residual = weight[batch] * (y[batch] - odds / (1 + odds))
        gradient = X[batch].T @ residual / len(batch) - penalty * coef
        velocity = momentum * velocity + learning_rate / step**power_t * gradient
        coef = coef + velocity
        coef_sum = coef_sum + coef
    return [coef, velocity, coef_sum, loss]


def logistic_newton_pass(inputs, outputs):
    X, centre, scale, y, weight, coef = _exact(*inputs)
    rows = np.column_stack([(X - centre) * scale, _carry(np.ones(len(X)))])
    odds = _exp(rows @ coef)
    probability, log_odds, in_p = odds / (1 + odds), _log(odds), y == 1
    residual = weight * (probability - y)
    by_class = [residual * (1 - y), residual * y]
    sums = np.array([part @ rows for part in [*by_class, *(weight * part for part in by_class)]])
    matrices = [np.tril((rows.T * part) @ rows) for part in (weight * probability / (1 + odds), residual**2)]
    loss = np.sum(weight * (_log(1 + odds) - y * log_odds))
    masses = [np.sum(weight[part] ** power) for power in (1, 2) for part in (~in_p, in_p)]
    return [sums, *matrices, np.array([loss, log_odds[in_p].min(), log_odds[~in_p].max(), *masses])]


def logistic_newton_steps(inputs, outputs):
    *data, ridge, mass, _tol, _slack, _metric = inputs
    ridge, coef = _exact(ridge, outputs[0])
    losses = []
    for _ in range(2):
        sums, hessian, _, out = logistic_newton_pass((*data, coef), None)
        losses.append(out[0] / mass)
        hessian = (hessian + np.tril(hessian, -1).T) / mass + np.diag(ridge)
        # The diagonal is damped by what its rounding may be.
        hessian += np.diag(np.full(len(coef), 1e-12 * np.max(np.diag(hessian))))
        gradient = (sums[0] + sums[1]) / mass + ridge * coef
        step = np.array(list(_mp.lu_solve(_mp.matrix(hessian.tolist()), _mp.matrix(gradient.tolist()))))
        coef = coef - step
    return [coef + step, step, np.array(losses)]


def neighbor_distances(inputs, outputs):
    points, x, k = inputs
    points, x = _exact(points, x)
    distances = np.sort(np.abs(x[:, None] - points), axis=1)
    return [distances[:, k - 1], distances[:, k]]


def radix_sort(inputs, outputs):
    return [np.sort(_exact(inputs[0])[0])]


def _forward(X, layer_sizes, activation, params):
    """Return the layers' weights, biases last, their inputs, with a 1, the hidden derivatives, and the log-odds."""
    weights, inputs, slopes = [], [], []
    values, ones = X, _carry(np.ones((len(X), 1)))
    for n_in, n_out in pairwise(layer_sizes):
        layer, params = params[: n_out * (n_in + 1)].reshape(n_out, n_in + 1), params[n_out * (n_in + 1) :]
        weights.append(layer)
        inputs.append(np.hstack([values, ones]))
        values = z = inputs[-1] @ layer.T
        if len(params):
            odds = _exp(z)
            if activation == 0:
                values, slope = _log(1 + odds), odds / (1 + odds)
            elif activation == 1:
                values = (odds - 1 / odds) / (odds + 1 / odds)
                slope = 1 - values**2
            else:
                values, slope = np.where(z > 0, z, 0 * z), np.where(z > 0, ones, 0 * z)
            slopes.append(slope)
    return weights, inputs, slopes, z[:, 0]


def mlp_log_odds(inputs, outputs):
    X, layer_sizes, activation, params = inputs
    return [_forward(*_exact(X), layer_sizes, activation, *_exact(params))[-1]]


def mlp_epoch(inputs, outputs):
    X, y, sample_weight, permutation, batch_size, layer_sizes, activation, solver, *rates, n_steps = inputs
    X, y, sample_weight, params, velocity, square = _exact(X, y, sample_weight, *outputs[:3])
    learning_rate, momentum, decay, epsilon, alpha = map(_mp.mpf, rates)
    root = np.frompyfunc(_mp.sqrt, 1, 1)
    loss = 0
    for start in range(0, len(permutation), batch_size):
        n_steps += 1
        batch = permutation[start : start + batch_size]
        weights, values, slopes, log_odds = _forward(X[batch], layer_sizes, activation, params)
        odds = _exp(log_odds)
        loss += np.sum(sample_weight[batch] * (_log(1 + odds) - y[batch] * log_odds))
        delta = (sample_weight[batch] * (odds / (1 + odds) - y[batch]) / len(batch))[:, None]
        gradient = []
        for layer, value, slope in zip(weights[::-1], values[::-1], [*slopes[::-1], None], strict=True):
            spared = np.append(_carry(np.ones(layer.shape[1] - 1)), _mp.mpf(0))
            gradient.insert(0, (delta.T @ value + alpha * spared * layer).ravel())
            delta = delta @ layer[:, :-1] * slope if slope is not None else None
        gradient = np.concatenate(gradient)
        if solver == 2:
            velocity = momentum * velocity - learning_rate * gradient
            params = params + velocity
            continue
        square = decay * square + (1 - decay) * gradient**2
        if solver == 0:
            params = params - learning_rate * gradient / root(square + epsilon)
        else:
            velocity = momentum * velocity + (1 - momentum) * gradient
            rate = learning_rate * _mp.sqrt(1 - decay**n_steps) / (1 - momentum**n_steps)
            params = params - rate * velocity / (root(square) + epsilon)
    return [params, loss]


def _log_posterior(x, factor, whitener, concentration, prior, theta):
    """Return the log-density of a Bayesian mixture's parameters, and its gradient."""
    scale_prior, mean_precision, a, b, constant = prior
    n_components, n_dims = len(concentration), x.shape[1]
    sticks, means, log_stds = np.split(theta, [n_components - 1, n_components - 1 + n_components * n_dims])
    means, log_stds = means.reshape(-1, n_dims), log_stds.reshape(-1, n_dims)
    odds = _exp(sticks) / np.arange(n_components - 1, 0, -1)
    shares, left = odds / (1 + odds), np.append(_mp.mpf(1), np.cumprod(1 / (1 + odds)))
    log_weights = _log(np.append(shares, _mp.mpf(1)) * left)
    if scale_prior:
        stds = _exp(log_stds)
        z, log_norms = (x[:, None] - means) / stds, np.sum(log_stds, axis=-1)
    else:
        z, log_norms = x[:, None] - means @ whitener.T, 0
    terms = log_weights - log_norms - np.sum(z**2, axis=-1) / 2
    likelihoods = _logsumexp(terms)
    value = factor * np.sum(likelihoods) + constant + concentration @ log_weights
    value -= mean_precision * np.sum(means**2) / 2
    by_row = factor * _exp(terms - likelihoods[:, None])
    counts = np.sum(by_row, axis=0) + concentration
    pulls = np.sum(by_row[..., None] * z, axis=0)
    beyond = np.sum(counts) - np.cumsum(counts)
    gradient = [counts[:-1] - shares * (counts + beyond)[:-1]]
    gradient.append((pulls / stds if scale_prior else pulls @ whitener) - mean_precision * means)
    if scale_prior:
        gradient.append(np.sum(by_row[..., None] * (z**2 - 1), axis=0))
        if scale_prior == 1:  # half-normal
            value += np.sum(log_stds - a * stds**2 / 2)
            gradient[-1] += 1 - a * stds**2
        else:  # inverse gamma
            value -= np.sum(a * log_stds + b / stds)
            gradient[-1] += b / stds - a
    return value, np.concatenate([part.ravel() for part in gradient])


def mixture_model_logp_grad(inputs, outputs):
    x, rows, whitener, concentration, prior, theta = inputs
    x, whitener, concentration, prior, theta = _exact(x, whitener, concentration, prior, theta)
    batch = x[rows] if len(rows) else x
    value, gradient = _log_posterior(batch, _mp.mpf(len(x)) / len(batch), whitener, concentration, prior, theta)
    return [np.append(value, gradient)]


def advi_mixture_steps(inputs, outputs):
    """Steps of RMSprop for a mean-field Gaussian."""
    x, rows, noise, *known, _solver, learning_rate, _momentum, decay, epsilon, _n_steps = inputs
    x, noise, *known, phi, square = _exact(x, noise, *known, *outputs[:2])
    learning_rate, decay, epsilon = map(_mp.mpf, (learning_rate, decay, epsilon))
    root, losses = np.frompyfunc(_mp.sqrt, 1, 1), []
    for batch, draws in zip(rows, noise, strict=True):
        loc, log_scale = np.split(phi, 2)
        scale = _exp(log_scale)
        found = [_log_posterior(x[batch], _mp.mpf(len(x)) / len(batch), *known, loc + scale * z) for z in draws]
        slopes = np.array([slope for _, slope in found])
        gradient = np.append(np.mean(slopes, axis=0), np.mean(slopes * draws, axis=0) * scale + 1)
        entropy = np.sum(log_scale) + len(loc) * (1 + _mp.log(2 * _mp.pi)) / 2
        losses.append(-sum(value for value, _ in found) / len(draws) - entropy)
        square = decay * square[0] + (1 - decay) * gradient**2
        phi = phi + learning_rate * gradient / root(square + epsilon)
        square = square[None]
    return [phi, np.array(losses)]


def metropolis_mixture_steps(inputs, outputs):
    """Steps of a walk whose blocks are the sticks, then the means, the stds being known."""
    x, noise, thresholds, scales, *known, theta, _terms = _exact(*inputs)
    n_components = len(scales) - 1
    ends = n_components - 1 + x.shape[1] * np.arange(len(scales))
    sizes = np.append(n_components - 1, np.full(n_components, x.shape[1]))
    current, _ = _log_posterior(x, 1, *known, theta)
    draws, values, accepted = [], [], np.zeros(len(scales), dtype=object)
    for steps, limits in zip(noise, thresholds, strict=True):
        for block, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            moved = theta.copy()
            moved[end - size : end] += scales[block] * steps[end - size : end]
            value, _ = _log_posterior(x, 1, *known, moved)
            if value - current > -limits[block]:
                theta, current = moved, value
                accepted[block] += size > 0
        draws.append(theta)
        values.append(current)
    return [np.array(draws), np.array(values), accepted]
