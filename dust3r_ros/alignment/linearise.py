"""Normal equations of one view's predictions, its depths eliminated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.model import Lens, Noise, State
from dust3r_ros.alignment.observations import Sightings
from dust3r_ros.alignment.sight import (
    OwnGeometry,
    SeenGeometry,
    ViewGeometry,
    own_geometry,
    robust_weights,
    view_geometry,
)
from dust3r_ros.data import FloatArray

# Columns of a seen pixel's Jacobian: relative pose (translation, rotation), log scale, focal and depth; the residual.
TRANSLATION, ROTATION, SCALE, FOCAL, DEPTH, RESIDUAL = slice(0, 3), slice(3, 6), 6, 7, 8, 9

BLAS_PIECE = 400_000  # multiplications


@dataclass(frozen=True, eq=False)
class ViewSystem:
    """Normal equations ``normal @ step = -gradient`` of a view's predictions, depths eliminated (Schur complement).

    Parameters, in order: for each of B seen edges the relative pose (6), B seen scales, A own scales, one focal.
    ``coupling`` (n, G), ``inverse_curvature`` (G,) and ``depth_gradient`` (G,) give the depths back.
    """

    normal: FloatArray
    gradient: FloatArray
    coupling: FloatArray
    inverse_curvature: FloatArray
    depth_gradient: FloatArray


@dataclass(frozen=True, eq=False)
class _Part:
    """What one kind of prediction adds: to normal, gradient, coupling, depth curvature and gradient."""

    normal: FloatArray
    gradient: FloatArray
    coupling: FloatArray
    curvature: FloatArray
    depth_gradient: FloatArray


def linearise_view(s: Sightings, lens: Lens, state: State, view: int, noise: Noise, cutoff: float, free_depth: bool,
                   geometry: ViewGeometry | None = None) -> ViewSystem:  # fmt: skip
    """The normal equations of all predictions of ``view``'s pixels; robust weights by Cauchy with ``cutoff``.

    ``geometry`` is that at ``state``, where it is known already.
    """
    geometry = geometry or view_geometry(s, lens, state, view)
    own, seen = _own_part(s, geometry.own, noise, cutoff), _seen_part(s, geometry.seen, noise, cutoff)
    b, a = len(s.seen_edge), len(s.own_edge)
    size = 7 * b + a + 1
    at_seen, at_own = np.append(np.arange(7 * b), size - 1), np.arange(7 * b, size)
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    for at, part in ((at_seen, seen), (at_own, own)):
        normal[np.ix_(at, at)] += part.normal
        gradient[at] += part.gradient
    coupling = np.concatenate([seen.coupling[:-1], own.coupling])
    coupling[-1] += seen.coupling[-1]
    curvature = own.curvature + seen.curvature
    known = (curvature > 1e-12 * max(float(curvature.max(initial=0.0)), 1e-300)) & free_depth
    inverse = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=known)
    depth_gradient = own.depth_gradient + seen.depth_gradient
    normal -= _outer_product(coupling * inverse, coupling)
    gradient -= coupling @ (inverse * depth_gradient)
    return ViewSystem(normal, gradient, coupling, inverse, depth_gradient)


def _outer_product(a: FloatArray, b: FloatArray) -> FloatArray:
    """``a @ b.T`` for (n, G) in pieces that BLAS does not split over threads, which would cost more than it saves."""
    n, samples = a.shape
    piece = max(BLAS_PIECE // (n * n), 16)
    whole = samples // piece * piece
    total = a[:, whole:] @ b[:, whole:].T
    if whole:
        left = a[:, :whole].reshape(n, -1, piece).transpose(1, 0, 2)
        right = b[:, :whole].reshape(n, -1, piece).transpose(1, 2, 0)
        total += np.matmul(left, right).sum(axis=0)
    return total


def own_focal_evidence(
    s: Sightings, lens: Lens, state: State, view: int, noise: Noise, cutoff: float
) -> tuple[float, float]:
    """What a view's own-frame maps alone say of its focal: log focal, and its information (0: nothing)."""
    own = own_geometry(s, lens.rays(state.log_focal), state, view)
    robust = robust_weights(s.own_weight, own.errors, noise, cutoff)
    length2 = (own.rays**2).sum(axis=0)
    sideways = np.sqrt(np.maximum(length2 - 1, 0)) / length2
    information = float((robust * sideways**2).sum()) / noise.lateral**2
    if lens.group < 0 or not information > 0:
        return 0.0, 0.0
    step = float((robust * own.across * sideways).sum()) / noise.lateral**2 / information
    return float(state.log_focal[lens.group]) + step, information


