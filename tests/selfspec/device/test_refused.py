"""What a device cannot run alone, or runs out of memory for, is launched from Python, with the same text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from checks import own_generate
from tiny_models import random_prompts, wide_model

import selfspec
from selfspec import speculation, views
from selfspec.device import graphs, request
from selfspec.device.graphs import captured, first_line
from selfspec.device.waiting import HostReadError, NoHostReads

PROMPT = random_prompts(11)


@pytest.fixture
def model(on_device: None) -> Any:
    return wide_model("llama")


def launching(model: Any) -> str:
    """How rounds were launched, of a call whose text is the model's own."""
    expected = own_generate(model, **PROMPT, max_new_tokens=12)
    assert torch.equal(model.generate(**PROMPT, max_new_tokens=12), expected)
    return model.speculation.stats.launching


@pytest.mark.parametrize(
    ("version", "capability", "able"),
    [("13.0", (9, 0), True), ("13.0", (8, 0), True), ("13.0", (7, 5), False), (None, (9, 0), False)],
)
def test_a_device_without_the_kernels_is_not_able(
    monkeypatch: pytest.MonkeyPatch, version: str | None, capability: tuple[int, int], able: bool
) -> None:
    """What stands in for them asks the host, which a capture must not."""
    pytest.importorskip("triton", reason="triton is for Linux")
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert request.device_is_able(torch.device("cuda")) is able
    assert not request.device_is_able(torch.device("cpu"))


def test_a_model_whose_passes_wait_for_the_host_is_found_before_anything_is_captured(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x) * (2 if bool((x > 1e9).any()) else 1)
    selfspec.wrap(model, exit_layer=2, draft_length=3, draft="early_exit")
    reason = "its passes wait for the host (aten::_local_scalar_dense reads a value back)"
    assert launching(model) == f"from Python: {reason}"


@pytest.mark.parametrize(
    "read",
    [torch.Tensor.item, bool, torch.Tensor.nonzero, lambda x: torch.zeros(2)[x > 0]],
)
@pytest.mark.parametrize("inference", [True, False])
def test_what_the_host_waits_for_is_an_error(read: Any, inference: bool) -> None:
    with (
        torch.inference_mode(inference),
        NoHostReads(),
        pytest.raises(HostReadError, match="reads a value back"),
    ):
        read(torch.ones(2).sum() if read in (torch.Tensor.item, bool) else torch.ones(2))


def test_a_model_that_cannot_be_timed_in_a_capture_is_timed_as_it_is_launched(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(speculation, "time_captured", failing)
    with pytest.warns(UserWarning, match="its passes cannot be captured") as warned:
        selfspec.wrap(model)
    assert len(warned) == 1
    reason = "its passes cannot be captured (operation not permitted when stream is capturing)"
    assert launching(model) == f"from Python: {reason}"


def test_no_memory_for_a_view_leaves_the_models_own_weights_to_draft_with(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(views, "LowBitView", full)
    selfspec.wrap(model, draft="low_bit", exit_layer=2, draft_length=2)
    assert launching(model) == "CUDA graphs"
    assert model.speculation.view is None
    assert "no memory is left for a low-bit view of 2 layers" in model.speculation.stats.view
    assert "draft_memory=" in model.speculation.stats.view


def test_a_reason_is_the_first_line_of_an_error_or_its_kind() -> None:
    assert first_line(RuntimeError("CUDA out of memory.\nTried to allocate")) == "CUDA out of memory."
    assert first_line(RuntimeError()) == "RuntimeError"


class Graph:
    """A graph that cannot be ended, as after a wait for the device."""

    def __init__(self, log: list[str], ends: bool) -> None:
        self.log, self.ends = log, ends

    def capture_begin(self, **options: Any) -> None:
        self.log.append("begin")

    def capture_end(self) -> None:
        self.log.append("end")
        if not self.ends:
            raise RuntimeError("operation failed due to a previous error during capture")


class Stream:
    device, device_index = torch.device("cuda", 1), 1

    def wait_stream(self, other: Any) -> None:
        pass


@pytest.mark.parametrize("ends", [True, False])
def test_a_capture_that_fails_says_why_and_gives_the_allocator_back(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    log: list[Any] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(log, ends))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(graphs, "_stream_of", lambda device: Stream())

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *of: log.append(of), raising=False)

    def work() -> None:
        raise RuntimeError("a wait inside of a capture")

    with pytest.raises(RuntimeError, match="a wait inside of a capture"):
        captured([work], Stream.device, (0, 7))
    assert log == (["begin", "end"] if ends else ["begin", "end", (1, (0, 7))])


def test_cached_memory_is_freed_before_a_capture_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture finds no room where a long prefill has left memory cached, and cannot free it by itself."""
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty"))

    class Small(graphs.Graphs[str]):
        def _graph_of(self, key: str) -> Any:
            if "empty" not in log:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            log.append("capture")
            return type("Graph", (), {"replay": lambda self: log.append("replay")})()

    small = Small(lambda key: log.append(f"run {key}"), lambda key: "all", torch.device("cuda"), 10**9)
    for _ in range(3):
        small.run("a")
    assert log == ["run a", "empty", "run a", "capture", "replay"]
    assert not small.refused
