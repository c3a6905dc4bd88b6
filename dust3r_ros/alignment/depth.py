"""Depth of every pixel, in closed form, from all predictions of it: own-frame and as seen from other cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.model import CUTOFF, Noise
from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.geometry import pixel_rays

PASSES = 2
PIECE = 4096  # pixels at a time, so that what is computed of them stays in the processor's cache
F32 = np.float32
# In world units, whose size is about the first view's depth. What lies beyond is no measurement, and its square would
# not fit into float32.
NEAREST, FARTHEST = 1e-7, 1e7
WRONG = F32(1e3)  # relative error beyond which a prediction is as useless as at it
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
    length2 = _dot(rays, rays)
    direct, oblique = _own_products(own, rays, length2), _seen_products(seen, rays, length2)
    depth = _start(direct, seen, rays)
    confidence = np.zeros_like(depth)
    for first in range(0, len(depth), PIECE):
        piece = slice(first, first + PIECE)
        depth[piece], confidence[piece] = _refine(depth[piece], direct.of(piece), oblique.of(piece), noise)
    return FusedDepth(depth.reshape(shape), np.sqrt(confidence).reshape(shape))


def in_world(points: FloatArray, weight: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    """Points (3, P) float32 times ``scale``, and weights (P,); both 0 for points that end beyond ``FARTHEST``."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = points * F32(scale)
    near = (np.abs(scaled) < FARTHEST).all(axis=0)
    if near.all():
        return scaled, weight
    return np.where(near, scaled, F32(0)), np.where(near, weight, F32(0))


@dataclass(frozen=True, eq=False)
class _OwnProducts:
    """What A own-frame maps x add depends on depth through these alone: ``z`` x.r / r.r and ``reach2`` x.x / r.r."""

    weight: FloatArray
    z: FloatArray
    reach2: FloatArray

    def of(self, pixels: slice) -> _OwnProducts:
        return _OwnProducts(self.weight[:, pixels], self.z[:, pixels], self.reach2[:, pixels])


@dataclass(frozen=True, eq=False)
class _SeenProducts:
    """The same for B maps x in frames that see rays as s = R r from t: dot products, by the names of their factors."""

    weight: FloatArray
    ss: FloatArray
    st: FloatArray
    tt: FloatArray
    xs: FloatArray
    xt: FloatArray
    xx: FloatArray

    def of(self, pixels: slice) -> _SeenProducts:
        st, xs, xt, xx = (part[:, pixels] for part in (self.st, self.xs, self.xt, self.xx))
        return _SeenProducts(self.weight[:, pixels], self.ss[pixels], st, self.tt, xs, xt, xx)


def _own_products(own: Sequence[OwnMap], rays: FloatArray, length2: FloatArray) -> _OwnProducts:
    weight, z, reach2 = (np.empty((len(own), rays.shape[1]), F32) for _ in range(3))
    for k, m in enumerate(own):
        weight[k], z[k], reach2[k] = m.weight, _dot(m.points, rays) / length2, _dot(m.points, m.points) / length2
    return _OwnProducts(weight, z, reach2)


def _seen_products(seen: Sequence[SeenMap], rays: FloatArray, length2: FloatArray) -> _SeenProducts:
    weight, st, xs, xt, xx = (np.empty((len(seen), rays.shape[1]), F32) for _ in range(5))
    shifts = np.array([m.translation for m in seen], F32).reshape(-1, 3)
    for k, m in enumerate(seen):
        turn = m.rotation.astype(F32)
        weight[k], st[k], xt[k] = m.weight, (shifts[k] @ turn) @ rays, shifts[k] @ m.points
        xs[k], xx[k] = _dot(turn.T @ m.points, rays), _dot(m.points, m.points)
    return _SeenProducts(weight, length2, st, (shifts**2).sum(axis=1)[:, None], xs, xt, xx)


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    """(P,) from (3, P)."""
    return np.einsum("cp,cp->p", a, b)


