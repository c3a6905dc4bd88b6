"""Depth of every pixel, in closed form, from all predictions of it: own-frame and as seen from other cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.model import CUTOFF, Noise
from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.geometry import pixel_rays

PASSES = 2
F32 = np.float32
# In world units, whose size is about the first view's depth. What lies beyond is no measurement, and its square would
# not fit into float32.
NEAREST, FARTHEST = 1e-7, 1e7
WRONG = 1e3  # relative error beyond which a prediction is as useless as at it
LEAST_DISTANCE2 = F32(1e-6)  # from another camera, squared, relative to the depth squared


@dataclass(frozen=True, eq=False)
class OwnMap:
    """A view's points (3, P) in its own frame, in world units, and squared confidence (P,)."""

    points: FloatArray
    weight: FloatArray


@dataclass(frozen=True, eq=False)
class SeenMap:
    """A view's points (3, P) in another camera's frame, in world units, squared confidence (P,), and that camera:
    ``rotation`` (3, 3) and ``translation`` (3,) take points of the view's camera into it.
    """

    points: FloatArray
    weight: FloatArray
    rotation: FloatArray
    translation: FloatArray


@dataclass(frozen=True, eq=False)
class FusedDepth:
    """``depth`` and ``confidence`` (H, W) float32, both 0 where nothing was predicted."""

    depth: FloatArray
    confidence: FloatArray


def fuse_depth(own: Sequence[OwnMap], seen: Sequence[SeenMap], intrinsics: Intrinsics, noise: Noise) -> FusedDepth:
    """The most likely depth of every pixel (H, W) under ``noise``, robustly (Cauchy).

    The confidence of a pixel is the root of the summed squared confidences of the predictions that agree with it.
    Points must not lie beyond ``FARTHEST`` (see ``in_world``); depths below ``NEAREST`` are unknown.
    """
    shape = (intrinsics.height, intrinsics.width)
    rays = np.ascontiguousarray(pixel_rays(intrinsics).reshape(-1, 3).T, dtype=F32)
    length2 = (rays**2).sum(axis=0)
    direct = [((m.points * rays).sum(axis=0) / length2) for m in own]
    depth = _start(own, direct, seen, rays)
    confidence = np.zeros_like(depth)
    for _ in range(PASSES):
        known = depth > 0
        safe = np.where(known, depth, F32(1))
        curvature, gradient, confidence = (np.zeros_like(depth) for _ in range(3))
        for m, z in zip(own, direct):
            _add_own(m, z, safe, rays, length2, noise, (curvature, gradient, confidence))
        for s in seen:
            _add_seen(s, safe, rays, noise, (curvature, gradient, confidence))
        step = np.divide(gradient, curvature, out=np.zeros_like(depth), where=curvature > 0)
        depth = np.where(known, safe * np.exp(np.clip(step, -0.5, 0.5)), 0)
        confidence = np.where(known, confidence, 0)
    return FusedDepth(depth.reshape(shape).astype(F32), np.sqrt(confidence).reshape(shape).astype(F32))


def in_world(points: FloatArray, weight: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    """Points (3, P) float32 times ``scale``, and weights (P,); both 0 for points that end beyond ``FARTHEST``."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = points * F32(scale)
    near = (np.abs(scaled) < FARTHEST).all(axis=0)
    if near.all():
        return scaled, weight
    return np.where(near, scaled, F32(0)), np.where(near, weight, F32(0))


def _start(
    own: Sequence[OwnMap], direct: Sequence[FloatArray], seen: Sequence[SeenMap], rays: FloatArray
) -> FloatArray:
    """Weighted mean of the own-frame depths; where there is none, of the others' points along the ray."""
    total, weight = np.zeros(rays.shape[1], F32), np.zeros(rays.shape[1], F32)
    for m, z in zip(own, direct):
        w = np.where(z > NEAREST, m.weight, 0)
        total += w * z
        weight += w
    if not (weight > 0).all():
        gaps = weight == 0
        for s in seen:
            z = (s.rotation.T.astype(F32) @ (s.points - s.translation[:, None].astype(F32)))[2]
            w = np.where(gaps & (z > NEAREST), s.weight, 0)
            total += w * z
            weight += w
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _add_own(m: OwnMap, z: FloatArray, depth: FloatArray, rays: FloatArray, length2: FloatArray, noise: Noise,
             sums: tuple[FloatArray, FloatArray, FloatArray]) -> None:  # fmt: skip
    radial = z / depth - 1
    lateral2 = np.maximum((m.points**2).sum(axis=0) / (length2 * depth**2) - (radial + 1) ** 2, 0)
    radial = np.clip(radial, -WRONG, WRONG)
    robust = _robust(m.weight, radial, lateral2, noise)
    along = robust / noise.radial**2
    curvature, gradient, confidence = sums
    curvature += along
    gradient += along * radial
    confidence += robust


def _add_seen(s: SeenMap, depth: FloatArray, rays: FloatArray, noise: Noise,
              sums: tuple[FloatArray, FloatArray, FloatArray]) -> None:  # fmt: skip
    slope = (s.rotation.astype(F32) @ rays) * depth
    position = slope + s.translation[:, None].astype(F32)
    distance2 = np.maximum((position**2).sum(axis=0), LEAST_DISTANCE2 * depth**2)
    inverse2 = 1 / distance2
    error = s.points - position
    radial = (error * position).sum(axis=0) * inverse2
    lateral2 = np.maximum((error**2).sum(axis=0) * inverse2 - radial**2, 0)
    radial = np.clip(radial, -WRONG, WRONG)
    along_slope = (slope * position).sum(axis=0) * inverse2
    beside2 = np.maximum((slope**2).sum(axis=0) * inverse2 - along_slope**2, 0)
    beside = (slope * error).sum(axis=0) * inverse2 - along_slope * radial
    robust = _robust(s.weight, radial, lateral2, noise)
    curvature, gradient, confidence = sums
    curvature += robust * (along_slope**2 / noise.radial**2 + beside2 / noise.lateral**2)
    gradient += robust * (along_slope * radial / noise.radial**2 + beside / noise.lateral**2)
    confidence += robust


def _robust(weight: FloatArray, radial: FloatArray, lateral2: FloatArray, noise: Noise) -> FloatArray:
    """Cauchy weights (P,) times squared confidence; errors are relative to distance."""
    chi2 = weight * (radial**2 / noise.radial**2 + np.minimum(lateral2, WRONG**2) / noise.lateral**2)
    return weight / (1 + chi2 / CUTOFF**2)
