"""A progress bar on stderr that does not disturb what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[str, int], None]]:
    """Yields a function to call before each step with its stage's name and number of steps (0: not known).

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
        steps, begun = -1, 0

        def advance(name: str, total: int) -> None:
            nonlocal steps, begun
            # Another number of steps, or more than there are, is another stage.
            going_on = total == steps and (not total or begun + 1 < total)
            steps, begun = total, begun + 1 if going_on else 0
            # A stage that does not know its length shows what it has done, without an end.
            bar.update(task, description=name, total=total or None, completed=begun)
            bar.refresh()

        yield advance
