"""draft="auto": chooses how to draft, how far, and whether at all, between rounds.

A choice looks only at rounds that are over, so it cannot bias the text in any acceptance mode.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from layer_skip.decoder import LayeredDecoder
from selfspec.call import Call
from selfspec.drafting import ModelDrafter
from selfspec.drafting.lookup import LONGEST_FOUND, Found, Lookup, as_columns
from selfspec.drafting.margins import MarginStop
from selfspec.pacing import PayCheck, TrialBudget
from selfspec.round import Arm, Draft, Step
from selfspec.stats import Stats
from selfspec.tuning.branches import Branched
from selfspec.tuning.knowledge import Knowledge, expected_tokens
from selfspec.tuning.reading import Reading
from selfspec.tuning.speeds import Best, RoundSpeeds

_ROUNDS_PER_CHOICE = 8
_ROUNDS_PER_IDLE_CHOICE = 32
"""As long as nothing was drafted since the last choice: plain rounds teach little."""
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
        speeds: what rounds of all arms and lengths are predicted to give.
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
    speeds: RoundSpeeds
    lookup: Lookup | None
    check: PayCheck | None
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
    _seen: tuple[int, int] = (0, 0)
    _chosen_at: tuple[int, int, bool] | None = None
    """Tokens drafted, rows, and whether plain rounds had been seen, when the last choice was made."""

    def draft_length(self, remaining: int) -> int:
        """Most tokens of the next draft; 0 where drafting does not pay, or is being compared."""
        self._remaining = remaining
        self._drafting = remaining > 1 and (self.check is None or self.check.allows())
        return remaining - 1 if self._drafting else 0

    def plan(self, call: Call, length: int) -> Step:
        """What the next round drafts: what was found, or so many tokens by the arm that was chosen."""
        self.rows = len(call.rows.active)
        at = self.stats.drafted, self.rows, self.speeds.knows_plain
        idle = at == self._chosen_at
        if self._rounds % (_ROUNDS_PER_IDLE_CHOICE if idle else _ROUNDS_PER_CHOICE) == 0:
            self._choose(call.decoder)
            self._chosen_at = at
        self._rounds += 1
        self._looked_up, self._branched = False, None
        if not self._drafting:
            return Step(None, 0)
        limit = min(self.longest_found, length)
        found = [] if self.lookup is None else self._affordable(self.lookup.find(call, limit))
        tokens = [row.tokens for row in found]
        self._looked_up = self._worth(found)
        if self._looked_up:
            return Step(None, max(map(len, tokens)), tokens)
        own = self._longest(length)
        # What was found is not worth a round of its own, so without the model's drafts it is left.
        return Step(self._arm, own, tokens) if own else Step(None, 0)

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
                self.check.found.lost += self.speeds.plain_rounds_of_found(length, self.rows) - tokens
            return
        own = length
        if self._branched is not None:
            own, (accepted, rejected) = self._branched.depth, self._branched.outcome()
            tokens = 1 + accepted / self.rows
        arm = self._arm if own else None
        if arm is not None:
            self.knowledge.tally(arm, self.sampled).note(accepted, accepted + rejected)
            self._tokens = 0.9 * self._tokens + 0.1 * tokens
            self._seconds = 0.9 * self._seconds + 0.1 * self.speeds.seconds(arm, own, self.rows)
        if not math.isnan(seconds):
            self.speeds.note(arm, own or length, self.rows, seconds)
        if self.check is not None and arm is not None:
            self.check.budget.lost += self.speeds.plain_rounds(arm, own, self.rows) - tokens

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
        stakes = {
            k: self.speeds.plain_rounds(arm, k, self.rows) - 1 for k in self.speeds.lengths if 0 < k <= length
        }
        return self._budget.longest(stakes, self._remaining)

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
        options = {
            arm: self.speeds.best(arm, self.rows, chances[arm])
            for arm in self.arms
            if any(self.speeds.lengths)
        }
        best = max(options, key=lambda arm: options[arm].speed, default=None)
        mine = self._arm
        if (
            best is not None
            and mine is not None
            and options[best].speed < _SWITCHING_GAIN * options[mine].speed
        ):
            best = mine
        if best is None or (options[best].speed < LEAST_GAIN and 0 in self.speeds.lengths):
            self._arm, self._length = None, 0
        else:
            changed = best != self._arm
            self._arm, self._length = best, options[best].length
            self._chance = chances[best]
            least = self.knowledge.least_chance(best, self.sampled)
            self._sure = self.speeds.best(best, self.rows, least).speed >= LEAST_GAIN
            if changed:
                self._tokens = expected_tokens(self._chance, self._length)
                self._seconds = self.speeds.seconds(best, self._length, self.rows)
        self._explain(options, chances, best)

    def _affordable(self, found: Sequence[Found]) -> Sequence[Found]:
        """What was found, no longer than its budget allows."""
        longest = max((len(row.tokens) for row in found), default=0)
        if self.check is None or not longest:
            return found
        rows = len(found)
        if self.speeds.plain_rounds_of_found(longest, rows) - 1 <= self.check.found.left(self._remaining):
            return found
        stakes = {k: self.speeds.plain_rounds_of_found(k, rows) - 1 for k in range(1, longest + 1)}
        longest = self.check.found.longest(stakes, self._remaining)
        return [replace(row, tokens=row.tokens[:longest]) for row in found]

    def _worth(self, found: Sequence[Found]) -> bool:
        """Whether what was found promises more tokens per second than the arm that was chosen."""
        longest = max((len(row.tokens) for row in found), default=0)
        if not longest:
            return False
        rates = self.knowledge.matches[self.sampled]
        tokens = 1 + sum(rates.expected(row.match, len(row.tokens)) for row in found) / len(found)
        rounds = self.speeds.plain_rounds_of_found(longest, len(found))
        own = 1 / self.speeds.seconds(None, 0, len(found))
        free = tokens * own / rounds
        drafts = self._longest(LONGEST_SURE)
        if self._arm is not None and drafts:
            earned = self._tokens / self._seconds
            if self._budget is not None:
                seconds = self.speeds.seconds(self._arm, drafts, self.rows)
                earned = min(earned, expected_tokens(self._chance, drafts) / seconds)
            # Where the text repeats the model's own draft is right more often than usual, too.
            own = max(own, _EASIER * earned)
        return free > own

    def _explain(self, options: dict[Arm, Best], chances: dict[Arm, float], best: Arm | None) -> None:
        free = "free drafts where text repeats" if self.lookup is not None else ""
        if best is None:
            self.stats.choice = free or "no way to draft"
            self.stats.strategy = "lookup" if free else "plain"
            return
        speed, length = options[best]
        tested = self.knowledge.tally(best, self.sampled).tested
        reason = (
            f"predicted {speed:.2f}x AR by {best}, draft length {length}: acceptance {chances[best]:.2f} "
            f"from {self.knowledge.samples} prompt positions and {tested:.0f} draft tokens"
        )
        chosen = self._arm is not None
        self.stats.choice = (reason if chosen else f"no draft pays ({reason})") + (
            f"; {free}" if free else ""
        )
        others = sorted(set(options) - {best}, key=lambda arm: (arm.low_bit, arm.exit_layer))
        self.stats.considered = ", ".join(f"{arm} {options[arm].speed:.2f}x" for arm in others)
        own = f"lookup, {best.kind}" if free else best.kind
        self.stats.strategy = own if chosen else ("lookup" if free else "plain")
        ends_itself = chosen and self.arms[best].stop is not None
        self.stats.exit_layer = best.exit_layer
        self.stats.draft_length = None if ends_itself else self._length
