"""Results to files: one function a format. Files appear whole or not at all. The only module that uses Open3D."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.data import BoolArray, FloatArray, Intrinsics, PosedView
from dust3r_ros.errors import ExportError
from dust3r_ros.files import replacing
from dust3r_ros.geometry import invert_pose, quaternion_xyzw
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.ply import parse_ply, ply_bytes

_TRUNCATION = 4.0  # voxels in front of and behind a surface that its distances are kept in
_SEEN = 0.5  # views, for a voxel to count: one


@dataclass(frozen=True, eq=False)
class CameraRecord:
    """One camera of a ``cameras.json``: ``intrinsics`` are for the image ``file``, (4, 4) ``camera_to_world``.

    ``depth_file``: a 16-bit PNG in millimetres that belongs to it, "" for none.
    """

    file: str
    intrinsics: Intrinsics
    camera_to_world: FloatArray
    depth_file: str = ""


def write_cloud(cloud: PointCloud, path: Path) -> None:
    """A cloud in the format its name says: ``.ply`` with confidence, or ``.pcd``, ``.xyzrgb`` and others by Open3D."""
    path = Path(path)
    if path.suffix.lower() == ".ply":
        with replacing(path) as scratch:
            scratch.write_bytes(ply_bytes(cloud))
        return
    o3d = _open3d(path)
    with replacing(path) as scratch:
        if not o3d.io.write_point_cloud(str(scratch), to_open3d(cloud)):
            raise ExportError(f"cannot write {path}: Open3D knows no point cloud format {path.suffix!r}")
        _check_whole(path, len(o3d.io.read_point_cloud(str(scratch)).points), len(cloud))


def read_cloud(path: Path) -> PointCloud:
    """A cloud from a file that ``write_cloud`` or another program wrote; what a format lacks is grey, confidence 1.

    Raises ExportError when the file is missing, damaged or holds no points.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"cannot read {path}: no such file")
    if path.suffix.lower() == ".ply":
        with path.open("rb") as file:
            return parse_ply(file, path)
    stored = _open3d(path).io.read_point_cloud(str(path))
    if not len(stored.points):
        raise ExportError(f"cannot read {path}: no points in it")
    points = np.asarray(stored.points, dtype=np.float32)
    colours = np.full((len(points), 3), 128, np.uint8)
    if stored.has_colors():
        colours = np.clip(np.asarray(stored.colors) * 255 + 0.5, 0, 255).astype(np.uint8)
    return PointCloud(points, colours, np.ones(len(points), np.float32))


def to_open3d(cloud: PointCloud) -> Any:
    """The cloud as an ``open3d.geometry.PointCloud``; the confidence is left behind."""
    o3d = _open3d(None)
    converted = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.points.astype(np.float64)))
    converted.colors = o3d.utility.Vector3dVector(cloud.colours / 255.0)
    return converted


def write_tum(trajectory: Sequence[tuple[int, FloatArray]], path: Path) -> None:
    """A path of (stamp_ns, camera_to_world (4, 4)) as TUM's lines ``seconds tx ty tz qx qy qz qw``."""
    lines = ["# timestamp tx ty tz qx qy qz qw\n"]
    for stamp_ns, pose in trajectory:
        values = (*pose[:3, 3], *quaternion_xyzw(pose[:3, :3]))
        lines.append(f"{stamp_text(stamp_ns)} {' '.join(f'{value:.9g}' for value in values)}\n")
    with replacing(path) as scratch:
        scratch.write_text("".join(lines), encoding="ascii")


def write_kitti(poses: Sequence[FloatArray], path: Path) -> None:
    """Poses (4, 4) camera to world as KITTI's lines: the first three rows of the matrix, row by row."""
    lines = [" ".join(f"{value:.9g}" for value in pose[:3].ravel()) + "\n" for pose in poses]
    with replacing(path) as scratch:
        scratch.write_text("".join(lines), encoding="ascii")


def stamp_text(stamp_ns: int) -> str:
    """Seconds with nine digits after the point, exact."""
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"


