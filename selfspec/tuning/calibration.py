"""How far an arm's confidence can be believed, by draft position; the stop rule that follows from costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from selfspec.drafting.stopping import StopRule
from selfspec.round import Arm
from selfspec.tuning.lengths import run_lengths
from selfspec.tuning.recording import Recording

BINS = 32
"""Bins of confidence in a rule's table."""
_ECE_BINS = 10
_TEMPERATURES = tuple(2.0 ** (i / 2) for i in range(-3, 7))
_SHIFTS = tuple(i / 2 for i in range(-4, 11))
_GRID = tuple((t, b) for t in _TEMPERATURES for b in _SHIFTS)
_LEAST_SAMPLES = 50
"""Positions with fewer samples keep the temperature of the one before."""

Reliability: TypeAlias = tuple[tuple[float, float, int], ...]
"""Per bin of stated chance: its mean, the share that stood, and how many there were."""
_Chances: TypeAlias = tuple[Tensor, Tensor]
"""Stated chances [n], and whether what they were stated of stood [n]."""


@dataclass(frozen=True)
class Calibration:
    """Of one arm."""

    arm: Arm
    temperatures: tuple[float, ...]
    """By draft position: a token of confidence p stands with chance
    sigmoid(logit(p) / temperature + shift)."""
    shifts: tuple[float, ...]
    """A temperature alone cannot help where draft and target agree on a token that both find unlikely: the
    best of many may have a confidence of 0.1 and stand half of the time."""
    acceptance: tuple[float, ...]
    """By draft position: share of tokens that stand, given that those before them do."""
    reliability: Reliability
    """Of the raw confidence at the first draft position."""

    def chances(self) -> tuple[tuple[float, ...], ...]:
        """The table of `StopRule`: chance by draft position and bin of confidence."""
        middle = (torch.arange(BINS) + 0.5) / BINS
        return tuple(
            tuple(tempered(middle, *fit).tolist()) for fit in zip(self.temperatures, self.shifts, strict=True)
        )


def tempered(confidence: Tensor, temperature: float, shift: float = 0.0) -> Tensor:
    """sigmoid(logit(p) / temperature + shift)."""
    return torch.sigmoid(torch.logit(confidence.double(), eps=1e-6) / temperature + shift)


def calibrate(recording: Recording, arm: Arm, positions: int = 8) -> Calibration:
    """Temperature and shift per draft position of an arm that minimise the calibration error there.

    Position j is fitted on the drafts whose first j tokens stand: on those alone the recording holds the
    draft's own confidence. A product of factors, each calibrated given the ones before it, is calibrated.
    """
    right, inside = recording.right(arm), recording.inside
    run = run_lengths(right)[:, :-1]
    fits: list[tuple[float, float]] = []
    acceptance: list[float] = []
    last = min(positions, recording.max_new_tokens, recording.longest(arm) or positions)
    for j in range(last):
        width = recording.max_new_tokens - j
        reached = (run[:, :width] >= j) & inside[:, j:]
        _, confidence = recording.of(arm).at(j)
        stated, stood = confidence[:, j:][reached], right[min(j, len(right) - 1)][:, j:][reached]
        if len(stated) < _LEAST_SAMPLES and fits:
            break
        fits.append(min(_GRID, key=lambda fit: calibration_error(tempered(stated, *fit), stood)))
        acceptance.append(float(stood.double().mean()) if len(stood) else 0.0)
    return Calibration(
        arm,
        tuple(temperature for temperature, _ in fits),
        tuple(shift for _, shift in fits),
        tuple(acceptance),
        reliability(recording.of(arm).at(0)[1][inside], right[0][inside]),
    )


def held_out_errors(recording: Recording, arm: Arm) -> tuple[float, float]:
    """ECE of the running product of confidences as they are, and calibrated on other prompts.

    The mean of the two halves of `_held_out`.
    """
    stated, calibrated = (
        sum(calibration_error(*half) for half in halves) / len(halves) for halves in _held_out(recording, arm)
    )
    return stated, calibrated


