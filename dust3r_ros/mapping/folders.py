"""Folders that other programs start from: images with depth, and nerfstudio's ``transforms.json``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import BoolArray, ByteImage, FloatArray, Intrinsics, PosedView
from dust3r_ros.errors import ExportError
from dust3r_ros.files import replacing
from dust3r_ros.mapping.export import CameraRecord, write_cameras_json, write_json

UNITS_A_STEP = 1000  # a 16-bit depth image counts thousandths of the world's unit: millimetres where it is metric
_JPEG_QUALITY = 95
_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes x right, y up, z backward


def write_image(image: ByteImage, path: Path) -> None:
    """(H, W, 3) RGB as JPEG or PNG, by the name."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    _encode(image[..., ::-1], path, quality)


def write_depth_pack(
    views: Sequence[PosedView], masks: Sequence[BoolArray], names: Sequence[str], folder: Path, *, metric: bool
) -> None:
    """A posed image pack of the prepared images with their depth, all of one size a view.

    Of each view ``NAME.jpg``, ``NAME.png`` (16-bit depth, thousandths of the world's unit, 0 = none) and ``NAME.npy``
    (float32 depth in the world's unit, exact); ``cameras.json`` has K and pose. Only pixels of the ``masks`` (H, W)
    have depth.
    """
    cameras = []
    for view, mask, name in zip(views, masks, names, strict=True):
        depth = np.where(mask, view.estimate.depth, 0).astype(np.float32)
        write_image(view.image.pixels, folder / f"{name}.jpg")
        steps = np.rint(depth.astype(np.float64) * UNITS_A_STEP)
        _encode(np.where(steps <= np.iinfo(np.uint16).max, steps, 0).astype(np.uint16), folder / f"{name}.png")
        with replacing(folder / f"{name}.npy") as scratch:
            np.save(scratch, depth)
        cameras.append(CameraRecord(f"{name}.jpg", view.estimate.intrinsics, view.camera_to_world, f"{name}.png"))
    write_cameras_json(cameras, folder / "cameras.json", metric=metric)


def write_exr(depth: FloatArray, path: Path) -> None:
    """Depth (H, W) as the channel Z of an OpenEXR image, float32 in the world's unit, 0 where there is none.

    Raises ExportError without OpenEXR.
    """
    try:
        openexr = importlib.import_module("OpenEXR")
    except ImportError as error:
        raise ExportError(f"{path} needs OpenEXR, which cannot be loaded ({error}): pip install OpenEXR") from error
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
    with replacing(path) as scratch, openexr.File(header, {"Z": np.ascontiguousarray(depth, np.float32)}) as file:
        try:
            file.write(str(scratch))
        except RuntimeError as error:  # a full disk
            raise ExportError(f"cannot write {path}: {' '.join(str(error).split())}") from error


def write_transforms(views: Sequence[PosedView], files: Sequence[str], path: Path, *, cloud_file: str = "") -> None:
    """Nerfstudio's and instant-ngp's ``transforms.json``: pinholes, camera to world in OpenGL axes.

    ``files`` are the images and ``cloud_file`` the points to start from, relative to the file's folder. The world is
    that of the other exports. nerfstudio puts pixel centres at integers + 0.5, as this package does.
    """
    shared = len({view.intrinsics for view in views}) == 1
    frames = [
        {
            "file_path": file,
            "transform_matrix": (view.camera_to_world @ _TO_OPENGL).tolist(),
            **({} if shared else _pinhole(view.intrinsics)),
        }
        for view, file in zip(views, files, strict=True)
    ]
    whole: dict[str, Any] = {"camera_model": "PINHOLE", **(_pinhole(views[0].intrinsics) if shared else {})}
    if cloud_file:
        whole["ply_file_path"] = cloud_file
    write_json({**whole, "frames": frames}, path)


def _pinhole(k: Intrinsics) -> dict[str, float]:
    return {"fl_x": k.fx, "fl_y": k.fy, "cx": k.cx, "cy": k.cy, "w": k.width, "h": k.height}


def _encode(pixels: NDArray[Any], path: Path, settings: Sequence[int] = ()) -> None:
    good, data = cv2.imencode(path.suffix, pixels, list(settings))
    if not good:
        raise ExportError(f"cannot write {path}: OpenCV cannot encode it")
    with replacing(path) as scratch:
        scratch.write_bytes(data.tobytes())
