"""Before a model is wrapped: does LayeredDecoder really reproduce it?"""

import copy
import inspect
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from layer_skip.decoder import LayeredDecoder
from layer_skip.families import UnsupportedModelError
from layer_skip.recognition import is_guessed
from layer_skip.refusals import is_offloaded
from layer_skip.slot_cache import SlotCache

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to the largest logit: rounding is far below, a lost part above."""
_QUANTISED_TOLERANCE = 1e-1
"""The same where weights are quantised: their products may round what goes in to 8 bits as well."""
_PREFIXES, _WIDTH = (7, 3), 4
"""Tokens of each row in the first pass, and of all rows in the second."""
_SPARE_SLOTS = 5
_SHORT_WINDOW = 3
_EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")


@torch.no_grad()
def check_decoder(model: Any, decoder: LayeredDecoder) -> float:
    """Compare full-depth logits of the decoder and the model: two rows, one of them padded, over a cache.

    The decoder's rows stand at unequal positions of one cache with spare slots, as in the engine. A model
    whose row was made up from its structure is also compared with all its windows cut down to a few tokens.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or the model disagrees with its config.
    """
    if decoder.n_layers < 2:
        raise UnsupportedModelError(f"{type(model).__name__} has one layer: there is none to exit from early")
    _check_config(model, decoder)
    was_training = model.training
    model.eval()
    try:
        error = _compare(model, decoder)
        if is_guessed(decoder.family):
            error = _worse(error, _compare_short_windows(model, decoder))
        tolerance = _tolerance(decoder)
        if not error <= tolerance:
            raise UnsupportedModelError(_why(model, decoder, error, tolerance))
    except (RuntimeError, TypeError, IndexError, KeyError, AttributeError) as failure:
        raise UnsupportedModelError(
            f"{type(model).__name__} could not be run layer by layer as family "
            f"{decoder.family.model_type!r}: {failure}"
        ) from failure
    finally:
        model.train(was_training)
    return error


def outer_modules(model: Any, decoder: LayeredDecoder) -> list[torch.nn.Module]:
    """The model and what stands between it and its layers: the modules that are not called layer by layer."""
    names = decoder.family.base.split(".")
    return [model, *(attrgetter(".".join(names[: n + 1]))(model) for n in range(len(names)))]


def _check_config(model: Any, decoder: LayeredDecoder) -> None:
    """Refuse layers and embeddings that were removed, repeated or added behind the config's back."""
    name, config, slots = type(model).__name__, model.config, decoder.cache_slots
    if is_offloaded(model):
        raise UnsupportedModelError(
            f"{name} is offloaded by accelerate, which loads its weights for every pass: drafting would wait "
            "for them again and again; load the model whole, onto one device"
        )
    if decoder.device.type == "meta":
        raise UnsupportedModelError(f"the weights of {name} are on the meta device: load them, then wrap it")
    if decoder.n_layers != config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{name} has {decoder.n_layers} layers, its config says num_hidden_layers="
            f"{config.num_hidden_layers}: set the config to what the model has"
        )
    if sorted(slots) != list(range(decoder.n_layers)):
        raise UnsupportedModelError(
            f"the layers of {name} keep their K/V under layer_idx {slots}: layers were removed or repeated; "
            f"give each attention module the layer_idx of its place"
        )
    embedded = len(model.get_input_embeddings().weight)
    if embedded < config.vocab_size:
        raise UnsupportedModelError(
            f"{name} embeds {embedded} tokens, its config says vocab_size={config.vocab_size}: call "
            f"model.resize_token_embeddings, or set the config to what the model has"
        )


def _why(model: Any, decoder: LayeredDecoder, error: float, tolerance: float) -> str:
    name, family = type(model).__name__, decoder.family.model_type
    for parameter, weight in model.named_parameters():
        if weight.is_floating_point() and not _is_finite(weight):
            return f"the weights of {name} are not finite: {parameter} holds NaN or infinity"
    hooked = [type(module).__name__ for module in outer_modules(model, decoder) if _is_hooked(module)]
    if hooked:
        return (
            f"{name} gives other logits than its layers: a forward hook on {' and '.join(hooked)} itself "
            "changes what goes in or comes out; hooks on layers, norm, head and embedding take part"
        )
    if not _is_causal(model, decoder):
        return f"{name} is not causal: a later token changes the logits of an earlier one"
    return (
        f"run layer by layer, {name} gives other logits than its own forward (relative difference "
        f"{error:.2g}, allowed {tolerance:g}): its layers differ from family {family!r}"
    )


