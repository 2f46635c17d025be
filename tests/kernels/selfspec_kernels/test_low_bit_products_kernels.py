"""What the fused low-bit kernels compile to for GPUs that are not there."""

from __future__ import annotations

import os
import re
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
        elif "pairs" in name or name.startswith(("packed", "gate_ptr", "up_ptr")):
            found[name] = "*i32"
        elif name in ("m", "N", "N1", "N2", "N3", "K"):
            found[name] = "i32"
    return found


def compiled(kind, dtype, group, m, outputs, capability, more=(), chosen=None, inputs=4096):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels import low_bit_products_kernels as kernels
    from selfspec_kernels.launching import options
    from selfspec_kernels.low_bit_launch import constants
    from selfspec_kernels.low_bit_products_launch import plan

    chosen = chosen or plan(m, outputs, inputs, group, 132)
    kernel = kernels.gated_kernel if kind == "gated" else kernels.products_kernel
    fixed = constants(chosen, inputs, group, dtype) | {"PLAIN": False, "PDL": capability >= 90}
    if kind == "gated":
        tiles = max(fixed["TILES"], 2)
        fixed |= {"ACTIVATION": "silu", "TILES": tiles}
    found = compile_kernel(kernel, types_of(kernel, dtype, more), fixed, capability, options(chosen.warps))
    check_resources(found, capability)
    return found, fixed


def main_loop(sass):
    """Instructions of the shortest loop with tensor-core instructions; empty where there is none."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", sass)]
    loops = []
    for at, text in lines:
        jump = re.search(r"BRA\S*\s.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            loops.append([line for address, line in lines if int(jump[1], 16) <= address <= at])
    return min((loop for loop in loops if any("HMMA" in line for line in loop)), key=len, default=[])


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


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kind", "dtype", "m", "outputs", "inputs", "most"),
    [
        ("products", BF16, 1, 6144, 4096, 2.5),
        ("products", BF16, 1, FEW, 14336, 2.3),
        ("gated", BF16, 1, MANY, 4096, 2.4),
        ("gated", FP16, 1, MANY, 4096, 2.4),
        ("products", BF16, 16, 6144, 4096, 3.1),
    ],
    ids=str,
)
def test_levels_go_from_memory_to_the_tensor_cores(kind, dtype, m, outputs, inputs, most, capability):
    found, fixed = compiled(kind, dtype, 64, m, outputs, capability, inputs=inputs)
    loop = main_loop(found.sass)
    counts = {
        code: sum(code in line for line in loop)
        for code in ("LDG.E.128", "HMMA", "LDS", "STS", "SHFL", "BAR")
    }
    tiles = fixed["TILES"] * fixed["AHEAD"]
    # 16 bytes of levels a tile, and of x twice as many for every 8 rows.
    assert counts["LDG.E.128"] == tiles + 2 * fixed["AHEAD"] * m // min(m, 8)
    assert counts["HMMA"] == 4 * (tiles + fixed["AHEAD"]) * (m // min(m, 8))
    assert not any(counts[code] for code in ("LDS", "STS", "SHFL", "BAR"))
    assert len(loop) / (32 * tiles) < most  # instructions a weight


def test_weights_are_asked_for_before_the_kernel_before_has_ended():
    for kind in ("products", "gated"):
        found, fixed = compiled(kind, BF16, 64, 1, MANY, 90)
        begins, before = found.sass.split("ACQBULK", 1)[0], fixed["TILES"] * fixed["AHEAD"]
        assert begins.count("LDG.E.128") == before
        assert "STG" not in begins and "PREEXIT" in begins


def test_all_plans_that_a_sweep_tries(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    from selfspec_kernels.low_bit_products_launch import candidates

    for kind in ("products", "gated"):
        for m in (1, 16):
            for chosen in candidates(m, 4096, 64):
                compiled(kind, BF16, 64, m, FEW, 90, chosen=chosen)
