"""Residuals and normal equations of one view's predictions, its depths eliminated.

Errors are taken relative to the *model's* distance and along the model's line of sight, so that noise in a
prediction never scales its own weight, which would bias scales and depths. See ``docs/alignment.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.model import Lens, Noise, State
from dust3r_ros.alignment.observations import Sightings
from dust3r_ros.data import FloatArray

# Columns of a seen pixel's Jacobian: relative pose (translation, rotation), log scale, log focal, log depth, residual.
TRANSLATION, ROTATION, SCALE, FOCAL, DEPTH, RESIDUAL = slice(0, 3), slice(3, 6), 6, 7, 8, 9

BLAS_PIECE = 400_000  # multiplications


@dataclass(frozen=True, eq=False)
class Errors:
    """Relative errors of predictions (K, G): ``radial`` along the line of sight, ``lateral2`` squared across it."""

    radial: FloatArray
    lateral2: FloatArray


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
    cost: float


@dataclass(frozen=True, eq=False)
class _Part:
    """What one kind of prediction adds: to normal, gradient, coupling, depth curvature and gradient, and cost."""

    normal: FloatArray
    gradient: FloatArray
    coupling: FloatArray
    curvature: FloatArray
    depth_gradient: FloatArray
    cost: float


def linearise_view(s: Sightings, lens: Lens, state: State, view: int, noise: Noise, cutoff: float,
                   free_depth: bool) -> ViewSystem:  # fmt: skip
    """The normal equations of all predictions of ``view``'s pixels; robust weights by Cauchy with ``cutoff``."""
    rays = lens.rays(state.log_focal)
    own = _own_part(s, rays, state, view, noise, cutoff)
    seen = _seen_part(s, rays, state, view, noise, cutoff)
    b, a = len(s.seen_edge), len(s.own_edge)
    size = 7 * b + a + 1
    at_seen = np.append(np.arange(7 * b), size - 1)
    at_own = np.arange(7 * b, size)
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    coupling = np.zeros((size, rays.shape[1]))
    for at, part in ((at_seen, seen), (at_own, own)):
        normal[np.ix_(at, at)] += part.normal
        gradient[at] += part.gradient
        coupling[at] += part.coupling
    curvature = own.curvature + seen.curvature
    known = (curvature > 1e-12 * max(float(curvature.max(initial=0.0)), 1e-300)) & free_depth
    inverse = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=known)
    depth_gradient = own.depth_gradient + seen.depth_gradient
    normal -= _outer_product(coupling * inverse, coupling)
    gradient -= coupling @ (inverse * depth_gradient)
    return ViewSystem(normal, gradient, coupling, inverse, depth_gradient, own.cost + seen.cost)


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


def own_errors(s: Sightings, rays: FloatArray, state: State, view: int) -> Errors:
    """Errors of the own-frame predictions (A, G)."""
    radial, _, lateral2 = _own_residuals(s, rays, state, view)
    return Errors(radial, lateral2)


def seen_errors(s: Sightings, rays: FloatArray, state: State, view: int) -> Errors:
    """Errors of the other-frame predictions (B, G); no radial one where the edge has no parallax."""
    direction, _, _, error = _seen_geometry(s, rays, state, view)
    radial = (direction * error).sum(axis=1)
    lateral2 = np.maximum((error**2).sum(axis=1) - radial**2, 0)
    return Errors(radial * s.seen_parallax[:, None], lateral2)


def own_focal_evidence(
    s: Sightings, lens: Lens, state: State, view: int, noise: Noise, cutoff: float
) -> tuple[float, float]:
    """What a view's own-frame maps alone say of its focal: log focal, and its information (0: nothing)."""
    rays = lens.rays(state.log_focal)
    radial, across, lateral2 = _own_residuals(s, rays, state, view)
    robust, _ = robust_weights(s.own_weight, Errors(radial, lateral2), noise, cutoff)
    length2 = (rays**2).sum(axis=0)
    sideways = np.sqrt(np.maximum(length2 - 1, 0)) / length2
    information = float((robust * sideways**2).sum()) / noise.lateral**2
    if lens.group < 0 or not information > 0:
        return 0.0, 0.0
    step = float((robust * across * sideways).sum()) / noise.lateral**2 / information
    return float(state.log_focal[lens.group]) + step, information


