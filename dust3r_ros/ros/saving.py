"""Saving the map on request, only ever inside the folder the node was configured with."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.mapping.export import CameraRecord, stamp_text, write_cameras_json, write_cloud, write_tum
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.map_frame import MapFrame


def folder_inside(root: str, asked: str) -> Path:
    """The folder ``asked`` for, which may be relative to ``root``; a new one named by the time when empty.

    Raises RosError when it lies outside ``root``, links followed.
    """
    top = Path(root).expanduser().resolve()
    name = asked or datetime.now(timezone.utc).strftime("%Y-%m-%d_%H-%M-%S")
    folder = (top / Path(name).expanduser()).resolve()
    if not folder.is_relative_to(top):
        raise RosError(f"path must lie inside map_folder ({top}), got {asked}")
    return folder


def save_map(reconstructor: Reconstructor, frame: MapFrame, intrinsics: Intrinsics | None, folder: Path) -> list[Path]:
    """Write ``cloud.ply``, ``trajectory.tum`` and ``cameras.json``, in ``frame``; the files written.

    ``intrinsics`` are the camera's for its original image, None when unknown: then there is no ``cameras.json``.
    Raises RosError for an empty map and ExportError when the system refuses.
    """
    cloud = frame.placed(reconstructor.map.cloud())
    trajectory = frame.path(reconstructor.trajectory())
    if not len(cloud):
        raise RosError("the map is empty: there is nothing to save")
    files = [folder / "cloud.ply", folder / "trajectory.tum"]
    write_cloud(cloud, files[0])
    write_tum(trajectory, files[1])
    if intrinsics is not None:
        files.append(folder / "cameras.json")
        cameras = [CameraRecord(stamp_text(stamp), intrinsics, pose) for stamp, pose in trajectory]
        write_cameras_json(cameras, files[2], metric=frame.metric)
    return files
