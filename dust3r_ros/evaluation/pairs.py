"""How good a pair predictor is on single pairs of posed images, against a guess that needs no image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dust3r_ros.alignment import intrinsics_of_image, pair_similarity
from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.evaluation.run import at_network_pixels
from dust3r_ros.geometry import invert_pose, pixel_rays
from dust3r_ros.images import prepare
from dust3r_ros.pair_errors import PairErrors, median_errors, pair_errors
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

_PAIRS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class TrueView:
    """An image (H, W, 3) uint8 RGB with its true intrinsics, pose (4, 4) camera to world and, if known, z-depth (H, W)
    in the pose's unit, 0 where there is none. ``camera`` names the physical camera.
    """

    image: ByteImage
    intrinsics: Intrinsics
    camera_to_world: FloatArray
    depth: FloatArray | None = None
    camera: str = "camera"


@dataclass(frozen=True)
class PairsResult:
    """``errors`` of every pair and their ``median``; ``failed`` of them had no result and count as the guess does;
    ``seconds`` a pair, predicted both ways, encoding included.
    """

    errors: tuple[PairErrors, ...]
    median: PairErrors
    failed: int
    seconds: float


class Guess(PairPredictor[PreparedImage]):
    """The same pose for both views, and a plane one unit before the camera, seen by a lens of 60 degrees."""

    @property
    def info(self) -> PredictorInfo:
        return PredictorInfo("guess", trained=True, licence="Apache-2.0", device="cpu")

    @property
    def image_size(self) -> ImageSize:
        return ImageSize(224)

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> PreparedImage:
        return image

    def predict(self, pairs: Sequence[tuple[PreparedImage, PreparedImage]]) -> list[PairPrediction]:
        return [PairPrediction(*_plane(i), *_plane(j)) for i, j in pairs]


def _plane(image: PreparedImage) -> tuple[FloatArray, FloatArray]:
    focal = 0.5 * max(image.height, image.width) / np.tan(np.radians(30))
    rays = pixel_rays(Intrinsics.from_focal(focal, image.width, image.height)).astype(np.float32)
    return rays, np.ones(rays.shape[:2], np.float32)


def evaluate_pairs(
    pairs: Iterable[tuple[TrueView, TrueView]], predictor: PairPredictor[Any], *, known_intrinsics: bool = False
) -> PairsResult:
    """Errors of a predictor on pairs, each predicted both ways.

    ``known_intrinsics`` gives the true ones to the predictor. Raises ValueError without pairs.
    """
    errors: list[PairErrors | None] = []
    seconds = 0.0
    pending = list(pairs)
    if not pending:
        raise ValueError("evaluate_pairs needs at least one pair, got none")
    for start in range(0, len(pending), _PAIRS_AT_ONCE):
        part = pending[start : start + _PAIRS_AT_ONCE]
        prepared = [tuple(prepare(view.image, predictor.image_size) for view in pair) for pair in part]
        began = time.perf_counter()
        encoded = [
            tuple(
                predictor.encode(
                    image, view.camera, image.transform.to_network(view.intrinsics) if known_intrinsics else None
                )
                for image, view in zip(images, pair)
            )
            for images, pair in zip(prepared, part)
        ]
        predictions = predictor.predict([ordered for a, b in encoded for ordered in ((a, b), (b, a))])
        seconds += time.perf_counter() - began
        for k, (pair, images) in enumerate(zip(part, prepared)):
            errors.append(_errors(*pair, images[0], predictions[2 * k], predictions[2 * k + 1]))
    return _summary(pending, errors, seconds)


def _errors(
    first: TrueView, second: TrueView, image: PreparedImage, forward: PairPrediction, backward: PairPrediction
) -> PairErrors | None:
    """One pair's errors, None if it failed; ``image`` is the first view's, ``forward`` the pair (first, second).

    The motion is by trimmed Procrustes between both views' points in both frames.
    """
    found = None if forward.state is PairState.FAILED else pair_similarity(forward, backward)
    if found is None:
        return None
    known = forward.conf_i > 0
    true_depth = at_network_pixels(first.depth, image) if first.depth is not None else None
    errors = pair_errors(found, _motion(first, second), forward.points_i[..., 2], true_depth, known)
    focal = image.transform.to_network(first.intrinsics).focal_px
    estimated = intrinsics_of_image(forward, own_map_only=True).intrinsics.focal_px
    return replace(errors, covered=float(known.mean()), focal_percent=100 * (estimated / focal - 1))


def _motion(first: TrueView, second: TrueView) -> FloatArray:
    """The second camera in the first's frame, (4, 4)."""
    return invert_pose(first.camera_to_world) @ second.camera_to_world


def _summary(
    pairs: Sequence[tuple[TrueView, TrueView]], errors: Sequence[PairErrors | None], seconds: float
) -> PairsResult:
    """Medians; a pair without a result has the errors of the guess, no depth and no focal."""
    counted = tuple(e if e is not None else _failure(*pair) for pair, e in zip(pairs, errors))
    return PairsResult(counted, median_errors(counted), sum(e is None for e in errors), seconds / len(pairs))


def _failure(first: TrueView, second: TrueView) -> PairErrors:
    return replace(pair_errors(None, _motion(first, second), np.empty((0, 0)), None), covered=0.0)
