"""The quick choice behind "auto"."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny_models import random_prompts, tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import ExitChoices
from selfspec.shapes import FASTEST
from selfspec.tuning import first_call
from selfspec.tuning.first_call import Measurement, best, choose, predicted_speedup, time_layer_and_head

SAMPLES = 64


@pytest.mark.parametrize(
    ("c", "exit_layer", "draft_length", "n_layers", "eta", "expected"),
    [
        # A round with K = 1 commits 1 + c tokens and runs E + L layers and 2 heads.
        (1.0, 2, 1, 8, 1.0, 2 * 9 / (2 + 8 + 2)),
        (0.5, 2, 1, 8, 1.0, 1.5 * 9 / 12),
        (0.0, 2, 3, 8, 1.0, 1 * 9 / (6 + 8 + 4)),
        (1.0, 1, 7, 8, 0.0, 8 * 8 / 15),
        # FIELD: L = 32, eta = 2.4: a draft token with E = 4 costs 6.4 layers.
        (0.8, 4, 2, 32, 2.4, (1 + 0.8 + 0.64) * 34.4 / (2 * 6.4 + 34.4)),
    ],
)
def test_predicted_speed_is_tokens_per_round_over_the_rounds_cost(
    c: float, exit_layer: int, draft_length: int, n_layers: int, eta: float, expected: float
) -> None:
    assert predicted_speedup(c, exit_layer, draft_length, n_layers, eta) == pytest.approx(expected)


def test_no_draft_has_the_speed_of_plain_decoding() -> None:
    assert predicted_speedup(0.9, 3, 0, 8, 2.0) == pytest.approx(1.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`measured(agreements, eta)`: exits that agree so often, a head as dear as `eta` layers."""

    def set_up(agreements: list[float], eta: float) -> LayeredDecoder:
        tokens = torch.zeros(len(agreements), SAMPLES, dtype=torch.int64)
        for exit_, share in enumerate(agreements):
            tokens[exit_, round(share * SAMPLES) :] = 1
        fake = ExitChoices(tokens, torch.ones(len(agreements), SAMPLES))
        monkeypatch.setattr(first_call, "exit_choices", lambda *_, **__: fake)
        monkeypatch.setattr(first_call, "time_layer_and_head", lambda *_: (1e-3, eta * 1e-3))
        return LayeredDecoder(tiny_model("llama", num_hidden_layers=len(agreements)))

    return set_up


def best_by_hand(agreements: list[float], eta: float) -> tuple[int, int]:
    shrunk = [(a * SAMPLES + 4 * 0.3) / (SAMPLES + 4) for a in agreements]
    depth = len(agreements)
    speeds = {}
    for e in range(1, depth):
        for k in range(1, 9):
            c = shrunk[e - 1]
            tokens = (1 - c ** (k + 1)) / (1 - c)
            speeds[e, k] = tokens * (depth + eta) / (k * e + depth + (k + 1) * eta)
    return max(speeds, key=lambda key: speeds[key])


@pytest.mark.parametrize("eta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(
    "agreements",
    [
        [0.2, 0.9, 0.92, 0.95, 0.95, 0.95, 0.95, 1.0],
        [0.6, 0.6, 0.7, 0.9, 0.95, 0.95, 0.95, 1.0],
        [0.95, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95, 1.0],
    ],
)
def test_the_choice_is_the_fastest_exit_and_length(
    measured: Any, agreements: list[float], eta: float
) -> None:
    rounded = [round(a * SAMPLES) / SAMPLES for a in agreements]
    choice = choose(measured(agreements, eta), torch.arange(80), FASTEST, None, None)
    assert (choice.exit_layer, choice.draft_length) == best_by_hand(rounded, eta)
    assert f"exit layer {choice.exit_layer}, draft length {choice.draft_length}" in choice.reason
    assert "predicted" in choice.reason
    assert "64 prompt positions" in choice.reason


