"""Tune: record, time, search; the result is a profile with everything that led to it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.benchmarking.environment import conditions
from selfspec.tuning.calibration import Calibration, calibrate, held_out_errors
from selfspec.tuning.cells import Timing, default_cells
from selfspec.tuning.cost_model import CostModel
from selfspec.tuning.fitting import fit_costs
from selfspec.tuning.identity import Identity
from selfspec.tuning.options import TuneOptions
from selfspec.tuning.profile import Profile
from selfspec.tuning.record import record
from selfspec.tuning.recording import Recording
from selfspec.tuning.running import Engine
from selfspec.tuning.search import Found, search, worthwhile_early_exits, worthwhile_exits
from selfspec.tuning.timing import long_context, time_rounds
from selfspec.tuning.view_record import record_view

Advance = Callable[[str, int], None]
VIEW_LONGEST = 8
"""Longest draft by a view that is recorded: every draft position is read by itself."""
_VIEW_CHUNK = 16
"""Prompts that the view is read on together: a pass over more of them takes less time for each."""


@dataclass(frozen=True)
class Tuned:
    """A profile and what it came from: for tables, plots and notebooks."""

    profile: Profile
    prompts: Sequence[Sequence[int]]
    """Those that were recorded: too long ones are left out."""
    options: TuneOptions
    engine: Engine
    """What rounds were timed with: runs to compare with use it as well."""
    recording: Recording
    timings: tuple[Timing, ...]
    found: Found
    calibration: Calibration
    """Of the chosen arm."""
    calibration_errors: tuple[float, float]
    """ECE of the running product of its confidences, on prompts that were held out: as stated, calibrated."""
    seconds: Mapping[str, float]
    """What recording, timing and searching took."""


def tune(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    workload: str = "default",
    view: LowBitView | None = None,
    advance: Advance = lambda name, total: None,
    **options: Any,
) -> Tuned:
    """Choose how a workload drafts: with which layers, how far, with siblings, and where to stop.

    Of the view two exits are recorded, each for every draft position: all of its layers, which choose
    most of what the model does whatever that was trained for, and below them the one that can be the fastest
    (`worthwhile_exits`). Beside it those early exits are that cost about as little, without it all of them
    (`worthwhile_early_exits`). So a view adds little to the time that recording takes.

    Args:
        model: a Hugging Face causal language model, wrapped or not.
        prompts: token ids. Those that leave no room for `max_new_tokens` are left out with a warning.
        view: the low-bit view that calls have; None where they have none.
        advance: for a progress bar; told what comes next and how many steps there are.
        options: the fields of `TuneOptions`.

    Raises:
        ValueError: no prompts, none that fits the model, an impossible option, limits out of reach.
    """
    asked = TuneOptions(**options)
    decoder = LayeredDecoder(model)
    usable = _usable(prompts, decoder.max_positions, asked.max_new_tokens)
    if asked.batch > len(usable):
        raise ValueError(f"batch={asked.batch}: allowed is 1 to {len(usable)}, the number of prompts")
    engine = Engine(model, deterministic=asked.deterministic, view=view, graph_memory=asked.graph_memory)
    clock, longest = _Clock(), min(asked.longest, max(asked.max_new_tokens - 1, 1))
    recording, timings, costs = _measured(engine, usable, asked, longest, advance, clock)
    advance("searching", 1)
    size = working_bytes(decoder)
    found = search(
        recording,
        costs,
        batch=asked.batch,
        longest=longest,
        limits=asked.limits,
        column_bytes=size,
        rules=not engine.fixed,
        siblings=asked.may_branch(decoder.dtype),
    )
    calibration = calibrate(recording, found.setting.arm)
    errors = held_out_errors(recording, found.setting.arm)
    clock.lap("searching")
    context = (recording.prompt_lengths + recording.lengths / 2).double().mean().round()
    profile = Profile(
        workload=workload,
        identity=Identity.of(model),
        setting=found.setting,
        sampled=recording.sampled,
        prediction=found.best,
        acceptance=recording.agreement,
        tokens=found.tokens,
        draft_bits=view.bits if view is not None and recording.reads_view else None,
        costs=costs,
        context=float(context),
        limits=asked.limits,
        column_bytes=size,
        conditions={**_described(model, usable, asked), "seconds": clock.seconds},
    )
    return Tuned(
        profile, usable, asked, engine, recording, tuple(timings), found, calibration, errors, clock.seconds
    )


def working_bytes(decoder: LayeredDecoder) -> int:
    """Bytes that one verified token of one row adds to a round: scores, noise, logits and hidden states."""
    scores, noise = 4 * decoder.vocab_size, 4 * decoder.vocab_size
    return scores + noise + decoder.dtype.itemsize * (decoder.vocab_size + int(decoder.config.hidden_size))


def _measured(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    asked: TuneOptions,
    longest: int,
    advance: Advance,
    clock: _Clock,
) -> tuple[Recording, list[Timing], CostModel]:
    """What rounds cost, and what the arms would draft that may pay at that price; the view's last."""
    model, view = engine.model, engine.view
    how: dict[str, Any] = {
        "deterministic": asked.deterministic,
        "generate_arguments": asked.generate_arguments,
        "advance": advance,
    }
    timings, costs = _timed(engine, prompts, asked, longest, advance)
    clock.lap("timing")
    early = worthwhile_early_exits(costs, 0 if view is None else view.n_layers, asked.batch)
    recording = record(
        model, prompts, max_new_tokens=asked.max_new_tokens, exits=early, seed=asked.seed, **how
    )
    clock.lap("recording")
    if view is not None and costs.knows_view:
        exits = worthwhile_exits(recording, costs, view.n_layers, asked.batch, longest)
        deepest = min(longest, VIEW_LONGEST)
        read = record_view(
            model, view, prompts, recording, longest=deepest, exits=exits, chunk=_VIEW_CHUNK, **how
        )
        recording = recording.beside(read)
        clock.lap("recording the view")
    return recording, timings, costs


