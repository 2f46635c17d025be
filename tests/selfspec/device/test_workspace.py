"""Workspaces: lent to one call at a time, found again, and dropped when the model is another."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from checks import own_generate
from peft import LoraConfig, get_peft_model
from tiny_models import LAYERS, random_prompts, tiny_model

import selfspec
from layer_skip.decoder import LayeredDecoder
from selfspec.device.buffers import Signature
from selfspec.device.static_round import Kind, bucket
from selfspec.device.workspace import SLOT_QUANTUM, WorkspacePool, capacity_for
from selfspec.round import Arm
from selfspec.shapes import FASTEST

MEMORY = 1 << 20
PROMPT = random_prompts(11)


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", head_dim=64)


def lent(pool: WorkspacePool, model: Any, rows: int = 1, slots: int = 100) -> Any:
    """The workspace that a call would get, given back at once."""
    with pool.lend(LayeredDecoder(model), None, rows, slots, FASTEST, MEMORY) as space:
        return space


def test_a_size_is_rounded_up_to_few_sizes(model: Any) -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 17)] == [1, 2, 4, 4, 8, 32]
    assert [capacity_for(n) for n in (1, 512, 513, 4096, 4097, 16_400)] == [
        512,
        512,
        1024,
        4096,
        5120,
        20_480,
    ]
    space = lent(WorkspacePool(), model, rows=3, slots=SLOT_QUANTUM + 1)
    assert (space.rows, space.capacity) == (4, 2 * SLOT_QUANTUM)
    assert all(key.shape[0] == 4 and key.shape[2] == 2 * SLOT_QUANTUM for key in space.cache.keys)


def test_a_workspace_is_found_again_by_calls_of_its_size(model: Any) -> None:
    pool = WorkspacePool()
    first = lent(pool, model)
    assert lent(pool, model, slots=200) is first
    assert lent(pool, model, rows=2) is not first
    assert lent(pool, model) is first


def test_calls_at_the_same_time_have_workspaces_of_their_own(model: Any) -> None:
    pool, decoder = WorkspacePool(), LayeredDecoder(model)
    with (
        pool.lend(decoder, None, 1, 100, FASTEST, MEMORY) as one,
        pool.lend(decoder, None, 1, 100, FASTEST, MEMORY) as other,
    ):
        assert one is not other


def test_few_are_kept_while_nobody_uses_them(model: Any) -> None:
    pool = WorkspacePool()
    first = lent(pool, model, rows=1)
    for rows in (2, 4, 8):
        lent(pool, model, rows=rows)
    assert lent(pool, model, rows=1) is not first


@pytest.mark.parametrize("change", ["a new weight", "another dtype", "a layer", "an adapter", "switched off"])
def test_a_changed_model_finds_no_graph_of_what_it_was(model: Any, change: str) -> None:
    pool = WorkspacePool()
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    if change == "an adapter":
        adapted.add_adapter("other", LoraConfig(target_modules=["q_proj"], r=2))
    first = lent(pool, model)
    assert lent(pool, model) is first
    if change == "a new weight":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    elif change == "another dtype":
        model.to(torch.bfloat16)
    elif change == "a layer":
        model.model.layers[1] = tiny_model("llama", head_dim=64).model.layers[1]
    elif change == "an adapter":
        adapted.set_adapter("other")
    else:
        adapted.base_model.disable_adapter_layers()
    assert lent(pool, model) is not first


def test_weights_that_are_written_to_are_read_anew(on_device: None, model: Any) -> None:
    """In place: a graph reads the same memory, which holds other numbers."""
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    model.generate(**PROMPT, max_new_tokens=8)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    out = model.generate(**PROMPT, max_new_tokens=8)
    assert torch.equal(out, own_generate(model, **PROMPT, max_new_tokens=8))


def test_a_short_last_draft_takes_a_longer_round_that_is_captured(model: Any) -> None:
    space = lent(WorkspacePool(), model)

    def kind(length: int, exit_layer: int = 2) -> Kind:
        return Kind(Arm(exit_layer, low_bit=False), length, Signature())

    assert space.ready_for(kind(2)) == kind(2)
    for key in (kind(5), kind(7), kind(3, exit_layer=1), Kind(None, 4, Signature())):
        space.graphs._captured[key] = None
    assert [space.ready_for(kind(n)).length for n in (2, 5, 6, 7, 8)] == [5, 5, 7, 7, 8]


def test_tokens_past_the_end_of_a_longer_round_do_not_count(
    on_device: None, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = model.model.layers[-1]
    with torch.no_grad():  # it adds nothing, so that all drafts stand
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()
    selfspec.wrap(model, draft="early_exit", exit_layer=LAYERS - 1, draft_length=5)
    request = {**PROMPT, "max_new_tokens": 15}
    expected = model.generate(**request)
    stats = model.speculation.stats
    longest = {"length": 0}

    def always_five(self: Any, kind: Kind) -> Kind:
        longest["length"] = max(longest["length"], 5 - kind.length)
        return Kind(kind.arm, 5, kind.signature) if kind.length else kind

    monkeypatch.setattr("selfspec.device.workspace.Workspace.ready_for", always_five)
    assert torch.equal(model.generate(**request), expected)
    again = model.speculation.stats
    assert (again.drafted, again.accepted, again.tokens) == (stats.drafted, stats.accepted, stats.tokens)
    assert longest["length"] > 0


def test_threads_may_generate_side_by_side(on_device: None, model: Any) -> None:
    selfspec.wrap(model, draft="early_exit", exit_layer=2, draft_length=3)
    prompts = [random_prompts(9, seed=seed) for seed in range(4)]
    found: dict[int, torch.Tensor] = {}

    def generate(i: int) -> None:
        found[i] = model.generate(**prompts[i], max_new_tokens=10)

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        assert torch.equal(found[i], own_generate(model, **prompt, max_new_tokens=10))


def test_a_model_with_hooks_is_launched_from_python(on_device: None, model: Any) -> None:
    """A hook would run at capture alone."""
    seen: list[int] = []
    selfspec.wrap(model, draft_length=0)
    model.model.layers[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    model.generate(**PROMPT, max_new_tokens=5)
    assert len(seen) >= 5
    assert model.speculation.stats.launching == "from Python: hooks in the model's passes"


def test_no_room_for_a_cache_of_fixed_size_is_said_once_and_changes_nothing(
    on_device: None, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    selfspec.wrap(model, draft_length=2)
    expected = own_generate(model, **PROMPT, max_new_tokens=8)

    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("selfspec.device.workspace.Workspace.__init__", full)
    with pytest.warns(UserWarning, match="no memory is left for a cache of fixed size"):
        out = model.generate(**PROMPT, max_new_tokens=8)
    assert torch.equal(out, expected)
