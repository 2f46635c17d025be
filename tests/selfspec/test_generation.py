"""Hugging Face's generate() on the outside: arguments, streamers, outputs, pipelines, fallbacks."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate, text
from criteria import EndsWith
from streams import Recorder
from tiny_models import PAD, VOCAB, random_prompts, tiny_model
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    GenerationConfig,
    MaxTimeCriteria,
    PreTrainedTokenizerFast,
    StopStringCriteria,
    SynthIDTextWatermarkingConfig,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

import selfspec
from selfspec import surface

SETTINGS = {"exit_layer": 2, "draft_length": 3}
ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)
LEFT_CACHE = surface.LEFT["cache_implementation"][1]


@pytest.fixture
def wrapped(llama: Any) -> Any:
    return selfspec.wrap(llama, **SETTINGS)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One character per token: "!" is 0, "a" is 64."""
    backend = Tokenizer(models.BPE({chr(33 + i): i for i in range(VOCAB)}, []))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!", padding_side="left")


def common_tokens(model: Any, prompts: dict[str, Tensor], count: int, tokens: int = 24) -> list[int]:
    out = own_generate(model, **prompts, max_new_tokens=tokens)[:, -tokens:]
    values, counts = out.unique(return_counts=True)
    return values[counts.argsort(descending=True)][:count].tolist()


# --- the signature


def test_a_request_may_be_written_in_every_way_that_generate_takes(wrapped: Any) -> None:
    ids, mask = BATCH["input_ids"], BATCH["attention_mask"]
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=PAD)
    expected = own_generate(wrapped, **BATCH, max_new_tokens=12)
    for out in (
        wrapped.generate(ids, attention_mask=mask, max_new_tokens=12),
        wrapped.generate(inputs=ids, attention_mask=mask, max_length=ids.shape[1] + 12),
        wrapped.generate(input_ids=ids, attention_mask=mask, generation_config=config),
        wrapped.generate(ids, config, attention_mask=mask),
        wrapped.generate(**BATCH, generation_config=config, max_new_tokens=12),
    ):
        assert torch.equal(out, expected)
    assert wrapped.speculation.total.calls == 5


def test_keywords_override_the_config_and_the_models_defaults_hold(wrapped: Any) -> None:
    end = common_tokens(wrapped, ONE, 1)[0]
    wrapped.generation_config.eos_token_id = end
    wrapped.generation_config.max_new_tokens = 30
    assert torch.equal(wrapped.generate(**ONE), own_generate(wrapped, **ONE))
    assert int(wrapped.generate(**ONE)[0, -1]) == end
    config = GenerationConfig(max_new_tokens=5, eos_token_id=None)
    out = wrapped.generate(**ONE, generation_config=config, max_new_tokens=7)
    assert torch.equal(out, own_generate(wrapped, **ONE, generation_config=config, max_new_tokens=7))
    assert config.max_new_tokens == 5


