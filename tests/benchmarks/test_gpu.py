"""The GPU benchmark, tried out on a CPU: every section runs, and what goes wrong costs its own row only."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_bench import Bench, DeviceLostError

# On the command line


@pytest.mark.parametrize(
    "sections", [("overlap", "bandwidth", "kernels", "sweep", "passes", "gap"), ("text", "endtoend")]
)
def test_every_section_runs_and_is_written(
    sections: tuple[str, ...], command: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if "sweep" in sections:
        pytest.importorskip("triton")
    found = command("--sections", *sections)
    assert list(found) == list(sections)  # in the order in which they were asked for
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


def test_sections_run_in_the_order_given(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    for name in ("bandwidth", "text", "endtoend"):
        module = importlib.import_module(f"gpu_{name}")
        monkeypatch.setattr(module, "run", lambda bench, name=name: ran.append(name))
    command("--sections", "endtoend", "bandwidth", "text")
    assert ran == ["endtoend", "bandwidth", "text"]


def test_what_runs_unasked_is_done_in_time() -> None:
    usual = gpu.arguments(["--device", "cuda"]).sections
    assert usual == ["bandwidth", "kernels", "text", "passes", "endtoend", "gap"]
    taken = sum(section.seconds for section in gpu.SECTIONS if section.name in usual)
    assert taken + 90 <= 8 * 60  # imports, compiling what is not in the cache, rows that had begun


def test_several_patterns_choose_rows(command: Callable[..., dict[str, Any]]) -> None:
    tables = command("--sections", "bandwidth", "--only", "sum,", "from Python")["bandwidth"]["tables"]
    assert {row for rows in tables.values() for row in rows} == {
        "sum, read only",
        "a tiny kernel launched from Python",
    }


def test_rows_that_are_not_asked_for_stay(command: Callable[..., dict[str, Any]]) -> None:
    before = command("--sections", "bandwidth")["bandwidth"]["tables"]["memory"]
    after = command("--sections", "bandwidth", "--only", "sum,")["bandwidth"]["tables"]["memory"]
    assert after["copy, read and written"] == before["copy, read and written"]
    assert after["sum, read only"] != before["sum, read only"]


@pytest.mark.parametrize("adding", [("--only", "sum,"), ("--resume", "bandwidth")])
def test_rows_of_another_machine_are_not_added_to(
    adding: tuple[str, ...],
    command: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command("--sections", "bandwidth")
    stored = tmp_path / "gpu.json"
    elsewhere = json.loads(stored.read_text())
    elsewhere["sections"]["bandwidth"]["conditions"]["hardware"] = "another card"
    stored.write_text(json.dumps(elsewhere))
    assert command("--sections", "text", "bandwidth", *adding, status=2) == elsewhere["sections"]
    said = capsys.readouterr().err
    assert "hardware was another card" in said and "--output" in said
    assert command("--sections", "bandwidth")["bandwidth"]["conditions"]["hardware"] != "another card"


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


# Models


@pytest.mark.parametrize("section", ["passes", "gap", "overlap"])
def test_a_model_without_room_costs_rows_and_none_is_made_that_is_not_asked_for(
    section: str, command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"gpu_{section}")
    made, random_model = [], module.random_model

    def without_room(bench: Bench, name: str) -> Any:
        made.append(name)
        if name == "8b-128k":
            raise torch.cuda.OutOfMemoryError("out of memory")
        return random_model(bench, name)

    monkeypatch.setattr(module, "random_model", without_room)
    command("--sections", section, "--only", "nothing has this name")
    assert not made
    found = command("--sections", section, "--only", "m = 1", "AR", "step", status=1)[section]
    assert found["failed"] and all("8b-128k" in label for label in found["failed"])
    assert section != "passes" or found["tables"]["verify(m), 1b-128k"]
