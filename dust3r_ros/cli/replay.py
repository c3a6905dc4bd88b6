"""``dust3r-ros replay``: a recording through the incremental pipeline, frame by frame, none dropped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.conclude import Finished, say, write_all
from dust3r_ros.cli.options import (
    add_pipeline_options,
    add_results_options,
    clean_config,
    config_of,
    results_folder,
)
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.errors import RecordingError

if TYPE_CHECKING:
    from dust3r_ros.evaluation.metrics import PoseErrors
    from dust3r_ros.evaluation.report import Summary
    from dust3r_ros.evaluation.results import IncrementalRun, Progress, Reconstruction
    from dust3r_ros.pipeline import SourceImage
    from dust3r_ros.ros.bag import Frame, Recording

_MAX_GAP_NS = 50_000_000  # between an image and its true pose
KEPT_VIEWS = 48  # with depth and pixels, for the report; the map has all


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="reconstruct a recording: rosbag2 (SQLite, MCAP) or ROS 1",
        description="Put every image of a recording through the same incremental pipeline as the node. Needs no ROS.",
    )
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, .mcap, .db3, or ROS 1 .bag")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="trajectory.tum, frames.tum, cloud.ply, cameras.json and report.html go here",
    )  # fmt: skip
    parser.add_argument("--topic", default="", help="image topic (default: the only one)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image (default 1)")
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="begin S seconds after the recording's begin (default 0)"
    )
    parser.add_argument("--duration", type=float, metavar="S", help="take S seconds (default: to the end)")
    parser.add_argument("--truth", default="", metavar="TOPIC", help="true camera poses (default: found by name)")
    parser.add_argument("--picture", action="store_true", help="draw the result as report.png")
    add_results_options(parser)
    add_pipeline_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Replay. Of a damaged recording what can be read is reconstructed and written before the error is said.

    So is, when it is interrupted, what there is by then.
    """
    from dust3r_ros.config import CleanConfig
    from dust3r_ros.evaluation.exports import parse_exports
    from dust3r_ros.evaluation.results import IncrementalRun
    from dust3r_ros.interruption import interruption
    from dust3r_ros.pipeline import Reconstructor, load_predictor
    from dust3r_ros.ros.bag import open_recording
    from dust3r_ros.ros.excerpt import Excerpt

    config = config_of(arguments)
    exports = parse_exports(arguments.export)
    excerpt = Excerpt(arguments.every, arguments.start, arguments.duration)
    with open_recording(arguments.bag) as recording:
        topic = recording.choose_image_topic(arguments.topic)
        if config.intrinsics != "estimate":
            _require_intrinsics(recording, topic.name, config.intrinsics)
        needs_all = bool(exports) or clean_config(arguments) != CleanConfig()
        with results_folder(arguments, "cameras.json") as out, progress_bars() as bars:
            reconstructor = Reconstructor(config, load_predictor(config))
            replayed = IncrementalRun(reconstructor, keep=None if needs_all else KEPT_VIEWS)
            whole = excerpt.images(topic.count, recording.duration_s)
            stamps_ns: list[int] = []
            with interruption() as stopped:
                frames = _noted(recording.frames(topic.name, excerpt), stamps_ns)
                ended = _feed(replayed, frames, whole, bars, stopped)
            result = replayed.result()
            if isinstance(ended, KeyboardInterrupt) and not result.views:
                raise ended
            if result.images == 0:
                raise ended or _no_images(recording, topic.name)
            finished = _finished(result, recording, arguments, config, stamps_ns)
            if ended is not None:
                finished = replace(finished, summary=replace(finished.summary, ended_early=str(ended)))
            originals = map(frame_source, recording.frames(topic.name, excerpt))
            refused = write_all(finished, out, exports, originals, bars, picture=arguments.picture)
    say(finished, out, refused)
    if ended is not None:
        raise ended
    return 0


def _no_images(recording: Recording, topic: str) -> RecordingError:
    if recording.skipped:
        return RecordingError(f"{recording.path}: none of the images on {topic} can be decoded")
    return RecordingError(
        f"{recording.path}: {topic} has no image in the part that is asked for; it lasts {recording.duration_s:.1f} s"
    )


