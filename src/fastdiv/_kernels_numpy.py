"""The kernel set in plain NumPy and SciPy: the reference that the others are tested and timed against.

Nothing here is tuned. A kernel sees one block of the data at a time, so its temporaries stay small.
"""

from itertools import pairwise

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, logsumexp, softmax

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

# Of the state of `logistic_newton_steps`.
STAGE, STATUS, SHARE, VALUE, DECREMENT, BORROWED, N_LOSSES = range(7)
GRADIENT, HESSIAN, SCORES = range(3)
RUNNING, FULL, CONVERGED, STUCK = range(4)
# Under this share of the largest, a pivot of a Hessian is rounding.
LEAST_RIDGE = 1e-12
SUFFICIENT_DECREASE = 1e-4
LEAST_SHARE = 2.0**-30
# Of the prior of `mixture_model_logp_grad`.
SCALE_PRIOR, MEAN_PRECISION, SCALE_A, SCALE_B, CONSTANT = range(5)
FIXED, HALF_NORMAL, INVERSE_GAMMA = range(3)
HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)

# Overflow to -inf and NaN from inf - inf are answers here, not accidents.
_quiet = np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore")


def _half_square(z):
    """Half of z squared, without overflow where only z squared does."""
    return np.square(z * np.sqrt(0.5))


def _line_terms(x, log_weights, means, stds):
    """Return the components' log-densities with their weights, and the standardised points: (n, K) both."""
    z = (x[:, None] - means) / stds
    return log_weights - np.log(stds) - HALF_LOG_2PI - _half_square(z), z


def _diag_terms(x, log_weights, means, stds):
    """Return the same as `_line_terms`, the points (n, K, D)."""
    z = (x[:, None, :] - means) / stds
    log_norms = np.sum(np.log(stds) + HALF_LOG_2PI, axis=1)
    return log_weights - log_norms - np.sum(_half_square(z), axis=2), z


def _full_term(x, log_weight, mean, whitener):
    """Return the same as `_line_terms` for one component, (n,) and (n, D)."""
    z = (x - mean) @ whitener.T
    log_norm = np.sum(HALF_LOG_2PI - np.log(np.diag(whitener)))
    return log_weight - log_norm - np.sum(_half_square(z), axis=1), z


def _mean_score(terms, scores):
    """Average the scores by the components' responsibilities; nothing is 0 times infinity."""
    responsibilities = softmax(terms, axis=1).reshape(*terms.shape, *[1] * (scores.ndim - 2))
    return np.sum(np.where(responsibilities == 0, 0, responsibilities * scores), axis=1)


@_quiet
def mixture_logpdf(x, log_weights, means, stds, out):
    """Log-density of a mixture on the line: x and out (n,), parameters (K,)."""
    out[...] = logsumexp(_line_terms(x, log_weights, means, stds)[0], axis=1)


@_quiet
def mixture_logpdf_diag(x, log_weights, means, stds, out):
    """Log-density with diagonal covariances: x (n, D), means and stds (K, D), out (n,)."""
    out[...] = logsumexp(_diag_terms(x, log_weights, means, stds)[0], axis=1)


@_quiet
def mixture_logpdf_full(x, log_weights, means, whiteners, out):
    """Log-density with full covariances, by the inverses of their lower Cholesky factors (K, D, D), 0 above."""
    terms = np.empty((len(x), len(means)))
    for k in range(len(means)):
        terms[:, k], _ = _full_term(x, log_weights[k], means[k], whiteners[k])
    out[...] = logsumexp(terms, axis=1)


@_quiet
def mixture_score(x, log_weights, means, stds, out):
    """Gradient of the log-density in x, of its shape: NaN where the densities of all components underflow."""
    terms, z = _line_terms(x, log_weights, means, stds)
    out[...] = _mean_score(terms, -z / stds)


@_quiet
def mixture_score_diag(x, log_weights, means, stds, out):
    """Gradient of the log-density with diagonal covariances: out (n, D)."""
    terms, z = _diag_terms(x, log_weights, means, stds)
    out[...] = _mean_score(terms, -z / stds)


@_quiet
def mixture_score_full(x, log_weights, means, whiteners, out):
    """Gradient of the log-density with full covariances: out (n, D)."""
    terms, scores = np.empty((len(x), len(means))), np.empty((len(x), *means.shape))
    for k, whitener in enumerate(whiteners):
        terms[:, k], z = _full_term(x, log_weights[k], means[k], whitener)
        scores[:, k] = -z @ whitener
    out[...] = _mean_score(terms, scores)


