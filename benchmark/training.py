"""Where the time of training goes: rendering, preparing, forward, backward, optimiser; one table, and JSON.

    python benchmark/training.py [--architecture tiny] [--device auto] [--steps 8] [--threads 0]
        [--execution eager compiled] [--out training.json]

Rendering is timed alone, in this process; on a CPU it runs beside the training in processes of its own, and every
rendered pair is used several times. One row for each stage's first image size. ``pairs/s`` is of the steps alone; each
pair is learned both ways round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dust3r_ros.config import TrainingConfig
from dust3r_ros.network import Dust3rNetwork, count_parameters
from dust3r_ros.network.weights import resolve_device
from dust3r_ros.options import make_config
from dust3r_ros.training.architectures import ARCHITECTURES, initialised
from dust3r_ros.training.begin import batch_of, uses_bfloat16
from dust3r_ros.training.pairs import ChunkRequest, RenderedPairs, RenderSettings
from dust3r_ros.training.stages import Stage, all_stages
from dust3r_ros.training.step import Learner, StepSettings

PARTS = ("prepare", "forward", "backward", "optimise")


@dataclass(frozen=True)
class Row:
    """Milliseconds a pair of one stage."""

    stage: str
    execution: str
    size: str
    batch: int
    precision: str
    render: float
    prepare: float
    forward: float
    backward: float
    optimise: float
    pairs_per_second: float


def measure(stage: Stage, learner: Learner, source: RenderedPairs, config: TrainingConfig, steps: int) -> Row:
    """Some steps of a stage, after one that warms up."""
    device, size = learner.model.device, stage.sizes[0]
    count = batch_of(config, learner.model.config, size, device)
    start = time.perf_counter()
    chunks = [source.make(ChunkRequest(n, size, (0.03, 2.0))) for n in range(-(-count // source.settings.chunk))]
    rgb, depth, k, pose = (
        torch.cat([getattr(c, name) for c in chunks])[:count].clone()
        for name in ("rgb", "depth", "intrinsics", "second_to_first")
    )
    wait(device)
    rendered = time.perf_counter() - start
    batch = type(chunks[0])(rgb, depth, k, pose)
    learner.step(batch, stage.task, 1e-4, 0)
    spent = torch.zeros(4, dtype=torch.float64)
    start = time.perf_counter()
    for _ in range(steps):
        spent += torch.tensor(learner.step(batch, stage.task, 1e-4, 0).seconds, dtype=torch.float64)
    wait(device)
    whole = time.perf_counter() - start
    parts = (1000 * spent / (steps * count)).tolist()
    made = len(chunks) * source.settings.chunk
    return Row(
        stage.name,
        "compiled" if learner.settings.compiled else "eager",
        f"{size[1]}x{size[0]}",
        count,
        "bfloat16" if learner.settings.bfloat16 else "float32",
        1000 * rendered / made,
        *parts,
        steps * count / whole,
    )


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="tiny", choices=tuple(ARCHITECTURES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--execution", nargs="+", default=["eager"], choices=("eager", "compiled"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of the training; 0 is PyTorch's choice")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    if device.type == "cuda":
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # so that each part's time is its own
    config = make_config(TrainingConfig, {"architecture": arguments.architecture, "batch": arguments.batch})
    network = ARCHITECTURES[arguments.architecture]
    source = RenderedPairs(RenderSettings(textures=64, scenes=128 if device.type == "cuda" else 20, device=str(device)))
    rows = []
    for execution in arguments.execution:
        model = initialised(Dust3rNetwork(network), torch.Generator().manual_seed(0)).to(device)
        settings = StepSettings(bfloat16=uses_bfloat16(arguments.precision, device), compiled=execution == "compiled")
        learner = Learner(model, settings, torch.Generator(device).manual_seed(0))
        rows += [measure(stage, learner, source, config, arguments.steps) for stage in all_stages(network)]
    print(f"{arguments.architecture}: {count_parameters(model) / 1e6:.1f} M parameters, {device}; ms a pair")
    print(
        f"{'stage':<12}{'':<10}{'images':>9}{'batch':>7}{'':>10}{'render':>9}"
        + "".join(f"{p:>10}" for p in PARTS)
        + "   pairs/s"
    )
    for r in rows:
        times = "".join(f"{getattr(r, part):>10.2f}" for part in PARTS)
        print(
            f"{r.stage:<12}{r.execution:<10}{r.size:>9}{r.batch:>7}{r.precision:>10}{r.render:>9.2f}{times}{r.pairs_per_second:>10.1f}"
        )
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"device": str(device), "rows": [asdict(r) for r in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
