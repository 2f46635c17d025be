"""Shells of a model's modules: the same submodules under another attention, or with some replaced."""

import copy
from collections.abc import Mapping

from torch import nn

from layer_skip.attention import ATTENTION


def with_our_attention(layer: nn.Module, attention: str) -> nn.Module:
    """A shell of `layer` whose attention goes through `layer_skip.attention`; every submodule is shared.

    The model keeps its own attention setting: switching it on the model would change what `forward` does
    for everybody else, in the middle of their calls.
    """
    attention_shell = copy.copy(getattr(layer, attention))
    attention_shell.config = copy.copy(attention_shell.config)
    attention_shell.config._attn_implementation = ATTENTION
    shell = copy.copy(layer)
    shell._modules = {**layer._modules, attention: attention_shell}
    return shell


def replaced(module: nn.Module, table: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`module` with its parts looked up in `table`; a shell where any was found, itself where none was.

    What torch.compile made of a module stays whole: it runs the module that it was made of.
    """
    if module in table:
        return table[module]
    if is_compiled(module):
        return module
    parts = {name: None if p is None else replaced(p, table) for name, p in module._modules.items()}
    if all(parts[name] is part for name, part in module._modules.items()):
        return module
    shell = copy.copy(module)
    shell._modules = parts
    return shell


def is_compiled(module: nn.Module) -> bool:
    """Whether this is what torch.compile made of a module."""
    return "_orig_mod" in module._modules