@_quiet
def logsumexp_rows(a, out):
    """Logsumexp of each row: a (n, K), out (n,)."""
    out[...] = logsumexp(a, axis=1)


@_quiet
def trapezoid_cross_entropy(locs, scales, mass, lower, upper, log_weights, means, stds, out):
    """Integrate -log q over Gaussians (n,), by a rule of points, the mass at each in its weight.

    The points (m,) are a uniform grid from `lower` to `upper` in each Gaussian's own coordinate (x - loc) / scale.
    """
    z = np.linspace(lower, upper, len(mass))
    log_q = np.empty_like(z)
    for j in range(len(locs)):
        mixture_logpdf(locs[j] + scales[j] * z, log_weights, means, stds, log_q)
        out[j] = -np.sum(np.where(mass == 0, 0, mass * log_q))


@_quiet
def trapezoid_kl(log_weights_p, means_p, stds_p, log_weights_q, means_q, stds_q, lower, upper, num, start, stop, out):
    """Sum the trapezoid rule's terms of KL(p || q), without its step, over points `start` to `stop` of `num`."""
    index = np.arange(start, stop)
    x = (lower + index * ((upper - lower) / (num - 1))).astype(means_p.dtype)
    x[index == num - 1] = upper
    log_p, log_q = np.empty_like(x), np.empty_like(x)
    mixture_logpdf(x, log_weights_p, means_p, stds_p, log_p)
    mixture_logpdf(x, log_weights_q, means_q, stds_q, log_q)
    density = np.exp(log_p, dtype=np.float64)
    density[(index == 0) | (index == num - 1)] *= 0.5
    support = density > 0
    out[0] = np.sum(density[support] * np.subtract(log_p, log_q, dtype=np.float64)[support])


@_quiet
def merge_moments(other, out):
    """Merge the moments `other` into `out` (Chan, Golub & LeVeque 1979).

    Moments are count, mean, sum of squared deviations, min, max, and what rounding took from the mean.
    """
    count, mean, m2, low, high, residual = other
    if count == 0:
        return
    total = out[0] + count
    delta = (mean - out[1]) + (residual - out[5])
    merged = out[1] + delta * (count / total) if np.isfinite(delta) else out[1] + mean
    out[5] = (out[1] - merged) + delta * (count / total) + out[5] if np.isfinite(delta) else 0.0
    out[2] += m2 + delta**2 * (out[0] * count / total)
    out[0], out[1] = total, merged
    out[3], out[4] = np.fmin(out[3], low), np.fmax(out[4], high)


@_quiet
def log_ratio_moments(log_p, log_q, out):
    """Merge the moments of log_p - log_q into `out`."""
    if len(log_p) == 0:
        return
    values = np.subtract(log_p, log_q, dtype=np.float64)
    mean = np.mean(values)
    drift = np.nan_to_num(np.mean(values - mean), posinf=0, neginf=0)
    m2 = np.sum((values - mean) ** 2) - len(values) * drift**2
    merge_moments((len(values), mean, m2, np.fmin.reduce(values), np.fmax.reduce(values), drift), out)


def radix_sort(values, scratch, out):
    """Put values (n,), none of them NaN, into `out` in order. The scratch (n,) is for the other sets."""
    out[:] = np.sort(values)


def _window_distances(points, x, k):
    """Return the distance from each x to the k-th nearest of sorted points: the k nearest are neighbours there too."""
    if k > len(points):
        return np.inf
    starts = np.clip(np.searchsorted(points, x)[:, None] - np.arange(k + 1), 0, len(points) - k)
    return np.min(np.maximum(x[:, None] - points[starts], points[starts + k - 1] - x[:, None]), axis=1)


def neighbor_distances(points, x, k, out, following):
    """Distances from x (n,) to the k-th nearest of points (m,), k at most m, and to the next, infinity if k is m.

    Points and x are finite and in order.
    """
    out[:] = _window_distances(points, x, k)
    following[:] = _window_distances(points, x, k + 1)


