"""The page of strategies says what its JSON says, and leaves empty what that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import strategies_page
from strategies_page import BEGIN, DRAFTING, END, drafting, page, table, verdicts

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads((ROOT / "benchmarks/results/strategies.json").read_text())


def test_the_page_and_the_readme_are_those_of_the_stored_results() -> None:
    assert (ROOT / "benchmarks/results/strategies.md").read_text() == page(STORED)
    other = ROOT / "benchmarks/results/float32"
    assert (other / "strategies.md").read_text() == page(json.loads((other / "strategies.json").read_text()))
    assert f"{BEGIN}\n\n{table(STORED)}\n\n{END}" in (ROOT / "README.md").read_text()


def test_the_page_names_targets_reached_and_missed() -> None:
    found = verdicts(STORED)
    assert len(found) == len(strategies_page.TARGETS) == 4
    assert sum("MISSED" in line for line in found) + sum("reached" in line for line in found) == 4
    assert all(line in page(STORED) for line in found)


def line(name: str, about: str, rate: float = 0.5, length: float = 3.0) -> dict[str, Any]:
    return {"name": name, "about": about, "acceptance_rate": rate, "acceptance_length": length}


COSTS: dict[str, Any] = {
    "layers": 16,
    "verify": {"1": 1.0, "4": 1.1, "8": 1.3},
    "low_bit_step": {"1": 0.3},
    "view_bytes": 3 << 20,
}


def rows_of(lines: list[dict[str, Any]], **costs: Any) -> dict[str, list[str]]:
    """Strategy -> cells of its row."""
    drawn = drafting({"lines": lines, "costs": COSTS | costs}).splitlines()[2:]
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in drawn)
    return {name: values for name, *values in cells}


def test_each_strategy_has_its_costs_acceptance_and_memory() -> None:
    steps = {"exit_step": {"3": 0.25}, "view_step": {"3": 0.08, "16": 0.3}, "auto_view_bytes": 2 << 20}
    found = rows_of(
        [
            line("early exit", "first layers, E = 3, K = 4"),
            line("low bit", "in 4 bits, E = 3, K = 4", rate=0.4),
            line("lookup", "copied", rate=0.5, length=1.0),
            line("auto", "chooses, E = 16, K = 4"),
            line("AR", "no drafts") | {"acceptance_rate": None},
        ],
        **steps,
    )
    assert len(DRAFTING) == 6
    assert found == {
        "early exit": ["0.25", "5.0", "1.15", "0.50", "3.00", "0"],
        "low bit": ["0.08", "6.0", "1.20", "0.40", "3.00", "3"],
        "lookup": ["0.00", "1.0", "1.00", "0.50", "1.00", "0"],
        "auto": ["0.30", "5.0", "1.15", "0.50", "3.00", "2"],
    }


def test_what_was_not_measured_is_left_empty() -> None:
    found = rows_of(
        [
            line("early exit", "first layers, E = 3, K = 4"),
            line("low bit", "in 4 bits, E = 16, K = 4"),  # all layers: that step was timed
            line("hybrid", "in 4 bits, E = 3, K = 4"),
            line("auto", "chooses"),
        ]
    )
    assert {name: (cells[0], cells[-1]) for name, cells in found.items()} == {
        "early exit": ("", "0"),
        "low bit": ("0.30", "3"),
        "hybrid": ("", "3"),
        "auto": ("", ""),
    }
