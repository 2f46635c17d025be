"""The tuner's results as a page, with its targets reached and missed; reads the JSON of tuner.py alone.

python benchmarks/tuner_page.py
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from targets import verdict

from selfspec.benchmarking.environment import named_versions
from selfspec.benchmarking.statistics import Spread, paired_ratios
from selfspec.files import write_whole
from selfspec.tuning.replay import Setting
from selfspec.tuning.validate import Comparison

TEXTS = ("code", "prose", "repetitive")
"""Workloads that differ in their text alone."""
WORKLOADS = (*TEXTS, "code, temperature 0.8")
Results = Mapping[str, Any]
"""Part -> what was found, as JSON."""


class Row(NamedTuple):
    """One row of the table: a number of every workload, and its target where it has one."""

    title: str
    key: str
    form: str
    target: float | None = None
    most: bool = False
    """The target is the most that it may be, not the least."""

    def drawn(self, results: Sequence[Results]) -> list[str]:
        """Its cells, empty where a number is not there, the verdict last."""
        numbers = [own.get(self.key) for own in results]
        cells = ["" if number is None else format(number, self.form) for number in numbers]
        if self.target is None:
            return [self.title, *cells, ""]
        form = ".0%" if self.form.endswith("%") else "g"
        measured = (math.nan if number is None else number for number in numbers)
        return [self.title, *cells, verdict(self.target, *measured, most=self.most, form=form)]


ROWS = (
    Row("chosen on 32 other prompts, fixed, over AR", "speedup_measured", ".2f"),
    Row("distinct 3-grams of the runs' text", "distinct_3grams", ".2f"),
    Row("median error of predicted tokens/s, best settings", "median_error", ".1%", 0.05, most=True),
    Row("the same over all settings of the sweep, each run once", "median_error_all", ".1%"),
    Row("median error of predicted speed over AR, best settings", "median_error_over_ar", ".1%"),
    Row("worst error, best settings", "worst_error", ".1%"),
    Row("the machine's own spread between repeats, best settings", "machine_spread", ".1%"),
    Row("choice for these prompts over the best of the sweep", "own_over_best", ".3f", 0.97),
    Row("choice for 32 others over the best of the sweep", "chosen_over_best", ".3f", 0.97),
    Row("tuning on 32 prompts, seconds", "tuning_seconds", ".1f", 30, most=True),
    Row("sweep over as much text, seconds, scaled from two prompts", "sweep_seconds", ".0f"),
    Row("sweep / tuning", "sweep_over_tuning", ".0f", 20),
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
        "median_error_over_ar": median_error_over_ar({c.setting: (c.predicted, c.measured) for c in finals}),
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


def median_error_over_ar(speeds: Mapping[Setting, tuple[float, float]]) -> float:
    """Of predicted against measured speeds, both over AR's: whatever makes all runs slower cancels."""
    plain = Setting(1, 0)
    predicted, measured = speeds[plain]
    return statistics.median(
        abs(own / predicted / (run / measured) - 1) for at, (own, run) in speeds.items() if at != plain
    )


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


