"""A wrapped model may change: moved, cast, pruned, patched, hooked. What was checked is checked again."""

from typing import Any

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.self_check import check_decoder, outer_modules

State = tuple[Any, ...]


class ModelCheck:
    """The self-check, done once for every state in which the model is seen."""

    def __init__(self) -> None:
        self._state: State | None = None

    def is_due(self, model: Any, decoder: LayeredDecoder) -> bool:
        """Whether the model is not what was checked last."""
        return _state_of(model, decoder) != self._state

    def check(self, model: Any, decoder: LayeredDecoder) -> None:
        """Compare with the model's own forward.

        Raises:
            UnsupportedModelError: it does not compute what its layers do, or no longer; the message says why.
        """
        check_decoder(model, decoder)
        self._state = _state_of(model, decoder)


def _state_of(model: Any, decoder: LayeredDecoder) -> State:
    """What decides whether layers run one by one give the model's own logits; adapters do not count."""
    return (
        model.config._attn_implementation,
        decoder.dtype,
        decoder.device,
        decoder.cache_slots,
        decoder.vocab_size,
        *(_handling(module) for module in outer_modules(model, decoder)),
    )


def _handling(module: torch.nn.Module) -> State:
    """What is done around the forward of a module that the engine does not call, hooks by their numbers."""
    return "forward" in vars(module), *module._forward_hooks, *module._forward_pre_hooks
