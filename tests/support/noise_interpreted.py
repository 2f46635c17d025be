"""Runs the noise of kernels in Triton's interpreter and prints how far it is from the reference's."""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl
from interpreter import prepare

from selfspec_kernels import noise
from selfspec_kernels.noise_kernels import gumbel, gumbel_of, position_key, uniform

COUNT = 4096


@triton.jit
def noise_kernel(keys_ptr, positions_ptr, uniforms_ptr, gumbels_ptr, COUNT: tl.constexpr):
    row = tl.program_id(0)
    key = position_key(tl.load(keys_ptr + row), tl.load(positions_ptr + row))
    token = tl.arange(0, COUNT)
    tl.store(uniforms_ptr + row * COUNT + token, uniform(key, token))
    tl.store(gumbels_ptr + row * COUNT + token, gumbel(key, token))


@triton.jit
def tail_kernel(u_ptr, out_ptr, n, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    u = tl.load(u_ptr + at, mask=at < n, other=0.5)
    tl.store(out_ptr + at, gumbel_of(u), mask=at < n)


def errors() -> dict[str, float]:
    """Largest difference over keys and positions with and without their top bits."""
    keys = torch.tensor([0, -1, 1 << 62, -(1 << 63), 123_456_789])
    positions = torch.tensor([0, 1, (5 << 32) + 7, 1 << 40, 127])
    uniforms, gumbels = torch.empty(len(keys), COUNT), torch.empty(len(keys), COUNT)
    noise_kernel[(len(keys),)](keys, positions, uniforms, gumbels, COUNT=COUNT)
    at = noise.position_keys(keys, positions[:, None])[:, 0]
    tokens = torch.arange(COUNT)
    return {
        "uniform": float((uniforms - noise.uniform(at, tokens)).abs().max()),
        "gumbel": float((gumbels - noise.gumbel(at, tokens)).abs().max()),
    }


def tails() -> dict[str, list[float]]:
    """Noise of the smallest and largest uniforms, by the kernel's formula and in double precision."""
    u = torch.tensor([2.0**-32, 2.0**-26, 2.0**-25, 1.5 * 2.0**-24, 1e-3, 0.5, 1 - 2.0**-24])
    found = torch.empty(len(u))
    tail_kernel[(1,)](u, found, len(u), COUNT=8)
    return {"found": found.tolist(), "expected": (-(-torch.log1p(-u.double())).log()).tolist()}


if __name__ == "__main__":
    prepare()
    print(json.dumps({"errors": errors(), "tails": tails()}))
