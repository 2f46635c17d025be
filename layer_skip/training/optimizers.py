"""The optimizers and the learning-rate schedule of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from layer_skip.training.config import TrainingConfig

# Newton-Schulz coefficients of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of every matrix [n, rows, columns] towards 1, all matrices in one product."""
    x = matrices.to(torch.bfloat16)
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(x.dtype)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for weight matrices (Jordan et al. 2024).

    Updates are scaled by 0.2 * sqrt(max(rows, columns)), which gives them the size of AdamW's, so one
    learning rate serves both (Liu et al. 2025, arXiv 2502.16982, eq. 4). torch.optim.Muon takes one matrix
    at a time; here the matrices of equal shape, one or more from every layer, go through one product.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever evaluated here
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters of one shape together."""
        momenta = []
        for parameter in parameters:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            gradient = parameter.grad
            if gradient is None:
                continue
            momentum.lerp_(gradient, 1 - group["momentum"])
            momenta.append(gradient.lerp(momentum, group["momentum"]))
        updates = orthogonalise(torch.stack(momenta))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, updates.unbind(), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: matrices of the layers, then embeddings (decayed little) and norms (not)."""
    parameters = dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and ".layers." in name]
    norms = [p for p in parameters.values() if p.ndim < 2]
    embeddings = [p for name, p in parameters.items() if p.ndim == 2 and ".layers." not in name]
    rest = [{"params": embeddings, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.95), "eps": 1e-10}
    if config.optimizer == "muon":
        muon = Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)
        return [muon, torch.optim.AdamW(rest, **settings)]
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    return [torch.optim.AdamW([decayed, *rest], **settings)]


def learning_rate_factor(step: int, progress: float, warmup_steps: int, decay_fraction: float) -> float:
    """Warmup, stable, linear decay to zero; `progress` in [0, 1] is the share of the run that is done.

    The stable part does not depend on the run's length, so a checkpoint from it can be extended.
    """
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    if decay_fraction == 0.0:
        return warm
    return warm * min(1.0, max(0.0, (1.0 - progress) / decay_fraction))