def held_out_reliability(recording: Recording, arm: Arm) -> tuple[Reliability, Reliability]:
    """`reliability` of both halves together; `held_out_errors` are the means of what the halves have."""
    stated, calibrated = (
        reliability(*map(torch.cat, zip(*halves, strict=True))) for halves in _held_out(recording, arm)
    )
    return stated, calibrated


def _held_out(recording: Recording, arm: Arm) -> tuple[list[_Chances], list[_Chances]]:
    """Running products of confidences as they are, and calibrated on other prompts, by half of the prompts.

    Each half is judged by what was fitted on the other; one prompt alone by itself.
    """
    prompts = range(len(recording.lengths))
    halves = [recording.of_prompts(prompts[i::2] or prompts) for i in range(2)]
    stated, calibrated = [], []
    for judged, other in (halves, halves[::-1]):
        found = calibrate(other, arm)
        fits = list(zip(found.temperatures, found.shifts, strict=True))
        stated.append(_products(judged, arm, [(1.0, 0.0)] * len(fits)))
        calibrated.append(_products(judged, arm, fits))
    return stated, calibrated


def _products(recording: Recording, arm: Arm, fits: Sequence[tuple[float, float]]) -> _Chances:
    """The chance that drafts of 1, 2, … tokens stand whole, from every position of the texts.

    Past a wrong token the confidence along the text stands for the draft's own, which is not recorded.
    """
    run = run_lengths(recording.right(arm))
    stated, stood = [], []
    product = torch.ones(recording.inside.shape, dtype=torch.float64)
    for j, fit in enumerate(fits):
        width = recording.max_new_tokens - j
        product = product[:, :width] * tempered(recording.of(arm).at(j)[1][:, j:], *fit)
        inside = recording.inside[:, j:]
        stated.append(product[inside])
        stood.append((run[:, :width] > j)[inside])
    return torch.cat(stated), torch.cat(stood)


def reliability(stated: Tensor, stood: Tensor) -> Reliability:
    """Per bin of stated chance [n]: its mean, the share of stood [n] in it, and its count; no empty bins."""
    bins = (stated * _ECE_BINS).long().clamp(max=_ECE_BINS - 1)
    counts = torch.bincount(bins, minlength=_ECE_BINS)
    means = torch.bincount(bins, weights=stated.double(), minlength=_ECE_BINS) / counts
    shares = torch.bincount(bins, weights=stood.double(), minlength=_ECE_BINS) / counts
    rows = zip(means.tolist(), shares.tolist(), counts.tolist(), strict=True)
    return tuple(row for row in rows if row[2])


def calibration_error(stated: Tensor, stood: Tensor) -> float:
    """Expected calibration error, 0 to 1: mean |stated - true| over bins, by count (Naeini et al. 2015)."""
    rows = reliability(stated, stood)
    total = sum(count for _, _, count in rows)
    return sum(abs(mean - share) * count for mean, share, count in rows) / total if total else 0.0


def paying_rule(
    calibration: Calibration, step_seconds: Sequence[float], tokens_per_second: float
) -> StopRule:
    """Draft on while the next token's chance to count is worth its time.

    The next token costs its draft step and the wider verification, `step_seconds` [K-1] by draft position. At
    the speed that generation reaches anyway that time would have brought seconds * tokens_per_second tokens,
    so the chance must be at least that: worth of the chain so far * mean acceptance of the next position.
    """
    last = len(calibration.acceptance) - 1
    thresholds = []
    for j, seconds in enumerate(step_seconds):
        chance = max(calibration.acceptance[min(j + 1, last)], 1e-3)
        thresholds.append(min(max(seconds * tokens_per_second / chance, 0.0), 1.0))
    return StopRule(tuple(thresholds) or (0.0,), calibration.chances())
