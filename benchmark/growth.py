"""Does a keyframe cost as much at the two thousandth as at the hundredth? One table, one plot, and the figures as JSON.

    python benchmark/growth.py [--keyframes 2000] [--map-points 200000] [--set NAME=VALUE] [--out growth.json]

A walk along an endless tunnel whose pointmaps are known exactly, so that what is measured is everything but the
network: selection aside, all that the node does with a keyframe, loops looked for included. Every stage's milliseconds
and the process's resident memory, in blocks of keyframes; the map keeps as many points as are asked for, which it has
before the first block, so that it is not in the growth. The last line compares the last block with the first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dust3r_ros.cli.options import parse_value
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.errors import Dust3rError
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.geometry import invert_pose, make_pose, pixel_rays, transform_points
from dust3r_ros.mapping.export import write_json
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

HEIGHT, WIDTH, FOCAL_PX = 80, 112, 100.0
INTRINSICS = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT)
WALLS = np.array([2.0, 1.5])  # half width and height of the tunnel, which goes on for ever along z
STEP, FARTHEST = 0.15, 12.0
CHANNELS = 528  # of a descriptor, as the network's
FIRST = 100  # keyframes before the first block: arrays that grow by doubling have grown
BLOCKS = 10


def pose_of(number: int) -> FloatArray:
    """The walker's camera to world: ahead along the tunnel, swaying, looking to one side and the other."""
    sway = np.array([0.5 * np.sin(0.11 * number), 0.3 * np.sin(0.07 * number), STEP * number])
    turn = 0.6 * np.sin(0.05 * number)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    return make_pose(rotation, sway)


def points_of(pose: FloatArray) -> FloatArray:
    """Camera points (H, W, 3) where the pixels' rays meet the walls."""
    rays = pixel_rays(INTRINSICS)
    across = (rays @ pose[:3, :3].T)[..., :2]
    with np.errstate(divide="ignore"):
        depth = np.min((np.sign(across) * WALLS - pose[:2, 3]) / across, axis=-1)
    return rays * np.minimum(depth, 10 * FARTHEST)[..., None]


class TunnelPredictor(PairPredictor[int]):
    """Exact pointmaps of the walk. An image is known by its number; neighbours have descriptors that are alike."""

    def __init__(self) -> None:
        self.newest = -1
        self.seconds = 0.0  # processor time spent here: not what is measured

    @property
    def info(self) -> PredictorInfo:
        return PredictorInfo("truth", True, "none", "cpu")

    @property
    def image_size(self) -> ImageSize:
        return ImageSize(WIDTH)

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> int:
        self.newest += 1
        return self.newest

    def describe(self, encoded: int) -> FloatArray:
        parts = [np.random.default_rng(k + 5).standard_normal(CHANNELS) for k in range(encoded - 2, encoded + 3)]
        together = np.sum(parts, axis=0)
        return (together / np.linalg.norm(together)).astype(np.float32)

    def predict(self, pairs: Sequence[tuple[int, int]]) -> list[PairPrediction]:
        start = time.process_time()
        predictions = [self._pair(i, j) for i, j in pairs]
        self.seconds += time.process_time() - start
        return predictions

    def _pair(self, i: int, j: int) -> PairPrediction:
        own, other = points_of(pose_of(i)), points_of(pose_of(j))
        moved = transform_points(invert_pose(pose_of(i)) @ pose_of(j), other)
        scale = 1.0 + 0.1 * ((3 * i + 5 * j) % 7)
        conf_i, conf_j = (np.where(p[..., 2] < FARTHEST, 5.0, 0.0).astype(np.float32) for p in (own, other))
        return PairPrediction((scale * own).astype(np.float32), conf_i, (scale * moved).astype(np.float32), conf_j)


@dataclass(frozen=True)
class Block:
    """Medians over some keyframes, milliseconds: stages by the clock, ``total`` processor time without prediction."""

    keyframes: int
    encode: float
    align: float
    fuse: float
    loops: float
    total: float
    memory_mb: float
    map_points: int


