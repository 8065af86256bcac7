"""Density ratios from samples as sums of Gaussian kernels, fitted directly and not by way of a classifier."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.model_selection import KFold
from sklearn.utils import ClassifierTags, check_random_state

from ._arrays import as_count, as_float_array
from ._backend import map_blocks, one_blas_thread
from .distributions import Mixture
from .estimate import warn_of_accuracy
from .ratio import RatioEstimator, _as_checked_array, _as_matrix, _naming

if TYPE_CHECKING:
    from typing import Self

    from ._arrays import ArrayLike

__all__ = ["KLIEPRatio", "KernelRatio", "LeastSquaresRatio"]

# Rows whose kernel values stay in cache while every bandwidth and penalty is tried on them.
BLOCK_ROWS = 200
# Rows of each sample that the median distance is taken from.
MEDIAN_ROWS = 300
# The eigenvectors are all used where more than this share of the eigenvalues is over rounding.
MOST = 0.7
LEAST_LOG = -707.0
# Float64 has the fourth powers of these: a log-ratio goes as 1 / bandwidth**2, and its variance as the square of that.
LEAST, LARGEST = 1e-70, 1e70
BANDWIDTH_FACTORS = np.geomspace(0.25, 4.0, 9)
PENALTIES = np.geomspace(1e-4, 10.0, 11)


class KernelRatio(RatioEstimator):
    """A density ratio as a sum of Gaussian kernels with weights of at least 0.

    A subclass checks its parameters in `_check_parameters` and has, in `_fit`, the attributes of a fit to standardised
    samples: `bandwidth_`, `weights_` and `weights_covariance_` among them.
    """

    alpha = 0.0

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.classifier_tags = ClassifierTags(multi_class=False)
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to labelled samples.

        Parameters
        ----------
        X : array_like, shape (n, n_features)
            Samples of both distributions.
        y : array_like, shape (n,)
            Two labels; the larger one marks the numerator's samples.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in `fit_samples`, or if the labels are not two.
        """
        self._check_parameters()
        self._whole(self._fit_labelled, X, y)
        return self

    def _fit_labelled(self, X, y):
        X, _, in_p = self._checked_labels(X, y)
        self._check_finite(X)
        x_p, x_q = X[in_p], X[~in_p]
        if min(len(x_p), len(x_q)) < 2:
            raise ValueError(f"x_p and x_q must have at least 2 rows, got {len(x_p)} and {len(x_q)}")
        self._least_rest = 0.5 / len(X)
        self.mean_, self.scale_ = self._scaling(x_p, x_q)
        z_p, z_q = self._terms(x_p), self._terms(x_q)
        self.centres_ = self._centres(z_p)
        if self.bandwidths is None:
            self.bandwidths_ = BANDWIDTH_FACTORS * _median_distance(z_p, z_q, self.centres_)
        else:
            self.bandwidths_ = _grid(self.bandwidths, "bandwidths")
        with one_blas_thread():
            vars(self).update(self._fit(z_p, z_q, self.centres_, self.bandwidths_))
        if self.separated_:
            warn_of_accuracy(
                "the ratio separates the samples: it is unbounded on this evidence, and only the kernels' width keeps "
                "the estimate finite"
            )

    def fit_samples(self, x_p: ArrayLike, x_q: ArrayLike) -> Self:
        """Fit to samples of p, the numerator, and q, the denominator.

        Parameters
        ----------
        x_p, x_q : array_like, shape (n_p, n_features), (n_q, n_features)
            Samples. One-dimensional arrays are taken as one feature; data frames must have the same columns.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of range or so small that rounding is all that is left, a sample has fewer than two
            rows, or the numbers of features differ.
        """
        return self._fit_samples(x_p, x_q)

    def _check_parameters(self):
        if isinstance(self.centres, Integral):
            as_count(self.centres, "centres", 1)
        if self.bandwidths is not None:
            _grid(self.bandwidths, "bandwidths")

    def _scaling(self, x_p, x_q):
        """Return the features' pooled means and standard deviations; a constant one has 1."""
        if not self.standardise:
            return np.zeros(x_p.shape[1]), np.ones(x_p.shape[1])
        X = np.concatenate([x_p, x_q]).astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = X.mean(axis=0), X.std(axis=0)
        constant = X.max(axis=0) == X.min(axis=0)
        if not np.all(np.isfinite(scale) & ((scale > 0) | constant)):
            raise ValueError(f"x_p and x_q must have a spread that float64 can hold, got {scale.tolist()}")
        return mean, np.where(constant, 1.0, scale)

    def _terms(self, X):
        return np.ascontiguousarray((X - self.mean_) / self.scale_, dtype=np.float64)

    def _centres(self, z_p):
        if isinstance(self.centres, Integral):
            n_centres = min(int(self.centres), len(z_p))
            return z_p[check_random_state(self.random_state).choice(len(z_p), n_centres, replace=False)]
        with _naming("centres"):
            centres = _as_checked_array(_as_matrix(self.centres), dtype=np.float64, order="C")
        if centres.shape[1] != z_p.shape[1]:
            raise ValueError(f"centres must have {z_p.shape[1]} columns, as the samples, got {centres.shape[1]}")
        return self._terms(centres)

    def _log_sum(self, z):
        """Return the log of the sum of the kernels, which is a Gaussian mixture's up to a constant."""
        used = np.flatnonzero(self.weights_)
        total = self.weights_[used].sum()
        means = self.centres_[used, 0] if self.n_features_in_ == 1 else self.centres_[used]
        mixture = Mixture(self.weights_[used] / total, means, np.full(means.shape, self.bandwidth_))
        log_constant = math.log(total) + self.n_features_in_ * math.log(self.bandwidth_ * math.sqrt(2 * math.pi))
        return mixture.logpdf(z[:, 0] if self.n_features_in_ == 1 else z) + log_constant

    def _log_ratio(self, z):
        return _from_relative(self._log_sum(z), self.alpha, self._least_rest)

    def _at(self, **samples):
        z, log_ratios, diagnostics = super()._at(**samples)
        n_cut = 0
        if self.alpha > 0:
            at_cut = _from_relative(math.log1p(-self._least_rest) - math.log(self.alpha), self.alpha, self._least_rest)
            n_cut = sum(int(np.count_nonzero(values > at_cut)) for values in log_ratios.values())
        if n_cut:
            warn_of_accuracy(
                "the relative ratio is within half a row of 1 / alpha, or beyond it: the ratio is cut off there, and "
                "may be much larger; take a smaller alpha"
            )
        return z, log_ratios, diagnostics | {"cut": n_cut}

    def _covariance_of_fit(self):
        return self.weights_covariance_

    def _mean_slope(self, z, slope):
        """Return the mean over the points of `slope` times the gradient of the log-ratio in the weights.

        Where the ratio is cut off the slope is that just below: the noise of the weights reaches there, too.
        """

        def work(start, stop):
            rise = slope[start:stop] / _rest(self._log_sum(z[start:stop]), self.alpha, self._least_rest)
            distances = cdist(z[start:stop], self.centres_[used], "sqeuclidean")
            return rise @ softmax(distances * (-0.5 / self.bandwidth_**2) + np.log(weights), axis=1) / weights

        used = np.flatnonzero(self.weights_)
        weights, gradient = self.weights_[used], np.zeros(len(self.weights_))
        with one_blas_thread():
            gradient[used] = sum(map_blocks(work, len(z), BLOCK_ROWS)) / len(z)
        return gradient

    def _diagnostics(self):
        return super()._diagnostics() | {"bandwidth": self.bandwidth_}


