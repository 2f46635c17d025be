"""Where the tokens of a pass stand: positions, rotary angles, masks; built once a round, sliced per pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Span:
    """Consecutive positions of every row, and the keys that each of them may see.

    A position is also the token's slot in the cache, since rows are kept without their padding.
    """

    positions: Tensor
    """[B, m] int64"""
    rope: Rope | None
    """cos, sin: [B, m, Dh]"""
    masks: dict[int | None, Tensor]
    """Additive [B, 1, m, S] masks by sliding window (None: full attention)."""
    start: int | None
    """The first position when it is the same in all rows: writing to the cache is then one slice."""

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
            rope=None if self.rope is None else (self.rope[0][:, first:last], self.rope[1][:, first:last]),
            masks={window: mask[:, :, first:last] for window, mask in self.masks.items()},
            start=None if self.start is None else self.start + first,
        )


def causal_mask(positions: Tensor, key_length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, m, S]: a token sees the slots up to its own, and at most `window` of them."""
    slots = torch.arange(key_length, device=positions.device)
    own = positions[:, None, :, None]
    visible = slots <= own
    if window is not None:
        visible &= slots > own - window
    blocked = torch.finfo(dtype).min
    return torch.zeros((), dtype=dtype, device=positions.device).masked_fill(~visible, blocked)
