"""The one interface through which the pipeline asks for pairwise pointmaps.

``network.NetworkPredictor`` implements it with DUSt3R, ``geometric.GeometricPredictor`` with classical
two-view geometry. Further predictors only need to follow this class.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dust3r_ros.data import FloatArray, Intrinsics, PairPrediction, PreparedImage

Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class PredictorInfo:
    """What a user is told about the predictor in use. ``trained`` is False only for a network with random weights."""

    name: str
    trained: bool
    licence: str
    device: str


@dataclass(frozen=True)
class ImageSize:
    """The image form a predictor wants: long side in pixels, sides a multiple, optionally a square crop."""

    long_side: int
    multiple: int = 16
    square: bool = False


class PairPredictor(ABC, Generic[Encoded]):
    """Two views in; the pointmaps and confidences of both, in the first's camera frame, out."""

    @property
    @abstractmethod
    def info(self) -> PredictorInfo:
        """Name, licence and device."""

    @property
    @abstractmethod
    def image_size(self) -> ImageSize:
        """The image form this predictor works best with."""

    @abstractmethod
    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> Encoded:
        """What is kept of one image for all its pairs. Called once an image.

        ``camera`` names the physical camera (predictors may pool its intrinsics over images);
        ``intrinsics`` are given when known, for the prepared image.
        """

    def guess(self, camera: str, intrinsics: Intrinsics) -> None:
        """A first guess of a camera's intrinsics, for prepared images, which are estimated; by default of no use."""

    def focal_spread(self, camera: str) -> float | None:
        """Standard deviation of the logarithm of the focal that this predictor itself works out for a camera.

        None where it works out none, and its pointmaps alone tell a focal.
        """
        return None

    def warm_up(self, size: tuple[int, int], pairs: int) -> None:
        """Do beforehand what the first image (H, W) and its first pairs would wait for; by default there is nothing."""

    def announce(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> None:
        """All pairs that several calls of ``predict`` are going to bring, before the first of them.

        A predictor that learns from all images of a camera does so here; by default nothing is done.
        """

    @abstractmethod
    def predict(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairPrediction]:
        """One prediction for each ordered pair (i, j), in order. Pairs are evaluated in batches."""

    def probe(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairPrediction]:
        """As ``predict``, for pairs that may share nothing, or were predicted before: nothing may be learnt from them.

        For a predictor that learns from no pair it is the same.
        """
        return self.predict(pairs)

    def forget(self) -> None:
        """Forget what was learnt from images, as for a new map; by default nothing is learnt."""

    def describe(self, encoded: Encoded) -> FloatArray | None:
        """A descriptor (D,) by which images of one place are found again, by its cosine; None: there is none.

        D is the same for all images of a predictor; small, because it is kept of every keyframe.
        """
        return None


class SharedPredictor(PairPredictor[Encoded]):
    """A predictor that several threads use, one at a time."""

    def __init__(self, predictor: PairPredictor[Encoded]) -> None:
        self._predictor = predictor
        self._using = threading.Lock()

    @property
    def info(self) -> PredictorInfo:
        return self._predictor.info

    @property
    def image_size(self) -> ImageSize:
        return self._predictor.image_size

    def encode(self, image: PreparedImage, camera: str, intrinsics: Intrinsics | None = None) -> Encoded:
        with self._using:
            return self._predictor.encode(image, camera, intrinsics)

    def guess(self, camera: str, intrinsics: Intrinsics) -> None:
        with self._using:
            self._predictor.guess(camera, intrinsics)

    def focal_spread(self, camera: str) -> float | None:
        with self._using:
            return self._predictor.focal_spread(camera)

    def warm_up(self, size: tuple[int, int], pairs: int) -> None:
        with self._using:
            self._predictor.warm_up(size, pairs)

    def announce(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> None:
        with self._using:
            self._predictor.announce(pairs)

    def predict(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairPrediction]:
        with self._using:
            return self._predictor.predict(pairs)

    def probe(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairPrediction]:
        with self._using:
            return self._predictor.probe(pairs)

    def forget(self) -> None:
        with self._using:
            self._predictor.forget()

    def describe(self, encoded: Encoded) -> FloatArray | None:
        with self._using:
            return self._predictor.describe(encoded)
