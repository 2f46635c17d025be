"""The norm of every row: the reference, the dispatcher, and the kernel beside it."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from interpreter import results_of
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.row_norm import row_norm
from selfspec_kernels.row_norm_reference import MOST_INPUTS, Norm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def operands(kind="rms", inputs=64, shape=(2, 3), dtype=torch.float32, device="cpu", bias=False):
    draw = torch.Generator().manual_seed(inputs)
    hidden = torch.randn(*shape, inputs, generator=draw).to(device, dtype) * 3
    weight = torch.linspace(0.5, 2, inputs).to(device, dtype)
    return hidden, Norm(kind, weight, weight.flip(0) if bias else None, 1e-5)


# Reference and dispatcher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "module"), [("rms", LlamaRMSNorm), ("rms_one", GemmaRMSNorm)])
def test_the_reference_is_the_models_own_norm_bit_by_bit(kind, module, dtype):
    hidden, norm = operands(kind, dtype=dtype)
    own = module(64, eps=1e-5).to(dtype)
    own.weight.data = norm.weight
    assert torch.equal(row_norm(hidden, norm), own(hidden))


def test_the_reference_is_layer_norm():
    hidden, norm = operands("layer", bias=True)
    own = nn.LayerNorm(64, eps=1e-5)
    own.weight.data, own.bias.data = norm.weight, norm.bias
    torch.testing.assert_close(row_norm(hidden, norm), own(hidden))


def test_what_does_not_belong_together_is_named():
    hidden, norm = operands()
    with pytest.raises(KernelInputError, match=r"hidden must be \[B, m, D\]"):
        row_norm(hidden[0], norm)
    with pytest.raises(KernelInputError, match=f"allowed are 1 to {MOST_INPUTS}"):
        row_norm(torch.zeros(1, 1, MOST_INPUTS + 1), norm)
    with pytest.raises(KernelInputError, match=r"norm weight must be \[64\]"):
        row_norm(hidden, Norm("rms", norm.weight[:5]))
    with pytest.raises(KernelInputError, match=r"norm weight must be torch\.float32"):
        row_norm(hidden, Norm("rms", norm.weight.half()))
    with pytest.raises(KernelInputError, match="norm weight is on meta"):
        row_norm(hidden, Norm("rms", norm.weight.to("meta")))
    with pytest.raises(KernelInputError, match="'rms' has no bias"):
        row_norm(hidden, Norm("rms", norm.weight, norm.weight))
    with pytest.raises(KernelInputError, match="not 'batch'"):
        row_norm(hidden, Norm("batch", norm.weight))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_refuses_triton():
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, hidden is on cpu"):
            row_norm(*operands(), backend="triton")


# Triton's interpreter, in a process of its own


@pytest.fixture(scope="module")
def interpreted() -> dict:
    """See support/row_norm_interpreted.py."""
    return results_of("row_norm")


def test_the_kernel_agrees_with_the_reference_in_every_odd_shape(interpreted):
    # The interpreter cuts bf16 where a GPU rounds, after the norm and after the weight.
    most = {"torch.float32": 1e-5, "torch.float16": 2**-9, "torch.bfloat16": 2**-4}
    assert len(interpreted["cases"]) >= 9
    for case, error in interpreted["cases"].items():
        assert error <= most[interpreted["dtypes"][case]], case


def test_broken_kernels_do_not_pass(interpreted):
    assert len(interpreted["mutations"]) >= 9
    for mutation, found in interpreted["mutations"].items():
        # A rounding that is left out moves a last bit; all else moves more.
        least = 0.0 if "rounded" in mutation else 2**-8
        assert found["error"] > least, mutation


def test_the_dispatcher_hands_rows_to_triton(interpreted):
    assert interpreted["dispatched"]


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "bias"), [("rms", False), ("rms_one", False), ("layer", True)])
@pytest.mark.parametrize("inputs", [33, 896, 4096, 16_384])
def test_triton_agrees_with_the_reference_on_the_gpu(inputs, kind, bias, dtype, cuda):
    hidden, norm = operands(kind, inputs, (3, 17), dtype, cuda, bias)
    found, expected = (row_norm(hidden, norm, backend=backend) for backend in ("triton", "reference"))
    # The sum over a row has an order of its own, which may move the last bit of the norm, then the weight's.
    error = (found.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
    assert error.max() <= 4 * torch.finfo(dtype).eps
    if dtype != torch.float32:
        assert (found == expected).float().mean() > 0.99


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_norm(cuda):
    hidden, norm = operands(inputs=4096, dtype=torch.bfloat16, device=cuda)
    expected = row_norm(hidden, norm)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = row_norm(hidden, norm)
    out.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected)
