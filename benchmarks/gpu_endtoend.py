"""Whole calls on models with real acceptance and the cost of large ones, beside what they compete with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from gpu_bench import Bench, NotHereError, Row, free
from gpu_cases import CASES, TARGETS, Case
from gpu_models import SOURCES, fitting, inflated, prompts_of

from selfspec.benchmarking.contenders import AR, GENERATE, Contender, bind
from selfspec.benchmarking.identity import Referee, Text, compare_exactly
from selfspec.benchmarking.measure import Call, Workload, batches_of, run_once
from selfspec.benchmarking.statistics import distinct_ngrams, paired_ratios, spread
from selfspec.cli.loading import Loaded

WARM_UP = 3
"""Calls of the engine before those that count: it compiles, captures, and looks around; others have a short
one."""
PROMPTS = 3
OWN_PROMPTS = 1
"""For the model's own loops, whose calls take seconds."""
_SHORT = 8


def run(bench: Bench) -> None:
    """All cases in their order; models stay while they are needed again, and there is room."""
    models: dict[tuple[str, str], tuple[Loaded, Any]] = {}
    tables: dict[str, Measured] = {}
    for case in bench.pick(CASES, CASES[:2]):
        title = f"{case.source}, {case.shape}, {case.title}"
        asked = [c for c in case.contenders if bench.wants(title, c.name) and (bench.compiled or not c.slow)]
        if not asked:
            continue
        key = (case.source, case.shape)
        if case.alone:
            models = {name: made for name, made in models.items() if name == key}
            free(bench.device)
        if key not in models and bench.seconds_left > 0:
            loaded = SOURCES[case.source].load(bench)
            models[key] = loaded, inflated(bench, loaded, case.shape)
        measured = tables.setdefault(title, Measured(bench, case))
        measured.loaded, measured.model = models.get(key, (None, None))
        for line in asked:
            bench.measure(title, line.name, partial(measured.row, line.contender))
            free(bench.device)


@dataclass
class Measured:
    """The calls of one case so far."""

    bench: Bench
    case: Case
    loaded: Loaded | None = None
    model: Any = None
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def row(self, contender: Contender) -> Row:
        """One contender: a speed only beside a word on its text."""
        if self.model is None or self.loaded is None:
            raise NotHereError("there was no time to make the model")
        if contender.speculation is not None and contender.name != AR:
            self._baseline(Contender(AR, "", {"draft_length": 0}))
        gigabytes = self._run(contender)
        mine = self.calls[contender.name]
        texts = texts_of(mine)
        said, refused = self._judge(contender, texts)
        seconds = [call.seconds for call in mine]
        drafted = sum(call.drafted for call in mine)
        accepted, rounds = sum(call.accepted for call in mine), sum(call.row_rounds for call in mine)
        row: Row = {
            "tokens/s": None if refused else spread([call.tokens / call.seconds for call in mine]).median,
            "over AR": None if refused else self._ratio(AR, seconds),
            "over generate": None if refused else self._ratio(GENERATE, seconds),
            "acceptance rate": accepted / drafted if drafted else None,
            "acceptance length": 1 + accepted / rounds if drafted else None,
            "distinct 3-grams": sum(map(distinct_ngrams, texts)) / len(texts),
            "GB beside the weights": gigabytes,
            "text": said,
            "drafts": mine[-1].drafts or None,
        }
        return self._held(contender, row)

    def _baseline(self, contender: Contender) -> None:
        """What others are compared with, where it has not been measured: a run that left it out needs it."""
        if contender.name not in self.calls:
            self._run(contender)

    def _run(self, contender: Contender) -> float | None:
        """The contender's calls; gigabytes at the most beyond what was there before."""
        assert self.loaded is not None
        workload, pad, device = self._workload(), self.loaded.pad, self.bench.device
        count = workload.batch * (1 if workload.batch > 1 else self.bench.pick(PROMPTS, 1))
        prompts = prompts_of(self.loaded, self.bench.pick(self.case.context, 16), count)
        batches = batches_of(prompts, workload.batch, pad, device)
        before = self._memory(start=True)
        settings = fitting(contender.speculation, self.model)
        bound = bind(self.model, replace(contender, speculation=settings))
        own = contender.speculation is None
        brief = replace(workload, new_tokens=min(workload.new_tokens, _SHORT)) if own else workload
        for number in range(self.bench.pick(1 if own else WARM_UP, 1)):
            run_once(bound, contender, batches[number % len(batches)], brief, pad)
        batches = batches[:OWN_PROMPTS] if own else batches
        repeats = 2 if len(batches) == 1 and not own else 1
        self.calls[contender.name] = [
            run_once(bound, contender, batch, workload, pad) for batch in batches for _ in range(repeats)
        ]
        return None if before is None else (self._memory() or 0.0) - before

    def _workload(self) -> Workload:
        tokens = self.bench.pick(self.case.new_tokens, 6)
        return Workload(tokens, self.case.temperature, 0, self.bench.pick(self.case.batch, 1), 0)

    def _memory(self, start: bool = False) -> float | None:
        """Gigabytes allocated now, or at the most since the start."""
        if not self.bench.on_gpu:
            return None
        if start:
            torch.cuda.reset_peak_memory_stats(self.bench.device)
            return torch.cuda.memory_allocated(self.bench.device) / 1e9
        return torch.cuda.max_memory_allocated(self.bench.device) / 1e9

    def _ratio(self, base: str, seconds: Sequence[float]) -> float | None:
        if base not in self.calls:
            return None
        others = [call.seconds for call in self.calls[base]]
        together = min(len(others), len(seconds))  # both began with the same prompts
        return spread(paired_ratios(others[:together], seconds[:together])).median

    def _judge(self, contender: Contender, texts: list[Text]) -> tuple[str, bool]:
        """What the text was compared with, and whether a speed is refused for what came out."""
        assert self.loaded is not None
        name = AR if contender.speculation is not None and contender.name != AR else GENERATE
        base = self.calls.get(name)
        if base is None or contender.name == GENERATE:
            return "", False
        references = texts_of(base)
        texts = texts[: len(references)]
        references = references[: len(texts)]
        if name == AR:
            exact = compare_exactly(texts, references)
            if not exact.different or self.case.temperature is not None:
                return f"{exact} as AR", bool(exact.different)
        if self.case.temperature is not None:
            return "own draws", False
        asked = [tuple(prompt) for prompt in self._prompts(len(texts))]
        verdict = Referee(self.model, asked, references, sample=1).judge(texts)
        return f"{verdict} as {name}", bool(verdict.different)

    def _prompts(self, count: int) -> list[list[int]]:
        """The prompt of every text, calls that were repeated included."""
        assert self.loaded is not None
        batch = self.bench.pick(self.case.batch, 1)
        prompts = prompts_of(self.loaded, self.bench.pick(self.case.context, 16), count)
        return [*prompts[:batch], *prompts[:batch]] if count == 2 * batch else prompts

    def _held(self, contender: Contender, row: Row) -> Row:
        """The row with its targets."""
        found = TARGETS.get((self.case.source, self.case.shape, self.case.title), {})
        if contender.speculation is None or contender.name == AR:
            return row
        said = [f"{base} {least:g}" for base, least in found.items()]
        met = all((row[f"over {base}"] or 0) >= least for base, least in found.items())
        if not said:
            return row
        return {**row, "target": f"≥ {', '.join(said)}", "verdict": "reached" if met else "MISSED"}


def texts_of(calls: Sequence[Call]) -> list[Text]:
    """All texts of the calls."""
    return [text for call in calls for text in call.texts]
