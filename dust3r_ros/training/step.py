"""One step of training: a batch of pairs in, changed weights and what was measured out."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dust3r_ros.config import TrainingConfig
from dust3r_ros.network import Dust3rNetwork
from dust3r_ros.training.correspondence import AttentionProbe
from dust3r_ros.training.croco import Completion, CompletionHead, random_mask
from dust3r_ros.training.losses import pointmap_loss
from dust3r_ros.training.pairs import PairBatch, network_images, pair_geometry, token_matches
from dust3r_ros.training.stages import Task

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class StepSettings:
    """``matching`` weighs the correspondence objective; ``ema_pairs`` is after how many pairs a
    weight counts half in the averaged weights; ``ramp_steps`` after the optimiser began anew the full rate is reached,
    as its estimates of the gradients are poor until then. ``compiled`` fuses the pointmap task's forward and backward
    passes: faster, after a minute or two of compilation for each image size.
    """

    weight_decay: float = 0.05
    clip_norm: float = 1.0
    alpha: float = 0.2
    matching: float = TrainingConfig.matching
    mask_ratio: float = 0.9
    ema_pairs: int = 20_000
    ramp_steps: int = 100
    bfloat16: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class StepResult:
    """``loss`` is what was minimised, ``error`` the task's own, ``matching`` the correspondence objective (0 without).

    ``seconds`` went to: preparing the batch, forward, backward, the optimiser. They are exact on a CPU; on a GPU work
    runs on after the call, unless ``CUDA_LAUNCH_BLOCKING=1`` is set.
    """

    loss: float
    error: float
    matching: float
    gradient: float
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Losses:
    total: Tensor
    error: Tensor
    matching: Tensor


class Learner:
    """A network, its averaged copy, its optimiser, and the objectives."""

    def __init__(self, model: Dust3rNetwork, settings: StepSettings, generator: torch.Generator) -> None:
        self.model = model.train()
        self.head = CompletionHead(model.config.dec_dim, model.config.patch).to(model.device)
        self.settings = settings
        self.generator = generator  # on the model's device
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.optimiser_steps = 0  # since the optimiser began
        self.optimiser = self._make_optimiser()
        self._completion = Completion(model, self.head)
        self._probe = AttentionProbe(model)
        self._objective = torch.compile(self._objectives, dynamic=False) if settings.compiled else self._objectives

    def step(self, batch: PairBatch, task: Task, rate: float, seen: int) -> StepResult:
        """Learn from a batch on the model's device at learning rate ``rate``, after ``seen`` pairs.

        A step whose gradient is not finite changes nothing; its ``gradient`` says so.
        """
        times = [time.perf_counter()]
        batch = self._turned(batch)
        images = network_images(batch, self.generator)
        times.append(time.perf_counter())
        with self._computing():
            losses = self._complete(images) if task is Task.COMPLETE else self._regress(images, batch)
        times.append(time.perf_counter())
        losses.total.backward()
        times.append(time.perf_counter())
        norm = self._update(rate, len(batch), seen)
        measured = torch.stack([losses.total, losses.error, losses.matching]).tolist()
        times.append(time.perf_counter())
        spent = tuple(later - earlier for earlier, later in itertools.pairwise(times))
        return StepResult(measured[0], measured[1], measured[2], norm, spent)

    def restart_optimiser(self) -> None:
        """Forget the moments: a new task begins."""
        self.optimiser_steps = 0
        self.optimiser = self._make_optimiser()

    def averaged(self) -> Dust3rNetwork:
        """A network with the averaged weights, on the same device, in eval mode."""
        model = Dust3rNetwork(self.model.config, self.model.source).to(self.model.device)
        model.load_state_dict(self.average)
        return model.eval()

    def _turned(self, batch: PairBatch) -> PairBatch:
        """Mirrored and swapped at random, the whole batch at once: every pair is drawn several times."""
        mirror, swap = (torch.rand(2, generator=self.generator, device=self.generator.device) < 0.5).tolist()
        batch = batch.mirrored() if mirror else batch
        return batch.swapped() if swap else batch

    def _complete(self, images: Tensor) -> _Losses:
        patch = self.model.config.patch
        tokens = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        mask = random_mask(len(images), tokens, self.settings.mask_ratio, self.generator)
        loss = self._completion.loss(images, mask)
        return _Losses(loss, loss.detach(), loss.new_zeros(()))

    def _regress(self, images: Tensor, batch: PairBatch) -> _Losses:
        """Both orders of every pair: each image is encoded once."""
        model = self.model
        model.prepare(batch.size)
        orders = (batch, batch.swapped())
        matches = [token_matches(order, model.config.patch) for order in orders]
        one, two = (pair_geometry(order, model.tile) for order in orders)
        target = tuple(torch.cat(views) for views in zip(one.points, two.points))
        valid = tuple(torch.cat(views) for views in zip(one.valid, two.valid))
        return _Losses(*self._objective(images, torch.cat(matches), torch.cat(matches[::-1]), *target, *valid))

    def _objectives(
        self, images: Tensor, match_ij: Tensor, match_ji: Tensor, points_i: Tensor, points_j: Tensor, valid_i: Tensor,
        valid_j: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """What is minimised, the point error and the correspondence objective of B pairs and their swapped copies.

        ``images`` (B, 2, 3, H, W); matches and true points of 2 B directed pairs.
        """
        model = self.model
        first, second = model.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).unbind(1)
        size = (images.shape[-2], images.shape[-1])
        maps = model.decode_planar(torch.cat([first, second]), torch.cat([second, first]), size)
        matching = self._probe.loss(match_ij, match_ji)
        predicted, confidence = (maps.points_i, maps.points_j), (maps.conf_i, maps.conf_j)
        loss = pointmap_loss(predicted, confidence, (points_i, points_j), (valid_i, valid_j), self.settings.alpha)
        return loss.total + self.settings.matching * matching, loss.regression, matching.detach()

    def _update(self, rate: float, pairs: int, seen: int) -> float:
        parameters = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm))
        if norm < float("inf"):  # false for NaN too
            for group in self.optimiser.param_groups:
                group["lr"] = rate * min(1.0, (self.optimiser_steps + 1) / self.settings.ramp_steps)
            self.optimiser.step()
            self.optimiser_steps += 1
            self._follow(pairs, seen)
        self.optimiser.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _follow(self, pairs: int, seen: int) -> None:
        """Move the averaged weights towards the present ones; in the beginning their memory is short."""
        memory = max(min(self.settings.ema_pairs, seen / 10), 1.0)
        weight = 1 - 0.5 ** (pairs / memory)
        present = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [present[name] for name in self.average], weight)

    def _make_optimiser(self) -> torch.optim.AdamW:
        """Weight decay for matrices only."""
        learned = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Reduced precision, and on a CPU attention as plain products: its fused form has a slow backward there."""
        kind = self.model.device.type
        plain = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else contextlib.nullcontext()
        with plain, torch.autocast(kind, torch.bfloat16, enabled=self.settings.bfloat16):
            yield
