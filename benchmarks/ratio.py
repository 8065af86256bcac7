"""Density ratios by classification."""

from . import suite


class Time(suite.Time):
    family = "ratio"


class FractionOfNumpy(suite.FractionOfNumpy):
    family = "ratio"


class MaxUlpError(suite.MaxUlpError):
    family = "ratio"


class PeakMemory(suite.PeakMemory):
    family = "ratio"


class ThreadScaling(suite.ThreadScaling):
    family = "ratio"
