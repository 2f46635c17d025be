"""What the fused low-bit kernels compile to for GPUs that are not there."""

from __future__ import annotations

import os
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

BF16, FP16 = torch.bfloat16, torch.float16
TYPES = {BF16: "*bf16", FP16: "*fp16"}
FEW, MANY = 4096, 28_672
RESIDUAL = ("residual_ptr", "multiplier")
BIASES = ("bias_1_ptr", "bias_2_ptr", "bias_3_ptr")


def types_of(kernel, dtype, more):
    """Types by argument, in the kernel's order, of all that is there for one matrix or three."""
    found = {}
    for name in kernel.arg_names:
        if name in ("x_ptr", "out_ptr") or (name in more and name != "multiplier"):
            found[name] = TYPES[dtype]
        elif name == "multiplier" and name in more:
            found[name] = "fp32"
        elif "pairs" in name:
            found[name] = "*i32"
        elif name.startswith(("packed", "gate_ptr", "up_ptr")):
            found[name] = "*u8"
        elif name in ("m", "N", "N1", "N2", "N3", "K", "row_bytes"):
            found[name] = "i32"
    return found


def compiled(kind, dtype, group, m, outputs, capability, more=(), chosen=None):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels import low_bit_products_kernels as kernels
    from selfspec_kernels.launching import options
    from selfspec_kernels.low_bit_launch import constants
    from selfspec_kernels.low_bit_products_launch import plan

    chosen = chosen or plan(m, outputs, 4096, group, 132)
    kernel = kernels.gated_kernel if kind == "gated" else kernels.products_kernel
    fixed = constants(chosen, group, dtype) | {"PLAIN": False}
    fixed |= {"ACTIVATION": "silu"} if kind == "gated" else {}
    found = compile_kernel(kernel, types_of(kernel, dtype, more), fixed, capability, options(chosen.warps))
    check_resources(found, capability)
    assert "HMMA" in found.sass
    assert "LDGSTS.E.BYPASS.128" in found.sass  # levels are copied ahead, 16 bytes a thread
    return found


CASES = [
    # kernel, dtype, group, rows, outputs, what else there is
    ("products", BF16, 64, 1, FEW, ()),
    ("products", BF16, 64, 1, FEW, RESIDUAL),
    ("products", BF16, 32, 1, MANY, BIASES),
    ("products", FP16, 128, 16, MANY, BIASES + RESIDUAL),
    ("gated", BF16, 64, 1, FEW, ()),
    ("gated", BF16, 32, 1, MANY, ("gate_bias_ptr", "up_bias_ptr")),
    ("gated", FP16, 128, 16, MANY, ()),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kind", "dtype", "group", "m", "outputs", "more"), CASES, ids=str)
def test_every_product_fits_the_gpu_and_spills_nothing(kind, dtype, group, m, outputs, more, capability):
    compiled(kind, dtype, group, m, outputs, capability, more)


def test_all_plans_that_a_sweep_tries(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    from selfspec_kernels.low_bit_products_launch import candidates

    for kind in ("products", "gated"):
        for m in (1, 16):
            for chosen in candidates(m, 4096, 64):
                compiled(kind, BF16, 64, m, FEW, 90, chosen=chosen)
