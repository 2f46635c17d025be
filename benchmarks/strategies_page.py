"""What benchmarks/strategies.py found, as one table, one plot and a page; reads its JSON alone.

python benchmarks/strategies_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfspec.benchmarking.contenders import AR
from selfspec.benchmarking.render import new_figure, png
from selfspec.benchmarking.report import Report
from selfspec.files import write_whole

AR_ONE_ROW = "AR, one row"
"""AR at the shapes that come, without padding: the faster of the two is what everybody is compared with."""
BEGIN, END = "<!-- strategies: python benchmarks/strategies_page.py -->", "<!-- end of the strategies -->"
Results = dict[str, dict[str, Any]]
"""Case -> its report as JSON."""
AUTO = "auto"
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


def verdicts(results: Results) -> list[str]:
    """Targets reached and missed."""
    found = (
        (case, _ratio(results[case], AUTO), target) for case, target in TARGETS.items() if case in results
    )
    return [
        f"- {case}: {AUTO} {ratio:.2f}, target {target:g}: {'reached' if ratio >= target else 'MISSED'}"
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
    pages = ["# Draft strategies", "", table(results), "", "![speed by strategy](strategies.png)", ""]
    pages += [*verdicts(results), ""]
    for name, result in results.items():
        pages += [f"## {name}", "", result["table"], "", "Costs in plain steps:", ""]
        pages += [f"- {key}: {json.dumps(value)}" for key, value in result["costs"].items()] + [""]
    write_whole(folder / "strategies.md", "\n".join(pages))
    write_whole(folder / "strategies.png", plot(results))


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
