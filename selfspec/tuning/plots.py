"""What the tuner saw, as one picture: speed surface, agreement, acceptance, calibration, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfspec.benchmarking.render import new_figure, png
from selfspec.tuning.tune import Tuned
from selfspec.tuning.validate import Comparison


def plot(tuned: Tuned, comparisons: Sequence[Comparison] = ()) -> bytes:
    """All panels, PNG."""
    figure = new_figure(13.0, 7.5)
    panels = figure.subplots(2, 3).flatten()
    surface(panels[0], tuned)
    agreement(panels[1], tuned)
    by_position(panels[2], tuned)
    reliability(panels[3], tuned)
    against_measured(panels[4], comparisons)
    panels[5].axis("off")
    panels[5].text(0, 0.95, _summary(tuned), va="top", fontsize=9, family="monospace")
    figure.suptitle(str(tuned.profile), fontsize=10)
    return png(figure)


def surface(axes: Any, tuned: Tuned) -> None:
    """Predicted speed over AR by exit layer and draft length, with the chosen point."""
    plain = tuned.found.plain.tokens_per_second
    exits = sorted({e for e, _, _ in tuned.found.surface})
    lengths = sorted({k for _, k, _ in tuned.found.surface})
    speed = {(e, k): rate / plain for e, k, rate in tuned.found.surface}
    grid = [[speed.get((e, k), float("nan")) for k in lengths] for e in exits]
    if not exits:
        axes.text(0.5, 0.5, "no setting within the limits", ha="center")
        return
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label="predicted speed, times AR")
    axes.set_xticks(range(len(lengths)), [str(k) for k in lengths])
    axes.set_yticks(range(len(exits)), [str(e) for e in exits])
    chosen = tuned.profile.setting
    if chosen.draft_length in lengths:
        place = lengths.index(chosen.draft_length), exits.index(chosen.exit_layer)
        axes.plot(*place, marker="*", markersize=16, color="red")
    axes.set(xlabel="draft length K", ylabel="exit layer E", title="speed surface")


def agreement(axes: Any, tuned: Tuned) -> None:
    """How often each exit chooses what the target chooses."""
    axes.plot(tuned.recording.exits, tuned.recording.agreement, "o-")
    axes.axvline(tuned.profile.setting.exit_layer, color="red", linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="exit layer E", ylabel="agreement", ylim=(0, 1.02), title="agreement by exit")
    axes.grid(alpha=0.3)


def by_position(axes: Any, tuned: Tuned) -> None:
    """How often a draft token stands, given that those before it do."""
    shares = tuned.calibration.acceptance
    axes.plot(range(1, len(shares) + 1), shares, "o-")
    axes.set(xlabel="draft position", ylabel="acceptance", ylim=(0, 1.02))
    axes.set_title(f"acceptance by draft position, E = {tuned.profile.setting.exit_layer}")
    axes.grid(alpha=0.3)


def reliability(axes: Any, tuned: Tuned) -> None:
    """Stated confidence against the share that stood."""
    calibration = tuned.calibration
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.plot([m for m, _, _ in calibration.reliability], [s for _, s, _ in calibration.reliability], "o-")
    axes.set(xlabel="confidence", ylabel="share that stood", xlim=(0, 1), ylim=(0, 1.02))
    raw, calibrated = tuned.calibration_errors
    axes.set_title(f"running product, held out: ECE {raw:.3f}, calibrated {calibrated:.3f}")
    axes.grid(alpha=0.3)


def against_measured(axes: Any, comparisons: Sequence[Comparison]) -> None:
    """Predicted and measured tokens per second."""
    axes.set(xlabel="measured tokens/s", ylabel="predicted tokens/s", title="predicted against measured")
    if not comparisons:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    measured = [c.measured for c in comparisons]
    ends = [0.9 * min(measured), 1.1 * max(measured)]
    axes.plot(ends, ends, color="grey", linewidth=0.8)
    axes.plot(measured, [c.predicted for c in comparisons], "o")
    for c in comparisons:
        axes.annotate(
            f"{c.setting.exit_layer}, {c.setting.draft_length}", (c.measured, c.predicted), fontsize=7
        )
    axes.grid(alpha=0.3)


def _summary(tuned: Tuned) -> str:
    prediction, conditions = tuned.profile.prediction, tuned.profile.conditions
    low, high = prediction.speedup_interval
    lines = [
        f"workload           {tuned.profile.workload}",
        f"chosen             {tuned.profile.setting}",
        f"predicted          {prediction.tokens_per_second:.1f} tokens/s",
        f"over AR            {prediction.speedup:.2f}x ({low:.2f}-{high:.2f})",
        f"acceptance length  {prediction.acceptance_length:.2f}",
        *_branching(tuned),
        f"settings tried     {tuned.found.tried}",
        f"prompts            {conditions['prompts']} x {conditions['max_new_tokens']} tokens",
        f"cost residual      {tuned.profile.costs.residual:.1%}",
        *(f"{name:<18} {seconds:.1f} s" for name, seconds in tuned.seconds.items()),
    ]
    return "\n".join(lines)


def _branching(tuned: Tuned) -> list[str]:
    setting, prediction = tuned.found.branching, tuned.found.best_branching
    if setting is None or prediction is None:
        return []
    return [f"best with siblings {setting}", f"over AR            {prediction.speedup:.2f}x"]
