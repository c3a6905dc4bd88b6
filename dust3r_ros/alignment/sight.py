"""Where the model has a view's points, where the predictions have them, and the errors between them.

Errors are taken relative to the *model's* distance and along the model's line of sight, so that noise in a
prediction never scales its own weight, which would bias scales and depths. See ``docs/alignment.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dust3r_ros.alignment.model import Lens, Noise, State
from dust3r_ros.alignment.observations import Sightings
from dust3r_ros.data import FloatArray


@dataclass(frozen=True, eq=False)
class Errors:
    """Relative errors of predictions (K, G): ``radial`` along the line of sight, ``lateral2`` squared across it."""

    radial: FloatArray
    lateral2: FloatArray


@dataclass(frozen=True, eq=False)
class OwnGeometry:
    """A view's own-frame predictions: ``rays`` (3, G), ``errors`` (A, G), and ``across`` (A, G), the error along the
    direction in which the focal moves a ray.
    """

    rays: FloatArray
    errors: Errors
    across: FloatArray


@dataclass(frozen=True, eq=False)
class SeenGeometry:
    """Points of a view in other cameras' frames, modelled and predicted.

    ``frame`` (B, 3, 3, G): line of sight and two directions across; ``inverse_distance`` (B, G); ``error`` (B, 3, G)
    relative to distance, in ``frame``; ``axis`` (B, 3) the view's optical axis, ``translation`` (B, 3) its centre, in
    the other camera's frame; ``parallax`` (B,) 0 where only directions were predicted; ``depth`` (G,).
    """

    frame: FloatArray
    inverse_distance: FloatArray
    error: FloatArray
    axis: FloatArray
    translation: FloatArray
    parallax: FloatArray
    depth: FloatArray

    @cached_property
    def errors(self) -> Errors:
        return Errors(self.error[:, 0], self.error[:, 1] ** 2 + self.error[:, 2] ** 2)


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """All predictions of a view's pixels, compared with the model."""

    own: OwnGeometry
    seen: SeenGeometry

    @property
    def errors(self) -> tuple[Errors, Errors]:
        """Own-frame, other-frame."""
        return self.own.errors, self.seen.errors


def view_geometry(s: Sightings, lens: Lens, state: State, view: int) -> ViewGeometry:
    """All predictions of ``view``'s pixels, at ``state``."""
    rays = lens.rays(state.log_focal)
    return ViewGeometry(own_geometry(s, rays, state, view), seen_geometry(s, rays, state, view))


def seen_components(s: Sightings, rays: FloatArray, state: State, view: int) -> FloatArray:
    """Errors (B, 3, G) of the other-frame predictions: along the line of sight and in two directions across it."""
    return seen_geometry(s, rays, state, view).error


def robust_weights(weight: FloatArray, errors: Errors, noise: Noise, cutoff: float) -> FloatArray:
    """Cauchy weights times ``weight`` (squared confidence)."""
    return weight / (1 + chi2(weight, errors, noise) / cutoff**2)


def robust_cost(weight: FloatArray, errors: Errors, noise: Noise, cutoff: float) -> float:
    """Sum of the Cauchy kernel over predictions."""
    return float(0.5 * cutoff**2 * np.log1p(chi2(weight, errors, noise) / cutoff**2).sum())


def chi2(weight: FloatArray, errors: Errors, noise: Noise) -> FloatArray:
    """Squared errors relative to the noise of predictions with ``weight`` (squared confidence)."""
    return weight * (errors.radial**2 * (1 / noise.radial**2) + errors.lateral2 * (1 / noise.lateral**2))


def own_geometry(s: Sightings, rays: FloatArray, state: State, view: int) -> OwnGeometry:
    """The own-frame predictions, compared with the model."""
    length = np.sqrt((rays**2).sum(axis=0))
    inverse = np.exp(-state.log_depth[view]) / length
    error = np.einsum("fcg,kcg->kfg", _focal_frame(rays, length), s.own)
    error *= (np.exp(-state.log_scale[s.own_edge])[:, None] * inverse)[:, None]
    errors = Errors(error[:, 0] - 1, error[:, 1] ** 2 + error[:, 2] ** 2)
    return OwnGeometry(rays, errors, error[:, 1])


def _focal_frame(rays: FloatArray, length: FloatArray) -> FloatArray:
    """(3, 3, G): unit rays, the direction across in which they move with log focal, and the one around the axis."""
    x, y = rays[0], rays[1]
    slope = np.sqrt(x**2 + y**2)
    x, y = (np.divide(v, slope, out=np.full_like(v, fill), where=slope > 0) for v, fill in ((x, 1.0), (y, 0.0)))
    frame = np.zeros((3, 3, rays.shape[1]))
    frame[0] = rays / length
    frame[1, 0], frame[1, 1], frame[1, 2] = -x / length, -y / length, slope / length
    frame[2, 0], frame[2, 1] = -y, x
    return frame


def seen_geometry(s: Sightings, rays: FloatArray, state: State, view: int) -> SeenGeometry:
    """The other-frame predictions, compared with the model."""
    rotation, translation = state.relative(s.seen_from, view)
    translation = translation * s.seen_parallax[:, None]
    depth = np.exp(state.log_depth[view])
    position = rotation @ (rays * depth)
    position += translation[:, :, None]
    distance = np.sqrt(np.einsum("bcg,bcg->bg", position, position))
    distance = np.maximum(distance, 1e-9 * float(distance.max(initial=1e-300)))
    inverse = 1 / distance
    frame = _frame(position * inverse[:, None])
    scale = np.exp(-state.log_scale[s.seen_edge])[:, None] * inverse
    if (s.seen_parallax == 0).any():  # only the direction was predicted: compare with a point at the model's distance
        reach = np.sqrt((s.seen**2).sum(axis=1))
        bearing = np.divide(1.0, reach, out=np.zeros_like(reach), where=reach > 0)
        scale = np.where(s.seen_parallax[:, None] > 0, scale, bearing)
    error = np.einsum("bfcg,bcg->bfg", frame, s.seen)
    error *= scale[:, None]
    error[:, 0] -= 1
    error[:, 0] *= s.seen_parallax[:, None]
    return SeenGeometry(frame, inverse, error, rotation[:, :, 2], translation, s.seen_parallax, depth)


def _frame(direction: FloatArray) -> FloatArray:
    """(B, 3, 3, G): lines of sight (B, 3, G) and two directions across that complete a right-handed frame.

    Duff et al., Building an orthonormal basis, revisited (JCGT 2017): no direction is special.
    """
    x, y, z = direction[:, 0], direction[:, 1], direction[:, 2]
    sign = np.copysign(1.0, z)
    a = -1 / (sign + z)
    b = x * y * a
    frame = np.empty((len(direction), 3, 3, direction.shape[2]))
    frame[:, 0] = direction
    frame[:, 1, 0], frame[:, 1, 1], frame[:, 1, 2] = 1 + sign * x * x * a, sign * b, -sign * x
    frame[:, 2, 0], frame[:, 2, 1], frame[:, 2, 2] = b, sign + y * y * a, -y
    return frame
