"""The tuner's results as a page, and whether its targets were reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfspec.tuning.replay import Setting
from selfspec.tuning.validate import Comparison

ROWS: tuple[tuple[str, str, str], ...] = (
    ("chosen on 32 other prompts, fixed, over AR", "speedup_measured", ".2f"),
    ("median error of predicted tokens/s, best settings (target 5%)", "median_error", ".1%"),
    ("the same over all settings of the sweep, each run once", "median_error_all", ".1%"),
    ("worst error, best settings", "worst_error", ".1%"),
    ("the machine's own spread between repeats, best settings", "machine_spread", ".1%"),
    ("choice for these prompts over the best of the sweep (target 0.97)", "own_over_best", ".3f"),
    ("choice for 32 others over the best of the sweep", "chosen_over_best", ".3f"),
    ("tuning on 32 prompts, seconds (target 30)", "tuning_seconds", ".1f"),
    ("sweep over as much text, seconds", "sweep_seconds", ".0f"),
    ("sweep / tuning (target 20)", "sweep_over_tuning", ".0f"),
)


def outcome(
    chosen: Setting, own: Setting, swept: Sequence[Comparison], finals: Sequence[Comparison]
) -> dict[str, Any]:
    """How predictions and choices compare with real runs of all settings, and of the fastest again."""
    speed = {c.setting: c.measured for c in finals}
    fixed = [c for c in finals if c.setting.rule is None]
    best = max(fixed, key=lambda c: c.measured)
    return {
        "settings": len(swept),
        "median_error_all": statistics.median(abs(c.error) for c in swept),
        "median_error": statistics.median(abs(c.error) for c in finals),
        "worst_error": max(abs(c.error) for c in finals),
        "machine_spread": statistics.median(c.spread for c in finals),
        "best": str(best.setting),
        "own_over_best": speed[own] / best.measured,
        "chosen_over_best": speed[chosen] / best.measured,
        "speedup_measured": speed[chosen] / speed[Setting(1, 0)],
        "counts_equal": all(c.counts_equal for c in (*swept, *finals) if not c.setting.arm.low_bit),
        # In bf16 a view's wide passes round a near-tie otherwise now and then.
        "view_counts_equal": [c.counts_equal for c in (*swept, *finals) if c.setting.arm.low_bit],
    }


def row(c: Comparison) -> list[Any]:
    """draft, exit layer, draft length, whether a rule stops it, predicted and measured tokens/s, spread."""
    return [
        c.setting.draft,
        c.setting.exit_layer,
        c.setting.draft_length,
        c.setting.rule is not None,
        round(c.predicted, 2),
        round(c.measured, 2),
        round(c.spread, 4),
    ]


def page(results: Mapping[str, Any], workloads: Iterable[str], texts: Sequence[str]) -> str:
    """The page of the parts that are there."""
    names = [name for name in workloads if name in results]
    lines = ["# The tuner, against real runs", ""]
    if names:
        lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for title, key, form in ROWS:
            cells = [format(results[name][key], form) for name in names]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines += ["", *(f"- {results[name]['chosen']}, draft={results[name]['draft']!r}" for name in names)]
        equal = all(results[name]["counts_equal"] for name in names)
        lines.append(f"- rounds and accepted counts equal to the replay's in every early exit run: {equal}")
        by_view = [equal for name in names for equal in results[name]["view_counts_equal"]]
        if by_view:
            lines.append(f"- the same in runs by the low-bit view: {sum(by_view)} of {len(by_view)}")
    lines += [*_single(results, texts), *_useless(results), *_controller(results), ""]
    lines += [_conditions(results), ""]
    return "\n".join(lines)


def _single(results: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    if "single setting" not in results:
        return []
    found = results["single setting"]
    lines = [f"\n## One setting for all: {found['single']}\n", "| | " + " | ".join(texts) + " |"]
    lines.append("|---|" + "---:|" * len(texts))
    for title, key in (
        ("the single setting over AR", "speedup_of_single"),
        (
            "own setting, fixed, over the single one (target: none below 1, one clearly above)",
            "tuned_over_single",
        ),
        ("own profile, followed, over the single one", "profile_over_single"),
    ):
        lines.append(f"| {title} | {' | '.join(format(found[key][name], '.3f') for name in texts)} |")
    return [*lines, ""]


def _useless(results: Mapping[str, Any]) -> list[str]:
    if "useless exits" not in results:
        return []
    ratios = results["useless exits"]["over_ar"]
    cells = (f"{name} {r['median']:.3f} ({r['p20']:.3f}-{r['p80']:.3f})" for name, r in ratios.items())
    return [f"- a model with useless exits, whole calls over AR (target 0.97): {', '.join(cells)}"]


def _controller(results: Mapping[str, Any]) -> list[str]:
    if "controller" not in results:
        return []
    cells = (
        f"{name} {own['share']:.2%} ({own['seconds_per_round'] * 1e6:.0f} µs)"
        for name, own in results["controller"]["workloads"].items()
    )
    return [f"- the controller's decisions, share of a round (target 1%): {', '.join(cells)}"]


def _conditions(results: Mapping[str, Any]) -> str:
    """Of the last part that ran."""
    if not results:
        return ""
    found = list(results.values())[-1]["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['hardware']}, {found['threads']} threads, {found['dtype']}, {found['new_tokens']} new "
        f"tokens per run. {versions}. Tokens per second without prefill, except of useless exits and of one "
        "setting for all: those are whole calls."
    )


def reached(results: Mapping[str, Any], workloads: Iterable[str]) -> bool:
    """Whether every part that is there is exact and within its targets."""
    judged = [results[name] for name in workloads if name in results]
    fine = [
        own["counts_equal"]
        and own["median_error"] <= 0.05
        and own["own_over_best"] >= 0.97
        and own["tuning_seconds"] <= 30
        and own["sweep_over_tuning"] >= 20
        for own in judged
    ]
    if "single setting" in results:
        gains = results["single setting"]["tuned_over_single"].values()
        fine.append(min(gains) >= 1 and max(gains) > 1.02)
    if "useless exits" in results:
        fine += [ratio["median"] >= 0.97 for ratio in results["useless exits"]["over_ar"].values()]
    if "controller" in results:
        fine += [own["share"] < 0.01 for own in results["controller"]["workloads"].values()]
    return all(fine)
