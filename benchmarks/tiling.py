"""Large shapes, and how each dimension of a small Llama grows to one by copying.

Attention heads and neurons are repeated in whole blocks, so that low-bit rounding in groups of 32 (64 where
the source's sizes are divisible by it) sees the groups of the source, scaled, and rounds them to the same
levels. A random rotation would not do that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes of the inflated model; the size of a head is the source's, and so is `vocabulary` None."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int | None = None


# Llama 3's shapes as reached from heads of 64: 8B and 70B have twice the heads of half the size, so every
# weight and the K/V of a token take as many bytes as there. Fewer layers than the source's lose the text.
SHAPES = {
    "1b": Shape(16, 2048, 32, 8, 8192),
    "1b-32k": Shape(16, 2048, 32, 8, 8192, 32_768),
    "1b-128k": Shape(16, 2048, 32, 8, 8192, 128_256),
    "8b": Shape(32, 4096, 64, 16, 14_336),
    "8b-128k": Shape(32, 4096, 64, 16, 14_336, 128_256),
    "70b-16-layers": Shape(16, 8192, 128, 16, 28_672),
    "70b": Shape(80, 8192, 128, 16, 28_672),
}


class ShapeError(ValueError):
    """The shape cannot be reached from this model; the message says which nearby one can."""


@dataclass(frozen=True)
class Tiling:
    """How one dimension grows: the source's element that each new one copies, and the copies of each."""

    source: Tensor
    copies: Tensor

    def grow(self, small: Tensor, inputs: Tiling | None = None) -> Tensor:
        """The weight with its outputs copied, and its inputs copied and shared among the copies."""
        if inputs is not None:
            small = (small / inputs.copies.to(small.dtype))[:, inputs.source]
        return small[self.source]


def tilings(config: Any, shape: Shape, device: torch.device) -> dict[str, Tiling]:
    """One tiling for each name of a dimension that a weight of a layer writes or reads."""
    group, wide = config.num_attention_heads // config.num_key_value_heads, shape.heads // shape.kv_heads
    key_heads = torch.arange(shape.kv_heads) % config.num_key_value_heads
    # The query heads that share a key head's copies take turns, so that each is repeated equally often.
    place = torch.arange(shape.heads) // wide // config.num_key_value_heads * wide
    turn = (place + torch.arange(shape.heads) % wide) % group
    query_heads = key_heads.repeat_interleave(wide) * group + turn
    block, counts = _neuron_blocks(config.intermediate_size, shape.intermediate)
    blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    chosen = {
        "hidden": torch.arange(config.hidden_size).repeat(shape.hidden // config.hidden_size),
        "query": _elements(query_heads, config.head_dim),
        "key": _elements(key_heads, config.head_dim),
        "neurons": _elements(blocks, block),
    }
    return {n: Tiling(index.to(device), index.bincount().to(device)) for n, index in chosen.items()}


def _elements(blocks: Tensor, size: int) -> Tensor:
    """Indices of all elements of the blocks [n], each of `size` elements."""
    return (blocks[:, None] * size + torch.arange(size)).flatten()


def _neuron_blocks(source: int, target: int) -> tuple[int, list[int]]:
    """Block size, and how often each block of neurons is repeated: powers of two that add up to the target.

    So sizes are reached that are no power of two times the source's: 8192 = 32 · (7 · 32 + 2 · 16) from 288.
    """
    block = next((size for size in (64, 32) if source % size == 0), source)
    blocks, total = source // block, target // block
    counts = [1 << bit for bit in range(total.bit_length()) if total >> bit & 1]
    if target % block or not len(counts) <= blocks <= total:
        least = max(source, target // block * block)
        raise ShapeError(
            f"intermediate={target}: takes multiples of {block} from {source} on; nearest {least}"
        )
    while len(counts) < blocks:
        largest = max(counts)
        counts.remove(largest)
        counts += [largest // 2] * 2
    return block, sorted(counts, reverse=True)


def check_shape(config: Any, shape: Shape) -> None:
    """Refuse what would change the function, naming what would not."""
    for name, source, target in (
        ("hidden", config.hidden_size, shape.hidden),
        ("heads", config.num_attention_heads, shape.heads),
    ):
        times = max(target // source, 1)
        if target != source * times or times & (times - 1):
            nearest = source << round(math.log2(max(target / source, 1)))
            raise ShapeError(f"{name}={target}: must be {source} times a power of two; nearest {nearest}")
    if shape.kv_heads < 1 or shape.kv_heads % config.num_key_value_heads or shape.heads % shape.kv_heads:
        raise ShapeError(
            f"kv_heads={shape.kv_heads}: must be a multiple of {config.num_key_value_heads} that divides "
            f"{shape.heads} heads"
        )
    for name, least, count in (
        ("layers", config.num_hidden_layers, shape.layers),
        ("vocabulary", config.vocab_size, shape.vocabulary),
    ):
        if count is not None and count < least:
            raise ShapeError(f"{name}={count}: must be at least the source's {least}")
    _neuron_blocks(config.intermediate_size, shape.intermediate)
