"""Settings: refused at once when they are impossible, with what is allowed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import pytest
import torch

from selfspec.config import DRAFTS, MAX_DRAFT_LENGTH, ConfigError, SpeculationConfig
from selfspec.tree import Tree, chain, with_siblings

BAD = [
    ({"exit_layer": 0}, r"exit_layer=0: .*from 1 .*nearest: 1"),
    ({"exit_layer": -3}, r"exit_layer=-3: .*from 1"),
    ({"exit_layer": "3"}, r"exit_layer='3': allowed is a whole number"),
    ({"exit_layer": True}, r"exit_layer=True: allowed is a whole number"),
    ({"exit_layer": 2.0}, r"exit_layer=2\.0: allowed is a whole number"),
    ({"exit_layer": None}, r"exit_layer=None: allowed is a whole number"),
    ({"draft_length": -1}, r"draft_length=-1: allowed is a whole number from 0 to 64.*nearest: 0"),
    ({"draft_length": 10_000}, r"draft_length=10000: .*from 0 to 64.*nearest: 64"),
    ({"draft_length": "many"}, r"draft_length='many'"),
    ({"acceptance": "typical"}, r"acceptance='typical': allowed are 'coupled', 'rejection'"),
    ({"confidence_threshold": 1.0}, r"confidence_threshold=1\.0: a number from 0"),
    ({"confidence_threshold": -0.1}, r"confidence_threshold=-0\.1"),
    ({"confidence_threshold": "0.5"}, r"confidence_threshold='0\.5'"),
    ({"confidence_threshold": float("nan")}, r"confidence_threshold=nan"),
    ({"deterministic": 1}, r"deterministic=1: allowed are True, False"),
    ({"strict": "yes"}, r"strict='yes': allowed are True, False"),
    ({"draft": "eagle"}, r"draft='eagle': allowed are 'auto', 'early_exit', 'low_bit', 'lookup', 'hybrid'"),
    ({"draft": "low-bit"}, r"draft='low-bit': .*nearest: 'low_bit'"),
    ({"draft": None}, r"draft=None: allowed are"),
    ({"draft_bits": 3}, r"draft_bits=3: allowed are 4, 8"),
    ({"draft_bits": "4"}, r"draft_bits='4': allowed are 4, 8"),
    ({"draft_bits": 4.0}, r"draft_bits=4\.0: allowed are 4, 8"),
    ({"draft_memory": "lots"}, r"draft_memory='lots': allowed are bytes, or a text such as"),
    ({"draft_memory": "1 giga"}, r"draft_memory='1 giga'"),
    ({"draft_memory": -1}, r"draft_memory=-1: allowed are bytes"),
    ({"draft_memory": 1.5}, r"draft_memory=1\.5: allowed are bytes"),
    ({"draft_memory": True}, r"draft_memory=True: allowed are bytes"),
    ({"draft_memory": ""}, r"draft_memory=''"),
    ({"tree": "sibling"}, r"tree='sibling': allowed are 'chain', 'siblings' \(nearest: 'siblings'\)"),
    ({"tree": (0, 5)}, r"tree=\(0, 5\): a node's parent must be 0 or one of the nodes before it"),
    ({"tree": (-1,)}, r"tree=\(-1,\): a node's parent"),
    ({"tree": ("0",)}, r"tree=\('0',\)"),
    ({"tree": (0,) * 65}, r"a tree of 65 candidates: allowed are up to 64"),
    ({"tree": 3}, r"tree=3: allowed are 'chain', 'siblings', a Tree, or the parents of its nodes"),
    ({"tree": [0, 1.0]}, r"tree=\[0, 1\.0\]: allowed are 'chain', 'siblings', a Tree, or the parents"),
    ({"tree": Tree((0, 0)), "draft_length": 2}, r"draft_length=2: tree=Tree\(.* is 1 deep"),
    (
        {"tree": "siblings", "acceptance": "rejection"},
        r"tree='siblings' with acceptance='rejection': .*drawn independently.* use 'coupled'",
    ),
    ({"tree": (0, 0), "acceptance": "rejection"}, r"tree=\(0, 0\) with acceptance='rejection'"),
    (
        {"tree": "siblings", "confidence_threshold": 0.5},
        r"confidence_threshold=0\.5: it stops chains; a tree='siblings' has one shape",
    ),
    (
        {"tree": (0, 0, 1), "draft_length": 3},
        r"draft_length=3: tree=\(0, 0, 1\) is 2 deep, allowed are 0 to 2, or 'auto'",
    ),
    (
        {"tree": "siblings", "exit_layer": 3, "draft_length": 33},
        r"tree='siblings' with draft_length=33: 66 candidates in a round, allowed are up to 64",
    ),
    (
        {"draft": "hybrid", "tree": "siblings", "draft_length": 22},
        r"draft_length=22: 44 candidates and 22 found ones in a round, allowed are up to 64",
    ),
    ({"tree": (0,) * 50}, r"draft_length='auto': 50 candidates and 15 found ones in a round"),
    ({"corpus": 5}, r"corpus=5: allowed are the path of a text file, or token ids"),
    ({"corpus": [1, 2.5]}, r"corpus=\[1, 2\.5\]: allowed are the path"),
    ({"corpus": ["to", "be"]}, r"corpus=\['to', 'be'\]: allowed are the path"),
    ({"corpus": [3, -1]}, r"corpus: -1 is no token id, those are 0 to 2\^31 - 1"),
    ({"corpus": [1 << 31]}, r"corpus: 2147483648 is no token id"),
    (
        {"draft": "low_bit", "corpus": "notes.txt"},
        r"corpus='notes.txt' means nothing to draft='low_bit': .*'auto', 'lookup', 'hybrid'$",
    ),
    (
        {"exit_layer": 3, "corpus": "notes.txt"},
        r"corpus='notes.txt' means nothing to draft='early_exit', which a number for exit_layer chooses: ",
    ),
    ({"draft": "early_exit", "draft_bits": 8}, r"draft_bits=8 means nothing to draft='early_exit'"),
    ({"exit_layer": 3, "draft_memory": "1GiB"}, r"draft_memory='1GiB' means nothing to draft='early_exit'"),
    ({"draft": "lookup", "exit_layer": 3}, r"exit_layer=3 means nothing to draft='lookup': leave it out"),
    ({"draft": "lookup", "tree": "siblings"}, r"tree='siblings' means nothing to draft='lookup'"),
    ({"draft": "lookup", "confidence_threshold": 0.5}, r"confidence_threshold=0.5 means nothing"),
    ({"draft": "lookup", "draft_memory": 0}, r"draft_memory=0 means nothing to draft='lookup'"),
    (
        {"exit_layers": 3},
        r"unknown setting 'exit_layers': did you mean 'exit_layer'\?.*known are draft, exit_layer",
    ),
    ({"colour": 3}, r"unknown setting 'colour': known are draft, exit_layer, draft_length"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_an_impossible_setting_is_refused_with_what_is_allowed(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeculationConfig.of(**settings)


def test_every_allowed_value_is_accepted() -> None:
    for settings in (
        {},
        {"exit_layer": 1, "draft_length": 0},
        {"exit_layer": "auto", "draft_length": MAX_DRAFT_LENGTH},
        {"acceptance": "rejection", "confidence_threshold": 0.999},
        {"confidence_threshold": 0, "deterministic": False, "strict": True},
        *({"draft": draft} for draft in DRAFTS),
        {"draft": "low_bit", "draft_bits": 8, "draft_memory": "1GiB", "confidence_threshold": 0.5},
        {"draft": "hybrid", "draft_bits": 8, "draft_memory": 0, "corpus": "notes.txt"},
        {"draft": "lookup", "draft_length": 64, "corpus": (1, 2, 3)},
        {"tree": "siblings", "draft_length": 32, "exit_layer": 3},
        {"draft": "hybrid", "tree": "siblings", "draft_length": 21},
        {"tree": (0,) * 49},
        {"tree": (0, 0, 1), "draft_length": 2},
        {"tree": "siblings"},
        {"tree": (0, 0, 1, 2)},
        {"tree": Tree((0, 0, 1, 2)), "draft_length": 2},
        {"tree": "chain", "acceptance": "rejection", "confidence_threshold": 0.5},
    ):
        config = SpeculationConfig.of(**settings)
        assert {name: getattr(config, name) for name in settings} == settings


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_draft_length_of_0_is_the_baseline_of_any_settings(draft: str) -> None:
    settings = {"corpus": "notes.txt", "draft_bits": 8, "draft_memory": 0, "tree": "siblings"}
    assert SpeculationConfig.of(draft=draft, draft_length=0, **settings).draft_length == 0


def test_token_ids_of_a_corpus_may_be_in_any_sequence() -> None:
    for corpus in ([3, 1, 4], (3, 1, 4), torch.tensor([3, 1, 4])):
        assert SpeculationConfig.of(corpus=corpus).corpus == (3, 1, 4)


def test_a_tree_may_be_given_as_any_sequence_of_parents() -> None:
    for tree in ([0, 0, 1], (0, 0, 1), torch.tensor([0, 0, 1]), numpy.array([0, 0, 1])):
        config = SpeculationConfig.of(tree=tree)
        assert config.tree == (0, 0, 1)
        assert config.shape(2) == Tree((0, 0, 1), (0, 1, 0))
        assert hash(config) == hash(SpeculationConfig(tree=(0, 0, 1)))


def test_a_tree_that_is_given_whole_keeps_which_candidates_its_nodes_are() -> None:
    """Parents alone would make the first node the draft's first choice."""
    tree = Tree((0, 0, 1), (1, 0, 2))
    assert Tree.of(tree.parents) != tree
    assert SpeculationConfig(tree=tree).shape(2) == tree


