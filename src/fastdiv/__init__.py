"""Divergences, density ratios and the mixtures under them, on compiled kernels, each number with its error."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._backend import get_backend, get_num_threads, set_backend, set_num_threads, show_config, use_backend
from ._logsumexp import logsumexp
from .closed_form import kl_normal, log_ratio_normal
from .distributions import Mixture, MultivariateNormal, Normal, log_ratio, optimal_classifier
from .divergences import entropy, js_divergence, kl_divergence
from .estimate import AccuracyWarning, Estimate
from .montecarlo import running_mean
from .quadrature import trapezoid_kl, trapezoid_kl_normal

if TYPE_CHECKING:
    from .calibration import RatioFromClassifier
    from .kernel_ratio import KLIEPRatio, LeastSquaresRatio
    from .logistic import LogisticRatioClassifier
    from .neighbors import knn_kl_divergence
    from .networks import MLPRatioClassifier
    from .samples import kl_divergence_from_samples
    from .telescoping import TelescopingRatioClassifier

__all__ = [
    "AccuracyWarning",
    "Estimate",
    "KLIEPRatio",
    "LeastSquaresRatio",
    "LogisticRatioClassifier",
    "MLPRatioClassifier",
    "Mixture",
    "MultivariateNormal",
    "Normal",
    "RatioFromClassifier",
    "TelescopingRatioClassifier",
    "entropy",
    "get_backend",
    "get_num_threads",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_from_samples",
    "kl_normal",
    "knn_kl_divergence",
    "log_ratio",
    "log_ratio_normal",
    "logsumexp",
    "optimal_classifier",
    "running_mean",
    "set_backend",
    "set_num_threads",
    "show_config",
    "trapezoid_kl",
    "trapezoid_kl_normal",
    "use_backend",
]


# What needs scikit-learn to be defined; importing fastdiv must not.
_WITH_SCIKIT_LEARN = {
    "KLIEPRatio": ".kernel_ratio",
    "LeastSquaresRatio": ".kernel_ratio",
    "LogisticRatioClassifier": ".logistic",
    "MLPRatioClassifier": ".networks",
    "RatioFromClassifier": ".calibration",
    "TelescopingRatioClassifier": ".telescoping",
    "kl_divergence_from_samples": ".samples",
    "knn_kl_divergence": ".neighbors",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_SCIKIT_LEARN:
        return getattr(import_module(_WITH_SCIKIT_LEARN[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
