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
MIN_INLIERS = 25
MIN_INLIER_SHARE = 0.35
SURE_SHARE = 0.7
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
    pose = _general_pose(rays_i, rays_j, pixel, seed)
    if pose is None:
        return _failed(len(rays_i))
    inliers = _consistent(pose, rays_i, rays_j, pixel)
    rotation, still = fit_rotation(pose.rotation, rays_i, rays_j, pixel)
    enough = max(MIN_INLIERS, MIN_INLIER_SHARE * len(rays_i))
    if np.count_nonzero(inliers | still) < enough:
        return _failed(len(rays_i))
    if np.count_nonzero(still) >= ROTATION_SHARE * np.count_nonzero(inliers | still):
        return Motion(PairState.ROTATION_ONLY, RelativePose(rotation, pose.translation), still)
    if np.count_nonzero(inliers) < enough:
        return _failed(len(rays_i))
    planes, on_plane = _plane_poses(rays_i[inliers], rays_j[inliers], pixel, seed)
    if on_plane < PLANE_SHARE:
        return Motion(PairState.GOOD, pose, inliers)
    pose = _best_of([pose, *planes], rays_i[inliers], rays_j[inliers], pixel)
    return Motion(PairState.PLANAR, pose, _consistent(pose, rays_i, rays_j, pixel))


def _failed(count: int) -> Motion:
    return Motion(PairState.FAILED, None, np.zeros(count, dtype=bool))


def _general_pose(rays_i: FloatArray, rays_j: FloatArray, pixel: float, seed: int) -> RelativePose | None:
    """The refined pose with most consistent matches; where few are, a second estimator gets its chance."""
    best, most = None, -1
    for method in (cv2.USAC_MAGSAC, cv2.USAC_ACCURATE):
        found = find_pose(rays_i, rays_j, TOLERANCE_PX * pixel, seed, method)
        if found is None:
            continue
        pose, inliers = found
        for _ in range(2):
            pose = refine_pose(pose, rays_i[inliers], rays_j[inliers], NOISE_PX * pixel)
            inliers = np.abs(sampson(pose.essential, rays_i, rays_j)) < TOLERANCE_PX * pixel
        count = int(np.count_nonzero(_consistent(pose, rays_i, rays_j, pixel)))
        if count > most:
            best, most = pose, count
        if most > SURE_SHARE * len(rays_i):
            break
    return best


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
