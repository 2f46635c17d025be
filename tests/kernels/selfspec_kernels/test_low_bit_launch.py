"""How a product is cut into programs."""

from __future__ import annotations

import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")

PROCESSORS = 132


def test_few_outputs_are_split_and_many_are_not():
    from selfspec_kernels.low_bit_launch import plan

    assert plan(1, 4096, 14336, 32, torch.float32, PROCESSORS).splits == 1
    assert plan(1, 128_256, 4096, 32, torch.float32, PROCESSORS).splits == 1
    assert plan(1, 1024, 4096, 32, torch.float32, PROCESSORS).splits > 1
    assert plan(1, 1024, 4096, 32, torch.bfloat16, PROCESSORS).splits == 1  # 16 bits: more warps a program


def test_how_inputs_are_split_does_not_depend_on_the_rows():
    from selfspec_kernels.low_bit_launch import plan

    assert len({plan(m, 1024, 4096, 32, torch.float32, PROCESSORS).splits for m in range(1, 17)}) == 1
