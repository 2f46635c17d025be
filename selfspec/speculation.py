"""What a wrapped model carries: its settings, what was measured of it, and its statistics."""

import threading
from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.drafting import EarlyExit
from selfspec.pacing import FixedLength, Pacer, PayCheck, Rate
from selfspec.rows import Rows
from selfspec.shapes import FASTEST, ShapePlan, probe
from selfspec.stats import Stats
from selfspec.tuning.first_call import Choice, Measurement, best, measure
from selfspec.tuning.following import follow
from selfspec.tuning.profile import Profile, ProfileError, named


class Speculation:
    """`model.speculation` of a wrapped model. Holds no weights; safe to use from several threads."""

    def __init__(self, config: SpeculationConfig) -> None:
        self.config = config
        self.stats = Stats()
        """Of the last call."""
        self.total = Stats()
        """Summed over all calls."""
        self.profiles: dict[str, Profile] = {}
        """By workload, the newest last."""
        self._model: Any = None
        self._measurement: Measurement | None = None
        self._seen: dict[bool, dict[int, tuple[int, int]]] = {False: {}, True: {}}
        """Draft tokens accepted and looked at by exit layer, of greedy and of sampled calls."""
        self._plain: dict[int, Rate] = {}
        """Speed without drafting, by batch size: measured once, so that later calls need not warm up."""
        self._lock = threading.Lock()

    def shapes(self, decoder: LayeredDecoder) -> ShapePlan:
        """The shapes to compute at, probed once per shape, dtype and device."""
        return probe(decoder) if self.config.deterministic else FASTEST

    def attach(self, model: Any, profiles: dict[str, Profile]) -> None:
        """Take up the model that `tune` works on, and its profiles."""
        self._model = model
        self.profiles = profiles

    def tune(self, prompts: Any, *, workload: str = "default", **options: Any) -> Profile:
        """Choose exit layer, draft length and stop rule for a workload, and use them from now on.

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
            self.profiles = {**self.profiles, workload: tuned.profile}
        return tuned.profile

    def strategy(
        self,
        decoder: LayeredDecoder,
        rows: Rows,
        shapes: ShapePlan,
        sampled: bool,
        workload: str | None = None,
    ) -> tuple[Drafter, Pacer, Stats]:
        """Drafter and pacer of a call, and statistics that say what was chosen and why."""
        config = self.config
        profile = self._profile(sampled, workload)
        if profile is not None:
            drafter, following, stats = follow(profile, rows, not sampled or config.acceptance == "coupled")
            stats.shapes = self._describe(shapes)
            return drafter, following, stats
        exit_layer, draft_length, reason = config.exit_layer, config.draft_length, "as configured"
        if draft_length == 0:
            exit_layer = 1 if exit_layer == "auto" else exit_layer
        if exit_layer == "auto" or draft_length == "auto":
            choice = self._chosen(decoder, rows, shapes, sampled)
            exit_layer, draft_length, reason = choice.exit_layer, choice.draft_length, choice.reason
        pacer: Pacer = FixedLength(draft_length)
        if config.draft_length == "auto" and draft_length:
            pacer = PayCheck(draft_length, plain=self._plain_speed(len(rows.active)))
        stats = Stats(
            exit_layer=exit_layer, draft_length=draft_length, choice=reason, shapes=self._describe(shapes)
        )
        return EarlyExit(exit_layer, config.confidence_threshold), pacer, stats

    def _profile(self, sampled: bool, workload: str | None) -> Profile | None:
        """The profile of a call: the one asked for, or the newest of the call's kind of decoding."""
        fixed = self.config.exit_layer != "auto" or self.config.draft_length != "auto"
        if workload is not None:
            if fixed:
                raise ProfileError(
                    f"workload={workload!r} cannot be used with a fixed exit_layer or draft_length: "
                    f"leave both at 'auto'"
                )
            return named(self.profiles, workload)
        alike = [profile for profile in self.profiles.values() if profile.sampled == sampled]
        return alike[-1] if alike and not fixed else None

    def _plain_speed(self, rows: int) -> Rate:
        with self._lock:
            return self._plain.setdefault(rows, Rate())

    def finish(self, stats: Stats, sampled: bool) -> None:
        """Take up the statistics of a call that ended."""
        with self._lock:
            self.stats = stats
            self.total.add(stats)
            tallies = self._seen[sampled]
            accepted, tested = tallies.get(stats.exit_layer or 1, (0, 0))
            tallies[stats.exit_layer or 1] = (
                accepted + stats.accepted,
                tested + stats.accepted + stats.rejected,
            )

    def _chosen(self, decoder: LayeredDecoder, rows: Rows, shapes: ShapePlan, sampled: bool) -> Choice:
        config = self.config
        with self._lock:
            if self._measurement is None:
                longest = torch.tensor(max(rows.prompts(), key=len), device=decoder.device)
                self._measurement = measure(decoder, longest, shapes)
            return best(
                self._measurement,
                None if config.exit_layer == "auto" else config.exit_layer,
                None if config.draft_length == "auto" else config.draft_length,
                self._seen[sampled],
            )

    def _describe(self, shapes: ShapePlan) -> str:
        if not self.config.deterministic:
            return "not deterministic: rounding may flip a near-tie when settings change"
        if not shapes.exact:
            return "this machine offers no shapes with bit-equal rows: rounding may flip a near-tie"
        width, quantum = shapes.width(1, 1), shapes.key_quantum
        return f"bit-equal rows: at least {width} query tokens, keys in multiples of {quantum}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
