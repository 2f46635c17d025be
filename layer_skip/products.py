"""Products of a layer as callables on hidden states: in one launch where the modules are plain matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layer_skip.packed_linear import PackedLinear
from selfspec_kernels.low_bit_products import low_bit_gated, low_bit_products
from selfspec_kernels.low_bit_products_reference import PackedMatrix
from selfspec_kernels.narrow_product import gated_product, narrow_product
from selfspec_kernels.narrow_product_reference import MOST_ROWS

Product = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Tensor, float], Tensor]
"""(x, residual, multiplier) -> residual + module(x) * multiplier."""
_ACTIVATIONS = {"SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu"}


def together(modules: Sequence[nn.Module]) -> Product:
    """x [..., K] -> the modules' outputs side by side [..., N1 + N2 + ...]."""

    def one_by_one(x: Tensor) -> Tensor:
        outputs = [module(x) for module in modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    if all(map(_is_packed, modules)):
        matrices = [_packed(module) for module in modules]
        return ForFew(lambda x: low_bit_products(x, matrices), one_by_one)
    if not all(map(is_plain_matrix, modules)):
        return one_by_one
    weights, biases = _weights(modules), _biases(modules)
    return ForFew(lambda x: narrow_product(x, weights, biases), one_by_one)


def added(module: nn.Module) -> Residual:
    """(x, residual, multiplier) -> residual + module(x) * multiplier."""

    def apart(x: Tensor, residual: Tensor, multiplier: float) -> Tensor:
        out = module(x)
        return residual + (out if multiplier == 1.0 else out * multiplier)

    if _is_packed(module):
        matrices = [_packed(module)]
        return ForFew(lambda x, r, by: low_bit_products(x, matrices, residual=r, multiplier=by), apart)
    if not is_plain_matrix(module):
        return apart
    weights, biases = _weights([module]), _biases([module])
    return ForFew(lambda x, r, by: narrow_product(x, weights, biases, residual=r, multiplier=by), apart)


def gated(gate: nn.Module, up: nn.Module, activation: nn.Module) -> Product:
    """x [..., K] -> activation(gate(x)) * up(x), [..., N]."""
    name: Any = _ACTIVATIONS.get(type(activation).__name__)

    def apart(x: Tensor) -> Tensor:
        return activation(gate(x)) * up(x)

    if name is None:
        return apart
    if _is_packed(gate) and _is_packed(up):
        first, second = _packed(gate), _packed(up)
        return ForFew(lambda x: low_bit_gated(x, first, second, activation=name), apart)
    plain = is_plain_matrix(gate) and is_plain_matrix(up)
    if not plain or any(bias is not None for bias in _biases([gate, up])):
        return apart
    one, other = _weights([gate, up])
    return ForFew(lambda x: gated_product(x, one, other, activation=name), apart)


def is_plain_matrix(module: nn.Module) -> bool:
    """Whether a module is x W^T + b, its weight as it is: nothing around it that a kernel would pass by."""
    weight: Any = module._parameters.get("weight")
    return (
        type(module) is nn.Linear
        and type(weight) in (nn.Parameter, Tensor)
        and weight.is_floating_point()
        and weight.stride(-1) == 1
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    )


def _is_packed(module: nn.Module) -> bool:
    return (
        isinstance(module, PackedLinear)
        and module.on_gpu
        and not (module.spare_inputs or module.spare_outputs)
    )


def _packed(module: Any) -> PackedMatrix:
    return PackedMatrix(module.packed, module.scales, module.bias)


def _weights(modules: Sequence[Any]) -> list[Tensor]:
    return [module.weight.detach() for module in modules]


def _biases(modules: Sequence[Any]) -> list[Tensor | None]:
    return [None if module.bias is None else module.bias.detach() for module in modules]


class ForFew:
    """`few`, a kernel whose rows are computed alike, for up to MOST_ROWS rows: beyond, arithmetic bounds a
    product, and the library's own is best."""

    def __init__(self, few: Callable[..., Tensor], many: Callable[..., Tensor]) -> None:
        self._few, self._many = few, many

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        return (self._few if x.numel() // x.shape[-1] <= MOST_ROWS else self._many)(x, *more)
