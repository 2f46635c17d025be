"""What the norm's kernel compiles to for GPUs that are not there."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


@pytest.mark.parametrize(
    ("inputs", "kind", "rank"),
    [(4096, "rms", True), (4096, None, True), (16_384, "layer", False)],
)
def test_every_norm_fits_the_gpu_and_spills_nothing(inputs, kind, rank):
    from ahead_of_time import check_resources, compile_kernel

    from selfspec_kernels.launching import options
    from selfspec_kernels.row_norm_kernels import norm_kernel
    from selfspec_kernels.row_norm_launch import constants, warps

    names = ["hidden_ptr", "out_ptr"]
    names += ["down_ptr", "up_ptr"] if rank else []
    names += ["weight_ptr"] if kind else []
    names += ["bias_ptr"] if kind == "layer" else []
    types = dict.fromkeys(names, "*bf16") | {"eps": "fp32"}
    types |= dict.fromkeys(("width", "D", "rank", "row_stride", "column_stride"), "i32")
    types = {name: types[name] for name in norm_kernel.arg_names if name in types}
    for capability in (80, 90):
        pdl = capability >= 90
        fixed = constants(inputs, kind) | {"PDL": pdl}
        found = compile_kernel(norm_kernel, types, fixed, capability, options(warps(inputs), pdl))
        check_resources(found, capability)
