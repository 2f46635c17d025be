"""Models that cannot exit early, and why: known ones by name, others by what their config and class say."""

from typing import Any

from torch import nn

_STATE = "recurrent state cannot be rolled back when a draft token is rejected"
_MIXED = "some layers keep recurrent state, which cannot be rolled back when a draft token is rejected"
_INDEXED = (
    "its sparse attention keeps an index beside the keys and values, which the shared cache does not hold"
)
_ENCODER_DECODER = "an encoder-decoder; only decoder-only models exit early"
_BIDIRECTIONAL = "an encoder: its attention looks ahead, so it does not generate left to right"
_OLD_CACHE = "it keeps keys and values in a form of its own, not in a transformers cache"


def _table(groups: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in groups.items() for name in names.split()}


REFUSED: dict[str, str] = _table(
    {
        _STATE: "mamba mamba2 falcon_mamba rwkv xlstm",
        _MIXED: "jamba bamba zamba zamba2 recurrent_gemma qwen3_next qwen3_5_text qwen3_5_moe_text lfm2 "
        "lfm2_moe falcon_h1 granitemoehybrid nemotron_h minimax kimi_linear olmo_hybrid zaya bailing_hybrid",
        _INDEXED: "deepseek_v32 deepseek_v4 glm_moe_dsa minimax_m3_vl_text",
        _ENCODER_DECODER: "t5 mt5 umt5 bart mbart pegasus marian blenderbot led prophetnet t5gemma whisper",
        _BIDIRECTIONAL: "bert roberta electra deberta deberta-v2 albert distilbert modernbert xlm-roberta "
        "camembert big_bird megatron-bert rembert roformer",
        _OLD_CACHE: "xlnet xlm openai-gpt ctrl cpmant",
    }
)
"""By model_type."""

_STATE_FIELDS = ("mamba_", "ssm_", "conv_L_", "lru_", "linear_conv_", "linear_num_", "rwkv_")
"""Beginnings of config fields that size a recurrent state."""

_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
_EXACT_ATTENTION = ("transformers.", "layer_skip.")
"""Packages whose attention functions all compute the same attention."""


def reason_against(model: Any) -> str | None:
    """Why `model` cannot be taken apart, None when nothing speaks against trying."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        return "is not a Hugging Face model: it has no config.model_type"
    if getattr(config, "is_encoder_decoder", False):
        return f"is {_ENCODER_DECODER}"
    reason = REFUSED.get(config.model_type)
    if reason is not None:
        return f"({config.model_type}) is refused: {reason}"
    if getattr(model, "_is_stateful", False) or _has_field(config, _STATE_FIELDS):
        return f"({config.model_type}) is refused: {_MIXED}"
    if _has_field(config, ("index_",)):
        return f"({config.model_type}) is refused: {_INDEXED}"
    places = sorted(set(map(str, (getattr(model, "hf_device_map", None) or {}).values())))
    if len(places) > 1:
        return f"is spread over {', '.join(places)} by its device_map: the engine needs it on one device"
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if kinds:
        return f"has layers of kind {sorted(kinds)}: only {', '.join(sorted(_KINDS))} can be rolled back"
    if getattr(config, "use_bidirectional_attention", None):
        return f"({config.model_type}) is refused: {_BIDIRECTIONAL} (use_bidirectional_attention)"
    if getattr(config, "text_config", None) is not None and not hasattr(config, "vocab_size"):
        return f"({config.model_type}) takes more than text: wrap its text model, if it has one of its own"
    return _against_attention(getattr(config, "_attn_implementation", None))


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps weights elsewhere, and loads them when a module runs."""
    hooks = [vars(module)["_hf_hook"] for module in model.modules() if "_hf_hook" in vars(module)]
    chained = (one for hook in hooks for one in (hook, *getattr(hook, "hooks", ())))
    return any(getattr(hook, "offload", False) for hook in chained)


def _against_attention(name: str | None) -> str | None:
    """The engine puts its own attention in place of the model's: it must be one that computes the same."""
    from transformers import AttentionInterface

    if name is None or name == "eager":
        return None
    function: Any = AttentionInterface().get(name)
    function = getattr(function, "func", function)
    if "/" in name or function is None or function.__module__.startswith(_EXACT_ATTENTION):
        return None
    return (
        f"uses the attention function {name!r} of {function.__module__}, which may compute something else "
        f"than plain attention: call model.set_attn_implementation('sdpa') first if it does not"
    )


def _has_field(config: Any, beginnings: tuple[str, ...]) -> bool:
    return any(name.startswith(beginnings) and value is not None for name, value in vars(config).items())