def _require_intrinsics(recording: Recording, topic: str, use: str) -> None:
    first = next(recording.frames(topic), None)
    if first is not None and first.intrinsics is None:
        raise RecordingError(f"{recording.path} has no CameraInfo that fits {topic}, which --intrinsics {use} needs")


def _feed(
    replayed: IncrementalRun, frames: Iterator[Frame], whole: int, progress: Progress, stopped: Callable[[], bool]
) -> RecordingError | KeyboardInterrupt | None:
    """Every frame into the pipeline; what ended it early, if something did."""
    for done in count():
        progress("replay", done, whole)
        if stopped():
            return KeyboardInterrupt(f"interrupted after {done} images: what there was by then is written")
        try:
            frame = next(frames, None)
        except RecordingError as error:
            return error
        if frame is None:
            return None
        replayed.add(frame_source(frame))
    return None


def _noted(frames: Iterator[Frame], stamps_ns: list[int]) -> Iterator[Frame]:
    """The same frames, whose stamps are noted."""
    for frame in frames:
        stamps_ns.append(frame.stamp_ns)
        yield frame


def frame_source(frame: Frame) -> SourceImage:
    """A recording's frame as the pipeline takes it."""
    from dust3r_ros.pipeline import SourceImage

    return SourceImage(
        f"{frame.topic.strip('/')}/{frame.stamp_ns}",
        lambda: frame.image,
        camera=frame.topic,
        intrinsics=frame.intrinsics,
        stamp_ns=frame.stamp_ns,
    )


def _finished(
    result: Reconstruction, recording: Recording, arguments: argparse.Namespace, config: Any, stamps_ns: Sequence[int]
) -> Finished:
    """The result with what the recording says of the truth, for the time of the images at ``stamps_ns``."""
    import numpy as np

    from dust3r_ros.evaluation.exports import clean

    first_ns, last_ns = min(stamps_ns) - _MAX_GAP_NS, max(stamps_ns) + _MAX_GAP_NS
    truth = [pose for pose in recording.poses(arguments.truth) if first_ns <= pose.stamp_ns <= last_ns]
    cleaned = clean(result, config.map, clean_config(arguments))
    summary = _summary(cleaned.result, [pose.stamp_ns for pose in truth], [pose.pose for pose in truth])
    if recording.skipped:
        summary = replace(summary, undecodable=recording.skipped)
    to_truth = summary.errors.to_truth if summary.errors is not None else None
    path = np.stack([pose.pose for pose in truth]) if truth else None
    moved = to_truth.inverse().apply_to_pose(path) if to_truth is not None and path is not None else None
    return Finished(cleaned, summary, config, recording.path.name, moved)


def _summary(result: Reconstruction, truth_ns: list[int], truth: list[Any]) -> Summary:
    import numpy as np

    from dust3r_ros.evaluation.metrics import path_length
    from dust3r_ros.evaluation.report import Summary

    errors = _errors([(view.stamp_ns, view.camera_to_world) for view in result.views], truth_ns, truth)
    tracked = _errors(result.frames, truth_ns, truth)
    length = path_length(np.stack(truth)) if errors is not None else None
    summary = Summary.of(result, errors=errors, path_length=length, unit="m")
    return replace(summary, tracked_ate=tracked.ate_rmse if tracked is not None else None)


def _errors(poses: Sequence[tuple[int, Any]], truth_ns: list[int], truth: list[Any]) -> PoseErrors | None:
    """Of (stamp_ns, camera_to_world) against the true poses of about the same times; None when there are none."""
    import numpy as np

    from dust3r_ros.evaluation.metrics import associate, pose_errors

    pairs = associate([stamp_ns for stamp_ns, _ in poses], truth_ns, _MAX_GAP_NS)
    if not pairs:
        return None
    return pose_errors(np.stack([poses[i][1] for i, _ in pairs]), np.stack([truth[j] for _, j in pairs]))
