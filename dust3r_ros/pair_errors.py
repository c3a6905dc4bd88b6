"""How wrong one pair's prediction is: the second camera's motion, and the first view's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dust3r_ros.data import BoolArray, FloatArray
from dust3r_ros.geometry import Similarity, rotation_angle_deg

NO_DIRECTION_DEG = 90.0  # the median error of a direction drawn at random
_LEAST_BASELINE = 0.02  # of the median depth: below it the direction of the translation means nothing
_NO_TRANSLATION = 1e-6


@dataclass(frozen=True)
class PairErrors:
    """Errors of one pair, or medians over pairs; NaN where there is no truth.

    ``rotation_deg`` and ``direction_deg`` are of the second camera in the first's frame, the latter where the cameras
    are at least 2 % of the first view's median depth apart. ``absrel`` is the mean relative depth error of the first
    view after the median scale, ``covered`` the share of its pixels with a prediction, ``focal_percent`` the signed
    error of the focal of its pointmap.
    """

    rotation_deg: float
    direction_deg: float
    absrel: float = float("nan")
    covered: float = float("nan")
    focal_percent: float = float("nan")


def pair_errors(
    found: Similarity | None, second_to_first: FloatArray, depth: FloatArray, true_depth: FloatArray | None,
    known: BoolArray | None = None,
) -> PairErrors:  # fmt: skip
    """Of a motion and the first view's ``depth`` (H, W) where it is ``known`` (everywhere when None).

    ``found`` takes the second camera's frame into the first's, up to scale; None counts as the guess: the same pose,
    any direction. ``second_to_first`` (4, 4) and ``true_depth`` (H, W), 0 where unknown, are the truth.
    """
    rotation = np.eye(3) if found is None else found.rotation
    translation = np.zeros(3) if found is None else found.translation
    truth = np.asarray(second_to_first, np.float64)
    apart, absrel = 0.0, float("nan")
    if true_depth is not None and (true_depth > 0).any():
        absrel = _absrel(depth, true_depth, known)
        apart = _LEAST_BASELINE * float(np.median(true_depth[true_depth > 0]))
    has_direction = np.linalg.norm(truth[:3, 3]) > apart
    direction = _angle_deg(translation, truth[:3, 3]) if has_direction else float("nan")
    return PairErrors(float(rotation_angle_deg(rotation.T @ truth[:3, :3])), direction, absrel)


def median_errors(errors: Sequence[PairErrors]) -> PairErrors:
    """The median of each error over the pairs that have it; NaN where none has."""
    values = {f.name: np.array([getattr(e, f.name) for e in errors], np.float64) for f in fields(PairErrors)}
    finite = {name: some[np.isfinite(some)] for name, some in values.items()}
    return PairErrors(**{name: float(np.median(v)) if len(v) else float("nan") for name, v in finite.items()})


def _absrel(depth: FloatArray, truth: FloatArray, known: BoolArray | None) -> float:
    """Mean relative error after the median scale; a depth that is not positive and finite has an error of 1."""
    where = truth > 0 if known is None else (truth > 0) & known
    if not where.any():
        return float("nan")
    ratio = depth[where].astype(np.float64) / truth[where]
    use = np.isfinite(ratio) & (ratio > 0)
    wrong = np.ones(len(ratio))
    if use.any():
        wrong[use] = np.abs(ratio[use] / np.median(ratio[use]) - 1)
    return float(wrong.mean())


def _angle_deg(found: FloatArray, truth: FloatArray) -> float:
    """Between two directions; as for a random one where none was found."""
    if not np.linalg.norm(found) > _NO_TRANSLATION:
        return NO_DIRECTION_DEG
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(found, truth)), found @ truth)))
