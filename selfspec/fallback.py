"""What goes to the model's own generate, and what no decoding can serve."""

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
)

from layer_skip.refusals import is_offloaded
from selfspec.processing import is_rowwise
from selfspec.surface import LEFT_ARGUMENTS, unserved

_SCORELESS = (MaxTimeCriteria, StopStringCriteria)
"""Stopping criteria that do not read scores."""

_EXPECTED_MODEL_ARGUMENTS = frozenset(
    (
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
        "logits_to_keep",
        "cache_position",
    )
)
_NOISE = ("drop", "jitter")
_PER_ROW = frozenset(("adapter_names", "alora_offsets"))
"""What PEFT hands to adapters for each row of a call, by hooks that last as long as the call."""


class NotSpeculatedError(ValueError):
    """An option that only the model's own generate can serve.

    Args:
        option: its name, with the value where that matters.
        why: in a few words.
    """

    def __init__(self, option: str, why: str = "") -> None:
        super().__init__(f"{option} cannot be speculated" + (f" ({why})" if why else ""))
        self.option = option


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise NotSpeculatedError for an argument of generate() that the engine does not serve."""
    for name, why in LEFT_ARGUMENTS.items():
        if arguments.get(name) is not None and arguments[name] is not False:
            raise NotSpeculatedError(name, why)


def check_request(
    config: GenerationConfig,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    rows: int,
    model_arguments: dict[str, Any],
) -> None:
    """Raise NotSpeculatedError for a prepared request that the engine does not serve."""
    option = unserved(config)
    if option is not None:
        raise NotSpeculatedError(*option)
    for name, value in model_arguments.items():
        if value is not None and name not in _EXPECTED_MODEL_ARGUMENTS:
            raise NotSpeculatedError(f"the model argument {name}", "not known to the engine")
    if isinstance(model_arguments.get("logits_to_keep"), torch.Tensor):
        raise NotSpeculatedError("logits_to_keep as a tensor", "the last token may not be among them")
    for processor in processors:
        if not is_rowwise(processor):
            why = "it may remember earlier calls or look at other rows; if not, mark it with selfspec.rowwise"
            raise NotSpeculatedError(f"the logits processor {_name(processor)}", why)
    _check_criteria(config, criteria, rows)


def other_criteria(criteria: StoppingCriteriaList) -> list[StoppingCriteria]:
    """Stopping criteria beside those of length and end of sequence."""
    return [c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)]


def _check_criteria(config: GenerationConfig, criteria: StoppingCriteriaList, rows: int) -> None:
    """A criterion may read the scores of all rows, which those that have ended do not have until the end."""
    returns_scores = config.return_dict_in_generate and config.output_scores
    if rows == 1 or not returns_scores or not any(hasattr(c, "eos_token_id") for c in criteria):
        return
    for criterion in other_criteria(criteria):
        if type(criterion) not in _SCORELESS and not getattr(criterion, "rowwise", False):
            name = f"the stopping criterion {_name(criterion)} over several rows with output_scores=True"
            why = "it may read scores of rows that have ended; if not, mark it with selfspec.rowwise"
            raise NotSpeculatedError(name, why)


def _name(thing: object) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def check_model(model: Any) -> None:
    """Raise NotSpeculatedError for a model that is not at hand, prepares its inputs itself, draws noise or
    keeps no cache.
    """
    if is_offloaded(model):
        raise NotSpeculatedError("a model that accelerate offloads", "every pass loads its weights anew")
    own = vars(model).get("prepare_inputs_for_generation")
    if own is not None and getattr(own, "__func__", None) is not type(model).prepare_inputs_for_generation:
        why = "it may put a soft prompt in front of every text"
        raise NotSpeculatedError("a prepare_inputs_for_generation of the instance's own", why)
    given = {name for module in model.modules() for name in _given_per_row(module)}
    for name in sorted(given):
        raise NotSpeculatedError(name, "rows that have an adapter each")
    if not model.training:
        return
    if getattr(model, "is_gradient_checkpointing", False):
        raise NotSpeculatedError("gradient checkpointing in train() mode", "it keeps no cache")
    modules = any("Dropout" in type(m).__name__ and getattr(m, "p", 0) for m in model.modules())
    settings = vars(model.config).items()
    if modules or any(
        isinstance(value, (int, float)) and value > 0 and any(word in name for word in _NOISE)
        for name, value in settings
    ):
        raise NotSpeculatedError("train() mode with dropout", "every pass is another one; call model.eval()")


def _given_per_row(module: torch.nn.Module) -> frozenset[str]:
    hooks = module._forward_pre_hooks.values()
    return frozenset().union(*(_PER_ROW & getattr(hook, "keywords", {}).keys() for hook in hooks))


def check_mask_shape(prompts: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    """Raise ValueError for a mask that is not the prompts' own: generate() drops one of all ones unseen."""
    if prompts is not None and mask is not None and mask.shape != prompts.shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, the prompts {list(prompts.shape)}")


def check_prompts(
    prompts: torch.Tensor,
    mask: torch.Tensor | None,
    vocab_size: int,
    max_positions: int | None,
    unseen: int = 0,
) -> None:
    """Refuse prompts that no decoding can serve.

    Args:
        prompts: [B, P] int64.
        mask: attention mask [B, unseen + P], 0 for padding; None for no padding.
        unseen: columns before the prompts that have no token ids.

    Raises:
        ValueError: what is wrong and what to do about it.
        NotSpeculatedError: a mask with a hole, which the model's own generate takes.
    """
    rows, width = len(prompts), unseen + prompts.shape[1]
    if not rows or not width:
        raise ValueError("the prompt is empty: pass at least one token (the tokenizer's bos token will do)")
    out_of_range = (prompts < 0) | (prompts >= vocab_size)
    if bool(out_of_range.any()):
        token = int(prompts[out_of_range][0])
        raise ValueError(
            f"token id {token} is outside the model's vocabulary of {vocab_size}: "
            f"is this the model's own tokenizer?"
        )
    if max_positions is not None and width > max_positions:
        raise ValueError(f"the prompt has {width} tokens, the model {max_positions} positions: shorten it")
    if mask is None:
        return
    if tuple(mask.shape) != (rows, width):
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, the prompts [{rows}, {width}]")
    if bool((mask.sum(dim=1) == 0).any()):
        raise ValueError("a row is padding only: every prompt needs at least one token")
    if bool((mask[:, -1] == 0).any()):
        raise ValueError("the batch is padded on the right: generation needs padding_side='left'")
    if bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise NotSpeculatedError("an attention_mask with a hole", "a row is its padding, then its text")