def robust_weights(weight: FloatArray, errors: Errors, noise: Noise, cutoff: float) -> tuple[FloatArray, float]:
    """Cauchy weights times ``weight`` (squared confidence), and the robust cost."""
    chi2 = weight * (errors.radial**2 / noise.radial**2 + errors.lateral2 / noise.lateral**2)
    scaled = 1 + chi2 / cutoff**2
    return weight / scaled, float(0.5 * cutoff**2 * np.log(scaled).sum())


def _own_residuals(s: Sightings, rays: FloatArray, state: State, view: int) -> tuple[FloatArray, ...]:
    """Radial error, the error along the direction in which the focal moves a ray, and squared lateral error."""
    length = np.sqrt((rays**2).sum(axis=0))
    unit = rays / length
    distance = np.exp(state.log_depth[view]) * length
    scaled = s.own * (np.exp(-state.log_scale[s.own_edge])[:, None, None] / distance)
    radial = np.einsum("cg,kcg->kg", unit, scaled) - 1
    error = scaled - unit
    lateral2 = np.maximum((error**2).sum(axis=1) - radial**2, 0)
    outward = _focal_direction(rays, length)
    return radial, np.einsum("cg,kcg->kg", outward, error), lateral2


def _focal_direction(rays: FloatArray, length: FloatArray) -> FloatArray:
    """The lateral derivative of unit rays by log focal, as unit vectors (3, G); 0 at the principal point."""
    slope2 = rays[0] ** 2 + rays[1] ** 2
    moved = np.stack([-rays[0], -rays[1], np.zeros_like(slope2)]) + rays * (slope2 / length**2)
    size = np.sqrt((moved**2).sum(axis=0))
    return np.divide(moved, size, out=np.zeros_like(moved), where=size > 0)


def _own_part(s: Sightings, rays: FloatArray, state: State, view: int, noise: Noise, cutoff: float) -> _Part:
    radial, across, lateral2 = _own_residuals(s, rays, state, view)
    robust, cost = robust_weights(s.own_weight, Errors(radial, lateral2), noise, cutoff)
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
    return _Part(normal, gradient, coupling, total, -(w_radial * radial).sum(axis=0), cost)


def _seen_geometry(s: Sightings, rays: FloatArray, state: State, view: int) -> tuple[FloatArray, ...]:
    """Line of sight (B, 3, G), its length (B, G), camera-frame offsets of the points, and relative errors."""
    rotation, translation = state.relative(s.seen_from, view)
    offset = rotation @ (rays * np.exp(state.log_depth[view]))
    position = offset + (translation * s.seen_parallax[:, None])[:, :, None]
    distance = np.sqrt((position**2).sum(axis=1))
    distance = np.maximum(distance, 1e-9 * float(distance.max(initial=1e-300)))
    direction = position / distance[:, None]
    error = s.seen * (np.exp(-state.log_scale[s.seen_edge])[:, None] / distance)[:, None] - direction
    if (s.seen_parallax == 0).any():  # only the direction was predicted: compare with a point at the model's distance
        reach = np.sqrt((s.seen**2).sum(axis=1))
        bearing = np.divide(s.seen, reach[:, None], out=np.zeros_like(s.seen), where=reach[:, None] > 0)
        error = np.where(s.seen_parallax[:, None, None] > 0, error, bearing - direction)
    return direction, distance, offset, error


