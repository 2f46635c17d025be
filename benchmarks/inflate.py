"""Inflate a small Llama checkpoint to a large shape that writes the same text.

    python benchmarks/inflate.py --shape 1b --out /tmp/reference-1b

The text and the acceptance of drafts are then those of a real trained model, while a pass costs what the
large shape costs. Every table that uses such a model has to say so. `inflation` says how.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from inflation import inflate
from tiling import SHAPES

from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.errors import UserError, complain
from selfspec.cli.loading import load
from selfspec.cli.progress import progress_bar

_CLEAR_MARGIN = 0.125  # one bf16 step of a logit from 16 to 32: below it rounding may choose either token


@torch.no_grad()
def compare(small: Any, large: Any, prompt: Sequence[int], new_tokens: int) -> tuple[int, float, float]:
    """How far the greedy texts agree after a prompt.

    Returns:
        Equal new tokens; the source's margin between its two best logits where the texts part (inf if they do
        not); the largest difference of logits over prompt and the source's text, in logits.
    """
    ids = torch.tensor([prompt], device=small.device)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    one, other = (m.generate(ids, attention_mask=torch.ones_like(ids), **settings) for m in (small, large))
    expected, logits = small(one).logits[0].float(), large(one).logits[0].float()
    difference = (expected - logits[:, : expected.shape[1]]).abs().max().item()
    equal = int((one == other)[0, len(prompt) :].long().cumprod(dim=0).sum())
    if equal == new_tokens:
        return equal, math.inf, difference
    best = expected[len(prompt) + equal - 1].topk(2).values
    return equal, (best[0] - best[1]).item(), difference


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a folder that appears whole or not at all."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for weights in staging.glob("*.safetensors"):
            weights.chmod(0o644)  # safetensors makes its files readable by the owner alone
        staging.replace(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--vocabulary", type=int, help="number of tokens; default the shape's")
    parser.add_argument("--model", help="folder or hub name of a small Llama; default the bundled model")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=3, help="prompts that the text is compared on")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    return parser.parse_args()


def run(options: argparse.Namespace) -> int:
    """Inflate, compare, write; 1 when a text parts from the source's at no near-tie."""
    if options.out.exists():
        raise UserError(f"{options.out} is there already; name another --out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(options.model, options.dtype, "cpu", options.threads)
    shape = SHAPES[options.shape]
    if options.vocabulary is not None:
        shape = dataclasses.replace(shape, vocabulary=options.vocabulary)
    ids = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), options.prompt_tokens, None)
    with progress_bar(True) as advance:
        large = inflate(loaded.model, shape, ids[options.prompts :], advance)
    count = sum(weight.numel() for weight in large.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in large.parameters())
    print(f"{options.shape}: {count:,} parameters, {size:,} bytes in {large.dtype}", flush=True)
    wrong = False
    for number, prompt in enumerate(ids[: options.prompts]):
        equal, margin, difference = compare(loaded.model, large, prompt, options.new_tokens)
        wrong |= _CLEAR_MARGIN < margin < math.inf
        parts = "" if margin == math.inf else f"; they part where the source's margin is {margin:.3f}"
        print(
            f"prompt {number}: {equal} of {options.new_tokens} greedy tokens equal{parts}; logits differ by "
            f"up to {difference:.3g}",
            flush=True,
        )
    if wrong:
        raise UserError("the inflated model writes another text; nothing was written")
    save(large, loaded.tokenizer, options.out)
    return 0


def main() -> int:
    """The command, with mistakes told in one line."""
    try:
        return run(arguments())
    except (UserError, ValueError, OSError) as error:
        return complain(error, 2)


if __name__ == "__main__":
    sys.exit(main())
