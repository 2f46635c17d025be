"""The GPU benchmark, tried out on a CPU: every section runs, and what goes wrong costs its own row only."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import gpu_rows
import pytest
import torch
from gpu_bench import Bench, DeviceLostError, NotHereError
from gpu_checks import Check, worst
from gpu_kernels import held
from gpu_page import page
from gpu_trace import decoding

CPU = torch.device("cpu")
KERNEL, COPY = "kernel", "gpu_memcpy"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`command(*options)` runs the benchmark on tiny sizes and returns what it saved."""

    def run(*options: str, status: int = 0) -> dict[str, Any]:
        given = ["--device", "cpu", "--quick", "--output", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *given])
        with torch.no_grad():
            assert gpu.main() == status
        found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())["sections"]
        return found

    return run


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(CPU, tmp_path, {}, quick=True)
    made.begin("kernels", 60, resume=False)
    return made


# On the command line


@pytest.mark.parametrize(
    "sections", [("bandwidth", "kernels", "sweep", "passes", "gap"), ("text", "endtoend")]
)
def test_every_section_runs_and_is_written(
    sections: tuple[str, ...], command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if "sweep" in sections:
        pytest.importorskip("triton")
    found = command("--sections", *sections)
    assert set(found) == set(sections)
    text = (tmp_path / "gpu.md").read_text()
    for name, section in found.items():
        assert not section["failed"]
        assert section["conditions"]["torch"]
        measured = any(rows for rows in section["tables"].values())
        assert measured or section["left_out"], name
        assert f"## {name}" in text
    assert "measure nothing" in text


def test_kernels_agree_with_their_references(command: Callable[..., dict[str, Any]]) -> None:
    rows = command("--sections", "kernels", "--only", "against")["kernels"]["tables"]["against the reference"]
    assert {name.split(":")[0] for name in rows} >= {"exit_head", "accept", "commit", "verify_attention"}
    assert {row["verdict"] for row in rows.values()} == {"reached"}


def test_a_section_alone_keeps_the_others(command: Callable[..., dict[str, Any]]) -> None:
    command("--sections", "bandwidth")
    found = command("--sections", "kernels", "--only", "commit: ")
    assert found["bandwidth"]["tables"]["memory"] and found["kernels"]["tables"]["commit"]
    assert not found["kernels"]["tables"].get("exit_head")


def test_a_section_that_cannot_run_loses_no_other(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("gpu_bandwidth"), "run", lambda bench: 1 / 0)
    found = command("--sections", "bandwidth", "kernels", "--only", "commit", status=1)
    assert "ZeroDivisionError" in found["bandwidth"]["failed"]["the section"]
    assert found["kernels"]["tables"]["commit"]


def test_a_lost_device_is_left_behind_in_a_new_process(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(bench: Bench) -> None:
        raise DeviceLostError("an illegal memory access was encountered")

    started: list[list[str]] = []
    monkeypatch.setattr(importlib.import_module("gpu_kernels"), "run", lose)
    monkeypatch.setattr(gpu.os, "execv", lambda _, words: started.append(words))
    command("--sections", "bandwidth", "kernels", "sweep", "--only", "nothing")
    again = gpu.arguments(started[0][2:])
    assert again.sections == ["kernels", "sweep"] and again.resume == "kernels" and again.quick


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu"], "--quick tries out the code"),
        (["--device", "cpu", "--quick"], "name a folder"),
        (["--sections", "speed"], "invalid choice"),
    ],
)
def test_what_would_measure_nothing_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.arguments(options)
    assert message in capsys.readouterr().err


# Rows


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


def test_nan_never_passes(bench: Bench) -> None:
    nan, ones = torch.full((3,), float("nan")), torch.ones(3)
    assert worst(nan, ones) == float("inf")
    assert worst(ones, ones) == 0.0
    row = held(bench, Check("kernel", "nan", lambda bench: float("nan"), 1.0))
    assert row["verdict"] == "MISSED"


def test_a_target_is_held_from_its_own_side() -> None:
    assert gpu_rows.reached({"x": 1.2}, "x", 1.25)["verdict"] == "reached"
    assert gpu_rows.reached({"x": 1.3}, "x", 1.25)["verdict"] == "MISSED"
    assert gpu_rows.reached({"x": 0.7}, "x", 0.8, most=False)["verdict"] == "MISSED"


# Traces


def event(category: str, name: str, start: float, length: float) -> dict[str, Any]:
    return {"cat": category, "name": name, "ts": start, "dur": length}


def test_a_trace_tells_waiting_for_the_host_from_other_idle_time() -> None:
    found = decoding(
        [
            event(COPY, "Memcpy DtoH (Device -> Pinned)", 0, 2),  # the first round's report
            event(KERNEL, "draft", 6, 10),  # the host took 4
            event(KERNEL, "verify", 17, 20),  # idle for 1, but not for the host
            event(KERNEL, "beside it", 20, 5),
            event(COPY, "Memcpy DtoH (Device -> Pinned)", 37, 2),
            event(KERNEL, "the next round", 50, 2),
            event("cuda_runtime", "cudaGraphLaunch", 4, 1),
            event("cuda_runtime", "cudaStreamSynchronize", 5, 30),
            event("cuda_runtime", "cudaStreamSynchronize", 45, 3),
        ]
    )
    assert found is not None
    assert (found.total, found.busy, found.waiting) == (37, 32, 4)
    assert (found.copies, found.waits, found.launches) == (1, 1, 1)


def test_a_trace_without_rounds_says_nothing() -> None:
    assert decoding([event(KERNEL, "alone", 0, 1)]) is None
