"""Rejection on the device: its reference beside the engine's own, and the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from interpreter import results_of

from selfspec.acceptance import accept_rejection as accept_on_the_host
from selfspec.sampling import gumbel, position_keys, uniform
from selfspec_kernels.accept_reference import Sampling
from selfspec_kernels.backend import KernelInputError
from selfspec_kernels.noise import Noise, stream_keys
from selfspec_kernels.rejection import accept_rejection

ROWS, TOKENS, VOCABULARY = 300, 3, 20
REQUESTS = torch.arange(ROWS) + 1
POSITIONS = (torch.arange(TOKENS + 1) + 9).expand(ROWS, -1) + (4 << 32)


def draws(device="cpu") -> dict[str, Noise]:
    """As `Rejection` keys them: one stream decides, another draws."""
    positions = POSITIONS.to(device)
    return {
        "deciding": Noise(stream_keys(7, REQUESTS, 2).to(device), positions[:, :TOKENS]),
        "drawing": Noise(stream_keys(7, REQUESTS, 3).to(device), positions[:, :1]),
    }


def operands(vocabulary=VOCABULARY):
    """Logits, draft and q; some rows drafted less."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(ROWS, TOKENS + 1, vocabulary, generator=draw) * 2
    q = (logits[:, :-1] + torch.randn(ROWS, TOKENS, vocabulary, generator=draw)).softmax(dim=-1)
    draft = torch.multinomial(q.flatten(0, 1), 1, generator=draw).view(ROWS, TOKENS)
    draft[::5, -1] = -1
    return logits, draft, q


@pytest.mark.parametrize("found", [False, True])
def test_the_reference_decides_and_draws_as_the_engine_does(found):
    logits, draft, q = operands()
    rows_found = torch.arange(ROWS) % 2 == 0 if found else None
    temperature = torch.full((ROWS,), 0.8)
    mine = accept_rejection(logits, draft, q, **draws(), sampling=Sampling(temperature), found=rows_found)
    if found:
        one_hot = torch.nn.functional.one_hot(draft.clamp(min=0), VOCABULARY).float()
        q = torch.where(rows_found[:, None, None], one_hot, q)
    p = (logits / 0.8).softmax(dim=-1)
    uniforms = uniform(position_keys(7, REQUESTS, POSITIONS[:, :TOKENS], 2), 1)[..., 0]
    noise = gumbel(position_keys(7, REQUESTS, POSITIONS[:, :1], 3), VOCABULARY)[:, 0]
    engine = accept_on_the_host(draft, q, p, uniforms, noise)
    assert torch.equal(mine.accepted, engine.accepted)
    assert mine.accepted.bincount(minlength=4).min() > 5
    for row, count in enumerate(engine.accepted.tolist()):
        assert torch.equal(mine.tokens[row, : count + 1], engine.tokens[row, : count + 1])
    chosen = p.log().gather(-1, mine.tokens[..., None])[..., 0]
    first = torch.arange(TOKENS + 1) <= mine.accepted[:, None]
    torch.testing.assert_close(mine.logprobs[first], chosen[first])


LOGITS, DRAFT = torch.zeros(ROWS, TOKENS + 1, 5), torch.zeros(ROWS, TOKENS, dtype=torch.int64)
Q = torch.zeros(ROWS, TOKENS, 5)
BROKEN = {
    r"q must be \[300, 3, 5\]": (Q[:, :2], {}),
    "q must be torch.float32": (Q.half(), {}),
    "q must be contiguous in its last": (Q.transpose(1, 2).contiguous().transpose(1, 2), {}),
    "q is on meta, logits on cpu": (Q.to("meta"), {}),
    "found must be torch.bool": (Q, {"found": torch.zeros(ROWS)}),
    r"noise positions must be \[300, 3\]": (Q, {"deciding": Noise(REQUESTS, POSITIONS)}),
    r"noise positions must be \[300, 1\]": (Q, {"drawing": Noise(REQUESTS, POSITIONS)}),
    "deciding keys is on meta": (Q, {"deciding": Noise(REQUESTS.to("meta"), POSITIONS[:, :3])}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_belong_together_is_named(message):
    q, keywords = BROKEN[message]
    with pytest.raises(KernelInputError, match=message):
        accept_rejection(LOGITS, DRAFT, q, **(draws() | keywords))


# Triton's interpreter


def test_kernels_agree_with_the_reference_in_every_odd_shape():
    cases = results_of("rejection")["cases"]
    assert len(cases) >= 9
    for case, error in cases.items():
        assert error < 2e-5, case


def test_broken_kernels_do_not_pass():
    mutations = results_of("rejection")["mutations"]
    assert len(mutations) >= 10
    for mutation, found in mutations.items():
        assert found["error"] > 1e-2, mutation


def test_the_dispatcher_hands_its_inputs_to_triton():
    assert results_of("rejection")["dispatched"] < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [20, 5000])
def test_triton_agrees_with_the_reference_on_the_gpu(vocabulary, cuda):
    tensors = [tensor.to(cuda) for tensor in operands(vocabulary)]
    found = accept_rejection(*tensors, **draws(cuda), backend="triton")
    expected = accept_rejection(*tensors, **draws(cuda), backend="reference")
    # A last bit may turn a decision: hardly ever.
    same = found.accepted == expected.accepted
    assert same.float().mean() > 0.99
    assert (found.tokens == expected.tokens)[same].float().mean() > 0.99
