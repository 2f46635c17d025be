"""What the narrow product's kernels compile to for GPUs that are not there, and how they are cut."""

from __future__ import annotations

import os
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
compiles = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

PROCESSORS = 132
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = {BF16: "*bf16", FP16: "*fp16", FP32: "*fp32"}
PRODUCTS = [(6144, 4096), (4096, 4096), (4096, 14336), (3072, 2048), (2048, 2048), (2048, 8192)]
GATED = [(14336, 4096), (8192, 2048)]
SIZES = ("rows", "K", "N", "N0", "N1", "N2", "x_stride", "stride0", "stride1", "stride2")
SIZES += ("gate_stride", "up_stride", "residual_stride", "out_stride")


def compiled(chosen, dtype, streams, rows, capability, k=4096, more=(), activation="silu"):
    """A program for so many rows; `more` are the arguments that are there beside the first weight."""
    from ahead_of_time import SHARED_MEMORY, check_resources, compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.narrow_product_kernels import gated_kernel, product_kernel
    from selfspec_kernels.narrow_product_launch import constants, fitted, row_tile

    tile = row_tile(rows, chosen, dtype, streams)
    chosen = fitted(chosen, tile, dtype, streams, SHARED_MEMORY[capability])
    kernel = product_kernel if streams == 1 else gated_kernel
    types = dict.fromkeys(("x_ptr", "weight0_ptr", "gate_ptr", "up_ptr", "out_ptr", *more), TYPES[dtype])
    types |= dict.fromkeys(SIZES, "i32") | {"multiplier": "fp32"}
    fixed = constants(chosen, tile, k, dtype, streams) | {"PLAIN": False}
    fixed |= {"KIND": activation} if streams == 2 else {}
    overlap = options(chosen.warps, capability >= 90)
    types = {name: types[name] for name in kernel.arg_names if name in types}
    found = compile_kernel(kernel, types, fixed | {"PDL": overlap["PDL"]}, capability, overlap)
    check_resources(found, capability)
    return found


def default(n, k, dtype=BF16, streams=1):
    from selfspec_kernels.narrow_product_launch import plan

    return plan(n, k, dtype, PROCESSORS, streams)


THREE = ("weight1_ptr", "weight2_ptr")
PROGRAMS = [
    # outputs, inputs, dtype, matrices a program reads, rows, what else there is, activation
    (6144, 4096, BF16, 1, 16, (*THREE, "bias0_ptr", "bias1_ptr", "bias2_ptr"), None),
    (6144, 4096, BF16, 1, 64, (*THREE, "bias1_ptr"), None),
    (4096, 14336, BF16, 1, 16, ("residual_ptr",), None),
    (2048, 2048, FP16, 1, 16, ("residual_ptr",), None),
    (2048, 2000, BF16, 1, 32, ("residual_ptr",), None),
    (14336, 4096, BF16, 1, 16, (), None),
    (14336, 4096, BF16, 2, 16, (), "silu"),
    (14336, 4000, BF16, 2, 32, (), "gelu"),
    (8192, 2048, FP16, 2, 64, (), "gelu_tanh"),
    (4096, 2048, BF16, 2, 64, (), "silu"),
    (4096, 4096, FP32, 1, 16, THREE, None),
    (14336, 4096, FP32, 1, 64, (), None),
    (14336, 4096, FP32, 2, 64, (), "silu"),
    (1024, 4096, FP32, 2, 32, (), "silu"),
]


@compiles
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("n", "k", "dtype", "streams", "rows", "more", "activation"), PROGRAMS, ids=str)
def test_every_default_fits_the_gpu_and_spills_nothing(
    n, k, dtype, streams, rows, more, activation, capability
):
    found = compiled(default(n, k, dtype, streams), dtype, streams, rows, capability, k, more, activation)
    assert "GMMA" in found.sass or "HMMA" in found.sass
    assert "LDGSTS.E.BYPASS.128" in found.sass  # weights are copied ahead, 16 bytes a thread


@compiles
def test_all_candidates_at_all_row_tiles(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    from selfspec_kernels.narrow_product_launch import ROW_TILES, candidates

    shapes = [(n, k, 1) for n, k in PRODUCTS] + [(n, k, 2) for n, k in GATED]
    plans = {(one, s) for n, k, s in shapes for one in candidates(n, k, BF16, PROCESSORS, s)}
    for chosen, streams in plans:
        for capability in (80, 90):
            for tile in ROW_TILES:
                compiled(chosen, BF16, streams, tile, capability)


@compiles
@pytest.mark.parametrize(("n", "k", "streams"), [(4096, 4096, 1), (14336, 4096, 1), (14336, 4096, 2)])
def test_shared_memory_is_foreseen(n, k, streams):
    from selfspec_kernels.narrow_product_launch import bytes_of

    chosen = default(n, k, streams=streams)
    found = compiled(chosen, BF16, streams, 16, 90)
    foreseen = bytes_of(chosen, 16, BF16, streams)
    assert 0 <= foreseen - found.shared_memory <= 2048


@pytest.mark.parametrize(("n", "k", "streams"), [(*p, 1) for p in PRODUCTS] + [(*p, 2) for p in GATED])
def test_programs_of_the_default_keep_half_of_the_processors_busy_at_once(n, k, streams):
    from selfspec_kernels.narrow_product_launch import SHARED_MEMORY, bytes_of

    chosen = default(n, k, streams=streams)
    programs = -(-n // chosen.block_n)
    assert programs > 0.45 * PROCESSORS
    at_once = (SHARED_MEMORY + 1024) // (bytes_of(chosen, 16, BF16, streams) + 1024)
    assert programs <= at_once * PROCESSORS


@pytest.mark.parametrize(("n", "k", "streams"), [(*p, 1) for p in PRODUCTS] + [(*p, 2) for p in GATED])
def test_candidates_are_few_different_and_begin_with_the_default(n, k, streams):
    from selfspec_kernels.narrow_product_launch import candidates

    plans = candidates(n, k, BF16, PROCESSORS, streams)
    assert 8 <= len(plans) <= 14
    assert len(set(plans)) == len(plans)
    assert plans[0] == default(n, k, streams=streams)
    assert all(3 <= one.stages <= 6 and one.slices in (1, one.warps) for one in plans)


def test_rows_take_stages_and_nothing_else():
    from selfspec_kernels.narrow_product_launch import ROW_TILES, Plan, fitted

    chosen = Plan(32, 512, 8, 8, 6)
    stages = [fitted(chosen, tile, BF16, 1, 232_448).stages for tile in ROW_TILES]
    assert stages == sorted(stages, reverse=True)
    assert stages[0] > stages[-1] >= 2


@pytest.mark.parametrize(("dtype", "streams", "most"), [(BF16, 1, 64), (BF16, 2, 32), (FP32, 2, 16)], ids=str)
def test_row_tiles_find_registers(dtype, streams, most):
    from selfspec_kernels.narrow_product_launch import Plan, row_tile

    tiles = [row_tile(m, Plan(32, 256, 4, 4, 3), dtype, streams) for m in (1, 16, 17, 33, 64, 65)]
    assert tiles == [min(tile, most) for tile in (16, 16, 32, 64, 64, 64)]
