"""wrap(model), unwrap(model): the one line."""

import functools
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import UnsupportedModelError
from layer_skip.self_check import check_decoder
from selfspec.config import SpeculationConfig
from selfspec.fallback import NotSpeculatedError, check_arguments, check_mask_shape
from selfspec.generation import Output, callers_streamer, decode
from selfspec.rows import RoundEvent
from selfspec.speculation import Speculation
from selfspec.tuning.store import kept_profiles, load_profiles

Model = TypeVar("Model", bound=torch.nn.Module)


def wrap(model: Model, **settings: Any) -> Model:
    """Make `model.generate` speculative. The same object comes back; no weights are added or changed.

    Wrapping a wrapped model replaces its settings.

    Args:
        model: a Hugging Face causal language model.
        settings: the fields of `SpeculationConfig`.

    Raises:
        ConfigError: an unknown or impossible setting; the message says what is allowed.
        UnsupportedModelError: a model that cannot be taken apart; the message says why.
        ProfileError: a profile that cannot be read, or is for another model, device or dtype.
    """
    config = SpeculationConfig.of(**settings)
    if "generate" in vars(model) and not is_wrapped(model):
        raise UnsupportedModelError(f"this {type(model).__name__} has a generate of its own on the instance")
    decoder = LayeredDecoder(model)
    config.check_model(decoder.n_layers, decoder.takes_trees)
    check_decoder(model, decoder)
    profiles = kept_profiles(model) if config.profile is None else load_profiles(config.profile, model)
    speculation = Speculation(config)
    speculation.attach(model, profiles)
    speculation.prepare(model, decoder)
    model.speculation = speculation  # type: ignore[assignment]
    model.generate = SpeculativeGenerate(model)  # type: ignore[assignment]
    return model


def unwrap(model: Model) -> Model:
    """Give `model` its own generate back, exactly as before.

    Raises:
        ValueError: the model is not wrapped.
    """
    if not is_wrapped(model):
        raise ValueError(f"this {type(model).__name__} is not wrapped: call selfspec.wrap(model) first")
    del model.__dict__["generate"]
    del model.__dict__["speculation"]
    return model


def is_wrapped(model: torch.nn.Module) -> bool:
    """Whether `wrap` was called on this instance."""
    return isinstance(model.__dict__.get("generate"), SpeculativeGenerate)


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
        if _falling_back.get():
            return own_generate(inputs, *arguments, streamer=streamer, **keywords)
        try:
            check_arguments(keywords)
            prompts = keywords.get("input_ids") if inputs is None else inputs
            check_mask_shape(prompts, keywords.get("attention_mask"))
            # The streamer stays here: generate() would put the prompt into it before the request is checked.
            method = functools.partial(
                decode, model.speculation, streamer=streamer, on_round=on_round, workload=workload
            )
            return own_generate(inputs, *arguments, custom_generate=method, **keywords)
        except NotSpeculatedError as error:
            _warn_or_raise(error, model.speculation.config.strict, caller=3)
        token = _falling_back.set(True)
        try:
            return own_generate(inputs, *arguments, streamer=streamer, **keywords)
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

    The model is checked on its first call, as `wrap` would; `wrap` it to choose settings.
    """
    if is_wrapped(model):
        speculation = model.speculation
    elif model in _unwrapped:
        speculation = _unwrapped[model]
    else:
        check_decoder(model, LayeredDecoder(model))
        speculation = _unwrapped[model] = Speculation(SpeculationConfig(draft_memory=0))
    request: dict[str, Any] = {
        "logits_processor": logits_processor,
        "stopping_criteria": stopping_criteria,
        "generation_config": generation_config,
    }
    streamer = callers_streamer()
    try:
        # generate() has put the prompt into the streamer already.
        return decode(
            speculation,
            model,
            input_ids,
            streamer=streamer,
            prompt_streamed=True,
            **request,
            **model_arguments,
        )
    except NotSpeculatedError as error:
        _warn_or_raise(error, speculation.config.strict, caller=5)
    # The rows were expanded for beams or return sequences; generate() will do so again.
    copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
    mask = model_arguments.get("attention_mask")
    request["stopping_criteria"] = StoppingCriteriaList(
        c for c in stopping_criteria if not isinstance(c, (MaxLengthCriteria, EosTokenCriteria))
    )
    return type(model).generate(
        model,
        input_ids[::copies],
        attention_mask=None if mask is None else mask[::copies],
        streamer=None if streamer is None else _WithoutPrompt(streamer),
        **request,
    )


class _WithoutPrompt:
    """A streamer that has had its prompt already."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self._streamer.put(value)
        self._prompt_seen = True

    def end(self) -> None:
        self._streamer.end()


def _warn_or_raise(error: NotSpeculatedError, strict: bool, caller: int) -> None:
    """`caller`: frames up to the user's own line, which the warning points at."""
    if strict:
        raise error
    warnings.warn(f"{error}: using the model's own generate for this call", stacklevel=caller)
