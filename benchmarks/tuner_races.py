"""Races of the tuner's benchmark: whole calls of several ways to generate, in turn."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import selfspec
from selfspec.round import Arm
from selfspec.stats import Stats
from selfspec.tuning.profile import Profile
from selfspec.tuning.replay import Setting
from selfspec.tuning.running import Engine
from selfspec.tuning.validate import run_setting

CANDIDATES = 4
"""Single settings for all workloads that run against each workload's own."""

Run = Callable[[list[int]], Stats]


def race(runs: Mapping[str, Run], prompts: Sequence[list[int]], repeats: int) -> dict[str, list[float]]:
    """Seconds per token of every run on every prompt, in turn; who goes first moves on."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for name in names:  # warm
        runs[name](prompts[0])
    for turn in range(repeats * len(prompts)):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            stats = runs[name](prompts[turn % len(prompts)])
            seconds[name].append(stats.seconds / stats.tokens)
    return seconds


def fixed(engine: Engine, setting: Setting, **arguments: Any) -> Run:
    """Runs of one setting."""
    return lambda prompt: run_setting(engine, [prompt], setting, **arguments)


def following(model: Any, settings: dict[str, Any], **arguments: Any) -> Run:
    """Runs of the model as it is wrapped with these settings; what it learns it keeps from call to call."""
    speculation = selfspec.wrap(model, **settings).speculation

    def run(prompt: list[int]) -> Stats:
        model.speculation = speculation
        torch.manual_seed(0)
        model.generate(torch.tensor([prompt]), pad_token_id=0, **arguments)
        return speculation.stats

    return run


def single_setting(
    engine: Engine,
    swept: Mapping[str, Mapping[Setting, float]],
    profiles: Mapping[str, Profile],
    prompts: Mapping[str, Sequence[list[int]]],
    repeats: int,
    **arguments: Any,
) -> dict[str, Any]:
    """Each workload's own setting, fixed and followed, against the best fixed one for all of them.

    Args:
        swept: workload -> setting -> tokens per second, AR's among them.
    """
    common = set.intersection(*(set(own) for own in swept.values()))
    # Harmonic mean of speeds over AR: as much text of each workload.
    plain = Setting(1, 0)
    ranked = sorted(common, key=lambda at: sum(own[plain] / own[at] for own in swept.values()))
    candidates = {str(setting): setting for setting in ranked[:CANDIDATES] if setting != plain}
    seconds: dict[str, dict[str, list[float]]] = {}
    for name, profile in profiles.items():
        settings = {"AR": plain, "tuned": profile.setting, **candidates}
        runs = {run: fixed(engine, setting, **arguments) for run, setting in settings.items()}
        runs["profile"] = following(engine.model, {"profile": profile}, **arguments)
        seconds[name] = race(runs, prompts[name], repeats)
        selfspec.unwrap(engine.model)
    totals = {name: {run: sum(times) for run, times in own.items()} for name, own in seconds.items()}
    single = min(candidates, key=lambda run: sum(own[run] / own["AR"] for own in totals.values()))
    return {
        "single": single,
        "speedup_of_single": {name: own["AR"] / own[single] for name, own in totals.items()},
        "tuned_over_single": {name: own[single] / own["tuned"] for name, own in totals.items()},
        "profile_over_single": {name: own[single] / own["profile"] for name, own in totals.items()},
        "seconds_per_token": seconds,
    }


def random_twin(model: Any) -> Any:
    """A model of the same shape with random weights, whose exits are useless."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        twin: Any = type(model)(config)
        # As it is initialised, a model repeats one token and all its exits agree on it: draw larger weights.
        for module in twin.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=2 * module.in_features**-0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
    twin.generation_config.eos_token_id = None
    return twin.to(model.dtype).eval()


def over_ar(
    model: Any,
    ways: Mapping[str, dict[str, Any]],
    prompts: Sequence[list[int]],
    repeats: int,
    **arguments: Any,
) -> dict[str, list[float]]:
    """Speed of whole calls over AR, run by run, of the model wrapped in several ways."""
    runs = {name: following(model, settings, **arguments) for name, settings in ways.items()}
    plainly = fixed(Engine(model), Setting(1, 0), **arguments)
    seconds = race({"AR": plainly, **runs}, prompts, repeats)
    selfspec.unwrap(model)
    plain = seconds.pop("AR")
    return {name: [ar / own for ar, own in zip(plain, times, strict=True)] for name, times in seconds.items()}


class Timed:
    """A pacer, and the seconds that it takes.

    Args:
        beginning: seconds that it took to make, once for a call.
    """

    def __init__(self, pacer: Any, beginning: float) -> None:
        self._pacer = pacer
        self.seconds, self.reading, self.beginning = 0.0, 0.0, beginning
        tell = pacer.controller.tell_watched

        def told(arm: Arm, hits: int, trials: int, seconds: float) -> bool:
            self.reading += seconds
            easier: bool = tell(arm, hits, trials, seconds)
            return easier

        pacer.controller.tell_watched = told

    def draft_length(self, remaining: int) -> int:
        began = time.perf_counter()
        length: int = self._pacer.draft_length(remaining)
        self.seconds += time.perf_counter() - began
        return length

    def observe(self, length: int, tokens: float, seconds: float) -> None:
        began = time.perf_counter()
        self._pacer.observe(length, tokens, seconds)
        self.seconds += time.perf_counter() - began


def deciding(
    model: Any, profile: Profile, prompts: Sequence[list[int]], **arguments: Any
) -> dict[str, float]:
    """Time of the controller within real calls under a profile, as a share of all rounds.

    Its decisions, and those with reading other exits, which has a budget, and with what a call begins with.
    """
    speculation = selfspec.wrap(model, profile=profile).speculation
    own, pacers = speculation.strategy, []

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        drafter, pacer, stats, reading = own(*given)
        pacers.append(Timed(pacer, time.perf_counter() - began))
        return drafter, pacers[-1], stats, reading

    speculation.strategy = timed
    for prompt in prompts:
        model.generate(torch.tensor([prompt]), pad_token_id=0, **arguments)
    selfspec.unwrap(model)
    seconds, total = sum(pacer.seconds for pacer in pacers), speculation.total
    more = sum(pacer.reading + pacer.beginning for pacer in pacers)
    return {
        "share": seconds / total.round_seconds,
        "share_of_all": (seconds + more) / total.round_seconds,
        "seconds_per_round": seconds / total.rounds,
    }
