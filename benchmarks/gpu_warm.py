"""Compiling before measuring, in processes side by side.

Triton holds the interpreter's lock while it compiles, so threads of one process wait for each other. What it
compiles goes to a cache on disk, which all processes share and write whole.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 100
"""For all processes together: what is not compiled by then is compiled when it is measured."""


@dataclass(frozen=True)
class Part:
    """What one process compiles for: rows of a section, `only` those, measured for so many seconds."""

    section: str
    seconds: float
    only: Sequence[str]


KERNELS = (
    ("narrow_product",),
    ("gated_product",),
    ("low_bit_product:",),
    ("low_bit_products:",),
    ("low_bit_gated",),
    ("exit_head",),
    ("verify_attention",),
    ("accept",),
    ("commit", "rope_store", "row_norm"),
)
WAYS = ("greedy", "temperature 0.8")
PARTS = (
    *(Part("kernels", 0, only) for only in KERNELS),
    *(Part("text", 40, (dtype,)) for dtype in ("bfloat16", "float32")),
    Part("passes", 40, ("8b-128k",)),
    Part("endtoend", 80, [f"reference, 8b-128k, batch 1, 256 tokens, {how}: auto" for how in WAYS]),
)


def warm(sections: Sequence[str], given: Sequence[str]) -> None:
    """Compile what sections need, in processes of gpu.py with these words; what they measure is dropped."""
    script = str(Path(__file__).with_name("gpu.py"))
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            f"{part.section}: {', '.join(part.only)}": [
                *(sys.executable, script, *given, "--output", f"{folder}/{number}"),
                *("--sections", part.section, "--seconds", f"{part.section}={part.seconds}"),
                *("--only", *part.only),
            ]
            for number, part in enumerate(PARTS)
            if part.section in sections
        }
        side_by_side(commands, SECONDS)


def side_by_side(commands: Mapping[str, Sequence[str]], seconds: float) -> None:
    """Run all commands at once, a line for each in their order; none is left running, whatever happens."""
    began, running = time.monotonic(), {}
    try:
        for name, command in commands.items():
            running[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, process in running.items():
            try:
                process.wait(max(0.0, began + seconds - time.monotonic()))
                ended = f"ended with {process.returncode}"
            except subprocess.TimeoutExpired:
                ended = "stopped"
            print(f"warm | {name} | {ended}, {time.monotonic() - began:.0f} seconds in all", flush=True)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
