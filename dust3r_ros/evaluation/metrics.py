"""Errors of poses, focals and depths against truth. Every figure says what it is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dust3r_ros.data import FloatArray
from dust3r_ros.geometry import Similarity, procrustes, rotation_angle_deg

AUC_LIMIT_DEG = 30.0
_NO_BASELINE = 1e-3  # of the longest baseline: below it a direction means nothing


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """What is wrong with some poses; None where it cannot be said (too few poses, or all at one place).

    ``ate_rmse`` (truth's unit): RMSE of the camera centres after ``to_truth``, the best Sim(3) (Umeyama).
    ``rotation_deg``, ``translation_deg``: median over all pairs of views of the relative rotation's error and of the
    angle between the directions of the relative translations, the latter without pairs that have no true baseline.
    ``auc_30`` (0 to 1): area under the recall curve of the larger of the two, up to 30 degrees; a pair in which a
    view was tried and has no pose counts as wrong.
    """

    ate_rmse: float | None
    rotation_deg: float | None
    translation_deg: float | None
    auc_30: float | None
    to_truth: Similarity | None


def pose_errors(estimated: FloatArray, truth: FloatArray, tried: int | None = None) -> PoseErrors:
    """Errors of ``estimated`` (N, 4, 4) against ``truth`` (N, 4, 4), both camera to world, in the same order.

    ``tried`` is the number of views that were asked for (N when None): those without a pose count in ``auc_30``.
    """
    if estimated.shape != truth.shape or estimated.shape[1:] != (4, 4):
        raise ValueError(f"estimated and truth must both be (N, 4, 4), got {estimated.shape} and {truth.shape}")
    count = len(estimated)
    tried = count if tried is None else tried
    if tried < count:
        raise ValueError(f"tried must be at least the {count} views with a pose, got {tried}")
    to_truth = align_centres(estimated, truth)
    ate = None
    if to_truth is not None:
        gap = to_truth.apply(estimated[:, :3, 3]) - truth[:, :3, 3]
        ate = float(np.sqrt((gap**2).sum(axis=1).mean()))
    if tried < 2:
        return PoseErrors(ate, None, None, None, to_truth)
    if count < 2:
        return PoseErrors(ate, None, None, 0.0, to_truth)
    rotation, translation = relative_errors_deg(estimated, truth)
    worst = np.fmax(rotation, translation)  # where the direction means nothing, the rotation alone
    known = translation[np.isfinite(translation)]
    return PoseErrors(
        ate,
        float(np.median(rotation)),
        float(np.median(known)) if len(known) else None,
        float(np.maximum(1.0 - worst / AUC_LIMIT_DEG, 0.0).sum() / (tried * (tried - 1) / 2)),
        to_truth,
    )


def align_centres(estimated: FloatArray, truth: FloatArray) -> Similarity | None:
    """The Sim(3) that best maps the camera centres of (N, 4, 4) poses onto the truth's; None when there is none."""
    if len(estimated) < 3:
        return None
    try:
        found = procrustes(estimated[:, :3, 3], truth[:, :3, 3])
    except ValueError:  # all centres coincide
        return None
    return found if found.scale > 0 else None


def relative_errors_deg(estimated: FloatArray, truth: FloatArray) -> tuple[FloatArray, FloatArray]:
    """For all pairs i < j of poses (N, 4, 4): the errors of the relative rotation and of its translation's direction.

    Both (N (N - 1) / 2,), degrees. The direction's error is NaN where the true centres coincide, and 180 where only
    the estimated ones do.
    """
    i, j = np.triu_indices(len(truth), 1)
    rotations, directions = [], []
    for poses in (estimated, truth):
        back = np.swapaxes(poses[i, :3, :3], -1, -2)
        rotations.append(back @ poses[j, :3, :3])
        directions.append(np.einsum("pij,pj->pi", back, poses[j, :3, 3] - poses[i, :3, 3]))
    rotation = rotation_angle_deg(np.swapaxes(rotations[0], -1, -2) @ rotations[1])
    return rotation, _direction_error_deg(directions[0], directions[1])


def _direction_error_deg(estimated: FloatArray, truth: FloatArray) -> FloatArray:
    length, true_length = np.linalg.norm(estimated, axis=1), np.linalg.norm(truth, axis=1)
    sine = np.linalg.norm(np.cross(estimated, truth), axis=1)
    cosine = (estimated * truth).sum(axis=1)
    angle = np.degrees(np.arctan2(sine, cosine))
    angle[length <= 1e-9 * max(float(length.max(initial=0.0)), 1e-300)] = 180.0
    angle[true_length <= _NO_BASELINE * float(true_length.max(initial=0.0))] = np.nan
    return angle


def path_length(poses: FloatArray) -> float:
    """Length of the path through the centres of poses (N, 4, 4), in their order."""
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


def focal_error_percent(estimated_px: Sequence[float], truth_px: Sequence[float]) -> float | None:
    """Mean over views of ``|f / f_true - 1|``, percent; None without views."""
    if not len(estimated_px):
        return None
    ratio = np.asarray(estimated_px, dtype=np.float64) / np.asarray(truth_px, dtype=np.float64)
    return float(100.0 * np.abs(ratio - 1.0).mean())


@dataclass(frozen=True)
class DepthErrors:
    """``absrel``: mean of ``|k d - d_true| / d_true``; ``delta_125``: share of pixels within a factor of 1.25 of truth.

    Both over all pixels of all views that have both depths, with one ``scale`` k for the scene: the median of
    ``d_true / d``. ``coverage``: share of the pixels with a true depth that have an estimate.
    """

    absrel: float
    delta_125: float
    coverage: float
    scale: float


def depth_errors(estimated: Sequence[FloatArray], truth: Sequence[FloatArray]) -> DepthErrors | None:
    """Errors of depth images against true ones of the same sizes, 0 (or not finite) where unknown; None without any."""
    pairs, with_truth = [], 0
    for depth, true in zip(estimated, truth, strict=True):
        if depth.shape != true.shape:
            raise ValueError(f"depth images must have the truth's size {true.shape}, got {depth.shape}")
        known = np.isfinite(true) & (true > 0)
        with_truth += int(known.sum())
        known &= np.isfinite(depth) & (depth > 0)
        pairs.append((depth[known].astype(np.float64), true[known].astype(np.float64)))
    d = np.concatenate([pair[0] for pair in pairs]) if pairs else np.empty(0)
    if not len(d):
        return None
    true_d = np.concatenate([pair[1] for pair in pairs])
    scale = float(np.median(true_d / d))
    ratio = scale * d / true_d
    return DepthErrors(
        absrel=float(np.abs(ratio - 1.0).mean()),
        delta_125=float((np.maximum(ratio, 1.0 / ratio) < 1.25).mean()),
        coverage=len(d) / with_truth,
        scale=scale,
    )


def associate(stamps_ns: Sequence[int], truth_ns: Sequence[int], max_gap_ns: int) -> list[tuple[int, int]]:
    """For every stamp the nearest true one, as index pairs, where they are at most ``max_gap_ns`` apart."""
    if not len(truth_ns):
        return []
    order = np.argsort(np.asarray(truth_ns, dtype=np.int64), kind="stable")
    sorted_ns = np.asarray(truth_ns, dtype=np.int64)[order]
    pairs = []
    for index, stamp in enumerate(int(stamp) for stamp in stamps_ns):
        after = int(np.searchsorted(sorted_ns, stamp))
        places = [place for place in (after - 1, after) if 0 <= place < len(sorted_ns)]
        gap, near = min((abs(int(sorted_ns[place]) - stamp), place) for place in places)
        if gap <= max_gap_ns:
            pairs.append((index, int(order[near])))
    return pairs
