"""Broken engines do not pass: the checks of the other files, asked about mutations of the rule.

A test of losslessness that cannot fail is worth nothing. Every mutation here is easily made by mistake.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from checks import LEAST_P, chain_p_values, exact_distribution, own_generate, sampled_texts, texts_of
from tiny_models import random_prompts, tiny_model
from torch import Tensor

import selfspec
from layer_skip import layout
from selfspec import acceptance, cache, engine, modes
from selfspec.drafting import LowBit
from selfspec.round import Draft, Verdict
from selfspec.rows import Rows
from selfspec.sampling import gumbel, position_keys
from selfspec.tree import Tree

SETTING = {"exit_layer": 2, "draft_length": 3}
TREE = {"exit_layer": 3, "draft_length": 3, "tree": (0, 0, 0, 1, 1, 2, 4)}
VOCAB = 11
PROMPT = torch.tensor([3, 1, 4, 1, 5])
REPEATING = torch.tensor([3, 6, 5, 3, 6, 5, 3, 6, 5, 3, 6])


def greedy_text_is_the_models_own(setting: dict[str, Any] = SETTING, family: str = "llama") -> bool:
    model = tiny_model(family)
    request = {**random_prompts(6, 14, 9), "max_new_tokens": 40 if "tree" in setting else 24}
    expected = own_generate(model, **request)
    return all(torch.equal(out, expected) for _, out in texts_of(model, [setting], **request))


def coupled_text_is_that_of_plain_decoding(setting: dict[str, Any] = SETTING) -> bool:
    model = tiny_model("llama")
    request = {**random_prompts(6, 14, 9), "max_new_tokens": 24, "do_sample": True}
    (_, plain), (_, speculated) = texts_of(model, [{**SETTING, "draft_length": 0}, setting], **request)
    return torch.equal(plain, speculated)


def p_value_of_texts(
    mode: str, setting: dict[str, Any] | None = None, prompt: Tensor = PROMPT, rows: int = 10_000
) -> float:
    """The worst of three tokens' p-values against the exact distribution."""
    model = tiny_model("llama", vocab=VOCAB, num_hidden_layers=3, seed=4)
    joint = exact_distribution(model, prompt, 3)
    setting = {"exit_layer": 2, "draft_length": 2} if setting is None else setting
    selfspec.wrap(model, **setting, acceptance=mode, deterministic=False)
    return min(chain_p_values(sampled_texts(model, prompt, 3, rows=rows, calls=2), joint))


def acceptance_rate() -> float:
    model = selfspec.wrap(tiny_model("llama"), **SETTING)
    torch.manual_seed(0)
    model.generate(**random_prompts(6, 14, 9), max_new_tokens=40, do_sample=True, temperature=1.5)
    return float(model.speculation.stats.acceptance_rate)


def test_the_engine_as_it_is_passes() -> None:
    assert greedy_text_is_the_models_own()
    assert coupled_text_is_that_of_plain_decoding()
    assert p_value_of_texts("coupled") > LEAST_P
    assert p_value_of_texts("rejection") > LEAST_P
    for family in ("llama", "gemma2", "gpt2"):
        assert greedy_text_is_the_models_own(TREE, family)
    assert coupled_text_is_that_of_plain_decoding(TREE)


def test_accepting_always_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "_leading", lambda stands: torch.full((len(stands),), stands.shape[1]))
    assert not greedy_text_is_the_models_own()
    assert not coupled_text_is_that_of_plain_decoding()
    assert p_value_of_texts("rejection") < LEAST_P


def test_a_count_of_accepted_tokens_that_is_one_too_large_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    leading = acceptance._leading
    monkeypatch.setattr(
        acceptance, "_leading", lambda stands: (leading(stands) + 1).clamp(max=stands.shape[1])
    )
    assert not greedy_text_is_the_models_own()
    assert not coupled_text_is_that_of_plain_decoding()
    assert p_value_of_texts("rejection") < LEAST_P


