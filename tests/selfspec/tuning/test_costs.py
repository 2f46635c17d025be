"""What passes cost on this machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.tuning import costs
from selfspec.tuning.costs import WIDTHS, PassCosts, time_passes

COSTS = PassCosts((1.0, 1.0, 2.0, 4.0, 8.0, 16.0), (10.0, 10.0, 10.0, 30.0, 30.0, 40.0))


@pytest.mark.parametrize(
    ("tokens", "layer"),
    [(1, 1.0), (2, 1.0), (3, 1.5), (4, 2.0), (6, 3.0), (16, 8.0), (24, 12.0), (32, 16.0), (64, 32.0)],
)
def test_costs_are_interpolated_between_the_timed_widths_and_go_on_beyond(tokens: int, layer: float) -> None:
    assert COSTS.seconds(1, tokens, heads=0) == layer
    assert COSTS.seconds(5, tokens, heads=0) == 5 * layer


def test_a_pass_costs_its_layers_and_its_heads() -> None:
    assert COSTS.seconds(3, 4) == 3 * 2.0 + 10.0
    assert COSTS.seconds(0, 8, heads=2) == 60.0


def test_every_width_is_timed_for_the_model_and_for_a_view(llama: Any) -> None:
    decoder = LayeredDecoder(llama)
    for timed in (decoder, LowBitView(decoder, 1).of(decoder)):
        timing = time_passes(timed)
        assert len(timing.layer) == len(timing.head) == len(WIDTHS)
        assert all(0 < seconds < 1 for seconds in (*timing.layer, *timing.head))


class OnGpu(str):
    """A device that computes here and says that it is a GPU."""

    type = "cuda"


def test_a_first_run_on_a_gpu_is_never_what_a_pass_costs(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prepares kernels for every width."""
    seen: list[bool] = []

    def seconds(run: Any, device: torch.device, cold: bool) -> float:
        seen.append(cold)
        return 0.25

    monkeypatch.setattr(costs, "_least_seconds", seconds)
    time_passes(LayeredDecoder(llama), WIDTHS[:3])
    assert seen == [True, True, False, False, False, False]
    seen.clear()
    decoder: Any = LayeredDecoder(llama)
    decoder.device = OnGpu("cpu")
    time_passes(decoder, WIDTHS[:3])
    assert all(seen) and len(seen) == 6


@pytest.mark.parametrize(("each", "timed"), [(0.24, WIDTHS), (0.26, (1, 2, 4))])
def test_wider_passes_are_not_timed_where_none_can_pay(
    llama: Any, monkeypatch: pytest.MonkeyPatch, each: float, timed: tuple[int, ...]
) -> None:
    """`each`: seconds of a token in a pass of several; one alone takes a quarter of a second."""
    seen: list[int] = []

    def seconds(run: Any, device: torch.device, cold: bool) -> float:
        if run.func.__name__ == "run":
            seen.append(run.args[0].shape[1])
        return 0.25 if seen[-1] == 1 else each * seen[-1]

    monkeypatch.setattr(costs, "_least_seconds", seconds)
    timing = time_passes(LayeredDecoder(llama))
    assert tuple(seen) == timed
    assert timing.head == pytest.approx([0.25, *(each * width for width in WIDTHS[1:])])


def test_timing_leaves_the_model_as_it_was(llama: Any) -> None:
    before = {name: p._version for name, p in llama.named_parameters()}
    time_passes(LayeredDecoder(llama))
    assert {name: p._version for name, p in llama.named_parameters()} == before
    assert all(p.requires_grad for p in llama.parameters())


@pytest.mark.parametrize(
    ("seconds", "cold", "runs"),
    [(0.001, True, 4), (0.02, True, 3), (0.1, True, 2), (0.001, False, 4), (0.02, False, 3), (0.1, False, 1)],
)
def test_long_passes_are_repeated_less(
    monkeypatch: pytest.MonkeyPatch, seconds: float, cold: bool, runs: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[-1])
    taken = costs._least_seconds(lambda: now.append(now[-1] + seconds), torch.device("cpu"), cold)
    assert taken == pytest.approx(seconds)
    assert len(now) - 1 == runs
