"""What a model is made of, what its head costs, and how well each exit speaks for the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import exit_choices
from layer_skip.self_check import check_decoder
from selfspec.benchmarking.render import new_figure, png
from selfspec.cache import allocated_cache
from selfspec.tuning.costs import time_passes
from selfspec.tuning.knowledge import expected_tokens

_DRAFT_LENGTHS = range(1, 9)


@dataclass(frozen=True)
class Exit:
    """One exit layer E on given prompts.

    `agreement`: share of positions where it chooses what the full model chooses. `draft_length`: the K with
    the highest predicted speed, and `speedup` that speed in units of AR's, taking agreement as acceptance.
    """

    exit_layer: int
    agreement: float
    draft_length: int
    speedup: float


@dataclass(frozen=True)
class Anatomy:
    """Sizes in parameters and bytes, times in seconds."""

    family: str
    layers: int
    hidden_size: int
    heads: int
    key_value_heads: int
    vocabulary: int
    positions: int | None
    dtype: str
    parameters: int
    layer_parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    check_seconds: float
    """Of the wrap-time self-check."""
    check_difference: float
    """Largest difference that it found, in units of the largest logit."""
    layer_seconds: float
    head_seconds: float
    head_cost: float
    """η: the head's time in units of a layer's."""
    positions_read: int
    exits: tuple[Exit, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def dissect(
    model: Any,
    prompts: Sequence[Sequence[int]],
    advance: Callable[[str, int], None] = lambda name, total: None,
) -> Anatomy:
    """Take a model apart, time a layer and the head, and read every exit along the prompts.

    Raises:
        UnsupportedModelError: the model cannot be taken apart.
    """
    decoder = LayeredDecoder(model)
    began = time.perf_counter()
    check_difference = check_decoder(model, decoder)
    check_seconds = time.perf_counter() - began
    costs = time_passes(decoder)
    layer, head = costs.layer[0], costs.head[0]
    agreement, count = _agreement(decoder, prompts, advance)
    eta = head / layer
    config = decoder.config
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return Anatomy(
        family=decoder.family.model_type,
        layers=decoder.n_layers,
        hidden_size=int(config.hidden_size),
        heads=heads,
        key_value_heads=kv_heads,
        vocabulary=decoder.vocab_size,
        positions=decoder.max_positions,
        dtype=str(decoder.dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
        layer_parameters=_layer_parameters(model, decoder),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        cache_bytes_per_token=_cache_bytes_per_token(decoder),
        check_seconds=check_seconds,
        check_difference=check_difference,
        layer_seconds=layer,
        head_seconds=head,
        head_cost=eta,
        positions_read=count,
        exits=tuple(_exit(e, a, decoder.n_layers, eta) for e, a in enumerate(agreement, 1)),
    )


def _agreement(
    decoder: LayeredDecoder, prompts: Sequence[Sequence[int]], advance: Callable[[str, int], None]
) -> tuple[list[float], int]:
    """Share of positions where each exit agrees with the last [L], and how many positions there were."""
    agreed = torch.zeros(decoder.n_layers, dtype=torch.float64)
    count = 0
    for prompt in prompts:
        advance("exits", len(prompts))
        choices = exit_choices(decoder, torch.tensor(prompt, device=decoder.device))
        agreed += torch.tensor(choices.agreement, dtype=torch.float64) * len(prompt)
        count += len(prompt)
    return (agreed / count).tolist(), count


def _exit(exit_layer: int, agreement: float, n_layers: int, eta: float) -> Exit:
    if exit_layer == n_layers:
        return Exit(exit_layer, agreement, 0, 1.0)
    speeds = {k: predicted_speedup(agreement, exit_layer, k, n_layers, eta) for k in _DRAFT_LENGTHS}
    best = max(speeds, key=lambda k: speeds[k])
    return Exit(exit_layer, agreement, best, speeds[best])


def predicted_speedup(c: float, exit_layer: int, draft_length: int, n_layers: int, eta: float) -> float:
    """Speed over AR when each draft token is accepted with chance c given those before it.

    Leviathan et al. 2022 (theorem 3.8) with the engine's own parts: a round of K drafts reads the weights of
    K E + L layers and of K + 1 heads.

    Args:
        eta: time of the LM head in units of a layer's.
    """
    round_cost = draft_length * exit_layer + n_layers + (draft_length + 1) * eta
    return expected_tokens(c, draft_length) * (n_layers + eta) / round_cost


def _cache_bytes_per_token(decoder: LayeredDecoder) -> int:
    """K/V of one token in all layers, read off a pass over it: latent K/V have sizes of their own."""
    cache = allocated_cache(decoder, rows=1, capacity=1)
    return sum(kept.nbytes for kept in (*cache.keys, *cache.values) if kept is not None)


def _layer_parameters(model: Any, decoder: LayeredDecoder) -> int:
    base = model.get_submodule(decoder.family.base)
    return sum(p.numel() for p in getattr(base, decoder.family.layers)[0].parameters())


def plot_exits(anatomy: Anatomy) -> bytes:
    """Agreement and predicted speed of every exit, PNG."""
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    layers = [e.exit_layer for e in anatomy.exits]
    axes.plot(layers, [e.agreement for e in anatomy.exits], "o-", color="tab:blue")
    axes.set(ylim=(0.0, 1.02), xlabel="exit layer E")
    axes.set_ylabel("agreement with the full model", color="tab:blue")
    right = axes.twinx()
    right.plot(layers[:-1], [e.speedup for e in anatomy.exits[:-1]], "s--", color="tab:orange")
    right.axhline(1.0, color="grey", linewidth=0.8)
    right.set_ylim(bottom=0.0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("predicted speed, times AR", color="tab:orange")
    axes.set_title(
        f"{anatomy.family}, {anatomy.layers} layers, head = {anatomy.head_cost:.2f} layers, "
        f"{anatomy.positions_read:,} positions",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    return png(figure)
