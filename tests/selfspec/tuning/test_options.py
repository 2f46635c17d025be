"""What tuning can be asked for, and what is refused before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quick_tuning import PROMPTS

from selfspec.tuning.options import TuneOptions
from selfspec.tuning.tune import tune


def test_siblings_are_chosen_only_where_they_cannot_flip_a_near_tie_or_are_asked_for() -> None:
    def may(dtype: torch.dtype, **options: Any) -> bool:
        return TuneOptions(**options).may_branch(dtype)

    assert may(torch.float32) and may(torch.bfloat16, deterministic=False)
    assert not may(torch.bfloat16)
    assert may(torch.bfloat16, siblings=True)
    assert not may(torch.float32, siblings=False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"longest": 100}, "longest=100: allowed is a whole number, 1 to 64"),
        ({"repeats": 0}, "repeats=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch": True}, "batch=True"),
        ({"seed": "a"}, "seed='a'"),
        ({"limits": 3}, "limits=3"),
        ({"siblings": "yes"}, "siblings='yes': allowed are True, False and None"),
        ({"generate_arguments": [1]}, "keywords of generate"),
        ({"generate_arguments": {"logits_processor": [object()]}}, "no value that a profile can hold"),
        ({"generate_arguments": {"num_return_sequences": 2}}, "num_return_sequences=2, allowed is 1"),
        ({"generate_arguments": {"max_new_tokens": 2}}, "is set by tuning itself"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(
    llama: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        tune(llama, PROMPTS, advance=lambda *_: pytest.fail("it has begun"), **options)


def test_options_are_greedy_unless_they_say_otherwise() -> None:
    assert TuneOptions().generate_arguments == {"do_sample": False}
    assert TuneOptions(generate_arguments={"do_sample": True}).generate_arguments == {"do_sample": True}
