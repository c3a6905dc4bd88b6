"""Images as the predictors want them: the one file loader, array conversion, preparation and video reader."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from dust3r_ros.data import ByteImage, ImageTransform, PreparedImage
from dust3r_ros.errors import ImageError, RecordingError
from dust3r_ros.predictor import ImageSize

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".heic", ".heif")
)
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
MIN_SIDE_PX = 16
_HEIF_SUFFIXES = frozenset({".heic", ".heif"})
_WHITE = 255


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key under which ``frame2`` comes before ``frame10``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts if part]


def load_image(path: str | Path) -> ByteImage:
    """An image file as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Grey and palette images become RGB; transparency is laid over white; 16-bit images are scaled to 8 bits over
    their whole range; of an animation the first frame is taken. HEIC needs ``pillow-heif``.
    Raises ImageError with the path and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings(), _open(path) as opened:
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata
            return _decode(opened)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ImageError(f"{path}: larger than {limit} megapixels, which may be a decompression bomb") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image in a known format") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise ImageError(f"{path}: cannot be decoded ({error})") from error


def _open(path: Path) -> Image.Image:
    if path.suffix.lower() not in _HEIF_SUFFIXES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error at twice the size remains
            return Image.open(path)
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError("HEIC images need the package pillow-heif (pip install pillow-heif)") from error
    return heif.open_heif(path).to_pillow()