class LeastSquaresRatio(KernelRatio):
    r"""Density ratio by least squares: uLSIF, and RuLSIF for `alpha` over 0.

    The relative ratio :math:`r_\alpha = p / (\alpha p + (1 - \alpha) q)`, which is p / q for alpha = 0 and at most
    1 / alpha, is modelled as :math:`\sum_j \theta_j \exp(-\|x - c_j\|^2 / 2 \sigma^2)`. The weights minimise the
    squared error in the mixture's mean plus a penalty, :math:`\theta^T H \theta / 2 - h^T \theta + \lambda \theta^T
    \theta / 2` with H the mean product of kernels under the mixture and h their mean under p:
    :math:`\theta = \max(0, (H + \lambda I)^{-1} h)`. The bandwidth and the penalty have the least squared error over
    pairs of a row of p and one of q that are left out of the fit, in closed form.

    Parameters
    ----------
    alpha : float
        Share of p in the denominator, at least 0 and under 1.
    centres : int or array_like, shape (n_centres, n_features)
        Where the kernels sit: the points, or how many rows are drawn from `x_p` without replacement, all of them if
        there are no more.
    bandwidths : array_like of float, optional
        Bandwidths to choose from, in standard deviations of the features if they are standardised. The default is
        nine from 1/4 to 4 times the median distance between a centre and a row.
    penalties : array_like of float, optional
        Penalties to choose from. The default is eleven from 1e-4 to 10.
    standardise : bool
        Whether to measure the features in their standard deviations over both samples.
    random_state : int, RandomState or None
        Draws the centres.

    Attributes
    ----------
    centres_ : ndarray, shape (n_centres, n_features)
        Centres, standardised.
    weights_ : ndarray, shape (n_centres,)
        Weights of the kernels.
    weights_covariance_ : ndarray, shape (n_centres, n_centres)
        Sandwich covariance of the weights; the rows of weights that were cut off at 0 are 0.
    bandwidth_, penalty_ : float
        Those chosen.
    bandwidths_, penalties_ : ndarray
        Those they were chosen from.
    scores_ : ndarray, shape (n_bandwidths, n_penalties)
        Mean squared error on the rows left out, less the constant of the true ratio.
    mean_, scale_ : ndarray, shape (n_features,)
        What the features are standardised by.
    separated_ : bool
        Whether the ratio at all the numerator's samples is above that at all the others.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Warns
    -----
    AccuracyWarning
        If the ratio separates the samples.

    Notes
    -----
    No weight is negative, so the sum of kernels is positive everywhere, and its logarithm is taken without underflow:
    far from all centres the log-ratio falls as the square of the distance. For alpha over 0 the ratio is
    :math:`r = (1 - \alpha) r_\alpha / (1 - \alpha r_\alpha)`. Noise can lift the fitted :math:`r_\alpha` to 1 / alpha
    or over it, which no relative ratio reaches where q has mass: :math:`1 - \alpha r_\alpha` counts as half a row in
    as many as were fitted where it is less, which keeps the ratio and the divergences finite. Estimates warn of it.

    Where one sample is larger, the rows left out of it are evenly spaced. Some implementations of the score (R's and
    Python's densratio) lack a denominator in the term of the numerator's row, and choose otherwise; this one is the
    score of fits with the pair left out, for alpha over 0 too. Arithmetic is in float64.

    References
    ----------
    Kanamori, Hido & Sugiyama, "A least-squares approach to direct importance estimation" (2009), JMLR 10, section 3.

    Yamada, Suzuki, Kanamori, Hachiya & Sugiyama, "Relative density-ratio estimation for robust distribution
    comparison" (2013), Neural Computation 25(5).

    Examples
    --------
    >>> from fastdiv import LeastSquaresRatio, Normal
    >>> x_p, x_q = Normal(1, 1).sample((2000, 1), rng=1), Normal(0, 2).sample((2000, 1), rng=2)
    >>> model = LeastSquaresRatio(random_state=0).fit_samples(x_p, x_q)
    >>> bool(abs(model.log_ratio([[0.0]])[0] - 0.193) < 0.2)
    True
    """

    method = "least-squares"

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        centres: int | ArrayLike = 100,
        bandwidths: ArrayLike | None = None,
        penalties: ArrayLike | None = None,
        standardise: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.alpha = alpha
        self.centres = centres
        self.bandwidths = bandwidths
        self.penalties = penalties
        self.standardise = standardise
        self.random_state = random_state

    def _check_parameters(self):
        super()._check_parameters()
        self._check_numbers({"alpha": ("at least 0 and under 1", lambda alpha: 0 <= alpha < 1)})
        if self.penalties is not None:
            _grid(self.penalties, "penalties")

    def _fit(self, z_p, z_q, centres, bandwidths):
        penalties = PENALTIES if self.penalties is None else _grid(self.penalties, "penalties")
        kernels_p, products_p = _sums(z_p, centres, bandwidths, self.alpha > 0)
        _, products_q = _sums(z_q, centres, bandwidths, True)
        scores = _leave_one_out(z_p, z_q, centres, bandwidths, penalties, self.alpha, kernels_p, products_p, products_q)
        best, cheapest = np.unravel_index(np.argmin(scores), scores.shape)
        bandwidth, penalty = float(bandwidths[best]), float(penalties[cheapest])
        hessian = self.alpha * products_p[best] / len(z_p) + (1 - self.alpha) * products_q[best] / len(z_q)
        hessian[np.diag_indices_from(hessian)] += penalty
        if not (np.all(np.isfinite(scores)) and np.linalg.cond(hessian) < 1 / np.finfo(np.float64).eps):
            raise ValueError(f"penalties must be larger than rounding makes of the kernels, got {penalties.tolist()}")
        solution = np.linalg.solve(hessian, kernels_p[best] / len(z_p))
        weights = np.maximum(solution, 0)
        if not np.any(weights):
            raise ValueError(f"bandwidths must reach from the centres to the samples, got {bandwidths.tolist()}")
        scores_p = _kernel_moments(z_p, centres, bandwidth, lambda kernels: 1 - self.alpha * (kernels @ solution))
        scores_q = _kernel_moments(z_q, centres, bandwidth, lambda kernels: (1 - self.alpha) * (kernels @ solution))
        moves = np.linalg.inv(hessian) * (weights > 0)[:, None]
        return {
            "penalties_": penalties,
            "scores_": scores,
            "bandwidth_": bandwidth,
            "penalty_": penalty,
            "weights_": weights,
            "weights_covariance_": moves @ (scores_p / len(z_p) + scores_q / len(z_q)) @ moves.T,
            "separated_": _separates(z_p, z_q, centres, bandwidth, weights),
        }

    def _diagnostics(self):
        return super()._diagnostics() | {"penalty": self.penalty_}


