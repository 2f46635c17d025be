"""Plots of a run: loss over tokens, and every exit's agreement with the last layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layer_skip.training.evaluate import ExitScore


def _figure() -> Any:
    """An empty figure that needs no display; the object interface leaves the user's pyplot state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    temporary = path.with_name(path.name + ".partial")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Running mean of the last `window` values (fewer at the start)."""
    result = []
    for place in range(len(values)):
        recent = values[max(0, place + 1 - window) : place + 1]
        result.append(sum(recent) / len(recent))
    return result


def plot_loss(history: Sequence[dict[str, float]], held_out_loss: float, path: Path) -> None:
    """Training loss of the last layer in nats per token, with the held-out loss of the finished model."""
    figure = _figure()
    axes = figure.subplots()
    steps = [row["step"] for row in history]
    losses = [row["loss"] for row in history]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, label="last layer, training step")
    axes.plot(steps, smoothed(losses, 8), color="tab:blue", label="the same, running mean")
    axes.axhline(held_out_loss, color="tab:red", linestyle="--", label=f"held-out, end: {held_out_loss:.3f}")
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.set_ylim(top=min(max(losses, default=1.0), 9.0))
    axes.legend()
    axes.grid(alpha=0.3)
    _save(figure, path)


def plot_exits(scores: Sequence[ExitScore], path: Path) -> None:
    """Agreement with the last layer (left axis) and held-out loss (right axis) by exit layer."""
    figure = _figure()
    axes = figure.subplots()
    exits = [score.exit_layer for score in scores]
    axes.plot(exits, [s.agreement for s in scores], "o-", color="tab:blue", label="same first choice")
    axes.plot(
        exits,
        [s.overlap for s in scores],
        "s-",
        color="tab:green",
        label="1 - total variation at 0.8",
    )
    axes.set(xlabel="exit layer E", ylabel="agreement with the last layer", ylim=(0.0, 1.02))
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(exits, [s.loss for s in scores], "x--", color="tab:red", alpha=0.7, label="held-out loss")
    right.set_ylabel("held-out loss (nats per token)", color="tab:red")
    figure.legend(loc="outside lower center", ncols=3)
    _save(figure, path)
