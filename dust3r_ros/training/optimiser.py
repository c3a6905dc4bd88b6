"""What changes the weights: Muon for the matrices of the blocks, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dust3r_ros.errors import TrainingError

BETAS = (0.9, 0.95)
_KINDS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of moments, as PyTorch names them


class Optimiser:
    """Muon (K. Jordan 2024, with the step sizes of J. Liu et al. 2025, section 2.2) and AdamW, as one.

    Muon's steps change a matrix in all its directions alike, and a network learns to compare views from far fewer
    pairs so (docs/training.md has the figures). It is meant for the inner matrices; patches, heads, norms and biases
    are AdamW's. Matrices decay.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        self.steps = 0  # since it began
        self.rate = 0.0  # of the last step
        if not hasattr(torch.optim, "Muon"):
            raise TrainingError(f"training needs PyTorch 2.9 or later, got {torch.__version__}")
        inner = {name: p for name, p in named.items() if "blocks" in name and p.ndim == 2}
        other = [p for name, p in named.items() if name not in inner]
        self._muon = torch.optim.Muon(inner.values(), lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        groups = [
            {"params": [p for p in other if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in other if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)
        self._states = {name: (self._muon if name in inner else self._adam).state for name in named}
        self._named = dict(named)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is learned."""
        return list(self._named.values())

    def step(self, rate: float) -> None:
        """Follow the gradients at learning rate ``rate``."""
        for optimiser in (self._muon, self._adam):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        self.steps, self.rate = self.steps + 1, rate

    def moments(self) -> dict[str, Tensor]:
        """What the steps have gathered, by kind and parameter's name."""
        return {
            f"{kind}.{name}": self._states[name][parameter][kind]
            for name, parameter in self._named.items()
            for kind in _KINDS
            if kind in self._states[name].get(parameter, {})
        }

    def restore(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from ``moments`` of an optimiser after ``steps`` steps; others' tensors are left alone."""
        self.steps = steps
        for name, parameter in self._named.items():
            kept = {kind: tensors[f"{kind}.{name}"] for kind in _KINDS if f"{kind}.{name}" in tensors}
            if kept:
                state = {kind: value.to(parameter.device, parameter.dtype, copy=True) for kind, value in kept.items()}
                if "exp_avg" in state:
                    state["step"] = torch.tensor(float(steps), device=parameter.device)
                self._states[name][parameter] = state
