"""A generate() call as it was written, made into one that an own decoding method can be given to."""

import functools
import inspect
from typing import Any

from torch import nn
from transformers import StoppingCriteriaList, StopStringCriteria

from selfspec.fallback import NotSpeculatedError, check_arguments, check_mask_shape


def named(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name, whichever way they were written.

    Raises:
        TypeError: an argument twice, or more of them than generate() takes by position.
    """
    names = _names_by_position(type(model).generate)  # type: ignore[attr-defined]
    if len(arguments) > len(names):
        raise TypeError(f"generate() takes at most {len(names)} arguments by position, not {len(arguments)}")
    by_name = dict(zip(names, arguments, strict=False))
    twice = sorted(by_name.keys() & keywords.keys())
    if twice:
        raise TypeError(f"generate() got multiple values for argument {twice[0]!r}")
    return {**by_name, **keywords}


@functools.lru_cache(maxsize=64)
def _names_by_position(generate: Any) -> tuple[str, ...]:
    parameters = inspect.signature(generate).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)[1:]


def speculable(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The request as generate() takes it together with a decoding method of one's own.

    Raises:
        NotSpeculatedError: it asks for what generate() does by itself, before a decoding method is called.
        ValueError: an attention mask that is not the prompts' own.
    """
    check_arguments(request)
    for name, value in (("cache_implementation", "paged"), ("token_healing", True)):
        if _asked(model, request, name) == value:
            raise NotSpeculatedError(f"{name}={value!r}", "done before a decoding method is called")
    prompts = request.get("inputs")
    if request.get("past_key_values") is None and request.get("inputs_embeds") is None:
        check_mask_shape(
            request.get("input_ids") if prompts is None else prompts, request.get("attention_mask")
        )
    return _with_stop_strings(model, request)


def _asked(model: Any, request: dict[str, Any], option: str) -> Any:
    """The value of an option: from the call, its generation_config, or the model's."""
    if option in request:
        return request[option]
    value = getattr(request.get("generation_config"), option, None)
    return getattr(model.generation_config, option, None) if value is None else value


def _with_stop_strings(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Stop strings as a criterion, which generate() can make for its own decoding methods only."""
    tokenizer, strings = request.get("tokenizer"), _asked(model, request, "stop_strings")
    if tokenizer is None or strings is None:
        return request
    criteria = list(request.get("stopping_criteria") or [])
    if not any(type(criterion) is StopStringCriteria for criterion in criteria):
        criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=strings))
    return {**request, "stop_strings": None, "stopping_criteria": StoppingCriteriaList(criteria)}


CALLERS = (
    "streamer",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
"""Arguments that generate() keeps, or prepares, before it hands a request to another's decoding method."""


def callers_arguments() -> dict[str, Any]:
    """The CALLERS of the generate() call that called `selfspec.generate` as its custom_generate.

    transformers hands a streamer to its own decoding methods only; ignoring it would be silent. And the
    logits processors that it hands over are prepared: another generate() would warp and watermark twice.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and "generation_mode_kwargs" in frame.f_locals:
            return {name: frame.f_locals[name] for name in CALLERS if frame.f_locals.get(name) is not None}
        frame = frame.f_back
    return {}
