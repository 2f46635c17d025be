"""The engine itself, run with a drafter and a pacer of the tuner's: recording, timing, fixed settings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from selfspec.benchmarking.prompts import left_padded
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.generation import decode
from selfspec.pacing import Pacer
from selfspec.speculation import Speculation
from selfspec.stats import Stats


def run_engine(
    model: Any,
    prompts: Sequence[Sequence[int]],
    drafter: Drafter,
    pacer: Pacer,
    *,
    seed: int = 0,
    deterministic: bool = True,
    **arguments: Any,
) -> Stats:
    """One call of the model's generate, drafted and paced so; torch's generators stay as they are.

    Args:
        prompts: token ids, one row for each.
        seed: as for `torch.manual_seed` before the call, when sampling.
        arguments: of generate.
    """
    arranged = _Arranged(drafter, pacer, deterministic)
    pad = getattr(model.generation_config, "pad_token_id", None)
    pad = 0 if pad is None else int(pad)  # any will do: rows are kept without padding
    inputs = {**left_padded(prompts, pad, model.device), "pad_token_id": pad, **arguments}
    with torch.random.fork_rng(devices=[]):
        # The engine draws its seed on the CPU; torch.manual_seed would set every GPU's generator as well.
        torch.default_generator.manual_seed(seed)
        type(model).generate(model, custom_generate=functools.partial(decode, arranged), **inputs)
    return arranged.stats


class _Arranged(Speculation):
    """One drafter and one pacer, whatever the call."""

    def __init__(self, drafter: Drafter, pacer: Pacer, deterministic: bool) -> None:
        super().__init__(SpeculationConfig(deterministic=deterministic))
        self._how = drafter, pacer

    def strategy(self, *_: Any) -> tuple[Drafter, Pacer, Stats, None]:
        return *self._how, Stats(), None
