"""Rows of the GPU benchmark: what is measured, listed, kept and forgotten."""

from __future__ import annotations

from typing import Any

import gpu_rows
import pytest
from gpu_bench import Bench, NotHereError
from gpu_page import page


def test_a_row_that_fails_is_listed_and_the_next_one_is_measured(bench: Bench) -> None:
    assert bench.measure("t", "broken", lambda: {"µs": 1 / 0}) is None
    assert bench.measure("t", "whole", lambda: {"µs": 2.0}) == {"µs": 2.0}
    text = (bench.output / "gpu.md").read_text()
    assert "t: broken: ZeroDivisionError" in text and "| whole | 2 |" in text


def test_what_is_not_there_or_had_no_time_is_said_to_be_unmeasured(bench: Bench) -> None:
    def missing() -> dict[str, Any]:
        raise NotHereError("there is no such kernel")

    bench.measure("t", "missing", missing)
    bench.begin("text", -1, resume=False)
    bench.measure("t", "late", lambda: {"µs": 2.0})
    text = page(bench.document)
    assert "t: missing: there is no such kernel" in text
    assert "t: late: its section had no time left" in text


def test_a_section_that_goes_on_repeats_no_row_and_no_failure(bench: Bench) -> None:
    bench.measure("t", "there", lambda: {"µs": 1.0})
    bench.measure("t", "broken", lambda: {"µs": 1 / 0})
    bench.begin("kernels", 60, resume=True)
    for name in ("there", "broken"):
        bench.measure("t", name, lambda: pytest.fail("measured again"))
    bench.begin("kernels", 60, resume=False)
    assert bench.measure("t", "there", lambda: {"µs": 3.0}) == {"µs": 3.0}


def test_a_row_that_is_measured_later_is_no_longer_said_to_be_unmeasured(bench: Bench) -> None:
    bench.begin("kernels", -1, resume=False)
    bench.measure("t", "late", lambda: {"µs": 2.0})
    bench.begin("kernels", 60, resume=True)
    bench.measure("t", "late", lambda: {"µs": 2.0})
    assert "Not measured" not in page(bench.document)


def test_what_is_asked_for_again_forgets_how_it_failed(bench: Bench) -> None:
    for name in ("one", "other"):
        bench.measure("t", name, lambda: {"µs": 1 / 0})
    bench.only = ["t: one"]
    bench.begin("kernels", 60, resume=False)
    bench.measure("t", "one", lambda: {"µs": 2.0})
    assert list(bench.document["sections"]["kernels"]["failed"]) == ["t: other"]


def test_a_target_is_held_from_its_own_side() -> None:
    assert gpu_rows.reached({"x": 1.2}, "x", 1.25)["verdict"] == "reached"
    assert gpu_rows.reached({"x": 1.3}, "x", 1.25)["verdict"] == "MISSED"
    assert gpu_rows.reached({"x": 0.7}, "x", 0.8, most=False)["verdict"] == "MISSED"
