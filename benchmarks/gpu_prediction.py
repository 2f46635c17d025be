"""What the strategies should give on a GPU: predicted from acceptance and bytes moved, until it is measured.

    python benchmarks/gpu_prediction.py

Acceptance is that of the small models on held-out code, teacher-forced: how often draft and target choose
the same token, for sampled text under the same noise. A pass of an 8B shape takes its bytes over the memory's
bandwidth; verification is taken to cost 5% more than a plain step, and launching nothing. Layers in 3 and 2
bits, which no view has, are rounded as those in 4 bits are. The head is in 8 bits where agreement is
measured, as views of small models keep it on a CPU, and in the layers' bits where time is: few bits look
better than they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import NoCache
from layer_skip.low_bit import LowBitView
from layer_skip.rounding import Rounded, round_weights
from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.loading import load
from selfspec.files import write_whole
from selfspec.tuning.knowledge import expected_tokens

BANDWIDTH = 4.3e12
"""Bytes per second: an assumption, 0.9 of what an H200's memory is specified for."""
LAYERS, LAYER_BYTES, HEAD_BYTES = 32, 436e6, 1.05e9
"""Llama-3-8B in bf16."""
WHOLE_BITS = 16
ROUNDED_BITS = (4, 3, 2)
SCALE_BITS = 0.6
"""A weight's share of the scale and offset of its group."""
VERIFICATION = 1.05
TEMPERATURE = 0.8
LONGEST = 12
DRAWS = 8
"""Draws of noise at every position."""


@dataclass(frozen=True)
class Way:
    """A way to draft: a share of the layers and the head, their weights in so many bits."""

    depth: float
    bits: int

    def __str__(self) -> str:
        layers = "all layers" if self.depth == 1 else f"E = L/{1 / self.depth:.0f}"
        return f"{'bf16' if self.bits == WHOLE_BITS else f'{self.bits}-bit'}, {layers}"

    @property
    def seconds(self) -> float:
        """Of one draft step."""
        taken = self.bits if self.bits == WHOLE_BITS else self.bits + SCALE_BITS
        return step_seconds(self.depth * LAYERS, taken / WHOLE_BITS)


@dataclass(frozen=True)
class Prediction:
    """What a draft length should give, at its best."""

    chance: float
    length: int
    speedup: float


def step_seconds(layers: float, share: float = 1.0) -> float:
    """Seconds of a pass of `layers` layers and the head, their weights `share` of what bf16 takes."""
    return share * (layers * LAYER_BYTES + HEAD_BYTES) / BANDWIDTH


def predict(way: Way, chance: float) -> Prediction:
    """The best draft length, and the speed over AR with it."""
    full = step_seconds(LAYERS)
    speeds = {
        k: expected_tokens(chance, k) * full / (k * way.seconds + VERIFICATION * full)
        for k in range(1, LONGEST + 1)
    }
    best = max(speeds, key=lambda k: speeds[k])
    return Prediction(chance, best, speeds[best])


@torch.inference_mode()
def exit_logits(decoder: LayeredDecoder, tokens: Sequence[int], exits: Sequence[int]) -> Iterator[Tensor]:
    """The logits [T, V] that each exit gives along a text, in one pass."""
    positions = torch.arange(len(tokens))[None]
    span = decoder.span(positions, len(tokens), 0)
    states: dict[int, Tensor] = {}
    hidden = decoder.embed(torch.tensor([list(tokens)]), span)
    decoder.run(hidden, 0, decoder.n_layers, span, NoCache(), states.__setitem__)
    for exit_layer in exits:
        yield decoder.logits(states[exit_layer])[0].float()


def rounded_view(decoder: LayeredDecoder, bits: int) -> LayeredDecoder:
    """All layers as `bits` bits would hold them, kept in the 4 that a view has."""

    def to_fewer(weight: Tensor, container: int, group: int, dtype: torch.dtype) -> Rounded:
        few = round_weights(weight, bits, group, dtype)
        return replace(few, q=few.q + 2 ** (container - 1) - 2 ** (bits - 1), bits=container)

    with patch("layer_skip.packed_linear.round_weights", to_fewer):
        return LowBitView(decoder, decoder.n_layers).of(decoder)


def chances(model: Any, prompts: Sequence[Sequence[int]]) -> dict[Way, tuple[float, float]]:
    """Way -> how often it chooses the target's token, greedily and under the same noise, over the prompts."""
    decoder = LayeredDecoder(model)
    depth = decoder.n_layers
    views = {bits: rounded_view(decoder, bits) for bits in ROUNDED_BITS}
    exits = [max(1, depth // 8), max(1, depth // 4), depth // 2, depth]
    noise = torch.Generator().manual_seed(0)
    found: dict[Way, list[Tensor]] = {}
    for prompt in prompts:
        exact = list(exit_logits(decoder, prompt, exits))
        full = exact[-1]
        gumbel = -torch.empty(DRAWS, *full.shape).exponential_(generator=noise).log()
        drawn = (full / TEMPERATURE + gumbel).argmax(-1)
        read = {WHOLE_BITS: exact[:-1]} | {b: list(exit_logits(v, prompt, exits)) for b, v in views.items()}
        for bits, at_exits in read.items():
            for exit_layer, logits in zip(exits, at_exits, strict=False):
                same = (logits.argmax(-1) == full.argmax(-1)).float()
                coupled = ((logits / TEMPERATURE + gumbel).argmax(-1) == drawn).float().mean(0)
                way = Way(exit_layer / depth, bits)
                found.setdefault(way, []).append(torch.stack([same, coupled]))
    return {way: tuple(torch.cat(parts, dim=1).mean(dim=1).tolist()) for way, parts in found.items()}


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
        "| model | draft | greedy: agreement, K, times AR | temperature 0.8: agreement, K, times AR |",
        "|---|---|---|---|",
    ]
    for name, folder in (("trained for early exit", None), ("plain twin", str(options.twin))):
        loaded = load(folder, "bfloat16", "cpu")
        prompts = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), 128, options.prompts)
        for way, both in chances(loaded.model, prompts).items():
            cells = (f"{p.chance:.2f}, {p.length}, {p.speedup:.2f}" for p in (predict(way, c) for c in both))
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
    print("\n".join(lines))
    write_whole(options.output / "gpu_prediction.md", "\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
