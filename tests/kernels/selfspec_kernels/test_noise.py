"""Counter-based noise: one set of numbers for the engine, the references and the kernels."""

from __future__ import annotations

import pytest
import torch
from interpreter import results_of

from selfspec import sampling
from selfspec_kernels import noise
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.noise import Noise, position_keys, stream_keys

REQUESTS = torch.tensor([0, -1, 1 << 62, -(1 << 63), 12345])
POSITIONS = torch.arange(20).view(5, 4) * 1_000_003 + (7 << 32)


@pytest.mark.parametrize("seed", [0, 3, 1 << 62])
@pytest.mark.parametrize("stream", [0, 1, 3])
def test_keys_are_those_of_the_engine(seed, stream):
    found = position_keys(stream_keys(seed, REQUESTS, stream), POSITIONS)
    assert torch.equal(found, sampling.position_keys(seed, REQUESTS, POSITIONS, stream))


def test_numbers_are_those_of_the_engine():
    keys = position_keys(stream_keys(1, REQUESTS), POSITIONS)
    every = torch.arange(1000)
    assert torch.equal(noise.uniform(keys, every), sampling.uniform(keys, 1000))
    torch.testing.assert_close(noise.gumbel(keys, every), sampling.gumbel(keys, 1000), rtol=0, atol=0)


def test_keys_are_mixed_by_splitmix64():
    """The first two numbers of its seed 0, as they are published."""
    states = torch.tensor([1, 2]) * noise.GOLDEN
    assert [z % (1 << 64) for z in noise.mix64(states).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_mix64_is_a_bijection_in_effect_and_avalanches():
    inputs = torch.arange(1 << 16)
    outputs = noise.mix64(inputs)
    assert len(outputs.unique()) == len(inputs)
    for bit in (0, 20, 62):
        flipped = noise.mix64(inputs ^ (1 << bit)) ^ outputs
        ones = sum(((flipped >> i) & 1).float().mean() for i in range(64))
        assert abs(float(ones) - 32) < 0.2


def test_noise_of_a_token_does_not_depend_on_who_is_asked_for_beside_it():
    settings = Noise(stream_keys(1, REQUESTS), POSITIONS)
    some = torch.tensor([17, 3, 999])
    assert torch.equal(settings.at(some), settings.at(torch.arange(1000))[..., some])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Noise(REQUESTS[:4], POSITIONS), r"noise keys must be \[5\], not \[4\]"),
        (Noise(REQUESTS.int(), POSITIONS), "noise keys must be torch.int64"),
        (Noise(REQUESTS, POSITIONS[:, :3]), r"noise positions must be \[5, 4\]"),
        (Noise(REQUESTS, POSITIONS.float()), "noise positions must be torch.int64"),
    ],
)
def test_noise_that_does_not_fit_is_named(settings, message):
    with pytest.raises(KernelInputError, match=message):
        settings.check(5, 4)


# Triton's interpreter


def test_the_kernels_uniforms_are_the_same_to_the_last_bit():
    assert results_of("noise")["errors"]["uniform"] == 0.0


def test_the_kernels_logarithms_differ_by_rounding_alone():
    assert results_of("noise")["errors"]["gumbel"] < 4e-6  # two last bits of the largest, about 22


def test_the_tails_of_the_noise_are_exact():
    found = results_of("noise")["tails"]
    assert found["found"] == pytest.approx(found["expected"], rel=1e-6)
    assert max(found["found"]) > 22
