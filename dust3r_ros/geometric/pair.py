"""Dense geometry of one unordered pair of views."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairState
from dust3r_ros.geometric.depth import DepthMap, depth_from_flow
from dust3r_ros.geometric.epipolar import match_along_epipolar_lines
from dust3r_ros.geometric.matching import Matches, dense_flow, fill_holes, round_trip_error, target_pixels
from dust3r_ros.geometric.motion import NOISE_PX, find_motion
from dust3r_ros.geometric.twoview import RelativePose, refine_pose, sampson
from dust3r_ros.geometry import pixel_centres

MAX_DENSE = 3000
DENSE_WEIGHT = 0.5  # of all dense matches together, relative to the sparse ones
MIN_COVERED = 0.02  # of the image
MIN_FILLED = 0.15  # of the convex hull of the sparse matches


@dataclass(frozen=True, eq=False)
class PairGeometry:
    """Two views, ``x_j = R x_i + s t``: depths of both in units of the baseline. ``pose`` is None when FAILED."""

    state: PairState
    pose: RelativePose | None
    depth_i: DepthMap
    depth_j: DepthMap

    def swapped(self) -> PairGeometry:
        """The same pair with i and j exchanged."""
        pose = None if self.pose is None else self.pose.inverse()
        return PairGeometry(self.state, pose, self.depth_j, self.depth_i)


@dataclass(frozen=True, eq=False)
class _Flows:
    flow_i: FloatArray
    flow_j: FloatArray
    error_i: FloatArray
    error_j: FloatArray


def to_rays(points: FloatArray, k: Intrinsics) -> FloatArray:
    """Pixels (N, 2) as rays (N, 2): relative to the principal point, over the focal."""
    return (points - (k.cx, k.cy)) / (k.fx, k.fy)


def solve_pair(
    grey_i: ByteImage, grey_j: ByteImage, k_i: Intrinsics, k_j: Intrinsics, matches: Matches, seed: int
) -> PairGeometry:
    """Pose and both depth maps of a pair of grey images (H, W), from its sparse matches."""
    pixel = 1 / np.sqrt(k_i.focal_px * k_j.focal_px)
    motion = find_motion(to_rays(matches.points_i, k_i), to_rays(matches.points_j, k_j), pixel, seed)
    if motion.pose is None or motion.state is PairState.ROTATION_ONLY:
        return PairGeometry(motion.state, motion.pose, _no_depth(k_i), _no_depth(k_j))
    sparse = matches.select(motion.inliers)
    flows = _dense_matches(grey_i, grey_j, k_i, k_j, motion.pose, sparse)
    pose = _refine_densely(motion.pose, flows, grey_i, sparse, k_i, k_j, pixel)
    depth_i = depth_from_flow(pose, k_i, k_j, grey_i, target_pixels(flows.flow_i), flows.error_i)
    depth_j = depth_from_flow(pose.inverse(), k_j, k_i, grey_j, target_pixels(flows.flow_j), flows.error_j)
    if not (_is_dense(depth_i, sparse.points_i) and _is_dense(depth_j, sparse.points_j)):
        return PairGeometry(PairState.FAILED, None, _no_depth(k_i), _no_depth(k_j))
    return PairGeometry(motion.state, pose, depth_i, depth_j)


def _dense_matches(
    grey_i: ByteImage, grey_j: ByteImage, k_i: Intrinsics, k_j: Intrinsics, pose: RelativePose, sparse: Matches
) -> _Flows:
    """Epipolar stereo finds the matches, optical flow from there makes them sub-pixel and fills small gaps."""
    rays_i, rays_j = to_rays(sparse.points_i, k_i), to_rays(sparse.points_j, k_j)
    seed_i, seed_j = match_along_epipolar_lines(grey_i, grey_j, k_i, k_j, pose, rays_i, rays_j)
    flow_i = dense_flow(grey_i, grey_j, fill_holes(seed_i.flow, seed_i.valid))
    flow_j = dense_flow(grey_j, grey_i, fill_holes(seed_j.flow, seed_j.valid))
    return _Flows(flow_i, flow_j, round_trip_error(flow_i, flow_j), round_trip_error(flow_j, flow_i))


def _refine_densely(
    pose: RelativePose, flows: _Flows, grey_i: ByteImage, sparse: Matches, k_i: Intrinsics, k_j: Intrinsics,
    pixel: float,
) -> RelativePose:  # fmt: skip
    """The pose that fits the sparse matches and the flow of well-textured pixels together."""
    dense = _good_flow(pose, flows, grey_i, k_i, k_j, pixel)
    if len(dense) < 100:
        return pose
    rays_i = to_rays(np.concatenate([sparse.points_i, dense.points_i]), k_i)
    rays_j = to_rays(np.concatenate([sparse.points_j, dense.points_j]), k_j)
    share = DENSE_WEIGHT * max(len(sparse), 100) / len(dense)
    weights = np.concatenate([np.ones(len(sparse)), np.full(len(dense), share)])
    return refine_pose(pose, rays_i, rays_j, NOISE_PX * pixel, weights)


def _good_flow(
    pose: RelativePose, flows: _Flows, grey_i: ByteImage, k_i: Intrinsics, k_j: Intrinsics, pixel: float
) -> Matches:
    """Flow of pixels that are textured in both directions, agree both ways and with the pose; a few thousand."""
    corner = cv2.cornerMinEigenVal(grey_i, 7)
    candidates = np.flatnonzero((flows.error_i < 0.7) & (corner > np.median(corner)))
    source = pixel_centres(*grey_i.shape).reshape(-1, 2)[candidates]
    target = source + flows.flow_i.reshape(-1, 2)[candidates]
    distance = np.abs(sampson(pose.essential, to_rays(source, k_i), to_rays(target, k_j)))
    keep = np.flatnonzero(distance < 1.5 * pixel)
    keep = keep[:: max(1, len(keep) // MAX_DENSE)]
    return Matches(source[keep], target[keep])


def _is_dense(depth: DepthMap, points: FloatArray) -> bool:
    """Whether the dense matching bears out the sparse one: false motions have depth almost nowhere."""
    area = cv2.contourArea(cv2.convexHull(points.astype(np.float32)))
    return bool(np.count_nonzero(depth.confidence) >= max(MIN_COVERED * depth.depth.size, MIN_FILLED * area))


def _no_depth(k: Intrinsics) -> DepthMap:
    return DepthMap(np.zeros((k.height, k.width)), np.zeros((k.height, k.width), np.float32))
