"""``dust3r-ros view``: a result, or images and recordings while they are reconstructed, on a web page."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.evaluate import GRAPHS
from dust3r_ros.cli.options import add_pipeline_options, config_of
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.cli.reconstruct import IMAGE_PERIOD_NS, find_images
from dust3r_ros.cli.replay import KEPT_VIEWS, frame_source
from dust3r_ros.cli.ros_commands import ros_module
from dust3r_ros.errors import ImageError, ViewerError

if TYPE_CHECKING:
    from dust3r_ros.config import ReconstructorConfig
    from dust3r_ros.data import ByteImage
    from dust3r_ros.evaluation.results import Progress, Reconstruction
    from dust3r_ros.pipeline import SourceImage
    from dust3r_ros.predictor import PairPredictor
    from dust3r_ros.viewer import RunSettings, Upload, ViewedScene, Viewer

_REDRAW_SECONDS = 1.0  # between two changes of the page while a map grows, at least
_REDRAW_PAUSE = 5.0  # times as long as the last change took


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "view",
        help="show a result, or watch a reconstruction, on a web page",
        description="Show a result folder on a web page, or reconstruct images, a video or a recording there while you "
        "watch. Without a source, put images into the page, one by one or as a .zip.",
    )
    parser.add_argument(
        "source", type=Path, nargs="*", metavar="SOURCE",
        help="a folder that reconstruct, replay or evaluate wrote; images or a folder of them; a video; a recording",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets every machine that reaches this one look (default 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--node", metavar="NAME", help="watch a running node, such as /dust3r, instead of a source")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default 8080)")
    add_pipeline_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    from dust3r_ros.pipeline import load_predictor
    from dust3r_ros.viewer import RunPanel, Viewer

    config = config_of(arguments)
    if arguments.node and arguments.source:
        raise ViewerError(f"view takes a source or --node, got {arguments.source[0]} and {arguments.node}")
    watching = ros_module("dust3r_ros.ros.watch") if arguments.node else None
    given = load_result(arguments.source[0]) if _is_result(arguments.source) else None
    sources = _sources(arguments.source) if arguments.source and given is None else None
    viewer = Viewer(arguments.host, arguments.port)
    try:
        print(f"The page is at {viewer.url} (Ctrl-C ends it)", flush=True)
        if watching is not None:
            watching.watch_node(viewer.show, arguments.node)
            return 0
        RunPanel(viewer, _Runner(config), GRAPHS, config.window)
        if given is not None:
            viewer.show(given)
        elif sources is not None:
            with progress_bars() as bars:
                watch(viewer, sources, config, load_predictor(config), bars)
        threading.Event().wait()
    finally:
        viewer.close()
    return 0


def watch(
    viewer: Viewer, sources: Iterable[SourceImage], config: ReconstructorConfig, predictor: PairPredictor[Any],
    progress: Progress,
) -> None:  # fmt: skip
    """Images through the incremental pipeline; the page follows. Raises ImageError when none can be read."""
    from dust3r_ros.evaluation.results import IncrementalRun
    from dust3r_ros.pictures import thumbnail
    from dust3r_ros.pipeline import Reconstructor
    from dust3r_ros.viewer.scene import FRUSTUM_PX

    growing = IncrementalRun(Reconstructor(config, predictor), keep=KEPT_VIEWS)
    pictures: dict[int, ByteImage] = {}
    due = float("-inf")
    for done, source in enumerate(sources):
        progress("reconstruct", done, 0)
        if not growing.add(source):
            continue
        if (newest := growing.newest) is not None:
            pictures[newest.number] = thumbnail(newest.image.pixels, FRUSTUM_PX)
        if (begun := time.monotonic()) >= due:
            viewer.show(viewed(growing.result(), pictures))
            now = time.monotonic()
            due = now + max(_REDRAW_SECONDS, _REDRAW_PAUSE * (now - begun))
    result = growing.result()
    if result.refused and len(result.refused) == result.images:
        raise ImageError(f"none of the {result.images} images can be read; the first: {result.refused[0]}")
    viewer.show(viewed(result, pictures))


def viewed(result: Reconstruction, pictures: Mapping[int, ByteImage] | None = None) -> ViewedScene:
    """A reconstruction as the page shows it. Views without pixels have only their ``pictures``, by number."""
    from dust3r_ros.viewer import ViewedKeyframe, ViewedScene

    small = pictures or {}
    views = [view for view in result.views if view.image.pixels.size or view.number in small]
    place = {view.number: k for k, view in enumerate(views)}
    keyframes = [
        ViewedKeyframe(v.name, v.image.pixels, v.camera_to_world, v.intrinsics, v.estimate.depth, v.estimate.confidence)
        if v.image.pixels.size
        else ViewedKeyframe(v.name, small[v.number], v.camera_to_world, v.intrinsics)
        for v in views
    ]
    edges = {(place[i], place[j]): r for (i, j), r in result.edges.items() if i in place and j in place}
    return ViewedScene(keyframes, result.cloud, edges, result.metric)


def load_result(folder: Path) -> ViewedScene:
    """What a result folder holds: ``cloud.ply`` and ``cameras.json``, and the images that it names, where they are.

    Raises RecordingError or ExportError for files that cannot be read.
    """
    import numpy as np

    from dust3r_ros.evaluation.packs import load_pack
    from dust3r_ros.mapping.export import read_cloud
    from dust3r_ros.viewer import ViewedKeyframe, ViewedScene

    pack = load_pack(folder, images=False)
    keyframes = []
    for frame in pack.frames:
        try:
            image = frame.load_image()
        except ImageError:  # of a recording or a video: the file is not an image of its own
            image = np.full((24, 32, 3), 40, np.uint8)
        keyframes.append(ViewedKeyframe(Path(frame.name).name, image, frame.camera_to_world, frame.intrinsics))
    return ViewedScene(keyframes, read_cloud(folder / "cloud.ply"), metric=pack.metric)


def _is_result(source: Sequence[Path]) -> bool:
    return len(source) == 1 and (source[0] / "cameras.json").is_file() and (source[0] / "cloud.ply").is_file()


def _sources(given: Sequence[Path]) -> Iterable[SourceImage]:
    """Images of a recording, a video, a folder or files, in order."""
    from dust3r_ros.fleet.jobs import is_recording
    from dust3r_ros.images import VIDEO_SUFFIXES, load_image, video_frames
    from dust3r_ros.pipeline import SourceImage

    if len(given) == 1 and is_recording(given[0]):
        return _recorded(given[0])
    paths = find_images(given)
    if paths[0].suffix.lower() in VIDEO_SUFFIXES:
        frames = video_frames(paths[0])
        return (SourceImage(f"{paths[0].name}#{f.index}", partial(_held, f.image), stamp_ns=f.stamp_ns) for f in frames)
    return [SourceImage(p.name, partial(load_image, p), stamp_ns=k * IMAGE_PERIOD_NS) for k, p in enumerate(paths)]


def _held(image: ByteImage) -> ByteImage:
    return image


def _recorded(path: Path) -> Iterable[SourceImage]:
    from dust3r_ros.ros.bag import open_recording

    with open_recording(path) as recording:
        topic = recording.choose_image_topic("")
        for frame in recording.frames(topic.name):
            yield frame_source(frame)


class _Runner:
    """Reconstructs what was dropped into the page; the model is loaded with the first run."""

    def __init__(self, config: ReconstructorConfig) -> None:
        self._config = config

    def __call__(self, files: Sequence[Upload], settings: RunSettings, progress: Progress) -> ViewedScene:
        from dust3r_ros.evaluation.results import run_batch
        from dust3r_ros.pairing import SceneGraph
        from dust3r_ros.pipeline import load_predictor
        from dust3r_ros.viewer.run_panel import AUTOMATIC

        config = replace(self._config, window=settings.window)
        graph = SceneGraph(settings.graph) if settings.graph != AUTOMATIC else None
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number, file in enumerate(files):
                paths.append(Path(folder) / f"{number} {Path(file.name).name}")
                paths[-1].write_bytes(file.content)
            return viewed(run_batch(list(_sources(paths)), config, load_predictor(config), graph, progress))
