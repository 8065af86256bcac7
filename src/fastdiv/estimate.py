"""A number that carries its error, the way it was found and what it cost."""

from __future__ import annotations

import math
import sys
import warnings
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["AccuracyWarning", "Estimate"]


class AccuracyWarning(RuntimeWarning):
    """A number came out that is not to be trusted as far as its error says."""


def warn_of_accuracy(message: str) -> None:
    """Warn at the line that called fastdiv, however deep in it the warning comes up."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fastdiv":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, AccuracyWarning, stacklevel=level)


class Estimate(float):
    """A float with an error bar.

    It is used like any float; arithmetic on it gives plain floats.

    Parameters
    ----------
    value : float
        The number, in nats where it is a divergence.
    error : float
        Absolute: a bound on rounding for a closed form, an upper estimate for quadrature, the standard error for
        sampling.
    method : str
        How the value was found.
    standard_error : float, optional
        The standard error, None where nothing was sampled.
    n_evaluations : int
        How many points or draws were evaluated.
    diagnostics : dict, optional
        What else is known of the run.

    Examples
    --------
    >>> from fastdiv import Estimate
    >>> Estimate(0.43778, error=0.0084, method="monte-carlo", standard_error=0.0084, n_evaluations=5000)
    0.4378 ± 0.0084 (monte-carlo, n=5000)
    """

    error: float
    method: str
    standard_error: float | None
    n_evaluations: int
    diagnostics: dict[str, Any]

    def __new__(  # noqa: D102
        cls,
        value: float,
        *,
        error: float = math.nan,
        method: str = "",
        standard_error: float | None = None,
        n_evaluations: int = 0,
        diagnostics: dict[str, Any] | None = None,
    ) -> Estimate:
        self = super().__new__(cls, value)
        self.error = float(error)
        self.method = method
        self.standard_error = None if standard_error is None else float(standard_error)
        self.n_evaluations = int(n_evaluations)
        self.diagnostics = dict(diagnostics or {})
        return self

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds the true value with probability `level`.

        Where something was sampled, it is value ± quantile × standard error, of the normal distribution, or of
        Student's where ``diagnostics["degrees_of_freedom"]`` are few. A deterministic value's interval is
        value ± error at every level.

        Parameters
        ----------
        level : float
            Between 0 and 1, both excluded.

        Returns
        -------
        low, high : float
            The ends of the interval.

        Raises
        ------
        ValueError
            If `level` is not between 0 and 1.

        Examples
        --------
        >>> from fastdiv import Normal, kl_divergence
        >>> estimate = kl_divergence(Normal(1, 1), Normal(0, 2), method="monte-carlo", n=5000, rng=0)
        >>> low, high = estimate.confidence_interval(0.99)
        >>> low < 0.4431 < high
        True
        """
        if not (isinstance(level, Real) and 0 < level < 1):
            raise ValueError(f"level must be between 0 and 1, got {level!r}")
        if self.standard_error is None:
            margin = self.error
        else:
            from scipy.special import stdtrit

            freedom = self.diagnostics.get("degrees_of_freedom", math.inf)
            margin = float(stdtrit(freedom, (1 + level) / 2)) * self.standard_error
        if margin == math.inf:
            return -math.inf, math.inf
        return float(self) - margin, float(self) + margin

    def __repr__(self) -> str:
        value, error = f"{float(self)!r}", f"{self.error:.2g}"
        if abs(self) < 1e16 and 1e-19 < self.error < 1e16:
            digits = max(1 - math.floor(math.log10(self.error)), 0)  # two digits of the error
            value = f"{float(self):.{digits}f}"
            if digits <= 6:
                error = f"{self.error:.{digits}f}"
        count = f", n={self.n_evaluations}" if self.n_evaluations else ""
        return f"{value} ± {error} ({self.method}{count})"
