"""The bundled model on held-out code: its own generate's text, and in bf16 the same for every setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate, text
from strategies import costs_under_which_drafts_pay
from tiny_models import padded
from torch import Tensor

import selfspec
from layer_skip.decoder import LayeredDecoder
from selfspec import speculation
from selfspec.benchmarking.identity import Referee, full_pass, gap_noise, last_bit
from selfspec.shapes import probe

NEW_TOKENS = 20


def batches(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Long prompts and every tenth of the others alone, the rest eight at a time, unequally long."""
    alone = [prompt for i, prompt in enumerate(prompts) if len(prompt) > 150 or i % 10 == 0]
    together = [prompt for i, prompt in enumerate(prompts) if not (len(prompt) > 150 or i % 10 == 0)]
    return [[prompt] for prompt in alone] + [together[i : i + 8] for i in range(0, len(together), 8)]


def settings_of(n_layers: int) -> list[dict[str, int]]:
    """Exits and lengths of all sizes, K = 0 first."""
    exits = sorted({1, n_layers // 4, n_layers // 2, n_layers - 1} - {0})
    lengths = (0, 1, 2, 3, 5, 8, 15, 33, 64)
    return [{"exit_layer": exits[i % len(exits)], "draft_length": k} for i, k in enumerate(lengths)]


def top_two_gap(logits: Tensor) -> float:
    best, second = logits.float().topk(2).values
    return float(best - second)


def test_the_held_out_prompts_are_many_and_of_all_lengths(held_out_prompts: list[list[int]]) -> None:
    lengths = [len(prompt) for prompt in held_out_prompts]
    assert len(lengths) >= 100
    assert min(lengths) <= 8
    assert max(lengths) >= 1000
    assert len(set(lengths)) >= 60


def test_greedy_text_in_fp32_is_the_models_own_on_every_held_out_prompt(
    reference_model: Any, held_out_prompts: list[list[int]]
) -> None:
    half = LayeredDecoder(reference_model).n_layers // 2
    settings = [{"exit_layer": half // 2, "draft_length": 3}, {"exit_layer": half, "draft_length": 6}]
    different = []
    for number, prompts in enumerate(batches(held_out_prompts)):
        request = {**padded(prompts), "max_new_tokens": NEW_TOKENS}
        expected = own_generate(reference_model, **request)
        selfspec.wrap(reference_model, **settings[number % 2])
        out = reference_model.generate(**request)
        selfspec.unwrap(reference_model)
        different += [number] * int((out != expected).any())
    assert different == []


def test_every_difference_to_the_models_own_generate_in_bf16_is_a_near_tie(
    reference_model: Any,
    reference_model_bf16: Any,
    held_out_prompts: list[list[int]],
    record_property: Any,
) -> None:
    """Where the texts part, both tokens must be as good as equal: nearer than bf16 moves such a gap."""
    model = reference_model_bf16
    pairs = []
    for prompts in batches(held_out_prompts):
        request = {**padded(prompts), "max_new_tokens": NEW_TOKENS}
        own = own_generate(model, **request)[:, -NEW_TOKENS:]
        selfspec.wrap(model, exit_layer=4, draft_length=3)
        ours = model.generate(**request)[:, -NEW_TOKENS:]
        selfspec.unwrap(model)
        pairs += zip(prompts, own.tolist(), ours.tolist(), strict=True)
    noise, ties = 0.0, []
    for number, (prompt, one, other) in enumerate(pairs):
        differs = one != other
        if not differs and number % 3:
            continue  # the noise is measured on a third of the texts, and wherever they part
        exact_all, rounded_all = full_pass(reference_model, prompt, one), full_pass(model, prompt, one)
        noise = max(noise, gap_noise(exact_all, rounded_all), last_bit(exact_all, model.dtype))
        if differs:
            parted = next(i for i in range(NEW_TOKENS) if one[i] != other[i])
            exact, rounded = exact_all[parted], rounded_all[parted]
            between = float((exact[one[parted]] - exact[other[parted]]).abs())
            ties.append((top_two_gap(exact), top_two_gap(rounded), between))
    record_property("prompts", len(pairs))
    record_property("differences", len(ties))
    record_property("noise", noise)
    print(
        f"{len(ties)} of {len(pairs)} texts differ; rounding moves a gap by up to {noise:.3f}; gaps: {ties}"
    )
    for exact_gap, rounded_gap, between in ties:
        assert min(exact_gap, rounded_gap) <= noise
        assert between <= noise  # and the two tokens are those of the tie
    assert len(ties) <= len(pairs) / 4


@pytest.fixture
def exact_shapes(reference_model_bf16: Any) -> None:
    if not probe(LayeredDecoder(reference_model_bf16)).exact:
        pytest.skip("this machine offers no shapes with bit-equal rows, and the statistics say so")


@pytest.mark.usefixtures("exact_shapes")
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "coupled"])
def test_text_in_bf16_does_not_depend_on_exit_layer_or_draft_length(
    reference_model_bf16: Any, held_out_prompts: list[list[int]], sampling: dict[str, Any]
) -> None:
    model = reference_model_bf16
    settings = settings_of(LayeredDecoder(model).n_layers)
    lengths = [len(prompt) for prompt in held_out_prompts]
    near_256 = lengths.index(
        min(lengths, key=lambda n: abs(n - 250))
    )  # key lengths grow past a quantum on the way
    for rows in ([near_256], [60, 3, 90, 31]):
        prompts = [held_out_prompts[row] for row in rows]
        plain = None
        for setting in settings:
            selfspec.wrap(model, **setting)
            out = text(model, **padded(prompts), max_new_tokens=32, **sampling)
            drafted = model.speculation.stats.drafted
            selfspec.unwrap(model)
            plain = out if plain is None else plain
            assert torch.equal(out, plain), (rows, setting)
            assert (drafted > 0) == (setting["draft_length"] > 0)


@pytest.mark.usefixtures("exact_shapes")
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "coupled"])
def test_text_in_bf16_does_not_depend_on_who_shares_the_batch(
    reference_model_bf16: Any, held_out_prompts: list[list[int]], sampling: dict[str, Any]
) -> None:
    model = selfspec.wrap(reference_model_bf16, exit_layer=4, draft_length=3)
    prompts = held_out_prompts[10:100:18]
    together = text(model, **padded(prompts), max_new_tokens=32, **sampling)[:, -32:]
    for row, prompt in enumerate(prompts):
        alone = text(model, torch.tensor([prompt]), max_new_tokens=32, **sampling)[0, -32:]
        assert torch.equal(alone, together[row]), row
    selfspec.unwrap(model)


