"""The training loop: one step on one screen, and what a run carries from step to step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from layer_skip.training.batches import Batches
from layer_skip.training.checkpoint import check_same_run, load_checkpoint, save_checkpoint
from layer_skip.training.config import TrainingConfig
from layer_skip.training.forward import TrainingForward
from layer_skip.training.losses import early_exit_loss
from layer_skip.training.optimizers import learning_rate_factor, make_optimizers
from layer_skip.training.recipe import active_exits, dropout_rates, exit_scales, exit_weights


def make_model(config: TrainingConfig, eos: int, pad: int) -> Any:
    """A freshly initialised LlamaForCausalLM of the configured shape, in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(shape)
        # GPT-2's 1/sqrt(2L): residual branches start small, so that every exit starts near the embedding.
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data.mul_((2 * config.layers) ** -0.5)
    return model


class Run:
    """A run in progress: model, optimizers, where it stands, and its history.

    `history` has a row every `HISTORY_EVERY` steps: step, seconds, loss of the last layer in nats, learning
    rate.
    """

    HISTORY_EVERY = 10

    def __init__(self, config: TrainingConfig, model: Any, batches: Batches) -> None:
        self.config = config
        self.model = model
        self.batches = batches
        self.forward = TrainingForward(model, getattr(torch, config.compute_dtype))
        self.optimizers = make_optimizers(model, config)
        self.scales = exit_scales(config.layers, config.e_scale, config.exit_weighting)
        self.step = 0
        self.seconds = 0.0
        self.tokens = 0
        self.history: list[dict[str, float]] = []

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        if self.config.max_steps is not None:
            return min(1.0, self.step / max(1, self.config.max_steps - 1))
        return min(1.0, self.seconds / (self.config.max_seconds or 1.0))

    @property
    def distill(self) -> float:
        """The share of the last layer's distribution in the exits' targets at this point of the run."""
        decaying = self.progress > 1.0 - self.config.decay_fraction
        if decaying and self.config.decay_distill is not None:
            return self.config.decay_distill
        return self.config.distill

    @property
    def finished(self) -> bool:
        """Whether the configured number of steps or seconds has been spent."""
        if self.config.max_steps is not None:
            return self.step >= self.config.max_steps
        return self.seconds >= (self.config.max_seconds or 0.0)

    def train_step(self) -> float:
        """One optimisation step; returns the last layer's cross-entropy in nats per token."""
        config = self.config
        tokens, labels = self.batches(self.step)
        exits, keep = [config.layers - 1], None
        if config.recipe:
            exits = active_exits(self.scales, self.step, self.progress, config.curriculum, config.rotation)
            rates = dropout_rates(config.layers, self.progress, config.max_dropout, config.from_scratch)
            keep = self.batches.keep_rows(self.step, rates, tokens.shape[0])
        weights = exit_weights(self.scales, exits) if config.recipe else {exits[0]: 1.0}
        hiddens = self.forward.hiddens(tokens, exits, keep)
        loss, each = early_exit_loss(
            hiddens, self.forward.head(), labels.flatten(), [weights[e] for e in exits], self.distill
        )
        loss.backward()
        self._update_weights()
        self.tokens += tokens.numel()
        return float(each[-1])

    def _update_weights(self) -> None:
        config = self.config
        factor = learning_rate_factor(self.step, self.progress, config.warmup_steps, config.decay_fraction)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def advance(self) -> float:
        """Do a step and keep the books; returns its loss."""
        started = time.perf_counter()
        loss = self.train_step()
        self.seconds += time.perf_counter() - started
        if self.step % self.HISTORY_EVERY == 0:
            rate = self.optimizers[0].param_groups[0]["lr"]
            row = {"step": self.step, "seconds": round(self.seconds, 3), "loss": loss, "learning_rate": rate}
            self.history.append(row)
        self.step += 1
        return loss

    def save(self, path: Path) -> None:
        """Write everything that resuming needs. No random state: every draw is keyed by (seed, step)."""
        save_checkpoint(
            path,
            {
                "config": self.config.as_dict(),
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
                "tokens": self.tokens,
                "history": self.history,
            },
        )

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run; CheckpointError when it is another one's or damaged."""
        state = load_checkpoint(path)
        check_same_run(path, state["config"], self.config.as_dict())
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        self.history = state["history"]
