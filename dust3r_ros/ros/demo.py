"""The whole way once: player, node and subscriber in three processes; map, path and picture of what arrived."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.signals import SignalHandlerOptions

from dust3r_ros.errors import RecordingError, RosError
from dust3r_ros.ros.bag import CAMERA_INFO, COMPRESSED_IMAGE, Recording, Topic, open_recording
from dust3r_ros.ros.demo_bag import rendered_bag
from dust3r_ros.ros.demo_report import DemoResult, Played, conclude
from dust3r_ros.ros.processes import Child, private_environment, terminated_as_interrupted
from dust3r_ros.ros.recorder import Recorded, Recorder, spin_until

log = logging.getLogger(__name__)

START_S = 60.0  # for the node to load its model and be found
DRAIN_S = 60.0  # for the node to finish the keyframes it still has
IDLE_S = 2.0
IMAGE_PX = 384  # long side: two cores keep up with a recording played slowly, at 512 they do not
TOTAL_S = 165.0  # rendering, starting, playing and finishing; drawing comes after
SPARE_S = 10.0  # of that for finishing, at least
USUAL_PLAY_S, SLOWEST = 75.0, 0.25
HISTORY = 100  # images that may wait for the node: a recording must not lose any


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs.

    ``rate`` recorded seconds are played in one, by default as fast as they were recorded, but a short recording so
    slowly that it lasts 75 s, which a processor can follow. Of a long one ``play_s`` seconds are played, by default as
    many as let the demo end within three minutes. ``image_topic`` chooses one when the recording has several;
    ``parameters`` (``name:=value``) go to the node.
    """

    rate: float | None = None
    play_s: float | None = None
    image_topic: str = ""
    parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not ((self.rate is None or self.rate > 0) and (self.play_s is None or self.play_s > 0)):
            raise RosError(f"rate and play time must be positive, got {self.rate} and {self.play_s}")

    def rate_for(self, duration_s: float) -> float:
        """The rate at which a recording of this length is played."""
        if self.rate is not None:
            return self.rate
        return float(np.clip(duration_s / USUAL_PLAY_S, SLOWEST, 1.0))


@dataclass(frozen=True, eq=False)
class _Source:
    """A recording to be played: its topics, and what is known of it."""

    image: Topic
    info_topic: str
    duration_s: float
    played: Played


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
    with terminated_as_interrupted():
        source = _examine(bag if bag is not None else rendered_bag(out, say), options)
        recorded = _run(source, out, options, say, started + TOTAL_S)
    say("drawing")
    return conclude(source.played, recorded, out, time.monotonic() - started)


def _examine(path: Path, options: DemoOptions) -> _Source:
    with open_recording(path) as recording:
        image = recording.choose_image_topic(options.image_topic)
        first = next(recording.frames(image.name), None)
        if first is None:
            raise RecordingError(f"{path}: no image on {image.name} can be decoded")
        played = Played(
            path=path,
            rate=options.rate_for(recording.duration_s),
            frames=image.count,
            truth=[(pose.stamp_ns, pose.pose) for pose in recording.poses()],
            focal_px=first.intrinsics.focal_px if first.intrinsics is not None else None,
        )
        return _Source(image, _info_topic(recording, image), recording.duration_s, played)


def _info_topic(recording: Recording, image: Topic) -> str:
    """The CameraInfo beside the image topic."""
    parents = image.name.split("/")
    for depth in range(len(parents) - 1, 0, -1):
        wanted = "/".join([*parents[:depth], "camera_info"])
        if any(topic.name == wanted and topic.type == CAMERA_INFO for topic in recording.topics):
            return wanted
    return ""


def _run(source: _Source, out: Path, options: DemoOptions, say: Callable[[str], None], end: float) -> Recorded:
    """``end`` is time.monotonic() by which all should be over, unless ``play_s`` says otherwise."""
    environment = private_environment()
    domain = int(environment["ROS_DOMAIN_ID"])
    node = Child("dust3r_ros.ros.node", _node_arguments(source, options), out / "node.log", environment)
    context = Context()  # of its own: the caller may be a node too
    rclpy.init(args=["dust3r_demo"], context=context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
    try:
        recorder = Recorder(context=context)
        with node:
            node.start()
            _wait_for_node(node, recorder)
            limit_s = options.play_s or max(end - time.monotonic() - SPARE_S, SPARE_S)
            seconds = min(source.duration_s / source.played.rate, limit_s)
            say(f"playing {source.played.path} for {seconds:.0f} s in ROS domain {domain}")
            arguments = _player_arguments(source, limit_s)
            with Child("dust3r_ros.ros.play", arguments, out / "player.log", environment) as player:
                player.start()
                _follow(player, node, recorder, seconds + START_S)
            left_s = DRAIN_S if options.play_s else max(end - time.monotonic(), SPARE_S)
            _drain(node, recorder, say, min(left_s, DRAIN_S))
            node.stop()
        recorder.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
    return recorder.recorded


def _node_arguments(source: _Source, options: DemoOptions) -> list[str]:
    compressed = source.image.type == COMPRESSED_IMAGE
    arguments = ["--ros-args", "-r", f"{'/image/compressed' if compressed else '/image'}:={source.image.name}"]
    if source.info_topic:
        arguments += ["-r", f"/camera_info:={source.info_topic}"]
    # A robot wants the newest keyframes; a demo on a slow machine wants all, and waits for them at the end.
    transport = f"image_transport:={'compressed' if compressed else 'raw'}"
    own = [transport, "image_reliability:=reliable", f"image_history:={HISTORY}", "queue_size:=50"]
    if not any(parameter.startswith("checkpoint:=") for parameter in options.parameters):
        own.append(f"image_size:={IMAGE_PX}")  # for geometric; a network has its own
    for parameter in (*own, *options.parameters):
        arguments += ["-p", parameter]
    return arguments


def _player_arguments(source: _Source, limit_s: float) -> list[str]:
    topics = [source.image.name, *([source.info_topic] if source.info_topic else [])]
    recorded_s = limit_s * source.played.rate
    return [
        str(source.played.path), "--rate", str(source.played.rate), "--duration", str(recorded_s), "--clock", "0",
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


def _drain(node: Child, recorder: Recorder, say: Callable[[str], None], limit_s: float) -> None:
    """Wait until the node has worked off what it received and its last path and map have arrived."""
    recorded = recorder.recorded

    def done() -> bool:
        node.check_running()
        newest = max(recorded.points, default=0)
        complete = recorded.cloud_stamp_ns >= newest and (not recorded.path or recorded.path[-1][0] >= newest)
        return recorded.idle_for_s() >= IDLE_S and complete

    if not spin_until(recorder, done, limit_s):
        if recorded.status is None or not recorded.status.frames_received:
            raise RosError(f"the node received no image (see {node.log_file})")
        say(f"the node was still busy {limit_s:.0f} s after the last image: showing what is there")
    if not recorded.path or not len(recorded.cloud):
        raise RosError(f"no map was received: no two images could be brought together (see {node.log_file})")
