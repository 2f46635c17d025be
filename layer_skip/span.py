"""Where the tokens of a pass stand: positions, rotary angles, masks; built once a round, sliced per pass."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Attention within chunks of `size` positions, counted from a row's first token (Llama 4)."""

    size: int


Reach = int | Chunk | None
"""How far back a layer's tokens see: a sliding window of that many tokens, their chunk, or everything."""


@dataclass(frozen=True)
class Span:
    """Consecutive positions of every row, and the keys that each of them may see.

    A position is also the token's slot in the cache, since rows are kept without their padding.
    """

    positions: Tensor
    """[B, m] int64"""
    rope: Any
    """What the model's rotary module returns: tensors [B, m, ...], in tuples or in a dict by layer type."""
    masks: dict[Reach, Tensor]
    """Additive [B, 1, m, S] masks by reach."""
    start: int | None
    """The first position when it is the same in all rows: writing to the cache is then one slice."""
    arguments: dict[str, Tensor | None] = field(default_factory=dict)
    """Further arguments of a layer, the same for all columns (ALiBi)."""

    @property
    def width(self) -> int:
        return self.positions.shape[1]

    @property
    def key_length(self) -> int:
        return next(iter(self.masks.values())).shape[-1]

    def narrow(self, first: int, width: int) -> "Span":
        """The span of columns [first, first + width): views, nothing is copied."""
        last = first + width
        return Span(
            positions=self.positions[:, first:last],
            rope=_columns(self.rope, first, last),
            masks={reach: mask[:, :, first:last] for reach, mask in self.masks.items()},
            start=None if self.start is None else self.start + first,
            arguments=self.arguments,
        )


def _columns(rope: Any, first: int, last: int) -> Any:
    if isinstance(rope, dict):
        return {kind: _columns(angles, first, last) for kind, angles in rope.items()}
    if isinstance(rope, tuple):
        return tuple(_columns(angles, first, last) for angles in rope)
    return None if rope is None else rope[:, first:last]


def causal_mask(positions: Tensor, key_length: int, reach: Reach, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, m, S]: a token sees the slots up to its own that are within `reach`."""
    slots = torch.arange(key_length, device=positions.device)
    own = positions[:, None, :, None]
    visible = slots <= own
    if isinstance(reach, Chunk):
        visible &= slots // reach.size == own // reach.size
    elif reach is not None:
        visible &= slots > own - reach
    blocked = torch.finfo(dtype).min
    return torch.zeros((), dtype=dtype, device=positions.device).masked_fill(~visible, blocked)
