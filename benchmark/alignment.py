"""How exact and how fast alignment is on pairwise predictions with known truth: one table, and the figures as JSON.

    python benchmark/alignment.py [--cases alignment_cases.py] [--only arc6 arc10] [--seeds 0 1 2] [--keyframes 1000]
                                  [--out alignment.json] [--figure growth.png]

``--cases`` is a Python file with ``CASES`` and ``make_case(name, seed)`` (default:
``$DUST3R_ROS_TEST_DATA/bench/alignment_cases.py``). Columns, medians over seeds (0 to 4 by default): wall seconds of
``align`` alone, how many times faster than the published optimiser, and CPU seconds, which other load changes less; ATE
(RMSE of centres after the best Sim(3); also percent of the path), mean relative rotation error over all pairs of views,
mean focal error, depth AbsRel (one scale, the ratio of medians). After a slash: divided by the published optimiser's.
Last: mean squared pose error by its covariance, 1 when that is exactly right. ``walk`` cases are also aligned
incrementally. ``--keyframes`` walks to and fro along ``walk60`` and shows the cost of a keyframe as the map grows.
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import IncrementalAligner, align
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, PairPrediction, ViewEstimate
from dust3r_ros.evaluation.metrics import path_length, pose_errors
from dust3r_ros.geometry import invert_pose, rotation_angle_deg

WINDOW = 3


NAN = float("nan")
ERRORS = {"ate": ".4f", "rotation_deg": ".3f", "focal_percent": ".3f", "absrel": ".4f"}


@dataclass(frozen=True)
class Figures:
    """Errors of one scene; ``ate`` is NaN for fewer than three views, ``pose_chi2`` where there are no covariances."""

    seconds: float
    ate: float
    ate_percent: float
    rotation_deg: float
    focal_percent: float
    absrel: float
    cpu_seconds: float = NAN
    pose_chi2: float = NAN


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


@dataclass
class Stopwatch:
    """Wall and CPU seconds of a ``with`` block."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def measure(case: Mapping[str, FloatArray], views: Sequence[ViewEstimate], watch: Stopwatch) -> Figures:
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
    return Figures(watch.wall, ate, 100 * ate / path_length(truth), float(rotation), float(100 * focal), float(absrel),
                   watch.cpu, pose_chi2(case, views))  # fmt: skip


def pose_chi2(case: Mapping[str, FloatArray], views: Sequence[ViewEstimate]) -> float:
    """Mean over all but the first view of squared pose errors by their covariance, for each degree of freedom."""
    if any(v.pose_covariance is None for v in views):
        return NAN
    unit = np.exp(np.mean(np.log(case["depth"][0] / views[0].depth)))
    found = []
    for view, pose in zip(views[1:], case["poses"][1:]):
        true = invert_pose(case["poses"][0]) @ pose
        true[:3, 3] /= unit
        gap = invert_pose(view.camera_to_world) @ true
        step = np.concatenate([gap[:3, 3], Rotation.from_matrix(gap[:3, :3]).as_rotvec()])
        found.append(step @ np.linalg.solve(view.pose_covariance, step) / 6)
    return float(np.mean(found))


def run_batch(case: Mapping[str, FloatArray]) -> Figures:
    edges = edges_of(case)
    with Stopwatch() as watch:
        scene = align(edges, len(case["poses"]))
    return measure(case, scene.views, watch)


def run_incremental(case: Mapping[str, FloatArray]) -> Figures:
    edges, views = edges_of(case), len(case["poses"])
    aligner, found = IncrementalAligner(AlignmentConfig(), WINDOW), {}
    with Stopwatch() as watch:
        for k in range(views):
            new = [e for e in edges if max(e.i, e.j) == k and abs(e.i - e.j) <= WINDOW]
            update = aligner.add(k, new, camera="camera", size=case["depth"].shape[1:])
            found.update({k: update.view, **update.moved})
        found.update(aligner.settle())
    return measure(case, [found[k] for k in range(views)], watch)


def median(figures: Sequence[Figures]) -> Figures:
    return Figures(*(float(np.median([getattr(f, name) for f in figures])) for name in asdict(figures[0])))


def ratios(name: str, f: Figures) -> dict[str, float]:
    """The errors of a case divided by the published optimiser's, where it has any."""
    published = PUBLISHED.get(name)
    pairs = {e: (getattr(f, e), getattr(published, e, NAN)) for e in ERRORS}
    return {e: ours / theirs for e, (ours, theirs) in pairs.items() if theirs == theirs}


def row(name: str, f: Figures) -> str:
    p = PUBLISHED.get(name)
    cells = [f"{name:16}", f"{f.seconds:7.2f}" + (f" {p.seconds / f.seconds:5.0f}x" if p else " " * 7),
             f"{f.cpu_seconds:6.2f}"]  # fmt: skip
    relative = ratios(name, f)
    for error, form in ERRORS.items():
        after = f" / {relative[error]:4.2f}" if error in relative else " " * 7
        cells.append(f"{getattr(f, error):8{form}}{after}")
    return "  ".join([*cells, f"{f.ate_percent:6.3f}", f"{f.pose_chi2:5.2f}"])


