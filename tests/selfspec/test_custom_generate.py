"""One call on a model that is not wrapped: `generate(..., custom_generate=selfspec.generate)`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate, text
from streams import Recorder
from tiny_models import random_prompts, tiny_model
from torch import Tensor
from transformers import MaxLengthCriteria, WatermarkingConfig

import selfspec

ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)


def test_custom_generate_speculates_one_call_on_an_unwrapped_model(family: str) -> None:
    model = tiny_model(family)
    expected = own_generate(model, **BATCH, max_new_tokens=16)
    for _ in range(2):
        out = model.generate(**BATCH, max_new_tokens=16, custom_generate=selfspec.generate)
        assert torch.equal(out, expected)
    assert not selfspec.is_wrapped(model)
    assert "generate" not in vars(model)


def test_custom_generate_samples_reproducibly_and_as_a_wrapped_model_does(llama: Any) -> None:
    request = {**BATCH, "max_new_tokens": 12, "do_sample": True}
    bound = [text(llama, **request, custom_generate=selfspec.generate, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(bound[0], bound[1])
    assert not torch.equal(bound[0], bound[2])
    assert torch.equal(text(selfspec.wrap(llama), **request), bound[0])


def test_custom_generate_on_a_wrapped_model_uses_its_settings(wrapped: Any) -> None:
    out = type(wrapped).generate(wrapped, **ONE, max_new_tokens=9, custom_generate=selfspec.generate)
    assert torch.equal(out, own_generate(wrapped, **ONE, max_new_tokens=9))
    assert wrapped.speculation.stats.exit_layer == 2


def test_custom_generate_refuses_a_model_that_cannot_roll_back() -> None:
    model = tiny_model("llama")
    model.config.model_type = "mamba"
    with pytest.raises(selfspec.UnsupportedModelError, match="recurrent state"):
        model.generate(**ONE, max_new_tokens=3, custom_generate=selfspec.generate)


@pytest.mark.parametrize("beams", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize("prompts", [ONE, BATCH], ids=["one row", "batch"])
def test_custom_generate_falls_back_too(
    llama: Any, beams: dict[str, Any], prompts: dict[str, Tensor]
) -> None:
    expected = own_generate(llama, **prompts, max_new_tokens=8, **beams)
    with exactly_one_warning(naming=f"num_beams={beams['num_beams']}"):
        out = llama.generate(**prompts, max_new_tokens=8, custom_generate=selfspec.generate, **beams)
    assert torch.equal(out, expected)


def test_custom_generate_falls_back_with_its_streamer_and_processors(llama: Any) -> None:
    own, ours = Recorder(), Recorder()
    processor = [lambda ids, scores: scores.roll(1, dims=-1)]
    request = {**ONE, "max_new_tokens": 8, "output_hidden_states": True, "return_dict_in_generate": True}
    expected = own_generate(llama, **request, logits_processor=processor, streamer=own)
    with exactly_one_warning(naming="output_hidden_states=True"):
        out = llama.generate(
            **request, logits_processor=processor, streamer=ours, custom_generate=selfspec.generate
        )
    assert torch.equal(out.sequences, expected.sequences)
    assert ours.log == own.log


class Sooner(MaxLengthCriteria):
    """A criterion of the caller's own that is built on transformers'."""


def test_custom_generate_falls_back_with_criteria_built_on_transformers_own(llama: Any) -> None:
    request = {**ONE, "max_new_tokens": 8, "num_beams": 2, "stopping_criteria": [Sooner(max_length=12)]}
    expected = own_generate(llama, **request)
    assert expected.shape[1] == 12
    with exactly_one_warning(naming="num_beams=2"):
        out = llama.generate(**request, custom_generate=selfspec.generate)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.4, "top_k": 20, "output_hidden_states": True},
        {"num_beams": 2, "watermarking_config": WatermarkingConfig(bias=2.0)},
        {"num_beams": 2, "renormalize_logits": True, "do_sample": True, "temperature": 0.5},
        {"num_beams": 2, "prefix_allowed_tokens_fn": lambda row, prefix: [5, 6, 7 + len(prefix) % 3]},
        {"num_beams": 2, "logits_processor": [lambda ids, scores: scores.roll(1, dims=-1)]},
    ],
    ids=["warpers", "a watermark", "beams that sample", "allowed tokens", "a processor of one's own"],
)
def test_what_is_left_to_the_model_is_processed_once(llama: Any, options: dict[str, Any]) -> None:
    """generate() prepares processors before it calls a decoding method, and would do so again."""
    for seed in range(4):
        torch.manual_seed(seed)
        expected = own_generate(llama, **BATCH, max_new_tokens=8, **options)
        torch.manual_seed(seed)
        with pytest.warns(UserWarning, match="cannot be speculated"):
            out = llama.generate(**BATCH, max_new_tokens=8, **options, custom_generate=selfspec.generate)
        assert torch.equal(out, expected)


def test_processors_are_kept_where_no_generate_called(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfspec.wrapping, "callers_arguments", dict)
    request = {**BATCH, "max_new_tokens": 8, "output_hidden_states": True}
    request["logits_processor"] = [lambda ids, scores: scores.roll(1, dims=-1)]
    with pytest.warns(UserWarning, match="cannot be speculated"):
        out = llama.generate(**request, custom_generate=selfspec.generate)
    assert torch.equal(out, own_generate(llama, **request))
