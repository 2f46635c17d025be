"""ALiBi: biases that grow with a key's position, handed to a layer in the way that it takes them."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Masks = dict[Any, Tensor]


def add(
    base: Any, config: Any, how: str, masks: Masks, key_positions: Tensor, dtype: torch.dtype
) -> tuple[Masks, dict[str, Tensor | None]]:
    """Masks and further arguments of a layer that takes its biases as `how` says: a row of `HANDOVERS`.

    Args:
        masks: additive, [B, 1, m, S] each.
        key_positions: [B, S] int64.
    """
    bias = biases(base, key_positions, config.num_attention_heads, dtype)
    if bias is None:
        return masks, {"alibi": None}
    return HANDOVERS[how](bias, masks, config.hidden_size // config.num_attention_heads)


def biases(base: Any, key_positions: Tensor, n_heads: int, dtype: torch.dtype) -> Tensor | None:
    """The model's own biases of keys at `key_positions` [B, S]: [B, H, 1, S]; None where it is built without.

    They are read from the model's own table, in its own rounding (Falcon's slopes are in bf16). A bias that
    all keys of a row share drops out in the softmax, so counting from the first or the last key is the same.
    """
    if not getattr(base, "use_alibi", True):
        return None
    length = int(key_positions.max()) + 1
    if hasattr(base, "build_mpt_alibi_tensor"):
        table = base.build_mpt_alibi_tensor(n_heads, length, device=key_positions.device)
    else:
        build: Any = sys.modules[type(base).__module__].build_alibi_tensor
        seen = torch.ones(1, length, dtype=torch.int64, device=key_positions.device)
        table = build(seen, n_heads, dtype)
    return table.reshape(n_heads, length)[:, key_positions].transpose(0, 1)[:, :, None]


def _in_the_mask(bias: Tensor, masks: Masks, head_size: int) -> tuple[Masks, dict[str, Tensor | None]]:
    """Falcon: scaled like the scores and folded into the mask; the argument only switches RoPE off."""
    blocked = torch.finfo(bias.dtype).min
    scaled = bias / head_size**0.5
    return {reach: scaled.masked_fill(mask < 0, blocked) for reach, mask in masks.items()}, {"alibi": bias}


def _as_alibi(bias: Tensor, masks: Masks, head_size: int) -> tuple[Masks, dict[str, Tensor | None]]:
    """BLOOM: [B*H, 1, S] beside the mask."""
    return masks, {"alibi": bias.flatten(0, 1)}


def _as_position_bias(bias: Tensor, masks: Masks, head_size: int) -> tuple[Masks, dict[str, Tensor | None]]:
    """MPT: [H, 1, S] for all rows, and a mask that is True where a key is hidden."""
    return {reach: mask < 0 for reach, mask in masks.items()}, {"position_bias": bias[0]}


HANDOVERS: dict[str, Callable[[Tensor, Masks, int], tuple[Masks, dict[str, Tensor | None]]]] = {
    "in the mask": _in_the_mask,
    "alibi": _as_alibi,
    "position_bias": _as_position_bias,
}
