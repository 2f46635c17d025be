"""Contenders in turns, on shells of one model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import PAD, random_prompts

import selfspec
from selfspec.benchmarking.contenders import AR, GENERATE, SELFSPEC, Contender, bind, standard_contenders
from selfspec.benchmarking.measure import Workload, batches_of, compare, n_calls
from selfspec.benchmarking.session import resolve_exit_layer

SETTINGS = {"exit_layer": 2, "draft_length": 3}
CPU = torch.device("cpu")


def prompts(*lengths: int) -> list[list[int]]:
    batch = random_prompts(*lengths)
    return [
        row[mask.bool()].tolist()
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_the_standard_contenders_write_the_same_greedy_text(llama: Any) -> None:
    contenders = standard_contenders(2, SETTINGS)
    calls = compare(llama, contenders, batches_of(prompts(9, 12), 1, PAD, CPU), Workload(12), PAD)
    texts = {name: [call.texts for call in found] for name, found in calls.items()}
    assert len(texts) == 5
    assert all(text == texts[GENERATE] for text in texts.values())
    assert all(call.tokens == 12 and call.seconds > 0 for found in calls.values() for call in found)


def test_drafts_are_counted_for_the_engine_only(llama: Any) -> None:
    contenders = standard_contenders(2, SETTINGS)[:3]
    calls = compare(llama, contenders, batches_of(prompts(9), 1, PAD, CPU), Workload(12), PAD)
    (own,), (ar,), (ours,) = calls[GENERATE], calls[AR], calls[SELFSPEC]
    assert (own.row_rounds, own.drafted, ar.drafted) == (0, 0, 0)
    assert ours.accepted + ours.row_rounds == 12
    assert (ours.exit_layer, ours.drafts) == (2, "E = 2, K = 3")


def test_the_memory_of_a_view_is_that_of_the_contender_whose_calls_have_it(llama: Any) -> None:
    low_bit = Contender("low bit", "", {**SETTINGS, "draft": "low_bit"})
    early_exit = Contender("early exit", "", {**SETTINGS, "draft": "early_exit"})
    contenders = (Contender(GENERATE, ""), early_exit, low_bit)
    calls = compare(llama, contenders, batches_of(prompts(9), 1, PAD, CPU), Workload(4), PAD)
    assert calls["low bit"][0].view_bytes == bind(llama, low_bit).speculation.view.bytes > 0
    assert calls[GENERATE][0].view_bytes == calls["early exit"][0].view_bytes == 0


def test_the_model_is_left_as_it_was(llama: Any) -> None:
    llama.generation_config.eos_token_id = 5
    compare(llama, standard_contenders(2, SETTINGS), batches_of(prompts(9), 1, PAD, CPU), Workload(4), PAD)
    assert not selfspec.is_wrapped(llama)
    assert llama.generation_config.eos_token_id == 5
    assert llama.generation_config.num_assistant_tokens is None


def test_shells_share_every_weight_and_forget_an_earlier_wrapping(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    shell = bind(llama, Contender("own", "", defaults={"num_assistant_tokens": 4}))
    assert not selfspec.is_wrapped(shell)
    assert shell.generation_config.num_assistant_tokens == 4
    assert all(a is b for a, b in zip(shell.parameters(), llama.parameters(), strict=True))


def test_contenders_take_turns_and_the_first_one_changes(llama: Any) -> None:
    contenders = standard_contenders(2, SETTINGS)[:2]
    order: list[str] = []
    batches = batches_of(prompts(5, 6, 7), 1, PAD, CPU)
    compare(llama, contenders, batches, Workload(2, warm_up=1), PAD, order.append)
    assert order[:2] == [f"{GENERATE} (warm-up)", f"{AR} (warm-up)"]
    assert order[2:] == [GENERATE, AR, AR, GENERATE, GENERATE, AR]
    assert len(order) == n_calls(contenders, batches, Workload(2, warm_up=1))


def test_one_row_contenders_stay_out_of_batches(llama: Any) -> None:
    batches = batches_of(prompts(9, 5, 7, 3), 2, PAD, CPU)
    calls = compare(llama, standard_contenders(2, SETTINGS), batches, Workload(6, batch=2), PAD)
    assert set(calls) == {GENERATE, AR, SELFSPEC}
    assert [call.texts for call in calls[SELFSPEC]] == [call.texts for call in calls[GENERATE]]


def test_sampled_calls_start_from_the_same_seed(llama: Any) -> None:
    batches = batches_of([prompts(9)[0]] * 2, 1, PAD, CPU)
    calls = compare(llama, standard_contenders(2, SETTINGS)[1:3], batches, Workload(10, temperature=1.5), PAD)
    texts = {call.texts for found in calls.values() for call in found}
    assert len(texts) == 1


def test_a_last_batch_that_is_not_full_is_left_out() -> None:
    batches = batches_of([[1], [2, 3], [4], [5], [6]], 2, PAD, CPU)
    assert [batch.prompts for batch in batches] == [((1,), (2, 3)), ((4,), (5,))]
    assert batches[0].ids.tolist() == [[PAD, 1], [2, 3]]
    assert batches[0].mask.tolist() == [[0, 1], [1, 1]]


def test_fewer_prompts_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="batch=3 needs at least 3 prompts"):
        batches_of([[1], [2]], 3, PAD, CPU)


@pytest.mark.parametrize(
    "setting", [{"new_tokens": 0}, {"batch": 0}, {"warm_up": -1}, {"temperature": 0.0}, {"temperature": -1.0}]
)
def test_an_impossible_workload_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*allowed is"):
        Workload(**setting)


@pytest.mark.parametrize(
    ("settings", "expected"), [(SETTINGS, {2}), ({}, {1, 2, 3}), ({"draft_length": 0}, {1})]
)
def test_the_exit_layer_of_the_built_in_contender_is_our_own(
    llama: Any, settings: dict[str, Any], expected: set[int]
) -> None:
    assert resolve_exit_layer(llama, settings, prompts(20)[0], PAD) in expected
