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


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A report with the lines of a newer one in place of its own of those names.

    Raises:
        SystemExit: they did not check the same.
    """
    same = all(old[key] == new[key] for key in ("workload", "n_prompts", "prompt_tokens"))
    if not same:
        raise SystemExit("the stored results are of other prompts or lengths: ask for the same, or for all")
    lines = {line["name"]: line for line in new["lines"]}
    return old | {"lines": [lines.get(line["name"], line) for line in old["lines"]]}


def page(found: dict[str, dict[str, Any]]) -> str:
    """A row per strategy and a column per model, dtype and decoding."""
    last = list(found.values())[-1]
    asked, on = last["workload"], last["conditions"]
    lines = [
        "# Same text",
        "",
        str(__doc__).split("\n\n")[2],
        "",
        f"{last['n_prompts']} prompts of {last['prompt_tokens'][1]} tokens, {asked['new_tokens']} new ones, "
        f"batch {asked['batch']}. {on['hardware']}, threads: {on['threads']}. "
        f"{named_versions(on['versions'])}.",
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
    parser.add_argument("--only", default="", help="check this strategy alone; the others' rows are kept")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    saved = options.output / "same_text.json"
    kept = options.resume or options.only
    found: dict[str, dict[str, Any]] = json.loads(saved.read_text()) if kept else {}
    for model, folder in (("reference", None), ("plain twin", options.twin)):
        for dtype in ("float32", "bfloat16"):
            for decoding, temperature in (("greedy", None), ("temperature 0.8", 0.8)):
                name = f"{model}, {dtype}, {decoding}"
                if name in found and not options.only:
                    continue
                print(name, file=sys.stderr, flush=True)
                report = check(folder, dtype, temperature, options).as_dict()
                found[name] = merged(found[name], report) if options.only else report
                write_whole(saved, json.dumps(found, indent=1) + "\n")
                write_whole(options.output / "same_text.md", page(found))
    print(page(found))
    return int(any(line["refused"] for report in found.values() for line in report["lines"]))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
