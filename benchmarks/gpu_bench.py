"""A run of the GPU benchmark: rows in sections, saved one by one; a failure loses its own row only."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from gpu_conditions import OtherConditionsError, conditions, differing
from gpu_page import in_words, page
from gpu_timing import copy_speed, launch_seconds, read_speed

from selfspec.files import write_whole

Row = dict[str, Any]
WHOLE = "the section"
"""The label of what fails outside of all rows."""
Sized = TypeVar("Sized")


class NotHereError(RuntimeError):
    """What was to be measured is not there: the row is listed as not measured, with this reason."""


class DeviceLostError(RuntimeError):
    """The GPU takes no more work from this process: what is left needs a new one."""


@dataclass
class Bench:
    """What sections measure with.

    `document` is the whole JSON. A row is skipped where nothing of `only` is in its name, or where the
    section goes on after an interruption and has it already.
    """

    device: torch.device
    output: Path
    document: dict[str, Any]
    quick: bool = False
    only: Sequence[str] = ()
    compiled: bool = False
    """Whether slow contenders that compile the whole model take part."""
    compiling: bool = False
    """Whether timings only run what they time once, so that it is compiled."""
    resumed: bool = False
    """Whether the section goes on after an interruption."""
    _section: dict[str, Any] = field(default_factory=dict)
    _name: str = ""
    _seconds: float = 0.0
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

    def measure_speeds(self) -> None:
        """Now, on this thread: where they are first asked for, others may be at work on the device."""
        _ = self.speed, self.launch_seconds

    def pick(self, full: Sized, quick: Sized) -> Sized:
        """The size for a measurement, or the one to try out the code with."""
        return quick if self.quick else full

    def sizes(self, full: Sequence[int], most: int = 40) -> list[int]:
        """The same for several sizes, of which a quick run takes at most so much each."""
        return [self.pick(size, min(size, most)) for size in full]

    def begin(self, name: str, seconds: float, resume: bool) -> None:
        """Open a section: rows of an earlier run are dropped unless it goes on, or they are not asked for.

        Raises:
            OtherConditionsError: rows that would stay were measured under other conditions.
        """
        kept = self.kept(name, resume)
        empty: Row = {"tables": {}, "failed": {}, "left_out": {}, "seconds": 0.0}
        self._section, self._name = empty | kept | self._now(), name
        self.document.setdefault("sections", {})[name] = self._section
        self.resumed = resume and bool(kept)
        if not self.resumed:
            self._drop_wanted()
        self._began, self._spent, self._seconds = time.monotonic(), self._section["seconds"], seconds
        self.start_clock()

    def kept(self, name: str, resume: bool) -> dict[str, Any]:
        """What an earlier run found of a section, where this one adds to it; empty where it begins anew.

        Raises:
            OtherConditionsError: it was measured under other conditions.
        """
        found: dict[str, Any] = self.document.get("sections", {}).get(name, {}) if resume or self.only else {}
        now = self._now()
        if found and any(found[key] != value for key, value in now.items()):
            raise OtherConditionsError(differing(name, found, now))
        return found

    def _now(self) -> dict[str, Any]:
        return {"quick": self.quick, "conditions": conditions(self.device)}

    def start_clock(self) -> None:
        """The section's budget begins now: what was compiled or made ready before does not count."""
        self._deadline = time.monotonic() + self._seconds

    def _drop_wanted(self) -> None:
        """Forget what an earlier run found of the rows that this one is about."""
        for title, rows in self._section["tables"].items():
            for name in [name for name in rows if self._asked(f"{title}: {name}")]:
                del rows[name]
        for found in (self._section.get(part, {}) for part in ("failed", "left_out", "details")):
            for label in [label for label in found if self._asked(label) or label == WHOLE]:
                del found[label]

    def _asked(self, label: str) -> bool:
        return not self.only or any(part in label for part in self.only)

    def wants(self, table: str, name: str) -> bool:
        """Whether a row is asked for, and neither there nor failed already."""
        label = f"{table}: {name}"
        there = name in self._section["tables"].get(table, {}) or label in self._section["failed"]
        return self._asked(label) and not there

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
        self._section["left_out"].pop(label, None)
        print(f"{self._name} | {label} | {in_words(row)}", flush=True)
        self.save()
        return row

    def note(self, label: str, detail: Any) -> None:
        """Keep a detail in the JSON that the page has no room for."""
        self._section.setdefault("details", {})[label] = detail

    def noted(self, label: str) -> Any:
        """The detail of that label, of this run or an earlier one that it adds to; None without one."""
        return self._section.get("details", {}).get(label)

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
        self._section["left_out"].pop(label, None)
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
