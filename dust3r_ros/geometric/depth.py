"""Depth of every pixel from its flow and the relative pose, with its uncertainty, and the confidence made of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dust3r_ros.data import BoolArray, ByteImage, FloatArray, Intrinsics
from dust3r_ros.geometric.twoview import RelativePose
from dust3r_ros.geometry import pixel_rays

MAX_ROUND_TRIP_PX = 1.5
MAX_EPIPOLAR_PX = 1.5
MAX_RELATIVE_ERROR = 0.3
BASE_NOISE_PX = 0.25
GREY_NOISE = 3.0  # grey levels, appearance change included
CONFIDENCE_OF_ERROR = 0.2  # alpha in DUSt3R's loss, equation 4: conf = alpha / error minimises it
MAX_CONFIDENCE = 30.0


@dataclass(frozen=True, eq=False)
class DepthMap:
    """``depth`` (H, W) float64, z in units of the baseline, and ``confidence`` (H, W) float32; both 0 where unknown."""

    depth: FloatArray
    confidence: FloatArray


def epipolar_depth(
    pose: RelativePose, k: Intrinsics, k_other: Intrinsics, target: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Depth of each pixel of a view whose match in the other is at ``target`` (H, W, 2), in units of the baseline.

    The match is moved to the nearest point of its epipolar line, which is the least-squares solution for a point
    that stays on its own pixel's ray. Returns the depth (NaN behind a camera), how its logarithm changes with the
    match's position along the line (per other-image pixel), the match's distance to the line (pixels), and the line's
    unit direction in the other image (H, W, 2).
    """
    a = pixel_rays(k) @ pose.rotation.T
    t = pose.translation
    q = (target - (k_other.cx, k_other.cy)) / (k_other.fx, k_other.fy)
    line = np.cross(t, a)
    across = line[..., :2] / np.maximum(np.linalg.norm(line[..., :2], axis=-1, keepdims=True), 1e-12)
    along = np.stack([-across[..., 1], across[..., 0]], axis=-1)
    distance = ((q - a[..., :2] / a[..., 2:]) * across).sum(-1)
    q_u, a_u, t_u = (q * along).sum(-1), (a[..., :2] * along).sum(-1), along @ t[:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (t_u - q_u * t[2]) / (q_u * a[..., 2] - a_u)
        slope = np.abs(t[2] / (t_u - q_u * t[2]) + a[..., 2] / (q_u * a[..., 2] - a_u))
    in_front = np.isfinite(depth) & (depth > 0) & (depth * a[..., 2] + t[2] > 0)
    focal = k_other.focal_px
    return np.where(in_front, depth, np.nan), slope / focal, np.abs(distance) * focal, along


def texture_noise(grey: ByteImage, direction: FloatArray) -> FloatArray:
    """How well a match is told along a direction (H, W, 2), pixels: grey noise over the gradient in a 7x7 window."""
    gx = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8)
    gy = cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8)
    xx, xy, yy = (cv2.boxFilter(p, cv2.CV_32F, (7, 7)) for p in (gx * gx, gx * gy, gy * gy))
    dx, dy = direction[..., 0], direction[..., 1]
    energy = xx * dx**2 + 2 * xy * dx * dy + yy * dy**2
    return GREY_NOISE / np.sqrt(10 * np.maximum(energy, 1e-3))


def depth_from_flow(
    pose: RelativePose, k: Intrinsics, k_other: Intrinsics, grey: ByteImage, target: FloatArray, round_trip: FloatArray
) -> DepthMap:
    """Depth and confidence of a view whose pixels match ``target`` (H, W, 2) in the other with ``round_trip`` error."""
    depth, slope, epipolar_px, along = epipolar_depth(pose, k, k_other, target)
    back = pose.rotation.T[:2, :2]
    own_direction = along @ back.T
    own_direction /= np.maximum(np.linalg.norm(own_direction, axis=-1, keepdims=True), 1e-6)
    texture = texture_noise(grey, own_direction)
    noise_px = np.sqrt(BASE_NOISE_PX**2 + texture**2 + (round_trip / 2) ** 2 + epipolar_px**2 / 2)
    error = slope * noise_px
    with np.errstate(invalid="ignore"):
        good = np.isfinite(depth) & (round_trip < MAX_ROUND_TRIP_PX) & (epipolar_px < MAX_EPIPOLAR_PX)
        good &= (error < MAX_RELATIVE_ERROR) & _inside(target, k_other)
        confidence = np.where(good, np.minimum(CONFIDENCE_OF_ERROR / np.maximum(error, 1e-9), MAX_CONFIDENCE), 0)
    return DepthMap(np.where(good, depth, 0.0), confidence.astype(np.float32))


def _inside(target: FloatArray, k: Intrinsics) -> BoolArray:
    u, v = target[..., 0], target[..., 1]
    return (u >= 0) & (v >= 0) & (u <= k.width) & (v <= k.height)
