"""Coupled text depends on the seed alone, and both modes draw from the target's own distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import LEAST_P, chain_p_values, exact_distribution, p_value, sampled_texts, text, texts_of
from tiny_models import LAYERS, padded, random_prompts, tiny_model
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

import selfspec
from layer_skip.decoder import LayeredDecoder
from selfspec.cache import KVCache
from selfspec.shapes import probe

SETTINGS = [{"exit_layer": e, "draft_length": k} for e, k in ((1, 0), (1, 1), (1, 8), (2, 3), (3, 2), (3, 8))]
SAMPLING = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "max_new_tokens": 16}
ROWS = (6, 1, 11, 19, 8)

VOCAB = 11
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def test_sampled_text_does_not_depend_on_exit_layer_or_draft_length(family: str) -> None:
    model = tiny_model(family)
    request = {**random_prompts(*ROWS), **SAMPLING}
    texts = [out for _, out in texts_of(model, SETTINGS, **request)]
    for setting, out in zip(SETTINGS, texts, strict=True):
        assert torch.equal(out, texts[0]), setting


@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "coupled"])
def test_text_in_bf16_does_not_depend_on_them_either(family: str, sampling: dict[str, Any]) -> None:
    model = tiny_model(family).bfloat16()
    if not probe(LayeredDecoder(model)).exact:
        pytest.skip("this machine offers no shapes with bit-equal rows, and the statistics say so")
    request = {**random_prompts(14, 30, 1, 9), **sampling, "max_new_tokens": 40}
    texts = [out for _, out in texts_of(model, SETTINGS, **request)]
    for setting, out in zip(SETTINGS, texts, strict=True):
        assert torch.equal(out, texts[0]), setting


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.3}, {"eos_token_id": list(range(1, 20))}, {"temperature": 2.0, "min_p": 0.05}],
    ids=str,
)
def test_sampled_text_does_not_depend_on_them_under_options_either(options: dict[str, Any]) -> None:
    model = tiny_model("llama")
    request = {**random_prompts(*ROWS), **SAMPLING, **options}
    texts = [out for _, out in texts_of(model, SETTINGS, **request)]
    assert all(torch.equal(out, texts[0]) for out in texts)


def test_sampled_text_does_not_depend_on_who_shares_the_batch(family: str) -> None:
    model = tiny_model(family)
    prompts = random_prompts(*ROWS)
    selfspec.wrap(model, exit_layer=2, draft_length=3)
    together = text(model, **prompts, **SAMPLING)
    for row, length in enumerate(ROWS):
        prompt = prompts["input_ids"][row, -length:]
        alone = text(model, prompt[None], **SAMPLING)
        assert torch.equal(alone[0, -16:], together[row, -16:])
    reordered = text(model, **{name: value.flip(0) for name, value in prompts.items()}, **SAMPLING)
    assert torch.equal(reordered.flip(0), together)


def test_sampled_text_changes_with_the_seed_and_comes_back_with_it(llama: Any) -> None:
    for acceptance in ("coupled", "rejection"):
        selfspec.wrap(llama, exit_layer=2, draft_length=3, acceptance=acceptance)
        texts = [text(llama, **random_prompts(9), **SAMPLING, seed=seed) for seed in (0, 1, 2, 0)]
        assert torch.equal(texts[0], texts[3])
        assert len({tuple(out[0].tolist()) for out in texts}) == 3


def test_two_calls_in_a_row_draw_different_texts(llama: Any) -> None:
    selfspec.wrap(llama, exit_layer=2, draft_length=3)
    torch.manual_seed(0)
    first, second = (llama.generate(**random_prompts(9), **SAMPLING) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_call_takes_one_number_from_torchs_generator_whatever_the_setting(llama: Any) -> None:
    after = set()
    for setting in SETTINGS:
        selfspec.wrap(llama, **setting)
        text(llama, **random_prompts(9), **SAMPLING)
        after.add(int(torch.randint(0, 2**62, (1,))))
    assert len(after) == 1


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
def test_return_sequences_of_one_prompt_differ_and_do_not_depend_on_their_number(
    llama: Any, acceptance: str
) -> None:
    selfspec.wrap(llama, exit_layer=2, draft_length=3, acceptance=acceptance)
    few = text(llama, **random_prompts(9), **SAMPLING, num_return_sequences=4)
    assert len({tuple(row) for row in few.tolist()}) == 4
    if acceptance == "coupled":
        many = text(llama, **random_prompts(9), **SAMPLING, num_return_sequences=7)
        assert torch.equal(many[:4], few)


def test_equal_prompts_of_one_batch_get_texts_of_their_own(llama: Any) -> None:
    selfspec.wrap(llama, exit_layer=2, draft_length=3)
    out = text(llama, **padded([[5, 6, 7], [5, 6, 7], [1, 5, 6, 7]]), **SAMPLING)[:, -16:]
    assert len({tuple(row) for row in out.tolist()}) == 3


def distribution_case(
    temperature: float, top_p: float, acceptance: str, draft_length: int = 2
) -> tuple[Any, Tensor, dict[str, Any]]:
    """A wrapped model with a small vocabulary, the exact distribution of three tokens, and the request."""
    model = tiny_model("llama", vocab=VOCAB, num_hidden_layers=3, seed=4)
    processors = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
    joint = exact_distribution(model, PROMPT, 3, processors)
    selfspec.wrap(model, exit_layer=2, draft_length=draft_length, acceptance=acceptance, deterministic=False)
    return model, joint, {"temperature": temperature, "top_p": top_p}


@pytest.mark.parametrize("acceptance", ["coupled", "rejection"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.9)])
def test_sampled_texts_have_the_targets_exact_distribution(
    temperature: float, top_p: float, acceptance: str
) -> None:
    """120,000 draws: the first token, the second given the first, the third given both, and the whole."""
    model, joint, request = distribution_case(temperature, top_p, acceptance)
    texts = sampled_texts(model, PROMPT, 3, rows=10_000, calls=4, **request)
    assert 0.2 < model.speculation.total.acceptance_rate < 0.95  # both outcomes are common
    assert min(chain_p_values(texts, joint)) > LEAST_P
    counts = torch.bincount(texts @ torch.tensor([VOCAB**2, VOCAB, 1]), minlength=VOCAB**3)
    assert p_value(counts.numpy(), joint.numpy()) > LEAST_P


REPEATING = torch.tensor([3, 1, 4, 3, 1, 4, 3, 1, 4, 3, 1])


@pytest.mark.parametrize(
    ("setting", "prompt", "rows"),
    [
        ({"draft": "low_bit", "exit_layer": 3}, PROMPT, 10_000),
        ({"draft": "low_bit", "exit_layer": 1}, PROMPT, 10_000),
        ({"draft": "lookup"}, REPEATING, 3_000),
        ({"draft": "hybrid", "exit_layer": 2}, REPEATING, 3_000),
    ],
    ids=str,
)
def test_rejection_draws_exactly_from_the_target_whoever_drafts(
    setting: dict[str, Any], prompt: Tensor, rows: int
) -> None:
    """Tokens that were found were drawn from themselves alone; those of a view from its own distribution."""
    model = tiny_model("llama", vocab=VOCAB, num_hidden_layers=3, seed=4)
    joint = exact_distribution(model, prompt, 3)
    selfspec.wrap(model, **setting, draft_length=2, acceptance="rejection", deterministic=False)
    texts = sampled_texts(model, prompt, 3, rows=rows, calls=2)
    assert 0.05 < model.speculation.total.acceptance_rate < 0.99
    assert min(chain_p_values(texts, joint)) > LEAST_P


def test_the_draft_resembles_the_target_but_is_not_it() -> None:
    """The chi-square above would pass for a draft that is the target itself."""
    model, joint, _ = distribution_case(1.0, 1.0, "rejection")
    q = exit_probabilities(model)
    assert 0.1 < float((joint.sum(dim=(1, 2)) - q).abs().sum() / 2) < 0.6


def exit_probabilities(model: Any) -> Tensor:
    decoder = LayeredDecoder(model)
    span = decoder.span(torch.arange(len(PROMPT))[None], len(PROMPT), 0)
    with torch.no_grad():
        cache = KVCache(1, LAYERS, len(PROMPT)).window(span)
        hidden = decoder.run(decoder.embed(PROMPT[None], span), 0, 2, span, cache)
        return decoder.logits(hidden)[0, -1].double().softmax(dim=-1)


def test_acceptance_of_the_first_draft_is_what_theory_says() -> None:
    """Rejection accepts 1 - d; coupled at least (1 - d) / (1 + d), exactly Daliri's sum."""
    rates = {}
    for acceptance in ("rejection", "coupled"):
        model, joint, request = distribution_case(1.0, 1.0, acceptance, draft_length=1)
        p, q = joint.sum(dim=(1, 2)), exit_probabilities(model)
        # Two tokens: one round drafts one token, and the first round is the only one that drafts.
        sampled_texts(model, PROMPT, 2, rows=10_000, calls=2, **request)
        stats = model.speculation.total
        assert stats.drafted == 20_000
        rates[acceptance] = stats.accepted
    distance = float((p - q).abs().sum() / 2)
    coupled = float((1 / torch.maximum(p / p[:, None], q / q[:, None]).sum(dim=1)).sum())
    for acceptance, rate in (("rejection", 1 - distance), ("coupled", coupled)):
        accepted = rates[acceptance]
        assert p_value([accepted, 20_000 - accepted], [rate, 1 - rate]) > LEAST_P
    assert (1 - distance) / (1 + distance) <= coupled <= 1 - distance
