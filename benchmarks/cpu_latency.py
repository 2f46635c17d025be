"""The README's table: latency of the bundled model on a CPU, beside all that it competes with.

    python benchmarks/cpu_latency.py

Run it on a machine that does nothing else; it takes about ten minutes. Everything of one workload is measured
in one interleaved run. Writes cpu_latency.json and cpu_latency.md beside the other results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from targets import verdict

from selfspec.benchmarking.contenders import AR, EARLY_EXIT, GENERATE, LOOKUP, SELFSPEC, Contender
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.render import markdown_table
from selfspec.benchmarking.report import Report
from selfspec.benchmarking.session import resolve_exit_layer, run_comparison
from selfspec.cli.loading import Loaded, load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

RESULTS = Path(__file__).parent / "results"
FREE = " (not deterministic)"
ALONE = " (early exit alone)"


@dataclass(frozen=True)
class Row:
    """One table: its title, what is asked for, and the ratios [times] that selfspec has to reach."""

    title: str
    workload: Workload
    targets: dict[str, float]


SINGLE = {GENERATE: 2.4, AR: 1.4, EARLY_EXIT: 1.5}
WORKLOADS = (
    Row("Greedy, batch 1", Workload(warm_up=2), SINGLE),
    Row("Temperature 0.8, batch 1", Workload(temperature=0.8, warm_up=2), SINGLE),
    Row("Greedy, batch 8", Workload(batch=8, warm_up=1), {AR: 1.2}),
)


def contenders(exit_layer: int, settings: dict[str, Any]) -> tuple[Contender, ...]:
    """Everyone, selfspec and AR both with and without bit-equal shapes."""
    free = {**settings, "deterministic": False}
    alone = {**settings, "draft": "early_exit"}
    peer = {"assistant_early_exit": exit_layer}
    return (
        Contender(GENERATE, "the model's own generate"),
        Contender(AR, "the engine with draft length 0", {**settings, "draft_length": 0}),
        Contender(AR + FREE, "the same at the shapes that come", {**free, "draft_length": 0}),
        Contender(SELFSPEC, "the engine", settings),
        Contender(SELFSPEC + FREE, "the same at the shapes that come", free, baseline=AR + FREE),
        Contender(SELFSPEC + ALONE, "the engine, drafting with its first layers only", alone),
        Contender(EARLY_EXIT, f"built into transformers, E = {exit_layer}", arguments=peer, max_rows=1),
        Contender(
            f"{EARLY_EXIT} (4 drafts)",
            "the same, 4 drafts a round without a confidence threshold",
            arguments=peer,
            defaults={"num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0},
            max_rows=1,
        ),
        Contender(LOOKUP, "built into transformers", arguments={"prompt_lookup_num_tokens": 10}, max_rows=1),
    )


def verdicts(row: Row, report: Report) -> list[str]:
    """Each target with what was reached; selfspec is held to it in every line of its own."""
    lines = []
    for name in (SELFSPEC, SELFSPEC + ALONE, SELFSPEC + FREE):
        line = report.line(name)
        for other, least in row.targets.items():
            base = other + FREE if other == AR and name.endswith(FREE) else other
            if base not in line.faster_than:
                lines.append(f"{name} over {base}: no speed, {verdict(least, math.nan)}")
                continue
            ratio = line.faster_than[base].median
            lines.append(f"{name} over {base}: {ratio:.2f}, {verdict(least, ratio)}")
    return lines


def measure(
    loaded: Loaded, row: Row, ids: Sequence[Sequence[int]], settings: dict[str, Any], peer: int
) -> Report:
    """One workload, all contenders."""
    exit_layer = peer or resolve_exit_layer(loaded.model, settings, ids[0], loaded.pad)
    described = {"model": loaded.name, "prompts": "benchmarks/prompts/code.jsonl"}
    with progress_bar(True) as advance:
        return run_comparison(
            loaded.model, contenders(exit_layer, settings), ids, row.workload, loaded.pad, described, advance
        )


def arguments() -> argparse.Namespace:
    """The command line; the defaults are what the README shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub name; default the bundled model")
    parser.add_argument("--prompts", type=int, default=32, help="number of prompts (a multiple of 8)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--exit-layer", type=int, help="default: auto")
    parser.add_argument("--peer-exit-layer", type=int, default=3, help="of assistant_early_exit: its best")
    parser.add_argument("--draft-length", type=int, help="default: auto")
    parser.add_argument("--only", default="", help="only workloads whose title has this; the others are kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> int:
    """Measure, save, print; 1 when a target is missed."""
    options = arguments()
    settings: dict[str, Any] = {"exit_layer": options.exit_layer, "draft_length": options.draft_length}
    settings = {name: "auto" if value is None else value for name, value in settings.items()}
    loaded = load(options.model, options.dtype, "cpu", options.threads)
    texts = read_prompts(bundled_prompts())
    ids = tokenized(loaded.tokenizer, texts, options.prompt_tokens, options.prompts)
    stored = options.output / "cpu_latency.json"
    data = json.loads(stored.read_text()) if options.only and stored.exists() else {}
    missed = False
    for row in (row for row in WORKLOADS if options.only in row.title):
        workload = Workload(**{**vars(row.workload), "new_tokens": options.new_tokens})
        report = measure(
            loaded, Row(row.title, workload, row.targets), ids, settings, options.peer_exit_layer
        )
        outcome = verdicts(row, report)
        missed |= any("MISSED" in line for line in outcome)
        page = "\n".join(
            [f"## {row.title}", "", markdown_table(report), *(f"- {line}" for line in outcome), ""]
        )
        data[row.title] = report.as_dict() | {"page": page}
        print(markdown_table(report), *outcome, "", sep="\n", flush=True)
        # After every workload, so that an interruption costs one of them only.
        pages = [data[row.title]["page"] for row in WORKLOADS if row.title in data]
        write_whole(stored, json.dumps(data, indent=1) + "\n")
        write_whole(options.output / "cpu_latency.md", "\n".join(["# Latency on a CPU", "", *pages]))
    return int(missed)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
