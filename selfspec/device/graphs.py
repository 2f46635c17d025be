"""Rounds as CUDA graphs: captured when a kind of round comes up, kept while memory allows."""

import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
_NODE_BYTES = 4096
"""Of the driver's own, for each kernel of a graph: a rough figure, counted where no allocation shows."""
_log = logging.getLogger("selfspec")


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
        self._stream: Any = None
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
        try:
            graph = self._graph_of(key)
        except RuntimeError as error:  # out of memory is one
            if key in self._failed:
                self._refuse(error)
            self._failed.add(key)  # once more when it has run as it is: something may not have been compiled
            self._work(key)
            return
        grown = torch.cuda.memory_reserved(self._device) - before
        self._captured[key] = _Captured(graph, max(grown, 0) + _NODE_BYTES)
        graph.replay()
        self._make_room()

    def _graph_of(self, key: Key) -> Any:
        """The work of `key`, captured on a stream of its own; its memory is shared with the other graphs."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Other threads go on as they like, and a kernel that is new to this one may be loaded.
            graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
            try:
                self._work(key)
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph

    def _make_room(self) -> None:
        while len(self._captured) > 1 and sum(c.bytes for c in self._captured.values()) > self._memory:
            key, _ = self._captured.popitem(last=False)
            _log.info("graph memory is used up: dropped the round %s", key)

    def _refuse(self, error: Exception) -> None:
        """From now on everything runs as it is."""
        self.refused = str(error).splitlines()[0]
        self._captured.clear()
        warnings.warn(
            f"rounds cannot be captured as CUDA graphs ({self.refused}): they run launch by launch, slower "
            "and with the same text",
            stacklevel=2,
        )
