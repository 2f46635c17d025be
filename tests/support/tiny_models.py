"""Models of every family, small enough for a test and lively enough to be worth one.

Freshly initialised models repeat one token for ever and all their exits agree, so that broken drafts would go
unseen. These are scaled until their greedy text varies and an early exit is right some of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

LAYERS = 4
VOCAB = 97
PAD = 0
POSITIONS = 256

_ORDINARY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}

_SLIDING = {**_ORDINARY, "sliding_window": 12}
_ALTERNATING = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}
_GPT = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
_DEEPSEEK = {
    **_ORDINARY,
    **_LATENT,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
_GRANITE = {"embedding_multiplier": 0.5, "logits_scaling": 0.5, "residual_multiplier": 1.5}

# The sizes in each family's own words, and what only it has.
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": _ORDINARY,
    "mistral": {**_ORDINARY, "sliding_window": 16},
    "mixtral": {**_SLIDING, **_LOCAL_EXPERTS},
    "ministral": {**_ALTERNATING, "head_dim": 8},
    "ministral3": {**_SLIDING, "head_dim": 8},
    "qwen2": _ORDINARY,
    "qwen2_moe": {**_ORDINARY, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3": {**_ORDINARY, "head_dim": 16},
    "qwen3_moe": {**_ORDINARY, **_EXPERTS, "head_dim": 16},
    "gemma": {**_ORDINARY, "head_dim": 16},
    "phi3": _ORDINARY,
    "gemma2": {**_ORDINARY, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12},
    "gemma3_text": {
        **_ALTERNATING,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi": {**_ORDINARY, "partial_rotary_factor": 0.5},
    "gpt2": _GPT,
    "gpt_neox": _ORDINARY,
    "gptj": {**_GPT, "rotary_dim": 4},
    "gpt_bigcode": _GPT,
    "codegen": {**_GPT, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    },
    "falcon": {**_ORDINARY, "multi_query": True, "parallel_attn": True, "alibi": False},
    "bloom": {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "expansion_ratio": 2, "use_cache": True},
    "starcoder2": _SLIDING,
    "stablelm": {**_ORDINARY, "partial_rotary_factor": 0.5},
    "olmo": {**_ORDINARY, "clip_qkv": 1.5},
    "olmo2": _ORDINARY,
    "olmo3": _ALTERNATING,
    "olmoe": {**_ORDINARY, **_EXPERTS},
    "granite": {**_ORDINARY, **_GRANITE, "attention_multiplier": 0.2},
    "granitemoe": {**_ORDINARY, **_GRANITE, **_LOCAL_EXPERTS, "attention_multiplier": 0.2},
    "cohere": {**_ORDINARY, "logit_scale": 3.0},
    "cohere2": {**_ALTERNATING, "logit_scale": 3.0},
    "nemotron": {**_ORDINARY, "partial_rotary_factor": 0.5},
    "glm": {**_ORDINARY, "head_dim": 8},
    "glm4": {**_ORDINARY, "head_dim": 8},
    "ernie4_5": {**_ORDINARY, "head_dim": 8},
    "hunyuan_v1_dense": {**_ORDINARY, "head_dim": 8},
    "smollm3": {**_ORDINARY, "no_rope_layers": [1, 0, 1, 0]},
    "exaone4": _ALTERNATING,
    "minicpm3": {**_ORDINARY, **_LATENT, "scale_emb": 2.0, "scale_depth": 1.4, "dim_model_base": 16},
    "deepseek_v2": {**_DEEPSEEK, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": {**_ALTERNATING, **_LOCAL_EXPERTS, "head_dim": 8},
    "llama4_text": {
        **_ORDINARY,
        **_LOCAL_EXPERTS,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 12,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0, 1, 0],
        "num_experts_per_tok": 1,
    },
}

# Settings under which a family has other modules, or uses them in another order.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "llama with yarn": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "qwen2 half sliding": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2},
    ),
    "phi3 sliding, partly rotated": ("phi3", {"sliding_window": 14, "partial_rotary_factor": 0.5}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox serial": ("gpt_neox", {"use_parallel_residual": False}),
    "opt projected": ("opt", {"word_embed_proj_dim": 16}),
    "opt with norms after": ("opt", {"do_layer_norm_before": False}),
    "llama with tied head": ("llama", {"tie_word_embeddings": True}),
    "gemma3 with soft cap": ("gemma3_text", {"final_logit_softcapping": 5.0}),
    "falcon with ALiBi": ("falcon", {"alibi": True}),
    "falcon, new architecture": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, serial": ("falcon", {"parallel_attn": False, "multi_query": False}),
    "bloom with five heads": ("bloom", {"hidden_size": 40, "n_head": 5}),
    "mpt with five heads": ("mpt", {"d_model": 40, "n_heads": 5}),
    "gpt_bigcode, all heads": ("gpt_bigcode", {"multi_query": False}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere with normed queries": ("cohere", {"use_qk_norm": True}),
    "exaone4 without windows": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "deepseek_v3 with plain queries": ("deepseek_v3", {"q_lora_rank": None}),
    "qwen2_moe half sliding": (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2},
    ),
}


def tiny_model(family: str, *, vocab: int = VOCAB, seed: int = 0, **settings: Any) -> Any:
    """A new model of `family`, or of a variant, in fp32 and eval mode, without an end token.

    Args:
        seed: of the weights.
        settings: of the model's config, in its own words.
    """
    family, variant = VARIANTS.get(family, (family, {}))
    defaults = {"tie_word_embeddings": False, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(
        family, **{"vocab_size": vocab, **defaults, **_FAMILY[family], **variant, **settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _enliven(model)
    return model.eval()


_WIDE_GPT = {"n_embd": 128, "n_head": 2}
_WIDE: dict[str, dict[str, Any]] = {
    "gpt2": _WIDE_GPT,
    "gpt_bigcode": _WIDE_GPT,
    "opt": {"hidden_size": 128, "num_attention_heads": 2, "word_embed_proj_dim": 128},
}
"""Families whose heads are no setting of their own."""


def wide_model(family: str, **settings: Any) -> Any:
    """The same with heads of 64, a size that the kernels have."""
    return tiny_model(family, **_WIDE.get(family, {"head_dim": 64}), **settings)


def random_prompts(*lengths: int, vocab: int = VOCAB, seed: int = 0) -> dict[str, Tensor]:
    """A left-padded batch of random prompts: input_ids and attention_mask, as a tokenizer returns them."""
    generator = torch.Generator().manual_seed(seed)
    return padded([torch.randint(1, vocab, (n,), generator=generator).tolist() for n in lengths])


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Prompts of any lengths, left-padded."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def _enliven(model: Any) -> None:
    """Draw every matrix at the size at which its output is as large as its input, the head at twice that.

    Stacked matrices of experts are drawn alike, and attention sinks so that they count.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if isinstance(module, nn.Embedding):
            weight.normal_()
        else:
            inputs = weight.shape[0] if type(module).__name__ == "Conv1D" else weight.shape[1]
            weight.normal_(std=inputs**-0.5)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            parameter.normal_(std=max(parameter.shape[1:]) ** -0.5)
        if name.endswith("sinks"):
            parameter.normal_(mean=1.0)
    head.weight.normal_(std=2 * head.weight.shape[1] ** -0.5)
