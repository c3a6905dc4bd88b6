"""The whole way once: a player, the node and a subscriber in three processes; map, path and picture from what arrived."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions

from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.evaluation.figure import DepthView, Reconstruction, draw_reconstruction
from dust3r_ros.evaluation.metrics import PoseErrors, associate, path_length, pose_errors
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.ros.bag import CAMERA_INFO, COMPRESSED_IMAGE, Recording, Topic, open_recording
from dust3r_ros.ros.processes import Child, private_environment, terminated_as_interrupted
from dust3r_ros.ros.recorder import Recorded, Recorder, spin_until, write_recorded

log = logging.getLogger(__name__)

START_S = 60.0  # for the node to load its model and be found
DRAIN_S = 60.0  # for the node to finish the keyframes it still has
IDLE_S = 2.0
MAX_GAP_NS = 20_000_000  # between an image and its true pose
DEPTHS_SHOWN = 4


@dataclass(frozen=True)
class DemoOptions:
    """``rate`` recorded seconds are played in one, at most ``play_s`` seconds long; ``parameters`` (``name:=value``) go
    to the node; ``image_topic`` chooses one when the recording has several.
    """

    rate: float = 1.0
    play_s: float = 90.0
    image_topic: str = ""
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.play_s > 0):
            raise RosError(f"rate and play time must be positive, got {self.rate} and {self.play_s}")


@dataclass(frozen=True, eq=False)
class _Source:
    """What is played and what is known of it: ``stamps`` of its images and ``truth``, (stamp_ns, camera to world)."""

    path: Path
    image: Topic
    info_topic: str
    duration_s: float
    intrinsics: Intrinsics | None
    truth: Sequence[tuple[int, FloatArray]]


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What arrived at the subscriber, and how it compares with the recording's truth where it has any."""

    source: str
    frames_sent: int
    seconds: float
    recorded: Recorded
    errors: PoseErrors | None
    true_path: FloatArray | None
    true_focal_px: float | None
    files: Sequence[Path]

    def rows(self) -> list[tuple[str, str]]:
        """The table: names and values as text."""
        recorded = self.recorded
        status = recorded.status
        assert status is not None  # a result has one
        dropped = f"{status.dropped_queue_full} skipped while busy, {status.dropped_failed} not placed"
        rows = [
            ("recording", self.source),
            ("model", f"{status.model} on {status.device}" + ("" if status.trained else " (untrained)")),
            ("frames received", f"{status.frames_received} of {self.frames_sent}"),
            ("keyframes", f"{status.keyframes} ({dropped})"),
            ("rate", f"{_rate(recorded):.1f} keyframes/s, latency {status.latency_ms:.0f} ms"),
            ("points", f"{len(recorded.cloud)} in the map, {sum(recorded.points.values())} in keyframe clouds"),
            ("focal", self._focal_text()),
            ("error", self._error_text()),
            ("messages", self._agreement_text()),
            ("written", ", ".join(str(file) for file in self.files)),
            ("time", f"{self.seconds:.0f} s"),
        ]
        return rows

    def table(self) -> str:
        """The rows as lines of text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _focal_text(self) -> str:
        status = self.recorded.status
        assert status is not None
        text = f"{status.focal_px:.1f} px (spread {status.focal_spread_px:.1f})"
        if self.true_focal_px is None:
            return text
        error = 100 * (status.focal_px / self.true_focal_px - 1)
        return f"{text}, the recording's CameraInfo says {self.true_focal_px:.1f} px: {error:+.1f} %"

    def _error_text(self) -> str:
        if self.errors is None or self.true_path is None:
            return "unknown: the recording has no true poses"
        if self.errors.ate_rmse is None or self.errors.rotation_deg is None:
            return "unknown: fewer than three keyframes have a true pose"
        length = path_length(self.true_path)
        return (
            f"ATE {self.errors.ate_rmse:.3f} m, {100 * self.errors.ate_rmse / length:.1f} % of the {length:.1f} m path; "
            f"rotation {self.errors.rotation_deg:.1f} deg"
        )

    def _agreement_text(self) -> str:
        recorded = self.recorded
        counts = f"{len(recorded.transforms)} TF, {len(recorded.poses)} poses, {len(recorded.points)} clouds"
        counts += f", {len(recorded.depths)} depths, {len(recorded.intrinsics_stamps)} camera infos"
        wrong = recorded.disagreements()
        return f"{counts}; {'all agree' if not wrong else f'{len(wrong)} disagree, first: {wrong[0]}'}"


def run_demo(
    bag: Path | None, out: Path, options: DemoOptions | None = None, report: Callable[[str], None] | None = None
) -> DemoResult:
    """Play a recording (a rendered one when ``bag`` is None) to the node and keep what it publishes.

    Three processes over DDS: the player, the node, and this one as the subscriber. Writes ``cloud.ply``,
    ``trajectory.tum``, ``cameras.json`` and ``reconstruction.png`` to ``out``, with the other processes' output in
    ``node.log`` and ``player.log``. ``report`` is given a line at each step. Raises RecordingError for a recording
    that cannot be used, RosError when a process fails or nothing arrives, and ExportError. No child is left behind.
    """
    options, say = options or DemoOptions(), report or log.info
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    source = _examine(bag if bag is not None else _rendered_bag(out, say), options)
    recorded = _run(source, out, options, say)
    say("drawing")
    return _result(source, recorded, out, started)


def _rendered_bag(out: Path, say: Callable[[str], None]) -> Path:
    raise NotImplementedError


def _examine(path: Path, options: DemoOptions) -> _Source:
    with open_recording(path) as recording:
        image = recording.choose_image_topic(options.image_topic)
        first = next(recording.frames(image.name), None)
        if first is None:
            raise RosError(f"{path}: no image on {image.name} can be decoded")
        return _Source(
            path=path,
            image=image,
            info_topic=_info_topic(recording, image),
            duration_s=recording.duration_s,
            intrinsics=first.intrinsics,
            truth=[(pose.stamp_ns, pose.pose) for pose in recording.poses()],
        )


def _info_topic(recording: Recording, image: Topic) -> str:
    """The CameraInfo beside the image topic."""
    parents = image.name.split("/")
    for depth in range(len(parents) - 1, 0, -1):
        wanted = "/".join([*parents[:depth], "camera_info"])
        if any(topic.name == wanted and topic.type == CAMERA_INFO for topic in recording.topics):
            return wanted
    return ""


def _run(source: _Source, out: Path, options: DemoOptions, say: Callable[[str], None]) -> Recorded:
    environment = private_environment()
    domain = int(environment["ROS_DOMAIN_ID"])
    node = Child("dust3r_ros.ros.node", _node_arguments(source, options), out / "node.log", environment)
    player = Child("dust3r_ros.ros.play", _player_arguments(source, options), out / "player.log", environment)
    with terminated_as_interrupted():
        rclpy.init(args=["dust3r_demo"], domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        try:
            recorder = Recorder()
            with node:
                _wait_for_node(node, recorder)
                seconds = min(source.duration_s / options.rate, options.play_s)
                say(f"playing {source.path} for {seconds:.0f} s in ROS domain {domain}")
                with player:
                    _follow(player, node, recorder, seconds + START_S)
                _drain(node, recorder, say)
                node.stop()
        finally:
            rclpy.try_shutdown()
    return recorder.recorded


def _node_arguments(source: _Source, options: DemoOptions) -> list[str]:
    compressed = source.image.type == COMPRESSED_IMAGE
    arguments = ["--ros-args", "-r", f"{'/image/compressed' if compressed else '/image'}:={source.image.name}"]
    if source.info_topic:
        arguments += ["-r", f"/camera_info:={source.info_topic}"]
    fixed = (f"image_transport:={'compressed' if compressed else 'raw'}", "image_reliability:=reliable")
    for parameter in (*fixed, *options.parameters):
        arguments += ["-p", parameter]
    return arguments


def _player_arguments(source: _Source, options: DemoOptions) -> list[str]:
    topics = [source.image.name, *([source.info_topic] if source.info_topic else [])]
    recorded_s = options.play_s * options.rate
    return [
        str(source.path), "--rate", str(options.rate), "--duration", str(recorded_s), "--clock", "0",
        "--wait", str(START_S), "--topics", *topics,
    ]  # fmt: skip


def _wait_for_node(node: Child, recorder: Recorder) -> None:
    def ready() -> bool:
        node.check_running()
        return recorder.recorded.status is not None

    if not spin_until(recorder, ready, START_S):
        raise RosError(f"the node did not say anything within {START_S:g} s (see {node.log_file})")


def _follow(player: Child, node: Child, recorder: Recorder, limit_s: float) -> None:
    def over() -> bool:
        node.check_running()
        return not player.running

    if not spin_until(recorder, over, limit_s):
        raise RosError(f"the player did not end within {limit_s:.0f} s (see {player.log_file})")
    player.check_finished()


def _drain(node: Child, recorder: Recorder, say: Callable[[str], None]) -> None:
    """Wait until the node has worked off what it received and its last path and map have arrived."""
    recorded = recorder.recorded

    def done() -> bool:
        node.check_running()
        newest = max(recorded.poses, default=0)
        complete = recorded.cloud_stamp_ns >= newest and (not recorded.path or recorded.path[-1][0] >= newest)
        return recorded.idle_for_s() >= IDLE_S and complete

    if not spin_until(recorder, done, DRAIN_S):
        if recorded.status is None or not recorded.status.frames_received:
            raise RosError(f"the node received no image (see {node.log_file})")
        say(f"the node was still busy {DRAIN_S:g} s after the last image: showing what is there")
    if not recorded.path or not len(recorded.cloud):
        raise RosError(f"no map was received: no two images could be brought together (see {node.log_file})")


def _result(source: _Source, recorded: Recorded, out: Path, started: float) -> DemoResult:
    poses = np.stack([pose for _, pose in recorded.path])
    matched = associate([stamp for stamp, _ in recorded.path], [stamp for stamp, _ in source.truth], MAX_GAP_NS)
    errors, true_path = None, None
    if matched:
        errors = pose_errors(poses[[i for i, _ in matched]], np.stack([source.truth[j][1] for _, j in matched]))
        last = max(j for _, j in matched)
        true_path = np.stack([pose for _, pose in source.truth[: last + 1]])
    picture = out / "reconstruction.png"
    result = DemoResult(
        source=str(source.path),
        frames_sent=source.image.count,
        seconds=time.monotonic() - started,
        recorded=recorded,
        errors=errors,
        true_path=true_path,
        true_focal_px=source.intrinsics.focal_px if source.intrinsics is not None else None,
        files=[*write_recorded(recorded, out), picture],
    )
    _draw(result, poses, picture)
    return result


def _draw(result: DemoResult, poses: FloatArray, picture: Path) -> None:
    recorded = result.recorded
    to_truth = result.errors.to_truth if result.errors is not None else None
    move = to_truth or Similarity.identity()
    cloud = PointCloud(
        move.apply(recorded.cloud.points).astype(np.float32), recorded.cloud.colours, recorded.cloud.confidence
    )
    stamps = sorted(recorded.depths)
    chosen = [stamps[i] for i in np.linspace(0, len(stamps) - 1, min(DEPTHS_SHOWN, len(stamps))).round().astype(int)]
    begin = recorded.path[0][0]
    depths = [
        DepthView(f"depth of the keyframe at {1e-9 * (stamp - begin):.1f} s", move.scale * recorded.depths[stamp])
        for stamp in chosen
    ]
    what = Reconstruction(
        cloud,
        move.apply_to_pose(poses),
        depths,
        result.true_path if to_truth is not None else None,
        "m" if to_truth is not None else "map units",
    )
    rows = dict(result.rows())
    draw_reconstruction(
        what,
        picture,
        title=f"{Path(result.source).name}: {rows['frames received']} frames, {len(poses)} keyframes",
        caption=f"focal {rows['focal']}\n{rows['error']}",
    )


def _rate(recorded: Recorded) -> float:
    """Keyframes a second, in the recording's time."""
    if len(recorded.path) < 2:
        return 0.0
    return (len(recorded.path) - 1) / max(1e-9 * (recorded.path[-1][0] - recorded.path[0][0]), 1e-9)
