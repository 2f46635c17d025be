"""What "lossless" means, as functions that return an answer: tests also ask them about broken engines."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._subclasses import FakeTensor
from transformers import LogitsProcessorList

import selfspec

LEAST_P = 1e-4
"""Seeds are fixed: a test passes always or never. A right engine falls below this once in 10,000 tests."""

EVERYTHING = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
"""Options of generate under which all of its results come back."""


def own_generate(model: Any, *arguments: Any, **keywords: Any) -> Any:
    """The model's own generate, wrapped or not."""
    return type(model).generate(model, *arguments, **keywords)


def text(model: Any, *arguments: Any, **keywords: Any) -> Tensor:
    """What the model generates under a fixed seed: greedily, or sampled the same way every time."""
    torch.manual_seed(keywords.pop("seed", 0))
    out: Tensor = model.generate(*arguments, **keywords)
    return out


def texts_of(
    model: Any, settings: Sequence[dict[str, Any]], **keywords: Any
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The text under each of several settings of `selfspec.wrap`."""
    for setting in settings:
        selfspec.wrap(model, **setting)
        yield setting, text(model, **keywords)
        selfspec.unwrap(model)


def p_value(counts: Sequence[float] | np.ndarray, probabilities: Sequence[float] | np.ndarray) -> float:
    """Chi-square p-value of counts against a distribution; cells of expectation below 5 are pooled."""
    observed = np.asarray(counts, dtype=np.float64).ravel()
    share = np.asarray(probabilities, dtype=np.float64).ravel()
    if observed[share == 0].any():
        return 0.0
    expected = share / share.sum() * observed.sum()
    large = expected >= 5
    observed = np.append(observed[large], observed[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    if expected[-1] < 5:  # the pool itself is too small: to the smallest cell with it
        smallest = expected[:-1].argmin()
        observed[smallest] += observed[-1]
        expected[smallest] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    return float(stats.chisquare(observed, expected).pvalue) if len(expected) > 1 else 1.0


def chain_p_values(texts: Tensor, joint: Tensor) -> list[float]:
    """One p-value per position: the token there given those before it.

    Args:
        texts: [n, T] generated tokens.
        joint: exact probabilities of all texts, [V, ..., V] with T axes.
    """
    vocab, length = joint.shape[0], joint.dim()
    values = []
    for position in range(length):
        prefixes = _codes(texts[:, :position], vocab)
        exact = joint.reshape(vocab ** (position + 1), -1).sum(dim=1).reshape(-1, vocab).double().numpy()
        statistic, freedom = 0.0, 0
        for prefix in prefixes.unique().tolist():
            chosen = texts[prefixes == prefix, position]
            observed = torch.bincount(chosen, minlength=vocab).double().numpy()
            share = exact[prefix] / exact[prefix].sum()
            if observed[share == 0].any():
                statistic = float("inf")
                continue
            expected = share * observed.sum()
            cells = expected >= 5
            pairs = [*zip(observed[cells], expected[cells], strict=True)]
            if expected[~cells].sum() >= 5:
                pairs.append((observed[~cells].sum(), expected[~cells].sum()))
            if len(pairs) > 1:
                statistic += sum((o - e) ** 2 / e for o, e in pairs)
                # What was left out is free to vary, so the cells do not have to add up.
                freedom += len(pairs) - (sum(e for _, e in pairs) > expected.sum() - 1e-6)
        values.append(float(stats.chi2.sf(statistic, freedom)) if freedom else 1.0)
    return values


@torch.no_grad()
def exact_distribution(model: Any, prompt: Tensor, length: int, processors: Sequence[Any] = ()) -> Tensor:
    """Probabilities [V, ..., V] of all texts of `length` tokens after prompt [P], by the model's forward."""
    joint = torch.ones(())
    texts = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(length):
        ids = torch.cat([prompt.expand(len(texts), -1), texts], dim=1)
        scores = LogitsProcessorList(processors)(ids, model(ids).logits[:, -1].float())
        probabilities = scores.double().softmax(dim=-1)
        vocab = probabilities.shape[-1]
        joint = (joint.reshape(-1, 1) * probabilities).reshape(*joint.shape, vocab)
        texts = torch.cat(
            [texts.repeat_interleave(vocab, dim=0), torch.arange(vocab).repeat(len(texts))[:, None]], dim=1
        )
    return joint


def sampled_texts(model: Any, prompt: Tensor, length: int, rows: int, calls: int, **keywords: Any) -> Tensor:
    """[rows * calls, length] tokens sampled after one prompt [P], under seeds 0, 1, ..."""
    drawn = []
    for seed in range(calls):
        torch.manual_seed(seed)
        ids = prompt.expand(rows, -1)
        out = model.generate(ids, do_sample=True, max_new_tokens=length, top_k=0, **keywords)
        drawn.append(out[:, len(prompt) :])
    return torch.cat(drawn)


def _codes(tokens: Tensor, vocab: int) -> Tensor:
    """One number per row of tokens [n, k], in the order of the axes of a joint distribution."""
    code = tokens.new_zeros(len(tokens))
    for column in tokens.T:
        code = code * vocab + column
    return code


@contextmanager
def nothing_changed(model: Any, **keywords: Any) -> Iterator[None]:
    """The model generates after the block what it generated before it."""
    before = text(model, **keywords)
    yield
    assert torch.equal(text(model, **keywords), before)


@contextmanager
def exactly_one_warning(naming: str) -> Iterator[None]:
    """One UserWarning from the block, and it names the option."""
    with pytest.warns(UserWarning, match="cannot be speculated") as caught:
        yield
    ours = [str(w.message) for w in caught if "cannot be speculated" in str(w.message)]
    assert len(ours) == 1
    assert naming in ours[0]


def common_tokens(model: Any, prompts: dict[str, Tensor], count: int, tokens: int = 24) -> list[int]:
    """The most frequent tokens of the model's own text."""
    out = own_generate(model, **prompts, max_new_tokens=tokens)[:, -tokens:]
    values, counts = out.unique(return_counts=True)
    return values[counts.argsort(descending=True)][:count].tolist()


def roll(ids: Tensor, scores: Tensor) -> Tensor:
    """A logits processor that might be anything."""
    return scores.roll(1, dims=-1)


class NewTensors:
    """Tensors that live now and did not when this was made, which keeps those from going away."""

    def __init__(self) -> None:
        self._before = _living_tensors()

    @property
    def count(self) -> int:
        return len(self._new())

    @property
    def bytes(self) -> int:
        """Of their storages, but for those that older tensors share."""
        old = {tensor.untyped_storage().data_ptr() for tensor in self._before}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._new()}
        return sum(size for pointer, size in storages.items() if pointer not in old)

    def _new(self) -> list[Tensor]:
        old = {id(tensor) for tensor in self._before}
        return [tensor for tensor in _living_tensors() if id(tensor) not in old]


def _living_tensors() -> list[Tensor]:
    """Those that hold memory: what torch.compile keeps of other tests are none."""
    gc.collect()
    kinds = [(type(thing), thing) for thing in gc.get_objects()]
    return [t for kind, t in kinds if issubclass(kind, Tensor) and not issubclass(kind, FakeTensor)]