@_quiet
def column_moments(X, sample_weight, means, squares, out):
    """Mean of each column by weight, sum of its squared deviations by weight, and to `out` the sum of the weights.

    The compiled sets take deviations from the first row: what then cancels in the squares, its own had brought.
    """
    columns, weight = X.astype(np.float64), sample_weight.astype(np.float64)
    out[0] = np.sum(weight)
    means[:] = weight @ columns / out[0]
    squares[:] = weight @ (columns - means) ** 2


@_quiet
def logistic_sgd_epoch(
    X,
    centre,
    scale,
    y,
    sample_weight,
    permutation,
    batch_size,
    learning_rate,
    power_t,
    momentum,
    alpha,
    n_steps,
    coef,
    velocity,
    coef_sum,
    out,
):
    """Make one pass of momentum descent over the rows in `permutation`, a mini-batch a step.

    The features are taken less `centre` and times `scale`. The target y is 0 or 1. The rate of step t, of which
    `n_steps` were made before, is learning_rate / t^power_t. `coef` and `velocity`, both (d + 1,) with the intercept
    last, are updated in place; `coef_sum`, if it is not empty, gets the coefficients after each step added, and `out`
    the sum of the weighted losses. The penalty alpha/2 |coef|^2 spares the intercept.
    """
    loss = 0.0
    for step, start in enumerate(range(0, len(permutation), batch_size), n_steps + 1):
        batch = permutation[start : start + batch_size]
        features, target, weight = (X[batch] - centre) * scale, y[batch], sample_weight[batch]
        logit = features @ coef[:-1] + coef[-1]
        loss += np.sum(weight * (np.logaddexp(0, logit) - target * logit), dtype=np.float64)
        residual = weight * (target - expit(logit))
        rate = learning_rate / step**power_t
        velocity *= momentum
        velocity[:-1] += rate * (features.T @ residual / len(batch) - alpha * coef[:-1])
        velocity[-1] += rate * np.mean(residual)
        coef += velocity
        if coef_sum.size:
            coef_sum += coef
    out[0] = loss


@_quiet
def logistic_newton_pass(X, centre, scale, y, sample_weight, coef, sums, hessian, squares, out):
    """Add up what Newton's method and the sandwich covariance need of the loss of `logistic_sgd_epoch`.

    The features are taken less `centre` and times `scale`. A row's score is the gradient of its loss. `sums` gets the
    scores of class 0 and those of class 1, and if it has four rows the same times the weights once more; `hessian` and
    `squares` (d + 1, d + 1), unless they are empty, the lower triangles of the loss's Hessian and of the scores' outer
    products. `out` is the sum of the losses and, kept with `squares`, the least log-odds of class 1 and the largest
    of class 0, of rows that weigh something, and by class the sums of the weights and of their squares.
    """
    rows = np.column_stack([(X - centre) * scale, np.ones(len(X), dtype=X.dtype)])
    logit = rows @ coef
    probability = expit(logit)
    residual = sample_weight * (probability - y)
    factors = [residual * (1 - y), residual * y]
    factors += [sample_weight * factor for factor in factors]
    sums += np.array(factors[: len(sums)]) @ rows
    out[0] += np.sum(sample_weight * (np.logaddexp(0, logit) - y * logit), dtype=np.float64)
    if hessian.size:
        hessian += np.tril((rows.T * (sample_weight * probability * (1 - probability))) @ rows)
    if squares.size:
        squares += np.tril((rows.T * residual**2) @ rows)
        out[1] = np.min(logit[(y != 0) & (sample_weight > 0)], initial=out[1])
        out[2] = np.max(logit[(y == 0) & (sample_weight > 0)], initial=out[2])
        for i, power in enumerate([sample_weight, np.square(sample_weight, dtype=np.float64)]):
            out[3 + 2 * i : 5 + 2 * i] += [np.sum(power[y == label], dtype=np.float64) for label in (0, 1)]


def _newton_step(hessian, gradient):
    """Solve for the step, with as much added to the diagonal as makes the Hessian positive definite."""
    damped = hessian.copy()
    largest = max(np.max(np.diag(hessian)), np.finfo(np.float64).tiny)
    ridge = LEAST_RIDGE * largest
    while ridge < largest:
        damped[np.diag_indices_from(damped)] += ridge
        try:
            return cho_solve(cho_factor(damped, lower=True), gradient)
        except (np.linalg.LinAlgError, ValueError):
            ridge *= 1000
    return gradient / largest


