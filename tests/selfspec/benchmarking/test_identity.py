"""The same text, a near-tie, or another text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfspec.benchmarking.identity import Referee, Verdict, compare_exactly, gap_noise, last_bit

NEAR, CLEAR = 1, 2
"""Tokens after which the two likeliest tokens are almost equal, or far apart."""
ROUNDING = 0.02


class Rounding:
    """A model of four tokens: logits depend on the last token alone, and a little on how they are computed.

    After NEAR, token 3 leads token 0 by less than the rounding; after every other token by much more.
    """

    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._table = torch.tensor(
            [[0.0, 0.0, 1.0, 5.0], [4.99, 0.0, 1.0, 5.0], [0.0] * 3 + [5.0], [0.0, 5.0, 1.0, 0.0]]
        )

    def __call__(self, input_ids: Any, use_cache: bool, past_key_values: Any = None) -> Any:
        logits = self._table[input_ids].clone()
        if input_ids.shape[1] == 1:
            logits[..., 3] -= ROUNDING
        return SimpleNamespace(logits=logits, past_key_values=())


def referee(dtype: torch.dtype) -> Referee:
    # After the prompt CLEAR the model writes 3, 1 (NEAR), and then 3 or 0.
    return Referee(Rounding(dtype), [(CLEAR,)], [(3, NEAR, 3, NEAR)])


def test_the_same_text_needs_no_measurement() -> None:
    judge = referee(torch.bfloat16)
    assert judge.judge([(3, NEAR, 3, NEAR)]) == Verdict(identical=1)
    assert judge.measured_noise is None


def test_a_choice_within_the_rounding_noise_is_a_near_tie() -> None:
    judge = referee(torch.bfloat16)
    assert judge.judge([(3, NEAR, 0, 3)]) == Verdict(near_ties=1)
    # The last bit of a logit from 4 to 8, which is more than what rounding was seen to move.
    assert judge.measured_noise == 2**-5 > ROUNDING


def test_after_a_near_tie_the_rest_of_the_text_is_still_checked() -> None:
    assert referee(torch.bfloat16).judge([(3, NEAR, 0, 2)]) == Verdict(different=1)


def test_a_choice_beyond_the_rounding_noise_is_another_text() -> None:
    assert referee(torch.bfloat16).judge([(0, 3, NEAR, 3)]) == Verdict(different=1)


def test_a_shorter_text_is_another_text() -> None:
    assert referee(torch.bfloat16).judge([(3, NEAR)]) == Verdict(different=1)


def test_in_fp32_no_difference_is_forgiven() -> None:
    assert referee(torch.float32).judge([(3, NEAR, 0, 3)]) == Verdict(different=1)


def test_sampled_text_is_compared_exactly() -> None:
    assert compare_exactly([(1, 2), (3,)], [(1, 2), (4,)]) == Verdict(identical=1, different=1)


def test_gap_noise_is_the_largest_move_between_the_two_likeliest() -> None:
    one = torch.tensor([[3.0, 2.0, -9.0], [1.0, 5.0, 4.0]])
    other = torch.tensor([[3.5, 2.5, 9.0], [1.0, 5.0, 4.25]])
    assert gap_noise(one, other) == 0.25


def test_verdicts_add_up_and_speak() -> None:
    total = Verdict(identical=2) + Verdict(near_ties=1) + Verdict(different=1)
    assert str(total) == "2 of 4, 1 near-tie, 1 different"
    assert str(Verdict(identical=3)) == "3 of 3"


@pytest.mark.parametrize(
    ("largest", "dtype", "step"),
    [
        (9.4, torch.bfloat16, 0.0625),
        (16.0, torch.bfloat16, 0.125),
        (-15.9, torch.bfloat16, 0.0625),
        (9.4, torch.float16, 2**-7),
    ],
)
def test_nothing_finer_than_the_last_bit_of_a_logit_was_computed(
    largest: float, dtype: torch.dtype, step: float
) -> None:
    logits = torch.tensor([[0.5, largest, -1.0]])
    assert last_bit(logits, dtype) == step