def _timed(
    engine: Engine, prompts: Sequence[Sequence[int]], asked: TuneOptions, longest: int, advance: Advance
) -> tuple[list[Timing], CostModel]:
    """Rounds of all kinds, and the costs fitted to them."""
    decoder, fixed = LayeredDecoder(engine.model), engine.fixed
    long = long_context(prompts, asked.max_new_tokens, decoder.max_positions)
    cells = default_cells(
        decoder.n_layers,
        longest,
        long,
        trees=decoder.takes_trees and not fixed,
        rules=not fixed,
        view=0 if engine.view is None else engine.view.n_layers,
    )
    timings = [
        timing
        for rows in sorted({1, asked.batch})
        for timing in time_rounds(
            engine,
            prompts,
            cells,
            rows=rows,
            max_new_tokens=asked.max_new_tokens,
            repeats=asked.repeats,
            generate_arguments=asked.generate_arguments,
            advance=advance,
        )
    ]
    return timings, fit_costs(timings, decoder.n_layers, engine.shapes)


class _Clock:
    """What each part took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part of this name is over, and the next begins."""
        now = time.perf_counter()
        self.seconds[name], self._began = now - self._began, now


def _described(model: Any, prompts: Sequence[Sequence[int]], asked: TuneOptions) -> dict[str, Any]:
    return {
        **conditions(model),
        "prompts": len(prompts),
        "max_new_tokens": asked.max_new_tokens,
        "batch": asked.batch,
        "seed": asked.seed,
        "deterministic": asked.deterministic,
        "generate_arguments": dict(asked.generate_arguments),
    }


def _usable(
    prompts: Sequence[Sequence[int]], positions: int | None, max_new_tokens: int
) -> list[Sequence[int]]:
    if not len(prompts):
        raise ValueError("there are no prompts: tuning needs at least one, and 32 for a firm choice")
    if positions is None:
        return list(prompts)
    room = positions - max_new_tokens
    fitting = [prompt for prompt in prompts if len(prompt) <= room]
    if not fitting:
        raise ValueError(
            f"all {len(prompts)} prompts are too long: the model has {positions} positions, and "
            f"max_new_tokens={max_new_tokens} leaves room for {max(room, 0)} prompt tokens"
        )
    if len(fitting) < len(prompts):
        warnings.warn(
            f"{len(prompts) - len(fitting)} of {len(prompts)} prompts are longer than {room} tokens "
            f"and were left out",
            stacklevel=3,
        )
    return fitting
