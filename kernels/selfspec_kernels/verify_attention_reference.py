"""New tokens and what they may see, with the checks of them, and their attention in plain PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check, check_together

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_SIZES = (64, 80, 96, 128, 256)
LARGEST_IN_FP32 = 128
"""Head size of the Triton kernel in fp32: larger ones spill registers on sm_80."""
MOST_TOKENS = 64
"""m: a tree's mask is a 64-bit number a token."""


def tree_bits(ancestors: Tensor) -> Tensor:
    """bool [m, m], the columns that each column sees, as [m] int64: bit c of number j."""
    columns = torch.arange(len(ancestors), device=ancestors.device)
    return (ancestors.long() << columns).sum(dim=1)


@dataclass(frozen=True)
class Attention:
    """New tokens in slots lengths + (0, ..., m - 1), and what they may see.

    A token sees the slots before `lengths`; of the new tokens itself, and those before it or its ancestors.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, a head size or a
            number of tokens that the kernel lacks.
    """

    query: Tensor
    """[B, H, m, Dh], m from 1 to 64; bf16, fp16 or fp32, contiguous in Dh."""
    key: Tensor
    """[B, Hkv, S, Dh] in its dtype, contiguous in Dh; a view of a larger cache is fine. S is at least
    lengths + m."""
    value: Tensor
    """As key."""
    lengths: Tensor
    """[B] int64, read on the device."""
    scaling: float | None = None
    """Of the scores; None for Dh ** -0.5."""
    tree: Tensor | None = None
    """[m] int64 from `tree_bits`; None for a chain."""
    depths: Tensor | None = None
    """[m] int32, how far behind the first one a tree's tokens stand; with `tree` and `window` only."""
    window: int | None = None
    """A token sees positions above its own - window; None for all of them."""
    softcap: float | None = None
    """c of c * tanh(score / c) (Gemma 2)."""
    sinks: Tensor | None = None
    """[H], a score of each head that takes part in the softmax and carries no value (gpt-oss)."""

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def __post_init__(self) -> None:
        query, key = self.query, self.key
        if query.dim() != 4 or key.dim() != 4 or query.dtype not in DTYPES:
            raise KernelInputError(
                "query and key must be [B, H, m, Dh] and [B, Hkv, S, Dh] in bf16, fp16 or fp32, "
                f"not {query.dtype} {list(query.shape)} and {list(key.shape)}"
            )
        check_together({name: field for name, field in vars(self).items() if isinstance(field, Tensor)})
        rows, heads, width, size = query.shape
        kv_heads, slots = key.shape[1:3]
        if size not in HEAD_SIZES:
            raise KernelInputError(f"heads of {size}: allowed are {', '.join(map(str, HEAD_SIZES))}")
        if not 1 <= width <= MOST_TOKENS:
            raise KernelInputError(f"{width} tokens a row: allowed are 1 to {MOST_TOKENS}")
        if not kv_heads or heads % kv_heads:
            raise KernelInputError(f"{heads} query heads do not divide among {kv_heads} key heads")
        if slots < width:
            raise KernelInputError(f"{slots} slots do not hold {width} tokens")
        check("query", query, (rows, heads, width, size), query.dtype, layout="rows")
        for name, cache in (("key", key), ("value", self.value)):
            check(name, cache, (rows, kv_heads, slots, size), query.dtype, layout="rows")
        check("lengths", self.lengths, (rows,), torch.int64)
        check("tree", self.tree, (width,), torch.int64)
        check("depths", self.depths, (width,), torch.int32)
        check("sinks", self.sinks, (heads,), query.dtype, torch.float32)
        if (self.tree is not None and self.window is not None) != (self.depths is not None):
            raise KernelInputError("depths go with a tree in a window, and with nothing else")
        if self.window is not None and self.window < 1:
            raise KernelInputError(f"a window must hold at least the token itself, not {self.window}")
        if self.softcap is not None and not self.softcap > 0:
            raise KernelInputError(f"a soft cap must be above 0, not {self.softcap}")


def reference_attention(given: Attention) -> Tensor:
    """`verify_attention` in plain PyTorch: products and softmax in fp32, the result in the query's dtype."""
    query, groups = given.query, given.query.shape[1] // given.key.shape[1]
    key, value = (tensor.float().repeat_interleave(groups, dim=1) for tensor in (given.key, given.value))
    scores = query.float() @ key.transpose(2, 3) * given.scale
    if given.softcap is not None:
        scores = torch.tanh(scores / given.softcap) * given.softcap
    visible = visible_slots(given)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    if given.sinks is not None:
        column = given.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    # A slot that nobody sees may hold anything: zero times NaN would be NaN.
    value = value.masked_fill(~visible.any(dim=1)[:, None, :, None], 0)
    return (weights @ value).transpose(1, 2).contiguous().to(query.dtype)


def visible_slots(given: Attention) -> Tensor:
    """Which slots each new token sees, bool [B, m, S]."""
    width, slots = given.query.shape[2], given.key.shape[2]
    slot = torch.arange(slots, device=given.lengths.device)
    own = torch.arange(width, device=slot.device)
    column = (slot - given.lengths[:, None])[:, None]
    among = (column >= 0) & (column < width)
    clamped = column.clamp(0, width - 1)
    if given.tree is None:
        seen = clamped <= own[:, None]
    else:
        seen = (given.tree[:, None] >> clamped) & 1 == 1
    visible = (column < 0) | (among & seen)
    if given.window is not None:
        depth = own if given.depths is None else given.depths.long()
        position = torch.where(among, depth[clamped], column)
        visible &= position > depth[:, None] - given.window
    return visible
