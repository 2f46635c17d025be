"""Kernels in the GPU benchmark: checked, compiled and timed as the engine runs them."""

from __future__ import annotations

import importlib
import time

import gpu_kernels
import gpu_time_low_bit
import gpu_time_rounds
import pytest
import torch
from gpu_bench import Bench
from gpu_checks import Check, worst
from gpu_kernels import compile_all, held

from selfspec_kernels.overlap import overlapping


def test_nan_never_passes(bench: Bench) -> None:
    nan, ones = torch.full((3,), float("nan")), torch.ones(3)
    assert worst(nan, ones) == float("inf")
    assert worst(ones, ones) == 0.0
    row = held(bench, Check("kernel", "nan", lambda bench: float("nan"), 1.0))
    assert row["verdict"] == "MISSED"


def test_speeds_are_measured_before_threads_compile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[bool] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    compile_all(bench, [lambda: known.append("copy_speed" in vars(bench)) or {}] * 3)
    assert known == [True] * 3


def test_compiling_takes_no_time_of_the_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.begin("kernels", 0.2, resume=False)
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(gpu_kernels, "compile_all", lambda bench, works: time.sleep(0.3))
    monkeypatch.setattr(gpu_kernels, "every_row", lambda bench: iter([("t", "a row", lambda: {"µs": 1.0})]))
    gpu_kernels.run(bench)
    assert bench.document["sections"]["kernels"]["tables"]["t"]


def test_accept_is_held_to_its_launches_where_its_bytes_take_less(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = {"µs": 3.0, "over floor": 4.0, "over floor and launches": 1.1}
    monkeypatch.setattr(gpu_time_rounds, "timed_row", lambda *_, **__: slow)
    rows = {name: work() for kernel, name, work in gpu_time_rounds.timings(bench) if kernel == "accept"}
    assert rows["B = 1, K = 7, bfloat16, greedy"]["verdict"] == "reached"
    assert rows["B = 32, K = 7, bfloat16, greedy"]["verdict"] == "MISSED"
    assert rows["B = 32, K = 7, bfloat16, greedy"]["target"] == "over floor ≤ 1.25"


def test_products_in_4_bits_are_timed_as_layers_launch_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}
    products = importlib.import_module("selfspec_kernels.low_bit_products")
    for kernel in ("low_bit_products", "low_bit_gated"):
        probe = lambda *_, kernel=kernel, **__: seen.update({kernel: overlapping()})  # noqa: E731
        monkeypatch.setattr(products, kernel, probe)
    monkeypatch.setattr(gpu_time_low_bit, "timed_row", lambda _, run, sets, nbytes: run(sets[0]))
    for _, name, work in gpu_time_low_bit.timings(bench):
        if name.startswith(("8B gate and up", "8B o")):
            work()
    assert seen == {"low_bit_products": True, "low_bit_gated": True}