def test_drafting_is_often_right_on_the_bundled_model(
    reference_model_bf16: Any, held_out_prompts: list[list[int]]
) -> None:
    """It was trained for that: a draft from a quarter of the layers stands more often than not."""
    model = reference_model_bf16
    selfspec.wrap(model, exit_layer=LayeredDecoder(model).n_layers // 4, draft_length=2)
    for prompt in held_out_prompts[30:60:6]:
        model.generate(torch.tensor([prompt]), max_new_tokens=40)
    rate = model.speculation.total.acceptance_rate
    selfspec.unwrap(model)
    assert rate > 0.4


STRATEGIES: list[dict[str, Any]] = [
    {"draft": "low_bit", "draft_length": 4, "exit_layer": 8},
    {"draft": "low_bit"},
    {"draft": "lookup", "draft_length": 6},
    {"draft": "hybrid"},
    {},
]
TREES: list[dict[str, Any]] = [
    {"draft": "low_bit", "draft_length": 4, "exit_layer": 8, "tree": "siblings"},
    {"draft": "early_exit", "draft_length": 3, "exit_layer": 4, "tree": (0, 0, 0, 1, 1, 2, 4)},
    {"draft": "hybrid", "tree": "siblings"},
]


def repeating(prompts: list[list[int]]) -> list[list[int]]:
    """Prompts whose second half is their first: something to look up."""
    return [prompt[:40] + prompt[:20] for prompt in prompts]


@pytest.mark.usefixtures("exact_shapes")
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.8}], ids=["greedy", "coupled"])
def test_chains_of_every_strategy_give_the_text_of_plain_decoding_in_bf16(
    reference_model_bf16: Any, held_out_prompts: list[list[int]], sampling: dict[str, Any]
) -> None:
    model = reference_model_bf16
    half = LayeredDecoder(model).n_layers // 2
    prompts = [held_out_prompts[70], *repeating(held_out_prompts[60:90:15]), held_out_prompts[12]]
    plain = None
    for setting in [{"draft_length": 0}, *STRATEGIES]:
        setting = {**setting, **({"exit_layer": half} if "exit_layer" in setting else {})}
        selfspec.wrap(model, **setting)
        out = text(model, **padded(prompts), max_new_tokens=24, **sampling)
        selfspec.unwrap(model)
        plain = out if plain is None else plain
        assert torch.equal(out, plain), setting


def test_trees_in_bf16_give_that_text_or_part_from_it_at_a_near_tie(
    reference_model_bf16: Any, held_out_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "time_passes", costs_under_which_drafts_pay)  # on any machine
    model = reference_model_bf16
    half = LayeredDecoder(model).n_layers // 2
    prompts = repeating(held_out_prompts[40:100:12])
    selfspec.wrap(model, draft_length=0)
    plain = [tuple(row) for row in text(model, **padded(prompts), max_new_tokens=24)[:, -24:].tolist()]
    selfspec.unwrap(model)
    referee = Referee(model, [tuple(prompt) for prompt in prompts], plain)
    for setting in TREES:
        setting = {**setting, **({"exit_layer": half} if "exit_layer" in setting else {})}
        selfspec.wrap(model, **setting)
        out = text(model, **padded(prompts), max_new_tokens=24)[:, -24:]
        assert model.speculation.stats.drafted > 0
        selfspec.unwrap(model)
        verdict = referee.judge([tuple(row) for row in out.tolist()])
        assert verdict.different == 0, (setting, str(verdict))


def test_a_low_bit_view_of_all_layers_drafts_better_than_any_exit(
    reference_model_bf16: Any, held_out_prompts: list[list[int]]
) -> None:
    model = reference_model_bf16
    layers = LayeredDecoder(model).n_layers
    rates = []
    for setting in (
        {"draft": "low_bit", "exit_layer": layers},
        {"draft": "early_exit", "exit_layer": layers // 2},
    ):
        selfspec.wrap(model, **setting, draft_length=4)
        model.generate(**padded(held_out_prompts[60:90:10]), max_new_tokens=32)
        rates.append(model.speculation.total.acceptance_rate)
        selfspec.unwrap(model)
    assert rates[0] > 0.8
    assert rates[0] > rates[1]
