"""Shared noise: pure functions from (seed, request, position, token) to random numbers.

Draft and target look at the same numbers, whatever was run in between, so a token depends on the seed and
its own position alone. The numbers themselves are those of `selfspec_kernels.noise`.
"""

import hashlib
from collections import Counter

import torch
from torch import Tensor

from selfspec_kernels import noise


def request_keys(prompts: list[list[int]]) -> Tensor:
    """One int64 key per prompt [B]: a hash of its tokens and its ordinal among equal prompts of the call.

    So a row's text does not depend on who shares its batch, and `num_return_sequences` rows still differ.
    """
    seen: Counter[bytes] = Counter()
    keys = []
    for prompt in prompts:
        tokens = torch.tensor(prompt, dtype=torch.int64, device="cpu").numpy().tobytes()
        digest = hashlib.blake2b(tokens + seen[tokens].to_bytes(8, "little"), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little", signed=True))
        seen[tokens] += 1
    return torch.tensor(keys, dtype=torch.int64, device="cpu")


def position_keys(seed: int, requests: Tensor, positions: Tensor, stream: int = 0) -> Tensor:
    """Keys [B, m] for requests [B] at positions [B, m]; `stream` separates uses of the same position."""
    return noise.position_keys(noise.stream_keys(seed, requests, stream), positions)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Numbers in (0, 1) [..., count] in float32, of the tokens 0 to count - 1 under every key [...]."""
    return noise.uniform(keys, _first(count, keys))


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise [..., count] of the same tokens."""
    return noise.gumbel(keys, _first(count, keys))


def _first(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=like.device)
