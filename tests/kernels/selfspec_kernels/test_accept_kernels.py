"""What the kernels of acceptance and of committing compile to for GPUs that are not there."""

from __future__ import annotations

import os
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

NOISE = {"keys_ptr": "*i64", "positions_ptr": "*i64"}
FILTERS = {"top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "thresholds_ptr": "*i32"}
CHOICE = {"values_ptr": "*fp32", "scores_ptr": "*fp32", "indices_ptr": "*i32"}
SUMS = {"tops_ptr": "*fp32", "masses_ptr": "*fp32"}
OUT = {"accepted_ptr": "*i64", "tokens_ptr": "*i64", "logprobs_ptr": "*fp32", "columns_ptr": "*i64"}
TEMPERATURE = {"temperature_ptr": "*fp32"}

CHOICES = {
    "greedy": ("*fp32", CHOICE),
    "coupled": ("*bf16", CHOICE | NOISE | TEMPERATURE),
    "coupled, all filters": ("*fp32", CHOICE | NOISE | TEMPERATURE | FILTERS),
    "rejection": ("*bf16", TEMPERATURE),
}
WALKS = {
    "choices made elsewhere, a chain": (16, 1, {"scores_ptr": "*fp32", "indices_ptr": "*i64"}),
    "a tree of 15": (16, 32, CHOICE | SUMS | {"parents_ptr": "*i32"}),
    "a tree of 63, 256k tokens": (64, 64, CHOICE | SUMS | {"parents_ptr": "*i32"}),
}


def checked(kernel, types, constants, options, integers):
    """Compile for both capabilities; every argument of `integers` is an int32."""
    from ahead_of_time import check_resources, compile_kernel

    types = types | dict.fromkeys(integers.split(), "i32")
    types = {name: types[name] for name in kernel.arg_names if name in types}
    for capability in (80, 90):
        if "PDL" in options:  # which there is from Hopper on
            options = options | {"PDL": capability >= 90, "launch_pdl": capability >= 90}
            constants = constants | {"PDL": capability >= 90}
        check_resources(compile_kernel(kernel, types, constants, capability, options), capability)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_fits_the_gpu_and_spills_nothing(name):
    from selfspec_kernels.accept_kernels import choice_kernel
    from selfspec_kernels.accept_launch import BLOCK, WARPS
    from selfspec_kernels.launching import options

    logits, more = CHOICES[name]
    fixed = {"FILTERS": "thresholds_ptr" in more, "BLOCK": BLOCK}
    integers = "m V part row_stride column_stride position_row_stride position_column_stride"
    checked(choice_kernel, {"logits_ptr": logits, **SUMS, **more}, fixed, options(WARPS), integers)


@pytest.mark.parametrize("name", WALKS)
def test_every_walk_fits_the_gpu_and_spills_nothing(name):
    from selfspec_kernels.accept_kernels import walk_kernel
    from selfspec_kernels.accept_launch import walk_options

    nodes, parts, more = WALKS[name]
    types = {"draft_ptr": "*i64", **OUT, **more}
    checked(
        walk_kernel,
        types,
        {"NODES": nodes, "PARTS": parts},
        walk_options(nodes, True),
        "n depth parts draft_stride",
    )


def test_rejection_fits_the_gpu_and_spills_nothing():
    from selfspec_kernels.accept_launch import BLOCK, WARPS
    from selfspec_kernels.launching import options
    from selfspec_kernels.rejection_kernels import rejection_kernel

    types = {"logits_ptr": "*bf16", "draft_ptr": "*i64", "q_ptr": "*fp32", "found_ptr": "*i1"}
    types |= {"thresholds_ptr": "*i32", "min_p_ptr": "*fp32", **TEMPERATURE, **SUMS, **OUT}
    positions = ("deciding_ptr", "deciding_positions_ptr", "drawing_ptr", "drawing_positions_ptr")
    types |= dict.fromkeys(positions, "*i64")
    integers = (
        "K V parts row_stride column_stride draft_stride q_row_stride q_column_stride "
        "deciding_row_stride deciding_column_stride drawing_stride"
    )
    checked(rejection_kernel, types, {"NODES": 16, "PARTS": 32, "BLOCK": BLOCK}, options(WARPS), integers)


def test_committing_fits_the_gpu_and_spills_nothing():
    from selfspec_kernels.commit_kernels import commit_kernel
    from selfspec_kernels.commit_launch import sizes
    from selfspec_kernels.launching import options

    pointers = [name for name in commit_kernel.arg_names if name.endswith("_ptr")]
    types = dict.fromkeys(pointers, "*i64") | {"finished_ptr": "*i1"}
    checked(commit_kernel, types, sizes(64, 4), options(1, True), "row_stride width ends")
