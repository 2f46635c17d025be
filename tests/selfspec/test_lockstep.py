"""Rows by hand: what their criteria are asked, and where they are cut. 7 ends a row, 9 stops it."""

from __future__ import annotations

from typing import Any

import torch
from criteria import Crowd, EndsWith
from tiny_models import padded
from torch import Tensor
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from selfspec.lockstep import Lockstep
from selfspec.rows import RoundEvent, Rows
from selfspec.stats import Stats


def rows_of(*criteria: Any, limit: int = 6, end: bool = True) -> Rows:
    batch = padded([[11, 12], [21], [31, 32]])
    own = [MaxLengthCriteria(2 + limit), *([EosTokenCriteria(7)] if end else []), *criteria]
    return Rows.of_prompts(
        batch["input_ids"],
        batch["attention_mask"],
        limit,
        10,
        eos_tokens=frozenset({7} if end else ()),
        pad_token=99,
        criteria=own,
    )


def play(rows: Rows, lockstep: Lockstep, rounds: list[list[list[int]]]) -> None:
    """Commit what each active row says in each round, as the engine does."""
    for committed in rounds:
        going = []
        for row, tokens in zip(rows.active, committed, strict=True):
            new, finished = rows.append(row, tokens)
            lockstep.hold(RoundEvent(row, tokens[:-1], len(tokens) - 1, (0,) * (len(tokens) - 1), new))
            going += [] if finished else [row]
        lockstep.ask()
        rows.active = [row for row in going if row not in rows.stops]


def test_criteria_are_asked_once_a_length_when_all_rows_that_go_on_have_it() -> None:
    witness = Crowd(often=100)
    rows = rows_of(witness)
    lockstep = Lockstep(rows)
    play(rows, lockstep, [[[1], [2, 3, 7], [4, 5]]])
    assert (rows.asked, rows.stops, rows.active) == (1, {}, [0, 2])
    play(rows, lockstep, [[[1, 1, 1], [6]]])
    assert (rows.asked, rows.stops, rows.active) == (3, {1: 3}, [0, 2])
    play(rows, lockstep, [[[1, 7], [6, 7]]])
    assert (rows.stops, rows.active) == ({1: 3, 0: 6, 2: 5}, [])
    prompts = [[11, 12], [0, 21], [31, 32]]
    texts = [[1, 1, 1, 1, 1, 7], [2, 3, 7, 99, 99, 99], [4, 5, 6, 6, 7, 99]]
    assert witness.asked == [
        [[*prompt, *text[:length]] for prompt, text in zip(prompts, texts, strict=True)]
        for length in range(1, 7)
    ]


def test_a_row_is_cut_where_it_was_stopped_however_far_it_had_come() -> None:
    events: list[RoundEvent] = []
    rows, stats = rows_of(EndsWith(9)), Stats()
    lockstep = Lockstep(rows, on_round=events.append)
    rounds = [[[1], [2, 9, 3], [4]], [[1], [3, 7], [4]], [[1, 1], [4, 4]], [[7], [7]]]
    for committed in rounds:
        for tokens in committed:
            stats.count_row(len(tokens) - 1, len(tokens) - 1, len(tokens) - 1, len(tokens))
    play(rows, lockstep, rounds[:1])
    assert [event.row for event in events] == [0, 2]  # row 1 is ahead, nothing is known of it yet
    play(rows, lockstep, rounds[1:])
    lockstep.finish(stats)
    assert rows.generated == [5, 2, 5]
    assert rows.output()[1, 2:].tolist() == [2, 9, 99, 99, 99]
    assert [event.committed for event in events if event.row == 1] == [[2, 9]]
    told = Stats()
    for event in events:
        told.count_row(len(event.drafted), event.deepest, event.accepted, len(event.committed))
    assert told == stats
    assert stats.tokens == 12


def test_without_an_end_token_stopped_rows_go_on_until_all_have_stopped() -> None:
    events: list[RoundEvent] = []
    witness = Crowd(often=100)
    rows = rows_of(EndsWith(9), witness, end=False)
    lockstep = Lockstep(rows, on_round=events.append)
    play(rows, lockstep, [[[1, 1], [9, 2, 2, 2], [9]], [[1, 9, 1], [2], [4]]])
    assert (rows.asked, rows.stops, rows.active) == (2, {}, [0, 1, 2])
    play(rows, lockstep, [[[1], [2, 7], [4, 4, 4]]])
    assert rows.stops == {0: 4, 1: 4, 2: 4}
    lockstep.finish(Stats())
    assert rows.output()[:, 2:].tolist() == [[1, 1, 1, 9], [9, 2, 2, 2], [9, 4, 4, 4]]
    assert [len(ids[0]) - 2 for ids in witness.asked] == [1, 2, 3, 4]
    assert sum(len(event.committed) for event in events) == 12


def test_what_a_criterion_is_given_is_its_own() -> None:
    """Tensors as in the model's own loop: no part of the engine's, and no inference tensors."""

    def writes(ids: Tensor, scores: Any) -> bool:
        assert not ids.is_inference()
        given.append(ids)
        return False

    given: list[Tensor] = []
    rows = rows_of(writes)
    with torch.inference_mode():
        play(rows, Lockstep(rows), [[[1, 2], [2, 3], [4, 5]]])
    for ids in given:
        ids.fill_(0)
    assert rows.sequences[:, 2:4].tolist() == [[1, 2], [2, 3], [4, 5]]
