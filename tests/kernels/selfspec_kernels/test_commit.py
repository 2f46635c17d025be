"""Committing on the device: the reference beside the engine's own rows, and the Triton kernel."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from interpreter import results_of

from selfspec.rows import Rows
from selfspec.stats import Stats
from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.commit import commit
from selfspec_kernels.commit_reference import COUNTERS, RowState

ROWS, PROMPT, NEW, ENDS = 4, 3, 12, (7, 8)


def state_of(rows: Rows, device="cpu") -> RowState:
    """The device's view of the engine's rows."""
    count = len(rows.sequences)
    state = RowState(
        rows.sequences.clone(),
        torch.full((count,), rows.prompt_width),
        torch.full((count,), rows.prompt_width + rows.max_new_tokens),
        torch.zeros(count, dtype=torch.bool),
        torch.zeros(count, COUNTERS, dtype=torch.int64),
        torch.tensor(sorted(rows.eos_tokens), dtype=torch.int64),
    )
    return RowState(*(getattr(state, field.name).to(device) for field in fields(RowState)))


def rounds(count: int):
    """Verdicts that now and then hold an end token."""
    draw = torch.Generator().manual_seed(3)
    for _ in range(count):
        tokens = torch.randint(0, 40, (ROWS, 4), generator=draw)
        drafted = torch.randint(0, 4, (ROWS,), generator=draw)
        accepted = torch.minimum(torch.randint(0, 4, (ROWS,), generator=draw), drafted)
        yield (
            Accepted(accepted, tokens, torch.zeros(ROWS, 4), torch.zeros(ROWS, 4, dtype=torch.int64)),
            drafted,
        )


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.gpu)])
def test_rows_and_counters_are_the_engines_after_every_round(backend, request):
    device = "cpu" if backend == "reference" else request.getfixturevalue("cuda")
    rows = Rows.of_prompts(
        torch.arange(ROWS * PROMPT).view(ROWS, PROMPT), torch.ones(ROWS, PROMPT), NEW, 4,
        eos_tokens=frozenset(ENDS), pad_token=0,
    )  # fmt: skip
    state, stats = state_of(rows, device), Stats()
    for verdict, drafted in rounds(12):
        for row in list(rows.active):
            count = int(verdict.accepted[row])
            new, finished = rows.append(row, verdict.tokens[row, : count + 1].tolist())
            stats.count_row(int(drafted[row]), int(drafted[row]), min(count, len(new)), len(new))
            if finished:
                rows.active.remove(row)
        there = Accepted(*(getattr(verdict, field.name).to(device) for field in fields(Accepted)))
        commit(state, there, drafted.to(device), drafted.to(device), backend=backend)
        assert (state.lengths - PROMPT).tolist() == rows.generated
        assert state.finished.tolist() == [row not in rows.active for row in range(ROWS)]
        for row in range(ROWS):
            end = PROMPT + rows.generated[row]
            assert torch.equal(state.sequences[row, :end].cpu(), rows.sequences[row, :end])
        counted = dict(
            zip(
                ("row_rounds", "drafted", "accepted", "rejected", "tokens"),
                state.counters.sum(0),
                strict=True,
            )
        )
        assert counted == {name: getattr(stats, name) for name in counted}
    assert not rows.active


STATE = state_of(
    Rows.of_prompts(torch.zeros(2, 3).long(), torch.ones(2, 3), 5, 4, eos_tokens=frozenset({7}), pad_token=0)
)
VERDICT = Accepted(
    torch.zeros(2).long(), torch.zeros(2, 4).long(), torch.zeros(2, 4), torch.zeros(2, 4).long()
)
COUNT = torch.zeros(2).long()
BROKEN = {
    r"sequences and tokens must be \[B, W\]": (replace(STATE, sequences=COUNT), VERDICT, COUNT),
    "sequences must be torch.int64": (replace(STATE, sequences=STATE.sequences.int()), VERDICT, COUNT),
    "sequences must be contiguous in its last": (
        replace(STATE, sequences=STATE.sequences.t().contiguous().t()),
        VERDICT,
        COUNT,
    ),
    r"lengths must be \[2\]": (replace(STATE, lengths=COUNT[:1]), VERDICT, COUNT),
    "limits is on meta, sequences on cpu": (replace(STATE, limits=COUNT.to("meta")), VERDICT, COUNT),
    "finished must be torch.bool": (replace(STATE, finished=COUNT), VERDICT, COUNT),
    r"counters must be \[2, 5\]": (replace(STATE, counters=torch.zeros(2, 4).long()), VERDICT, COUNT),
    "65 end tokens: allowed are up to 64": (
        replace(STATE, end_tokens=torch.zeros(65).long()),
        VERDICT,
        COUNT,
    ),
    r"tokens must be \[2, 4\], not \[3, 4\]": (
        STATE,
        replace(VERDICT, tokens=torch.zeros(3, 4).long()),
        COUNT,
    ),
    "tokens must be contiguous": (STATE, replace(VERDICT, tokens=torch.zeros(4, 2).long().t()), COUNT),
    "0 tokens a row": (STATE, replace(VERDICT, tokens=torch.zeros(2, 0).long()), COUNT),
    "drafted must be torch.int64": (STATE, VERDICT, COUNT.int()),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    state, verdict, drafted = BROKEN[message]
    with pytest.raises(KernelInputError, match=message):
        commit(state, verdict, drafted, COUNT)


def test_the_kernel_leaves_the_references_state():
    found = results_of("commit")
    assert len(found["cases"]) >= 7
    assert set(found["cases"].values()) == {0.0}


def test_broken_kernels_do_not_pass():
    mutations = results_of("commit")["mutations"]
    assert len(mutations) >= 10
    for mutation, found in mutations.items():
        assert found["error"] > 0, mutation


def test_the_dispatcher_hands_its_inputs_to_triton():
    assert results_of("commit")["dispatched"] == [5, 4, 7, 4, 12]
