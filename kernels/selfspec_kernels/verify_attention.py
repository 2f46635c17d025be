"""Attention of a verification pass: a few new tokens a row over a long cache, with a length per row.

The keys are cut into spans of 1,024 slots, these into parts of 256, and these into blocks of 64 (32 in fp32
and for large heads). Programs take spans, parts where spans are too few for the GPU, blocks where all of them
run side by side; a second launch adds up what they leave (Dao et al. 2023, flash-decoding). The order of a
row's sum is the same for every batch, width and capacity, and what is masked adds an exact zero: so a row's
bits do not depend on who shares its batch or on how many tokens are verified, and AR and speculation give the
same text. The query heads of a group are rows of one matrix: their keys and values are read once.

How the engine calls it: `layer_skip.attention.attend`, registered with transformers' `AttentionInterface`,
gets query, key and value from the model's own layer as they are wanted here, the slots already written. In
place of its additive mask it hands over `lengths`, the first slot of each row's new tokens
(`Span.slots[:, 0]`), and for a tree `tree_bits(tree.ancestors(m))` and the nodes' depths. `window` is the
layer's reach, `softcap` and `sinks` are its `softcap` and `s_aux`. A layer that sees chunks (Llama 4) or
takes ALiBi biases keeps its mask, and the attention that it has.
"""

import torch
from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, choose_backend
from selfspec_kernels.verify_attention_reference import LARGEST_IN_FP32, Attention, reference_attention


def verify_attention(given: Attention, *, backend: Backend | None = None) -> Tensor:
    """Attention [B, m, H, Dh] of the new tokens to the slots that they may see; contiguous.

    Args:
        backend: "triton" or "reference"; by default Triton on CUDA, where it has the head size, the reference
            elsewhere.

    Raises:
        KernelInputError: a backend that is unknown or cannot run there.
    """
    query = given.query
    if query.dtype == torch.float32 and query.shape[-1] > LARGEST_IN_FP32:
        if backend == "triton":
            raise KernelInputError(
                f"heads of {query.shape[-1]} in fp32: the Triton backend has them up to {LARGEST_IN_FP32}; "
                "use backend='reference'"
            )
        backend = "reference"
    if choose_backend(backend, "query", query) == "reference":
        return reference_attention(given)
    from selfspec_kernels import verify_attention_launch

    return verify_attention_launch.attend(given)
