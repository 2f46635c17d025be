"""What a script sets for all of torch: autocast, which computes in another dtype than the one that a model
was checked and timed in, and a default device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from selfspec.fallback import NotSpeculatedError


@contextmanager
def on_host_by_default() -> Iterator[None]:
    """Without `torch.set_default_device`: what is computed in here stands on the host."""
    before = torch.get_default_device()
    torch.set_default_device(None)
    try:
        yield
    finally:
        if before.type != "cpu":
            torch.set_default_device(before)


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block that computes in the model's own dtype, whatever the caller is in."""
    return torch.autocast(device.type, enabled=False) if _is_on(device) else nullcontext()


def check_autocast(model: Any) -> None:
    """Raise NotSpeculatedError within torch.autocast to another dtype than the model's.

    Draft and verification would round in places of their own: packed weights, kernels and the cache have the
    model's dtype.
    """
    if not _is_on(model.device):
        return
    dtype = torch.get_autocast_dtype(model.device.type)
    if dtype != model.dtype:
        raise NotSpeculatedError(
            f"torch.autocast to {dtype} of a model in {model.dtype}",
            f"cast the model instead: model.to({dtype})",
        )


def _is_on(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
