"""Free drafts: what came after the last time that the text, or a corpus, read like this."""

from __future__ import annotations

import random
import statistics
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import padded, random_prompts

import selfspec
from selfspec.drafting.lookup import TOKENS_PER_MATCHED, Found, Lookup, MatchRates, as_columns
from selfspec.drafting.suffix_automaton import SuffixAutomaton
from selfspec.round import NOTHING
from selfspec.rows import Rows


def call_with(*prompts: list[int]) -> Any:
    """What a lookup sees of a call: its rows."""
    batch = padded(prompts)
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], 100, 80, eos_tokens=frozenset(), pad_token=0
    )
    return SimpleNamespace(rows=rows)


def test_it_finds_the_planted_continuation() -> None:
    call = call_with([1, 2, 3, 4, 5, 6, 9, 8, 1, 2, 3])
    assert Lookup(MatchRates()).find(call, 4) == [Found([4, 5, 6, 9], 3)]


def test_the_latest_of_the_longest_matches_is_followed() -> None:
    call = call_with([1, 2, 3, 30, 2, 3, 40, 1, 2, 3, 50, 2, 3, 60, 1, 2, 3])
    assert Lookup(MatchRates()).find(call, 1) == [Found([50], 3)]


@pytest.mark.parametrize("match", [1, 2, 3])
def test_a_short_match_drafts_little(match: int) -> None:
    known = list(range(10, 40))
    call = call_with([*known, 5, *known[:match]])
    (found,) = Lookup(MatchRates()).find(call, 50)
    assert found == Found(known[match : match + TOKENS_PER_MATCHED * match], match)


@pytest.mark.parametrize("limit", [1, 15, 30])
def test_a_long_match_drafts_as_much_as_is_asked_for(limit: int) -> None:
    known = list(range(10, 60))
    (found,) = Lookup(MatchRates()).find(call_with([*known, 5, *known[:20]]), limit)
    assert found == Found(known[20 : 20 + limit], 20)


def repeating(length: int) -> list[int]:
    """Text made of 50 phrases of 20 to 60 tokens that come again and again."""
    dice = random.Random(0)
    phrases = [[dice.randrange(2000) for _ in range(dice.randrange(20, 60))] for _ in range(50)]
    text: list[int] = []
    while len(text) < length:
        text += dice.choice(phrases)
    return text[:length]


