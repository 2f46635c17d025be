"""Counters and rates of a generate call, and their sums over the calls of a wrapped model."""

from dataclasses import dataclass, field, fields
from typing import Any


def _counter(zero: Any = 0) -> Any:
    """A field that is summed over calls."""
    return field(default=zero, metadata={"sum": True})


@dataclass
class Stats:
    """What happened: additive counters, and the rates that follow from them."""

    rounds: int = _counter()
    """Verification passes."""
    row_rounds: int = _counter()
    """Rounds summed over the rows that took part."""
    drafted: int = _counter()
    draft_depths: int = _counter()
    """Tokens on the longest path of each row's draft, summed over rounds and rows: `drafted` for chains."""
    accepted: int = _counter()
    rejected: int = _counter()
    """Draft tokens that the target replaced: at most one a round and row; those after it do not count."""
    tokens: int = _counter()
    """Tokens generated, over all rows."""
    seconds: float = _counter(0.0)
    prefill_seconds: float = _counter(0.0)
    round_seconds: float = _counter(0.0)
    calls: int = _counter()
    strategy: str = ""
    """Where candidates came from in the last call: early_exit, low_bit, lookup, or several; or plain."""
    exit_layer: int | None = None
    """E of the last call."""
    draft_length: int | None = None
    """K of the last call: as set, tuned or chosen last; None where drafts ended by themselves."""
    shapes: str = ""
    """Whether rounding can change the text on this machine (see SpeculationConfig.deterministic)."""
    choice: str = ""
    """Why this strategy, exit layer and draft length."""
    profile: str = ""
    """Which profile the call followed, or why none of those that were loaded."""
    considered: str = ""
    """What else "auto" looked at, with the speeds that it predicted over AR."""
    launching: str = ""
    """How rounds ran: as CUDA graphs, or launched from Python, and why."""
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
    def mean_draft_length(self) -> float:
        """Tokens drafted one after the other, per round and row."""
        return self.draft_depths / self.row_rounds if self.row_rounds else 0.0

    @property
    def drafts(self) -> str:
        """Exit layer and draft length of the call, in words."""
        if not self.drafted:
            return "no drafts"
        mean = f"{self.mean_draft_length:.1f} tokens drafted a round"
        length = f"K = {self.draft_length}" if self.draft_length else mean
        return length if self.exit_layer is None else f"E = {self.exit_layer}, {length}"

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of the whole call, prefill included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def count_row(self, drafted: int, deepest: int, accepted: int, committed: int, times: int = 1) -> None:
        """One row's share of a round; `deepest` is the length of its longest drafted path.

        -1 times: take it back.
        """
        self.row_rounds += times
        self.drafted += times * drafted
        self.draft_depths += times * deepest
        self.accepted += times * accepted
        self.rejected += times * (accepted < min(deepest, committed))
        self.tokens += times * committed

    def add(self, other: "Stats") -> None:
        """Add another call's counters; its descriptions replace these."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine + theirs if "sum" in each.metadata else theirs)

    def as_dict(self) -> dict[str, Any]:
        """Counters and rates, ready for JSON."""
        counters = {each.name: getattr(self, each.name) for each in fields(self)}
        rates = ("acceptance_rate", "acceptance_length", "mean_draft_length", "tokens_per_second")
        return counters | {name: getattr(self, name) for name in rates}

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_second:.1f} tokens/s), "
            f"{self.rounds} rounds, acceptance rate {self.acceptance_rate:.2f}, "
            f"acceptance length {self.acceptance_length:.2f}"
        )
