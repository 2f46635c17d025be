"""Calibration, on a draft whose confidence is wrong in a known way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfspec.round import Arm
from selfspec.tuning.calibration import (
    calibrate,
    calibration_error,
    held_out_errors,
    paying_rule,
    tempered,
)
from selfspec.tuning.recording import TOP, Choices, Recording, joined
from selfspec.tuning.replay import Setting, replay

EXIT = Arm(1, low_bit=False)


def made_up(temperature: float, shift: float, prompts: int = 24, length: int = 200) -> Recording:
    """A recording of one exit, whose tokens stand with the tempered chance of what it states."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (prompts, length), generator=generator, dtype=torch.int32)
    stated = 0.02 + 0.96 * torch.rand(1, prompts, length, generator=generator)
    right = torch.rand(stated.shape, generator=generator) < tempered(stated, temperature, shift)
    candidates = torch.full((*stated.shape, TOP), -1, dtype=torch.int32)
    candidates[..., 0] = torch.where(right, tokens, tokens + 1)
    lengths = torch.full((prompts,), length)
    choices = {EXIT: Choices(candidates, stated)}
    return Recording(tokens, lengths, torch.full((prompts,), 10), choices, False, 0)


@pytest.mark.parametrize(("temperature", "shift"), [(2.0, 0.5), (0.5, -1.0), (1.0, 0.0), (4.0, 2.0)])
def test_known_temperatures_are_found(temperature: float, shift: float) -> None:
    found = calibrate(made_up(temperature, shift), EXIT, positions=3)
    stated = torch.linspace(0.05, 0.95, 10)
    for fit in zip(found.temperatures, found.shifts, strict=True):
        assert float((tempered(stated, *fit) - tempered(stated, temperature, shift)).abs().max()) < 0.12
    assert torch.tensor(found.chances()).shape == (3, 32)


def test_the_running_product_is_calibrated_on_prompts_that_were_not_fitted_to() -> None:
    raw, calibrated = held_out_errors(made_up(2.0, 1.0), EXIT)
    assert raw > 0.1
    assert calibrated < 0.03
    raw, calibrated = held_out_errors(made_up(1.0, 0.0), EXIT)
    assert raw < 0.02
    assert calibrated < 0.03


def test_what_is_held_out_is_not_fitted_to() -> None:
    # Two kinds of prompts whose confidence is wrong in opposite ways: what fits one half misses the other.
    easy, hard = made_up(1.0, 2.0, prompts=8), made_up(1.0, -2.0, prompts=8)
    mixed = torch.arange(16).view(2, 8).t().flatten()
    recording = joined([easy, hard]).of_prompts(mixed)
    assert held_out_errors(recording, EXIT)[1] > 0.1


def test_stated_chances_that_come_true_have_no_error() -> None:
    stated, stood = torch.tensor([0.25] * 4 + [0.75] * 4), torch.tensor([1, 0, 0, 0, 1, 1, 1, 0]).bool()
    assert calibration_error(stated, stood) == pytest.approx(0.0)
    assert calibration_error(stated, ~stood) == pytest.approx(0.5)


def test_one_prompt_is_its_own_check() -> None:
    assert held_out_errors(made_up(2.0, 0.0, prompts=1), EXIT)[1] < 0.1


def test_a_rule_from_costs_drafts_on_only_where_it_pays(tuned: Any) -> None:
    calibration = calibrate(tuned[1].recording, Arm(3, low_bit=False))
    generous, strict = (paying_rule(calibration, [1e-3] * 4, speed) for speed in (1.0, 900.0))
    assert max(generous.thresholds) < 0.05
    assert min(strict.thresholds) > 0.5
    counts = replay(tuned[1].recording, [Setting(3, 4, stop=rule) for rule in (generous, strict)])
    assert counts.drafted_most[1].sum() <= counts.drafted_most[0].sum()
