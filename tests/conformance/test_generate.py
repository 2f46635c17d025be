"""The same call wrapped and unwrapped, over a grid of options, in every family.

Sequences, streamed pieces and the kind of what comes back are equal; scores and logits agree within 1e-5.
Greedy calls, and those that are left to the model itself, are compared with the model's own generate under
the same seed. Where a sampled call is speculated, the model's own loop is led along its text, and must find
the same scores on the way; and the text is that of plain decoding.

`pytest tests/conformance --conformance-cases 300 --conformance-seed 7` runs more, or other, cases.
"""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from checks import own_generate
from criteria import Crowd
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from request_grid import OWN_CRITERIA, Request, counting_processor, own_processor, requests
from streams import Recorder
from tiny_models import random_prompts, tiny_model
from torch import Tensor

import selfspec
from layer_skip.decoder import LayeredDecoder
from layer_skip.families import FAMILIES
from selfspec.speculation import Speculation

PLAIN = {"exit_layer": 1, "draft_length": 0}
ROUNDING = 2e-6
"""Largest difference of scores over the largest score: sums round as their terms do, some 16 last bits."""


class Outcome:
    """What a call did: its output, or its error, and what it streamed and warned of."""

    def __init__(self, generate: Any, arguments: dict[str, Any]) -> None:
        self.log: list[Any] = []
        self.cache = arguments.get("past_key_values")
        self.output: Any = None
        self.error: type[Exception] | None = None
        self.criterion: Any = None
        arguments = {**arguments}
        if "streamer" in arguments:
            arguments["streamer"] = Recorder(self.log)
        if "logits_processor" in arguments:
            own = arguments["logits_processor"] == "own"
            arguments["logits_processor"] = [own_processor if own else counting_processor()]
        if "stopping_criteria" in arguments:
            self.criterion = OWN_CRITERIA[arguments["stopping_criteria"]]()
            arguments["stopping_criteria"] = [self.criterion]
        positional = (arguments.pop("inputs"),) if "inputs" in arguments else ()
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.output = generate(*positional, **arguments)
            except Exception as error:
                self.error = type(error)
                self.message = str(error)
        self.left = [str(w.message) for w in caught if "cannot be speculated" in str(w.message)]

    @property
    def sequences(self) -> Tensor:
        tensor: Tensor = self.output if isinstance(self.output, Tensor) else self.output.sequences
        return tensor


def led_along(model: Any, arguments: dict[str, Any], sequences: Tensor) -> Outcome:
    """The model's own loop, drawing the tokens of `sequences` wherever it draws one."""
    rows = arguments.get("input_ids", arguments.get("inputs"))
    width = 0 if rows is None else rows.shape[1]
    columns = iter(sequences[:, width:].T)

    def drawn(probabilities: Tensor, num_samples: int) -> Tensor:
        tokens = next(columns)
        return tokens[:, None]

    with mock.patch.object(torch, "multinomial", drawn):
        return Outcome(lambda *a, **k: own_generate(model, *a, **k), arguments)


def assert_same(actual: Outcome, expected: Outcome) -> None:
    assert actual.error == expected.error, (actual.error, getattr(actual, "message", ""), expected.error)
    if expected.error is not None:
        return
    assert type(actual.output) is type(expected.output)
    assert torch.equal(actual.sequences, expected.sequences)
    assert actual.log == expected.log
    if isinstance(actual.criterion, Crowd):
        assert actual.criterion.asked == expected.criterion.asked
    if isinstance(actual.output, Tensor):
        return
    assert_same_steps(actual.output, expected.output)
    mine, own = (outcome.output.get("past_key_values") for outcome in (actual, expected))
    assert (mine is None) == (own is None)
    if mine is not None:
        assert mine.get_seq_length() == own.get_seq_length()


def assert_same_steps(actual: Any, expected: Any) -> None:
    """Scores and logits, step by step: within 1e-5, or within rounding of scores that are larger than 5."""
    for name in ("scores", "logits"):
        mine, own = actual.get(name), expected.get(name)
        assert (mine is None) == (own is None), name
        for one, other in zip(mine or (), own or (), strict=True):
            largest = float(other[other.isfinite()].abs().max())
            torch.testing.assert_close(one, other, rtol=1e-5, atol=max(1e-5, ROUNDING * largest))


def speculate(model: Any, request: Request, arguments: dict[str, Any]) -> tuple[Outcome, bool]:
    """The call as selfspec serves it, and whether it was speculated; the model is as it was then."""
    calls: list[Any] = []
    more = {"custom_generate": selfspec.generate} if request.bound else {}
    if not request.bound:
        selfspec.wrap(model, **request.setting)
    with mock.patch.object(Speculation, "finish", lambda speculation, stats: calls.append(stats)):
        ours = Outcome(lambda *a, **k: model.generate(*a, **k, **more), arguments)
    if not request.bound:
        selfspec.unwrap(model)
    return ours, bool(calls)


def check(model: Any, request: Request, counts: Counter[str]) -> None:
    """Compare one request; `counts` tells how often what was compared."""
    ends = frequent_tokens(model, request)

    def arguments() -> dict[str, Any]:
        return request.arguments(model, ends)

    own = Outcome(lambda *a, **k: own_generate(model, *a, **k), arguments())
    ours, speculated = speculate(model, request, arguments())
    refused = ours.error is not None and not ours.left
    assert len(ours.left) == (0 if speculated or refused else 1), ours.left
    counts["errors" if ours.error else "speculated" if speculated else "left"] += 1
    if speculated and request.sampled:
        if request.setting.get("acceptance") != "rejection":  # else its text is another draw
            selfspec.wrap(model, **PLAIN)
            plain = Outcome(lambda *a, **k: model.generate(*a, **k), arguments())
            assert torch.equal(plain.sequences, ours.sequences)
            selfspec.unwrap(model)
        assert_same(ours, led_along(model, arguments(), ours.sequences))
        return
    assert_same(ours, own)
    if ours.cache is not None and not ours.error:
        assert ours.cache.get_seq_length() == own.cache.get_seq_length()


def frequent_tokens(model: Any, request: Request) -> list[int]:
    """Tokens that occur in the model's plain text after these prompts."""
    if not request.frequent:
        return []
    prompts = random_prompts(*request.lengths, seed=request.seed)
    out = own_generate(model, **prompts, max_new_tokens=8)[:, -8:]
    return [token for token, _ in Counter(out.flatten().tolist()).most_common(request.frequent)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrapped_call_is_the_models_own(name: str, request: pytest.FixtureRequest) -> None:
    cases = request.config.getoption("--conformance-cases")
    first = request.config.getoption("--conformance-seed")
    model, counts = tiny_model(name), Counter[str]()

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @seed(first + zlib.crc32(name.encode()))
    @given(requests(trees=LayeredDecoder(model).takes_trees))
    def run(case: Request) -> None:
        note(f"{name}, --conformance-seed {first}")
        check(model, case, counts)

    run()
    print(f"{name}: {dict(counts)}, seed {first}")
    assert counts["speculated"] >= counts.total() // 4, counts


def test_the_grid_reaches_every_option() -> None:
    """A grid that never draws an option proves nothing of it."""
    seen: Counter[str] = Counter()

    @settings(max_examples=400, deadline=None, database=None, phases=(Phase.generate,))
    @seed(0)
    @given(requests())
    def draw(case: Request) -> None:
        seen.update([*case.options, case.form, str(case.setting)])

    draw()
    rare = {name: count for name, count in seen.items() if count < 3}
    assert not rare
    assert len(seen) >= 60
