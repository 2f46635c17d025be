"""The training forward pass against the Hugging Face model, and layer dropout."""

from __future__ import annotations

import pytest
import torch

from layer_skip.training.batches import Batches
from layer_skip.training.forward import TrainingForward, rms_norm
from layer_skip.training.loop import make_model
from layer_skip.training.recipe import dropout_rates


@pytest.fixture
def model(micro):
    return make_model(micro, 0, 1)


def test_hidden_states_give_the_logits_of_the_hugging_face_model(model):
    tokens = torch.randint(2, 320, (3, 16))
    forward = TrainingForward(model, torch.float32)
    (hidden,) = forward.hiddens(tokens, [3])
    with torch.no_grad():
        expected = model(tokens).logits.flatten(0, 1)
    torch.testing.assert_close(hidden @ forward.head().t(), expected, atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_the_hugging_face_model(model):
    tokens = torch.randint(2, 320, (2, 16))
    model(tokens).logits.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    forward = TrainingForward(model, torch.float32)
    (forward.hiddens(tokens, [3])[0] @ forward.head().t()).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_norm_gradient_is_right():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(
        torch.nn.functional.rms_norm(x, (7,), weight, 1e-5).sin().sum(), [x, weight]
    )
    found = torch.autograd.grad(rms_norm(x, weight, 1e-5).sin().sum(), [x, weight])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_dropped_row_passes_the_layer_by_and_a_kept_one_does_not_notice(model):
    tokens = torch.randint(2, 320, (4, 16))
    forward = TrainingForward(model, torch.float32)
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[2, 1] = False
    whole = forward.hiddens(tokens, range(4))
    dropped = forward.hiddens(tokens, range(4), keep)
    rows = [h.view(4, 16, -1) for h in dropped]
    torch.testing.assert_close(rows[2][1], rows[1][1])
    torch.testing.assert_close(rows[3][[0, 2, 3]], whole[3].view(4, 16, -1)[[0, 2, 3]], atol=1e-5, rtol=1e-4)


def test_a_layer_that_all_rows_drop_costs_nothing_and_gets_no_gradient(model):
    forward = TrainingForward(model, torch.float32)
    keep = torch.ones(4, 2, dtype=torch.bool)
    keep[3] = False
    forward.hiddens(torch.randint(2, 320, (2, 16)), [3], keep)[0].sum().backward()
    assert model.model.layers[3].mlp.up_proj.weight.grad is None
    assert model.model.layers[2].mlp.up_proj.weight.grad is not None


def test_layers_are_dropped_at_the_recipe_rate_and_the_first_never(micro):
    batches = Batches(torch.arange(200), micro)
    rates = dropout_rates(4, 1.0, 0.5)
    kept = torch.stack([batches.keep_rows(step, rates, 8) for step in range(1000)]).float().mean((0, 2))
    assert kept[0] == 1.0
    # 8000 draws: a standard error of at most 0.0056, so 0.02 is more than three of them.
    assert (1 - kept).tolist() == pytest.approx(rates, abs=0.02)
    assert batches.keep_rows(0, [0.0] * 4, 8) is None
