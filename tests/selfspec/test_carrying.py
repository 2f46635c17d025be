"""Caches that come with a call and go back out: the next turn goes on where the last one ended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checks import exactly_one_warning, own_generate, text
from tiny_models import PAD, random_prompts, tiny_model
from torch import Tensor
from transformers import DynamicCache, StaticCache

import selfspec
from selfspec.cache import KVCache
from selfspec.carrying import add, load

ONE, BATCH = random_prompts(9), random_prompts(6, 11, 3)
SETTINGS = {"exit_layer": 2, "draft_length": 3, "strict": True}
MORE = torch.tensor([[5, 17, 29, 3, 8]])


def turn(prompts: dict[str, Tensor], text: Tensor, more: Tensor) -> dict[str, Tensor]:
    """The next turn as chat code writes it: all of the text so far, and what the user says."""
    ids = torch.cat([text, more.expand(len(text), -1)], dim=1)
    new = ids.shape[1] - prompts["attention_mask"].shape[1]
    ones = prompts["attention_mask"].new_ones(len(ids), new)
    return {"input_ids": ids, "attention_mask": torch.cat([prompts["attention_mask"], ones], dim=1)}


def assert_same_cache(actual: Any, expected: Any, mask: Tensor) -> None:
    """Layer by layer, at every column that is not padding; sliding layers hold the last ones alone."""
    assert actual.get_seq_length() == expected.get_seq_length()
    generated = max(0, actual.get_seq_length() - mask.shape[1])
    mask = torch.nn.functional.pad(mask, (0, generated), value=1)
    assert len(actual.layers) == len(expected.layers)
    for mine, own in zip(actual.layers, expected.layers, strict=True):
        for one, other in ((mine.keys, own.keys), (mine.values, own.values)):
            held = min(one.shape[2], other.shape[2])
            one, other = one[:, :, -held:], other[:, :, -held:]
            seen = mask[:, : actual.get_seq_length()][:, -held:].bool()[:, None, :, None]
            torch.testing.assert_close(one * seen, other * seen, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prompts", [ONE, BATCH], ids=["one row", "batch"])
@pytest.mark.parametrize("with_config", [False, True])
def test_a_conversation_over_one_cache_is_the_models_own(
    family: str, prompts: dict[str, Tensor], with_config: bool
) -> None:
    """Three turns; the callers cache is filled in place, as the model itself does."""
    model = tiny_model(family)
    config = {"config": model.config} if with_config else {}
    texts: dict[str, list[Tensor]] = {"own": [], "ours": []}
    caches = {who: DynamicCache(**config) for who in texts}
    for who, generate in (("own", own_generate), ("ours", lambda model, **r: model.generate(**r))):
        if who == "ours":
            selfspec.wrap(model, **SETTINGS)
        request = prompts
        for length in (12, 3, 8):
            out = generate(model, **request, past_key_values=caches[who], max_new_tokens=length)
            texts[who].append(out)
            request = turn(request, out, MORE)
    assert all(torch.equal(a, b) for a, b in zip(texts["own"], texts["ours"], strict=True))
    assert_same_cache(caches["ours"], caches["own"], request["attention_mask"])
    assert model.speculation.total.calls == 3


@pytest.mark.parametrize("prompts", [ONE, BATCH], ids=["one row", "batch"])
def test_known_tokens_are_not_run_again(llama: Any, prompts: dict[str, Tensor]) -> None:
    selfspec.wrap(llama, **SETTINGS)
    cache = DynamicCache()
    out = llama.generate(**prompts, past_key_values=cache, max_new_tokens=6)
    seen: list[int] = []
    hook = llama.model.layers[3].mlp.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1]))
    llama.generate(**turn(prompts, out, MORE), past_key_values=cache, max_new_tokens=1)
    hook.remove()
    rows = len(out)
    assert seen[:rows] == [MORE.shape[1]] * rows  # the last token of the first turn, and all new but one


def test_only_what_is_new_may_be_passed(llama: Any) -> None:
    """Then the mask is longer than the ids, and only new tokens come back."""
    for prompts in (ONE, BATCH):
        caches = [DynamicCache(), DynamicCache()]
        outs = []
        for cache, generate in ((caches[0], own_generate), (caches[1], None)):
            if generate is None:
                selfspec.wrap(llama, **SETTINGS)
                generate = lambda model, **request: model.generate(**request)  # noqa: E731
            first = generate(llama, **prompts, past_key_values=cache, max_new_tokens=6)
            request = turn(prompts, first, MORE)
            request["input_ids"] = request["input_ids"][:, cache.get_seq_length() :]
            request["repetition_penalty"] = 1.5  # of the tokens that were passed
            outs.append(generate(llama, **request, past_key_values=cache, max_new_tokens=8))
        assert torch.equal(*outs)
        assert outs[0].shape[1] == 1 + MORE.shape[1] + 8
        assert_same_cache(caches[1], caches[0], request["attention_mask"])
        selfspec.unwrap(llama)


def test_sampled_text_does_not_depend_on_what_a_cache_holds_already(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    cache = DynamicCache()
    out = llama.generate(**BATCH, past_key_values=cache, max_new_tokens=6)
    request = {**turn(BATCH, out, MORE), "max_new_tokens": 10, "do_sample": True}
    expected = text(llama, **request)
    assert torch.equal(text(llama, **request, past_key_values=copy.deepcopy(cache)), expected)


@pytest.mark.parametrize("ended", [False, True])
def test_the_cache_of_a_batch_is_returned_as_the_models_own(family: str, ended: bool) -> None:
    model = tiny_model(family)
    request: dict[str, Any] = {**BATCH, "max_new_tokens": 12, "return_dict_in_generate": True}
    if ended:
        common = own_generate(model, **BATCH, max_new_tokens=12)[:, -12:].flatten().bincount()
        request["eos_token_id"] = common.topk(2).indices.tolist()
    own = own_generate(model, **request)
    out = selfspec.wrap(model, **SETTINGS).generate(**request)
    assert torch.equal(out.sequences, own.sequences)
    mask = turn(BATCH, own.sequences, MORE)["attention_mask"]
    assert_same_cache(out.past_key_values, own.past_key_values, mask)


def test_scores_of_a_second_turn_are_the_models_own(llama: Any) -> None:
    first = own_generate(llama, **BATCH, max_new_tokens=6, return_dict_in_generate=True)
    request = {**turn(BATCH, first.sequences, MORE), "max_new_tokens": 8, "eos_token_id": 11}
    request |= {"output_scores": True, "return_dict_in_generate": True}
    own = own_generate(llama, **request, past_key_values=copy.deepcopy(first.past_key_values))
    selfspec.wrap(llama, **SETTINGS)
    out = llama.generate(**request, past_key_values=copy.deepcopy(first.past_key_values))
    assert torch.equal(out.sequences, own.sequences)
    for mine, theirs in zip(out.scores, own.scores, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bound", [False, True])
def test_a_cache_that_cannot_be_read_is_left_to_the_model_itself(llama: Any, bound: bool) -> None:
    ids = ONE["input_ids"]
    whole, mask = {"input_ids": ids}, torch.ones_like(ids)
    cases: dict[str, tuple[Any, dict[str, Tensor]]] = {
        "in a StaticCache": (lambda: StaticCache(config=llama.config, max_cache_len=40), whole),
        "9 input_ids and an attention_mask of 12": (
            lambda: llama(ids[:, :5]).past_key_values,
            {"input_ids": ids, "attention_mask": torch.ones(1, 12, dtype=torch.int64)},
        ),
        "with an attention_mask that has gaps": (
            lambda: llama(ids[:, :5]).past_key_values,
            {"input_ids": ids, "attention_mask": mask.index_fill(1, torch.tensor(3), 0)},
        ),
    }
    for naming, (make, prompts) in cases.items():
        with torch.no_grad():
            caches = make(), make()
            try:
                expected: Any = own_generate(llama, **prompts, past_key_values=caches[0], max_new_tokens=6)
            except (RuntimeError, ValueError, IndexError) as error:
                expected = type(error)
            request = {**prompts, "past_key_values": caches[1], "max_new_tokens": 6}
            if bound:
                request["custom_generate"] = selfspec.generate
            elif not selfspec.is_wrapped(llama):
                selfspec.wrap(llama, exit_layer=2, draft_length=3)
            with exactly_one_warning(naming=naming):
                if isinstance(expected, Tensor):
                    assert torch.equal(llama.generate(**request), expected), naming
                else:
                    with pytest.raises(expected):
                        llama.generate(**request)
        if isinstance(expected, Tensor):
            assert caches[1].get_seq_length() == caches[0].get_seq_length()


def test_an_empty_cache_is_filled_by_a_bound_call_too(llama: Any) -> None:
    caches = DynamicCache(), DynamicCache()
    expected = own_generate(llama, **BATCH, past_key_values=caches[0], max_new_tokens=6)
    out = llama.generate(
        **BATCH, past_key_values=caches[1], max_new_tokens=6, custom_generate=selfspec.generate
    )
    assert torch.equal(out, expected)
    assert_same_cache(caches[1], caches[0], turn(BATCH, out, MORE)["attention_mask"])


# --- the copying


@pytest.mark.parametrize("held", [7, 4])
def test_columns_go_to_slots_and_back(held: int) -> None:
    """`held`: how many of seven columns a cache kept, all or the last ones alone."""
    pads, known = [0, 2, 5], 7
    cache = DynamicCache()
    keys, values = torch.randn(3, 2, known, 4), torch.randn(3, 2, known, 3)
    cache.update(keys[:, :, known - held :], values[:, :, known - held :], 0)
    into = KVCache(3, 1, 4)
    load(cache, into, pads, known)
    assert into.capacity >= known
    for row, pad in enumerate(pads):
        first = max(pad, known - held)
        assert torch.equal(into.keys[0][row, :, first - pad : known - pad], keys[row, :, first:])
        assert torch.equal(into.values[0][row, :, first - pad : known - pad], values[row, :, first:])
        assert not into.keys[0][row, :, known - pad :].any()
    back = DynamicCache()
    back.update(keys[:, :, :5], values[:, :, :5], 0)
    add(back, into, pads, 5, known)
    seen = (torch.arange(known) >= torch.tensor(pads)[:, None])[:, None, :, None]
    assert torch.equal(back.layers[0].keys[:, :, 5:], (keys * seen)[:, :, 5:])
    assert torch.equal(back.layers[0].values[:, :, 5:], (values * seen)[:, :, 5:])


def test_a_row_that_was_padding_alone_in_the_first_turn_begins_in_the_second(llama: Any) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [PAD, PAD, PAD, PAD, 11, 12]])
    with torch.no_grad():
        cache = llama(ids[:, :3], attention_mask=mask[:, :3]).past_key_values
    request = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8}
    expected = own_generate(llama, **request)
    out = selfspec.wrap(llama, **SETTINGS).generate(**request, past_key_values=cache)
    assert torch.equal(out, expected)
