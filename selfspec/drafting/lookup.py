"""Free drafts: what came after the last time that the text, or a corpus, read like this."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from selfspec.call import Call
from selfspec.drafting.suffix_automaton import Cursor, SuffixAutomaton
from selfspec.round import NOTHING, Draft, Step
from selfspec.tree import chain

LONGEST_FOUND = 15
"""Most tokens of a looked-up draft, unless set: with the last committed one they fill a pass of 16."""
TOKENS_PER_MATCHED = 2
"""A draft is at most this many times as long as the match that it follows."""
_BUCKETS = (1, 2, 3, 5, 8, 13, 21)
"""Match lengths from which on a match counts as a better one."""
_PRIOR_RIGHT = (0.4, 0.8, 1.5, 3.0, 5.0, 8.0, 11.0)
_PRIOR_WEIGHT = 4.0
_FORGETTING = 0.98


@dataclass
class MatchRates:
    """How many looked-up tokens turned out right, by the length of the match before them.

    Counted by draft, not by token: after a first token that was right the others are far likelier to be right
    too, so the mean chance of a token says little of how far a draft reaches.
    """

    right: list[float] = field(default_factory=lambda: [n * _PRIOR_WEIGHT for n in _PRIOR_RIGHT])
    drafts: list[float] = field(default_factory=lambda: [_PRIOR_WEIGHT] * len(_BUCKETS))

    def expected(self, match: int, length: int) -> float:
        """Tokens that will be right of `length` ones after a match of this length."""
        bucket = _bucket(match)
        return min(self.right[bucket] / self.drafts[bucket], length)

    def note(self, match: int, right: int) -> None:
        """So many tokens of a draft were right."""
        bucket = _bucket(match)
        self.right[bucket] = self.right[bucket] * _FORGETTING + right
        self.drafts[bucket] = self.drafts[bucket] * _FORGETTING + 1


@dataclass(frozen=True)
class Found:
    """A looked-up draft of one row."""

    tokens: list[int]
    match: int
    """Length of the suffix that occurred before."""


@dataclass
class _Trial:
    """A proposal that is being compared with the text, which may come in several rounds."""

    found: Found
    right: int = 0

    def is_over(self, came: Sequence[int]) -> bool:
        """Compare with more of the text: whether a token differed, or all were right."""
        for token in came:
            if self.right == len(self.found.tokens) or token != self.found.tokens[self.right]:
                return True
            self.right += 1
        return self.right == len(self.found.tokens)


@dataclass
class _RowText:
    """What is known of one row's text, and the proposal for it that is on trial."""

    text: SuffixAutomaton
    corpus: Cursor | None
    trial: _Trial | None = None


class Lookup:
    """Longest match first, over the row's own prompt and generated text and optionally a corpus.

    Amortised O(1) a token (SAM decoding, Hu et al. 2024, arXiv 2411.10666). Every proposal is compared with
    the text that came, whether it was used or not, so `rates` is learned for nothing.

    Args:
        rates: shared by the calls of a model.
        corpus: the automaton of another text, shared and left as it is.
    """

    def __init__(self, rates: MatchRates, corpus: SuffixAutomaton | None = None) -> None:
        self.rates = rates
        self._corpus = corpus
        self._rows: dict[int, _RowText] = {}

    def draft(self, call: Call, length: int) -> Draft:
        """Draft what was found, up to `length` tokens a row; nothing is run."""
        return self.draft_of(call, self.plan(call, length).found)

    def plan(self, call: Call, length: int) -> Step:
        """What was found, up to `length` tokens a row."""
        tokens = [found.tokens for found in self.find(call, length)]
        return Step(None, max(map(len, tokens)), tokens)

    def find(self, call: Call, limit: int) -> list[Found]:
        """Up to `limit` tokens that follow the longest match, for every active row."""
        return [self._find(call, row, limit) for row in call.rows.active]

    @staticmethod
    def draft_of(call: Call, tokens: Sequence[Sequence[int]]) -> Draft:
        """A chain of what was found for every active row; nothing is run."""
        columns = as_columns(tokens, call.rows.sequences.device)
        tree = chain(columns.shape[1])
        span = call.lay_out(tree)
        nodes = torch.cat([call.rows.last_tokens()[:, None], columns.clamp(min=0)], dim=1)
        hidden = call.decoder.embed(nodes, span.narrow(0, tree.size))
        return Draft(tree, span, columns, hidden, given=True)

    def _find(self, call: Call, row: int, limit: int) -> Found:
        state = self._rows.get(row)
        if state is None:
            cursor = None if self._corpus is None else Cursor(self._corpus)
            state = self._rows[row] = _RowText(SuffixAutomaton(), cursor)
        new = call.rows.committed(row, len(state.text))
        if state.trial is not None and state.trial.is_over(new):
            self.rates.note(state.trial.found.match, state.trial.right)
            state.trial = None
        for token in new:
            state.text.extend(token)
            if state.corpus is not None:
                state.corpus.advance(token)
        found = _longest(state, limit)
        if state.trial is None and found.tokens:
            state.trial = _Trial(found)
        return found


def as_columns(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Lists of tokens as [B, longest] int64, NOTHING where a row has none."""
    longest = max(map(len, rows), default=0)
    padded = [[*tokens, *[NOTHING] * (longest - len(tokens))] for tokens in rows]
    return torch.tensor(padded, dtype=torch.int64, device=device).view(len(rows), longest)


def _longest(state: _RowText, limit: int) -> Found:
    """From the row's own text, or from the corpus where that matches further back."""
    match, source = state.text.match_length, state.text.draft
    if state.corpus is not None and state.corpus.match_length > match:
        match, source = state.corpus.match_length, state.corpus.draft
    return Found(source(min(limit, TOKENS_PER_MATCHED * match)), match)


def _bucket(match: int) -> int:
    return sum(match >= least for least in _BUCKETS[1:])
