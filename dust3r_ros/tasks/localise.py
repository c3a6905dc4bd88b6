"""Where an image was taken, in a map that was made before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.errors import AlignmentError, RecordingError
from dust3r_ros.evaluation.packs import Pack, PackFrame, load_pack
from dust3r_ros.evaluation.run import at_network_pixels
from dust3r_ros.geometric.matching import Features, extract_features, match_features
from dust3r_ros.geometry import backproject, invert_pose, project, transform_points
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize, PairPredictor
from dust3r_ros.resection import noise_px, pose_covariance, pose_from_points
from dust3r_ros.tasks.matches import match_pixels
from dust3r_ros.tasks.pose import MOST_POINTS

_FEATURES, _RATIO = 1000, 0.85  # by which the nearest keyframes are found
_COARSE, _FINE = np.geomspace(0.5, 2.0, 13), np.geomspace(0.94, 1.06, 7)  # factors of a focal that are tried
_LEAST_SHARE = 0.1  # of the points have to fit, or the pose is not believed
_ONE_CAMERA, _OF_CAMERA = 0.02, 0.8  # four fifths of the focals of one camera differ by less from their median
MAP_CAMERA = "the map's camera"


@dataclass(frozen=True, eq=False)
class MapKeyframe:
    """A keyframe of a map as the predictor sees it.

    ``points_world`` gives its points (H, W, 3), NaN where there are none, for a prediction of it and another image.
    """

    name: str
    intrinsics: Intrinsics
    points_world: Callable[[PairPrediction], FloatArray]


@dataclass(frozen=True, eq=False)
class Located:
    """An image's place in the map.

    ``intrinsics`` are for the original image, ``intrinsics_from`` says whence; of ``points`` matched with the map
    ``inliers`` fit; ``keyframes`` are the names of those it was matched with. ``covariance`` is ``pose_covariance``'s.
    """

    camera_to_world: FloatArray
    intrinsics: Intrinsics
    intrinsics_from: str
    points: int
    inliers: int
    keyframes: tuple[str, ...]
    covariance: FloatArray


@dataclass(frozen=True, eq=False)
class SavedKeyframe:
    """A keyframe of a saved map, with its image and its features."""

    keyframe: MapKeyframe
    image: PreparedImage
    features: Features


Predict = Callable[[Intrinsics | None], tuple[list[PairPrediction], list[PairPrediction]]]
"""Predicts an image whose intrinsics may be known: of every (keyframe, image), and of every (image, keyframe)."""


def locate_among(
    near: Sequence[MapKeyframe], prepared: PreparedImage, known: Intrinsics | None, source: str, predict: Predict
) -> Located:
    """The pose of a prepared image by keyframes ``near`` it, and its intrinsics when they are not ``known``.

    Raises AlignmentError when it cannot be placed.
    """
    forward, back = predict(known)
    points, pixels = _correspondences(near, forward)
    if known is None:
        known, source = _best_focal(points, pixels, _estimated(back)), "estimated"
        forward, _ = predict(known)  # a predictor that takes intrinsics does better with them
        points, pixels = _correspondences(near, forward)
        known = _best_focal(points, pixels, known)
    found = pose_from_points(points, pixels, known)
    inliers = int(found.inliers.sum())
    if inliers < _LEAST_SHARE * len(points):
        raise AlignmentError(f"no pose fits: {inliers} of {len(points)} points matched with the map agree")
    covariance = pose_covariance(found.camera_to_world, points[found.inliers], pixels[found.inliers], known)
    original = prepared.transform.to_original(known)
    names = tuple(keyframe.name for keyframe in near)
    return Located(found.camera_to_world, original, source, len(points), inliers, names, covariance)


class Localiser:
    """A map's keyframes, ready to be compared with images. ``neighbours`` of them are paired with each image.

    ``size`` is that of the predictor's images when it is not to be its own choice.
    """

    def __init__(
        self, folder: Path, predictor: PairPredictor[Any], neighbours: int = 4, size: ImageSize | None = None
    ) -> None:
        self._predictor = predictor
        self._neighbours = neighbours
        self._size = size or predictor.image_size
        pack = load_map(folder)
        self.metric = pack.metric
        self._cameras = _cameras(Path(folder), pack)
        self.keyframes = [self._keyframe(frame) for frame in pack.frames if frame.depth_file is not None]

    def locate(self, image: ByteImage, intrinsics: Intrinsics | None = None, *, estimate: bool = False) -> Located:
        """The pose of an image (H, W, 3). ``intrinsics`` for its size where they are known; else an image as large as
        those the map was made of is taken to be of their camera, and any other's focal is estimated, or every one's
        with ``estimate``.

        Raises AlignmentError when it cannot be placed.
        """
        prepared = prepare(image, self._size)
        near = self._nearest(prepared)
        height, width = image.shape[:2]
        source = "given" if intrinsics is not None else MAP_CAMERA
        original = intrinsics or (None if estimate else self._cameras.get((width, height)))
        known = prepared.transform.to_network(original) if original is not None else None
        return locate_among(
            [saved.keyframe for saved in near], prepared, known, source,
            lambda tried: self._predict(prepared, near, tried),
        )  # fmt: skip

    def _keyframe(self, frame: PackFrame) -> SavedKeyframe:
        prepared = prepare(frame.load_image(), self._size)
        k = prepared.transform.to_network(frame.intrinsics)
        depth = at_network_pixels(_depth_of(frame), prepared)
        points = transform_points(frame.camera_to_world, backproject(depth, k))
        points[~(depth > 0)] = np.nan
        return SavedKeyframe(MapKeyframe(frame.name, k, lambda _: points), prepared, _features(prepared))

    def _nearest(self, prepared: PreparedImage) -> list[SavedKeyframe]:
        features = _features(prepared)
        shared = [len(match_features(features, keyframe.features, _RATIO)) for keyframe in self.keyframes]
        order = np.argsort(shared)[::-1][: self._neighbours]
        return [self.keyframes[at] for at in order if shared[at] > 0] or [self.keyframes[at] for at in order]

    def _predict(
        self, prepared: PreparedImage, near: Sequence[SavedKeyframe], known: Intrinsics | None
    ) -> tuple[list[PairPrediction], list[PairPrediction]]:
        """Of every (keyframe, image), and of every (image, keyframe)."""
        query = self._predictor.encode(prepared, "query", known)
        encoded = [self._predictor.encode(saved.image, "map", saved.keyframe.intrinsics) for saved in near]
        predictions = self._predictor.predict([pair for k in encoded for pair in ((k, query), (query, k))])
        return predictions[::2], predictions[1::2]


def load_map(folder: Path) -> Pack:
    """The keyframes with depth of a reconstruction's folder, or of any posed image pack with depth.

    Raises RecordingError when there are none.
    """
    folder = Path(folder)
    inner = folder / "depth" if (folder / "depth" / "cameras.json").is_file() else folder
    if not folder.is_dir():
        raise RecordingError(f"{folder}: no such folder")
    if not (inner / "cameras.json").is_file():
        raise RecordingError(f"{folder} is no map: it has neither depth/cameras.json nor cameras.json")
    pack = load_pack(inner)
    if all(frame.depth_file is None for frame in pack.frames):
        raise RecordingError(f"{folder} is a map without depth: reconstruct it with --export depth")
    return pack


def _cameras(folder: Path, pack: Pack) -> dict[tuple[int, int], Intrinsics]:
    """By (width, height), the cameras that a map's images were taken with; its keyframes may be smaller.

    A size whose images have focals of several cameras is left out.
    """
    whole = load_pack(folder, images=False) if (folder / "cameras.json").is_file() else pack
    found: dict[tuple[int, int], list[Intrinsics]] = {}
    for k in (frame.intrinsics for frame in whole.frames):
        found.setdefault((k.width, k.height), []).append(k)
    cameras = {}
    for size, some in found.items():
        middle = sorted(some, key=lambda k: k.focal_px)[len(some) // 2]
        if np.quantile([abs(k.focal_px / middle.focal_px - 1) for k in some], _OF_CAMERA) <= _ONE_CAMERA:
            cameras[size] = middle
    return cameras


def _best_focal(points: FloatArray, pixels: FloatArray, guess: Intrinsics) -> Intrinsics:
    """The intrinsics, of focals around a guess, with which the points (N, 3) fit their pixels (N, 2) best (MSAC)."""
    best, least = guess, np.inf
    for steps in (_COARSE, _FINE):
        middle = best.focal_px
        for factor in steps:
            tried = Intrinsics.from_focal(middle * factor, guess.width, guess.height)
            try:
                found = pose_from_points(points, pixels, tried)
            except AlignmentError:  # none fits with this focal
                continue
            seen = project(transform_points(invert_pose(found.camera_to_world), points), tried)
            off = np.linalg.norm(seen - pixels, axis=1) / noise_px(tried)
            cost = float(np.mean(np.fmin(off, 1.0) ** 2))  # what is behind the camera is NaN, and counts in full
            if cost < least:
                best, least = tried, cost
    return best


def _depth_of(frame: PackFrame) -> FloatArray:
    """Exact where the exact depth is beside the image, else from the 16-bit image."""
    exact = frame.depth_file.with_suffix(".npy") if frame.depth_file is not None else Path()
    if exact.is_file():
        depth = np.load(exact, allow_pickle=False)
        if depth.shape == (frame.intrinsics.height, frame.intrinsics.width):
            return np.asarray(depth, np.float32)
    depth = frame.load_depth()
    assert depth is not None  # keyframes without depth were left out
    return depth


def _features(prepared: PreparedImage) -> Features:
    grey = np.asarray(cv2.cvtColor(prepared.pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    return extract_features(grey, _FEATURES)


def _estimated(back: Sequence[PairPrediction]) -> Intrinsics:
    """The median over the image's own-frame maps."""
    found = []
    for prediction in back:
        try:
            found.append(intrinsics_of_image(prediction, own_map_only=True).intrinsics)
        except AlignmentError:  # a pair without overlap tells nothing
            continue
    if not found:
        raise AlignmentError("the image's focal cannot be estimated: it shares nothing with the map")
    return sorted(found, key=lambda k: k.focal_px)[len(found) // 2]


def _correspondences(
    near: Sequence[MapKeyframe], predictions: Sequence[PairPrediction]
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """World points (N, 3) of the keyframes, and the image's pixels (N, 2) that show them."""
    points, pixels = [], []
    for keyframe, prediction in zip(near, predictions, strict=True):
        matches = match_pixels(prediction)
        world = keyframe.points_world(prediction)[matches.pixels_i[:, 1], matches.pixels_i[:, 0]]
        good = np.isfinite(world).all(axis=1)
        step = max(1, int(good.sum()) * len(near) // MOST_POINTS)
        points.append(world[good][::step])
        pixels.append(matches.pixels_j[good][::step] + 0.5)
    return np.concatenate(points), np.concatenate(pixels)
