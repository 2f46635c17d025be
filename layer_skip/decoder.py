"""LayeredDecoder: embed, run layers [a, b), read logits, over the model's own modules."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from layer_skip.attention import ATTENTION
from layer_skip.families import UnsupportedModelError, family_of
from layer_skip.span import Span, causal_mask, tree_mask


class LayeredDecoder:
    """A causal language model seen as embed -> layers -> exit head. Holds references only, never weights.

    Built in well under a millisecond a layer, so the engine makes one for every call: modules that were
    replaced in between (an adapter loaded, a layer swapped) are always the current ones.

    Args:
        model: a Hugging Face causal language model of a family in `layer_skip.families`.

    Raises:
        UnsupportedModelError: the model has no row, or its parts are not where the row says.
    """

    def __init__(self, model: Any) -> None:
        self.family = family_of(model)
        self.config: Any = model.config
        try:
            base = attrgetter(self.family.base)(model)
            self._embed: Any = getattr(base, self.family.embed)
            self._norm: nn.Module | None = getattr(base, self.family.norm)
            self._head: nn.Module = model.get_output_embeddings()
            layers: Iterable[nn.Module] = getattr(base, self.family.layers)
            self._layers = [_with_our_attention(layer, self.family.attention) for layer in layers]
        except AttributeError as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} calls itself {self.family.model_type!r} but lacks a part: {error}"
            ) from error
        self._rotary: Any = getattr(base, self.family.rotary) if self.family.rotary else None
        self._positions = (
            getattr(base, self.family.position_embedding) if self.family.position_embedding else None
        )
        self._project_in: nn.Module | None = getattr(base, "project_in", None)
        self._project_out: nn.Module | None = getattr(base, "project_out", None)
        self._softcap: float | None = getattr(self.config, self.family.logit_softcap or "", None)
        self._windows = _layer_windows(self.config, len(self._layers))
        self.device: torch.device = next(iter(self._embed.parameters())).device
        self.dtype: torch.dtype = next(p.dtype for p in self._embed.parameters())

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, as shells that share every submodule with the model's."""
        return self._layers

    @property
    def head(self) -> nn.Module:
        """The LM head, without the norm in front of it."""
        return self._head

    def with_modules(self, table: Mapping[nn.Module, nn.Module], n_layers: int) -> "LayeredDecoder":
        """A decoder of layers [0, n_layers) with the modules in `table` replaced; the rest is shared."""
        other = copy.copy(self)
        other._layers = [_replaced(layer, table) for layer in self._layers[:n_layers]]
        other._windows = self._windows[:n_layers]
        other._head = _replaced(self._head, table)
        return other

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
        return self._positions is not None

    @property
    def fixed_rope_length(self) -> int | None:
        """Tokens up to which a position's rotary angles depend on nothing else, None where that is always so.

        Dynamic NTK scaling and LongRoPE turn every position further once a text is longer than this.
        """
        kind = getattr(self._rotary, "rope_type", None) or ""
        if kind == "longrope":
            return int(self.config.rope_parameters["original_max_position_embeddings"])
        return int(self._rotary.original_max_seq_len) if "dynamic" in kind else None

    def products(self) -> Iterator[nn.Module]:
        """The modules whose matrix products decide a token: those of the first layer, and the head."""
        for module in (*self._layers[0].modules(), self._head):
            weight: Any = getattr(module, "weight", None)
            if weight is not None and weight.dim() == 2:
                yield module

    def span(
        self, positions: Tensor, key_length: int, start: int | None, ancestors: Tensor | None = None
    ) -> Span:
        """Rotary angles and masks for tokens at `positions` [B, m] over `key_length` cache slots.

        `ancestors` [m, m] (bool) makes them candidates of a tree, see `tree_mask`; else they are consecutive.
        """
        rope = None
        if self._rotary is not None:
            like = torch.empty(0, dtype=self.dtype, device=positions.device)
            rope = self._rotary(like, positions)
        slots, masks = positions, {}
        for window in set(self._windows):
            if ancestors is None:
                masks[window] = causal_mask(positions, key_length, window, self.dtype)
            else:
                masks[window] = tree_mask(positions, key_length, window, self.dtype, ancestors)
        if ancestors is not None:
            slots = positions[:, :1] + torch.arange(positions.shape[1], device=positions.device)
        return Span(positions=positions, slots=slots, rope=rope, masks=masks, start=start)

    def embed(self, tokens: Tensor, span: Span) -> Tensor:
        """Hidden states [B, m, D] in front of layer 0 for tokens [B, m]."""
        hidden = self._embed(tokens)
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
        arguments = {
            "position_ids": span.positions,
            "position_embeddings": span.rope,
            "use_cache": True,
            self.family.cache_argument: cache,
        }
        if span.rope is None:
            del arguments["position_embeddings"]
        for index in range(first, last):
            output = self._layers[index](hidden, attention_mask=span.masks[self._windows[index]], **arguments)
            hidden = output[0] if isinstance(output, tuple) else output
            if watch is not None:
                watch(index + 1, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The exit head: final norm, LM head and the family's cap; hidden [B, m, D] -> [B, m, V].

        The final norm comes before the head at every exit (Elhoushi et al. 2024, section 4.1).
        """
        if self._norm is not None:
            hidden = self._norm(hidden)
        if self._project_out is not None:
            hidden = self._project_out(hidden)
        logits = self._head(hidden)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits


def _with_our_attention(layer: nn.Module, attention: str) -> nn.Module:
    """A shell of `layer` whose attention goes through `layer_skip.attention`; every submodule is shared.

    The model keeps its own attention setting: switching it on the model would change what `forward` does
    for everybody else, in the middle of their calls.
    """
    attention_shell = copy.copy(getattr(layer, attention))
    attention_shell.config = copy.copy(attention_shell.config)
    attention_shell.config._attn_implementation = ATTENTION
    shell = copy.copy(layer)
    shell._modules = {**layer._modules, attention: attention_shell}
    return shell


def _replaced(module: nn.Module, table: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`module` with its parts looked up in `table`; a shell where any was found, itself where none was."""
    if module in table:
        return table[module]
    parts = {name: part and _replaced(part, table) for name, part in module._modules.items()}
    if all(parts[name] is part for name, part in module._modules.items()):
        return module
    shell = copy.copy(module)
    shell._modules = parts
    return shell


def _layer_windows(config: Any, n_layers: int) -> list[int | None]:
    """Sliding window of every layer in tokens, None for full attention."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * n_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            f"layers of kind {sorted(unknown)} are not supported yet (full or sliding attention only)"
        )
    return [window if kind == "sliding_attention" else None for kind in kinds[:n_layers]]
