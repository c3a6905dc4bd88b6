"""``dust3r-ros align``: global alignment alone, from file to file."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_pipeline_options, config_of
from dust3r_ros.errors import AlignmentError

if TYPE_CHECKING:
    from dust3r_ros.alignment.files import Predictions
    from dust3r_ros.data import FloatArray, Intrinsics


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "align", help="align pairwise pointmaps from a file", description="Align pairwise pointmaps from a file."
    )
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS.npz",
        help="edges (E, 2), points_i and points_j (E, H, W, 3) in camera i's frame, conf_i and conf_j (E, H, W)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="SCENE.npz",
        help="poses (N, 4, 4) camera to world, focal (N,), depth (N, H, W), registered (N,), covariance (N, 6, 6), "
        "wrong_edges (K, 2), seconds",
    )  # fmt: skip
    known = parser.add_argument_group("what is known (one focal for each camera in the file's cameras is found; "
                                      "--set alignment.share_focal=false finds one for each view)")  # fmt: skip
    known.add_argument("--focal", type=float, metavar="PX", help="focal length of all views, pixels")
    known.add_argument(
        "--principal-point", type=float, nargs=2, metavar=("CX", "CY"),
        help="of all views, pixels, pixel centres at integers + 0.5 (default: the image centre)",
    )  # fmt: skip
    known.add_argument(
        "--keep-poses", nargs="*", type=int, metavar="VIEW",
        help="hold the poses in the file, of these views or of all; they are the world and its unit",
    )  # fmt: skip
    add_pipeline_options(parser, without=("dtype", "image_size", "window", "intrinsics"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Align; the time that is written and printed is that of the alignment alone."""
    from dust3r_ros.alignment import align
    from dust3r_ros.alignment.files import load_predictions, save_scene
    from dust3r_ros.evaluation.report import text_table

    config = config_of(arguments)
    predictions = load_predictions(arguments.predictions)
    poses = _kept_poses(arguments, predictions)
    lenses, points = _lenses(arguments, predictions)
    device = _named_device(config.device)
    start = time.perf_counter()
    scene = align(predictions.edges, predictions.views, config.alignment, intrinsics=lenses, principal_points=points,
                  poses=poses, cameras=predictions.cameras, device=device)  # fmt: skip
    seconds = time.perf_counter() - start
    save_scene(arguments.out, scene, seconds)
    placed = sum(view.registered for view in scene.views)
    rows = [
        ("views", f"{len(scene.views)} ({placed} with a pose)"),
        ("directed edges", f"{len(predictions.edges)}"),
        ("contradicting edges", ", ".join(f"{i}-{j}" for i, j in sorted(scene.wrong_edges)) or "none"),
        ("time", f"{seconds:.2f} s"),
        ("written", str(arguments.out)),
    ]
    print(text_table(rows))
    return 0


def _named_device(name: str) -> str | None:
    """A GPU that was named. ``auto`` looks for none: NumPy is done before PyTorch is loaded."""
    if name in ("auto", "cpu"):
        return None
    from dust3r_ros.network.weights import resolve_device

    return str(resolve_device(name))


def _kept_poses(arguments: argparse.Namespace, predictions: Predictions) -> list[FloatArray | None] | None:
    """The file's poses where ``--keep-poses`` says so; raises AlignmentError when there are none, or not such."""
    from dust3r_ros.alignment.given import rigid_pose

    if arguments.keep_poses is None:
        return None
    if predictions.poses is None:
        raise AlignmentError(f"{arguments.predictions}: --keep-poses expects poses (N, 4, 4) in the file, got none")
    kept = set(arguments.keep_poses or range(predictions.views))
    if not kept <= set(range(predictions.views)):
        raise AlignmentError(f"--keep-poses expects views 0 to {predictions.views - 1}, got {sorted(kept)}")
    try:
        return [rigid_pose(p, v) if v in kept else None for v, p in enumerate(predictions.poses)]
    except ValueError as error:
        raise AlignmentError(f"{arguments.predictions}: {error}") from error


def _lenses(arguments: argparse.Namespace, predictions: Predictions) -> tuple[
    list[Intrinsics | None] | None, list[tuple[float, float] | None] | None
]:  # fmt: skip
    """Intrinsics, or principal points, of every view as ``--focal`` and ``--principal-point`` say."""
    from dust3r_ros.alignment.observations import view_sizes
    from dust3r_ros.data import Intrinsics

    point = tuple(arguments.principal_point) if arguments.principal_point else None
    if arguments.focal is None:
        return None, [point] * predictions.views if point else None
    if not (arguments.focal > 0 and math.isfinite(arguments.focal)):
        raise AlignmentError(f"--focal expects a positive number of pixels, got {arguments.focal}")
    sizes = view_sizes(predictions.edges)
    lenses: list[Intrinsics | None] = [None] * predictions.views
    for view, (height, width) in sizes.items():
        cx, cy = point or (width / 2, height / 2)
        lenses[view] = Intrinsics(arguments.focal, arguments.focal, cx, cy, width, height)
    return lenses, None
