"""What the strategies should give on a GPU: predicted from acceptance and bytes moved, until it is measured.

    python benchmarks/gpu_prediction.py

Acceptance is that of the small models on held-out code, teacher-forced: how often draft and target choose
the same token, for sampled text under the same noise. A pass of an 8B shape takes its bytes over the memory's
bandwidth; verification is taken to cost 5% more than a plain step, and launching nothing.
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
"""Bytes per second: an assumption, 0.9 of what an H200's memory is specified for."""
LAYERS, LAYER_BYTES, HEAD_BYTES = 32, 436e6, 1.05e9
"""Llama-3-8B in bf16."""
LOW_BIT_SHARE = 0.29
VERIFICATION = 1.05
TEMPERATURE = 0.8
LONGEST = 12
DRAWS = 8
"""Draws of noise at every position."""


@dataclass(frozen=True)
class Way:
    """A way to draft: a share of the layers and the head, their weights `bytes` of what bf16 takes."""

    depth: float
    low_bit: bool

    def __str__(self) -> str:
        layers = "all layers" if self.depth == 1 else f"E = L/{1 / self.depth:.0f}"
        return f"{'4-bit' if self.low_bit else 'bf16'}, {layers}"

    @property
    def seconds(self) -> float:
        """Of one draft step."""
        return step_seconds(self.depth * LAYERS, LOW_BIT_SHARE if self.low_bit else 1.0)


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


def chances(model: Any, prompts: Sequence[Sequence[int]]) -> dict[Way, tuple[float, float]]:
    """Way -> how often it chooses the target's token, greedily and under the same noise, over the prompts."""
    decoder = LayeredDecoder(model)
    depth = decoder.n_layers
    view = LowBitView(decoder, depth).of(decoder)
    exits = [max(1, depth // 8), max(1, depth // 4), depth // 2, depth]
    noise = torch.Generator().manual_seed(0)
    found: dict[Way, list[Tensor]] = {}
    for prompt in prompts:
        exact, rounded = list(exit_logits(decoder, prompt, exits)), list(exit_logits(view, prompt, exits))
        full = exact[-1]
        gumbel = -torch.empty(DRAWS, *full.shape).exponential_(generator=noise).log()
        drawn = (full / TEMPERATURE + gumbel).argmax(-1)
        for low_bit, read in ((False, exact[:-1]), (True, rounded)):
            for exit_layer, logits in zip(exits, read, strict=False):
                same = (logits.argmax(-1) == full.argmax(-1)).float()
                coupled = ((logits / TEMPERATURE + gumbel).argmax(-1) == drawn).float().mean(0)
                way = Way(exit_layer / depth, low_bit)
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
