"""A whole round in static tensors: draft, verify, accept, commit, and no value that the host would wait for.

Run as it is, or captured once and replayed (`selfspec.device.graphs`): the same launches on the same buffers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.exits import fused_head
from layer_skip.span import Span
from selfspec.cache import KVCache
from selfspec.device.buffers import Buffers, Signature
from selfspec.device.window import DeviceWindow
from selfspec.round import NOTHING, Arm
from selfspec.shapes import ShapePlan
from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Accepted
from selfspec_kernels.commit import commit
from selfspec_kernels.exit_head import exit_head

_FUSED_ROWS = 4
"""Up to this many rows of a batch the head's product and the choice are one: beyond, its weights would be
read again for every 16 tokens."""


def bucket(count: int) -> int:
    """`count` rounded up to a power of two."""
    return 1 << max(count - 1, 0).bit_length()


@dataclass(frozen=True)
class Kind:
    """Which round: together with the buffers, all that decides what is launched."""

    arm: Arm | None
    """None: the candidates are found tokens, see `Buffers.found`."""
    length: int
    """K"""
    signature: Signature

    @property
    def family(self) -> tuple[object, ...]:
        """Rounds that need the same kernels: some are made for widths up to a power of two."""
        return bucket(self.length + 1), self.arm and self.arm.low_bit, self.signature


class Exit:
    """Norm, head and the choice of a token, of the model or of a view.

    Args:
        decoder: whose exit.
        fused: whether logits stay out of memory, where the head allows it.
    """

    def __init__(self, decoder: LayeredDecoder, fused: bool) -> None:
        self.logits = decoder.logits
        self._head = fused_head(decoder) if fused else None

    def choose(self, hidden: Tensor, span: Span, buffers: Buffers, signature: Signature) -> Tensor:
        """The tokens [B] that follow one column of hidden states [B, 1, D]."""
        choices = self._choices(hidden, span, buffers, signature)
        if choices is not None:
            return choices[0][:, 0]
        nothing = buffers.found[:, :0]
        noise = buffers.noise(signature, span.positions + 1)
        sampling = buffers.sampling(signature)
        return accept(self.logits(hidden), nothing, sampling=sampling, noise=noise).tokens[:, 0]

    def accept(
        self, hidden: Tensor, span: Span, draft: Tensor, buffers: Buffers, signature: Signature
    ) -> Accepted:
        """What stands of a chain of tokens [B, K], from hidden states [B, w, D] behind all layers, w > K.

        Those past K pad the head's product as far as those of the layers, and are not looked at.
        """
        count = draft.shape[1] + 1
        span = span.narrow(0, count)
        choices = self._choices(hidden[:, :count], span, buffers, signature)
        if choices is not None:
            return accept_choices(*choices, draft)
        noise = buffers.noise(signature, span.positions + 1)
        logits = self.logits(hidden)[:, :count]
        return accept(logits, draft, sampling=buffers.sampling(signature), noise=noise)

    def _choices(
        self, hidden: Tensor, span: Span, buffers: Buffers, signature: Signature
    ) -> tuple[Tensor, Tensor] | None:
        """Tokens and log-probabilities [B, m]; None where a filter, or the head, asks for the logits."""
        sampling = buffers.sampling(signature)
        if self._head is None or sampling.filters:
            return None
        noise = buffers.noise(signature, span.positions + 1)
        choices = exit_head(hidden, self._head, temperature=sampling.temperature, noise=noise)
        return choices.tokens[..., 0], choices.logprobs[..., 0]


class StaticRound:
    """The round of one batch size and capacity.

    Args:
        target: the model, lean where its layers allow it.
        view: its view in few bits, or None.
        cache: K/V, of fixed capacity.
        buffers: everything else that a round reads or writes.
        shapes: how far passes are padded, so that rows do not depend on how many tokens are verified.
    """

    def __init__(
        self,
        target: LayeredDecoder,
        view: LayeredDecoder | None,
        cache: KVCache,
        buffers: Buffers,
        shapes: ShapePlan,
    ) -> None:
        self.target, self.view, self.cache, self.buffers, self.shapes = target, view, cache, buffers, shapes
        few = cache.rows <= _FUSED_ROWS
        self._exit = Exit(target, few)
        self._view_exit = None if view is None else Exit(view, few)

    @torch.inference_mode()
    def __call__(self, kind: Kind) -> None:
        """Draft, verify, accept, commit; the outcome is on its way to the host."""
        buffers, length = self.buffers, kind.length
        rows = buffers.rows
        last = rows.sequences.gather(1, rows.lengths[:, None] - 1)
        spare = max(self._width(1), self._width(length + 1) - length)
        span = self.target.span_on_device(rows.lengths - 1, length + spare)
        if kind.arm is None or not length:
            draft, hidden, exact = self._found(last, span, length)
        elif kind.arm.low_bit:
            draft, hidden, exact = self._by_view(last, span, kind, kind.arm.exit_layer)
        else:
            draft, hidden, exact = self._by_early_exit(last, span, kind, kind.arm.exit_layer)
        hidden = self._verify(hidden, span, exact)
        verdict = self._exit.accept(hidden, span, draft, buffers, kind.signature)
        drafted = (draft != NOTHING).sum(dim=1)
        commit(rows, verdict, drafted, drafted)
        buffers.report(draft, verdict)

    def _found(self, last: Tensor, span: Span, length: int) -> tuple[Tensor, Tensor, int]:
        """Tokens that the host looked up: nothing is run for them."""
        draft = self.buffers.found[:, :length]
        nodes = torch.cat([last, draft.clamp(min=0)], dim=1)
        return draft, self.target.embed(nodes, span.narrow(0, length + 1)), 0

    def _by_view(self, last: Tensor, span: Span, kind: Kind, exit_layer: int) -> tuple[Tensor, Tensor, int]:
        """A chain by the view; its K/V are scratch, and verification begins at layer 0."""
        if self.view is None or self._view_exit is None:
            raise RuntimeError("a round by a low-bit view, where none was made")
        tokens = [last]
        for k in range(kind.length):
            place = span.narrow(k, 1)
            hidden = self._run(self.view, self.view.embed(tokens[-1], place), 0, exit_layer, place)
            tokens.append(self._view_exit.choose(hidden, place, self.buffers, kind.signature)[:, None])
        nodes = torch.cat(tokens, dim=1)
        return nodes[:, 1:], self.target.embed(nodes, span.narrow(0, kind.length + 1)), 0

    def _by_early_exit(
        self, last: Tensor, span: Span, kind: Kind, exit_layer: int
    ) -> tuple[Tensor, Tensor, int]:
        """A chain by the model's own first layers, which verification does not run again."""
        token, tokens, states = last, [], []
        for k in range(kind.length + 1):
            place = span.narrow(k, self._width(1))
            hidden = self.target.embed(token.expand(-1, place.width), place)
            states.append(self._run(self.target, hidden, 0, exit_layer, place)[:, :1])
            if k < kind.length:
                place = place.narrow(0, 1)
                token = self._exit.choose(states[-1], place, self.buffers, kind.signature)[:, None]
                tokens.append(token)
        return torch.cat(tokens, dim=1), torch.cat(states, dim=1), exit_layer

    def _verify(self, hidden: Tensor, span: Span, exact: int) -> Tensor:
        """Layers [exact, L) on hidden states [B, K+1, D] in one pass, padded to [B, w, D]."""
        count = hidden.shape[1]
        width = self._width(count)
        if width > count:
            hidden = torch.cat([hidden, hidden[:, -1:].expand(-1, width - count, -1)], dim=1)
        return self._run(self.target, hidden, exact, self.target.n_layers, span.narrow(0, width))

    def _run(self, decoder: LayeredDecoder, hidden: Tensor, first: int, last: int, span: Span) -> Tensor:
        return decoder.run(hidden, first, last, span, DeviceWindow(self.cache, span))

    def _width(self, count: int) -> int:
        return self.shapes.width(self.cache.rows, count)
