"""A pose for every image of an incremental run, in the world as it is at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dust3r_ros.data import ByteImage, FloatArray, Update
from dust3r_ros.geometry import Similarity, invert_pose
from dust3r_ros.landmarks import Landmarks
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.tracking import Tracker


@dataclass(frozen=True, eq=False)
class _Frame:
    """An image's camera (4, 4) in the frame of keyframe ``index``, when that had the unit ``unit``."""

    stamp_ns: int
    index: int
    camera_in_keyframe: FloatArray
    unit: float


class FramePoses:
    """Tracks every image of a reconstruction; what follows moves with the keyframe that it was tracked against.

    A keyframe's unit is how much larger loop closures made the world around it.
    """

    def __init__(self, reconstructor: Reconstructor) -> None:
        self._reconstructor = reconstructor
        self._landmarks = Landmarks()
        self._trackers: dict[str, Tracker] = {}
        self._units: dict[int, float] = {}
        self._frames: list[_Frame] = []
        self._keyframes: dict[int, int] = {}  # stamps by index
        self.seconds = 0.0

    def add(self, image: ByteImage, stamp_ns: int, camera: str, update: Update | None) -> None:
        """An image (H, W, 3) uint8 RGB that the reconstruction was given, and the update when it became a keyframe."""
        config = self._reconstructor.config
        if not config.tracking.enabled:
            return
        began = time.perf_counter()
        tracker = self._trackers.setdefault(camera, Tracker(camera, config.tracking, self._landmarks))
        tracked = tracker.look(image, stamp_ns, keyframe=update is not None)
        if update is not None:
            self._take(update)
        elif tracked.camera_to_world is not None and tracked.keyframe is not None:
            index = tracked.keyframe.index
            relative = invert_pose(tracked.keyframe.view.camera_to_world) @ tracked.camera_to_world
            self._frames.append(_Frame(stamp_ns, index, relative, self._units.get(index, 1.0)))
        self.seconds += time.perf_counter() - began

    def poses(self) -> list[tuple[int, FloatArray]]:
        """(stamp_ns, camera_to_world (4, 4)) of every image that has one, by the keyframes' newest poses."""
        found = []
        for index, stamp_ns in self._keyframes.items():
            if (pose := self._reconstructor.pose(index)) is not None:
                found.append((stamp_ns, pose))
        for frame in self._frames:
            if (pose := self._reconstructor.pose(frame.index)) is not None:
                camera = frame.camera_in_keyframe.copy()
                camera[:3, 3] *= self._units.get(frame.index, 1.0) / frame.unit
                found.append((frame.stamp_ns, pose @ camera))
        return sorted(found, key=lambda entry: entry[0])

    def _take(self, update: Update) -> None:
        if self._reconstructor.keyframes == 1:  # the map began with it, perhaps anew
            self._landmarks.clear()
        self._landmarks.take(update)
        if update.view.registered:
            self._keyframes[update.keyframe.index] = update.keyframe.stamp_ns
        for index, change in update.corrections.items():
            self._units[index] = self._units.get(index, 1.0) * Similarity.from_matrix(change).scale