def test_where_no_exit_pays_nothing_is_drafted_and_the_reason_says_so(measured: Any) -> None:
    decoder = measured([0.05, 0.1, 0.2, 0.3, 0.3, 0.4, 0.5, 1.0], 2.0)
    choice = choose(decoder, torch.arange(80), FASTEST, None, None)
    assert choice.draft_length == 0
    assert choice.reason.startswith("no exit pays (predicted ")


def test_what_the_user_set_is_kept(measured: Any) -> None:
    agreements = [0.2, 0.9, 0.92, 0.95, 0.95, 0.95, 0.95, 1.0]
    decoder = measured(agreements, 0.5)
    assert choose(decoder, torch.arange(80), FASTEST, 5, None).exit_layer == 5
    assert choose(decoder, torch.arange(80), FASTEST, None, 3).draft_length == 3
    assert choose(measured([0.0] * 7 + [1.0], 9.0), torch.arange(80), FASTEST, None, 3).draft_length == 3


def test_a_short_prompt_is_not_believed_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """One position that happens to agree is no reason to draft long."""
    lucky = ExitChoices(torch.zeros(8, 1, dtype=torch.int64), torch.ones(8, 1))
    monkeypatch.setattr(first_call, "exit_choices", lambda *_, **__: lucky)
    monkeypatch.setattr(first_call, "time_layer_and_head", lambda *_: (1.0, 1.0))
    choice = choose(
        LayeredDecoder(tiny_model("llama", num_hidden_layers=8)), torch.tensor([1]), FASTEST, None, None
    )
    assert choice.draft_length <= 2


def test_on_a_real_model_the_choice_is_possible_and_timings_are_seconds(family: str) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    layer, head = time_layer_and_head(decoder, FASTEST)
    assert 0 < layer < 1
    assert 0 < head < 1
    for length in (1, 2, 40):
        choice = choose(decoder, random_prompts(length)["input_ids"][0], FASTEST, None, None)
        assert 1 <= choice.exit_layer < decoder.n_layers
        assert 0 <= choice.draft_length <= 8


def acceptance_said(choice: first_call.Choice) -> float:
    found = re.search(
        r"acceptance (\d\.\d\d) from (\d+) prompt positions and (\d+) draft tokens", choice.reason
    )
    assert found
    return float(found[1])


def test_what_drafting_has_seen_outweighs_the_prompt_in_the_end() -> None:
    measured = Measurement((0.2, 0.5, 0.6, 1.0), 60, 0.2)
    assert acceptance_said(best(measured, 2, 3)) == 0.5
    some = acceptance_said(best(measured, 2, 3, {2: (40, 50)}))
    much = acceptance_said(best(measured, 2, 3, {2: (8000, 10_000)}))
    assert 0.5 < some < much
    assert much == pytest.approx(0.8, abs=0.01)
    assert acceptance_said(best(measured, 2, 3, {2: (3000, 10_000)})) == pytest.approx(0.3, abs=0.01)


def test_exits_that_were_not_tried_are_taken_to_gain_as_well() -> None:
    measured = Measurement((0.2, 0.5, 0.6, 1.0), 60, 0.2)
    for layer, before in ((1, 0.2), (3, 0.6)):
        assert acceptance_said(best(measured, layer, 3, {2: (48, 60)})) > before
        assert acceptance_said(best(measured, layer, 3, {2: (6, 60)})) < before


def test_acceptance_that_disappoints_ends_drafting_and_a_good_one_makes_it_longer() -> None:
    measured = Measurement((0.5, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 1.0), 20, 0.2)
    lengths = [best(measured, 2, None, {2: (n, 400)}).draft_length for n in (20, 240, 390)]
    assert lengths[0] == 0
    assert 0 < lengths[1] < lengths[2]


@pytest.mark.parametrize("accepted", [0, 500, 1000])
def test_no_history_makes_a_chance_impossible(accepted: int) -> None:
    for agreement in ((0.02, 0.5, 0.97, 1.0), (0.3, 0.3, 0.3, 1.0)):
        measured = Measurement(agreement, 60, 0.2)
        for layer in (1, 2, 3):
            choice = best(measured, layer, 3, {1: (accepted, 1000), 3: (accepted, 1000)})
            assert 0 <= acceptance_said(choice) < 1
