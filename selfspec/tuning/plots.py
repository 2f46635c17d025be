"""What the tuner saw, as one picture: speed surface, agreement, acceptance, calibration, prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from selfspec.benchmarking.render import new_figure, png
from selfspec.round import Arm
from selfspec.tuning.calibration import held_out_reliability
from selfspec.tuning.tune import Tuned
from selfspec.tuning.validate import Comparison

_CHOSEN: dict[str, Any] = {"marker": "*", "markersize": 16, "color": "red"}


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
    """Predicted speed over AR by arm and draft length, AR among them (K = 0), with the chosen point."""
    found, chosen = tuned.found, tuned.profile.setting
    arms = _in_order([chosen.arm, *(arm for arm, _, _ in found.surface)])
    lengths = sorted({0, *(k for _, k, _ in found.surface)})
    # Without drafts the arm makes no difference.
    speed = {(arm, 0): 1.0 for arm in arms}
    speed |= {(arm, k): rate / found.plain.tokens_per_second for arm, k, rate in found.surface}
    grid = [[speed.get((arm, k), float("nan")) for k in lengths] for arm in arms]
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis")
    axes.figure.colorbar(image, ax=axes, label="predicted speed, times AR")
    axes.set_xticks(range(len(lengths)), [str(k) for k in lengths])
    axes.set_yticks(range(len(arms)), [_short(arm) for arm in arms])
    if chosen.draft_length in lengths:
        axes.plot(lengths.index(chosen.draft_length), arms.index(chosen.arm), **_CHOSEN)
    title = "speed surface" if found.surface else "speed surface: no drafts within the limits"
    axes.set(xlabel="draft length K (0: AR)", ylabel="exit layer E", title=title)


def agreement(axes: Any, tuned: Tuned) -> None:
    """How often each arm chooses what the target chooses; no arm is marked where AR was chosen."""
    found, chosen = tuned.recording.agreement, tuned.profile.setting
    for low_bit, label in ((False, "early exit"), (True, "low bit")):
        own = {arm.exit_layer: share for arm, share in found.items() if arm.low_bit == low_bit}
        if own:
            axes.plot(list(own), list(own.values()), "o-", label=label)
    if chosen.draft_length:
        axes.plot(chosen.exit_layer, found[chosen.arm], **_CHOSEN)
    axes.legend()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="exit layer E", ylabel="agreement", ylim=(0, 1.02), title="agreement by exit")
    axes.grid(alpha=0.3)


def by_position(axes: Any, tuned: Tuned) -> None:
    """How often a draft token stands, given that those before it do."""
    shares = tuned.calibration.acceptance
    axes.plot(range(1, len(shares) + 1), shares, "o-")
    axes.set(xlabel="draft position", ylabel="acceptance", ylim=(0, 1.02))
    axes.set_title(f"acceptance by position, {tuned.profile.setting.arm}", fontsize=9)
    axes.grid(alpha=0.3)


def reliability(axes: Any, tuned: Tuned) -> None:
    """Share of drafts that stood whole, by the running product of their confidences: stated and calibrated.

    On prompts that were held out, as `calibration_errors`, which the legend gives.
    """
    arm = tuned.profile.setting.arm
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    curves = held_out_reliability(tuned.recording, arm)
    for name, rows, error in zip(("stated", "calibrated"), curves, tuned.calibration_errors, strict=True):
        means, shares = [mean for mean, _, _ in rows], [share for _, share, _ in rows]
        axes.plot(means, shares, "o-", label=f"{name}, ECE {error:.3f}")
    axes.legend()
    axes.set(xlabel="running product of confidences", ylabel="share of drafts that stood whole")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"reliability on held-out prompts, {arm}", fontsize=9)
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
        label = f"{_short(c.setting.arm)}, {c.setting.draft_length}"
        axes.annotate(label, (c.measured, c.predicted), fontsize=7)
    axes.grid(alpha=0.3)


def _in_order(arms: Iterable[Arm]) -> list[Arm]:
    """Each arm once: early exits, then those of a view."""
    return sorted(set(arms), key=lambda arm: (arm.low_bit, arm.exit_layer))


def _short(arm: Arm) -> str:
    return f"{arm.exit_layer} low bit" if arm.low_bit else str(arm.exit_layer)


def _summary(tuned: Tuned) -> str:
    prediction, conditions = tuned.profile.prediction, tuned.profile.conditions
    low, high = prediction.speedup_interval
    lines = [
        f"workload           {tuned.profile.workload}",
        f"chosen             {tuned.profile.setting}",
        f"draft              {tuned.profile.setting.draft}",
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
