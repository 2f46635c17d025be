"""Whether every draft strategy writes the target's text, on 100 held-out prompts and both small models.

    python benchmarks/same_text.py
    python benchmarks/same_text.py --resume

Greedy text is compared with the model's own generate: in fp32 it is equal; in bf16 every difference is shown
to be a near-tie. Sampled text is compared with AR's under the same seed, to which it is equal in both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from strategies import contenders
from strategies_page import AR_ONE_ROW

from selfspec.benchmarking.contenders import EARLY_EXIT, LOOKUP
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.report import Report
from selfspec.benchmarking.session import run_comparison
from selfspec.cli.loading import load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

HERE = Path(__file__).parent
NOT_OURS = (AR_ONE_ROW, EARLY_EXIT, LOOKUP)


def check(folder: str | None, dtype: str, temperature: float | None, options: argparse.Namespace) -> Report:
    """All strategies on one model, in one dtype, decoded in one way."""
    loaded = load(folder, dtype, "cpu", options.threads)
    ids = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), options.prompt_tokens, options.prompts)
    workload = Workload(
        new_tokens=options.new_tokens, temperature=temperature, batch=options.batch, warm_up=0
    )
    ours = [contender for contender in contenders(3) if contender.name not in NOT_OURS]
    with progress_bar(True) as advance:
        return run_comparison(loaded.model, ours, ids, workload, loaded.pad, {}, advance)


def page(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """A row per strategy and a column per model, dtype and decoding."""
    about = str(__doc__).split("\n\n")[2]
    asked = f"{options.prompts} prompts of {options.prompt_tokens} tokens, {options.new_tokens} new tokens"
    lines = [
        "# Same text",
        "",
        about,
        "",
        f"{asked}, batch {options.batch}.",
        "",
    ]
    lines += [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    names = [line["name"] for line in next(iter(found.values()))["lines"]]
    for number, name in enumerate(names[1:], 1):
        cells = (report["lines"][number]["checked"] for report in found.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Check, save, print; 1 when a text is another one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--twin", default=str(HERE / "plain_twin"), help="folder of the plain twin")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on after the cases that are saved")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    saved = options.output / "same_text.json"
    found: dict[str, dict[str, Any]] = json.loads(saved.read_text()) if options.resume else {}
    for model, folder in (("reference", None), ("plain twin", options.twin)):
        for dtype in ("float32", "bfloat16"):
            for decoding, temperature in (("greedy", None), ("temperature 0.8", 0.8)):
                name = f"{model}, {dtype}, {decoding}"
                if name in found:
                    continue
                print(name, file=sys.stderr, flush=True)
                found[name] = check(folder, dtype, temperature, options).as_dict()
                write_whole(saved, json.dumps(found, indent=1) + "\n")
                write_whole(options.output / "same_text.md", page(found, options))
    print(page(found, options))
    return int(any(line["refused"] for report in found.values() for line in report["lines"]))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
