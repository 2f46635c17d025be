"""Drafts from the text itself: the suffix automaton against a search that tries everything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec.drafting.suffix_automaton import Cursor, SuffixAutomaton

TEXTS = st.integers(1, 4).flatmap(lambda top: st.lists(st.integers(0, top), max_size=40))


def occurrences(pattern: list[int], text: list[int]) -> list[int]:
    """Where the pattern ends in the text, in order."""
    return [end for end in range(len(pattern), len(text) + 1) if text[end - len(pattern) : end] == pattern]


def longest_known_suffix(text: list[int], corpus: list[int]) -> int:
    """Length of the longest suffix of `text` that the corpus holds."""
    return max(n for n in range(len(text) + 1) if not n or occurrences(text[-n:], corpus))


def copied(text: list[int], begin: int, limit: int) -> list[int]:
    """LZ77's copy, token by token: what has been copied can be copied again."""
    whole = list(text)
    for place in range(begin, begin + limit):
        whole.append(whole[place])
    return whole[len(text) :]


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_the_match_is_the_longest_suffix_that_occurred_before_and_its_latest_occurrence(
    text: list[int],
) -> None:
    automaton = SuffixAutomaton()
    for n, token in enumerate(text, 1):
        automaton.extend(token)
        seen = text[:n]
        length = longest_known_suffix(seen, seen[:-1])
        assert automaton.match_length == length
        if length:
            ends = occurrences(seen[-length:], seen[:-1])
            assert automaton.match_end in ends
            if len(set(text)) > 1 and n <= 32:  # beyond, a run of one token stops looking for the very latest
                assert automaton.match_end == ends[-1]
            assert automaton.draft(7) == copied(seen, automaton.match_end, 7)
        else:
            assert automaton.draft(7) == []


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_it_holds_the_substrings_of_the_text_and_nothing_else_in_linear_space(text: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    assert len(automaton._length) <= max(1, 2 * len(text))
    assert len(automaton) == len(text)
    held, pending = set(), [(0, ())]
    while pending:
        state, read = pending.pop()
        held.add(read)
        for token in set(text):
            following = automaton.step(state, token)
            if following != -1:
                pending.append((following, (*read, token)))
    assert held == {tuple(text[a:b]) for a in range(len(text) + 1) for b in range(a, len(text) + 1)}


@given(TEXTS, TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_cursor_finds_the_longest_suffix_that_the_corpus_holds(corpus: list[int], text: list[int]) -> None:
    cursor = Cursor(SuffixAutomaton(corpus))
    assert cursor.draft(4) == []
    for n, token in enumerate(text, 1):
        cursor.advance(token)
        seen = text[:n]
        assert cursor.match_length == longest_known_suffix(seen, corpus)
        draft = cursor.draft(4)
        goes_on = [k for k in range(1, cursor.match_length + 1) if occurrences(seen[-k:], corpus[:-1])]
        assert bool(draft) == bool(goes_on)
        if goes_on:
            assert occurrences(seen[-goes_on[-1] :] + draft, corpus)


def test_a_periodic_text_goes_on_for_as_long_as_asked() -> None:
    automaton = SuffixAutomaton([1, 2, 1, 2, 1, 2])
    assert automaton.match_length == 4
    assert automaton.draft(7) == [1, 2, 1, 2, 1, 2, 1]
    assert SuffixAutomaton([5] * 1000).draft(40) == [5] * 40


def test_the_latest_occurrence_is_followed() -> None:
    assert SuffixAutomaton([1, 2, 3, 1, 2, 4, 1, 2]).draft(1) == [4]


@pytest.mark.parametrize("text", [[], [3], [1, 2, 3]])
def test_nothing_is_drafted_where_nothing_was_repeated(text: list[int]) -> None:
    automaton = SuffixAutomaton(text)
    assert automaton.match_length == 0
    assert automaton.draft(5) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_is_drafted_where_nothing_is_asked_for(limit: int) -> None:
    automaton = SuffixAutomaton([1, 1, 1])
    cursor = Cursor(automaton)
    cursor.advance(1)
    assert automaton.draft(limit) == cursor.draft(limit) == []


def test_cursors_share_a_corpus_and_leave_it_as_it_was() -> None:
    corpus = SuffixAutomaton([1, 2, 3, 4, 1, 2, 5])
    one, other = Cursor(corpus), Cursor(corpus)
    for token in (3, 4):
        one.advance(token)
    for token in (1, 2, 3):
        other.advance(token)
    assert (one.match_length, other.match_length) == (2, 3)
    assert one.draft(2) == [1, 2]
    assert other.draft(9) == [4, 1, 2, 5]
    assert (corpus.match_length, len(corpus)) == (0, 7)


def test_a_corpus_that_ends_with_a_frequent_token_still_goes_on_after_it() -> None:
    cursor = Cursor(SuffixAutomaton([9, 1, 2, 9, 3, 4, 9]))
    cursor.advance(9)
    assert cursor.draft(2) in ([1, 2], [3, 4])


def test_an_impossible_token_is_refused_and_changes_nothing() -> None:
    automaton = SuffixAutomaton([1, 2])
    with pytest.raises(ValueError, match="-3"):
        automaton.extend(-3)
    with pytest.raises(OverflowError):
        automaton.extend(1 << 40)
    automaton.extend(1)
    assert automaton.match_length == 1
    assert len(automaton) == 3
