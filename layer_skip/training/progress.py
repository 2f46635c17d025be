"""How a run shows where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from layer_skip.training.loop import Run

# Called after every step with the run and that step's loss.
Report = Callable[[Run, float], None]


def _eta_seconds(run: Run) -> float:
    """Seconds to the end at the speed so far."""
    if run.config.max_seconds is not None:
        return max(0.0, run.config.max_seconds - run.seconds)
    return (run.config.max_steps or run.step) * run.seconds / max(1, run.step) - run.seconds


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Report]:
    """A rich progress bar with loss (running mean), tokens/s and time left; silent when not `enabled`."""
    if not enabled:
        yield lambda run, loss: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("step {task.fields[step]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    mean: list[float] = []
    with Progress(*columns, refresh_per_second=2) as bar:
        task = bar.add_task("train", total=1.0, step=0, text="")

        def report(run: Run, loss: float) -> None:
            mean[:] = [0.95 * mean[0] + 0.05 * loss] if mean else [loss]
            minutes, seconds = divmod(int(_eta_seconds(run)), 60)
            speed = run.tokens / max(run.seconds, 1e-9)
            text = f"loss {mean[0]:.3f}  {speed:,.0f} tokens/s  {minutes}:{seconds:02d} left"
            bar.update(task, completed=run.progress, step=run.step, text=text)

        yield report
