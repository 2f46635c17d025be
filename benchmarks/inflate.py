"""Inflate a small Llama checkpoint to a large shape that writes the same text.

    python benchmarks/inflate.py --shape 1b --out /tmp/reference-1b

The text and the acceptance of drafts are then those of a real trained model, while a pass costs what the
large shape costs. Every table that uses such a model has to say so. How the function is kept:

- Hidden states are tiled, [x, x, ...], whole vectors one after the other. A weight that reads n copies is
  divided by n, a power of two, which is exact. The mean square of [x, x, ...] is that of x, so RMSNorm stays.
- The head reads copies too. Dividing the last norm's weight instead of the head's leaves it tied.
- Attention heads and neurons are repeated in whole blocks. So low-bit rounding in groups of 32 (64 where the
  source's sizes are divisible by it) sees the groups of the source, scaled, and rounds them to the same
  levels. A random rotation would not do that.
- More layers: real ones spread evenly, between them copies whose output projections are zero.
- More vocabulary: rows whose logits are far below the others. Unlike all the rest this is not exact for every
  text: see `quiet_row`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfspec.benchmarking.prompts import bundled_prompts, read_prompts, tokenized
from selfspec.cli.errors import UserError, complain
from selfspec.cli.loading import load
from selfspec.cli.progress import progress_bar

Advance = Callable[[str, int], None]
_REFERENCE_LAYERS = 16
_MOST_EXTRA_PROBABILITY = 1e-3
_CLEAR_MARGIN = 0.125  # one bf16 step of a logit from 16 to 32: below it rounding may choose either token


@dataclass(frozen=True)
class Shape:
    """Sizes of the inflated model; the size of a head is the source's, and so is `vocabulary` None."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int | None = None


# Llama 3's shapes as reached from heads of 64: 8B and 70B have twice the heads of half the size, so every
# weight and the K/V of a token take as many bytes as there. Fewer layers than the source's lose the text.
SHAPES = {
    "1b": Shape(16, 2048, 32, 8, 8192),
    "1b-32k": Shape(16, 2048, 32, 8, 8192, 32_768),
    "1b-128k": Shape(16, 2048, 32, 8, 8192, 128_256),
    "8b": Shape(32, 4096, 64, 16, 14_336),
    "8b-128k": Shape(32, 4096, 64, 16, 14_336, 128_256),
    "70b-16-layers": Shape(16, 8192, 128, 16, 28_672),
    "70b": Shape(80, 8192, 128, 16, 28_672),
}


class ShapeError(ValueError):
    """The shape cannot be reached from this model; the message says which nearby one can."""


@dataclass(frozen=True)
class Tiling:
    """How one dimension grows: the source's element that each new one copies, and the copies of each."""

    source: Tensor
    copies: Tensor


def exit_layer_of(shape: Shape, source_exit: int, source_layers: int = _REFERENCE_LAYERS) -> int:
    """The exit layer of the inflated model that computes what `source_exit` of the small one does.

    It is at the same share of the depth: zero-update layers after the last real one are counted in.
    """
    return source_exit * shape.layers // source_layers


@torch.no_grad()
def inflate(
    model: Any,
    shape: Shape,
    texts: Sequence[Sequence[int]] | None = None,
    advance: Advance = lambda name, total: None,
) -> Any:
    """A LlamaForCausalLM of the given shape with the text of `model`, in its dtype and on its device.

    Args:
        model: the source, a LlamaForCausalLM without biases; it stays as it was.
        shape: what to reach.
        texts: token ids that extra vocabulary is kept silent on; default pseudo-random ones.
        advance: called before each layer with its name and the number of layers.

    Raises:
        ShapeError: the shape cannot be reached with the function kept.
        ValueError: not such a model, or no row is silent enough for the extra vocabulary.
    """
    config = model.config
    _check_source(model)
    _check_shape(config, shape)
    tilings = _tilings(config, shape, model.device)
    weights = model.state_dict()
    state: dict[str, Tensor] = {}
    depth = config.num_hidden_layers
    for layer in range(shape.layers):
        advance(f"layer {layer}", shape.layers)
        # The last real layer up to this one: real layer i stands at `exit_layer_of` i, before its copies
        source = max(i for i in range(depth) if exit_layer_of(shape, i, depth) <= layer)
        real = exit_layer_of(shape, source, depth) == layer
        for name, (rows, columns) in _LAYER.items():
            small = weights[f"model.layers.{source}.{name}.weight"]
            large = _tiled(small, tilings[rows], tilings.get(columns))
            silent = not real and name in _OUTPUTS
            state[f"model.layers.{layer}.{name}.weight"] = large.zero_() if silent else large
    hidden = tilings["hidden"]
    repeats = shape.hidden // config.hidden_size
    state["model.norm.weight"] = weights["model.norm.weight"][hidden.source] / repeats
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            state[name] = state["model.embed_tokens.weight"]
            continue
        small, extra = weights[name], (shape.vocabulary or config.vocab_size) - config.vocab_size
        if extra:
            row = quiet_row(model, extra, texts).to(small)
            small = torch.cat([small, row.expand(extra, -1)])
        state[name] = small.repeat(1, repeats)
    return _assembled(model, shape, state)