def _is_hooked(module: torch.nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _tolerance(decoder: LayeredDecoder) -> float:
    plain = _TOLERANCE.get(decoder.dtype, 1e-1)
    return max(plain, _QUANTISED_TOLERANCE) if any(map(_is_quantised, decoder.products())) else plain


def _is_quantised(module: torch.nn.Module) -> bool:
    """Whether a module keeps a matrix in whole numbers, in 8 bits, or in a form of a library's own."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(
        type(tensor) not in (torch.nn.Parameter, Tensor)
        or tensor.itemsize == 1
        or not tensor.is_floating_point()
        for tensor in tensors
        if tensor is not None and tensor.dim() > 1 and tensor.dtype != torch.bool
    )


def _is_finite(weight: Tensor) -> bool:
    try:
        return bool(weight.isfinite().all())
    except RuntimeError:  # torchao's weights know few operations; what they hold is finite by making
        return True


def _is_causal(model: Any, decoder: LayeredDecoder) -> bool:
    tokens = _tokens(decoder, (1, 8))
    other = tokens.clone()
    other[:, -1] = (tokens[:, -1] + 1) % decoder.vocab_size
    first, second = (model(input_ids=ids, use_cache=False).logits[:, :-1].float() for ids in (tokens, other))
    scale = float(first.abs().max()) * _tolerance(decoder)
    return bool((first - second).abs().max() <= scale)


def _compare(model: Any, decoder: LayeredDecoder) -> float:
    """Relative difference of two passes: a prefix by itself, then four tokens of each row at once."""
    longest = max(_PREFIXES)
    width = longest + _WIDTH
    tokens = _tokens(decoder, (len(_PREFIXES), width))
    pads = torch.tensor([longest - n for n in _PREFIXES], device=decoder.device)[:, None]
    mask = (torch.arange(width, device=decoder.device) >= pads).long()
    expected = _by_the_model(model, tokens, mask, longest)
    cache = SlotCache(len(_PREFIXES), decoder.n_layers, width + _SPARE_SLOTS)
    worst = 0.0
    for row, prefix in enumerate(_PREFIXES):
        actual = _pass(decoder, tokens[row : row + 1, longest - prefix : longest], [0], cache, row)
        worst = _worse(worst, _difference(actual[0], expected[row, longest - prefix : longest], decoder))
    actual = _pass(decoder, tokens[:, longest:], list(_PREFIXES), cache, None)
    return _worse(worst, _difference(actual, expected[:, longest:], decoder))


def _compare_short_windows(model: Any, decoder: LayeredDecoder) -> float:
    """The same with windows of three tokens, on shells that share every weight."""
    fields = [n for n in ("sliding_window", "attention_chunk_size") if getattr(model.config, n, None)]
    if not fields or "forward" in vars(model):
        return 0.0
    short = copy.copy(model)
    short.config = copy.copy(model.config)
    for name in fields:
        setattr(short.config, name, _SHORT_WINDOW)
    first, *inner = decoder.family.base.split(".")
    base = copy.copy(getattr(model, first))
    base.config = short.config
    short._modules = {**model._modules, first: base}
    return 0.0 if inner else _compare(short, LayeredDecoder(short))


def _by_the_model(model: Any, tokens: Tensor, mask: Tensor, first: int) -> Tensor:
    """The model's own logits [B, T, V] in two passes, the second over its own cache."""
    arguments: dict[str, Any] = {"use_cache": True}
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    logits = []
    for columns in (slice(0, first), slice(first, None)):
        if takes_positions:
            arguments["position_ids"] = positions[:, columns]
        output = model(input_ids=tokens[:, columns], attention_mask=mask[:, : columns.stop], **arguments)
        arguments["past_key_values"] = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def _pass(
    decoder: LayeredDecoder, tokens: Tensor, starts: list[int], cache: SlotCache, row: int | None
) -> Tensor:
    """Full-depth logits [B, m, V] of tokens [B, m], in two groups of layers; of one row, or of all."""
    firsts = torch.tensor(starts, device=tokens.device)[:, None]
    positions = firsts + torch.arange(tokens.shape[1], device=tokens.device)
    span = decoder.span(positions, cache.slots, starts[0] if len(starts) == 1 else None)
    cache.open(span, row)
    hidden = decoder.embed(tokens, span)
    hidden = decoder.run(hidden, 0, decoder.n_layers // 2, span, cache)
    hidden = decoder.run(hidden, decoder.n_layers // 2, decoder.n_layers, span, cache)
    return decoder.logits(hidden)


def _tokens(decoder: LayeredDecoder, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, decoder.vocab_size, shape, generator=generator, device="cpu").to(decoder.device)


def _difference(actual: Tensor, expected: Tensor, decoder: LayeredDecoder) -> float:
    """Relative difference of logits [..., m, V]: the worst token's, or the median one's where routers round.

    In half precision a near-tie of two experts falls either way: that token differs by more than rounding.
    """
    expected = expected.float()
    tokens = (actual.float() - expected).abs().amax(dim=-1).flatten() / expected.abs().max().clamp(min=1e-6)
    routed = any((getattr(decoder.config, name, None) or 0) > 1 for name in _EXPERT_FIELDS)
    if routed and decoder.dtype in (torch.float16, torch.bfloat16):
        return float(tokens.median())
    return float(tokens.max())


def _worse(first: float, second: float) -> float:
    """The larger one; NaN stays NaN."""
    return first if first > second or first != first else second
