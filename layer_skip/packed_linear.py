"""A matrix in few bits and its product: PyTorch's packed kernels on a CPU, our own on a GPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layer_skip.int8_product import Int8Product, int8_bytes
from layer_skip.rounding import Rounded, round_outputs, round_weights
from selfspec_kernels.low_bit_product import low_bit_product
from selfspec_kernels.low_bit_product_reference import TILE_INPUTS, TILE_OUTPUTS, pack_levels, pack_scales

_ROW_MULTIPLE = TILE_OUTPUTS
"""PyTorch's packed products take outputs in multiples of 16 too."""
_COLUMN_MULTIPLE = 16
"""Inputs of the 8-bit product come in multiples of this: in bf16 and fp16 it reads past the end of others."""


class PackedLinear(nn.Module):
    """x W^T + b with W in 4 bits (groups with scale and offset) or 8 bits (a scale per output).

    On a CPU products are made in bf16 unless asked otherwise, whatever the weights were in: PyTorch's packed
    4-bit kernels use vectors in that dtype alone, and take eight times as long in fp32 and fp16.
    With `rounds_inputs` they are made in whole numbers.

    Outputs and inputs are padded with zeros to what the packed product takes; what that adds is cut off.

    Args:
        weight: [N, K].
        bias: [N] or None; shared, not copied.
        bits: 4 or 8.
        group: inputs that share a scale, for 4 bits.
        dtype: of inputs, scales and offsets; None for what the device is fast in.
        rounds_inputs: for 8 bits on a CPU, round the inputs as well (`Int8Product`).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        bits: int,
        group: int,
        dtype: torch.dtype | None = None,
        rounds_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.bits, self.group = bits, group
        self._bias = [bias]  # in a list, or the module would register it as its own
        self.on_gpu, self._weight_dtype = weight.is_cuda, weight.dtype
        self.spare_inputs = self.spare_outputs = 0
        self._int8 = Int8Product(weight) if rounds_inputs else None
        if self._int8 is None:
            self._pack(weight, dtype)

    def _pack(self, weight: Tensor, dtype: torch.dtype | None) -> None:
        bits, group = self.bits, self.group
        height, width = _padded_shape(weight, bits, group)
        self.spare_inputs, self.spare_outputs = width - self.inputs, height - self.outputs
        padded = F.pad(weight, (0, self.spare_inputs, 0, self.spare_outputs)).contiguous()
        product_dtype = dtype or _fast_dtype(weight)
        if bits == 4:
            rounded = round_weights(padded, bits, group, product_dtype)
            self.packed, self.scales = _packed(rounded, group, self.on_gpu)
        else:
            self.packed, self.scales = round_outputs(padded, product_dtype)

    @property
    def bias(self) -> Tensor | None:
        """[N], the model's own."""
        return self._bias[0]

    @property
    def out_features(self) -> int:
        """N, as `nn.Linear` calls it."""
        return self.outputs

    @property
    def bytes(self) -> int:
        """Memory of the packed weights."""
        if self._int8 is not None:
            return self._int8.bytes
        return sum(t.numel() * t.element_size() for t in (self.packed, self.scales))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.inputs)
        out = self._product(rows) if self._int8 is None else self._int8(rows.float())
        out = out.to(self._weight_dtype)
        if self._bias[0] is not None:
            out = out + self._bias[0]
        return out.view(*x.shape[:-1], self.outputs)

    def _product(self, rows: Tensor) -> Tensor:
        """rows [M, K] -> [M, N], with weights alone in few bits."""
        rows = rows.to(self.scales.dtype)
        if self.spare_inputs:
            rows = F.pad(rows, (0, self.spare_inputs))
        rows = rows.contiguous()
        if self.on_gpu:
            out = low_bit_product(rows, self.packed, self.scales)
        elif self.bits == 4:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group, self.scales)
        else:
            out = torch._weight_int8pack_mm(rows, self.packed, self.scales)
        return out[:, : self.outputs] if self.spare_outputs else out


def _packed(rounded: Rounded, group: int, on_gpu: bool) -> tuple[Tensor, Tensor]:
    """Packed levels in the layout of the device's kernel, and [K / group, N, 2] scales and offsets."""
    scales = pack_scales(rounded.scale, rounded.offset)
    if on_gpu:
        return pack_levels(rounded.q, group), scales
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(rounded.q.int(), 1), scales


def _fast_dtype(weight: Tensor) -> torch.dtype:
    """What packed products of its device are fast in."""
    return weight.dtype if weight.is_cuda else torch.bfloat16


def _padded_shape(weight: Tensor, bits: int, group: int) -> tuple[int, int]:
    """Outputs and inputs of weight [N, K], rounded up to what the packed product takes."""
    multiple = group if bits == 4 else _COLUMN_MULTIPLE
    outputs, inputs = weight.shape
    return -(-outputs // _ROW_MULTIPLE) * _ROW_MULTIPLE, -(-inputs // multiple) * multiple


def packed_bytes(weight: Tensor, bits: int, group: int, rounds_inputs: bool = False) -> int:
    """Memory of weight [N, K] once it is packed for products in what its device is fast in."""
    if rounds_inputs:
        return int8_bytes(*weight.shape)
    (height, width), element_size = _padded_shape(weight, bits, group), _fast_dtype(weight).itemsize
    if bits == 8:
        return height * (width + element_size)
    groups = width // group
    if weight.is_cuda:
        return height * (-(-width // TILE_INPUTS) * TILE_INPUTS // 2 + groups * 2 * element_size)
    return height * groups * (group // 2 + 2 * element_size)
