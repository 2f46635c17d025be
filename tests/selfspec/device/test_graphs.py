"""Which work is captured, replayed, dropped and refused; the graphs themselves need a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfspec.device import graphs as graphs_module
from selfspec.device.graphs import Graphs

GPU = torch.device("cuda")
EACH = 1000


class Recording:
    """A graph that notes its replays."""

    def __init__(self, key: str, log: list[str]) -> None:
        self.key, self.log = key, log

    def replay(self) -> None:
        self.log.append(f"replay {self.key}")


class Fake(Graphs[str]):
    """Graphs whose capture takes no GPU; keys that begin with `failing` cannot be captured."""

    def __init__(self, log: list[str], device: torch.device = GPU, memory: int = 10**6, failing: str = "-"):
        super().__init__(lambda key: log.append(f"run {key}"), lambda key: key[0], device, memory)
        self.log, self.failing = log, failing

    def _graph_of(self, key: str) -> Any:
        if key.startswith(self.failing):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        self.log.append(f"capture {key}")
        return Recording(key, self.log)


@pytest.fixture(autouse=True)
def reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the reserved memory finds EACH bytes more."""
    grown = iter(range(0, 10**9, EACH))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: next(grown))


def ran(graphs: Fake, *keys: str) -> list[str]:
    graphs.log.clear()
    for key in keys:
        graphs.run(key)
    return graphs.log


def test_the_first_of_a_family_runs_as_it_is_and_what_comes_again_is_replayed() -> None:
    graphs = Fake([])
    assert ran(graphs, "a1", "a2", "a2", "b1") == ["run a1", "capture a2", "replay a2", "replay a2", "run b1"]
    assert ran(graphs, "a1", "a1") == ["capture a1", "replay a1", "replay a1"]


def test_only_what_was_there_before_counts_as_replayed() -> None:
    graphs = Fake([])
    seen = []
    for key in ("a1", "a2", "a2"):
        graphs.run(key)
        seen.append(graphs.replayed)
    assert seen == [False, False, True]


def test_the_least_recently_used_graphs_make_room() -> None:
    graphs = Fake([], memory=2 * (EACH + graphs_module._GRAPH_BYTES))
    ran(graphs, "a0", "a1", "a2", "a1", "a3")
    assert graphs.keys == ["a1", "a3"]
    assert ran(graphs, "a2") == ["capture a2", "replay a2"]
    assert graphs.keys == ["a3", "a2"]


def test_a_graph_that_is_larger_than_all_memory_still_runs() -> None:
    graphs = Fake([], memory=1)
    ran(graphs, "a0", "a1")
    assert graphs.keys == ["a1"]


def test_what_cannot_be_captured_twice_runs_as_it_is_with_one_warning() -> None:
    graphs = Fake([], failing="a2")
    assert ran(graphs, "a0", "a1", "a2") == ["run a0", "capture a1", "replay a1", "run a2"]
    with pytest.warns(UserWarning, match=r"cannot be captured as CUDA graphs \(CUDA out of memory\.\)"):
        assert ran(graphs, "a2") == ["run a2"]
    assert ran(graphs, "a1", "a2", "b0", "b1") == ["run a1", "run a2", "run b0", "run b1"]


def test_a_capture_that_fails_once_is_tried_again() -> None:
    graphs = Fake([], failing="a2")
    ran(graphs, "a0", "a2")
    graphs.failing = "-"
    assert ran(graphs, "a2", "a2") == ["capture a2", "replay a2", "replay a2"]
    assert not graphs.refused


def test_other_devices_run_everything_as_it_is() -> None:
    assert ran(Fake([], torch.device("cpu")), "a1", "a2", "a2") == ["run a1", "run a2", "run a2"]
