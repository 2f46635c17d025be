"""The token side of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import padded

from selfspec.rows import RoundEvent, Rows

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


def test_a_row_that_ran_past_its_stop_counts_up_to_it_and_is_cut_at_the_end() -> None:
    rows = rows_of()
    for row, tokens in enumerate([[1, 2, 3], [4], [5, 6]]):
        rows.append(row, tokens)
    rows.stops = {0: 1, 2: 2}
    assert (rows.generated, rows.lengths) == ([3, 1, 2], [1, 1, 2])
    rows.cut()
    assert rows.generated == [1, 1, 2]
    assert rows.output()[:, 4:].tolist() == [[1, 99], [4, 99], [5, 6]]


def test_columns_are_settled_when_every_row_has_them_and_no_criterion_can_cut_them() -> None:
    for criteria, settled in ((), (2, 2, 3)), ([lambda ids, scores: False], (0, 1, 3)):
        rows = rows_of(criteria=criteria)
        for row, tokens in enumerate([[1, 2, 3], [4, 5, 6], [5, 6]]):
            rows.append(row, tokens)
        found = [rows.settled]
        rows.active, rows.asked = [2], 1
        found.append(rows.settled)
        rows.active, rows.asked = [], 3
        assert (*found, rows.settled) == settled


def test_a_round_is_cut_with_its_row() -> None:
    event = RoundEvent(1, [5, 6, 7], 3, (0, 1), [5, 6, 9])
    assert [event.cut(length) for length in (-1, 0)] == [None, None]
    assert event.cut(1) == RoundEvent(1, [5, 6, 7], 3, (0,), [5])
    assert event.cut(2) == RoundEvent(1, [5, 6, 7], 3, (0, 1), [5, 6])
    assert event.cut(3) is event.cut(4) is event


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
