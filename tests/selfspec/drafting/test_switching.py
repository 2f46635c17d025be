"""Drafts by one arm in one round and by another in the next."""

from __future__ import annotations

from typing import Any

import pytest
from checks import own_generate
from tiny_models import LAYERS, random_prompts

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView
from selfspec.drafting import StopRule, Switching
from selfspec.pacing import FixedLength
from selfspec.round import Arm
from selfspec.rows import RoundEvent
from selfspec.tree import with_siblings
from selfspec.tuning.running import run_engine

EARLY, WHOLE = Arm(2, low_bit=False), Arm(LAYERS, low_bit=True)


def test_arms_and_shapes_that_change_from_round_to_round_leave_the_text_as_it_is(llama: Any) -> None:
    prompts = random_prompts(9)
    expected = own_generate(llama, **prompts, max_new_tokens=24)[0, 9:].tolist()
    drafter = Switching(LowBitView(LayeredDecoder(llama), LAYERS))
    plan = [(EARLY, {}), (WHOLE, {}), (WHOLE, {"shape": with_siblings}), (EARLY, {"rule": StopRule((0.9,))})]
    events: list[RoundEvent] = []

    def next_round(event: RoundEvent | None = None) -> None:
        if event is not None:
            events.append(event)
        arm, how = plan[len(events) % len(plan)]
        drafter.turn_to(arm, **how)
        assert drafter.arm == arm
        assert drafter.is_fixed is (not how)

    next_round()
    arguments = {"max_new_tokens": 24, "do_sample": False, "on_round": next_round}
    run_engine(llama, prompts["input_ids"].tolist(), drafter, FixedLength(3), **arguments)
    assert [token for event in events for token in event.committed] == expected
    assert {len(event.drafted) for event in events[2::4] if event.deepest == 3} == {6}
    assert all(len(event.drafted) == event.deepest for event in events[0::4] + events[1::4])


def test_an_arm_without_its_view_is_refused() -> None:
    drafter = Switching()
    with pytest.raises(ValueError, match=f"low-bit draft, exit layer {LAYERS}: there is no low-bit view"):
        drafter.turn_to(WHOLE)
    drafter.turn_to(EARLY)
    assert drafter.plan(None, 3).arm == EARLY  # type: ignore[arg-type]
