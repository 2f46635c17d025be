"""What a profile was tuned for: a fingerprint of the model, the hardware and the dtype."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from selfspec.benchmarking.environment import conditions

_SAMPLES = 8
"""Weights per tensor that the fingerprint looks at."""


@dataclass(frozen=True)
class Identity:
    """What a profile was tuned for; costs and acceptance hold for nothing else."""

    fingerprint: str
    device: str
    """Type of the device, name of the hardware, and a processor's vector instructions."""
    dtype: str

    def __post_init__(self) -> None:
        if not all(isinstance(value, str) and value for value in asdict(self).values()):
            raise ValueError(f"{self}: fingerprint, device and dtype are texts")

    @classmethod
    def of(cls, model: Any) -> Identity:
        """Of a model as it is now."""
        found = conditions(model)
        return cls(fingerprint(model), f"{found['device']}: {found['hardware']}", found["dtype"])

    def differences(self, other: Identity) -> list[str]:
        """Which fields differ, in words: mine, then the other's."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} is {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]
        ]


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """A short hash of a model's shape and of a few weights of every tensor, the same in every dtype.

    Two fine-tunes of one model differ; the same weights in bf16 and fp32 do not (dtype is its own field).
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{model.config.model_type} {model.config.vocab_size}".encode())
    samples = []
    for name, tensor in model.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            # A view where the tensor allows it: `reshape` copies a transposed one.
            flat = tensor.detach().reshape(-1)
            samples.append(flat[torch.tensor(_places(len(flat)), device=flat.device)].to(torch.bfloat16))
    if samples:
        digest.update(torch.cat([s.cpu() for s in samples]).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _places(count: int) -> list[int]:
    """Indices spread over `count` weights, in whole numbers: float32 rounds the last one past the end."""
    return [i * (count - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)]
