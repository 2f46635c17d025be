"""Products of large fp32 matrices by oneDNN, on CPUs where PyTorch's own are slow and differ by row count.

PyTorch hands fp32 products to MKL, which takes slow ways on processors of another make. Measured on an AMD
EPYC with AVX2, 8192 x 2048: 4 tokens take 16 ms and 1 takes 4.9, by oneDNN 5.6 and 2.7; and MKL's rows have
the same bits at multiples of 4 alone, oneDNN's from 2 on.
"""

import copy
import functools
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from layer_skip.adapters import kept_in
from layer_skip.products import is_plain_matrix
from layer_skip.shells import is_compiled, replaced

LEAST_WEIGHTS = 1 << 19
"""Weights of a matrix from which on oneDNN is faster: a product of its takes some 50 microseconds more."""
_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is such a CPU, and PyTorch has both: measured with AVX2, so taken with that alone."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and "AuthenticAMD" in (_CPUINFO.read_text() if _CPUINFO.exists() else platform.processor())
    )


class OneDNNLinear(nn.Linear):
    """A matrix of the model, its parameters shared, under another product."""

    def forward(self, x: Tensor) -> Tensor:
        alike = x.dtype == self.weight.dtype == torch.float32
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not alike:
            return super().forward(x)
        return onednn_product(x, self.weight, self.bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] W^T + b -> [..., N], as `nn.functional.linear` gives it but for the order of sums."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


_made: WeakKeyDictionary[nn.Module, OneDNNLinear] = WeakKeyDictionary()
"""One for each matrix: who keeps something of a module finds it again in the next decoder."""
_lock = threading.Lock()


def with_fast_products(module: nn.Module) -> nn.Module:
    """`module`, or a shell of it where it has matrices that oneDNN multiplies faster.

    Left alone are those that a module around them may read or call in its own way: then it is not known which
    product runs, and so not which rows have the same bits.
    """
    if not onednn_is_faster():
        return module
    large = [m for m in _called(module) if _is_large(m)]
    if not large:
        return module
    kept = kept_in(module)
    return replaced(module, {m: _faster(m) for m in large if m not in kept})


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """`module` and what is below it, but for what a forward bound to the module itself would call.

    Parts with hooks are left whole as well: a hook is to be given the module that it was put on.
    """
    yield module
    if "forward" not in vars(module) and not is_compiled(module):
        for part in module.children():
            if not (part._forward_hooks or part._forward_pre_hooks):
                yield from _called(part)


def _is_large(module: nn.Module) -> bool:
    weight: Any = module._parameters.get("weight")
    return (
        weight is not None
        and weight.numel() >= LEAST_WEIGHTS
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and is_plain_matrix(module)
    )


def _faster(module: nn.Module) -> OneDNNLinear:
    with _lock:
        found = _made.get(module)
        if found is None or found._parameters is not module._parameters:
            found = _made[module] = _shell(module)
        return found


def _shell(module: nn.Module) -> OneDNNLinear:
    shell: Any = copy.copy(module)
    shell.__class__ = OneDNNLinear
    # `_made` holds a shell as long as its module lives: if they shared their hooks, a later one that knows
    # the model would keep both. The next decoder leaves a hooked matrix alone.
    vars(shell).update({name: own for name, own in vars(nn.Module()).items() if name.endswith("_hooks")})
    return shell
