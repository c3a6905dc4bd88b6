"""How good a pair predictor is on pairs of real images with truth: one table, and the figures as JSON.

    python benchmark/pairs.py PACK... [--gaps 1 2] [--intrinsics pack|estimate] [--limit 12] [--out pairs.json]

A pack is a folder with ``cameras.json``. A pair is predicted both ways; its relative pose is what takes the second
view's own pointmap onto the one predicted in the first's frame. Columns, medians over pairs: rotation and translation
direction error (degrees), depth AbsRel of the first view after the best scale, and its median, share of pixels with a
prediction, focal error (percent, signed, of the first view's own pointmap), seconds a pair.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dust3r_ros.data import FloatArray, Intrinsics, PairPrediction, PairState
from dust3r_ros.evaluation.packs import Pack, load_pack
from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.geometry import estimate_focal, invert_pose, procrustes, rotation_angle_deg
from dust3r_ros.images import prepare
from dust3r_ros.predictor import PairPredictor


@dataclass(frozen=True)
class PairResult:
    """Errors of one pair; NaN where the pair failed or has no truth."""

    first: str
    second: str
    state: str
    rotation_deg: float
    translation_deg: float
    absrel: float
    absrel_median: float
    covered: float
    focal_percent: float


@dataclass(frozen=True, eq=False)
class _View:
    name: str
    encoded: Any
    intrinsics: Intrinsics  # the truth, for the prepared image
    camera_to_world: FloatArray
    depth: FloatArray | None


def encode_pack(pack: Pack, predictor: PairPredictor[Any], known: bool) -> list[_View]:
    """Every frame of a pack, encoded, with its truth at the predictor's image size."""
    views = []
    for frame in pack.frames:
        image = prepare(frame.load_image(), predictor.image_size)
        k = image.transform.to_network(frame.intrinsics)
        depth = frame.load_depth()
        if depth is not None:
            t = image.transform
            matrix = np.array([[t.scale_x, 0, t.offset_x], [0, t.scale_y, t.offset_y]])
            matrix[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5  # pixel centres at integers, as OpenCV wants
            depth = cv2.warpAffine(depth, matrix, (image.width, image.height), flags=cv2.INTER_NEAREST)
        encoded = predictor.encode(image, "camera", k if known else None)
        views.append(_View(frame.name, encoded, k, frame.camera_to_world, depth))
    return views


def measure(a: _View, b: _View, forward: PairPrediction, backward: PairPrediction) -> PairResult:
    """One pair's errors; ``forward`` is (a, b), ``backward`` (b, a)."""
    result = PairResult(
        Path(a.name).name, Path(b.name).name, forward.state.value, *[float("nan")] * 4, 0.0, float("nan")
    )
    weight = np.minimum(forward.conf_j, backward.conf_i).ravel()
    if forward.state is PairState.FAILED or np.count_nonzero(weight) < 3:
        return result
    b_to_a = procrustes(backward.points_i.reshape(-1, 3), forward.points_j.reshape(-1, 3), weight)
    truth = invert_pose(a.camera_to_world) @ b.camera_to_world
    result = replace(
        result,
        rotation_deg=float(rotation_angle_deg(b_to_a.rotation @ truth[:3, :3].T)),
        translation_deg=_angle_deg(b_to_a.translation, truth[:3, 3]),
        covered=float((forward.conf_i > 0).mean()),
        focal_percent=100 * (estimate_focal(forward.points_i, forward.conf_i) / a.intrinsics.focal_px - 1),
    )
    if a.depth is None:
        return result
    seen = (forward.conf_i > 0) & (a.depth > 0)
    estimated, true = forward.points_i[..., 2][seen], a.depth[seen]
    error = np.abs(estimated * np.median(true) / np.median(estimated) - true) / true
    return replace(result, absrel=float(error.mean()), absrel_median=float(np.median(error)))


def _angle_deg(a: FloatArray, b: FloatArray) -> float:
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(a @ b / norm, -1, 1)))) if norm > 0 else float("nan")


def run(folder: Path, gap: int, intrinsics: str, limit: int, image_size: int) -> dict[str, Any]:
    """All pairs of a pack with ``gap`` between them, at most ``limit``, evenly spread, predicted in one call."""
    pack, predictor = load_pack(folder), GeometricPredictor(image_size)
    start = time.perf_counter()
    views = encode_pack(pack, predictor, intrinsics == "pack")
    encoded_at = time.perf_counter()
    firsts = np.unique(np.linspace(0, len(views) - gap - 1, limit).astype(int))
    pairs = [(views[n], views[n + gap]) for n in firsts]
    both = [p for a, b in pairs for p in ((a.encoded, b.encoded), (b.encoded, a.encoded))]
    predictions = predictor.predict(both)
    done = time.perf_counter()
    results = [measure(a, b, predictions[2 * n], predictions[2 * n + 1]) for n, (a, b) in enumerate(pairs)]
    return {
        "pack": pack.name, "gap": gap, "intrinsics": intrinsics, "pairs": len(pairs),
        "seconds_encode": (encoded_at - start) / len(views), "seconds_pair": (done - encoded_at) / len(pairs),
        **_summary(results), "results": [asdict(r) for r in results],
    }  # fmt: skip


def _summary(results: list[PairResult]) -> dict[str, float]:
    names = ("rotation_deg", "translation_deg", "absrel", "absrel_median", "covered", "focal_percent")
    columns = {name: np.array([getattr(r, name) for r in results]) for name in names}
    medians = {n: float(np.nanmedian(c)) if np.isfinite(c).any() else float("nan") for n, c in columns.items()}
    worst = np.nan_to_num(columns["rotation_deg"], nan=180.0)
    return {
        **medians,
        "rotation_p90_deg": float(np.percentile(worst, 90)),
        "good": sum(r.state == PairState.GOOD.value for r in results) / len(results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--gaps", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--intrinsics", choices=("pack", "estimate"), default="pack")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keys = ("good", "rotation_deg", "rotation_p90_deg", "translation_deg", "absrel", "absrel_median", "covered",
            "focal_percent", "seconds_pair")  # fmt: skip
    print(f"{'pack':24} gap   n  good    rot  rot90  trans absrel median  cover  focal%  s/pair")
    rows = []
    for folder in options.packs:
        for gap in options.gaps:
            row = run(folder, gap, options.intrinsics, options.limit, options.image_size)
            rows.append(row)
            values = "".join(f"{row[k]:7.3f}" for k in keys)
            print(f"{row['pack']:24} {gap:3} {row['pairs']:3}{values}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