def test_the_mask_is_inferred_from_the_pad_token_as_ever(wrapped: Any) -> None:
    ids = BATCH["input_ids"]
    expected = own_generate(wrapped, ids, pad_token_id=PAD, max_new_tokens=9)
    assert torch.equal(wrapped.generate(ids, pad_token_id=PAD, max_new_tokens=9), expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_a_mask_may_be_of_any_type(wrapped: Any, dtype: torch.dtype) -> None:
    expected = own_generate(wrapped, **BATCH, max_new_tokens=9)
    mask = BATCH["attention_mask"].to(dtype)
    assert torch.equal(wrapped.generate(BATCH["input_ids"], attention_mask=mask, max_new_tokens=9), expected)


def test_the_signature_and_the_documentation_are_generates_own(wrapped: Any) -> None:
    assert wrapped.generate.__doc__ == type(wrapped).generate.__doc__
    assert "streamer" in inspect.signature(wrapped.generate).parameters


def test_one_new_token_is_one_round(wrapped: Any) -> None:
    for prompts in (ONE, BATCH):
        expected = own_generate(wrapped, **prompts, max_new_tokens=1)
        assert torch.equal(wrapped.generate(**prompts, max_new_tokens=1), expected)
        assert wrapped.speculation.stats.rounds == 1


# --- what comes back


def test_a_dictionary_comes_back_when_asked_for(wrapped: Any) -> None:
    for prompts in (ONE, BATCH):
        own = own_generate(wrapped, **prompts, max_new_tokens=9, return_dict_in_generate=True)
        out = wrapped.generate(**prompts, max_new_tokens=9, return_dict_in_generate=True)
        assert type(out) is type(own)
        assert torch.equal(out.sequences, own.sequences)
        assert out.scores is None
        assert out.logits is None
        assert out.past_key_values.get_seq_length() == own.past_key_values.get_seq_length()


@pytest.mark.parametrize("limit", [1, 9, 10, 11])
def test_the_returned_cache_is_the_models_own_and_goes_on(family: str, limit: int) -> None:
    model = selfspec.wrap(tiny_model(family), **SETTINGS)
    request = {**ONE, "max_new_tokens": limit, "return_dict_in_generate": True}
    own, out = own_generate(model, **request), model.generate(**request)
    assert out.past_key_values.get_seq_length() == own.past_key_values.get_seq_length() == 9 + limit - 1
    last = out.sequences[:, -1:]
    with torch.no_grad():
        expected = model(last, past_key_values=own.past_key_values).logits
        actual = model(last, past_key_values=out.past_key_values).logits
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    longer = own_generate(model, **ONE, max_new_tokens=limit + 8)
    again = model.generate(**request)
    out = model.generate(
        again.sequences,
        attention_mask=torch.ones_like(again.sequences),
        past_key_values=again.past_key_values,
        max_new_tokens=8,
    )
    assert torch.equal(out, longer)


def test_a_cache_ended_by_an_end_token_holds_what_was_generated(wrapped: Any) -> None:
    end = common_tokens(wrapped, ONE, 1)[0]
    request = {**ONE, "max_new_tokens": 24, "eos_token_id": end, "return_dict_in_generate": True}
    out = wrapped.generate(**request)
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    with torch.no_grad():
        fresh = wrapped(out.sequences[:, :-1]).past_key_values
    for mine, expected in zip(out.past_key_values.layers, fresh.layers, strict=True):
        torch.testing.assert_close(mine.keys, expected.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mine.values, expected.values, rtol=1e-3, atol=1e-4)


def test_outputs_are_ordinary_tensors_that_can_be_changed_and_trained_on(wrapped: Any) -> None:
    out = wrapped.generate(**ONE, max_new_tokens=5, return_dict_in_generate=True)
    out.sequences[0, 0] = 3
    assert not out.sequences.is_inference()
    assert not out.past_key_values.layers[0].keys.is_inference()
    wrapped(out.sequences, labels=out.sequences).loss.backward()


# --- streamers


@pytest.mark.parametrize("prompts", [ONE, BATCH], ids=["one row", "batch"])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("draft_length", [0, 3, 8])
def test_a_streamer_receives_what_the_models_own_generate_puts(
    llama: Any, prompts: dict[str, Tensor], ended: bool, draft_length: int
) -> None:
    request: dict[str, Any] = {**prompts, "max_new_tokens": 24}
    if ended:
        request["eos_token_id"] = common_tokens(llama, prompts, 3)
    own, ours, bound = Recorder(), Recorder(), Recorder()
    expected = own_generate(llama, **request, streamer=own)
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length)
    assert torch.equal(llama.generate(**request, streamer=ours), expected)
    assert ours.log == own.log
    selfspec.unwrap(llama)
    out = llama.generate(**request, streamer=bound, custom_generate=selfspec.generate)
    assert torch.equal(out, expected)
    assert bound.log == own.log


def test_tokens_arrive_as_they_are_accepted(wrapped: Any) -> None:
    log: list[Any] = []
    wrapped.generate(**ONE, max_new_tokens=24, streamer=Recorder(log), on_round=log.append)
    prompt, *rest, end = log
    assert prompt == ONE["input_ids"].tolist()
    assert end == "end"
    expected: list[Any] = []
    for event in (entry for entry in rest if isinstance(entry, selfspec.RoundEvent)):
        expected += [event, *([token] for token in event.committed)]
    assert rest == expected


def test_a_batch_streams_a_column_once_every_unfinished_row_has_it(wrapped: Any) -> None:
    log: list[Any] = []
    wrapped.generate(**BATCH, max_new_tokens=24, streamer=Recorder(log), on_round=log.append)
    reached, columns = [0, 0, 0], 0
    for entry in log[1:-1]:
        if isinstance(entry, selfspec.RoundEvent):
            reached[entry.row] += len(entry.committed)
        else:
            columns += 1
            assert columns <= min(reached)
    assert columns == 24


def test_a_streamer_with_return_sequences_receives_every_row(wrapped: Any) -> None:
    for sampling in ({"num_return_sequences": 3}, {}):
        recorder = Recorder()
        out = text(wrapped, **ONE, max_new_tokens=6, do_sample=True, streamer=recorder, **sampling)
        columns = torch.tensor(recorder.log[1:-1]).reshape(6, -1)
        assert torch.equal(columns.T, out[:, -6:])
        assert len(recorder.log[0]) == len(out)


def test_transformers_text_streamers_print_the_text(wrapped: Any, tokenizer: Any, capsys: Any) -> None:
    out = wrapped.generate(**ONE, max_new_tokens=12, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == tokenizer.decode(out[0, 9:]) + "\n"
    iterator = TextIteratorStreamer(tokenizer, skip_prompt=True)
    wrapped.generate(**ONE, max_new_tokens=12, streamer=iterator)
    assert "".join(iterator) == tokenizer.decode(out[0, 9:])


# --- stopping criteria


@pytest.mark.parametrize("draft_length", [0, 1, 3, 8])
def test_a_custom_criterion_stops_a_row_where_the_model_itself_would(llama: Any, draft_length: int) -> None:
    stop = EndsWith(*common_tokens(llama, ONE, 2))
    expected = own_generate(llama, **ONE, max_new_tokens=24, stopping_criteria=[stop])
    assert expected.shape[1] < 9 + 24
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length)
    assert torch.equal(llama.generate(**ONE, max_new_tokens=24, stopping_criteria=[stop]), expected)


