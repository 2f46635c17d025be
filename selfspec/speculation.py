"""What a wrapped model carries: its settings, what was measured of it, and its statistics."""

import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.call import Call, Drafter
from selfspec.config import SpeculationConfig
from selfspec.device.costs import time_captured
from selfspec.device.graphs import first_line
from selfspec.device.request import call_reason, device_is_able, model_reason
from selfspec.device.workspace import Workspace, WorkspacePool
from selfspec.drafting.corpus import read_corpus
from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.pacing import Pacer
from selfspec.precision import on_host_by_default, outside_autocast
from selfspec.rechecking import ModelCheck
from selfspec.rows import Rows
from selfspec.shapes import FASTEST, ShapePlan, describe, probe
from selfspec.stats import Stats
from selfspec.strategy import Strategy
from selfspec.tuning.costs import WIDTHS, PassCosts, time_passes
from selfspec.tuning.following import follow
from selfspec.tuning.knowledge import Knowledge
from selfspec.tuning.profile import Profile
from selfspec.tuning.reading import Reading
from selfspec.tuning.store import fitting, profile_of_call
from selfspec.values import parse_bytes
from selfspec.views import view_bits, wanted_view


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
        self._model_reason: str | None = None
        """Why its rounds cannot run on the device alone, "" where they can, None where nobody looked."""
        self._pool = WorkspacePool()
        # Reentrant: a hook of the model's may call generate while the model is checked.
        self._lock = threading.RLock()

    def prepare(self, model: Any, decoder: LayeredDecoder) -> None:
        """Read the corpus and make the low-bit view, once for all calls.

        Passes are timed here where draft="auto" has to choose; else where a call asks for their costs.

        Raises:
            ConfigError: the corpus cannot be read, or the view does not fit.
        """
        if self.config.looks_up:
            self._corpus = read_corpus(model, self.config.corpus, decoder.vocab_size)
        able = self.on_device(decoder)
        self._measure(decoder)
        if able and not self.on_device(decoder):  # it could not be captured after all
            torch.cuda.empty_cache()
            self._measure(decoder)  # costs of both kinds are not to be compared

    def _measure(self, decoder: LayeredDecoder) -> None:
        """Make the view and time what has to be."""
        bits = view_bits(self.config, decoder, self.profiles.values())
        knowledge = Knowledge(decoder.n_layers, partial(self._time, decoder), None, bits)
        self.view, self.view_note = wanted_view(
            decoder,
            self.config,
            bits,
            self.profiles.values(),
            timer=self._time,
            exact=lambda: knowledge.exact,
            reads=lambda: decoder.device.type == "cpu" or self.on_device(decoder),
        )
        if self.view is not None:
            knowledge.time_low_bit = partial(self._time, self.view.of(decoder))
        if self.config.kind == "auto":
            knowledge.time()
        self._knowledge = knowledge

    def _prepare_once(self, model: Any, decoder: LayeredDecoder) -> None:
        if self._knowledge is None:  # a copy, or a model that was not wrapped
            self.prepare(model, decoder)

    def recheck(self, model: Any, decoder: LayeredDecoder) -> None:
        """Check the model, if it is not in the state in which it was checked last.

        Raises:
            UnsupportedModelError: layers run one by one do not give the model's own logits.
            ConfigError: the settings name a layer that the model has not, or a tree that it cannot take.
        """
        with self._lock:
            if self._check.is_due(model, decoder):
                self.config.check_model(decoder.n_layers, decoder.takes_trees)
                self._check.check(model, decoder)
                # What was packed, timed and captured is another model's.
                self.view = self._knowledge = self._model_reason = None
                self._pool.clear()
                self.profiles = fitting(self.profiles, model)

    def attach(self, model: Any, profiles: dict[str, Profile]) -> None:
        """Take up the model that `tune` works on, and its profiles."""
        self._model = model
        self.profiles = profiles

    def tune(self, prompts: Any, *, workload: str = "default", **options: Any) -> Profile:
        """Choose how a workload drafts: by early exit or by the low-bit view, where these settings have one,
        with which layers, how far, and where to stop.

        Calls follow the profile from now on where they name the workload, and by default with
        draft="early_exit"; draft="auto" can also copy from what the text has said, which a profile knows
        nothing of, and goes on measuring.

        Args:
            prompts: token ids, a list per prompt; or texts, with `tokenizer=`.
            workload: a name to call it by in `generate(..., workload=)`.
            options: the fields of `selfspec.tuning.options.TuneOptions` (max_new_tokens, batch, limits,
                generate_arguments and more), and `save`: a file for the profile, or None to keep it in
                memory only; by default it goes where `wrap` finds it by itself.

        Raises:
            ValueError: no prompts, or none that fits the model.
            OSError: the file named by `save` cannot be written; nothing has been measured yet.
        """
        from selfspec.tuning.session import tune_model  # it drives the engine, which needs this module

        decoder = LayeredDecoder(self._model)
        self.recheck(self._model, decoder)
        with self._lock:
            self._prepare_once(self._model, decoder)
        with outside_autocast(decoder.device), on_host_by_default():
            tuned = tune_model(
                self._model, prompts, workload=workload, config=self.config, view=self.view, **options
            )
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
        profile, followed = profile_of_call(self.profiles, self.config, model, sampled, workload)
        with self._lock:
            self._prepare_once(model, decoder)
            knowledge, view = self.knowledge, self.view
        shapes, fixed = self.shapes(decoder), self.on_device(decoder)
        stats = Stats(
            shapes=describe(shapes, self.config.deterministic), view=self.view_note, profile=followed
        )
        if profile is not None:
            coupled = not sampled or self.config.acceptance == "coupled"
            plain = knowledge.plain_rate(len(rows.active))
            how = follow(profile, rows, coupled, stats, plain, view=view, fixed=fixed)
            return *how, stats, None
        strategy = Strategy(self.config, knowledge, view, self._corpus, fixed)
        drafter, pacer, reading = strategy.of_call(decoder, rows, shapes, stats, sampled)
        return drafter, pacer, stats, reading

    def on_device(self, decoder: LayeredDecoder) -> bool:
        """Whether rounds of this model can run on the device alone."""
        return self._launching(decoder) == ""

    def lend(self, call: Call, stack: ExitStack) -> Workspace | None:
        """A workspace for a call whose rounds can run on the device alone; it is given back with `stack`.

        The call's cache is then the workspace's. None where the call has to be launched from Python.
        """
        reason = self._launching(call.decoder) or call_reason(call)
        memory = parse_bytes(self.config.graph_memory) or 0
        if not reason:
            size = len(call.rows.generated), call.rows.sequences.shape[1]
            lent = self._pool.lend(call.decoder, self.view, *size, call.shapes, memory)
            try:
                space = stack.enter_context(lent)
            except torch.cuda.OutOfMemoryError:
                self._pool.clear()
                reason = "no memory is left for a cache of fixed size"
                warnings.warn(f"{reason}: rounds are launched from Python, slower", stacklevel=4)
            else:
                call.cache = space.cache
                call.stats.launching = "CUDA graphs" + (f"; {space.note}" if space.note else "")
                return space
        call.stats.launching = f"from Python: {reason}"
        return None

    def _launching(self, decoder: LayeredDecoder) -> str:
        """Why rounds of this model are launched from Python; empty where they run on the device alone."""
        if not device_is_able(decoder.device):
            if decoder.device.type == "cuda":
                return "the kernels need an NVIDIA GPU of sm_80 or later, and Triton"
            return f"no CUDA graphs on {decoder.device.type}"
        if not parse_bytes(self.config.graph_memory):
            return f"graph_memory={self.config.graph_memory!r}"
        if self._model_reason is None:
            self._model_reason = model_reason(decoder)
        return self._model_reason

    def finish(self, stats: Stats) -> None:
        """Take up the statistics of a call that ended."""
        with self._lock:
            self.stats = stats
            self.total.add(stats)

    @property
    def knowledge(self) -> Knowledge:
        """What was measured of the model and learned from its calls.

        Raises:
            RuntimeError: of a copy, or of a model that was changed, nothing is known before its next call.
        """
        if self._knowledge is None:
            raise RuntimeError("nothing is known of this model yet: generate with it first")
        return self._knowledge

    def _time(self, decoder: LayeredDecoder, widths: Sequence[int] = WIDTHS) -> PassCosts:
        """Costs of the passes of the model, or of a view, as calls will run them."""
        if self.on_device(decoder):
            try:
                return time_captured(decoder, widths)
            except RuntimeError as error:  # out of memory is one
                self._model_reason = f"its passes cannot be captured ({first_line(error)})"
            warnings.warn(f"{self._model_reason}: rounds are launched from Python, slower", stacklevel=2)
            self._knowledge = None  # where costs are asked for in a call: the next one measures anew
        return time_passes(decoder, widths)

    def __getstate__(self) -> dict[str, Any]:
        # A copy measures and packs its own: a view follows the weights of one model.
        return self.__dict__ | {"_lock": None, "_pool": None, "view": None, "_knowledge": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._pool = threading.RLock(), WorkspacePool()
