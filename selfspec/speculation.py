"""What a wrapped model carries: its settings, what was measured of it, and its statistics."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, NothingToViewError
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.drafting import EarlyExit, Lookup, LowBit, ModelDrafter, StopRule
from selfspec.drafting.margins import MarginStop
from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.pacing import FixedLength, Pacer, PayCheck, Rate
from selfspec.rechecking import ModelCheck
from selfspec.rows import Rows
from selfspec.shapes import FASTEST, ShapePlan, describe, probe
from selfspec.stats import Stats
from selfspec.strategy import make_view, read_corpus
from selfspec.tuning.auto import Auto
from selfspec.tuning.costs import WIDTHS, time_passes
from selfspec.tuning.following import follow
from selfspec.tuning.knowledge import LONGEST, Arm, Knowledge
from selfspec.tuning.profile import Profile, profile_of_call
from selfspec.tuning.reading import Reading, affordable_samples

_READING_SHARE = 0.02
"""Share of a call's expected time that reading the exits along its prompt may take."""
_WORTHWHILE_VIEW = 0.75
"""A view is made for "auto" when its layer takes at most this share of the model's own."""
_USUAL_SPEEDUP = 3.0


class Speculation:
    """`model.speculation` of a wrapped model; safe to use from several threads.

    Holds no weights but those of the low-bit view, where the settings ask for one.
    """

    def __init__(self, config: SpeculationConfig) -> None:
        self.config = config
        self.stats = Stats()
        """Of the last call."""
        self.total = Stats()
        """Summed over all calls."""
        self.view: LowBitView | None = None
        self.view_note = ""
        """What was viewed in low bits, or why nothing was."""
        self.profiles: dict[str, Profile] = {}
        """By workload, the newest last."""
        self._model: Any = None
        self._check = ModelCheck()
        self._corpus: SuffixAutomaton | None = None
        self._knowledge: Knowledge | None = None
        self._lock = threading.Lock()

    def prepare(self, model: Any, decoder: LayeredDecoder, quiet: bool = False) -> None:
        """Probe shapes, make the low-bit view and time the passes: all that is done once, at wrap time.

        Raises:
            ConfigError: the corpus cannot be read.
        """
        self.shapes(decoder)
        kind = self.config.kind
        if kind in ("lookup", "hybrid"):
            self._corpus = read_corpus(model, self.config.corpus)
        exact = time_passes(decoder)
        if kind in ("low_bit", "hybrid") or (kind == "auto" and self._view_pays(decoder)):
            self.view, self.view_note = make_view(decoder, self.config)
            if not quiet:
                print(f"selfspec: {self.view_note}", file=sys.stderr)
        low_bit = None if self.view is None else time_passes(self.view.of(decoder))
        self._knowledge = Knowledge(decoder.n_layers, exact, low_bit, self.config.draft_bits)

    def recheck(self, model: Any, decoder: LayeredDecoder) -> None:
        """Check the model, if it is not in the state in which it was checked last.

        Raises:
            UnsupportedModelError: layers run one by one do not give the model's own logits.
            ConfigError: the settings name a layer that the model has not, or a tree that it cannot take.
        """
        if self._check.is_due(model, decoder):
            self.config.check_model(decoder.n_layers, decoder.takes_trees)
            self._check.check(model, decoder)
            with self._lock:  # what was packed and timed is another model's
                self.view = self._knowledge = None

    def attach(self, model: Any, profiles: dict[str, Profile]) -> None:
        """Take up the model that `tune` works on, and its profiles."""
        self._model = model
        self.profiles = profiles

    def tune(self, prompts: Any, *, workload: str = "default", **options: Any) -> Profile:
        """Choose exit layer, draft length and stop rule of early exit drafts for a workload.

        Calls follow the profile from now on where they name the workload, and by default with
        draft="early_exit"; draft="auto" has other drafts to choose from and goes on measuring.

        Args:
            prompts: token ids, a list per prompt; or texts, with `tokenizer=`.
            workload: a name to call it by in `generate(..., workload=)`.
            options: those of `selfspec.tuning.tune.tune` (max_new_tokens, batch, limits, generate_arguments
                and more), and `save`: a file for the profile, or None to keep it in memory only; by default
                it goes where `wrap` finds it by itself.

        Raises:
            ValueError: no prompts, or none that fits the model.
            OSError: the file named by `save` cannot be written; nothing has been measured yet.
        """
        from selfspec.tuning.session import tune_model  # it drives the engine, which needs this module

        tuned = tune_model(self._model, prompts, workload=workload, config=self.config, **options)
        with self._lock:
            others = {name: profile for name, profile in self.profiles.items() if name != workload}
            self.profiles = {**others, workload: tuned.profile}
        return tuned.profile

    def shapes(self, decoder: LayeredDecoder) -> ShapePlan:
        """The shapes to compute at, probed once per shape, dtype and device."""
        return probe(decoder) if self.config.deterministic else FASTEST

    def strategy(
        self, model: Any, decoder: LayeredDecoder, rows: Rows, sampled: bool, workload: str | None = None
    ) -> tuple[Drafter, Pacer, Stats, Reading | None]:
        """Drafter and pacer of a call, its statistics, and what reads the exits along its prompt."""
        profile = profile_of_call(self.profiles, self.config, sampled, workload)
        if profile is not None:
            coupled = not sampled or self.config.acceptance == "coupled"
            stats = Stats(
                shapes=describe(self.shapes(decoder), self.config.deterministic), view=self.view_note
            )
            return *follow(profile, rows, coupled, stats), stats, None
        with self._lock:
            if self._knowledge is None:  # a copy of a wrapped model, or one that was not wrapped
                self.prepare(model, decoder, quiet=True)
        shapes = self.shapes(decoder)
        stats = Stats(shapes=describe(shapes, self.config.deterministic), view=self.view_note)
        fixed = self._fixed(decoder, stats, sampled)
        if fixed is not None:
            return *fixed, stats, None
        auto = self._auto(decoder, rows, shapes, stats, sampled)
        return auto, auto, stats, auto.reading

    def finish(self, stats: Stats) -> None:
        """Take up the statistics of a call that ended."""
        with self._lock:
            self.stats = stats
            self.total.add(stats)

    @property
    def knowledge(self) -> Knowledge:
        """What was measured of the model and learned from its calls."""
        assert self._knowledge is not None  # made by `prepare`
        return self._knowledge

    def _fixed(self, decoder: LayeredDecoder, stats: Stats, sampled: bool) -> tuple[Drafter, Pacer] | None:
        """Drafter and pacer where the settings leave no choice."""
        kind, exit_layer, length = self.config.kind, self.config.exit_layer, self.config.draft_length
        if length == "auto" or kind in ("auto", "hybrid"):
            return None
        stats.choice, stats.draft_length = "as configured", length
        if length == 0:
            stats.strategy = "plain"
            return self._plain(), FixedLength(0)
        if kind == "lookup":
            stats.strategy = "lookup"
            return Lookup(self.knowledge.matches[sampled], self._corpus), FixedLength(length)
        if exit_layer == "auto":
            return None
        arm = Arm(exit_layer, low_bit=kind == "low_bit" and self._view_of(exit_layer) is not None)
        if not arm.low_bit and exit_layer == decoder.n_layers:
            return None  # all layers in few bits were asked for, and no view was possible
        stats.strategy, stats.exit_layer = arm.kind, exit_layer
        return self._drafter(arm), FixedLength(length)

    def _auto(
        self, decoder: LayeredDecoder, rows: Rows, shapes: ShapePlan, stats: Stats, sampled: bool
    ) -> Auto:
        config, n = self.config, len(rows.active)
        free = config.kind in ("auto", "hybrid", "lookup")
        measured = config.draft_length == "auto"
        arms = {arm: self._drafter(arm, self._stop(arm, sampled)) for arm in self._arms(decoder)}
        return Auto(
            knowledge=self.knowledge,
            arms=arms,
            plain=self._plain(),
            lengths=range(LONGEST + 1) if measured else [int(config.draft_length)],
            lookup=Lookup(self.knowledge.matches[sampled], self._corpus) if free else None,
            check=PayCheck(1, warmup=1, delay=2, plain=self._plain_speed(n)) if measured else FixedLength(1),
            shapes=shapes,
            rows=n,
            sampled=sampled,
            stats=stats,
            branches=config.tree != "chain",
            reading=self._reading(decoder, rows) if len(arms) > 1 else None,
        )

    def _arms(self, decoder: LayeredDecoder) -> Iterator[Arm]:
        """The ways to draft with the model's layers that the settings allow."""
        kind, exit_layer = self.config.kind, self.config.exit_layer
        if kind == "lookup":
            return
        if self.view is not None and kind != "early_exit":
            exits = range(1, self.view.n_layers + 1) if exit_layer == "auto" else [exit_layer]
            yield from (Arm(e, low_bit=True) for e in exits if e <= self.view.n_layers)
        if self.view is None or kind in ("auto", "early_exit"):
            exits = range(1, decoder.n_layers) if exit_layer == "auto" else [exit_layer]
            yield from (Arm(e, low_bit=False) for e in exits if e < decoder.n_layers)

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
        if config.draft_length != "auto" or config.confidence_threshold or isinstance(config.tree, tuple):
            return None
        return MarginStop(self.knowledge.margin_rates(arm, sampled))

    def _plain(self) -> ModelDrafter:
        return EarlyExit(1)

    def _view_of(self, exit_layer: int) -> LowBitView | None:
        fits = self.view is not None and exit_layer <= self.view.n_layers
        return self.view if fits else None

    def _view_pays(self, decoder: LayeredDecoder) -> bool:
        """Whether a layer in few bits is so fast here that it is worth its memory; tries the first."""
        if decoder.device.type != "cpu":
            return False  # the GPU kernel has not been measured yet: only where it is asked for
        try:
            first = LowBitView(decoder, 1, self.config.draft_bits, head=False)
        except NothingToViewError:
            return False
        exact, low_bit = time_passes(decoder), time_passes(first.of(decoder))
        return low_bit.layer[0] <= _WORTHWHILE_VIEW * exact.layer[0]

    def _plain_speed(self, rows: int) -> Rate:
        with self._lock:
            return self.knowledge.plain.setdefault(rows, Rate())

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

    def __getstate__(self) -> dict[str, Any]:
        # A copy measures and packs its own: a view follows the weights of one model.
        return self.__dict__ | {"_lock": None, "view": None, "_knowledge": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
