"""A model inflated to a large shape writes the source's text."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import inflate as inflate_script
import pytest
import tiling
import torch
from inflation import exit_layer_of, inflate
from tiling import Shape, check_shape
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

SAME = Shape(layers=3, hidden=64, heads=4, kv_heads=2, intermediate=96)
SHAPES = {
    "tiled": replace(SAME, hidden=256, heads=16, kv_heads=4, intermediate=96 * 4),
    "fewer key heads to a query head": replace(SAME, hidden=128, heads=8, kv_heads=8),
    "as many key heads": replace(SAME, hidden=128, heads=8, kv_heads=2),
    "blocks of neurons repeated differently": replace(SAME, hidden=128, intermediate=352),
    "deepened": replace(SAME, layers=7),
    "all": Shape(layers=5, hidden=128, heads=8, kv_heads=4, intermediate=160),
}


def source(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A lively tiny Llama whose norms are not ones."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = LlamaConfig(
        **{**sizes, **heads, "initializer_range": 0.2, "tie_word_embeddings": True, **settings}
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 2.0)
    return model.to(dtype).eval()


def prompts() -> Tensor:
    """[3, 20] token ids."""
    return torch.randint(96, (3, 20), generator=torch.Generator().manual_seed(1))


def written(model: Any, ids: Tensor) -> Tensor:
    out: Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, min_new_tokens=16, do_sample=False
    )
    return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_are_the_sources_in_fp32(name: str, tied: bool) -> None:
    small = source(tie_word_embeddings=tied)
    large = inflate(small, SHAPES[name])
    torch.testing.assert_close(large(prompts()).logits, small(prompts()).logits, rtol=1e-5, atol=1e-4)
    assert torch.equal(written(small, prompts()), written(large, prompts()))
    assert (large.lm_head.weight is large.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_source_exit_is_the_exit_that_the_shape_names(name: str) -> None:
    """Hidden states after it are copies of the small model's."""
    small, shape = source(), SHAPES[name]
    large = inflate(small, shape)
    expected = small(prompts(), output_hidden_states=True).hidden_states
    found = large(prompts(), output_hidden_states=True).hidden_states
    repeats = shape.hidden // 64
    for source_exit in range(3):  # the last one of transformers' has been through the final norm
        layer = exit_layer_of(shape, source_exit, 3)
        copies = expected[source_exit].repeat(1, 1, repeats)
        torch.testing.assert_close(found[layer], copies, rtol=1e-5, atol=1e-4)
    assert exit_layer_of(shape, 3, 3) == shape.layers


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_copies_of_a_hidden_state_stay_equal_and_near_the_sources_in_bf16(name: str) -> None:
    small, shape = source(torch.bfloat16), SHAPES[name]
    large = inflate(small, shape)
    assert large.dtype == torch.bfloat16
    state = large.model(prompts()).last_hidden_state.float() * (shape.hidden // 64)
    copies = state.unflatten(-1, (-1, 64))
    assert torch.equal(copies, copies[..., :1, :].expand_as(copies))
    expected = small.model(prompts()).last_hidden_state.float()
    assert (copies[..., 0, :] - expected).abs().mean() < 0.02 * expected.abs().mean()


def rounded(weight: Tensor) -> Tensor:
    """4-bit min-max rounding of groups of 32 along the inputs, scale and zero in bf16."""
    groups = weight.float().unflatten(-1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).bfloat16().float()
    levels = ((groups - low) / scale.where(scale > 0, 1)).round().clamp(0, 15)
    return (levels * scale + low.bfloat16().float()).flatten(-2)


@pytest.mark.parametrize("name", ["tiled", "all", "blocks of neurons repeated differently"])
@torch.no_grad()
def test_rounding_the_inflated_model_is_inflating_the_rounded_one(name: str) -> None:
    """Group by group: so a low-bit draft agrees as often as the small model's does."""
    small = source(torch.bfloat16)
    large = inflate(small, SHAPES[name])
    low_bit = source(torch.bfloat16)
    for weight in low_bit.parameters():
        if weight.dim() == 2:
            weight.data = rounded(weight)  # kept in fp32, or the cast would round once more
    low_bit.float()
    for (path, one), (_, other) in zip(
        large.named_parameters(), inflate(low_bit, SHAPES[name]).named_parameters(), strict=True
    ):
        if one.dim() == 2:
            assert torch.equal(rounded(one), other), path


@torch.no_grad()
def test_zero_update_layers_are_dense_but_for_their_outputs() -> None:
    large = inflate(source(), replace(SAME, layers=6))
    for layer, block in enumerate(large.model.layers):
        silent = layer % 2 == 1
        assert (not block.self_attn.o_proj.weight.any()) == silent
        assert (not block.mlp.down_proj.weight.any()) == silent
        for module in (block.self_attn.q_proj, block.self_attn.v_proj, block.mlp.gate_proj):
            assert module.weight.all()


@torch.no_grad()
def test_extra_tokens_are_never_chosen() -> None:
    """With states that lean to one side, as a trained model's do."""
    small = source()
    small.model.embed_tokens.weight[:, 0] = 4.0
    small.model.norm.weight[0] = 8.0
    large = inflate(small, replace(SHAPES["tiled"], vocabulary=5000))
    logits = large(prompts()).logits
    torch.testing.assert_close(logits[..., :96], small(prompts()).logits, rtol=1e-5, atol=1e-3)
    for temperature in (0.8, 1.0):
        assert (logits / temperature).softmax(-1)[..., 96:].sum(-1).max() < 1e-3
    assert torch.equal(written(small, prompts()), written(large, prompts()))


def test_a_vocabulary_that_would_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="extra tokens would be drawn"):
        inflate(source(), replace(SAME, vocabulary=5000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 192}, "hidden=192.*nearest 256"),
        ({"heads": 12}, "heads=12"),
        ({"kv_heads": 3}, "kv_heads=3"),
        ({"intermediate": 100}, "intermediate=100.*multiples of 32.*nearest 96"),
        ({"intermediate": 64}, "nearest 96"),
        ({"layers": 2}, "layers=2.*at least the source's 3"),
        ({"vocabulary": 50}, "vocabulary=50.*at least the source's 96"),
    ],
)
def test_a_shape_that_changes_the_function_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(tiling.ShapeError, match=message):
        inflate(source(), replace(SAME, **change))


def test_what_cannot_be_divided_exactly_is_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        inflate(source(torch.float16), SAME)
    with pytest.raises(ValueError, match="biases"):
        inflate(source(attention_bias=True), SAME)


def test_every_shape_of_the_table_is_reached_from_the_reference_model(reference_model: Any) -> None:
    for shape in tiling.SHAPES.values():
        check_shape(reference_model.config, shape)


def test_the_command_refuses_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["inflate.py", "--out", str(tmp_path)])
    assert inflate_script.main() == 2
    assert "is there already" in capsys.readouterr().err


@torch.no_grad()
def test_the_command_writes_a_model_that_loads_and_says_that_the_text_is_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tiling.SHAPES, "1b", Shape(17, 256, 8, 4, 320))
    command = ["inflate.py", "--out", str(tmp_path / "large"), "--dtype", "float32", "--threads", "1"]
    monkeypatch.setattr(
        sys, "argv", [*command, "--prompts", "1", "--prompt-tokens", "16", "--new-tokens", "8"]
    )
    assert inflate_script.main() == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "8 of 8 greedy tokens equal" in out
    assert LlamaForCausalLM.from_pretrained(tmp_path / "large").config.num_hidden_layers == 17
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
