"""What a sweep tries: one kernel at one shape, with the plans for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any


@dataclass(frozen=True)
class Candidates:
    """One kernel at one shape: `run(plan, inputs)`, the plans with the default first, and inputs to make."""

    run: Callable[[Any, Any], object]
    plans: Sequence[Any]
    inputs: Callable[[], Any]
    nbytes: int


def first_plans(default: Any, others: Iterable[Any], most: int = 48) -> list[Any]:
    """The default, then each other plan once; at most so many."""
    return list(islice(dict.fromkeys(chain((default,), others)), most))
