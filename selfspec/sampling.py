"""Shared noise: pure functions from (seed, request, position, token) to random numbers.

Draft and target look at the same numbers, whatever was run in between, so a token depends on the seed and
its own position alone. Counter-based: SplitMix64 (Steele, Lea and Flood 2014), whose n-th output is a
bijective mix of `key + n * GOLDEN`, so every (key, n) can be read on its own.
"""

import hashlib
from collections import Counter

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, odd, as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15
_TOP_BITS = 31


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 keeps the sign bit."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 [...], wrapping on overflow."""
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def request_keys(prompts: list[list[int]]) -> Tensor:
    """One int64 key per prompt [B]: a hash of its tokens and its ordinal among equal prompts of the call.

    So a row's text does not depend on who shares its batch, and `num_return_sequences` rows still differ.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for prompt in prompts:
        tokens = torch.tensor(prompt, dtype=torch.int64).numpy().tobytes()
        digest = hashlib.blake2b(tokens + seen[tokens].to_bytes(8, "little"), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little", signed=True))
        seen[tokens] += 1
    return torch.tensor(keys, dtype=torch.int64)


def position_keys(seed: int, requests: Tensor, positions: Tensor, stream: int = 0) -> Tensor:
    """Keys [B, m] for requests [B] at positions [B, m]; `stream` separates uses of the same position."""
    start = mix64(torch.tensor(seed + stream * GOLDEN & 0x7FFFFFFFFFFFFFFF, dtype=torch.int64))
    per_request = mix64(requests ^ start.to(requests.device))
    return mix64(per_request[:, None] + positions * GOLDEN)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1) [..., count] in float32, the first `count` outputs of every key [...].

    31 bits, centred: the smallest is 2^-32, so the Gumbel tail reaches 22 (a plain float32 uniform
    truncates it near 17, which a vocabulary of 128k tokens would feel).
    """
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * GOLDEN
    z = keys[..., None] + counters
    z = z.bitwise_xor_(_shift_right(z, 30)).mul_(_MIX_1)
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_MIX_2)
    # The last xor of the finaliser does not reach the top 31 bits, and only those are used.
    bits = _shift_right(z, 64 - _TOP_BITS).to(torch.float32)
    return bits.add_(0.5).mul_(2.0**-_TOP_BITS).clamp_(max=1 - 2.0**-24)


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise [..., count]: -log of an exponential, exact in the upper tail."""
    return uniform(keys, count).neg_().log1p_().neg_().log_().neg_()
