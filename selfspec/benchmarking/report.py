"""From measured calls to a report: speeds, ratios, drafts, and the verdict that a speed needs to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from selfspec.benchmarking.contenders import AR, GENERATE, Contender
from selfspec.benchmarking.identity import Coupling, Referee, Text, Verdict, compare_exactly
from selfspec.benchmarking.measure import Batch, Call, Workload
from selfspec.benchmarking.statistics import Spread, distinct_ngrams, paired_ratios, spread


@dataclass(frozen=True)
class Line:
    """One contender's results. Where `refused` says why, there is no speed."""

    name: str
    about: str
    checked: str
    """What its text was compared with, and what came out."""
    distinct_3grams: float
    tokens_per_second: Spread | None = None
    faster_than: Mapping[str, Spread] = field(default_factory=dict)
    """Ratios of seconds, prompt by prompt: how many times faster it was than each other contender."""
    acceptance_rate: float | None = None
    acceptance_length: float | None = None
    view_bytes: int = 0
    """Memory of its low-bit view."""
    seconds: Sequence[float] = ()
    refused: str | None = None


@dataclass(frozen=True)
class Report:
    """A finished comparison with its conditions."""

    conditions: Mapping[str, Any]
    workload: Workload
    n_prompts: int
    prompt_tokens: tuple[int, int]
    """Shortest and longest prompt."""
    lines: tuple[Line, ...]
    rounding_noise: float | None = None
    """Measured change of top-2 logit gaps by rounding; None when no text differed."""

    @property
    def refused(self) -> tuple[Line, ...]:
        """The contenders without a speed."""
        return tuple(line for line in self.lines if line.refused)

    def line(self, name: str) -> Line:
        """The contender of that name; KeyError when it was not measured."""
        return {line.name: line for line in self.lines}[name]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def report(
    model: Any,
    contenders: Sequence[Contender],
    batches: Sequence[Batch],
    calls: Mapping[str, Sequence[Call]],
    workload: Workload,
    conditions: Mapping[str, Any],
) -> Report:
    """Judge every contender's text, and give a speed to those whose text stands.

    Args:
        model: the model itself, not a wrapped one; it is the reference for near-ties.
        calls: the result of `compare`.
    """
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    judge = Judge(model, prompts, calls, workload)
    measured = [c for c in contenders if c.name in calls]
    refusals = {c.name: judge(c) for c in measured}
    stands = [c.name for c in measured if refusals[c.name][1] is None]
    lines = tuple(_line(c, calls, stands, *refusals[c.name]) for c in measured)
    lengths = [len(prompt) for prompt in prompts]
    return Report(
        conditions, workload, len(prompts), (min(lengths), max(lengths)), lines, judge.referee.measured_noise
    )


class Judge:
    """Compares a contender's text with what it promises: the model's own, or AR's when sampled."""

    def __init__(
        self, model: Any, prompts: Sequence[Text], calls: Mapping[str, Sequence[Call]], workload: Workload
    ) -> None:
        self._texts = {name: [text for call in runs for text in call.texts] for name, runs in calls.items()}
        self._workload = workload
        self._model, self._prompts = model, prompts
        self.referee = Referee(model, prompts, self._texts[GENERATE])

    def __call__(self, contender: Contender) -> tuple[str, str | None]:
        """What was compared, with the outcome; and why a speed is refused, None when it is not."""
        texts = self._texts[contender.name]
        if any(len(text) != self._workload.new_tokens for text in texts):
            return "other lengths", "it wrote another number of tokens"
        if self._workload.temperature is None:
            verdict = self.referee.judge(texts)
            return f"{verdict}{self._like_baseline(contender)}", _refusal(verdict, GENERATE)
        reference = self._sampling_reference(contender)
        if reference is None:
            return "own draws", None
        verdict = self._coupled_verdict(contender, texts, self._texts[reference])
        return f"{verdict} (as {reference})", _refusal(verdict, reference)

    def _coupled_verdict(
        self, contender: Contender, texts: Sequence[Text], references: Sequence[Text]
    ) -> Verdict:
        """Sampled text under one seed: bit for bit where that is promised, else up to near-ties."""
        settings = contender.speculation or {}
        if settings.get("deterministic", True) and settings.get("tree", "chain") == "chain":
            return compare_exactly(texts, references)
        coupling = Coupling(self._workload.seed, self._workload.temperature or 1.0)
        return Referee(self._model, self._prompts, references, coupling).judge(texts)

    def _like_baseline(self, contender: Contender) -> str:
        """How often drafting left the engine's own greedy text untouched, near-ties included."""
        drafts = contender.speculation is not None and contender.speculation.get("draft_length") != 0
        if not drafts or contender.baseline not in self._texts:
            return ""
        verdict = compare_exactly(self._texts[contender.name], self._texts[contender.baseline])
        return f"; {verdict.identical} of {verdict.identical + verdict.different} as {contender.baseline}"

    def _sampling_reference(self, contender: Contender) -> str | None:
        """AR with the same settings, whose text coupled acceptance promises; None without a promise."""
        coupled = contender.speculation is not None and contender.speculation.get("acceptance") != "rejection"
        return contender.baseline if coupled and contender.baseline in self._texts else None


def _refusal(verdict: Verdict, reference: str) -> str | None:
    if not verdict.different:
        return None
    return f"its text differs from that of {reference} on {verdict.different} prompts, and not by near-ties"


def _line(
    contender: Contender,
    calls: Mapping[str, Sequence[Call]],
    stands: Sequence[str],
    checked: str,
    refused: str | None,
) -> Line:
    mine = calls[contender.name]
    about = contender.about
    if contender.speculation is not None and mine[-1].drafted:
        about += f", {mine[-1].drafts}"
    texts = [text for call in mine for text in call.texts]
    distinct = sum(map(distinct_ngrams, texts)) / len(texts)
    if refused is not None:
        return Line(contender.name, about, checked, distinct, view_bytes=mine[-1].view_bytes, refused=refused)
    seconds = [call.seconds for call in mine]
    drafted, accepted, rounds = (
        sum(getattr(c, n) for c in mine) for n in ("drafted", "accepted", "row_rounds")
    )
    others = [name for name in stands if name != contender.name]
    return Line(
        contender.name,
        about,
        checked,
        distinct,
        tokens_per_second=spread([call.tokens / call.seconds for call in mine]),
        faster_than={n: spread(paired_ratios([c.seconds for c in calls[n]], seconds)) for n in others},
        acceptance_rate=accepted / drafted if drafted else None,
        acceptance_length=1 + accepted / rounds if drafted else None,
        view_bytes=mine[-1].view_bytes,
        seconds=seconds,
    )


def baselines(lines: Sequence[Line]) -> list[str]:
    """The contenders that a table compares with: the model's own generate and AR, where measured."""
    names = {line.name for line in lines if line.refused is None}
    return [name for name in (GENERATE, AR) if name in names]
