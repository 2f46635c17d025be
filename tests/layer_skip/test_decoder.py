"""LayeredDecoder: embed, layers [a, b), logits."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, VARIANTS, VOCAB, random_prompts, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from layer_skip import decoder as decoder_of
from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES, UnsupportedModelError
from selfspec.cache import KVCache


class GrowingCache:
    """Keys and values appended, layer by layer."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        if layer_idx in self.stored:
            old_key, old_value = self.stored[layer_idx]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        self.stored[layer_idx] = key, value
        return key, value

    def get_seq_length(self, *_: object) -> int:
        return 0


def run_in_parts(decoder: LayeredDecoder, tokens: Tensor, cuts: list[int], exits: list[int]) -> Tensor:
    """Logits [T, V] of tokens [T], in chunks that end at `cuts` and groups of layers that end at `exits`."""
    cache, logits = GrowingCache(), []
    for first, last in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        span = decoder.span(torch.arange(first, last)[None], last, first)
        hidden = decoder.embed(tokens[None, first:last], span)
        for bottom, top in zip([0, *exits], [*exits, decoder.n_layers], strict=True):
            hidden = decoder.run(hidden, bottom, top, span, cache)
        logits.append(decoder.logits(hidden)[0])
    return torch.cat(logits)


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
@torch.no_grad()
def test_run_in_parts_gives_the_models_own_logits(name: str) -> None:
    model = tiny_model(name)
    tokens = random_prompts(29)["input_ids"][0]  # longer than every sliding window here
    expected = model(tokens[None]).logits[0]
    for cuts, exits in (([], []), ([5, 6, 20], [1]), ([13], [1, 2, 3])):
        actual = run_in_parts(LayeredDecoder(model), tokens, cuts, exits)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_exit_is_the_final_norm_and_head_on_that_layers_hidden_state(family: str) -> None:
    model = tiny_model(family)
    tokens = random_prompts(11)["input_ids"][0]
    states = model(tokens[None], output_hidden_states=True).hidden_states
    decoder = LayeredDecoder(model)
    span = decoder.span(torch.arange(11)[None], 11, 0)
    hidden = decoder.embed(tokens[None], span)
    torch.testing.assert_close(hidden, states[0])
    for layer in range(LAYERS - 1):  # the last state of transformers has the norm in it
        hidden = decoder.run(hidden, layer, layer + 1, span, GrowingCache())
        torch.testing.assert_close(hidden, states[layer + 1], rtol=1e-4, atol=1e-4)


def test_what_the_decoder_knows_of_a_model(family: str) -> None:
    decoder = LayeredDecoder(tiny_model(family))
    assert (decoder.n_layers, decoder.vocab_size, decoder.max_positions) == (LAYERS, VOCAB, 256)
    assert decoder.has_learned_positions == (family in ("gpt2", "opt"))
    assert (decoder.dtype, decoder.device) == (torch.float32, torch.device("cpu"))


def test_the_decoder_holds_no_weights_of_its_own_and_leaves_the_model_as_it_is(family: str) -> None:
    model = tiny_model(family)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    attention = model.config._attn_implementation
    modules = [id(module) for module in model.modules()]
    decoder = LayeredDecoder(model)
    known = {id(p) for p in model.parameters()}
    for layer in decoder._layers:
        assert all(id(p) in known for p in layer.parameters())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert [id(module) for module in model.modules()] == modules
    assert model.config._attn_implementation == attention
    assert all(m.config._attn_implementation == attention for m in model.modules() if hasattr(m, "config"))


def test_a_decoder_is_built_in_well_under_a_millisecond_a_layer(family: str) -> None:
    model = tiny_model(family)
    seconds = []
    for _ in range(20):
        began = time.thread_time()
        LayeredDecoder(model)
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 0.5e-3 * LAYERS


