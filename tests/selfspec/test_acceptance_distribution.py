"""Tokens that rounds commit are drawn from the target, as often as the rules promise; broken rules show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import LEAST_P, p_value
from torch import Tensor

from selfspec.acceptance import accept_matching, accept_rejection
from selfspec.round import NOTHING, Verdict
from selfspec.sampling import gumbel, position_keys, uniform

Rule = Callable[..., Verdict]
VOCAB = 7
DRAWS = 100_000


def distributions(seed: int, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """p and q [V] of a target and a draft that resembles it, cut off as top-p does."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(VOCAB, generator=generator)
    logits = torch.stack([target, target + torch.randn(VOCAB, generator=generator)]) / temperature
    probabilities = logits.softmax(dim=-1)
    order = probabilities.sort(dim=-1, descending=True)
    kept = order.values.cumsum(dim=-1) - order.values < top_p
    probabilities = torch.zeros_like(probabilities).scatter(1, order.indices, order.values * kept)
    p, q = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return p, q


def noise(stream: int, seed: int = 0) -> Tensor:
    """Gumbel noise [DRAWS, 2, V] for two positions of every request."""
    keys = position_keys(seed, torch.arange(DRAWS), torch.arange(2).expand(DRAWS, 2), stream)
    return gumbel(keys, VOCAB)


