"""The public divergences: choose a way to the number, and take it."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from . import closed_form, montecarlo, quadrature
from ._arrays import as_count, as_rng
from ._backend import kernels
from .distributions import Mixture, midpoint
from .estimate import Estimate
from .families import check_distributions

if TYPE_CHECKING:
    from typing import Any

    from ._arrays import Seed

__all__ = ["entropy", "js_divergence", "kl_divergence"]

METHODS = ("auto", "closed-form", "quadrature", "trapezoid", "monte-carlo")


def _check(p, method, rtol, n, bounds, num, backend):
    """Refuse settings that are wrong, whether the method needs them or not."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if rtol is not None and not (isinstance(rtol, Real) and 0 < rtol < 1):
        raise ValueError(f"rtol must be between 0 and 1, got {rtol!r}")
    if n is not None:
        as_count(n, "n", 2 * np.count_nonzero(montecarlo.strata(p)))
    if num is not None:
        as_count(num, "num", 2)
    quadrature.checked_bounds(bounds)
    kernels(backend)


def _without_formula(method, p, bounds, num):
    """Resolve "auto" where there is no closed form."""
    if method != "auto":
        return method
    if p.event_shape:
        return "monte-carlo"
    return "quadrature" if bounds is None and num is None else "trapezoid"


def _reaches_beyond(p, q):
    """Whether p has mass where q has none, going by their supports."""
    if isinstance(q, Mixture):
        return False
    (low_p, high_p), (low_q, high_q) = p.support, q.support
    return bool(np.any(low_p < low_q) or np.any(high_p > high_q))


def _kl(p, q, method, rtol, n, rng, bounds, num, backend):
    if method == "closed-form":
        return closed_form.kl(p, q)
    if method == "quadrature":
        return quadrature.integrate(p, q, rtol, bounds, backend)
    if method == "trapezoid":
        return quadrature.trapezoid(p, q, num, bounds, backend)
    return montecarlo.monte_carlo(p, q, n, rtol, rng, backend)


def kl_divergence(
    p: Any,
    q: Any,
    *,
    method: str = "auto",
    rtol: float | None = None,
    n: int | None = None,
    rng: Seed = None,
    bounds: tuple[float, float] | None = None,
    num: int | None = None,
    backend: str | None = None,
) -> Estimate:
    r"""Kullback-Leibler divergence of p from q.

    Parameters
    ----------
    p, q : distribution
        Numerator and denominator, of the same dimensions: fastdiv's, or any that `as_distribution` takes.
    method : {"auto", "closed-form", "quadrature", "trapezoid", "monte-carlo"}
        "closed-form" is for two Gaussians. "quadrature", on the line, halves the trapezoid rule's step until it has
        converged, or bisects panels where the components' scales are far apart; what is not a mixture of Gaussians
        is carried from its support to the real line first. "trapezoid", on the line, is `trapezoid_kl`. "monte-carlo"
        averages log p/q over draws of p, stratified by component if it is a mixture. "auto" is the first
        that applies of: the closed form; on the line, the trapezoid rule if `bounds` or `num` is given, else
        quadrature; Monte Carlo. What only another method uses is ignored.
    rtol : float, optional
        Relative tolerance: of quadrature, 1e-10 by default; of Monte Carlo, where it sets the number of draws from a
        pilot run's variance unless `n` is given.
    n : int, optional
        Number of draws, at least two, and two per component of a mixture; 100 000 by default.
    rng : Generator, int or None
        As `numpy.random.default_rng` takes it.
    bounds : (float, float), optional
        Ends of the integral, for "quadrature" and "trapezoid". What they cut off is in the error.
    num : int, optional
        Points of the trapezoid rule, 1000 by default.
    backend : str, optional
        The kernel set, as in `use_backend`.

    Returns
    -------
    Estimate
        :math:`\int p \log(p/q)`, in nats, with its error. By Monte Carlo it may be negative. It is infinite, by the
        method "support", where p's support reaches beyond q's.

    Raises
    ------
    TypeError
        If `p` or `q` is not a distribution.
    ValueError
        If they have different dimensions, the method is unknown or not for them, or a number is out of range.

    Warns
    -----
    AccuracyWarning
        If quadrature did not converge, a density does not integrate to 1, or a few draws carry the variance.

    References
    ----------
    Kullback & Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> from fastdiv import Mixture, Normal, kl_divergence
    >>> kl_divergence(Normal(1, 1), Normal(0, 2))
    0.4431471805599453 ± 6.3e-15 (closed-form)
    >>> p = Mixture([0.4, 0.6], [-1, 4], [0.75, 0.5])
    >>> round(kl_divergence(p, Normal(0, 1)), 7)
    4.5455398
    >>> kl_divergence(p, Normal(0, 1), method="monte-carlo", n=10_000, rng=0).method
    'monte-carlo'
    >>> from scipy import stats
    >>> round(kl_divergence(stats.beta(3, 4), stats.beta(2, 2)), 9)
    0.11925176
    """
    p, q = check_distributions(p=p, q=q)
    _check(p, method, rtol, n, bounds, num, backend)
    if closed_form.applies(p, q):
        method = "closed-form" if method == "auto" else method
    elif method == "closed-form":
        raise ValueError("method 'closed-form' is for two Gaussians; others have no closed form here")
    else:
        method = _without_formula(method, p, bounds, num)
        on_bounds = method == "trapezoid" or (method == "quadrature" and bounds is not None)
        if not on_bounds and _reaches_beyond(p, q):
            return Estimate(math.inf, error=0.0, method="support")
    return _kl(p, q, method, rtol, n, rng, bounds, num, backend)


