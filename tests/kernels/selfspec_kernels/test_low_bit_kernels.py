"""The Triton kernels without a GPU: what they compile to, and what their assembly computes."""

from __future__ import annotations

import os
import sys
from itertools import product

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

PROCESSORS = 132
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}

PLANS = [
    # Every tile that `plan` can choose. A group of 128 is a group of 64 whose scale is looked up at another
    # place, and fp16 is bf16 with other constants: each of them is compiled once with the largest tile.
    *product((torch.bfloat16,), (32, 64), (1, 16)),
    (torch.bfloat16, 128, 16),
    (torch.float16, 64, 16),
    (torch.float32, 32, 1),
    (torch.float32, 32, 16),
]


def compiled(dtype: torch.dtype, group: int, m: int, capability: int, whole: bool = True):
    from ahead_of_time import compile_kernel

    from selfspec_kernels import low_bit_kernels as kernels
    from selfspec_kernels.low_bit_launch import constants, options, plan

    chosen = plan(m, 4096, 4096, group, dtype, PROCESSORS)
    kernel = {"dot": kernels.dot_kernel, "sum": kernels.sum_kernel}[chosen.kernel]
    x = TYPES[dtype]
    types = {"x_ptr": x, "packed_ptr": "*u8", "out_ptr": x if whole else "*fp32"}
    types |= {"pairs_ptr": "*i32"} if chosen.kernel == "dot" else {"scales_ptr": x}
    types |= {"bias_ptr": x} if whole else {}
    types |= dict.fromkeys(("m", "N", "K", "row_bytes"), "i32")
    fixed = constants(chosen, group, dtype) | {"PLAIN": False}
    types = {name: types[name] for name in kernel.arg_names if name in types}
    return compile_kernel(kernel, types, fixed, capability, options(chosen.warps))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "group", "m"), PLANS, ids=str)
def test_every_tile_fits_the_gpu_and_spills_nothing(dtype, group, m, capability):
    from ahead_of_time import SHARED_MEMORY

    found = compiled(dtype, group, m, capability)
    assert found.shared_memory <= SHARED_MEMORY[capability]
    assert (found.stack, found.local_accesses) == (0, 0)
    assert found.registers <= 255
    if dtype != torch.float32:
        assert "HMMA" in found.sass
        assert "LDGSTS" in found.sass  # levels and x are copied ahead


def test_a_split_compiles_without_bias_into_fp32():
    found = compiled(torch.bfloat16, 32, 1, 90, whole=False)
    assert found.stack == 0


def test_adding_the_splits_compiles():
    from ahead_of_time import compile_kernel

    from selfspec_kernels.low_bit_kernels import add_kernel
    from selfspec_kernels.low_bit_launch import options

    types = {
        "parts_ptr": "*fp32",
        "bias_ptr": "*bf16",
        "out_ptr": "*bf16",
        "N": "i32",
        "size": "i32",
        "splits": "i32",
    }
    for capability in (80, 90):
        assert compile_kernel(add_kernel, types, {"BLOCK": 256}, capability, options(4)).stack == 0


def run_ptx(text: str, register: int) -> dict[int, int]:
    """What `$0`... hold after the few instructions that unpack one 32-bit register, `$6`."""
    values = {"$6": register}

    def value(name: str) -> int:
        return values[name] if name in values else int(name, 0)

    for line in text.strip().strip("{}").split(";"):
        code, _, rest = line.strip().partition(" ")
        arguments = [argument.strip() for argument in rest.split(",")]
        if code == "prmt.b32":
            low, high, selector = map(value, arguments[1:])
            source = (low | high << 32).to_bytes(8, "little")
            picked = bytes(source[selector >> 4 * i & 7] for i in range(4))
            values[arguments[0]] = int.from_bytes(picked, "little")
        elif code == "lop3.b32":
            a, b, c, table = map(value, arguments[1:])
            assert table == 0xF0 & 0xCC | 0xAA  # (a & b) | c
            values[arguments[0]] = a & b | c
        elif code == "shr.b32":
            values[arguments[0]] = value(arguments[1]) >> value(arguments[2])
        elif code == "shl.b32":
            values[arguments[0]] = value(arguments[1]) << value(arguments[2]) & 0xFFFFFFFF
        elif code == "mov.b32":
            values[arguments[0]] = value(arguments[1])
        else:
            assert code in ("", ".reg"), code
    return {int(name[1:]): held for name, held in values.items() if name.startswith("$")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_assembly_turns_four_bytes_into_their_levels(dtype):
    from selfspec_kernels import low_bit_dot_kernels as kernels

    bf16 = dtype == torch.bfloat16
    text = (kernels.BF16_LEVELS if bf16 else kernels.FP16_LEVELS).value
    base = (kernels.BF16_BASE if bf16 else kernels.FP16_BASE).value
    for four in np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(-1, 4):
        outputs = run_ptx(text, int.from_bytes(four.tobytes(), "little"))
        words = np.array([outputs[i] for i in range(6)], dtype=np.uint32)
        low, high, ones = torch.from_numpy(words.view(np.int16)).view(dtype).float().view(3, 4)
        assert low.tolist() == [base + int(byte & 15) for byte in four]
        assert high.tolist() == [base + int(byte >> 4) for byte in four]
        assert ones.tolist() == [1.0] * 4