def _start(own: _OwnProducts, seen: Sequence[SeenMap], rays: FloatArray) -> FloatArray:
    """Weighted mean of the own-frame depths; where there is none, of the others' points along the ray."""
    w = np.where(own.z > NEAREST, own.weight, F32(0))
    total, weight = (w * own.z).sum(axis=0), w.sum(axis=0)
    if not (weight > 0).all():
        gaps = weight == 0
        for s in seen:
            z = s.rotation.T[2].astype(F32) @ (s.points - s.translation[:, None].astype(F32))
            extra = np.where(gaps & (z > NEAREST), s.weight, F32(0))
            total += extra * z
            weight += extra
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _refine(depth: FloatArray, own: _OwnProducts, seen: _SeenProducts, noise: Noise) -> tuple[FloatArray, FloatArray]:
    """Reweighted Newton steps on log depth (P,), and the summed squared confidences of what agrees with it."""
    known = depth > 0
    depth = np.where(known, depth, F32(1))
    for _ in range(PASSES):
        curvature, gradient, confidence = (
            a + b for a, b in zip(_own_sums(own, depth, noise), _seen_sums(seen, depth, noise))
        )
        step = np.divide(gradient, curvature, out=np.zeros_like(depth), where=curvature > 0)
        depth = depth * np.exp(np.clip(step, F32(-0.5), F32(0.5)))
    return np.where(known, depth, F32(0)), np.where(known, confidence, F32(0))


def _own_sums(o: _OwnProducts, depth: FloatArray, noise: Noise) -> tuple[FloatArray, ...]:
    """Curvature, gradient and confidence (P,)."""
    inverse = 1 / depth
    ratio = o.z * inverse
    lateral2 = o.reach2 * inverse**2 - ratio**2
    radial = np.clip(ratio - 1, -WRONG, WRONG)
    robust = _robust(o.weight, radial, lateral2, noise)
    total, per_radial = robust.sum(axis=0), F32(1 / noise.radial**2)
    return total * per_radial, (robust * radial).sum(axis=0) * per_radial, total


def _seen_sums(s: _SeenProducts, depth: FloatArray, noise: Noise) -> tuple[FloatArray, ...]:
    """At the point y = D s + t: the slope D s of y by log depth, split along y and beside it, and the error x - y."""
    slope2, slope_t, x_slope = depth**2 * s.ss, depth * s.st, depth * s.xs
    slope_y = slope2 + slope_t
    inverse2 = 1 / np.maximum(slope_y + slope_t + s.tt, LEAST_DISTANCE2 * depth**2)
    ratio = (x_slope + s.xt) * inverse2
    lateral2 = s.xx * inverse2 - ratio**2
    radial = np.clip(ratio - 1, -WRONG, WRONG)
    along = slope_y * inverse2
    beside2 = np.maximum(slope2 * inverse2 - along**2, 0)
    beside = x_slope * inverse2 - along * ratio  # (slope . (x - y)) / y.y - along * radial
    robust = _robust(s.weight, radial, lateral2, noise)
    per_radial, per_lateral = F32(1 / noise.radial**2), F32(1 / noise.lateral**2)
    curvature = robust * (along**2 * per_radial + beside2 * per_lateral)
    gradient = robust * (along * radial * per_radial + beside * per_lateral)
    return curvature.sum(axis=0), gradient.sum(axis=0), robust.sum(axis=0)


def _robust(weight: FloatArray, radial: FloatArray, lateral2: FloatArray, noise: Noise) -> FloatArray:
    """Cauchy weights (K, P) times squared confidence; errors are relative to distance."""
    along, across = F32(1 / (noise.radial * CUTOFF) ** 2), F32(1 / (noise.lateral * CUTOFF) ** 2)
    return weight / (1 + weight * (radial**2 * along + np.clip(lateral2, 0, WRONG**2) * across))
