"""The default over AR on every kind of text, for small models: it may win, and lose three percent at most.

    python benchmarks/never_slower.py --dtype float32
    python benchmarks/never_slower.py --dtype float32 --only "random weights" --prompts 40

Code, chat and arithmetic, greedy and at temperature 0.8, for the model trained for early exit, for its plain
twin, and for one of random weights, on which nothing pays. AR runs twice: what it differs from itself is the
machine's. Beside it stands the model's own generate, whose passes are not padded. Writes never_slower.json
and never_slower.md; --only keeps the other models' rows. Run it on a machine that does nothing else; the
first command takes about twenty minutes on two cores, the second half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from strategies_page import AUTO
from targets import met, verdict
from tuner_races import random_twin

from selfspec.benchmarking.contenders import AR, GENERATE, Contender
from selfspec.benchmarking.environment import named_versions
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.report import Report
from selfspec.benchmarking.session import run_comparison
from selfspec.benchmarking.statistics import median_interval, paired_ratios
from selfspec.cli.loading import Loaded, load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

HERE = Path(__file__).parent
Rows = dict[str, dict[str, Any]]
"""Case -> what was found."""
TARGET = 0.97
TEXTS = {
    "code": bundled_prompts(),
    "code to complete": HERE / "prompts" / "humaneval.jsonl",
    "chat": HERE / "prompts" / "mt_bench.jsonl",
    "arithmetic": HERE / "prompts" / "gsm8k.jsonl",
}
RATIOS = ("over_ar", "again_over_ar", "over_generate")
AGAIN = "AR, again"
RANDOM = "random weights"
MODELS = {"reference": None, "plain twin": str(HERE / "plain_twin"), RANDOM: None}
"""Folders; None for the bundled one."""
CONTENDERS = (
    Contender(GENERATE, "the model's own generate"),
    Contender(AR, "the engine without drafts", {"draft_length": 0}),
    Contender(AGAIN, "the same", {"draft_length": 0}),
    Contender(AUTO, "the default: measures and chooses", {}),
)


def models(options: argparse.Namespace) -> Iterator[tuple[str, Loaded, Any]]:
    """Name, what was loaded, and the model."""
    for name, folder in MODELS.items():
        if options.only in (None, name):
            loaded = load(folder, options.dtype, "cpu", options.threads)
            yield name, loaded, random_twin(loaded.model) if name == RANDOM else loaded.model


def measure(model: Any, loaded: Loaded, file: Path, workload: Workload, length: int, count: int) -> Report:
    """All contenders on the first prompts of a file, cut to `length` tokens."""
    ids = tokenized(loaded.tokenizer, read_prompts(file), None, count)
    with progress_bar(True) as advance:
        return run_comparison(
            model, CONTENDERS, [tokens[:length] for tokens in ids], workload, loaded.pad, {}, advance
        )


def row(report: Report) -> dict[str, Any]:
    """What the page says of one case; no speed where the text is another."""
    line, seconds = report.line(AUTO), {line.name: line.seconds for line in report.lines}

    def ratios(base: str, name: str) -> list[float] | None:
        """None where one of both wrote another text: there are no seconds then."""
        return paired_ratios(seconds[base], seconds[name]) if seconds[base] and seconds[name] else None

    return {
        "over_ar": ratios(AR, AUTO),
        "again_over_ar": ratios(AR, AGAIN),
        "over_generate": ratios(GENERATE, AUTO),
        "acceptance_length": line.acceptance_length,
        "distinct_3grams": line.distinct_3grams,
        "text": line.checked,
        "drafts": line.about,
        "conditions": dict(report.conditions),
    }


def least(rows: Rows) -> float:
    """The worst case: over AR, NaN where the default wrote another text."""
    found = [math.nan if own["over_ar"] is None else median(own["over_ar"]) for own in rows.values()]
    return math.nan if any(map(math.isnan, found)) else min(found)


def together(rows: Rows, model: str, ratio: str) -> list[float]:
    """The ratios of all cases of a model."""
    cases = [own[ratio] or [] for name, own in rows.items() if name.startswith(f"{model}, ")]
    return [found for case in cases for found in case]


def in_words(ratios: Sequence[float] | None) -> str:
    """A median and its interval."""
    if not ratios:
        return "refused"
    low, high = median_interval(ratios)
    return f"{median(ratios):.2f} ({low:.2f}-{high:.2f})"


def page(rows: Rows, options: argparse.Namespace) -> str:
    """A row a case, and the verdict."""
    lines = [
        "# Never slower",
        "",
        "The default over AR and over generate, whole calls: the median of paired ratios, and the interval",
        "in which the true one lies with a chance of 95% (92% for eight calls).",
        "",
        "| | over AR | AR again over AR | over generate | acceptance length | distinct 3-grams | same text |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, own in rows.items():
        length = own["acceptance_length"]
        cells = [
            name,
            *(in_words(own[ratio]) for ratio in RATIOS),
            "" if length is None else f"{length:.2f}",
            f"{own['distinct_3grams']:.2f}",
            own["text"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    about = next(reversed(rows.values()))["conditions"]
    versions = named_versions(about["versions"])
    for model in MODELS:
        found = [together(rows, model, ratio) for ratio in RATIOS]
        if any(found):
            lines.append(f"| **{model}, {len(found[0])} calls** | {' | '.join(map(in_words, found))} | | | |")
    lines += [
        "",
        f"- the least is {least(rows):.3f}; {verdict(TARGET, least(rows))}",
        f"- {about['hardware']}, {about['threads']} threads, {about['dtype']}, batch 1, prompts of up to "
        f"{options.prompt_tokens} tokens, {options.new_tokens} new tokens each. {versions}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, save after every case, print; 1 where a case is below the target or writes another text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MODELS, help="one of the models; the rows of the others are kept")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    stored = options.output / "never_slower.json"
    rows: Rows = json.loads(stored.read_text()) if options.only and stored.exists() else {}
    for name, loaded, model in models(options):
        for text, file in TEXTS.items():
            for temperature in (None, 0.8):
                decoding = "greedy" if temperature is None else f"temperature {temperature:g}"
                workload = Workload(new_tokens=options.new_tokens, temperature=temperature, warm_up=1)
                report = measure(model, loaded, file, workload, options.prompt_tokens, options.prompts)
                rows[f"{name}, {text}, {decoding}"] = row(report)
                write_whole(stored, json.dumps(rows, indent=1) + "\n")
                write_whole(stored.with_suffix(".md"), page(rows, options))
    print(page(rows, options))
    return int(not met(TARGET, least(rows)))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
