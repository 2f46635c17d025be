"""Whether every draft strategy writes the target's text, on 100 held-out prompts and both small models.

    python benchmarks/same_text.py
    python benchmarks/same_text.py --resume
    python benchmarks/same_text.py --only "low bit, tree"

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

from selfspec.benchmarking.contenders import AR, EARLY_EXIT, GENERATE, LOOKUP
from selfspec.benchmarking.environment import named_versions
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.benchmarking.report import Report
from selfspec.benchmarking.session import run_comparison
from selfspec.cli.loading import load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

HERE = Path(__file__).parent
NOT_OURS = (AR_ONE_ROW, EARLY_EXIT, LOOKUP)
ROWS = [contender.name for contender in contenders(3) if contender.name not in (*NOT_OURS, GENERATE, AR)]
STATIC_TREE = {"draft": "low_bit", "tree": (0, 0, 1, 1, 2, 3, 5, 7)}
"""Any will do: firsts and seconds, and one path that is deeper than the others."""


def check(folder: str | None, dtype: str, temperature: float | None, options: argparse.Namespace) -> Report:
    """All strategies on one model, in one dtype, decoded in one way."""
    loaded = load(folder, dtype, "cpu", options.threads)
    ids = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), options.prompt_tokens, options.prompts)
    workload = Workload(
        new_tokens=options.new_tokens, temperature=temperature, batch=options.batch, warm_up=0
    )
    ours = [contender for contender in contenders(3, STATIC_TREE) if contender.name not in NOT_OURS]
    if options.only:
        ours = [contender for contender in ours if contender.name in (GENERATE, AR, options.only)]
    with progress_bar(True) as advance:
        return run_comparison(loaded.model, ours, ids, workload, loaded.pad, {}, advance)


def merged(old: dict[str, Any], new: dict[str, Any], name: str) -> dict[str, Any]:
    """A report with the line of one strategy from a newer one, which keeps its own conditions."""
    (line,) = (line for line in new["lines"] if line["name"] == name)
    line |= {"conditions": new["conditions"]}
    names = [known["name"] for known in old["lines"]]
    lines = [line if known["name"] == name else known for known in old["lines"]]
    return old | {"lines": lines if name in names else [*lines, line]}


def page(found: dict[str, dict[str, Any]]) -> str:
    """A row per strategy and a column per model, dtype and decoding."""
    last = list(found.values())[-1]
    asked = last["workload"]
    lines = [
        "# Same text",
        "",
        str(__doc__).split("\n\n")[2],
        "",
        f"{last['n_prompts']} prompts of {last['prompt_tokens'][1]} tokens, {asked['new_tokens']} new ones, "
        f"batch {asked['batch']}. {_place(last['conditions'])}",
        "",
    ]
    lines += [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    names = [line["name"] for line in next(iter(found.values()))["lines"]]
    for name in names[1:]:
        checked = ({line["name"]: line["checked"] for line in report["lines"]} for report in found.values())
        cells = (of_case.get(name, "") for of_case in checked)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    again = [line for line in last["lines"] if "conditions" in line]
    lines += [f"\n{line['name']}: {_place(line['conditions'])}" for line in again]
    return "\n".join([*lines, ""])


def _place(conditions: dict[str, Any]) -> str:
    versions = named_versions(conditions["versions"])
    return f"{conditions['hardware']}, threads: {conditions['threads']}. {versions}."


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
    saved_ones = parser.add_mutually_exclusive_group()
    saved_ones.add_argument("--resume", action="store_true", help="go on after the cases that are saved")
    saved_ones.add_argument(
        "--only", choices=ROWS, help="check this strategy alone, on the texts of the results that are kept"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    saved = options.output / "same_text.json"
    found: dict[str, dict[str, Any]] = {}
    if options.resume or options.only:
        found = json.loads(saved.read_text())
    if options.only:
        before = next(iter(found.values()))
        options.prompts, options.prompt_tokens = before["n_prompts"], before["prompt_tokens"][1]
        options.new_tokens, options.batch = (before["workload"][key] for key in ("new_tokens", "batch"))
    for model, folder in (("reference", None), ("plain twin", options.twin)):
        for dtype in ("float32", "bfloat16"):
            for decoding, temperature in (("greedy", None), ("temperature 0.8", 0.8)):
                name = f"{model}, {dtype}, {decoding}"
                if name in found and not options.only:
                    continue
                print(name, file=sys.stderr, flush=True)
                report = check(folder, dtype, temperature, options).as_dict()
                found[name] = merged(found[name], report, options.only) if options.only else report
                write_whole(saved, json.dumps(found, indent=1) + "\n")
                write_whole(options.output / "same_text.md", page(found))
    print(page(found))
    return int(any(line["refused"] for report in found.values() for line in report["lines"]))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
