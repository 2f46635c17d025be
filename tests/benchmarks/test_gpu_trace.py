"""What a profiler's trace says of rounds."""

from __future__ import annotations

from typing import Any

import pytest
from gpu_bench import NotHereError
from gpu_gap import gap_row
from gpu_trace import decoding

from selfspec.stats import Stats

KERNEL, COPY, HOST = "kernel", "gpu_memcpy", "cuda_runtime"
REPORT = "Memcpy DtoH (Device -> Pinned)"


def event(category: str, name: str, start: float, length: float) -> dict[str, Any]:
    return {"cat": category, "name": name, "ts": start, "dur": length}


PREFILL = [
    event(COPY, "Memcpy DtoH (Device -> Pageable)", -900, 2),  # the prompt's length, and the like
    event(KERNEL, "prefill", -800, 300),
    event(COPY, "Memcpy DtoH (Device -> Pageable)", -400, 2),
    event(HOST, "cudaStreamSynchronize", -700, 200),
]
ROUNDS = [
    event(HOST, "cudaGraphLaunch", -60, 1),
    event(KERNEL, "the first round", -55, 55),
    event(COPY, REPORT, 0, 2),
    event(KERNEL, "draft", 6, 10),  # the host took 4
    event(KERNEL, "verify", 17, 20),  # idle for 1, but not for the host
    event(KERNEL, "beside it", 20, 5),
    event(COPY, REPORT, 37, 2),
    event(HOST, "cudaGraphLaunch", 4, 1),
    event(HOST, "cudaStreamSynchronize", 5, 30),
]
AFTERWARDS = [
    event(HOST, "cudaStreamSynchronize", 45, 3),
    event(KERNEL, "after the last round", 50, 2),
    event(COPY, "Memcpy DtoH (Device -> Pageable)", 60, 2),
]


@pytest.mark.parametrize("more", [[], PREFILL, AFTERWARDS, PREFILL + AFTERWARDS])
def test_a_trace_tells_waiting_for_the_host_from_other_idle_time(more: list[dict[str, Any]]) -> None:
    found = decoding([*more, *ROUNDS])
    assert found is not None
    assert (found.total, found.busy, found.waiting) == (37, 32, 4)
    assert (found.rounds, found.copies, found.waits, found.launches, found.captures) == (1, 1, 1, 1, 0)


def test_a_trace_without_two_rounds_says_nothing() -> None:
    assert decoding([event(KERNEL, "alone", 0, 1)]) is None
    assert decoding([*PREFILL, *ROUNDS[:3]]) is None
    assert decoding([e for e in ROUNDS if e["name"] != REPORT]) is None


def test_a_graph_that_is_made_in_the_stretch_is_seen() -> None:
    found = decoding([*ROUNDS, event(HOST, "cudaGraphInstantiate", 3, 1)])
    assert found is not None and found.captures == 1


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ([], "reached"),
        ([event(HOST, "cudaStreamSynchronize", 10, 1)], "MISSED"),
        ([event(COPY, REPORT, 3, 0.5)], "MISSED"),
    ],
)
def test_a_round_may_wait_and_copy_once(more: list[dict[str, Any]], verdict: str) -> None:
    rounds = [{**e, "ts": e["ts"] - 3} if e["name"] == "draft" else e for e in ROUNDS]  # the host took 1
    row = gap_row(decoding([*PREFILL, *rounds, *more]), 1, Stats(rounds=1, round_seconds=0.1))
    assert row["verdict"] == verdict
    assert row["waiting for the host"] < 0.05


def test_rounds_that_were_no_graphs_are_not_measured() -> None:
    with pytest.raises(NotHereError, match="1 of 2 rounds"):
        gap_row(decoding(ROUNDS), 2, Stats(rounds=3, round_seconds=0.1))
