"""Rigid and similarity transforms, projection and the closed-form estimators the rest is built on. NumPy, float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import FloatArray, Intrinsics

AnySim3 = TypeVar("AnySim3", bound="Sim3")


@dataclass(frozen=True, eq=False)
class Sim3:
    """What one similarity and a stack of them share: scale (...,), rotation (..., 3, 3), translation (..., 3)."""

    scale: Any
    rotation: FloatArray
    translation: FloatArray

    def compose(self: AnySim3, inner: AnySim3) -> AnySim3:
        """The transform that applies ``inner`` first, then this one."""
        turned = np.einsum("...ij,...j->...i", self.rotation, inner.translation)
        return replace(
            self,
            scale=self.scale * inner.scale,
            rotation=self.rotation @ inner.rotation,
            translation=np.asarray(self.scale)[..., None] * turned + self.translation,
        )

    def inverse(self: AnySim3) -> AnySim3:
        back = np.swapaxes(self.rotation, -1, -2)
        turned = np.einsum("...ij,...j->...i", back, self.translation)
        return replace(
            self, scale=1 / self.scale, rotation=back, translation=-turned / np.asarray(self.scale)[..., None]
        )


@dataclass(frozen=True, eq=False)
class Similarity(Sim3):
    """``y = scale * rotation @ x + translation``: a Sim(3) transform; ``rotation`` (3, 3), ``translation`` (3,)."""

    scale: float

    @classmethod
    def identity(cls) -> Similarity:
        return cls(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: FloatArray) -> FloatArray:
        """Transformed points, (..., 3)."""
        return self.scale * (points @ self.rotation.T) + self.translation

    def apply_to_pose(self, camera_to_world: FloatArray) -> FloatArray:
        """A camera's pose (..., 4, 4) in the transformed world; stays rigid, its centre is mapped."""
        moved = np.array(camera_to_world, dtype=np.float64)
        moved[..., :3, :3] = self.rotation @ camera_to_world[..., :3, :3]
        moved[..., :3, 3] = self.apply(camera_to_world[..., :3, 3])
        return moved

    def matrix(self) -> FloatArray:
        """(4, 4) for homogeneous points: ``[[scale * rotation, translation], [0, 1]]``."""
        return make_pose(self.scale * self.rotation, self.translation)

    @classmethod
    def from_matrix(cls, matrix: FloatArray) -> Similarity:
        """The similarity whose ``matrix()`` this is, (4, 4)."""
        scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
        return cls(scale, matrix[:3, :3] / scale, np.array(matrix[:3, 3]))

    @classmethod
    def between_poses(cls, source: FloatArray, target: FloatArray, scale: float = 1.0) -> Similarity:
        """The similarity of that scale that takes one pose (4, 4) to another."""
        rotation = target[:3, :3] @ source[:3, :3].T
        return cls(scale, rotation, target[:3, 3] - scale * rotation @ source[:3, 3])


def pixel_centres(height: int, width: int) -> FloatArray:
    """Pixel centre coordinates (H, W, 2) as (u, v); the first pixel's centre is (0.5, 0.5)."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([u, v], axis=-1)


def pixel_rays(intrinsics: Intrinsics) -> FloatArray:
    """Rays (H, W, 3) with z = 1 through every pixel centre, camera frame."""
    uv = pixel_centres(intrinsics.height, intrinsics.width)
    x = (uv[..., 0] - intrinsics.cx) / intrinsics.fx
    y = (uv[..., 1] - intrinsics.cy) / intrinsics.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def backproject(depth: FloatArray, intrinsics: Intrinsics) -> FloatArray:
    """Points (H, W, 3) in the camera frame from z-depth (H, W), in depth's unit."""
    return pixel_rays(intrinsics) * np.asarray(depth)[..., None]


def project(points: FloatArray, intrinsics: Intrinsics) -> FloatArray:
    """Pixel coordinates (..., 2) of camera-frame points (..., 3); NaN where z <= 0."""
    z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
    u = intrinsics.fx * points[..., 0] / z + intrinsics.cx
    v = intrinsics.fy * points[..., 1] / z + intrinsics.cy
    return np.stack([u, v], axis=-1)


def transform_points(pose: FloatArray, points: FloatArray) -> FloatArray:
    """Points (..., 3) through a rigid transform (4, 4)."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def make_pose(rotation: FloatArray, translation: FloatArray) -> FloatArray:
    """(4, 4) from a rotation (3, 3) and a translation (3,)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = translation
    return pose


def invert_pose(pose: FloatArray) -> FloatArray:
    """Inverse of rigid transforms (..., 4, 4)."""
    inverse = np.zeros_like(pose, dtype=np.float64)
    back = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = back
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", back, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def rotation_angle_deg(rotation: FloatArray) -> FloatArray:
    """Angle of rotations (..., 3, 3), degrees; exact for small angles too."""
    flat = np.asarray(rotation, dtype=np.float64).reshape(-1, 3, 3)
    angles = np.degrees(Rotation.from_matrix(flat).magnitude())
    return angles.reshape(np.shape(rotation)[:-2])


def quaternion_xyzw(rotation: FloatArray) -> FloatArray:
    """Unit quaternions (..., 4) as x, y, z, w from rotations (..., 3, 3)."""
    return Rotation.from_matrix(rotation).as_quat()


def rotation_from_quaternion(xyzw: FloatArray) -> FloatArray:
    """Rotations (..., 3, 3) from quaternions (..., 4) as x, y, z, w; they need not be unit."""
    return Rotation.from_quat(xyzw).as_matrix()


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """The value (N,) at which half of the weight (N,) is reached; N > 0."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, 0.5 * total[-1])]])


def procrustes(source: FloatArray, target: FloatArray, weights: FloatArray | None = None) -> Similarity:
    """The similarity that best maps ``source`` (N, 3) onto ``target`` (N, 3), weighted least squares.

    Closed form by Umeyama, PAMI 1991, equations 34 to 43, with weights (N,) >= 0. Raises ValueError when
    fewer than three points have weight or all coincide.
    """
    source = np.asarray(source, dtype=np.float64)
    target = np.asarray(target, dtype=np.float64)
    w = np.ones(len(source)) if weights is None else np.asarray(weights, dtype=np.float64)
    if np.count_nonzero(w > 0) < 3:
        raise ValueError(f"procrustes needs at least 3 points with weight, got {np.count_nonzero(w > 0)}")
    w = w / w.sum()
    mean_source, mean_target = w @ source, w @ target
    centred_source, centred_target = source - mean_source, target - mean_target
    variance = float(w @ (centred_source**2).sum(axis=1))
    if not variance > 0:
        raise ValueError("procrustes needs points that do not all coincide")
    u, singular, vt = np.linalg.svd((centred_target * w[:, None]).T @ centred_source)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / variance)
    return Similarity(scale, rotation, mean_target - scale * rotation @ mean_source)
