"""What benchmarks/strategies.py found, as one table, one plot and a page; reads its JSON alone.

python benchmarks/strategies_page.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from targets import verdict

from selfspec.benchmarking.contenders import AR
from selfspec.benchmarking.render import new_figure, png
from selfspec.benchmarking.report import Report
from selfspec.files import write_whole

AR_ONE_ROW = "AR, one row"
"""AR at the shapes that come, without padding: the faster of the two is what everybody is compared with."""
BEGIN, END = "<!-- strategies: python benchmarks/strategies_page.py -->", "<!-- end of the strategies -->"
_LEGEND = """Under each table what drafting takes. c: a draft step over a plain step, at the exit layer of the
last call; 0 for what is copied, and for a mixture that of its own layers. m: tokens verified in a round on
average. Empty: not measured in this run."""
Results = dict[str, dict[str, Any]]
"""Case -> its report as JSON."""
AUTO = "auto"
TREE = "low bit, tree"
VIEWED = ("low bit", "low bit, siblings", TREE, "hybrid")
"""Who drafts with the 4-bit view, wherever it is."""
DRAFTING = (
    "draft cost c",
    "verify width m",
    "verify(m) / verify(1)",
    "acceptance rate",
    "acceptance length",
    "MiB added",
)
TARGETS = {
    "reference, inflated to 1b, greedy": 2.5,
    "reference, inflated to 1b, temperature 0.8": 2.2,
    "plain twin, inflated to 1b, greedy": 2.5,
    "plain twin, inflated to 1b, temperature 0.8": 2.1,
}
"""What the default should give, in times the faster AR."""


def fastest_ar(report: Report) -> str:
    """The faster of padded and one-row AR, by median speed."""
    lines = [line for line in report.lines if line.name in (AR, AR_ONE_ROW) and line.tokens_per_second]
    return max(lines, key=lambda line: line.tokens_per_second.median if line.tokens_per_second else 0.0).name


def table(results: Results) -> str:
    """One table over all cases: speed over the faster AR, with acceptance and distinct 3-grams beside it."""
    lines = [f"| times the faster AR (acceptance length) | {' | '.join(results)} |"]
    lines.append(f"|---|{'---:|' * len(results)}")
    for name in _names(results):
        lines.append(f"| {name} | {' | '.join(_cell(report, name) for report in results.values())} |")
    distinct = (f"{_line(report, AR)['distinct_3grams']:.2f}" for report in results.values())
    lines.append(f"| distinct 3-grams of AR's text | {' | '.join(distinct)} |")
    return "\n".join(lines)


def drafting(report: dict[str, Any]) -> str:
    """What drafting and verifying cost, how much of it stands, and the memory added; empty: not measured."""
    lines = [f"| | {' | '.join(DRAFTING)} |", f"|---|{'---:|' * len(DRAFTING)}"]
    for line in report["lines"]:
        if line["acceptance_rate"] is not None:
            cells = (
                "" if value is None else f"{value:.{digits}f}" for value, digits in _drafting(report, line)
            )
            lines.append(f"| {line['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _drafting(report: dict[str, Any], line: dict[str, Any]) -> list[tuple[float | None, int]]:
    """A row of that table: numbers, and how many digits of them to show."""
    costs, rate, length = report["costs"], line["acceptance_rate"], line["acceptance_length"]
    width = 1 + (length - 1) / rate if rate else None
    wider = width and _between({int(m): cost for m, cost in costs["verify"].items()}, width)
    memory = _bytes_added(costs, line["name"])
    return [
        (_draft_cost(report, line), 2),
        (width, 1),
        (wider, 2),
        (rate, 2),
        (length, 2),
        (None if memory is None else memory / 2**20, 0),
    ]


def _draft_cost(report: dict[str, Any], line: dict[str, Any]) -> float | None:
    """A draft step by the model's own layers over a plain step, at the exit layer of the last call."""
    costs, name = report["costs"], line["name"]
    if name == "lookup":
        return 0.0
    named = re.search(r"\bE = (\d+)", line["about"])
    if named is None:
        return None
    whole = int(named[1]) == costs.get("layers")
    if name == "early exit":
        step = costs.get("exit_step", {}).get(named[1])
    elif name in VIEWED or whole:  # only a view drafts with all layers
        step = costs.get("view_step", {}).get(named[1], costs["low_bit_step"]["1"] if whole else None)
    else:
        step = None
    return step


