"""How a run begins: its options, network and pairs, from those given and those of the run that is already there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dust3r_ros.config import TrainingConfig
from dust3r_ros.errors import TrainingError
from dust3r_ros.network import Dust3rNetwork, NetworkConfig, load_model
from dust3r_ros.options import Value, make_config
from dust3r_ros.training.architectures import ARCHITECTURES, initialised
from dust3r_ros.training.pairs import PairSource, RenderSettings
from dust3r_ros.training.pool import ChunkMaker, PairStream, PoolSettings, WorkerChunkMaker, rendered_source
from dust3r_ros.training.stages import fitting
from dust3r_ros.training.state import SavedRun

_CPU_BATCH, _GPU_BATCH = 8, 64
_LARGEST_GROWTH = 4  # of the batch for small images
_PLAIN = 0.4  # of the surfaces: most of what people build is of one colour


@dataclass(frozen=True, eq=False)
class Source:
    """Where pairs come from: ``make`` can be called in another process; ``chunk`` pairs at a time."""

    make: Callable[[], PairSource]
    chunk: int


def options_with(given: Mapping[str, Value], saved: SavedRun | None) -> TrainingConfig:
    """The given options over those of the run that goes on. Raises TrainingError where it cannot follow them."""
    if saved is None:
        return make_config(TrainingConfig, given)
    for name in ("architecture", "checkpoint"):
        if name in given and given[name] != saved.options.get(name):
            raise TrainingError(
                f"{name} is {saved.options.get(name)!r} in the run that is already here, got {given[name]!r}"
            )
    return make_config(TrainingConfig, {**saved.options, **given})


def make_network(config: TrainingConfig, device: torch.device, saved: SavedRun | None) -> Dust3rNetwork:
    """The network in float32: as saved (its tensors are restored later), a trained one, or a new one."""
    if saved is not None:
        return Dust3rNetwork(saved.architecture, saved.source).to(device)
    if config.checkpoint:
        return load_model(config.checkpoint, device=str(device), dtype="float32")
    model = Dust3rNetwork(ARCHITECTURES[config.architecture])
    return initialised(model, torch.Generator().manual_seed(config.seed)).to(device)


def make_stream(config: TrainingConfig, device: torch.device, source: Source | None, first_chunk: int) -> PairStream:
    """Pairs from ``source``, or rendered: by processes beside a CPU that trains, by the GPU itself otherwise."""
    on_gpu = device.type == "cuda"
    if source is None:
        settings = RenderSettings(
            config.seed, config.textures, photographs=importlib.util.find_spec("skimage") is not None,
            plain=_PLAIN, scenes=128 if on_gpu else 20, device=str(device),
        )  # fmt: skip
        source = Source(partial(rendered_source, settings), settings.chunk)
    alone = on_gpu or config.workers == 0
    maker = ChunkMaker(source.make()) if alone else WorkerChunkMaker(source.make, config.workers)
    pool = PoolSettings(config.pool, config.uses, min(256, config.pool // 2))
    return PairStream(maker, source.chunk, pool, device, first_chunk)


def batch_of(config: TrainingConfig, network: NetworkConfig, size: tuple[int, int], device: torch.device) -> int:
    """Pairs in a step of images (H, W): as many pixels as at the full size, at most four times as many pairs."""
    full = fitting(network, 1.0)
    base = config.batch or (_CPU_BATCH if device.type == "cpu" else _GPU_BATCH)
    growth = min(full[0] * full[1] / (size[0] * size[1]), float(_LARGEST_GROWTH))
    return max(1, min(round(base * growth), config.pool // 2))


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix products are done in bfloat16."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text(encoding="ascii", errors="replace")
