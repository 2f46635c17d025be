"""Rounds as CUDA graphs: captured when a kind of round comes up again, kept while memory allows."""

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

    The first time a key comes up its work runs as it is: that compiles what it needs, and what comes up once
    is not worth a graph. The second time it is captured. The least recently used graphs make room for others.
    Where the device cannot capture, work runs as it is: slower, the same result.

    Args:
        work: launches on the current stream, always on the same buffers.
        device: on any but a CUDA device work runs as it is.
        memory: bytes that graphs may hold together.
    """

    def __init__(self, work: Callable[[Key], None], device: torch.device, memory: int) -> None:
        self._work = work
        self._device = device
        self._memory = memory
        self._captured: OrderedDict[Key, _Captured] = OrderedDict()
        self._seen: set[Key] = set()
        self._pool: Any = None
        self.refused = ""
        """Why nothing is captured any more."""

    def run(self, key: Key) -> None:
        """Launch the work of `key`; returns before it is done."""
        if self._device.type != "cuda":
            self._work(key)
        elif key in self._captured:
            self._captured.move_to_end(key)
            self._captured[key].graph.replay()
        elif key not in self._seen or self.refused:
            self._seen.add(key)
            self._work(key)
        else:
            self._capture(key)

    @property
    def keys(self) -> list[Key]:
        """What is captured, the most recently used last."""
        return list(self._captured)

    def _capture(self, key: Key) -> None:
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # Other threads may go on launching: only this one's stream is captured.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._work(key)
        except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
            self._refuse(error)
            self._work(key)
            return
        grown = torch.cuda.memory_reserved(self._device) - before
        self._captured[key] = _Captured(graph, max(grown, 0) + _NODE_BYTES)
        graph.replay()
        self._make_room()

    def _make_room(self) -> None:
        while len(self._captured) > 1 and sum(c.bytes for c in self._captured.values()) > self._memory:
            key, _ = self._captured.popitem(last=False)
            self._seen.discard(key)
            _log.info("graph memory is used up: dropped the round %s", key)

    def _refuse(self, error: Exception) -> None:
        """From now on everything runs as it is."""
        self.refused = str(error).splitlines()[0]
        self._captured.clear()
        torch.cuda.empty_cache()
        warnings.warn(
            f"rounds cannot be captured as CUDA graphs ({self.refused}): they run launch by launch, slower "
            "and with the same text",
            stacklevel=2,
        )
