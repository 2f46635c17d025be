"""A run of the GPU benchmark: rows in sections, saved one by one; a failure loses its own row only."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from gpu_page import in_words, page
from gpu_timing import copy_speed, launch_seconds, read_speed

from selfspec.benchmarking.environment import hardware, versions
from selfspec.files import write_whole

Row = dict[str, Any]
Sized = TypeVar("Sized")


class NotHereError(RuntimeError):
    """What was to be measured is not there: the row is listed as not measured, with this reason."""


class DeviceLostError(RuntimeError):
    """The GPU takes no more work from this process: what is left needs a new one."""


@dataclass
class Bench:
    """What sections measure with.

    `document` is the whole JSON. A row is skipped where `only` is not in its name, or where the section goes
    on after an interruption and has it already.
    """

    device: torch.device
    output: Path
    document: dict[str, Any]
    quick: bool = False
    only: str = ""
    compiled: bool = False
    """Whether slow contenders that compile the whole model take part."""
    compiling: bool = False
    """Whether timings only run what they time once, so that it is compiled."""
    resumed: bool = False
    """Whether the section goes on after an interruption."""
    _section: dict[str, Any] = field(default_factory=dict)
    _name: str = ""
    _deadline: float = 0.0

    @property
    def backend(self) -> Any:
        """Triton on a GPU; elsewhere the reference is held against itself, to try out the rest."""
        return "triton" if self.on_gpu else "reference"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def copy_speed(self) -> float:
        """Bytes a second, read and written, of a copy on this device, measured in this run."""
        return copy_speed(self.device, self.quick)

    @cached_property
    def read_speed(self) -> float:
        """Bytes a second of a reduction on this device, measured in this run."""
        return read_speed(self.device, self.quick)

    @property
    def speed(self) -> float:
        """The faster of the two: what every floor is held against."""
        return max(self.copy_speed, self.read_speed)

    @cached_property
    def launch_seconds(self) -> float:
        """Seconds of a kernel with next to nothing to do, in a replayed graph."""
        return launch_seconds(self.device, self.quick)

    def pick(self, full: Sized, quick: Sized) -> Sized:
        """The size for a measurement, or the one to try out the code with."""
        return quick if self.quick else full

    def sizes(self, full: Sequence[int], most: int = 40) -> list[int]:
        """The same for several sizes, of which a quick run takes at most so much each."""
        return [self.pick(size, min(size, most)) for size in full]

    def begin(self, name: str, seconds: float, resume: bool) -> None:
        """Open a section: rows of an earlier run are dropped unless it goes on."""
        sections = self.document.setdefault("sections", {})
        self.resumed = resume and name in sections
        if not self.resumed:
            sections[name] = {"tables": {}, "failed": {}, "left_out": {}, "seconds": 0.0}
        sections[name]["quick"] = self.quick
        self._section, self._name = sections[name], name
        self._section["conditions"] = conditions(self.device)
        self._began = time.monotonic()
        self._spent = self._section["seconds"]
        self._deadline = self._began + seconds

    def wants(self, table: str, name: str) -> bool:
        """Whether a row is asked for, and neither there nor failed already."""
        label = f"{table}: {name}"
        there = name in self._section["tables"].get(table, {}) or label in self._section["failed"]
        return self.only in label and not there

    @property
    def seconds_left(self) -> float:
        """Of the section's budget."""
        return self._deadline - time.monotonic()

    def measure(self, table: str, name: str, work: Callable[[], Row]) -> Row | None:
        """Run `work` for one row of a table; None where it was skipped, left out or failed.

        Raises:
            DeviceLostError: nothing more can be measured in this process.
        """
        label = f"{table}: {name}"
        rows = self._section["tables"].setdefault(table, {})
        if not self.wants(table, name):
            return rows.get(name)
        if self.seconds_left <= 0:
            self._leave_out(label, "its section had no time left")
            return None
        try:
            row = work()
        except NotHereError as reason:
            self._leave_out(label, str(reason))
            return None
        except Exception as error:  # whatever it is: the other rows are worth having
            self.fail(label, error)
            return None
        rows[name] = row
        print(f"{self._name} | {label} | {in_words(row)}", flush=True)
        self.save()
        return row

    def note(self, label: str, detail: Any) -> None:
        """Keep a detail in the JSON that the page has no room for."""
        self._section.setdefault("details", {})[label] = detail

    def save(self) -> None:
        """Write gpu.json and gpu.md."""
        self._section["seconds"] = self._spent + time.monotonic() - self._began
        write_whole(self.output / "gpu.json", json.dumps(self.document, indent=1) + "\n")
        write_whole(self.output / "gpu.md", page(self.document))

    def _leave_out(self, label: str, reason: str) -> None:
        self._section["left_out"][label] = reason
        print(f"{self._name} | {label} | not measured: {reason}", flush=True)
        self.save()

    def fail(self, label: str, error: Exception) -> None:
        """Note what went wrong with a row.

        Raises:
            DeviceLostError: and the device with it.
        """
        traceback.print_exception(error, limit=-6)
        lines = str(error).splitlines() or [""]
        self._section["failed"][label] = f"{type(error).__name__}: {lines[0][:300]}"
        print(f"{self._name} | {label} | FAILED", flush=True)
        self.save()
        error.__traceback__ = None  # its frames hold tensors
        free(self.device)


def free(device: torch.device) -> None:
    """Give back what nobody refers to any more.

    Raises:
        DeviceLostError: the device does not answer.
    """
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLostError(str(error).splitlines()[0]) from error


def conditions(device: torch.device) -> Row:
    """Hardware, driver and versions."""
    found: Row = {"hardware": hardware(device), "python": platform.python_version(), **versions()}
    if device.type == "cuda":
        found |= {"CUDA": torch.version.cuda, "driver": driver()}
    return found


@cache
def driver() -> str:
    """The version of the GPU's driver, empty where nothing tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n", 1)[0].strip()
