"""The page of the GPU benchmark: a table a section and kind, what failed, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = {
    "bandwidth": "What this card can do: every floor below is bytes over the faster of copy and read.",
    "overlap": (
        "Programmatic dependent launch: a kernel's programs take their places while the kernel before it "
        "still drains. Layers in 4 bits are launched so, others are not."
    ),
    "kernels": (
        "Every kernel against its plain-PyTorch reference, outputs poisoned with NaN; then its time, as "
        "replays of a CUDA graph that goes through more inputs than the L2 cache holds, over its floor: the "
        "bytes that must be read and written / the faster of copy and read. Targets: exit_head and accept "
        "at most 1.25 times the floor; verify_attention at least 0.8 of the copy's speed at 16k. At few rows "
        "the bytes of accept take less than an empty launch, of which it needs two: there it is held to 1.25 "
        "times bytes and launches together, at 32 rows to its bytes alone. Products in 4 bits overlap as "
        "those of a layer do (low_bit_products, low_bit_gated)."
    ),
    "sweep": "How each product is cut into programs: the best plan found beside the default.",
    "passes": (
        "Passes of random weights at large shapes, bf16. Targets: verify(8) at most 1.08 of verify(1) at 8B; "
        "AR at least 0.8 of what its bytes allow; a draft token at E = 4 of 32 at most 1.25 times its bytes; "
        "a step in 4 bits at most 0.35 of a full one."
    ),
    "text": (
        "The bundled model's text on the GPU under every setting. Greedy text is compared with the model's "
        "own generate, sampled text with AR's under the same seed, both with the CPU's."
    ),
    "endtoend": (
        "Whole calls, prefill included, on inflated models (benchmarks/inflation.py): passes cost what those "
        "of the large shape cost, text and acceptance are those of the small model. Columns of rounds leave "
        "the prefill out, which is the same for AR and drafts. Calls before those that count have other "
        "prompts. Targets at 8B, batch 1, greedy: the reference model at least 3 times AR and 4 times "
        "generate, its plain twin 2.3 times AR."
    ),
    "gap": (
        "A profiler's trace of some rounds. Targets: the GPU waits for the host for at most 5% of them, and "
        "the host waits for the GPU once a round, for one copy."
    ),
}
QUICK = "Tiny sizes, to try out the code: these figures measure nothing."


def page(document: Mapping[str, Any]) -> str:
    """Everything that was measured, as Markdown."""
    lines = ["# GPU", ""]
    for name, section in document.get("sections", {}).items():
        lines += [f"## {name}", "", ABOUT.get(name, ""), "", conditions_line(section), ""]
        lines += [QUICK, ""] * section.get("quick", False)
        lines += [section["note"], ""] if "note" in section else []
        for title, rows in section["tables"].items():
            if rows:
                lines += [f"### {title}", "", *table(rows), ""]
        for heading, found in (("Failed", section["failed"]), ("Not measured", section["left_out"])):
            if found:
                lines += [f"{heading}:", "", *(f"- {label}: {why}" for label, why in found.items()), ""]
    return "\n".join(lines)


def conditions_line(section: Mapping[str, Any]) -> str:
    """Where and with what a section was measured."""
    found = dict(section.get("conditions", {}))
    parts = [found.pop("hardware", ""), *(f"{name} {value}" for name, value in found.items())]
    return f"{', '.join(filter(None, parts))}. {section['seconds']:.0f} seconds."


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows by name, under the columns of all of them."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(row.get(column)) for column in columns)} |")
    return lines


def cell(value: Any) -> str:
    """A value for people: three digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if type(value) is int else str(value)
    if value != value:
        return "NaN"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def in_words(row: Mapping[str, Any]) -> str:
    """A row on one line, what it has no value for left out."""
    return ", ".join(f"{key} {cell(value)}" for key, value in row.items() if value is not None)