def lines_run(run: Any) -> int:
    """Lines of Python that `run` executes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def test_a_round_costs_no_more_in_a_long_text() -> None:
    """4 tokens and a draft take some 200 lines after 1,000 tokens as after 100,000, or 20 microseconds."""
    lines, seconds = {}, {}
    for length in (1_000, 100_000):
        text = repeating(length + 96)
        call, lookup = call_with(text[:length]), Lookup(MatchRates())
        lookup.find(call, 15)  # reads the prompt
        counted, timed = [], []
        for end in range(length, length + 96, 8):
            call.rows.append(0, text[end : end + 4])
            counted.append(lines_run(partial(lookup.find, call, 15)))
            call.rows.append(0, text[end + 4 : end + 8])
            began = time.perf_counter()
            lookup.find(call, 15)
            timed.append(time.perf_counter() - began)
        lines[length], seconds[length] = statistics.fmean(counted), statistics.median(timed)
    assert lines[100_000] < 2 * lines[1_000] < 2_000
    assert seconds[100_000] < 1e-3


def test_text_that_never_read_like_this_gives_nothing() -> None:
    assert Lookup(MatchRates()).find(call_with([1, 2, 3, 4]), 5) == [Found([], 0)]


def test_every_row_has_a_text_of_its_own_and_keeps_it_when_others_end() -> None:
    call = call_with([1, 2, 3, 1, 2], [1, 2, 7, 8, 9, 1], [5, 6, 5])
    lookup = Lookup(MatchRates())
    assert [f.tokens for f in lookup.find(call, 2)] == [[3, 1], [2, 7], [6, 5]]
    call.rows.append(0, [3])
    call.rows.append(1, [4])
    call.rows.append(2, [6])
    call.rows.active = [0, 2]
    assert [f.tokens for f in lookup.find(call, 3)] == [[1, 2, 3], [5, 6, 5]]


def test_generated_text_is_looked_up_as_well() -> None:
    call = call_with([1, 2])
    lookup = Lookup(MatchRates())
    lookup.find(call, 3)
    call.rows.append(0, [3, 4, 1, 2])
    assert lookup.find(call, 3) == [Found([3, 4, 1], 2)]


def test_a_corpus_is_followed_where_it_matches_further_back() -> None:
    corpus = SuffixAutomaton([50, 1, 2, 3, 60, 61, 62, 1, 70])
    call = call_with([9, 2, 3, 8, 1, 2, 3])
    assert Lookup(MatchRates(), corpus).find(call, 3) == [Found([60, 61, 62], 3)]
    # As far back in both: the text at hand is the better guide.
    assert Lookup(MatchRates(), corpus).find(call_with([1, 2, 3, 8, 1, 2, 3]), 1) == [Found([8], 3)]


def test_calls_share_a_corpus_without_changing_it() -> None:
    corpus = SuffixAutomaton([1, 2, 3, 4, 5])
    one, other = Lookup(MatchRates(), corpus), Lookup(MatchRates(), corpus)
    a, b = call_with([1, 2]), call_with([3])
    assert one.find(a, 2)[0].tokens == [3, 4]
    assert other.find(b, 2)[0].tokens == [4, 5]
    a.rows.append(0, [3])
    assert one.find(a, 2)[0] == Found([4, 5], 3)
    assert len(corpus) == 5


def test_proposals_are_compared_with_the_text_that_came_whether_they_were_used_or_not() -> None:
    rates, untouched = MatchRates(), MatchRates()
    call = call_with([1, 2, 3, 4, 5, 9, 1, 2, 3])
    lookup = Lookup(rates)
    assert lookup.find(call, 4) == [Found([4, 5, 9, 1], 3)]
    call.rows.append(0, [4, 5, 7])
    lookup.find(call, 4)
    bucket = 2  # matches of 3 and 4
    assert rates.right[bucket] == pytest.approx(untouched.right[bucket] * 0.98 + 2)
    assert rates.drafts[bucket] == pytest.approx(untouched.drafts[bucket] * 0.98 + 1)
    others = [i for i in range(len(rates.drafts)) if i != bucket]
    assert [rates.drafts[i] for i in others] == [untouched.drafts[i] for i in others]


def test_tokens_that_have_not_come_yet_are_neither_right_nor_wrong() -> None:
    rates, untouched = MatchRates(), MatchRates()
    call = call_with([1, 2, 3, 4, 5, 9, 1, 2, 3])
    lookup = Lookup(rates)
    lookup.find(call, 4)
    call.rows.append(0, [4])
    lookup.find(call, 4)
    assert rates == untouched  # the draft is still on trial
    call.rows.append(0, [5])
    lookup.find(call, 4)
    assert rates == untouched
    call.rows.append(0, [8])
    lookup.find(call, 4)
    assert rates.drafts[2] == pytest.approx(untouched.drafts[2] * 0.98 + 1)
    assert rates.right[2] == pytest.approx(untouched.right[2] * 0.98 + 2)


def test_rates_follow_how_far_drafts_reached() -> None:
    rates = MatchRates()
    start = [rates.expected(match, 15) for match in (1, 2, 3, 5, 8, 13, 21)]
    assert start == sorted(start)  # a longer match is the better one, before anything is known
    assert rates.expected(4, 15) == rates.expected(3, 15)
    assert rates.expected(500, 15) == rates.expected(21, 15)
    for _ in range(300):
        rates.note(3, 6)
        rates.note(8, 0)
    assert rates.expected(3, 15) == pytest.approx(6, abs=0.05)
    assert rates.expected(3, 4) == 4  # no more than were drafted
    assert rates.expected(8, 15) < 0.05
    assert rates.expected(1, 15) == start[0]


def test_rows_without_a_draft_are_filled_up_with_nothing() -> None:
    columns = as_columns([[4, 5], [], [6]], torch.device("cpu"))
    assert columns.tolist() == [[4, 5], [NOTHING, NOTHING], [6, NOTHING]]
    assert as_columns([[], []], torch.device("cpu")).shape == (2, 0)


def test_found_drafts_run_no_layer_until_they_are_verified(llama: Any) -> None:
    selfspec.wrap(llama, draft="lookup", draft_length=4, deterministic=False)
    widths: list[int] = []
    llama.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    prompt = torch.tensor([[*range(10, 20)] * 3])
    events: list[Any] = []
    llama.generate(prompt, max_new_tokens=20, on_round=events.append)
    stats = llama.speculation.stats
    assert widths == [29] + [1 + len(event.drafted) for event in events]
    assert len(widths) == 1 + stats.rounds
    assert stats.drafted > 0
    assert stats.strategy == "lookup"


def test_matches_of_one_call_teach_the_next(llama: Any) -> None:
    selfspec.wrap(llama, draft="lookup", draft_length=4)
    rates = llama.speculation.knowledge.matches
    before = [list(rates[sampled].drafts) for sampled in (False, True)]
    llama.generate(torch.tensor([[*range(10, 20)] * 3]), max_new_tokens=20)
    assert rates[False].drafts != before[0]
    assert rates[True].drafts == before[1]  # sampled text is another matter


def test_the_corpus_of_the_settings_is_followed(llama: Any) -> None:
    prompt = random_prompts(7)["input_ids"]
    text = own_generate(llama, prompt, max_new_tokens=24)
    rounds = []
    for corpus in (None, text[0].tolist()):
        selfspec.wrap(llama, draft="lookup", draft_length=8, corpus=corpus)
        assert torch.equal(llama.generate(prompt, max_new_tokens=24), text)
        rounds.append(llama.speculation.stats.rounds)
    assert rounds[1] <= 4  # 24 tokens in rounds of up to 8 and one
    assert rounds[0] > 8


@pytest.mark.parametrize("length", [3, 20])
def test_a_draft_length_is_used_as_it_is(llama: Any, length: int) -> None:
    selfspec.wrap(llama, draft="lookup", draft_length=length)
    events: list[Any] = []
    llama.generate(torch.tensor([[*range(10, 20)] * 4]), max_new_tokens=40, on_round=events.append)
    assert max(event.deepest for event in events) == length
