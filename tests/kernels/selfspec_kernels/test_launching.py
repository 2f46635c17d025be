"""How kernels are launched: whether they overlap with the one before, and that this changes no bit."""

from __future__ import annotations

import sys

import pytest
import torch

from selfspec_kernels.narrow_product import gated_product, narrow_product
from selfspec_kernels.overlap import with_overlap
from selfspec_kernels.row_norm import row_norm
from selfspec_kernels.row_norm_reference import Norm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")


def test_a_processor_has_no_dependent_launch():
    from selfspec_kernels.launching import pdl_of

    assert not pdl_of(torch.device("cpu"))


def test_a_kernel_takes_part_by_its_options():
    from selfspec_kernels.launching import options

    assert options(4, True) == options(4) | {"PDL": True, "launch_pdl": True}
    assert options(4, False) == options(4) | {"PDL": False, "launch_pdl": False}


def test_kernels_overlap_where_they_were_asked_to_and_nowhere_else(monkeypatch):
    from selfspec_kernels import launching

    monkeypatch.setattr(launching, "_has_pdl", lambda device: True)
    monkeypatch.setattr(launching, "interpreted", lambda: False)
    device = torch.device("cuda", 0)
    assert not launching.pdl_of(device)
    with with_overlap():
        assert launching.pdl_of(device)
        with with_overlap(False):
            assert not launching.pdl_of(device)
        assert launching.pdl_of(device)
    assert not launching.pdl_of(device)


def layers(x, weights, norm, count=8):
    """Norms and products that hang on each other, and a kernel of torch's in between."""
    qkv, out, gate, up, down = weights
    for _ in range(count):
        wide = narrow_product(row_norm(x, norm), [qkv])
        x = narrow_product(wide.tanh(), [out], residual=x)
        x = narrow_product(gated_product(row_norm(x, norm), gate, up), [down], residual=x)
    return x


@pytest.mark.gpu
def test_kernels_that_overlap_give_the_same_bits_in_a_graph_too(cuda):
    torch.manual_seed(0)
    d, n = 2048, 8192
    shapes = ((n, d), (d, n), (n, d), (n, d), (d, n))
    weights = [(torch.randn(*shape, device=cuda) / shape[1] ** 0.5).bfloat16() for shape in shapes]
    norm = Norm("rms", torch.ones(d, device=cuda, dtype=torch.bfloat16))
    x = torch.randn(1, 8, d, device=cuda, dtype=torch.bfloat16)
    expected = layers(x, weights, norm)
    with with_overlap():
        assert torch.equal(layers(x, weights, norm), expected)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with with_overlap(), torch.cuda.graph(graph):
        found = layers(x, weights, norm)
    for _ in range(20):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)