def _seen_part(s: Sightings, rays: FloatArray, state: State, view: int, noise: Noise, cutoff: float) -> _Part:
    b, g = s.seen_weight.shape
    direction, distance, offset, error = _seen_geometry(s, rays, state, view)
    radial = (direction * error).sum(axis=1)
    lateral2 = np.maximum((error**2).sum(axis=1) - radial**2, 0)
    radial = radial * s.seen_parallax[:, None]
    robust, cost = robust_weights(s.seen_weight, Errors(radial, lateral2), noise, cutoff)
    root = np.sqrt(robust)
    jacobian = seen_jacobian(s, rays, state, view, direction, distance, offset)
    jacobian[:, RESIDUAL] = error
    _whiten(jacobian, direction, root * s.seen_parallax[:, None] / noise.radial, root / noise.lateral)
    flat = jacobian.reshape(b, 10, 3 * g)
    products = flat @ np.swapaxes(flat, 1, 2)
    coupling = (jacobian[:, :8] * jacobian[:, DEPTH, None]).sum(axis=2)
    curvature = (jacobian[:, DEPTH] ** 2).sum(axis=(0, 1))
    depth_gradient = -(jacobian[:, DEPTH] * jacobian[:, RESIDUAL]).sum(axis=(0, 1))
    return _gather_seen(products, coupling, curvature, depth_gradient, cost)


def seen_jacobian(s: Sightings, rays: FloatArray, state: State, view: int, direction: FloatArray, distance: FloatArray,
                  offset: FloatArray) -> FloatArray:  # fmt: skip
    """Derivatives (B, 10, 3, G) of the modelled point relative to its distance; the RESIDUAL column is left empty.

    The relative pose moves camera i: ``T_i exp(step)``, which changes its view of a point y by
    ``-(translation + rotation x y)``.
    """
    b, g = s.seen_weight.shape
    jacobian = np.zeros((b, 10, 3, g))
    inverse = s.seen_parallax[:, None] / distance
    x, y, z = direction[:, 0], direction[:, 1], direction[:, 2]
    for axis in range(3):
        jacobian[:, axis, axis] = -inverse
    jacobian[:, 3, 1], jacobian[:, 3, 2] = z, -y  # -(e_x x u)
    jacobian[:, 4, 0], jacobian[:, 4, 2] = -z, x
    jacobian[:, 5, 0], jacobian[:, 5, 1] = y, -x
    jacobian[:, SCALE] = direction
    jacobian[:, DEPTH] = offset / distance[:, None]
    rotation, _ = state.relative(s.seen_from, view)
    depth = np.exp(state.log_depth[view])
    moved = np.stack([-rays[0] * depth, -rays[1] * depth, np.zeros(g)])
    jacobian[:, FOCAL] = (rotation @ moved) / distance[:, None]
    return jacobian


def _whiten(jacobian: FloatArray, direction: FloatArray, along: FloatArray, across: FloatArray) -> None:
    """Scale every column (B, n, 3, G), in place, by ``along`` (B, G) in the line of sight and ``across`` beside it."""
    dots = np.einsum("bcg,bncg->bng", direction, jacobian)
    dots *= (along - across)[:, None]
    jacobian *= across[:, None, None]
    jacobian += dots[:, :, None] * direction[:, None]


def _gather_seen(products: FloatArray, coupling: FloatArray, curvature: FloatArray, depth_gradient: FloatArray,
                 cost: float) -> _Part:  # fmt: skip
    """Per-edge 10 x 10 products into the order: B relative poses, B scales, one focal."""
    b = len(products)
    size = 7 * b + 1
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    arranged = np.zeros((size, coupling.shape[2]))
    for k in range(b):
        at = np.append(np.arange(6 * k, 6 * k + 6), [6 * b + k, 7 * b])
        normal[np.ix_(at, at)] += products[k, :8, :8]
        gradient[at] -= products[k, :8, RESIDUAL]
        arranged[at] += coupling[k]
    return _Part(normal, gradient, arranged, curvature, depth_gradient, cost)
