"""Compiling before measuring: processes side by side, none of which stays."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gpu
import gpu_warm
import pytest
from gpu_bench import Bench
from gpu_cases import CASES
from gpu_kernels import every_row
from gpu_warm import Part, side_by_side

POPEN = subprocess.Popen
SLEEPING = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every process that is started."""
    processes: list[Any] = []

    def start(*given: Any, **named: Any) -> Any:
        processes.append(POPEN(*given, **named))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def test_processes_run_side_by_side_and_end_in_time(
    started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    side_by_side({"quick": [sys.executable, "-c", ""], "slow": SLEEPING, "slower": SLEEPING}, 2.0)
    assert time.monotonic() - began < 30
    assert [process.poll() for process in started] == [0, -9, -9]
    said = capsys.readouterr().out.splitlines()
    assert ["ended with 0" in said[0], *("stopped" in line for line in said[1:])] == [True] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_no_process_stays_when_it_is_interrupted(
    error: type[BaseException], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = POPEN.wait

    def interrupted(process: Any, timeout: float | None = None) -> int:
        if timeout is not None:
            raise error
        return wait(process)

    monkeypatch.setattr(POPEN, "wait", interrupted)
    with pytest.raises(error):
        side_by_side({"one": SLEEPING, "other": SLEEPING}, 60)
    assert [process.poll() for process in started] == [-9, -9]


def test_the_benchmark_compiles_what_its_sections_need(
    command: Callable[..., dict[str, Any]],
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = (Part("bandwidth", 5, ("sum,",)), Part("text", 5, ("bfloat16",)))
    monkeypatch.setattr(gpu_warm, "PARTS", parts)
    found = command("--warm", "--sections", "bandwidth")
    assert [process.poll() for process in started] == [0]
    assert "warm | bandwidth: sum, | ended with 0" in capsys.readouterr().out
    assert found["bandwidth"]["tables"]["memory"]


def test_every_part_has_rows() -> None:
    labels = [f"{c.source}, {c.shape}, {c.title}: {line.name}" for c in CASES for line in c.contenders]
    words = [word for part in gpu_warm.PARTS if part.section == "endtoend" for word in part.only]
    assert all(any(word in label for label in labels) for word in words)
    assert {part.section for part in gpu_warm.PARTS} <= {section.name for section in gpu.SECTIONS}


def test_every_kernel_is_compiled(bench: Bench) -> None:
    pytest.importorskip("triton")
    words = [word for part in gpu_warm.PARTS if part.section == "kernels" for word in part.only]
    labels = [f"{table}: {name}" for table, name, _ in every_row(bench)]
    assert not [label for label in labels if not any(word in label for word in words)]
    assert all(any(word in label for label in labels) for word in words)
