"""Cameras that are fixed to each other: how far apart they are, and which of their images were taken at one time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import combinations

from dust3r_ros.alignment.scale import SAME_TIME_NS
from dust3r_ros.ros.cameras import Frame

log = logging.getLogger(__name__)


class CameraRig:
    """The rig that static transforms tell of. An image of one camera brings those that the others took with it.

    So the cameras have keyframes at the same times, and their known distance tells the scale. For one thread.
    """

    def __init__(self, baseline_m: Callable[[str, str], float | None], tell: Callable[[str, str, float], None]) -> None:
        """``baseline_m`` of two frames, None while it is not known; ``tell`` is given two cameras and theirs."""
        self._baseline_m = baseline_m
        self._tell = tell
        self._frames: dict[str, str] = {}  # by camera
        self._known: set[tuple[str, str]] = set()
        self._mates: set[str] = set()
        self._taken: dict[str, int] = {}  # stamp of the newest image that became a keyframe, by camera
        self._left_out: dict[str, Frame] = {}  # the newest image, where it did not

    def meet(self, frame: Frame) -> None:
        """A camera's image has come: find out how far the camera is from the others."""
        self._frames[frame.camera] = frame.camera_frame
        for pair in combinations(sorted(self._frames), 2):
            if frame.camera in pair and pair not in self._known:
                baseline = self._baseline_m(*(self._frames[camera] for camera in pair))
                if baseline:
                    self._known.add(pair)
                    self._mates.update(pair)
                    self._tell(*pair, baseline)
                    log.info("%s and %s are a rig, %.3f m apart", *pair, baseline)

    def wants(self, frame: Frame) -> bool:
        """Whether an image not needed by itself belongs to another camera's keyframe; else it is kept a while."""
        if frame.camera not in self._mates:
            return False
        if any(_same_time(frame.stamp_ns, stamp) for camera, stamp in self._taken.items() if camera != frame.camera):
            return True
        self._left_out[frame.camera] = frame
        return False

    def taken(self, frame: Frame) -> list[Frame]:
        """An image becomes a keyframe: those that were left out and belong to it, which become keyframes too."""
        self._taken[frame.camera] = frame.stamp_ns
        self._left_out.pop(frame.camera, None)
        if frame.camera not in self._mates:
            return []
        found = [other for other in self._left_out.values() if _same_time(frame.stamp_ns, other.stamp_ns)]
        for other in found:
            self._taken[other.camera] = other.stamp_ns
            del self._left_out[other.camera]
        return found


def _same_time(stamp_ns: int, other_ns: int) -> bool:
    return abs(stamp_ns - other_ns) <= SAME_TIME_NS
