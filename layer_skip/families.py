"""A table of model families: where each one keeps what early exit needs. A family is a row, not a class."""

from dataclasses import dataclass
from functools import partial


class UnsupportedModelError(ValueError):
    """The model cannot be taken apart into embed, layers and head; the message says why."""


@dataclass(frozen=True)
class Family:
    """Names of the parts of one model family, as attribute paths from the model or from its base.

    Names that end in `_field` are fields of the model's config; one that is missing or None asks for nothing.
    """

    model_type: str
    base: str = "model"
    embed: str = "embed_tokens"
    embed_norm: str | None = None
    """A norm between the token embeddings and layer 0 (BLOOM)."""
    embed_multiplier_field: str | None = None
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    own_attention: bool = False
    """The layers keep attention code of their own, past transformers' AttentionInterface."""
    rotary: str | None = "rotary_emb"
    rotary_by_layer_type: bool = False
    """Sliding and full layers turn by different angles (Gemma 3)."""
    position_embedding: str | None = None
    """Learned absolute positions, added to the token embeddings."""
    position_offset: int = 0
    """OPT keeps two spare rows in front of its position table."""
    position_table: bool = False
    """Each layer looks its angles up in a table that ends at the last position (GPT-J, CodeGen)."""
    position_argument: str | None = "position_ids"
    """The decoder layer's own name for positions, None if it takes none."""
    alibi: str | None = None
    """How the layer takes ALiBi biases: a row of `layer_skip.alibi.HANDOVERS`."""
    cache_argument: str = "past_key_values"
    """The decoder layer's own name for the cache."""
    input_divisor_field: str | None = None
    """The head reads the final hidden state divided by this (MiniCPM 3)."""
    logit_multiplier_field: str | None = None
    logit_divisor_field: str | None = None
    logit_softcap_field: str | None = None
    """c of c * tanh(logits / c), where the family caps its logits."""
    lean: bool = False
    """The layers are built as Llama's are, so that `layer_skip.lean` can run them in a few launches."""
    fixed_length_field: str | None = None
    """From this position on a token's scale depends on the batch's padding (Llama 4): left to the model."""
    notes: str = ""
    """For the support matrix."""


_gpt = partial(Family, base="transformer", embed="wte", layers="h", norm="ln_f", attention="attn")
_own = partial(_gpt, own_attention=True, cache_argument="layer_past")
_bloom = partial(_own, embed="word_embeddings", attention="self_attention")
_granite = partial(
    Family, embed_multiplier_field="embedding_multiplier", logit_divisor_field="logits_scaling"
)
_SOFTCAP = "final_logit_softcapping"

# By popularity.
_ROWS = (
    Family("llama", lean=True, notes="1 to 3, tied and untied heads"),
    Family("mistral", lean=True, notes="sliding window"),
    Family("mixtral", notes="experts; sliding window"),
    Family("ministral", lean=True, notes="sliding and full layers"),
    Family("ministral3", notes="sliding window"),
    Family("qwen2", lean=True, notes="sliding and full layers"),
    Family("qwen2_moe", notes="experts; sliding and full layers"),
    Family("qwen3", lean=True, notes="sliding and full layers"),
    Family("qwen3_moe", notes="experts; sliding window"),
    Family("gemma"),
    Family("gemma2", logit_softcap_field=_SOFTCAP, notes="sliding and full layers, soft caps"),
    Family(
        "gemma3_text",
        rotary_by_layer_type=True,
        logit_softcap_field=_SOFTCAP,
        notes="sliding and full layers, angles of their own",
    ),
    Family("phi", norm="final_layernorm", notes="parallel branches"),
    Family("phi3", notes="sliding window"),
    _gpt("gpt2", rotary=None, position_embedding="wpe", notes="learned positions"),
    Family(
        "gpt_neox",
        base="gpt_neox",
        embed="embed_in",
        norm="final_layer_norm",
        attention="attention",
        cache_argument="layer_past",
        notes="parallel branches",
    ),
    _own("gptj", rotary=None, position_table=True, notes="parallel branches"),
    _gpt(
        "gpt_bigcode",
        cache_argument="layer_past",
        rotary=None,
        position_embedding="wpe",
        notes="learned positions, one K/V head",
    ),
    _own("codegen", rotary=None, position_table=True, notes="parallel branches"),
    Family(
        "opt",
        base="model.decoder",
        norm="final_layer_norm",
        rotary=None,
        position_embedding="embed_positions",
        position_offset=2,
        notes="learned positions",
    ),
    _bloom(
        "falcon",
        alibi="in the mask",
        notes="RoPE or ALiBi; one or a few K/V heads",
    ),
    _bloom(
        "bloom",
        embed_norm="word_embeddings_layernorm",
        rotary=None,
        position_argument=None,
        alibi="alibi",
        notes="ALiBi",
    ),
    _own(
        "mpt",
        layers="blocks",
        norm="norm_f",
        rotary=None,
        position_argument=None,
        alibi="position_bias",
        notes="ALiBi; checkpoints say use_cache=False: pass use_cache=True",
    ),
    Family("starcoder2", notes="sliding window"),
    Family("stablelm", notes="parallel branches"),
    Family("olmo"),
    Family("olmo2"),
    Family("olmo3", rotary_by_layer_type=True, notes="sliding and full layers, angles of their own"),
    Family("olmoe", notes="experts"),
    _granite("granite", lean=True, notes="scaled embeddings and logits"),
    _granite("granitemoe", notes="experts; scaled embeddings and logits"),
    Family("cohere", logit_multiplier_field="logit_scale", notes="parallel branches, scaled logits"),
    Family("cohere2", logit_multiplier_field="logit_scale", notes="sliding layers, full ones without RoPE"),
    Family("nemotron"),
    Family("glm"),
    Family("glm4"),
    Family("ernie4_5"),
    Family("hunyuan_v1_dense"),
    Family("smollm3", notes="layers without RoPE"),
    Family("exaone4", notes="sliding layers, full ones without RoPE"),
    Family("minicpm3", input_divisor_field="logits_scaling", notes="latent K/V; scaled logits"),
    Family("deepseek_v2", notes="experts; latent K/V"),
    Family("deepseek_v3", notes="experts; latent K/V"),
    Family("gpt_oss", notes="experts; attention sinks, sliding and full layers"),
    Family("llama4_text", fixed_length_field="floor_scale", notes="experts; chunked and full layers"),
)

FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}
