"""The LayerSkip recipe as pure formulas (Elhoushi et al. 2024, arXiv 2404.16710, section 4).

Layers are l = 0..L-1, steps t = 0..T-1; `progress` stands for t/(T-1). The exit of layer l reads the hidden
state after layer l, so that "exit layer E" (run layers [0, E)) is the exit of layer l = E-1.
"""

from __future__ import annotations

import math
from typing import Literal

Curriculum = Literal["rotational", "gradual", "none"]
ExitWeighting = Literal["paper", "shallow"]
CURRICULA: tuple[str, ...] = ("rotational", "gradual", "none")
EXIT_WEIGHTINGS: tuple[str, ...] = ("paper", "shallow")


def layer_scale(layer: int, layers: int) -> float:
    """D(l) = 2^{l/(L-1)} - 1 (eq. 2): 0 at the first layer, 1 at the last."""
    if layers < 2:
        return 0.0
    return float(2.0 ** (layer / (layers - 1)) - 1.0)


def time_scale(progress: float, from_scratch: bool = True) -> float:
    """S(t): 2^{t/(T-1)} - 1 from scratch (eq. 3), 1 for continued training; `progress` is t/(T-1)."""
    if not from_scratch:
        return 1.0
    return float(2.0 ** min(max(progress, 0.0), 1.0) - 1.0)


def dropout_rates(layers: int, progress: float, max_rate: float, from_scratch: bool = True) -> list[float]:
    """p(l, t) = S(t) D(l) p_max for every layer (eq. 1): the chance that a sample skips layer l."""
    scale = time_scale(progress, from_scratch) * max_rate
    return [scale * layer_scale(layer, layers) for layer in range(layers)]


def shallow_exits(layers: int) -> range:
    """The layers whose exits serve as cheap drafts: the first quarter, at least one, never the last layer."""
    return range(max(1, min(layers // 4, layers - 1)))


def exit_scales(layers: int, e_scale: float, weighting: str = "paper") -> list[float]:
    """e(l), the unnormalised weight of every exit.

    "paper" (eq. 6): e_scale * l(l+1)/2 for l < L-1, and (L-1) + e_scale * (L-2)(L-1)/2 for the last: it grows
    with depth. "shallow": e_scale for the first quarter of the layers, 1 for the last, 0 between: all of the
    effort goes to the exits that are cheap enough to draft with in a small model.
    """
    if weighting == "shallow":
        scales = [0.0] * layers
        for layer in shallow_exits(layers):
            scales[layer] = e_scale
        scales[-1] = 1.0
        return scales
    scales = [e_scale * layer * (layer + 1) / 2 for layer in range(layers - 1)]
    return [*scales, (layers - 1) + e_scale * (layers - 2) * (layers - 1) / 2 if layers > 1 else 1.0]


def active_exits(
    scales: list[float], step: int, progress: float, curriculum: str = "rotational", rotation: int = 4
) -> list[int]:
    """The layers whose exit is in the loss of this step (C(t, l) = 1), the last one always among them.

    "rotational": every `rotation`-th exit, shifted by one each step, counted over the exits that have any
    weight, so that each is on once in `rotation` steps. "gradual": from the top, one more every T/(2L) steps,
    so that all are on at half time. "none": all of them, always. `progress` is t/(T-1).
    """
    layers = len(scales)
    weighted = [layer for layer in range(layers - 1) if scales[layer] > 0]
    if curriculum == "rotational":
        chosen = {layer for place, layer in enumerate(weighted) if place % rotation == step % rotation}
    elif curriculum == "gradual":
        count = min(layers, 1 + math.floor(progress * 2 * layers))
        chosen = {layer for layer in weighted if layer >= layers - count}
    else:
        chosen = set(weighted)
    return sorted(chosen | {layers - 1})


def exit_weights(scales: list[float], active: list[int]) -> dict[int, float]:
    """w(t, l) = C(t, l) e(l) / sum_i C(t, i) e(i) (eq. 5) for the active exits; they add up to 1."""
    total = sum(scales[layer] for layer in active)
    return {layer: scales[layer] / total for layer in active}
