"""Whoever drafts, however far and however wide: the text is the target's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from checks import own_generate, text, texts_of
from fake_drafters import use_scripted_drafts
from strategies import CHAINS, EVERY, OWN_TREE, TREES, costs_under_which_drafts_pay, with_repeats
from streams import Recorder
from tiny_models import PAD, VARIANTS, VOCAB, random_prompts, tiny_model
from torch import Tensor
from transformers import DynamicCache

import selfspec
from layer_skip.families import FAMILIES
from selfspec import speculation
from selfspec.tuning import knowledge

ONE, THREE = with_repeats(random_prompts(14)), with_repeats(random_prompts(9, 21, 2, seed=1))
PLAIN = {"draft_length": 0}


@pytest.fixture(autouse=True)
def drafts_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "time_passes", costs_under_which_drafts_pay)
    monkeypatch.setattr(knowledge, "_PRIOR_AGREEMENT", 0.9)  # so that "auto" tries what it does not know


def test_every_strategy_really_drafts_and_trees_really_branch(llama: Any) -> None:
    """The tests below would pass for strategies that never draft."""
    for setting in EVERY:
        selfspec.wrap(llama, **setting)
        events: list[Any] = []
        llama.generate(**ONE, max_new_tokens=24, on_round=events.append)
        stats = llama.speculation.stats
        assert stats.drafted > 0, setting
        if "tree" in setting:
            assert any(len(e.drafted) > e.deepest for e in events), setting
        else:
            assert all(len(e.drafted) == e.deepest for e in events), setting


@pytest.mark.parametrize("prompts", [ONE, THREE], ids=["one row", "three rows"])
def test_greedy_text_is_the_models_own_for_every_strategy(family: str, prompts: dict[str, Tensor]) -> None:
    model = tiny_model(family)
    request = {**prompts, "max_new_tokens": 12}
    expected = own_generate(model, **request)
    # Alone every second setting, other ones in every second family; together all.
    settings = EVERY if prompts is THREE else EVERY[len(family) % 2 :: 2]
    for setting, out in texts_of(model, settings, **request):
        assert torch.equal(out, expected), setting


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_greedy_text_is_the_models_own_in_every_family(name: str) -> None:
    """A covering choice: each family under a few settings, each setting in a few families."""
    model = tiny_model(name)
    number = [*FAMILIES, *VARIANTS].index(name)
    settings = [CHAINS[number % len(CHAINS)]]
    if not name.startswith("mpt"):
        settings.append(TREES[number % len(TREES)])  # 11 chains and 10 trees: all pairs come up
    request = {**THREE, "max_new_tokens": 10}
    expected = own_generate(model, **request)
    for setting, out in texts_of(model, settings, **request):
        assert torch.equal(out, expected), setting


SAMPLING = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "max_new_tokens": 12}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
def test_coupled_text_is_the_same_for_every_strategy_tree_and_batch(family: str) -> None:
    model = tiny_model(family)
    (_, plain), *_ = texts_of(model, [PLAIN], **THREE, **SAMPLING)
    for number, (setting, out) in enumerate(texts_of(model, EVERY, **THREE, **SAMPLING)):
        assert torch.equal(out, plain), setting
        if number % 7 == len(family) % 7:
            for row in range(3):
                mask = THREE["attention_mask"][row].bool()
                alone = text(model, THREE["input_ids"][row][mask][None], **SAMPLING)
                assert torch.equal(alone[0, -12:], plain[row, -12:]), (setting, row)


@selfspec.rowwise
def reads_the_prefix(ids: Tensor, scores: Tensor) -> Tensor:
    """Forbids a token that depends on the sum of the prefix, and makes its last one unlikely."""
    scores = scores.clone()
    for row, prefix in enumerate(ids.tolist()):
        scores[row, sum(prefix) % VOCAB] = -float("inf")
        scores[row, prefix[-1]] -= 3.0
    return scores


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"logits_processor": [reads_the_prefix]},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": list(range(1, 30))},
    ],
    ids=["repetition penalty", "custom", "n-grams and end tokens"],
)
@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "coupled"])
def test_processors_that_read_the_prefix_read_that_of_their_branch(
    llama: Any, options: dict[str, Any], sampling: dict[str, Any]
) -> None:
    request = {**THREE, "max_new_tokens": 12, **sampling, **options}
    if sampling:
        (_, expected), *_ = texts_of(llama, [PLAIN], **request)
    else:
        expected = own_generate(llama, **request)
    for setting, out in texts_of(llama, [*TREES[::2], *CHAINS[2:9:3]], **request):
        assert torch.equal(out, expected), setting


@pytest.mark.parametrize("setting", [TREES[0], TREES[4], TREES[6], CHAINS[6]], ids=str)
def test_streams_and_returned_caches_are_those_of_plain_decoding(llama: Any, setting: dict[str, Any]) -> None:
    mine, plain = Recorder(), Recorder()
    own_generate(llama, **ONE, max_new_tokens=12, streamer=plain)
    selfspec.wrap(llama, **setting)
    out = llama.generate(**ONE, max_new_tokens=12, streamer=mine, return_dict_in_generate=True)
    assert mine.log == plain.log
    fresh = DynamicCache()
    with torch.no_grad():
        llama(out.sequences[:, :-1], past_key_values=fresh)
        again = llama(out.sequences[:, -1:], past_key_values=out.past_key_values).logits
        expected = llama(out.sequences).logits[:, -1:]
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1]
    for layer, kept in zip(fresh.layers, out.past_key_values.layers, strict=True):
        torch.testing.assert_close(kept.keys[:, :, :-1], layer.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(kept.values[:, :, :-1], layer.values, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("setting", [TREES[0], TREES[4], CHAINS[6]], ids=str)
def test_a_batch_streams_as_without_trees(llama: Any, setting: dict[str, Any]) -> None:
    mine = Recorder()
    expected = own_generate(llama, **THREE, max_new_tokens=12)
    selfspec.wrap(llama, **setting)
    out = llama.generate(**THREE, max_new_tokens=12, streamer=mine)
    assert torch.equal(out, expected)
    assert mine.log == [THREE["input_ids"].tolist(), *expected[:, -12:].T.tolist(), "end"]


@pytest.mark.parametrize("tree", ["chain", "siblings", OWN_TREE], ids=str)
def test_a_text_ends_at_an_end_token_inside_an_accepted_branch(
    llama: Any, monkeypatch: pytest.MonkeyPatch, tree: Any
) -> None:
    prompts = random_prompts(9, 4)
    texts = own_generate(llama, **prompts, max_new_tokens=20)[:, -20:].tolist()
    end = next(t for t in texts[0][5:] if texts[0].index(t) % 4 == 1)  # the second of a round's four tokens
    where = texts[0].index(end)
    use_scripted_drafts(monkeypatch, texts, lambda row, index: True, VOCAB)
    expected = own_generate(llama, **prompts, max_new_tokens=20, eos_token_id=end)
    selfspec.wrap(llama, exit_layer=2, draft_length=3, tree=tree)
    events: list[Any] = []
    out = llama.generate(**prompts, max_new_tokens=20, eos_token_id=end, on_round=events.append)
    assert torch.equal(out, expected)
    last = [event for event in events if event.row == 0][-1]
    assert last.committed[-1] == end
    assert last.accepted == len(last.committed) == 2  # the tokens after it stood as well, and are dropped
    assert out[0, prompts["input_ids"].shape[1] + where + 1 :].tolist() == [PAD] * (
        out.shape[1] - 9 - where - 1
    )


def test_the_length_limit_may_end_inside_an_accepted_branch(llama: Any) -> None:
    for tokens in (1, 2, 3, 5):
        expected = own_generate(llama, **THREE, max_new_tokens=tokens)
        for setting, out in texts_of(llama, [TREES[0], TREES[4], TREES[6]], **THREE, max_new_tokens=tokens):
            assert torch.equal(out, expected), (setting, tokens)


def test_trees_are_refused_where_candidates_cannot_share_a_position() -> None:
    model = tiny_model("mpt")
    for tree in ("siblings", OWN_TREE):
        with pytest.raises(selfspec.ConfigError, match="no two candidates may share a position; use 'chain'"):
            selfspec.wrap(model, tree=tree)
    assert not selfspec.is_wrapped(model)


def test_ranks_say_which_candidate_stood(llama: Any) -> None:
    selfspec.wrap(llama, **TREES[3])
    events: list[Any] = []
    llama.generate(**THREE, max_new_tokens=40, on_round=events.append)
    ranks = Counter(rank for event in events for rank in event.ranks)
    assert set(ranks) == {0, 1}
    assert all(rank == 0 for event in events for rank in event.ranks[:-1])  # a sibling has no children
    assert all(len(event.ranks) == event.accepted for event in events)
    assert sum(ranks.values()) == llama.speculation.stats.accepted


@pytest.mark.parametrize("draft", ["auto", "early_exit", "low_bit", "lookup", "hybrid"])
def test_a_draft_length_of_0_is_plain_decoding_in_every_strategy(llama: Any, draft: str) -> None:
    request = {**ONE, "max_new_tokens": 12}
    selfspec.wrap(llama, draft=draft, draft_length=0)
    assert torch.equal(llama.generate(**request), own_generate(llama, **request))
    stats = llama.speculation.stats
    assert (stats.drafted, stats.strategy, stats.rounds) == (0, "plain", 12)
