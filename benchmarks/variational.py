"""Bayesian mixtures: gradients, variational inference, random walks."""

from . import suite


class Time(suite.Time):
    family = "variational"


class FractionOfNumpy(suite.FractionOfNumpy):
    family = "variational"


class MaxUlpError(suite.MaxUlpError):
    family = "variational"


class PeakMemory(suite.PeakMemory):
    family = "variational"


class ThreadScaling(suite.ThreadScaling):
    family = "variational"