@_quiet
def logistic_newton_steps(
    X,
    centre,
    scale,
    y,
    sample_weight,
    ridge,
    mass,
    tol,
    slack,
    metric,
    coef,
    step,
    sums,
    hessian,
    squares,
    out,
    losses,
    state,
):
    """Make steps of Newton's method down the mean loss of `logistic_newton_pass` plus half of `ridge` times coef^2.

    A pass looks at coef - share * step. It writes `sums` to `out`: all of them if `state` says SCORES, without
    squares if HESSIAN, and without a Hessian if GRADIENT: then the next step takes the one in the lower triangle of
    `metric`, whose place is overwritten otherwise. Without rows there is no pass: the caller has made it, and judged
    it is alone. Where the loss has not come down enough for the step, but for `slack` times itself, the share is
    halved; or else that is the new coef, `losses` gets the cross-entropy there, and the next step is made.

    `state` is STAGE, what the pass writes; STATUS; SHARE; VALUE, the penalised loss at coef; DECREMENT, the product
    of the step and the gradient there; BORROWED, whether the step is from a Hessian of the caller's; N_LOSSES, how
    many there are new ones. It returns when the decrement is at most `tol` (CONVERGED), when no share of the step
    comes down (STUCK), and when there is no room for one more loss (FULL): then it would go on from there.
    """
    state[STATUS], state[N_LOSSES] = RUNNING, 0
    while True:
        trial = coef - state[SHARE] * step
        if len(X):
            for array in (sums, hessian, squares):
                array[:] = 0
            out[:] = 0, np.inf, -np.inf, 0, 0, 0, 0
            outputs = (
                sums if state[STAGE] == SCORES else sums[:2],
                hessian if state[STAGE] != GRADIENT else hessian[:0],
                squares if state[STAGE] == SCORES else squares[:0],
            )
            logistic_newton_pass(X, centre, scale, y, sample_weight, trial.astype(X.dtype), *outputs, out)
        value = out[0] / mass + np.sum(ridge * trial**2) / 2
        wanted = SUFFICIENT_DECREASE * state[SHARE] * state[DECREMENT]
        if not value <= state[VALUE] * (1 + slack) - wanted:
            state[SHARE] /= 2
            if state[SHARE] <= LEAST_SHARE and not state[BORROWED]:
                state[STATUS] = STUCK
                return
            if state[SHARE] <= LEAST_SHARE:
                # The rows that its Hessian came from were too unlike these.
                state[BORROWED], state[SHARE], state[STAGE] = 0, 0, HESSIAN
        elif state[N_LOSSES] == len(losses):
            state[STATUS] = FULL
            return
        else:
            losses[int(state[N_LOSSES])] = out[0] / mass
            coef[:] = trial
            gradient = (sums[0] + sums[1]) / mass + ridge * coef
            if state[STAGE] != GRADIENT:
                metric[:] = hessian / mass + np.diag(ridge)
            step[:] = _newton_step(metric, gradient)
            state[BORROWED] = state[STAGE] == GRADIENT
            state[SHARE], state[VALUE], state[DECREMENT] = 1, value, gradient @ step
            state[N_LOSSES] += 1
            if not state[BORROWED] and state[DECREMENT] <= tol:
                state[STATUS] = CONVERGED
                return
            # The next decrement will be about the square of this one.
            state[STAGE] = SCORES if state[DECREMENT] ** 2 <= tol else HESSIAN
        if len(X) == 0:
            return


def _layers(layer_sizes, params):
    """Return the weights of each layer, (n_out, n_in + 1) with the biases last, as views of the parameters."""
    layers, start = [], 0
    for n_in, n_out in pairwise(layer_sizes):
        layers.append(params[start : start + n_out * (n_in + 1)].reshape(n_out, n_in + 1))
        start += layers[-1].size
    return layers


def _activate(activation, values):
    """Return softplus (0), tanh (1) or the positive part (2) of values, and the derivative."""
    if activation == 0:
        return np.logaddexp(0, values), expit(values)
    if activation == 1:
        activations = np.tanh(values)
        return activations, 1 - activations * activations
    return np.maximum(values, 0), (values > 0).astype(values.dtype)


def _with_one(values):
    return np.column_stack([values, np.ones(len(values), dtype=values.dtype)])


