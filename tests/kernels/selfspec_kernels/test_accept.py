"""Acceptance on the device: its references beside the engine's own, its dispatcher, the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from interpreter import results_of
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfspec.acceptance import accept_in_tree, accept_matching
from selfspec.tree import Tree, chain, grafted, with_siblings
from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Sampling, processed
from selfspec_kernels.noise import Noise, stream_keys

TREES = [
    chain(0),
    chain(4),
    with_siblings(3),
    with_siblings(2, 3),
    grafted(with_siblings(3), 3),
    Tree.of((0, 1, 0, 3, 4, 1, 2)),
]


def of(tree: Tree) -> dict:
    """A tree as the kernels take it."""
    return {"parents": torch.tensor(tree.parents, dtype=torch.int32), "depth": tree.depth}


def noise_of(rows, width, device="cpu"):
    positions = torch.arange(rows * width, device=device).view(rows, width)
    return Noise(stream_keys(5, torch.arange(rows, device=device)), positions)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.parents))
def test_the_walk_is_the_engines_in_every_tree(tree):
    draw = torch.Generator().manual_seed(tree.size)
    # Few tokens: candidates often stand, and branches often agree.
    draft = torch.randint(-1, 3, (200, tree.size - 1), generator=draw)
    choices = torch.randint(0, 3, (200, tree.size), generator=draw)
    logprobs = torch.rand(200, tree.size, generator=draw)
    found = accept_choices(choices, logprobs, draft, **of(tree))
    expected = accept_in_tree(draft, choices, tree)
    assert torch.equal(found.accepted, expected.accepted)
    if tree.depth > 1:
        assert len(found.accepted.unique()) > 2
    for row, count in enumerate(found.accepted.tolist()):
        assert torch.equal(found.tokens[row, : count + 1], expected.tokens[row, : count + 1])
        path = found.columns[row, : count + 1]
        assert torch.equal(choices[row, path], found.tokens[row, : count + 1])
        assert torch.equal(logprobs[row, path], found.logprobs[row, : count + 1])
    if tree.is_chain:
        plain = accept_matching(draft, choices)
        chained = accept_choices(choices, logprobs, draft)
        assert torch.equal(chained.accepted, plain.accepted)
        assert torch.equal(chained.columns, found.columns)


def test_choices_are_the_targets_own_with_its_noise():
    logits = torch.randn(3, 5, 70, generator=torch.Generator().manual_seed(0))
    noise, temperature = noise_of(3, 5), torch.tensor([0.5, 1.0, 2.0])
    choices = (logits / temperature[:, None, None] + noise.at(torch.arange(70))).argmax(dim=-1)
    draft = choices[:, :-1].clone()
    draft[1, 2] += 1
    found = accept(logits, draft, sampling=Sampling(temperature), noise=noise)
    assert found.accepted.tolist() == [4, 2, 4]
    assert torch.equal(found.tokens[0], choices[0])
    expected = (logits[0] / 0.5).log_softmax(dim=-1).gather(-1, choices[0, :, None])[:, 0]
    torch.testing.assert_close(found.logprobs[0], expected)


@pytest.mark.parametrize(
    "warpers",
    [
        [TemperatureLogitsWarper(0.7)],
        [TopKLogitsWarper(7)],
        [TopKLogitsWarper(1000)],
        [TopPLogitsWarper(0.8)],
        [TopPLogitsWarper(0.01)],
        [MinPLogitsWarper(0.05)],
        [TemperatureLogitsWarper(1.6), TopKLogitsWarper(50), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
    ],
    ids=lambda warpers: "+".join(type(warper).__name__[:-12] for warper in warpers),
)
def test_filters_are_hugging_faces(warpers):
    logits = torch.randn(4, 3, 300, generator=torch.Generator().manual_seed(1)) * 3
    values = {}
    for warper in warpers:
        for name, dtype in (("temperature", None), ("top_k", torch.int32), ("top_p", None), ("min_p", None)):
            if hasattr(warper, name):
                values[name] = torch.full((4,), getattr(warper, name), dtype=dtype)
    found = processed(logits, Sampling(**values))
    expected = LogitsProcessorList(warpers)(torch.zeros(12, 1).long(), logits.flatten(0, 1)).view_as(logits)
    assert torch.equal(found, expected)


def test_limits_that_are_off_change_nothing():
    logits = torch.randn(2, 2, 50) * 20
    off = Sampling(top_k=torch.zeros(2).int(), top_p=torch.ones(2), min_p=torch.zeros(2))
    assert torch.equal(processed(logits, off), logits)


# Triton's interpreter


def test_kernels_agree_with_the_reference_in_every_odd_shape():
    cases = results_of("accept")["cases"]
    assert len(cases) >= 37
    for case, error in cases.items():
        assert error < 2e-5, case


def test_broken_kernels_do_not_pass():
    mutations = results_of("accept")["mutations"]
    assert len(mutations) >= 42
    for mutation, found in mutations.items():
        assert found["error"] > 1e-2, mutation


def test_a_nan_shows_in_the_log_probability_of_its_row_alone():
    assert results_of("accept")["nan"] == [True, False] * 5


def test_a_row_without_any_token_shows_in_its_log_probability():
    assert results_of("accept")["nothing allowed"] == [True, False] * 6


def test_logits_may_lie_further_apart_than_int32_counts():
    assert results_of("accept")["far apart"] == [[7, 8, 9]] * 6


def test_choices_made_elsewhere_are_walked_alike():
    assert results_of("accept")["walk"] == 0.0


def test_acceptance_takes_at_most_two_launches():
    launched = results_of("accept")["launched"]
    assert len(launched) == 4
    for kind, kernels in launched.items():
        assert 0 < len(kernels) <= 2, (kind, kernels)


def test_who_finishes_last_changes_no_bit():
    assert results_of("accept")["in every order"] == [True] * 4


def test_the_dispatcher_hands_its_inputs_to_triton():
    assert results_of("accept")["dispatched"] < 2e-5


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 4097, 128_256])
@pytest.mark.parametrize("filtered", [False, True])
def test_triton_agrees_with_the_reference_on_the_gpu(filtered, vocabulary, dtype, cuda):
    draw = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 8, vocabulary, generator=draw) * 3).to(cuda, dtype)
    fp32 = {"dtype": torch.float32, "device": cuda}
    sampling = Sampling(torch.full((3,), 0.8, **fp32))
    if filtered:
        k = torch.full((3,), 50, dtype=torch.int32, device=cuda)
        sampling = Sampling(
            sampling.temperature, k, torch.full((3,), 0.95, **fp32), torch.full((3,), 0.01, **fp32)
        )
    noise = noise_of(3, 8, cuda)
    scores = processed(logits, sampling) + noise.at(torch.arange(vocabulary, device=cuda))
    draft = scores[:, :-1].argmax(dim=-1)
    draft[1, 3] += 1
    found = accept(logits, draft, sampling=sampling, noise=noise, backend="triton")
    expected = accept(logits, draft, sampling=sampling, noise=noise, backend="reference")
    assert torch.equal(found.accepted, expected.accepted)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)


FILTERS = {
    "top-k, Hugging Face's default": (0.8, 50, None, None),
    "one token": (1.0, 1, None, None),
    "few candidates fit": (1.0, 3000, 0.9, None),
    "a small nucleus": (0.4, None, 0.9, None),
    "a large nucleus": (1.0, None, 0.9, None),
    "min-p alone": (1.0, None, None, 0.05),
    "no limits": (1.0, 0, 1.0, 0.0),
}


@pytest.mark.gpu
@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_what_the_reference_keeps_on_the_gpu(name, dtype, nodes, cuda):
    draw = torch.Generator().manual_seed(1)
    logits = (torch.randn(2, nodes, 128_256, generator=draw) * 3).to(cuda, dtype)
    temperature, top_k, top_p, min_p = (
        None
        if value is None
        else torch.full((2,), value, dtype=torch.int32 if at == 1 else torch.float32, device=cuda)
        for at, value in enumerate(FILTERS[name])
    )
    noise = noise_of(2, nodes, cuda)
    draft = torch.zeros(2, nodes - 1, dtype=torch.int64, device=cuda)
    settings = {"sampling": Sampling(temperature, top_k, top_p, min_p), "noise": noise}
    found = accept(logits, draft, **settings, backend="triton")
    again = accept(logits, draft, **settings, backend="triton")
    expected = accept(logits, draft, **settings, backend="reference")
    assert torch.equal(found.accepted, expected.accepted)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.columns, expected.columns)
    assert torch.equal(found.logprobs, again.logprobs)
    # A sum of exponentials in another order may end a nucleus one token earlier.
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 32])
@pytest.mark.parametrize(
    "tree", [chain(7), chain(63), grafted(with_siblings(3), 3)], ids=lambda tree: tree.size
)
def test_whoever_finishes_last_walks_over_all_choices_of_its_row(tree, rows, cuda):
    draw = torch.Generator().manual_seed(2)
    logits = (torch.randn(rows, tree.size, 5000, generator=draw) * 3).to(cuda)
    sampling = Sampling(top_k=torch.full((rows,), 50, dtype=torch.int32, device=cuda))
    shape = {name: value.to(cuda) if name == "parents" else value for name, value in of(tree).items()}
    draft = logits.argmax(dim=-1)[:, shape["parents"].long()]
    draft[1:] += (torch.rand(rows - 1, tree.size - 1, generator=draw) < 0.3).to(cuda)
    expected = accept(logits, draft, sampling=sampling, **shape, backend="reference")
    first = accept(logits, draft, sampling=sampling, **shape)
    for _ in range(50):
        found = accept(logits, draft, sampling=sampling, **shape)
        for name in ("accepted", "tokens", "columns"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert torch.equal(found.logprobs, first.logprobs)


@pytest.mark.gpu
@pytest.mark.parametrize("k", [None, 50])
def test_a_cuda_graph_replays_acceptance(k, cuda):
    logits, draft = torch.randn(2, 4, 5000, device=cuda), torch.zeros(2, 3, dtype=torch.int64, device=cuda)
    sampling = Sampling(top_k=k and torch.full((2,), k, dtype=torch.int32, device=cuda))
    expected = accept(logits, draft, sampling=sampling)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = accept(logits, draft, sampling=sampling)
    for _ in range(3):
        out.tokens.fill_(-7)
        graph.replay()
        assert torch.equal(out.tokens, expected.tokens)
