"""The static buffers of captured rounds: what a call writes before them, and what comes back to the host."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.round import NOTHING
from selfspec_kernels.accept_reference import Accepted, Sampling
from selfspec_kernels.commit_reference import COUNTERS, RowState
from selfspec_kernels.noise import Noise

MOST_FOUND = 63
"""Tokens of a draft: with the last committed one they fill the widest pass."""
MOST_END_TOKENS = 64
_NO_TOKEN = -2
"""Fills up the list of end tokens: no token is that, nor is NOTHING."""


@dataclass(frozen=True)
class Signature:
    """What of a request decides which kernels run: part of what a graph is kept under."""

    noisy: bool = False
    temperature: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False


@dataclass(frozen=True)
class Request:
    """How tokens are chosen in a call, the same in all rows but for the keys of their noise."""

    keys: Tensor | None = None
    """[B] int64 from `stream_keys`; None for greedy decoding."""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @property
    def signature(self) -> Signature:
        values = (self.keys, self.temperature, self.top_k, self.top_p, self.min_p)
        return Signature(*(value is not None for value in values))


class Buffers:
    """Written in place before and during a call, so that graphs find them where they were.

    Args:
        rows: B.
        capacity: slots of the cache, columns of the texts.
        device: where they are.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        def numbers() -> Tensor:
            return torch.ones(rows, dtype=torch.float32, device=device)

        self.rows = RowState(
            sequences=integers(rows, capacity),
            lengths=integers(rows),
            limits=integers(rows),
            finished=torch.ones(rows, dtype=torch.bool, device=device),
            counters=integers(rows, COUNTERS),
            end_tokens=integers(MOST_END_TOKENS),
        )
        self.found = integers(rows, MOST_FOUND)
        self.keys = integers(rows)
        self.temperature, self.top_p, self.min_p = numbers(), numbers(), numbers()
        self.top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self._given = _on_host(rows, MOST_FOUND, pinned=device.type == "cuda")
        self._report = _on_host(rows * (2 * MOST_FOUND + 3), pinned=device.type == "cuda")

    def begin(
        self, texts: list[list[int]], limits: list[int], ends: frozenset[int], request: Request
    ) -> None:
        """Take up a call: committed tokens of its rows; rows beyond them are finished from the start."""
        state, count = self.rows, len(texts)
        width = max(map(len, texts))
        rest = len(state.lengths) - count
        columns = [[*text, *[0] * (width - len(text))] for text in texts]
        state.sequences[:count, :width] = _placed(columns, state.sequences)
        state.lengths.copy_(_placed([*map(len, texts), *[1] * rest], state.lengths))
        state.limits.copy_(_placed([*limits, *[1] * rest], state.limits))
        state.finished.copy_(_placed([*[0] * count, *[1] * rest], state.finished))
        state.counters.zero_()
        listed = sorted(ends)
        listed += [_NO_TOKEN] * (MOST_END_TOKENS - len(listed))
        state.end_tokens.copy_(_placed(listed, state.end_tokens))
        if request.keys is not None:
            self.keys[:count] = request.keys
        for name in ("temperature", "top_k", "top_p", "min_p"):
            value = getattr(request, name)
            if value is not None:
                getattr(self, name).fill_(value)

    def give(self, found: list[list[int]], length: int) -> None:
        """Hand over found tokens, a list for every row; NOTHING stands where one has fewer than `length`."""
        lines = [[*tokens, *[NOTHING] * (length - len(tokens))] for tokens in found]
        self._given[:, :length] = _placed(lines, self._given)
        self.found.copy_(self._given, non_blocking=True)  # whole: of a part torch would make a copy first

    def sampling(self, signature: Signature) -> Sampling:
        """The settings that a call with this signature has."""
        return Sampling(
            self.temperature if signature.temperature else None,
            self.top_k if signature.top_k else None,
            self.top_p if signature.top_p else None,
            self.min_p if signature.min_p else None,
        )

    def noise(self, signature: Signature, positions: Tensor) -> Noise | None:
        """The noise that decides the tokens at positions [B, w]."""
        return Noise(self.keys, positions) if signature.noisy else None

    def report(self, draft: Tensor, verdict: Accepted) -> None:
        """Send a round's outcome to the host, without waiting for it."""
        bad = verdict.logprobs.isnan().any(dim=1, keepdim=True)
        columns = torch.cat([verdict.accepted[:, None], bad.long(), draft, verdict.tokens], dim=1)
        self._host(draft.shape[1]).copy_(columns, non_blocking=True)

    def outcomes(self, length: int) -> list["Outcome"]:
        """What a round of K = `length` reported, for every row; once it is there."""
        lines = self._host(length).tolist()
        return [
            Outcome(bool(bad), rest[:length], rest[length : length + accepted + 1])
            for accepted, bad, *rest in lines
        ]

    def _host(self, length: int) -> Tensor:
        rows, width = len(self.keys), 2 * length + 3
        return self._report[: rows * width].view(rows, width)


def _on_host(*shape: int, pinned: bool) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, pin_memory=pinned, device="cpu")


def _placed(values: list[Any], like: Tensor) -> Tensor:
    """The values as int64, where `like` is."""
    return torch.tensor(values, dtype=torch.int64, device=like.device)


@dataclass(frozen=True)
class Outcome:
    """A round of one row."""

    bad: bool
    """Whether a score was NaN."""
    drafted: list[int]
    tokens: list[int]
    """The accepted ones, and the one after them."""
