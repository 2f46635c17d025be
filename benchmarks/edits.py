"""Lookup on edits: a file in the prompt, written again whole with one name changed, at the 1B shape.

    python benchmarks/edits.py --model benchmarks/plain_twin

The small models behind the inflated ones cannot follow an instruction, so the text is given: a logits
processor makes the next token of the edited file the likeliest, for every contender alike. Drafts that see
the model's scores would see it as well; so only those are measured that draft from the text alone.
"""

from __future__ import annotations

import argparse
import json
import keyword
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from inflation import inflate
from strategies_page import AR_ONE_ROW, fastest_ar
from targets import verdict
from tiling import SHAPES
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import selfspec
from selfspec.benchmarking.contenders import AR, GENERATE, LOOKUP, Contender
from selfspec.benchmarking.measure import Workload
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts
from selfspec.benchmarking.render import markdown_table
from selfspec.benchmarking.session import run_comparison
from selfspec.cli.loading import load
from selfspec.cli.progress import progress_bar
from selfspec.files import write_whole

TARGET = 4.0
Edit = tuple[list[int], list[int]]
"""Token ids of a prompt and of the edited file that answers it."""


@selfspec.rowwise
class GivenText(LogitsProcessor):
    """Makes each edit's next token far likelier than all others."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._texts = {tuple(prompt): prompt + answer for prompt, answer in edits}
        self._lengths = sorted({len(prompt) for prompt, _ in edits})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [1, V] with the given token of this prompt raised."""
        (ids,) = input_ids.tolist()
        text = next(t for n in self._lengths if (t := self._texts.get(tuple(ids[:n]))))
        scores = scores.clone()
        scores[:, text[min(len(ids), len(text) - 1)]] += 1e4
        return scores


def edits(tokenizer: Any, files: Sequence[str], least: int) -> Iterator[Edit]:
    """A small edit of each file of `least` tokens: the rarest of its repeated names gets another."""
    for text in files:
        names = Counter(re.findall(r"\b[a-z][a-z_0-9]{3,}\b", text))
        names = Counter({name: n for name, n in names.items() if n > 1 and not keyword.iskeyword(name)})
        if not names:
            continue
        name = min(names, key=lambda n: names[n])
        edited = re.sub(rf"\b{name}\b", f"other_{name}", text)
        prompt = f"{text.rstrip()}\n\n\n# The same, with {name} renamed to other_{name}:\n"
        answer = tokenizer(edited, add_special_tokens=False)["input_ids"]
        if len(answer) >= least:
            yield tokenizer(prompt)["input_ids"], answer


def contenders(edits: Sequence[Edit]) -> list[Contender]:
    """Who is measured."""
    given = {"logits_processor": LogitsProcessorList([GivenText(edits)])}
    plain = {"draft_length": 0}
    lookup = {**given, "prompt_lookup_num_tokens": 10}
    return [
        Contender(GENERATE, "the model's own generate", arguments=given),
        Contender(AR, "the engine without drafts, passes padded to bit-equal shapes", plain, given),
        Contender(
            AR_ONE_ROW,
            "the same without padding",
            {**plain, "deterministic": False},
            given,
            baseline=AR_ONE_ROW,
        ),
        Contender("lookup", "a suffix automaton over the text so far", {"draft": "lookup"}, given),
        Contender(LOOKUP, "built into transformers", arguments=lookup, max_rows=1),
    ]


def arguments() -> argparse.Namespace:
    """The command line; the defaults are what the README shows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a small Llama; default the bundled model")
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=112, help="at most the tokens of a file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> int:
    """Measure, save, print; 1 when the target is missed."""
    options = arguments()
    loaded = load(options.model, "bfloat16", "cpu", options.threads)
    files = read_prompts(bundled_prompts())
    chosen = list(edits(loaded.tokenizer, files, options.new_tokens + 16))[: options.prompts]
    model = inflate(loaded.model, SHAPES[options.shape])
    name = f"{Path(loaded.name).name}, inflated to {options.shape}"
    described = {"model": name, "prompts": "edits of code.jsonl"}
    workload = Workload(new_tokens=options.new_tokens)
    prompts = [prompt for prompt, _ in chosen]
    with progress_bar(True) as advance:
        report = run_comparison(model, contenders(chosen), prompts, workload, loaded.pad, described, advance)
    base = fastest_ar(report)
    ratio = report.line("lookup").faster_than[base].median
    outcome = f"lookup over {base}: {ratio:.2f}, {verdict(TARGET, ratio)}"
    about = str(__doc__).split("\n\n")[2]
    page = f"# Edits\n\n{about}\n\n{described['model']}\n\n{markdown_table(report)}\n- {outcome}\n"
    write_whole(options.output / "edits.json", json.dumps(report.as_dict(), indent=1) + "\n")
    write_whole(options.output / "edits.md", page)
    print(page)
    return int(ratio < TARGET)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
