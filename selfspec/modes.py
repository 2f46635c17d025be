"""How tokens are chosen and drafts accepted: greedy, coupled or rejection, picked before the loop starts."""

from typing import Protocol

import torch
from torch import Tensor

from selfspec.acceptance import accept_in_tree, accept_matching, accept_rejection
from selfspec.round import Draft, Verdict
from selfspec.sampling import gumbel, position_keys, uniform

_NOISE_BUDGET = 1 << 18
"""Elements of noise made in one go: some positions ahead, lest overhead binds small vocabularies."""


class Mode(Protocol):
    """One way to turn scores into tokens, the same for draft and target."""

    matching: bool
    """Whether a draft token stands if it is the target's own choice: drafts may then be chosen in any way."""

    def open(self, positions: Tensor) -> None:
        """A round begins: positions [B, depth+1] are those of the tokens that it may commit."""

    def candidates(self, scores: Tensor, depth: int, count: int) -> Tensor:
        """The likeliest tokens [B, w, count], best first, from a draft's processed scores [B, w, V]."""

    def noisy(self, scores: Tensor, depth: int) -> Tensor:
        """Processed scores [B, w, V] with the noise that decides at `depth`."""

    def accept(self, draft: Draft, scores: Tensor) -> Verdict:
        """What stands of a draft, from the target's processed scores [B, n+1, V]."""

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""


class Greedy:
    """The target's argmax: the case of no noise."""

    matching = True

    def open(self, positions: Tensor) -> None:
        pass

    def candidates(self, scores: Tensor, depth: int, count: int) -> Tensor:
        return _likeliest(scores, count)

    def noisy(self, scores: Tensor, depth: int) -> Tensor:
        return scores

    def accept(self, draft: Draft, scores: Tensor) -> Verdict:
        return _matching(draft, _argmax(scores))

    def keep(self, rows: Tensor) -> None:
        pass


class Coupled:
    """The token at position t is argmax_v(log p_t(v) + g_t(v)), with noise keyed by (seed, request, t, v).

    The Gumbel-max trick with the noise shared by draft and target: acceptance is at least (1-d)/(1+d), d
    the total variation distance of the two (Daliri et al. 2024, theorem 1), and the text depends on the
    seed alone.
    """

    matching = True

    def __init__(self, seed: int, requests: Tensor, vocab_size: int) -> None:
        self.seed = seed
        self.requests = requests
        self._vocab = vocab_size
        self._first = torch.zeros(len(requests), dtype=torch.int64, device=requests.device)
        self._block = torch.empty(len(requests), 0, vocab_size, device=requests.device)
        self._noise = self._block

    def open(self, positions: Tensor) -> None:
        count = positions.shape[1]
        column = positions[:, 0] - self._first
        # Rounds come in order, but for those that read a text backwards.
        if int(column.min()) < 0 or int(column.max()) + count > self._block.shape[1]:
            ahead = max(count, _NOISE_BUDGET // (len(positions) * self._vocab))
            steps = torch.arange(ahead, device=positions.device)
            self._first = positions[:, 0].clone()
            keys = position_keys(self.seed, self.requests, self._first[:, None] + steps)
            self._block = gumbel(keys, self._vocab)
            column = column.zero_()
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        self._noise = self._block[rows, column[:, None] + torch.arange(count, device=positions.device)]

    def candidates(self, scores: Tensor, depth: int, count: int) -> Tensor:
        return _likeliest(self.noisy(scores, depth), count)

    def noisy(self, scores: Tensor, depth: int) -> Tensor:
        return scores + self._noise[:, depth : depth + 1]

    def accept(self, draft: Draft, scores: Tensor) -> Verdict:
        # Branches share the noise of their depth: it belongs to the position, whatever stands there.
        noise = self._noise if draft.tree.is_chain else self._noise[:, list(draft.tree.depths)]
        return _matching(draft, _argmax(scores + noise[:, : scores.shape[1]]))

    def keep(self, rows: Tensor) -> None:
        self.requests, self._first, self._block = self.requests[rows], self._first[rows], self._block[rows]


class Rejection:
    """Speculative sampling with its own draws for every round: the highest acceptance a chain can have."""

    matching = False
    _DRAFT, _ACCEPT, _NEXT = 1, 2, 3

    def __init__(self, seed: int, requests: Tensor, vocab_size: int) -> None:
        self._seed = seed
        self._requests = requests
        self._vocab = vocab_size
        self._round = 0
        self._positions = torch.empty(0, dtype=torch.int64)
        self._q: list[Tensor] = []

    def open(self, positions: Tensor) -> None:
        # A position may be drafted again in a later round: its draws must be new, hence the round in the key.
        self._round += 1
        self._positions = positions + (self._round << 32)
        self._q = []

    def candidates(self, scores: Tensor, depth: int, count: int) -> Tensor:
        self._q.append(scores[:, 0].softmax(dim=-1))
        keys = position_keys(self._seed, self._requests, self._positions[:, depth : depth + 1], self._DRAFT)
        return (scores + gumbel(keys, self._vocab)).argmax(dim=-1, keepdim=True)

    def noisy(self, scores: Tensor, depth: int) -> Tensor:
        return scores

    def accept(self, draft: Draft, scores: Tensor) -> Verdict:
        _argmax(scores)
        p = scores.softmax(dim=-1)
        q = self._drafted_from(draft, p)
        positions = self._positions[:, : draft.tokens.shape[1]]
        uniforms = uniform(position_keys(self._seed, self._requests, positions, self._ACCEPT), 1)[..., 0]
        keys = position_keys(self._seed, self._requests, self._positions[:, :1], self._NEXT)
        return accept_rejection(draft.tokens, q, p, uniforms, gumbel(keys, self._vocab)[:, 0])

    def _drafted_from(self, draft: Draft, p: Tensor) -> Tensor:
        """q [B, K, V]: what the draft drew from; a token that was found is drawn from itself alone."""
        count = draft.tokens.shape[1]
        if draft.given:
            return torch.nn.functional.one_hot(draft.tokens.clamp(min=0), p.shape[2]).to(p.dtype)
        return torch.stack(self._q[:count], dim=1) if count else torch.zeros_like(p[:, :0])

    def keep(self, rows: Tensor) -> None:
        self._requests = self._requests[rows]


def _matching(draft: Draft, choices: Tensor) -> Verdict:
    if draft.tree.is_chain:
        return accept_matching(draft.tokens, choices)
    return accept_in_tree(draft.tokens, choices, draft.tree)


def _likeliest(scores: Tensor, count: int) -> Tensor:
    if count == 1:  # several times cheaper than topk
        return scores.argmax(dim=-1, keepdim=True)
    return scores.topk(count, dim=-1).indices


def _argmax(scores: Tensor) -> Tensor:
    """Argmax over the vocabulary [B, m, V] -> [B, m].

    Raises:
        ValueError: the winning score is NaN (from the model's weights or a logits processor).
    """
    choices = scores.argmax(dim=-1)
    if scores.gather(-1, choices[..., None]).isnan().any():
        raise not_a_number()
    return choices


def not_a_number() -> ValueError:
    """What is raised where the winning score is NaN."""
    return ValueError(
        "the scores hold NaN after the logits processors: check the custom processors of this call, "
        "then the model's weights"
    )