def _decode(opened: Image.Image) -> ByteImage:
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        return to_rgb8(np.asarray(image).astype(np.uint16))
    if image.mode == "I":
        return to_rgb8(_as_uint16(np.asarray(image)))
    if image.mode == "F":
        return to_rgb8(np.asarray(image))
    if image.has_transparency_data:
        return to_rgb8(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _as_uint16(values: np.ndarray) -> np.ndarray:
    """Pillow's 32-bit integer images come from 16-bit files; larger values have no known white."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"32-bit values must lie from 0 to 65535, got {low} to {high}")
    return values.astype(np.uint16)


def to_rgb8(array: np.ndarray, *, white: float | None = None) -> ByteImage:
    """An array as (H, W, 3) uint8 RGB.

    ``array`` is grey (H, W) or (H, W, 1), grey with alpha (H, W, 2), RGB (H, W, 3) or RGBA (H, W, 4); uint8, uint16,
    bool or float. ``white`` is the value that becomes 255: by default 255 for uint8, 65535 for uint16, 1 for float and
    bool (a 12-bit camera's uint16 has 4095). Alpha is laid over white. Raises ImageError for any other form, for
    floats outside 0 to ``white`` by more than 1 % and for NaN.
    """
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"an image must have the shape (H, W) or (H, W, 1 to 4), got {array.shape}")
    if array.size == 0:
        raise ImageError(f"an image must have at least one pixel, got the shape {array.shape}")
    values = _to_8bit(array, white)
    channels = values.shape[2]
    if channels in (2, 4):
        values = _over_white(values[..., :-1], values[..., -1:])
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    return np.ascontiguousarray(values)


def _to_8bit(array: np.ndarray, white: float | None) -> ByteImage:
    if array.dtype == np.uint8 and white in (None, _WHITE):
        return array
    if array.dtype == np.uint16 and white in (None, 65535):
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype not in (np.uint8, np.uint16, np.bool_) and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an image must be uint8, uint16, bool or float, got {array.dtype}")
    top = white if white is not None else 1.0
    values = array.astype(np.float32) / np.float32(top)
    if not np.isfinite(values).all():
        raise ImageError("an image must not have NaN or infinite values")
    if np.issubdtype(array.dtype, np.floating) and (values.min() < -0.01 or values.max() > 1.01):
        raise ImageError(f"a float image must lie from 0 to {top:g}, got {array.min():g} to {array.max():g}")
    return np.rint(np.clip(values, 0, 1) * _WHITE).astype(np.uint8)


def _over_white(colour: ByteImage, alpha: ByteImage) -> ByteImage:
    a = alpha.astype(np.uint32)
    return ((colour * a + _WHITE * (_WHITE - a) + 127) // _WHITE).astype(np.uint8)


def prepare(image: ByteImage, size: ImageSize) -> PreparedImage:
    """An image (H, W, 3) uint8 RGB as a predictor wants it, with the exact map between the two.

    The long side is resized to ``size.long_side``, up as well as down, and the middle is cut out so that both sides
    are multiples of ``size.multiple``. With ``size.square`` the short side is resized to ``long_side`` and the middle
    square cut out. As much is cut away at both ends of a side, so the centre stays the centre, where the principal
    point of an estimated camera is. Raises ImageError for another form, for a side under 16 pixels and for an image so
    narrow that its short side would be less than one multiple.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(f"an image must be at least {MIN_SIDE_PX} pixels wide and high, got {width}x{height}")
    fitted = min(height, width) if size.square else max(height, width)
    resized_width = _scaled(width, size.long_side, fitted)
    resized_height = _scaled(height, size.long_side, fitted)
    net_width = _crop_side(resized_width, size)
    net_height = _crop_side(resized_height, size)
    if min(net_width, net_height) < 1:
        raise ImageError(
            f"an image of {width}x{height} is too narrow: at {resized_width}x{resized_height} its short side is "
            f"less than {size.multiple} pixels"
        )
    left = _margin(width, net_width, size.long_side, fitted)
    top = _margin(height, net_height, size.long_side, fitted)
    cut_width, cut_height = width - 2 * left, height - 2 * top
    middle = image[top : top + cut_height, left : left + cut_width]
    scale_x, scale_y = net_width / cut_width, net_height / cut_height
    transform = ImageTransform(scale_x, scale_y, -left * scale_x, -top * scale_y, width, height, net_width, net_height)
    pixels = np.ascontiguousarray(_resize(middle, net_width, net_height))
    return PreparedImage(pixels, transform)


def _scaled(side: int, long_side: int, fitted: int) -> int:
    return max(1, (2 * side * long_side + fitted) // (2 * fitted))  # rounded, exactly


def _crop_side(side: int, size: ImageSize) -> int:
    return min(side, size.long_side) // size.multiple * size.multiple


def _margin(side: int, kept: int, long_side: int, fitted: int) -> int:
    """Pixels of the original to cut away at each end of a side, so that what is left becomes ``kept`` pixels.

    Whole pixels, before the resizing: after it an odd number of them would be left for the two ends.
    """
    return max(0, round((side - kept * fitted / long_side) / 2))


def _resize(image: ByteImage, width: int, height: int) -> ByteImage:
    """Anti-aliased; pixel areas map onto pixel areas, so ``u_new = u * width_new / width_old`` for centres at + 0.5."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def to_jpeg(pixels: ByteImage, quality: int) -> ByteImage:
    """The bytes (N,) uint8 of a JPEG of ``pixels`` (H, W, 3) uint8 RGB; ``quality`` from 0 to 100."""
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    return np.asarray(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], dtype=np.uint8).reshape(-1)


def from_jpeg(data: ByteImage) -> ByteImage:
    """(H, W, 3) uint8 RGB of what ``to_jpeg`` made. Raises ImageError for bytes that are no image."""
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.dtype == np.uint8 and data.size else None
    if decoded is None:
        raise ImageError(f"a JPEG must be bytes that can be decoded, got {data.size} values that cannot")
    return np.ascontiguousarray(np.asarray(decoded, dtype=np.uint8)[..., ::-1])


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video: (H, W, 3) uint8 RGB, its number from 0 and its time from the video's start."""

    image: ByteImage
    index: int
    stamp_ns: int


def video_frames(path: str | Path, *, every: int = 1) -> Iterator[VideoFrame]:
    """The frames of a video file in order, each ``every``-th one, upright by the file's rotation tag.

    Raises RecordingError when the file cannot be read or has no frame, and ValueError for ``every`` < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    path = Path(path)
    if not path.is_file():
        raise RecordingError(f"{path}: no such video file")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise RecordingError(f"{path}: not a video that OpenCV can read")
        yield from _read_frames(path, capture, every)
    finally:
        capture.release()


def _read_frames(path: Path, capture: Any, every: int) -> Iterator[VideoFrame]:
    rate = capture.get(cv2.CAP_PROP_FPS)
    period_ns = 1e9 / rate if rate > 0 else 1e9 / 30
    index, previous_ns = 0, -1
    while capture.grab():
        stamp_ns = round(1e6 * capture.get(cv2.CAP_PROP_POS_MSEC))
        if stamp_ns <= previous_ns:  # some containers carry no times
            stamp_ns = previous_ns + round(period_ns) if index else 0
        previous_ns = stamp_ns
        if index % every == 0:
            good, frame = capture.retrieve()
            if not good:
                raise RecordingError(f"{path}: frame {index} cannot be decoded")
            yield VideoFrame(np.ascontiguousarray(frame[..., ::-1]), index, stamp_ns)
        index += 1
    if index == 0:
        raise RecordingError(f"{path}: a video without frames")
