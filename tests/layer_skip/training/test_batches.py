"""Windows of training text."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from layer_skip.training.batches import Batches


def test_labels_are_the_next_tokens(micro):
    tokens, labels = Batches(torch.arange(500), micro)(0)
    assert tokens.shape == labels.shape == (4, 16)
    assert torch.equal(tokens + 1, labels)


def test_a_step_is_a_function_of_seed_and_step_alone(micro):
    first, second = Batches(torch.arange(500), micro), Batches(torch.arange(500), micro)
    second(0)
    assert torch.equal(first(5)[0], second(5)[0])
    other = Batches(torch.arange(500), dataclasses.replace(micro, seed=1))
    assert not torch.equal(first(0)[0], other(0)[0])


def test_an_epoch_sees_every_window_once(micro):
    config = dataclasses.replace(micro, long_every=0)
    batches = Batches(torch.arange(16 * 12 + 1), config)
    starts = torch.cat([batches(step)[0][:, 0] for step in range(3)])
    assert sorted(starts.tolist()) == list(range(0, 16 * 12, 16))
    again = torch.cat([batches(step)[0][:, 0] for step in range(3, 6)])
    assert sorted(again.tolist()) == sorted(starts.tolist()) and again.tolist() != starts.tolist()


def test_every_third_step_is_long(micro):
    batches = Batches(torch.arange(500), micro)
    assert [tuple(batches(step)[0].shape) for step in range(3)] == [(4, 16), (4, 16), (2, 32)]


def test_too_little_text_is_refused(micro):
    with pytest.raises(ValueError, match="10 tokens of training text; allowed: at least 34"):
        Batches(torch.arange(10), micro)
