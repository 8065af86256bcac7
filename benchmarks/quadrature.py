"""Divergences by quadrature."""

from . import suite


class Time(suite.Time):
    family = "quadrature"


class FractionOfNumpy(suite.FractionOfNumpy):
    family = "quadrature"


class MaxUlpError(suite.MaxUlpError):
    family = "quadrature"


class ThreadScaling(suite.ThreadScaling):
    family = "quadrature"


class PeakMemory(suite.PeakMemory):
    family = "quadrature"
