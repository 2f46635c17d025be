"""Rounds in which found tokens stand beside a model's own candidates: which of its own were right."""

from collections.abc import Mapping
from dataclasses import dataclass

from selfspec.round import Draft
from selfspec.rows import Rows


@dataclass(frozen=True)
class Branched:
    """A draft with a branch of found tokens, whose outcome is asked for once its round is over."""

    draft: Draft
    rows: Rows
    starts: Mapping[int, int]
    """Active row -> its committed tokens before the round."""

    @classmethod
    def of(cls, draft: Draft, rows: Rows) -> "Branched":
        return cls(draft, rows, {row: n + 1 for row, n in zip(rows.active, rows.cached, strict=True)})

    @property
    def depth(self) -> int:
        """Tokens on the longest path that the model drafted."""
        return self.draft.tree.grown_depth

    def outcome(self) -> tuple[int, int]:
        """The model's tokens that agree with the text that came, and those that the target replaced."""
        tree = self.draft.tree
        accepted = rejected = 0
        for (row, start), tokens in zip(self.starts.items(), self.draft.tokens.tolist(), strict=True):
            node = 0
            for came in self.rows.committed(row, start):
                children = [n for n in range(1, tree.size - tree.grafted) if tree.parents[n - 1] == node]
                node = next((n for n in children if tokens[n - 1] == came), -1)
                if node < 0:
                    rejected += bool(children)
                    break
                accepted += 1
        return accepted, rejected
