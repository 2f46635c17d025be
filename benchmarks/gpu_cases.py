"""What is measured end to end, the most important first: models, ways of decoding, and contenders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfspec.benchmarking.contenders import AR, EARLY_EXIT, GENERATE, LOOKUP, Contender


@dataclass(frozen=True)
class Line:
    """A contender of a case; a slow one compiles the whole model and has to be asked for."""

    contender: Contender
    slow: bool = False

    @property
    def name(self) -> str:
        return self.contender.name


def ours(name: str, **settings: Any) -> Line:
    """This engine with some settings."""
    return Line(Contender(name, "", settings))


def peer(name: str, **arguments: Any) -> Line:
    """The model's own generate with some arguments."""
    return Line(Contender(name, "", None, arguments), slow="cache_implementation" in arguments)


OURS = ours(AR, draft_length=0)
BASE = (peer(GENERATE), OURS)
AUTO = ours("auto")
LOW_BIT = ours("low bit", draft="low_bit")
HYBRID = ours("hybrid", draft="hybrid")
EXIT = ours("early exit", draft="early_exit")
ALL_LOW_BIT = ours("low bit, E = L, K = 7", draft="low_bit", exit_layer=32, draft_length=7)
QUARTER_LOW_BIT = ours("low bit, E = L/4, K = 5", draft="low_bit", exit_layer=8, draft_length=5)
BUILT_IN = peer(f"{EARLY_EXIT}, E = L/4", assistant_early_exit=8)
PAIR = (OURS, AUTO)
FEW = (*BASE, AUTO, LOW_BIT)
MORE = (
    LOW_BIT,
    EXIT,
    ALL_LOW_BIT,
    peer(LOOKUP, prompt_lookup_num_tokens=10),
    peer(f"{EARLY_EXIT}, E = L/8", assistant_early_exit=4),
    ours("early exit, E = L/8, K = 2", draft="early_exit", exit_layer=4, draft_length=2),
    ours("early exit, E = L/4, K = 2", draft="early_exit", exit_layer=8, draft_length=2),
    peer(f"{GENERATE}, compiled, static cache", cache_implementation="static"),
)


@dataclass(frozen=True)
class Case:
    """A model, what it is asked for, and who takes part; `alone`: no other model beside it in memory."""

    source: str
    shape: str
    contenders: tuple[Line, ...]
    temperature: float | None = None
    batch: int = 1
    context: int = 256
    new_tokens: int = 128
    alone: bool = False

    @property
    def title(self) -> str:
        """How it is decoded."""
        how = "greedy" if self.temperature is None else f"temperature {self.temperature:g}"
        return f"batch {self.batch}, {self.context} tokens, {how}"

    @property
    def long(self) -> bool:
        """Whether a call spends seconds on its prompts: it is timed once, after one other."""
        return self.batch * self.context > 10_000


CASES = (
    Case("reference", "8b-128k", (*BASE, AUTO, HYBRID, QUARTER_LOW_BIT, BUILT_IN)),
    Case("plain twin", "8b-128k", (OURS, AUTO, HYBRID, ALL_LOW_BIT)),
    Case("reference", "8b-128k", (*PAIR, QUARTER_LOW_BIT), 0.8),
    Case("plain twin", "8b-128k", (*PAIR, ALL_LOW_BIT), 0.8),
    Case("reference", "8b-128k", PAIR, batch=16, new_tokens=256),
    Case("reference", "8b-128k", PAIR, batch=4, new_tokens=256),
    Case("reference", "8b-128k", PAIR, context=16_000, new_tokens=256),
    Case("reference", "8b-128k", PAIR, context=4000, new_tokens=256),
    Case("reference", "1b-128k", (*BASE, AUTO, HYBRID)),
    Case("plain twin", "1b-128k", FEW),
    Case("reference", "1b-128k", PAIR, 0.8),
    Case("plain twin", "1b-128k", PAIR, 0.8),
    Case("reference", "8b-128k", MORE),
    Case("reference", "8b-128k", PAIR, batch=32, new_tokens=256),
    Case("reference", "1b-128k", PAIR, batch=16, new_tokens=256),
    Case("reference", "1b-128k", PAIR, batch=4, new_tokens=256),
    Case("reference", "1b-128k", PAIR, batch=32, new_tokens=256),
    Case("reference", "1b-128k", PAIR, context=4000, new_tokens=256),
    Case("reference", "1b-128k", PAIR, context=16_000, new_tokens=256),
    Case("reference", "8b-128k", (peer(GENERATE),), batch=16, new_tokens=256),
    Case("reference", "1b-128k", PAIR, batch=16, context=4000, new_tokens=256, alone=True),
    Case("reference", "8b-128k", PAIR, batch=4, context=4000, new_tokens=256, alone=True),
    Case("reference", "8b-128k", PAIR, batch=16, context=4000, new_tokens=256, alone=True),
    Case("reference", "8b-128k", PAIR, batch=32, context=4000, new_tokens=256, alone=True),
    Case("reference", "8b-128k", PAIR, batch=4, context=16_000, new_tokens=256, alone=True),
    Case("reference", "8b-128k", PAIR, batch=16, context=16_000, new_tokens=256, alone=True),
)
"""Two with one title fill one table: its most important rows come early."""
TARGETS = {
    ("reference", "8b-128k", CASES[0].title): {AR: 3.0, GENERATE: 4.0},
    ("plain twin", "8b-128k", CASES[1].title): {AR: 2.3},
}
"""Least speeds over others, by source, shape and title."""