def picture() -> ByteImage:
    """The image of every keyframe: smooth noise, as large as a JPEG as a photograph."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3))
    noise = rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
    return np.clip(np.kron(coarse, np.ones((8, 8, 1))) + noise, 0, 255).astype(np.uint8)


def memory_mb() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def walk(keyframes: int, config: ReconstructorConfig) -> tuple[list[Block], float]:
    """The blocks, and the largest error of a relative pose among the last keyframes, as a fraction of a step."""
    predictor = TunnelPredictor()
    reconstructor = Reconstructor(config, predictor)
    image, blocks = picture(), []
    size = max(1, (keyframes - FIRST) // BLOCKS)
    times: list[tuple[float, ...]] = []
    for number in range(keyframes):
        predictor.seconds, start = 0.0, time.process_time()
        update = reconstructor.reconstruct(image, number * 100_000_000)
        before_loops = time.process_time()
        reconstructor.close_loops()
        end = time.process_time()
        total = 1e3 * (end - start - predictor.seconds)
        times.append((update.times.encode_ms, update.times.align_ms, update.times.fuse_ms,
                      1e3 * (end - before_loops), total))  # fmt: skip
        done = number + 1 - FIRST
        if done > 0 and done % size == 0:
            medians = np.median(times[-size:], axis=0)
            blocks.append(Block(number + 1, *map(float, medians), memory_mb(), len(reconstructor.map)))
    return blocks, pose_error(reconstructor)


def pose_error(reconstructor: Reconstructor) -> float:
    """How far the way between the last two keyframes is from the truth, as a fraction of it, scale aside."""
    found = [pose for _, pose in reconstructor.trajectory()][-6:]
    last = reconstructor.keyframes
    true = [pose_of(last - len(found) + k) for k in range(len(found))]
    ways = [np.diff([invert_pose(p[0])[:3, :3] @ (q[:3, 3] - p[0][:3, 3]) for q in p], axis=0) for p in (found, true)]
    scale = np.linalg.norm(ways[1]) / np.linalg.norm(ways[0])
    return float(np.abs(scale * ways[0] - ways[1]).max() / STEP)


def growth(blocks: Sequence[Block]) -> dict[str, float]:
    """The second half against the first: time of a keyframe, and memory that each keyframe adds."""
    middle = len(blocks) // 2
    early, late = blocks[:middle], blocks[middle:]
    grown = [
        (part[-1].memory_mb - part[0].memory_mb) / (part[-1].keyframes - part[0].keyframes) for part in (early, late)
    ]
    return {
        "time, last block / first": blocks[-1].total / blocks[0].total,
        "time, second half / first": float(np.median([b.total for b in late]) / np.median([b.total for b in early])),
        "kB a keyframe, first half": 1024 * grown[0],
        "kB a keyframe, second half": 1024 * grown[1],
    }


def draw(blocks: Sequence[Block], path: Path) -> None:
    """Time and memory by keyframes."""
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    numbers = [b.keyframes for b in blocks]
    for name in ("align", "fuse", "loops", "total"):
        left.plot(numbers, [getattr(b, name) for b in blocks], marker="o", label=name)
    right.plot(numbers, [b.memory_mb for b in blocks], marker="o")
    left.set(xlabel="keyframes", ylabel="ms a keyframe", ylim=(0, None))
    right.set(xlabel="keyframes", ylabel="resident memory, MB", ylim=(0, None))
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    canvas.print_png(str(path))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keyframes", type=int, default=2000)
    parser.add_argument("--map-points", type=int, default=200_000)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="JSON; a plot goes beside it")
    arguments = parser.parse_args(argv)
    if arguments.keyframes < FIRST + 2 * BLOCKS:
        parser.error(f"--keyframes must be at least {FIRST + 2 * BLOCKS}, got {arguments.keyframes}")
    try:
        changes = dict(change.split("=", 1) for change in arguments.changes)
        values: dict[str, object] = {name: parse_value(name, text) for name, text in changes.items()}
        config = make_config(ReconstructorConfig, {"map.max_points": arguments.map_points, **values})
        blocks, error = walk(arguments.keyframes, config)
    except Dust3rError as problem:
        print(f"growth: {problem}", file=sys.stderr)
        return 2
    rows = [
        [str(b.keyframes), *(f"{v:.2f}" for v in (b.encode, b.align, b.fuse, b.loops, b.total)), f"{b.memory_mb:.0f}",
         str(b.map_points)] for b in blocks
    ]  # fmt: skip
    header = ("keyframes", "encode", "align", "fuse", "loops", "all but prediction, ms", "memory, MB", "map points")
    print(markdown_table(header, rows))
    figures = {**growth(blocks), "error of the last ways, steps": error}
    for name, value in figures.items():
        print(f"{name:32} {value:8.3f}")
    if arguments.out:
        write_json({**figures, "blocks": [asdict(b) for b in blocks]}, arguments.out)
        draw(blocks, arguments.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