def js_divergence(
    p: Any,
    q: Any,
    *,
    method: str = "auto",
    rtol: float | None = None,
    n: int | None = None,
    rng: Seed = None,
    bounds: tuple[float, float] | None = None,
    num: int | None = None,
    backend: str | None = None,
) -> Estimate:
    r"""Jensen-Shannon divergence between p and q.

    Parameters
    ----------
    p, q, method, rtol, n, rng, bounds, num, backend
        As in `kl_divergence`. There is no closed form; `n` draws are taken of each of p and q.

    Returns
    -------
    Estimate
        :math:`\frac12 D(p\|m) + \frac12 D(q\|m)` with :math:`m = (p + q)/2`, in nats, between 0 and log 2 up to its
        error.

    Raises
    ------
    TypeError
        If `p` or `q` is not a distribution.
    ValueError
        If they have different dimensions, the method is unknown or not for them, or a number is out of range.

    References
    ----------
    Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37 (1991).

    Examples
    --------
    >>> from fastdiv import Normal, js_divergence
    >>> round(js_divergence(Normal(1, 1), Normal(0, 2)), 8)
    0.12817497
    """
    p, q = check_distributions(p=p, q=q)
    _check(p, method, rtol, n, bounds, num, backend)
    if method == "closed-form":
        raise ValueError("method 'closed-form': the Jensen-Shannon divergence has no closed form")
    method = _without_formula(method, p, bounds, num)
    rng = as_rng(rng) if method == "monte-carlo" else None
    m = midpoint(p, q)
    halves = [_kl(d, m, method, rtol, n, rng, bounds, num, backend) for d in (p, q)]
    standard_error, diagnostics = None, {"p": halves[0], "q": halves[1]}
    error = math.fsum(half.error for half in halves) / 2
    if method == "monte-carlo":
        standard_error = error = math.hypot(*(half.standard_error for half in halves)) / 2
        diagnostics["degrees_of_freedom"] = montecarlo.degrees_of_freedom(
            [half.standard_error**2 for half in halves], [half.diagnostics["degrees_of_freedom"] for half in halves]
        )
    return Estimate(
        math.fsum(halves) / 2,
        error=error,
        method=method,
        standard_error=standard_error,
        n_evaluations=sum(half.n_evaluations for half in halves),
        diagnostics=diagnostics,
    )


def entropy(
    p: Any,
    *,
    method: str = "auto",
    rtol: float | None = None,
    n: int | None = None,
    rng: Seed = None,
    bounds: tuple[float, float] | None = None,
    num: int | None = None,
    backend: str | None = None,
) -> Estimate:
    r"""Differential entropy of p.

    Parameters
    ----------
    p : distribution
        fastdiv's, or any that `as_distribution` takes.
    method, rtol, n, rng, bounds, num, backend
        As in `kl_divergence`.

    Returns
    -------
    Estimate
        :math:`-\int p \log p`, in nats.

    Raises
    ------
    TypeError
        If `p` is not a distribution.
    ValueError
        If the method is unknown or not for `p`, or a number is out of range.

    References
    ----------
    Cover & Thomas, "Elements of Information Theory" (2006), chapter 8.

    Examples
    --------
    >>> from fastdiv import Mixture, entropy
    >>> round(entropy(Mixture([0.5, 0.5], [-30, 30], [1, 1])), 6)
    2.112086
    """
    (p,) = check_distributions(p=p)
    _check(p, method, rtol, n, bounds, num, backend)
    if closed_form.applies(p, p) and method in ("auto", "closed-form"):
        return closed_form.entropy(p)
    if method == "closed-form":
        raise ValueError("method 'closed-form': the entropy has no closed form here but that of a Gaussian")
    method = _without_formula(method, p, bounds, num)
    estimate = _kl(p, None, method, rtol, n, rng, bounds, num, backend)
    return Estimate(-estimate, **vars(estimate))
