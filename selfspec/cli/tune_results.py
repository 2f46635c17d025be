"""Results of `selfspec tune`: as JSON, and as one table of all workloads."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.table import Table

    from selfspec.tuning.replay import Setting
    from selfspec.tuning.tune import Tuned
    from selfspec.tuning.validate import Comparison

    Results: TypeAlias = list[tuple[Tuned, list[Comparison]]]

_TEXTS = ("workload", "draft", "setting")
_TITLES = (*_TEXTS, "tokens/s", "over AR", "acceptance length", "measured", "seconds")
_CAPTION = "tokens/s without prefill; interval: bootstrap over prompts; measured: beside its prediction"


def as_dict(results: Results) -> dict[str, Any]:
    """Profiles and all that led to them, by workload."""
    return {
        tuned.profile.workload: {
            "profile": tuned.profile.as_dict(),
            "seconds": dict(tuned.seconds),
            "surface": [(a.kind, a.exit_layer, k, rate) for a, k, rate in tuned.found.surface],
            "siblings": _branching(tuned),
            "agreement": {
                f"{arm.kind} {arm.exit_layer}": share for arm, share in tuned.recording.agreement.items()
            },
            "calibration": asdict(tuned.calibration),
            "calibration_errors": tuned.calibration_errors,
            "measured": [asdict(c) | {"error": c.error} for c in comparisons],
        }
        for tuned, comparisons in results
    }


def _branching(tuned: Tuned) -> dict[str, Any] | None:
    """The best setting with siblings, and its prediction."""
    found = tuned.found
    if found.branching is None or found.best_branching is None:
        return None
    return {"setting": asdict(found.branching), "prediction": found.best_branching.as_dict()}


def better_branching(tuned: Tuned) -> str:
    """What to say where a chain with siblings beside it is predicted to be faster than what was chosen."""
    found = tuned.found
    if found.branching is None or found.best_branching is None or found.setting.siblings > 1:
        return ""
    if found.best_branching.tokens_per_second <= found.best.tokens_per_second:
        return ""
    return (
        f"{tuned.profile.workload}: {found.branching} promise {found.best_branching.speedup:.2f}x AR; in "
        f"{tuned.profile.identity.dtype} they may flip a near-tie, so only --siblings lets calls draft them"
    )


def _drafted(setting: Setting) -> str:
    """Where the candidates of a setting come from."""
    return setting.draft if setting.draft_length else "nothing"


def _cells(tuned: Tuned, comparisons: list[Comparison]) -> list[str]:
    """One workload's row."""
    prediction = tuned.profile.prediction
    low, high = prediction.speedup_interval
    first = comparisons[0] if comparisons else None
    return [
        tuned.profile.workload,
        _drafted(tuned.profile.setting),
        str(tuned.profile.setting),
        f"{prediction.tokens_per_second:.1f}",
        f"{prediction.speedup:.2f} ({low:.2f}-{high:.2f})",
        f"{prediction.acceptance_length:.2f}",
        "" if first is None else f"{first.measured:.1f} / {first.predicted:.1f}",
        f"{sum(tuned.seconds.values()):.1f}",
    ]


def terminal_table(results: Results) -> Table:
    """A line per workload."""
    from rich.table import Table

    table = Table(title="chosen settings", title_justify="left", caption_justify="left", caption=_CAPTION)
    for title in _TITLES:
        table.add_column(title, justify="left" if title in _TEXTS else "right")
    for entry in results:
        table.add_row(*_cells(*entry))
    return table


def markdown_table(results: Results) -> str:
    """The same table in Markdown."""
    under = ["---" if title in _TEXTS else "---:" for title in _TITLES]
    # A bar in the name of a workload is no end of its cell.
    named = [[cell.replace("|", "\\|") for cell in _cells(*entry)] for entry in results]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in (_TITLES, under, *named)), "", _CAPTION, ""])
