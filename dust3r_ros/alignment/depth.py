"""Depth of every pixel, in closed form, from all predictions of it: own-frame and as seen from other cameras.

The arrays are NumPy's, or PyTorch's on any device: ``load_map`` decides, everything after follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dust3r_ros.alignment.model import CUTOFF, Noise
from dust3r_ros.alignment.observations import MOST_CONFIDENCE
from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.geometry import pixel_rays

Array = Any  # of float32: np.ndarray or torch.Tensor

PASSES = 2
PIECE = 4096  # pixels at a time on a CPU, so that what is computed of them stays in its cache
F32 = np.float32
# In the aligner's units, whose size is about a view's depth. What lies beyond is no measurement, and its square would
# not fit into float32.
NEAREST, FARTHEST = 1e-7, 1e7
WRONG = 1e3  # relative error beyond which a prediction is as useless as at it
LEAST_DISTANCE2 = 1e-6  # from another camera, squared, relative to the depth squared


@dataclass(frozen=True, eq=False)
class OwnMap:
    """A view's points (3, P) in its own frame, in world units, and squared confidence (P,)."""

    points: Array
    weight: Array


@dataclass(frozen=True, eq=False)
class SeenMap:
    """A view's points (3, P) in another camera's frame, in world units, squared confidence (P,), and that camera:
    ``rotation`` (3, 3) and ``translation`` (3,) take points of the view's camera into it.
    """

    points: Array
    weight: Array
    rotation: FloatArray
    translation: FloatArray


@dataclass(frozen=True, eq=False)
class FusedDepth:
    """``depth`` and ``confidence`` (H, W) float32, both 0 where nothing was predicted."""

    depth: FloatArray
    confidence: FloatArray


def load_map(points: FloatArray, confidence: FloatArray, floor: float, scale: float,
             device: str | None) -> tuple[Array, Array]:  # fmt: skip
    """Points (3, P) times ``scale`` and squared confidences (P,) of a map (H, W, 3), on a torch device or as NumPy's.

    Both are 0 where the point is not finite or beyond ``FARTHEST``, or the confidence is below ``floor``.
    """
    flat, conf = (_on(device, a) for a in (points.reshape(-1, 3), confidence.ravel()))
    xp = _namespace(flat)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = _contiguous(flat.T * F32(scale))
        good = (conf >= floor) & (conf > 0) & xp.isfinite(conf) & (abs(scaled) < FARTHEST).all(0)
    weight = conf.clip(None, MOST_CONFIDENCE) ** 2
    if bool(good.all()):
        return scaled, weight
    zero = xp.zeros_like(weight)
    return xp.where(good, scaled, zero), xp.where(good, weight, zero)


def fuse_depth(own: Sequence[OwnMap], seen: Sequence[SeenMap], intrinsics: Intrinsics, noise: Noise) -> FusedDepth:
    """The most likely depth of every pixel (H, W) under ``noise``, robustly (Cauchy).

    The confidence of a pixel is the root of the summed squared confidences of the predictions that agree with it.
    Points must not lie beyond ``FARTHEST`` (see ``load_map``); depths below ``NEAREST`` are unknown.
    """
    shape = (intrinsics.height, intrinsics.width)
    if not (own or seen):
        return FusedDepth(np.zeros(shape, F32), np.zeros(shape, F32))
    like = own[0].weight if own else seen[0].weight
    rays = _like(like, pixel_rays(intrinsics).reshape(-1, 3).T)
    length2 = _dot(rays, rays)
    direct, oblique = _own_products(own, rays, length2), _seen_products(seen, rays, length2)
    depth = _start(direct, seen, rays)
    pieces = []
    step = PIECE if isinstance(like, np.ndarray) else len(depth)
    for first in range(0, len(depth), step):
        piece = slice(first, first + step)
        pieces.append(_refine(depth[piece], direct.of(piece), oblique.of(piece), noise))
    depth, confidence = (np.concatenate([_to_numpy(p) for p in parts]) for parts in zip(*pieces))
    return FusedDepth(depth.reshape(shape), np.sqrt(confidence).reshape(shape))


class _PerPixel:
    """Arrays whose last axis are pixels, or have one entry for all."""

    def of(self, pixels: slice) -> Any:
        parts = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return type(self)(*(part if part.shape[-1] == 1 else part[..., pixels] for part in parts))


@dataclass(frozen=True, eq=False)
class _OwnProducts(_PerPixel):
    """What A own-frame maps x add depends on depth through these alone: ``z`` x.r / r.r and ``reach2`` x.x / r.r."""

    weight: Array
    z: Array
    reach2: Array


@dataclass(frozen=True, eq=False)
class _SeenProducts(_PerPixel):
    """The same for B maps x in frames that see rays as s = R r from t: dot products, by the names of their factors."""

    weight: Array
    ss: Array
    st: Array
    tt: Array
    xs: Array
    xt: Array
    xx: Array


def _own_products(own: Sequence[OwnMap], rays: Array, length2: Array) -> _OwnProducts:
    z = [_dot(m.points, rays) / length2 for m in own]
    reach2 = [_dot(m.points, m.points) / length2 for m in own]
    return _OwnProducts(*(_stack(parts, length2) for parts in ([m.weight for m in own], z, reach2)))


