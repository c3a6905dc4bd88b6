"""From a CameraInfo to a pinhole: distortion is undone before an image is used.

Works on any object with the fields of the message, from rclpy or from a recording: this module imports no ROS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.ros.decode import intrinsics_of

_FISHEYE = ("equidistant", "fisheye")
# Coefficients of sensor_msgs/distortion_models.hpp that OpenCV's pinhole model takes.
_COEFFICIENTS = {"plumb_bob": 5, "rational_polynomial": 8}
_FISHEYE_COEFFICIENTS = 4


@dataclass(frozen=True, eq=False)
class Lens:
    """How a camera's images become a pinhole's: ``intrinsics`` hold for what ``undistorted`` returns.

    ``maps`` are OpenCV's for ``remap``; ``straighten`` takes pixels (N, 2) of the camera's image, centres at integers
    + 0.5, to where ``undistorted`` has them. Both are None where there is no distortion.
    """

    intrinsics: Intrinsics
    maps: tuple[NDArray[Any], NDArray[Any]] | None = None
    straighten: Callable[[FloatArray], FloatArray] | None = None

    def undistorted(self, image: ByteImage) -> ByteImage:
        """The image (H, W, 3) uint8 without distortion, of the same size; only what the camera saw is in it."""
        if self.maps is None:
            return image
        return np.asarray(cv2.remap(image, *self.maps, cv2.INTER_LINEAR), dtype=np.uint8)


def lens_of(message: Any, *, rectified: bool) -> Lens | None:
    """The lens a sensor_msgs/CameraInfo describes; None for a camera that is not calibrated (K[0] = 0).

    ``rectified`` says that the images are image_proc's ``image_rect``: P is theirs, and nothing is to be undone.
    Raises RosError for a matrix that is no camera's, or a distortion that is not known.
    """
    if rectified:
        return _rectified(message)
    known = intrinsics_of(message)
    coefficients = _field(message, "d")
    if known is None or not coefficients.any():
        return Lens(known) if known is not None else None
    model = str(message.distortion_model)
    if model in _FISHEYE:
        _check_count(model, coefficients, _FISHEYE_COEFFICIENTS)
        return _fisheye(known, coefficients)
    if model not in _COEFFICIENTS:
        names = ", ".join((*_COEFFICIENTS, *_FISHEYE))
        raise RosError(f"distortion_model must be one of {names}, got {model!r}")
    _check_count(model, coefficients, _COEFFICIENTS[model])
    return _pinhole(known, coefficients)


def same_camera(first: Any, second: Any) -> bool:
    """Whether two CameraInfo describe the same lens: making a ``Lens`` is costly."""
    if any(getattr(first, name) != getattr(second, name) for name in ("width", "height", "distortion_model")):
        return False
    if first.roi != second.roi or (first.binning_x, first.binning_y) != (second.binning_x, second.binning_y):
        return False
    return all(np.array_equal(_field(first, name), _field(second, name)) for name in ("d", "k", "p"))


def _field(message: Any, name: str) -> NDArray[np.float64]:
    """A matrix of a CameraInfo; ROS 1 has capitals."""
    return np.asarray(getattr(message, name, getattr(message, name.upper(), None)), dtype=np.float64)


def _check_count(model: str, coefficients: NDArray[np.float64], most: int) -> None:
    if len(coefficients) not in {4, most} or not np.isfinite(coefficients).all():
        raise RosError(f"{model} has {most} finite coefficients, got D = {coefficients.tolist()}")


def _rectified(message: Any) -> Lens | None:
    p = _field(message, "p").reshape(3, 4)
    if p[0, 0] == 0.0:
        return None
    stand_in = _PinholeInfo(message, p[:, :3].ravel())
    known = intrinsics_of(stand_in)
    return Lens(known) if known is not None else None


class _PinholeInfo:
    """A CameraInfo whose K is another's P, with the same image."""

    def __init__(self, message: Any, k: NDArray[np.float64]) -> None:
        self.k = k
        self.roi, self.width, self.height = message.roi, message.width, message.height
        self.binning_x, self.binning_y = message.binning_x, message.binning_y


def _pinhole(known: Intrinsics, coefficients: NDArray[np.float64]) -> Lens:
    size = (known.width, known.height)
    k = known.matrix(centres_at_integers=True)
    flat, _ = cv2.getOptimalNewCameraMatrix(k, coefficients, size, 0.0)
    maps = cv2.initUndistortRectifyMap(k, coefficients, np.eye(3), flat, size, cv2.CV_16SC2)
    back = partial(cv2.undistortPoints, cameraMatrix=k, distCoeffs=coefficients, P=flat)
    return _lens(np.asarray(flat), size, maps, back)


def _fisheye(known: Intrinsics, coefficients: NDArray[np.float64]) -> Lens:
    size = (known.width, known.height)
    k = known.matrix(centres_at_integers=True)
    flat = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(k, coefficients, size, np.eye(3), balance=0.0)
    maps = cv2.fisheye.initUndistortRectifyMap(k, coefficients, np.eye(3), flat, size, cv2.CV_16SC2)
    back = partial(cv2.fisheye.undistortPoints, K=k, D=coefficients, P=flat)
    return _lens(np.asarray(flat), size, maps, back)


def _lens(flat: NDArray[np.float64], size: tuple[int, int], maps: Any, back: Callable[..., Any]) -> Lens:
    if not (np.isfinite(flat).all() and flat[0, 0] > 0 and flat[1, 1] > 0):
        raise RosError(f"this distortion leaves no image to undo it to: K becomes {flat.ravel().tolist()}")
    intrinsics = Intrinsics.from_matrix(flat, *size, centres_at_integers=True)
    return Lens(intrinsics, (maps[0], maps[1]), partial(_straightened, back))


def _straightened(back: Callable[..., Any], pixels: FloatArray) -> FloatArray:
    """Pixels (N, 2) through one of OpenCV's ``undistortPoints``, whose centres are at integers."""
    points = np.ascontiguousarray(pixels - 0.5, np.float64).reshape(-1, 1, 2)
    return np.asarray(back(points)).reshape(-1, 2) + 0.5 if len(points) else np.zeros((0, 2))
