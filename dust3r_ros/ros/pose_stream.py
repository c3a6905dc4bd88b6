"""Poses at camera rate: every image is tracked against the last keyframes, and what is found is published in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import FloatArray
from dust3r_ros.landmarks import Landmarks
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.map_frame import TfEdge
from dust3r_ros.ros.odometry import PosedImage
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.tracking_statistics import PoseFate, TrackingStatistics
from dust3r_ros.tracking import Tracker

_WAITING = 8  # images whose transforms have not come yet
_LOST_NS = 500_000_000  # after which a keyframe is asked for: relocalisation works on keyframes


class PoseStream:
    """The trackers of all cameras. Everything but ``keyframe`` belongs to the lookout's thread.

    ``lost`` is told of a camera that is lost for long, again and again.
    """

    def __init__(
        self, config: NodeConfig, frames: MapFrames, outputs: Publishers, statistics: TrackingStatistics,
        landmarks: Landmarks, lost: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.config = config
        self._frames = frames
        self._outputs = outputs
        self._statistics = statistics
        self._landmarks = landmarks
        self._lost = lost
        self.reset()

    def reset(self) -> None:
        """Forget all images: the map, or time, begins anew."""
        self._trackers: dict[str, Tracker] = {}
        self._waiting: deque[tuple[PosedImage, FloatArray]] = deque(maxlen=_WAITING)

    def forget(self, frame: Frame) -> None:
        """A keyframe gave way to newer ones before it was worked on."""
        if frame.camera in self._trackers:
            self._trackers[frame.camera].forget(frame.stamp_ns)

    def look(self, frame: Frame, *, taken: bool) -> None:
        """Track an image and publish its pose; ``taken`` says that it becomes a keyframe."""
        if not self.config.reconstructor.tracking.enabled:
            return
        if self._late(frame) and not taken:
            self._statistics.note(PoseFate.STALE)
            return
        tracker = self._trackers.get(frame.camera)
        if tracker is None:
            tracker = Tracker(frame.camera, self.config.reconstructor.tracking, self._landmarks)
            self._trackers[frame.camera] = tracker
        straighten = frame.lens.straighten if frame.lens is not None else None
        tracked = tracker.look(frame.image, frame.stamp_ns, keyframe=taken, straighten=straighten)
        self._statistics.looked(frame.camera, tracked)
        if tracked.camera_to_world is not None:
            in_time = not self._late(frame) and self._publish(frame, tracked.camera_to_world, tracked.covariance)
            fate = PoseFate.PUBLISHED if in_time else PoseFate.STALE
            self._statistics.note(fate, time.monotonic() - frame.arrived)
        if tracker.lost_since_ns is not None and frame.stamp_ns - tracker.lost_since_ns >= _LOST_NS and not taken:
            tracker.lost_since_ns = frame.stamp_ns
            self._lost(frame.camera)

    def keyframe(self, frame: Frame, camera_to_world: FloatArray, camera_in_reference: FloatArray | None) -> None:
        """Publish a keyframe's aligned pose, if no newer image's was published; in the worker's thread."""
        image = self._posed(frame, camera_to_world, None)
        edge = self._frames.edge(frame.camera_frame, camera_to_world, camera_in_reference)
        if edge is not None:
            self._outputs.transform(image, edge)
        self._outputs.pose(image, self._frames.body(image.camera, edge))

    def _late(self, frame: Frame) -> bool:
        return time.monotonic() - frame.arrived > self.config.pose_max_age

    def _posed(self, frame: Frame, camera_to_world: FloatArray, covariance: FloatArray | None) -> PosedImage:
        to_map = self._frames.map.from_world
        if covariance is not None:
            unit = np.diag([to_map.scale] * 3 + [1.0] * 3)
            covariance = unit @ covariance @ unit
        camera = TfEdge(frame.camera_frame, to_map.apply_to_pose(camera_to_world))
        return PosedImage(frame.stamp_ns, camera, frame.arrived, covariance)

    def _publish(self, frame: Frame, camera_to_world: FloatArray, covariance: FloatArray | None) -> bool:
        """TF first: who hears of the pose finds its transform. False when a newer pose was published."""
        image = self._posed(frame, camera_to_world, covariance)
        waiting, edge = [*self._waiting, (image, camera_to_world)], None
        self._waiting.clear()
        for earlier, pose in waiting:
            known = self._frames.camera_in_reference_now(earlier.camera.child, earlier.stamp_ns)
            edge = self._frames.edge(earlier.camera.child, pose, known)
            if known is None:
                self._waiting.append((earlier, pose))
            elif edge is not None:
                self._outputs.transform(earlier, edge)
        return self._outputs.pose(image, self._frames.body(image.camera, edge))
