"""Poses at camera rate: every image is tracked against the last keyframes, and what is found is published in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import FloatArray
from dust3r_ros.landmarks import Landmarks
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.map_frame import TfEdge
from dust3r_ros.ros.odometry import PosedImage
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.stages import IN_HAND
from dust3r_ros.ros.tracking_statistics import PoseFate, TrackingStatistics
from dust3r_ros.tracking import Straighten, Tracker

_WAITING = 8  # images whose transforms have not come yet
_LOST_NS = 500_000_000  # after which a keyframe is asked for: relocalisation works on keyframes; doubled by each


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
        self._asked: set[str] = set()  # cameras for which a keyframe was asked for and not placed yet
        self._patience_ns: dict[str, int] = {}  # how long a camera is lost before the next one is

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
        tracker = self._tracker(frame.camera)
        tracked = tracker.look(frame.image, frame.stamp_ns, keyframe=taken, straighten=_straighten(frame))
        self._statistics.looked(frame.camera, tracked)
        if tracked.camera_to_world is not None:
            self._patience_ns.pop(frame.camera, None)
            self._asked.discard(frame.camera)
            in_time = not self._late(frame) and self._publish(frame, tracked.camera_to_world, tracked.covariance)
            fate = PoseFate.PUBLISHED if in_time else PoseFate.STALE
            self._statistics.note(fate, time.monotonic() - frame.arrived)
        patience_ns = self._patience_ns.get(frame.camera, _LOST_NS)
        if tracker.lost_since_ns is not None and frame.stamp_ns - tracker.lost_since_ns >= patience_ns and not taken:
            tracker.lost_since_ns = frame.stamp_ns
            self._asked.add(frame.camera)
            self._lost(frame.camera)

    def take(self, frame: Frame) -> None:
        """An image that was looked at before becomes a keyframe all the same."""
        if self.config.reconstructor.tracking.enabled:
            self._tracker(frame.camera).take(frame.image, frame.stamp_ns, _straighten(frame))

    def _tracker(self, camera: str) -> Tracker:
        if camera not in self._trackers:
            waiting = self.config.queue_size + IN_HAND
            self._trackers[camera] = Tracker(camera, self.config.reconstructor.tracking, self._landmarks, waiting)
        return self._trackers[camera]

    def keyframe(self, frame: Frame, camera_to_world: FloatArray, camera_in_reference: FloatArray | None) -> None:
        """Publish a keyframe's aligned pose, if no newer image's was published; in the worker's thread."""
        if frame.camera in self._asked:  # it was placed; where that does not end it, another one will hardly do
            self._asked.discard(frame.camera)
            self._patience_ns[frame.camera] = 2 * self._patience_ns.get(frame.camera, _LOST_NS)
        image = self._posed(frame, camera_to_world, None)
        edge = self._frames.edge(frame.camera_frame, camera_to_world, camera_in_reference)
        if edge is not None:
            self._outputs.transform(image, edge)
        self._outputs.pose(image, self._frames.body(image.camera, edge))

    def _late(self, image: Frame | PosedImage) -> bool:
        return time.monotonic() - image.arrived > self.config.pose_max_age

    def _posed(self, frame: Frame, camera_to_world: FloatArray, covariance: FloatArray | None) -> PosedImage:
        world = self._frames.map
        camera = TfEdge(frame.camera_frame, world.from_world.apply_to_pose(camera_to_world))
        in_map = world.covariance(covariance) if covariance is not None else None
        return PosedImage(frame.stamp_ns, camera, frame.arrived, in_map)

    def _publish(self, frame: Frame, camera_to_world: FloatArray, covariance: FloatArray | None) -> bool:
        """TF first: who hears of the pose finds its transform. False when a newer pose was published."""
        image = self._posed(frame, camera_to_world, covariance)
        in_time = [entry for entry in self._waiting if not self._late(entry[0])]
        waiting, edge = [*in_time, (image, camera_to_world)], None
        self._waiting.clear()
        for earlier, pose in waiting:
            known = self._frames.camera_in_reference_now(earlier.camera.child, earlier.stamp_ns)
            edge = self._frames.edge(earlier.camera.child, pose, known)
            if known is None:
                self._waiting.append((earlier, pose))
            elif edge is not None:
                self._outputs.transform(earlier, edge)
        return self._outputs.pose(image, self._frames.body(image.camera, edge))


def _straighten(frame: Frame) -> Straighten | None:
    return frame.lens.straighten if frame.lens is not None else None
