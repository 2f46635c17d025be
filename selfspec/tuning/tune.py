"""Tune: record, time, search; the result is a profile with everything that led to it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from selfspec.benchmarking.environment import conditions
from selfspec.shapes import FASTEST, probe
from selfspec.tuning.calibration import Calibration, calibrate
from selfspec.tuning.profile import Identity, Profile
from selfspec.tuning.record import record
from selfspec.tuning.recording import Recording
from selfspec.tuning.replay import replay
from selfspec.tuning.round_costs import CostModel, default_cells, fit_costs
from selfspec.tuning.search import LONGEST, Found, Limits, search
from selfspec.tuning.timing import Timing, time_rounds

Advance = Callable[[str, int], None]


@dataclass(frozen=True)
class Tuned:
    """A profile and what it came from: for tables, plots and notebooks."""

    profile: Profile
    recording: Recording
    timings: tuple[Timing, ...]
    found: Found
    calibrations: tuple[Calibration, ...]
    """One per exit."""
    by_position: tuple[float, ...]
    """Acceptance by draft position at the chosen exit, given that the tokens before it stand."""
    seconds: Mapping[str, float]
    """What recording, timing and searching took."""


def tune(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    workload: str = "default",
    max_new_tokens: int = 128,
    batch: int = 1,
    limits: Limits | None = None,
    longest: int = LONGEST,
    seed: int = 0,
    deterministic: bool = True,
    repeats: int = 5,
    generate_arguments: Mapping[str, Any] | None = None,
    advance: Advance = lambda name, total: None,
) -> Tuned:
    """Choose exit layer, draft length and stop rule for a workload.

    Args:
        model: a Hugging Face causal language model, wrapped or not.
        prompts: token ids. Those that leave no room for `max_new_tokens` are left out with a warning.
        batch: prompts generated together.
        longest: longest draft that is tried.
        generate_arguments: the workload's sampling, such as do_sample and temperature (default: greedy).
        advance: for a progress bar; told what comes next and how many steps there are.

    Raises:
        ValueError: no prompts, none that fits the model, an impossible batch or limit.
    """
    arguments = {"do_sample": False, **(generate_arguments or {})}
    decoder = LayeredDecoder(model)
    usable = _usable(prompts, decoder.max_positions, max_new_tokens)
    if batch < 1 or batch > len(usable):
        raise ValueError(f"batch={batch}: allowed is 1 to {len(usable)}, the number of prompts")
    longest = min(longest, max(max_new_tokens - 1, 1))
    common: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "deterministic": deterministic,
        "generate_arguments": arguments,
        "advance": advance,
    }
    began = time.perf_counter()
    recording = record(model, usable, seed=seed, **common)
    recorded = time.perf_counter()
    cells = default_cells(decoder.n_layers, longest)
    timings = [
        timing
        for rows in sorted({1, batch})
        for timing in time_rounds(model, usable, cells, rows=rows, repeats=repeats, **common)
    ]
    costs = fit_costs(timings, decoder.n_layers, probe(decoder) if deterministic else FASTEST)
    timed = time.perf_counter()
    advance("searching", 0)
    column_bytes = working_bytes(decoder)
    found = search(
        recording, costs, batch=batch, longest=longest, limits=limits, bytes_per_column=column_bytes
    )
    calibrations = tuple(calibrate(recording, e) for e in recording.exits)
    seconds = {
        "recording": recorded - began,
        "timing": timed - recorded,
        "searching": time.perf_counter() - timed,
    }
    described = {
        **conditions(model),
        "prompts": len(usable),
        "max_new_tokens": max_new_tokens,
        "batch": batch,
        "seed": seed,
        "deterministic": deterministic,
        "generate_arguments": arguments,
        "cost_residual": costs.residual,
        "seconds": seconds,
    }
    profile = _profile(model, workload, recording, costs, found, described)
    chosen = next(c for c in calibrations if c.exit_layer == found.best.setting.exit_layer)
    return Tuned(profile, recording, tuple(timings), found, calibrations, chosen.acceptance, seconds)


def working_bytes(decoder: LayeredDecoder) -> int:
    """Bytes that one verified token of one row adds to a round: scores, noise, logits and hidden states."""
    scores, noise = 4 * decoder.vocab_size, 4 * decoder.vocab_size
    return scores + noise + decoder.dtype.itemsize * (decoder.vocab_size + int(decoder.config.hidden_size))


def acceptance_by_exit(recording: Recording) -> dict[int, float]:
    """Chance that a draft token stands, by exit layer: agreement along the target's own text."""
    return dict(zip(recording.exits, recording.agreement, strict=True))


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


def _profile(
    model: Any,
    workload: str,
    recording: Recording,
    costs: CostModel,
    found: Found,
    described: Mapping[str, Any],
) -> Profile:
    best = found.best
    context = (recording.prompt_lengths + recording.lengths / 2).double().mean()
    counts = replay(recording, [best.setting])
    prediction = {
        "tokens_per_second": best.tokens_per_second,
        "interval": list(best.interval),
        "speedup": best.speedup,
        "speedup_interval": list(best.speedup_interval),
        "acceptance_length": best.acceptance_length,
        "acceptance_rate": list(best.acceptance_rate),
        "rounds": int(counts.row_rounds.sum()),
        "round_seconds": best.round_seconds,
        "plain_tokens_per_second": found.plain.tokens_per_second,
    }
    return Profile(
        workload=workload,
        identity=Identity.of(model),
        setting=best.setting,
        sampled=recording.sampled,
        prediction=prediction,
        acceptance=acceptance_by_exit(recording),
        costs=costs,
        context=float(torch.round(context)),
        conditions=described,
    )
