"""Runs of the GPU benchmark on tiny sizes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_bench import Bench


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
    """In a section, with a minute left."""
    made = Bench(torch.device("cpu"), tmp_path, {}, quick=True)
    made.begin("kernels", 60, resume=False)
    return made
