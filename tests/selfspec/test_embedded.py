"""Prompts that are given as embeddings; the conformance grid has them in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate, text
from streams import Recorder
from tiny_models import random_prompts, tiny_model
from torch import Tensor

import selfspec

ONE, BATCH = random_prompts(14), random_prompts(6, 11, 3)
SETTINGS = {"exit_layer": 2, "draft_length": 4}


def embedded(model: Any, prompts: dict[str, Tensor], shift: float = 0.0) -> dict[str, Any]:
    """Prompts as embeddings; shifted ones are those of no token."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(prompts["input_ids"]) + shift
    return {"inputs_embeds": embeddings, "attention_mask": prompts["attention_mask"]}


# What they do to embeddings: nothing, a scale before or after them, a norm, a projection, learned positions.
DIFFERENT = ["llama", "gemma2", "minicpm3", "granite", "bloom", "opt projected", "gpt2", "gptj", "mpt"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_text_after_embeddings_is_the_models_own(name: str) -> None:
    model = tiny_model(name)
    for prompts in (ONE, BATCH):
        request = {**embedded(model, prompts, 0.25), "max_new_tokens": 10}
        expected = own_generate(model, **request)
        selfspec.wrap(model, **SETTINGS, strict=True)
        out = model.generate(**request)
        assert torch.equal(out, expected)
        assert out.shape == (len(prompts["input_ids"]), 10)
        selfspec.unwrap(model)


@pytest.mark.parametrize("setting", [{"draft": "auto"}, {"draft": "lookup"}, {"draft_length": 0}], ids=str)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_draft_takes_up_embeddings(llama: Any, setting: dict[str, Any], deterministic: bool) -> None:
    request = {**embedded(llama, BATCH, 0.25), "max_new_tokens": 20, "repetition_penalty": 1.2}
    expected = own_generate(llama, **request)
    selfspec.wrap(llama, **setting, deterministic=deterministic, strict=True)
    assert torch.equal(llama.generate(**request), expected)


@pytest.mark.parametrize("beside", [False, True])
def test_scores_caches_streams_and_ids_beside_embeddings_are_the_models_own(llama: Any, beside: bool) -> None:
    request = {**embedded(llama, BATCH, 0.25), "max_new_tokens": 10, "return_dict_in_generate": True}
    request |= {"output_scores": True, "eos_token_id": [7, 8, 9, 10, 11, 12]}
    if beside:
        request["input_ids"] = BATCH["input_ids"]
    mine, theirs = Recorder(), Recorder()
    own = own_generate(llama, **request, streamer=theirs)
    selfspec.wrap(llama, **SETTINGS, strict=True)
    out = llama.generate(**request, streamer=mine)
    assert torch.equal(out.sequences, own.sequences)
    assert out.sequences.shape[1] == own.sequences.shape[1]
    assert mine.log == theirs.log
    assert out.past_key_values.get_seq_length() == own.past_key_values.get_seq_length()
    for one, other in zip(out.scores, own.scores, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_embeddings_sample_several_sequences_from_one_seed(llama: Any) -> None:
    request = {**embedded(llama, ONE), "max_new_tokens": 12, "do_sample": True, "num_return_sequences": 4}
    selfspec.wrap(llama, exit_layer=2, draft_length=0)
    expected = text(llama, **request)
    assert len(set(map(tuple, expected.tolist()))) > 1
    selfspec.wrap(llama, **SETTINGS)
    assert torch.equal(text(llama, **request), expected)


def test_embeddings_that_cannot_be_gone_on_from_are_left_to_the_model_itself(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    request = {**embedded(llama, ONE), "max_new_tokens": 5}
    with exactly_one_warning(naming="input_ids of another length"):
        out = llama.generate(**request, input_ids=ONE["input_ids"][:, :4])
    assert torch.equal(out, own_generate(llama, **request, input_ids=ONE["input_ids"][:, :4]))
    with exactly_one_warning(naming="inputs_embeds in torch.float64"), pytest.raises(RuntimeError):
        llama.generate(inputs_embeds=request["inputs_embeds"].double(), max_new_tokens=5)
