"""How exact and how fast alignment is on pairwise predictions with known truth: one table, and the figures as JSON.

    python benchmark/alignment.py [--cases alignment_cases.py] [--only arc6 arc10] [--seeds 0 1 2] [--keyframes 1000]
                                  [--out alignment.json]

``--cases`` is a Python file with ``CASES`` and ``make_case(name, seed)`` (default:
``$DUST3R_ROS_TEST_DATA/bench/alignment_cases.py``). Columns, medians over seeds: seconds (wall; ``align`` alone) and
how many times faster than the published optimiser, ATE (RMSE of centres after the best Sim(3); also percent of the
path), mean relative rotation error over all pairs of views, mean focal error, depth AbsRel (one scale, the ratio of
medians). After a slash: divided by the published optimiser's. ``walk`` cases are also aligned incrementally.
``--keyframes`` walks to and fro along ``walk60`` and shows the cost of a keyframe as the map grows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from dust3r_ros.alignment import IncrementalAligner, align
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, PairPrediction, ViewEstimate
from dust3r_ros.evaluation.metrics import path_length, pose_errors
from dust3r_ros.geometry import rotation_angle_deg

WINDOW = 3


@dataclass(frozen=True)
class Figures:
    """Errors of one scene; ``ate`` is NaN for fewer than three views."""

    seconds: float
    ate: float
    ate_percent: float
    rotation_deg: float
    focal_percent: float
    absrel: float


NAN = float("nan")
# DUSt3R's global alignment (300 Adam steps, float32), seed 0, two CPU cores with nothing else running.
PUBLISHED = {
    "pair2": Figures(8.8, NAN, NAN, 0.208, 0.31, 0.0117),
    "arc6": Figures(36.3, 0.0056, 0.27, 0.232, 0.09, 0.0052),
    "arc10": Figures(135.5, 0.0065, 0.32, 0.117, 0.13, 0.0054),
    "noisy10": Figures(70.6, 0.0209, 1.02, 0.525, 0.51, 0.0146),
    "loop24": Figures(86.1, 0.0224, 0.25, 0.551, 0.76, 0.0110),
}


def load_cases(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("alignment_cases", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"no case generator at {path}: give one with --cases or set DUST3R_ROS_TEST_DATA")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edges_of(case: Mapping[str, FloatArray]) -> list[Edge]:
    parts = [case[name] for name in ("points_i", "conf_i", "points_j", "conf_j")]
    return [Edge(int(i), int(j), PairPrediction(*(p[k] for p in parts))) for k, (i, j) in enumerate(case["edges"])]


def measure(case: Mapping[str, FloatArray], views: Sequence[ViewEstimate], seconds: float) -> Figures:
    poses, truth = np.array([v.camera_to_world for v in views]), case["poses"]
    first, second = np.triu_indices(len(poses), 1)
    relative, true = (np.swapaxes(p[first, :3, :3], 1, 2) @ p[second, :3, :3] for p in (poses, truth))
    rotation = rotation_angle_deg(np.swapaxes(relative, 1, 2) @ true).mean()
    focal = np.mean([abs(v.intrinsics.focal_px / case["focal"] - 1) for v in views])
    depth = np.array([v.depth for v in views])
    scale = np.median(case["depth"]) / np.median(depth)
    absrel = np.mean(np.abs(scale * depth - case["depth"]) / case["depth"])
    ate = pose_errors(poses, truth).ate_rmse if len(poses) > 2 else None
    ate = NAN if ate is None else ate
    return Figures(seconds, ate, 100 * ate / path_length(truth), float(rotation), float(100 * focal), float(absrel))


def run_batch(case: Mapping[str, FloatArray]) -> Figures:
    edges = edges_of(case)
    start = time.perf_counter()
    scene = align(edges, len(case["poses"]))
    return measure(case, scene.views, time.perf_counter() - start)


def run_incremental(case: Mapping[str, FloatArray]) -> Figures:
    edges, views = edges_of(case), len(case["poses"])
    aligner, found = IncrementalAligner(AlignmentConfig(), WINDOW), {}
    start = time.perf_counter()
    for k in range(views):
        new = [e for e in edges if max(e.i, e.j) == k and abs(e.i - e.j) <= WINDOW]
        update = aligner.add(k, new, camera="camera", size=case["depth"].shape[1:])
        found.update({k: update.view, **update.moved})
    return measure(case, [found[k] for k in range(views)], time.perf_counter() - start)


def median(figures: Sequence[Figures]) -> Figures:
    return Figures(*(float(np.median([getattr(f, name) for f in figures])) for name in asdict(figures[0])))


def row(name: str, f: Figures) -> str:
    p = PUBLISHED.get(name)
    cells = [f"{name:16}", f"{f.seconds:7.2f}" + (f" {p.seconds / f.seconds:5.0f}x" if p else " " * 7)]
    for field, form in (("ate", ".4f"), ("rotation_deg", ".3f"), ("focal_percent", ".3f"), ("absrel", ".4f")):
        value, published = getattr(f, field), getattr(p, field) if p else NAN
        cells.append(
            f"{value:8{form}} / {value / published:4.2f}" if published == published else f"{value:8{form}}       "
        )
    return "  ".join([*cells, f"{f.ate_percent:6.3f}"])


@dataclass(frozen=True)
class Growth:
    """Median milliseconds of ``add`` early and late in a long walk, their ratio, and bytes held a keyframe."""

    keyframes: int
    early_ms: float
    late_ms: float
    ratio: float
    bytes_per_keyframe: float


def run_growth(case: Mapping[str, FloatArray], keyframes: int) -> Growth:
    """Walk to and fro along a case's views; keyframes early: 50 to 150, late: the last 100."""
    predictions = {(e.i, e.j): e.prediction for e in edges_of(case)}
    turn = 2 * len(case["poses"]) - 2
    views = [min(k % turn, turn - k % turn) for k in range(keyframes)]
    aligner, times, sizes = IncrementalAligner(AlignmentConfig(), WINDOW), [], {}
    for k in range(keyframes):
        near = [(a, b) for m in range(max(0, k - WINDOW), k) for a, b in ((m, k), (k, m))]
        edges = [Edge(a, b, predictions[views[a], views[b]]) for a, b in near if (views[a], views[b]) in predictions]
        start = time.perf_counter()
        aligner.add(k, edges, camera="camera", size=case["depth"].shape[1:])
        times.append(1e3 * (time.perf_counter() - start))
        if k in (100, keyframes - 1):
            sizes[k] = len(pickle.dumps(aligner))
    early, late = float(np.median(times[50:150])), float(np.median(times[-100:]))
    grown = (sizes[keyframes - 1] - sizes[100]) / (keyframes - 101)
    return Growth(keyframes, early, late, late / early, grown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, help="the case generator")
    parser.add_argument("--only", nargs="+", help="names of cases; all when left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--keyframes", type=int, default=0, help="length of the long walk, 0 for none (at least 300)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    data = Path(os.environ.get("DUST3R_ROS_TEST_DATA", "."))
    cases = load_cases(args.cases or data / "bench" / "alignment_cases.py")
    results: dict[str, object] = {}
    print(f"{'case':16}  seconds  faster       ATE m / ref    rotation / ref    focal % / ref     AbsRel / ref   ATE %")
    run_batch(cases.make_case("pair2", 0))  # the first call loads libraries
    for name in args.only or cases.CASES:
        batch, stepped = [], []
        for seed in args.seeds:
            case = cases.make_case(name, seed)
            batch.append(run_batch(case))
            if name.startswith("walk"):
                stepped.append(run_incremental(case))
        for label, figures in ((name, batch), (f"{name} stepwise", stepped)):
            if figures:
                print(row(label, median(figures)), flush=True)
                results[label] = {"median": asdict(median(figures)), "seeds": [asdict(f) for f in figures]}
    if args.keyframes:
        growth = run_growth(cases.make_case("walk60", 0), max(args.keyframes, 300))
        print(f"{growth.keyframes} keyframes: {growth.early_ms:.0f} ms a keyframe early, {growth.late_ms:.0f} ms late "
              f"(x{growth.ratio:.2f}), {growth.bytes_per_keyframe:.0f} bytes kept a keyframe")  # fmt: skip
        results["growth"] = asdict(growth)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
