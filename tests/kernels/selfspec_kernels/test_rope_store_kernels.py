"""What the kernel of rope_store compiles to for GPUs that are not there."""

from __future__ import annotations

import os
import sys
from itertools import product

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = {BF16: "*bf16", FP16: "*fp16", FP32: "*fp32"}
SIZES = [
    # dtype, angles, head size, elements that turn, normed heads
    (BF16, BF16, 128, 128, False),
    (BF16, BF16, 128, 128, True),
    (BF16, FP32, 80, 32, False),
    (FP16, FP16, 64, 0, False),
    (FP32, FP32, 512, 512, True),
]


def compiled(dtype, angles, size, turning, normed, capability):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.rope_store_kernels import rope_store_kernel
    from selfspec_kernels.rope_store_launch import WARPS, constants

    names = ["qkv_ptr", "query_ptr", "keys_ptr", "values_ptr"]
    names += ["query_norm_ptr", "key_norm_ptr"] if normed else []
    types = dict.fromkeys(names, TYPES[dtype]) | {"slots_ptr": "*i64", "eps": "fp32"}
    types |= dict.fromkeys(("cos_ptr", "sin_ptr"), TYPES[angles]) if turning else {}
    strides = ("qkv_row", "qkv_token", "cos_row", "cos_token", "sin_row", "sin_token", "slots_row")
    cache = [f"{name}_{axis}" for name, axis in product(("keys", "values"), ("row", "head", "slot"))]
    types |= dict.fromkeys(("width", "heads", "kv_heads", *strides, *cache), "i32")
    types = {name: types[name] for name in rope_store_kernel.arg_names if name in types}
    pdl = capability >= 90
    fixed = constants(size, turning) | {"PDL": pdl}
    found = compile_kernel(rope_store_kernel, types, fixed, capability, options(WARPS, pdl))
    check_resources(found, capability)
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "angles", "size", "turning", "normed"), SIZES, ids=str)
def test_every_head_fits_the_gpu_and_spills_nothing(dtype, angles, size, turning, normed, capability):
    found = compiled(dtype, angles, size, turning, normed, capability)
    assert found.registers <= 64 or size > 128  # 32 programs on a multiprocessor
