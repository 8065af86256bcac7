"""Density ratios of samples that are far apart, as products of ratios between their mixtures."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from sklearn.utils import check_random_state

from ._arrays import as_count
from .ratio import RatioClassifier, TermsAt, coefficient_moves, log_odds_at, seeded, with_intercept

__all__ = ["TelescopingRatioClassifier"]


class TelescopingRatioClassifier(RatioClassifier):
    r"""Log-ratio of two densities that are far apart, as a sum of log-ratios between neighbours on the way.

    A classifier that tells two samples apart without a mistake knows nothing of their ratio. So each sample of p is
    paired by chance with one of q, and :math:`x_k = m + \sqrt{1 - a_k^2}\,(x_q - m) + a_k\,(x_p - m)` leads in K
    bridges from q to p: the log-ratio is the sum of those between neighbours, each by a classifier of its own
    (Rhodes, Xu & Gutmann 2020, equations 3 and 5). Here :math:`a_k = \sin(\pi k / 2K)`, for steps of much the same
    length, and m is half-way between the means.

    Parameters
    ----------
    estimator : RatioClassifier
        What is fitted to each bridge.
    n_bridges : int
        K. There should be so many that no bridge's samples are far apart; with 1 it is the estimator's ratio.
    random_state : int, RandomState or None
        Pairs the samples, and sets that of the estimators.

    Attributes
    ----------
    bridges_ : list of RatioClassifier
        The fitted classifiers, from q to p.
    coef_, intercept_ : ndarray, shape (1, n_coefficients), (1,)
        Coefficients of all bridges, the bridges' intercepts among them, and minus the prior correction.
    coef_covariance_ : ndarray, shape (n_coefficients + 1, n_coefficients + 1)
        Their covariance. All bridges are fitted to the same pairs, and their errors depend on each other.
    classes_ : ndarray, shape (2,)
        Labels; the second is the numerator's.
    log_prior_ratio_ : float
        log(n_q / n_p), by sample weight.
    separated_ : bool
        Whether some bridge's samples are separated.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Warns
    -----
    AccuracyWarning
        If a bridge's classifier separates its samples: then there are too few bridges.

    Notes
    -----
    The larger sample is used up once; the smaller repeats itself, and standard errors count each of its rows, with
    those that it is paired with, once. The log-ratios of all bridges are taken wherever a point lies, most of them far
    from the bridge's own samples: the estimator's model must hold there.

    References
    ----------
    Rhodes, Xu & Gutmann, "Telescoping density-ratio estimation", NeurIPS 2020.

    Examples
    --------
    >>> from fastdiv import LogisticRatioClassifier, Normal, TelescopingRatioClassifier
    >>> x_p, x_q = Normal(8, 1).sample(4000, rng=1), Normal(0, 1).sample(4000, rng=2)
    >>> model = TelescopingRatioClassifier(LogisticRatioClassifier(), n_bridges=8, random_state=0)
    >>> estimate = model.fit_samples(x_p, x_q).kl_divergence(Normal(8, 1).sample(4000, rng=3))
    >>> bool(abs(estimate - 32) < 3 * estimate.standard_error < 6)
    True
    """

    def __init__(
        self,
        estimator: RatioClassifier,
        n_bridges: int = 8,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.n_bridges = n_bridges
        self.random_state = random_state

    def _check_parameters(self):
        as_count(self.n_bridges, "n_bridges", 1)
        if not isinstance(self.estimator, RatioClassifier) or isinstance(self.estimator, TelescopingRatioClassifier):
            raise TypeError(f"estimator must be a ratio classifier of one ratio, got {type(self.estimator).__name__}")

    def _fit(self, X, in_p, weight):
        self._check_finite(X)
        random = check_random_state(self.random_state)
        self._seed = random.randint(1 << 31)
        x_p, x_q = X[in_p], X[~in_p]
        means = (np.average(x, axis=0, weights=w) for x, w in ((x_p, weight[in_p]), (x_q, weight[~in_p])))
        self._centre = (sum(means) / 2).astype(X.dtype)
        rows_p, rows_q = self._pairs(len(x_p), len(x_q))
        weight_of_pairs = weight[in_p][rows_p] * weight[~in_p][rows_q]
        self.bridges_ = []
        for x_high, x_low in self._neighbours(x_p[rows_p], x_q[rows_q]):
            bridge = seeded(self.estimator, lambda: random.randint(1 << 31))
            self.bridges_.append(bridge.fit_samples(x_high, x_low, weight_of_pairs, weight_of_pairs))
        self.separated_ = any(bridge.separated_ for bridge in self.bridges_)
        parts = []
        for bridge in self.bridges_:
            regression = bridge._regression()
            parts += [regression.coef_[0], regression.intercept_ + bridge.log_prior_ratio_]
        self.coef_, self.intercept_ = np.concatenate(parts)[None], np.array([-self.log_prior_ratio_])
        moves, units = self._moves(X, None, in_p, None, weight_of_pairs)
        moves = np.array([np.bincount(units, column) for column in moves.T])
        self.coef_covariance_ = moves @ moves.T

    def _pairs(self, n_p, n_q):
        """Pair rows of the two samples by chance; the smaller one's come again until the larger's are used up."""
        random = np.random.default_rng(self._seed)
        return [np.resize(random.permutation(n), max(n_p, n_q)) for n in (n_p, n_q)]

    def _neighbours(self, x_p, x_q):
        """Yield for each bridge the samples of its numerator and its denominator, from q to p."""
        shares = np.sin(np.linspace(0, math.pi / 2, self.n_bridges + 1)).astype(x_p.dtype)
        x_p, x_q = x_p - self._centre, x_q - self._centre
        way = (self._centre + np.sqrt(1 - share**2) * x_q + share * x_p for share in shares)
        for low, high in pairwise(way):
            yield high, low

    def _terms(self, X):
        return np.hstack([with_intercept(bridge._terms(X)) for bridge in self.bridges_])

    def _regression(self):
        return self

    def _ratios_at(self, x_p, x_q):
        n = min(len(x_p), len(x_q))
        rows_p, rows_q = self._pairs(len(x_p), len(x_q))
        neighbours = self._neighbours(x_p[rows_p[:n]], x_q[rows_q[:n]])
        return [
            (bridge.log_ratio(high), bridge.log_ratio(low))
            for bridge, (high, low) in zip(self.bridges_, neighbours, strict=True)
        ]

    def _moves(self, X, terms, in_p, gradients, weight=None):
        rows_p, rows_q = self._pairs(np.count_nonzero(in_p), np.count_nonzero(~in_p))
        n = len(rows_p)
        rows_p, rows_q = np.flatnonzero(in_p)[rows_p], np.flatnonzero(~in_p)[rows_q]
        weight = np.ones(n) if weight is None else weight / weight.mean()
        is_high = np.arange(2 * n) < n
        moves, first = [], 0
        for bridge, neighbours in zip(self.bridges_, self._neighbours(X[rows_p], X[rows_q]), strict=True):
            terms, alpha = TermsAt(bridge, np.concatenate(neighbours)), bridge._regression().alpha
            first, own = first + terms.shape[1] + 1, slice(first, first + terms.shape[1] + 1)
            of_bridge = None if gradients is None else gradients[own]
            log_odds = log_odds_at(bridge, terms)
            of_rows = coefficient_moves(terms, is_high, log_odds, np.tile(weight, 2), alpha, of_bridge)
            moves.append(of_rows[:n] + of_rows[n:])
        moves = np.hstack([*moves, np.zeros((n, 1))]) if gradients is None else sum(moves)
        few, many = (rows_p, rows_q) if np.count_nonzero(in_p) < len(in_p) / 2 else (rows_q, rows_p)
        units = np.arange(len(X))
        units[many] = few
        moves_of_rows = np.zeros((len(X), moves.shape[1]))
        moves_of_rows[many] = moves
        return moves_of_rows, units
