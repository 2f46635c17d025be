"""Attention of a verification pass: a few new tokens a row over a long cache, with a length per row.

The keys are cut into spans of 1,024 slots, these into parts of 256; programs take spans, or parts where spans
are too few for the GPU, and a second launch adds up what they leave (Dao et al. 2023, flash-decoding). The
order of a row's sum is the same for every batch, width and capacity, and what is masked adds an exact zero:
so a row's bits do not depend on who shares its batch or on how many tokens are verified, and AR and
speculation give the same text. The query heads of a group are rows of one matrix: their keys and values are
read once.

How the engine calls it: `layer_skip.attention.attend`, registered with transformers' `AttentionInterface`,
gets query, key and value from the model's own layer as they are wanted here, the slots already written. In
place of its additive mask it hands over `lengths`, the first slot of each row's new tokens
(`Span.slots[:, 0]`), and for a tree `tree_bits(tree.ancestors(m))` and the nodes' depths. `window` is the
layer's reach, `softcap` and `sinks` are its `softcap` and `s_aux`. A layer that sees chunks (Llama 4) or
takes ALiBi biases keeps its mask, and the attention that it has.
"""

import torch
from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend

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


def verify_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    *,
    scaling: float | None = None,
    tree: Tensor | None = None,
    depths: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attention [B, m, H, Dh] of tokens in slots lengths + (0, ..., m - 1) to the slots that they may see.

    A token sees the slots before `lengths`; of the new tokens itself, and those before it or its ancestors.

    Args:
        query: [B, H, m, Dh], m from 1 to 64; bf16, fp16 or fp32, contiguous in Dh.
        key, value: [B, Hkv, S, Dh] in its dtype, contiguous in Dh; views of a larger cache are fine. S is at
            least lengths + m.
        lengths: [B] int64, read on the device.
        scaling: of the scores; by default Dh ** -0.5.
        tree: [m] int64 from `tree_bits`; None for a chain.
        depths: [m] int32, how far behind the first one a tree's tokens stand; with `tree` and `window` only.
        window: a token sees positions above its own - window; None for all of them.
        softcap: c of c * tanh(score / c) (Gemma 2).
        sinks: [H], a score of each head that takes part in the softmax and carries no value (gpt-oss).
        backend: "triton" or "reference"; by default Triton on CUDA, where it has the head size, the reference
            elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, a head size or a
            number of tokens that the kernel lacks, or a backend that is unknown or cannot run there.
    """
    _check(query, key, value, lengths, tree, depths, window, softcap, sinks)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    arguments = (query, key, value, lengths, scaling, tree, depths, window, softcap, sinks)
    if query.dtype == torch.float32 and query.shape[-1] > LARGEST_IN_FP32:
        if backend == "triton":
            raise KernelInputError(
                f"heads of {query.shape[-1]} in fp32: the Triton backend has them up to {LARGEST_IN_FP32}; "
                "use backend='reference'"
            )
        backend = "reference"
    if choose_backend(backend, "query", query) == "reference":
        return reference_attention(*arguments)
    from selfspec_kernels import verify_attention_launch

    return verify_attention_launch.attend(*arguments)


def reference_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scaling: float,
    tree: Tensor | None,
    depths: Tensor | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same in plain PyTorch: products and softmax in fp32, the result in the query's dtype."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    visible = visible_slots(lengths, query.shape[2], key.shape[2], tree, depths, window)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]]
    # A slot that nobody sees may hold anything: zero times NaN would be NaN.
    value = value.masked_fill(~visible.any(dim=1)[:, None, :, None], 0)
    return (weights @ value).transpose(1, 2).contiguous().to(query.dtype)


def visible_slots(
    lengths: Tensor, width: int, slots: int, tree: Tensor | None, depths: Tensor | None, window: int | None
) -> Tensor:
    """Which slots each of `width` tokens sees, bool [B, m, S]."""
    slot = torch.arange(slots, device=lengths.device)
    own = torch.arange(width, device=lengths.device)
    column = (slot - lengths[:, None])[:, None]
    among = (column >= 0) & (column < width)
    clamped = column.clamp(0, width - 1)
    if tree is None:
        seen = clamped <= own[:, None]
    else:
        seen = (tree[:, None] >> clamped) & 1 == 1
    visible = (column < 0) | (among & seen)
    if window is not None:
        depth = own if depths is None else depths.long()
        position = torch.where(among, depth[clamped], column)
        visible &= position > depth[:, None] - window
    return visible


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    tree: Tensor | None,
    depths: Tensor | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    if query.dim() != 4 or key.dim() != 4 or query.dtype not in DTYPES:
        raise KernelInputError(
            "query and key must be [B, H, m, Dh] and [B, Hkv, S, Dh] in bf16, fp16 or fp32, "
            f"not {query.dtype} {list(query.shape)} and {list(key.shape)}"
        )
    named = {"key": key, "value": value, "lengths": lengths, "tree": tree, "depths": depths, "sinks": sinks}
    check_together({"query": query, **named})
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
    for name, tensor in (("key", key), ("value", value)):
        check(name, tensor, (rows, kv_heads, slots, size), query.dtype, layout="rows")
    check("lengths", lengths, (rows,), torch.int64)
    check("tree", tree, (width,), torch.int64)
    check("depths", depths, (width,), torch.int32)
    check("sinks", sinks, (heads,), query.dtype, torch.float32)
    if (tree is not None and window is not None) != (depths is not None):
        raise KernelInputError("depths go with a tree in a window, and with nothing else")
    if window is not None and window < 1:
        raise KernelInputError(f"a window must hold at least the token itself, not {window}")
    if softcap is not None and not softcap > 0:
        raise KernelInputError(f"a soft cap must be above 0, not {softcap}")
