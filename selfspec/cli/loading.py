"""Load a model and its tokenizer from a folder or the hub, or say in one line why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfspec.cli.errors import UserError

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and the name that it was asked for by."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def pad(self) -> int:
        """The token that rows are filled up with: padding, else end of text, else token 0."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in candidates if token is not None), 0)


def load(name: str | None, dtype: str = "auto", device: str = "auto", threads: int | None = None) -> Loaded:
    """Load the model called `name`, the bundled one for None.

    Raises:
        UserError: an unknown dtype or device, a folder without a whole model, a name unknown to the hub.
    """
    if dtype not in _DTYPES:
        raise UserError(f"dtype={dtype!r}: allowed are {', '.join(_DTYPES)}")
    import torch

    from layer_skip import REFERENCE_MODEL

    _quieten()
    if threads is not None:
        torch.set_num_threads(threads)
    source = str(REFERENCE_MODEL if name is None else name)
    model = _model(source, dtype).eval()
    return Loaded(name or "bundled reference model", _moved(model, device), _tokenizer(source))


def _quieten() -> None:
    """Keep bars and remarks of the libraries off the terminal: errors are told in one line, by us."""
    import huggingface_hub.utils.logging as hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub.set_verbosity(hub.CRITICAL)


def _model(source: str, dtype: str) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _check_folder(source)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except SafetensorError as error:
        raise UserError(
            f"{source}: the weights file is damaged or cut off ({error}); copy it again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{source}: cannot load the model: {_first_sentence(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would go on with random weights in their place.
        raise UserError(
            f"{source}: the weights file lacks {len(missing)} tensors, such as {missing[0]}; copy it again"
        )
    return model


def _check_folder(source: str) -> None:
    """Refuse a folder that is not there or holds no model, before the hub is asked for that name."""
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{source}: no config.json in this folder; name the folder that holds the model")
    if path.is_dir():
        weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
        if not weights:
            raise UserError(f"{source}: no weights (model.safetensors) in this folder; copy them there")
        return
    if path.exists():
        raise UserError(f"{source} is a file; name the folder that holds the model")
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise UserError(f"{source}: there is no such folder")


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: cannot load the tokenizer: {_first_sentence(error)}") from error


def _moved(model: Any, device: str) -> Any:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device!r}: {_first_sentence(error)}; choose cpu, cuda or auto") from error


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.split(". ")[0][:300] or type(error).__name__