def _forward(X, layers, activation):
    """Return the inputs of each layer, with a 1 for the bias, the derivatives of the hidden ones, and the log-odds."""
    inputs, slopes = [_with_one(X)], []
    for layer in layers[:-1]:
        activations, slope = _activate(activation, inputs[-1] @ layer.T)
        inputs.append(_with_one(activations))
        slopes.append(slope)
    return inputs, slopes, inputs[-1] @ layers[-1][0]


@_quiet
def mlp_log_odds(X, layer_sizes, activation, params, out):
    """Log-odds by a network of `layer_sizes` units, inputs first; its activation is 0 softplus, 1 tanh or 2 relu."""
    out[:] = _forward(X, _layers(layer_sizes, params), activation)[-1]


def _descend(solver, learning_rate, momentum, decay, epsilon, n_steps, gradient, params, velocity, square):
    """Make one step of RMSprop (Tieleman & Hinton 2012), Adam (Kingma & Ba 2015) or descent with momentum."""
    if solver < 2:
        square *= decay
        square += (1 - decay) * gradient**2
    if solver == 0:
        params -= learning_rate * gradient / np.sqrt(square + epsilon)
        return
    velocity *= momentum
    if solver == 1:
        velocity += (1 - momentum) * gradient
        rate = learning_rate * np.sqrt(1 - decay**n_steps) / (1 - momentum**n_steps)
        params -= float(rate) * velocity / (np.sqrt(square) + epsilon)
    else:
        velocity -= learning_rate * gradient
        params += velocity


@_quiet
def mlp_epoch(
    X,
    y,
    sample_weight,
    permutation,
    batch_size,
    layer_sizes,
    activation,
    solver,
    learning_rate,
    momentum,
    decay,
    epsilon,
    alpha,
    n_steps,
    params,
    velocity,
    square,
    out,
):
    """Train a network on the rows in `permutation`, a mini-batch a step, by solver 0 RMSprop, 1 Adam or 2 SGD.

    The network is that of `mlp_log_odds`, the target y is 0 or 1. `params`, `velocity` and `square`, the running mean
    of squared gradients, are updated in place; `n_steps` were made before. `out` gets the sum of the weighted losses.
    The penalty alpha/2 |weights|^2 spares the biases.
    """
    gradient = np.empty_like(params)
    layers, gradients = _layers(layer_sizes, params), _layers(layer_sizes, gradient)
    loss = 0.0
    for step, start in enumerate(range(0, len(permutation), batch_size), n_steps + 1):
        batch = permutation[start : start + batch_size]
        target, weight = y[batch], sample_weight[batch]
        inputs, slopes, log_odds = _forward(X[batch], layers, activation)
        loss += np.sum(weight * (np.logaddexp(0, log_odds) - target * log_odds), dtype=np.float64)
        delta = (weight * (expit(log_odds) - target) / len(batch))[:, None]
        for i in reversed(range(len(layers))):
            gradients[i][:] = delta.T @ inputs[i]
            gradients[i][:, :-1] += alpha * layers[i][:, :-1]
            if i > 0:
                delta = delta @ layers[i][:, :-1] * slopes[i - 1]
        _descend(solver, learning_rate, momentum, decay, epsilon, step, gradient, params, velocity, square)
    out[0] = loss


def _stick_breaking(sticks):
    """Return the log weights that unconstrained sticks break off, and the share of the rest that each takes."""
    rest = np.arange(len(sticks), 0, -1)
    odds = sticks - np.log(rest)
    taken, left = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    return np.append(taken, 0) + np.append(0, np.cumsum(left)), expit(odds)


def _model_parameters(theta, n_components, n_dims):
    """Return views of the sticks, the means (K, D), and the logarithms of the stds, none or (K, D)."""
    sticks, rest = theta[: n_components - 1], theta[n_components - 1 :]
    size = n_components * n_dims
    return sticks, rest[:size].reshape(-1, n_dims), rest[size:].reshape(-1, n_dims)


def _model_terms(x, whitener, means, log_stds):
    """Return log-densities of rows under each component, up to a constant, (n, K), and the whitened rows."""
    if len(log_stds):
        z = (x[:, None] - means) * np.exp(-log_stds)
        return -np.sum(log_stds, axis=1) - np.sum(z * z, axis=2) / 2, z
    z = x[:, None] - means @ whitener.T
    return -np.sum(z * z, axis=2) / 2, z


