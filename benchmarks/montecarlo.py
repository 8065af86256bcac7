"""Divergences by Monte Carlo, and the moments under them."""

from . import suite


class Time(suite.Time):
    family = "montecarlo"


class FractionOfNumpy(suite.FractionOfNumpy):
    family = "montecarlo"


class MaxUlpError(suite.MaxUlpError):
    family = "montecarlo"


class ThreadScaling(suite.ThreadScaling):
    family = "montecarlo"


class PeakMemory(suite.PeakMemory):
    family = "montecarlo"
