"""Counters and rates of a generate call, and their sums over the calls of a wrapped model."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Stats:
    """What happened: additive counters, and the rates that follow from them."""

    rounds: int = 0
    """Verification passes."""
    row_rounds: int = 0
    """Rounds summed over the rows that took part."""
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    """Draft tokens that the target replaced: at most one a round and row; those after it do not count."""
    tokens: int = 0
    """Tokens generated, over all rows."""
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    round_seconds: float = 0.0
    calls: int = 0
    strategy: str = ""
    """Where candidates came from in the last call: early_exit, low_bit, lookup, or several; or plain."""
    exit_layer: int | None = None
    """E of the last call."""
    draft_length: int | None = None
    """K of the last call."""
    shapes: str = ""
    """Whether rounding can change the text on this machine (see SpeculationConfig.deterministic)."""
    choice: str = ""
    """Why this strategy, exit layer and draft length."""
    profile: str = ""
    """Which profile the call followed, or why none of those that were loaded."""
    considered: str = ""
    """What else "auto" looked at, with the speeds that it predicted over AR."""
    view: str = ""
    """The low-bit view that drafts read and the memory that it adds, or why there is none."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens / drafted tokens."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens committed per round and row, the bonus or replacement token included."""
        return 1 + self.accepted / self.row_rounds if self.row_rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of the whole call, prefill included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def count_row(self, drafted: int, deepest: int, accepted: int, committed: int) -> None:
        """One row's share of a round; `deepest` is the length of its longest drafted path."""
        self.row_rounds += 1
        self.drafted += drafted
        self.accepted += accepted
        self.rejected += accepted < min(deepest, committed)
        self.tokens += committed

    def add(self, other: "Stats") -> None:
        """Add another call's counters; its descriptions replace these."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            additive = field.type in (int, float)
            setattr(self, field.name, mine + theirs if additive else theirs)

    def as_dict(self) -> dict[str, Any]:
        """Counters and rates, ready for JSON."""
        counters = {field.name: getattr(self, field.name) for field in fields(self)}
        rates = ("acceptance_rate", "acceptance_length", "tokens_per_second")
        return counters | {name: getattr(self, name) for name in rates}

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_second:.1f} tokens/s), "
            f"{self.rounds} rounds, acceptance rate {self.acceptance_rate:.2f}, "
            f"acceptance length {self.acceptance_length:.2f}"
        )
