"""Classical two-view geometry as a pair predictor: no weights, and the baseline every network has to beat."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.geometric.assemble import ReferenceDepth, directed_prediction
from dust3r_ros.geometric.focal import Focal, FocalCalibrator, SizedMatches
from dust3r_ros.geometric.matching import Features, Matches, extract_features, match_features, pooled
from dust3r_ros.geometric.pair import PairGeometry, solve_pair
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo

log = logging.getLogger(__name__)

FEATURES = 2000
RATIO = 0.85
MAX_THREADS = 4  # pairs solved side by side; OpenCV's seed is one a thread, so the answer does not depend on it

_Key = tuple[int, int]


@dataclass(eq=False)
class GeometricView:
    """What is kept of one image. ``reference`` collects its depth over its pairs, so that they share a scale."""

    grey: ByteImage
    features: Features
    camera: str
    intrinsics: Intrinsics | None
    reference: ReferenceDepth = field(default_factory=ReferenceDepth)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.grey.shape[1], self.grey.shape[0]


class GeometricPredictor(PairPredictor[GeometricView]):
    """Pointmaps from features, essential matrix, epipolar stereo, optical flow and triangulation.

    Both directions of a pair come from one geometry, so (i, j) and (j, i) differ only by frame and scale. Each view's
    own-frame depths have one scale over all its pairs: the first pair sets its median depth to 1, the others are
    scaled to what is known already. Focals come from the given intrinsics; for a camera without, from all pairs of
    its images that were ever passed to ``predict``, taken in before anything of that call is triangulated. From
    ``probe`` neither focals nor depths are learnt.
    """

    def __init__(self, image_size: int = 512, seed: int = 0) -> None:
        if image_size < 64:
            raise ValueError(f"image_size must be at least 64, got {image_size}")
        self._image_size = ImageSize(image_size)
        self._seed = seed
        self.forget()

    @property
    def info(self) -> PredictorInfo:
        return PredictorInfo("geometric", trained=True, licence="Apache-2.0", device="cpu")

    @property
    def image_size(self) -> ImageSize:
        return self._image_size

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> GeometricView:
        """Grey image and features. Raises ValueError for intrinsics of another size than the image's."""
        if intrinsics is not None and (intrinsics.width, intrinsics.height) != (image.width, image.height):
            raise ValueError(
                f"intrinsics must be for the prepared {image.width}x{image.height} image, "
                f"got {intrinsics.width}x{intrinsics.height}"
            )
        grey = np.asarray(cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        self._sizes[camera] = (image.width, image.height)
        return GeometricView(grey, extract_features(grey, FEATURES), camera, intrinsics)

    def forget(self) -> None:
        self._calibrator = FocalCalibrator(self._seed)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._announced: dict[_Key, Matches] = {}

    def guess(self, camera: str, intrinsics: Intrinsics) -> None:
        self._calibrator.guess(camera, intrinsics.focal_px / float(np.sqrt(intrinsics.width * intrinsics.height)))

    def focal_spread(self, camera: str) -> float:
        return self._calibrator.relative(camera)[1]

    def describe(self, encoded: GeometricView) -> FloatArray:
        return pooled(encoded.features)

    def announce(self, pairs: Sequence[tuple[GeometricView, GeometricView]]) -> None:
        """Match all pairs, and learn the cameras' focals from all of them."""
        unordered = _unordered(pairs)
        self._announced = {key: match_features(a.features, b.features, RATIO) for key, (a, b) in unordered.items()}
        self._calibrate(unordered, self._announced)

    def predict(self, pairs: Sequence[tuple[GeometricView, GeometricView]]) -> list[PairPrediction]:
        unordered = _unordered(pairs)
        matches = {key: self._announced.pop(key) for key in unordered if key in self._announced}
        unknown = {key: pair for key, pair in unordered.items() if key not in matches}
        matches |= {key: match_features(a.features, b.features, RATIO) for key, (a, b) in unknown.items()}
        self._calibrate(unknown, matches)
        return self._answer(pairs, unordered, matches)

    def probe(self, pairs: Sequence[tuple[GeometricView, GeometricView]]) -> list[PairPrediction]:
        copied = {id(v): replace(v, reference=replace(v.reference)) for pair in pairs for v in pair}
        copies = [(copied[id(a)], copied[id(b)]) for a, b in pairs]
        unordered = _unordered(copies)
        matches = {key: match_features(a.features, b.features, RATIO) for key, (a, b) in unordered.items()}
        return self._answer(copies, unordered, matches)

    def _answer(
        self, pairs: Sequence[tuple[GeometricView, GeometricView]],
        unordered: dict[_Key, tuple[GeometricView, GeometricView]], matches: dict[_Key, Matches],
    ) -> list[PairPrediction]:  # fmt: skip
        with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            found = {key: pool.submit(self._solve, a, b, matches[key]) for key, (a, b) in unordered.items()}
        solved = {key: future.result() for key, future in found.items()}
        return [self._directed(i, j, unordered, solved) for i, j in pairs]

    def focal(self, camera: str) -> Focal:
        """The self-calibrated focal of a camera and its spread, pixels of its last prepared image.

        Raises ValueError for a camera of which no image was encoded.
        """
        if camera not in self._sizes:
            raise ValueError(f"camera must be one of {sorted(self._sizes)}, got {camera!r}")
        return self._calibrator.focal(camera, *self._sizes[camera])

    def focal_px(self, camera: str) -> float:
        """``focal(camera).focal_px``."""
        return self.focal(camera).focal_px

    def intrinsics(self, view: GeometricView) -> Intrinsics:
        """The view's given intrinsics, or those its camera is thought to have now."""
        if view.intrinsics is not None:
            return view.intrinsics
        width, height = view.size
        return Intrinsics.from_focal(self._calibrator.focal(view.camera, width, height).focal_px, width, height)

    def _calibrate(
        self, unordered: dict[_Key, tuple[GeometricView, GeometricView]], matches: dict[_Key, Matches]
    ) -> None:
        by_camera: dict[str, list[SizedMatches]] = defaultdict(list)
        for key, (a, b) in unordered.items():
            if a.intrinsics is None and b.intrinsics is None and a.camera == b.camera:
                by_camera[a.camera].append(SizedMatches(matches[key], a.size, b.size))
        for camera, observed in by_camera.items():
            self._calibrator.observe(camera, observed)
            relative, spread = self._calibrator.relative(camera)
            log.debug("camera %s: focal %.3f of the image's mean side, +- %.1f %%", camera, relative, 100 * spread)

    def _solve(self, a: GeometricView, b: GeometricView, matches: Matches) -> PairGeometry:
        return solve_pair(a.grey, b.grey, self.intrinsics(a), self.intrinsics(b), matches, self._seed)

    def _directed(
        self, i: GeometricView, j: GeometricView, unordered: dict[_Key, tuple[GeometricView, GeometricView]],
        solved: dict[_Key, PairGeometry],
    ) -> PairPrediction:  # fmt: skip
        key = _key(i, j)
        geometry = solved[key] if unordered[key][0] is i else solved[key].swapped()
        return directed_prediction(geometry, self.intrinsics(i), self.intrinsics(j), i.reference)


def _key(a: GeometricView, b: GeometricView) -> _Key:
    return (id(a), id(b)) if id(a) < id(b) else (id(b), id(a))


def _unordered(
    pairs: Sequence[tuple[GeometricView, GeometricView]],
) -> dict[_Key, tuple[GeometricView, GeometricView]]:
    """Each pair once, in the direction in which it comes first."""
    found: dict[_Key, tuple[GeometricView, GeometricView]] = {}
    for a, b in pairs:
        found.setdefault(_key(a, b), (a, b))
    return found
