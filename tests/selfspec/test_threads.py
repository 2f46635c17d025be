"""Threads that generate at once with one wrapped model."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_models import random_prompts

import selfspec
from selfspec.rechecking import ModelCheck

SETTINGS = {"exit_layer": 2, "draft_length": 3}


def test_threads_generating_at_once_get_what_they_would_get_alone(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    requests = [{**random_prompts(n, n + 3, seed=n), "max_new_tokens": 20} for n in range(3, 9)]
    expected = [llama.generate(**request) for request in requests]
    outcomes: dict[int, list[torch.Tensor]] = {}
    start = threading.Barrier(len(requests))

    def work(index: int) -> None:
        start.wait()
        outcomes[index] = [llama.generate(**requests[index]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, out in enumerate(expected):
        assert len(outcomes[index]) == 3
        assert all(torch.equal(one, out) for one in outcomes[index])
    total = llama.speculation.total
    assert total.calls == 4 * len(requests)
    assert total.tokens == 4 * len(requests) * 2 * 20


def test_threads_that_sample_draw_texts_that_one_thread_draws(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    request = {**random_prompts(5), "max_new_tokens": 12, "do_sample": True}
    torch.manual_seed(0)
    expected = {tuple(llama.generate(**request)[0].tolist()) for _ in range(8)}
    found: list[tuple[int, ...]] = []
    torch.manual_seed(0)
    threads = [
        threading.Thread(
            target=lambda: found.extend(tuple(llama.generate(**request)[0].tolist()) for _ in range(2))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == expected  # each seed is drawn once, whoever draws it


def test_a_changed_model_is_checked_once_by_calls_that_begin_together(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, check = [], ModelCheck.check

    def slowly(self: ModelCheck, *model: Any) -> None:
        checked.append(model)
        time.sleep(0.05)
        check(self, *model)

    selfspec.wrap(llama, draft="low_bit", draft_length=3)
    llama.bfloat16()
    monkeypatch.setattr(ModelCheck, "check", slowly)
    request = {**random_prompts(5), "max_new_tokens": 12}
    start = threading.Barrier(4)

    def work(_: int) -> torch.Tensor:
        start.wait()
        return llama.generate(**request)

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(work, range(4)))
    assert len(checked) == 1
    assert all(torch.equal(text, texts[0]) for text in texts)


def test_a_hook_that_generates_while_the_model_is_checked_is_let_through(llama: Any) -> None:
    selfspec.wrap(llama, **SETTINGS)
    llama.bfloat16()
    request = {**random_prompts(5), "max_new_tokens": 4}
    texts: list[torch.Tensor] = []

    def hook(*_: Any) -> None:
        handle.remove()
        texts.append(llama.generate(**request))

    handle = llama.model.layers[1].register_forward_hook(hook)
    thread = threading.Thread(target=lambda: texts.append(llama.generate(**request)), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert len(texts) == 2
    assert torch.equal(*texts)
