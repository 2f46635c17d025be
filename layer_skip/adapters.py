"""What PEFT puts around a matrix, and inside which of its layers another one may stand in for the matrix."""

from torch import nn

_CALLING = frozenset(f"peft.tuners.{kind}.layer.Linear" for kind in ("lora", "ia3", "vera", "oft"))
"""Layers that ask of their matrix nothing but its product. Others read `base_layer.weight`, as DoRA does."""


def kept_in(layer: nn.Module) -> dict[nn.Module, str]:
    """The modules of a decoder layer that nothing may stand in for, with the names to call them by.

    They are the adapters themselves, which are small, and whatever stands inside an adapted layer that may
    read more of its matrix than the product: a DoRA, LoHa or HRA layer, or one that is not known.
    """
    kept: dict[nn.Module, str] = {}
    for owner in layer.modules():
        base = owner._modules.get("base_layer")
        if base is None:
            continue
        if not _only_calls(owner):
            kept |= dict.fromkeys(base.modules(), f"what {_name(owner)} adapts")
        beside = (child for name, child in owner.named_children() if name != "base_layer")
        kept |= {module: type(module).__name__ for child in beside for module in child.modules()}
    return kept


def switches_of(module: nn.Module) -> tuple[str, ...]:
    """What PEFT decides by in Python: which adapters in a module take part, and how strongly."""
    if not {"base_layer", "original_module"} & module._modules.keys():
        return ()
    names = "active_adapters", "disable_adapters", "scaling", "merged"
    return tuple(str(getattr(module, name, None)) for name in names)


def _only_calls(owner: nn.Module) -> bool:
    return _name(owner) in _CALLING and not getattr(owner, "lora_variant", None)  # DoRA is a variant of LoRA


def _name(owner: nn.Module) -> str:
    return f"{type(owner).__module__}.{type(owner).__qualname__}"