def test_a_count_of_accepted_tokens_that_is_one_too_small_is_noticed_under_rejection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leading = acceptance._leading
    monkeypatch.setattr(acceptance, "_leading", lambda stands: (leading(stands) - 1).clamp(min=0))
    assert greedy_text_is_the_models_own()  # the target's own choices, only fewer of them a round
    assert p_value_of_texts("rejection") < LEAST_P


def test_a_residual_that_is_not_subtracted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
        verdict = acceptance.accept_rejection(draft, q, p, uniforms, noise)
        rows = torch.arange(len(draft))
        verdict.tokens[rows, verdict.accepted] = (p[rows, verdict.accepted].log() + noise).argmax(dim=-1)
        return verdict

    monkeypatch.setattr(modes, "accept_rejection", broken)
    assert p_value_of_texts("rejection") < LEAST_P


def test_noise_that_is_used_at_two_positions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(seed: int, requests: Tensor, positions: Tensor, stream: int = 0) -> Tensor:
        return position_keys(seed, requests, positions // 2, stream)

    monkeypatch.setattr(modes, "position_keys", halved)
    assert coupled_text_is_that_of_plain_decoding()  # equal, and equally wrong
    assert p_value_of_texts("coupled") < LEAST_P


def test_the_drafts_noise_used_again_for_the_token_after_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one_stream(seed: int, requests: Tensor, positions: Tensor, stream: int = 0) -> Tensor:
        return position_keys(seed, requests, positions, 0)

    monkeypatch.setattr(modes, "position_keys", one_stream)
    assert p_value_of_texts("rejection") < LEAST_P


def test_noise_that_all_rows_share_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(seed: int, requests: Tensor, positions: Tensor, stream: int = 0) -> Tensor:
        return position_keys(seed, requests[:1].expand(len(requests)), positions, stream)

    monkeypatch.setattr(modes, "position_keys", shared)
    assert p_value_of_texts("coupled") < LEAST_P
    assert p_value_of_texts("rejection") < LEAST_P


def test_a_draft_with_noise_of_its_own_is_still_exact_but_accepted_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_shared_noise = acceptance_rate()

    def candidates(self: Any, scores: Tensor, depth: int, count: int) -> Tensor:
        own = gumbel(position_keys(99, self.requests, torch.full((len(scores), 1), depth)), self._vocab)
        return (scores + own).topk(count, dim=-1).indices

    monkeypatch.setattr(modes.Coupled, "candidates", candidates)
    assert coupled_text_is_that_of_plain_decoding()
    assert p_value_of_texts("coupled") > LEAST_P
    assert acceptance_rate() < with_shared_noise - 0.02


def test_late_layers_fed_with_the_wrong_hidden_state_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = engine.verify

    def shifted(call: Any, draft: Draft) -> Tensor:
        hidden = draft.hidden.clone()
        hidden[:, 1:] = draft.hidden[:, :-1]
        return verify(call, dataclasses.replace(draft, hidden=hidden))

    monkeypatch.setattr(engine, "verify", shifted)
    assert not greedy_text_is_the_models_own()


def test_late_layers_that_keep_the_wrong_key_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of the round are right; only what later rounds will read is not."""
    update = cache.CacheWindow.update

    def stale(self: Any, key: Tensor, value: Tensor, layer_idx: int, *rest: Any) -> tuple[Tensor, Tensor]:
        keys, values = update(self, key, value, layer_idx, *rest)
        seen = keys.clone(), values.clone()
        if layer_idx == 3 and 1 < key.shape[2] < 6:
            update(self, key.roll(1, dims=2), value, layer_idx, *rest)
        return seen

    monkeypatch.setattr(cache.CacheWindow, "update", stale)
    assert not greedy_text_is_the_models_own()


def test_a_forgotten_rollback_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = Rows.cached

    def never_back(self: Rows) -> list[int]:
        return [
            n + min(generated, 2) for n, generated in zip(cached.fget(self), self.generated, strict=False)
        ]

    monkeypatch.setattr(Rows, "cached", property(never_back))
    assert not greedy_text_is_the_models_own()


def test_cache_rows_that_are_not_dropped_with_their_texts_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep = cache.KVCache.keep
    monkeypatch.setattr(cache.KVCache, "keep", lambda self, rows: keep(self, torch.arange(len(rows))))
    model = tiny_model("llama")
    request = {**random_prompts(6, 14, 9), "max_new_tokens": 24}
    first_to_end = own_generate(model, **request)[0, -22]
    request["eos_token_id"] = int(first_to_end)
    expected = own_generate(model, **request)
    assert all(not torch.equal(out, expected) for _, out in texts_of(model, [SETTING], **request))


def test_a_branch_that_sees_its_siblings_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = layout.tree_mask

    def causal(positions: Tensor, keys: Tensor, reach: Any, dtype: Any, ancestors: Tensor) -> Tensor:
        return mask(positions, keys, reach, dtype, torch.ones_like(ancestors).tril())

    monkeypatch.setattr(layout, "tree_mask", causal)
    assert not greedy_text_is_the_models_own(TREE)


def test_a_branch_at_the_positions_of_its_columns_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "padded_depths", lambda self, width: tuple(range(width)))
    assert not greedy_text_is_the_models_own(TREE)
    assert not greedy_text_is_the_models_own(TREE, "gpt2")


def test_a_window_counted_in_slots_and_not_in_positions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = layout.tree_mask

    def by_slots(positions: Tensor, keys: Tensor, reach: Any, dtype: Any, ancestors: Tensor) -> Tensor:
        out = mask(positions, keys, None, dtype, ancestors)
        if reach is None:
            return out
        slots = positions[:, :1] + torch.arange(positions.shape[1])
        far = torch.arange(keys.shape[1]) <= slots[:, :, None] - reach
        return out.masked_fill(far[:, None], torch.finfo(dtype).min)

    monkeypatch.setattr(layout, "tree_mask", by_slots)
    assert greedy_text_is_the_models_own(TREE)  # no window there
    assert not greedy_text_is_the_models_own(TREE, "gemma2")


def test_an_accepted_branch_that_is_not_brought_together_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.KVCache, "gather", lambda self, starts, columns: None)
    assert not greedy_text_is_the_models_own(TREE)
    assert not greedy_text_is_the_models_own({**TREE, "draft": "low_bit"})


def test_a_branch_with_noise_of_its_own_column_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(self: Any, draft: Draft, scores: Tensor) -> Verdict:
        noise = self._noise[:, torch.arange(scores.shape[1]).clamp(max=self._noise.shape[1] - 1)]
        return acceptance.accept_in_tree(draft.tokens, (scores + noise).argmax(dim=-1), draft.tree)

    monkeypatch.setattr(modes.Coupled, "accept", accept)
    assert not coupled_text_is_that_of_plain_decoding(TREE)


def test_a_low_bit_drafts_own_keys_that_reach_verification_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = LowBit.draft
    monkeypatch.setattr(
        LowBit, "draft", lambda self, *a, **k: dataclasses.replace(draft(self, *a, **k), exact_layers=1)
    )
    assert not greedy_text_is_the_models_own({**SETTING, "draft": "low_bit"})


def test_a_found_token_treated_as_drawn_from_the_draft_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_given(self: Any, draft: Draft, p: Tensor) -> Tensor:
        return torch.full_like(p[:, :-1], 1 / p.shape[2])

    setting = {"draft": "lookup", "draft_length": 2}
    assert p_value_of_texts("rejection", setting, REPEATING, rows=2_000) > LEAST_P
    monkeypatch.setattr(modes.Rejection, "_drafted_from", never_given)
    assert p_value_of_texts("rejection", setting, REPEATING, rows=2_000) < LEAST_P
