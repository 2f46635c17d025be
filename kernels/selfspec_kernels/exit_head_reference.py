"""The LM head with what surrounds it, the checks of `exit_head`'s inputs, and the same in plain PyTorch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check, check_together
from selfspec_kernels.noise import Noise
from selfspec_kernels.row_norm_reference import Norm, check_hidden, check_norm, reference_norm

MOST_CHOICES = 8


@dataclass(frozen=True)
class Calibration:
    """A low-rank map in front of the norm: hidden + (hidden down^T) up."""

    down: Tensor
    """[r, D]"""
    up: Tensor
    """[r, D]"""


@dataclass(frozen=True)
class Head:
    """The LM head with everything around it; tied or untied, the weight is only referred to."""

    weight: Tensor
    """[V, D] in the dtype of the hidden states, or int8; rows may lie apart."""
    scale: Tensor | None = None
    """[V] fp32, of int8 weights."""
    bias: Tensor | None = None
    """[V]"""
    norm: Norm | None = None
    calibration: Calibration | None = None
    multiplier: float = 1.0
    """Of the logits (Cohere, Granite), before the soft cap."""
    softcap: float | None = None
    """c of c * tanh(logits / c) (Gemma 2)."""
    shortlist: Tensor | None = None
    """[S] int32: the head rows that are read, and the only tokens that are chosen. Each one below V."""


@dataclass(frozen=True)
class Choices:
    """The best tokens, best first; [B, m, count] each."""

    tokens: Tensor
    """int64"""
    scores: Tensor
    """fp32: processed logit plus noise, by which they were chosen."""
    logprobs: Tensor
    """fp32: log-probability without the noise, within the shortlist; NaN where a logit of the row is NaN."""


def reference_exit_head(
    hidden: Tensor,
    head: Head,
    count: int = 1,
    temperature: Tensor | None = None,
    noise: Noise | None = None,
) -> Choices:
    """`exit_head` in plain PyTorch."""
    tokens = torch.arange(len(head.weight), device=hidden.device)
    if head.shortlist is not None:
        tokens = head.shortlist.long()
    scores = reference_logits(hidden, head)
    if temperature is not None:
        scores = scores / temperature[:, None, None]
    noisy = scores if noise is None else scores + noise.at(tokens)
    # A stable sort, not topk: equal scores go to the first token.
    values, at = noisy.sort(dim=-1, descending=True, stable=True)
    values, at = values[..., :count], at[..., :count]
    return Choices(tokens[at], values, scores.log_softmax(dim=-1).gather(-1, at))


def reference_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [B, m, V] (or [B, m, S] of a shortlist) in fp32 for hidden states [B, m, D].

    They are rounded to the dtype of the hidden states where a model's own modules round.
    """
    x = normalized(hidden, head).float()
    rows = slice(None) if head.shortlist is None else head.shortlist.long()
    product = F.linear(x, head.weight[rows].float())
    if head.scale is not None:
        product = product * head.scale[rows]
    if head.bias is not None:
        product = product + head.bias[rows].float()
    logits = product.to(hidden.dtype)
    if head.multiplier != 1.0:
        logits = logits * head.multiplier
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits.float()


def normalized(hidden: Tensor, head: Head) -> Tensor:
    """What the head's matrix is multiplied with, [B, m, D] in the dtype of the hidden states."""
    if head.calibration is not None:
        x, down, up = hidden.float(), head.calibration.down.float(), head.calibration.up.float()
        hidden = (x + x @ down.T @ up).to(hidden.dtype)
    return hidden if head.norm is None else reference_norm(hidden, head.norm)


def check_exit_head(
    hidden: Tensor, head: Head, count: int, temperature: Tensor | None, noise: Noise | None
) -> None:
    """Raises a KernelInputError for inputs of `exit_head` that do not belong together."""
    check_hidden(hidden)
    if head.weight.dim() != 2:
        raise KernelInputError(f"the head's weight must be [V, D], not {list(head.weight.shape)}")
    tensors: dict[str, Tensor | None] = {"hidden": hidden, **_tensors_of(head), "temperature": temperature}
    if noise is not None:
        tensors |= {"noise keys": noise.keys, "noise positions": noise.positions}
    check_together(tensors)
    rows, width, inputs = hidden.shape
    _check_head(head, inputs, hidden.dtype)
    choosable = min(MOST_CHOICES, len(head.weight if head.shortlist is None else head.shortlist))
    if not 1 <= count <= choosable:
        raise KernelInputError(f"cannot choose {count} tokens: allowed are 1 to {choosable}")
    check("temperature", temperature, (rows,), torch.float32)
    if noise is not None:
        noise.check(rows, width)


def _tensors_of(head: Head) -> dict[str, Tensor | None]:
    norm, calibration = head.norm, head.calibration
    return {
        "weight": head.weight,
        "scale": head.scale,
        "bias": head.bias,
        "shortlist": head.shortlist,
        "norm weight": norm.weight if norm else None,
        "norm bias": norm.bias if norm else None,
        "down": calibration.down if calibration else None,
        "up": calibration.up if calibration else None,
    }


def _check_head(head: Head, inputs: int, dtype: torch.dtype) -> None:
    vocabulary = len(head.weight)
    check("weight", head.weight, (vocabulary, inputs), dtype, torch.int8, layout="rows")
    if (head.weight.dtype == torch.int8) != (head.scale is not None):
        raise KernelInputError("int8 weights need a scale [V], others have none")
    check("scale", head.scale, (vocabulary,), torch.float32)
    check("bias", head.bias, (vocabulary,), dtype, torch.float32)
    if head.shortlist is not None:
        check("shortlist", head.shortlist, (head.shortlist.numel(),), torch.int32)
    if head.softcap is not None and not head.softcap > 0:
        raise KernelInputError(f"a soft cap must be above 0, not {head.softcap}")
    norm, calibration = head.norm, head.calibration
    if norm is not None:
        check_norm(norm, inputs, dtype)
    if calibration is not None:
        rank = len(calibration.down)
        check("down", calibration.down, (rank, inputs), dtype, torch.float32)
        check("up", calibration.up, (rank, inputs), dtype, torch.float32)