def write_cameras_json(cameras: Sequence[CameraRecord], path: Path, *, metric: bool = False) -> None:
    """Cameras in the form of a posed image pack: K with pixel centres at integers, poses camera to world."""
    frames = [
        {
            "file": camera.file,
            "width": camera.intrinsics.width,
            "height": camera.intrinsics.height,
            "K": camera.intrinsics.matrix(centres_at_integers=True).tolist(),
            "cam_to_world": np.asarray(camera.camera_to_world, dtype=np.float64).tolist(),
            **({"depth_mm": camera.depth_file} if camera.depth_file else {}),
        }
        for camera in cameras
    ]
    convention = (
        "OpenCV camera axes (x right, y down, z forward); cam_to_world; "
        "K in pixels of the named image, pixel centres at integers"
    )
    scale = "metric (m)" if metric else "arbitrary"
    write_json({"convention": convention, "scale": scale, "frames": frames}, path)


def write_mesh(views: Sequence[PosedView], masks: Sequence[BoolArray], voxel_edge: float, path: Path) -> int:
    """A surface through the depth images' ``masks`` (H, W) by truncated signed distances (Curless and Levoy, SIGGRAPH
    1996), in Open3D; the number of its triangles. ``voxel_edge`` is in world units.

    Raises ExportError without Open3D and when no surface is found.
    """
    o3d = _open3d(path)
    volume = o3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(o3d.core.float32, o3d.core.float32, o3d.core.float32),
        attr_channels=(1, 1, 3),
        voxel_size=voxel_edge,
    )
    for view, mask in zip(views, masks, strict=True):
        if mask.any():
            _integrate(o3d, volume, view, np.where(mask, view.estimate.depth, 0).astype(np.float32))
    if not volume.hashmap().size():
        raise ExportError(f"cannot write {path}: the depth images give no surface")
    mesh = volume.extract_triangle_mesh(weight_threshold=_SEEN).to_legacy()
    if not len(mesh.triangles):
        raise ExportError(f"cannot write {path}: the depth images give no surface")
    mesh.compute_vertex_normals()
    mesh.vertex_colors = o3d.utility.Vector3dVector(np.clip(np.asarray(mesh.vertex_colors), 0, 1))
    with replacing(path) as scratch:
        if not o3d.io.write_triangle_mesh(str(scratch), mesh):
            raise ExportError(f"cannot write {path}: Open3D knows no mesh format {path.suffix!r}")
        _check_whole(path, len(o3d.io.read_triangle_mesh(str(scratch)).triangles), len(mesh.triangles))
    return len(mesh.triangles)


def _check_whole(path: Path, read: int, written: int) -> None:
    """Open3D says nothing of a disk that became full."""
    if read != written:
        raise ExportError(f"cannot write {path}: only {read} of {written} were written (is the disk full?)")


def _integrate(o3d: Any, volume: Any, view: PosedView, depth: FloatArray) -> None:
    k = o3d.core.Tensor(view.estimate.intrinsics.matrix(centres_at_integers=True))
    world_to_camera = o3d.core.Tensor(invert_pose(view.camera_to_world))
    far = float(depth.max()) * 1.01
    image = o3d.t.geometry.Image(depth)
    colour = o3d.t.geometry.Image((view.image.pixels / 255.0).astype(np.float32))
    blocks = volume.compute_unique_block_coordinates(image, k, world_to_camera, 1.0, far, _TRUNCATION)
    volume.integrate(blocks, image, colour, k, world_to_camera, 1.0, far, _TRUNCATION)


def write_json(values: Any, path: Path) -> None:
    """Plain values as indented JSON; numbers that are not finite are refused, as JSON has none."""
    try:
        text = json.dumps(values, indent=1, allow_nan=False)
    except ValueError as error:
        raise ExportError(f"cannot write {path}: {error}") from error
    with replacing(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def _open3d(path: Path | None) -> Any:
    try:
        import open3d
    except ImportError as error:  # missing, or a system library that it needs is
        what = f"{path} needs Open3D" if path is not None else "Open3D is needed"
        raise ExportError(f"{what}, which cannot be loaded ({error})") from error
    return open3d
