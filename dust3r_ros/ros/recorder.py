"""Subscribes to everything the node publishes and keeps it: for the demo, for tests, and to save a session's result."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import CameraRecord, stamp_text, write_cameras_json, write_cloud, write_tum
from dust3r_ros.msg import Status
from dust3r_ros.ros.convert import cloud_of, depth_of, pose_of, transform_of
from dust3r_ros.ros.decode import intrinsics_of, stamp_ns_of
from dust3r_ros.ros.publishers import OUTPUTS
from dust3r_ros.ros.qos import reliable

log = logging.getLogger(__name__)

_AGREE = 1e-6  # how far a pose may differ between two messages of one keyframe


@dataclass(eq=False)
class Recorded:
    """What has arrived so far. Stamps are nanoseconds; poses (4, 4) are camera to world.

    ``points`` has the number of points of each keyframe's own cloud; ``depths`` (H, W) float32, NaN where unknown;
    ``path`` is the newest path and ``cloud`` the newest map.
    """

    camera_frame: str = ""
    camera_frames: set[str] = field(default_factory=set)
    transforms: dict[int, FloatArray] = field(default_factory=dict)
    poses: dict[int, FloatArray] = field(default_factory=dict)
    points: dict[int, int] = field(default_factory=dict)
    newest_points: PointCloud = field(default_factory=PointCloud.empty)
    depths: dict[int, FloatArray] = field(default_factory=dict)
    path: list[tuple[int, FloatArray]] = field(default_factory=list)
    cloud: PointCloud = field(default_factory=PointCloud.empty)
    cloud_stamp_ns: int = 0
    intrinsics: Intrinsics | None = None
    intrinsics_stamps: list[int] = field(default_factory=list)
    status: Status | None = None
    changed_at: float = field(default_factory=time.monotonic)

    def in_flight(self) -> int:
        """Images that the node has received and not decided on yet, by its last status."""
        if self.status is None:
            return 0
        names = [name for name in Status.get_fields_and_field_types() if name.startswith("dropped_")]
        done = self.status.keyframes + sum(getattr(self.status, name) for name in names)
        return int(self.status.frames_received - done)

    def idle_for_s(self) -> float:
        """How long the node has neither received an image nor worked on one; 0 before its first image."""
        if self.status is None or not self.status.frames_received or self.in_flight():
            return 0.0
        return time.monotonic() - self.changed_at

    def disagreements(self) -> list[str]:
        """What does not fit together: poses without a transform of their stamp, or another pose; clouds, depths and
        the path where no transform can be had, not even between those of two images.
        """
        first, last = min(self.transforms, default=0), max(self.transforms, default=-1)
        wrong = [f"pose at {stamp} has no transform" for stamp in self.poses if stamp not in self.transforms]
        for name, stamps in (("points", self.points), ("depth", self.depths)):
            wrong += [f"{name} at {stamp} has no transform" for stamp in stamps if not first <= stamp <= last]
        for stamp, pose in self.poses.items():
            if stamp in self.transforms and not np.allclose(pose, self.transforms[stamp], rtol=0, atol=_AGREE):
                wrong.append(f"pose and transform at {stamp} differ")
        wrong += [f"path at {stamp} has no transform" for stamp, _ in self.path if not first <= stamp <= last]
        if len(self.cloud) and not first <= self.cloud_stamp_ns <= last:
            wrong.append(f"map at {self.cloud_stamp_ns} has no transform")
        return wrong


class Recorder(Node):
    """A node that keeps what the node ``source`` publishes."""

    def __init__(self, source: str = "/dust3r", world_frame: str = "map", **node_options: Any) -> None:
        super().__init__("dust3r_recorder", **node_options)
        self._world_frame = world_frame
        self.recorded = Recorded()
        qos = {output.name: output.qos() for output in OUTPUTS}
        wanted: tuple[tuple[type, str, Callable[[Any], None]], ...] = (
            (PointCloud2, "points", self._on_points),
            (PointCloud2, "map", self._on_map),
            (PathMessage, "path", self._on_path),
            (PoseStamped, "pose", self._on_pose),
            (CameraInfo, "camera_info", self._on_camera_info),
            (Image, "depth", self._on_depth),
            (Status, "status", self._on_status),
        )
        for kind, name, callback in wanted:
            self.create_subscription(kind, f"{source}/{name}", callback, qos[name])
        self.create_subscription(TFMessage, "/tf", self._on_tf, reliable(100))

    def _on_tf(self, message: TFMessage) -> None:
        ours = [sent for sent in message.transforms if sent.header.frame_id == self._world_frame]
        for sent in ours:  # a robot has others on this topic
            self.recorded.camera_frame = sent.child_frame_id
            self.recorded.camera_frames.add(sent.child_frame_id)
            self.recorded.transforms[stamp_ns_of(sent.header)] = transform_of(sent.transform)

    def _on_pose(self, message: PoseStamped) -> None:
        self.recorded.poses[stamp_ns_of(message.header)] = pose_of(message.pose)

    def _on_points(self, message: PointCloud2) -> None:
        self.recorded.newest_points = cloud_of(message)
        self.recorded.points[stamp_ns_of(message.header)] = len(self.recorded.newest_points)

    def _on_map(self, message: PointCloud2) -> None:
        self.recorded.cloud = cloud_of(message)
        self.recorded.cloud_stamp_ns = stamp_ns_of(message.header)

    def _on_path(self, message: PathMessage) -> None:
        self.recorded.path = [(stamp_ns_of(pose.header), pose_of(pose.pose)) for pose in message.poses]

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.recorded.intrinsics = intrinsics_of(message)
        self.recorded.intrinsics_stamps.append(stamp_ns_of(message.header))

    def _on_depth(self, message: Image) -> None:
        self.recorded.depths[stamp_ns_of(message.header)] = depth_of(message)

    def _on_status(self, message: Status) -> None:
        before = self.recorded.status
        if before is None or (before.frames_received, before.keyframes) != (message.frames_received, message.keyframes):
            self.recorded.changed_at = time.monotonic()
        self.recorded.status = message


def spin_until(node: Node, condition: Callable[[], bool], timeout_s: float) -> bool:
    """Handle a node's callbacks until a condition holds; False when it did not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        while not condition():
            if time.monotonic() > deadline or not rclpy.ok(context=node.context):
                return False
            executor.spin_once(timeout_sec=0.05)
        return True
    finally:
        executor.shutdown()


