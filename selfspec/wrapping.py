"""wrap(model), unwrap(model): the one line."""

import functools
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._dynamo import OptimizedModule
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import UnsupportedModelError
from selfspec.config import SpeculationConfig
from selfspec.fallback import NotSpeculatedError, other_criteria
from selfspec.generation import Output, decode
from selfspec.precision import outside_autocast
from selfspec.request import callers_arguments, named, speculable
from selfspec.rows import RoundEvent
from selfspec.speculation import Speculation
from selfspec.streaming import WithoutPrompt
from selfspec.tuning.store import kept_profiles, load_profiles

Model = TypeVar("Model", bound=torch.nn.Module)


def wrap(model: Model, **settings: Any) -> Model:
    """Make `model.generate` speculative. The same object comes back; no weights are added or changed.

    Wrapping a wrapped model replaces its settings.

    Args:
        model: a Hugging Face causal language model, a PEFT model over one, or what torch.compile made of it.
        settings: the fields of `SpeculationConfig`.

    Raises:
        ConfigError: an unknown or impossible setting; the message says what is allowed.
        UnsupportedModelError: a model that cannot be taken apart; the message says why.
        ProfileError: a profile that cannot be read, or is for another model, device or dtype.
    """
    config = SpeculationConfig.of(**settings)
    inner: Any = _generating(model)
    if "generate" in vars(inner) and not is_wrapped(inner):
        raise UnsupportedModelError(f"this {type(inner).__name__} has a generate of its own on the instance")
    decoder = LayeredDecoder(inner)
    speculation, generate = Speculation(config), SpeculativeGenerate(inner)
    with outside_autocast(decoder.device):
        speculation.recheck(inner, decoder)
        profiles = kept_profiles(inner) if config.profile is None else load_profiles(config.profile, inner)
        speculation.attach(inner, profiles)
        speculation.prepare(inner, decoder)
    inner.speculation, inner.generate = speculation, generate  # nothing can fail from here on
    return model


def unwrap(model: Model) -> Model:
    """Give `model` its own generate back, exactly as before.

    Raises:
        ValueError: the model is not wrapped.
    """
    if not is_wrapped(model):
        raise ValueError(f"this {type(model).__name__} is not wrapped: call selfspec.wrap(model) first")
    inner = _generating(model)
    del inner.__dict__["generate"]
    del inner.__dict__["speculation"]
    return model


def is_wrapped(model: torch.nn.Module) -> bool:
    """Whether `wrap` was called on this instance."""
    return isinstance(_generating(model).__dict__.get("generate"), SpeculativeGenerate)


def _generating(model: torch.nn.Module) -> torch.nn.Module:
    """The model whose own generate does the work: PEFT and torch.compile hand calls on to the one inside."""
    if isinstance(model, OptimizedModule):
        return _generating(model._orig_mod)
    base = getattr(model, "get_base_model", None)
    return _generating(base()) if callable(base) else model


# Assisted generation calls generate() on its draft model, which may be this one: it means the model's own.
_falling_back: ContextVar[bool] = ContextVar("_falling_back", default=False)


class SpeculativeGenerate:
    """The generate of one wrapped instance; an object, so that copies and pickles follow it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.__doc__ = type(model).generate.__doc__  # type: ignore[attr-defined]

    def __call__(
        self,
        inputs: Tensor | None = None,
        *arguments: Any,
        streamer: Any = None,
        on_round: Callable[[RoundEvent], None] | None = None,
        workload: str | None = None,
        **keywords: Any,
    ) -> Output:
        """As the model's own generate.

        Args:
            on_round: called with a RoundEvent per row and round.
            workload: name of the profile to draft by (default: see `SpeculationConfig.profile`).
        """
        model: Any = self._model
        own_generate = functools.partial(type(model).generate, model)
        given = keywords if streamer is None else {**keywords, "streamer": streamer}
        request = named(model, (inputs, *arguments), given)
        streamer = request.pop("streamer", None)
        if request.get("custom_generate") is generate:  # what happens anyway
            del request["custom_generate"]
        if _falling_back.get():
            return own_generate(streamer=streamer, **request)
        try:
            # The streamer stays here: generate() would put the prompt into it before the request is checked.
            method = functools.partial(
                decode, model.speculation, streamer=streamer, on_round=on_round, workload=workload
            )
            return own_generate(**{**speculable(model, request), "custom_generate": method})
        except NotSpeculatedError as error:
            _warn_or_raise(error, model.speculation.config.strict, caller=3)
        token = _falling_back.set(True)
        try:
            return own_generate(streamer=streamer, **request)
        finally:
            _falling_back.reset(token)


_unwrapped: "weakref.WeakKeyDictionary[torch.nn.Module, Speculation]" = weakref.WeakKeyDictionary()


def generate(
    model: Any,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_arguments: Any,
) -> Output:
    """For one call on a model that is not wrapped: `model.generate(..., custom_generate=selfspec.generate)`.

    The model is checked on its first call, as `wrap` would; `wrap` it to choose settings, or for
    stop_strings: transformers gives no tokenizer to a decoding method of others.
    """
    if is_wrapped(model):
        speculation = model.speculation
    else:
        if model not in _unwrapped:
            _unwrapped[model] = Speculation(SpeculationConfig(draft_memory=0))
        speculation = _unwrapped[model]
    # Called by itself, it was given the caller's own processors.
    given = callers_arguments() or {"logits_processor": logits_processor}
    streamer = given.pop("streamer", None)
    try:
        # generate() has put the prompt into the streamer already.
        return decode(
            speculation,
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            streamer=streamer,
            prompt_streamed=True,
            **model_arguments,
        )
    except NotSpeculatedError as error:
        _warn_or_raise(error, speculation.config.strict, caller=5)
    return type(model).generate(
        model,
        **_as_passed(input_ids, generation_config, model_arguments),
        generation_config=generation_config,
        stopping_criteria=StoppingCriteriaList(other_criteria(stopping_criteria)),
        streamer=None if streamer is None else WithoutPrompt(streamer),
        **given,
    )


def _as_passed(
    input_ids: Tensor, config: GenerationConfig, model_arguments: dict[str, Any]
) -> dict[str, Any]:
    """The inputs of a request as they were before generate() prepared them, so that it can do so again."""
    if "attention_mask" in model_arguments and model_arguments["attention_mask"] is None:
        # dropped, being all ones
        width = getattr(config, "_mask_length", input_ids.shape[1])
        model_arguments["attention_mask"] = input_ids.new_ones(len(input_ids), width)
    if not getattr(model_arguments.get("past_key_values"), "_is_user_defined", False):
        model_arguments.pop("past_key_values", None)
    if input_ids.shape[1]:
        model_arguments["input_ids"] = input_ids
    # The rows were expanded for beams or return sequences; generate() will do so again.
    copies = max(config.num_beams or 1, config.num_return_sequences or 1)
    return {
        name: value[::copies] if isinstance(value, Tensor) else value
        for name, value in model_arguments.items()
        if value is not None and name != "use_cache" and not (name == "logits_to_keep" and type(value) is int)
    }


def _warn_or_raise(error: NotSpeculatedError, strict: bool, caller: int) -> None:
    """`caller`: frames up to the user's own line, which the warning points at."""
    if strict:
        raise error
    warnings.warn(f"{error}: using the model's own generate for this call", stacklevel=caller)
