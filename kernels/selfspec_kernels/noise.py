"""Counter-based noise in plain PyTorch: pure functions from (key, token) to random numbers.

Every number can be read on its own, by a program that looks at this token only. Keys of 64 bits are mixed by
SplitMix64 (Steele, Lea and Flood 2014). A token's number is a hash of 32 bits, one half of its position's key
in front and the other in the middle: a GPU spends much of sampling on it. The kernels' numbers
(`noise_kernels`) are the same: uniforms to the last bit, their logarithms up to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_kernels.backend import check

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, odd, as a signed 64-bit number
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
SPREAD = 0x9E3779B9 - (1 << 32)  # 2^32 / golden ratio, odd, as a signed 32-bit number
HASH_1 = 0x21F0AAAD
HASH_2 = 0xD35A2D97 - (1 << 32)
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
    start = torch.tensor(seed + stream * GOLDEN & 0x7FFFFFFFFFFFFFFF, dtype=torch.int64, device="cpu")
    return mix64(requests ^ mix64(start).to(requests.device))


def position_keys(keys: Tensor, positions: Tensor) -> Tensor:
    """Keys [B, m] at positions [B, m], for keys [B] from `stream_keys`."""
    return mix64(keys[:, None] + positions * GOLDEN)


def mix64(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 [...], wrapping on overflow."""
    z = (z ^ _shift_right(z, 30)) * MIX_1
    z = (z ^ _shift_right(z, 27)) * MIX_2
    return z ^ _shift_right(z, 31)


def uniform(keys: Tensor, tokens: Tensor) -> Tensor:
    """Numbers in (0, 1) in float32 [..., n] for keys [...] and tokens [n].

    31 bits, centred: the smallest is 2^-32, so the Gumbel tail reaches 22 (a plain float32 uniform
    truncates it near 17, which a vocabulary of 128k tokens would feel).
    """
    low, high = (keys << 32 >> 32).int()[..., None], (keys >> 32).int()[..., None]
    z = tokens.int() * SPREAD + low
    # Of the finalisers of two multiplications in Wellons' "hash prospector" the one that avalanches best.
    z = z.bitwise_xor_(_shift_right(z, 16)).mul_(HASH_1)
    # The other half comes in between the products: what differs in it alone is no shift of the same numbers.
    z = z.bitwise_xor_(_shift_right(z, 15)).bitwise_xor_(high).mul_(HASH_2)
    z = z.bitwise_xor_(_shift_right(z, 15))
    bits = _shift_right(z, 32 - BITS).to(torch.float32)
    return bits.add_(0.5).mul_(2.0**-BITS).clamp_(max=LARGEST)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise [..., n] of the same: -log of an exponential, exact in the upper tail."""
    return uniform(keys, tokens).neg_().log1p_().neg_().log_().neg_()


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on signed integers keeps the sign bit."""
    return (z >> bits).bitwise_and_((1 << (8 * z.element_size() - bits)) - 1)
