"""Tune: record, time, search; the result is a profile with everything that led to it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layer_skip.decoder import LayeredDecoder
from selfspec.benchmarking.environment import conditions
from selfspec.shapes import FASTEST, probe
from selfspec.tuning.calibration import Calibration, calibrate, held_out_errors
from selfspec.tuning.cost_model import CostModel, Timing, default_cells
from selfspec.tuning.fitting import fit_costs
from selfspec.tuning.identity import Identity
from selfspec.tuning.options import TuneOptions
from selfspec.tuning.profile import Profile
from selfspec.tuning.record import record
from selfspec.tuning.recording import Recording
from selfspec.tuning.search import Found, search
from selfspec.tuning.timing import long_context, time_rounds

Advance = Callable[[str, int], None]


@dataclass(frozen=True)
class Tuned:
    """A profile and what it came from: for tables, plots and notebooks."""

    profile: Profile
    prompts: Sequence[Sequence[int]]
    """Those that were recorded: too long ones are left out."""
    options: TuneOptions
    recording: Recording
    timings: tuple[Timing, ...]
    found: Found
    calibration: Calibration
    """Of the chosen exit."""
    calibration_errors: tuple[float, float]
    """ECE of the running product of its confidences, on prompts that were held out: as stated, calibrated."""
    seconds: Mapping[str, float]
    """What recording, timing and searching took."""


def tune(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    workload: str = "default",
    advance: Advance = lambda name, total: None,
    **options: Any,
) -> Tuned:
    """Choose exit layer, draft length and stop rule for a workload.

    Args:
        model: a Hugging Face causal language model, wrapped or not.
        prompts: token ids. Those that leave no room for `max_new_tokens` are left out with a warning.
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
    began = time.perf_counter()
    recording = record(model, usable, seed=asked.seed, advance=advance, **asked.measuring)
    recorded = time.perf_counter()
    longest = min(asked.longest, max(asked.max_new_tokens - 1, 1))
    timings, costs = _timed(model, decoder, usable, asked, longest, advance)
    timed = time.perf_counter()
    advance("searching", 1)
    size = working_bytes(decoder)
    found = search(
        recording, costs, batch=asked.batch, longest=longest, limits=asked.limits, column_bytes=size
    )
    calibration = calibrate(recording, found.setting.exit_layer)
    errors = held_out_errors(recording, found.setting.exit_layer)
    seconds = {
        "recording": recorded - began,
        "timing": timed - recorded,
        "searching": time.perf_counter() - timed,
    }
    context = (recording.prompt_lengths + recording.lengths / 2).double().mean().round()
    profile = Profile(
        workload=workload,
        identity=Identity.of(model),
        setting=found.setting,
        sampled=recording.sampled,
        prediction=found.best,
        acceptance=dict(zip(recording.exits, recording.agreement, strict=True)),
        tokens=found.tokens,
        costs=costs,
        context=float(context),
        limits=asked.limits,
        column_bytes=size,
        conditions={**_described(model, usable, asked), "seconds": seconds},
    )
    return Tuned(profile, usable, asked, recording, tuple(timings), found, calibration, errors, seconds)


def working_bytes(decoder: LayeredDecoder) -> int:
    """Bytes that one verified token of one row adds to a round: scores, noise, logits and hidden states."""
    scores, noise = 4 * decoder.vocab_size, 4 * decoder.vocab_size
    return scores + noise + decoder.dtype.itemsize * (decoder.vocab_size + int(decoder.config.hidden_size))


def _timed(
    model: Any,
    decoder: LayeredDecoder,
    prompts: Sequence[Sequence[int]],
    asked: TuneOptions,
    longest: int,
    advance: Advance,
) -> tuple[list[Timing], CostModel]:
    """Rounds of all kinds, and the costs fitted to them."""
    long = long_context(prompts, asked.max_new_tokens, decoder.max_positions)
    cells = default_cells(decoder.n_layers, longest, long, trees=decoder.takes_trees)
    timings = [
        timing
        for rows in sorted({1, asked.batch})
        for timing in time_rounds(
            model, prompts, cells, rows=rows, repeats=asked.repeats, advance=advance, **asked.measuring
        )
    ]
    shapes = probe(decoder) if asked.deterministic else FASTEST
    return timings, fit_costs(timings, decoder.n_layers, shapes)


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