# Every weight of a layer with the dimensions that it writes and reads; a norm has one only.
_LAYER = {
    "input_layernorm": ("hidden", ""),
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key", "hidden"),
    "self_attn.v_proj": ("key", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "post_attention_layernorm": ("hidden", ""),
    "mlp.gate_proj": ("neurons", "hidden"),
    "mlp.up_proj": ("neurons", "hidden"),
    "mlp.down_proj": ("hidden", "neurons"),
}
_OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def _tiled(small: Tensor, rows: Tiling, columns: Tiling | None) -> Tensor:
    """The weight with its outputs copied, and its inputs copied and shared among the copies."""
    if columns is not None:
        small = (small / columns.copies.to(small.dtype))[:, columns.source]
    return small[rows.source]


def _tilings(config: Any, shape: Shape, device: torch.device) -> dict[str, Tiling]:
    """One tiling for each name of a dimension in `_LAYER`."""
    group, wide = config.num_attention_heads // config.num_key_value_heads, shape.heads // shape.kv_heads
    key_heads = torch.arange(shape.kv_heads) % config.num_key_value_heads
    # The query heads that share a key head's copies take turns, so that each is repeated equally often.
    place = torch.arange(shape.heads) // wide // config.num_key_value_heads * wide
    turn = (place + torch.arange(shape.heads) % wide) % group
    query_heads = key_heads.repeat_interleave(wide) * group + turn
    block, counts = _neuron_blocks(config.intermediate_size, shape.intermediate)
    blocks = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    chosen = {
        "hidden": torch.arange(config.hidden_size).repeat(shape.hidden // config.hidden_size),
        "query": _elements(query_heads, config.head_dim),
        "key": _elements(key_heads, config.head_dim),
        "neurons": _elements(blocks, block),
    }
    return {n: Tiling(index.to(device), index.bincount().to(device)) for n, index in chosen.items()}


def _elements(blocks: Tensor, size: int) -> Tensor:
    """Indices of all elements of the blocks [n], each of `size` elements."""
    return (blocks[:, None] * size + torch.arange(size)).flatten()


def _neuron_blocks(source: int, target: int) -> tuple[int, list[int]]:
    """Block size, and how often each block of neurons is repeated: powers of two that add up to the target.

    So sizes are reached that are no power of two times the source's: 8192 = 32 · (7 · 32 + 2 · 16) from 288.
    """
    block = next((size for size in (64, 32) if source % size == 0), source)
    blocks, total = source // block, target // block
    counts = [1 << bit for bit in range(total.bit_length()) if total >> bit & 1]
    if target % block or not len(counts) <= blocks <= total:
        least = max(source, target // block * block)
        raise ShapeError(
            f"intermediate={target}: takes multiples of {block} from {source} on; nearest {least}"
        )
    while len(counts) < blocks:
        largest = max(counts)
        counts.remove(largest)
        counts += [largest // 2] * 2
    return block, sorted(counts, reverse=True)


def _check_source(model: Any) -> None:
    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"a model of type {config.model_type!r}: only Llama checkpoints can be inflated")
    if config.attention_bias or config.mlp_bias:
        raise ValueError("a Llama with biases cannot be inflated; choose a checkpoint without")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{model.dtype}: dividing would lose small weights; load it in bfloat16 or float32")


def _check_shape(config: Any, shape: Shape) -> None:
    """Refuse what would change the function, naming what would not."""
    for name, source, target in (
        ("hidden", config.hidden_size, shape.hidden),
        ("heads", config.num_attention_heads, shape.heads),
    ):
        times = max(target // source, 1)
        if target != source * times or times & (times - 1):
            nearest = source << round(math.log2(max(target / source, 1)))
            raise ShapeError(f"{name}={target}: must be {source} times a power of two; nearest {nearest}")
    if shape.kv_heads < 1 or shape.kv_heads % config.num_key_value_heads or shape.heads % shape.kv_heads:
        raise ShapeError(
            f"kv_heads={shape.kv_heads}: must be a multiple of {config.num_key_value_heads} that divides "
            f"{shape.heads} heads"
        )
    for name, least, count in (
        ("layers", config.num_hidden_layers, shape.layers),
        ("vocabulary", config.vocab_size, shape.vocabulary),
    ):
        if count is not None and count < least:
            raise ShapeError(f"{name}={count}: must be at least the source's {least}")
    _neuron_blocks(config.intermediate_size, shape.intermediate)


def quiet_row(model: Any, count: int, texts: Sequence[Sequence[int]] | None = None) -> Tensor:
    """A row [D] for `count` extra tokens that are not chosen: its logit is far below the others on the texts.

    The row of an unlikely token is not enough: in the reference model the best is 9.7 below the largest logit
    at the least, and 124,000 copies weigh as much as one token 11.7 higher. So the row is fitted: least
    squares to a logit of -1 everywhere, then times the power of two that leaves the copies the least
    probability on every other text, which the fit did not see.

    Raises:
        ValueError: at temperature 1 the copies would be drawn more often than once in a thousand tokens.
    """
    if texts is None:
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(model.config.vocab_size, (64, 64), generator=generator).tolist()
    states = [model.model(torch.tensor([text], device=model.device)).last_hidden_state[0] for text in texts]
    head = model.lm_head.weight.float()
    held, seen = torch.cat(states[::2]).float(), torch.cat(states[1::2] or states).float()
    square = seen.T @ seen
    square += 1e-3 * square.diagonal().mean() * torch.eye(len(square), device=square.device)
    row = -torch.linalg.solve(square, seen.sum(dim=0))
    total = (held @ head.T).logsumexp(dim=-1)
    shares = {
        scale: (math.log(count) + scale * (held @ row) - total).sigmoid().mean().item()
        for scale in (2.0**power for power in range(8))
    }
    scale = min(shares, key=lambda choice: shares[choice])
    if shares[scale] > _MOST_EXTRA_PROBABILITY:
        raise ValueError(
            f"vocabulary: {count} extra tokens would be drawn with probability {shares[scale]:.1g} on "
            f"average, more than {_MOST_EXTRA_PROBABILITY:g}; choose a smaller one, or the source's"
        )
    return row * scale


def _assembled(model: Any, shape: Shape, state: dict[str, Tensor]) -> Any:
    """The model around the weights; nothing is initialised first, so the peak is the weights themselves."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.hidden_size = shape.layers, shape.hidden
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    config.intermediate_size = shape.intermediate
    config.vocab_size = shape.vocabulary or config.vocab_size
    config.dtype = model.dtype
    with torch.device("meta"):
        large = LlamaForCausalLM(config)
    # Its buffers are no part of the state: made again where the weights are.
    large.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    large.load_state_dict(state, assign=True)
    large.tie_weights()
    large.generation_config = copy.deepcopy(model.generation_config)
    return large.eval()


@torch.no_grad()
def compare(small: Any, large: Any, prompt: Sequence[int], new_tokens: int) -> tuple[int, float, float]:
    """How far the greedy texts agree after a prompt.

    Returns:
        Equal new tokens; the source's margin between its two best logits where the texts part (inf if they do
        not); the largest difference of logits over prompt and the source's text, in logits.
    """
    ids = torch.tensor([prompt], device=small.device)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    one, other = (m.generate(ids, attention_mask=torch.ones_like(ids), **settings) for m in (small, large))
    expected, logits = small(one).logits[0].float(), large(one).logits[0].float()
    difference = (expected - logits[:, : expected.shape[1]]).abs().max().item()
    equal = int((one == other)[0, len(prompt) :].long().cumprod(dim=0).sum())
    if equal == new_tokens:
        return equal, math.inf, difference
    best = expected[len(prompt) + equal - 1].topk(2).values
    return equal, (best[0] - best[1]).item(), difference


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer as a folder that appears whole or not at all."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for weights in staging.glob("*.safetensors"):
            weights.chmod(0o644)  # safetensors makes its files readable by the owner alone
        staging.replace(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--vocabulary", type=int, help="number of tokens; default the shape's")
    parser.add_argument("--model", help="folder or hub name of a small Llama; default the bundled model")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=3, help="prompts that the text is compared on")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    return parser.parse_args()


def run(options: argparse.Namespace) -> int:
    """Inflate, compare, write; 1 when a text parts from the source's at no near-tie."""
    if options.out.exists():
        raise UserError(f"{options.out} is there already; name another --out")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(options.model, options.dtype, "cpu", options.threads)
    shape = SHAPES[options.shape]
    if options.vocabulary is not None:
        shape = dataclasses.replace(shape, vocabulary=options.vocabulary)
    ids = tokenized(loaded.tokenizer, read_prompts(bundled_prompts()), options.prompt_tokens, None)
    with progress_bar(True) as advance:
        large = inflate(loaded.model, shape, ids[options.prompts :], advance)
    count = sum(weight.numel() for weight in large.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in large.parameters())
    print(f"{options.shape}: {count:,} parameters, {size:,} bytes in {large.dtype}", flush=True)
    wrong = False
    for number, prompt in enumerate(ids[: options.prompts]):
        equal, margin, difference = compare(loaded.model, large, prompt, options.new_tokens)
        wrong |= _CLEAR_MARGIN < margin < math.inf
        parts = "" if margin == math.inf else f"; they part where the source's margin is {margin:.3f}"
        print(
            f"prompt {number}: {equal} of {options.new_tokens} greedy tokens equal{parts}; logits differ by "
            f"up to {difference:.3g}",
            flush=True,
        )
    if wrong:
        raise UserError("the inflated model writes another text; nothing was written")
    save(large, loaded.tokenizer, options.out)
    return 0


def main() -> int:
    """The command, with mistakes told in one line."""
    try:
        return run(arguments())
    except (UserError, ValueError, OSError) as error:
        return complain(error, 2)


if __name__ == "__main__":
    sys.exit(main())
