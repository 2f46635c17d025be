"""LayeredDecoder: embed, run layers [a, b), read logits, over the model's own modules."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from layer_skip.families import FAMILIES, UnsupportedModelError
from layer_skip.layout import Layout
from layer_skip.onednn_linear import with_fast_products
from layer_skip.recognition import family_of
from layer_skip.shells import replaced, with_our_attention
from layer_skip.span import Span


class LayeredDecoder:
    """A causal language model seen as embed -> layers -> exit head. Holds references only, never weights.

    Built in well under a millisecond a layer, so the engine makes one for every call: modules that were
    replaced in between (an adapter loaded, a layer swapped) are always the current ones.

    Args:
        model: a Hugging Face causal language model; see `layer_skip.families` for the families with a row.

    Raises:
        UnsupportedModelError: the model cannot exit early, or its parts are not where its row says.
    """

    def __init__(self, model: Any) -> None:
        family = self.family = family_of(model)
        self.config: Any = model.config
        try:
            base = self._base = attrgetter(family.base)(model)
            self._embed: Any = getattr(base, family.embed)
            self._embed_norm = getattr(base, family.embed_norm) if family.embed_norm else None
            self._norm: nn.Module | None = getattr(base, family.norm)
            self._head: nn.Module = model.get_output_embeddings()
            layers: list[nn.Module] = list(getattr(base, family.layers))
            needed = attrgetter(family.attention if family.own_attention else f"{family.attention}.config")
            for layer in layers:
                needed(layer)
            self._positions = getattr(base, family.position_embedding) if family.position_embedding else None
            rotary = getattr(base, family.rotary) if family.rotary else None
        except AttributeError as error:
            known = "calls itself" if family.model_type in FAMILIES else "has no row for"
            raise UnsupportedModelError(
                f"{type(model).__name__} {known} {family.model_type!r} but lacks a part: {error}"
            ) from error
        if self._head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no LM head: wrap one that has")
        if not family.own_attention:
            layers = [with_our_attention(layer, family.attention) for layer in layers]
        self._layers = [with_fast_products(layer) for layer in layers]
        self._head = with_fast_products(self._head)
        self._project_in: nn.Module | None = getattr(base, "project_in", None)
        self._project_out: nn.Module | None = getattr(base, "project_out", None)
        self._embed_multiplier = self._factor(family.embed_multiplier_field)
        self._input_divisor = self._factor(family.input_divisor_field)
        self._logit_multiplier = self._factor(family.logit_multiplier_field)
        self._logit_divisor = self._factor(family.logit_divisor_field)
        self._softcap = self._factor(family.logit_softcap_field)
        self.device: torch.device = next(iter(self._embed.parameters())).device
        self.dtype: torch.dtype = next(p.dtype for p in self._embed.parameters())
        self._layout = Layout(family, self.config, base, rotary, len(layers), self.dtype)

    def _factor(self, field: str | None) -> float | None:
        return None if field is None else getattr(self.config, field, None)

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def base(self) -> Any:
        """The model's own part that embeds and runs the layers."""
        return self._base

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, as shells that share the parameters of the model's and most of its modules."""
        return self._layers

    @property
    def head(self) -> nn.Module:
        """The LM head, without the norm in front of it."""
        return self._head

    def with_modules(self, table: Mapping[nn.Module, nn.Module], n_layers: int) -> "LayeredDecoder":
        """A decoder of layers [0, n_layers) with the modules in `table` replaced; the rest is shared."""
        other = copy.copy(self)
        other._layers = [replaced(layer, table) for layer in self._layers[:n_layers]]
        other._layout = self._layout.of_first(n_layers)
        other._head = replaced(self._head, table)
        return other

    def with_parts(
        self, layers: Sequence[nn.Module], norm: nn.Module | None, head: nn.Module
    ) -> "LayeredDecoder":
        """A decoder with other layers, final norm and head, which compute the same; the rest is shared."""
        other = copy.copy(self)
        other._layers, other._norm, other._head = list(layers), norm, head
        return other

    @property
    def norm(self) -> nn.Module | None:
        """The norm in front of the LM head."""
        return self._norm

    @property
    def cache_slots(self) -> list[int]:
        """The layer index under which each layer keeps its K/V."""
        attentions = (getattr(layer, self.family.attention) for layer in self._layers)
        return [getattr(attention, "layer_idx", i) for i, attention in enumerate(attentions)]

    @property
    def takes_trees(self) -> bool:
        """Whether candidates may share a position: not where rows share one table of biases (MPT)."""
        return self.family.alibi != "position_bias"

    @property
    def vocab_size(self) -> int:
        return int(self.config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """Most positions that the model was made for, None where it sets no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def has_learned_positions(self) -> bool:
        """Whether a position past `max_positions` does not exist at all, rather than being untrained."""
        return self._positions is not None or self.family.position_table

    def products(self) -> Iterator[nn.Module]:
        """The modules whose matrices decide a token, in all layers, and the head.

        A matrix is a parameter of two dimensions or more, or where it is quantised a buffer of whole numbers.
        """
        for module in (*(m for layer in self._layers for m in layer.modules()), self._head):
            whole = (b for b in module._buffers.values() if b is not None and not b.is_floating_point())
            packed = any(b.dim() > 1 and b.dtype != torch.bool for b in whole)
            if packed or any(p is not None and p.dim() > 1 for p in module._parameters.values()):
                yield module

    def span(
        self, positions: Tensor, key_length: int, start: int | None, ancestors: Tensor | None = None
    ) -> Span:
        """Where tokens at `positions` [B, m] stand, over `key_length` cache slots: see `Layout.span`."""
        return self._layout.span(positions, key_length, start, ancestors)

    def span_on_device(self, first: Tensor, width: int) -> Span:
        """The same without masks, to be captured and replayed: see `Layout.span_on_device`."""
        return self._layout.span_on_device(first, width)

    @property
    def needs_masks(self) -> str:
        """Why its passes take masks made on the host: see `Layout.needs_masks`."""
        return self._layout.needs_masks

    @property
    def fixed_rope_length(self) -> int | None:
        """Tokens up to which rotary angles stay as they are: see `Layout.fixed_rope_length`."""
        return self._layout.fixed_rope_length

    def embed(self, tokens: Tensor, span: Span) -> Tensor:
        """Hidden states [B, m, D] in front of layer 0 for tokens [B, m]."""
        return self.place(self._embed(tokens), span)

    def place(self, hidden: Tensor, span: Span) -> Tensor:
        """The same for embeddings [B, m, D'] as a caller may pass them: scaled, normed, given positions."""
        if self._embed_multiplier is not None:
            hidden = hidden * self._embed_multiplier
        if self._embed_norm is not None:
            hidden = self._embed_norm(hidden)
        if self._project_in is not None:
            hidden = self._project_in(hidden)
        if self._positions is not None:
            # Read as a plain embedding: OPT's own module would derive positions from a padding mask.
            # Spare columns may stand past its end; what they compute is never read.
            rows = (span.positions + self.family.position_offset).clamp(max=len(self._positions.weight) - 1)
            hidden = hidden + nn.functional.embedding(rows, self._positions.weight)
        return hidden

    def run(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        span: Span,
        cache: object,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run layers [first, last) on hidden [B, m, D]; `cache` takes their K/V through `update`.

        `watch` is shown the states after every layer, with the number of layers that have run.
        """
        arguments = {"use_cache": True, self.family.cache_argument: cache, **span.arguments}
        if self.family.position_argument is not None:
            positions = span.positions
            if self.family.position_table:
                # Spare columns may stand past the table's end, as in `embed`.
                positions = positions.clamp(max=self.config.max_position_embeddings - 1)
            arguments[self.family.position_argument] = positions
        for index in range(first, last):
            output = self._layers[index](hidden, **self._layout.arguments(index, span), **arguments)
            hidden = output[0] if isinstance(output, tuple) else output
            if watch is not None:
                watch(index + 1, hidden)
        return hidden

    @property
    def plain_head(self) -> tuple[float, float | None] | None:
        """Scale and soft cap of the logits, where the head is a norm, one matrix and these; else None."""
        if self._project_out is not None or self._input_divisor is not None:
            return None
        divisor = self._logit_divisor or 1.0
        if math.frexp(divisor)[0] != 0.5:  # a product with its inverse would be rounded otherwise
            return None
        return (self._logit_multiplier or 1.0) / divisor, self._softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """The exit head: final norm, LM head and the family's scale or cap; hidden [B, m, D] -> [B, m, V].

        The final norm comes before the head at every exit (Elhoushi et al. 2024, section 4.1).
        """
        if self._norm is not None:
            hidden = self._norm(hidden)
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        if self._input_divisor is not None:
            hidden = hidden / self._input_divisor
        logits = self._head(hidden)
        if self._logit_multiplier is not None:
            logits = logits * self._logit_multiplier
        if self._logit_divisor is not None:
            logits = logits / self._logit_divisor
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits
