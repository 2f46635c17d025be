"""What the kernels of acceptance and of committing compile to for GPUs that are not there."""

from __future__ import annotations

import os
import re
import sys
from functools import cache

import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

NOISE = {"keys_ptr": "*i64", "positions_ptr": "*i64"}
FILTERS = {"top_k_ptr": "*i32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32"}
ROOM = {"highs_ptr": "*fp32", "found_ptr": "*i32", "candidates_ptr": "*i32", "scores_ptr": "*fp32"}
CHOICE = {"values_ptr": "*fp32", "scores_ptr": "*fp32", "indices_ptr": "*i32"}
SUMS = {"tops_ptr": "*fp32", "masses_ptr": "*fp32"}
OUT = {"accepted_ptr": "*i64", "tokens_ptr": "*i64", "logprobs_ptr": "*fp32", "columns_ptr": "*i64"}
TEMPERATURE = {"temperature_ptr": "*fp32"}
WALKED = {"draft_ptr": "*i64", **OUT, "depth": "i32", "draft_stride": "i32"}
CHOSEN = {"choices_ptr": "*i32", "choice_logprobs_ptr": "*fp32", "finished_ptr": "*i32", **WALKED}
TREE = {"parents_ptr": "*i32"}
KEPT = {"thresholds_ptr": "*i32", "kept_tops_ptr": "*fp32", "kept_masses_ptr": "*fp32"}

CHOICES = {
    "greedy": ("*fp32", CHOICE),
    "coupled": ("*bf16", CHOICE | NOISE | TEMPERATURE),
    "coupled, fp32": ("*fp32", CHOICE | NOISE),
    "greedy with a temperature": ("*bf16", CHOICE | TEMPERATURE),
    "rejection": ("*bf16", TEMPERATURE),
}
FILTERED = {
    "a draft, all filters": ("*bf16", 2048, 1, NOISE | FILTERS | CHOSEN),
    "256k tokens, all filters": ("*fp32", 4096, 8, NOISE | FILTERS | CHOSEN),
    "greedy, top-k": ("*bf16", 2048, 8, {"top_k_ptr": "*i32"} | CHOSEN),
    "a tree of 15": ("*bf16", 2048, 16, NOISE | FILTERS | CHOSEN | TREE),
    "a chain of 31": ("*bf16", 2048, 32, NOISE | FILTERS | CHOSEN),
    "a chain of 63, 256k tokens": ("*bf16", 4096, 64, NOISE | FILTERS | CHOSEN),
    "a tree of 63, 256k tokens": ("*fp32", 4096, 64, NOISE | FILTERS | CHOSEN | TREE),
    "rejection": ("*fp32", 2048, 8, FILTERS | KEPT),
}
WALKS = {
    "choices made elsewhere, a chain": (16, 1, {"scores_ptr": "*fp32", "indices_ptr": "*i64"}),
    "choices made elsewhere, a tree": (16, 1, {"scores_ptr": "*fp32", "indices_ptr": "*i64"} | TREE),
    "a chain of 7, 256k tokens": (16, 128, CHOICE | SUMS),
    "a chain of 31": (32, 64, CHOICE | SUMS),
    "a chain of 63, 256k tokens": (64, 128, CHOICE | SUMS),
    "a tree of 15": (16, 32, CHOICE | SUMS | TREE),
    "a tree of 31": (32, 32, CHOICE | SUMS | TREE),
    "a tree of 63, 256k tokens": (64, 64, CHOICE | SUMS | TREE),
}


def checked(kernel, types, constants, options, integers):
    """Compiled for both capabilities; every argument of `integers` is an int32."""
    from ahead_of_time import check_resources, compile_kernel

    types = types | dict.fromkeys(integers.split(), "i32")
    types = {name: types[name] for name in kernel.arg_names if name in types}
    found = []
    for capability in (80, 90):
        if "PDL" in options:  # which there is from Hopper on
            options = options | {"PDL": capability >= 90, "launch_pdl": capability >= 90}
            constants = constants | {"PDL": capability >= 90}
        found.append(compile_kernel(kernel, types, constants, capability, options))
        check_resources(found[-1], capability)
    return found


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_fits_the_gpu_and_spills_nothing(name, large):
    from selfspec_kernels.accept_kernels import choice_kernel
    from selfspec_kernels.accept_launch import BLOCKS, WARPS
    from selfspec_kernels.launching import options

    logits, more = CHOICES[name]
    integers = "m V row_stride column_stride position_row_stride position_column_stride"
    checked(
        choice_kernel,
        {"logits_ptr": logits, **SUMS, **more},
        {"BLOCK": BLOCKS[large]},
        options(WARPS),
        integers,
    )


def test_a_choice_among_rows_that_are_not_aligned_spills_nothing():
    """GPT-2's vocabulary of 50,257: no row but the first begins at a multiple of 16 bytes."""
    import triton

    from selfspec_kernels.accept_kernels import choice_kernel
    from selfspec_kernels.accept_launch import BLOCKS, WARPS
    from selfspec_kernels.launching import options

    free = ["m", "logits_ptr", "V", "row_stride", "column_stride"]
    checked(
        triton.jit(choice_kernel.fn, do_not_specialize=free),
        {"logits_ptr": "*bf16", **SUMS, **CHOICE, **NOISE, **TEMPERATURE},
        {"BLOCK": BLOCKS[1]},
        options(WARPS),
        "m V row_stride column_stride position_row_stride position_column_stride",
    )


@pytest.mark.parametrize("logits", ["*bf16", "*fp32"])
def test_every_group_fits_the_gpu_and_spills_nothing(logits):
    from selfspec_kernels.filter_kernels import group_kernel
    from selfspec_kernels.filter_launch import CUT
    from selfspec_kernels.launching import options

    types = {"logits_ptr": logits, "highs_ptr": "*fp32", "finished_ptr": "*i32", **SUMS, **TEMPERATURE}
    fixed = {"GROUP": CUT.group, "BLOCK": CUT.block}
    checked(group_kernel, types, fixed, options(CUT.group_warps), "m V groups row_stride column_stride")


@cache
def filtered(name):
    """`filter_kernel`, compiled."""
    from selfspec_kernels.filter_kernels import filter_kernel
    from selfspec_kernels.filter_launch import CUT, constants, filter_options

    logits, groups, nodes, more = FILTERED[name]
    integers = "m V groups parts row_stride column_stride position_row_stride position_column_stride"
    types = {"logits_ptr": logits, **ROOM, **SUMS, **TEMPERATURE, **more}
    fixed = constants(CUT, CUT.group * groups, nodes)
    return checked(filter_kernel, types, fixed, filter_options(CUT, True), integers)


@pytest.mark.parametrize("name", FILTERED)
def test_every_filter_fits_the_gpu_and_spills_nothing(name):
    assert len(filtered(name)) == 2


@pytest.mark.parametrize("name", [name for name in FILTERED if name != "rejection"])
def test_who_walks_sees_what_the_others_chose(name):
    around = ["st.global.b32", "st.global.b32", "bar.sync", "atom.global.gpu.acq_rel.add.u32"]
    around += ["bar.sync", "ld.global.b32"]
    for found in filtered(name):
        accesses = re.findall(r"\b(?:bar\.sync|ld\.global|st\.global|atom\.)\S*", found.ptx)
        (count,) = (at for at, access in enumerate(accesses) if access.startswith("atom"))
        assert accesses[count - 3 : count + 3] == around
        assert not any(".nc" in access for access in accesses)  # it may miss what others store


@pytest.mark.parametrize("name", WALKS)
def test_every_walk_fits_the_gpu_and_spills_nothing(name):
    from selfspec_kernels.accept_kernels import walk_kernel
    from selfspec_kernels.accept_launch import walk_options

    nodes, parts, more = WALKS[name]
    fixed = {"NODES": nodes, "PARTS": parts}
    chosen = walk_options(nodes, parts, "parents_ptr" in more, True)
    found = checked(walk_kernel, WALKED | more, fixed, chosen, "n parts")
    if name == "choices made elsewhere, a chain":
        assert not any(re.search(r"\bBAR\b", one.sass) for one in found)  # a warp by itself


@pytest.mark.parametrize("nodes", [16, 32, 64])
def test_rejection_fits_the_gpu_and_spills_nothing(nodes):
    from selfspec_kernels.rejection_kernels import rejection_kernel
    from selfspec_kernels.rejection_launch import BLOCK, OPTIONS

    types = {"logits_ptr": "*bf16", "draft_ptr": "*i64", "q_ptr": "*fp32", "found_ptr": "*i1"}
    types |= {"thresholds_ptr": "*i32", "min_p_ptr": "*fp32", **TEMPERATURE, **SUMS, **OUT}
    positions = ("deciding_ptr", "deciding_positions_ptr", "drawing_ptr", "drawing_positions_ptr")
    types |= dict.fromkeys(positions, "*i64")
    integers = (
        "K V parts row_stride column_stride draft_stride q_row_stride q_column_stride "
        "deciding_row_stride deciding_column_stride drawing_stride"
    )
    checked(rejection_kernel, types, {"NODES": nodes, "PARTS": 32, "BLOCK": BLOCK}, OPTIONS, integers)


@pytest.mark.parametrize(("width", "ends"), [(64, 4), (8, 64), (64, 64)])
def test_committing_fits_the_gpu_and_spills_nothing(width, ends):
    from selfspec_kernels.commit_kernels import commit_kernel
    from selfspec_kernels.commit_launch import sizes
    from selfspec_kernels.launching import options

    pointers = [name for name in commit_kernel.arg_names if name.endswith("_ptr")]
    types = dict.fromkeys(pointers, "*i64") | {"finished_ptr": "*i1"}
    checked(commit_kernel, types, sizes(width, ends), options(1, True), "row_stride width ends")
