"""What every exit would say."""

from __future__ import annotations

import pytest
import torch
from tiny_models import LAYERS, random_prompts, tiny_model

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import ExitChoices, exit_choices


def test_the_last_exit_says_what_the_model_says(family: str) -> None:
    model = tiny_model(family)
    tokens = random_prompts(21)["input_ids"][0]
    choices = exit_choices(LayeredDecoder(model), tokens)
    with torch.no_grad():
        probabilities = model(tokens[None]).logits[0].softmax(dim=-1)
    assert choices.tokens.shape == choices.confidence.shape == (LAYERS, 21)
    assert torch.equal(choices.tokens[-1], probabilities.argmax(dim=-1))
    torch.testing.assert_close(choices.confidence[-1], probabilities.max(dim=-1).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [1, 5, 21, 100])
def test_the_last_positions_of_a_text_are_those_of_the_whole(last: int) -> None:
    decoder = LayeredDecoder(tiny_model("llama"))
    tokens = random_prompts(21)["input_ids"][0]
    whole, some = exit_choices(decoder, tokens), exit_choices(decoder, tokens, last=last)
    assert torch.equal(some.tokens, whole.tokens[:, -last:])


def test_agreement_counts_positions_where_an_exit_chooses_as_the_full_model() -> None:
    tokens = torch.tensor([[1, 2, 3, 9], [1, 5, 3, 4], [1, 2, 3, 4]])
    assert ExitChoices(tokens, torch.ones(3, 4)).agreement == [0.75, 0.75, 1.0]
