"""The state of a run in one file, so that it goes on after any interruption.

A safetensors file: weights, averaged weights and the optimiser's moments by name, everything else as JSON in its
metadata. It is replaced by a whole one only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dust3r_ros.errors import TrainingError
from dust3r_ros.network import ModelSource, NetworkConfig
from dust3r_ros.network.architecture import config_from_keywords, keywords_from_config
from dust3r_ros.network.weights import write_tensors
from dust3r_ros.training.step import Learner

FORMAT = 2


@dataclass(frozen=True)
class Progress:
    """What a run has done: pairs seen, steps taken, seconds spent, the next chunk of pairs, the stage it was in."""

    pairs: int = 0
    steps: int = 0
    seconds: float = 0.0
    chunks: int = 0
    stage: str = ""


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The content of a state file."""

    architecture: NetworkConfig
    source: ModelSource
    options: dict[str, Any]
    progress: Progress
    tensors: Mapping[str, Tensor]


def save_run(
    path: Path, learner: Learner, options: Mapping[str, Any], progress: Progress, *, small: bool = False
) -> None:
    """Write the state of a run; ``options`` (plain values by name) are kept with it.

    A ``small`` state holds the averaged weights in float16 and nothing else, a sixth of the bytes: a run goes on from
    them with an optimiser that begins anew.
    """
    tensors = dict(_small_tensors(learner) if small else _tensors(learner))
    content = {
        "format": FORMAT,
        "architecture": keywords_from_config(learner.model.config),
        "source": asdict(learner.model.source),
        "options": dict(options),
        "progress": asdict(progress),
        "optimiser_steps": 0 if small else learner.optimiser.steps,
    }
    write_tensors(tensors, path, {"run": json.dumps(content)})


def read_run(path: Path) -> SavedRun:
    """A state file's content, on the CPU. Raises TrainingError naming the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get("run", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise TrainingError(f"{path} is not the state of a training run: {error}") from error
    if content.get("format") != FORMAT:
        raise TrainingError(f"{path} has format {content.get('format')!r}, expected {FORMAT}")
    tensors["optimiser_steps"] = torch.tensor(float(content["optimiser_steps"]))
    architecture = config_from_keywords(content["architecture"])
    source = ModelSource(**content["source"])
    return SavedRun(architecture, source, content["options"], Progress(**content["progress"]), tensors)


def restore(learner: Learner, saved: SavedRun) -> None:
    """Put a saved run's tensors into a learner. Raises TrainingError when they do not fit it."""
    average = _under(saved.tensors, "average.")
    try:
        learner.model.load_state_dict(_under(saved.tensors, "model.") or average)
        learner.head.load_state_dict(_under(saved.tensors, "head."))
        for name, value in learner.average.items():
            value.copy_(average[name])
        learner.optimiser.restore(int(saved.tensors["optimiser_steps"]), saved.tensors)
    except (RuntimeError, KeyError) as error:
        raise TrainingError(f"the state does not fit the network: {error}") from error


def _tensors(learner: Learner) -> Mapping[str, Tensor]:
    found = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    found |= {f"head.{name}": value for name, value in learner.head.state_dict().items()}
    found |= {f"average.{name}": value for name, value in learner.average.items()}
    found |= learner.optimiser.moments()
    return {name: value.detach().to("cpu").contiguous().clone() for name, value in found.items()}


def _small_tensors(learner: Learner) -> Mapping[str, Tensor]:
    found = {f"average.{name}": value for name, value in learner.average.items()}
    found |= {f"head.{name}": value for name, value in learner.head.state_dict().items()}
    return {name: value.detach().to("cpu", torch.float16).contiguous().clone() for name, value in found.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
