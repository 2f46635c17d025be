"""Hugging Face's generate() signature in, its outputs out."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, GenerateDecoderOnlyOutput, MaxLengthCriteria

from layer_skip.decoder import LayeredDecoder
from selfspec.cache import KVCache
from selfspec.call import PREFILL_CHUNK, PREFILL_CHUNK_ON_GPU, Call
from selfspec.carrying import load
from selfspec.config import MAX_DRAFT_LENGTH
from selfspec.device.engine import speculate_on_device
from selfspec.drafting.embedded import FromEmbeddings
from selfspec.engine import speculate
from selfspec.fallback import NotSpeculatedError, check_model, check_request, other_criteria
from selfspec.lockstep import Lockstep
from selfspec.modes import Coupled, Greedy, Mode, Rejection
from selfspec.outputs import KeepingCache, Record, hand_over, run_on
from selfspec.precision import check_autocast
from selfspec.processing import Processors
from selfspec.prompt import Prompt
from selfspec.rows import RoundEvent, Rows
from selfspec.sampling import request_keys
from selfspec.streaming import Stream

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
        UnsupportedModelError: the model was changed since it was wrapped, and cannot be taken apart now.
        ValueError: a prompt that cannot be generated from; the message says what to do.
        ProfileError: there is no profile of that workload, or the settings leave none a choice.
    """
    began = time.perf_counter()
    check_request(generation_config, logits_processor, stopping_criteria, len(input_ids), model_arguments)
    check_model(model)
    check_autocast(model)
    decoder = LayeredDecoder(model)
    speculation.recheck(model, decoder)
    prompt = Prompt.of(input_ids, generation_config, model_arguments, decoder)
    rows = _rows(decoder, prompt, generation_config, stopping_criteria)
    call = _call(speculation, model, decoder, rows, generation_config, logits_processor, workload)
    record = _take_up(call, prompt, generation_config)
    _observe(call, record, generation_config, on_round)
    if streamer is not None:
        if not prompt_streamed:
            streamer.put(input_ids.cpu())
        call.on_commit = Stream(streamer)
    with ExitStack() as lent:
        space = speculation.lend(call, lent)
        if space is None:
            speculate(call)
        else:
            speculate_on_device(call, space)
    if call.lockstep is not None:
        call.lockstep.finish(call.stats)
    if streamer is not None:
        streamer.end()
    call.stats.calls, call.stats.seconds = 1, time.perf_counter() - began
    speculation.finish(call.stats)
    return _output(call, prompt, generation_config, record)


def _take_up(call: Call, prompt: Prompt, config: GenerationConfig) -> Record | None:
    """Begin from embeddings or K/V that came with the call, and keep what it is to give back."""
    decoder, rows = call.decoder, call.rows
    alone = call.prefill_alone and decoder.device.type == "cuda"
    most = PREFILL_CHUNK_ON_GPU if alone else PREFILL_CHUNK
    call.prefill_chunk = min(config.prefill_chunk_size or most, most)
    if config.return_dict_in_generate or prompt.cache is not None:
        call.cache = KeepingCache(call.cache.rows, decoder.n_layers, call.cache.capacity)
    if prompt.cache is not None and prompt.known:
        load(prompt.cache, call.cache, rows.pads, prompt.known)
        call.prefill_alone = True  # rows go on at different slots
    if prompt.embeddings is not None:
        call.embeddings = prompt.embeddings
        call.drafter = FromEmbeddings(call.drafter, prompt.embeddings[:, -1:])
    if not (config.return_dict_in_generate and (config.output_scores or config.output_logits)):
        return None
    record = Record(rows, call.processors, call.mode)
    call.processors, call.mode = record.processors, record.mode
    return record


def _observe(
    call: Call,
    record: Record | None,
    config: GenerationConfig,
    on_round: Callable[[RoundEvent], None] | None,
) -> None:
    """Tell rounds to the caller, and ask stopping criteria other than length and end of sequence."""
    call.on_round = on_round
    if call.rows.criteria:
        scores = record.scores_so_far if record is not None and config.output_scores else None
        call.lockstep = Lockstep(call.rows, scores, on_round)
        call.on_round = call.lockstep.hold


def _output(call: Call, prompt: Prompt, config: GenerationConfig, record: Record | None) -> Output:
    """What generate() returns; a cache that came with the call takes up the call's K/V."""
    cache = prompt.cache
    if isinstance(call.cache, KeepingCache):
        run_on(call, call.cache, record)
        cache = hand_over(call, DynamicCache() if cache is None else cache, prompt.known)
    sequences = call.rows.output()
    if not config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=record.steps(scores=True) if record is not None and config.output_scores else None,
        logits=record.steps(scores=False) if record is not None and config.output_logits else None,
        past_key_values=cache,
    )


def _rows(
    decoder: LayeredDecoder, prompt: Prompt, config: GenerationConfig, criteria: StoppingCriteriaList
) -> Rows:
    eos = [c.eos_token_id for c in criteria if type(c) is EosTokenCriteria]
    limits = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    max_length = min(limits, default=config.max_length)
    columns = prompt.unseen + max_length
    if decoder.has_learned_positions and decoder.max_positions and columns - 1 > decoder.max_positions:
        raise ValueError(
            f"max_length={columns} exceeds the model's {decoder.max_positions} learned positions: "
            f"set max_new_tokens to at most {decoder.max_positions - prompt.mask.shape[1]}"
        )
    if decoder.fixed_rope_length is not None and columns + _SPARE_COLUMNS > decoder.fixed_rope_length:
        raise NotSpeculatedError(f"rotary scaling that changes past {decoder.fixed_rope_length} tokens")
    pad = getattr(config, "_pad_token_tensor", None)
    return Rows.of_prompts(
        prompt.tokens.to(decoder.device),
        prompt.mask,
        max_new_tokens=max_length - prompt.tokens.shape[1],
        slack=_SPARE_COLUMNS,
        eos_tokens=frozenset(token for ids in eos for token in ids.flatten().tolist()),
        pad_token=0 if pad is None else int(pad),
        criteria=criteria if other_criteria(criteria) else (),
        known=prompt.known,
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
    slots = rows.unseen + rows.sequences.shape[1]
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
    seed = int(torch.randint(0, 2**62, (1,), device="cpu"))
    kind = Coupled if speculation.config.acceptance == "coupled" else Rejection
    return kind(seed, request_keys(rows.prompts()).to(decoder.device), decoder.vocab_size)
