"""The lens that a camera's driver describes, as the node uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sensor_msgs.msg import CameraInfo

from dust3r_ros.errors import RosError
from dust3r_ros.ros.lens import Lens, lens_of, same_camera

log = logging.getLogger(__name__)


class CalibrationMissingError(RosError):
    """The CameraInfo that an image needs has not come."""


class Calibration:
    """The newest CameraInfo of one camera.

    Its distortion is undone whenever one comes. ``needed`` says that no image can do without one; otherwise images
    wait for it only while somebody publishes it, which ``published`` tells.
    """

    def __init__(self, topic: str, *, needed: bool, rectified: bool, published: Callable[[], bool]) -> None:
        self._topic = topic
        self._needed = needed
        self._rectified = rectified
        self._published = published
        self._message: CameraInfo | None = None
        self._lens: Lens | None = None

    @property
    def known(self) -> str:
        """What is known of the lens, in words."""
        if self._message is None:
            return "none yet"
        if self._lens is None:
            return "not calibrated"
        return "pinhole" if self._lens.maps is None else str(self._message.distortion_model)

    def update(self, message: CameraInfo) -> None:
        """Take over a CameraInfo. Raises RosError for one that is no camera's."""
        if self._message is not None and same_camera(self._message, message):
            return  # the maps that undo a distortion are costly
        self._lens = lens_of(message, rectified=self._rectified)
        first, self._message = self._message is None, message
        if not first:
            return
        if self._lens is None:
            log.warning("%s says the camera is not calibrated (K[0] = 0): intrinsics are estimated", self._topic)
        elif self._lens.maps is not None:
            log.info("%s has lens distortion (%s): it is undone", self._topic, message.distortion_model)

    def for_image(self, height: int, width: int) -> Lens | None:
        """The lens of an image of this size, None where there is none.

        Raises CalibrationMissingError while it has to wait for one, and RosError when it is for another image size.
        """
        if self._message is None:
            if self._needed:
                raise CalibrationMissingError(f"no usable CameraInfo on {self._topic} yet, and intrinsics is 'given'")
            if self._published():
                raise CalibrationMissingError(f"no usable CameraInfo on {self._topic} yet, which somebody publishes")
            return None
        lens = self._lens
        if lens is None or (lens.intrinsics.width, lens.intrinsics.height) == (width, height):
            return lens
        if not self._needed and lens.maps is None:
            return None
        size = f"{lens.intrinsics.width}x{lens.intrinsics.height}"
        raise RosError(f"{self._topic} is for {size} images, got one of {width}x{height}")
