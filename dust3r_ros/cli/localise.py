"""``dust3r-ros localise``: where images were taken, in a map that was made before."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dust3r_ros.cli.options import (
    add_camera,
    add_overwrite,
    add_single_options,
    camera_of,
    config_of,
    results_folder,
)
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.cli.reconstruct import find_images
from dust3r_ros.errors import AlignmentError, ImageError


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "localise",
        help="place new images in a saved map",
        description="Place new images in a saved map: a folder of reconstruct or replay with --export depth, or any "
        "posed image pack with depth.",
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="a folder or image files")
    parser.add_argument("--map", type=Path, required=True, metavar="DIR", dest="map_folder", help="the saved map")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write cameras.json with the poses found here")
    parser.add_argument("--neighbours", type=int, default=4, metavar="N", help="keyframes to compare with (default 4)")
    add_camera(parser)
    parser.add_argument(
        "--estimate-focal", action="store_true",
        help="estimate the focal of every image, also of those as large as the map's own, which are taken to be of "
        "its camera",
    )  # fmt: skip
    add_overwrite(parser)
    add_single_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Place every image; those that cannot be are said. An error only when none can."""
    if arguments.neighbours < 1:
        raise ImageError(f"--neighbours must be at least 1, got {arguments.neighbours}")
    camera_of(arguments, 1, 1)  # a wrong one is refused before the work
    if arguments.camera is not None and arguments.estimate_focal:
        raise ImageError("--camera gives the focal that --estimate-focal asks to estimate: choose one")
    paths = find_images(arguments.images)
    with results_folder(arguments, "cameras.json") if arguments.out is not None else nullcontext() as out:
        return _locate(paths, arguments, out)


def _locate(paths: Sequence[Path], arguments: argparse.Namespace, out: Path | None) -> int:
    from dust3r_ros.evaluation.report import markdown_table
    from dust3r_ros.images import load_image
    from dust3r_ros.mapping.export import CameraRecord, write_cameras_json
    from dust3r_ros.pipeline import load_predictor, predictor_image_size
    from dust3r_ros.tasks.localise import Localiser

    config = config_of(arguments)
    predictor = load_predictor(config)
    size = predictor_image_size(config, predictor)
    localiser = Localiser(arguments.map_folder, predictor, arguments.neighbours, size)
    rows, cameras = [], []
    with progress_bars() as bars:
        for done, path in enumerate(paths):
            bars("localise", done, len(paths))
            try:
                image = load_image(path)
                camera = camera_of(arguments, *image.shape[:2])
                found = localiser.locate(image, camera, estimate=arguments.estimate_focal)
            except (AlignmentError, ImageError) as error:
                rows.append([path.name, "-", "-", str(error)])
                continue
            place = "({:.3f}, {:.3f}, {:.3f})".format(*found.camera_to_world[:3, 3])
            focal = f"{found.intrinsics.focal_px:.1f} px, {found.intrinsics_from}"
            rows.append([path.name, place, focal, f"{found.inliers} of {found.points} points fit"])
            name = os.path.relpath(path, out) if out is not None else str(path)
            cameras.append(CameraRecord(name, found.intrinsics, found.camera_to_world))
    print(markdown_table(["image", "place", "focal", ""], rows))
    if not cameras:
        raise AlignmentError(f"none of the {len(paths)} images could be placed in {arguments.map_folder}")
    if out is not None:
        write_cameras_json(cameras, out / "cameras.json", metric=localiser.metric)
    return 0
