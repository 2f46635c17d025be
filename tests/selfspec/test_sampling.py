"""The noise: uniform, independent wherever it must be, and the same wherever it must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import LEAST_P, p_value
from scipy import stats
from torch import Tensor

from selfspec.sampling import gumbel, position_keys, request_keys, uniform
from selfspec_kernels import noise as kernel_noise

NUMBERS = 1 << 20


def stream_of(
    seed: int = 0, request: int = 1, position: int = 0, stream: int = 0, count: int = NUMBERS
) -> Tensor:
    """`count` uniforms of one key: those of the tokens 0, 1, ... at one position."""
    keys = position_keys(seed, torch.tensor([request]), torch.tensor([[position]]), stream)
    return uniform(keys, count)[0, 0]


def correlation_p_value(one: Tensor, other: Tensor) -> float:
    """Chi-square of the two on a 16 x 16 grid: any dependence that shows in the four top bits of both."""
    cells = (one * 16).long() * 16 + (other * 16).long()
    return p_value(torch.bincount(cells, minlength=256).numpy(), np.full(256, 1 / 256))


# What may be neighbours: keys that differ in one thing, by one or in a high bit.
ACROSS = {
    "tokens": lambda: (stream_of()[:-1], stream_of()[1:]),
    "positions": lambda: (stream_of(position=7), stream_of(position=8)),
    "far positions": lambda: (stream_of(position=7), stream_of(position=7 + (1 << 32))),
    "requests": lambda: (stream_of(request=1), stream_of(request=2)),
    "seeds": lambda: (stream_of(seed=3), stream_of(seed=4)),
    "large seeds": lambda: (stream_of(seed=3), stream_of(seed=3 + (1 << 61))),
    "streams": lambda: (stream_of(stream=1), stream_of(stream=2)),
    "position against stream": lambda: (stream_of(position=1), stream_of(stream=1)),
    "request against position": lambda: (stream_of(request=2, position=1), stream_of(request=1, position=2)),
}


@pytest.mark.parametrize("name", ACROSS)
def test_noise_is_independent_across(name: str) -> None:
    one, other = ACROSS[name]()
    assert not torch.equal(one, other)
    assert correlation_p_value(one, other) > LEAST_P
    assert abs(float(np.corrcoef(one.numpy(), other.numpy())[0, 1])) < 5 / NUMBERS**0.5


@pytest.mark.parametrize("axis", ["token", "position", "request", "seed"])
def test_uniforms_are_uniform_along_every_axis(axis: str) -> None:
    n = 1 << 16
    zero = torch.zeros(n, dtype=torch.int64)
    steps = torch.arange(n)
    if axis == "token":
        numbers = stream_of(count=n)
    elif axis == "position":
        numbers = uniform(position_keys(0, torch.tensor([5]), steps[None]), 1).flatten()
    elif axis == "request":
        numbers = uniform(position_keys(0, steps, zero[:, None]), 1).flatten()
    else:
        numbers = torch.cat([stream_of(seed=seed, count=4) for seed in range(2048)])
    counts = torch.bincount((numbers * 64).long(), minlength=64).numpy()
    assert p_value(counts, np.full(64, 1 / 64)) > LEAST_P
    assert stats.kstest(numbers.double().numpy(), "uniform").pvalue > LEAST_P


def test_neighbouring_positions_are_independent_for_every_token() -> None:
    """The pairs that a text is made of: the same token at successive positions."""
    numbers = uniform(position_keys(0, torch.arange(64), torch.arange(257).expand(64, -1)), 64)
    assert correlation_p_value(numbers[:, :-1].flatten(), numbers[:, 1:].flatten()) > LEAST_P
    assert correlation_p_value(numbers[:-1].flatten(), numbers[1:].flatten()) > LEAST_P


@pytest.mark.parametrize("apart", [1, 2, 3, 8, 64, 1 << 10, 1 << 15, 100_003])
def test_tokens_of_one_position_are_independent_in_all_their_digits(apart: int) -> None:
    """Over positions: the same two tokens, in their leading digits, their last ones, and both in the tail."""
    keys = position_keys(0, torch.tensor([1]), torch.arange(1 << 19)[None])[0]
    one, other = uniform(keys, 1)[:, 0], _uniform_of(keys, apart)
    assert correlation_p_value(one, other) > LEAST_P
    assert correlation_p_value((one * 2.0**12) % 1, (other * 2.0**12) % 1) > LEAST_P
    both = int(((one < 2.0**-6) & (other < 2.0**-6)).sum())
    assert abs(both - 2.0**7) < 5 * 2.0**3.5


def _uniform_of(keys: Tensor, token: int) -> Tensor:
    """Uniforms [n] of one token for keys [n], without those before it."""
    return kernel_noise.uniform(keys, torch.tensor([token]))[:, 0]


def test_the_least_number_of_a_vocabulary_is_that_of_independent_ones() -> None:
    """It decides which token is drawn from a flat distribution: how small it is, and where."""
    vocabulary, count = 1 << 15, 1 << 11
    keys = position_keys(2, torch.tensor([9]), torch.arange(count)[None])[0]
    least, place = uniform(keys, vocabulary).min(dim=1)
    assert stats.kstest(least.double().numpy() * vocabulary, "expon").pvalue > LEAST_P
    assert p_value(torch.bincount(place >> 10, minlength=32).numpy(), np.full(32, 1 / 32)) > LEAST_P
    assert correlation_p_value(place[:-1] / vocabulary, place[1:] / vocabulary) > LEAST_P
    small = (uniform(keys, vocabulary) < 2.0**-10).sum(dim=1).numpy()
    # Poisson: neither clustered in some positions, nor the same in all.
    assert stats.chi2.sf(((small - 32) ** 2 / 32).sum(), count) > LEAST_P
    assert stats.chi2.cdf(((small - 32) ** 2 / 32).sum(), count) > LEAST_P


def test_numbers_come_again_as_often_as_by_chance() -> None:
    """So no two positions run through the same numbers, be it at other tokens: a birthday test."""
    numbers = uniform(position_keys(0, torch.arange(4), torch.arange(1024).expand(4, -1)), 1 << 12)
    small = numbers[numbers < 2.0**-8]  # one of 2^23 numbers, all of which float32 tells apart
    count, cells = len(small), 2.0**23
    expected = count + cells * np.expm1(-count / cells)
    assert expected > 200
    assert abs(count - len(small.unique()) - expected) < 5 * expected**0.5


def test_uniforms_stay_inside_the_open_interval() -> None:
    numbers = stream_of(count=1 << 22)
    assert 0 < float(numbers.min()) < 1e-5
    assert 1 - 1e-5 < float(numbers.max()) < 1
    assert gumbel(position_keys(0, torch.tensor([1]), torch.tensor([[0]])), 1 << 22).isfinite().all()


def test_gumbel_noise_has_gumbel_moments_and_shape() -> None:
    noise = (
        gumbel(position_keys(0, torch.arange(16), torch.arange(16).expand(16, -1)), 1 << 12)
        .double()
        .flatten()
    )
    assert abs(float(noise.mean()) - 0.5772156649) < 5 * float(noise.std()) / NUMBERS**0.5
    assert abs(float(noise.var()) - np.pi**2 / 6) < 0.02
    assert stats.kstest(noise[: 1 << 17].numpy(), "gumbel_r").pvalue > LEAST_P


def test_the_gumbel_tail_is_resolved_past_float32_uniforms() -> None:
    """A float32 uniform in steps of 2^-24 ends the tail at 16.6; here small numbers keep finer steps."""
    keys = position_keys(0, torch.arange(2), torch.tensor([[0], [0]]))
    numbers, noise = uniform(keys, 1 << 22).flatten(), gumbel(keys, 1 << 22).flatten()
    for bound in (6.0, 8.0, 10.0):
        expected = len(noise) * -np.expm1(-np.exp(-bound))
        assert abs(int((noise > bound).sum()) - expected) < 5 * expected**0.5
    small = numbers[numbers < 2.0**-12].double() * 2**32
    assert len(small) > 1000
    assert (
        small % 2 == 1
    ).all()  # odd multiples of 2^-32: none is nearer to 0 than 2^-32, whose Gumbel is 22
    assert len(small.unique()) > 0.99 * len(small)


def test_the_largest_score_wins_as_often_as_softmax_says() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])
    noise = gumbel(position_keys(0, torch.arange(100), torch.arange(2000).expand(100, -1)), 5)
    counts = torch.bincount((logits + noise).argmax(dim=-1).flatten(), minlength=5).numpy()
    assert p_value(counts, logits.softmax(dim=0).numpy()) > LEAST_P


def test_a_number_depends_on_its_own_key_and_place_alone() -> None:
    requests, positions = torch.tensor([3, 4]), torch.tensor([[5, 6, 7], [8, 9, 10]])
    together = gumbel(position_keys(1, requests, positions), 33)
    for row in range(2):
        for column in range(3):
            alone = gumbel(position_keys(1, requests[row : row + 1], positions[row, column].view(1, 1)), 20)
            assert torch.equal(together[row, column, :20], alone[0, 0])


def test_equal_prompts_of_one_call_get_keys_of_their_own_and_others_do_not_matter() -> None:
    keys = request_keys([[1, 2], [3], [1, 2], [1, 2]]).tolist()
    assert len(set(keys)) == 4
    assert request_keys([[1, 2]]).tolist() == keys[:1]
    assert request_keys([[9], [1, 2], [1, 2]]).tolist()[1:] == [keys[0], keys[2]]


def test_keys_tell_prompts_apart_however_their_tokens_are_cut() -> None:
    prompts = [[1, 2, 3], [1, 2], [1, 2, 0], [0, 1, 2], [2, 1], [1], [0], [0, 0], [258], [2, 1, 0]]
    assert len(set(request_keys(prompts).tolist())) == len(prompts)
