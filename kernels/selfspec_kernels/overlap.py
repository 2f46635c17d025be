"""Whether kernels may take their places while the kernel before them still drains (`launching` says how).

It pays where kernels are short. Measured on an H100 at the 8B shape: a draft step in 4 bits takes 2.66 ms
with it and 2.77 without; a plain step, of four times the bytes, takes 6.20 with it and 5.84 without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_overlapping = ContextVar("_overlapping", default=False)


def overlapping() -> bool:
    """Whether launches and captures overlap here and now."""
    return _overlapping.get()


@contextmanager
def with_overlap(wanted: bool = True) -> Iterator[None]:
    """Launches and captures in here overlap, or do not."""
    token = _overlapping.set(wanted)
    try:
        yield
    finally:
        _overlapping.reset(token)
