"""The round on one screen: prefill, draft, verify, accept, commit."""

import time

import torch
from torch import Tensor

from selfspec.call import Call
from selfspec.round import NOTHING, Draft, Verdict
from selfspec.rows import RoundEvent


@torch.inference_mode()
def speculate(call: Call) -> None:
    """Generate until every row is finished: self-speculative decoding (Elhoushi et al. 2024, section 4.3)."""
    prefill(call)
    while call.rows.active:
        began = time.perf_counter()
        rows = len(call.rows.active)
        draft = call.drafter.draft(call, call.pacer.draft_length(call.rows.remaining))
        scores = verify(call, draft)
        verdict = call.mode.accept(draft, scores)
        tokens = commit(call, draft, verdict)
        seconds = time.perf_counter() - began
        call.stats.round_seconds += seconds
        call.pacer.observe(draft.tree.depth, tokens / rows, seconds)


def prefill(call: Call) -> None:
    """Fill the cache with every prompt but its last token, which the first round takes up."""
    began = time.perf_counter()
    rows = call.rows
    together = [slice(0, len(rows.active))]
    for group in [slice(i, i + 1) for i in rows.active] if call.prefill_alone else together:
        longest = max(rows.cached[group])
        known = max(0, min(rows.known - pad for pad in rows.pads[group]))
        for first in range(known, longest, call.prefill_chunk):
            width = min(call.prefill_chunk, longest - first)
            span = call.span([first] * (group.stop - group.start), width)
            hidden = call.embed_prompt(group, span)
            window = call.cache.window(span, group)
            call.decoder.run(hidden, 0, call.decoder.n_layers, span, window, call.watch)
    if call.decoder.device.type == "cuda":  # or the first round, which is timed, would wait for it
        torch.cuda.current_stream(call.decoder.device).synchronize()
    call.stats.prefill_seconds += time.perf_counter() - began


def verify(call: Call, draft: Draft) -> Tensor:
    """The target's processed scores [B, n+1, V]: layers [exact_layers, L) on the draft in one pass."""
    rows, count = draft.hidden.shape[:2]
    width = call.shapes.width(rows, count)
    span = draft.span.narrow(0, width)
    spare = draft.hidden[:, -1:].expand(-1, width - count, -1)
    hidden = torch.cat([draft.hidden, spare], dim=1)
    window = call.cache.window(span)
    hidden = call.decoder.run(hidden, draft.exact_layers, call.decoder.n_layers, span, window)
    logits = call.decoder.logits(hidden)[:, :count]
    return call.processors(logits, call.rows, draft.tokens, draft.tree.paths)


def commit(call: Call, draft: Draft, verdict: Verdict) -> int:
    """Append what was accepted, drop finished rows; return the number of tokens committed.

    After a chain the cache needs no work: a row's length is its committed tokens, and what lies beyond is
    scratch. An accepted branch of a tree is brought together first.
    """
    rows = call.rows
    if verdict.columns is not None:
        call.cache.gather(draft.span.slots[:, 0], verdict.columns)
    kept, total = [], 0
    drafted, deepest = draft.drafted.tolist(), draft.deepest.tolist()
    counts, tokens = verdict.accepted.tolist(), verdict.tokens.tolist()
    for i, row in enumerate(rows.active):
        new, accepted, finished = append(call, row, tokens[i][: counts[i] + 1], drafted[i], deepest[i])
        total += len(new)
        if call.on_round is not None:
            candidates = [token for token in draft.tokens[i].tolist() if token != NOTHING]
            ranks = verdict.ranks(i, draft.tree)[:accepted]
            call.on_round(RoundEvent(row, candidates, deepest[i], ranks, new))
        if not finished:
            kept.append(i)
    call.stats.rounds += 1
    if call.lockstep is not None:
        call.lockstep.ask()
        kept = [i for i in kept if rows.active[i] not in rows.stops]
    if len(kept) < len(rows.active):
        rows.active = [rows.active[i] for i in kept]
        if kept:  # the last rows leave their K/V behind, for past_key_values
            index = torch.tensor(kept, dtype=torch.int64, device=rows.sequences.device)
            call.cache.keep(index)
            call.mode.keep(index)
    if call.on_commit is not None:
        call.on_commit(rows)
    return total


def append(
    call: Call, row: int, tokens: list[int], drafted: int, deepest: int
) -> tuple[list[int], int, bool]:
    """Append a row's accepted tokens and the one after them, and count its share of the round.

    Returns:
        The tokens up to where the row finished, how many of them were drafted, and whether it finished.
    """
    new, finished = call.rows.append(row, tokens)
    accepted = min(len(tokens) - 1, len(new))
    call.stats.count_row(drafted, deepest, accepted, len(new))
    return new, accepted, finished
