"""What the page shows, and the pictures made of it. No server in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.upright import up_of
from dust3r_ros.pictures import shares

MOST_POINTS = 400_000  # sent to a browser; more are thinned evenly
FRUSTUM_PX = 160  # long side of the images in the cameras
_CELL_PX = 12
_GREEN_YELLOW_RED = ((0, 255, 165), (104, 255, 0), (55, 191, 38))  # red, green and blue of the three


@dataclass(frozen=True, eq=False)
class ViewedKeyframe:
    """One keyframe: its image (H, W, 3) uint8 RGB, pose (4, 4) camera to world, intrinsics for the original image, and,
    where they are known, depth and confidence (h, w), 0 where there is none.
    """

    name: str
    image: ByteImage
    camera_to_world: FloatArray
    intrinsics: Intrinsics
    depth: FloatArray | None = None
    confidence: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class ViewedScene:
    """All that is shown. ``edges`` maps pairs (i, j) of keyframes by their place to the residual of their alignment."""

    keyframes: Sequence[ViewedKeyframe] = ()
    cloud: PointCloud = field(default_factory=PointCloud.empty)
    edges: Mapping[tuple[int, int], float] = field(default_factory=dict)
    metric: bool = False


def shown_points(cloud: PointCloud, least_quantile: float, voxel: float, most: int = MOST_POINTS) -> PointCloud:
    """The points that are shown: confidence not below a quantile (0 to 1), one in each voxel of an edge (0: all), and
    no more than ``most``, evenly thinned. Each voxel shows its most confident point.
    """
    if least_quantile > 0 and len(cloud):
        cloud = cloud.take(cloud.confidence >= np.quantile(cloud.confidence, least_quantile))
    if voxel > 0 and len(cloud):
        order = np.argsort(-cloud.confidence, kind="stable")
        place = np.floor(cloud.points[order] / voxel).astype(np.int64)
        _, first = np.unique(place, axis=0, return_index=True)
        cloud = cloud.take(np.sort(order[first]))
    if len(cloud) > most:
        cloud = cloud.take(np.linspace(0, len(cloud) - 1, most).astype(np.intp))
    return cloud


def scene_reach(scene: ViewedScene) -> float:
    """A typical distance, world units: the median from the cameras' middle to the points; 1 without points."""
    if not len(scene.cloud):
        return 1.0
    centre = np.mean([k.camera_to_world[:3, 3] for k in scene.keyframes], axis=0) if scene.keyframes else 0.0
    sample = scene.cloud.points[:: max(1, len(scene.cloud) // 20_000)]
    reach = float(np.median(np.linalg.norm(sample - centre, axis=1)))
    return reach if reach > 0 else 1.0


def scene_middle(scene: ViewedScene) -> FloatArray:
    """Midway between the cameras and the points, (3,); the cameras' middle without points."""
    cameras = np.mean([k.camera_to_world[:3, 3] for k in scene.keyframes], axis=0)
    return (cameras + np.median(scene.cloud.points, axis=0)) / 2 if len(scene.cloud) else cameras


def scene_extent(scene: ViewedScene, middle: FloatArray) -> float:
    """How far all cameras and nine in ten points are from the middle at most; 1 where all is in one place."""
    cameras = np.array([k.camera_to_world[:3, 3] for k in scene.keyframes])
    farthest = float(np.linalg.norm(cameras - middle, axis=1).max())
    if len(scene.cloud):
        farthest = max(farthest, float(np.quantile(np.linalg.norm(scene.cloud.points - middle, axis=1), 0.9)))
    return farthest if farthest > 0 else 1.0


def up_direction(scene: ViewedScene) -> FloatArray:
    """Up (3,) in the world."""
    if not scene.keyframes:
        return np.array([0.0, -1.0, 0.0])
    return up_of(np.stack([k.camera_to_world for k in scene.keyframes]), scene.cloud.points)


def quaternion_wxyz(rotation: FloatArray) -> FloatArray:
    """A rotation (3, 3) as w, x, y, z."""
    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)


def graph_picture(keyframes: int, edges: Mapping[tuple[int, int], float]) -> ByteImage:
    """The scene graph as a matrix: row i, column j is the pair (i, j); green agrees with the scene, red does not; dark
    was not paired. The colours' range is that of the residuals.
    """
    count = max(1, keyframes)
    matrix = np.full((count, count), np.nan)
    for (i, j), residual in edges.items():
        if i < count and j < count:
            matrix[i, j] = residual
    known = np.isfinite(matrix)
    level = shares(np.where(known, matrix, 0.0), known)
    picture = np.stack([np.interp(level, (0, 0.5, 1), channel) for channel in _GREEN_YELLOW_RED], axis=-1)
    picture = np.where(known[..., None], picture, 40).astype(np.uint8)
    cell = max(1, min(_CELL_PX, 1200 // count))
    return np.kron(picture, np.ones((cell, cell, 1), np.uint8)).astype(np.uint8)