def test_settings_cannot_change_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SpeculationConfig().exit_layer = 2  # type: ignore[misc]


def test_the_exit_layer_must_be_below_the_models_last_layer() -> None:
    SpeculationConfig(exit_layer=3).check_model(4)
    SpeculationConfig().check_model(2)
    for layer in (4, 5):
        with pytest.raises(
            ConfigError, match=rf"exit_layer={layer}: this model has 4 layers, allowed are 1 to 3"
        ):
            SpeculationConfig(exit_layer=layer).check_model(4)


@pytest.mark.parametrize("draft", ["low_bit", "hybrid"])
def test_a_low_bit_draft_may_use_all_layers(draft: Any) -> None:
    SpeculationConfig(draft=draft, exit_layer=4).check_model(4)
    with pytest.raises(ConfigError, match="exit_layer=5: this model has 4 layers, allowed are 1 to 4"):
        SpeculationConfig(draft=draft, exit_layer=5).check_model(4)


@pytest.mark.parametrize("draft", ["auto", "early_exit"])
def test_an_early_exit_at_the_last_layer_is_refused_with_what_can_draft_there(draft: Any) -> None:
    with pytest.raises(ConfigError, match=r"draft='low_bit' can draft with all 4$"):
        SpeculationConfig(draft=draft, exit_layer=4).check_model(4)


def test_the_shape_of_a_tree_follows_the_draft_length() -> None:
    assert [SpeculationConfig().shape(k) for k in (0, 3)] == [chain(0), chain(3)]
    assert SpeculationConfig(tree="siblings").shape(3) == with_siblings(3)
    own = SpeculationConfig(tree=(0, 0, 1, 2, 4)).shape
    assert own(9).depth == 3
    assert sorted(own(2).parents) == [0, 0, 1, 2]
    assert own(1) == Tree((0, 0))
    assert own(0) == chain(0)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "auto"),
        ({"exit_layer": 2}, "early_exit"),
        ({"draft_length": 0}, "early_exit"),
        ({"draft_length": 3}, "auto"),
        ({"draft": "low_bit", "exit_layer": 2}, "low_bit"),
        ({"draft": "hybrid", "draft_length": 3}, "hybrid"),
    ],
)
def test_a_number_for_the_exit_layer_chooses_early_exit(settings: dict[str, Any], kind: str) -> None:
    assert SpeculationConfig(**settings).kind == kind
