"""The token side of a call: what each row has committed, and when it is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoundEvent:
    """What one round did to one row, for `generate(..., on_round=callback)`."""

    row: int
    drafted: list[int]
    """Draft tokens, accepted or not: a chain, or all candidates of a tree."""
    deepest: int
    """Tokens on the longest path among them: `accepted` can be no more."""
    ranks: tuple[int, ...]
    """For each accepted token, which of the draft's candidates it was: 0 for the likeliest."""
    committed: list[int]
    """The accepted tokens, then one correction or bonus token; cut where the row finished."""

    @property
    def accepted(self) -> int:
        return len(self.ranks)

    def cut(self, length: int) -> "RoundEvent | None":
        """The same round of a row that ends after `length` of its tokens; None where none is left."""
        if length <= 0:
            return None
        if length >= len(self.committed):
            return self
        return replace(self, ranks=self.ranks[:length], committed=self.committed[:length])


@dataclass
class Rows:
    """Committed tokens of every row, in Hugging Face's layout: left padding, prompt, generated tokens.

    Columns past a row's committed tokens are scratch, like the cache's: drafted tokens may stand there.
    """

    sequences: Tensor
    """[B, P + max_new_tokens + slack] int64"""
    prompt_width: int
    pads: list[int]
    max_new_tokens: int
    eos_tokens: frozenset[int]
    pad_token: int
    criteria: Sequence[Callable[..., Tensor]] = ()
    """Hugging Face's stopping criteria, where there are others than length and end of sequence: then all of
    them, asked in lockstep (`selfspec.lockstep`)."""
    unseen: int = 0
    """Columns before the prompts that have no token ids: embeddings, or K/V that came with the call."""
    known: int = 0
    """Columns whose K/V came with the call."""
    generated: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    asked: int = 0
    """Generated tokens of every row that the criteria have been asked about."""
    stops: dict[int, int] = field(default_factory=dict)
    """By row that the criteria have stopped, how many of its generated tokens stay: it may have more."""

    @classmethod
    def of_prompts(
        cls, prompts: Tensor, mask: Tensor, max_new_tokens: int, slack: int, **settings: object
    ) -> "Rows":
        """Rows of left-padded prompts [B, P] with mask [B, unseen + P], and `slack` columns of scratch."""
        rows, width = prompts.shape
        sequences = prompts.new_zeros(rows, width + max_new_tokens + slack)
        sequences[:, :width] = prompts
        pads = (mask.shape[1] - mask.long().sum(dim=1)).tolist()
        return cls(
            sequences,
            width,
            pads,
            max_new_tokens,
            unseen=mask.shape[1] - width,
            generated=[0] * rows,
            active=list(range(rows)),
            **settings,  # type: ignore[arg-type]
        )

    @property
    def cached(self) -> list[int]:
        """Tokens in the cache of every active row: all committed ones but the last."""
        width = self.unseen + self.prompt_width - 1
        return [width - self.pads[row] + self.generated[row] for row in self.active]

    @property
    def remaining(self) -> int:
        """Most tokens that any active row may still generate."""
        return self.max_new_tokens - min(self.generated[row] for row in self.active)

    @property
    def lengths(self) -> list[int]:
        """Generated tokens of every row, without what it wrote past its stop."""
        return [self.stops.get(row, count) for row, count in enumerate(self.generated)]

    @property
    def settled(self) -> int:
        """Columns of generated tokens in which nothing can change any more."""
        if self.criteria:
            return self.asked
        return min((self.generated[row] for row in self.active), default=max(self.generated))

    def ends(self) -> list[int]:
        """Column after the last committed token, of every active row."""
        return [self.prompt_width + self.generated[row] for row in self.active]

    def last_tokens(self) -> Tensor:
        """The last committed token of every active row [B']."""
        ends = torch.tensor(self.ends(), device=self.sequences.device)
        return self.sequences[self.active, ends - 1]

    def committed(self, row: int, start: int = 0) -> list[int]:
        """Prompt and generated tokens of `row` from the `start`-th on, padding left out."""
        first = self._first(row) + start
        return self.sequences[row, first : self.prompt_width + self.generated[row]].tolist()

    def prompts(self) -> list[list[int]]:
        """The prompts without padding."""
        return [
            tokens[self._first(row) : self.prompt_width].tolist() for row, tokens in enumerate(self.sequences)
        ]

    def _first(self, row: int) -> int:
        """Column of a row's first token that is not padding."""
        return max(self.pads[row] - self.unseen, 0)

    def append(self, row: int, tokens: list[int]) -> tuple[list[int], bool]:
        """Commit tokens to `row` up to where it finishes; return those and whether it finished."""
        end = self.prompt_width + self.generated[row]
        self.sequences[row, end : end + len(tokens)] = torch.tensor(tokens, device=self.sequences.device)
        for count, token in enumerate(tokens, start=1):
            full = self.generated[row] + count >= self.max_new_tokens
            if full or token in self.eos_tokens:
                self.generated[row] += count
                return tokens[:count], True
        self.generated[row] += len(tokens)
        return tokens, False

    def cut(self) -> None:
        """Drop what rows wrote past their stops, once the call is over: drafters count on what they saw."""
        self.generated = self.lengths

    def output(self) -> Tensor:
        """[B, P + longest] int64: prompts and generated tokens, filled up with the pad token."""
        longest = max(self.generated)
        columns = torch.arange(longest, device=self.sequences.device)
        lengths = torch.tensor(self.generated, device=self.sequences.device)
        out = self.sequences[:, : self.prompt_width + longest].clone()
        out[:, self.prompt_width :].masked_fill_(columns >= lengths[:, None], self.pad_token)
        return out
