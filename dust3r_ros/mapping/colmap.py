"""A reconstruction as a COLMAP model: cameras, images, points and their tracks, binary and as text.

Gaussian-splatting trainers start from it, and COLMAP itself can refine it. Pixel centres lie at integers + 0.5 and
camera axes are x right, y down, z forward in COLMAP too, so nothing is converted but the direction of the poses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import FloatArray, Intrinsics, PosedView
from dust3r_ros.errors import ExportError
from dust3r_ros.files import replacing
from dust3r_ros.geometry import invert_pose
from dust3r_ros.mapping.tracks import Tracks


def write_colmap(views: Sequence[PosedView], names: Sequence[str], tracks: Tracks, folder: Path) -> None:
    """The model's files (``cameras.bin``, ``images.bin``, ``points3D.bin``, the same as ``.txt``, ...) into a folder.

    ``names`` are the images' files, relative to the folder of images. Raises ExportError without pycolmap.
    """
    pycolmap = _pycolmap(folder)
    model = pycolmap.Reconstruction()
    cameras = _add_cameras(pycolmap, model, views)
    rows = _add_images(pycolmap, model, views, names, cameras, tracks)
    _add_points(pycolmap, model, tracks, rows)
    model.update_point_3d_errors()
    with tempfile.TemporaryDirectory() as scratch:
        model.write_binary(scratch)
        model.write_text(scratch)
        for written in sorted(Path(scratch).iterdir()):
            with replacing(folder / written.name) as place:
                place.write_bytes(written.read_bytes())


def _add_cameras(pycolmap: Any, model: Any, views: Sequence[PosedView]) -> dict[Intrinsics, int]:
    """One camera for all views of the same intrinsics; their numbers in the model."""
    numbers: dict[Intrinsics, int] = {}
    for view in views:
        k = view.intrinsics
        if k in numbers:
            continue
        numbers[k] = len(numbers) + 1
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=numbers[k], model="PINHOLE", width=k.width, height=k.height, params=[k.fx, k.fy, k.cx, k.cy]
            )
        )
    return numbers


def _add_images(
    pycolmap: Any, model: Any, views: Sequence[PosedView], names: Sequence[str], cameras: dict[Intrinsics, int],
    tracks: Tracks,
) -> NDArray[np.int64]:  # fmt: skip
    """The images with the observed pixels; for each observation its place among those of its image, (M,)."""
    rows = np.empty(len(tracks.view), np.int64)
    for at, (view, name) in enumerate(zip(views, names, strict=True)):
        mine = np.flatnonzero(tracks.view == at)
        rows[mine] = np.arange(len(mine))
        image = pycolmap.Image(
            name=name,
            keypoints=_original_pixels(view, tracks.pixel[mine]),
            camera_id=cameras[view.intrinsics],
            image_id=at + 1,
        )
        pose = pycolmap.Rigid3d(invert_pose(view.camera_to_world)[:3])
        model.add_image_with_trivial_frame(image, pose)
    return rows


def _original_pixels(view: PosedView, pixel: FloatArray) -> FloatArray:
    t = view.image.transform
    return (pixel - (t.offset_x, t.offset_y)) / (t.scale_x, t.scale_y)


def _add_points(pycolmap: Any, model: Any, tracks: Tracks, rows: NDArray[np.int64]) -> None:
    ends = np.searchsorted(tracks.point, np.arange(len(tracks.points) + 1))
    images, places = (tracks.view + 1).tolist(), rows.tolist()
    for number, (begin, end) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist())):
        elements = [pycolmap.TrackElement(images[m], places[m]) for m in range(begin, end)]
        model.add_point3D(tracks.points[number], pycolmap.Track(elements), tracks.colours[number])


def _pycolmap(path: Path) -> Any:
    try:
        import pycolmap
    except ImportError as error:
        raise ExportError(f"{path} needs pycolmap, which cannot be loaded ({error}): pip install pycolmap") from error
    return pycolmap
