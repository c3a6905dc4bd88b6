"""What the node publishes: one place with every output's name, type and quality of service.

A message is built only while somebody subscribes to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from dust3r_ros.config import MapConfig
from dust3r_ros.data import Intrinsics, Update
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.fuse import view_cloud
from dust3r_ros.msg import Status
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros import compat
from dust3r_ros.ros.convert import (
    PathBuilder,
    camera_info_message,
    cloud_message,
    depth_message,
    pose_stamped,
    transform_stamped,
)
from dust3r_ros.ros.frusta import frusta_message
from dust3r_ros.ros.map_frame import MapFrame, TfEdge
from dust3r_ros.ros.odometry import OdometryBuilder, PosedImage
from dust3r_ros.ros.qos import latched, reliable
from dust3r_ros.ros.schedule import Schedule
from dust3r_ros.updates import changed_view

FRUSTUM_DEPTH = 0.1  # of a keyframe that is drawn, in world units: of the first one's median depth


@dataclass(frozen=True)
class Output:
    """A topic the node publishes on; the table of docs/interface.md is made of these."""

    name: str
    message: type
    qos: Callable[[], QoSProfile]
    description: str


OUTPUTS = (
    Output("points", PointCloud2, lambda: reliable(5), "The newest keyframe's own points, in the map frame"),
    Output("map", PointCloud2, latched, "The fused map of all keyframes, at most once in `map_period` seconds"),
    Output("path", Path, latched, "The camera's pose at every keyframe, in the map frame"),
    Output("keyframes", MarkerArray, latched, "What the camera sees at every keyframe, as lines, in the map frame"),
    Output("pose", PoseStamped, lambda: reliable(10), "The camera's pose at every image, in the map frame"),
    Output("odom", Odometry, lambda: reliable(10), "The same with covariance and speed; in tf_mode base, the base's"),
    Output("camera_info", CameraInfo, latched, "The intrinsics in use, for the camera's own image size"),
    Output("depth", Image, lambda: reliable(5), "The newest keyframe's depth, 32FC1, NaN where unknown"),
    Output("status", Status, latched, "What the node is doing: once a second and after each keyframe"),
)


class Publishers:
    """The node's publishers. Messages carry the stamp of the image they came from, and are in the map's frame."""

    def __init__(self, node: Node) -> None:
        options = QoSOverridingOptions.with_default_policies()
        self._publishers: dict[str, Publisher] = {
            output.name: node.create_publisher(
                output.message, f"~/{output.name}", output.qos(), qos_overriding_options=options
            )
            for output in OUTPUTS
        }
        self._node = node
        self._broadcaster: compat.Broadcaster | None = None
        self._ordering = threading.Lock()  # poses come from the lookout and from the worker
        self._since = -float("inf")
        self._begin(MapFrame("map", publish_tf=False))

    def begin(self, world: MapFrame) -> None:
        """Take over the frame of a newly configured map."""
        self._begin(world)
        if world.publish_tf and self._broadcaster is None:
            self._broadcaster = compat.transform_broadcaster(self._node)

    def _begin(self, world: MapFrame) -> None:
        self._world = world
        self._path = PathBuilder(world.name)
        self._odometry = OdometryBuilder(world.name)
        self._newest: dict[str, int] = {}  # stamp of what was published last, by frame
        self._map = Schedule()
        self._trajectory = Schedule()
        self._frusta = Schedule()
        self._lens: Intrinsics | None = None

    @property
    def alive(self) -> bool:
        """Whether ROS still runs, so that something can be published."""
        return bool(self._node.context.ok())

    def wanted(self, name: str) -> bool:
        """Whether somebody subscribes to an output."""
        return self._publishers[name].get_subscription_count() > 0

    def publish(self, name: str, build: Callable[[], Any]) -> None:
        """Build and publish a message, if somebody subscribes."""
        if self.wanted(name):
            self._publishers[name].publish(build())

    def pose(self, image: PosedImage, body: TfEdge) -> bool:
        """An image's pose and, of its ``body``, odometry: each unless a newer one was published.

        Says whether the pose was published.
        """
        with self._ordering:
            if not self._comes_in_order(image.camera.child, image):
                return False
            pose, world = image.camera.pose, self._world.name
            self.publish("pose", lambda: pose_stamped(image.stamp_ns, world, pose))
            if self._comes_in_order(f"odometry of {body.child}", image):  # which several cameras may share
                self.publish("odom", lambda: self._odometry.build(image, body))
            return True

    def transform(self, image: PosedImage, edge: TfEdge) -> None:
        """The transform that follows from an image, unless a newer one of its child was published."""
        if self._broadcaster is None or not self._world.publish_tf:
            return
        with self._ordering:
            if self._comes_in_order(f"{self._world.name} -> {edge.child}", image):
                self._broadcaster.sendTransform(
                    transform_stamped(image.stamp_ns, self._world.name, edge.child, edge.pose)
                )

    def _comes_in_order(self, stream: str, image: PosedImage) -> bool:
        if image.arrived < self._since or image.stamp_ns <= self._newest.get(stream, -1):
            return False
        self._newest[stream] = image.stamp_ns
        return True

    def time_began_anew(self) -> None:
        """Stamps went back: what comes of images that arrived before is older than all that follows."""
        with self._ordering:
            self._since = time.monotonic()
            self._newest.clear()

    def jumped(self) -> None:
        """The whole map has another size, shape or beginning: poses before and after it make no speed."""
        with self._ordering:
            self._odometry.forget()

    def keyframe(self, update: Update, camera_frame: str, config: MapConfig) -> None:
        """What a new, registered keyframe gives at once, beside its pose. Path and map follow (``revised``)."""
        stamp, world, pixels = update.keyframe.stamp_ns, self._world.name, update.keyframe.image.pixels
        view = changed_view(update.view, self._world.from_world)
        self._publishers["camera_info"].publish(camera_info_message(stamp, camera_frame, update.intrinsics))
        self.publish("points", lambda: cloud_message(stamp, world, view_cloud(view, pixels, config)))
        self.publish("depth", lambda: depth_message(stamp, camera_frame, view.depth))
        self._lens = update.intrinsics

    def revised(self) -> None:
        """Keyframes are in the map, or a loop closure moved old ones: path, frusta and map follow when they are due."""
        for schedule in (self._map, self._trajectory, self._frusta):
            schedule.changed()

    def due(self, map_period_s: float) -> bool:
        """Whether ``latest`` would publish something now."""
        return (
            self._map.due(map_period_s, self.wanted("map"))
            or self._trajectory.due(0.0, self.wanted("path"))
            or self._frusta.due(map_period_s, self.wanted("keyframes"))
        )

    def latest(self, stamp_ns: int, reconstructor: Reconstructor, map_period_s: float) -> None:
        """Path, frusta and map, each when it changed, is read by somebody, and was not published just now."""
        if self._trajectory.due(0.0, self.wanted("path")):
            self._trajectory.published()
            path = self._world.path(reconstructor.trajectory())
            self._publishers["path"].publish(self._path.build(stamp_ns, path))
        if self._frusta.due(map_period_s, self.wanted("keyframes")):
            self._frusta.published()
            poses = [pose for _, pose in self._world.path(reconstructor.trajectory())]
            depth = FRUSTUM_DEPTH * self._world.from_world.scale
            message = frusta_message(stamp_ns, self._world.name, poses, self._lens, depth)
            self._publishers["keyframes"].publish(message)
        if self._map.due(map_period_s, self.wanted("map")):
            self._map.published()
            cloud = self._world.placed(reconstructor.map.cloud())
            self._publishers["map"].publish(cloud_message(stamp_ns, self._world.name, cloud))

    def cleared(self, stamp_ns: int) -> None:
        """An empty path, no frusta and an empty map, in place of what readers still show."""
        with self._ordering:
            self._newest.clear()
        self.jumped()
        self._publishers["path"].publish(self._path.build(stamp_ns, []))
        self._publishers["map"].publish(cloud_message(stamp_ns, self._world.name, PointCloud.empty()))
        self._publishers["keyframes"].publish(frusta_message(stamp_ns, self._world.name, [], None, 0.0))
        for schedule in (self._map, self._trajectory, self._frusta):
            schedule.published()

    def status(self, message: Status) -> None:
        """The node's status."""
        self._publishers["status"].publish(message)
