"""What the attention kernels compile to for GPUs that are not there."""

from __future__ import annotations

import os
import sys
from itertools import product

import pytest
import torch

from selfspec_kernels.verify_attention_reference import DTYPES, HEAD_SIZES, LARGEST_IN_FP32

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TREE = {"tree_ptr": "*i64", "depths_ptr": "*i32", "window": "i32"}
CAPPED = {"softcap": "fp32"}
SINKS = {"sinks_ptr": "*fp32"}
SPANS = [
    # dtype, head size, what else there is
    (torch.bfloat16, 128, {}),
    (torch.bfloat16, 128, TREE | CAPPED),
    (torch.bfloat16, 256, TREE | CAPPED),
    (torch.float16, 80, {"window": "i32"}),
    (torch.float32, 128, TREE | CAPPED),
]
STRIDES = [
    f"{tensor}_{axis}" for tensor in ("query", "key", "value") for axis in ("row", "head", "token", "slot")
]


def compiled(dtype, size, more, capability, piece="span", direct=False):
    """The span kernel; `piece`: what of its plan a program takes, `direct`: it writes the result itself."""
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.verify_attention_kernels import span_kernel
    from selfspec_kernels.verify_attention_launch import constants, plan, span_options

    chosen = plan(size, dtype)
    types = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), TYPES[dtype]) | {"lengths_ptr": "*i64"}
    if direct:
        types |= {"out_ptr": TYPES[dtype]}
    else:
        types |= dict.fromkeys(("totals_ptr", "masses_ptr", "tops_ptr"), "*fp32")
    types |= dict.fromkeys(("m", "S", "H", "groups", *STRIDES), "i32") | {"scaling": "fp32", **more}
    types = {name: types[name] for name in span_kernel.arg_names if name in types}
    pdl = capability >= 90
    fixed = constants(chosen, size, getattr(chosen, piece)) | {"PLAIN": False, "PDL": pdl}
    found = compile_kernel(
        span_kernel, types, fixed, capability, span_options(chosen, size, "tree_ptr" in more, pdl)
    )
    check_resources(found, capability)
    return found


# A part differs from a block in one number.
@pytest.mark.parametrize("piece", ["span", "block_n"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "size", "more"), SPANS, ids=str)
def test_every_piece_fits_the_gpu_and_spills_nothing(dtype, size, more, capability, piece):
    found = compiled(dtype, size, more, capability, piece)
    if dtype != torch.float32:
        assert "HMMA" in found.sass
    assert "LDGSTS" in found.sass  # keys and values are copied ahead


@pytest.mark.parametrize(
    ("dtype", "capability"), [(torch.bfloat16, 80), (torch.bfloat16, 90), (torch.float16, 90)]
)
@pytest.mark.parametrize(("size", "more"), [(64, {}), (128, {}), (128, CAPPED | SINKS)])
def test_one_piece_that_is_all_fits_the_gpu_and_spills_nothing(size, more, dtype, capability):
    compiled(dtype, size, more, capability, direct=True)


def test_all_pieces_that_the_engine_can_ask_for(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    variants = ({}, CAPPED, {"tree_ptr": "*i64"}, {"window": "i32"}, TREE | CAPPED)
    for dtype, size, capability, more in product(DTYPES, HEAD_SIZES, (80, 90), variants):
        if dtype != torch.float32 or size <= LARGEST_IN_FP32:
            if not more.keys() & TREE.keys():
                compiled(dtype, size, more | SINKS, capability, direct=True)
            for piece in ("span", "part", "block_n"):
                compiled(dtype, size, more, capability, piece)


@pytest.mark.parametrize(
    ("slots", "programs", "piece"),
    [
        (512, 8, 64),
        (2048, 8, 64),
        (2560, 8, 256),
        (14_336, 8, 256),
        (16_384, 8, 1024),
        (512, 64, 256),
        (512, 128, 1024),
    ],
)
def test_short_caches_are_cut_into_blocks_that_run_side_by_side(slots, programs, piece):
    from selfspec_kernels.verify_attention_launch import piece_of, plan

    assert piece_of(plan(128, torch.bfloat16), slots, programs, 132) == piece


SUMS = [
    # head size, slots of a program, programs of a row
    (128, 64, 8),
    (128, 64, 33),
    (128, 256, 20),
    (128, 1024, 20),
    (256, 32, 64),
    (256, 1024, 20),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("size", "piece", "pieces"), SUMS)
def test_the_sum_of_pieces_fits_the_gpu_and_spills_nothing(size, piece, pieces, capability):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.verify_attention_kernels import combine_kernel
    from selfspec_kernels.verify_attention_launch import combine_options, combining, plan

    pdl = capability >= 90
    types = dict.fromkeys(("totals_ptr", "masses_ptr", "tops_ptr"), "*fp32") | {"lengths_ptr": "*i64"}
    types |= dict.fromkeys(("sinks_ptr", "out_ptr"), "*bf16")
    types |= dict.fromkeys(("m", "S", "H", "pieces", "window"), "i32")
    types = {name: types[name] for name in combine_kernel.arg_names if name in types}
    fixed = combining(plan(size, torch.bfloat16), size, piece, pieces) | {"PDL": pdl}
    found = compile_kernel(combine_kernel, types, fixed, capability, combine_options(size, pdl))
    check_resources(found, capability)
