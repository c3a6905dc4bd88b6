"""Relative pose of two calibrated views: robust estimate, refinement, and what kind of motion it is.

Rays are (N, 2) image coordinates divided by the focal, ``(u - cx) / fx, (v - cy) / fy``: one unit is one focal
length. A relative pose takes points from camera i's frame to camera j's: ``x_j = R x_i + t`` with ``|t| = 1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import BoolArray, FloatArray

MAX_CANDIDATES = 10_000
VIRTUAL_FOCAL_PX = 500.0  # OpenCV's robust estimators are tuned for coordinates in pixels, not in focal lengths
REFINE_STEPS = 10


@dataclass(frozen=True, eq=False)
class RelativePose:
    """``x_j = rotation @ x_i + translation``; rotation (3, 3), translation (3,) of length 1."""

    rotation: FloatArray
    translation: FloatArray

    @property
    def essential(self) -> FloatArray:
        """E (3, 3) with ``x_j^T E x_i = 0``."""
        return _cross(self.translation) @ self.rotation

    def inverse(self) -> RelativePose:
        """The pose that takes points from camera j's frame to camera i's."""
        return RelativePose(self.rotation.T, -self.rotation.T @ self.translation)


def find_pose(
    rays_i: FloatArray, rays_j: FloatArray, tolerance: float, seed: int, method: int = cv2.USAC_MAGSAC
) -> tuple[RelativePose, BoolArray] | None:
    """Essential matrix by MAGSAC (Barath et al., CVPR 2020) or another of OpenCV's methods, decomposed by cheirality.

    ``rays_*`` (N, 2) matched; ``tolerance`` is the largest noise of an inlier in ray units. Returns the pose and the
    inliers (N,), or None when there is no consistent motion.
    """
    if len(rays_i) < 8:
        return None
    cv2.setRNGSeed(seed)
    pixels = np.diag([VIRTUAL_FOCAL_PX, VIRTUAL_FOCAL_PX, 1.0])
    essential, mask = cv2.findEssentialMat(
        rays_i * VIRTUAL_FOCAL_PX, rays_j * VIRTUAL_FOCAL_PX, pixels, method=method, prob=0.9999,
        threshold=tolerance * VIRTUAL_FOCAL_PX, maxIters=MAX_CANDIDATES,
    )  # fmt: skip
    if essential is None or essential.shape != (3, 3) or mask is None:
        return None
    inliers = mask.ravel().astype(bool)
    if np.count_nonzero(inliers) < 8:
        return None
    return decompose(np.asarray(essential, dtype=np.float64), rays_i[inliers], rays_j[inliers]), inliers


def decompose(essential: FloatArray, rays_i: FloatArray, rays_j: FloatArray) -> RelativePose:
    """The one of the four poses of an essential matrix that puts most matches in front of both cameras."""
    first, second, direction = cv2.decomposeEssentialMat(essential)
    poses = [
        RelativePose(np.asarray(r, dtype=np.float64), s * np.asarray(direction, dtype=np.float64).ravel())
        for r in (first, second)
        for s in (1.0, -1.0)
    ]
    counts = []
    for pose in poses:
        depth_i, depth_j = triangulate(pose, rays_i, rays_j)
        counts.append(np.count_nonzero((depth_i > 0) & (depth_j > 0)))
    return poses[int(np.argmax(counts))]


def triangulate(pose: RelativePose, rays_i: FloatArray, rays_j: FloatArray) -> tuple[FloatArray, FloatArray]:
    """z-depths (N,) along both rays at their closest approach, in units of the baseline; inf for parallel rays."""
    a = homogeneous(rays_i) @ pose.rotation.T
    b = homogeneous(rays_j)
    t = pose.translation
    aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
    at, bt = a @ t, b @ t
    with np.errstate(divide="ignore", invalid="ignore"):
        det = aa * bb - ab * ab
        depth_i = (ab * bt - bb * at) / det
        depth_j = (aa * bt - ab * at) / det
    return np.where(det > 1e-18, depth_i, np.inf), np.where(det > 1e-18, depth_j, np.inf)


def sampson(essential: FloatArray, rays_i: FloatArray, rays_j: FloatArray) -> FloatArray:
    """Signed first-order distance to the epipolar constraint, ray units: (..., N) for essentials (..., 3, 3)."""
    x, y = homogeneous(rays_i), homogeneous(rays_j)
    line_j = x @ np.swapaxes(essential, -1, -2)
    line_i = y @ essential
    norm = (line_j[..., :2] ** 2).sum(-1) + (line_i[..., :2] ** 2).sum(-1)
    return (line_j * y).sum(-1) / np.sqrt(np.maximum(norm, 1e-18))


def refine_pose(
    pose: RelativePose, rays_i: FloatArray, rays_j: FloatArray, noise: float, weights: FloatArray | None = None
) -> RelativePose:
    """Robust least squares on the Sampson distance over the five degrees of freedom (Gauss-Newton, Cauchy weights).

    ``noise`` is the least scale of the residuals, ray units; larger noise is estimated from the residuals.
    """
    rotations, translations = refine_poses(
        pose.rotation[None], pose.translation[None], rays_i[None], rays_j[None], np.array([noise]), weights
    )
    return RelativePose(rotations[0], translations[0])


def refine_poses(
    rotations: FloatArray, translations: FloatArray, rays_i: FloatArray, rays_j: FloatArray, noise: FloatArray,
    weights: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """``refine_pose`` for G poses at once, each on its own rays (G, N, 2), with noise (G,)."""
    given = np.ones(rays_i.shape[1]) if weights is None else weights
    for _ in range(REFINE_STEPS):
        residual, jacobian = _linearise(rotations, translations, rays_i, rays_j)
        scale = np.maximum(noise, 1.4826 * np.median(np.abs(residual), axis=1))
        weight = given / (1 + (residual / scale[:, None]) ** 2)
        weighted = jacobian * weight[:, None]
        normal = weighted @ np.swapaxes(jacobian, 1, 2)
        damping = 1e-9 * np.trace(normal, axis1=1, axis2=2) + 1e-18
        normal += damping[:, None, None] * np.eye(5)
        step = -np.linalg.solve(normal, (weighted @ residual[..., None]))[..., 0]
        rotations, translations = _moved(rotations, translations, step)
        if np.abs(step).max() < 1e-6:
            break
    return rotations, translations


def tangent_plane(direction: FloatArray) -> FloatArray:
    """Two unit vectors (3, 2) orthogonal to a direction (3,) and each other."""
    axis = np.eye(3)[np.argmin(np.abs(direction))]
    first = np.cross(direction, axis)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first)], axis=1)


def _linearise(
    rotations: FloatArray, translations: FloatArray, rays_i: FloatArray, rays_j: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Residuals (G, N) and their derivatives (G, 5, N), by central differences along the essential's tangents."""
    delta = 1e-6
    essential = _cross(translations) @ rotations
    turned = _cross(translations)[:, None] @ _cross(np.eye(3)) @ rotations[:, None]
    moved = _cross(np.swapaxes(_tangent_planes(translations), 1, 2)) @ rotations[:, None]
    steps = delta * np.concatenate([turned, moved], axis=1)
    essentials = np.concatenate([essential[:, None], essential[:, None] + steps, essential[:, None] - steps], axis=1)
    values = sampson(essentials, rays_i[:, None], rays_j[:, None])
    return values[:, 0], (values[:, 1:6] - values[:, 6:]) / (2 * delta)


def _moved(rotations: FloatArray, translations: FloatArray, step: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Poses moved by (G, 5): a rotation vector (3), and the translation's turn in its tangent plane (2)."""
    rotations = Rotation.from_rotvec(step[:, :3]).as_matrix() @ rotations
    translations = translations + (_tangent_planes(translations) @ step[:, 3:, None])[..., 0]
    return rotations, translations / np.linalg.norm(translations, axis=1, keepdims=True)


def _tangent_planes(directions: FloatArray) -> FloatArray:
    return np.stack([tangent_plane(direction) for direction in directions])


def homogeneous(rays: FloatArray) -> FloatArray:
    """(..., 2) to (..., 3) with z = 1."""
    return np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)


def _cross(v: FloatArray) -> FloatArray:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = np.moveaxis(np.asarray(v), -1, 0)
    zero = np.zeros_like(x)
    return np.stack(
        [np.stack([zero, -z, y], axis=-1), np.stack([z, zero, -x], axis=-1), np.stack([-y, x, zero], axis=-1)], axis=-2
    )
