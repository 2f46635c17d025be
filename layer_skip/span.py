"""Where the tokens of a pass stand: positions, rotary angles, masks; built once a round, sliced per pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]


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
    rope: Rope | None
    """cos, sin: [B, m, Dh]"""
    masks: dict[int | None, Tensor]
    """Additive [B, 1, m, S] masks by sliding window (None: full attention)."""
    start: int | None
    """The first slot when it is the same in all rows: writing to the cache is then one slice."""

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
            slots=self.slots[:, first:last],
            rope=None if self.rope is None else (self.rope[0][:, first:last], self.rope[1][:, first:last]),
            masks={window: mask[:, :, first:last] for window, mask in self.masks.items()},
            start=None if self.start is None else self.start + first,
        )


def causal_mask(positions: Tensor, key_length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, m, S]: a token sees the slots up to its own, and at most `window` of them."""
    keys = torch.arange(key_length, device=positions.device)
    own = positions[:, None, :, None]
    visible = keys <= own
    if window is not None:
        visible &= keys > own - window
    return _additive(visible, dtype)


def tree_mask(
    positions: Tensor, key_length: int, window: int | None, dtype: torch.dtype, ancestors: Tensor
) -> Tensor:
    """Additive mask [B, 1, m, S]: a candidate sees the slots before the first one, and its own ancestors.

    Args:
        positions: [B, m]; column 0 is the last committed token, in the slot of its position, and the others
            take the slots after it.
        ancestors: bool [m, m], the columns that each column sees, itself included.
    """
    keys = torch.arange(key_length, device=positions.device)
    column = keys - positions[:, :1]
    among = (column >= 0) & (column < positions.shape[1])
    inside = column.clamp(min=0, max=positions.shape[1] - 1)
    related = ancestors[:, inside].transpose(0, 1)
    visible = torch.where(among[:, None], related, (column < 0)[:, None])
    if window is not None:
        key_positions = torch.where(among, positions.gather(1, inside), keys)
        visible &= key_positions[:, None] > positions[:, :, None] - window
    return _additive(visible[:, None], dtype)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    blocked = torch.finfo(dtype).min
    return torch.zeros((), dtype=dtype, device=visible.device).masked_fill(~visible, blocked)
