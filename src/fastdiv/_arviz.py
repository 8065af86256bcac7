"""Draws in the form that ArviZ takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["inference_data"]


def inference_data(**groups: dict[str, NDArray]) -> Any:
    """Return groups of draws, (chains, draws, ...) each, as InferenceData, or, from ArviZ 1 on, as a DataTree."""
    try:
        import arviz
    except ImportError:
        raise ImportError("to_arviz and summary need ArviZ: pip install 'fastdiv[bayes]'") from None
    if int(arviz.__version__.partition(".")[0]) < 1:
        return arviz.from_dict(**groups)
    return arviz.from_dict(groups)
