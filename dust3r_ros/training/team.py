"""Several processes that train one network together, a GPU or a core each, as ``torchrun`` starts them.

Each draws its own pairs; all take the same steps, down the mean of their gradients, and so keep the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(minutes=60)  # others compile, measure and save


@dataclass(frozen=True)
class Team:
    """A process's number ``rank`` among ``size``; the first one leads: it measures, logs and saves."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """``wanted``, or this process's own of several GPUs."""
        if self.size == 1 or wanted.type != "cuda":
            return wanted
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean of all processes' tensors into each, which all have in the same order and shapes."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any(self, condition: bool, device: torch.device) -> bool:
        """Whether it is so for any of the processes; all must ask."""
        if self.size == 1:
            return condition
        count = torch.tensor(float(condition), device=device)
        dist.all_reduce(count)
        return bool(count > 0)


def team_of_environment() -> Team:
    """As ``torchrun`` says in the environment; alone where it did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Team()
    return Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


@contextmanager
def joined(team: Team, device: torch.device) -> Iterator[None]:
    """The processes of a team can speak with each other while this lasts."""
    if team.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
