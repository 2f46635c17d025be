"""Triton where it runs, the reference elsewhere; inputs are looked at before either."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from interpreter import environment

from selfspec_kernels.backend import KernelInputError, check, check_together, choose_backend


def test_importing_the_references_does_not_import_triton():
    modules = "backend, noise, exit_head, accept, rejection, commit, verify_attention"
    code = f"import sys; from selfspec_kernels import {modules}; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_a_tensor_on_a_processor_gets_the_reference():
    assert choose_backend(None, "x", torch.zeros(1)) == "reference"


@pytest.mark.gpu
def test_a_tensor_on_a_gpu_gets_triton(cuda):
    assert choose_backend(None, "x", torch.zeros(1, device=cuda)) == "triton"


def test_what_is_wrong_is_named():
    x = torch.zeros(4, 6)
    check("x", x[:, :3], (4, 3), torch.float32, layout="rows")
    check("x", x.t(), (6, 4), torch.float32, layout="any")
    check("x", None, (1,), torch.float32)
    with pytest.raises(KernelInputError, match=r"x must be \[4, 5\], not \[4, 6\]"):
        check("x", x, (4, 5), torch.float32)
    with pytest.raises(KernelInputError, match=r"x must be torch.int32 or torch.int64, not torch.float32"):
        check("x", x, (4, 6), torch.int32, torch.int64)
    with pytest.raises(KernelInputError, match="x must be contiguous: "):
        check("x", x[:, :3], (4, 3), torch.float32)
    with pytest.raises(KernelInputError, match="x must be contiguous in its last dimension"):
        check("x", x.t(), (6, 4), torch.float32, layout="rows")
    with pytest.raises(KernelInputError, match="y is on meta, x on cpu"):
        check_together({"x": x, "y": x.to("meta")})
    with pytest.raises(KernelInputError, match="indices above int32"):
        check_together({"x": x[:1, :1].expand(1, 2**31)})
