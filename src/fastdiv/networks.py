"""Density ratios from samples, by a fully connected network."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from sklearn.utils import check_random_state

from ._arrays import as_count
from ._backend import kernels, map_blocks
from ._descent import Passes, RowOrder, generator_of, held_out
from .calibration import GOOD_SLOPE, CalibratedRatioClassifier, calibration_slope, uncalibrated
from .estimate import warn_of_accuracy

__all__ = ["MLPRatioClassifier"]

# In the order in which the kernels number them.
ACTIVATIONS = ("softplus", "tanh", "relu")
SOLVERS = ("rmsprop", "adam", "sgd")
SHARE = "at least 0 and under 1", lambda value: 0 <= value < 1
SOME, POSITIVE = ("at least 0", lambda value: value >= 0), ("positive", lambda value: value > 0)
NUMBERS = {"alpha": SOME, "learning_rate": POSITIVE, "momentum": SHARE, "rho": SHARE, "beta_1": SHARE, "beta_2": SHARE}
NUMBERS |= {"epsilon": POSITIVE, "validation_fraction": SHARE, "tol": SOME}
# Multiplications between two looks at Ctrl-C: some hundredths of a second, with NumPy some tenths.
CHUNK_PRODUCTS = 1 << 26


def _first_params(layer_sizes, random):
    """Draw the weights of all layers; the biases, which come last in each, are 0."""
    layers = []
    for n_in, n_out in pairwise(layer_sizes):
        limit = math.sqrt(6 / (n_in + n_out))
        weights = random.uniform(-limit, limit, size=(n_out, n_in))
        layers.append(np.column_stack([weights, np.zeros(n_out)]).ravel())
    return np.concatenate(layers)


class MLPRatioClassifier(CalibratedRatioClassifier):
    r"""Log-ratio of two densities by a fully connected network that tells samples of both apart.

    The network's output z(x) is trained as the log-odds that a point came from the numerator p and not from the
    denominator q, by the mean cross-entropy in mini-batches. Then a logistic regression on z, over all rows,
    calibrates it, and the log-ratio is :math:`\log \frac{p}{q}(x) = a\, z(x) + b + \log(n_q / n_p)`: the noise of the
    last steps goes, which would move every divergence. The standard errors of its divergences hold the spread of a and
    b, not what the network has missed or learned by heart: `kl_divergence_from_samples` finds that out.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int
        Units of each hidden layer.
    activation : {"softplus", "tanh", "relu"}
        Of the hidden units.
    solver : {"rmsprop", "adam", "sgd"}
        RMSprop and Adam as in Keras, or gradient descent with momentum.
    alpha : float
        Strength of the L2 penalty, alpha/2 times the squared weights; biases are free.
    learning_rate : float
        Step size.
    momentum : float
        Share of the last step in the next, for "sgd".
    rho : float
        Decay of the mean squared gradient, for "rmsprop".
    beta_1, beta_2 : float
        Decays of the mean gradient and the mean squared gradient, for "adam".
    epsilon : float
        Added under the root of the mean squared gradient for "rmsprop", to the root for "adam".
    batch_size : int
        Rows in a step.
    max_iter : int
        Passes over the data.
    validation_fraction : float
        Share of each class that is held out of the training, for `validation_loss_curve_` and a warning; 0 holds out
        nothing.
    early_stopping : bool
        Whether to stop once the validation loss has not fallen by `tol` in `n_iter_no_change` passes, and to return to
        the best weights.
    tol, n_iter_no_change : float, int
        As `early_stopping` uses them.
    warm_start : bool
        Whether `fit` goes on from the weights of the last one, with its labels and standardisation. Give a
        `random_state`, or other rows are held out than before.
    verbose : bool
        Whether to show a progress bar with the losses; it needs rich.
    random_state : int, RandomState or None
        Splits the rows, draws the first weights (uniform: Glorot & Bengio 2010) and orders the rows of each pass.
    backend : str or None
        The kernel set, as in `use_backend`.

    Attributes
    ----------
    classes_ : ndarray, shape (2,)
        Labels; the second is the numerator's.
    coefs_, intercepts_ : list of ndarray
        Weights, (n_in, n_out), and biases, (n_out,), of each layer, for standardised features.
    scaler_ : PolynomialTerms
        The standardisation of the features, ``scaler_.transform(X)``.
    calibration_ : LogisticRatioClassifier
        The logistic regression on the network's output. After `partial_fit`, which does not have all rows, it leaves
        the output as it is.
    separated_ : bool
        Whether the log-odds of all the numerator's samples are above those of all the others. None after
        `partial_fit`, which cannot know.
    log_prior_ratio_ : float
        log(n_q / n_p), by sample weight.
    loss_curve_ : list of float
        Mean cross-entropy of the training rows during each pass, or call of `partial_fit`, in nats.
    validation_loss_curve_ : list of float
        Mean cross-entropy of the rows held out, after each pass, before the calibration.
    n_iter_ : int
        Passes made.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Warns
    -----
    AccuracyWarning
        If the classifier separates the samples, or the rows held out say that its log-odds are too large: it has
        learned its training rows by heart.

    References
    ----------
    Sugiyama, Suzuki & Kanamori, "Density Ratio Estimation in Machine Learning" (2012), chapter 4. Platt,
    "Probabilistic outputs for support vector machines" (1999).

    Examples
    --------
    >>> from fastdiv import MLPRatioClassifier, Normal
    >>> x_p, x_q = Normal(1, 1).sample((2000, 1), rng=1), Normal(0, 2).sample((2000, 1), rng=2)
    >>> model = MLPRatioClassifier(max_iter=100, random_state=0).fit_samples(x_p, x_q)
    >>> bool(abs(model.log_ratio([[0.0]])[0] - 0.193) < 0.2)
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (10, 20),
        activation: str = "softplus",
        solver: str = "rmsprop",
        *,
        alpha: float = 0.0,
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        rho: float = 0.9,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        batch_size: int = 100,
        max_iter: int = 250,
        validation_fraction: float = 0.2,
        early_stopping: bool = False,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
        backend: str | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.rho = rho
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state
        self.backend = backend

    def _check_parameters(self):
        self._check_choices({"activation": ACTIVATIONS, "solver": SOLVERS})
        try:
            sizes = tuple(self.hidden_layer_sizes)
        except TypeError:
            message = f"hidden_layer_sizes must be a tuple of whole numbers, got {self.hidden_layer_sizes!r}"
            raise TypeError(message) from None
        for size in sizes:
            as_count(size, "each of hidden_layer_sizes", 1)
        for name in ("batch_size", "max_iter", "n_iter_no_change"):
            as_count(getattr(self, name), name, 1)
        self._check_numbers(NUMBERS)
        if self.early_stopping and self.validation_fraction == 0:
            raise ValueError("early_stopping needs a validation_fraction above 0, got 0")

    def _fit(self, X, in_p, weight):
        random = check_random_state(self.random_state)
        held = held_out(in_p, self.validation_fraction, random)
        if self.early_stopping and not (held[in_p].any() and held[~in_p].any()):
            raise ValueError(f"early_stopping needs rows of both classes to hold out, got {len(X)} rows")
        if self.warm_start and hasattr(self, "_params"):
            self._check_layers("warm_start", X)
        else:
            self._begin(X[~held], weight[~held], random)
        self._check_finite(X)
        features = self.scaler_.transform(X).astype(self._params.dtype, copy=False)
        training, validation = (
            tuple(part[rows].astype(features.dtype, copy=False) for part in (features, in_p, weight))
            for rows in (~held, held)
        )
        self._reset(self._params)
        self._train(training, validation, generator_of(random))
        self._set_layers()
        output = self._network(features, self._params)
        self._calibrate(output, in_p, weight)
        self._check_held_out(output, in_p, weight, held)

    def _go_on(self, X, in_p, weight):
        random = check_random_state(self.random_state)
        if hasattr(self, "_params"):
            self._check_layers("partial_fit", X)
        else:
            self._begin(X, weight, random)
            self._reset(self._params)
            self.loss_curve_ = []
        features = self.scaler_.transform(X)
        rows = tuple(part.astype(self._params.dtype, copy=False) for part in (features, in_p, weight))
        self._params, self._moments = self._params.copy(), [moment.copy() for moment in self._moments]
        order = RowOrder(np.arange(len(X)), self.batch_size, generator_of(random))
        loss = self._epoch(*rows, order) / float(weight.sum(dtype=np.float64))
        self.loss_curve_, self.validation_loss_curve_ = [*self.loss_curve_, loss], []
        self._set_layers()
        self.calibration_, self.separated_, self._held_out_slope = uncalibrated(self._params.dtype), None, math.nan

    def _sizes(self, X):
        return np.array([X.shape[1], *self.hidden_layer_sizes, 1], dtype=np.intp)

    def _check_layers(self, name, X):
        last, wanted = self._layer_sizes.tolist(), self._sizes(X).tolist()
        if last != wanted:
            raise ValueError(f"{name} needs the layers of the last fit, {last}, got {wanted}")

    def _begin(self, X, weight, random):
        self._layer_sizes = self._sizes(X)
        self.scaler_ = self._standardised(X, weight, degree=1)
        self._params = _first_params(self._layer_sizes, random).astype(X.dtype)

    def _reset(self, params):
        """Take parameters, with no steps made yet."""
        self._params, self._moments, self._n_steps = params.copy(), [np.zeros_like(params), np.zeros_like(params)], 0

    def _set_layers(self):
        self.n_iter_ = len(self.loss_curve_)
        sizes = self._layer_sizes
        layers = np.split(self._params.copy(), np.cumsum(sizes[1:] * (sizes[:-1] + 1))[:-1])
        layers = [layer.reshape(-1, n_in + 1) for layer, n_in in zip(layers, sizes, strict=False)]
        self.coefs_, self.intercepts_ = [layer[:, :-1].T for layer in layers], [layer[:, -1] for layer in layers]

    def _check_held_out(self, output, in_p, weight, held):
        """Tell a network that is overconfident where it was not trained."""
        log_odds = self._log_odds(self.calibration_._terms(output[held, None]))
        slope, error, _ = calibration_slope(log_odds, in_p[held], weight[held], self.backend)
        self._held_out_slope = slope
        if slope < GOOD_SLOPE and slope + 3 * error < 1:
            warn_of_accuracy(
                f"by the rows held out the log-odds should be {slope:.2g} times as large: the network has learned its "
                "training rows by heart; use early_stopping, alpha, or fewer units"
            )

    def _diagnostics(self):
        return super()._diagnostics() | {"held_out_slope": self._held_out_slope}

    def _train(self, training, validation, generator):
        """Bring the parameters to where the passes, or the best of them, lead; set the loss curves."""
        masses = [weight.sum(dtype=np.float64) for *_, weight in (training, validation)]
        order = RowOrder(np.arange(len(training[0])), self.batch_size, generator)
        passes = Passes(self.max_iter, self.tol, self.n_iter_no_change, self.early_stopping, self.verbose)
        passes.run(
            lambda: self._epoch(*training, order) / masses[0],
            lambda: self._params,
            (lambda: self._loss(*validation, self._params) / masses[1]) if masses[1] else None,
            lambda: self.early_stopping,
        )
        self.loss_curve_, self.validation_loss_curve_ = passes.losses, passes.held_out_losses
        if len(self.loss_curve_) > 1 and self.loss_curve_[-1] > 2 * math.log(2):
            # A network that knows nothing has log 2.
            raise self._divergence()
        if passes.best is not None:
            self._reset(passes.best)

    def _divergence(self):
        return ValueError(f"the steps diverge: learning_rate={self.learning_rate} is too large for these data")

    def _epoch(self, X, y, weight, order):
        """Make one pass over the rows and return the sum of the losses during it."""
        epoch = kernels(self.backend).mlp_epoch
        momentum, decay = (self.beta_1, self.beta_2) if self.solver == "adam" else (self.momentum, self.rho)
        loss, out = 0.0, np.empty(1)
        for rows in order.chunks(max(CHUNK_PRODUCTS // (self._params.size * order.batch_size), 1)):
            epoch(
                X,
                y,
                weight,
                rows,
                order.batch_size,
                self._layer_sizes,
                ACTIVATIONS.index(self.activation),
                SOLVERS.index(self.solver),
                self.learning_rate,
                momentum,
                decay,
                self.epsilon,
                self.alpha,
                self._n_steps,
                self._params,
                *self._moments,
                out,
            )
            self._n_steps += -(-len(rows) // order.batch_size)
            loss += float(out[0])
        if not math.isfinite(loss):
            raise self._divergence()
        return loss

    def _loss(self, X, y, weight, params):
        """Return the summed cross-entropy of the network, not calibrated."""
        log_odds = self._network(X, params)
        return float(np.sum(weight * (np.logaddexp(0, log_odds) - y * log_odds), dtype=np.float64))

    def _network(self, features, params):
        """Return the network's output for standardised features."""
        features = np.ascontiguousarray(features, dtype=params.dtype)
        out = np.empty(len(features), dtype=features.dtype)
        module, activation = kernels(self.backend), ACTIVATIONS.index(self.activation)

        def work(start, stop):
            module.mlp_log_odds(features[start:stop], self._layer_sizes, activation, params, out[start:stop])

        map_blocks(work, len(features))
        return out

    def _output(self, X):
        return self._network(self.scaler_.transform(X), self._params)
