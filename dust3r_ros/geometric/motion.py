"""Which motion lies between two views, from sparse matches: general, rotation only, a plane, or none."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import BoolArray, FloatArray, PairState
from dust3r_ros.geometric.twoview import RelativePose, find_pose, homogeneous, refine_pose, sampson, triangulate

TOLERANCE_PX = 1.5
NOISE_PX = 0.3
MIN_INLIERS = 20
MIN_INLIER_SHARE = 0.2
ROTATION_PX = 1.0  # of matches, 80 % closer than this under a rotation: no parallax
ROTATION_SHARE = 0.8
PLANE_SHARE = 0.95  # of the essential matrix' inliers, explained by a homography


@dataclass(frozen=True, eq=False)
class Motion:
    """The pose and the matches that agree with it, ``inliers`` (N,); without a pose the state is FAILED.

    For ROTATION_ONLY the pose's translation means nothing.
    """

    state: PairState
    pose: RelativePose | None
    inliers: BoolArray


def find_motion(rays_i: FloatArray, rays_j: FloatArray, pixel: float, seed: int) -> Motion:
    """Motion between two views from matched rays (N, 2); ``pixel`` is one pixel in ray units."""
    failed = Motion(PairState.FAILED, None, np.zeros(len(rays_i), dtype=bool))
    found = find_pose(rays_i, rays_j, TOLERANCE_PX * pixel, seed)
    if found is None:
        return failed
    pose, inliers = found
    rotation, still = fit_rotation(pose.rotation, rays_i, rays_j, pixel)
    enough = max(MIN_INLIERS, MIN_INLIER_SHARE * len(rays_i))
    if np.count_nonzero(inliers | still) < enough:
        return failed
    if np.count_nonzero(still) >= ROTATION_SHARE * np.count_nonzero(inliers | still):
        return Motion(PairState.ROTATION_ONLY, RelativePose(rotation, pose.translation), still)
    pose = refine_pose(pose, rays_i[inliers], rays_j[inliers], NOISE_PX * pixel)
    planes, on_plane = _plane_poses(rays_i[inliers], rays_j[inliers], pixel, seed)
    state = PairState.GOOD
    if on_plane >= PLANE_SHARE:
        state = PairState.PLANAR
        pose = _best_of([pose, *planes], rays_i[inliers], rays_j[inliers], pixel)
    inliers = _consistent(pose, rays_i, rays_j, pixel)
    if np.count_nonzero(inliers) < enough:
        return failed
    return Motion(state, refine_pose(pose, rays_i[inliers], rays_j[inliers], NOISE_PX * pixel), inliers)


def fit_rotation(
    start: FloatArray, rays_i: FloatArray, rays_j: FloatArray, pixel: float
) -> tuple[FloatArray, BoolArray]:
    """The rotation (3, 3) that best takes rays i to rays j, robustly, and the matches it explains (N,)."""
    a = homogeneous(rays_i) / np.linalg.norm(homogeneous(rays_i), axis=-1, keepdims=True)
    b = homogeneous(rays_j) / np.linalg.norm(homogeneous(rays_j), axis=-1, keepdims=True)
    rotation = start
    for _ in range(10):
        angle = np.linalg.norm(a @ rotation.T - b, axis=-1)
        scale = max(NOISE_PX * pixel, float(np.median(angle)))
        step, _ = Rotation.align_vectors(b, a @ rotation.T, weights=1 / (1 + (angle / scale) ** 2))
        rotation = step.as_matrix() @ rotation
    return rotation, np.linalg.norm(a @ rotation.T - b, axis=-1) < ROTATION_PX * pixel


def _consistent(pose: RelativePose, rays_i: FloatArray, rays_j: FloatArray, pixel: float) -> BoolArray:
    depth_i, depth_j = triangulate(pose, rays_i, rays_j)
    near = np.abs(sampson(pose.essential, rays_i, rays_j)) < TOLERANCE_PX * pixel
    return near & (depth_i > 0) & (depth_j > 0)


def _plane_poses(rays_i: FloatArray, rays_j: FloatArray, pixel: float, seed: int) -> tuple[list[RelativePose], float]:
    """The poses a homography between the rays allows (Malis and Vargas 2007), and the share of matches on the plane."""
    cv2.setRNGSeed(seed)
    homography, mask = cv2.findHomography(rays_i, rays_j, cv2.USAC_MAGSAC, TOLERANCE_PX * pixel)
    if homography is None or mask is None:
        return [], 0.0
    _, rotations, translations, _ = cv2.decomposeHomographyMat(homography, np.eye(3))
    poses = [
        RelativePose(np.asarray(r, dtype=np.float64), t.ravel() / np.linalg.norm(t))
        for r, t in zip(rotations, translations)
        if np.linalg.norm(t) > 0
    ]
    return poses, float(np.count_nonzero(mask) / len(rays_i))


def _best_of(poses: list[RelativePose], rays_i: FloatArray, rays_j: FloatArray, pixel: float) -> RelativePose:
    """The refined pose that explains most matches; a tie, as a plane allows, goes to the smaller rotation."""
    refined = [refine_pose(pose, rays_i, rays_j, NOISE_PX * pixel) for pose in poses]
    counts = np.array([np.count_nonzero(_consistent(pose, rays_i, rays_j, pixel)) for pose in refined])
    tied = [pose for pose, count in zip(refined, counts) if count >= 0.98 * counts.max()]
    return min(tied, key=lambda pose: Rotation.from_matrix(pose.rotation).magnitude())
