"""Is the text the same? And where it is not: was it a near-tie that rounding may decide either way?

In bf16 and fp16 a product over one row and one over several differ in last bits, so two correct ways of
computing the same model can pick different tokens where the two likeliest are as good as equal. Such a
difference is accepted only when it is shown: every token of the other text, given the text before it, must
lie within the measured rounding noise of the best one. In fp32 no difference is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec.sampling import gumbel, position_keys, request_keys

Text = tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """Rows whose text is the reference's, whose differences are near-ties, and whose text is another one."""

    identical: int = 0
    near_ties: int = 0
    different: int = 0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.identical + other.identical,
            self.near_ties + other.near_ties,
            self.different + other.different,
        )

    def __str__(self) -> str:
        rows = self.identical + self.near_ties + self.different
        parts = [f"{self.identical} of {rows}"]
        parts += [f"{self.near_ties} near-tie{'s' * (self.near_ties > 1)}"] * bool(self.near_ties)
        parts += [f"{self.different} different"] * bool(self.different)
        return ", ".join(parts)


def compare_exactly(texts: Sequence[Text], references: Sequence[Text]) -> Verdict:
    """The verdict where no difference is forgiven."""
    same = sum(text == reference for text, reference in zip(texts, references, strict=True))
    return Verdict(identical=same, different=len(texts) - same)


@dataclass(frozen=True)
class Coupling:
    """How coupled text is drawn: the seed that was set before the call, and the temperature."""

    seed: int
    temperature: float

    def noise(self, prompt: Text, tokens: int, vocabulary: int) -> Tensor:
        """The noise [n, V] that decided the tokens after `prompt`, in units of logits."""
        generator = torch.Generator().manual_seed(self.seed)
        seed = int(torch.randint(0, 2**62, (1,), generator=generator))
        positions = torch.arange(len(prompt), len(prompt) + tokens)[None]
        keys = position_keys(seed, request_keys([list(prompt)]), positions)
        return self.temperature * gumbel(keys, vocabulary)[0]


@torch.inference_mode()
def full_pass(model: Any, prompt: Text, text: Text) -> Tensor:
    """The model's logits [n, V] in fp32 for each of the n tokens of `text`, in one pass without a cache."""
    ids = torch.tensor([prompt + text], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float()


@torch.inference_mode()
def stepwise_pass(model: Any, prompt: Text, text: Text) -> Tensor:
    """The same logits [n, V] as generate computes them: the prompt in one pass, then token by token."""
    output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=True)
    rows = [output.logits[0, -1]]
    for token in text[:-1]:
        step = torch.tensor([[token]], device=model.device)
        output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
        rows.append(output.logits[0, -1])
    return torch.stack(rows).float()


def gap_noise(one: Tensor, other: Tensor) -> float:
    """The most that rounding moved the gap between the two likeliest tokens.

    Args:
        one, other: logits [n, V] of the same text, computed in two ways.
    """
    top = one.topk(2, dim=-1).indices
    gaps = [logits.gather(-1, top).diff(dim=-1) for logits in (one, other)]
    return float((gaps[0] - gaps[1]).abs().max())


def last_bit(logits: Tensor, dtype: torch.dtype) -> float:
    """The step from the largest of these logits to the next number of `dtype`: nothing finer was computed.

    Args:
        logits: [n, V], in fp32.
    """
    exponent = torch.frexp(logits.abs().max()).exponent - 1
    return float(torch.ldexp(torch.tensor(torch.finfo(dtype).eps), exponent.cpu()))


class Referee:
    """Compares greedy texts with a reference; measures the model's rounding noise when it first needs it.

    Args:
        model: the model itself, not a wrapped one.
        prompts: the prompts of the run, without padding.
        references: the reference's text for every prompt.
        coupling: how the texts were drawn, None for greedy ones.
        sample: prompts that the noise is measured on, spread over the run.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Text],
        references: Sequence[Text],
        coupling: Coupling | None = None,
        sample: int = 8,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._references = references
        self._coupling = coupling
        self._sample = sample
        self._noise: float | None = None

    @property
    def noise(self) -> float:
        """Largest change of a top-2 gap between a full and a stepwise pass, in logits, and at least the last
        bit of one: a short text may hold no gap that moved. 0 in fp32 and fp64."""
        if self._noise is None:
            self._noise = 0.0
            if self._model.dtype in (torch.bfloat16, torch.float16):
                every = max(1, len(self._prompts) // self._sample)
                self._noise = max(map(self._noise_of, range(0, len(self._prompts), every)))
        return self._noise

    @property
    def measured_noise(self) -> float | None:
        """The noise, or None when no text differed and nothing had to be measured."""
        return self._noise

    def judge(self, texts: Sequence[Text]) -> Verdict:
        """The verdict on one text per prompt."""
        verdicts = [self._judge_row(index, text) for index, text in enumerate(texts)]
        return sum(verdicts, Verdict())

    def _noise_of(self, index: int) -> float:
        prompt, text = self._prompts[index], self._references[index]
        whole = full_pass(self._model, prompt, text)
        return max(
            gap_noise(stepwise_pass(self._model, prompt, text), whole), last_bit(whole, self._model.dtype)
        )

    def _judge_row(self, index: int, text: Text) -> Verdict:
        reference = self._references[index]
        if text == reference:
            return Verdict(identical=1)
        if len(text) != len(reference) or not self.noise:
            return Verdict(different=1)
        logits = full_pass(self._model, self._prompts[index], text)
        if self._coupling is not None:
            noise = self._coupling.noise(self._prompts[index], *logits.shape)
            logits = logits + noise.to(logits.device)
        chosen = logits.gather(-1, torch.tensor(text, device=logits.device)[:, None])[:, 0]
        margin = float((logits.max(dim=-1).values - chosen).max())
        return Verdict(near_ties=1) if margin <= self.noise else Verdict(different=1)
