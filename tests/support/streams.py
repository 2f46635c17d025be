"""Streamers that remember what they were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import selfspec


class Recorder:
    """Keeps every put; `end` is a put of its own. `log` may be shared with other observers."""

    def __init__(self, log: list[Any] | None = None) -> None:
        self.log: list[Any] = [] if log is None else log

    def put(self, value: Tensor) -> None:
        self.log.append(value.tolist())

    def end(self) -> None:
        self.log.append("end")


class Failing(Recorder):
    """Raises at the n-th put."""

    def __init__(self, puts: int) -> None:
        super().__init__()
        self._puts = puts

    def put(self, value: Tensor) -> None:
        super().put(value)
        if len(self.log) == self._puts:
            raise RuntimeError("the streamer broke")


def failing_processor(calls: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that raises at the n-th call."""
    seen = []

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(ids.shape)
        if len(seen) == calls:
            raise RuntimeError("the processor broke")
        return scores

    return selfspec.rowwise(process)
