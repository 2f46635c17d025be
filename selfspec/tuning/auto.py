"""draft="auto": chooses how to draft, how far, and whether at all, between rounds.

A choice looks only at rounds that are over, so it cannot bias the text in any acceptance mode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from layer_skip.decoder import LayeredDecoder
from selfspec.call import Call
from selfspec.drafting import ModelDrafter
from selfspec.drafting.lookup import LONGEST_FOUND, Found, Lookup, as_columns
from selfspec.drafting.margins import MarginStop
from selfspec.pacing import PayCheck, TrialBudget
from selfspec.round import Arm, Draft, Step
from selfspec.shapes import ShapePlan
from selfspec.stats import Stats
from selfspec.tuning.branches import Branched
from selfspec.tuning.knowledge import Knowledge, expected_tokens
from selfspec.tuning.reading import Reading

_ROUNDS_PER_CHOICE = 8
LONGEST_SURE = 15
"""Longest draft of an arm that stops by itself: with the last committed token it fills a pass of 16."""
LEAST_GAIN = 1.03
"""A draft that promises less than this over plain rounds is not worth its risk."""
_EASIER = 1.15
"""What a model's own draft earns where lookup finds something, in units of what it usually earns."""
_SWITCHING_GAIN = 1.05
"""Another arm takes over when it promises this much more."""


