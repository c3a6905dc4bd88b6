"""Where the second camera of a pair stands: by the pixels that show its points, and by its points in two frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.alignment.initialise import points_in_both_frames, robust_similarity
from dust3r_ros.data import BoolArray, FloatArray, Intrinsics, PairPrediction
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity, make_pose, procrustes
from dust3r_ros.resection import LEAST_POINTS, CameraPose, pose_from_points

IntArray = NDArray[np.intp]

MOST_POINTS = 20_000  # that a pose is estimated from
_SAMPLES, _AGREES = 100, 0.05


def relative_pose_pnp(prediction: PairPrediction, intrinsics_j: Intrinsics) -> CameraPose:
    """Camera j in camera i's frame, from where pixels of view j see its points, in the prediction's unit."""
    v, u = _most_confident(prediction.conf_j)
    return pose_from_points(prediction.points_j[v, u], np.stack([u + 0.5, v + 0.5], axis=1), intrinsics_j)


def relative_pose_procrustes(prediction: PairPrediction, back: PairPrediction) -> CameraPose:
    """Camera j in camera i's frame, from both views' points in both frames: ``back`` is the prediction of (j, i).

    The similarity between the two (Umeyama 1991) that most points agree on, by samples of four, and then of all of
    these. No intrinsics are needed. Raises AlignmentError when too few pixels are in both.
    """
    source, target, weight = points_in_both_frames(prediction, back)
    use = np.flatnonzero(weight > 0)
    use = use[:: max(1, len(use) // MOST_POINTS)]
    if len(use) < LEAST_POINTS:
        raise AlignmentError(f"a pose needs at least {LEAST_POINTS} points, got {len(use)}")
    source, target, weight = source[use], target[use], weight[use]
    agreeing = _consensus(source, target)
    fit = robust_similarity(source[agreeing].T, target[agreeing].T, weight[agreeing])
    if fit is None:
        raise AlignmentError(f"no similarity fits the {len(use)} points in both frames")
    return CameraPose(make_pose(fit.rotation, fit.translation), _near(fit, source, target))


def _consensus(source: FloatArray, target: FloatArray) -> BoolArray:
    """The points (N, 3) on which the best of many similarities, each of four points, agrees with the target's."""
    random = np.random.default_rng(0)
    best = np.zeros(len(source), bool)
    for _ in range(_SAMPLES):
        four = random.choice(len(source), 4, replace=False)
        try:
            near = _near(procrustes(source[four], target[four]), source, target)
        except ValueError:  # the four coincide
            continue
        if near.sum() > best.sum():
            best = near
    return best


def _near(fit: Similarity, source: FloatArray, target: FloatArray) -> BoolArray:
    """Where the similarity is off by less than a twentieth of the distance."""
    gap = np.linalg.norm(fit.apply(source) - target, axis=1)
    return np.asarray(gap <= _AGREES * np.linalg.norm(target, axis=1))


def _most_confident(confidence: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows and columns of at most MOST_POINTS pixels: evenly spread over those with a prediction."""
    v, u = np.nonzero(confidence > 0)
    step = max(1, len(v) // MOST_POINTS)
    return v[::step], u[::step]
