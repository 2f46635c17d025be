"""Draft with the target's own first layers and its LM head; nothing of it is run again at verification."""

import torch
from torch import Tensor

from selfspec.call import Call
from selfspec.drafting.stopping import StopRule
from selfspec.round import Draft, Round


class EarlyExit:
    """Layers [0, E), then final norm and LM head (LayerSkip, Elhoushi et al. 2024, section 4.3).

    Args:
        exit_layer: E.
        confidence_threshold: a row stops drafting after a token whose probability under the draft is below
            this. The token itself is still verified, so the text is unbiased in every mode.
        stop: a rule of another kind, instead of the threshold.
    """

    def __init__(
        self, exit_layer: int, confidence_threshold: float = 0.0, stop: StopRule | None = None
    ) -> None:
        self.exit_layer = exit_layer
        self.stop = StopRule((confidence_threshold,)) if confidence_threshold and stop is None else stop

    def draft(self, call: Call, round_: Round) -> Draft:
        """Draft up to `round_.length` tokens, keeping the hidden state of each at the exit layer."""
        token = call.rows.last_tokens()
        drafted = torch.full_like(token, round_.length)
        tokens: list[Tensor] = []
        hidden = [self._early_layers(call, round_, token, 0)]
        worth: Tensor | None = None
        while len(tokens) < round_.length:
            step = len(tokens)
            logits = call.decoder.logits(hidden[-1])[:, :1]
            scores = call.processors(logits, call.rows, step)[:, 0]
            token = call.mode.choose(scores, step)
            tokens.append(token)
            call.processors.note(token, call.rows, step)
            hidden.append(self._early_layers(call, round_, token, step + 1))
            if self.stop is not None:
                worth = self.stop.worth(worth, confidence_of(token, scores), step)
                stopped = self.stop.stops(worth, step) & (drafted == round_.length)
                drafted = torch.where(stopped, step + 1, drafted)
                if bool((drafted <= step + 1).all()):
                    break
        stacked = torch.stack(tokens, dim=1) if tokens else token.new_empty(len(token), 0)
        return Draft(
            tokens=stacked,
            drafted=drafted.clamp(max=len(tokens)),
            hidden=torch.cat([states[:, :1] for states in hidden], dim=1),
            exact_layers=self.exit_layer,
        )

    def _early_layers(self, call: Call, round_: Round, token: Tensor, step: int) -> Tensor:
        """Hidden states [B, w, D] of token [B] after E layers: column 0 counts, the others pad the shape.

        The spare columns repeat the token one slot further on; later steps overwrite what they store.
        """
        span = round_.span.narrow(step, round_.step_width)
        hidden = call.decoder.embed(token[:, None].expand(-1, span.width), span)
        return call.decoder.run(hidden, 0, self.exit_layer, span, call.cache.window(span))


def confidence_of(token: Tensor, scores: Tensor) -> Tensor:
    """The draft's own probability [B] of token [B] under processed scores [B, V]."""
    return scores.softmax(dim=-1).gather(1, token[:, None])[:, 0]
