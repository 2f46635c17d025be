"""Whole calls on models with real acceptance and the cost of large ones, beside what they compete with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from gpu_bench import Bench, NotHereError, Row, free
from gpu_cases import CASES, OURS, TARGETS, Case, Line
from gpu_models import Inflated, fitting, prompts_of
from targets import met

from selfspec.benchmarking.contenders import AR, GENERATE, Contender, bind
from selfspec.benchmarking.identity import Referee, Text, compare_exactly
from selfspec.benchmarking.measure import Batch, Call, Workload, batches_of, run_once
from selfspec.benchmarking.statistics import distinct_ngrams, paired_ratios, spread
from selfspec.cli.loading import Loaded

WARM_UP = 3
"""Calls of the engine before those that count, on other prompts: it compiles, captures, and looks around."""
COMPILED_WARM_UP = 2
"""Of a compiled static cache, which is as long as prompt and new tokens: a shorter call compiles another."""
PROMPTS = 3
OWN_PROMPTS = 1
"""For the model's own loops, whose calls take seconds."""
_SHORT = 8
"""New tokens of their warm-up."""
Ask = tuple[Batch, Workload]


def run(bench: Bench) -> None:
    """All cases in their order; models stay while they are needed again, and there is room."""
    models = Inflated(bench)
    tables: dict[str, Measured] = {}
    for case in bench.pick(CASES, CASES[:2]):
        title = f"{case.source}, {case.shape}, {case.title}"
        asked = [line for line in case.contenders if bench.wants(title, line.name)]
        if asked and case.alone:
            models.keep_only(case.source, case.shape)
        measured = tables.setdefault(title, Measured(bench, case, title, models))
        for line in asked:
            bench.measure(title, line.name, partial(measured.row, line))
            free(bench.device)


@dataclass(frozen=True)
class Timed:
    """A call that counts: its prompts, and the seconds of its rounds, None for the model's own loops."""

    call: Call
    prompts: tuple[Text, ...]
    in_rounds: float | None


