"""Whether two keyframes, far apart in time, truly see the same place, and how they then lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.initialise import robust_scale, robust_similarity
from dust3r_ros.alignment.observations import SampledEdge, grid_pixels, sample_edge
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.data import BoolArray, Edge, FloatArray, PairPrediction, PairState
from dust3r_ros.geometry import Similarity, rotation_angle_deg

INLIER = 0.15  # error relative to distance within which a prediction agrees with what is known
LEAST_SHARE = 0.5  # of the pixels that can be compared
LEAST_COVERED = 0.1  # of a view's sample pixels, that can be compared at all
MOST_TURN_DEG = 6.0  # between two measurements of one relation
MOST_STRETCH = 0.2  # of their scales, log
MOST_SHIFT = 0.15  # of their translations, relative to the distance of what is seen
LEAST_SIGMA = 0.01


@dataclass(frozen=True, eq=False)
class Loop:
    """Keyframes ``old`` and ``new`` see the same place: ``relative`` takes points of the new camera into the old one,
    both in the unit their keyframes have now. ``sigma`` is its noise as in ``GraphEdge``, ``reach`` the distance of
    what the new one sees.
    """

    old: int
    new: int
    relative: Similarity
    sigma: float
    reach: float


@dataclass(frozen=True, eq=False)
class _Seen:
    """One direction's answer: a relation, and how its parts agree with what is known."""

    relative: Similarity
    spread: float


def verify(old: int, new: int, forward: PairPrediction, backward: PairPrediction, at_old: Anchor,
           at_new: Anchor | None, min_confidence: float, usual_confidence: float) -> Loop | None:  # fmt: skip
    """The loop between an old keyframe and a new one by both directed predictions (old, new) and (new, old), or None.

    It needs both pairs to be good (no pure rotation, no plane), half as confident as ``usual_confidence``, of the shape
    that the keyframes are known to have, of one mind about the relation, and surfaces that coincide where both
    cameras look. Without ``at_new`` the new keyframe's own prediction stands for its shape.
    """
    if forward.state is not PairState.GOOD or backward.state is not PairState.GOOD:
        return None
    pixels_old = grid_pixels(at_old.size, at_old.grid)
    pixels_new = grid_pixels(_size(backward.conf_i), at_old.grid)
    there = sample_edge(Edge(old, new, forward), pixels_old, pixels_new, min_confidence)
    back = sample_edge(Edge(new, old, backward), pixels_new, pixels_old, min_confidence)
    if min(cross_confidence(there), cross_confidence(back)) < LEAST_SHARE * usual_confidence:
        return None
    shape_old, known_old = at_old.points(), at_old.weight > 0
    shape_new, known_new = (at_new.points(), at_new.weight > 0) if at_new else (back.points_i, back.weight_i > 0)
    one = _relation(there, shape_old, known_old, shape_new, known_new)
    two = _relation(back, shape_new, known_new, shape_old, known_old)
    if one is None or two is None:
        return None
    reach = float(np.median(shape_new[2, known_new]))
    other = two.relative.inverse()
    if not similar(one.relative, other, reach):
        return None
    relative = _between(one.relative, other)
    if not _coincide(relative.inverse(), shape_old[:, known_old], shape_new[:, known_new]):
        return None
    sigma = max(0.5 * _distance(one.relative, other, reach), 0.2 * max(one.spread, two.spread), LEAST_SIGMA)
    return Loop(old, new, relative, sigma, reach)


def similar(first: Similarity, second: Similarity, reach: float) -> bool:
    """Whether two measurements of one relation could both be right; ``reach`` as in ``Loop``."""
    gap = first.inverse().compose(second)
    return (
        float(rotation_angle_deg(gap.rotation)) <= MOST_TURN_DEG
        and abs(np.log(gap.scale)) <= MOST_STRETCH
        and float(np.linalg.norm(gap.translation)) <= MOST_SHIFT * reach
    )


