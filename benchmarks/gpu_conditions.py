"""Where a section is measured: its rows stand beside no others than those measured there."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from selfspec.benchmarking.environment import hardware, versions


class OtherConditionsError(RuntimeError):
    """Rows of a section would stand beside others that were measured elsewhere."""


def conditions(device: torch.device) -> dict[str, Any]:
    """Hardware, driver and versions."""
    found: dict[str, Any] = {"hardware": hardware(device), "python": platform.python_version(), **versions()}
    if device.type == "cuda":
        found |= {"CUDA": torch.version.cuda, "driver": driver()}
    return found


def differing(name: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """That a section's rows do not go together with others, how they differ, and what to do."""
    before, after = (part["conditions"] | {"quick": part["quick"]} for part in (kept, now))
    apart = [key for key in before | after if before.get(key) != after.get(key)]
    changed = ", ".join(f"{key} was {before.get(key)}, is {after.get(key)}" for key in apart)
    return (
        f"the rows of {name} are from elsewhere ({changed}): name another folder with --output, or measure "
        "the whole section, without --only and --resume"
    )


@cache
def driver() -> str:
    """The version of the GPU's driver, empty where nothing tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n", 1)[0].strip()
