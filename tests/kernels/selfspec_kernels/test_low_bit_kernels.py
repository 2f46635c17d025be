"""The low-bit kernels without a GPU: what those for fp32 compile to, and what their assembly computes."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

PROCESSORS = 132


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "split"])
def test_fp32_fits_the_gpu_and_spills_nothing(whole, group, m, capability):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.low_bit_kernels import sum_kernel
    from selfspec_kernels.low_bit_launch import plan, sum_constants

    chosen = plan(m, 4096, 4096, group, torch.float32, PROCESSORS)
    types = {"x_ptr": "*fp32", "packed_ptr": "*u8", "scales_ptr": "*fp32"}
    types |= {"bias_ptr": "*fp32"} if whole else {}
    types |= {"out_ptr": "*fp32", **dict.fromkeys(("m", "N", "K"), "i32")}
    fixed = sum_constants(chosen, group)
    check_resources(compile_kernel(sum_kernel, types, fixed, capability, options(chosen.warps)), capability)


def test_adding_the_splits_compiles():
    from ahead_of_time import compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.low_bit_kernels import add_kernel

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


def run_ptx(text: str, first: int, second: int) -> list[int]:
    """What `$0` to `$7` hold after the few instructions that unpack two 32-bit registers, `$8` and `$9`."""
    values = {"$8": first, "$9": second}

    def value(name: str) -> int:
        return values[name] if name in values else int(name, 0)

    for line in text.strip().strip("{}").split(";"):
        code, _, rest = line.strip().partition(" ")
        arguments = [argument.strip() for argument in rest.split(",")]
        if code == "lop3.b32":
            a, b, c, table = map(value, arguments[1:])
            assert table == 0xF0 & 0xCC | 0xAA  # (a & b) | c
            values[arguments[0]] = a & b | c
        elif code == "shr.b32":
            values[arguments[0]] = value(arguments[1]) >> value(arguments[2])
        elif code == "shl.b32":
            values[arguments[0]] = value(arguments[1]) << value(arguments[2]) & 0xFFFFFFFF
        else:
            assert code in ("", ".reg"), code
    return [values[f"${i}"] for i in range(8)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_assembly_turns_two_words_into_their_levels(dtype):
    from selfspec_kernels import low_bit_tile_kernels as kernels

    bf16 = dtype == torch.bfloat16
    text = (kernels.BF16_LEVELS if bf16 else kernels.FP16_LEVELS).value
    base = (kernels.BF16_BASE if bf16 else kernels.FP16_BASE).value
    for eight in np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(-1, 8):
        found = np.array(run_ptx(text, *map(int, eight.view(np.uint32))), dtype=np.uint32)
        levels = torch.from_numpy(found.view(np.int16)).view(dtype).double().view(2, 2, 2, 2)
        for half, word, byte, lane in np.ndindex(2, 2, 2, 2):
            stored = int(eight[4 * word + 2 * lane + byte]) >> 4 * half & 15
            assert levels[half, word, byte, lane] == base + stored
