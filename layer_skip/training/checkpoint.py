"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
REMEDY = "delete it to train from the beginning"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says which file, why, and what to do."""


def write_atomically(path: Path, content: str) -> None:
    """Write text so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that an interruption leaves the previous file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; CheckpointError when it is missing, damaged or of another format."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; start without resume to train from the beginning")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged checkpoint ({reason}); {REMEDY}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}; {REMEDY}")
    return state


def check_same_run(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """CheckpointError when a resumed run would compute something else; its length may change."""
    free = {"max_steps", "max_seconds", "threads", "checkpoint_seconds", "decay_fraction"}
    for name, value in current.items():
        if name not in free and saved.get(name) != value:
            raise CheckpointError(
                f"{path}: was trained with {name}={json.dumps(saved.get(name))}, not {json.dumps(value)}; "
                f"use the same setting or another output folder"
            )
