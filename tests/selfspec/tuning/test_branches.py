"""Found tokens beside a model's own candidates in one tree, and what such a round says of the model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import own_generate, texts_of
from fake_drafters import use_scripted_drafts
from tiny_models import VOCAB, padded, random_prompts, tiny_model

import selfspec
from selfspec.drafting import Lookup
from selfspec.drafting.lookup import Found
from selfspec.round import NOTHING, Arm, Draft
from selfspec.rows import Rows
from selfspec.tree import Tree, chain, forked, grafted
from selfspec.tuning.auto import Auto
from selfspec.tuning.branches import Branched


def branched(tree: Tree, tokens: list[list[int]], came: list[list[int]]) -> Branched:
    """A round of rows with prompts of different lengths that drafted `tokens` and committed `came`."""
    batch = padded([[7] * (3 + row) for row in range(len(tokens))])
    rows = Rows.of_prompts(
        batch["input_ids"], batch["attention_mask"], 50, 80, eos_tokens=frozenset(), pad_token=0
    )
    nowhere: Any = None
    round_ = Branched.of(Draft(tree, nowhere, torch.tensor(tokens), nowhere), rows)
    for row, text in enumerate(came):
        rows.append(row, text)
    return round_


@pytest.mark.parametrize(
    ("came", "outcome"),
    [
        ([1, 2, 3, 4], (3, 0)),  # all of its own stand, and a bonus token
        ([1, 2, 9], (2, 1)),
        ([9], (0, 1)),
        ([5, 6, 9], (0, 1)),  # the branch stands: its own first token did not
        ([1, 2], (2, 0)),  # the text ended before its third was looked at
    ],
)
def test_a_branch_that_stands_is_not_counted_as_the_models_own(came: list[int], outcome: Any) -> None:
    tree = grafted(chain(3), 2)
    assert branched(tree, [[1, 2, 3, 5, 6]], [came]).outcome() == outcome
    assert branched(tree, [[1, 2, 3, 5, 6]], [came]).depth == 3


def test_a_beginning_that_both_share_counts_for_the_model() -> None:
    tree = grafted(chain(3), 4)
    assert branched(tree, [[1, 2, 3, 1, 2, 5, 6]], [[1, 2, 5, 6, 9]]).outcome() == (2, 1)


def test_siblings_are_the_models_own_and_rows_add_up() -> None:
    tree = grafted(forked(2, (0,)), 2)  # two in a chain, a second choice beside the first, two found
    tokens = [[1, 2, 3, 5, 6], [1, 2, 3, NOTHING, NOTHING], [1, 2, 3, 5, 6]]
    came = [[3, 9], [1, 8], [5, 6, 9]]
    assert branched(tree, tokens, came).outcome() == (2, 2)


def test_accepted_found_tokens_teach_nothing_about_the_arm(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own draft is always wrong, the branch beside it always right."""
    prompts = random_prompts(9)
    texts = own_generate(llama, **prompts, max_new_tokens=20)[:, 9:].tolist()
    use_found_branches(monkeypatch, texts)
    selfspec.wrap(llama, draft="hybrid", draft_memory=0, exit_layer=2, draft_length=4, tree="siblings")
    llama.generate(**prompts, max_new_tokens=20)
    tally = llama.speculation.knowledge.tally(Arm(2, low_bit=False), False)
    assert llama.speculation.stats.accepted > 0
    assert tally.accepted == 0
    assert tally.tested > 0


def use_found_branches(monkeypatch: pytest.MonkeyPatch, texts: list[list[int]]) -> None:
    """Own drafts that are always wrong, and found tokens that are always right, as a branch."""
    use_scripted_drafts(monkeypatch, texts, lambda row, index: False, VOCAB)

    def find(self: Any, call: Any, limit: int) -> list[Found]:
        rows = call.rows
        return [
            Found(texts[r][rows.generated[r] : rows.generated[r] + min(4, limit)], 9) for r in rows.active
        ]

    monkeypatch.setattr(Lookup, "find", find)
    monkeypatch.setattr(Auto, "_worth", lambda self, found: False)


@pytest.mark.parametrize("lengths", [(9,), (4, 11, 7)])
@pytest.mark.parametrize("tree", ["siblings", (0, 0, 1, 1, 3, 5)], ids=str)
def test_a_branch_of_found_tokens_wins_where_only_it_is_right(
    llama: Any, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], tree: Any
) -> None:
    prompts = random_prompts(*lengths)
    expected = own_generate(llama, **prompts, max_new_tokens=20)
    use_found_branches(monkeypatch, expected[:, prompts["input_ids"].shape[1] :].tolist())
    selfspec.wrap(llama, draft="hybrid", draft_memory=0, exit_layer=2, draft_length=4, tree=tree)
    events: list[Any] = []
    assert torch.equal(llama.generate(**prompts, max_new_tokens=20, on_round=events.append), expected)
    whole = [event for event in events if len(event.committed) == 5]
    assert len(whole) == 4 * len(lengths)  # four found tokens and one more, four times
    assert all(event.accepted == 4 for event in whole)


def test_a_branch_of_found_tokens_that_is_wrong_does_no_harm(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    prompts = random_prompts(9, 4)
    expected = own_generate(model, **prompts, max_new_tokens=16)
    monkeypatch.setattr(
        Lookup, "find", lambda self, call, limit: [Found([5] * min(3, limit), 9) for _ in call.rows.active]
    )
    monkeypatch.setattr(Auto, "_worth", lambda self, found: False)
    settings = [{"draft": "hybrid", "exit_layer": 2, "draft_length": 2, "tree": "siblings"}]
    for _, out in texts_of(model, settings, **prompts, max_new_tokens=16):
        assert torch.equal(out, expected)


def test_trees_of_the_largest_settings_that_are_allowed_can_be_drafted(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(9)
    expected = own_generate(llama, **prompts, max_new_tokens=80)
    texts = expected[:, 9:].tolist()
    use_scripted_drafts(monkeypatch, texts, lambda row, index: False, VOCAB)
    monkeypatch.setattr(
        Lookup, "find", lambda self, call, limit: [Found([5] * limit, 30) for _ in call.rows.active]
    )
    monkeypatch.setattr(Auto, "_worth", lambda self, found: False)
    settings: list[dict[str, Any]] = [
        {"draft": "hybrid", "exit_layer": 2, "draft_length": 21, "tree": "siblings"},
        {"draft": "hybrid", "draft_memory": 0, "exit_layer": 2, "tree": (0,) * 49},
        {"exit_layer": 2, "draft_length": 32, "tree": "siblings"},
    ]
    for setting, out in texts_of(llama, settings, **prompts, max_new_tokens=80):
        assert torch.equal(out, expected), setting
