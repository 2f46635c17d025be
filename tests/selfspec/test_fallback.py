"""Requests that only the model's own generate can serve, and prompts that no decoding can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, TopKLogitsWarper

from selfspec import rowwise
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


@pytest.mark.parametrize("name", ["assistant_model", "custom_generate", "token_type_ids"])
def test_an_argument_for_another_way_of_decoding_is_named_with_the_reason(name: str) -> None:
    with pytest.raises(NotSpeculatedError, match=rf"^{name} cannot be speculated \(.+\)$") as caught:
        check_arguments({name: object()})
    assert caught.value.option == name


def check(
    config: GenerationConfig | None = None,
    *,
    processors: Any = (),
    criteria: Any = (),
    rows: int = 2,
    **arguments: Any,
) -> None:
    check_request(config or GenerationConfig(), processors, StoppingCriteriaList(criteria), rows, arguments)


def test_a_plain_request_passes() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.5, top_p=0.9)
    check(config, attention_mask=ONES, past_key_values=DynamicCache(), use_cache=True)


def test_an_option_is_named_with_its_value() -> None:
    with pytest.raises(NotSpeculatedError, match="num_beams=4 cannot be speculated"):
        check(GenerationConfig(num_beams=4))


def test_an_unknown_model_argument_is_not_ignored() -> None:
    with pytest.raises(NotSpeculatedError, match="the model argument pixel_values"):
        check(pixel_values=torch.zeros(1))
    check(pixel_values=None)


def scores_of(ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def test_a_processor_of_ones_own_is_left_to_the_model_until_it_is_marked() -> None:
    """It may count its calls, or know the rows of the batch by their place."""

    class Own(TopKLogitsWarper):
        pass

    for rows in (1, 2):
        for processor, name in ((scores_of, "scores_of"), (Own(3), "Own")):
            with pytest.raises(NotSpeculatedError, match=f"the logits processor {name} cannot .*rowwise"):
                check(processors=[TopKLogitsWarper(3), processor], rows=rows)
        check(processors=[TopKLogitsWarper(3), rowwise(Own(3)), rowwise(lambda ids, scores: scores)])


def test_a_criterion_of_ones_own_is_left_to_the_model_where_it_may_read_scores_of_ended_rows() -> None:
    def own(ids: Tensor, scores: Any) -> Tensor:
        return ids[:, -1] == 3

    length, end = MaxLengthCriteria(9), EosTokenCriteria(5)
    with_scores = GenerationConfig(return_dict_in_generate=True, output_scores=True)
    check(criteria=[length, end, own])
    check(with_scores, criteria=[length, own])
    check(with_scores, criteria=[length, end, own], rows=1)
    check(with_scores, criteria=[length, end, MaxTimeCriteria(1.0)])
    check(GenerationConfig(output_scores=True), criteria=[length, end, own])
    named = "the stopping criterion own over several rows with output_scores=True cannot .*rowwise"
    with pytest.raises(NotSpeculatedError, match=named):
        check(with_scores, criteria=[length, end, own])
    check(with_scores, criteria=[length, end, rowwise(own)])


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
        (PROMPTS, torch.tensor([[1, 0, 1], [0, 1, 0]]), "padded on the right"),
        (PROMPTS, torch.tensor([[1, 0, 1], [1, 1, 1]]), "an attention_mask with a hole cannot be speculated"),
        (PROMPTS, torch.tensor([[0, 0, 0], [1, 1, 1]]), "a row is padding only"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_what_to_do(
    prompts: torch.Tensor, mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts, mask, 97, 10)


def test_columns_without_token_ids_count_as_part_of_the_prompt() -> None:
    check_prompts(PROMPTS, torch.ones(2, 5), 97, 5, unseen=2)
    check_prompts(PROMPTS[:, :0], torch.ones(2, 2), 97, 5, unseen=2)
    with pytest.raises(ValueError, match="the prompt has 5 tokens, the model 4 positions"):
        check_prompts(PROMPTS, torch.ones(2, 5), 97, 4, unseen=2)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 3\], the prompts \[2, 5\]"):
        check_prompts(PROMPTS, ONES, 97, 9, unseen=2)


def test_left_padding_and_the_edges_of_vocabulary_and_positions_pass() -> None:
    check_prompts(torch.tensor([[0, 96, 5]]), torch.tensor([[0, 1, 1]]), 97, 3)
    check_prompts(PROMPTS, ONES.bool(), 97, None)


def test_a_mask_is_compared_only_where_both_are_there() -> None:
    check_mask_shape(None, ONES)
    check_mask_shape(PROMPTS, None)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 3\], the prompts \[1, 3\]"):
        check_mask_shape(PROMPTS[:1], ONES)
