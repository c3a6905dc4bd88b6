"""``dust3r-ros depth``: depth, normals and intrinsics of a single image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_camera, add_overwrite, add_single_options, camera_of, config_of, results_folder

if TYPE_CHECKING:
    from dust3r_ros.tasks.single import SingleView


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "depth",
        help="depth, normals and intrinsics of a single image",
        description="Depth, normals and intrinsics of a single image. Needs a network (--checkpoint).",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="depth.npy (up to scale), confidence.npy, normals.npy (towards the camera), depth.png, normals.png and "
        "camera.json go here",
    )  # fmt: skip
    add_camera(parser)
    add_overwrite(parser)
    add_single_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, write and print."""
    from dust3r_ros.evaluation.report import focal_text, text_table
    from dust3r_ros.images import load_image
    from dust3r_ros.pipeline import load_predictor, predictor_image_size
    from dust3r_ros.tasks.single import look

    config = config_of(arguments)
    image = load_image(arguments.image)
    camera = camera_of(arguments, *image.shape[:2])
    with results_folder(arguments, "depth.npy", "camera.json") as out:
        predictor = load_predictor(config)
        found = look(image, predictor, camera, predictor_image_size(config, predictor))
        _write(found, arguments.image, out)
    original = found.image.transform.to_original(found.intrinsics)
    known = found.depth > 0
    rows = [
        ("focal", focal_text(original.focal_px, max(original.width, original.height))),
        ("image", f"{original.width}x{original.height}"),
        ("depth", f"{known.mean():.0%} of {known.shape[1]}x{known.shape[0]} pixels"),
        ("written", str(out)),
    ]
    print(text_table(rows))
    return 0


def _write(found: SingleView, source: Path, out: Path) -> None:
    import numpy as np

    from dust3r_ros.files import replacing
    from dust3r_ros.mapping.export import write_json
    from dust3r_ros.mapping.folders import write_image
    from dust3r_ros.pictures import depth_picture

    for name, values in (("depth", found.depth), ("confidence", found.confidence), ("normals", found.normals)):
        with replacing(out / f"{name}.npy") as scratch:
            np.save(scratch, values.astype(np.float32))
    write_image(depth_picture(found.depth), out / "depth.png")
    write_image(_shown(found.normals), out / "normals.png")
    original = found.image.transform.to_original(found.intrinsics)
    camera = {
        "file": str(source),
        "width": original.width,
        "height": original.height,
        "K": original.matrix(centres_at_integers=True).tolist(),
        "K_of_depth": found.intrinsics.matrix(centres_at_integers=True).tolist(),
    }
    write_json(camera, out / "camera.json")


def _shown(normals: Any) -> Any:
    """Normals as colours: right red, up green, towards the camera blue; black where unknown."""
    import numpy as np

    colours = np.rint((normals * (1, -1, -1) + 1) / 2 * 255)
    return np.where((normals != 0).any(axis=-1, keepdims=True), colours, 0).astype(np.uint8)
