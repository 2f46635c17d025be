"""The low-bit view that the settings ask for, as far as it pays and memory allows."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from layer_skip.decoder import LayeredDecoder
from layer_skip.low_bit import LowBitView, NothingToViewError, fastest_bits, layers_that_fit, n_matrices
from selfspec.config import SpeculationConfig
from selfspec.tuning.costs import WIDTHS, PassCosts
from selfspec.tuning.profile import Profile
from selfspec.values import ConfigError, parse_bytes

Timer = Callable[[LayeredDecoder, Sequence[int]], PassCosts]
"""Times the passes of a decoder, over so many tokens each."""
_WORTHWHILE = 0.75
"""A view is made for "auto" when its layer takes at most this share of the model's own."""
_NAMED = 4
"""Tokens of the verification whose cost is named where none pays."""
_LEAST_GAIN = 0.9
"""What rounds without a miss must take of plain steps at most: real ones have misses."""
_SLOW_MATRICES = 1 << 27
"""Weights from which on making a view takes seconds; on a terminal that is shown, and what came of it."""

_log = logging.getLogger("selfspec")


def view_bits(config: SpeculationConfig, decoder: LayeredDecoder, profiles: Iterable[Profile]) -> int:
    """Bits of the view that the settings ask for; by default those of the profiles that they name."""
    if config.draft_bits != "auto":
        return config.draft_bits
    named = profiles if config.names_profiles else ()
    recorded = [p.draft_bits for p in named if p.setting.arm.low_bit and p.draft_bits]
    return recorded[-1] if recorded else fastest_bits(decoder)


def wanted_view(
    decoder: LayeredDecoder,
    config: SpeculationConfig,
    bits: int,
    profiles: Iterable[Profile],
    timer: Timer,
    exact: Callable[[], PassCosts],
    reads: Callable[[], bool],
) -> tuple[LowBitView | None, str]:
    """The view that calls draft by, and a line that says what was made; "" where nothing was asked for.

    Args:
        bits: of the view.
        profiles: those that calls may follow.
        timer: of passes.
        exact: costs of the model's own passes.
        reads: whether a draft step takes as long as what it reads: not where a GPU waits for Python.

    Raises:
        ConfigError: as `make_view`.
    """
    if config.kind not in ("auto", "low_bit", "hybrid"):
        return None, ""
    if parse_bytes(config.draft_memory) == 0:
        return None, f"draft_memory={config.draft_memory!r}: no low-bit view"
    begun = None
    if config.kind == "auto" and config.names_profiles:  # calls that follow none do without
        if not any(profile.setting.arm.low_bit for profile in profiles):
            return None, ""
    elif config.kind == "auto":
        if not reads():
            return None, "no low-bit view: a draft step waits for Python here, not for the weights"
        begun, why_not = _worthwhile_layer(decoder, bits, timer, exact)
        if begun is None:
            return None, why_not
    view, note = make_view(decoder, config, bits, begun)
    _log.log(logging.WARNING if view is None else logging.INFO, note)
    return view, note


def _worthwhile_layer(
    decoder: LayeredDecoder, bits: int, timer: Timer, exact: Callable[[], PassCosts]
) -> tuple[LowBitView | None, str]:
    """The first layer in few bits, if that makes it so fast here that a view is worth its memory; why not."""
    try:
        first = LowBitView(decoder, 1, bits, head=False)
    except NothingToViewError as error:
        return None, f"no low-bit view: {error}"
    step = timer(first.of(decoder), WIDTHS[:1])  # wider ones may take seconds where it does not pay
    own = exact().layer
    share = step.layer[0] / own[0] if own[0] else math.inf
    if share > _WORTHWHILE:
        return None, f"no low-bit view: a layer in {bits} bits takes {share:.2f} of its own time here"
    if not _may_pay(step.layer[0], own):
        steps = own[WIDTHS.index(_NAMED)] / own[0]
        return None, (
            f"no low-bit view: a layer in {bits} bits takes {share:.2f} of its own time here and verifying "
            f"{_NAMED} tokens {steps:.1f} plain steps, so that drafts would hardly pay if they were always "
            "right"
        )
    return first, ""


