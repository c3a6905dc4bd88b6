"""How fast training pairs are rendered: scenes, camera pairs, pictures with exact geometry, photometric flaws.

python benchmark/render.py --device cpu --threads 2 --out render.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dust3r_ros.training.cameras import sample_pairs
from dust3r_ros.training.photometric import degrade
from dust3r_ros.training.render import render
from dust3r_ros.training.scenes import SceneSampler
from dust3r_ros.training.textures import make_atlas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of views in each scene")
    parser.add_argument("--size", type=int, nargs=2, default=(168, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--textures", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = measure(options)
    views = 2 * options.scenes * options.pairs
    whole = sum(seconds.values())
    for name, value in seconds.items():
        print(f"{name:<16}{1e3 * value / views:10.2f} ms a view")
    print(f"{'together':<16}{1e3 * whole / views:10.2f} ms a view {views / 2 / whole:10.1f} pairs/s")
    if options.out:
        figures = {f"{name}_ms_per_view": 1e3 * value / views for name, value in seconds.items()}
        described = {k: str(v) for k, v in vars(options).items()}
        options.out.write_text(
            json.dumps({**figures, "pairs_per_s": views / 2 / whole, "options": described}, indent=1)
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage for one batch, the best of the rounds; on a CPU processor time over the threads, which
    other work on the machine disturbs less than wall time."""
    device = torch.device(options.device)
    atlas = make_atlas(options.textures, 256, torch.Generator().manual_seed(1)).to(device)
    sampler = SceneSampler(atlas)
    generator = torch.Generator(device).manual_seed(2)
    size = tuple(options.size)
    best: dict[str, float] = {}

    cpu = device.type == "cpu"

    def now() -> float:
        return time.process_time() / options.threads if cpu else time.perf_counter()

    def timed(name: str, work: Callable):
        start = now()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best[name] = min(best.get(name, float("inf")), now() - start)
        return result

    for _ in range(options.rounds):
        scenes = timed("scenes", lambda: sampler.mixed(options.scenes, generator))
        pairs = timed("camera pairs", lambda scenes=scenes: sample_pairs(scenes, options.pairs, size, generator))
        poses, k = pairs.camera_to_world.flatten(1, 2), pairs.intrinsics.flatten(1, 2)
        views = timed("pictures", lambda scenes=scenes, poses=poses, k=k: render(scenes, poses, k, size))
        timed("flaws", lambda views=views: degrade(views.rgb, generator))
    return best


if __name__ == "__main__":
    main()