@pytest.mark.parametrize("draft_length", [0, 3, 8])
def test_a_custom_criterion_stops_every_row_of_a_batch_by_itself(llama: Any, draft_length: int) -> None:
    *stops, end = common_tokens(llama, BATCH, 4)
    request = {**BATCH, "max_new_tokens": 24, "eos_token_id": end, "stopping_criteria": [EndsWith(*stops)]}
    expected = own_generate(llama, **request)
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length)
    assert torch.equal(llama.generate(**request), expected)
    counts = [(row == PAD).sum() for row in expected[:, -24:]]
    assert len({int(count) for count in counts}) > 1


def test_ready_made_criteria_work(wrapped: Any, tokenizer: Any) -> None:
    stop = StopStringCriteria(tokenizer, [tokenizer.decode(common_tokens(wrapped, ONE, 1))])
    expected = own_generate(wrapped, **ONE, max_new_tokens=24, stopping_criteria=[stop])
    assert expected.shape[1] < 9 + 24
    assert torch.equal(wrapped.generate(**ONE, max_new_tokens=24, stopping_criteria=[stop]), expected)
    hour = [MaxTimeCriteria(3600.0)]
    assert wrapped.generate(**ONE, max_new_tokens=5, stopping_criteria=hour).shape[1] == 14
    assert wrapped.generate(**ONE, max_new_tokens=5, max_time=1e-9).shape[1] == 10


# --- events and statistics


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}])
@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_events_and_statistics_add_up_to_the_text(
    llama: Any, sampling: dict[str, Any], acceptance: str
) -> None:
    ends = common_tokens(llama, BATCH, 2)
    selfspec.wrap(llama, **SETTINGS, acceptance=acceptance)
    events: list[selfspec.RoundEvent] = []
    out = text(llama, **BATCH, max_new_tokens=24, eos_token_id=ends, on_round=events.append, **sampling)
    width = BATCH["input_ids"].shape[1]
    for row, tokens in enumerate(out[:, width:].tolist()):
        mine = [event for event in events if event.row == row]
        committed = [token for event in mine for token in event.committed]
        assert committed == tokens[: len(committed)]
        assert tokens[len(committed) :] == [PAD] * (len(tokens) - len(committed))
        assert len(committed) == 24 or committed[-1] in ends
    for event in events:
        assert event.accepted <= len(event.drafted)
        assert event.drafted[: event.accepted] == event.committed[: event.accepted]
        assert len(event.committed) in (event.accepted, event.accepted + 1)
    stats = llama.speculation.stats
    assert stats.tokens == sum(len(event.committed) for event in events)
    assert stats.drafted == sum(len(event.drafted) for event in events)
    assert stats.accepted == sum(event.accepted for event in events)
    assert stats.row_rounds == len(events)
    assert stats.rounds == max(sum(event.row == row for event in events) for row in range(3))
    assert (stats.calls, stats.exit_layer, stats.draft_length, stats.choice) == (1, 2, 3, "as configured")
    assert 0 < stats.prefill_seconds < stats.seconds


def test_totals_sum_the_calls(wrapped: Any) -> None:
    tokens = 0
    for count in (4, 9):
        wrapped.generate(**BATCH, max_new_tokens=count)
        tokens += wrapped.speculation.stats.tokens
    total = wrapped.speculation.total
    assert (total.calls, total.tokens, tokens) == (2, 39, 39)


# --- pipelines


def test_a_pipeline_is_speculated_and_says_the_same(llama: Any, tokenizer: Any) -> None:
    prompts = ["def", "hello", "x"]
    options = {"max_new_tokens": 10, "do_sample": False, "return_full_text": False}
    plain = pipeline("text-generation", model=llama, tokenizer=tokenizer)
    expected = [plain(prompts, batch_size=size, **options) for size in (1, 3)]
    selfspec.wrap(llama, **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast = pipeline("text-generation", model=llama, tokenizer=tokenizer)
        assert [fast(prompts, batch_size=size, **options) for size in (1, 3)] == expected
    assert llama.speculation.total.calls == 4
    assert llama.speculation.total.drafted > 0


# --- one call on a model that is not wrapped


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


# --- what cannot be speculated


def prefix_fn(batch: int, ids: Tensor) -> list[int]:
    return [i for i in range(VOCAB) if (i + batch) % 2]


def own_loop(model: Any, input_ids: Tensor, **_: Any) -> Tensor:
    return input_ids.repeat(1, 2)


def roll(ids: Tensor, scores: Tensor) -> Tensor:
    return scores.roll(1, dims=-1)


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
