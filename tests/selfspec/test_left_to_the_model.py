"""What cannot be speculated goes to the model's own generate, with one warning that names it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from checks import common_tokens, exactly_one_warning, own_generate, roll, text
from streams import Recorder
from tiny_models import VOCAB, random_prompts, tiny_model
from torch import Tensor
from transformers import (
    GenerationConfig,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

import selfspec
from selfspec import surface

SETTINGS = {"exit_layer": 2, "draft_length": 3}
ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)
LEFT_CACHE = surface.LEFT["cache_implementation"][1]


def prefix_fn(batch: int, ids: Tensor) -> list[int]:
    return [i for i in range(VOCAB) if (i + batch) % 2]


def own_loop(model: Any, input_ids: Tensor, **_: Any) -> Tensor:
    return input_ids.repeat(1, 2)


# Option -> the request, and the name that the warning gives. Callables are asked for a value with the model.
NOT_SPECULATED: dict[str, tuple[dict[str, Any], str]] = {
    "num_beams": ({"num_beams": 3}, "num_beams=3"),
    "prompt_lookup_num_tokens": ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
    "assistant_early_exit": ({"assistant_early_exit": 2}, "assistant_early_exit=2"),
    "assistant_model": ({"assistant_model": lambda model: tiny_model("llama", seed=1)}, "assistant_model"),
    "guidance_scale": ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
    "a watermark with a state": (
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[5, 7, 11])},
        "SynthIDTextWatermarkLogitsProcessor",
    ),
    "use_cache": ({"use_cache": False}, "use_cache=False"),
    "a static cache to return": (
        {"cache_implementation": "static", "return_dict_in_generate": True},
        "cache_implementation='static'",
    ),
    "is_assistant": ({"is_assistant": True, "assistant_confidence_threshold": 0.0}, "is_assistant=True"),
    "output_hidden_states": (
        {"output_hidden_states": True, "return_dict_in_generate": True},
        "output_hidden_states=True",
    ),
    "output_attentions": (
        {"output_attentions": True, "return_dict_in_generate": True},
        "output_attentions=True",
    ),
    "position_ids": ({"position_ids": lambda model: torch.arange(9)[None]}, "position_ids"),
    "a processor": ({"logits_processor": [roll]}, "the logits processor roll"),
    "custom_generate": ({"custom_generate": own_loop}, "custom_generate"),
}
# Moved by transformers out of its own code: its own generate can only say so.
MOVED = {
    "penalty_alpha": {"penalty_alpha": 0.5, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "constraints": {"constraints": ["anything"]},
    "force_words_ids": {"force_words_ids": [[5]], "num_beams": 2},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 2},
}


def test_every_option_of_the_table_is_tested() -> None:
    # Multi-token prediction needs a model with such layers; the others are tested by themselves below.
    unneeded = {"use_mtp", "token_healing", "cache_implementation"}
    assert surface.LEFT.keys() - unneeded <= NOT_SPECULATED.keys() | MOVED.keys()


@pytest.mark.parametrize("option", NOT_SPECULATED)
def test_what_cannot_be_speculated_goes_to_the_models_own_generate_with_one_warning(
    llama: Any, option: str
) -> None:
    options, name = NOT_SPECULATED[option]
    llama.set_attn_implementation("eager")  # the only one that gives attentions out
    options = {
        key: value(llama) if callable(value) and value is not own_loop else value
        for key, value in options.items()
    }
    request = {**ONE, "max_new_tokens": 8, **options}
    expected = llama.generate(**request)
    selfspec.wrap(llama, **SETTINGS)
    with exactly_one_warning(naming=name):
        out = llama.generate(**request)
    assert type(out) is type(expected)
    sequences = (out, expected) if isinstance(out, Tensor) else (out.sequences, expected.sequences)
    assert torch.equal(*sequences)
    if option.startswith("output_"):
        field = {"output_hidden_states": "hidden_states"}.get(option, option.removeprefix("output_"))
        assert out[field] is not None
    selfspec.wrap(llama, strict=True)
    with pytest.raises(selfspec.NotSpeculatedError, match="cannot be speculated") as caught:
        llama.generate(**request)
    assert name in str(caught.value)


@pytest.mark.parametrize("option", MOVED)
def test_what_transformers_gave_up_is_its_own_to_refuse(wrapped: Any, option: str) -> None:
    request = {**ONE, "max_new_tokens": 4, **MOVED[option]}
    outcomes = []
    for generate in (type(wrapped).generate.__get__(wrapped), wrapped.generate):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcomes.append(generate(**request).tolist())
            except (ValueError, OSError, AttributeError, NotImplementedError, TypeError) as error:
                outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_a_constraint_on_tokens_is_speculated_and_knows_its_row(wrapped: Any) -> None:
    request = {"max_new_tokens": 8, "prefix_allowed_tokens_fn": prefix_fn}
    for prompts in (ONE, BATCH):
        expected = own_generate(wrapped, **prompts, **request)
        assert torch.equal(wrapped.generate(**prompts, **request), expected)
    assert wrapped.speculation.total.calls == 2
    assert not torch.equal(expected, own_generate(wrapped, **BATCH, max_new_tokens=8))
    out = text(wrapped, **ONE, **request, do_sample=True, num_return_sequences=3)[:, -8:]
    assert all(int(token + row) % 2 for row, tokens in enumerate(out) for token in tokens)


@pytest.mark.parametrize("where", ["the call", "a generation_config", "the model's generation_config"])
def test_stop_strings_are_speculated_and_stop_where_the_model_itself_would(
    wrapped: Any, tokenizer: Any, where: str
) -> None:
    strings = tokenizer.decode(common_tokens(wrapped, ONE, 1))
    request: dict[str, Any] = {**ONE, "max_new_tokens": 24, "tokenizer": tokenizer}
    if where == "the call":
        request["stop_strings"] = strings
    elif where == "a generation_config":
        request["generation_config"] = GenerationConfig(max_new_tokens=24, stop_strings=strings)
    else:
        wrapped.generation_config.stop_strings = [strings, "never said"]
    expected = own_generate(wrapped, **request)
    assert expected.shape[1] < 9 + 24
    assert torch.equal(wrapped.generate(**request), expected)
    assert wrapped.speculation.total.calls == 1


@pytest.mark.parametrize("with_end", [True, False], ids=["end token", "no end token"])
def test_stop_strings_stop_every_row_by_itself(wrapped: Any, tokenizer: Any, with_end: bool) -> None:
    *stops, end = common_tokens(wrapped, BATCH, 7)
    request = {**BATCH, "max_new_tokens": 24, "tokenizer": tokenizer}
    request |= {"stop_strings": [tokenizer.decode([stop]) for stop in stops]}
    request |= {"eos_token_id": end} if with_end else {}
    expected = own_generate(wrapped, **request)
    assert torch.equal(wrapped.generate(**request), expected)
    assert wrapped.speculation.total.calls == 1


def test_stop_strings_without_a_tokenizer_are_an_error_as_ever(wrapped: Any) -> None:
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        wrapped.generate(**ONE, max_new_tokens=4, stop_strings="x")


@pytest.mark.parametrize(
    "asked", [{"cache_implementation": "paged"}, {"token_healing": True, "max_new_tokens": 4}], ids=str
)
def test_what_generate_does_before_it_asks_a_decoding_method_is_left_to_it(
    wrapped: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    seen = []

    def spy(model: Any, inputs: Any = None, **request: Any) -> None:
        seen.append(request)

    monkeypatch.setattr(type(wrapped), "generate", spy)
    with exactly_one_warning(naming=next(iter(asked))):
        wrapped.generate(**ONE, **asked, tokenizer=tokenizer)
    assert len(seen) == 1
    assert "custom_generate" not in seen[0]
    assert seen[0]["tokenizer"] is tokenizer
    assert asked.items() <= seen[0].items()


def test_arguments_by_position_are_not_overlooked(wrapped: Any) -> None:
    """generate(inputs, generation_config, logits_processor, ..., synced_gpus, assistant_model)"""
    assistant = tiny_model("llama", seed=1)
    config = GenerationConfig(max_new_tokens=6, num_assistant_tokens=3)
    with exactly_one_warning(naming="assistant_model"):
        out = wrapped.generate(ONE["input_ids"], config, None, None, None, None, assistant)
    assert torch.equal(out, own_generate(wrapped, ONE["input_ids"], config))
    own, ours = Recorder(), Recorder()
    arguments = (ONE["input_ids"], config, None, None, prefix_fn, None, None)
    own_generate(wrapped, *arguments, own)
    wrapped.generate(*arguments, ours)
    assert ours.log == own.log
    assert wrapped.speculation.total.calls == 1
    with pytest.raises(TypeError, match="multiple values for argument 'generation_config'"):
        wrapped.generate(ONE["input_ids"], config, generation_config=config)
    with pytest.raises(TypeError, match="by position"):
        wrapped.generate(*[None] * 30)


def test_token_type_ids_are_not_ignored() -> None:
    model = selfspec.wrap(tiny_model("gpt2"), **SETTINGS)
    request = {**ONE, "max_new_tokens": 8, "token_type_ids": torch.ones(1, 9, dtype=torch.int64)}
    expected = own_generate(model, **request)
    with exactly_one_warning(naming="token_type_ids"):
        assert torch.equal(model.generate(**request), expected)


def test_a_fallback_streams_the_prompt_once(wrapped: Any) -> None:
    own, ours = Recorder(), Recorder()
    own_generate(wrapped, **ONE, max_new_tokens=6, use_cache=False, streamer=own)
    with exactly_one_warning(naming="use_cache=False"):
        wrapped.generate(**ONE, max_new_tokens=6, use_cache=False, streamer=ours)
    assert ours.log == own.log


def test_a_fallback_samples_under_the_seed_as_the_model_itself_would(wrapped: Any) -> None:
    request = {**ONE, "max_new_tokens": 8, "do_sample": True, "use_cache": False}
    torch.manual_seed(3)
    expected = own_generate(wrapped, **request)
    torch.manual_seed(3)
    with exactly_one_warning(naming="use_cache=False"):
        assert torch.equal(wrapped.generate(**request), expected)


def test_a_cache_setting_that_only_asks_for_room_ahead_does_not_matter(wrapped: Any) -> None:
    """Gemma 2 checkpoints ask for "hybrid", which transformers takes for its usual one."""
    expected = own_generate(wrapped, **ONE, max_new_tokens=8)
    names = ("dynamic", "hybrid", "static", "sliding_window", "hybrid_chunked")
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            out = wrapped.generate(**ONE, max_new_tokens=8, cache_implementation=name)
        assert torch.equal(out, expected)
    assert wrapped.speculation.total.calls == len(names)


def test_every_other_cache_is_left_to_the_model_itself(wrapped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading needs a GPU, and a quantized cache its library: the request alone is looked at."""
    asked: list[str] = []
    own = type(wrapped).generate

    def spy(model: Any, inputs: Any = None, **request: Any) -> Any:
        if "custom_generate" in request:
            return own(model, inputs, **request)
        return asked.append(request["cache_implementation"])

    known = ("dynamic", "static", "sliding_window", "hybrid", "hybrid_chunked")
    others = sorted({*ALL_CACHE_IMPLEMENTATIONS} - {*known})
    assert {"offloaded", "quantized", "offloaded_static"} <= {*others}
    for name in others:
        config = GenerationConfig(cache_implementation=name)
        assert surface.unserved(config) == (f"cache_implementation={name!r}", LEFT_CACHE)
    monkeypatch.setattr(type(wrapped), "_prepare_cache_for_generation", lambda *_, **__: None)
    monkeypatch.setattr(type(wrapped), "generate", spy)
    for name in others:
        with exactly_one_warning(naming=f"cache_implementation='{name}'"):
            wrapped.generate(**ONE, max_new_tokens=3, cache_implementation=name)
    assert asked == others
