"""The same images through COLMAP (pycolmap, incremental mapping) and through this package, on this machine.

    python benchmark/against_colmap.py PACKS... [--images 0 3 5 8] [--checkpoint geometric] [--set NAME=VALUE]
        [--out against_colmap.json]

PACKS are posed packs or folders of packs. Of each, all images are taken (0), and then a few of them, spread over the
sequence: few views are where structure from motion fails. Neither side knows the intrinsics; both know that one camera
took all images. COLMAP runs with its own settings: SIFT at full resolution, exhaustive matching, SIMPLE_RADIAL, its
largest model. Columns: views with a pose; relative rotation and translation direction error, median over the pairs of
views that have one (degrees); AUC at 30 degrees of the larger of the two over all pairs, those without a pose counting
as wrong; focal error (percent); points; seconds with reading the images and without loading a model. "-" is what
cannot be said.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.cli.options import parse_value
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import FloatArray
from dust3r_ros.errors import Dust3rError, RecordingError
from dust3r_ros.evaluation.metrics import focal_error_percent, pose_errors
from dust3r_ros.evaluation.packs import Pack, load_pack
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.evaluation.run import evaluate
from dust3r_ros.geometry import invert_pose
from dust3r_ros.mapping.export import write_json
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import load_predictor

HEADER = ("pack", "images", "by", "views", "rot deg", "trans deg", "AUC30", "focal %", "points", "s")


@dataclass(frozen=True)
class Figures:
    """One run; None for what cannot be said."""

    pack: str
    images: int
    by: str
    registered: int
    rotation_error_deg: float | None
    translation_error_deg: float | None
    auc_30: float | None
    focal_error_percent: float | None
    points: int
    seconds: float


def some_of(pack: Pack, count: int) -> Pack:
    """``count`` frames spread over the pack, or all for 0 and where there are no more."""
    if count == 0 or count >= len(pack):
        return pack
    chosen = np.rint(np.linspace(0, len(pack) - 1, count)).astype(int)
    return replace(pack, frames=tuple(pack.frames[k] for k in chosen))


def ours(pack: Pack, config: ReconstructorConfig) -> Figures:
    """This package, in batch."""
    predictor = load_predictor(config)
    try:
        done = evaluate(pack, config, predictor=predictor).metrics
    except Dust3rError as error:
        print(f"{pack.name}: {error}", file=sys.stderr)
        return Figures(pack.name, len(pack), predictor.info.name, 0, None, None, 0.0, None, 0, float("nan"))
    return Figures(
        pack.name, len(pack), done.model, round(done.registered * len(pack)), done.rotation_error_deg,
        done.translation_error_deg, done.auc_30, done.focal_error_percent, done.points, done.seconds,
    )  # fmt: skip


def by_colmap(pack: Pack) -> Figures:
    """COLMAP's largest model."""
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.FATAL
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        names = [f"{number:06d}{frame.image_file.suffix}" for number, frame in enumerate(pack.frames)]
        for name, frame in zip(names, pack.frames):
            (folder / "images" / name).symlink_to(frame.image_file.resolve())
        database = folder / "database.db"
        start = time.perf_counter()
        pycolmap.extract_features(database, folder / "images", camera_mode=pycolmap.CameraMode.SINGLE)
        pycolmap.match_exhaustive(database)
        models = pycolmap.incremental_mapping(database, folder / "images", folder)
        seconds = time.perf_counter() - start
    if not models:
        return Figures(pack.name, len(pack), "COLMAP", 0, None, None, 0.0, None, 0, seconds)
    return _measured(pack, names, max(models.values(), key=lambda model: model.num_reg_images()), seconds)


def _measured(pack: Pack, names: list[str], model: Any, seconds: float) -> Figures:
    poses: dict[int, FloatArray] = {}
    focals: dict[int, float] = {}
    for image in model.images.values():
        if image.has_pose:
            number = names.index(image.name)
            poses[number] = invert_pose(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
            focals[number] = model.camera(image.camera_id).mean_focal_length()
    numbers = sorted(poses)
    errors = pose_errors(np.stack([poses[k] for k in numbers]), pack.poses()[numbers], len(pack))
    true_focals = [pack.frames[k].intrinsics.focal_px for k in numbers]
    return Figures(
        pack.name, len(pack), "COLMAP", len(numbers), errors.rotation_deg, errors.translation_deg, errors.auc_30,
        focal_error_percent([focals[k] for k in numbers], true_focals), model.num_points3D(), seconds,
    )  # fmt: skip


def row(f: Figures) -> list[str]:
    """A line of the table."""

    def text(value: float | None, digits: int) -> str:
        return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"

    return [
        f.pack,
        str(f.images),
        f.by,
        str(f.registered),
        text(f.rotation_error_deg, 2),
        text(f.translation_error_deg, 2),
        text(f.auc_30, 3),
        text(f.focal_error_percent, 1),
        str(f.points),
        text(f.seconds, 1),
    ]


def find_packs(given: list[Path]) -> list[Pack]:
    """The packs named, and those in the folders named."""
    found: list[Path] = []
    for path in given:
        inside = [path] if (path / "cameras.json").is_file() else sorted(f.parent for f in path.glob("*/cameras.json"))
        if not inside:
            raise RecordingError(f"{path}: no posed pack")
        found += inside
    return [load_pack(folder) for folder in found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--images", nargs="+", type=int, default=[0, 3, 5, 8], metavar="N")
    parser.add_argument("--checkpoint", default="geometric")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="JSON")
    arguments = parser.parse_args(argv)
    done: list[Figures] = []
    try:
        changes = dict(change.split("=", 1) for change in arguments.changes)
        values = {name: parse_value(name, text) for name, text in changes.items()}
        config = make_config(ReconstructorConfig, {**values, "checkpoint": arguments.checkpoint})
        for pack in find_packs(arguments.packs):
            for part in dict.fromkeys(some_of(pack, count) for count in arguments.images):
                for figures in (by_colmap(part), ours(part, config)):
                    done.append(figures)
                    print("  ".join(row(figures)), file=sys.stderr, flush=True)
    except Dust3rError as error:
        print(f"against_colmap: {error}", file=sys.stderr)
        return 2
    print(markdown_table(HEADER, [row(figures) for figures in done]))
    if arguments.out:
        finite = [{k: v for k, v in asdict(f).items() if v is None or v == v} for f in done]
        write_json(finite, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
