"""What the node publishes: one place with every output's name, type and quality of service.

A message is built only while somebody subscribes to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
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
from dust3r_ros.ros.qos import latched, reliable
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
    Output("pose", PoseStamped, lambda: reliable(10), "The newest keyframe's camera pose, in the map frame"),
    Output("keyframes", MarkerArray, latched, "What the camera sees at every keyframe, as lines, in the map frame"),
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
        self._begin(MapFrame("map", publish_tf=False))

    def begin(self, world: MapFrame) -> None:
        """Take over the frame of a newly configured map."""
        self._begin(world)
        if world.publish_tf and self._broadcaster is None:
            self._broadcaster = compat.transform_broadcaster(self._node)

    def _begin(self, world: MapFrame) -> None:
        self._world = world
        self._path = PathBuilder(world.name)
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

    def keyframe(self, update: Update, camera_frame: str, config: MapConfig, edge: TfEdge | None) -> None:
        """What a new, registered keyframe gives at once. Path and map follow when they are due."""
        stamp, world, pixels = update.keyframe.stamp_ns, self._world.name, update.keyframe.image.pixels
        view = changed_view(update.view, self._world.from_world)
        if self._broadcaster is not None and self._world.publish_tf and edge is not None:
            self._broadcaster.sendTransform(transform_stamped(stamp, world, edge.child, edge.pose))
        self.publish("pose", lambda: pose_stamped(stamp, world, view.camera_to_world))
        self._publishers["camera_info"].publish(camera_info_message(stamp, camera_frame, update.intrinsics))
        self.publish("points", lambda: cloud_message(stamp, world, view_cloud(view, pixels, config)))
        self.publish("depth", lambda: depth_message(stamp, camera_frame, view.depth))
        self._lens = update.intrinsics
        self.revised()

    def revised(self) -> None:
        """Keyframes came, or a loop closure moved old ones: path, frusta and map follow when they are due."""
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
        self._publishers["path"].publish(self._path.build(stamp_ns, []))
        self._publishers["map"].publish(cloud_message(stamp_ns, self._world.name, PointCloud.empty()))
        self._publishers["keyframes"].publish(frusta_message(stamp_ns, self._world.name, [], None, 0.0))
        for schedule in (self._map, self._trajectory, self._frusta):
            schedule.published()

    def status(self, message: Status) -> None:
        """The node's status."""
        self._publishers["status"].publish(message)


class Schedule:
    """When a latched output is published anew: only when it changed, somebody reads it, and not too often.

    A reader that comes late gets the latched message, or a new one when there were changes since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = False
        self._published_at = -float("inf")

    def changed(self) -> None:
        """The output is no longer what was published last."""
        self._changed = True

    def published(self) -> None:
        """What is published now is the newest."""
        self._changed = False
        self._published_at = self._clock()

    def due(self, period_s: float, wanted: bool) -> bool:
        """Whether to publish now."""
        return wanted and self._changed and self._clock() - self._published_at >= period_s