HEADER = (f"{'case':16}  seconds  faster     CPU       ATE m / ref    rotation / ref     focal % / ref      "
          "AbsRel / ref   ATE %  chi2")  # fmt: skip


@dataclass(frozen=True)
class Growth:
    """Milliseconds of each ``add`` in a long walk, their medians early and late, and bytes held a keyframe."""

    keyframes: int
    early_ms: float
    late_ms: float
    ratio: float
    bytes_per_keyframe: float
    add_ms: list[float]


def run_growth(case: Mapping[str, FloatArray], keyframes: int) -> Growth:
    """Walk to and fro along a case's views; keyframes early: 50 to 150, late: the last 100."""
    predictions = {(e.i, e.j): e.prediction for e in edges_of(case)}
    turn = 2 * len(case["poses"]) - 2
    views = [min(k % turn, turn - k % turn) for k in range(keyframes)]
    aligner, times, sizes = IncrementalAligner(AlignmentConfig(), WINDOW), [], {}
    for k in range(keyframes):
        near = [(a, b) for m in range(max(0, k - WINDOW), k) for a, b in ((m, k), (k, m))]
        edges = [Edge(a, b, predictions[views[a], views[b]]) for a, b in near if (views[a], views[b]) in predictions]
        with Stopwatch() as watch:
            aligner.add(k, edges, camera="camera", size=case["depth"].shape[1:])
        times.append(1e3 * watch.wall)
        if k >= 100 and (k - 100) % turn == 0:  # in the same place, so that the window holds the same
            sizes[k] = len(pickle.dumps(aligner))
    early, late = float(np.median(times[50:150])), float(np.median(times[-100:]))
    grown = (sizes[max(sizes)] - sizes[100]) / (max(sizes) - 100)
    return Growth(keyframes, early, late, late / early, grown, times)


def draw_growth(growth: Growth, path: Path) -> None:
    """The cost of a keyframe against the number of keyframes in the map, as PNG."""
    figure = Figure(figsize=(8, 3.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="keyframes in the map", ylabel="ms to add one")
    axes.plot(growth.add_ms, ".", markersize=2, color="#bbbbbb", label="each")
    running = [np.median(growth.add_ms[max(0, k - 25) : k + 25]) for k in range(growth.keyframes)]
    axes.plot(running, color="#cc3311", label="median of 50")
    axes.set_ylim(0, 3 * growth.early_ms)
    axes.set_title(f"last 100 against keyframes 50 to 150: {growth.ratio:.2f}; "
                   f"{growth.bytes_per_keyframe:.0f} bytes kept a keyframe", fontsize=10)  # fmt: skip
    axes.legend(loc="upper right")
    FigureCanvasAgg(figure).print_png(str(path))


def measure_cases(cases: ModuleType, names: Sequence[str], seeds: Sequence[int]) -> dict[str, object]:
    """Measure and print every case; the table's last line sums up."""
    results: dict[str, object] = {}
    against: list[float] = []
    run_batch(cases.make_case("pair2", 0))  # the first call loads libraries
    print(HEADER)
    for name in names:
        made = [cases.make_case(name, seed) for seed in seeds]
        runs = {name: [run_batch(case) for case in made]}
        if name.startswith("walk"):
            runs[f"{name} stepwise"] = [run_incremental(case) for case in made]
        for label, figures in runs.items():
            print(row(label, median(figures)), flush=True)
            results[label] = {"median": asdict(median(figures)), "seeds": [asdict(f) for f in figures]}
        against += ratios(name, median(runs[name])).values()
    if against:
        mean = float(np.exp(np.mean(np.log(against))))
        print(f"{len(against)} errors divided by the published optimiser's: geometric mean {mean:.3f}, "
              f"largest {max(against):.2f}")  # fmt: skip
        results["ratio"] = {"geometric_mean": mean, "largest": max(against)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=Path, help="the case generator")
    parser.add_argument("--only", nargs="+", help="names of cases; all when left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--keyframes", type=int, default=0, help="length of the long walk, 0 for none (at least 300)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--figure", type=Path, help="PNG of the long walk's cost (default: beside the JSON file)")
    args = parser.parse_args()
    data = Path(os.environ.get("DUST3R_ROS_TEST_DATA", "."))
    cases = load_cases(args.cases or data / "bench" / "alignment_cases.py")
    results = measure_cases(cases, args.only or list(cases.CASES), args.seeds)
    if args.keyframes:
        growth = run_growth(cases.make_case("walk60", 0), max(args.keyframes, 300))
        print(f"{growth.keyframes} keyframes: {growth.early_ms:.0f} ms a keyframe early, {growth.late_ms:.0f} ms late "
              f"(x{growth.ratio:.2f}), {growth.bytes_per_keyframe:.0f} bytes kept a keyframe")  # fmt: skip
        results["growth"] = asdict(growth)
        figure = args.figure or (args.out.with_suffix(".png") if args.out else None)
        if figure:
            draw_growth(growth, figure)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