def save(results: Results, folder: Path) -> None:
    """JSON and page, after every part, so that an interruption costs one of them only."""
    write_whole(folder / "tuner.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / "tuner.md", page(results))


def page(results: Results) -> str:
    """The page of the parts that are there."""
    lines = ["# The tuner, against real runs", ""]
    lines += [*_workloads({name: results[name] for name in WORKLOADS if name in results})]
    lines += [*_single(results), *_useless(results), *_controller(results), ""]
    lines += [_conditions(results), ""]
    return "\n".join(lines)


def reached(results: Results) -> bool:
    """Whether every part that is there is exact and within its targets."""
    exact = all(results[name]["counts_equal"] for name in WORKLOADS if name in results)
    return exact and "MISSED" not in page(results)


def _workloads(found: Results) -> list[str]:
    if not found:
        return []
    lines = _table(list(found), [each.drawn(list(found.values())) for each in ROWS])
    for own in found.values():
        lines.append(f"- {own['chosen']}" + (f", draft={own['draft']!r}" if "draft" in own else ""))
    equal = all(own["counts_equal"] for own in found.values())
    lines.append(f"- rounds and accepted counts equal to the replay's in every early exit run: {equal}")
    by_view = [equal for own in found.values() for equal in own.get("view_counts_equal", ())]
    if by_view:
        lines.append(f"- the same in runs by the low-bit view: {sum(by_view)} of {len(by_view)}")
    return lines


def _single(results: Results) -> list[str]:
    if "single setting" not in results:
        return []
    found = results["single setting"]
    over_ar, own, followed = (
        [found[key][name] for name in TEXTS]
        for key in ("speedup_of_single", "tuned_over_single", "profile_over_single")
    )
    noise = [_noise(found["seconds_per_token"][name], found["single"]) for name in TEXTS]
    judged = verdict(1, *map(sum, zip(own, noise, strict=True)))
    ahead = verdict(1, max(ratio - apart for ratio, apart in zip(own, noise, strict=True)))
    rows = [
        ["the single setting over AR", *(f"{ratio:.3f}" for ratio in over_ar), ""],
        [
            "own setting, fixed, over the single one, ± twice its standard error",
            *(f"{ratio:.3f} ± {apart:.3f}" for ratio, apart in zip(own, noise, strict=True)),
            f"{judged} (none below 1 by more than the noise); {ahead} (one above by more than that)",
        ],
        ["own profile, followed, over the single one", *(f"{ratio:.3f}" for ratio in followed), ""],
    ]
    return ["", f"## One setting for all: {found['single']}", "", *_table(TEXTS, rows)]


def _noise(seconds: Mapping[str, Sequence[float]], single: str) -> float:
    """Twice the standard error of the own setting's speed over the single one's, told by pairs of runs."""
    ratios = paired_ratios(seconds[single], seconds["tuned"])
    return 2 * statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0


def _useless(results: Results) -> list[str]:
    if "useless exits" not in results:
        return []
    ratios = results["useless exits"]["over_ar"]
    cells = (f"{name} {Spread(**own):.3f}" for name, own in ratios.items())
    judged = verdict(0.97, *(r["median"] for r in ratios.values()))
    return [f"- a model with useless exits, whole calls over AR: {', '.join(cells)}; {judged}"]


def _controller(results: Results) -> list[str]:
    if "controller" not in results:
        return []
    found = results["controller"]["workloads"]
    cells = (
        f"{name} {own['share']:.2%} ({own['seconds_per_round'] * 1e6:.0f} µs)" for name, own in found.items()
    )
    judged = verdict(0.01, *(own["share"] for own in found.values()), most=True, form=".0%")
    lines = [f"- the controller's decisions, share of a round: {', '.join(cells)}; {judged}"]
    shares = {name: own["share_of_all"] for name, own in found.items() if "share_of_all" in own}
    if shares:
        cells = (f"{name} {share:.2%}" for name, share in shares.items())
        lines.append(f"- with reading other exits, and what a call begins with: {', '.join(cells)}")
    return lines


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A column for each name, and one for verdicts."""
    lines = [f"| | {' | '.join(names)} | |", "|---|" + "---:|" * len(names) + "---|"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def _conditions(results: Results) -> str:
    """Of the last part that ran."""
    if not results:
        return ""
    found = list(results.values())[-1]["conditions"]
    versions = named_versions(found["versions"])
    return (
        f"{found['hardware']}, {found['threads']} threads, {found['dtype']}, {found['new_tokens']} new "
        f"tokens per run. {versions}. Tokens per second without prefill, except of useless exits and of one "
        "setting for all: those are whole calls."
    )


if __name__ == "__main__":
    here = Path(__file__).parent / "results"
    write_whole(here / "tuner.md", page(json.loads((here / "tuner.json").read_text())))
