"""What a call starts from: positions and masks of a caller's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate
from tiny_models import random_prompts, tiny_model

import selfspec

PROMPTS = random_prompts(14, 9)
MASK = PROMPTS["attention_mask"]
REQUEST = {**PROMPTS, "max_new_tokens": 12}
COUNTED = (MASK.cumsum(1) - 1).clamp(min=0)
SETTINGS = {"exit_layer": 2, "draft_length": 3}


def bound(model: Any, **request: Any) -> Any:
    return model.generate(**request, custom_generate=selfspec.generate)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("change", [lambda p: 3 * p, lambda p: p + 2, lambda p: p.flip(1)])
def test_positions_of_a_callers_own_are_left_to_the_model_itself(name: str, change: Any) -> None:
    model = tiny_model(name)
    request = {**REQUEST, "position_ids": change(COUNTED)}
    expected = own_generate(model, **request)
    with exactly_one_warning(naming="position_ids"):
        assert torch.equal(bound(model, **request), expected)
    selfspec.wrap(model, **SETTINGS)
    for call in (bound, lambda model, **request: model.generate(**request)):
        with exactly_one_warning(naming="position_ids"):
            assert torch.equal(call(model, **request), expected)


def test_positions_of_one_row_for_all_are_looked_at_in_every_row(llama: Any) -> None:
    request = {**REQUEST, "position_ids": torch.arange(14)[None]}
    with exactly_one_warning(naming="position_ids"):
        assert torch.equal(bound(llama, **request), own_generate(llama, **request))


@pytest.mark.parametrize("padding", [0, 1, 77])
def test_positions_that_follow_from_the_mask_are_speculated(llama: Any, padding: int, recwarn: Any) -> None:
    request = {**REQUEST, "position_ids": COUNTED.masked_fill(MASK == 0, padding)}
    assert torch.equal(bound(llama, **request), own_generate(llama, **request))
    assert not [w for w in recwarn if "cannot be speculated" in str(w.message)]


def test_logits_of_chosen_places_are_left_to_the_model_itself(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    request = {**REQUEST, "max_new_tokens": 1, "logits_to_keep": torch.tensor([3])}
    expected = own_generate(llama, **request)
    assert not torch.equal(expected, own_generate(llama, **REQUEST)[:, :15])
    for call in (bound, lambda model, **request: model.generate(**request)):
        with exactly_one_warning(naming="logits_to_keep"):
            assert torch.equal(call(llama, **request), expected)
    assert torch.equal(llama.generate(**REQUEST, logits_to_keep=5), own_generate(llama, **REQUEST))
    assert llama.speculation.total.calls == 1


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_mask_with_a_hole_is_left_to_the_model_itself(llama: Any, wrapped: bool) -> None:
    mask = MASK.clone()
    mask[0, 4:6] = mask[1, 8] = 0
    request = {**REQUEST, "attention_mask": mask}
    expected = own_generate(llama, **request)
    assert not torch.equal(expected, own_generate(llama, **REQUEST))
    if wrapped:
        selfspec.wrap(llama)
    with exactly_one_warning(naming="an attention_mask with a hole"):
        assert torch.equal(llama.generate(**request) if wrapped else bound(llama, **request), expected)


def test_padding_on_the_right_is_an_error_with_or_without_a_hole(llama: Any) -> None:
    selfspec.wrap(llama)
    holed = MASK.flip(1).clone()
    holed[0, 4] = 0
    for mask in (MASK.flip(1), holed):
        with pytest.raises(ValueError, match="padded on the right: generation needs padding_side='left'"):
            llama.generate(**{**REQUEST, "attention_mask": mask})
