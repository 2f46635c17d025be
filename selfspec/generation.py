"""Hugging Face's generate() signature in, its outputs out."""

import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput, MaxLengthCriteria

from layer_skip.decoder import LayeredDecoder
from selfspec.cache import KVCache
from selfspec.call import Call
from selfspec.config import MAX_DRAFT_LENGTH
from selfspec.engine import speculate
from selfspec.fallback import NotSpeculatedError, check_prompts, check_request
from selfspec.modes import Coupled, Greedy, Mode, Rejection
from selfspec.processing import Processors
from selfspec.rows import RoundEvent, Rows
from selfspec.sampling import request_keys

if TYPE_CHECKING:
    from selfspec.speculation import Speculation

_SPARE_COLUMNS = MAX_DRAFT_LENGTH + 16
Output: TypeAlias = Tensor | GenerateDecoderOnlyOutput


def decode(
    speculation: "Speculation",
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Any = None,
    prompt_streamed: bool = False,
    on_round: Callable[[RoundEvent], None] | None = None,
    workload: str | None = None,
    **model_arguments: Any,
) -> Output:
    """Generate speculatively from a request that Hugging Face's generate() has prepared.

    Args:
        input_ids: left-padded prompts [B, P].
        workload: name of the profile to use.

    Raises:
        NotSpeculatedError: the request needs the model's own generate; nothing has been generated yet.
        ValueError: a prompt that cannot be generated from; the message says what to do.
        ProfileError: there is no profile of that workload, or the settings leave none a choice.
    """
    began = time.perf_counter()
    check_request(generation_config, logits_processor, len(input_ids), model_arguments)
    decoder = LayeredDecoder(model)
    mask = model_arguments.get("attention_mask")
    check_prompts(input_ids, mask, decoder.vocab_size, decoder.max_positions)
    rows = _rows(decoder, input_ids, mask, generation_config, stopping_criteria)
    call = _call(speculation, model, decoder, rows, generation_config, logits_processor, workload)
    call.on_round = on_round
    if streamer is not None:
        if not prompt_streamed:
            streamer.put(input_ids.cpu())
        call.on_commit = _Stream(streamer)
    speculate(call)
    if streamer is not None:
        streamer.end()
    call.stats.calls, call.stats.seconds = 1, time.perf_counter() - began
    speculation.finish(call.stats)
    sequences = rows.output()
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=_hf_cache(call))


def _rows(
    decoder: LayeredDecoder,
    prompts: Tensor,
    mask: Tensor | None,
    config: GenerationConfig,
    criteria: StoppingCriteriaList,
) -> Rows:
    others = [c for c in criteria if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))]
    eos = [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)]
    if others and not eos and len(prompts) > 1:
        # Without an end-of-sequence token generate() goes on with stopped rows until all have stopped.
        raise NotSpeculatedError("a stopping criterion for several rows without an eos_token_id")
    limits = [c.max_length for c in criteria if isinstance(c, MaxLengthCriteria)]
    max_length = min(limits, default=config.max_length)
    if decoder.has_learned_positions and decoder.max_positions and max_length - 1 > decoder.max_positions:
        raise ValueError(
            f"max_length={max_length} exceeds the model's {decoder.max_positions} learned positions: "
            f"set max_new_tokens to at most {decoder.max_positions - prompts.shape[1]}"
        )
    if decoder.fixed_rope_length is not None and max_length + _SPARE_COLUMNS > decoder.fixed_rope_length:
        raise NotSpeculatedError(f"rotary scaling that changes past {decoder.fixed_rope_length} tokens")
    pad = getattr(config, "_pad_token_tensor", None)
    return Rows.of_prompts(
        prompts.to(decoder.device),
        torch.ones_like(prompts) if mask is None else mask,
        max_new_tokens=max_length - prompts.shape[1],
        slack=_SPARE_COLUMNS,
        eos_tokens=frozenset(token for ids in eos for token in ids.flatten().tolist()),
        pad_token=0 if pad is None else int(pad),
        criteria=others,
    )


def _call(
    speculation: "Speculation",
    model: Any,
    decoder: LayeredDecoder,
    rows: Rows,
    config: GenerationConfig,
    processors: LogitsProcessorList,
    workload: str | None,
) -> Call:
    shapes = speculation.shapes(decoder)
    slots = rows.sequences.shape[1]
    sampled = bool(config.do_sample)
    drafter, pacer, stats, reading = speculation.strategy(model, decoder, rows, sampled, workload)
    return Call(
        decoder=decoder,
        cache=KVCache(len(rows.active), decoder.n_layers, shapes.key_length(min(slots, 4096))),
        rows=rows,
        processors=Processors(list(processors)),
        mode=_mode(speculation, decoder, rows) if sampled else Greedy(),
        drafter=drafter,
        pacer=pacer,
        shapes=shapes,
        prefill_alone=speculation.config.deterministic,
        stats=stats,
        watch=None if reading is None else reading.watch,
    )


def _mode(speculation: "Speculation", decoder: LayeredDecoder, rows: Rows) -> Mode:
    # From torch's own generator, so that torch.manual_seed decides the text.
    seed = int(torch.randint(0, 2**62, (1,)))
    kind = Coupled if speculation.config.acceptance == "coupled" else Rejection
    return kind(seed, request_keys(rows.prompts()).to(decoder.device), decoder.vocab_size)


class _Stream:
    """Hands tokens to a Hugging Face streamer as they are committed, one column of the batch at a time."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._sent = 0

    def __call__(self, rows: Rows) -> None:
        ready = min((rows.generated[row] for row in rows.active), default=max(rows.generated))
        while self._sent < ready:
            column = rows.sequences[:, rows.prompt_width + self._sent].clone()
            for row, count in enumerate(rows.generated):
                if count <= self._sent:
                    column[row] = rows.pad_token
            self._streamer.put(column.cpu())
            self._sent += 1


def _hf_cache(call: Call) -> DynamicCache | None:
    """The cache in Hugging Face's form, for one row (the rows of a batch finish at different lengths)."""
    if len(call.rows.generated) > 1:
        return None
    length = call.rows.prompt_width - call.rows.pads[0] + call.rows.generated[0] - 1
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(call.cache.keys, call.cache.values, strict=True)):
        if keys is not None and values is not None:
            cache.update(keys[:, :, :length].clone(), values[:, :, :length].clone(), index)
    return cache


def callers_streamer() -> Any:
    """The streamer of the generate() call that called `selfspec.generate` as its custom_generate.

    transformers hands a streamer to its own decoding methods only; ignoring it would be silent.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and "generation_mode_kwargs" in frame.f_locals:
            return frame.f_locals.get("streamer")
        frame = frame.f_back
    return None
