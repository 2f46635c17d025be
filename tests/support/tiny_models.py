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

# The sizes in each family's own words, and what only it has.
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": _ORDINARY,
    "mistral": {**_ORDINARY, "sliding_window": 16},
    "qwen2": _ORDINARY,
    "qwen3": {**_ORDINARY, "head_dim": 16},
    "phi3": _ORDINARY,
    "gemma2": {**_ORDINARY, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12},
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS},
    "gpt_neox": _ORDINARY,
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
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
    """Draw every matrix at the size at which its output is as large as its input, the head at twice that."""
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
    head.weight.normal_(std=2 * head.weight.shape[1] ** -0.5)
