"""How often a low-bit view of a model chooses what the model chooses, along held-out code.

    python benchmarks/view_agreement.py
    python benchmarks/view_agreement.py --prompts 8

All layers and the head are viewed, and every token is predicted from the text before it. "In its first two":
among the two candidates that a chain with siblings would verify.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_page import table
from gpu_prediction import exit_logits
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.int8_product import int8_is_fastest
from layer_skip.low_bit import LowBitView
from layer_skip.rounding import Rounded
from selfspec.benchmarking.environment import conditions, named_versions
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import load
from selfspec.files import write_whole

HERE = Path(__file__).parent
MODELS = {"reference": None, "plain twin": str(HERE / "plain_twin")}


def from_largest(weight: Tensor, bits: int, group: int, dtype: torch.dtype) -> Rounded:
    """What `round_weights` is compared with: levels about 0 up to each group's largest weight."""
    top = 2 ** (bits - 1)
    groups = weight.float().view(len(weight), -1, group)
    scale = (groups.abs().amax(dim=-1, keepdim=True) / (top - 1)).clamp(min=1e-10).to(dtype)
    levels = (groups / scale.float()).round().clamp(1 - top, top - 1) + top
    return Rounded(
        levels.to(torch.uint8).view_as(weight), scale[..., 0], torch.zeros_like(scale[..., 0]), bits
    )


def ways() -> Iterator[tuple[str, int, AbstractContextManager[Any]]]:
    """What is compared: a name, the bits, and what is put in another's place meanwhile."""
    yield (
        "4 bits, scaled by the largest of a group",
        4,
        patch("layer_skip.packed_linear.round_weights", from_largest),
    )
    yield "4 bits, scale and offset refitted", 4, nullcontext()
    yield "8 bits", 8, patch("layer_skip.low_bit.int8_is_fastest", lambda: False)
    if int8_is_fastest():
        yield "8 bits, inputs rounded too", 8, patch("layer_skip.low_bit.LEAST_FOR_INT8", 0)


def logits(decoder: LayeredDecoder, tokens: Sequence[int]) -> Tensor:
    """[T, V] behind all layers."""
    return next(exit_logits(decoder, tokens, [decoder.n_layers]))


def agreement(decoder: LayeredDecoder, view: LowBitView, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of the tokens of all texts."""
    same, found = [], []
    for text in texts:
        own = logits(decoder, text).argmax(dim=-1, keepdim=True)
        two = logits(view.of(decoder), text).topk(2).indices
        same.append(two[:, :1] == own)
        found.append((two == own).any(dim=-1))
    return {
        "its first": float(torch.cat(same).float().mean()),
        "in its first two": float(torch.cat(found).float().mean()),
        "share of the weights": view.bytes / view.viewed_bytes,
    }


def page(found: dict[str, Any]) -> str:
    """A table for both models."""
    lines = ["# Agreement of low-bit views", "", str(__doc__).split("\n\n")[2], ""]
    lines += [
        *table(found["views"]),
        "",
        f"{found['texts']} texts of {found['tokens']} tokens of benchmarks/prompts/code.jsonl, "
        f"{found['dtype']}, {found['hardware']}. "
        f"{named_versions(found['versions'])}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Compare, save, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    found: dict[str, Any] = {"views": {}}
    for model, folder in MODELS.items():
        loaded = load(folder, "float32", "cpu", options.threads)
        decoder = LayeredDecoder(loaded.model)
        code = read_prompts(bundled_prompts())
        texts = tokenized(loaded.tokenizer, code, options.prompt_tokens, options.prompts)
        found |= conditions(loaded.model) | {"texts": len(texts), "tokens": options.prompt_tokens}
        for way, bits, meanwhile in ways():
            with meanwhile:
                view = LowBitView(decoder, decoder.n_layers, bits)
            found["views"][f"{model}: {way}"] = agreement(decoder, view, texts)
    write_whole(options.output / "view_agreement.json", json.dumps(found, indent=1) + "\n")
    write_whole(options.output / "view_agreement.md", page(found))
    print(page(found))
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
