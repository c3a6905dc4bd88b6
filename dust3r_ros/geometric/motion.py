"""Which motion lies between two views, from sparse matches: general, rotation only, a plane, or none."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import BoolArray, FloatArray, PairState
from dust3r_ros.geometric.twoview import (
    VIRTUAL_FOCAL_PX,
    RelativePose,
    find_pose,
    homogeneous,
    refine_pose,
    sampson,
    triangulate,
)

TOLERANCE_PX = 1.5
NOISE_PX = 0.3
MIN_INLIERS = 25
MIN_INLIER_SHARE = 0.35
SURE_SHARE = 0.7
ROTATION_PX = 1.0  # of matches, 80 % closer than this under a rotation: no parallax
ROTATION_SHARE = 0.8
RELIEF = 0.8  # a motion whose cost is lower by this factor is the better explanation of a near-plane
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
    inside_i, inside_j = rays_i[inliers], rays_j[inliers]
    planes, on_plane = _plane_poses(inside_i, inside_j, pixel, seed)
    if on_plane < PLANE_SHARE:
        return Motion(PairState.GOOD, pose, inliers)
    pose = _resolve(pose, planes, inside_i, inside_j, pixel)
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


@dataclass(frozen=True, eq=False)
class _PlanePose:
    pose: RelativePose
    facing: float  # cosine between the plane's normal and camera i's axis


def _plane_poses(
    rays_i: FloatArray, rays_j: FloatArray, pixel: float, seed: int
) -> tuple[list[_PlanePose], float]:  # fmt: skip
    """The poses a homography between the rays allows (Malis and Vargas 2007), and the share of matches on the plane."""
    cv2.setRNGSeed(seed)
    homography, mask = cv2.findHomography(
        rays_i * VIRTUAL_FOCAL_PX, rays_j * VIRTUAL_FOCAL_PX, cv2.USAC_MAGSAC, TOLERANCE_PX * pixel * VIRTUAL_FOCAL_PX
    )
    if homography is None or mask is None:
        return [], 0.0
    pixels = np.diag([VIRTUAL_FOCAL_PX, VIRTUAL_FOCAL_PX, 1.0])
    _, rotations, translations, normals = cv2.decomposeHomographyMat(homography, pixels)
    poses = [
        _PlanePose(RelativePose(np.asarray(r, dtype=np.float64), t.ravel() / np.linalg.norm(t)), abs(float(n[2, 0])))
        for r, t, n in zip(rotations, translations, normals)
        if np.linalg.norm(t) > 0
    ]
    return poses, float(np.count_nonzero(mask) / len(rays_i))


def _resolve(
    general: RelativePose, planes: list[_PlanePose], rays_i: FloatArray, rays_j: FloatArray, pixel: float
) -> RelativePose:
    """One pose for matches that almost lie on a plane.

    Two motions explain a plane equally well, with its normal and the direction of motion exchanged. What relief there
    is decides; without any, the plane that faces the camera more is taken, as a wall filling the image does.
    """
    refined = [(p.facing, refine_pose(p.pose, rays_i, rays_j, NOISE_PX * pixel)) for p in planes]
    counts = [np.count_nonzero(_consistent(pose, rays_i, rays_j, pixel)) for _, pose in refined]
    possible = [r for r, count in zip(refined, counts) if count >= 0.98 * max(counts)]
    costs = [_cost(pose, rays_i, rays_j, pixel) for _, pose in possible]
    if not possible or _cost(general, rays_i, rays_j, pixel) < RELIEF * min(costs):
        return general
    tied = [r for r, cost in zip(possible, costs) if RELIEF * cost <= min(costs)]
    return max(tied, key=lambda r: r[0])[1]


def _cost(pose: RelativePose, rays_i: FloatArray, rays_j: FloatArray, pixel: float) -> float:
    residual = sampson(pose.essential, rays_i, rays_j) / (NOISE_PX * pixel)
    return float(np.log1p(residual**2).sum())
