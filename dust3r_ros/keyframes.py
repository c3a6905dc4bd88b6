"""Which images become keyframes: decided on every image, cheaply, by what the camera sees and not by time.

Corners of the last keyframe are followed through a small grey copy of each image by pyramidal Lucas-Kanade. What of
their motion a pure rotation cannot explain is parallax, the part two-view geometry and DUSt3R live from; how much of
the keyframe's area is still in view is overlap. A camera that stands still gives neither, a turning one only overlap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

import cv2
import numpy as np

from dust3r_ros.config import KeyframeConfig
from dust3r_ros.corners import corner_flow, find_corners, small_grey
from dust3r_ros.data import BoolArray, ByteImage, FloatArray

CORNERS = 220
MIN_CORNERS = 12  # fewer, and an image cannot be followed
MIN_SURVIVING = 0.2  # share of the keyframe's corners below which it counts as lost
USUAL_SURVIVING = 0.6  # with fewer corners the view has changed though its frame still overlaps, as on an orbit
REANCHOR_PX = 8.0
# In long sides: 61 degrees across. Only the size of the parallax depends on it: for cameras from 32 to 90 degrees a
# pure rotation seems to have less than 0.02 of parallax until its overlap falls below 0.65.
NOMINAL_FOCAL = 0.85
FIT_STEPS = 4
STILL_PX = 0.5  # with most corners where they were the camera stands still, whatever moves before it
OUTLIER = 0.05  # of the long side: residuals beyond it weigh less
SHARPNESS_MEMORY = 31
MAX_WAIT_NS = 500_000_000
MAX_WAIT_IMAGES = 15
CRITICAL_OVERLAP = 0.75  # times min_overlap: a blurred image is taken rather than losing the map


class KeyframeReason(Enum):
    """Why an image was taken, or not."""

    FIRST = "first image"
    EVERY = "every image is taken"
    PARALLAX = "parallax"
    OVERLAP = "little overlap"
    LOST = "tracks lost"
    NEAR = "too near the last keyframe"
    BLURRED = "waits for a sharper image"
    NO_TEXTURE = "nothing to follow"


@dataclass(frozen=True)
class KeyframeDecision:
    """What was decided on one image.

    ``parallax`` is the median image motion since the last keyframe that a pure rotation leaves, as a fraction of the
    long side; ``overlap`` the share of the last keyframe's area still in view (0 when lost); ``sharpness`` the
    variance of the Laplacian relative to its median over the recent images.
    """

    take: bool
    reason: KeyframeReason
    parallax: float
    overlap: float
    sharpness: float


class KeyframeSelector:
    """Decides image by image for one camera; an image it takes becomes the one later images are compared with."""

    def __init__(self, config: KeyframeConfig | None = None) -> None:
        self.config = config or KeyframeConfig()
        self.reset()

    def reset(self) -> None:
        """Forget all images: the next one is taken as the first."""
        self._tracks: _Tracks | None = None
        self._sharpness: deque[float] = deque(maxlen=SHARPNESS_MEMORY)
        self._waiting_since_ns: int | None = None
        self._waited = 0

    def consider(self, image: ByteImage, stamp_ns: int) -> KeyframeDecision:
        """Whether an image, (H, W, 3) uint8 RGB or (H, W) grey, taken at ``stamp_ns``, should be a keyframe.

        Images of one camera, in order. Raises ValueError for another form.
        """
        grey = small_grey(image)
        decision = self._decide(grey, self._relative_sharpness(grey), stamp_ns)
        if decision.take:
            self._restart(grey)
        return decision

    def take(self, image: ByteImage) -> None:
        """An image that was considered, and left out, becomes a keyframe all the same."""
        self._restart(small_grey(image))

    def _restart(self, grey: ByteImage) -> None:
        self._tracks = _Tracks.start(grey)
        self._waiting_since_ns, self._waited = None, 0

    def _decide(self, grey: ByteImage, sharpness: float, stamp_ns: int) -> KeyframeDecision:
        if self.config.every_image:
            return KeyframeDecision(True, KeyframeReason.EVERY, 0.0, 1.0, sharpness)
        if self._tracks is None or self._tracks.grey.shape != grey.shape:
            return self._first(grey, sharpness)
        motion = self._tracks.follow(grey)
        wish = self._wish(motion)
        decision = KeyframeDecision(wish is not KeyframeReason.NEAR, wish, motion.parallax, motion.overlap, sharpness)
        if not decision.take:
            self._waiting_since_ns, self._waited = None, 0
            return decision
        if wish is KeyframeReason.LOST and not _has_texture(grey):
            return replace(decision, take=False, reason=KeyframeReason.NO_TEXTURE)
        if sharpness < self.config.max_blur and self._may_wait(motion, stamp_ns):
            return replace(decision, take=False, reason=KeyframeReason.BLURRED)
        return decision

    def _first(self, grey: ByteImage, sharpness: float) -> KeyframeDecision:
        good = _has_texture(grey)
        return KeyframeDecision(good, KeyframeReason.FIRST if good else KeyframeReason.NO_TEXTURE, 0.0, 0.0, sharpness)

    def _wish(self, motion: _Motion) -> KeyframeReason:
        if motion.lost:
            return KeyframeReason.LOST
        if motion.overlap < self.config.min_overlap:
            return KeyframeReason.OVERLAP
        return KeyframeReason.PARALLAX if motion.parallax >= self.config.min_parallax else KeyframeReason.NEAR

    def _may_wait(self, motion: _Motion, stamp_ns: int) -> bool:
        """Bounded, in time and in images; while the keyframe is still well in view, or lost to the blur itself."""
        if not motion.lost and motion.overlap < CRITICAL_OVERLAP * self.config.min_overlap:
            return False
        if self._waiting_since_ns is None:
            self._waiting_since_ns = stamp_ns
        self._waited += 1
        return self._waited <= MAX_WAIT_IMAGES and abs(stamp_ns - self._waiting_since_ns) <= MAX_WAIT_NS

    def _relative_sharpness(self, grey: ByteImage) -> float:
        value = float(cv2.Laplacian(grey, cv2.CV_32F).var())
        self._sharpness.append(value)
        return value / max(float(np.median(self._sharpness)), 1e-6)


@dataclass(frozen=True)
class _Motion:
    parallax: float
    overlap: float
    lost: bool = False


_LOST = _Motion(0.0, 0.0, lost=True)


class _Tracks:
    """The last keyframe's corners, followed to the newest image.

    They are followed from an anchor image: the keyframe itself, so that a standing camera collects no drift, until
    they have moved or dwindled so much that a newer image serves better. ``reference`` (N, 2) in the keyframe,
    ``anchored`` (N, 2) in the anchor; both shrink together as corners are lost.
    """

    def __init__(self, grey: ByteImage, corners: FloatArray) -> None:
        self.grey = grey
        self.reference = corners
        self.anchored = corners
        self._guess = corners
        self._started_with = len(corners)

    @classmethod
    def start(cls, grey: ByteImage) -> _Tracks:
        return cls(grey, find_corners(grey, CORNERS))

    def follow(self, grey: ByteImage) -> _Motion:
        """Motion since the keyframe; an image in which it is lost leaves the tracks as they were."""
        least = max(MIN_CORNERS, round(MIN_SURVIVING * self._started_with))
        if len(self.anchored) < least:
            return _LOST
        now, kept = corner_flow(self.grey, grey, self.anchored, self._guess)
        if np.count_nonzero(kept) < least:
            now, kept = corner_flow(self.grey, grey, self.anchored, self.anchored)
        if np.count_nonzero(kept) < least:
            return _LOST
        self._guess = np.where(kept[:, None], now, self._guess)
        surviving = np.count_nonzero(kept) / self._started_with
        motion = _Motion(
            _parallax(self.reference[kept], now[kept], grey.shape),
            min(_overlap(self.reference[kept], now[kept], grey.shape), surviving / USUAL_SURVIVING),
        )
        moved = float(np.median(np.linalg.norm(now[kept] - self.anchored[kept], axis=1)))
        if moved > REANCHOR_PX or np.count_nonzero(kept) < 0.7 * len(kept):
            self._move_anchor(grey, now, kept)
        return motion

    def _move_anchor(self, grey: ByteImage, now: FloatArray, kept: BoolArray) -> None:
        self.grey = grey
        self.reference = self.reference[kept]
        self.anchored = self._guess = now[kept]


def _has_texture(grey: ByteImage) -> bool:
    return len(find_corners(grey, CORNERS)) >= MIN_CORNERS and float(grey.std()) > 2.0


def _parallax(first: FloatArray, second: FloatArray, shape: tuple[int, ...]) -> float:
    """Median residual of the best rotation (Kabsch on rays of a nominal focal, reweighted), in long sides."""
    if np.median(np.linalg.norm(second - first, axis=1)) < STILL_PX:
        return 0.0
    a, b = _rays(first, shape), _rays(second, shape)
    weights = np.ones(len(a))
    for _ in range(FIT_STEPS):
        u, _, vt = np.linalg.svd((b * weights[:, None]).T @ a)
        u[:, 2] *= np.linalg.det(u @ vt)
        turned = a @ (u @ vt).T
        turned = turned[:, :2] / np.maximum(turned[:, 2:], 1e-3)
        residual = np.linalg.norm(turned - b[:, :2] / b[:, 2:], axis=1) * NOMINAL_FOCAL
        weights = 1 / np.maximum(residual, OUTLIER)
    return float(np.median(residual))


def _rays(points: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Unit rays (N, 3) of points (N, 2)."""
    height, width = shape[:2]
    centred = (points + 0.5 - (width / 2, height / 2)) / (NOMINAL_FOCAL * max(width, height))
    rays = np.column_stack([centred, np.ones(len(centred))])
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _overlap(first: FloatArray, second: FloatArray, shape: tuple[int, ...]) -> float:
    """Share of the first image's area that a similarity transform, fitted robustly, leaves inside the second."""
    height, width = shape[:2]
    offset = np.array([width / 2, height / 2])
    a = (first - offset) @ (1, 1j)
    b = (second - offset) @ (1, 1j)
    weights = np.ones(len(a))
    for _ in range(FIT_STEPS):
        mean_a, mean_b = (weights @ a) / weights.sum(), (weights @ b) / weights.sum()
        spread = (weights * abs(a - mean_a) ** 2).sum()
        turn = (weights * (a - mean_a).conj() * (b - mean_b)).sum() / max(spread, 1e-6)
        weights = 1 / np.maximum(abs(turn * (a - mean_a) + mean_b - b), 1.0)
    corner = np.array([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])
    frame = corner.real * offset[0] + 1j * corner.imag * offset[1]
    seen = turn * (frame - mean_a) + mean_b
    moved = np.column_stack([seen.real, seen.imag]).astype(np.float32)
    fixed = np.column_stack([frame.real, frame.imag]).astype(np.float32)
    area = abs(turn) ** 2 * width * height
    if not 0.05 < abs(turn) < 20:
        return 0.0
    return float(min(1.0, cv2.intersectConvexConvex(moved, fixed)[0] / area))
