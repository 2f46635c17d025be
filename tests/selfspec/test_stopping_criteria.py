"""Stopping criteria of the caller's own, asked as the model's own loop asks them, though rows run ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import EVERYTHING, exactly_one_warning, own_generate
from criteria import Crowd, EndsWith, Patience, Sure
from strategies import KINDS
from streams import Recorder
from tiny_models import PAD, random_prompts
from torch import Tensor
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

import selfspec
from selfspec.rows import RoundEvent

NEW = 24
BATCH = random_prompts(6, 11, 3)
WIDTH = 11


def frequent(model: Any, count: int, prompts: dict[str, Tensor] = BATCH) -> list[int]:
    out = own_generate(model, **prompts, max_new_tokens=NEW)[:, -NEW:]
    values, counts = out.unique(return_counts=True)
    return values[counts.argsort(descending=True)][:count].tolist()


def ends(model: Any, with_end: bool) -> dict[str, Any]:
    """A request for which one frequent token ends a row, or none does."""
    return {**BATCH, "max_new_tokens": NEW, **({"eos_token_id": frequent(model, 3)[-1:]} if with_end else {})}


def both(
    model: Any, setting: dict[str, Any], criterion: Callable[[], Any], request: dict[str, Any]
) -> list[tuple[Any, Any, list[Any]]]:
    """What the model's own generate and a speculated call do: output, criterion, what was streamed."""
    done = []
    for speculated in (False, True):
        if speculated:
            selfspec.wrap(model, **setting, strict=True)
        asked, streamer = criterion(), Recorder()
        generate = model.generate if speculated else lambda **request: own_generate(model, **request)
        out = generate(**request, stopping_criteria=[asked], streamer=streamer)
        done.append((out, asked, streamer.log))
    assert model.speculation.total.calls == 1
    return done


@pytest.mark.parametrize("setting", KINDS, ids=str)
@pytest.mark.parametrize("with_end", [True, False], ids=["end token", "no end token"])
def test_a_criterion_that_looks_at_all_rows_is_asked_what_the_models_own_loop_asks(
    llama: Any, setting: dict[str, Any], with_end: bool
) -> None:
    (expected, own, streamed), (out, ours, log) = both(
        llama, setting, lambda: Crowd(often=9), ends(llama, with_end)
    )
    assert torch.equal(out, expected)
    assert ours.asked == own.asked
    assert log == streamed
    assert expected.shape[1] < WIDTH + NEW


