"""Everything that only a GPU can tell, in one command.

    python benchmarks/gpu.py --warm
    python benchmarks/gpu.py --sections sweep kernels --only narrow_product gated_product --seconds sweep=30
    python benchmarks/gpu.py --device cpu --quick --output /tmp/tried

Checks every kernel against its reference and the text against the model's own, then measures: bandwidth,
kernels, passes, whole calls at large shapes, and what the host costs. Sections run in the order in which they
are named; sweep and overlap only when they are. Writes gpu.json and gpu.md after every row. A row that fails
is listed and the others go on. A section that is run again replaces its own part, with --only its rows of
those names. With --warm, processes side by side compile first, which takes a fresh machine a minute or two.
With --quick everything is tiny: it tries out the code, on a CPU too, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from gpu_bench import WHOLE, Bench, DeviceLostError, free
from gpu_conditions import OtherConditionsError
from gpu_page import in_words
from gpu_warm import warm

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Section:
    """A part that runs alone: its module's `run`, its budget, and whether it runs unasked."""

    name: str
    seconds: float
    default: bool = True

    def run(self, bench: Bench) -> None:
        """Imported when it is its turn: one that cannot be imported loses no other."""
        work: Callable[[Bench], None] = import_module(f"gpu_{self.name}").run
        work(bench)


SECTIONS = (
    Section("bandwidth", 10),
    Section("kernels", 80),
    Section("text", 50),
    Section("passes", 60),
    Section("endtoend", 150),
    Section("gap", 40),
    Section("overlap", 30, default=False),
    Section("sweep", 60, default=False),
)
"""Those that run unasked are over in eight minutes, with imports and a row that had begun."""


def arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.name for section in SECTIONS]
    usual = [section.name for section in SECTIONS if section.default]
    parser.add_argument(
        "--sections", nargs="+", choices=names, default=usual, metavar="NAME", help=str(names)
    )
    parser.add_argument("--only", nargs="+", default=[], help="only rows with one of these in their name")
    parser.add_argument(
        "--seconds",
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="a section's time, in place of its usual one",
    )
    parser.add_argument("--compiled", action="store_true", help="also generate with a compiled static cache")
    parser.add_argument("--resume", default="", metavar="NAME", help="the section that goes on where it was")
    parser.add_argument("--warm", action="store_true", help="compile first, in several processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries out the code")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(given)
    if options.quick and options.output == RESULTS:
        parser.error("--quick measures nothing: name a folder with --output that keeps no results")
    if options.device == "cpu" and not options.quick:
        parser.error("on a CPU there is nothing to measure here; --quick tries out the code")
    options.seconds = {name: float(seconds) for name, seconds in (s.split("=") for s in options.seconds)}
    return options


def run_section(section: Section, bench: Bench, options: argparse.Namespace) -> None:
    """One section; what goes wrong outside of its rows is one more failed row."""
    seconds = options.seconds.get(section.name, section.seconds)
    bench.begin(section.name, seconds, options.resume == section.name)
    print(f"-- {section.name}: {seconds:.0f} seconds", flush=True)
    try:
        section.run(bench)
    except DeviceLostError:
        raise
    except Exception as error:  # the other sections are worth having
        bench.fail(WHOLE, error)
    bench.save()
    free(bench.device)


def start_again(given: list[str], section: str, left: list[str]) -> None:
    """Replace this process by one that goes on after the row that broke the device."""
    print("the device was lost: going on in a new process", flush=True)
    sys.stdout.flush()
    kept = [word for word in given if word != "--warm"]
    again = [*kept, "--sections", *left, "--resume", section]  # the last of each counts
    os.execv(sys.executable, [sys.executable, str(Path(__file__)), *again])


def summary(document: dict[str, Any], names: list[str]) -> bool:
    """Print targets that were missed and rows that failed; whether one did."""
    failed = False
    for name in names:
        section = document["sections"][name]
        for title, rows in section["tables"].items():
            for label, row in rows.items():
                if row.get("verdict") == "MISSED" and not section["quick"]:
                    print(f"MISSED {name} | {title}: {label} | {in_words(row)}")
        for label, why in section["failed"].items():
            print(f"FAILED {name} | {label} | {why}")
        failed |= bool(section["failed"])
    return failed


def main() -> int:
    """Measure, save, print; 1 when a row failed."""
    given = sys.argv[1:]
    options = arguments(given)
    stored = options.output / "gpu.json"
    if options.quick and options.device == "cpu":
        torch.set_num_threads(1)  # more are slower on tiny tensors
    document = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device(options.device)
    bench = Bench(device, options.output, document, options.quick, options.only, options.compiled)
    by_name = {section.name: section for section in SECTIONS}
    chosen = [by_name[name] for name in dict.fromkeys(options.sections)]
    try:
        for section in chosen:
            bench.kept(section.name, options.resume == section.name)
    except OtherConditionsError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    if options.warm:
        warm(options.sections, ["--device", options.device, *["--quick"] * options.quick])
    for number, section in enumerate(chosen):
        try:
            run_section(section, bench, options)
        except DeviceLostError:
            start_again(given, section.name, [later.name for later in chosen[number:]])
    failed = summary(document, [section.name for section in chosen])
    print(f"written to {options.output / 'gpu.md'}")
    return int(failed)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
