"""What the exit head's kernels compile to for GPUs that are not there."""

from __future__ import annotations

import os
import sys
from itertools import product

import pytest
import torch

from selfspec_kernels.exit_head_reference import MOST_CHOICES
from selfspec_kernels.row_norm_reference import DTYPES

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
TYPES = {BF16: "*bf16", FP16: "*fp16", FP32: "*fp32", INT8: "*i8"}
NOISE = {"keys_ptr": "*i64", "positions_ptr": "*i64", "temperature_ptr": "*fp32"}
CAPPED = {"softcap": "fp32", "bias_ptr": "*bf16"}
LISTED = {"shortlist_ptr": "*i32"}

HEADS = [
    # hidden, weight, choices, what else there is
    (BF16, BF16, 1, {}),
    (BF16, BF16, 8, NOISE | CAPPED | LISTED),
    (FP16, FP16, 1, NOISE),
    (BF16, INT8, 1, NOISE | {"scale_ptr": "*fp32"}),
    (FP32, FP32, 2, NOISE),
]


def compiled(dtype, weight, count, more, capability):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.exit_head_kernels import head_kernel
    from selfspec_kernels.exit_head_launch import constants, plan
    from selfspec_kernels.launching import options

    chosen = plan(dtype, weight)
    types = {"x_ptr": TYPES[dtype], "weight_ptr": TYPES[weight], "multiplier": "fp32", **more}
    types |= dict.fromkeys(("values_ptr", "logits_ptr", "tops_ptr", "masses_ptr"), "*fp32")
    types |= {"indices_ptr": "*i32"}
    types |= dict.fromkeys(("rows", "width", "N", "D", "weight_stride", "row_stride", "column_stride"), "i32")
    types = {name: types[name] for name in head_kernel.arg_names if name in types}
    pdl = capability >= 90
    fixed = constants(chosen, count, 4096 * weight.itemsize) | {"PLAIN": False, "PDL": pdl}
    found = compile_kernel(head_kernel, types, fixed, capability, options(chosen.warps, pdl))
    check_resources(found, capability)
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "weight", "count", "more"), HEADS, ids=str)
def test_every_head_fits_the_gpu_and_spills_nothing(dtype, weight, count, more, capability):
    found = compiled(dtype, weight, count, more, capability)
    if dtype != FP32:
        assert "GMMA" in found.sass or "HMMA" in found.sass
    assert "LDGSTS" in found.sass  # weights are copied ahead


def test_all_heads_that_the_engine_can_ask_for(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    for dtype, quantised, count in product(DTYPES, (False, True), (1, 2, 3, MOST_CHOICES)):
        weight, more = (INT8, {"scale_ptr": "*fp32"}) if quantised else (dtype, {})
        for capability, extra in product((80, 90), ({}, NOISE | CAPPED | LISTED)):
            compiled(dtype, weight, count, more | extra, capability)


@pytest.mark.parametrize(("blocks", "count"), [(2048, 1), (4096, 8)])
def test_the_last_choice_fits_the_gpu_and_spills_nothing(blocks, count):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.exit_head_kernels import choose_kernel
    from selfspec_kernels.exit_head_launch import ENTRIES
    from selfspec_kernels.launching import options

    types = dict.fromkeys(
        ("values_ptr", "logits_ptr", "tops_ptr", "masses_ptr", "scores_ptr", "logprobs_ptr"), "*fp32"
    )
    types |= {"indices_ptr": "*i32", "tokens_ptr": "*i64", "blocks": "i32"}
    types = {name: types[name] for name in choose_kernel.arg_names if name in types}
    for capability, pdl in ((80, False), (90, True)):
        fixed = {"COUNT": count, "BLOCKS": blocks, "ENTRIES": ENTRIES, "PDL": pdl}
        found = compile_kernel(choose_kernel, types, fixed, capability, options(8, pdl))
        check_resources(found, capability)
