"""Bad input: a clear error, nothing changed, nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import nothing_changed, own_generate
from streams import Failing, Recorder, failing_processor
from tiny_models import VOCAB, random_prompts, tiny_model
from torch import Tensor

import selfspec

PROMPTS = random_prompts(9, 4)
IDS, MASK = PROMPTS["input_ids"], PROMPTS["attention_mask"]
ONE = IDS[:1]
REQUEST = {**PROMPTS, "max_new_tokens": 10}
MODES = {
    "greedy": ({}, {}),
    "coupled": ({}, {"do_sample": True}),
    "rejection": ({"acceptance": "rejection"}, {"do_sample": True}),
}


@pytest.fixture
def wrapped(llama: Any) -> Any:
    return selfspec.wrap(llama, exit_layer=2, draft_length=3)


def nan_at(token: int, after: int) -> Any:
    """A processor that breaks one score once the text has `after` tokens."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if ids.shape[1] >= after:
            scores = scores.clone()
            scores[:, token] = float("nan")
        return scores

    return selfspec.rowwise(process)


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"input_ids": ONE[:, :0]}, "the prompt is empty: pass at least one token"),
    "no prompt": ({}, "`bos_token_id` has to be defined when no `input_ids` are provided"),
    "prompt longer than the positions": (
        {"input_ids": torch.ones(1, 300, dtype=torch.int64)},
        "the prompt has 300 tokens, the model 256 positions: shorten it",
    ),
    "token past the vocabulary": (
        {"input_ids": torch.tensor([[5, VOCAB]])},
        f"token id {VOCAB} is outside the model's vocabulary of {VOCAB}",
    ),
    "negative token": ({"input_ids": torch.tensor([[5, -1]])}, "token id -1 is outside"),
    "right padding": ({"input_ids": IDS, "attention_mask": MASK.flip(1)}, "needs padding_side='left'"),
    "mask of another length": (
        {"input_ids": ONE, "attention_mask": torch.ones(1, 7, dtype=torch.int64)},
        r"attention_mask has shape \[1, 7\], the prompts \[1, 9\]",
    ),
    "mask of another length with padding": (
        {"input_ids": IDS, "attention_mask": MASK[:, 2:]},
        r"attention_mask has shape \[2, 7\], the prompts \[2, 9\]",
    ),
    "mask for another batch": (
        {"input_ids": ONE, "attention_mask": torch.ones(2, 9, dtype=torch.int64)},
        r"attention_mask has shape \[2, 9\], the prompts \[1, 9\]",
    ),
    "mask of three dimensions": (
        {"input_ids": ONE, "attention_mask": torch.ones(1, 9, 9)},
        r"attention_mask",
    ),
    "row of padding only": (
        {"input_ids": IDS, "attention_mask": MASK * torch.tensor([[1], [0]])},
        "a row is padding only: every prompt needs at least one token",
    ),
    "temperature 0": ({"input_ids": ONE, "do_sample": True, "temperature": 0.0}, "strictly positive float"),
    "negative temperature": (
        {"input_ids": ONE, "do_sample": True, "temperature": -1.0},
        "strictly positive float",
    ),
    "top-p out of range": ({"input_ids": ONE, "do_sample": True, "top_p": -0.5}, "`top_p` has to be a float"),
    "no new tokens": ({"input_ids": ONE, "max_new_tokens": 0}, "must be greater than 0"),
    "negative new tokens": ({"input_ids": ONE, "max_new_tokens": -1}, "must be greater than 0"),
    "max_length below the prompt": (
        {"input_ids": ONE, "max_length": 5, "max_new_tokens": None},
        "`max_length` is set to 5",
    ),
    "unknown argument": ({"input_ids": ONE, "colour": "red"}, r"\['colour'\]"),
    "several greedy sequences": ({"input_ids": ONE, "num_return_sequences": 2}, "num_return_sequences"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_a_clear_error_and_nothing_is_changed(wrapped: Any, case: str) -> None:
    request, message = BAD_REQUESTS[case]
    with nothing_changed(wrapped, **REQUEST), pytest.raises(ValueError, match=message):
        wrapped.generate(**{"max_new_tokens": 10, **request})


# generate() itself looks at masks, or drops them, before it calls a decoding method.
@pytest.mark.parametrize("case", [case for case in BAD_REQUESTS if not case.startswith("mask ")])
def test_a_bad_request_of_a_bound_call_is_as_clear(llama: Any, case: str) -> None:
    request, message = BAD_REQUESTS[case]
    with nothing_changed(llama, **REQUEST), pytest.raises(ValueError, match=message):
        llama.generate(**{"max_new_tokens": 10, **request}, custom_generate=selfspec.generate)


def test_a_bad_prompt_is_refused_before_anything_is_streamed(wrapped: Any) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        wrapped.generate(torch.tensor([[VOCAB]]), max_new_tokens=3, streamer=recorder)
    assert recorder.log == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draft_length", [0, 3])
@pytest.mark.parametrize("after", [0, 13])
def test_nan_from_a_processor_is_an_error_in_every_mode(
    llama: Any, mode: str, draft_length: int, after: int
) -> None:
    settings, sampling = MODES[mode]
    selfspec.wrap(llama, exit_layer=2, draft_length=draft_length, **settings)
    with (
        nothing_changed(llama, **REQUEST, **sampling),
        pytest.raises(ValueError, match="the scores hold NaN after the logits processors"),
    ):
        llama.generate(**REQUEST, logits_processor=[nan_at(5, after)], **sampling)


@pytest.mark.parametrize("mode", MODES)
def test_nan_from_the_weights_is_an_error_in_every_mode(llama: Any, mode: str) -> None:
    settings, sampling = MODES[mode]
    selfspec.wrap(llama, exit_layer=2, draft_length=3, **settings)
    with torch.no_grad():
        llama.model.layers[3].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="then the model's weights"):
        llama.generate(**REQUEST, **sampling)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("puts", [1, 2, 5])