def _own_part(s: Sightings, own: OwnGeometry, noise: Noise, cutoff: float) -> _Part:
    rays, radial, across = own.rays, own.errors.radial, own.across
    robust = robust_weights(s.own_weight, own.errors, noise, cutoff)
    w_radial, w_lateral = robust / noise.radial**2, robust / noise.lateral**2
    length2 = (rays**2).sum(axis=0)
    slope2 = (rays[0] ** 2 + rays[1] ** 2) / length2
    along, sideways = -slope2, np.sqrt(np.maximum(slope2 / length2, 0))  # d(unit model) / d(log focal)
    a = len(s.own_edge)
    normal, gradient = np.zeros((a + 1, a + 1)), np.zeros(a + 1)
    diagonal = np.arange(a)
    normal[diagonal, diagonal] = w_radial.sum(axis=1)
    normal[a, :a] = normal[:a, a] = w_radial @ along
    normal[a, a] = (w_radial * along**2 + w_lateral * sideways**2).sum()
    gradient[:a] = -(w_radial * radial).sum(axis=1)
    gradient[a] = -(w_radial * radial * along + w_lateral * across * sideways).sum()
    total = w_radial.sum(axis=0)
    coupling = np.concatenate([w_radial, (total * along)[None]])
    return _Part(normal, gradient, coupling, total, -(w_radial * radial).sum(axis=0))


def _seen_part(s: Sightings, geometry: SeenGeometry, noise: Noise, cutoff: float) -> _Part:
    robust = robust_weights(s.seen_weight, geometry.errors, noise, cutoff)
    root = np.sqrt(robust)
    weights = np.stack([root * s.seen_parallax[:, None] / noise.radial, root / noise.lateral, root / noise.lateral], 1)
    jacobian = seen_jacobian(geometry)
    jacobian *= weights[:, None]
    b, g = s.seen_weight.shape
    flat = jacobian.reshape(b, 10, 3 * g)
    products = flat @ np.swapaxes(flat, 1, 2)
    by_depth = np.einsum("bnfg,bfg->bng", jacobian, jacobian[:, DEPTH])
    curvature, depth_gradient = by_depth[:, DEPTH].sum(axis=0), -by_depth[:, RESIDUAL].sum(axis=0)
    return _gather_seen(products, by_depth, curvature, depth_gradient)


def seen_jacobian(geometry: SeenGeometry) -> FloatArray:
    """Derivatives (B, 10, 3, G) of the modelled point relative to its distance, and the residual, in ``frame``.

    The relative pose moves camera i: ``T_i exp(step)``, which changes its view of a point y by
    ``-(translation + rotation x y)``. A point y = offset + translation moves along its offset by log depth, which
    across the line of sight is minus the translation.
    """
    frame, inverse = geometry.frame, geometry.inverse_distance
    b, _, _, g = frame.shape
    jacobian = np.empty((b, 10, 3, g))
    moved = -geometry.parallax[:, None] * inverse
    np.multiply(np.swapaxes(frame, 1, 2), moved[:, None, None], out=jacobian[:, TRANSLATION])
    jacobian[:, ROTATION, 0] = 0
    np.negative(frame[:, 2], out=jacobian[:, ROTATION, 1])
    jacobian[:, ROTATION, 2] = frame[:, 1]
    jacobian[:, SCALE, 0], jacobian[:, SCALE, 1:] = 1, 0
    depth, focal = jacobian[:, DEPTH], jacobian[:, FOCAL]
    np.einsum("bc,bfcg->bfg", -geometry.translation, frame, out=depth)
    depth *= inverse[:, None]
    depth[:, 0] += 1
    np.einsum("bc,bfcg->bfg", geometry.axis, frame, out=focal)
    focal *= (inverse * geometry.depth)[:, None]
    focal -= depth
    jacobian[:, RESIDUAL] = geometry.error
    return jacobian


def _gather_seen(
    products: FloatArray, by_depth: FloatArray, curvature: FloatArray, depth_gradient: FloatArray
) -> _Part:
    """Per-edge 10 x 10 products into the order: B relative poses, B scales, one focal."""
    b, _, g = by_depth.shape
    size = 7 * b + 1
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    each = np.arange(b)
    at = np.concatenate([6 * each[:, None] + np.arange(6), 6 * b + each[:, None]], axis=1)
    normal[at[:, :, None], at[:, None]] = products[:, :FOCAL, :FOCAL]
    normal[at, -1] = normal[-1, at] = products[:, :FOCAL, FOCAL]
    normal[-1, -1] = products[:, FOCAL, FOCAL].sum()
    gradient[at] = -products[:, :FOCAL, RESIDUAL]
    gradient[-1] = -products[:, FOCAL, RESIDUAL].sum()
    coupling = np.concatenate([by_depth[:, :SCALE].reshape(6 * b, g), by_depth[:, SCALE],
                               by_depth[:, FOCAL].sum(axis=0, keepdims=True)])  # fmt: skip
    return _Part(normal, gradient, coupling, curvature, depth_gradient)