def _log_prior(prior, concentration, log_weights, means, log_stds):
    """Return the log-density of the prior in the unconstrained space, up to a constant."""
    value = concentration @ log_weights - prior[MEAN_PRECISION] * np.sum(means**2) / 2
    if prior[SCALE_PRIOR] == HALF_NORMAL:
        value += np.sum(log_stds - prior[SCALE_A] * np.exp(2 * log_stds) / 2)
    elif prior[SCALE_PRIOR] == INVERSE_GAMMA:
        value -= np.sum(prior[SCALE_A] * log_stds + prior[SCALE_B] * np.exp(-log_stds))
    return value


@_quiet
def mixture_model_logp_grad(x, rows, whitener, concentration, prior, theta, out):
    """Log-density of a Bayesian mixture's unconstrained parameters, and its gradient after it: out (1 + P,).

    `theta` is the K - 1 sticks of which the weights are broken, the means by rows, and, where these are not known, the
    logarithms of the components' standard deviations. Then `x` (n, D) is as it is; else it is multiplied by `whitener`
    (D, D), and so are the means here. `rows` are those of a mini-batch, whose log-likelihood counts n / len(rows)
    times, or none for all. Weights are Dirichlet(`concentration`), means independent and normal; `prior` is
    SCALE_PRIOR, which one the stds have; MEAN_PRECISION; SCALE_A, the precision of the half-normal, or the shape of
    the inverse gamma and SCALE_B its scale; CONSTANT, which is added.
    """
    sticks, means, log_stds = _model_parameters(theta, len(concentration), x.shape[1])
    log_weights, shares = _stick_breaking(sticks)
    batch = x[rows] if len(rows) else x
    factor = len(x) / len(batch)
    terms, z = _model_terms(batch, whitener, means, log_stds)
    terms += log_weights
    responsibilities = softmax(terms, axis=1)
    counts = factor * np.sum(responsibilities, axis=0) + concentration
    slopes = factor * np.einsum("nk,nkd->kd", responsibilities, z)
    sticks_out, means_out, log_stds_out = _model_parameters(out[1:], len(concentration), x.shape[1])
    out[0] = factor * np.sum(logsumexp(terms, axis=1)) + prior[CONSTANT]
    out[0] += _log_prior(prior, concentration, log_weights, means, log_stds)
    beyond = np.cumsum(counts[::-1])[::-1]
    sticks_out[:] = counts[:-1] * (1 - shares) - shares * beyond[1:]
    if len(log_stds):
        means_out[:] = slopes * np.exp(-log_stds) - prior[MEAN_PRECISION] * means
        log_stds_out[:] = factor * np.einsum("nk,nkd->kd", responsibilities, z * z - 1)
        if prior[SCALE_PRIOR] == HALF_NORMAL:
            log_stds_out += 1 - prior[SCALE_A] * np.exp(2 * log_stds)
        else:
            log_stds_out += prior[SCALE_B] * np.exp(-log_stds) - prior[SCALE_A]
    else:
        means_out[:] = slopes @ whitener - prior[MEAN_PRECISION] * means


def _ascend(solver, learning_rate, momentum, decay, epsilon, n_steps, gradient, phi, state):
    """Make one step up by SGD (0), Adagrad (1), Adagrad over a window (2), RMSprop (3) or Adam (4)."""
    if solver == 0:
        state[0] = momentum * state[0] + learning_rate * gradient
        phi += state[0]
        return
    if solver == 4:
        state[1] = momentum * state[1] + (1 - momentum) * gradient
        state[0] = decay * state[0] + (1 - decay) * gradient**2
        rate = learning_rate * np.sqrt(1 - decay**n_steps) / (1 - momentum**n_steps)
        phi += rate * state[1] / (np.sqrt(state[0]) + epsilon)
        return
    if solver == 1:
        state[0] += gradient**2
    elif solver == 2:
        state[(n_steps - 1) % len(state)] = gradient**2
    else:
        state[0] = decay * state[0] + (1 - decay) * gradient**2
    phi += learning_rate * gradient / np.sqrt(np.sum(state, axis=0) + epsilon)


