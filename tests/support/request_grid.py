"""Requests to generate(), drawn by hypothesis: prompts in every form, options alone and together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from criteria import Crowd, EndsWith, Patience, Sure
from hypothesis import strategies as st
from tiny_models import LAYERS, VOCAB, random_prompts
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedTokenizerFast,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

import selfspec

FORMS = ("ids", "position", "embeddings", "cache", "new tokens")
"""How a prompt is given: by name, by position, as embeddings, all of it with a cache of its beginning, or
only what the cache does not hold."""

BOUND: dict[str, Any] = {"wrapped": "for this call"}
"""In place of settings: `custom_generate=selfspec.generate` on a model that is not wrapped."""

TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.BPE({chr(33 + i): i for i in range(VOCAB)}, [])), pad_token="!"
)
TOKENIZER.backend_tokenizer.decoder = decoders.Fuse()


@dataclass(frozen=True)
class Request:
    """One call: what goes in, and how the model is wrapped for it."""

    lengths: list[int]
    seed: int
    form: str
    frequent: int
    """How many of the prompt's frequent continuations end a row."""
    options: dict[str, Any] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def sampled(self) -> bool:
        return bool(self.options.get("do_sample"))

    @property
    def bound(self) -> bool:
        return self.setting is BOUND

    def arguments(self, model: Any, ends: list[int]) -> dict[str, Any]:
        """Keyword arguments of generate(), "inputs" among them; a new cache every time."""
        prompts = random_prompts(*self.lengths, seed=self.seed)
        ids, mask = prompts["input_ids"], prompts["attention_mask"]
        made: dict[str, Any] = {**self.options, "attention_mask": mask}
        if ends:
            made["eos_token_id"] = ends
        if "stop_strings" in made:
            made["tokenizer"] = TOKENIZER
        known = max(1, ids.shape[1] // 2)
        if self.form == "embeddings":
            with torch.no_grad():
                made["inputs_embeds"] = model.get_input_embeddings()(ids)
        elif self.form in ("cache", "new tokens") and known < ids.shape[1]:
            with torch.no_grad():
                cache = DynamicCache(config=model.config if self.seed % 2 else None)
                positions = (mask[:, :known].cumsum(1) - 1).clamp(min=0)
                model(
                    input_ids=ids[:, :known],
                    attention_mask=mask[:, :known],
                    past_key_values=cache,
                    **({"position_ids": positions} if _takes_positions(model) else {}),
                )
            made["past_key_values"] = cache
            made["input_ids"] = ids[:, known:] if self.form == "new tokens" else ids
        else:
            made["inputs" if self.form == "position" else "input_ids"] = ids
        return made


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


@selfspec.rowwise
def own_processor(ids: Tensor, scores: Tensor) -> Tensor:
    """Reads the whole prefix."""
    scores = scores.clone()
    for row, prefix in enumerate(ids.tolist()):
        scores[row, sum(prefix) % VOCAB] -= 4.0
    return scores


def counting_processor() -> Any:
    """Has a state: another answer at every call."""
    calls = []

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(None)
        return scores.roll(len(calls), dims=-1)

    return process


OWN_CRITERIA: dict[str, Callable[[], Any]] = {
    "one row, no memory": lambda: EndsWith(*range(0, VOCAB, 6)),
    "all rows, a memory": lambda: Crowd(often=4),
    "scores": lambda: Sure(lead=0.3),
    "scores of its own row": lambda: selfspec.rowwise(Sure(lead=0.3)),
    "a plain bool": lambda: Patience(5),
}
"""A new one for every call."""


def allowed(row: int, prefix: Tensor) -> list[int]:
    return [token for token in range(VOCAB) if (token + row + len(prefix)) % 3]


_TOKEN = st.integers(1, VOCAB - 1)
_TOKENS = st.lists(_TOKEN, min_size=1, max_size=4, unique=True)
_SCORES = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.2, 1.6]),
        "encoder_repetition_penalty": st.sampled_from([0.8, 1.3]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "encoder_no_repeat_ngram_size": st.integers(2, 3),
        "min_new_tokens": st.integers(1, 6),
        "min_length": st.integers(1, 30),
        "bad_words_ids": st.lists(st.lists(_TOKEN, min_size=1, max_size=2), min_size=1, max_size=3),
        "sequence_bias": st.lists(
            st.tuples(st.lists(_TOKEN, min_size=1, max_size=2), st.sampled_from([-3.0, 2.0])).map(list),
            min_size=1,
            max_size=3,
            unique_by=lambda pair: tuple(pair[0]),
        ),
        "suppress_tokens": _TOKENS,
        "begin_suppress_tokens": _TOKENS,
        "forced_bos_token_id": _TOKEN,
        "forced_eos_token_id": _TOKEN,
        "exponential_decay_length_penalty": st.just((3, 1.3)),
        "renormalize_logits": st.booleans(),
        "remove_invalid_values": st.booleans(),
        "watermarking_config": st.sampled_from(
            [
                WatermarkingConfig(bias=2.0),
                WatermarkingConfig(bias=1.5, seeding_scheme="selfhash", context_width=2),
                SynthIDTextWatermarkingConfig(ngram_len=3, keys=[5, 7, 11]),
            ]
        ),
        "prefix_allowed_tokens_fn": st.just(allowed),
        "logits_processor": st.sampled_from(["own", "counting"]),
        "guidance_scale": st.sampled_from([1.0, 1.5]),
    },
)
_WARPERS = st.fixed_dictionaries(
    {"do_sample": st.just(True)},
    optional={
        "temperature": st.sampled_from([0.4, 1.0, 1.7]),
        "top_k": st.integers(0, 20),
        "top_p": st.sampled_from([0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.02, 0.1]),
        "top_h": st.sampled_from([0.4, 0.9]),
        "typical_p": st.sampled_from([0.3, 0.9]),
        "epsilon_cutoff": st.sampled_from([3e-4, 1e-2]),
        "eta_cutoff": st.sampled_from([3e-4, 1e-2]),
        "num_return_sequences": st.integers(1, 3),
    },
)
_OUTPUTS = st.fixed_dictionaries(
    {},
    optional={
        "return_dict_in_generate": st.just(True),
        "output_scores": st.just(True),
        "output_logits": st.just(True),
        "output_hidden_states": st.sampled_from([False] * 5 + [True]),
        "cache_implementation": st.sampled_from(["dynamic", "static", "offloaded"]),
        "prefill_chunk_size": st.integers(2, 9),
        "use_cache": st.sampled_from([True] * 5 + [False]),
        "num_beams": st.sampled_from([1] * 5 + [2]),
        "streamer": st.just("recorder"),
    },
)
_STOPS = st.fixed_dictionaries(
    {},
    optional={
        "stopping_criteria": st.sampled_from(sorted(OWN_CRITERIA)),
        "stop_strings": st.sampled_from(["a", "B", ["c", "xy"], "P"]),
        "max_time": st.sampled_from([1e-9, 600.0]),
    },
)
_CHAINS: list[dict[str, Any]] = [
    {"exit_layer": 1, "draft_length": 1},
    {"exit_layer": LAYERS // 2, "draft_length": 4},
    {"exit_layer": LAYERS - 1, "draft_length": 7},
    {"exit_layer": LAYERS // 2, "draft_length": 3, "deterministic": False},
    {"exit_layer": LAYERS - 1, "draft_length": 3, "acceptance": "rejection"},
    {"draft": "low_bit"},
    {"draft": "low_bit", "exit_layer": LAYERS, "draft_length": 5},
    {"draft": "low_bit", "exit_layer": LAYERS, "draft_length": 3, "acceptance": "rejection"},
    {"draft": "hybrid", "draft_length": 3},
    {"draft": "lookup"},
    {"draft": "auto"},
]
_TREES: list[dict[str, Any]] = [
    {"exit_layer": LAYERS // 2, "draft_length": 3, "tree": "siblings"},
    {"draft": "low_bit", "exit_layer": LAYERS, "draft_length": 4, "tree": "siblings"},
    {"draft": "hybrid", "draft_length": 3, "tree": "siblings"},
]


def _few(options: st.SearchStrategy[dict[str, Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the options at a time: many together mostly contradict each other."""
    return options.flatmap(
        lambda drawn: (
            st.lists(st.sampled_from(sorted(drawn)), max_size=most, unique=True).map(
                lambda names: {name: drawn[name] for name in names}
            )
            if drawn
            else st.just({})
        )
    )


@st.composite
def requests(draw: Any, trees: bool = True) -> Request:
    """Any call that generate() itself takes, wrapped for it or as one call on a model that is not."""
    lengths = draw(st.lists(st.integers(1, 26), min_size=1, max_size=4))
    options = {
        "max_new_tokens": draw(st.integers(1, 12)),
        **draw(_few(_SCORES, 3)),
        **draw(_few(_OUTPUTS, 4)),
        **draw(_few(_STOPS, 2)),
        **draw(st.one_of(st.just({}), _WARPERS)),
    }
    form = draw(st.sampled_from(FORMS))
    if options.get("num_beams") == 2:
        options.pop("streamer", None)
    if form == "embeddings":  # the model's own loop cuts the ids that are not there, and fails
        options.pop("prefill_chunk_size", None)
    setting = draw(st.sampled_from([*_CHAINS, *(_TREES if trees else ()), BOUND]))
    if setting is BOUND:  # generate() hands its tokenizer to no decoding method
        options.pop("stop_strings", None)
    return Request(lengths, draw(st.integers(0, 99)), form, draw(st.integers(0, 3)), options, setting)
