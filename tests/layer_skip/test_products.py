"""Products in one launch are those of the modules, and other modules are called as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layer_skip.packed_linear import PackedLinear
from layer_skip.products import added, gated, is_plain_matrix, together

X = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
MANY = torch.randn(1, 70, 32, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Linear):
    """A subclass computes what it likes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def hooked(module: nn.Linear) -> nn.Linear:
    module.register_forward_hook(lambda _module, _inputs, out: out + 1)
    return module


MATRICES = {
    "plain": lambda n: nn.Linear(32, n, bias=False),
    "with a bias": lambda n: nn.Linear(32, n),
    "a subclass": lambda n: Doubled(32, n),
    "with a hook": lambda n: hooked(nn.Linear(32, n)),
    "in 8 bits": lambda n: PackedLinear(torch.randn(n, 32), None, bits=8, group=32),
}


@pytest.mark.parametrize("x", [X, MANY], ids=["few rows", "many rows"])
@pytest.mark.parametrize("kind", MATRICES)
@torch.inference_mode()
def test_products_are_those_of_the_modules(kind: str, x: torch.Tensor) -> None:
    torch.manual_seed(0)
    make = MATRICES[kind]
    modules = [make(48), make(16), make(16)]
    expected = torch.cat([module(x) for module in modules], dim=-1)
    torch.testing.assert_close(together(modules)(x), expected, rtol=1e-4, atol=1e-4)
    back = make(32)
    torch.testing.assert_close(added(back)(x, x, 0.5), x + back(x) * 0.5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(added(back)(x, x, 1.0), x + back(x), rtol=1e-4, atol=1e-4)
    act = nn.SiLU()
    gate, up = make(48), make(48)
    torch.testing.assert_close(gated(gate, up, act)(x), act(gate(x)) * up(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_activation_that_the_kernels_lack_is_called() -> None:
    gate, up = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
    act = nn.Tanh()
    torch.testing.assert_close(gated(gate, up, act)(X), act(gate(X)) * up(X))


def test_only_a_matrix_as_it_is_counts_as_plain() -> None:
    assert is_plain_matrix(nn.Linear(4, 4))
    assert not is_plain_matrix(Doubled(4, 4))
    assert not is_plain_matrix(hooked(nn.Linear(4, 4)))
    patched = nn.Linear(4, 4)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert not is_plain_matrix(patched)
