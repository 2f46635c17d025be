"""Where the tokens of a pass stand: positions, rotary angles, masks; built for a round, sliced per pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from layer_skip.attention import Visible


@dataclass(frozen=True)
class Chunk:
    """Attention within chunks of `size` positions, counted from a row's first token (Llama 4)."""

    size: int


Reach = int | Chunk | None
"""How far back a layer's tokens see: a sliding window of that many tokens, their chunk, or everything."""


@dataclass(frozen=True)
class Span:
    """Tokens of every row, in consecutive slots of the cache, and the keys that each of them may see.

    Rows are kept without their padding, so a committed token's slot is its position. Candidates of a tree
    stand in consecutive slots too, but several of them share a position.
    """

    positions: Tensor
    """[B, m] int64"""
    slots: Tensor
    """[B, m] int64, the positions themselves where no two tokens share one"""
    rope: Any
    """What the model's rotary module returns: tensors [B, m, ...], in tuples or in a dict by layer type."""
    masks: Mapping[Reach, Tensor | Visible]
    """Additive [B, 1, m, S] masks by reach, or the slots that are seen, by their number."""
    start: int | None
    """The first slot when it is the same in all rows: writing to the cache is then one slice."""
    arguments: dict[str, Tensor | None] = field(default_factory=dict)
    """Further arguments of a layer, the same for all columns (ALiBi)."""

    @property
    def width(self) -> int:
        return self.positions.shape[1]

    @property
    def key_length(self) -> int:
        """S of the masks."""
        mask = next(iter(self.masks.values()))
        if isinstance(mask, Visible):
            raise TypeError("these tokens see slots by their number: there is no mask of a length")
        return mask.shape[-1]

    def narrow(self, first: int, width: int) -> "Span":
        """The span of columns [first, first + width): views, nothing is copied."""
        last = first + width
        return Span(
            positions=self.positions[:, first:last],
            slots=self.slots[:, first:last],
            rope=_columns(self.rope, first, last),
            masks={reach: _rows_of(mask, first, last) for reach, mask in self.masks.items()},
            start=None if self.start is None else self.start + first,
            arguments=self.arguments,
        )

    def shortened(self, key_length: int) -> "Span":
        """The span over its first `key_length` slots only, where no token sees a later one."""
        if self.arguments:  # biases by key, in forms of their own
            return self
        masks = {
            r: mask if isinstance(mask, Visible) else mask[..., :key_length] for r, mask in self.masks.items()
        }
        return replace(self, masks=masks)


def _rows_of(mask: Tensor | Visible, first: int, last: int) -> Tensor | Visible:
    """What the tokens of columns [first, last) see."""
    return mask.narrow(first, last) if isinstance(mask, Visible) else mask[:, :, first:last]


def _columns(rope: Any, first: int, last: int) -> Any:
    if isinstance(rope, dict):
        return {kind: _columns(angles, first, last) for kind, angles in rope.items()}
    if isinstance(rope, tuple):
        return tuple(_columns(angles, first, last) for angles in rope)
    return None if rope is None else rope[:, first:last]


def causal_mask(positions: Tensor, key_length: int, reach: Reach, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, m, S]: a token sees the slots up to its own that are within `reach`."""
    keys = torch.arange(key_length, device=positions.device)
    own = positions[:, None, :, None]
    return _additive((keys <= own) & _within(reach, own, keys), dtype)


def tree_mask(positions: Tensor, keys: Tensor, reach: Reach, dtype: torch.dtype, ancestors: Tensor) -> Tensor:
    """Additive mask [B, 1, m, S]: a candidate sees the slots before the first one, and its own ancestors.

    Args:
        positions: [B, m]; column 0 is the last committed token, in the slot of its position, and the others
            take the slots after it.
        keys: [B, S], the positions of all keys, see `tree_keys`.
        ancestors: bool [m, m], the columns that each column sees, itself included.
    """
    column, among = _columns_of_slots(positions, keys.shape[1])
    visible = torch.where(
        among[:, None], ancestors[:, column].transpose(0, 1), (keys < positions[:, :1])[:, None]
    )
    visible &= _within(reach, positions[:, :, None], keys[:, None])
    return _additive(visible[:, None], dtype)


def tree_keys(positions: Tensor, key_length: int) -> Tensor:
    """The position of every key [B, S] where the candidates of a tree stand, at `positions` [B, m]."""
    column, among = _columns_of_slots(positions, key_length)
    slots = torch.arange(key_length, device=positions.device)
    return torch.where(among, positions.gather(1, column), slots)


def _columns_of_slots(positions: Tensor, key_length: int) -> tuple[Tensor, Tensor]:
    """The column that stands in each slot [B, S], and whether one does."""
    column = torch.arange(key_length, device=positions.device) - positions[:, :1]
    among = (column >= 0) & (column < positions.shape[1])
    return column.clamp(min=0, max=positions.shape[1] - 1), among


def _within(reach: Reach, own: Tensor, keys: Tensor) -> Tensor:
    """Whether keys are near enough to be seen, bool, broadcast."""
    if isinstance(reach, Chunk):
        return keys // reach.size == own // reach.size
    if reach is None:
        return torch.ones((), dtype=torch.bool, device=keys.device)
    return keys > own - reach


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    blocked = torch.finfo(dtype).min
    return torch.zeros((), dtype=dtype, device=visible.device).masked_fill(~visible, blocked)
