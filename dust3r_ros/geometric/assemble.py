"""From a pair's geometry to the predictor's answer: pointmaps in camera i's frame, with a consistent scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dust3r_ros.data import BoolArray, FloatArray, Intrinsics, PairPrediction, PairState
from dust3r_ros.geometric.depth import DepthMap
from dust3r_ros.geometric.pair import PairGeometry
from dust3r_ros.geometry import (
    backproject,
    invert_pose,
    make_pose,
    pixel_rays,
    project,
    transform_points,
    weighted_median,
)

MIN_COMMON = 200  # pixels
NO_PARALLAX_CONFIDENCE = 0.1


@dataclass(eq=False)
class ReferenceDepth:
    """A view's depth as its pairs so far know it, (H, W), 0 where unknown; the first pair's median depth is 1."""

    depth: FloatArray | None = None

    def scale_of(self, new: DepthMap) -> float:
        """The factor that brings a new depth map of the view to the reference's scale."""
        known = new.confidence > 0
        if self.depth is not None:
            common = known & (self.depth > 0)
            if np.count_nonzero(common) >= MIN_COMMON:
                ratio = np.log(self.depth[common] / new.depth[common])
                return float(np.exp(weighted_median(ratio, new.confidence[common])))
        return float(1 / np.median(new.depth[known]))

    def extend(self, scaled_depth: FloatArray, known: BoolArray) -> None:
        """Take over pixels that were not known yet."""
        if self.depth is None:
            self.depth = np.zeros(scaled_depth.shape, np.float32)
        self.depth = np.where((self.depth == 0) & known, scaled_depth, self.depth).astype(np.float32)


def directed_prediction(
    geometry: PairGeometry, k_i: Intrinsics, k_j: Intrinsics, reference: ReferenceDepth
) -> PairPrediction:
    """The pointmaps of both views in camera i's frame. Pixels of confidence 0 lie at the median depth (1 if unknown).

    A FAILED pair has confidence 0 everywhere. For ROTATION_ONLY the two camera centres coincide and all points
    lie at distance 1 from them: only the relative rotation means anything, and the confidence is low.
    """
    if geometry.pose is None:
        points_i, points_j = (backproject(np.ones((k.height, k.width)), k) for k in (k_i, k_j))
        return _prediction(
            points_i, np.zeros(points_i.shape[:2]), points_j, np.zeros(points_j.shape[:2]), geometry.state
        )
    if geometry.state is PairState.ROTATION_ONLY:
        return _without_parallax(geometry.pose.rotation, k_i, k_j)
    scale = reference.scale_of(geometry.depth_i)
    reference.extend(scale * geometry.depth_i.depth, geometry.depth_i.confidence > 0)
    j_to_i = invert_pose(make_pose(geometry.pose.rotation, scale * geometry.pose.translation))
    points_i = backproject(_without_holes(geometry.depth_i, scale), k_i)
    points_j = transform_points(j_to_i, backproject(_without_holes(geometry.depth_j, scale), k_j))
    return _prediction(points_i, geometry.depth_i.confidence, points_j, geometry.depth_j.confidence, geometry.state)


def _without_holes(depth: DepthMap, scale: float) -> FloatArray:
    known = depth.confidence > 0
    return scale * np.where(known, depth.depth, np.median(depth.depth[known]))


def _without_parallax(rotation: FloatArray, k_i: Intrinsics, k_j: Intrinsics) -> PairPrediction:
    """Both views' rays in camera i's frame, at distance 1: the same in both directions of the pair."""
    rays_i, rays_j = _unit(pixel_rays(k_i)), _unit(pixel_rays(k_j)) @ rotation
    conf_i = NO_PARALLAX_CONFIDENCE * _sees(k_j, rays_i @ rotation.T)
    conf_j = NO_PARALLAX_CONFIDENCE * _sees(k_i, rays_j)
    return _prediction(rays_i, conf_i, rays_j, conf_j, PairState.ROTATION_ONLY)


def _unit(rays: FloatArray) -> FloatArray:
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def _sees(k: Intrinsics, points: FloatArray) -> BoolArray:
    """Which camera-frame points (..., 3) fall into the image."""
    pixels = project(points, k)
    with np.errstate(invalid="ignore"):
        return (pixels >= 0).all(-1) & (pixels[..., 0] <= k.width) & (pixels[..., 1] <= k.height)


def _prediction(
    points_i: FloatArray, conf_i: FloatArray, points_j: FloatArray, conf_j: FloatArray, state: PairState
) -> PairPrediction:
    return PairPrediction(
        points_i.astype(np.float32), conf_i.astype(np.float32), points_j.astype(np.float32), conf_j.astype(np.float32),
        state,
    )  # fmt: skip
