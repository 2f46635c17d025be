"""Cache, buffers and graphs that captured rounds live in; kept between calls, one call in each at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from layer_skip.adapters import switches_of
from layer_skip.decoder import LayeredDecoder
from layer_skip.lean import lean
from layer_skip.low_bit import LowBitView
from selfspec.cache import allocated_cache
from selfspec.device.buffers import Buffers, Outcome
from selfspec.device.graphs import Graphs
from selfspec.device.static_round import Kind, StaticRound, bucket
from selfspec.shapes import ShapePlan, padding_on_device

SLOT_QUANTUM = 512
"""Least capacity, and its least step."""
_STEPS = 8
"""Steps to a power of two: few, so that graphs are found again, and near
enough to each other that a long text does not take twice its memory."""
_IDLE_HOOKS = "transformers.utils.output_capturing"
"""Whose hooks stay on all layers once a call has asked for hidden states, and do nothing in other calls."""
_MOST_IDLE = 2
"""Workspaces that are kept while no call uses them: each holds a cache."""


class Workspace:
    """One batch size and capacity.

    Args:
        decoder: the model, as it is now.
        view: its low-bit view, None for none.
        rows: B.
        capacity: slots of the cache.
        shapes: for layers whose rows may depend on each other.
        memory: bytes that graphs may hold.
    """

    def __init__(
        self,
        decoder: LayeredDecoder,
        view: LowBitView | None,
        rows: int,
        capacity: int,
        shapes: ShapePlan,
        memory: int,
    ) -> None:
        self.rows, self.capacity = rows, capacity
        # Allocated now: what is allocated while a graph is captured is the graph's.
        self.cache = allocated_cache(decoder, rows, capacity)
        self.buffers = Buffers(rows, capacity, decoder.device)
        target, self.note = lean(decoder)
        draft = None if view is None else lean(view.of(decoder))[0]
        padded = padding_on_device(self.note, lambda: shapes)
        self.round = StaticRound(target, draft, self.cache, self.buffers, padded)
        self.graphs: Graphs[Kind] = Graphs(self.round, lambda kind: kind.family, decoder.device, memory)

    def run(self, kind: Kind) -> list[Outcome]:
        """Run a round and wait for what it reports, for every row."""
        self.graphs.run(kind)
        device = self.buffers.keys.device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        return self.buffers.outcomes(kind.length)

    def ready_for(self, kind: Kind) -> Kind:
        """For the last rounds of a text, which are cut short by its end: a round that is captured already and
        drafts at least as far, where `kind` itself is not.

        To draft a few tokens that cannot count is quicker than to capture a graph for every length.
        """
        known = [key for key in self.graphs.keys if replace(key, length=kind.length) == kind]
        return min((key for key in known if key.length >= kind.length), key=_length, default=kind)

    @property
    def steady(self) -> bool:
        """Whether the last round took as long as others of its kind will."""
        return self.graphs.replayed or self.buffers.keys.device.type != "cuda" or bool(self.graphs.refused)


class WorkspacePool:
    """Lends workspaces to calls; all of them are dropped when the model changes."""

    def __init__(self) -> None:
        self._idle: list[tuple[tuple[object, ...], Workspace]] = []
        self._lock = threading.Lock()

    @contextmanager
    def lend(
        self,
        decoder: LayeredDecoder,
        view: LowBitView | None,
        rows: int,
        slots: int,
        shapes: ShapePlan,
        memory: int,
    ) -> Iterator[Workspace]:
        """A workspace for `rows` rows of up to `slots` slots, for the time of a call.

        Raises:
            torch.cuda.OutOfMemoryError: there is no room for its cache.
        """
        state = (_state_of(decoder), None if view is None else view.of(decoder), shapes)
        rows, capacity = bucket(rows), capacity_for(slots)
        space = self._take(state, rows, capacity)
        if space is None:
            space = Workspace(decoder, view, rows, capacity, shapes, memory)
        try:
            yield space
        except RuntimeError:  # of the device, perhaps
            raise
        except BaseException:
            space.cache.clear()  # of NaN, which masks do not hide: they are added to it
            self._keep(state, space)
            raise
        self._keep(state, space)

    def _keep(self, state: tuple[object, ...], space: Workspace) -> None:
        with self._lock:
            self._idle.append((state, space))
            del self._idle[:-_MOST_IDLE]

    def clear(self) -> None:
        """Free what no call uses."""
        with self._lock:
            self._idle.clear()

    def _take(self, state: tuple[object, ...], rows: int, capacity: int) -> Workspace | None:
        with self._lock:
            # A graph must not outlive the weights that it reads.
            self._idle = [(known, space) for known, space in self._idle if known == state]
            for index, (_, space) in enumerate(self._idle):
                if (space.rows, space.capacity) == (rows, capacity):
                    return self._idle.pop(index)[1]
            # Another size will be made: what is idle makes room, all but the last.
            del self._idle[: max(0, len(self._idle) - _MOST_IDLE + 1)]
        return None


def _length(kind: Kind) -> int:
    return kind.length


def capacity_for(slots: int) -> int:
    """Slots of the smallest workspace that holds so many."""
    step = max(SLOT_QUANTUM, bucket(slots) // _STEPS)
    return -(-slots // step) * step


def hooked(decoder: LayeredDecoder) -> bool:
    """Whether Python of someone else's runs in the model's passes: it would run at capture alone."""
    return any(
        module._forward_pre_hooks
        or hasattr(module, "_hf_hook")
        or any(getattr(hook, "__module__", "") != _IDLE_HOOKS for hook in module._forward_hooks.values())
        for module in _modules(decoder)
    )


def _modules(decoder: LayeredDecoder) -> Iterator[nn.Module]:
    yield from decoder.base.modules()
    yield decoder.head


def _state_of(decoder: LayeredDecoder) -> tuple[object, ...]:
    """Changes when a graph would read memory that is no longer the model's, or adapters are switched."""
    parts: list[object] = []
    for module in _modules(decoder):
        tensors = (*module._parameters.values(), *module._buffers.values())
        parts.append((id(module), *(None if t is None else t.data_ptr() for t in tensors)))
        parts.append(switches_of(module))
    return tuple(parts)
