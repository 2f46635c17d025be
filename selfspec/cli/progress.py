"""A progress bar on stderr that does not disturb what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[str, int], None]]:
    """Yields a function to call before each step with its name and the number of steps.

    The bar is redrawn in that call only: one that redraws itself from a thread of its own would run, and take
    time, inside the measured calls. Without a terminal nothing is drawn.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield lambda name, total: None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=None)
        begun = -1

        def advance(name: str, total: int) -> None:
            nonlocal begun
            begun += 1
            bar.update(task, description=name, total=total, completed=begun)
            bar.refresh()

        yield advance
