"""The web page for a running node: what the node publishes, as it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException

from dust3r_ros.data import ByteImage
from dust3r_ros.pictures import depth_picture, thumbnail
from dust3r_ros.ros.recorder import Recorded, Recorder
from dust3r_ros.viewer import ViewedKeyframe, ViewedScene
from dust3r_ros.viewer.scene import FRUSTUM_PX

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 1.0
_NO_DEPTH = np.full((24, 32, 3), 40, np.uint8)


def watch_node(show: Callable[[ViewedScene], None], source: str = "/dust3r", ros_args: Sequence[str] = ()) -> None:
    """Subscribe to a node's outputs and show them, once a second if they changed, until the process is told to stop."""
    rclpy.init(args=["dust3r_view", *ros_args])
    node = Recorder(source)
    growing = GrowingScene(node.recorded)

    def refresh() -> None:
        scene = growing.changed()
        if scene is not None:
            show(scene)

    node.create_timer(_PERIOD_SECONDS, refresh)
    log.info("waiting for %s/map", source)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


class GrowingScene:
    """What has arrived, as the page shows it.

    The node does not publish its images, so a keyframe shows its depth, as a small picture; the depth itself is let go
    of, so that a long session's memory grows by its map and a few kilobytes a keyframe.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._pictures: dict[int, ByteImage] = {}
        self._seen = (-1, -1)

    def changed(self) -> ViewedScene | None:
        """The scene, None when nothing came since the last call."""
        recorded = self._recorded
        state = (recorded.cloud_stamp_ns, len(recorded.path))
        for stamp_ns in list(recorded.depths):
            self._pictures[stamp_ns] = thumbnail(depth_picture(recorded.depths.pop(stamp_ns)), FRUSTUM_PX)
        if state == self._seen:
            return None
        self._seen = state
        lens = recorded.intrinsics
        keyframes = [
            ViewedKeyframe(f"{stamp_ns / 1e9:.3f} s", self._pictures.get(stamp_ns, _NO_DEPTH), pose, lens)
            for stamp_ns, pose in recorded.path
            if lens is not None
        ]
        metric = recorded.status is not None and bool(recorded.status.metric)
        return ViewedScene(keyframes, recorded.cloud, metric=metric)