def _may_pay(draft: float, verify: Sequence[float]) -> bool:
    """Whether rounds without a miss would be faster than plain steps by a tenth, at any of WIDTHS.

    Args:
        draft: seconds of a draft token, a layer.
        verify: seconds of a pass over as many tokens as WIDTHS says, a layer.
    """
    return any(
        (width - 1) * draft + seconds < _LEAST_GAIN * width * verify[0]
        for width, seconds in zip(WIDTHS, verify, strict=True)
    )


def make_view(
    decoder: LayeredDecoder, config: SpeculationConfig, bits: int, begun: LowBitView | None = None
) -> tuple[LowBitView | None, str]:
    """The largest view that the settings ask for and memory allows, and a line that says what was made.

    None where nothing fits or nothing can be packed: drafts then use the model's own weights.

    Args:
        begun: a view of fewer layers, whose packed matrices are taken over.

    Raises:
        ConfigError: a view fits, but not one of as many layers as `exit_layer` says.
    """
    wanted = decoder.n_layers if config.exit_layer == "auto" else int(config.exit_layer)
    limit = parse_bytes(config.draft_memory)
    if limit is not None:
        fitting = layers_that_fit(decoder, limit, bits)
        if not fitting:
            return None, (
                f"draft_memory={config.draft_memory!r} is too small for a low-bit view of one layer and the "
                "head: drafting with the model's own weights"
            )
        if config.exit_layer != "auto" and fitting < wanted:
            raise ConfigError(
                f"exit_layer={wanted}: within draft_memory={config.draft_memory!r} there is room for a "
                f"{bits}-bit view of {fitting} layers and the head; allowed are 1 to {fitting}, "
                "'auto', or more memory"
            )
        wanted = min(wanted, fitting)
    began, shown = time.perf_counter(), _is_slow(decoder, wanted) and sys.stderr.isatty()
    try:
        with _progress(decoder, wanted) if shown else nullcontext(lambda name: None) as advance:
            view = LowBitView(decoder, wanted, bits, advance, begun=begun)
    except NothingToViewError as error:
        return None, f"{error}: drafting with the model's own weights"
    except torch.cuda.OutOfMemoryError:
        view = None
    if view is None:  # here, where the error no longer holds what was made of it
        torch.cuda.empty_cache()
        return None, (
            f"no memory is left for a low-bit view of {wanted} layers and the head: drafting with the "
            "model's own weights; draft_memory= says how much it may take"
        )
    note = _description(view, decoder.n_layers, time.perf_counter() - began)
    if shown:  # who waited for it wants to know what it takes
        print(note, file=sys.stderr)
    return view, note


def _description(view: LowBitView, n_layers: int, seconds: float) -> str:
    share = view.bytes / view.viewed_bytes
    return (
        f"{view.bits}-bit view of {view.n_layers} of {n_layers} layers and the head: "
        f"{view.bytes / 2**20:.0f} MiB added, {share:.0%} of the weights viewed, {seconds:.1f} s"
        + (f"; padded to whole groups: {view.padded} matrices" if view.padded else "")
        + (f"; kept as they are: {view.kept}" if view.kept else "")
    )


def _is_slow(decoder: LayeredDecoder, n_layers: int) -> bool:
    """Whether making a view takes long enough for somebody to ask what goes on."""
    weights = sum(p.numel() for layer in decoder.layers[:n_layers] for p in layer.parameters())
    return weights >= _SLOW_MATRICES


@contextmanager
def _progress(decoder: LayeredDecoder, n_layers: int) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr, gone when the view is made."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("low-bit view", total=n_matrices(decoder, n_layers))
        yield lambda name: progress.update(task, advance=1, description=name)
