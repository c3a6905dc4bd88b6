"""The model that alignment fits: views with poses, focals, depths, and the noise of the predictions.

A prediction of edge e = (i, j) is, in camera i's frame and in the prediction's own unit,

    own    X_i|e(p) = sigma_e D_i(p) r_i(p)
    other  X_j|e(q) = sigma_e R_i^T (R_j D_j(q) r_j(q) + t_j - t_i)

plus an error proportional to distance, larger along the line of sight (``Noise.radial``) than across (``lateral``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.observations import IntArray, Sightings
from dust3r_ros.data import BoolArray, FloatArray, Intrinsics

LEAST_NOISE = 1e-7
CUTOFF = 3.0  # standard deviations at which the robust (Cauchy) weight of an error is halved


@dataclass(frozen=True)
class Noise:
    """Standard deviation of a prediction of confidence 1 relative to distance; along and across the line of sight."""

    radial: float
    lateral: float

    def widened(self, factor: float) -> Noise:
        return Noise(self.radial * factor, self.lateral * factor)


@dataclass(frozen=True, eq=False)
class Lens:
    """How a view's sample pixels become rays.

    ``offset`` (2, G): pixels relative to the principal point, divided by ``unit`` pixels (known views: by fx and fy).
    ``group`` is the index of the focal the view shares (its value is in ``unit`` pixels), -1 when K is known.
    """

    offset: FloatArray
    group: int

    def rays(self, log_focal: FloatArray) -> FloatArray:
        """Rays (3, G) with z = 1."""
        focal = np.exp(log_focal[self.group]) if self.group >= 0 else 1.0
        return np.concatenate([self.offset / focal, np.ones_like(self.offset[:1])])


def make_lens(positions: FloatArray, size: tuple[int, int], known: Intrinsics | None, group: int,
              principal_point: tuple[float, float] | None = None) -> Lens:  # fmt: skip
    """The lens of pixel positions (G, 2) in an image (H, W); ``known`` intrinsics override the focal group.

    ``principal_point`` is the image centre when it is not given.
    """
    height, width = size
    if known is not None:
        offset = (positions - (known.cx, known.cy)) / (known.fx, known.fy)
        return Lens(np.ascontiguousarray(offset.T), -1)
    offset = (positions - (principal_point or (width / 2, height / 2))) / max(height, width)
    return Lens(np.ascontiguousarray(offset.T), group)


@dataclass(frozen=True, eq=False)
class FocalPrior:
    """What is known of the C focals beforehand: ``mean`` (C,) of the log focal and ``information`` (C,), 0 for none."""

    mean: FloatArray
    information: FloatArray


@dataclass(frozen=True, eq=False)
class Problem:
    """Sampled predictions of N views by E edges. ``fixed_pose``, ``fixed_depth`` (N,): what is given and stays.

    ``unit_known``: what is given fixes the world's unit too.
    """

    sightings: Sequence[Sightings]
    lenses: Sequence[Lens]
    edges: int
    fixed_pose: BoolArray
    fixed_depth: BoolArray
    unit_known: bool
    focal_prior: FocalPrior | None = None

    @property
    def residuals(self) -> int:
        return sum(s.residuals for s in self.sightings)


@dataclass(frozen=True, eq=False)
class State:
    """The unknowns: ``rotation`` (N, 3, 3) and ``centre`` (N, 3) camera to world, ``log_scale`` (E,) log sigma_e,
    ``log_focal`` (C,) in units of the longer image side, ``log_depth`` N arrays (G,).
    """

    rotation: FloatArray
    centre: FloatArray
    log_scale: FloatArray
    log_focal: FloatArray
    log_depth: Sequence[FloatArray]

    def relative(self, i: IntArray, j: int) -> tuple[FloatArray, FloatArray]:
        """Rotations (B, 3, 3) and translations (B, 3) that take points of camera j into cameras i (B,)."""
        back = np.swapaxes(self.rotation[i], -1, -2)
        return back @ self.rotation[j], np.einsum("bij,bj->bi", back, self.centre[j] - self.centre[i])

    def moved(self, rotation: FloatArray, centre: FloatArray) -> State:
        return replace(self, rotation=rotation, centre=centre)
