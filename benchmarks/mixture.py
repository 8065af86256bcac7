"""Log-densities of mixtures, and the logsumexp under them."""

from . import suite


class Time(suite.Time):
    family = "mixture"


class FractionOfNumpy(suite.FractionOfNumpy):
    family = "mixture"


class MaxUlpError(suite.MaxUlpError):
    family = "mixture"


class ThreadScaling(suite.ThreadScaling):
    family = "mixture"


class PeakMemory(suite.PeakMemory):
    family = "mixture"
