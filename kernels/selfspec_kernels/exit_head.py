"""What an exit says: final norm, LM head and the choice of a token, with no logits in memory.

For a draft step the head is what costs: at D = 4096 and V = 128,256 its weights are 1.05 GB in bf16. They are
read once; of the logits only the best few of each block of the vocabulary are written, with the block's
maximum and its sum of exponentials, from which a last small launch takes the tokens and their probabilities.
Logits stay in fp32: they are not rounded to the dtype of the head, as those of the model's own head are.

How the engine calls it: `LayeredDecoder.logits`, the processors' temperature and `Mode.candidates` become one
call. A draft step at a level of w nodes hands over hidden [B, w, D] after layers [0, E) and `count` = the
level's breadth; coupled mode adds `Noise` at the positions that `Mode.open` was told, greedy mode none.
`scores` are what `MarginStop` compares, `logprobs` the confidence. Greedy and coupled verification without
filters hand over all of [B, m, D] after layer L and give the tokens to `accept_choices`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import Backend, KernelInputError, check, check_together, choose_backend
from selfspec_kernels.noise import Noise
from selfspec_kernels.row_norm import DTYPES as DTYPES
from selfspec_kernels.row_norm import MOST_INPUTS as MOST_INPUTS
from selfspec_kernels.row_norm import Norm as Norm
from selfspec_kernels.row_norm import check_hidden, check_norm, reference_norm

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


def exit_head(
    hidden: Tensor,
    head: Head,
    *,
    count: int = 1,
    temperature: Tensor | None = None,
    noise: Noise | None = None,
    backend: Backend | None = None,
) -> Choices:
    """The best `count` tokens of every row by logit / temperature + noise.

    Args:
        hidden: [B, m, D] before the norm, bf16, fp16 or fp32. Made for B * m from 1 to 16; for more the
            weights are read again for every 16.
        head: what turns hidden states into logits.
        count: tokens to choose, 1 to 8.
        temperature: [B] fp32.
        noise: Gumbel noise; equal scores go to the token that comes first, with or without it.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, sizes that the
            kernel does not have, or a backend that is unknown or cannot run where `hidden` is.
    """
    _check(hidden, head, count, temperature, noise)
    if choose_backend(backend, "hidden", hidden) == "reference":
        return reference_exit_head(hidden, head, count, temperature, noise)
    from selfspec_kernels import exit_head_launch

    return exit_head_launch.choose(hidden, head, count, temperature, noise)


def reference_exit_head(
    hidden: Tensor,
    head: Head,
    count: int = 1,
    temperature: Tensor | None = None,
    noise: Noise | None = None,
) -> Choices:
    """The same in plain PyTorch."""
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
    """Logits [B, m, V] (or [B, m, S] of a shortlist) in fp32 for hidden states [B, m, D]."""
    x = normalized(hidden, head).float()
    rows = slice(None) if head.shortlist is None else head.shortlist.long()
    logits = F.linear(x, head.weight[rows].float())
    if head.scale is not None:
        logits = logits * head.scale[rows]
    if head.bias is not None:
        logits = logits + head.bias[rows].float()
    logits = logits * head.multiplier
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits


def normalized(hidden: Tensor, head: Head) -> Tensor:
    """What the head's matrix is multiplied with, [B, m, D] in the dtype of the hidden states."""
    if head.calibration is not None:
        x, down, up = hidden.float(), head.calibration.down.float(), head.calibration.up.float()
        hidden = (x + x @ down.T @ up).to(hidden.dtype)
    return hidden if head.norm is None else reference_norm(hidden, head.norm)


def _check(hidden: Tensor, head: Head, count: int, temperature: Tensor | None, noise: Noise | None) -> None:
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
