"""``dust3r-ros match``: which pixels of two images show the same point, and where the second camera stands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_camera, add_overwrite, add_single_options, camera_of, config_of, results_folder
from dust3r_ros.errors import AlignmentError

if TYPE_CHECKING:
    from dust3r_ros.data import ByteImage, FloatArray, PreparedImage
    from dust3r_ros.tasks.matches import PixelMatches
    from dust3r_ros.tasks.pair import PairResult

_DRAWN = 60


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "match",
        help="pixel correspondences and relative pose of two images",
        description="Pixel correspondences and relative pose of two images.",
    )
    parser.add_argument("first", type=Path, metavar="IMAGE_I")
    parser.add_argument("second", type=Path, metavar="IMAGE_J")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="matches.npz (pixels of the images, centres at integers), pose.json and matches.jpg go here",
    )  # fmt: skip
    add_camera(parser)
    add_overwrite(parser)
    add_single_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Match, write and print. Without matches nothing is written."""
    from dust3r_ros.evaluation.report import text_table
    from dust3r_ros.images import load_image
    from dust3r_ros.pipeline import load_predictor, predictor_image_size
    from dust3r_ros.tasks.pair import relate

    config = config_of(arguments)
    first, second = load_image(arguments.first), load_image(arguments.second)
    k_i, k_j = (camera_of(arguments, *image.shape[:2]) for image in (first, second))
    known = (k_i, k_j) if k_i is not None and k_j is not None else None
    with results_folder(arguments, "matches.npz", "pose.json", "matches.jpg") as out:
        predictor = load_predictor(config)
        found = relate(first, second, predictor, size=predictor_image_size(config, predictor), intrinsics=known)
        if not len(found.matches):
            raise AlignmentError(f"{arguments.first} and {arguments.second} share nothing")
        _write(found, out)
    print(text_table([*_rows(found, given=known is not None), ("written", str(out))]))
    return 0


def _write(found: PairResult, out: Path) -> None:
    import numpy as np

    from dust3r_ros.files import replacing
    from dust3r_ros.mapping.export import write_json
    from dust3r_ros.mapping.folders import write_image

    with replacing(out / "matches.npz") as scratch:
        np.savez(
            scratch,
            pixels_i=_original(found.images[0], found.matches.pixels_i),
            pixels_j=_original(found.images[1], found.matches.pixels_j),
            confidence=found.matches.confidence,
        )
    write_json(found.to_json(), out / "pose.json")
    write_image(_drawing(found.images[0].pixels, found.images[1].pixels, found.matches), out / "matches.jpg")


def _original(image: PreparedImage, pixels: Any) -> FloatArray:
    """Pixel centres in the original image, (N, 2), centres at integers."""
    t = image.transform
    original: FloatArray = (pixels + 0.5 - (t.offset_x, t.offset_y)) / (t.scale_x, t.scale_y) - 0.5
    return original


def _rows(found: PairResult, *, given: bool) -> list[tuple[str, str]]:
    from dust3r_ros.data import PairState

    if found.still:
        return [("motion", "none, both images are of one view: the direction and the focal are undefined")]
    rows = [("matches", f"{len(found.matches)}")]
    for name, pose in (("PnP", found.pnp), ("Procrustes", found.procrustes)):
        if pose is None:
            rows.append((f"pose by {name}", "none"))
            continue
        share = f"{pose.inliers.mean():.0%} of {len(pose.inliers)} points fit"
        towards = f", towards {found.heading(pose)}" if found.has_baseline else ""
        rows.append((f"pose by {name}", f"turned by {found.angle_deg(pose):.2f} deg{towards}; {share}"))
    if not found.has_baseline and (found.pnp or found.procrustes):
        rows.append(("motion", "the camera only turned, there is no baseline: the direction is undefined"))
    elif found.state is PairState.PLANAR:
        rows.append(("motion", "all that is seen lies in one plane, or the camera only turned: the pose is not sure"))
    return rows + ([("focals", _focals(found, given))] if found.focals_px is not None else [])


def _focals(found: PairResult, given: bool) -> str:
    from dust3r_ros.evaluation.report import focal_text

    assert found.focals_px is not None
    sizes = [max(t.original_width, t.original_height) for t in (image.transform for image in found.images)]
    texts = ", ".join(focal_text(focal, size) for focal, size in zip(found.focals_px, sizes))
    if given:
        return f"{texts}, as given"
    if found.tells_focal:
        return f"{texts}, +- {100 * found.focal_spread:.0f} %"
    return f"{texts}, only a guess: the motion between these two does not tell it (give --camera, or more images)"


def _drawing(first: ByteImage, second: ByteImage, matches: PixelMatches) -> ByteImage:
    """Both images side by side, and lines between some matches that are spread over them."""
    import cv2
    import numpy as np

    height = max(first.shape[0], second.shape[0])
    canvas = np.zeros((height, first.shape[1] + second.shape[1], 3), np.uint8)
    canvas[: first.shape[0], : first.shape[1]] = first
    canvas[: second.shape[0], first.shape[1] :] = second
    chosen = np.random.default_rng(0).permutation(len(matches))[:_DRAWN]
    colours = cv2.applyColorMap(np.linspace(0, 255, len(chosen)).astype(np.uint8)[None], cv2.COLORMAP_TURBO)[0]
    order = chosen[np.argsort(matches.pixels_i[chosen, 0])]
    for k, colour in zip(order, colours[:, ::-1].tolist()):
        i, j = matches.pixels_i[k].tolist(), (matches.pixels_j[k] + (first.shape[1], 0)).tolist()
        cv2.line(canvas, i, j, colour, 1, cv2.LINE_AA)
        cv2.circle(canvas, i, 3, colour, -1, cv2.LINE_AA)
        cv2.circle(canvas, j, 3, colour, -1, cv2.LINE_AA)
    return canvas