def test_a_replaced_module_is_used_by_the_next_decoder(llama: Any) -> None:
    prompts = random_prompts(5)["input_ids"][0]
    with torch.no_grad():
        before = run_in_parts(LayeredDecoder(llama), prompts, [], [])
        llama.model.layers[2].mlp = nn.Identity()
        after = run_in_parts(LayeredDecoder(llama), prompts, [], [])
        torch.testing.assert_close(after, llama(prompts[None]).logits[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


def test_hooks_on_the_models_modules_still_run(llama: Any) -> None:
    seen = []
    llama.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append("mlp"))
    llama.model.layers[1].register_forward_hook(lambda *_: seen.append("layer"))
    with torch.no_grad():
        run_in_parts(LayeredDecoder(llama), torch.tensor([1, 2, 3]), [], [])
    assert seen == ["mlp", "layer"]


@torch.no_grad()
def test_spare_columns_past_the_last_learned_position_are_harmless() -> None:
    for family, positions in (("gpt2", "n_positions"), ("opt", "max_position_embeddings")):
        model = tiny_model(family, **{positions: 12})
        decoder = LayeredDecoder(model)
        tokens = random_prompts(16)["input_ids"]
        span = decoder.span(torch.arange(16)[None], 16, 0)
        hidden = decoder.run(decoder.embed(tokens, span), 0, LAYERS, span, GrowingCache())
        expected = model(tokens[:, :12]).logits
        torch.testing.assert_close(decoder.logits(hidden)[:, :12], expected, rtol=1e-4, atol=1e-4)


def test_a_layer_kind_without_support_is_refused_by_name(llama: Any) -> None:
    llama.config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(UnsupportedModelError, match=r"layers of kind \['linear_attention'\]"):
        LayeredDecoder(llama)


BRANCHES = (0, 0, 1, 1, 2, 3, 6)
"""Parents of the columns 1, 2, ... of a small tree."""


def branch_to(column: int) -> list[int]:
    way = [column]
    while way[0]:
        way.insert(0, BRANCHES[way[0] - 1])
    return way


TAKING_TREES = [name for name in [*FAMILIES, *VARIANTS] if not name.startswith("mpt")]


@pytest.mark.parametrize("name", TAKING_TREES)
@pytest.mark.parametrize("committed", [(21, 7)])
@torch.no_grad()
def test_a_tree_in_one_pass_gives_what_its_branches_give_one_by_one(
    name: str, committed: tuple[int, ...]
) -> None:
    """Logits after every node are the model's own after the text of its branch; the windows are 10 to 16."""
    model = tiny_model(name)
    decoder = LayeredDecoder(model)
    texts = [random_prompts(n, seed=n)["input_ids"][0] for n in committed]
    nodes = random_prompts(*[len(BRANCHES) + 1] * len(texts), seed=9)["input_ids"]
    cache = KVCache(len(texts), LAYERS, 64)
    for row, text in enumerate(texts):
        span = decoder.span(torch.arange(len(text))[None], 64, 0)
        window = cache.window(span, slice(row, row + 1))
        decoder.run(decoder.embed(text[None], span), 0, LAYERS, span, window)
    ways = [branch_to(column) for column in range(nodes.shape[1])]
    ancestors = torch.zeros(len(ways), len(ways), dtype=torch.bool)
    for column, way in enumerate(ways):
        ancestors[column, way] = True
    positions = torch.tensor(committed)[:, None] + torch.tensor([len(way) - 1 for way in ways])
    start = committed[0] if len(committed) == 1 else None
    span = decoder.span(positions, 64, start, ancestors)
    hidden = decoder.run(decoder.embed(nodes, span), 0, LAYERS, span, cache.window(span))
    logits = decoder.logits(hidden)
    for row, text in enumerate(texts):
        for column, way in enumerate(ways):
            branch = torch.cat([text, nodes[row, way]])
            expected = model(branch[None]).logits[0, -1]
            torch.testing.assert_close(logits[row, column], expected, rtol=1e-4, atol=1e-4)


def test_a_bug_in_our_own_code_is_not_reported_as_a_part_that_is_missing(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise AttributeError("ours")

    monkeypatch.setattr(decoder_of, "with_our_attention", broken)
    with pytest.raises(AttributeError, match=r"^ours$"):
        LayeredDecoder(llama)


def test_a_layer_whose_attention_has_no_config_lacks_a_part(llama: Any) -> None:
    del llama.model.layers[1].self_attn.config
    with pytest.raises(UnsupportedModelError, match=r"lacks a part: .*config"):
        LayeredDecoder(llama)


def test_taking_a_model_of_1b_apart_takes_far_less_than_a_second() -> None:
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) > 1e9
    began = time.perf_counter()
    assert LayeredDecoder(model).n_layers == 16
    assert time.perf_counter() - began < 0.5
