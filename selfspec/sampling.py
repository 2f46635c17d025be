"""Shared noise: pure functions from (seed, request, position, token) to random numbers.

Draft and target look at the same numbers, whatever was run in between, so a token depends on the seed and
its own position alone. Counter-based, so every (key, token) can be read on its own: keys of 64 bits are mixed
by SplitMix64 (Steele, Lea and Flood 2014), a token's number is a hash of 32 bits with both halves of its
position's key in it.
"""

import hashlib
from collections import Counter

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, odd, as a signed 64-bit number
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15
_SPREAD = -0x61C88647  # 2^32 / golden ratio, odd, as a signed 32-bit number
# Of the finalisers of two multiplications in Wellons' "hash prospector" the one that avalanches best.
_HASH_1 = 0x21F0AAAD
_HASH_2 = -0x2CA5D269
_TOP_BITS = 31


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on signed integers keeps the sign bit."""
    return (z >> bits).bitwise_and_((1 << (8 * z.element_size() - bits)) - 1)


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
    """Numbers in (0, 1) [..., count] in float32, of the tokens 0 to count - 1 under every key [...].

    31 bits, centred: the smallest is 2^-32, so the Gumbel tail reaches 22 (a plain float32 uniform
    truncates it near 17, which a vocabulary of 128k tokens would feel).
    """
    low, high = (keys << 32 >> 32).int()[..., None], (keys >> 32).int()[..., None]
    z = torch.arange(count, device=keys.device, dtype=torch.int32) * _SPREAD + low
    z = z.bitwise_xor_(_shift_right(z, 16)).mul_(_HASH_1)
    # The other half comes in between the products: what differs in it alone is no shift of the same numbers.
    z = z.bitwise_xor_(_shift_right(z, 15)).bitwise_xor_(high).mul_(_HASH_2)
    z = z.bitwise_xor_(_shift_right(z, 15))
    bits = _shift_right(z, 32 - _TOP_BITS).to(torch.float32)
    return bits.add_(0.5).mul_(2.0**-_TOP_BITS).clamp_(max=1 - 2.0**-24)


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise [..., count]: -log of an exponential, exact in the upper tail."""
    return uniform(keys, count).neg_().log1p_().neg_().log_().neg_()