@pytest.mark.parametrize("with_end", [True, False], ids=["end token", "no end token"])
@pytest.mark.parametrize("setting", KINDS[1:5], ids=str)
def test_scores_logits_and_the_cache_are_those_of_the_text_that_stays(
    llama: Any, setting: dict[str, Any], with_end: bool
) -> None:
    request = {**ends(llama, with_end), **EVERYTHING, "repetition_penalty": 1.1}
    criterion = selfspec.rowwise(EndsWith(*frequent(llama, 2)))
    (expected, _, streamed), (out, _, log) = both(llama, setting, lambda: criterion, request)
    assert torch.equal(out.sequences, expected.sequences)
    assert log == streamed
    for name in ("scores", "logits"):
        for mine, own in zip(out[name], expected[name], strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-5)
    lengths = (out.sequences[:, WIDTH:] != PAD).sum(dim=1)
    for mine, own in zip(out.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert mine.keys.shape == own.keys.shape
        for row, pads in enumerate([5, 0, 8]):
            end = WIDTH + int(lengths[row]) - 1
            torch.testing.assert_close(
                mine.keys[row, :, pads:end], own.keys[row, :, pads:end], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("setting", KINDS[:4], ids=str)
def test_a_criterion_that_reads_scores_gets_those_of_every_step(
    llama: Any, setting: dict[str, Any], rows: int
) -> None:
    prompts = {name: tensor[:rows] for name, tensor in BATCH.items()}
    request = {**prompts, "max_new_tokens": NEW, **EVERYTHING}
    (expected, own, _), (out, ours, _) = both(llama, setting, lambda: Sure(lead=0.25), request)
    assert torch.equal(out.sequences, expected.sequences)
    assert 1 < len(expected.scores) < NEW
    assert [len(given) for given in ours.given] == [len(given) for given in own.given]
    for mine, theirs in zip(ours.given[-1], own.given[-1], strict=True):
        assert not mine.is_inference()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_scores_are_not_given_where_the_call_does_not_return_them(llama: Any) -> None:
    request = {**BATCH, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    for _, criterion, _ in both(llama, KINDS[1], lambda: Sure(lead=0.0), request):
        assert criterion.given == [None] * 4


def test_scores_of_ended_rows_are_left_to_the_model_unless_nobody_reads_them(llama: Any) -> None:
    request = {**ends(llama, True), **EVERYTHING}
    expected = own_generate(llama, **request, stopping_criteria=[Sure(0.35)])
    selfspec.wrap(llama, exit_layer=2, draft_length=3)
    with exactly_one_warning(naming="the stopping criterion Sure over several rows with output_scores=True"):
        out = llama.generate(**request, stopping_criteria=[Sure(0.35)])
    assert torch.equal(out.sequences, expected.sequences)
    marked = selfspec.rowwise(Sure(0.35))
    assert torch.equal(llama.generate(**request, stopping_criteria=[marked]).sequences, expected.sequences)
    assert llama.speculation.total.calls == 1
    for scores, tokens in zip(marked.given[-1], expected.sequences[:, WIDTH:].T, strict=True):
        assert (scores == 0).all(dim=1).tolist() == (tokens == PAD).tolist()
    assert (expected.sequences[:, WIDTH:] == PAD).any()


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("acceptance", "setting"),
    [*(("coupled", setting) for setting in KINDS[1:4]), ("rejection", KINDS[1])],
    ids=str,
)
def test_events_and_statistics_add_up_to_the_text_that_stays(
    llama: Any, setting: dict[str, Any], acceptance: str, sampling: dict[str, Any]
) -> None:
    stop, end = frequent(llama, 2)
    selfspec.wrap(llama, **setting, acceptance=acceptance, strict=True)
    events: list[RoundEvent] = []
    torch.manual_seed(0)
    out = llama.generate(
        **BATCH,
        max_new_tokens=NEW,
        eos_token_id=end,
        stopping_criteria=[EndsWith(stop, *range(60, 80))],
        on_round=events.append,
        **sampling,
    )
    for row, tokens in enumerate(out[:, WIDTH:].tolist()):
        committed = [token for event in events if event.row == row for token in event.committed]
        assert committed == tokens[: len(committed)]
        assert tokens[len(committed) :] == [PAD] * (len(tokens) - len(committed))
    stats = llama.speculation.stats
    assert stats.tokens == sum(len(event.committed) for event in events)
    assert stats.drafted == sum(len(event.drafted) for event in events)
    assert stats.draft_depths == sum(event.deepest for event in events)
    assert stats.accepted == sum(event.accepted for event in events)
    assert stats.row_rounds == len(events)


@pytest.mark.parametrize("setting", KINDS[1:], ids=str)
def test_sampled_text_is_that_of_plain_decoding_cut_where_it_is_stopped(
    llama: Any, setting: dict[str, Any]
) -> None:
    request = {**BATCH, "max_new_tokens": NEW, "do_sample": True, "eos_token_id": 5}
    texts, asked = [], []
    for each in (KINDS[0], setting):
        selfspec.wrap(llama, **each, strict=True)
        criterion = Crowd(often=3)
        torch.manual_seed(0)
        texts.append(llama.generate(**request, stopping_criteria=[criterion]))
        asked.append(criterion.asked)
    assert torch.equal(*texts)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("with_end", [True, False], ids=["end token", "no end token"])
def test_a_plain_bool_is_an_answer_for_all_rows_which_then_leave(llama: Any, with_end: bool) -> None:
    request = {**BATCH, "max_new_tokens": NEW, **({"eos_token_id": 5} if with_end else {})}
    (expected, *_), (out, *_) = both(llama, KINDS[1], lambda: Patience(7), request)
    assert torch.equal(out, expected)
    assert out.shape[1] == WIDTH + 7
    assert llama.speculation.stats.rounds <= 7


def raises(ids: Tensor, scores: Any) -> Tensor:
    if ids.shape[1] >= WIDTH + 5:
        raise KeyError("the criterion broke")
    return torch.zeros(len(ids), dtype=torch.bool)


ODD: dict[str, Callable[[Tensor, Any], Any]] = {
    "raises": raises,
    "a column": lambda ids, scores: (ids[:, -1:] % 2) == 0,
    "one for all": lambda ids, scores: torch.tensor([ids.shape[1] > WIDTH + 4]),
    "too many": lambda ids, scores: torch.zeros(len(ids) + 1, dtype=torch.bool),
    "whole numbers": lambda ids, scores: (ids[:, -1] % 2).long(),
    "fractions": lambda ids, scores: ids[:, -1] / 2,
    "nothing": lambda ids, scores: None,
}


@pytest.mark.parametrize("with_end", [True, False], ids=["end token", "no end token"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ODD)
def test_odd_answers_do_or_break_what_they_do_in_the_models_own_loop(
    llama: Any, name: str, rows: int, with_end: bool
) -> None:
    request: dict[str, Any] = {key: tensor[:rows] for key, tensor in BATCH.items()}
    request |= {"max_new_tokens": 9, "stopping_criteria": [ODD[name]]}
    request |= {"eos_token_id": 5} if with_end else {}
    outcomes: list[Any] = []
    selfspec.wrap(llama, **KINDS[1], strict=True)
    for generate in (lambda **request: own_generate(llama, **request), llama.generate):
        try:
            outcomes.append(generate(**request).tolist())
        except (KeyError, RuntimeError, TypeError) as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("limit", [EosTokenCriteria, MaxLengthCriteria])
def test_a_criterion_that_is_made_of_a_known_one_is_asked_all_the_same(llama: Any, limit: Any) -> None:
    class Own(limit):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= WIDTH + 6)

    known = 3 if limit is MaxLengthCriteria else frequent(llama, 1)[0]
    request = {**BATCH, "max_new_tokens": NEW, "pad_token_id": PAD}
    (expected, *_), (out, *_) = both(llama, KINDS[1], lambda: Own(known), request)
    assert torch.equal(out, expected)
    assert out.shape[1] == WIDTH + 6


def test_time_runs_out_for_all_rows_at_once(llama: Any) -> None:
    selfspec.wrap(llama, **KINDS[1], strict=True)
    for end in ({}, {"eos_token_id": 5}):
        assert llama.generate(**BATCH, max_new_tokens=NEW, max_time=1e-9, **end).shape[1] == WIDTH + 1