def test_a_streamer_that_raises_half_way_leaves_the_model_usable(llama: Any, mode: str, puts: int) -> None:
    settings, sampling = MODES[mode]
    selfspec.wrap(llama, exit_layer=2, draft_length=3, **settings)
    llama.generate(**REQUEST, **sampling)
    calls = llama.speculation.total.calls
    with pytest.raises(RuntimeError, match="the streamer broke"):
        llama.generate(**REQUEST, streamer=Failing(puts), **sampling)
    assert llama.speculation.total.calls == calls
    with (
        nothing_changed(llama, **REQUEST, **sampling),
        pytest.raises(RuntimeError, match="the streamer broke"),
    ):
        llama.generate(**REQUEST, streamer=Failing(puts), **sampling)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls", [1, 4, 20])
def test_a_processor_that_raises_half_way_leaves_the_model_usable(llama: Any, mode: str, calls: int) -> None:
    settings, sampling = MODES[mode]
    selfspec.wrap(llama, exit_layer=2, draft_length=3, **settings)
    with (
        nothing_changed(llama, **REQUEST, **sampling),
        pytest.raises(RuntimeError, match="the processor broke"),
    ):
        llama.generate(**REQUEST, logits_processor=[failing_processor(calls)], **sampling)


def test_a_callback_that_raises_half_way_leaves_the_model_usable(wrapped: Any) -> None:
    def stop(event: selfspec.RoundEvent) -> None:
        raise KeyboardInterrupt

    with nothing_changed(wrapped, **REQUEST), pytest.raises(KeyboardInterrupt):
        wrapped.generate(**REQUEST, on_round=stop)


def test_scores_of_minus_infinity_everywhere_are_a_greedy_token_as_in_the_model_itself(wrapped: Any) -> None:
    @selfspec.rowwise
    def forbid_all(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -float("inf"))

    request = {"input_ids": ONE, "max_new_tokens": 4, "logits_processor": [forbid_all]}
    assert torch.equal(wrapped.generate(**request), own_generate(wrapped, **request))


@pytest.mark.parametrize("ids", [torch.tensor([1, 2, 3]), torch.tensor([[1.0, 2.0]])], ids=["1-d", "float"])
def test_ids_of_a_wrong_kind_fail_as_in_the_model_itself(wrapped: Any, ids: Tensor) -> None:
    with (
        nothing_changed(wrapped, **REQUEST),
        pytest.raises((IndexError, ValueError, TypeError, RuntimeError)),
    ):
        wrapped.generate(ids, max_new_tokens=3)
    assert torch.equal(
        wrapped.generate(ONE.to(torch.int32), max_new_tokens=6), wrapped.generate(ONE, max_new_tokens=6)
    )


def test_positions_that_a_model_does_not_have_are_refused_before_anything_is_generated() -> None:
    model = selfspec.wrap(tiny_model("gpt2", n_positions=16), exit_layer=2, draft_length=3)
    recorder = Recorder()
    with pytest.raises(ValueError, match="set max_new_tokens to at most 7"):
        model.generate(ONE, max_new_tokens=9, streamer=recorder)
    assert recorder.log == []