def _bytes_added(costs: dict[str, Any], name: str) -> int | None:
    if name == AUTO:
        return costs.get("auto_view_bytes")
    return costs["view_bytes"] if name in VIEWED else 0


def _between(costs: dict[int, float], width: float) -> float:
    """Linear between the widths that were timed."""
    widths = sorted(costs)
    upper = next((m for m in widths[1:] if m >= width), widths[-1])
    lower = widths[widths.index(upper) - 1]
    return costs[lower] + (width - lower) / (upper - lower) * (costs[upper] - costs[lower])


def verdicts(results: Results) -> list[str]:
    """Targets reached and missed."""
    found = (
        (case, _ratio(results[case], AUTO), target) for case, target in TARGETS.items() if case in results
    )
    return [
        f"- {case}: {AUTO} {ratio:.2f}, {verdict(target, ratio)}"
        for case, ratio, target in found
        if ratio is not None
    ]


def plot(results: Results) -> bytes:
    """A panel per way of decoding, a group of bars per model, a bar per strategy; PNG."""
    names = [name for name in _names(results) if name not in (AR, AR_ONE_ROW)]
    figure = new_figure(12.0, 7.0)
    decodings = list(dict.fromkeys(report["workload"]["temperature"] for report in results.values()))
    panels = figure.subplots(len(decodings), 1, squeeze=False)[:, 0]
    for axes, temperature in zip(panels, decodings, strict=True):
        chosen = {c: r for c, r in results.items() if r["workload"]["temperature"] == temperature}
        for number, name in enumerate(names):
            aside = (number - (len(names) - 1) / 2) / (len(names) + 2)
            places = [group + aside for group in range(len(chosen))]
            heights = [_ratio(report, name) or 0.0 for report in chosen.values()]
            axes.bar(places, heights, 1 / (len(names) + 2), label=name, color=f"C{number}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(chosen)), [case.rsplit(", ", 1)[0] for case in chosen])
        axes.set(ylabel="times the faster AR")
        axes.set_title("greedy" if temperature is None else f"temperature {temperature:g}", fontsize=10)
    figure.axes[0].legend(fontsize=8, ncols=3)
    return png(figure)


def save(results: Results, folder: Path) -> None:
    """JSON, page and plot, after every case, so that an interruption costs one of them only."""
    write_whole(folder / "strategies.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / "strategies.md", page(results))
    write_whole(folder / "strategies.png", plot(results))


def page(results: Results) -> str:
    """Everything as Markdown."""
    lines = ["# Draft strategies", "", table(results), "", "![speed by strategy](strategies.png)", ""]
    lines += [*verdicts(results), "", _LEGEND, ""]
    for name, result in results.items():
        lines += [f"## {name}", "", result["table"], "", drafting(result), ""]
        lines += [f"Costs in plain steps of {result['costs']['layers']} layers:", ""]
        costs = ((key, value) for key, value in result["costs"].items() if key != "layers")
        lines += [f"- {key}: {json.dumps(value)}" for key, value in costs] + [""]
    return "\n".join(lines)


def into_readme(results: Results, readme: Path) -> None:
    """Write the table between the README's markers.

    Raises:
        ValueError: a marker is missing.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN!r} and {END!r} are not in {readme}")
    write_whole(readme, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}")


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(line["name"] for report in results.values() for line in report["lines"]))


def _line(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next((line for line in report["lines"] if line["name"] == name), {})


def _ratio(report: dict[str, Any], name: str) -> float | None:
    """Speed over the faster AR; None without a speed."""
    if name == report["fastest_ar"]:
        return 1.0
    spread = _line(report, name).get("faster_than", {}).get(report["fastest_ar"])
    return spread and float(spread["median"])


def _cell(report: dict[str, Any], name: str) -> str:
    ratio, length = _ratio(report, name), _line(report, name).get("acceptance_length")
    if ratio is None:
        return "refused" if _line(report, name) else ""
    return f"{ratio:.2f}" + (f" ({length:.1f})" if length else "")


if __name__ == "__main__":
    here = Path(__file__).parent
    stored = json.loads((here / "results" / "strategies.json").read_text())
    save(stored, here / "results")
    into_readme(stored, here.parent / "README.md")
