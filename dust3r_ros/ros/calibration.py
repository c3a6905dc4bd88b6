"""The intrinsics that a camera's driver publishes, as the node uses them."""

from __future__ import annotations

import logging

from sensor_msgs.msg import CameraInfo

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.ros.decode import intrinsics_of

log = logging.getLogger(__name__)


class Calibration:
    """The newest CameraInfo of one camera, when the configuration asks for given intrinsics."""

    def __init__(self, topic: str, *, use: bool) -> None:
        self._topic = topic
        self._use = use
        self._arrived = False
        self._intrinsics: Intrinsics | None = None
        self._told = False

    def update(self, message: CameraInfo) -> None:
        """Take over a CameraInfo. Raises RosError for a matrix that is no camera's."""
        self._intrinsics = intrinsics_of(message)
        self._arrived = True
        if self._told:
            return
        if self._intrinsics is None:
            self._told = True
            log.warning("%s says the camera is not calibrated (K[0] = 0): intrinsics are estimated", self._topic)
        elif any(value != 0 for value in message.d):
            self._told = True
            log.warning("%s has lens distortion, which is not undone: use a rectified image topic", self._topic)

    def for_image(self, height: int, width: int) -> Intrinsics | None:
        """Intrinsics for an image of this size, None where they are to be estimated.

        Raises RosError while none have arrived, and when they are for another image size.
        """
        if not self._use:
            return None
        if not self._arrived:
            raise RosError(f"no CameraInfo on {self._topic} yet, and intrinsics is 'given'")
        known = self._intrinsics
        if known is not None and (known.width, known.height) != (width, height):
            raise RosError(f"{self._topic} is for {known.width}x{known.height} images, got one of {width}x{height}")
        return known
