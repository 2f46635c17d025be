"""Requests that only the model's own generate can serve, and prompts that no decoding can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from selfspec.fallback import (
    NotSpeculatedError,
    check_arguments,
    check_mask_shape,
    check_prompts,
    check_request,
)

PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])
ONES = torch.ones_like(PROMPTS)


def test_arguments_that_ask_for_nothing_pass() -> None:
    check_arguments(
        {"assistant_model": None, "synced_gpus": False, "max_new_tokens": 3, "position_ids": None}
    )


@pytest.mark.parametrize("name", ["assistant_model", "inputs_embeds", "stop_strings", "token_type_ids"])
def test_an_argument_for_another_way_of_decoding_is_named(name: str) -> None:
    with pytest.raises(NotSpeculatedError, match=f"^{name} cannot be speculated$") as caught:
        check_arguments({name: object()})
    assert caught.value.option == name


def test_a_plain_request_passes() -> None:
    arguments: dict[str, Any] = {"attention_mask": ONES, "past_key_values": DynamicCache(), "use_cache": True}
    check_request(GenerationConfig(do_sample=True, temperature=0.5, top_p=0.9), [], 2, arguments)


def test_an_option_is_named_with_its_value() -> None:
    with pytest.raises(NotSpeculatedError, match="num_beams=4 cannot be speculated"):
        check_request(GenerationConfig(num_beams=4), [], 2, {})


def test_an_unknown_model_argument_is_not_ignored() -> None:
    with pytest.raises(NotSpeculatedError, match="the model argument pixel_values"):
        check_request(GenerationConfig(), [], 2, {"pixel_values": torch.zeros(1)})
    check_request(GenerationConfig(), [], 2, {"pixel_values": None})


def test_a_cache_that_holds_tokens_is_not_ignored() -> None:
    cache = SimpleNamespace(get_seq_length=lambda: 3)
    with pytest.raises(NotSpeculatedError, match="past_key_values"):
        check_request(GenerationConfig(), [], 2, {"past_key_values": cache})


@pytest.mark.parametrize(
    ("prompts", "mask", "message"),
    [
        (PROMPTS[:, :0], None, "the prompt is empty: pass at least one token"),
        (PROMPTS + 95, None, "token id 97 is outside the model's vocabulary of 97"),
        (PROMPTS - 2, None, "token id -1 is outside"),
        (PROMPTS.repeat(1, 4), None, "the prompt has 12 tokens, the model 10 positions: shorten it"),
        (PROMPTS, ONES[:, :2], r"attention_mask has shape \[2, 2\], the prompts \[2, 3\]"),
        (
            PROMPTS,
            torch.tensor([[1, 1, 1], [1, 1, 0]]),
            "padded on the right: generation needs padding_side='left'",
        ),
        (PROMPTS, torch.tensor([[1, 0, 1], [1, 1, 1]]), "padded on the right"),
        (PROMPTS, torch.tensor([[0, 0, 0], [1, 1, 1]]), "a row is padding only"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_what_to_do(
    prompts: torch.Tensor, mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts, mask, 97, 10)


def test_left_padding_and_the_edges_of_vocabulary_and_positions_pass() -> None:
    check_prompts(torch.tensor([[0, 96, 5]]), torch.tensor([[0, 1, 1]]), 97, 3)
    check_prompts(PROMPTS, ONES.bool(), 97, None)


def test_a_mask_is_compared_only_where_both_are_there() -> None:
    check_mask_shape(None, ONES)
    check_mask_shape(PROMPTS, None)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 3\], the prompts \[1, 3\]"):
        check_mask_shape(PROMPTS[:1], ONES)