def write_recorded(recorded: Recorded, folder: Path) -> list[Path]:
    """Write ``cloud.ply``, ``trajectory.tum`` and, when intrinsics came, ``cameras.json``; the files written.

    Raises RosError when no map came and ExportError when the system refuses.
    """
    if not len(recorded.cloud):
        raise RosError("no map was received: there is nothing to write")
    files = [folder / "cloud.ply", folder / "trajectory.tum"]
    write_cloud(recorded.cloud, files[0])
    write_tum(recorded.path, files[1])
    if recorded.intrinsics is not None:
        files.append(folder / "cameras.json")
        metric = recorded.status is not None and bool(recorded.status.metric)
        cameras = [CameraRecord(stamp_text(stamp), recorded.intrinsics, pose) for stamp, pose in recorded.path]
        write_cameras_json(cameras, files[2], metric=metric)
    return files


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``dust3r-ros record``."""
    parser.add_argument("--out", type=Path, required=True, help="folder for cloud.ply, trajectory.tum, cameras.json")
    parser.add_argument("--node", default="/dust3r", help="the node to listen to (default /dust3r)")
    parser.add_argument("--map-frame", default="map", help="the node's map_frame (default map)")
    parser.add_argument(
        "--idle", type=float, default=10.0, metavar="SECONDS", help="end when the node was idle for this long"
    )
    parser.add_argument("--timeout", type=float, default=float("inf"), metavar="SECONDS", help="end in any case")


def record(
    source: str, idle_s: float, timeout_s: float, world_frame: str = "map", ros_args: Sequence[str] = ()
) -> Recorded:
    """Listen to a node in this process until it is idle, the time is over, or the process is told to stop."""
    rclpy.init(args=["dust3r_record", *ros_args])
    recorder = Recorder(source, world_frame)
    recorded = recorder.recorded
    try:
        spin_until(recorder, lambda: recorded.idle_for_s() >= idle_s, timeout_s)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except rclpy_implementation.RCLError:
        if rclpy.ok():
            raise
    finally:
        rclpy.try_shutdown()
    return recorded


def main(argv: Sequence[str] | None = None) -> int:
    """``dust3r-ros record --out DIR``: the exit code, 2 for a user's mistake."""
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--ros-args") if "--ros-args" in given else len(given)
    parser = argparse.ArgumentParser(prog="dust3r-ros record", description=__doc__)
    add_record_arguments(parser)
    arguments = parser.parse_args(given[:split])
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        recorded = record(arguments.node, arguments.idle, arguments.timeout, arguments.map_frame, given[split:])
        files = write_recorded(recorded, arguments.out)
    except Dust3rError as error:
        sys.stderr.write(f"dust3r-ros record: {error}\n")
        return 2
    for problem in recorded.disagreements():
        log.warning(problem)
    log.info("%d keyframes, %d points: %s", len(recorded.path), len(recorded.cloud), ", ".join(map(str, files)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
