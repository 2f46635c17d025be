"""The README.md of a trained model folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from layer_skip.training.checkpoint import write_atomically
from layer_skip.training.config import TrainingConfig
from layer_skip.training.data import SOURCES, STANDARD_LIBRARY, Corpus
from layer_skip.training.evaluate import ExitScore
from layer_skip.training.result import TrainingResult

HEADER = """\
---
language: code
license: apache-2.0
pipeline_tag: text-generation
tags: [early-exit, layer-skip, self-speculative-decoding]
---
"""


def _sources_table(corpus: Corpus) -> str:
    licences = {source.name: source.licence for source in SOURCES}
    lines = ["| source | version | licence | training text (MB) | held-out files |", "|---|---|---|---|---|"]
    for name, version in corpus.versions.items():
        label = "Python standard library" if name == STANDARD_LIBRARY else name
        held_out = sum(file.source == name for file in corpus.held_out)
        megabytes = corpus.bytes_of(name) / 1e6
        lines.append(
            f"| {label} | {version} | {licences.get(name, 'unknown')} | {megabytes:.2f} | {held_out} |"
        )
    return "\n".join(lines)


def _exits_table(scores: Sequence[ExitScore], stdlib: Sequence[ExitScore]) -> str:
    lines = [
        "| exit layer | loss | agreement | 1 - TV | loss, stdlib | agreement, stdlib | 1 - TV, stdlib |",
        "|---|---|---|---|---|---|---|",
    ]
    for every, library in zip(scores, stdlib, strict=True):
        cells = [every.loss, every.agreement, every.overlap, library.loss, library.agreement, library.overlap]
        lines.append(f"| {every.exit_layer} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


EARLY_EXIT = """# A small early-exit model of Python code

A Llama-architecture causal language model, small enough to be tested with, trained from scratch so that its
first layers can draft for the whole of it."""
PLAIN = """# A small plain model of Python code

A Llama-architecture causal language model, small enough to be tested with, trained from scratch with the
ordinary loss: a stand-in for the models that nobody trained for early exit."""


def _recipe_text(config: TrainingConfig) -> str:
    if not config.recipe:
        return "None: plain next-token training, the twin that the recipe is compared with."
    distill = f", exits distilled towards the last layer (share {config.distill:g}" if config.distill else ""
    if distill:
        decay = config.decay_distill
        distill += ")" if decay is None else f", {decay:g} while the learning rate decays)"
    return (
        f"LayerSkip (Elhoushi et al. 2024): layer dropout up to {config.max_dropout}, early-exit loss with "
        f"{config.exit_weighting!r} weights, e_scale {config.e_scale}, {config.curriculum} curriculum "
        f"(rotation {config.rotation}){distill}."
    )


def _changes(config: TrainingConfig) -> str:
    """The settings that are not the default, as command-line options."""
    default = TrainingConfig().as_dict()
    changed = {name: value for name, value in config.as_dict().items() if value != default[name]}
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    return "".join(f" --set {name}={value}" for name, value in plain.items())


def _long(config: TrainingConfig) -> str:
    if not config.long_every:
        return ""
    return f", every {config.long_every}th step {config.long_sequence_length}"


def write_card(
    folder: Path, result: TrainingResult, config: TrainingConfig, corpus: Corpus, size: int
) -> None:
    """Write the model card: data and licences, shape, training, quality of every exit, use and limits."""
    last = result.scores[-1]
    text = f"""{HEADER}
{EARLY_EXIT if config.recipe else PLAIN}

## Shape

{result.parameters:,} parameters, {size:,} bytes of bf16 weights: {config.layers} layers, hidden size
{config.hidden_size}, {config.heads} heads, {config.kv_heads} key/value heads, feed-forward size
{config.intermediate_size}, vocabulary {config.vocab_size} (byte-level BPE), tied embeddings, up to
{config.max_positions} positions. Trained on sequences of {config.sequence_length} tokens{_long(config)}.

## Training

- {result.steps:,} steps, {result.tokens:,} tokens, {result.seconds / 60:.0f} minutes on a CPU.
- Optimizer {config.optimizer}, learning rate {config.learning_rate:g} (warmup, constant, linear decay), seed
  {config.seed}.
- Recipe: {_recipe_text(config)}
- Settings, held-out files and loss history: `training.json`. Plots: `loss.png`, `exits.png`.
- The same settings again: `selfspec train --output FOLDER{_changes(config)}`

## Data

Python source files, test files left out, files of equal content kept once. About
{100 * config.held_out_fraction:.0f}% of the files, chosen by a hash of their names, were held out.

{_sources_table(corpus)}

Licences are those that each project states for its Python code.

## Quality

Held-out text, teacher-forced. Loss in nats per token; the perplexity of the whole model is
{math.exp(last.loss):.1f}. Agreement: how often the exit's first choice is the last layer's. 1 - TV: one minus
the total variation distance to the last layer's distribution at temperature 0.8, the most that speculative
sampling can accept. "stdlib": the standard library's held-out files alone.

{_exits_table(result.scores, result.stdlib_scores)}

## Use and limits

For tests, demonstrations and measurements of early-exit decoding. It continues Python code in a plausible
style and repeats itself; it knows no facts, follows no instructions, and its code should not be run. Text
similar to its training files may come out; those files' licences are in the table. Speed-ups seen with it say
little about large models, where layers cost more than their overhead.
"""
    write_atomically(folder / "README.md", text)
