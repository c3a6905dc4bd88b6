"""What the page shows, and the pictures made of it. No server in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from matplotlib import colormaps
from scipy.spatial.transform import Rotation

from dust3r_ros.data import BoolArray, ByteImage, FloatArray, Intrinsics
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.upright import up_of

MOST_POINTS = 400_000  # sent to a browser; more are thinned evenly
FRUSTUM_PX = 160  # long side of the images in the cameras
_THUMBNAIL_PX = 320  # long side
_CELL_PX = 12


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


def thumbnail(image: ByteImage, long_side: int = _THUMBNAIL_PX) -> ByteImage:
    """The image no larger than ``long_side`` pixels."""
    scale = long_side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


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


def up_direction(scene: ViewedScene) -> FloatArray:
    """Up (3,) in the world."""
    if not scene.keyframes:
        return np.array([0.0, -1.0, 0.0])
    return up_of(np.stack([k.camera_to_world for k in scene.keyframes]), scene.cloud.points)


def quaternion_wxyz(rotation: FloatArray) -> FloatArray:
    """A rotation (3, 3) as w, x, y, z."""
    return np.roll(Rotation.from_matrix(rotation).as_quat(), 1)


def depth_picture(depth: FloatArray) -> ByteImage:
    """Depth (H, W) as colours, near is red; black where unknown. Its range is that of 95 % of the pixels."""
    known = np.isfinite(depth) & (depth > 0)
    return _coloured(np.where(known, 1 / np.where(known, depth, 1.0), 0.0), known, "turbo")


def confidence_picture(confidence: FloatArray) -> ByteImage:
    """Confidence (H, W) as colours, sure is bright; black where there is none."""
    known = np.isfinite(confidence) & (confidence > 0)
    return _coloured(np.where(known, np.log(np.where(known, confidence, 1.0)), 0.0), known, "viridis")


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
    picture = _coloured(np.where(known, matrix, 0.0), known, "RdYlGn_r")
    picture[~known] = 40
    cell = max(1, min(_CELL_PX, 1200 // count))
    return np.kron(picture, np.ones((cell, cell, 1), np.uint8)).astype(np.uint8)


def _coloured(values: FloatArray, known: BoolArray, name: str) -> ByteImage:
    if not known.any():
        return np.zeros((*values.shape, 3), np.uint8)
    low, high = np.percentile(values[known], (2.5, 97.5))
    level = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)
    colours = (255 * colormaps[name](level)[..., :3]).astype(np.uint8)
    colours[~known] = 0
    return np.asarray(colours, dtype=np.uint8)
