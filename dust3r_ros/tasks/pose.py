"""Where a camera stands: from points and the pixels that show them, and from one view's points in two frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dust3r_ros.alignment.initialise import robust_similarity
from dust3r_ros.data import BoolArray, FloatArray, Intrinsics, PairPrediction
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity, invert_pose, make_pose, procrustes

IntArray = NDArray[np.intp]

MOST_POINTS = 20_000  # that a pose is estimated from
_ITERATIONS = 1000
_CERTAINTY = 0.9999
_LEAST_POINTS = 6
_SAMPLES, _AGREES = 100, 0.05
_NOISE_PX, _NOISE_SHARE = 1.5, 0.006  # pixels or of the longer image side, whichever is more: seen where it is


@dataclass(frozen=True, eq=False)
class CameraPose:
    """``camera_to_world`` (4, 4) in the frame the points were in; ``inliers`` (N,) of them fit."""

    camera_to_world: FloatArray
    inliers: BoolArray


def noise_px(intrinsics: Intrinsics) -> float:
    """How far from where it should be a point may be seen."""
    return max(_NOISE_PX, _NOISE_SHARE * max(intrinsics.width, intrinsics.height))


def pose_from_points(points: FloatArray, pixels: FloatArray, intrinsics: Intrinsics) -> CameraPose:
    """The camera that sees ``points`` (N, 3) at ``pixels`` (N, 2; centres at integers + 0.5), by PnP in RANSAC and a
    refinement over all inliers. Raises AlignmentError when there are too few, or none that fits them.
    """
    if len(points) < _LEAST_POINTS:
        raise AlignmentError(f"a pose needs at least {_LEAST_POINTS} points, got {len(points)}")
    k = intrinsics.matrix()
    limit = noise_px(intrinsics)
    objects, image = np.ascontiguousarray(points, np.float64), np.ascontiguousarray(pixels, np.float64)
    found, turn, shift, chosen = cv2.solvePnPRansac(
        objects, image, k, None,
        iterationsCount=_ITERATIONS, reprojectionError=limit, confidence=_CERTAINTY, flags=cv2.SOLVEPNP_SQPNP,
    )  # fmt: skip
    if not found or chosen is None or len(chosen) < _LEAST_POINTS:
        raise AlignmentError(f"no camera pose fits the {len(points)} points")
    chosen = chosen.ravel()
    turn, shift = cv2.solvePnPRefineLM(objects[chosen], image[chosen], k, None, turn, shift)
    inliers = np.zeros(len(points), bool)
    inliers[chosen] = True
    world_to_camera = make_pose(np.asarray(cv2.Rodrigues(turn)[0], np.float64), np.asarray(shift, np.float64).ravel())
    return CameraPose(invert_pose(world_to_camera), inliers)


def relative_pose_pnp(prediction: PairPrediction, intrinsics_j: Intrinsics) -> CameraPose:
    """Camera j in camera i's frame, from where pixels of view j see its points, in the prediction's unit."""
    v, u = _most_confident(prediction.conf_j)
    return pose_from_points(prediction.points_j[v, u], np.stack([u + 0.5, v + 0.5], axis=1), intrinsics_j)


def relative_pose_procrustes(prediction: PairPrediction, back: PairPrediction) -> CameraPose:
    """Camera j in camera i's frame, from both views' points in both frames: ``back`` is the prediction of (j, i).

    The similarity between the two (Umeyama 1991) that most points agree on, by samples of four, and then of all of
    these. No intrinsics are needed. Raises AlignmentError when too few pixels are in both.
    """
    source, target, weight = _in_both_frames(prediction, back)
    use = np.flatnonzero(weight > 0)
    use = use[:: max(1, len(use) // MOST_POINTS)]
    if len(use) < _LEAST_POINTS:
        raise AlignmentError(f"a pose needs at least {_LEAST_POINTS} points, got {len(use)}")
    source, target, weight = source[use], target[use], weight[use]
    agreeing = _consensus(source, target)
    fit = robust_similarity(source[agreeing].T, target[agreeing].T, weight[agreeing])
    if fit is None:
        raise AlignmentError(f"no similarity fits the {len(use)} points in both frames")
    return CameraPose(make_pose(fit.rotation, fit.translation), _near(fit, source, target))


def pair_similarity(forward: PairPrediction, back: PairPrediction) -> Similarity | None:
    """Camera j's frame to camera i's by all points of both views, trimmed; None where there are too few.

    ``forward`` is the pair (i, j), ``back`` (j, i). Much faster than ``relative_pose_procrustes``, for predictions that
    are right about most of both views.
    """
    source, target, weight = _in_both_frames(forward, back)
    return robust_similarity(source.T, target.T, weight)


def _in_both_frames(forward: PairPrediction, back: PairPrediction) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Every point of both views in camera j's frame, in camera i's (N, 3), and their weights (N,), float64: the
    geometric mean of both confidences, 0 where there is no prediction.
    """
    here = np.concatenate([back.points_i.reshape(-1, 3), back.points_j.reshape(-1, 3)], dtype=np.float64)
    there = np.concatenate([forward.points_j.reshape(-1, 3), forward.points_i.reshape(-1, 3)], dtype=np.float64)
    product = np.concatenate([(forward.conf_j * back.conf_i).ravel(), (forward.conf_i * back.conf_j).ravel()])
    return here, there, np.sqrt(product, dtype=np.float64)


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
