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


def compiled(dtype, size, more, capability, whole=True):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.verify_attention_kernels import span_kernel
    from selfspec_kernels.verify_attention_launch import constants, plan, span_options

    chosen = plan(size, dtype)
    types = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), TYPES[dtype]) | {"lengths_ptr": "*i64"}
    types |= dict.fromkeys(("totals_ptr", "masses_ptr", "tops_ptr"), "*fp32")
    types |= dict.fromkeys(("m", "S", "H", "groups", *STRIDES), "i32") | {"scaling": "fp32", **more}
    types = {name: types[name] for name in span_kernel.arg_names if name in types}
    pdl = capability >= 90
    fixed = constants(chosen, size, chosen.span if whole else chosen.part) | {"PLAIN": False, "PDL": pdl}
    found = compile_kernel(
        span_kernel, types, fixed, capability, span_options(chosen, "tree_ptr" in more, pdl)
    )
    check_resources(found, capability)
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["spans", "parts"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "size", "more"), SPANS, ids=str)
def test_every_span_fits_the_gpu_and_spills_nothing(dtype, size, more, capability, whole):
    found = compiled(dtype, size, more, capability, whole)
    if dtype != torch.float32:
        assert "HMMA" in found.sass
    assert "LDGSTS" in found.sass  # keys and values are copied ahead


def test_all_spans_that_the_engine_can_ask_for(request):
    if not request.config.getoption("--every-combination"):
        pytest.skip("takes minutes: --every-combination")
    variants = ({}, CAPPED, {"tree_ptr": "*i64"}, {"window": "i32"}, TREE | CAPPED)
    for dtype, size, capability, more in product(DTYPES, HEAD_SIZES, (80, 90), variants):
        if dtype != torch.float32 or size <= LARGEST_IN_FP32:
            compiled(dtype, size, more, capability)
            compiled(dtype, size, more, capability, whole=False)


def test_one_span_with_sinks_and_the_sum_of_many_fit_the_gpu_and_spill_nothing():
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.verify_attention_kernels import combine_kernel, span_kernel
    from selfspec_kernels.verify_attention_launch import combining, constants, plan

    chosen = plan(64, torch.bfloat16)
    names = ("query_ptr", "key_ptr", "value_ptr", "sinks_ptr", "out_ptr")
    types = dict.fromkeys(names, "*bf16") | {"lengths_ptr": "*i64", "scaling": "fp32"}
    types |= dict.fromkeys(("m", "S", "H", "groups", *STRIDES), "i32")
    types = {name: types[name] for name in span_kernel.arg_names if name in types}
    fixed = constants(chosen, 64, chosen.span) | {"PLAIN": False, "PDL": True}
    check_resources(compile_kernel(span_kernel, types, fixed, 90, options(chosen.warps, True)), 90)

    types = dict.fromkeys(("totals_ptr", "masses_ptr", "tops_ptr"), "*fp32")
    types |= {"sinks_ptr": "*bf16", "out_ptr": "*bf16", "m": "i32", "H": "i32", "pieces": "i32"}
    types = {name: types[name] for name in combine_kernel.arg_names if name in types}
    for capability, parts in product((80, 90), (1, chosen.span // chosen.part)):
        fixed = combining(256, parts) | {"PDL": capability >= 90}
        found = compile_kernel(combine_kernel, types, fixed, capability, options(1, capability >= 90))
        check_resources(found, capability)
