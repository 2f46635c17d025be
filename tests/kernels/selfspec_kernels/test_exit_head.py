"""The exit head: its reference, its dispatcher, and the Triton kernels beside it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from interpreter import results_of

from layer_skip.decoder import LayeredDecoder
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.exit_head import exit_head
from selfspec_kernels.exit_head_reference import Calibration, Head, reference_exit_head, reference_logits
from selfspec_kernels.noise import Noise, stream_keys
from selfspec_kernels.row_norm_reference import Norm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TOLERANCE = {"torch.float32": 1e-5, "torch.float16": 4e-3, "torch.bfloat16": 2e-2}
"""Over the largest score; the interpreter cuts bf16 where a GPU rounds."""


def head_of_model(model) -> Head:
    """The exit head of a Hugging Face model, as the engine would build it."""
    base = model.model if hasattr(model, "model") else model.transformer
    norm = base.norm if hasattr(base, "norm") else base.ln_f
    kind = "layer" if "LayerNorm" in type(norm).__name__ else "rms"
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    if model.config.model_type.startswith("gemma"):
        kind = "rms_one"
    return Head(
        model.get_output_embeddings().weight.detach(),
        bias=getattr(model.get_output_embeddings(), "bias", None),
        norm=Norm(kind, norm.weight.detach(), getattr(norm, "bias", None), eps),
        multiplier=getattr(model.config, "logit_scale", None) or 1.0,
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "cohere"])
def test_the_reference_is_the_models_own_head(name, dtype, tiny_model):
    model = tiny_model(name).to(dtype)
    hidden = torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        expected = LayeredDecoder(model).logits(hidden).float()
        found = reference_logits(hidden, head_of_model(model))
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


def operands(dtype=torch.float32, vocabulary=90, inputs=32, rows=2, device="cpu"):
    draw = torch.Generator().manual_seed(vocabulary)
    weight = torch.randn(vocabulary, inputs, generator=draw) * 0.3
    hidden = torch.randn(rows, 3, inputs, generator=draw)
    norm = Norm("rms", torch.rand(inputs, generator=draw).to(device, dtype))
    return hidden.to(device, dtype), Head(weight.to(device, dtype), norm=norm)


def noise_of(rows, width, device="cpu"):
    positions = torch.arange(rows * width, device=device).view(rows, width)
    return Noise(stream_keys(5, torch.arange(rows, device=device)), positions)


def test_choices_are_the_best_scores_and_their_probabilities():
    hidden, head = operands()
    temperature, noise = torch.tensor([0.5, 2.0]), noise_of(2, 3)
    found = exit_head(hidden, head, count=4, temperature=temperature, noise=noise)
    scores = reference_logits(hidden, head) / temperature[:, None, None]
    values, tokens = (scores + noise.at(torch.arange(90))).topk(4)
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(found.scores, values)
    expected = scores.softmax(dim=-1).gather(-1, tokens)
    torch.testing.assert_close(found.logprobs.exp(), expected)


def test_a_shortlist_chooses_among_its_tokens_with_their_own_noise():
    hidden, head = operands()
    noise = noise_of(2, 3)
    listed = torch.tensor([5, 77, 30, 2], dtype=torch.int32)
    found = exit_head(hidden, replace(head, shortlist=listed), noise=noise)
    scores = torch.full((2, 3, 90), float("-inf"))
    scores[..., listed.long()] = reference_logits(hidden, head)[..., listed.long()]
    expected = (scores + noise.at(torch.arange(90))).argmax(dim=-1)
    assert torch.equal(found.tokens[..., 0], expected)
    torch.testing.assert_close(
        found.logprobs, scores.log_softmax(dim=-1).gather(-1, expected[..., None]), rtol=1e-5, atol=1e-5
    )


def test_int8_weights_are_their_scaled_values():
    hidden, head = operands()
    weight = torch.randint(-127, 128, (90, 32), dtype=torch.int8)
    scale = torch.rand(90) * 0.01
    found = exit_head(hidden, replace(head, weight=weight, scale=scale))
    expected = exit_head(hidden, replace(head, weight=weight * scale[:, None]))
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.scores, expected.scores)


def test_equal_scores_go_to_the_first_token():
    hidden, head = operands()
    flat = replace(head, weight=torch.zeros(90, 32))
    assert torch.equal(exit_head(hidden, flat, count=2).tokens, torch.tensor([0, 1]).expand(2, 3, 2))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_a_processor_gets_the_reference_and_refuses_triton():
    hidden, head = operands()
    assert torch.equal(exit_head(hidden, head).scores, exit_head(hidden, head, backend="reference").scores)
    if sys.platform == "linux":
        with pytest.raises(KernelInputError, match="needs a CUDA device, hidden is on cpu"):
            exit_head(hidden, head, backend="triton")
    with pytest.raises(KernelInputError, match="not 'cuda'"):
        exit_head(hidden, head, backend="cuda")


def with_norm(head, **changes):
    return replace(head, norm=replace(head.norm, **changes))


BROKEN = {
    r"hidden must be \[B, m, D\]": lambda x, h: ((x[0], h), {}),
    "in bf16, fp16 or fp32, not torch.float64": lambda x, h: ((x.double(), h), {}),
    r"weight must be \[V, D\]": lambda x, h: ((x, replace(h, weight=h.weight[0])), {}),
    r"weight must be \[90, 32\], not \[90, 31\]": lambda x, h: ((x, replace(h, weight=h.weight[:, 1:])), {}),
    "weight must be torch.float32 or torch.int8": lambda x, h: ((x, replace(h, weight=h.weight.half())), {}),
    "weight must be contiguous in its last": lambda x, h: (
        (x, replace(h, weight=h.weight.t().contiguous().t())),
        {},
    ),
    "weight is on meta, hidden on cpu": lambda x, h: ((x, replace(h, weight=h.weight.to("meta"))), {}),
    "indices above int32": lambda x, h: ((x, replace(h, weight=h.weight[:1].expand(2**31, 32))), {}),
    "int8 weights need a scale": lambda x, h: ((x, replace(h, weight=h.weight.to(torch.int8))), {}),
    "others have none": lambda x, h: ((x, replace(h, scale=torch.ones(90))), {}),
    r"bias must be \[90\]": lambda x, h: ((x, replace(h, bias=torch.ones(3))), {}),
    "norm must be 'rms', 'rms_one' or 'layer', not 'batch'": lambda x, h: (
        (x, with_norm(h, kind="batch")),
        {},
    ),
    r"norm weight must be \[32\]": lambda x, h: ((x, with_norm(h, weight=torch.ones(5))), {}),
    "'rms' has no bias": lambda x, h: ((x, with_norm(h, bias=torch.ones(32))), {}),
    r"up must be \[4, 32\]": lambda x, h: (
        (x, replace(h, calibration=Calibration(torch.ones(4, 32), torch.ones(32, 4)))),
        {},
    ),
    "soft cap must be above 0": lambda x, h: ((x, replace(h, softcap=0.0)), {}),
    "shortlist must be torch.int32": lambda x, h: ((x, replace(h, shortlist=torch.tensor([1]))), {}),
    "cannot choose 2 tokens: allowed are 1 to 1": lambda x, h: (
        (x, replace(h, shortlist=torch.tensor([1], dtype=torch.int32))),
        {"count": 2},
    ),
    "cannot choose 9 tokens: allowed are 1 to 8": lambda x, h: ((x, h), {"count": 9}),
    r"temperature must be \[2\]": lambda x, h: ((x, h), {"temperature": torch.ones(3)}),
    r"noise positions must be \[2, 3\]": lambda x, h: ((x, h), {"noise": noise_of(2, 2)}),
    "noise keys is on meta": lambda x, h: (
        (x, h),
        {"noise": Noise(torch.ones(2, device="meta"), torch.ones(2, 3))},
    ),
    "hidden states of 20000 elements": lambda x, h: (
        (torch.ones(1, 1, 20_000), Head(torch.ones(3, 20_000))),
        {},
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    arguments, keywords = BROKEN[message](*operands())
    with pytest.raises(KernelInputError, match=message):
        exit_head(*arguments, **keywords)


@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_more_programs_than_a_launch_has_are_named():
    from selfspec_kernels.exit_head_launch import choose

    head = Head(torch.ones(1, 16).expand(64 * 65_536, 16))
    with pytest.raises(KernelInputError, match=r"a vocabulary of 4194304: .*65536 programs along one axis"):
        choose(torch.ones(1, 1, 16), head, 1, None, None)


# Triton's interpreter


def test_kernels_agree_with_the_reference_in_every_odd_shape():
    found = results_of("exit_head")
    assert len(found["cases"]) >= 9
    for case, error in found["cases"].items():
        assert error < TOLERANCE[found["dtypes"][case]], case


def test_broken_kernels_do_not_pass():
    found = results_of("exit_head")
    assert len(found["mutations"]) >= 15
    for mutation, spoilt in found["mutations"].items():
        assert spoilt["error"] > 3 * TOLERANCE[found["dtypes"][spoilt["case"]]], mutation


def test_a_nan_shows_in_the_log_probability_of_its_row_alone():
    assert results_of("exit_head")["nan"] == [True, False]


def test_logits_are_rounded_as_those_of_a_head_of_its_own_are():
    """Equal in bf16, they go to the first token, as after a product that writes its logits."""
    assert results_of("exit_head")["rounded"] == [[0, 256], [0, 256], [0, 128], [0, 128], [0, 207], [0, 207]]


def test_weights_may_lie_further_apart_than_int32_counts():
    assert results_of("exit_head")["far apart"] == [2, 1, 0]


def test_the_dispatcher_hands_rows_to_triton():
    assert results_of("exit_head")["dispatched"]


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 4097, 128_256])
def test_triton_agrees_with_the_reference_on_the_gpu(vocabulary, dtype, cuda):
    for rows in (1, 5, 16):
        hidden, head = operands(dtype, vocabulary, 1024, rows, cuda)
        head = replace(head, softcap=30.0)
        temperature, noise = torch.full((rows,), 0.8, device=cuda), noise_of(rows, 3, cuda)
        found = exit_head(hidden, head, temperature=temperature, noise=noise, backend="triton")
        scores = reference_logits(hidden, head) / 0.8
        noisy = scores + noise.at(torch.arange(vocabulary, device=cuda))
        tolerance = TOLERANCE[str(dtype)] * float(scores.abs().max())
        # Near-ties may fall either way, so what counts is the reference's score of what was chosen.
        best = noisy.gather(-1, found.tokens)[..., 0]
        assert (noisy.amax(dim=-1) - best).max() < tolerance
        logprobs = scores.log_softmax(dim=-1).gather(-1, found.tokens)
        assert (found.logprobs - logprobs).abs().max() < tolerance


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_exit_head(cuda):
    hidden, head = operands(torch.bfloat16, 4096, 1024, 2, cuda)
    expected = exit_head(hidden, head)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = exit_head(hidden, head)
    out.scores.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out.scores, expected.scores)
    assert torch.equal(out.tokens, reference_exit_head(hidden, head).tokens)
