"""Posed image packs: a folder with images, ``cameras.json`` and, for some, depth images.

``cameras.json`` holds ``frames`` in capture order, each with ``file``, ``width``, ``height``, ``K`` (3, 3; pixel
centres at integers), ``cam_to_world`` (4, 4; OpenCV axes) and perhaps ``depth_mm`` (16-bit PNG, millimetres,
0 = none), and ``scale``, a text that begins with "metric" when the poses are in metres.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.errors import RecordingError
from dust3r_ros.images import load_image

_RIGID = 1e-2  # how far a stored rotation may be from orthonormal; it is then made so


@dataclass(frozen=True, eq=False)
class PackFrame:
    """One image of a pack; the pixels are read when asked for. ``intrinsics`` are the truth for the stored image."""

    name: str
    image_file: Path
    intrinsics: Intrinsics
    camera_to_world: FloatArray
    depth_file: Path | None = None

    def load_image(self) -> ByteImage:
        """(H, W, 3) uint8 RGB. Raises ImageError, or RecordingError when the size is not the one the pack says."""
        image = load_image(self.image_file)
        k = self.intrinsics
        if image.shape[:2] != (k.height, k.width):
            raise RecordingError(
                f"{self.image_file}: the pack says {k.width}x{k.height}, the image is {image.shape[1]}x{image.shape[0]}"
            )
        return image

    def load_depth(self) -> FloatArray | None:
        """True z-depth (H, W) float32 in metres, 0 where unknown, at the stored image's size; None when there is none.

        Raises RecordingError when the file cannot be read or has another form.
        """
        if self.depth_file is None:
            return None
        depth = cv2.imread(str(self.depth_file), cv2.IMREAD_UNCHANGED) if self.depth_file.is_file() else None
        expected = (self.intrinsics.height, self.intrinsics.width)
        if depth is None or depth.dtype != np.uint16 or depth.shape != expected:
            got = "no readable file" if depth is None else f"{depth.dtype} {depth.shape}"
            raise RecordingError(f"{self.depth_file}: a depth image must be uint16 {expected}, got {got}")
        return depth.astype(np.float32) / 1000.0


@dataclass(frozen=True, eq=False)
class Pack:
    """A posed image pack; ``metric`` says that the poses are in metres."""

    name: str
    frames: tuple[PackFrame, ...]
    metric: bool

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def unit(self) -> str:
        """The unit of the poses, for people."""
        return "m" if self.metric else "pack units"

    def poses(self) -> FloatArray:
        """True camera to world of every frame, (N, 4, 4)."""
        return np.stack([frame.camera_to_world for frame in self.frames])


def load_pack(folder: str | Path, *, images: bool = True) -> Pack:
    """A pack from its folder, without the pixels.

    ``images`` False takes a pack whose images are not there, as that of a reconstructed recording. Raises
    RecordingError naming the file, the frame and what is wrong with it.
    """
    folder = Path(folder)
    path = folder / "cameras.json"
    if not path.is_file():
        raise RecordingError(f"{folder} is not a posed image pack: it has no cameras.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise RecordingError(f"{path}: 'frames' must be a list with at least one frame")
    loaded = tuple(_frame(folder, entry, f"{path}: frame {number}", images) for number, entry in enumerate(frames))
    return Pack(folder.resolve().name, loaded, str(content.get("scale", "")).startswith("metric"))


def _frame(folder: Path, entry: Any, where: str, images: bool) -> PackFrame:
    if not isinstance(entry, dict):
        raise RecordingError(f"{where} must be an object, got {entry!r}")
    name = _entry(entry, "file", where, "a text", lambda value: isinstance(value, str) and value)
    width, height = (
        _entry(entry, side, where, "a positive whole number", lambda value: type(value) is int and value > 0)
        for side in ("width", "height")
    )
    depth = entry.get("depth_mm")
    image_file = folder / name
    if images and not image_file.is_file():
        raise RecordingError(f"{where}: there is no image {image_file}")
    matrix = _matrix(entry, "K", (3, 3), where)
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise RecordingError(f"{where}: K must have positive focal lengths, got {matrix[0, 0]:g} and {matrix[1, 1]:g}")
    return PackFrame(
        name,
        image_file,
        Intrinsics.from_matrix(matrix, width, height, centres_at_integers=True),
        _rigid(_matrix(entry, "cam_to_world", (4, 4), where), where),
        folder / depth if isinstance(depth, str) else None,
    )


def _entry(entry: dict[str, Any], key: str, where: str, expected: str, good: Callable[[Any], object]) -> Any:
    if key not in entry or not good(entry[key]):
        raise RecordingError(f"{where}: {key!r} must be {expected}, got {entry.get(key)!r}")
    return entry[key]


def _matrix(entry: dict[str, Any], key: str, shape: tuple[int, int], where: str) -> FloatArray:
    try:
        matrix = np.asarray(entry.get(key), dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise RecordingError(f"{where}: {key!r} must be {shape[0]}x{shape[1]} finite numbers")
    return matrix


def _rigid(pose: FloatArray, where: str) -> FloatArray:
    rotation = pose[:3, :3]
    off = max(float(np.abs(rotation @ rotation.T - np.eye(3)).max()), float(np.abs(pose[3] - [0, 0, 0, 1]).max()))
    if off > _RIGID or np.linalg.det(rotation) < 0:
        raise RecordingError(f"{where}: 'cam_to_world' must be a rotation and a translation, it is {off:.3g} off")
    u, _, vt = np.linalg.svd(rotation)
    rigid = pose.copy()
    rigid[:3, :3] = u @ vt
    rigid[3] = (0, 0, 0, 1)
    return rigid
