"""What the strategies should give on a GPU: predicted from acceptance and bytes moved, until it is measured.

    python benchmarks/gpu_prediction.py --twin benchmarks/plain_twin

Acceptance is that of the small models on held-out code (teacher-forced: agreement of first choices for greedy
text, one minus total variation for sampled text). A pass of an 8B shape takes its bytes over the memory's
bandwidth; verification is taken to cost 5% more than a plain step, and launches nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import NoCache
from layer_skip.low_bit import LowBitView
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import load
from selfspec.files import write_whole
from selfspec.tuning.knowledge import expected_tokens

BANDWIDTH = 4.3e12
"""Bytes per second of a copy, as measured on an H200."""
LAYERS, LAYER_BYTES, HEAD_BYTES = 32, 436e6, 1.05e9
"""Llama-3-8B in bf16."""
LOW_BIT_SHARE = 0.29
VERIFICATION = 1.05
TEMPERATURE = 0.8
LONGEST = 12


@dataclass(frozen=True)
class Prediction:
    """One way to draft, and what it should give."""

    draft: str
    chance: float
    length: int
    speedup: float


def step_seconds(layers: float, share: float = 1.0) -> float:
    """Seconds of a pass of `layers` layers and the head, their weights `share` of what bf16 takes."""
    return share * (layers * LAYER_BYTES + HEAD_BYTES) / BANDWIDTH


def predict(draft: str, chance: float, draft_seconds: float) -> Prediction:
    """The best draft length, and the speed over AR with it."""
    full = step_seconds(LAYERS)
    speeds = {
        k: expected_tokens(chance, k) * full / (k * draft_seconds + VERIFICATION * full)
        for k in range(1, LONGEST + 1)
    }
    best = max(speeds, key=lambda k: speeds[k])
    return Prediction(draft, chance, best, speeds[best])


@torch.inference_mode()
def distributions(decoder: LayeredDecoder, tokens: Sequence[int], exits: Sequence[int]) -> Iterator[Tensor]:
    """The distributions [T, V] that each exit gives along a text, in one pass."""
    positions = torch.arange(len(tokens))[None]
    span = decoder.span(positions, len(tokens), 0)
    states: dict[int, Tensor] = {}
    hidden = decoder.embed(torch.tensor([list(tokens)]), span)
    decoder.run(hidden, 0, decoder.n_layers, span, NoCache(), states.__setitem__)
    for exit_layer in exits:
        yield decoder.logits(states[exit_layer])[0].float()


def chances(model: Any, prompts: Sequence[Sequence[int]]) -> dict[str, tuple[float, float]]:
    """Draft -> (agreement, 1 - total variation at TEMPERATURE), over all positions of the prompts."""
    decoder = LayeredDecoder(model)
    depth = decoder.n_layers
    view = LowBitView(decoder, depth).of(decoder)
    exits = sorted({max(1, depth // 8), max(1, depth // 4), depth // 2})
    found: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        *early, full = distributions(decoder, prompt, [*exits, depth])
        rounded = list(distributions(view, prompt, [*exits, depth]))
        names = [f"bf16, E = L/{depth // e}" for e in exits] + [f"4-bit, E = L/{depth // e}" for e in exits]
        for name, logits in zip([*names, "4-bit, all layers"], [*early, *rounded], strict=True):
            same = (logits.argmax(-1) == full.argmax(-1)).float()
            p, q = ((x / TEMPERATURE).softmax(-1) for x in (full, logits))
            found.setdefault(name, []).append(torch.stack([same, torch.minimum(p, q).sum(-1)]))
    return {name: tuple(torch.cat(parts, dim=1).mean(dim=1).tolist()) for name, parts in found.items()}


def predictions(measured: dict[str, tuple[float, float]], sampled: bool) -> list[Prediction]:
    """A prediction for every way to draft."""
    rows = []
    for name, both in measured.items():
        share = LOW_BIT_SHARE if name.startswith("4-bit") else 1.0
        layers = LAYERS if "all" in name else LAYERS / int(name.rsplit("/", 1)[1])
        rows.append(predict(name, both[sampled], step_seconds(layers, share)))
    return rows


def main() -> int:
    """Measure acceptance on the small models, predict, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--twin", type=Path, default=Path(__file__).parent / "plain_twin")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    lines = [
        "# Prediction, not measurement: an 8B shape on an H200-class GPU, batch 1",
        "",
        str(__doc__).split("\n\n")[2],
        "",
    ]
    lines += [
        "| model | draft | greedy: agreement, K, times AR | temperature 0.8: 1 - TV, K, times AR |",
        "|---|---|---|---|",
    ]
    for name, folder in (("trained for early exit", None), ("plain twin", str(options.twin))):
        loaded = load(folder, "bfloat16", "cpu")
        prompts = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), 128, options.prompts)
        measured = chances(loaded.model, prompts)
        for greedy, sampled in zip(predictions(measured, False), predictions(measured, True), strict=True):
            cells = [f"{p.chance:.2f}, {p.length}, {p.speedup:.2f}" for p in (greedy, sampled)]
            lines.append(f"| {name} | {greedy.draft} | {cells[0]} | {cells[1]} |")
    print("\n".join(lines))
    write_whole(options.output / "gpu_prediction.md", "\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
