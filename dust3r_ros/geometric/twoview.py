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


def find_pose(rays_i: FloatArray, rays_j: FloatArray, tolerance: float, seed: int) -> tuple[RelativePose, BoolArray] | None:
    """Essential matrix by MAGSAC (Barath et al., CVPR 2020), decomposed by cheirality.

    ``rays_*`` (N, 2) matched; ``tolerance`` is the largest noise of an inlier in ray units. Returns the pose and the
    inliers (N,), or None when there is no consistent motion.
    """
    if len(rays_i) < 8:
        return None
    cv2.setRNGSeed(seed)
    essential, mask = cv2.findEssentialMat(
        rays_i, rays_j, np.eye(3), method=cv2.USAC_MAGSAC, prob=0.9999, threshold=tolerance, maxIters=MAX_CANDIDATES
    )
    if essential is None or essential.shape != (3, 3) or mask is None:
        return None
    inliers = mask.ravel().astype(bool)
    if np.count_nonzero(inliers) < 8:
        return None
    return decompose(essential, rays_i[inliers], rays_j[inliers]), inliers


def decompose(essential: FloatArray, rays_i: FloatArray, rays_j: FloatArray) -> RelativePose:
    """The one of the four poses of an essential matrix that puts most matches in front of both cameras."""
    first, second, direction = cv2.decomposeEssentialMat(essential)
    poses = [RelativePose(r, s * direction.ravel()) for r in (first, second) for s in (1.0, -1.0)]
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
    given = np.ones(len(rays_i)) if weights is None else weights
    for _ in range(REFINE_STEPS):
        residual, jacobian = _linearise(pose, rays_i, rays_j)
        scale = max(noise, 1.4826 * float(np.median(np.abs(residual))))
        weight = given / (1 + (residual / scale) ** 2)
        normal = (jacobian * weight) @ jacobian.T
        step = -np.linalg.solve(normal + 1e-9 * np.trace(normal) * np.eye(5), (jacobian * weight) @ residual)
        pose = perturb(pose, step)
        if np.abs(step).max() < 1e-7:
            break
    return pose


def perturb(pose: RelativePose, step: FloatArray) -> RelativePose:
    """A pose moved by (5,): a rotation vector (3), and the translation's turn in its tangent plane (2)."""
    rotation = Rotation.from_rotvec(step[:3]).as_matrix() @ pose.rotation
    translation = pose.translation + tangent_plane(pose.translation) @ step[3:]
    return RelativePose(rotation, translation / np.linalg.norm(translation))


def tangent_plane(direction: FloatArray) -> FloatArray:
    """Two unit vectors (3, 2) orthogonal to a direction (3,) and each other."""
    axis = np.eye(3)[np.argmin(np.abs(direction))]
    first = np.cross(direction, axis)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first)], axis=1)


def _linearise(pose: RelativePose, rays_i: FloatArray, rays_j: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Residuals (N,) and their derivatives (5, N) by central differences."""
    delta = 1e-6
    steps = np.concatenate([np.eye(5), -np.eye(5)]) * delta
    essentials = np.stack([pose.essential, *(perturb(pose, step).essential for step in steps)])
    values = sampson(essentials, rays_i, rays_j)
    return values[0], (values[1:6] - values[6:]) / (2 * delta)


def homogeneous(rays: FloatArray) -> FloatArray:
    """(..., 2) to (..., 3) with z = 1."""
    return np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)


def _cross(v: FloatArray) -> FloatArray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
