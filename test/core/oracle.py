"""A predictor that knows the truth: cameras inside a ball of radius 5, whose pixels tell which view they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.geometry import invert_pose, make_pose, pixel_rays, transform_points
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

HEIGHT, WIDTH, FOCAL_PX, RADIUS = 48, 64, 55.0, 5.0
INTRINSICS = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT)


def path(views: int) -> FloatArray:
    """Camera to world (N, 4, 4) along an arc, turning a little."""
    u = np.linspace(0, 1, views)
    centres = np.stack([2 * u - 1, 0.3 * np.sin(3 * u), -0.5 * u * u], axis=1)
    turns = Rotation.from_euler("yx", np.stack([-20 * u, 8 * u], axis=1), degrees=True).as_matrix()
    return np.stack([make_pose(turn, centre) for turn, centre in zip(turns, centres)])


def depth_of(pose: FloatArray) -> FloatArray:
    """True z-depth (H, W): where the pixels' rays meet the ball, squeezed along y so that nothing is symmetric."""
    squeeze = np.array([1.0, 1.4, 1.0])
    rays = (pixel_rays(INTRINSICS) @ pose[:3, :3].T) * squeeze
    centre = pose[:3, 3] * squeeze
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - RADIUS**2
    return (-b + np.sqrt(b * b - a * c)) / a


def image_of(number: int, pose: FloatArray) -> ByteImage:
    """A view's image: a texture on the ball, and the view's number in the first pixel."""
    world = transform_points(pose, pixel_rays(INTRINSICS) * depth_of(pose)[..., None])
    shade = 128 + 60 * np.sin(4 * world) + 40 * np.sin(11 * world[..., [1, 2, 0]] + 1)
    pixels = np.clip(shade, 0, 255).astype(np.uint8)
    pixels[0, 0] = number
    return pixels


@dataclass
class OraclePredictor(PairPredictor[int]):
    """True pointmaps; each pair has a scale of its own. Views in ``lost`` are predicted with no confidence."""

    poses: FloatArray
    lost: frozenset[int] = frozenset()

    @property
    def info(self) -> PredictorInfo:
        return PredictorInfo("oracle", True, "none", "cpu")

    @property
    def image_size(self) -> ImageSize:
        return ImageSize(WIDTH)

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> int:
        return int(image.pixels[0, 0, 0])

    def predict(self, pairs: Sequence[tuple[int, int]]) -> list[PairPrediction]:
        return [self._pair(i, j) for i, j in pairs]

    def _pair(self, i: int, j: int) -> PairPrediction:
        scale = 1.0 + 0.1 * ((3 * i + 5 * j) % 7)
        points = {k: pixel_rays(INTRINSICS) * depth_of(self.poses[k])[..., None] for k in (i, j)}
        j_in_i = transform_points(invert_pose(self.poses[i]) @ self.poses[j], points[j])
        confidence = np.full((HEIGHT, WIDTH), 0.0 if {i, j} & self.lost else 5.0, np.float32)
        return PairPrediction(
            (scale * points[i]).astype(np.float32), confidence, (scale * j_in_i).astype(np.float32), confidence
        )
