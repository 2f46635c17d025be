"""Who drafts in a call, and how far: from the settings, and from what is known of the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.drafting import EarlyExit, Lookup, LowBit, ModelDrafter, StopRule
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.pacing import MEASURING_SHARE, FixedLength, Pacer, PayCheck, TrialBudget
from selfspec.round import Arm
from selfspec.rows import Rows
from selfspec.shapes import ShapePlan
from selfspec.stats import Stats
from selfspec.tuning.auto import Auto
from selfspec.tuning.costs import WIDTHS
from selfspec.tuning.knowledge import LONGEST_CHOSEN, Knowledge
from selfspec.tuning.reading import Reading, affordable_samples
from selfspec.tuning.speeds import RoundSpeeds

_READING_SHARE = 0.02
"""Share of a call's expected time that reading the exits along its prompt may take."""
_FOUND_SHARE = 1 / 3
"""Of what finding out may cost, for looked-up drafts where they stand beside others."""
_USUAL_SPEEDUP = 3.0
_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Exit layers over the number of layers, where there is to be a graph for each."""
_LONGEST_FOUND = 31
"""Tokens of a draft that was found: on a GPU a pass of 32 tokens costs little more than one of 16."""
_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 10)
"""Draft lengths, likewise."""


@dataclass(frozen=True)
class Strategy:
    """Chooses for the calls of one wrapped model.

    Args:
        view: the low-bit view, None where there is none; of `exit_layer` layers at least, where that is set.
        corpus: what lookup may copy from beside the text.
    """

    config: SpeculationConfig
    knowledge: Knowledge
    view: LowBitView | None
    corpus: SuffixAutomaton | None
    fixed: bool = False
    """Whether drafts are as long as was decided beforehand, as rounds that run on the device alone need."""

    def of_call(
        self, decoder: LayeredDecoder, rows: Rows, shapes: ShapePlan, stats: Stats, sampled: bool
    ) -> tuple[Drafter, Pacer, Reading | None]:
        """Drafter and pacer, and what reads the exits along the prompt; `stats` are told the choice."""
        fixed = self._fixed(decoder, stats, sampled)
        if fixed is not None:
            return *fixed, None
        auto = self._auto(decoder, rows, shapes, stats, sampled)
        return auto, auto, auto.reading

    def _fixed(self, decoder: LayeredDecoder, stats: Stats, sampled: bool) -> tuple[Drafter, Pacer] | None:
        """Drafter and pacer where the settings leave no choice."""
        kind, exit_layer, length = self.config.kind, self.config.exit_layer, self.config.draft_length
        if length == "auto" or (kind in ("auto", "hybrid") and length):
            return None
        stats.choice, stats.draft_length = "as configured", length
        if length == 0:
            stats.strategy = "plain"
            return EarlyExit(1), FixedLength(0)
        if kind == "lookup":
            stats.strategy = "lookup"
            return Lookup(self.knowledge.matches[sampled], self.corpus), FixedLength(length)
        if exit_layer == "auto":
            return None
        arm = Arm(exit_layer, low_bit=kind == "low_bit" and self.view is not None)
        if not arm.low_bit and exit_layer == decoder.n_layers:
            return None  # all layers in few bits were asked for, and no view was possible
        stats.strategy, stats.exit_layer = arm.kind, exit_layer
        return self._drafter(arm), FixedLength(length)

    def _auto(
        self, decoder: LayeredDecoder, rows: Rows, shapes: ShapePlan, stats: Stats, sampled: bool
    ) -> Auto:
        config, n = self.config, len(rows.active)
        measured = config.draft_length == "auto"
        arms = {arm: self._drafter(arm, self._stop(arm, sampled)) for arm in self._arms(decoder)}
        reading = self._reading(decoder, rows) if len(arms) > 1 else None
        return Auto(
            knowledge=self.knowledge,
            arms=arms,
            plain=EarlyExit(1),
            speeds=RoundSpeeds(self.knowledge, self._lengths(), shapes),
            lookup=Lookup(self.knowledge.matches[sampled], self.corpus) if config.looks_up else None,
            check=self._check(n, bool(arms), reading is not None) if measured else None,
            rows=n,
            sampled=sampled,
            stats=stats,
            branches=config.tree != "chain",
            longest_found=self._longest_found(),
            reading=reading,
        )

    def _check(self, rows: int, arms: bool, reads: bool) -> PayCheck:
        """Whether drafting pays; what reading the exits takes comes off what trials of arms may lose."""
        found = MEASURING_SHARE * (_FOUND_SHARE if arms else 1.0) if self.config.looks_up else 0.0
        own = MEASURING_SHARE - found - (_READING_SHARE / _USUAL_SPEEDUP if reads else 0.0)
        plain = self.knowledge.plain_rate(rows)
        return PayCheck(warmup=1, delay=2, plain=plain, budget=TrialBudget(own), found=TrialBudget(found))

    def _arms(self, decoder: LayeredDecoder) -> Iterator[Arm]:
        """The ways to draft with the model's layers that the settings allow."""
        kind, exit_layer = self.config.kind, self.config.exit_layer
        if kind == "lookup":
            return
        if self.view is not None and kind != "early_exit":
            exits = self._exits(self.view.n_layers) if exit_layer == "auto" else [exit_layer]
            yield from (Arm(e, low_bit=True) for e in exits)
        if self.view is None or kind in ("auto", "early_exit"):
            exits = self._exits(decoder.n_layers - 1) if exit_layer == "auto" else [exit_layer]
            yield from (Arm(e, low_bit=False) for e in exits if e < decoder.n_layers)

    def _longest_found(self) -> int:
        """Most tokens of a draft that was looked up."""
        if self.fixed and self.config.draft_length == "auto":
            return _LONGEST_FOUND
        return self.config.longest_found

    def _lengths(self) -> Sequence[int]:
        """Draft lengths to choose from."""
        if self.config.draft_length != "auto":
            return [int(self.config.draft_length)]
        deepest = self.config.shape(LONGEST_CHOSEN).depth
        return [k for k in _LENGTHS if k <= deepest] if self.fixed else range(deepest + 1)

    def _exits(self, deepest: int) -> Sequence[int]:
        """Exit layers to choose from: some of all depths where every choice is a graph to capture."""
        if not self.fixed:
            return range(1, deepest + 1)
        return sorted({max(1, round(deepest * share)) for share in _SHARES})

    def _drafter(self, arm: Arm, stop: MarginStop | None = None) -> ModelDrafter:
        config = self.config
        rule = StopRule.below(config.confidence_threshold)
        how = (config.shape, rule, stop, config.tree == "siblings")
        if arm.low_bit and self.view is not None:
            return LowBit(self.view, arm.exit_layer, *how)
        return EarlyExit(arm.exit_layer, *how)

    def _stop(self, arm: Arm, sampled: bool) -> MarginStop | None:
        """What ends an arm's drafts, where neither their length nor another rule is set."""
        config = self.config
        if (
            self.fixed
            or config.draft_length != "auto"
            or config.confidence_threshold
            or config.own_tree is not None
        ):
            return None
        if sampled and config.acceptance == "rejection":
            return None  # whether a draft goes on may not depend on the tokens that were drawn
        return MarginStop(self.knowledge.margin_rates(arm, sampled))

    def _reading(self, decoder: LayeredDecoder, rows: Rows) -> Reading | None:
        """What reads the exits along the prompt, where more is to be learned and the call is long enough."""
        knowledge = self.knowledge
        together = len(rows.active) > 1 and not self.config.deterministic
        if not knowledge.wants_reading or together:
            return None
        step = knowledge.exact.seconds(knowledge.n_layers, 1)
        budget = _READING_SHARE * rows.max_new_tokens * step / _USUAL_SPEEDUP
        samples = affordable_samples(budget, knowledge.exact.head[-1] / WIDTHS[-1], decoder.n_layers)
        return Reading(samples) if samples else None
