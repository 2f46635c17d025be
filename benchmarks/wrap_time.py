"""What `wrap` takes on a model of 1B parameters, and what the first call takes more than later ones.

    python benchmarks/wrap_time.py

The self-check and the low-bit view are timed apart; the default's trial of one layer is not. Whatever a
library prepares once for a process is prepared before. The least of a few repeats; run it on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from inflation import inflate
from targets import met, verdict
from tiling import SHAPES

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.self_check import check_decoder
from selfspec.benchmarking.environment import conditions, named_versions
from selfspec.cli.loading import load
from selfspec.files import write_whole
from selfspec.shapes import forget_probes
from selfspec.views import make_view

TARGETS = {"the rest": 1.0, "low-bit view": 20.0}
"""Seconds that a part of wrapping may take."""
SETTINGS: dict[str, dict[str, Any]] = {
    "early exit, E and K given": {"draft": "early_exit", "exit_layer": 4, "draft_length": 4},
    "low bit, E and K given": {"draft": "low_bit", "exit_layer": 16, "draft_length": 6},
    "the default": {},
}
COLUMNS = ("wrap", "of it self-check", "low-bit view", "the rest", "first call's extra")


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(model: Any, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of one wrap and its parts; the model is unwrapped again."""
    forget_probes()
    views: list[float] = []

    def timed_view(*arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        made = make_view(*arguments, **more)
        views.append(time.perf_counter() - began)
        return made

    with patch("selfspec.views.make_view", timed_view):
        whole = seconds(lambda: selfspec.wrap(model, **settings))
    view = sum(views)
    ids = torch.arange(8, 16)[None]
    calls = [seconds(lambda: model.generate(ids, max_new_tokens=4, do_sample=False)) for _ in range(3)]
    selfspec.unwrap(model)
    check = seconds(lambda: check_decoder(model, LayeredDecoder(model)))
    parts = (whole, check, view, whole - check - view, calls[0] - min(calls[1:]))
    return dict(zip(COLUMNS, parts, strict=True))


def main() -> int:
    """Measure, save, print; 1 when a wrap takes longer than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model = inflate(load(None, options.dtype, "cpu", options.threads).model, SHAPES[options.shape])
    found: dict[str, dict[str, float]] = {}
    for name, settings in SETTINGS.items():
        runs = [measure(model, settings) for _ in range(options.repeats)]
        found[name] = {column: min(run[column] for run in runs) for column in COLUMNS}
    taken = {part: [row[part] for row in found.values()] for part in TARGETS}
    lines = [f"| seconds | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    lines += [f"| {name} | {' | '.join(f'{x:.2f}' for x in row.values())} |" for name, row in found.items()]
    about = conditions(model)
    page = [
        "# Wrap time",
        "",
        str(__doc__).split("\n\n")[2],
        "",
        *lines,
        "",
        *(
            f"- {part}, most seconds: {max(numbers):.2f}; {verdict(TARGETS[part], *numbers, most=True)}"
            for part, numbers in taken.items()
        ),
        f"- the bundled model inflated to {options.shape}, {about['dtype']}, {about['hardware']}, "
        f"{about['threads']} threads. {named_versions(about['versions'])}.",
        "",
    ]
    write_whole(options.output / "wrap_time.json", json.dumps({"seconds": found, **about}, indent=1) + "\n")
    write_whole(options.output / "wrap_time.md", "\n".join(page))
    print("\n".join(page))
    return int(not all(met(TARGETS[part], *numbers, most=True) for part, numbers in taken.items()))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
