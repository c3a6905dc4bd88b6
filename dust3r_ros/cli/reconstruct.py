"""``dust3r-ros reconstruct``: images or a video become a scene."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.conclude import Finished, say, write_all
from dust3r_ros.cli.evaluate import add_graph
from dust3r_ros.cli.options import (
    add_camera,
    add_pipeline_options,
    add_results_options,
    camera_of,
    clean_config,
    config_of,
    results_folder,
    with_given_intrinsics,
)
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.errors import ImageError

if TYPE_CHECKING:
    from dust3r_ros.config import ReconstructorConfig
    from dust3r_ros.data import ByteImage
    from dust3r_ros.evaluation.results import Progress, Reconstruction
    from dust3r_ros.pipeline import SourceImage

IMAGE_PERIOD_NS = 1_000_000_000  # photographs have no stamps that can be trusted


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reconstruct",
        help="reconstruct a folder of images, image files or a video",
        description="Reconstruct a folder of images, image files or a video.",
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGES", help="a folder, image files, or one video")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="trajectory.tum, cloud.ply, cameras.json and report.html go here",
    )  # fmt: skip
    parser.add_argument(
        "--mode", choices=("batch", "incremental"),
        help="all images at once, or keyframe by keyframe (default: batch for images, incremental for a video)",
    )  # fmt: skip
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image (default 1)")
    add_camera(parser)
    parser.add_argument("--picture", action="store_true", help="draw the result as report.png")
    add_graph(parser)
    parser.add_argument(
        "--reference", type=int, default=0, metavar="N", help="the image of --graph one-reference, from 0 (default 0)"
    )
    add_results_options(parser)
    add_pipeline_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct, clean and write."""
    from dust3r_ros.evaluation.exports import clean, parse_exports
    from dust3r_ros.evaluation.report import Summary

    config = config_of(arguments)
    cleaning = clean_config(arguments)
    exports = parse_exports(arguments.export)
    if arguments.every < 1:
        raise ImageError(f"--every must be at least 1, got {arguments.every}")
    if arguments.camera is not None:
        camera_of(arguments, 1, 1)  # wrong ones are refused before the work
        config = with_given_intrinsics(config)
    elif config.intrinsics != "estimate":
        raise ImageError(
            f"--intrinsics {config.intrinsics} needs --camera FX FY CX CY: images do not tell their intrinsics"
        )
    paths = find_images(arguments.images)
    with results_folder(arguments, "cameras.json") as out, progress_bars() as bars:
        result = _reconstruct(paths, arguments, config, out, bars)
        cleaned = clean(result, config.map, cleaning)
        finished = Finished(cleaned, Summary.of(cleaned.result), config, arguments.images[0].resolve().name)
        originals = _sources(paths, arguments, out)
        refused = write_all(finished, out, exports, originals, bars, picture=arguments.picture)
    say(finished, out, refused)
    return 0


def find_images(given: Sequence[Path]) -> list[Path]:
    """The image files named, with folders replaced by what is in them, in natural order; or the one video.

    Raises ImageError when there are no images.
    """
    from dust3r_ros.images import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
            if not inside:
                raise ImageError(f"{path}: no images in this folder")
            found += sorted(inside, key=lambda file: natural_key(file.name))
        elif not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        else:
            found.append(path)
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(found) > 1:
        raise ImageError(f"{videos[0]}: a video must be given alone, got {len(found)} files")
    return found


def _reconstruct(
    paths: Sequence[Path], arguments: argparse.Namespace, config: ReconstructorConfig, out: Path, progress: Progress
) -> Reconstruction:
    from dust3r_ros.evaluation.results import run_batch, run_incremental
    from dust3r_ros.pairing import SceneGraph
    from dust3r_ros.pipeline import load_predictor

    predictor = load_predictor(config)
    mode = arguments.mode or ("incremental" if _is_video(paths) else "batch")
    sources = _sources(paths, arguments, out)
    if mode == "incremental":
        whole = 0 if _is_video(paths) else len(paths[:: arguments.every])
        return run_incremental(sources, config, predictor, progress, whole)
    graph = SceneGraph(arguments.graph) if arguments.graph else None
    listed = list(sources)
    if not 0 <= arguments.reference < len(listed):
        raise ImageError(
            f"--reference must be an image's number from 0 to {len(listed) - 1}, got {arguments.reference}"
        )
    return run_batch(listed, config, predictor, graph, progress, arguments.reference)


def _is_video(paths: Sequence[Path]) -> bool:
    from dust3r_ros.images import VIDEO_SUFFIXES

    return paths[0].suffix.lower() in VIDEO_SUFFIXES


def _sources(paths: Sequence[Path], arguments: argparse.Namespace, out: Path) -> Iterator[SourceImage]:
    """The images in order; each call begins anew."""
    if _is_video(paths):
        return _video_sources(paths[0], arguments)
    chosen = paths[:: arguments.every]
    return (_image_source(path, number, arguments, out) for number, path in enumerate(chosen))


def _image_source(path: Path, number: int, arguments: argparse.Namespace, out: Path) -> SourceImage:
    from dust3r_ros.images import load_image
    from dust3r_ros.pipeline import SourceImage

    known = None
    if arguments.camera is not None:
        with suppress(ImageError):  # said when its turn comes
            known = camera_of(arguments, *load_image(path).shape[:2])
    name = os.path.relpath(path, out)
    return SourceImage(name, lambda: load_image(path), intrinsics=known, stamp_ns=number * IMAGE_PERIOD_NS)


def _video_sources(path: Path, arguments: argparse.Namespace) -> Iterator[SourceImage]:
    from dust3r_ros.images import video_frames
    from dust3r_ros.pipeline import SourceImage

    def held(image: ByteImage) -> Any:
        return lambda: image

    for frame in video_frames(path, every=arguments.every):
        known = camera_of(arguments, *frame.image.shape[:2])
        name = f"{path.name}#{frame.index}"
        yield SourceImage(name, held(frame.image), intrinsics=known, stamp_ns=frame.stamp_ns)
