"""How good a pair predictor is on single pairs of posed images, against a guess that needs no image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dust3r_ros.alignment import intrinsics_of_image, pair_similarity
from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.evaluation.metrics import depth_errors, relative_errors_deg
from dust3r_ros.evaluation.run import at_network_pixels
from dust3r_ros.geometry import make_pose, pixel_rays, rotation_angle_deg
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

NO_DIRECTION_DEG = 90.0  # the median error of a direction drawn at random
_LEAST_BASELINE = 0.02  # of the median depth: below it the direction of the translation means nothing
_NO_TRANSLATION = 1e-6
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
class PairErrors:
    """Errors of one pair, or medians over pairs; NaN where there is no truth.

    ``rotation_deg`` and ``direction_deg`` are of the second camera in the first's frame, by trimmed Procrustes
    between both views' points in both frames. ``absrel`` is the mean relative depth error
    of the first view after the median scale, ``covered`` the share of its pixels with a prediction,
    ``focal_percent`` the signed error of the focal of its pointmap.
    """

    rotation_deg: float
    direction_deg: float
    absrel: float
    covered: float
    focal_percent: float


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
            errors.append(pair_errors(*pair, images[0], predictions[2 * k], predictions[2 * k + 1]))
    return _summary(pending, errors, seconds)


def pair_errors(
    first: TrueView, second: TrueView, image: PreparedImage, forward: PairPrediction, backward: PairPrediction
) -> PairErrors | None:
    """One pair's errors, None if it failed; ``image`` is the first view's, ``forward`` the pair (first, second)."""
    found = None if forward.state is PairState.FAILED else pair_similarity(forward, backward)
    if found is None:
        return None
    poses = np.stack([np.eye(4), make_pose(found.rotation, found.translation)])
    rotation, direction = relative_errors_deg(poses, np.stack([first.camera_to_world, second.camera_to_world]))
    if not np.linalg.norm(found.translation) > _NO_TRANSLATION:
        direction = np.array([NO_DIRECTION_DEG])
    known = forward.conf_i > 0
    absrel = float("nan")
    if first.depth is not None:
        depth = at_network_pixels(first.depth, image)
        errors = depth_errors([np.where(known, forward.points_i[..., 2], 0)], [depth])
        absrel = errors.absrel if errors is not None else absrel
        baseline = np.linalg.norm(second.camera_to_world[:3, 3] - first.camera_to_world[:3, 3])
        if baseline < _LEAST_BASELINE * np.median(depth[depth > 0]):
            direction = np.array([np.nan])
    focal = image.transform.to_network(first.intrinsics).focal_px
    estimated = intrinsics_of_image(forward, own_map_only=True).intrinsics.focal_px
    return PairErrors(
        rotation_deg=float(rotation[0]),
        direction_deg=float(direction[0]),
        absrel=absrel,
        covered=float(known.mean()),
        focal_percent=100 * (estimated / focal - 1),
    )


def _summary(
    pairs: Sequence[tuple[TrueView, TrueView]], errors: Sequence[PairErrors | None], seconds: float
) -> PairsResult:
    """Medians; a pair without a result has the errors of the guess, no depth and no focal."""
    counted = [e if e is not None else _failure(*pair) for pair, e in zip(pairs, errors)]
    table = np.array([list(asdict(e).values()) for e in counted])
    medians = [float(np.median(c[np.isfinite(c)])) if np.isfinite(c).any() else float("nan") for c in table.T]
    median = PairErrors(**{f.name: value for f, value in zip(fields(PairErrors), medians)})
    return PairsResult(tuple(counted), median, sum(e is None for e in errors), seconds / len(pairs))


def _failure(first: TrueView, second: TrueView) -> PairErrors:
    turn = first.camera_to_world[:3, :3].T @ second.camera_to_world[:3, :3]
    return PairErrors(float(rotation_angle_deg(turn)), NO_DIRECTION_DEG, float("nan"), 0.0, float("nan"))
