"""Which pixels of two images show the same point: mutual nearest neighbours in 3D (DUSt3R, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dust3r_ros.data import BoolArray, FloatArray, PairPrediction


@dataclass(frozen=True, eq=False)
class PixelMatches:
    """``pixels_i`` (N, 2) and ``pixels_j`` (N, 2), int64 (u, v) counted from 0, of the two prepared images.

    ``gap`` (N,): distance of the two points relative to theirs from camera i; ``confidence`` (N,): the smaller one's.
    The most confident come first.
    """

    pixels_i: NDArray[np.int64]
    pixels_j: NDArray[np.int64]
    gap: FloatArray
    confidence: FloatArray

    def __len__(self) -> int:
        return len(self.pixels_i)

    def take(self, selection: BoolArray | slice) -> PixelMatches:
        """Those a mask or a slice selects."""
        return PixelMatches(
            self.pixels_i[selection], self.pixels_j[selection], self.gap[selection], self.confidence[selection]
        )


def match_pixels(prediction: PairPrediction, max_gap: float = 0.01, min_confidence: float = 0.0) -> PixelMatches:
    """Pixels whose points are each the other's nearest, and nearer than ``max_gap`` of their distance from camera i.

    Pixels without a prediction, or with less confidence than ``min_confidence``, are left out.
    """
    uv_i, points_i, conf_i = _listed(prediction.points_i, prediction.conf_i, min_confidence)
    uv_j, points_j, conf_j = _listed(prediction.points_j, prediction.conf_j, min_confidence)
    if not len(points_i) or not len(points_j):
        nothing = np.empty((0, 2), np.int64)
        return PixelMatches(nothing, nothing, np.empty(0), np.empty(0))
    distance, nearest_j = cKDTree(points_j).query(points_i, workers=-1)
    _, nearest_i = cKDTree(points_i).query(points_j, workers=-1)
    i = np.arange(len(points_i))
    gap = distance / np.maximum(np.linalg.norm(points_i, axis=1), 1e-12)
    mutual = (nearest_i[nearest_j] == i) & (gap <= max_gap)
    i, j = i[mutual], nearest_j[mutual]
    confidence = np.minimum(conf_i[i], conf_j[j])
    order = np.argsort(-confidence, kind="stable")
    i, j = i[order], j[order]
    return PixelMatches(uv_i[i], uv_j[j], gap[mutual][order], confidence[order])


def _listed(
    points: FloatArray, confidence: FloatArray, least: float
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:  # fmt: skip
    v, u = np.nonzero((confidence > 0) & (confidence >= least) & np.isfinite(points).all(axis=-1))
    return np.stack([u, v], axis=1), points[v, u].astype(np.float64), confidence[v, u].astype(np.float64)
