"""One call from settings to a model folder: gather, tokenize, train, evaluate, export."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from layer_skip.training.batches import Batches, encode_files
from layer_skip.training.checkpoint import CheckpointError
from layer_skip.training.config import TrainingConfig
from layer_skip.training.data import STANDARD_LIBRARY, Corpus, gather
from layer_skip.training.evaluate import ExitScore, score_exits
from layer_skip.training.export import export_model, write_history
from layer_skip.training.loop import Run, make_model
from layer_skip.training.model_card import write_card
from layer_skip.training.progress import Report, progress_bar
from layer_skip.training.report import plot_exits, plot_loss
from layer_skip.training.result import TrainingResult
from layer_skip.training.tokenizer import load_tokenizer, train_tokenizer

CHECKPOINT = "checkpoint.pt"
TOKENIZER = "tokenizer"


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training: the checkpoint has been written; the message says how to go on."""


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Turn Ctrl-C into a flag that is read between steps, so that no step is cut in half.

    Outside the main thread Python takes no signal handlers: there Ctrl-C stays what it was.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def run_until_done(run: Run, checkpoint: Path, report: Report) -> None:
    """Train to the configured end, saving now and then; TrainingInterrupted after Ctrl-C, with all saved."""
    saved_at = time.perf_counter()
    with _stop_flag() as stop:
        while not run.finished:
            report(run, run.advance())
            if stop.is_set():
                run.save(checkpoint)
                raise TrainingInterrupted(f"stopped at step {run.step}; {checkpoint} continues it (resume)")
            if time.perf_counter() - saved_at > run.config.checkpoint_seconds:
                run.save(checkpoint)
                saved_at = time.perf_counter()
        run.save(checkpoint)


def _prepare_tokenizer(corpus: Corpus, config: TrainingConfig, work: Path, resume: bool) -> Any:
    """The run's tokenizer: the saved one when resuming, else a freshly trained one, saved at once."""
    if resume and (work / TOKENIZER).is_dir():
        return load_tokenizer(work / TOKENIZER)
    tokenizer = train_tokenizer((file.text for file in corpus.train), config.vocab_size)
    tokenizer.save_pretrained(work / TOKENIZER)
    return tokenizer


def train(
    config: TrainingConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    corpus: Corpus | None = None,
) -> TrainingResult:
    """Train a small causal language model with the LayerSkip recipe and write it to `output_dir`.

    The folder receives config.json, generation_config.json, model.safetensors (bf16), the tokenizer,
    README.md (model card), training.json (settings, scores, history), two plots, and in `run/` the
    checkpoint and tokenizer that `resume=True` continues from. `progress` shows a bar. `corpus` replaces the
    text of the standard library and the installed distributions.

    Raises CheckpointError when resuming from a missing, damaged or different run and when starting over one,
    ValueError when there is too little text, TrainingInterrupted (a KeyboardInterrupt) after Ctrl-C, with a
    checkpoint written.
    """
    folder, work = Path(output_dir), Path(output_dir) / "run"
    if not resume and (work / CHECKPOINT).exists():
        raise CheckpointError(
            f"{work / CHECKPOINT}: a run is there already; resume it, or delete it to start anew"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    corpus = corpus or gather(held_out_fraction=config.held_out_fraction)
    tokenizer = _prepare_tokenizer(corpus, config, work, resume)
    stream = encode_files(tokenizer, (file.text for file in corpus.train))
    model = make_model(config, tokenizer.eos_token_id, tokenizer.pad_token_id)
    run = Run(config, model, Batches(stream, config))
    if resume:
        run.load(work / CHECKPOINT)
    with progress_bar(progress) as report:
        run_until_done(run, work / CHECKPOINT, report)
    return finish(run, tokenizer, corpus, folder)


def finish(run: Run, tokenizer: Any, corpus: Corpus, folder: Path) -> TrainingResult:
    """Score a trained run on the held-out files and write the model folder."""
    held_out = [file for file in corpus.held_out if file.source == STANDARD_LIBRARY] or list(corpus.held_out)
    result = TrainingResult(
        folder=folder,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        steps=run.step,
        tokens=run.tokens,
        seconds=run.seconds,
        scores=tuple(_score(run, tokenizer, [file.text for file in corpus.held_out])),
        stdlib_scores=tuple(_score(run, tokenizer, [file.text for file in held_out])),
    )
    size = export_model(run.model, tokenizer, folder)
    write_history(folder, _record(result, run, corpus))
    plot_loss(run.history, result.scores[-1].loss, folder / "loss.png")
    plot_exits(result.scores, folder / "exits.png")
    write_card(folder, result, run.config, corpus, size)
    return result


def _score(run: Run, tokenizer: Any, texts: list[str]) -> list[ExitScore]:
    """Scores over 128 windows of held-out text."""
    stream = encode_files(tokenizer, texts)
    length = min(run.config.sequence_length, stream.numel() - 2)
    return score_exits(run.model, stream, length, rows=128, dtype=run.forward.dtype)


def _record(result: TrainingResult, run: Run, corpus: Corpus) -> dict[str, Any]:
    """What training.json holds."""
    return {
        "config": run.config.as_dict(),
        "parameters": result.parameters,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "versions": {"torch": str(torch.__version__), **corpus.versions},
        "training_bytes": {source: corpus.bytes_of(source) for source in corpus.versions},
        "held_out_files": [file.name for file in corpus.held_out],
        "held_out": [asdict(score) for score in result.scores],
        "held_out_standard_library": [asdict(score) for score in result.stdlib_scores],
        "history": run.history,
    }
