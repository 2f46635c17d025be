"""The options of generate(), all of them: speculated, without effect here, or left to the model itself."""

from typing import Any

from transformers import GenerationConfig

SPECULATED = frozenset(
    (
        # how long
        "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings",
        # which token
        "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff",
        "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens",
        "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "renormalize_logits",
        "exponential_decay_length_penalty", "remove_invalid_values", "watermarking_config",
        # what goes in and comes out
        "num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits",
        "pad_token_id", "bos_token_id", "eos_token_id", "prefill_chunk_size",
    )
)  # fmt: skip
"""Options of GenerationConfig with the same effect as in the model's own generate."""

MOOT: dict[str, str] = {
    "early_stopping": "beams",
    "length_penalty": "beams",
    "diversity_penalty": "beams",
    "low_memory": "contrastive search",
    "decoder_start_token_id": "encoder-decoder models",
    "num_assistant_tokens": "assisted generation",
    "num_assistant_tokens_schedule": "assisted generation",
    "assistant_confidence_threshold": "assisted generation",
    "assistant_lookbehind": "assisted generation",
    "target_lookbehind": "assisted generation",
    "assistant_ensemble_weight": "assisted generation",
    "max_matching_ngram_size": "assisted generation",
    "speculation_type": "assisted generation",
    "cache_config": "quantized caches",
    "max_cache_len": "static caches",
    "compile_config": "compiled forward passes, whose results are the same",
    "disable_compile": "compiled forward passes, whose results are the same",
    "continuous_batching_config": "continuous batching",
    "transformers_version": "nothing",
}
"""Option -> what alone it matters to: another option, which is left to the model itself where it is set."""

_STATIC = ("static", "sliding_window", "hybrid", "hybrid_chunked")

LEFT: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), "beams are compared with each other after every token"),
    "num_beam_groups": ((None, 1), "beams are compared with each other after every token"),
    "constraints": ((None,), "needs beams"),
    "force_words_ids": ((None,), "needs beams"),
    "penalty_alpha": ((None, 0), "contrastive search reads hidden states"),
    "dola_layers": ((None,), "DoLa reads hidden states of several layers"),
    "prompt_lookup_num_tokens": ((None,), "another way to speculate: see draft='lookup'"),
    "assistant_early_exit": ((None,), "another way to speculate: see draft='early_exit'"),
    "use_mtp": ((None, False), "another way to speculate"),
    "is_assistant": ((None, False), "this model drafts for another one"),
    "token_healing": ((None, False), "the prompt itself is generated anew"),
    "guidance_scale": ((None, 1), "runs the model twice for every token"),
    "use_cache": ((None, True), "speculation needs a cache"),
    "cache_implementation": ((None, "dynamic", *_STATIC), "the cache is not kept whole on the device"),
    "output_attentions": ((None, False), "attention weights are not kept"),
    "output_hidden_states": ((None, False), "hidden states are not kept"),
}
"""Option -> the values at which it asks for nothing, and why any other is left to the model itself."""

LEFT_ARGUMENTS: dict[str, str] = {
    "assistant_model": "another way to speculate",
    "assistant_tokenizer": "another way to speculate",
    "custom_generate": "another way to decode",
    "negative_prompt_ids": "runs the model twice for every token",
    "position_ids": "positions are counted from each row's first token",
    "synced_gpus": "several processes take their steps together",
    "token_type_ids": "not known to the engine",
}
"""Argument of generate() itself, beside the options -> why it is left to the model itself."""


_NAMES = tuple(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def unserved(config: GenerationConfig) -> tuple[str, str] | None:
    """The first option of a prepared request that only the model's own generate serves, and why.

    An option that a later release of transformers has and this table does not is among them.
    """
    defaults = config._get_default_generation_params()
    for name in _NAMES:
        if name in SPECULATED or name in MOOT:
            continue
        unknown = ((None, False, defaults.get(name)), "not known to the engine")
        neutral, why = LEFT.get(name, unknown)
        value = getattr(config, name)
        if value not in neutral:
            return f"{name}={value!r}", why
    if config.cache_implementation in _STATIC and config.return_dict_in_generate:
        return f"cache_implementation={config.cache_implementation!r}", "a static cache cannot be returned"
    return None
