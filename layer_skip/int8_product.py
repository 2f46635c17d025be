"""Products with weights and inputs in 8 bits, summed in whole numbers: FBGEMM's, through PyTorch.

The fastest that PyTorch has on a CPU with AVX2 and no AVX512. Measured on an AMD EPYC at 8192 x 2048, one
row: 0.14 of the time of fp32 and 0.4 of that of bf16, where weights alone in few bits take 0.95 of bf16's.
"""

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from layer_skip.rounding import round_outputs

_LEAST_SCALE = 1e-10
_MOST, _ZERO = 63, 64
"""Inputs are levels from -63 to 63, kept as 1 to 127."""
_BLOCK = 8, 512
"""Outputs and inputs that FBGEMM keeps together, the last ones padded."""
_lock = threading.Lock()


@functools.cache
def int8_is_fastest() -> bool:
    """Whether this CPU multiplies fastest so: one with AVX2 and no AVX512, while PyTorch has the product."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX2"
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


class Int8Product:
    """rows [M, K] -> rows W^T [M, N] in fp32, with W in 8 bits, a scale per output.

    Inputs are rounded to 127 levels, a scale per row: with more, pairs of products would overflow where the
    CPU adds them in 16 bits. What is added is whole numbers, so a row's result does not depend in any bit on
    those beside it.

    Args:
        weight: [N, K].
    """

    def __init__(self, weight: Tensor) -> None:
        self._shape = weight.shape
        levels, scales = round_outputs(weight, torch.float32)
        scales.clamp_(min=_LEAST_SCALE)
        with warnings.catch_warnings():  # that it will go one day; `int8_is_fastest` looks whether it has
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(
                levels, scales.double(), torch.zeros_like(scales, dtype=torch.int64), 0
            )
        with _by_fbgemm():
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)

    @property
    def bytes(self) -> int:
        """Memory of the packed weights."""
        return int8_bytes(*self._shape)

    def __call__(self, rows: Tensor) -> Tensor:
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp_(min=_LEAST_SCALE)
        out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest, 1 / _MOST, _ZERO, self._packed
        )
        return out.mul_(largest)


@contextmanager
def _by_fbgemm() -> Iterator[None]:
    """FBGEMM as the engine, then the caller's again: PyTorch has one for all threads."""
    with _lock:
        chosen = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            yield
        finally:
            torch.backends.quantized.engine = chosen


def int8_bytes(outputs: int, inputs: int) -> int:
    """Memory of a packed [outputs, inputs]: whole blocks, and a scale, an offset and a sum per output."""
    rows, columns = (-(-size // block) * block for size, block in zip((outputs, inputs), _BLOCK, strict=True))
    return rows * columns + outputs * 3 * torch.float32.itemsize
