"""Divergences, density ratios and the mixtures under them, on compiled kernels, each number with its error."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._backend import get_backend, get_num_threads, set_backend, set_num_threads, show_config, use_backend
from ._logsumexp import logsumexp
from .closed_form import kl_normal, log_ratio_normal
from .distributions import Mixture, MultivariateNormal, Normal
from .divergences import entropy, js_divergence, kl_divergence
from .estimate import AccuracyWarning, Estimate
from .families import as_distribution, log_ratio, optimal_classifier
from .montecarlo import running_mean
from .quadrature import trapezoid_kl, trapezoid_kl_normal

if TYPE_CHECKING:
    from . import transforms
    from .calibration import RatioFromClassifier
    from .evidence import elbo, log_evidence
    from .kernel_ratio import KLIEPRatio, LeastSquaresRatio
    from .logistic import LogisticRatioClassifier
    from .mcmc import MetropolisResult, MetropolisState, metropolis
    from .mixture_model import MixtureModel
    from .neighbors import knn_kl_divergence
    from .networks import MLPRatioClassifier
    from .samples import kl_divergence_from_samples
    from .svi import ADVIResult, ADVIState, advi
    from .telescoping import TelescopingRatioClassifier
    from .transforms import Transformed, unconstrain
    from .variational import KLFit, fit_kl

__all__ = [
    "ADVIResult",
    "ADVIState",
    "AccuracyWarning",
    "Estimate",
    "KLFit",
    "KLIEPRatio",
    "LeastSquaresRatio",
    "LogisticRatioClassifier",
    "MLPRatioClassifier",
    "MetropolisResult",
    "MetropolisState",
    "Mixture",
    "MixtureModel",
    "MultivariateNormal",
    "Normal",
    "RatioFromClassifier",
    "TelescopingRatioClassifier",
    "Transformed",
    "advi",
    "as_distribution",
    "elbo",
    "entropy",
    "fit_kl",
    "get_backend",
    "get_num_threads",
    "js_divergence",
    "kl_divergence",
    "kl_divergence_from_samples",
    "kl_normal",
    "knn_kl_divergence",
    "log_evidence",
    "log_ratio",
    "log_ratio_normal",
    "logsumexp",
    "metropolis",
    "optimal_classifier",
    "running_mean",
    "set_backend",
    "set_num_threads",
    "show_config",
    "transforms",
    "trapezoid_kl",
    "trapezoid_kl_normal",
    "unconstrain",
    "use_backend",
]


# What needs scikit-learn or SciPy to be defined, or is not needed by everyone: importing fastdiv is to be quick.
_AT_FIRST_USE = {
    "ADVIResult": ".svi",
    "ADVIState": ".svi",
    "KLFit": ".variational",
    "KLIEPRatio": ".kernel_ratio",
    "LeastSquaresRatio": ".kernel_ratio",
    "LogisticRatioClassifier": ".logistic",
    "MLPRatioClassifier": ".networks",
    "MetropolisResult": ".mcmc",
    "MetropolisState": ".mcmc",
    "MixtureModel": ".mixture_model",
    "RatioFromClassifier": ".calibration",
    "TelescopingRatioClassifier": ".telescoping",
    "Transformed": ".transforms",
    "advi": ".svi",
    "elbo": ".evidence",
    "fit_kl": ".variational",
    "kl_divergence_from_samples": ".samples",
    "knn_kl_divergence": ".neighbors",
    "log_evidence": ".evidence",
    "metropolis": ".mcmc",
    "unconstrain": ".transforms",
}


def __getattr__(name: str) -> Any:
    if name == "transforms":
        return import_module(".transforms", __name__)
    if name in _AT_FIRST_USE:
        return getattr(import_module(_AT_FIRST_USE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
