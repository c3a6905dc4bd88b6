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
from dust3r_ros.training.losses import motion_loss, pointmap_loss
from dust3r_ros.training.optimiser import Optimiser
from dust3r_ros.training.pairs import PairBatch, network_images, pair_geometry, token_matches
from dust3r_ros.training.photometric import random_light
from dust3r_ros.training.stages import Task
from dust3r_ros.training.team import Team

_Views = tuple[Tensor, Tensor]  # of the first and the second view


@dataclass(frozen=True)
class StepSettings:
    """``matching`` and ``motion`` weigh the auxiliary objectives; ``ema_pairs`` is after how many pairs a
    weight counts half in the averaged weights; ``ramp_steps`` after the optimiser began anew the full rate is reached,
    as its estimates of the gradients are poor until then. ``compiled`` fuses the pointmap task's forward and backward
    passes: faster, after a minute or two of compilation for each image size.
    """

    weight_decay: float = 0.05
    clip_norm: float = 1.0
    alpha: float = 0.2
    matching: float = TrainingConfig.matching
    motion: float = TrainingConfig.motion
    mask_ratio: float = 0.9
    ema_pairs: int = 20_000
    ramp_steps: int = 100
    bfloat16: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class StepResult:
    """``loss`` is what was minimised, ``error`` the task's own, ``matching`` and ``motion`` the auxiliary objectives.

    ``seconds`` went to: preparing the batch, forward, backward, the optimiser. They are exact on a CPU; on a GPU work
    runs on after the call, unless ``CUDA_LAUNCH_BLOCKING=1`` is set.
    """

    loss: float
    error: float
    matching: float
    motion: float
    gradient: float
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Losses:
    total: Tensor
    error: Tensor
    matching: Tensor
    motion: Tensor


class Learner:
    """A network, its averaged copy, its optimiser, and the objectives; ``team`` takes every step with it."""

    def __init__(
        self, model: Dust3rNetwork, settings: StepSettings, generator: torch.Generator, team: Team | None = None
    ) -> None:
        self.model = model.train()
        self.team = team or Team()
        self.head = CompletionHead(model.config.dec_dim, model.config.patch).to(model.device)
        self.settings = settings
        self.generator = generator  # on the model's device
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.optimiser = self._make_optimiser()
        self._completion = Completion(model, self.head)
        self._probe = AttentionProbe(model)
        self._objective = torch.compile(self._objectives, dynamic=False) if settings.compiled else self._objectives

    def step(self, batch: PairBatch, task: Task, rate: float, seen: int) -> StepResult:
        """Learn from a batch on the model's device at learning rate ``rate``, after ``seen`` pairs.

        A step whose gradient is not finite changes nothing; its ``gradient`` says so.
        """
        times = [time.perf_counter()]
        batch = self._varied(batch)
        images = network_images(batch, self.generator)
        times.append(time.perf_counter())
        with self._computing():
            losses = self._complete(images) if task is Task.COMPLETE else self._regress(images, batch)
        times.append(time.perf_counter())
        losses.total.backward()
        times.append(time.perf_counter())
        norm = self._update(rate, len(batch) * self.team.size, seen)
        measured = torch.stack([losses.total, losses.error, losses.matching, losses.motion]).tolist()
        times.append(time.perf_counter())
        spent = tuple(later - earlier for earlier, later in itertools.pairwise(times))
        return StepResult(measured[0], measured[1], measured[2], measured[3], norm, spent)

    def restart_optimiser(self) -> None:
        """Forget the moments: a new task begins."""
        self.optimiser = self._make_optimiser()

    def averaged(self) -> Dust3rNetwork:
        """A network with the averaged weights, on the same device, in eval mode."""
        model = Dust3rNetwork(self.model.config, self.model.source).to(self.model.device)
        model.load_state_dict(self.average)
        return model.eval()

    def _varied(self, batch: PairBatch) -> PairBatch:
        """Mirrored and swapped at random, the whole batch at once, and relit: every pair is drawn several times."""
        mirror, swap = (torch.rand(2, generator=self.generator, device=self.generator.device) < 0.5).tolist()
        batch = batch.mirrored() if mirror else batch
        batch = batch.swapped() if swap else batch
        return batch.relit(random_light(len(batch), self.generator))

    def _complete(self, images: Tensor) -> _Losses:
        patch = self.model.config.patch
        tokens = (images.shape[-2] // patch) * (images.shape[-1] // patch)
        mask = random_mask(len(images), tokens, self.settings.mask_ratio, self.generator)
        loss = self._completion.loss(images, mask)
        return _Losses(loss, loss.detach(), loss.new_zeros(()), loss.new_zeros(()))

    def _regress(self, images: Tensor, batch: PairBatch) -> _Losses:
        """Both orders of every pair: each image is encoded once."""
        model = self.model
        model.prepare(batch.size)
        orders = (batch, batch.swapped())
        matches = [token_matches(order, model.config.patch) for order in orders]
        one, two = (pair_geometry(order, model.tile) for order in orders)
        target, valid = (
            (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
            for a, b in ((one.points, two.points), (one.valid, two.valid))
        )
        pose = torch.cat([order.second_to_first for order in orders])
        return _Losses(*self._objective(images, torch.cat(matches), torch.cat(matches[::-1]), target, valid, pose))

    def _objectives(
        self, images: Tensor, match_ij: Tensor, match_ji: Tensor, target: _Views, valid: _Views, pose: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """What is minimised, the point error and the auxiliary objectives of B pairs and their swapped copies.

        ``images`` (B, 2, 3, H, W); matches, true points of both views and poses of 2 B directed pairs.
        """
        model = self.model
        first, second = model.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).unbind(1)
        size = (images.shape[-2], images.shape[-1])
        maps = model.decode_planar(torch.cat([first, second]), torch.cat([second, first]), size)
        matching = self._probe.loss(match_ij, match_ji)
        predicted, confidence = (maps.points_i, maps.points_j), (maps.conf_i, maps.conf_j)
        loss = pointmap_loss(predicted, confidence, target, valid, self.settings.alpha)
        motion = motion_loss(predicted, target, valid, pose)
        total = loss.total + self.settings.matching * matching + self.settings.motion * motion
        return total, loss.regression, matching.detach(), motion.detach()

    def _update(self, rate: float, pairs: int, seen: int) -> float:
        """One step down the gradient, whose norm is returned."""
        parameters = [p for p in self.optimiser.parameters if p.grad is not None]
        self.team.average([p.grad for p in parameters if p.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm))
        if norm < float("inf"):  # false for NaN too
            self.optimiser.step(rate * min(1.0, (self.optimiser.steps + 1) / self.settings.ramp_steps))
            self._follow(pairs, seen)
        for parameter in parameters:
            parameter.grad = None
        return norm

    @torch.no_grad()
    def _follow(self, pairs: int, seen: int) -> None:
        """Move the averaged weights towards the present ones; in the beginning their memory is short."""
        memory = max(min(self.settings.ema_pairs, seen / 10), 1.0)
        weight = 1 - 0.5 ** (pairs / memory)
        present = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [present[name] for name in self.average], weight)

    def _make_optimiser(self) -> Optimiser:
        named = {f"model.{name}": p for name, p in self.model.named_parameters()}
        named |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        return Optimiser(named, self.settings.weight_decay)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Reduced precision, and on a CPU attention as plain products: its fused form has a slow backward there."""
        kind = self.model.device.type
        plain = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else contextlib.nullcontext()
        with plain, torch.autocast(kind, torch.bfloat16, enabled=self.settings.bfloat16):
            yield