class KLIEPRatio(KernelRatio):
    r"""Density ratio by the Kullback-Leibler importance estimation procedure, KLIEP.

    The ratio is modelled as :math:`r(x) = \sum_j \theta_j \exp(-\|x - c_j\|^2 / 2 \sigma^2)`, theta at least 0. The
    weights maximise the mean of log r over the samples of p under the constraint that the mean of r over those of q
    is 1, so that r q is the likeliest density. The bandwidth has the largest mean log-ratio over parts of the
    samples of p that were left out of the fit.

    Parameters
    ----------
    centres, bandwidths, standardise, random_state
        As in `LeastSquaresRatio`.
    cv : int
        Parts that the samples of p are cut into, at random, to choose the bandwidth.
    tol : float
        How far the mean log-ratio may be from its maximum, in nats.
    max_iter : int
        Most steps of a fit.

    Attributes
    ----------
    centres_, weights_, bandwidth_, bandwidths_, mean_, scale_, separated_, n_features_in_, feature_names_in_
        As in `LeastSquaresRatio`.
    weights_covariance_ : ndarray, shape (n_centres, n_centres)
        Sandwich covariance of the weights; the rows of weights that are 0 are 0.
    scores_ : ndarray, shape (n_bandwidths,)
        Mean log-ratio over the rows left out, in nats; -inf where a row is out of reach of every kernel, or a kernel
        out of reach of every row of q.
    gap_ : float
        The mean log-ratio is at most this far from its maximum.
    n_iter_ : int
        Steps of the fit.
    converged_ : bool
        Whether the gap is within `tol`.

    Warns
    -----
    AccuracyWarning
        If `max_iter` was not enough, or the ratio separates the samples.

    Notes
    -----
    With kernels over their means under q as densities this is the likeliest mixture of them. Each step solves the
    quadratic approximation at the last weights, with weights of at least 0, by `scipy.optimize.nnls` (Wang 2007), and
    is halved until the likelihood rises. Since the problem is convex, the largest derivative in a share bounds what
    is left to gain. Arithmetic is in float64, on the matrix of kernel values at the samples of p.

    References
    ----------
    Sugiyama, Suzuki, Nakajima, Kashima, von Bünau & Kawanabe, "Direct importance estimation for covariate shift
    adaptation" (2008), Annals of the Institute of Statistical Mathematics 60(4).

    Wang, "On fast computation of the non-parametric maximum likelihood estimate of a mixing distribution" (2007),
    JRSS B 69(2).

    Examples
    --------
    >>> from fastdiv import KLIEPRatio, Normal
    >>> x_p, x_q = Normal(1, 1).sample((2000, 1), rng=1), Normal(0, 2).sample((2000, 1), rng=2)
    >>> model = KLIEPRatio(random_state=0).fit_samples(x_p, x_q)
    >>> bool(abs(model.log_ratio([[0.0]])[0] - 0.193) < 0.2)
    True
    >>> round(float(model.ratio(x_q).mean()), 6)
    1.0
    """

    method = "kliep"

    def __init__(
        self,
        *,
        centres: int | ArrayLike = 100,
        bandwidths: ArrayLike | None = None,
        standardise: bool = True,
        cv: int = 5,
        tol: float = 1e-8,
        max_iter: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.centres = centres
        self.bandwidths = bandwidths
        self.standardise = standardise
        self.cv = cv
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _check_parameters(self):
        super()._check_parameters()
        as_count(self.cv, "cv", 2)
        as_count(self.max_iter, "max_iter", 1)
        self._check_numbers({"tol": ("at least 0", lambda tol: tol >= 0)})

    def _fit(self, z_p, z_q, centres, bandwidths):
        means_q, _ = _sums(z_q, centres, bandwidths, False)
        means_q /= len(z_q)
        # The centres have been drawn from the same state; the folds are not to be the same rows.
        seed = check_random_state(self.random_state).randint(1 << 31)
        folds = list(KFold(min(self.cv, len(z_p)), shuffle=True, random_state=seed).split(z_p))
        scores, best = np.full(len(bandwidths), -math.inf), None
        for k, bandwidth in enumerate(bandwidths):
            densities = _densities(z_p, centres, bandwidth, means_q[k])
            if densities is None:
                continue
            fit = _likeliest_mixture(densities, None, self.tol, self.max_iter)
            scores[k] = self._held_out(densities, fit[0], folds)
            if best is None or scores[k] > scores[best[0]]:
                best = k, densities, *fit
        if best is None:
            raise ValueError(f"bandwidths must reach from the centres to the samples, got {bandwidths.tolist()}")
        k, densities, shares, n_iter, gap = best
        if not gap <= self.tol:
            warn_of_accuracy(
                f"no convergence in {n_iter} steps, max_iter={self.max_iter}: the mean log-ratio may rise by {gap:.2g}"
            )
        bandwidth, weights = float(bandwidths[k]), shares / means_q[k]
        return {
            "scores_": scores,
            "bandwidth_": bandwidth,
            "weights_": weights,
            "weights_covariance_": self._covariance(densities, means_q[k], shares, z_q, centres, bandwidth),
            "gap_": gap,
            "n_iter_": n_iter,
            "converged_": gap <= self.tol,
            "separated_": _separates(z_p, z_q, centres, bandwidth, weights),
        }

    def _held_out(self, densities, shares, folds):
        """Return the mean log-ratio of rows that a fit has not seen; the fits start from that to all rows."""
        total = 0.0
        with np.errstate(divide="ignore"):
            for rows, held in folds:
                fold_shares, _, _ = _likeliest_mixture(densities[rows], shares, max(self.tol, 1e-6), self.max_iter)
                total += np.sum(np.log(densities[held] @ fold_shares))
        return total / len(densities)

    def _covariance(self, densities, means_q, shares, z_q, centres, bandwidth):
        used = np.flatnonzero(shares)
        scores_p = densities[:, used] / (densities @ shares)[:, None] * means_q[used]
        hessian = scores_p.T @ scores_p / len(scores_p)
        noise_p = np.atleast_2d(np.cov(scores_p, rowvar=False)) / len(scores_p)
        noise_q = _kernel_moments(z_q, centres[used], bandwidth, lambda kernels: np.ones(len(kernels))) / len(z_q)
        moves = np.linalg.pinv(hessian, hermitian=True)
        covariance = np.zeros((len(shares), len(shares)))
        covariance[np.ix_(used, used)] = moves @ (noise_p + noise_q) @ moves
        return covariance

    def _diagnostics(self):
        return super()._diagnostics() | {"converged": self.converged_}


def _grid(values, name):
    """Return the numbers to choose from, of a size that can be reckoned with."""
    values = np.atleast_1d(as_float_array(values, name)).astype(np.float64)
    if values.ndim != 1 or not values.size or not np.all((values >= LEAST) & (values <= LARGEST)):
        raise ValueError(f"{name} must be numbers from {LEAST} to {LARGEST}, at least one, got {values.tolist()}")
    return values


def _median_distance(z_p, z_q, centres):
    """Return the median distance between a centre and a row, of rows that are evenly spaced in both samples."""
    rows = [z[:: -(-len(z) // MEDIAN_ROWS)] for z in (z_p, z_q)]
    distances = cdist(np.concatenate(rows), centres)
    distances = distances[distances > 0]
    return float(np.median(distances)) if distances.size else 1.0


def _kernels_of(distances, bandwidth, out=None):
    """Return the kernels' values from squared distances; 0 for those under 1e-307."""
    with np.errstate(over="ignore"):
        out = np.multiply(distances, -0.5 / bandwidth**2, out=out)
    # NumPy's exp takes five times as long for what underflows.
    np.maximum(out, LEAST_LOG, out=out)
    np.exp(out, out=out)
    out -= np.exp(LEAST_LOG)
    return out


def _blocks(z, centres):
    """Yield the squared distances from a block of rows after the other to the centres."""
    for start in range(0, len(z), BLOCK_ROWS):
        yield cdist(z[start : start + BLOCK_ROWS], centres, "sqeuclidean")


def _sums(z, centres, bandwidths, with_products):
    """Sum over the rows: the kernels, (n_bandwidths, b), and their products, (n_bandwidths, b, b)."""
    size = len(centres)
    kernels_sum = np.zeros((len(bandwidths), size))
    products = np.zeros((len(bandwidths), size, size))
    for distances in _blocks(z, centres):
        kernels = np.empty_like(distances)
        for k, bandwidth in enumerate(bandwidths):
            _kernels_of(distances, bandwidth, kernels)
            kernels_sum[k] += kernels.sum(axis=0)
            if with_products:
                products[k] += kernels.T @ kernels
    return kernels_sum, products


def _kernel_moments(z, centres, bandwidth, factor):
    """Return the covariance of the kernels times a factor of the row's."""
    total, products = np.zeros(len(centres)), np.zeros((len(centres), len(centres)))
    for distances in _blocks(z, centres):
        kernels = _kernels_of(distances, bandwidth, distances)
        kernels *= factor(kernels)[:, None]
        total += kernels.sum(axis=0)
        products += kernels.T @ kernels
    return products / len(z) - np.outer(total, total) / len(z) ** 2


def _separates(z_p, z_q, centres, bandwidth, weights):
    """Tell whether the ratio at all of `z_p` is above that at all of `z_q`."""
    ratios = (_kernels_of(d, bandwidth, d) @ weights for d in _blocks(z_p, centres))
    least = min(float(np.min(ratio)) for ratio in ratios)
    return all(np.max(_kernels_of(d, bandwidth, d) @ weights) < least for d in _blocks(z_q, centres))


def _leave_one_out(z_p, z_q, centres, bandwidths, penalties, alpha, kernels_p, products_p, products_q):
    """Return the mean loss of a pair of rows, one of each sample, under the weights fitted without them.

    Without the pair, (n_p - 1) h loses the row of p's kernels u, and H, which is the sum of share_p u u' and share_q v
    v' over the rows, two of these products: its inverse follows by Woodbury's formula, for all pairs at once, and for
    all penalties from the eigenvectors of the sum (Kanamori et al. 2009, section 3.3, where share_p is 0).
    """
    n_p, n_q = len(z_p), len(z_q)
    n = min(n_p, n_q)
    share_p, share_q = alpha / (n_p - 1), (1 - alpha) / (n_q - 1)
    bases = []
    for k in range(len(bandwidths)):
        values, vectors = np.linalg.eigh(share_p * products_p[k] + share_q * products_q[k])
        # The others are rounding, and wide kernels have many of them. Where there are few they cost less than to do
        # without.
        kept = values > np.finfo(np.float64).eps * values[-1]
        kept |= np.mean(kept) > MOST
        bases.append((values[kept], np.ascontiguousarray(vectors[:, kept]), kernels_p[k] / (n_p - 1)))

    def work(start, stop):
        rows = np.arange(start, stop)
        distances_p = cdist(z_p[rows * n_p // n], centres, "sqeuclidean")
        distances_q = cdist(z_q[rows * n_q // n], centres, "sqeuclidean")
        total = np.empty((len(bandwidths), len(penalties)))
        for k, bandwidth in enumerate(bandwidths):
            u, v = _kernels_of(distances_p, bandwidth), _kernels_of(distances_q, bandwidth)
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                total[k] = _losses_left_out(u, v, *bases[k], penalties, alpha, share_p, share_q, n_p)
        return total

    return sum(map_blocks(work, n, BLOCK_ROWS)) / n


def _losses_left_out(u, v, values, vectors, mean, penalties, alpha, share_p, share_q, n_p):
    """Sum the losses of pairs with the kernels u and v, (n, b) both, for each penalty."""
    base = mean - u / (n_p - 1)
    u_turned, v_turned = u @ vectors, v @ vectors
    base_turned = mean @ vectors - u_turned / (n_p - 1)
    # The inverse of H + penalty is this between the eigenvectors; without all of them, 1 - share of it, over penalty.
    inverse = 1 / (values[:, None] + penalties)
    whole = len(values) == len(vectors)
    shrinkage = inverse if whole else values[:, None] * inverse

    def form(a, b, a_turned, b_turned):
        turned = (a_turned * b_turned) @ shrinkage
        return turned if whole else (np.vecdot(a, b)[:, None] - turned) / penalties

    vv, vb = share_q * form(v, v, v_turned, v_turned), share_q * form(v, base, v_turned, base_turned)
    if alpha:
        uu, ub = share_p * form(u, u, u_turned, u_turned), share_p * form(u, base, u_turned, base_turned)
        uv = form(u, v, u_turned, v_turned)
        determinant = (1 - uu) * (1 - vv) - share_p * share_q * uv**2
        of_u = (ub * (1 - vv) + share_p * uv * vb) / determinant
        of_v = (vb * (1 - uu) + share_q * uv * ub) / determinant
    else:
        of_u, of_v = None, vb / (1 - vv)

    def fitted_to(k, base, u, v, out):
        np.multiply(v, of_v[:, k, None], out=out)
        out += base
        if alpha:
            out += u * of_u[:, k, None]
        return out

    losses = np.empty(len(penalties))
    weights, turned, shrunk = np.empty_like(u), np.empty_like(v_turned), np.empty_like(u)
    for k, penalty in enumerate(penalties):
        fitted_to(k, base_turned, u_turned, v_turned, turned)
        np.matmul(turned, (vectors * shrinkage[:, k]).T, out=shrunk)
        if whole:
            weights, unit = shrunk, 1.0
        else:
            np.subtract(fitted_to(k, base, u, v, weights), shrunk, out=weights)
            unit = penalty
        np.maximum(weights, 0, out=weights)
        ratio_p, ratio_q = np.vecdot(weights, u) / unit, np.vecdot(weights, v) / unit
        losses[k] = (alpha * (ratio_p @ ratio_p) + (1 - alpha) * (ratio_q @ ratio_q)) / 2 - ratio_p.sum()
    return losses


def _densities(z, centres, bandwidth, means_q):
    """Return the kernels over their means under q, or None where the likelihood has no finite maximum."""
    densities = np.concatenate([_kernels_of(d, bandwidth, d) for d in _blocks(z, centres)])
    if not np.all(means_q > 0):
        return None
    with np.errstate(over="ignore"):
        densities /= means_q
    return densities if np.all(np.isfinite(densities)) and np.all(densities.any(axis=1)) else None


def _likeliest_mixture(densities, shares, tol, max_iter):
    """Return the shares that maximise the mean log of the mixture, the steps made, and a bound on what is left."""
    n, size = densities.shape
    shares = np.full(size, 1 / size) if shares is None else shares
    ratio = densities @ shares
    for n_iter in range(max_iter + 1):
        # What a share gains at the cost of all, in proportion: the largest bounds the distance to the maximum.
        gain = (1 / ratio) @ densities / n - 1
        gap = float(np.max(gain))
        if gap <= tol or n_iter == max_iter:
            break
        columns = np.flatnonzero((shares > 0) | (gain > 0))
        target = np.zeros(size)
        target[columns] = _quadratic_maximum(densities, columns, ratio)
        shares, ratio, moved = _ascend(densities, shares, target, ratio, gain)
        if not moved:
            break
    return shares, n_iter, max(gap, 0.0)


def _quadratic_maximum(densities, columns, ratio):
    """Return the shares of the columns that maximise the likelihood's second-order expansion.

    That is the least of the mean square of S w - 2 with w at least 0 and of sum 1, S the densities over their mixture:
    non-negative least squares with one more row, and scaling (Wang 2007, section 3).
    """
    triangle = np.zeros((1, len(columns) + 1))
    triangle[0] = 1
    for start in range(0, len(ratio), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = np.zeros((len(ratio[rows]), len(columns) + 1))
        block[:, :-1] = (densities[rows][:, columns] / ratio[rows, None] - 2) / math.sqrt(len(ratio))
        triangle = np.linalg.qr(np.concatenate([triangle, block]), mode="r")
    shares, _ = nnls(triangle[:, :-1], triangle[:, -1])
    return shares / shares.sum()


def _ascend(densities, shares, target, ratio, gain):
    """Go from the shares towards the target, by half as far until the likelihood rises."""
    direction = target - shares
    change, slope, before = densities @ direction, gain @ direction, np.mean(np.log(ratio))
    step = 1.0
    while step > 1e-10:
        new = ratio + step * change
        if np.min(new) > 0 and np.mean(np.log(new)) >= before + step * slope / 3:
            shares = target if step == 1 else shares + step * direction
            return shares, densities @ shares, True
        step /= 2
    return shares, ratio, False


def _rest(log_relative, alpha, least):
    """Return the share of (1 - alpha) q in alpha p + (1 - alpha) q, or the least that is taken for it."""
    if alpha == 0:
        return 1.0
    with np.errstate(over="ignore"):
        return np.maximum(1 - alpha * np.exp(log_relative), least)


def _from_relative(log_relative, alpha, least):
    """Return the log-ratio of p to q from that of p to alpha p + (1 - alpha) q."""
    if alpha == 0:
        return log_relative
    return np.minimum(log_relative, -math.log(alpha)) + math.log1p(-alpha) - np.log(_rest(log_relative, alpha, least))
