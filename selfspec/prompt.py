"""What a call starts from: token ids, embeddings in their place, and a cache that holds K/V of some."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from layer_skip.decoder import LayeredDecoder
from selfspec.carrying import check_cache
from selfspec.fallback import NotSpeculatedError, check_prompts


@dataclass(frozen=True)
class Prompt:
    """Left-padded prompts in Hugging Face's layout, whose first columns may be without token ids."""

    tokens: Tensor
    """[B, P] int64"""
    mask: Tensor
    """[B, unseen + P], 0 for padding"""
    embeddings: Tensor | None = None
    """[B, unseen + P, D'] in place of the tokens' own; None for those."""
    cache: DynamicCache | None = None
    """The caller's own, which is read, and which takes up the K/V of this call."""
    known: int = 0
    """Columns whose K/V the cache holds."""

    @property
    def unseen(self) -> int:
        """Columns before the tokens: only embeddings or K/V are there."""
        return self.mask.shape[1] - self.tokens.shape[1]

    @classmethod
    def of(
        cls, tokens: Tensor, config: GenerationConfig, arguments: dict[str, Any], decoder: LayeredDecoder
    ) -> "Prompt":
        """The prompt of a request that generate() has prepared.

        Raises:
            NotSpeculatedError: embeddings, a cache, positions or a mask that only the model's own generate
                can go on from.
            ValueError: a prompt that no decoding can serve.
        """
        embeddings = arguments.get("inputs_embeds")
        cache = arguments.get("past_key_values")
        if not getattr(cache, "_is_user_defined", False):
            cache = None  # made by generate(), empty, and of no use here
        known = 0 if cache is None else int(cache.get_seq_length())
        width = tokens.shape[1] if embeddings is None else embeddings.shape[1]
        mask = arguments.get("attention_mask")
        if mask is None:  # generate() drops a mask of all ones, and keeps its length for its own prefill
            ones = getattr(config, "_mask_length", width) if known else width
            mask = tokens.new_ones(len(tokens), ones)
        if embeddings is not None:
            _check_embeddings(tokens, embeddings, known, decoder)
        if cache is not None:
            check_cache(cache, decoder, len(tokens))
        if known:
            _check_continuation(tokens, mask, known)
        unseen = known if known and mask.shape[1] != tokens.shape[1] else width - tokens.shape[1]
        check_prompts(tokens, mask, decoder.vocab_size, decoder.max_positions, unseen)
        _check_positions(arguments, mask)
        return cls(tokens, mask, embeddings, cache, known)


def _check_embeddings(tokens: Tensor, embeddings: Tensor, known: int, decoder: LayeredDecoder) -> None:
    if tokens.shape[1] not in (0, embeddings.shape[1]):
        raise NotSpeculatedError("inputs_embeds beside input_ids of another length")
    if known:
        raise NotSpeculatedError("inputs_embeds with past_key_values")
    if embeddings.dtype != decoder.dtype or embeddings.device != decoder.device:
        raise NotSpeculatedError(f"inputs_embeds in {embeddings.dtype} on {embeddings.device}")


def _check_continuation(tokens: Tensor, mask: Tensor, known: int) -> None:
    """The tokens are the whole text with a part that the cache does not hold, or only what is new."""
    width, length = tokens.shape[1], mask.shape[1]
    if not (length == width > known or length == known + width):
        raise NotSpeculatedError(
            f"past_key_values of {known} tokens",
            f"with {width} input_ids and an attention_mask of {length}",
        )
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise NotSpeculatedError("past_key_values", "with an attention_mask that has gaps")


def _check_positions(arguments: dict[str, Any], mask: Tensor) -> None:
    """Here they follow from the mask, as those do that generate() adds; a caller's own may not."""
    seen = mask != 0
    counted, columns = seen.long().cumsum(dim=1) - 1, torch.arange(mask.shape[1])[None]
    for name, expected in (("position_ids", counted), ("cache_position", columns)):
        given = arguments.get(name)
        if given is None:
            continue
        given = given[None] if given.dim() == 1 else given
        width, rows = given.shape[-1], given.shape[0]
        fits = given.dim() == 2 and width <= mask.shape[1] and rows in (1, len(mask))
        if not fits or bool(((given.cpu() != expected[:, -width:].cpu()) & seen[:, -width:].cpu()).any()):
            raise NotSpeculatedError(name, "positions are counted from each row's first token")
