"""The token side of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import padded
from torch import Tensor

from selfspec.rows import Rows

PROMPTS = [[11, 12, 13, 14], [21, 22], [31, 32, 33]]


def rows_of(prompts: list[list[int]] = PROMPTS, limit: int = 5, **settings: Any) -> Rows:
    batch = padded(prompts)
    defaults = {"eos_tokens": frozenset({7, 8}), "pad_token": 99}
    return Rows.of_prompts(batch["input_ids"], batch["attention_mask"], limit, 10, **{**defaults, **settings})


def test_rows_begin_with_their_prompts_without_padding() -> None:
    rows = rows_of()
    assert rows.prompts() == PROMPTS
    assert rows.pads == [0, 2, 1]
    assert rows.cached == [3, 1, 2]
    assert rows.ends() == [4, 4, 4]
    assert rows.last_tokens().tolist() == [14, 22, 33]
    assert rows.remaining == 5
    assert rows.active == [0, 1, 2]


def test_every_row_keeps_its_own_length_and_position() -> None:
    rows = rows_of()
    assert rows.append(0, [41, 42, 43]) == ([41, 42, 43], False)
    assert rows.append(2, [51]) == ([51], False)
    assert rows.cached == [6, 1, 3]
    assert rows.ends() == [7, 4, 5]
    assert rows.last_tokens().tolist() == [43, 22, 51]
    assert rows.remaining == 5


def test_finished_rows_are_left_out() -> None:
    rows = rows_of()
    rows.append(0, [41, 42])
    rows.append(1, [44, 45, 46])
    rows.active = [0, 1]
    assert rows.cached == [5, 4]
    assert rows.last_tokens().tolist() == [42, 46]
    assert rows.remaining == 3


@pytest.mark.parametrize(
    ("tokens", "committed", "finished"),
    [
        ([1, 2], [1, 2], False),
        ([1, 2, 3, 4], [1, 2, 3, 4], False),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], True),
        ([1, 2, 3, 4, 5, 6, 9], [1, 2, 3, 4, 5], True),
        ([7], [7], True),
        ([1, 8, 3], [1, 8], True),
        ([1, 2, 3, 4, 7], [1, 2, 3, 4, 7], True),
        ([8, 7], [8], True),
    ],
)
def test_tokens_are_committed_up_to_the_limit_or_the_first_end_token(
    tokens: list[int], committed: list[int], finished: bool
) -> None:
    rows = rows_of()
    assert rows.append(0, tokens) == (committed, finished)
    assert rows.generated == [len(committed), 0, 0]


def test_a_stopping_criterion_sees_the_row_after_every_token() -> None:
    seen = []

    def criterion(ids: Tensor, scores: None) -> Tensor:
        assert scores is None
        seen.append(ids.tolist())
        return ids[:, -1] == 3

    rows = rows_of(criteria=[criterion])
    assert rows.append(1, [1, 2, 3, 4]) == ([1, 2, 3], True)
    padding_and_prompt = [0, 0, 21, 22]
    assert seen == [
        [[*padding_and_prompt, 1]],
        [[*padding_and_prompt, 1, 2]],
        [[*padding_and_prompt, 1, 2, 3]],
    ]


def test_criteria_may_answer_with_a_plain_bool() -> None:
    assert rows_of(criteria=[lambda ids, scores: True]).append(0, [1, 2]) == ([1], True)
    assert rows_of(criteria=[lambda ids, scores: False]).append(0, [1, 2]) == ([1, 2], False)


def test_the_output_is_filled_up_with_the_pad_token_and_without_scratch() -> None:
    rows = rows_of()
    rows.append(0, [1, 2, 7, 5, 5])
    rows.append(1, [4])
    rows.append(2, [6, 7])
    assert rows.output().tolist() == [
        [11, 12, 13, 14, 1, 2, 7],
        [0, 0, 21, 22, 4, 99, 99],
        [0, 31, 32, 33, 6, 7, 99],
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_a_mask_of_any_type_says_where_padding_is(dtype: torch.dtype) -> None:
    batch = padded(PROMPTS)
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"].to(dtype), 5, 10, eos_tokens=frozenset(), pad_token=0
    )
    assert rows.pads == [0, 2, 1]
    assert all(isinstance(pad, int) for pad in rows.pads)
