"""The progress bar."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(show: bool, total: int, argument: str) -> Iterator[Callable[[int, Callable[[], str]], None]]:
    """Yield ``show(steps, text)``, which advances the bar; `argument` is named where rich is missing."""
    if not show:
        yield lambda steps, text: None
        return
    try:
        from rich.progress import MofNCompleteColumn, Progress
    except ImportError:
        raise ImportError(f"{argument} needs rich: pip install 'fastdiv[cli]'") from None
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=total)
        yield lambda steps, text: progress.update(task, advance=steps, description=text())
