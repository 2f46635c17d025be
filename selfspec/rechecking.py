"""A wrapped model may change: moved, cast, pruned, patched. What was checked is then checked again."""

from typing import Any

from layer_skip.decoder import LayeredDecoder
from layer_skip.self_check import check_decoder

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
        "forward" in vars(model),
        "forward" in vars(decoder.base),
    )