@dataclass
class Auto:
    """Drafter and pacer of a call: free drafts first, and where those promise less the model's own.

    Args:
        knowledge: of the model; what this call sees is added to it.
        arms: the ways to draft that are there, none for free drafts alone.
        lengths: K to choose from.
        lookup: free drafts in front of the model's own, None for none.
        check: whether drafting pays at all, against measured plain rounds, and what finding out may cost: an
            arm that was not seen to pay drafts no further than its budget allows. None to draft in any case.
        stats: of the call: told what was chosen and why.
        branches: whether found tokens join the model's candidates, as a branch of their own in the same pass
            (they take other cache slots than a chain's, see `Tree`).
        longest_found: most tokens of a free draft.
    """

    knowledge: Knowledge
    arms: Mapping[Arm, ModelDrafter]
    plain: ModelDrafter
    lengths: Sequence[int]
    lookup: Lookup | None
    check: PayCheck | None
    shapes: ShapePlan
    rows: int
    sampled: bool
    stats: Stats
    branches: bool = False
    longest_found: int = LONGEST_FOUND
    reading: Reading | None = None
    _arm: Arm | None = None
    _length: int = 0
    _chance: float = 0.0
    _sure: bool = False
    """Whether what was seen of the arm leaves no doubt that it pays."""
    _drafting: bool = False
    _remaining: int = 0
    _looked_up: bool = False
    _branched: Branched | None = None
    _rounds: int = 0
    _tokens: float = 1.0
    _seconds: float = 1.0
    """Tokens and predicted seconds of the chosen arm's rounds, averaged: the rate that drafting earns."""
    _slowness: dict[Arm | None, float] = field(default_factory=dict)
    _seen: tuple[int, int] = (0, 0)

    def draft_length(self, remaining: int) -> int:
        """Most tokens of the next draft; 0 where drafting does not pay, or is being compared."""
        self._remaining = remaining
        self._drafting = remaining > 1 and (self.check is None or self.check.allows())
        return remaining - 1 if self._drafting else 0

    def plan(self, call: Call, length: int) -> Step:
        """What the next round drafts: what was found, or so many tokens by the arm that was chosen."""
        if self._rounds % _ROUNDS_PER_CHOICE == 0:
            self._choose(call.decoder)
        self._rounds += 1
        self.rows = len(call.rows.active)
        self._looked_up, self._branched = False, None
        if not self._drafting:
            return Step(None, 0)
        found = [] if self.lookup is None else self.lookup.find(call, min(self.longest_found, length))
        tokens = [row.tokens for row in found]
        self._looked_up = self._worth(found)
        if self._looked_up:
            return Step(None, max(map(len, tokens)), tokens)
        own = self._longest(length)
        return Step(self._arm if own else None, own, tokens)

    def draft(self, call: Call, length: int) -> Draft:
        """Draft what was found, or by the arm that was chosen."""
        step = self.plan(call, length)
        if self._looked_up and self.lookup is not None:
            return self.lookup.draft_of(call, step.found)
        model = self.plain if step.arm is None else self.arms[step.arm]
        if step.arm is not None and model.stop is not None:
            model.stop.least = self._least_chance(step.arm, model.stop)
        if not self.branches or not any(step.found):
            return model.draft(call, step.length)
        draft = model.draft(call, step.length, as_columns(step.found, call.rows.sequences.device))
        self._branched = Branched.of(draft, call.rows)
        return draft

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        """Learn from a round that is over."""
        if self.check is not None:
            self.check.observe(length > 0, tokens, seconds)
        accepted, rejected = self.stats.accepted - self._seen[0], self.stats.rejected - self._seen[1]
        self._seen = (self.stats.accepted, self.stats.rejected)
        if self._looked_up:
            if self.check is not None:
                self.check.found.lost += self._lookup_rounds(length, self.rows) - tokens
            return
        own = length
        if self._branched is not None:
            own, (accepted, rejected) = self._branched.depth, self._branched.outcome()
            tokens = 1 + accepted / self.rows
        arm = self._arm if own else None
        if arm is not None:
            self.knowledge.tally(arm, self.sampled).note(accepted, accepted + rejected)
        expected = self.knowledge.round_seconds(arm, own or length, self.rows, self.shapes)
        if arm is not None:
            self._tokens = 0.9 * self._tokens + 0.1 * tokens
            self._seconds = 0.9 * self._seconds + 0.1 * expected
        if not math.isnan(seconds):
            ratio = seconds / expected
            before = self._slowness.get(arm, ratio)
            # One round may be slow by accident, so a single one moves the estimate little.
            self._slowness[arm] = 0.8 * before + 0.2 * min(ratio, 2 * before)
        if self.check is not None and arm is not None:
            self.check.budget.lost += self._plain_rounds(arm, own) - tokens

    @property
    def _budget(self) -> TrialBudget | None:
        """What the chosen arm may lose as long as it is not known to pay."""
        return None if self.check is None or self._sure else self.check.budget

    def _longest(self, length: int) -> int:
        """How far the chosen arm may draft, `length` at most."""
        arm = self._arm
        if arm is None:
            return 0
        length = min(length, self._length if self.arms[arm].stop is None else LONGEST_SURE)
        if self._budget is None:
            return length
        stakes = {k: self._plain_rounds(arm, k) - 1 for k in self.lengths if 0 < k <= length}
        return self._budget.longest(stakes, self._remaining)

    def _plain_rounds(self, arm: Arm, length: int) -> float:
        """Plain rounds that take as long as one with `length` drafts."""
        return self._speed(None, 0, 0.0) / self._speed(arm, length, 0.0)

    def _least_chance(self, arm: Arm, stop: MarginStop) -> float:
        """Below this chance that a draft stands so far, another token earns less than time usually does.

        The rule of a renewal process: go on while chance / cost of the next token is above the long-run rate.
        """
        rate = self._tokens / self._seconds
        return min(rate * self.knowledge.next_token_seconds(arm, self.rows) / stop.rates.usual, 0.95)

    def _choose(self, decoder: LayeredDecoder) -> None:
        """Choose arm and K by predicted tokens per second."""
        if self.reading is not None:
            agreement = self.reading.agreement(decoder)
            if agreement is not None:
                self.knowledge.read(agreement)
            self.reading = None
        chances = self.knowledge.chances(self.arms, self.sampled)
        plain = self._speed(None, 0, 0.0)
        speeds = {
            (arm, k): self._speed(arm, k, chances[arm]) / plain
            for arm in self.arms
            for k in self.lengths
            if k
        }
        best = max(speeds, key=lambda option: speeds[option], default=None)
        mine = max((s for (arm, _), s in speeds.items() if arm == self._arm), default=0.0)
        if best is not None and self._arm is not None and speeds[best] < _SWITCHING_GAIN * mine:
            best = max((o for o in speeds if o[0] == self._arm), key=lambda option: speeds[option])
        if best is None or (speeds[best] < LEAST_GAIN and 0 in self.lengths):
            self._arm, self._length = None, 0
        else:
            changed = best[0] != self._arm
            self._arm, self._length = best
            self._chance = chances[self._arm]
            least = self.knowledge.least_chance(self._arm, self.sampled)
            sure = max(self._speed(self._arm, k, least) for k in self.lengths if k)
            self._sure = sure >= LEAST_GAIN * plain
            if changed:
                self._tokens = expected_tokens(self._chance, self._length)
                self._seconds = self.knowledge.round_seconds(*best, self.rows, self.shapes)
        self._explain(speeds, chances, best)

    def _speed(self, arm: Arm | None, length: int, chance: float) -> float:
        """Predicted tokens per second; None stands for plain rounds."""
        seconds = self.knowledge.round_seconds(arm, length, self.rows, self.shapes)
        # What was not tried in this call is as much slower than its passes alone as what was.
        usual = min(self._slowness.values(), default=1.0)
        return expected_tokens(chance, length) / (seconds * self._slowness.get(arm, usual))

    def _worth(self, found: Sequence[Found]) -> bool:
        """Whether what was found promises more tokens per second than the arm that was chosen."""
        longest = max((len(row.tokens) for row in found), default=0)
        if not longest:
            return False
        rates = self.knowledge.matches[self.sampled]
        tokens = 1 + sum(rates.expected(row.match, len(row.tokens)) for row in found) / len(found)
        rounds = self._lookup_rounds(longest, len(found))
        if self.check is not None and self.check.found.left(self._remaining) < rounds - 1:
            return False
        own = 1 / self.knowledge.round_seconds(None, 0, len(found), self.shapes)
        free = tokens * own / rounds
        drafts = self._longest(LONGEST_SURE)
        if self._arm is not None and drafts:
            earned = self._tokens / self._seconds
            if self._budget is not None:
                seconds = self.knowledge.round_seconds(self._arm, drafts, self.rows, self.shapes)
                earned = min(earned, expected_tokens(self._chance, drafts) / seconds)
            # Where the text repeats the model's own draft is right more often than usual, too.
            own = max(own, _EASIER * earned)
        return free > own

    def _lookup_rounds(self, length: int, rows: int) -> float:
        """Plain rounds that take as long as one that verifies `length` looked-up tokens."""
        seconds = self.knowledge.lookup_seconds(length, rows, self.shapes)
        return seconds / self.knowledge.round_seconds(None, 0, rows, self.shapes)

    def _explain(
        self, speeds: dict[tuple[Arm, int], float], chances: dict[Arm, float], best: tuple[Arm, int] | None
    ) -> None:
        free = "free drafts where text repeats" if self.lookup is not None else ""
        if best is None:
            self.stats.choice = free or "no way to draft"
            self.stats.strategy = "lookup" if free else "plain"
            return
        arm, k = best
        reason = (
            f"predicted {speeds[best]:.2f}x AR by {arm}, draft length {k}: acceptance {chances[arm]:.2f} "
        )
        tested = self.knowledge.tally(arm, self.sampled).tested
        reason += f"from {self.knowledge.samples} prompt positions and {tested:.0f} draft tokens"
        others = [
            f"{other} {max(s for (a, _), s in speeds.items() if a == other):.2f}x"
            for other in sorted({a for a, _ in speeds} - {arm}, key=lambda a: (a.low_bit, a.exit_layer))
        ]
        chosen = self._arm is not None
        self.stats.choice = (reason if chosen else f"no draft pays ({reason})") + (
            f"; {free}" if free else ""
        )
        self.stats.considered = ", ".join(others)
        own = f"lookup, {arm.kind}" if free else arm.kind
        self.stats.strategy = own if chosen else ("lookup" if free else "plain")
        ends_itself = chosen and self.arms[arm].stop is not None
        self.stats.exit_layer, self.stats.draft_length = arm.exit_layer, None if ends_itself else self._length
