"""Counter-based noise in plain PyTorch: pure functions from (key, token) to random numbers.

SplitMix64 (Steele, Lea and Flood 2014): the n-th output of a key is a bijective mix of key + n * GOLDEN, so
every number can be read on its own, by a program that looks at this token only. Token v takes output v + 1.
The numbers are those of `selfspec.sampling`, and the kernels' (`noise_kernels`): uniforms to the last bit,
their logarithms up to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_kernels.backend import check

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, odd, as a signed 64-bit number
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
BITS = 31
LARGEST = 1 - 2.0**-24


@dataclass(frozen=True)
class Noise:
    """Which Gumbel noise decides at each of m columns of B rows: that of (seed, request, position, token)."""

    keys: Tensor
    """[B] int64 from `stream_keys`: made once a call."""
    positions: Tensor
    """[B, m] int64, any strides: the absolute position of the token that the column chooses."""

    def at(self, tokens: Tensor) -> Tensor:
        """The noise [B, m, n] of tokens [n]."""
        return gumbel(position_keys(self.keys, self.positions), tokens)

    def check(self, rows: int, width: int) -> None:
        """Shapes and dtypes for B rows of m columns.

        Raises:
            KernelInputError: others.
        """
        check("noise keys", self.keys, (rows,), torch.int64)
        check("noise positions", self.positions, (rows, width), torch.int64, layout="any")


def stream_keys(seed: int, requests: Tensor, stream: int = 0) -> Tensor:
    """Keys [B] of requests [B]; `stream` separates uses of the same position."""
    start = mix64(torch.tensor(seed + stream * GOLDEN & 0x7FFFFFFFFFFFFFFF, dtype=torch.int64))
    return mix64(requests ^ start.to(requests.device))


def position_keys(keys: Tensor, positions: Tensor) -> Tensor:
    """Keys [B, m] at positions [B, m], for keys [B] from `stream_keys`."""
    return mix64(keys[:, None] + positions * GOLDEN)


def mix64(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 [...], wrapping on overflow."""
    z = (z ^ _shift_right(z, 30)) * MIX_1
    z = (z ^ _shift_right(z, 27)) * MIX_2
    return z ^ _shift_right(z, 31)


def uniform(keys: Tensor, tokens: Tensor) -> Tensor:
    """Numbers in (0, 1) [..., n] in float32 for keys [...] and tokens [n]; 31 bits, centred."""
    z = mix64(keys[..., None] + (tokens.long() + 1) * GOLDEN)
    bits = _shift_right(z, 64 - BITS).to(torch.float32)
    return ((bits + 0.5) * 2.0**-BITS).clamp(max=LARGEST)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise [..., n] for keys [...] and tokens [n]: -log of an exponential."""
    return -torch.log(-torch.log1p(-uniform(keys, tokens)))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 keeps the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
