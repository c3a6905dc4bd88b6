"""From ROS image messages to RGB pixels and pinhole intrinsics.

Works on any object with the fields of the message, from rclpy or from a recording: this module imports no ROS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import ByteImage, Intrinsics
from dust3r_ros.errors import RosError

_MONO_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class _Encoding:
    """How the pixels of one encoding lie in memory: ``channels`` values of ``dtype`` a pixel, and the way to RGB."""

    dtype: type[np.unsignedinteger[Any]]
    channels: int
    to_rgb: Callable[[NDArray[Any]], ByteImage]


def _keep(image: NDArray[Any]) -> ByteImage:
    return image


def _grey(image: NDArray[Any]) -> ByteImage:
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)


def _convert(code: int) -> Callable[[NDArray[Any]], ByteImage]:
    def to_rgb(image: NDArray[Any]) -> ByteImage:
        return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)

    return to_rgb


def _high_byte(then: Callable[[NDArray[Any]], ByteImage]) -> Callable[[NDArray[Any]], ByteImage]:
    def to_rgb(image: NDArray[Any]) -> ByteImage:
        return then((image >> 8).astype(np.uint8))

    return to_rgb


def stretch_to_byte(image: NDArray[Any]) -> ByteImage:
    """A single-channel image of any depth as uint8, its 0.5 to 99.5 percentiles spread over 0 to 255.

    Cameras of 10 to 14 bits and thermal cameras use a small part of 16 bits: the high byte alone would be black.
    """
    sample = image[::4, ::4] if min(image.shape[:2]) >= 64 else image
    low, high = np.percentile(sample, _MONO_PERCENTILES)
    scaled = (image.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _grey16(image: NDArray[Any]) -> ByteImage:
    return _grey(stretch_to_byte(image))


_BAYER = {  # OpenCV names a pattern by its second row, columns two and one
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
}
_UYVY = _Encoding(np.uint8, 2, _convert(cv2.COLOR_YUV2RGB_UYVY))
_YUYV = _Encoding(np.uint8, 2, _convert(cv2.COLOR_YUV2RGB_YUY2))
_BGR2RGB = _convert(cv2.COLOR_BGR2RGB)
_BGRA2RGB = _convert(cv2.COLOR_BGRA2RGB)
_RGBA2RGB = _convert(cv2.COLOR_RGBA2RGB)

_ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(np.uint8, 3, _keep),
    "bgr8": _Encoding(np.uint8, 3, _BGR2RGB),
    "rgba8": _Encoding(np.uint8, 4, _RGBA2RGB),
    "bgra8": _Encoding(np.uint8, 4, _BGRA2RGB),
    "mono8": _Encoding(np.uint8, 1, _grey),
    "8uc1": _Encoding(np.uint8, 1, _grey),
    "8uc3": _Encoding(np.uint8, 3, _BGR2RGB),  # by convention of cv_bridge: OpenCV's channel order
    "8uc4": _Encoding(np.uint8, 4, _BGRA2RGB),
    "mono16": _Encoding(np.uint16, 1, _grey16),
    "16uc1": _Encoding(np.uint16, 1, _grey16),
    "rgb16": _Encoding(np.uint16, 3, _high_byte(_keep)),
    "bgr16": _Encoding(np.uint16, 3, _high_byte(_BGR2RGB)),
    "rgba16": _Encoding(np.uint16, 4, _high_byte(_RGBA2RGB)),
    "bgra16": _Encoding(np.uint16, 4, _high_byte(_BGRA2RGB)),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    **{f"{name}8": _Encoding(np.uint8, 1, _convert(code)) for name, code in _BAYER.items()},
    **{f"{name}16": _Encoding(np.uint16, 1, _high_byte(_convert(code))) for name, code in _BAYER.items()},
}

SUPPORTED_ENCODINGS = tuple(_ENCODINGS)


def image_to_rgb(message: Any) -> ByteImage:
    """The pixels (H, W, 3) uint8 RGB of a sensor_msgs/Image; the result is the caller's own memory.

    Row padding and byte order are honoured; 16-bit grey is stretched (``stretch_to_byte``), 16-bit colour keeps its
    high byte. Raises RosError naming the encoding, the size and the bytes expected and got.
    """
    name = str(message.encoding)
    encoding = _ENCODINGS.get(name.lower())
    if encoding is None:
        raise RosError(f"image encoding {name!r} is not supported; supported are {', '.join(SUPPORTED_ENCODINGS)}")
    height, width = int(message.height), int(message.width)
    what = f"{name} image of {width}x{height}"
    if height < 1 or width < 1:
        raise RosError(f"{what} has no pixels")
    if encoding.to_rgb in (_UYVY.to_rgb, _YUYV.to_rgb) and width % 2:
        raise RosError(f"{what} must have an even width")
    rows = _rows(message, width * encoding.channels * np.dtype(encoding.dtype).itemsize, what)
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if message.is_bigendian else "<")
    values = np.ascontiguousarray(rows).view(dtype).astype(encoding.dtype, copy=False)
    shape = (height, width) if encoding.channels == 1 else (height, width, encoding.channels)
    rgb = encoding.to_rgb(values.reshape(shape))
    return rgb.copy() if encoding.to_rgb is _keep else np.ascontiguousarray(rgb)


def compressed_to_rgb(message: Any) -> ByteImage:
    """The pixels (H, W, 3) uint8 RGB of a sensor_msgs/CompressedImage: JPEG, PNG and what else OpenCV reads.

    An orientation in the file's EXIF data is ignored, because CameraInfo is for the stored pixels.
    Raises RosError naming the format and the number of bytes when they cannot be decoded.
    """
    data = _bytes(message.data)
    form = str(message.format)
    what = f"compressed image ({form or 'no format given'}, {len(data)} bytes)"
    if "compressedDepth" in form:
        raise RosError(f"{what} holds depth, not an image")
    image = _imdecode(data)
    if image is None:
        raise RosError(f"{what} cannot be decoded: the data are damaged, truncated or of an unknown format")
    if image.ndim == 2:
        bayer = next((code for name, code in _BAYER.items() if form.lower().startswith(name)), None)
        if bayer is not None and image.dtype == np.uint8:
            return _convert(bayer)(image)
        return _grey(image) if image.dtype == np.uint8 else _grey16(image)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return (_BGRA2RGB if image.shape[2] == 4 else _BGR2RGB)(image)


def intrinsics_of(message: Any) -> Intrinsics | None:
    """The pinhole of a sensor_msgs/CameraInfo for the image it comes with; None when uncalibrated (K[0] = 0).

    ROS puts pixel centres at integers; region of interest and binning are taken into account. Raises RosError for a
    matrix that is no camera's.
    """
    matrix = np.asarray(message.k if hasattr(message, "k") else message.K, dtype=np.float64).reshape(3, 3)
    if matrix[0, 0] == 0.0:
        return None
    if not np.isfinite(matrix).all() or matrix[0, 0] < 0 or matrix[1, 1] <= 0:
        raise RosError(f"CameraInfo must have a positive focal length, got K = {matrix.ravel().tolist()}")
    roi = message.roi
    width, height = int(roi.width or message.width), int(roi.height or message.height)
    bin_x, bin_y = max(int(message.binning_x), 1), max(int(message.binning_y), 1)
    if width < bin_x or height < bin_y:
        raise RosError(f"CameraInfo must have a size, got {message.width}x{message.height}")
    return Intrinsics(
        fx=float(matrix[0, 0]) / bin_x,
        fy=float(matrix[1, 1]) / bin_y,
        cx=(float(matrix[0, 2]) + 0.5 - int(roi.x_offset)) / bin_x,
        cy=(float(matrix[1, 2]) + 0.5 - int(roi.y_offset)) / bin_y,
        width=width // bin_x,
        height=height // bin_y,
    )


def stamp_ns_of(header: Any) -> int:
    """The time of a std_msgs/Header, nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def _bytes(data: Any) -> NDArray[np.uint8]:
    """A message's bytes without a copy where possible: from bytes, array.array, NumPy or a list."""
    if isinstance(data, np.ndarray):
        return data.view(np.uint8).reshape(-1)
    if isinstance(data, list | tuple):
        return np.array(data, dtype=np.uint8)
    return np.frombuffer(data, dtype=np.uint8)


def _rows(message: Any, row_bytes: int, what: str) -> NDArray[np.uint8]:
    """The used bytes of every row, (height, row_bytes)."""
    height, step = int(message.height), int(message.step) or row_bytes
    data = _bytes(message.data)
    if step < row_bytes:
        raise RosError(f"{what} needs at least {row_bytes} bytes a row, got step {step}")
    needed = step * (height - 1) + row_bytes  # the last row's padding may be missing
    if len(data) < needed:
        raise RosError(f"{what} with step {step} needs {step * height} bytes, got {len(data)}")
    if len(data) < step * height:
        data = np.concatenate([data, np.zeros(step * height - len(data), np.uint8)])
    return data[: step * height].reshape(height, step)[:, :row_bytes]


def _imdecode(data: NDArray[np.uint8]) -> NDArray[Any] | None:
    if not len(data) or not _is_complete(data.tobytes()):
        return None
    try:
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # OpenCV raises instead of returning None for headers that claim absurd sizes
        return None


def _is_complete(data: bytes) -> bool:
    """False for a JPEG or PNG without its end marker: OpenCV would fill what is missing with grey and say nothing."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in data[-65536:]  # cameras pad behind the end
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-65536:]
    return True
