"""Hugging Face's generate() on the outside: arguments, outputs, streamers, events, pipelines."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from checks import common_tokens, own_generate, text
from criteria import EndsWith
from streams import Recorder
from tiny_models import PAD, random_prompts, tiny_model
from torch import Tensor
from transformers import (
    GenerationConfig,
    MaxTimeCriteria,
    StopStringCriteria,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import selfspec

SETTINGS = {"exit_layer": 2, "draft_length": 3}
ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)


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
