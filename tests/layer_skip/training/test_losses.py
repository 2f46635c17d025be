"""The fused loss against autograd through plain cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from layer_skip.training import losses
from layer_skip.training.losses import early_exit_loss


def _inputs():
    generator = torch.Generator().manual_seed(0)
    hiddens = [torch.randn(37, 8, generator=generator).requires_grad_() for _ in range(3)]
    head = torch.randn(19, 8, generator=generator).requires_grad_()
    return hiddens, head, torch.randint(0, 19, (37,), generator=generator)


def _reference(hiddens, head, labels, weights, distill):
    teacher = torch.softmax(hiddens[-1] @ head.t(), -1).detach()
    total = 0.0
    for place, hidden in enumerate(hiddens):
        logits = hidden @ head.t()
        share = 0.0 if place == len(hiddens) - 1 else distill
        loss = (1 - share) * F.cross_entropy(logits, labels) + share * F.cross_entropy(logits, teacher)
        total = total + weights[place] * loss
    return total


@pytest.mark.parametrize("distill", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("chunk", [8, 1024])
def test_gradients_equal_those_of_the_plain_loss(monkeypatch, distill, chunk):
    monkeypatch.setattr(losses, "CHUNK_TOKENS", chunk)
    hiddens, head, labels = _inputs()
    weights = [0.2, 0.3, 0.5]
    expected = torch.autograd.grad(_reference(hiddens, head, labels, weights, distill), [*hiddens, head])
    loss, each = early_exit_loss(hiddens, head, labels, weights, distill)
    found = torch.autograd.grad(loss, [*hiddens, head])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(each[-1], F.cross_entropy(hiddens[-1] @ head.t(), labels).detach())


def test_one_exit_of_weight_one_is_the_ordinary_loss():
    hiddens, head, labels = _inputs()
    loss, _ = early_exit_loss(hiddens[-1:], head, labels, [1.0])
    torch.testing.assert_close(loss, F.cross_entropy(hiddens[-1] @ head.t(), labels))