def advi_steps(logp_grad, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses):
    """Do what `advi_mixture_steps` does, for any function of parameters and rows that returns logp and its gradient."""
    n_params = noise.shape[2]
    lower = np.tril_indices(n_params, -1)
    loc, log_scale, below = phi[:n_params], phi[n_params : 2 * n_params], phi[2 * n_params :]
    factor, gradient = np.zeros((n_params, n_params)), np.empty_like(phi)
    for step, (batch, draws) in enumerate(zip(rows, noise, strict=True), n_steps + 1):
        scale = np.exp(log_scale)
        np.fill_diagonal(factor, scale)
        if below.size:
            factor[lower] = below
        slopes, value = np.empty_like(draws), 0.0
        for i, draw in enumerate(draws):
            logp, slopes[i] = logp_grad(loc + factor @ draw, batch)
            value += logp
        gradient[:n_params] = np.mean(slopes, axis=0)
        by_pair = slopes.T @ draws / len(draws)
        gradient[n_params : 2 * n_params] = np.diag(by_pair) * scale + 1
        gradient[2 * n_params :] = by_pair[lower][: below.size]
        entropy = np.sum(log_scale) + n_params * (0.5 + HALF_LOG_2PI)
        losses[step - n_steps - 1] = -value / len(draws) - entropy
        _ascend(solver, learning_rate, momentum, decay, epsilon, step, gradient, phi, state)


@_quiet
def advi_mixture_steps(
    x,
    rows,
    noise,
    whitener,
    concentration,
    prior,
    solver,
    learning_rate,
    momentum,
    decay,
    epsilon,
    n_steps,
    phi,
    state,
    losses,
):
    """Fit a Gaussian to the posterior of `mixture_model_logp_grad`, by gradients at draws: a step per row of `rows`.

    `phi` (2 P,) is the Gaussian's means and the logarithms of its standard deviations, or, with P (P - 1) / 2 more, of
    the diagonal of its covariance's Cholesky factor, whose entries below it, row by row, are the rest. `noise`
    (steps, draws, P) is standard normal, `rows` (steps, batch) those of mini-batches, or (steps, 0). A step is one up
    the evidence's lower bound, by `solver` 0 SGD, 1 Adagrad, 2 Adagrad over a window, 3 RMSprop or 4 Adam, whose
    `state` it updates as it does `phi`; `n_steps` were made before. `losses` gets each step's estimate of minus the
    bound.
    """
    found = np.empty(noise.shape[2] + 1)

    def logp_grad(theta, batch):
        mixture_model_logp_grad(x, batch, whitener, concentration, prior, theta, found)
        return found[0], found[1:]

    advi_steps(logp_grad, rows, noise, solver, learning_rate, momentum, decay, epsilon, n_steps, phi, state, losses)


@_quiet
def metropolis_mixture_steps(
    x, noise, thresholds, scales, whitener, concentration, prior, theta, terms, draws, logps, accepted
):
    """Walk at random over the posterior of `mixture_model_logp_grad`, a sweep over the blocks of theta a step.

    Blocks are the sticks, then each component's mean, then each one's log-stds. A block moves by `noise` (steps, P),
    standard normal, times its entry of `scales`, where the log-density grows by more than minus the entry of
    `thresholds` (steps, blocks), standard exponential (Metropolis et al. 1953). `theta` is moved on, `draws`
    (steps, P) and `logps` (steps,) get what it comes to, `accepted` (blocks,) counts moves: none of an
    empty block. `terms` (K + 2, m) is room to work in, m the next multiple of 64 from n on.
    """
    n_components, n_dims = len(concentration), x.shape[1]
    sizes = [n_components - 1, *[n_dims] * ((len(theta) - n_components + 1) // n_dims)]
    ends = np.cumsum(sizes)

    def logp(theta):
        sticks, means, log_stds = _model_parameters(theta, n_components, n_dims)
        log_weights, _ = _stick_breaking(sticks)
        by_component, _ = _model_terms(x, whitener, means, log_stds)
        likelihood = np.sum(logsumexp(by_component + log_weights, axis=1))
        return likelihood + _log_prior(prior, concentration, log_weights, means, log_stds) + prior[CONSTANT]

    current = logp(theta)
    for step in range(len(noise)):
        for block, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            if size == 0:
                continue
            moved = theta.copy()
            moved[end - size : end] += scales[block] * noise[step, end - size : end]
            value = logp(moved)
            if value - current > -thresholds[step, block]:
                theta[:], current = moved, value
                accepted[block] += 1
        draws[step], logps[step] = theta, current
