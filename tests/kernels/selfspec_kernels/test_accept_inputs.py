"""What acceptance on the device refuses, and where it runs."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Sampling
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.noise import Noise


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_gets_the_reference_and_refuses_triton():
    logits, draft = torch.randn(1, 2, 20), torch.zeros(1, 1).long()
    assert torch.equal(accept(logits, draft).tokens, accept(logits, draft, backend="reference").tokens)
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, logits is on cpu"):
            accept(logits, draft, backend="triton")
        with pytest.raises(KernelInputError, match="needs a CUDA device, choices is on cpu"):
            accept_choices(torch.zeros(1, 2).long(), torch.zeros(1, 2), draft, backend="triton")


LOGITS, DRAFT = torch.zeros(2, 4, 30), torch.zeros(2, 3, dtype=torch.int64)
BROKEN = {
    r"logits must be \[B, n\+1, V\]": ((LOGITS[0], DRAFT), {}),
    "not torch.int64": ((LOGITS.long(), DRAFT), {}),
    "logits must be contiguous in its last": (
        (LOGITS.transpose(1, 2).contiguous().transpose(1, 2), DRAFT),
        {},
    ),
    "indices above int32": ((LOGITS[..., :1].expand(2, 4, 2**31), DRAFT), {}),
    r"draft must be \[2, 3\], not \[2, 2\]": ((LOGITS, DRAFT[:, 1:]), {}),
    "draft must be torch.int64": ((LOGITS, DRAFT.int()), {}),
    "draft is on meta, logits on cpu": ((LOGITS, DRAFT.to("meta")), {}),
    r"temperature must be \[2\]": ((LOGITS, DRAFT), {"sampling": Sampling(torch.ones(1))}),
    "top_k must be torch.int32": ((LOGITS, DRAFT), {"sampling": Sampling(top_k=torch.ones(2))}),
    "top_p is on meta": ((LOGITS, DRAFT), {"sampling": Sampling(top_p=torch.ones(2, device="meta"))}),
    "min_p must be contiguous": ((LOGITS, DRAFT), {"sampling": Sampling(min_p=torch.ones(4)[::2])}),
    r"noise positions must be \[2, 4\]": (
        (LOGITS, DRAFT),
        {"noise": Noise(torch.zeros(2).long(), DRAFT)},
    ),
    "noise keys is on meta": ((LOGITS, DRAFT), {"noise": Noise(DRAFT[:, 0].to("meta"), DRAFT)}),
    "parents must be torch.int32": ((LOGITS, DRAFT), {"parents": torch.zeros(3).long(), "depth": 1}),
    "needs a depth up to that, not None": ((LOGITS, DRAFT), {"parents": torch.zeros(3).int()}),
    "a chain of 3 candidates has no depth of 2": ((LOGITS, DRAFT), {"depth": 2}),
    "65 nodes: allowed are up to 64": ((torch.zeros(1, 65, 5), torch.zeros(1, 64).long()), {}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    arguments, keywords = BROKEN[message]
    with pytest.raises(KernelInputError, match=message):
        accept(*arguments, **keywords)


def test_choices_that_do_not_belong_together_are_named():
    choices = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(KernelInputError, match=r"choices must be \[B, n\+1\]"):
        accept_choices(choices[0], torch.zeros(4), DRAFT)
    with pytest.raises(KernelInputError, match=r"logprobs must be \[2, 4\]"):
        accept_choices(choices, torch.zeros(2, 3), DRAFT)
    with pytest.raises(KernelInputError, match=r"draft must be \[2, 3\]"):
        accept_choices(choices, torch.zeros(2, 4), DRAFT[:, 1:])


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_more_programs_than_a_launch_has_are_named():
    from selfspec_kernels.accept_launch import sum_up

    logits = torch.zeros(1, 1, 1).expand(1, 1, 4096 * 65_536)
    with pytest.raises(KernelInputError, match=r"a vocabulary of 268435456: .*65536 programs along one axis"):
        sum_up(logits, None, None, 4096, choose=False)