def confirmed(loops: Sequence[Loop], world: dict[int, Similarity]) -> list[Loop]:
    """The loops that at least one other confirms, by going round through both and the path between.

    ``world`` has the camera-to-world similarity of every keyframe that loops name.
    """
    good: set[int] = set()
    for a, first in enumerate(loops):
        for b in range(a + 1, len(loops)):
            second = loops[b]
            if (first.old, first.new) == (second.old, second.new):
                continue
            along_new = world[second.new].inverse().compose(world[first.new])
            along_old = world[second.old].inverse().compose(world[first.old])
            expected = along_old.inverse().compose(second.relative).compose(along_new)
            if similar(first.relative, expected, first.reach):
                good |= {a, b}
    return [loops[k] for k in sorted(good)]


def _size(confidence: FloatArray) -> tuple[int, int]:
    return confidence.shape[0], confidence.shape[1]


def cross_confidence(edge: SampledEdge) -> float:
    """Mean confidence of what view j's pixels are predicted with: the part that needs both images."""
    return float(np.sqrt(edge.weight_j).mean())


def _relation(edge: SampledEdge, shape_i: FloatArray, known_i: BoolArray, shape_j: FloatArray,
              known_j: BoolArray) -> _Seen | None:  # fmt: skip
    """From camera j into camera i, each in its keyframe's unit; None where the prediction contradicts a known shape."""
    use_i, use_j = edge.weight_i * known_i, edge.weight_j * known_j
    scale = robust_scale(edge.points_i, shape_i, use_i)
    fit = robust_similarity(shape_j, edge.points_j, use_j)
    if not scale > 0 or fit is None:
        return None
    placed = fit.apply(shape_j.T).T
    own = _errors(scale * edge.points_i, shape_i, use_i)
    seen = _errors(placed, edge.points_j, use_j)
    for error, samples in ((own, len(use_i)), (seen, len(use_j))):
        if len(error) < LEAST_COVERED * samples or (error < INLIER).mean() < LEAST_SHARE:
            return None
    spread = float(np.median(np.concatenate([own, seen])))
    return _Seen(Similarity(scale * fit.scale, fit.rotation, scale * fit.translation), spread)


def _errors(points: FloatArray, target: FloatArray, weight: FloatArray) -> FloatArray:
    """Distances of points (3, G) from their targets relative to the targets' own, where there is weight."""
    use = weight > 0
    size = np.maximum(np.linalg.norm(target[:, use], axis=0), 1e-12)
    return np.linalg.norm(points[:, use] - target[:, use], axis=0) / size


def _coincide(to_new: Similarity, shape_old: FloatArray, shape_new: FloatArray) -> bool:
    """Whether the old keyframe's surface (3, P), where the new camera looks, lies where the new one saw a surface."""
    seen = to_new.apply(shape_old.T).T
    seen = seen[:, seen[2] > 0]
    if seen.shape[1] == 0:
        return False
    rays, directions = shape_new[:2] / shape_new[2], seen[:2] / seen[2]
    spacing2 = float(np.prod(rays.max(axis=1) - rays.min(axis=1))) / rays.shape[1]
    gap, nearest = cKDTree(rays.T).query(directions.T, distance_upper_bound=np.sqrt(spacing2))
    inside = np.isfinite(gap)
    if inside.sum() < LEAST_COVERED * shape_old.shape[1]:
        return False
    ratio = seen[2, inside] / shape_new[2, nearest[inside]]
    return bool((np.abs(np.log(ratio)) < 1.5 * INLIER).mean() >= LEAST_SHARE)


def _between(first: Similarity, second: Similarity) -> Similarity:
    """Half way from one relation to another that differs little."""
    turn = Rotation.from_matrix(first.rotation.T @ second.rotation).as_rotvec()
    return Similarity(
        float(np.sqrt(first.scale * second.scale)),
        first.rotation @ Rotation.from_rotvec(0.5 * turn).as_matrix(),
        0.5 * (first.translation + second.translation),
    )


def _distance(first: Similarity, second: Similarity, reach: float) -> float:
    gap = first.inverse().compose(second)
    turn = np.radians(float(rotation_angle_deg(gap.rotation)))
    return max(turn, abs(float(np.log(gap.scale))), float(np.linalg.norm(gap.translation)) / reach)
