"""The engine itself, run with a drafter and a pacer of the tuner's: recording, timing, fixed settings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.lean import lean
from layer_skip.low_bit import LowBitView
from selfspec.benchmarking.prompts import left_padded
from selfspec.call import Drafter
from selfspec.config import SpeculationConfig
from selfspec.generation import decode
from selfspec.pacing import Pacer
from selfspec.shapes import ShapePlan, padding_on_device
from selfspec.speculation import Speculation
from selfspec.stats import Stats


class Engine:
    """Runs of a model's generate, as calls run: rounds that can run on a device alone do so.

    What calls of one wrapped model share, runs of one engine share: the view, and the graphs of rounds. The
    model's own wrapping, if any, is left as it is.

    Args:
        model: a Hugging Face causal language model, wrapped or not.
        deterministic: as in `SpeculationConfig`.
        view: what low-bit drafts read; None where there are none.
        graph_memory: as in `SpeculationConfig`: 0 launches everything from Python.
    """

    def __init__(
        self,
        model: Any,
        *,
        deterministic: bool = True,
        view: LowBitView | None = None,
        graph_memory: int | str = "2GiB",
    ) -> None:
        self.model = model
        self.view = view
        config = SpeculationConfig(deterministic=deterministic, graph_memory=graph_memory)
        self._arranged = _Arranged(config)
        self._arranged.recheck(model, LayeredDecoder(model))
        self._arranged.view = view

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        drafter: Drafter,
        pacer: Pacer,
        *,
        seed: int = 0,
        **arguments: Any,
    ) -> Stats:
        """One call of the model's generate, drafted and paced so; torch's generators stay as they are.

        Args:
            prompts: token ids, one row for each.
            seed: as for `torch.manual_seed` before the call, when sampling.
            arguments: of generate.
        """
        model, arranged = self.model, self._arranged
        arranged.how = drafter, pacer
        pad = getattr(model.generation_config, "pad_token_id", None)
        pad = 0 if pad is None else int(pad)  # any will do: rows are kept without padding
        inputs = {**left_padded(prompts, pad, model.device), "pad_token_id": pad, **arguments}
        with torch.random.fork_rng(devices=[]):
            # The engine draws its seed on the CPU; torch.manual_seed would set every GPU's generator as well.
            torch.default_generator.manual_seed(seed)
            type(model).generate(model, custom_generate=functools.partial(decode, arranged), **inputs)
        return arranged.stats

    @property
    def fixed(self) -> bool:
        """Whether rounds run on the device alone: they are chains as long as was decided beforehand."""
        return self._arranged.on_device(LayeredDecoder(self.model))

    @property
    def shapes(self) -> ShapePlan:
        """How far passes are padded."""
        decoder = LayeredDecoder(self.model)
        shapes = functools.partial(self._arranged.shapes, decoder)
        return padding_on_device(lean(decoder)[1], shapes) if self.fixed else shapes()


def run_engine(
    model: Any,
    prompts: Sequence[Sequence[int]],
    drafter: Drafter,
    pacer: Pacer,
    *,
    deterministic: bool = True,
    **arguments: Any,
) -> Stats:
    """One run of an engine of its own, see `Engine.run`."""
    return Engine(model, deterministic=deterministic).run(prompts, drafter, pacer, **arguments)


class _Arranged(Speculation):
    """One drafter and one pacer, whatever the call."""

    how: tuple[Drafter, Pacer]

    def strategy(self, *_: Any) -> tuple[Drafter, Pacer, Stats, None]:
        return *self.how, Stats(), None
