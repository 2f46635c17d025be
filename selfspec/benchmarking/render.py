"""A report as a table on the terminal, as Markdown and as a plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selfspec.benchmarking.environment import named_versions
from selfspec.benchmarking.report import Line, Report, baselines

if TYPE_CHECKING:
    from rich.table import Table


def heading(report: Report) -> str:
    """The conditions in one line."""
    conditions, workload = report.conditions, report.workload
    shortest, longest = report.prompt_tokens
    prompt = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    decoding = "greedy" if workload.temperature is None else f"temperature {workload.temperature:g}"
    return (
        f"{conditions['hardware']}, {conditions['threads']} threads, {conditions['dtype']}, "
        f"batch {workload.batch}, {decoding}, {report.n_prompts} prompts of {prompt} tokens, "
        f"{workload.new_tokens} new tokens"
    )


def columns(report: Report) -> list[str]:
    """Titles of the table."""
    ratios = [f"times {name}" for name in baselines(report.lines)]
    return ["", "tokens/s", *ratios, "acceptance rate, length", "distinct 3-grams", "same text"]


def cells(line: Line, report: Report) -> list[str]:
    """One contender's row; medians with the 20th and 80th percentile where there is a spread."""
    ratios = [_ratio(line, base) for base in baselines(report.lines)]
    return [
        line.name,
        "refused" if line.tokens_per_second is None else f"{line.tokens_per_second:.0f}",
        *ratios,
        "" if line.acceptance_rate is None else f"{line.acceptance_rate:.2f}, {line.acceptance_length:.2f}",
        f"{line.distinct_3grams:.2f}",
        line.checked,
    ]


def _ratio(line: Line, base: str) -> str:
    if line.name == base:
        return "1"
    return f"{line.faster_than[base]:.2f}" if base in line.faster_than else ""


def legend(report: Report) -> list[str]:
    """What each contender is, and why it has no speed where it has none."""
    refusal = {line.name: f"; refused: {line.refused}" if line.refused else "" for line in report.lines}
    return [f"{line.name}: {line.about}{refusal[line.name]}" for line in report.lines]


def terminal_table(report: Report) -> Table:
    """The table for a terminal of 80 columns or more: titles and spreads are folded into two lines."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=heading(report),
        title_justify="left",
        caption=caption(report),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    titles = columns(report)
    for number, title in enumerate(titles):
        text = number in (0, len(titles) - 1)
        table.add_column(
            title.replace(" ", "\n", 1),
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
            min_width=9 if text else None,
        )
    for line in report.lines:
        row = [cell.replace(" (", "\n(", 1) for cell in cells(line, report)]
        table.add_row(*row, style="red" if line.refused else None)
    return table


def markdown_table(report: Report) -> str:
    """The same table in Markdown, with its conditions below it."""
    titles = columns(report)
    rows = [titles, ["---", *["---:"] * (len(titles) - 2), "---"]]
    rows += [cells(line, report) for line in report.lines]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    below = [f"{heading(report)}. {caption(report)}", "", *(f"- {entry}" for entry in legend(report))]
    return "\n".join([*lines, "", *below, ""])


def caption(report: Report) -> str:
    """How to read the numbers, and with which versions they were measured."""
    noise = report.rounding_noise
    near = "" if noise is None else f" Near-tie: within the measured rounding noise of {noise:.3f} logits."
    versions = named_versions(report.conditions["versions"])
    return f"Median (20th to 80th percentile) over prompts; ratios are paired. {versions}.{near}"


def plot(report: Report) -> bytes:
    """The speeds as a bar chart, PNG; contenders without a speed are named but have no bar."""
    figure = new_figure(8.0, 1.6 + 0.5 * len(report.lines))
    axes = figure.subplots()
    names = [line.name for line in report.lines]
    speeds = [line.tokens_per_second for line in report.lines]
    medians = [0.0 if speed is None else speed.median for speed in speeds]
    whiskers = [[0.0 if s is None else s.median - s.p20 for s in speeds]]
    whiskers += [[0.0 if s is None else s.p80 - s.median for s in speeds]]
    axes.barh(names, medians, xerr=whiskers, color=_colours(report.lines), capsize=3)
    ends = [0.0 if speed is None else speed.p80 for speed in speeds]
    for place, line in enumerate(report.lines):
        axes.text(ends[place] + 0.02 * max(ends), place, _bar_label(line, report), va="center", fontsize=8)
    axes.set_xlim(0, 1.35 * max(ends) or 1.0)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, median with 20th and 80th percentile")
    axes.set_title(heading(report), fontsize=8, loc="left", wrap=True)
    return png(figure)


def _bar_label(line: Line, report: Report) -> str:
    if line.refused is not None:
        return "refused: output differs"
    ratios = [
        f"{line.faster_than[b].median:.2f}x {b}" for b in baselines(report.lines) if b in line.faster_than
    ]
    return ", ".join(ratios)


def _colours(lines: Sequence[Line]) -> list[str]:
    return ["tab:orange" if line.acceptance_rate is not None else "lightsteelblue" for line in lines]


def new_figure(width: float, height: float) -> Any:
    """An empty figure [inches] that needs no display and leaves pyplot's state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
