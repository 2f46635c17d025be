"""The default over AR on every kind of text, for small models: it may win, and must not lose.

    python benchmarks/never_slower.py
    python benchmarks/never_slower.py --dtype float32 --output benchmarks/results/without_avx512

Code, chat and arithmetic, greedy and at temperature 0.8, for the model trained for early exit, for its plain
twin, and for one of random weights, on which nothing pays. Writes never_slower.json and never_slower.md. Run
it on a machine that does nothing else; it takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from strategies_page import AUTO
from targets import verdict
from tuner_races import random_twin

from selfspec.benchmarking.contenders import AR, GENERATE, Contender
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.report import Line
from selfspec.benchmarking.session import run_comparison
from selfspec.cli.loading import Loaded, load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

HERE = Path(__file__).parent
TARGET = 0.97
TEXTS = {"code": bundled_prompts()} | {
    name: HERE / "prompts" / f"{file}.jsonl"
    for name, file in {"code to complete": "humaneval", "chat": "mt_bench", "arithmetic": "gsm8k"}.items()
}
RANDOM = "random weights"
MODELS = {"reference": None, "plain twin": str(HERE / "plain_twin"), RANDOM: None}
"""Folders; None for the bundled one."""
CONTENDERS = (
    Contender(GENERATE, "the model's own generate"),
    Contender(AR, "the engine without drafts", {"draft_length": 0}),
    Contender(AUTO, "the default: measures and chooses", {}),
)


def models(options: argparse.Namespace) -> Iterator[tuple[str, Loaded, Any]]:
    """Name, what was loaded, and the model."""
    for name, folder in MODELS.items():
        if options.only in (None, name):
            loaded = load(folder, options.dtype, "cpu", options.threads)
            yield name, loaded, random_twin(loaded.model) if name == RANDOM else loaded.model


def row(line: Line) -> dict[str, Any]:
    """What the page says of the default in one case; no speed where its text is another."""
    over = line.faster_than.get(AR)
    return {
        "over_ar": None if over is None else over.as_dict(),
        "acceptance_length": line.acceptance_length,
        "distinct_3grams": line.distinct_3grams,
        "text": line.checked,
        "drafts": line.about,
    }


def page(rows: dict[str, dict[str, Any]], conditions: dict[str, Any], options: argparse.Namespace) -> str:
    """A row a case, and the verdict."""
    lines = [
        "# Never slower",
        "",
        'The default (`draft="auto"`) over AR, whole calls, median of paired ratios.',
        "",
    ]
    lines += ["| | over AR | acceptance length | distinct 3-grams | same text |", "|---|---:|---:|---:|---|"]
    for name, found in rows.items():
        over, length = found["over_ar"], found["acceptance_length"]
        speed = "refused" if over is None else f"{over['median']:.2f} ({over['p20']:.2f}-{over['p80']:.2f})"
        tokens = "" if length is None else f"{length:.2f}"
        lines.append(f"| {name} | {speed} | {tokens} | {found['distinct_3grams']:.2f} | {found['text']} |")
    least = min(0.0 if found["over_ar"] is None else found["over_ar"]["median"] for found in rows.values())
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    lines += [
        "",
        f"- the least is {least:.3f}; {verdict(TARGET, least)}",
        f"- {conditions['hardware']}, {conditions['threads']} threads, {conditions['dtype']}, batch 1, "
        f"{options.prompts} prompts of up to {options.prompt_tokens} tokens each, {options.new_tokens} new "
        f"tokens. {versions}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, save after every case, print; 1 when the default loses somewhere or writes another text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    text = ""
    for model_name, loaded, model in models(options):
        for prompts, file in TEXTS.items():
            ids = tokenized(loaded.tokenizer, read_prompts(file), None, options.prompts)
            ids = [tokens[: options.prompt_tokens] for tokens in ids]
            for temperature in (None, 0.8):
                decoding = "greedy" if temperature is None else f"temperature {temperature:g}"
                name = f"{model_name}, {prompts}, {decoding}"
                workload = Workload(new_tokens=options.new_tokens, temperature=temperature, warm_up=1)
                with progress_bar(True) as advance:
                    report = run_comparison(model, CONTENDERS, ids, workload, loaded.pad, {}, advance)
                rows[name] = row(report.line(AUTO))
                conditions = dict(report.conditions)
                text = page(rows, conditions, options)
                stored = json.dumps({"rows": rows, "conditions": conditions}, indent=1)
                write_whole(options.output / "never_slower.json", stored + "\n")
                write_whole(options.output / "never_slower.md", text)
    print(text)
    return int("MISSED" in text)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