def _seen_products(seen: Sequence[SeenMap], rays: Array, length2: Array) -> _SeenProducts:
    st, tt, xs, xt, xx = [], [], [], [], []
    for m in seen:
        turn, shift = _like(rays, m.rotation), _like(rays, m.translation)
        st.append((shift @ turn) @ rays)
        tt.append((shift @ shift).reshape(1))
        xs.append(_dot(turn.T @ m.points, rays))
        xt.append(shift @ m.points)
        xx.append(_dot(m.points, m.points))
    weight, st, xs, xt, xx = (_stack(p, length2) for p in ([m.weight for m in seen], st, xs, xt, xx))
    return _SeenProducts(weight, length2, st, _stack(tt, length2[:1]), xs, xt, xx)


def _start(own: _OwnProducts, seen: Sequence[SeenMap], rays: Array) -> Array:
    """Weighted mean of the own-frame depths; where there is none, of the others' points along the ray."""
    w = own.weight * (own.z > NEAREST)
    total, weight = (w * own.z).sum(0), w.sum(0)
    if not bool((weight > 0).all()):
        gaps = weight == 0
        for s in seen:
            axis = _like(rays, s.rotation[:, 2])
            z = axis @ (s.points - _like(rays, s.translation)[:, None])
            extra = s.weight * (gaps & (z > NEAREST))
            total = total + extra * z
            weight = weight + extra
    return total / _positive(weight)


def _refine(depth: Array, own: _OwnProducts, seen: _SeenProducts, noise: Noise) -> tuple[Array, Array]:
    """Reweighted Newton steps on log depth (P,), and the summed squared confidences of what agrees with it."""
    xp = _namespace(depth)
    known = depth > 0
    depth = _positive(depth)
    for _ in range(PASSES):
        sums = zip(_own_sums(own, depth, noise), _seen_sums(seen, depth, noise))
        curvature, gradient, confidence = (a + b for a, b in sums)
        depth = depth * xp.exp((gradient / _positive(curvature)).clip(-0.5, 0.5))
    return depth * known, confidence * known


def _own_sums(o: _OwnProducts, depth: Array, noise: Noise) -> tuple[Array, Array, Array]:
    """Curvature, gradient and confidence (P,)."""
    inverse = 1 / depth
    ratio = o.z * inverse
    lateral2 = o.reach2 * inverse**2 - ratio**2
    radial = (ratio - 1).clip(-WRONG, WRONG)
    robust = _robust(o.weight, radial, lateral2, noise)
    total, per_radial = robust.sum(0), 1 / noise.radial**2
    return total * per_radial, (robust * radial).sum(0) * per_radial, total


def _seen_sums(s: _SeenProducts, depth: Array, noise: Noise) -> tuple[Array, Array, Array]:
    """At the point y = D s + t: the slope D s of y by log depth, split along y and beside it, and the error x - y."""
    slope2, slope_t, x_slope = depth**2 * s.ss, depth * s.st, depth * s.xs
    slope_y = slope2 + slope_t
    inverse2 = 1 / _namespace(depth).maximum(slope_y + slope_t + s.tt, LEAST_DISTANCE2 * depth**2)
    ratio = (x_slope + s.xt) * inverse2
    lateral2 = s.xx * inverse2 - ratio**2
    radial = (ratio - 1).clip(-WRONG, WRONG)
    along = slope_y * inverse2
    beside2 = (slope2 * inverse2 - along**2).clip(0, None)
    beside = x_slope * inverse2 - along * ratio  # (slope . (x - y)) / y.y - along * radial
    robust = _robust(s.weight, radial, lateral2, noise)
    per_radial, per_lateral = 1 / noise.radial**2, 1 / noise.lateral**2
    curvature = robust * (along**2 * per_radial + beside2 * per_lateral)
    gradient = robust * (along * radial * per_radial + beside * per_lateral)
    return curvature.sum(0), gradient.sum(0), robust.sum(0)


def _robust(weight: Array, radial: Array, lateral2: Array, noise: Noise) -> Array:
    """Cauchy weights (K, P) times squared confidence; errors are relative to distance."""
    along, across = 1 / (noise.radial * CUTOFF) ** 2, 1 / (noise.lateral * CUTOFF) ** 2
    return weight / (1 + weight * (radial**2 * along + lateral2.clip(0, WRONG**2) * across))


def _namespace(array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _on(device: str | None, array: FloatArray) -> Array:
    if device is None:
        return np.asarray(array, dtype=F32)
    import torch

    return torch.tensor(array, dtype=torch.float32, device=device)


def _contiguous(array: Array) -> Array:
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def _like(other: Array, array: FloatArray) -> Array:
    """A NumPy array as float32 of the kind of another one."""
    if isinstance(other, np.ndarray):
        return np.ascontiguousarray(array, dtype=F32)
    return _on(str(other.device), array)


def _to_numpy(array: Array) -> FloatArray:
    return np.asarray(array if isinstance(array, np.ndarray) else array.cpu().numpy())


def _positive(array: Array) -> Array:
    """The array with 1 where it is not positive, to divide by."""
    xp = _namespace(array)
    return xp.where(array > 0, array, xp.ones_like(array))


def _dot(a: Array, b: Array) -> Array:
    """(P,) from (3, P)."""
    return _namespace(a).einsum("cp,cp->p", a, b)


def _stack(arrays: Sequence[Array], like: Array) -> Array:
    """(K, P); (0, P) when there is none."""
    return _namespace(like).stack(list(arrays)) if arrays else like[None][:0]
