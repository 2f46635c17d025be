"""Where a model's tokens stand and what they see: makes the spans of its passes."""

import copy
from typing import Any

import torch
from torch import Tensor

from layer_skip import alibi
from layer_skip.attention import Visible
from layer_skip.families import Family, UnsupportedModelError
from layer_skip.span import Chunk, Reach, Span, causal_mask, tree_keys, tree_mask


class Layout:
    """Positions, rotary angles and masks, as the layers of one model take them.

    Args:
        family: its row in the table.
        config: its config.
        base: its part that runs the layers.
        rotary: its rotary module, None where it has none.
        n_layers: L.
        dtype: of masks and angles.
    """

    def __init__(
        self, family: Family, config: Any, base: Any, rotary: Any, n_layers: int, dtype: torch.dtype
    ) -> None:
        self._family, self._config, self._base, self._dtype = family, config, base, dtype
        self._rotary = rotary
        self._kinds, self._reaches = _layer_kinds(config, n_layers)

    def of_first(self, n_layers: int) -> "Layout":
        """The layout of layers [0, n_layers): no masks are made for others."""
        other = copy.copy(self)
        other._kinds, other._reaches = self._kinds[:n_layers], self._reaches[:n_layers]
        return other

    def span(
        self, positions: Tensor, key_length: int, start: int | None, ancestors: Tensor | None = None
    ) -> Span:
        """Rotary angles and masks for tokens at `positions` [B, m] over `key_length` cache slots.

        `ancestors` (bool [m, m]) makes them candidates of a tree, see `tree_mask`.
        """
        slots = positions
        keys = torch.arange(key_length, device=positions.device).expand(len(positions), -1)
        if ancestors is None:
            masks = {r: causal_mask(positions, key_length, r, self._dtype) for r in set(self._reaches)}
        else:
            slots = positions[:, :1] + torch.arange(positions.shape[1], device=positions.device)
            keys = tree_keys(positions, key_length)
            masks = {r: tree_mask(positions, keys, r, self._dtype, ancestors) for r in set(self._reaches)}
        arguments: dict[str, Tensor | None] = {}
        if self._family.alibi is not None:
            how = self._family.alibi
            masks, arguments = alibi.add(self._base, self._config, how, masks, keys, self._dtype)
        return Span(positions, slots, self._rope(positions), masks, start, arguments)

    def span_on_device(self, first: Tensor, width: int) -> Span:
        """The same for consecutive tokens in slots first + (0, ..., width - 1), first [B]: in place of masks
        what each row sees by its length, so that the pass can be captured and replayed while texts grow.

        Raises:
            UnsupportedModelError: its layers need masks, see `needs_masks`.
        """
        if self.needs_masks:
            raise UnsupportedModelError(self.needs_masks)
        positions = first[:, None] + torch.arange(width, device=first.device)
        starts = positions.t().contiguous()
        masks: dict[Reach, Tensor | Visible] = {
            r: Visible(starts, r) for r in set(self._reaches) if not isinstance(r, Chunk)
        }
        return Span(positions, positions, self._rope(positions), masks, None)

    def arguments(self, index: int, span: Span) -> dict[str, Any]:
        """What layer `index` takes of a span: its mask, and its angles where there are any."""
        found: dict[str, Any] = {"attention_mask": span.masks[self._reaches[index]]}
        if span.rope is not None:
            by_kind = self._family.rotary_by_layer_type
            found["position_embeddings"] = span.rope[self._kinds[index]] if by_kind else span.rope
        return found

    @property
    def needs_masks(self) -> str:
        """Why its passes take masks made on the host, or angles that depend on a length; empty if not."""
        family = self._family
        reasons = {
            "its attention code is its own": family.own_attention,
            "it takes ALiBi biases": family.alibi is not None,
            "it sees chunks": any(isinstance(reach, Chunk) for reach in self._reaches),
            "its rotary angles depend on the length of the text": self.fixed_rope_length is not None,
        }
        return ", ".join(reason for reason, holds in reasons.items() if holds)

    @property
    def fixed_rope_length(self) -> int | None:
        """Tokens up to which a position's rotary angles depend on nothing else, None where that is always so.

        Dynamic NTK scaling and LongRoPE turn every position further once a text is longer than this.
        """
        if self._family.fixed_length_field and getattr(self._config, "attn_temperature_tuning", False):
            return int(getattr(self._config, self._family.fixed_length_field)) - 1
        kinds = getattr(self._rotary, "rope_type", None) or ""
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if "longrope" in kinds:
            return int(self._config.rope_parameters["original_max_position_embeddings"])
        dynamic = any("dynamic" in kind for kind in kinds)
        return int(self._rotary.original_max_seq_len) if dynamic else None

    def _rope(self, positions: Tensor) -> Any:
        if self._rotary is None:
            return None
        like = torch.empty(0, dtype=self._dtype, device=positions.device)
        if not self._family.rotary_by_layer_type:
            return self._rotary(like, positions)
        return {kind: self._rotary(like, positions, kind) for kind in set(self._kinds)}


def _layer_kinds(config: Any, n_layers: int) -> tuple[list[str], list[Reach]]:
    """Kind of every layer in the config's words, and how far back its tokens see."""
    window: int | None = getattr(config, "sliding_window", None)
    chunk: int | None = getattr(config, "attention_chunk_size", None)
    reaches: dict[str, Reach] = {
        "full_attention": None,
        "sliding_attention": window,
        "chunked_attention": Chunk(chunk) if chunk else None,
    }
    kinds = (getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers)[:n_layers]
    return kinds, [reaches[kind] for kind in kinds]
