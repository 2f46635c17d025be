"""x W^T with W in 4 bits, for the few rows of a draft step: storage, reference, dispatcher.

A weight is (q - 8) * scale + offset, with q from 0 to 15 and a scale and an offset for each group of 32, 64
or 128 consecutive inputs of an output. Per group, sum(x * w) = scale * sum(x * (q - 8)) + offset * sum(x),
so scales never meet single weights.

Storage, for N outputs, K inputs, groups of g:

- levels, uint8 [N, ceil(K / 2g) * g]: g bytes hold two groups, byte j the j-th level of the even group in its
  low nibble and the j-th level of the odd group in its high one. So the low nibbles of a run of bytes are a
  run of one group, and the high nibbles a run of the next: a program unpacks by masks alone, no value
  changes its lane, and the inputs that belong to them are contiguous too. Zeros stand
  beside an odd last group.
- scales, [K / g, N, 2] in x's dtype: scale and offset side by side, one 4-byte load for both, and groups
  first, so that neighbouring outputs are neighbours in memory. PyTorch's packed product for CPUs has them so.

What must be read bounds the time: a floor from bytes, not a measurement. 4096 x 14336 in bf16 is 117.4 MB; in
4 bits 36.7 MB with groups of 32, 33.0 MB with 64, 31.2 MB with 128. At the 4.3 TB/s at which an H200 copies
that is 27.3 us against 8.5, 7.7 and 7.3; x and the result are under 1 MB for 16 rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_kernels.backend import Backend, choose_backend

GROUPS = (32, 64, 128)
"""Group sizes that both backends take."""
_ZERO_LEVEL = 8


def pack_levels(q: Tensor, group: int) -> Tensor:
    """Levels q [N, K], uint8 from 0 to 15, as [N, ceil(K / 2 group) * group] uint8: two levels a byte.

    Raises:
        ValueError: q is not such a matrix, or K is not a multiple of `group`.
    """
    if q.dim() != 2 or q.dtype != torch.uint8:
        raise ValueError(f"levels must be uint8 [N, K], not {q.dtype} {list(q.shape)}")
    n, k = q.shape
    _check_group(k, group)
    if q.numel() and int(q.max()) > 15:
        raise ValueError(f"levels must be from 0 to 15, found {int(q.max())}")
    pairs = F.pad(q, (0, k % (2 * group))).view(n, -1, 2, group)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, -1)


def unpack_levels(packed: Tensor, group: int, inputs: int) -> Tensor:
    """The levels [N, inputs] that `pack_levels` stored."""
    pairs = packed.view(len(packed), -1, group)
    return torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)[:, :inputs]


def pack_scales(scale: Tensor, offset: Tensor) -> Tensor:
    """scale and offset [N, K / g] as [K / g, N, 2]."""
    return torch.stack([scale, offset], dim=-1).transpose(0, 1).contiguous()


def low_bit_product(
    x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None
) -> Tensor:
    """x W^T + bias, in x's dtype.

    Args:
        x: [..., K], bf16, fp16 or fp32. Made for 1 to 16 rows; more are done 16 at a time.
        packed: levels from `pack_levels`.
        scales: [K / g, N, 2] from `pack_scales`, in x's dtype; they say what g is.
        bias: [N], in x's dtype.
        backend: "triton" or "reference"; by default Triton on CUDA devices of capability 8.0 and above, the
            reference elsewhere.

    Raises:
        ValueError: shapes, dtypes or devices that do not belong together, storage that is not contiguous, or
            a backend that is unknown or cannot run where x is.
    """
    check_product(x, packed, scales, bias)
    backend = choose_backend(backend, "x", x)
    rows = x.reshape(-1, x.shape[-1])
    if backend == "reference":
        out = reference_product(rows, packed, scales, bias)
    else:
        from selfspec_kernels import low_bit_launch  # here, because triton is not there on every system

        out = low_bit_launch.product(rows.contiguous(), packed, scales, bias)
    return out.view(*x.shape[:-1], packed.shape[0])


def reference_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for x [m, K] in plain PyTorch: weights and sums in fp32, the result in x's dtype."""
    k = x.shape[-1]
    group = k // len(scales)
    levels = unpack_levels(packed, group, k).view(len(packed), -1, group)
    scale, offset = scales.float().transpose(0, 1)[..., None].unbind(2)
    weight = (levels.float() - _ZERO_LEVEL) * scale + offset
    out = F.linear(x.float(), weight.flatten(1), None if bias is None else bias.float())
    return out.to(x.dtype)


def _check_group(inputs: int, group: int) -> None:
    if group not in GROUPS:
        raise ValueError(f"groups must be of {', '.join(map(str, GROUPS))} inputs, not {group}")
    if inputs == 0 or inputs % group:
        raise ValueError(f"{inputs} inputs do not divide into groups of {group}")


def check_product(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> None:
    """Raises a ValueError that names what does not belong to a product of x [..., K] with packed weights."""
    if x.dim() == 0 or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"x must be [..., K] in bf16, fp16 or fp32, not {x.dtype} {list(x.shape)}")
    if packed.dim() != 2 or packed.dtype != torch.uint8:
        raise ValueError(f"packed levels must be uint8 [N, bytes], not {packed.dtype} {list(packed.shape)}")
    n, k = packed.shape[0], x.shape[-1]
    if scales.dim() != 3 or scales.shape[1:] != (n, 2) or not len(scales):
        raise ValueError(f"scales must be [K / group, {n}, 2], not {list(scales.shape)}")
    if k % len(scales):
        raise ValueError(f"{k} inputs do not divide into the {len(scales)} groups of the scales")
    group = k // len(scales)
    _check_group(k, group)
    row_bytes = -(-k // (2 * group)) * group
    if packed.shape[1] != row_bytes:
        raise ValueError(
            f"{k} inputs in groups of {group} take {row_bytes} bytes an output, packed has {packed.shape[1]}"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias must be [{n}], not {list(bias.shape)}")
    for name, tensor in (("packed", packed), ("scales", scales), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous: it is read in the order of its storage")
        if name != "packed" and tensor.dtype != x.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, x {x.dtype}")
