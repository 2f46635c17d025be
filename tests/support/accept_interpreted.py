"""Runs the kernels of acceptance in Triton's interpreter and prints what came out; see `interpreter`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch
from acceptance_cases import Case, difference, logits_of, noise_of, settings_of
from interpreter import launches, prepare, run, shuffled
from torch import Tensor

from selfspec_kernels import accept_launch
from selfspec_kernels.accept import accept, accept_choices
from selfspec_kernels.accept_reference import Accepted, Sampling, processed
from selfspec_kernels.filter_launch import Cut
from selfspec_kernels.noise import Noise

PARENTS, DEPTH = (0, 1, 0, 3, 4, 1, 2), 3
"""Two branches, and a sibling; more candidates hang on the last one."""

SMALL = Cut(block=64, group=8, few=4, together=4, chunk=8, most=512)
"""So that a small vocabulary has many groups, and candidates more than one chunk."""
SLOW = Cut(block=64, group=8, few=4, together=4, chunk=8, most=1)
"""Candidates never fit."""

CASES = {
    "one token of vocabulary": Case(1, 1, 0),
    "a chain": Case(4),
    "a tree": Case(6, 64, len(PARENTS), tree=True),
    "nothing contiguous": Case(3, 200, 2, torch.bfloat16, noisy=True, temperature=0.7, apart=True),
    "few tokens": Case(500, 2, 0, noisy=True),
    "few tokens, apart": Case(8, 64, 20, noisy=True, temperature=0.2),
    "a large tree": Case(2, 100, 20, torch.float16, tree=True, noisy=True),
    "top-k": Case(2, 110, 1, noisy=True, top_k=7, equal=True),
    "top-p": Case(2, 110, 1, noisy=True, temperature=1.3, top_p=0.6),
    "all filters": Case(2, 130, 1, noisy=True, temperature=1.5, top_k=30, top_p=0.9, min_p=0.1),
    "no limits": Case(1, 70, 1, noisy=True, top_k=0, top_p=1.0),
    "min-p": Case(1, 70, 1, min_p=0.3),
    "a wide nucleus": Case(2, 300, 1, noisy=True, temperature=2.0, top_k=60, top_p=0.95),
    "k beyond the groups": Case(2, 90, 2, torch.bfloat16, noisy=True, top_k=40, apart=True),
    "nothing drafted": Case(3, 110, 0, torch.float16, noisy=True, top_k=9, top_p=0.8),
    "one token passes": Case(1, 110, 1, noisy=True, top_k=1, top_p=0.0),
    "k beyond the vocabulary": Case(2, 30, 1, noisy=True, top_k=50, top_p=0.7),
}
CASES |= {
    f"{name}, slowly": replace(CASES[name], slow=True)
    for name in ("top-k", "top-p", "all filters", "no limits", "min-p", "nothing drafted")
}
FILTERED = Case(4, 20, top_k=2, shuffled=True)
"""Many positions of little work: here it matters who walks."""
CASES |= {
    "filters, a chain": replace(FILTERED, candidates=5),
    "filters, a coupled chain": replace(FILTERED, candidates=3, noisy=True, temperature=0.7, apart=True),
    "filters, a tree": replace(FILTERED, candidates=len(PARENTS), tree=True, apart=True),
    "filters, a coupled tree": replace(FILTERED, candidates=12, tree=True, noisy=True, min_p=0.1),
    "filters, a tree, slowly": replace(FILTERED, candidates=len(PARENTS), tree=True, slow=True),
    "filters, a chain in order": replace(FILTERED, candidates=5, shuffled=False),
    "filters, a tree of 63": replace(FILTERED, rows=2, candidates=63, tree=True, noisy=True),
}
CASES |= {
    f"filters, {nodes} positions": replace(FILTERED, rows=2, candidates=nodes - 1)
    for nodes in (1, 2, 16, 17, 32, 33, 64)
}
MUTATIONS = {
    "one part only": ("a chain", "first = tl.program_id(1) * BLOCK", "first = tl.program_id(1) * 0"),
    "one part's sum": ("a chain", "mass * tl.exp(top - base[:, None])", "mass"),
    "every candidate stands": ("a chain", "stands = (token == choice)", "stands = (token >= 0)"),
    "every branch stands": ("a tree", "(token == choice_before)[:, None]", "(token >= 0)[:, None]"),
    "a chain goes on behind its end": ("a chain", "tl.minimum(node, accepted)", "node"),
    "a chain ends one later": (
        "filters, a chain",
        "at_column(node, accepted, choice)",
        "at_column(node, accepted + 1, choice)",
    ),
    "a tree is a chain": (
        "a tree",
        "parent = tl.load(parents_ptr + node - 1, mask=candidate, other=-1)",
        "parent = node - 1",
    ),
    "the walk stops after one": ("a tree", "range(1, depth + 1)", "range(1, 2)"),
    "columns of a chain": ("a tree", "at_column(node, column, parent), column)", "column - 1, column)"),
    "no noise": ("nothing contiguous", "noise_bits(key, first + column)", "noise_bits(key, first - column)"),
    "the likeliest is the winner": ("few tokens", "> 1) & (top >", "> BLOCK) & (top >"),
    "the winner is looked for in one piece": (
        "few tokens, apart",
        "range(0, BLOCK, PIECE)",
        "range(0, PIECE, PIECE)",
    ),
    "the first position's noise": ("nothing contiguous", "row % m * position_column_stride", "0"),
    "no temperature": ("nothing contiguous", "tl.load(temperature_ptr)", "1.0"),
    "the first row's logits": ("nothing contiguous", "b.to(tl.int64) * row_stride", "b.to(tl.int64) * 0"),
    "one less than k": ("top-k", "(rank < k)", "(rank < k - 1)"),
    "one less than k, slowly": ("top-k, slowly", "else count >= need", "else count >= need - 1"),
    "ties are cut": ("top-k", "other[None, :] > score[:, None]", "other[None, :] >= score[:, None]"),
    "ties are cut, slowly": ("top-k, slowly", "over - 1, low)", "over, low)"),
    "no top-p": ("top-p", "if p < 1.0", "if p < 0.0"),
    "no top-p, slowly": ("top-p, slowly", "if p < 1.0", "if p < 0.0"),
    "mass that top-k dropped": ("all filters", "p * mass", "p * mass * 1.2"),
    "mass that top-k dropped, slowly": (
        "all filters, slowly",
        "top, threshold, BLOCK)",
        "top, LOWEST, BLOCK)",
    ),
    "no min-p": ("all filters", "& (tl.exp(score - top) >= min_p)", ""),
    "no min-p, slowly": ("min-p, slowly", "& (tl.exp(score - top) >= min_p)", ""),
    "candidates without noise": ("all filters", "noisy += gumbel(key, n)", "pass"),
    "the whole vocabulary without noise": ("no limits, slowly", "noisy += gumbel(key, n)", "pass"),
    "the first chunk of candidates": ("a wide nucleus", "range(0, total, CHUNK)", "range(0, CHUNK, CHUNK)"),
    "the first groups": ("a wide nucleus", "range(0, count, TOGETHER)", "range(0, TOGETHER, TOGETHER)"),
    "too high a bound": ("top-k", "low = tl.where(enough, middle, low)", "low = middle"),
    "the first program to finish walks": (
        "filters, a chain in order",
        'scope="gpu") == m - 1',
        'scope="gpu") == 0',
    ),
    "the last but one walks": ("filters, a tree", 'scope="gpu") == m - 1', 'scope="gpu") == m - 2'),
    "the last position walks": ("filters, a chain", "is_last(finished_ptr + b, m)", "row % m == m - 1"),
    "nobody walks alone": ("filters, 1 positions", "is_last(finished_ptr + b, m)", "m > 1"),
    "a count that begins anywhere": ("filters, a chain", "if finished_ptr is not None", "if False"),
    "a count that begins at 0 in the first row": (
        "filters, a chain",
        "mask=(row % m == 0)",
        "mask=(row == 0)",
    ),
    "a count that begins at 1": (
        "filters, a chain",
        "tl.store(finished_ptr + b, 0,",
        "tl.store(finished_ptr + b, 1,",
    ),
    "a count for all rows": ("filters, a chain", "is_last(finished_ptr + b, m)", "is_last(finished_ptr, m)"),
    "the first row's choices": ("filters, a chain", "load(choices_ptr + b * m", "load(choices_ptr + 0 * m"),
    "the first row's log-probabilities": (
        "filters, a chain",
        "load(choice_logprobs_ptr + b * m",
        "load(choice_logprobs_ptr + 0 * m",
    ),
    "the first row's draft": ("filters, a chain", "b * draft_stride", "0 * draft_stride"),
    "groups are enough or none": ("k beyond the groups", "low = tl.full((), NOTHING, tl.int32)", "low = up"),
}


def error(case: Case, launch: ModuleType) -> float:
    """Against the reference, see `difference`."""
    with shuffled(1) if case.shuffled else nullcontext():
        return difference(*verdicts(case, launch))


def verdicts(case: Case, launch: ModuleType) -> tuple[Accepted, Accepted]:
    """Found, and expected."""
    draw = torch.Generator().manual_seed(case.vocabulary + case.candidates)
    logits, sampling = logits_of(case, draw), settings_of(case)
    noise = noise_of(case, case.candidates + 1) if case.noisy else None
    parents, depth = tree_of(case)
    draft = drafted(case, processed(logits, sampling), noise, parents)
    found = launch.accept(
        logits, draft, sampling, noise, parents, depth, block=64, cut=SLOW if case.slow else SMALL
    )
    shape = {} if parents is None else {"parents": parents, "depth": depth}
    return found, accept(logits, draft, sampling=sampling, noise=noise, **shape, backend="reference")


def tree_of(case: Case) -> tuple[Tensor | None, int]:
    if not case.tree:
        return None, case.candidates
    more = range(len(PARENTS), case.candidates)
    return torch.tensor([*PARENTS, *more], dtype=torch.int32), DEPTH + len(more)


def drafted(case: Case, scores: Tensor, noise: Noise | None, parents: Tensor | None) -> Tensor:
    """Candidates that are all right in the first row; in others some are wrong, or are none."""
    noisy = scores if noise is None else scores + noise.at(torch.arange(case.vocabulary))
    above = torch.arange(case.candidates) if parents is None else parents.long()
    draft = noisy.argmax(dim=-1)[:, above]
    for row in range(1, case.rows):
        wrong = (draft[row] + 1) % case.vocabulary if row % 2 else torch.full_like(draft[row], -1)
        draft[row, row - 1 :: 2] = wrong[row - 1 :: 2]
    wide = torch.full((case.rows, 2 * case.candidates), -1)
    wide[:, : case.candidates] = draft
    return wide[:, : case.candidates] if case.apart else draft


def not_a_number() -> list[bool]:
    """Of two rows, one with a NaN logit: which log-probabilities are NaN, without and with filters."""
    logits = torch.zeros(2, 1, 100)
    logits[0, 0, 70] = float("nan")
    draft = torch.empty(2, 0, dtype=torch.int64)
    ways = [(Sampling(), SMALL)]
    ways += [(settings_of(Case(top_k=5, min_p=min_p)), cut) for min_p in (None, 0.1) for cut in (SMALL, SLOW)]
    found = [accept_launch.accept(logits, draft, way, None, None, 0, block=64, cut=cut) for way, cut in ways]
    return torch.cat([verdict.logprobs for verdict in found]).isnan().flatten().tolist()


def nothing_allowed() -> list[bool]:
    """Rows of which one has no token: whose log-probabilities are NaN, with filters, whether fast or not."""
    logits = torch.zeros(2, 1, 100)
    logits[0] = float("-inf")
    draft = torch.empty(2, 0, dtype=torch.int64)
    settings = settings_of(Case(top_k=5)), settings_of(Case(top_p=0.5)), settings_of(Case(min_p=0.5))
    found = [
        accept_launch.accept(logits, draft, sampling, None, None, 0, cut=cut).logprobs
        for sampling in settings
        for cut in (SMALL, SLOW)
    ]
    return torch.cat(found).isnan().flatten().tolist()


def far_apart() -> list[list[int]]:
    """Tokens of rows, then of positions, whose logits begin up to 2^31 elements behind the first one's.

    Without filters, and with: candidates that fit, and candidates that do not.
    """
    memory = torch.from_numpy(np.empty(2**31 + 64, dtype=np.float16))  # takes no room until it is written
    found = []
    for shape, strides in (((3, 1, 64), (2**30, 0, 1)), ((1, 3, 64), (0, 2**30, 1))):
        logits = memory.as_strided(shape, strides)
        for i, line in enumerate(logits.view(3, 64)):
            line.zero_()
            line[i + 7] = 1
        draft = torch.tensor([[7, 8]])[:, : shape[1] - 1].expand(shape[0], -1)
        few = Sampling(top_k=torch.full(shape[:1], 2, dtype=torch.int32))
        for way, cut in ((Sampling(), SMALL), (few, SMALL), (few, SLOW)):
            verdict = accept_launch.accept(logits, draft, way, None, None, shape[1] - 1, cut=cut)
            found.append(verdict.tokens.flatten().tolist())
    return found


def choices_walk() -> float:
    """The walk over choices that were made elsewhere, handed to Triton by the dispatcher."""
    choices = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    logprobs, draft = torch.rand(2, 4), torch.tensor([[5, 6, 7], [5, 9, 7]])
    return difference(
        accept_choices(choices, logprobs, draft, backend="triton"),
        accept_choices(choices, logprobs, draft, backend="reference"),
    )


def launched() -> dict[str, list[str]]:
    """The kernels of every kind of acceptance."""
    found = {}
    for candidates in (0, 3):
        for name, case in {"no filters": Case(), "filters": FILTERED}.items():
            with launches() as names:
                verdicts(replace(case, candidates=candidates), accept_launch)
            found[f"{name}, {candidates} candidates"] = names
    return found


def in_every_order() -> list[bool]:
    """Whether programs in other orders leave the bits that they leave in order."""
    case = CASES["filters, a coupled tree"]
    expected, _ = verdicts(case, accept_launch)
    found = []
    for seed in range(4):
        with shuffled(seed):
            verdict, _ = verdicts(case, accept_launch)
        found.append(all(torch.equal(one, vars(expected)[name]) for name, one in vars(verdict).items()))
    return found


def dispatched() -> float:
    """`accept` through its dispatcher."""
    logits, draft = torch.randn(1, 2, 70), torch.zeros(1, 1, dtype=torch.int64)
    return difference(accept(logits, draft, backend="triton"), accept(logits, draft, backend="reference"))


def main() -> None:
    prepare()
    results = run(CASES, MUTATIONS, error, "accept_launch")
    results |= {"nan": not_a_number(), "nothing allowed": nothing_allowed(), "far apart": far_apart()}
    results |= {"walk": choices_walk(), "dispatched": dispatched()}
    results |= {"launched": launched(), "in every order": in_every_order()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
