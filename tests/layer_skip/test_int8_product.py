"""Products of whole numbers, against the levels that they stand for."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from layer_skip import int8_product
from layer_skip.int8_product import Int8Product, int8_bytes, int8_is_fastest

pytestmark = pytest.mark.skipif(
    not int8_is_fastest(), reason="made on CPUs with AVX2 and no AVX512 alone, where PyTorch has FBGEMM"
)
SHAPES = [(1, 1), (16, 64), (97, 64), (33, 48), (64, 1), (17, 65), (128, 192)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(weight: Tensor) -> Tensor:
    """Weights in 255 levels, a scale per output."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-10)
    return (weight / scale).round().clamp(-127, 127) * scale


def rounded(rows: Tensor) -> Tensor:
    """Inputs in 127 levels from -1 to 1 times the largest of the row."""
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-10)
    return (rows / largest * 63).round() / 63 * largest


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_that_of_the_levels(outputs: int, inputs: int) -> None:
    weight = random(outputs, inputs, seed=1)
    product = Int8Product(weight)
    for rows in (1, 2, 3, 17):
        x = random(rows, inputs, seed=2)
        torch.testing.assert_close(product(x), rounded(x) @ stored(weight).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["all positive", "all negative", "one far out", "zeros"])
def test_inputs_of_one_side_and_far_out_lose_no_more_than_their_step(kind: str) -> None:
    weight, x = random(64, 256, seed=1), random(3, 256, seed=2)
    if kind == "all positive":
        x = x.abs()
    elif kind == "all negative":
        x = -x.abs()
    elif kind == "one far out":
        x[:, 5] = 30
    else:
        x[1] = 0
    out = Int8Product(weight)(x)
    largest = x.abs().amax(dim=1, keepdim=True)
    likely = largest / 126 * weight.norm(dim=1)  # half a step an input, added up at random
    assert ((out - x @ stored(weight).T).abs() <= 3 * likely + 1e-6).all()
    if kind == "zeros":
        assert not out[1].any()


def test_weights_of_both_ends_do_not_overflow() -> None:
    """Pairs of products are added in 16 bits: with inputs in 8 bits the sum would stop at 32,767."""
    weight = torch.ones(16, 64)
    weight[::2] = -1
    product = Int8Product(weight)
    for x in (torch.ones(1, 64), -torch.ones(1, 64)):
        torch.testing.assert_close(product(x), x @ weight.T, rtol=0.02, atol=0)


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    """So a draft says the same alone, in a batch, and when the tuner runs it along a whole text."""
    product, x = Int8Product(random(96, 320, seed=1)), random(33, 320, seed=2)
    x[7] *= 1000
    x[9], x[11], x[13] = torch.nan, torch.inf, 0
    together = product(x)
    usual = [i for i in range(33) if i not in (9, 11)]
    assert torch.equal(torch.cat([product(x[i : i + 1]) for i in usual]), together[usual])
    assert torch.equal(product(x[3:9]), together[3:9])


def test_tiny_weights_and_rows_of_zeros_stay_what_they_are() -> None:
    weight = random(16, 64, seed=1)
    weight[3], weight[5] = 0, 1e-7
    out = Int8Product(weight)(torch.ones(1, 64))[0]
    assert out[3] == 0
    torch.testing.assert_close(out[5], torch.tensor(64e-7), rtol=0.02, atol=0)


def test_it_is_copied_and_pickled() -> None:
    product, x = Int8Product(random(16, 64, seed=1)), random(2, 64, seed=2)
    for other in (copy.deepcopy(product), pickle.loads(pickle.dumps(product))):
        assert torch.equal(other(x), product(x))


def test_packing_says_nothing() -> None:
    """PyTorch warns that this product will go one day; who wraps a model can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Int8Product(random(16, 64, seed=1))(random(1, 64, seed=2))


MEASURE = """
import ctypes, gc, os, sys
import torch
from layer_skip.int8_product import Int8Product

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.set_num_threads(1)
weight = torch.randn(int(sys.argv[1]), int(sys.argv[2]))
Int8Product(weight)
before = resident()
held = [Int8Product(weight) for _ in range(4)]
print((resident() - before) / 4)
"""
"""Run by itself: in a process of many tests other memory comes and goes."""


@pytest.mark.skipif(sys.platform != "linux", reason="how memory that C++ holds is read here")
@pytest.mark.parametrize(("outputs", "inputs"), [(8192, 2048), (8190, 1100), (40000, 64)])
def test_memory_is_what_is_said(outputs: int, inputs: int) -> None:
    """What packing needs beside it is given back."""
    command = [sys.executable, "-c", MEASURE, str(outputs), str(inputs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) == pytest.approx(int8_bytes(outputs, inputs), rel=0.05)
    assert Int8Product(random(96, 64, seed=1)).bytes == int8_bytes(96, 64)


def test_a_byte_a_weight_where_they_fill_blocks() -> None:
    assert int8_bytes(8192, 2048) == pytest.approx(8192 * 2048, rel=0.01)


@pytest.mark.parametrize("missing", ["engine", "quantized tensors", "AVX2"])
def test_where_it_is_missing_it_is_not_taken(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "engine":
        monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(supported_engines=["qnnpack"]))
    elif missing == "AVX2":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    else:
        monkeypatch.delattr(torch, "_make_per_channel_quantized_tensor")
    int8_is_fastest.cache_clear()
    try:
        assert not int8_product.int8_is_fastest()
    finally:
        int8_is_fastest.cache_clear()


def test_it_is_fbgemms_whatever_engine_quantized_modules_have() -> None:
    weight, x = random(16, 64, seed=1), random(2, 64, seed=2)
    expected = Int8Product(weight)(x)
    chosen = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        assert torch.equal(Int8Product(weight)(x), expected)
        assert torch.backends.quantized.engine == "onednn"
    finally:
        torch.backends.quantized.engine = chosen


def test_no_rows_give_no_rows() -> None:
    assert Int8Product(random(16, 64, seed=1))(torch.empty(0, 64)).shape == (0, 16)