@dataclass
class Measured:
    """The calls of one case so far."""

    bench: Bench
    case: Case
    title: str
    models: Inflated
    calls: dict[str, list[Timed]] = field(default_factory=dict)
    pace: dict[tuple[bool, bool], float] = field(default_factory=dict)
    """Seconds a new token of the last call, prefill included, by whether it was one of the model's own loops,
    and compiled."""

    def row(self, line: Line) -> Row:
        """One contender: a speed only beside a word on its text."""
        if line.slow and not self.bench.compiled:
            raise NotHereError("it compiles the whole model: --compiled asks for it")
        contender = line.contender
        if contender.speculation is not None and contender.name != AR and AR not in self.calls:
            self._run(OURS)  # what it is compared with: a run that left it out needs it
        gigabytes = self._run(line)
        mine = [timed.call for timed in self.calls[contender.name]]
        texts = texts_of(mine)
        said, refused = self._judge(contender)
        drafted = sum(call.drafted for call in mine)
        accepted, rounds = sum(call.accepted for call in mine), sum(call.row_rounds for call in mine)
        row: Row = {
            **self._speeds(contender.name, refused),
            "acceptance rate": accepted / drafted if drafted else None,
            "acceptance length": 1 + accepted / rounds if drafted else None,
            "distinct 3-grams": sum(map(distinct_ngrams, texts)) / len(texts),
            "GB beside the weights": gigabytes,
            "text": said,
            "drafts": mine[-1].drafts or None,
        }
        return self._held(contender, row)

    def _run(self, line: Line) -> float | None:
        """The contender's calls; gigabytes at the most beyond what was there before."""
        loaded, model = self.models.of(self.case.source, self.case.shape)
        before = self._memory(start=True)
        settings = fitting(line.contender.speculation, model)
        bound = bind(model, replace(line.contender, speculation=settings))
        warm_up, counted = self._asked(line, loaded)
        kind = settings is None, line.slow
        asks, done, pace = [*warm_up, *counted], [], self.pace.get(kind, 0.0)
        for number, (batch, workload) in enumerate(asks):
            if number <= 2:  # the first call compiles: it tells of one more at the most
                self._expect(pace, asks[number : 2 if number == 1 else None])
            call = run_once(bound, line.contender, batch, workload, loaded.pad)
            pace = call.seconds / workload.new_tokens
            in_rounds = None if settings is None else bound.speculation.stats.round_seconds
            done.append(Timed(call, batch.prompts, in_rounds))
        self.pace[kind] = pace
        self.calls[line.name] = done[len(warm_up) :]
        self.bench.note(f"{self.title}: {line.name}", seconds_of(self.calls[line.name]))
        return None if before is None else (self._memory() or 0.0) - before

    def _asked(self, line: Line, loaded: Loaded) -> tuple[list[Ask], list[Ask]]:
        """What is generated before, and what counts."""
        own, long = line.contender.speculation is None, self.case.long
        tokens, context = self.bench.pick(self.case.new_tokens, 6), self.bench.pick(self.case.context, 16)
        rows = self.bench.pick(self.case.batch, 1)
        workload = Workload(tokens, self.case.temperature, 0, rows, 0)
        brief = replace(workload, new_tokens=min(tokens, _SHORT))
        count = rows * (1 if rows > 1 or long else self.bench.pick(PROMPTS, 1))
        others, measured = (
            batches_of(prompts_of(loaded, context, count, after), rows, loaded.pad, self.bench.device)
            for after in (count + 1, 0)  # one between them: a prompt may reach into the next one's texts
        )
        calls = COMPILED_WARM_UP if line.slow else self.bench.pick(1 if own or long else WARM_UP, 1)
        warm_up = [
            (others[number % len(others)], brief if own and not line.slow else workload)
            for number in range(calls)
        ]
        measured = measured[:OWN_PROMPTS] if own else measured
        repeats = 2 if len(measured) == 1 and not own and not long else 1
        return warm_up, [(batch, workload) for batch in measured for _ in range(repeats)]

    def _expect(self, pace: float, asks: Sequence[Ask]) -> None:
        """One row must not take the time of those after it; `pace`: seconds a new token."""
        seconds = pace * sum(workload.new_tokens for _, workload in asks)
        left = self.bench.seconds_left
        if seconds > max(left, 0.0):
            raise NotHereError(f"it would take about {seconds:.0f} seconds, its section had {left:.0f} left")

    def _memory(self, start: bool = False) -> float | None:
        """Gigabytes allocated now, or at the most since the start."""
        if not self.bench.on_gpu:
            return None
        if start:
            torch.cuda.reset_peak_memory_stats(self.bench.device)
            return torch.cuda.memory_allocated(self.bench.device) / 1e9
        return torch.cuda.max_memory_allocated(self.bench.device) / 1e9

    def _speeds(self, name: str, refused: bool) -> Row:
        """Of whole calls, and of rounds alone, beside those of the others; none where the text is wrong."""
        calls = [timed.call for timed in self.calls[name]]
        row: Row = {
            "tokens/s": spread([call.tokens / call.seconds for call in calls]).median,
            "over AR": self._ratio(name, AR, "whole"),
            "over generate": self._ratio(name, GENERATE, "whole"),
        }
        if all(timed.in_rounds for timed in self.calls[name]):
            speeds = [timed.call.tokens / (timed.in_rounds or 1.0) for timed in self.calls[name]]
            row["tokens/s in rounds"] = spread(speeds).median
            row["rounds over AR"] = self._ratio(name, AR, "in rounds")
        return dict.fromkeys(row) if refused else row

    def _ratio(self, name: str, base: str, what: str) -> float | None:
        """How much faster than the base's calls, of this run or those of an earlier one that it adds to."""
        mine, others = (self.bench.noted(f"{self.title}: {who}") or {what: []} for who in (name, base))
        pairs = list(zip(others[what], mine[what], strict=False))  # both began with the same prompts
        return spread(paired_ratios(*zip(*pairs, strict=True))).median if pairs else None

    def _judge(self, contender: Contender) -> tuple[str, bool]:
        """What the text was compared with, and whether a speed is refused for what came out."""
        name = AR if contender.speculation is not None and contender.name != AR else GENERATE
        base = self.calls.get(name)
        if base is None or contender.name == GENERATE:
            return "", False
        together = list(zip(self.calls[contender.name], base, strict=False))
        texts, references = (texts_of([pair[i].call for pair in together]) for i in (0, 1))
        if name == AR:
            exact = compare_exactly(texts, references)
            if not exact.different or self.case.temperature is not None:
                return f"{exact} as AR", bool(exact.different)
        if self.case.temperature is not None:
            return "own draws", False
        asked = [prompt for timed, _ in together for prompt in timed.prompts]
        _, model = self.models.of(self.case.source, self.case.shape)
        verdict = Referee(model, asked, references, sample=1).judge(texts)
        return f"{verdict} as {name}", bool(verdict.different)

    def _held(self, contender: Contender, row: Row) -> Row:
        """The row with its targets; where what it is held against was not measured, it says so."""
        targets = TARGETS.get((self.case.source, self.case.shape, self.case.title), {})
        if not targets or contender.speculation is None or contender.name == AR:
            return row
        found = {base: row[f"over {base}"] for base in targets}
        if row["tokens/s"] is None or any(n is not None and not met(targets[b], n) for b, n in found.items()):
            verdict = "MISSED"
        else:
            verdict = "not compared" if None in found.values() else "reached"
        said = ", ".join(f"{base} {least:g}" for base, least in targets.items())
        return {**row, "target": f"≥ {said}", "verdict": verdict}


def texts_of(calls: Sequence[Call]) -> list[Text]:
    """All texts of the calls."""
    return [text for call in calls for text in call.texts]


def seconds_of(calls: Sequence[Timed]) -> dict[str, list[float]]:
    """Of every call, and of its rounds where they are known."""
    rounds = [timed.in_rounds for timed in calls if timed.in_rounds is not None]
    return {"whole": [timed.call.seconds for timed in calls], "in rounds": rounds}
