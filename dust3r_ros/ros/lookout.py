"""The thread that looks at every image: which become keyframes, and where each was taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

from dust3r_ros.errors import RosError
from dust3r_ros.keyframes import KeyframeReason
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.calibration import CalibrationMissingError
from dust3r_ros.ros.cameras import Frame, Shot
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.pose_stream import PoseStream
from dust3r_ros.ros.rigs import CameraRig
from dust3r_ros.ros.stages import Stages
from dust3r_ros.ros.statistics import Drop, Statistics, drop_of
from dust3r_ros.ros.worker import Worker

log = logging.getLogger(__name__)

_RETRY_S = 1.0  # between two keyframes of a camera that is lost
_SAY_S = 5.0  # between two messages about images that cannot be used


class Lookout(Worker[Shot]):
    """Looks at images one after the other, and gives those that become keyframes to another worker."""

    def __init__(
        self, reconstructor: Reconstructor, frames: MapFrames, poses: PoseStream, worker: Stages[Frame, Any],
        statistics: Statistics, history: int,
    ) -> None:  # fmt: skip
        """At most ``history`` images wait to be looked at."""
        super().__init__(self.look, history, self._on_unusable)
        self._reconstructor = reconstructor
        self._frames = frames
        self._poses = poses
        self._worker = worker
        self._statistics = statistics
        self._said_at = -_SAY_S
        self._anew: set[str] = set()  # cameras whose next image is to be a keyframe
        self._unplaced: dict[str, float] = {}  # when a camera's last keyframe was not placed, time.monotonic()
        self._rig = self._new_rig()

    def take_next(self, cameras: Collection[str]) -> None:
        """Make the next image of each camera a keyframe, if there is anything to be seen in it."""
        self._anew.update(cameras)

    def not_placed(self, camera: str) -> None:
        """A camera's keyframe found no place in the map."""
        self._unplaced[camera] = time.monotonic()

    def forget(self) -> None:
        """Nothing of the images before is left; while no image is looked at."""
        self._rig = self._new_rig()
        self._poses.reset()
        self._unplaced.clear()

    def look(self, shot: Shot) -> None:
        """Look at one image; in the lookout's thread."""
        frame = shot.read()
        anew = frame.camera in self._anew or self._tries_again(frame.camera)
        decision = self._reconstructor.select(frame.image, frame.stamp_ns, frame.camera, anew=anew)
        self._rig.meet(frame)
        wanted = decision.reason is KeyframeReason.NEAR and self._rig.wants(frame)
        taken = decision.take or wanted
        if not taken:
            self._statistics.dropped(drop_of(decision.reason))
        companions = self._take(frame) if taken else []
        self._poses.look(frame, taken=taken)  # last: a keyframe does not wait for it
        for late in companions:
            self._poses.take(late)
        for mate in [frame, *companions] if wanted else companions:  # which their own selection did not take
            self._reconstructor.taken(mate.image, mate.camera)

    def _new_rig(self) -> CameraRig:
        return CameraRig(self._frames.baseline_m, self._reconstructor.add_baseline)

    def _tries_again(self, camera: str) -> bool:
        """Whether a camera that the map does not know where it is may be found by another image."""
        failed_at = self._unplaced.get(camera)
        if failed_at is None or time.monotonic() - failed_at < _RETRY_S:
            return False
        del self._unplaced[camera]
        return True

    def _take(self, frame: Frame) -> list[Frame]:
        """Queue a keyframe, and those that belong to it, which are returned."""
        self._anew.discard(frame.camera)
        companions = self._rig.taken(frame)
        self._statistics.dropped(Drop.NOT_NEEDED, -len(companions))
        for taken in (frame, *companions):
            if (gone := self._worker.offer(taken)) is not None:
                self._statistics.dropped(Drop.QUEUE_FULL)
                self._poses.forget(gone)
        return companions

    def _on_unusable(self, shot: Shot, error: Exception) -> None:
        waits = isinstance(error, CalibrationMissingError)
        self._statistics.dropped(Drop.NO_CALIBRATION if waits else Drop.INVALID)
        kind = "" if isinstance(error, RosError) else f"{type(error).__name__}: "
        if time.monotonic() - self._said_at >= _SAY_S:
            self._said_at = time.monotonic()
            log.warning("image skipped: %s%s", kind, error)