def rejection_rounds(rule: Rule, p: Tensor, q: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """accepted [n] and tokens [n, 2] of rounds that draft one token; both positions have the same p."""
    drafts = (q.log() + noise(1, seed)[:, 0]).argmax(dim=-1)[:, None]
    keys = position_keys(seed, torch.arange(DRAWS), torch.zeros(DRAWS, 1, dtype=torch.int64), 2)
    uniforms = uniform(keys, 1)[..., 0]
    verdict = rule(drafts, q.expand(DRAWS, 1, -1), p.expand(DRAWS, 2, -1), uniforms, noise(3, seed)[:, 0])
    assert verdict.columns is None
    return verdict.accepted, verdict.tokens


def first_token_p_value(committed: Tensor, p: Tensor) -> float:
    return p_value(torch.bincount(committed[:, 0], minlength=VOCAB).numpy(), p.numpy())


def bonus_token_p_value(accepted: Tensor, committed: Tensor, p: Tensor) -> float:
    """The second token of the rounds that have one is from p again."""
    return p_value(torch.bincount(committed[accepted == 1, 1], minlength=VOCAB).numpy(), p.numpy())


CASES = [(seed, t, top_p) for seed, t in ((1, 0.6), (2, 1.0), (3, 1.7)) for top_p in (1.0, 0.8)]


@pytest.mark.parametrize(("seed", "temperature", "top_p"), CASES)
def test_rejection_draws_from_the_target_and_accepts_one_minus_d(
    seed: int, temperature: float, top_p: float
) -> None:
    p, q = distributions(seed, temperature, top_p)
    accepted, committed = rejection_rounds(accept_rejection, p, q)
    assert first_token_p_value(committed, p) > LEAST_P
    assert bonus_token_p_value(accepted, committed, p) > LEAST_P
    distance = (p - q).abs().sum() / 2
    counts = torch.bincount(accepted, minlength=2).numpy()
    assert p_value(counts, [float(distance), 1 - float(distance)]) > LEAST_P


@pytest.mark.parametrize(("seed", "temperature", "top_p"), CASES)
def test_coupled_draws_from_the_target_and_accepts_at_least_its_bound(
    seed: int, temperature: float, top_p: float
) -> None:
    p, q = distributions(seed, temperature, top_p)
    shared = noise(0)
    choices = (p.log() + shared).argmax(dim=-1)
    drafts = (q.log() + shared[:, :1]).argmax(dim=-1)
    verdict = accept_matching(drafts, choices)
    accepted, committed = verdict.accepted, verdict.tokens
    assert first_token_p_value(committed, p) > LEAST_P
    assert bonus_token_p_value(accepted, committed, p) > LEAST_P
    # Daliri et al. 2024: P(match) = sum_i 1 / sum_j max(p_j / p_i, q_j / q_i) >= (1 - d) / (1 + d).
    both = (p > 0) & (q > 0)
    ratios = torch.maximum(p / p[both, None], q / q[both, None])
    expected = float((1 / ratios.sum(dim=1)).sum())
    assert p_value(torch.bincount(accepted, minlength=2).numpy(), [1 - expected, expected]) > LEAST_P
    distance = float((p - q).abs().sum() / 2)
    assert accepted.float().mean() > (1 - distance) / (1 + distance) - 0.005
    assert accepted.float().mean() < 1 - distance + 0.005


def always_accept(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
    return accept_rejection(draft, q, p, torch.zeros_like(uniforms), noise)


def residual_not_subtracted(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
    verdict = accept_rejection(draft, q, p, uniforms, noise)
    rows = torch.arange(len(draft))
    verdict.tokens[rows, verdict.accepted] = (p[rows, verdict.accepted].log() + noise).argmax(dim=-1)
    return verdict


def residual_subtracted_from_the_bonus(
    draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor
) -> Verdict:
    verdict = accept_rejection(draft, q, p, uniforms, noise)
    residual = (p[:, 1] - q[:, 0]).clamp(min=0).log() + noise
    bonus = torch.where(verdict.accepted == 1, residual.argmax(dim=-1), verdict.tokens[:, 1])
    verdict.tokens[:, 1] = bonus
    return verdict


def uniform_of_the_draft(draft: Tensor, q: Tensor, p: Tensor, _: Tensor, noise: Tensor) -> Verdict:
    """The accepting number is not independent of the draft's own draw."""
    cumulative = q[:, 0].cumsum(dim=-1).gather(1, draft)
    return accept_rejection(draft, q, p, cumulative.clamp(max=1), noise)


def shifted(offset: int) -> Rule:
    """The count of accepted tokens is off, with the token after them chosen for the count as it should be."""

    def rule(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
        verdict = accept_rejection(draft, q, p, uniforms, noise)
        wrong = (verdict.accepted + offset).clamp(min=0, max=1)
        committed = torch.cat([draft, verdict.tokens[:, 1:]], dim=1)
        rows = torch.arange(len(draft))
        committed[rows, wrong] = (p[rows, wrong].log() + noise).argmax(dim=-1)
        return Verdict(wrong, committed)

    return rule


@pytest.mark.parametrize(
    "broken",
    [
        always_accept,
        residual_not_subtracted,
        residual_subtracted_from_the_bonus,
        uniform_of_the_draft,
        shifted(1),
    ],
)
def test_a_broken_rejection_rule_does_not_pass_the_chi_square(broken: Rule) -> None:
    p, q = distributions(2, 1.0)
    accepted, committed = rejection_rounds(broken, p, q)
    worst = min(first_token_p_value(committed, p), bonus_token_p_value(accepted, committed, p))
    assert worst < LEAST_P


def test_a_coupled_draft_verified_by_the_residual_rule_is_biased() -> None:
    """Coupling and residuals do not mix (Daliri et al. 2024): so the modes keep their noise apart."""
    p, q = distributions(2, 1.0)

    def same_noise(draft: Tensor, q: Tensor, p: Tensor, uniforms: Tensor, _: Tensor) -> Verdict:
        return accept_rejection(draft, q, p, uniforms, noise(1)[:, 0])

    _, committed = rejection_rounds(same_noise, p, q)
    assert first_token_p_value(committed, p) < LEAST_P


def test_a_draft_with_noise_of_its_own_is_still_exact_under_the_matching_rule_but_accepted_less() -> None:
    p, q = distributions(2, 1.0)
    choices = (p.log() + noise(0)).argmax(dim=-1)
    shares = []
    for stream in (0, 1):
        drafts = (q.log() + noise(stream)[:, :1]).argmax(dim=-1)
        verdict = accept_matching(drafts, choices)
        assert first_token_p_value(verdict.tokens, p) > LEAST_P
        shares.append(float(verdict.accepted.float().mean()))
    assert shares[1] < shares[0] - 0.1


def test_rows_that_drafted_less_than_others_get_a_bonus_token_from_the_target_itself() -> None:
    """A row that stopped after one draft token was not rejected at the second: nothing may be subtracted."""
    p, q = distributions(2, 1.0)
    drafts = (q.log() + noise(1)).argmax(dim=-1)
    drafts[:, 1] = NOTHING
    uniforms = torch.zeros(DRAWS, 2)  # whatever was drafted stands
    verdict = accept_rejection(
        drafts, q.expand(DRAWS, 2, -1), p.expand(DRAWS, 3, -1), uniforms, noise(3)[:, 0]
    )
    assert (verdict.accepted == 1).all()
    assert bonus_token_p_value(verdict.accepted, verdict.tokens, p) > LEAST_P


def test_a_found_token_is_accepted_with_the_targets_own_probability_of_it() -> None:
    """It is drawn from a point mass: q is 1 there, and the residual is p without that token."""
    p, _ = distributions(2, 1.0)
    token = int(p.topk(2).indices[1])

    def found(_: Tensor, __: Tensor, p: Tensor, uniforms: Tensor, noise: Tensor) -> Verdict:
        q = torch.eye(VOCAB)[token].expand(DRAWS, 1, -1)
        return accept_rejection(torch.full((DRAWS, 1), token), q, p, uniforms, noise)

    accepted, committed = rejection_rounds(found, p, p)
    assert first_token_p_value(committed, p) > LEAST_P
    assert bonus_token_p_value(accepted, committed, p) > LEAST_P
    share = float(p[token])
    assert p_value(torch.bincount(accepted, minlength=2).numpy(), [1 - share, share]) > LEAST_P
