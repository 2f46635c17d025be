"""Rounds as CUDA graphs: captured when a kind of round comes up, kept while memory allows."""

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
_GRAPH_BYTES = 1 << 20
"""Of the driver's own, for a graph of some hundred kernels: a rough figure, where no allocation shows."""
_log = logging.getLogger("selfspec")
_capturing = threading.Lock()


@dataclass
class _Captured:
    graph: Any
    bytes: int


class Graphs(Generic[Key]):
    """Runs `work(key)`, from a captured graph where there is one.

    The first work of a family runs as it is, which compiles the kernels that all of the family need. The
    others are captured when they first come up. The least recently used graphs make room for others. Where
    the device cannot capture, work runs as it is: slower, the same result.

    Args:
        work: launches on the current stream, always on the same buffers.
        family: of a key, all of which need the same kernels.
        device: on any but a CUDA device work runs as it is.
        memory: bytes that graphs may hold together.
    """

    def __init__(
        self,
        work: Callable[[Key], None],
        family: Callable[[Key], Hashable],
        device: torch.device,
        memory: int,
    ) -> None:
        self._work = work
        self._family = family
        self._device = device
        self._memory = memory
        self._captured: OrderedDict[Key, _Captured] = OrderedDict()
        self._known: set[Hashable] = set()
        self._failed: set[Key] = set()
        self.replayed = False
        """Whether the last run was that of a graph that had been there before."""
        self._pool: Any = None
        self.refused = ""
        """Why nothing is captured any more."""

    def run(self, key: Key) -> None:
        """Launch the work of `key`; returns before it is done."""
        self.replayed = key in self._captured
        if self.replayed:
            self._captured.move_to_end(key)
            self._captured[key].graph.replay()
        elif self._device.type == "cuda" and self._family(key) in self._known and not self.refused:
            self._capture(key)
        else:
            self._known.add(self._family(key))
            self._work(key)

    @property
    def keys(self) -> list[Key]:
        """What is captured, the most recently used last."""
        return list(self._captured)

    def _capture(self, key: Key) -> None:
        before = torch.cuda.memory_reserved(self._device)
        graph = self._tried(key)
        if graph is None:
            self._work(key)
            return
        grown = torch.cuda.memory_reserved(self._device) - before
        self._captured[key] = _Captured(graph, max(grown, 0) + _GRAPH_BYTES)
        graph.replay()
        self._make_room()

    def _tried(self, key: Key) -> Any:
        """The graph of `key`; None where it cannot be captured, which is tried once more another time."""
        try:
            return self._graph_of(key)
        except RuntimeError as error:  # out of memory is one
            if key in self._failed:
                self._refuse(error)
            self._failed.add(key)
        # A capture cannot free what is cached for other use, say of a long prefill.
        torch.cuda.empty_cache()
        return None

    def _graph_of(self, key: Key) -> Any:
        """The work of `key`, captured; its memory is shared with the other graphs."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return captured([partial(self._work, key)], self._device, self._pool)

    def _make_room(self) -> None:
        while len(self._captured) > 1 and sum(c.bytes for c in self._captured.values()) > self._memory:
            key, _ = self._captured.popitem(last=False)
            _log.info("graph memory is used up: dropped the round %s", key)

    def _refuse(self, error: Exception) -> None:
        """From now on everything runs as it is."""
        self.refused = first_line(error)
        self._captured.clear()
        warnings.warn(
            f"rounds cannot be captured as CUDA graphs ({self.refused}): they run launch by launch, slower "
            "and with the same text",
            stacklevel=2,
        )


def first_line(error: Exception) -> str:
    """What an error says, without the advice that PyTorch adds; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@cache
def _stream_of(device: torch.device) -> Any:
    """All captures of a device are on one: libraries keep a workspace for every stream they ever ran on."""
    return torch.cuda.Stream(device)


def captured(works: Sequence[Callable[[], object]], device: torch.device, pool: Any) -> Any:
    """A CUDA graph of `works` with its memory in `pool`; nothing has run yet. One thread captures at a time.

    Raises:
        RuntimeError: something cannot be captured, or finds no memory.
    """
    graph, stream, current = torch.cuda.CUDAGraph(), _stream_of(device), torch.cuda.current_stream(device)
    with _capturing, torch.cuda.stream(stream):
        stream.wait_stream(current)
        # Other threads go on as they like, and a kernel that is new to this one may be loaded.
        graph.capture_begin(pool=pool, capture_error_mode="relaxed")
        try:
            for work in works:
                work()
            graph.capture_end()
        except BaseException:
            _abandon(graph, stream, pool)
            raise
    current.wait_stream(stream)
    return graph


def _abandon(graph: Any, stream: Any, pool: Any) -> None:
    """End a capture in which something failed.

    Where that was a wait for the device, ending it fails too, and before the allocator is told: it would go
    on handing out the graph's memory, and refuse to free any.
    """
    try:
        graph.capture_end()
    except RuntimeError:
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
