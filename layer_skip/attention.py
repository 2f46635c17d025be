"""Attention over the shared cache, called by the model's own layers.

Registered once with transformers' `AttentionInterface` under `ATTENTION`. Compared with the built-in SDPA
wrapper it does not copy grouped keys and values in a decoding pass, and it always takes an explicit mask:
without one SDPA aligns its causal mask top-left, which silently cuts off cached keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from selfspec_kernels.verify_attention import verify_attention
from selfspec_kernels.verify_attention_reference import Attention

ATTENTION = "selfspec"

_FOLDED_ROWS = 128
"""Up to this many rows a pass is bound by reading keys and values, beyond it by arithmetic."""
_QUERIES = 4
"""On a CPU PyTorch's attention is asked about a multiple of this."""


@dataclass(frozen=True)
class Visible:
    """Which slots the tokens of a pass see, read on the device: stands where a mask does.

    A token sees the slots up to its own, `window` of them where there is a window. Nothing here depends on
    how long the texts are, so a captured pass stays right while they grow.
    """

    starts: Tensor
    """[m, B] int64: the slot of every token, columns first so that a column is one piece."""
    window: int | None = None

    @property
    def lengths(self) -> Tensor:
        """[B]: the slot of each row's first token."""
        return self.starts[0]

    def narrow(self, first: int, last: int) -> "Visible":
        """The tokens of columns [first, last)."""
        return Visible(self.starts[first:last], self.window)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Visible,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Masked attention of query [B, H, m, Dh] over key, value [B, Hkv, S, Dh].

    Args:
        attention_mask: additive, [B, 1, m, S], in the query's dtype; or what each row sees, by its length.
        softcap: c of c * tanh(scores / c), before the mask (Gemma 2).
        s_aux: attention sinks [H]: scores that take part in the softmax and carry no value (gpt-oss).

    Returns:
        [B, m, H, Dh], contiguous as layers expect it, and None in place of the attention weights.
    """
    if isinstance(attention_mask, Visible):
        seen = attention_mask
        given = Attention(
            query, key, value, seen.lengths, scaling, window=seen.window, softcap=softcap, sinks=s_aux
        )
        return verify_attention(given), None
    batch, heads, width = query.shape[:3]
    groups = heads // key.shape[1]
    plain = softcap is None and s_aux is None
    if plain and groups > 1 and groups * width <= _FOLDED_ROWS:
        # The query heads of a group become rows of one head: their keys and values are read once.
        folded = query.reshape(batch, key.shape[1], groups * width, -1)
        rows = attention_mask.expand(batch, groups, width, -1).reshape(batch, 1, groups * width, -1)
        out = _dot_product(folded, key, value, rows, scaling)
        return out.reshape(batch, heads, width, -1).transpose(1, 2).contiguous(), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if plain:
        out = _dot_product(query, key, value, attention_mask, scaling)
        return out.transpose(1, 2).contiguous(), None
    scores = torch.matmul(query, key.transpose(2, 3)) * (
        query.shape[-1] ** -0.5 if scaling is None else scaling
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights[..., : key.shape[2]], value).transpose(1, 2).contiguous(), None


def _dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """PyTorch's attention; on a CPU the first query is repeated up to whole _QUERIES.

    What is left over from those goes another way there, on which sums round differently: a token's bits would
    depend on how many stand beside it.
    """
    queries = query.shape[2]
    missing = -queries % _QUERIES
    if query.device.type == "cpu" and missing:
        query, mask = (torch.cat([t, t[:, :, :1].expand(-1, -1, missing, -1)], 2) for t in (query, mask))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out[:, :, :queries]


AttentionInterface.register(ATTENTION, attend)
