"""A pair predictor that knows the answer: exact pointmaps of a rendered sequence, for tests of everything after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dust3r_ros.data import FloatArray, ImageTransform, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.geometry import backproject, invert_pose, transform_points
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo
from dust3r_ros.training.sequences import RenderedSequence

_THUMBNAIL_PX = 48  # long side
_DESCRIPTOR, _VOXEL_M = 509, 0.4  # values, and edge of a voxel
_FOLD = np.array([73856093, 19349663, 83492791])  # large primes, so that few voxels share a bin
_MAX_DIFFERENCE = 6.0  # grey levels between an image's thumbnail and its frame's


@dataclass(frozen=True, eq=False)
class EncodedTruth:
    """A frame of the sequence as a prepared image shows it: own points (H, W, 3) and pose (4, 4)."""

    frame: int
    points: FloatArray
    camera_to_world: FloatArray


class TruePredictor(PairPredictor[EncodedTruth]):
    """The true pointmaps of a rendered sequence, each pair at a scale of its own.

    ``encode`` receives only pixels, so it finds the frame by them: the image's thumbnail is compared with those of all
    frames, rendered small through the same resize and crop. That survives JPEG and any image size, and an image
    that is not of the sequence is refused. Confidence is 1 + 1 / depth, and 0 for sky, as near points are surer;
    the scale of pair (i, j) is drawn from ``scale_range`` by the seed and the pair, so it does not depend on order.
    """

    def __init__(
        self, sequence: RenderedSequence, *, image_size: ImageSize | None = None,
        scale_range: tuple[float, float] = (0.5, 2.0), seed: int = 0,
    ) -> None:  # fmt: skip
        self.sequence = sequence
        self._image_size = image_size or ImageSize(224)
        self._scale_range, self._seed = scale_range, seed
        self._thumbnails: dict[ImageTransform, FloatArray] = {}

    @property
    def info(self) -> PredictorInfo:
        return PredictorInfo("truth", True, "Apache-2.0", str(self.sequence.scene.device))

    @property
    def image_size(self) -> ImageSize:
        return self._image_size

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> EncodedTruth:
        """The frame an image shows. Raises ValueError for an image that is not of the sequence."""
        frame = self.identify(image)
        k = image.transform.to_network(self.sequence.intrinsics)
        depth = self.sequence.depth(frame, k).astype(np.float64)
        return EncodedTruth(frame, backproject(depth, k), self.sequence.camera_to_world[frame])

    def predict(self, pairs: Sequence[tuple[EncodedTruth, EncodedTruth]]) -> list[PairPrediction]:
        return [self._pair(one, two) for one, two in pairs]

    def describe(self, encoded: EncodedTruth) -> FloatArray:
        """Which parts of the scene are seen: roots of the counts of points in voxels, folded to a fixed length."""
        seen = encoded.points[encoded.points[..., 2] > 0]
        voxels = np.floor(transform_points(encoded.camera_to_world, seen) / _VOXEL_M).astype(np.int64)
        bins = (voxels @ _FOLD) % _DESCRIPTOR
        counts = np.sqrt(np.bincount(bins, minlength=_DESCRIPTOR))
        return (counts / max(float(np.linalg.norm(counts)), 1e-12)).astype(np.float32)

    def identify(self, image: PreparedImage) -> int:
        """The index of the frame an image shows."""
        if image.transform not in self._thumbnails:
            self._thumbnails[image.transform] = self._render_thumbnails(image.transform)
        known = self._thumbnails[image.transform]
        size = (known.shape[2], known.shape[1])
        own = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        difference = np.abs(known - own).mean(axis=(1, 2, 3))
        best = int(difference.argmin())
        if difference[best] > _MAX_DIFFERENCE:
            raise ValueError(
                f"the image is not of this sequence: the nearest frame differs by {difference[best]:.1f} grey levels"
            )
        return best

    def _render_thumbnails(self, transform: ImageTransform) -> FloatArray:
        k = transform.to_network(self.sequence.intrinsics)
        shrink = 4 * _THUMBNAIL_PX / max(k.width, k.height)  # four times too large, then averaged
        width, height = 4 * round(k.width * shrink / 4), 4 * round(k.height * shrink / 4)
        x, y = width / k.width, height / k.height
        small = Intrinsics(k.fx * x, k.fy * y, k.cx * x, k.cy * y, width, height)
        view = RenderedSequence(self.sequence.scene, self.sequence.camera_to_world, self.sequence.stamps_ns, small)
        size = (width // 4, height // 4)
        return np.stack([cv2.resize(f.image, size, interpolation=cv2.INTER_AREA) for f in view]).astype(np.float32)

    def _pair(self, one: EncodedTruth, two: EncodedTruth) -> PairPrediction:
        rng = np.random.default_rng((self._seed, one.frame, two.frame))
        low, high = np.log(self._scale_range)
        scale = np.exp(rng.uniform(low, high))
        to_one = invert_pose(one.camera_to_world) @ two.camera_to_world
        return PairPrediction(
            (scale * one.points).astype(np.float32),
            _confidence(one.points),
            (scale * transform_points(to_one, two.points)).astype(np.float32),
            _confidence(two.points),
        )


def _confidence(points: FloatArray) -> FloatArray:
    depth = points[..., 2]
    return np.where(depth > 0, 1 + 1 / np.maximum(depth, 0.1), 0).astype(np.float32)
