"""Which generate options cannot be speculated (yet): a table, so that none is ever silently ignored."""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process


class NotSpeculatedError(ValueError):
    """An option that only the model's own generate can serve."""

    def __init__(self, option: str) -> None:
        super().__init__(f"{option} cannot be speculated")
        self.option = option


# Option of GenerationConfig -> the values at which it asks for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}

# Arguments of generate() itself that mean another way of decoding.
_ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "inputs_embeds",
    "negative_prompt_ids",
    "past_key_values",
    "position_ids",
    "stop_strings",
    "synced_gpus",
    "token_type_ids",
)

_WHOLE_BATCH = (
    "PrefixConstrainedLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
)
_WHOLE_BATCH_TYPES = tuple(
    getattr(logits_process, name) for name in _WHOLE_BATCH if hasattr(logits_process, name)
)

_EXPECTED_MODEL_ARGUMENTS = frozenset(
    ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position")
)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise NotSpeculatedError for an argument of generate() that the engine does not serve."""
    for name in _ARGUMENTS:
        if arguments.get(name) is not None and arguments[name] is not False:
            raise NotSpeculatedError(name)


def check_request(
    config: GenerationConfig, processors: LogitsProcessorList, rows: int, model_arguments: dict[str, Any]
) -> None:
    """Raise NotSpeculatedError for a prepared request that the engine does not serve."""
    for name, neutral in _NEUTRAL.items():
        if getattr(config, name, None) not in neutral:
            raise NotSpeculatedError(f"{name}={getattr(config, name)!r}")
    for processor in processors:
        if rows > 1 and isinstance(processor, _WHOLE_BATCH_TYPES):
            raise NotSpeculatedError(f"{type(processor).__name__} over several rows")
    for name, value in model_arguments.items():
        if value is not None and name not in _EXPECTED_MODEL_ARGUMENTS:
            raise NotSpeculatedError(f"the model argument {name}")
    cache = model_arguments.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise NotSpeculatedError("past_key_values")


def check_mask_shape(prompts: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    """Raise ValueError for a mask that is not the prompts' own: generate() drops one of all ones unseen."""
    if prompts is not None and mask is not None and mask.shape != prompts.shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, the prompts {list(prompts.shape)}")


def check_prompts(
    prompts: torch.Tensor, mask: torch.Tensor | None, vocab_size: int, max_positions: int | None
) -> None:
    """Refuse prompts that no decoding can serve.

    Args:
        prompts: [B, P] int64.
        mask: attention mask [B, P], 0 for padding; None for no padding.

    Raises:
        ValueError: what is wrong and what to do about it.
    """
    if prompts.shape[1] == 0 or prompts.numel() == 0:
        raise ValueError("the prompt is empty: pass at least one token (the tokenizer's bos token will do)")
    out_of_range = (prompts < 0) | (prompts >= vocab_size)
    if bool(out_of_range.any()):
        token = int(prompts[out_of_range][0])
        raise ValueError(
            f"token id {token} is outside the model's vocabulary of {vocab_size}: "
            f"is this the model's own tokenizer?"
        )
    if max_positions is not None and prompts.shape[1] > max_positions:
        raise ValueError(
            f"the prompt has {prompts.shape[1]} tokens, the model {max_positions} positions: shorten it"
        )
    if mask is None:
        return
    check_mask_shape(prompts, mask)
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError("the batch is padded on the right: generation needs padding_side='left'")
    if bool((mask.sum(dim=1) == 0).any()):
        raise ValueError("a row is padding only: every prompt needs at least one token")
