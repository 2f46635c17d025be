"""What acceptance takes and returns, the checks of its inputs, and the walk in plain PyTorch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import KernelInputError, check, check_together
from selfspec_kernels.noise import Noise

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_NODES = 64
"""The last committed token and the candidates."""


@dataclass(frozen=True)
class Sampling:
    """A request's settings, one number a row; applied in this order, as Hugging Face does."""

    temperature: Tensor | None = None
    """[B] fp32, above 0"""
    top_k: Tensor | None = None
    """[B] int32; 0 for no limit. Scores equal to the k-th are kept."""
    top_p: Tensor | None = None
    """[B] fp32; 1 for no limit. Equal scores are kept or dropped together."""
    min_p: Tensor | None = None
    """[B] fp32; 0 for no limit"""

    @property
    def filters(self) -> bool:
        """Whether anything but the temperature is set."""
        return not (self.top_k is None and self.top_p is None and self.min_p is None)

    def tensors(self) -> dict[str, Tensor | None]:
        """By name."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}


@dataclass(frozen=True)
class Accepted:
    """What a round commits; of d + 1 columns the first accepted + 1 count, the others repeat the last."""

    accepted: Tensor
    """[B] int64: draft tokens that stand."""
    tokens: Tensor
    """[B, d+1] int64"""
    logprobs: Tensor
    """[B, d+1] fp32: the tokens' log-probabilities under the target, after temperature and filters."""
    columns: Tensor
    """[B, d+1] int64: where the accepted tokens stood, from the root on: 0, 1, 2, ... after a chain."""


def reference_accept(
    logits: Tensor,
    draft: Tensor,
    sampling: Sampling,
    noise: Noise | None,
    parents: Tensor | None,
    depth: int,
) -> Accepted:
    """The choices of a target's logits [B, n+1, V], and the walk down them."""
    scores = processed(logits, sampling)
    tokens = torch.arange(logits.shape[2], device=logits.device)
    choices = (scores if noise is None else scores + noise.at(tokens)).argmax(dim=-1)
    logprobs = scores.log_softmax(dim=-1).gather(-1, choices[..., None])[..., 0]
    return reference_walk(draft, choices, logprobs, parents, depth)


def processed(logits: Tensor, sampling: Sampling) -> Tensor:
    """Scores [B, m, V] in fp32 after temperature and filters, in plain PyTorch."""
    scores = logits.float()
    if sampling.temperature is not None:
        scores = scores / sampling.temperature[:, None, None]
    if sampling.top_k is not None:
        size = scores.shape[-1]
        k = torch.where(sampling.top_k > 0, sampling.top_k, size).clamp(max=size).long()
        least = scores.sort(dim=-1, descending=True).values.gather(
            -1, (k[:, None, None] - 1).expand(-1, scores.shape[1], 1)
        )
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.top_p is not None:
        ordered = scores.sort(dim=-1, descending=True).values
        mass = (ordered - ordered[..., :1]).exp()
        # A score stays if those above it hold less than top_p; the lowest one that stays is the threshold.
        above = F.pad(mass.cumsum(dim=-1)[..., :-1], (1, 0))
        share = sampling.top_p[:, None, None]
        kept = (above < share * mass.sum(dim=-1, keepdim=True)) | (share >= 1) | (above == 0)
        least = ordered.masked_fill(~kept, float("inf")).amin(dim=-1, keepdim=True)
        scores = scores.masked_fill(scores < least, float("-inf"))
    if sampling.min_p is not None:
        share = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        scores = scores.masked_fill(share < sampling.min_p[:, None, None], float("-inf"))
    return scores


def reference_walk(
    draft: Tensor, choices: Tensor, logprobs: Tensor, parents: Tensor | None, depth: int
) -> Accepted:
    """From the root to the deepest candidate of which every node on the way is its parent's choice."""
    above = parents.long() if parents is not None else torch.arange(draft.shape[1], device=draft.device)
    matches = F.pad(draft == choices[:, above], (1, 0))
    reached = torch.zeros_like(matches)
    reached[:, 0] = True
    accepted = torch.zeros(len(draft), dtype=torch.int64, device=draft.device)
    at = torch.zeros_like(accepted)
    for level in range(1, depth + 1):
        reached = matches & F.pad(reached[:, above], (1, 0))
        some = reached.any(dim=1)
        accepted = torch.where(some, level, accepted)
        at = torch.where(some, reached.int().argmax(dim=1), at)
    columns = torch.empty(len(draft), depth + 1, dtype=torch.int64, device=draft.device)
    above = F.pad(above, (1, 0))
    for step in reversed(range(depth + 1)):
        columns[:, step] = at
        at = torch.where(accepted >= step, above[at], at)
    return Accepted(accepted, choices.gather(1, columns), logprobs.gather(1, columns), columns)


def check_logits(logits: Tensor, draft: Tensor, sampling: Sampling) -> None:
    """What every way of accepting asks of its inputs.

    Raises:
        KernelInputError: they do not belong together.
    """
    if logits.dim() != 3 or logits.dtype not in DTYPES or not logits.shape[2]:
        raise KernelInputError(
            f"logits must be [B, n+1, V] in bf16, fp16 or fp32, not {logits.dtype} {list(logits.shape)}"
        )
    check_together({"logits": logits, "draft": draft, **sampling.tensors()})
    rows, nodes = logits.shape[:2]
    check("logits", logits, tuple(logits.shape), *DTYPES, layout="rows")
    check("draft", draft, (rows, nodes - 1), torch.int64, layout="rows")
    for name, tensor in sampling.tensors().items():
        check(name, tensor, (rows,), torch.int32 if name == "top_k" else torch.float32)
    if nodes > MOST_NODES:
        raise KernelInputError(f"{nodes} nodes: allowed are up to {MOST_NODES}")


def check_tree(draft: Tensor, parents: Tensor | None, depth: int | None) -> int:
    """The depth of the tree that the candidates make.

    Raises:
        KernelInputError: they make none, or one that is too large.
    """
    candidates = draft.shape[1]
    if candidates >= MOST_NODES:
        raise KernelInputError(f"{candidates} candidates: allowed are up to {MOST_NODES - 1}")
    if parents is None:
        if depth not in (None, candidates):
            raise KernelInputError(f"a chain of {candidates} candidates has no depth of {depth}")
        return candidates
    check_together({"draft": draft, "parents": parents})
    check("parents", parents, (candidates,), torch.int32)
    if depth is None or not 0 <= depth <= candidates:
        raise KernelInputError(f"a tree of {candidates} candidates needs a depth up to that, not {depth}")
    return depth
