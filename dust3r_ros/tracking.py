"""A pose for every image: corners of the keyframes are followed, and their points tell where the camera is (PnP).

A keyframe's corners are followed from the moment it was chosen, while its geometry is still being worked out; as soon
as that is known they count. Points are read anew for each image, so the poses follow alignment. An image in which the
corners cannot be followed, after a cover, a blur or a fast turn, is compared with the newest keyframes by its features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from dust3r_ros.config import TrackingConfig
from dust3r_ros.corners import SPACING_PX, corner_flow, find_corners, small_grey
from dust3r_ros.data import BoolArray, ByteImage, FloatArray
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometric.matching import extract_features, match_features
from dust3r_ros.landmarks import Landmarks, SeenKeyframe
from dust3r_ros.resection import pose_covariance, pose_from_points

REANCHOR_PX = 8.0  # corners are followed from one image until they have moved so far in the small copies
MIN_SURVIVING = 0.2  # share of the corners below which an image leaves them as they were: it may be an obstacle's
REANCHOR_SHARE = 0.7  # they are followed from a newer image when fewer than these are left
RELOCALISED_IMAGES = 30  # for which a pose that was found again is called so
EAGER_IMAGES = 10  # without a pose in a row that are all compared with the keyframes, for it costs more than following
MATCH_RATIO = 0.8  # of a feature's distances to its nearest and its next one (Lowe, IJCV 2004)
RELUCTANT_STEP = 5  # of those after them every so many-th is

Straighten = Callable[[FloatArray], FloatArray]
"""Takes pixels (N, 2) of a camera's image to those of the same image without its lens's distortion."""


class TrackingState(Enum):
    """Whether an image's pose is known, and how."""

    INITIALISING = "initialising"  # no image has had a pose yet
    TRACKING = "tracking"
    LOST = "lost"
    RELOCALISED = "relocalised"  # tracking again, having been lost


@dataclass(frozen=True, eq=False)
class TrackedPose:
    """What is known of one image's pose.

    ``camera_to_world`` (4, 4) is None without one; its ``covariance`` (6, 6) is that of ``pose_covariance``. Of
    ``points`` that were followed to the image ``inliers`` fit, most of them ``keyframe``'s.
    """

    stamp_ns: int
    state: TrackingState
    points: int = 0
    inliers: int = 0
    camera_to_world: FloatArray | None = None
    covariance: FloatArray | None = None
    keyframe: SeenKeyframe | None = None


class Tracker:
    """Follows one camera. Images come in order, in one thread; another one may write the landmarks."""

    def __init__(self, camera: str, config: TrackingConfig, landmarks: Landmarks, waiting: int = 1) -> None:
        """At most the ``waiting`` newest keyframes wait for their geometry: older ones will not have any."""
        self._camera = camera
        self._waiting = waiting
        self._config = config
        self._landmarks = landmarks
        self.reset()

    def reset(self) -> None:
        """Forget all images: the map, or time, begins anew."""
        self._tracks = _Tracks.none()
        self._state = TrackingState.INITIALISING
        self._found_again = 0
        self._missed = 0  # images in a row without a pose
        self.lost_since_ns: int | None = None

    def forget(self, stamp_ns: int) -> None:
        """An image that was to become a keyframe will not be one."""
        self._tracks = self._tracks.among([known for known in self._tracks.keyframes if known != stamp_ns])

    def look(self, image: ByteImage, stamp_ns: int, *, keyframe: bool,
             straighten: Straighten | None = None) -> TrackedPose:  # fmt: skip
        """The pose of an image (H, W, 3) uint8 RGB; ``keyframe`` says that it is going to be one."""
        grey = small_grey(image)
        known = {seen.stamp_ns: seen for seen in self._landmarks.of(self._camera)}
        self._tracks = self._tracks.wanted(known, self._waiting).followed(grey)
        visible = self._tracks.select(self._tracks.visible)
        found = self._locate(visible, known, visible.straight(_grown(image, grey), straighten)).pose
        if found.camera_to_world is None and known and self._recaptures():
            found = self._recapture(known, grey, _grown(image, grey), straighten) or found
        self._missed = self._missed + 1 if found.camera_to_world is None else 0
        if keyframe:
            self._begin(image, grey, stamp_ns, straighten)
        return self._judged(replace(found, stamp_ns=stamp_ns))

    def take(self, image: ByteImage, stamp_ns: int, straighten: Straighten | None = None) -> None:
        """An image that was looked at before is going to be a keyframe all the same."""
        grey = small_grey(image)
        self._tracks = self._tracks.followed(grey)
        self._begin(image, grey, stamp_ns, straighten)

    def _begin(self, image: ByteImage, grey: ByteImage, stamp_ns: int, straighten: Straighten | None) -> None:
        count = self._config.corners
        self._tracks = self._tracks.begun(grey, stamp_ns, count, _grown(image, grey), straighten)

    def _recaptures(self) -> bool:
        """Whether an image in which the corners were not followed is compared with the keyframes."""
        return self._config.features > 0 and (self._missed < EAGER_IMAGES or self._missed % RELUCTANT_STEP == 0)

    def _comparable(self, known: Collection[SeenKeyframe]) -> list[SeenKeyframe]:
        """The keyframes whose features are there, and the newest of the others: one an image, for it takes time."""
        count = self._config.features
        fresh = [keyframe for keyframe in known if not keyframe.has_features(count)][-1:]
        return [keyframe for keyframe in known if keyframe.has_features(count) or keyframe in fresh]

    def _recapture(self, known: dict[int, SeenKeyframe], grey: ByteImage, grown: FloatArray,
                   straighten: Straighten | None) -> TrackedPose | None:  # fmt: skip
        """The pose by the features that the image shares with the known keyframes; from there they are followed."""
        matched = _Tracks.matched(grey, self._comparable(known.values()), self._config.features)
        fix = self._locate(matched, known, matched.straight(grown, straighten))
        if fix.pose.camera_to_world is None:
            return None
        hoped = [stamp_ns for stamp_ns in self._tracks.keyframes if stamp_ns not in known]
        self._tracks = matched.select(fix.fits).joined(self._tracks.among(hoped).reanchored(grey))
        return fix.pose

    def _locate(self, tracks: _Tracks, known: dict[int, SeenKeyframe], pixels: FloatArray) -> _Fix:
        """The pose by tracks that the image shows at ``pixels`` (N, 2), and the known keyframes."""
        lost, none = TrackedPose(0, TrackingState.LOST), np.zeros(len(pixels), bool)
        points, sources = np.full((len(pixels), 3), np.nan), np.zeros(len(pixels), np.int64)
        for column, stamp_ns in enumerate(tracks.keyframes):  # of the keyframes that show a corner the newest counts
            if (keyframe := known.get(stamp_ns)) is not None:
                seen = keyframe.points_world(tracks.pixels[:, column])
                there = np.isfinite(seen).all(axis=1)
                points[there], sources[there] = seen[there], stamp_ns
        good = np.isfinite(points).all(axis=1)
        if np.count_nonzero(good) < self._config.min_points:
            return _Fix(replace(lost, points=int(np.count_nonzero(good))), none)
        points, pixels, sources = points[good], pixels[good], sources[good]
        newest = max(known.values(), key=lambda seen: seen.index)
        try:
            pose = pose_from_points(points, pixels, newest.intrinsics)
        except AlignmentError:
            return _Fix(replace(lost, points=len(points)), none)
        fit = pose.inliers
        lost = replace(lost, points=len(points), inliers=int(fit.sum()))
        if lost.inliers < max(self._config.min_points, self._config.min_share * len(points)):
            return _Fix(lost, none)
        stamps, votes = np.unique(sources[fit], return_counts=True)
        covariance = pose_covariance(pose.camera_to_world, points[fit], pixels[fit], newest.intrinsics)
        fits = none.copy()
        fits[np.flatnonzero(good)[fit]] = True
        return _Fix(replace(lost, state=TrackingState.TRACKING, camera_to_world=pose.camera_to_world,
                            covariance=covariance, keyframe=known[int(stamps[votes.argmax()])]), fits)  # fmt: skip

    def _judged(self, found: TrackedPose) -> TrackedPose:
        """With the state that follows from this image and those before."""
        if found.camera_to_world is None:
            if self._state is not TrackingState.INITIALISING:
                self._state = TrackingState.LOST
                self.lost_since_ns = found.stamp_ns if self.lost_since_ns is None else self.lost_since_ns
            return replace(found, state=self._state)
        if self._state is TrackingState.LOST:
            self._state, self._found_again = TrackingState.RELOCALISED, 0
        elif self._state is TrackingState.INITIALISING or self._found_again >= RELOCALISED_IMAGES:
            self._state = TrackingState.TRACKING
        self._found_again += 1
        self.lost_since_ns = None
        return replace(found, state=self._state)


def _grown(image: ByteImage, grey: ByteImage) -> FloatArray:
    """How much larger (2,) the original is than its small copy."""
    return np.array([image.shape[1] / grey.shape[1], image.shape[0] / grey.shape[0]])


@dataclass(frozen=True, eq=False)
class _Fix:
    """A pose, if there is one, and which of the tracks (N,) fit it."""

    pose: TrackedPose
    fits: BoolArray


@dataclass(frozen=True, eq=False)
class _Tracks:
    """Corners of keyframes, followed to the newest image.

    They are followed from an anchor image ``grey``, where they are at ``anchored`` (N, 2), until they have moved or
    dwindled so much that a newer image serves better: a standing camera collects no drift. ``now`` (N, 2) is where they
    were last, ``visible`` (N,) whether the newest image shows them. ``pixels`` (N, K, 2) is where each of the
    ``keyframes``, by stamp, the oldest first, shows them: original pixels without distortion, NaN where it does not.
    """

    grey: ByteImage | None
    anchored: FloatArray
    now: FloatArray
    visible: BoolArray
    keyframes: tuple[int, ...]
    pixels: FloatArray

    @classmethod
    def none(cls) -> _Tracks:
        nowhere = np.zeros((0, 2), np.float32)
        return cls(None, nowhere, nowhere, np.zeros(0, bool), (), np.zeros((0, 0, 2)))

    @classmethod
    def matched(cls, grey: ByteImage, keyframes: Sequence[SeenKeyframe], count: int) -> _Tracks:
        """Features of an image, at most about ``count``, that ``keyframes``, the oldest first, show as well."""
        features = extract_features(grey, count)
        places = {tuple(point): row for row, point in enumerate(features.points)}
        pixels = np.full((len(features.points), len(keyframes), 2), np.nan)
        for column, keyframe in enumerate(keyframes):
            matches = match_features(features, keyframe.features(count), MATCH_RATIO)
            pixels[[places[tuple(point)] for point in matches.points_i], column] = matches.points_j
        at = (features.points - 0.5).astype(np.float32)
        stamps = tuple(keyframe.stamp_ns for keyframe in keyframes)
        return cls(grey, at, at, np.ones(len(at), bool), stamps, pixels).among(stamps)

    def straight(self, grown: FloatArray, straighten: Straighten | None) -> FloatArray:
        """Where the newest image shows them (N, 2), in original pixels without distortion."""
        bent = (self.now + 0.5) * grown
        return bent if straighten is None or not len(bent) else straighten(bent)

    def joined(self, other: _Tracks) -> _Tracks:
        """With those of newer keyframes, followed from the same image."""
        ours, theirs = len(self.now), len(other.now)
        left, right = len(self.keyframes), len(other.keyframes)
        pixels = np.full((ours + theirs, left + right, 2), np.nan)
        pixels[:ours, :left], pixels[ours:, left:] = self.pixels, other.pixels
        return _Tracks(
            self.grey, np.concatenate([self.anchored, other.anchored]), np.concatenate([self.now, other.now]),
            np.concatenate([self.visible, other.visible]), (*self.keyframes, *other.keyframes), pixels,
        )  # fmt: skip

    def select(self, mask: BoolArray) -> _Tracks:
        return _Tracks(self.grey, self.anchored[mask], self.now[mask], self.visible[mask], self.keyframes,
                       self.pixels[mask])  # fmt: skip

    def among(self, stamps: Collection[int]) -> _Tracks:
        """Those of some keyframes alone."""
        columns = [column for column, stamp_ns in enumerate(self.keyframes) if stamp_ns in stamps]
        pixels = self.pixels[:, columns]
        left = replace(self, keyframes=tuple(self.keyframes[column] for column in columns), pixels=pixels)
        return left.select(np.asarray(np.isfinite(pixels).any(axis=(1, 2))))

    def wanted(self, known: Collection[int], waiting: int) -> _Tracks:
        """Without those of keyframes that are too old, or that will never be known: a newer one is, or too many wait.

        Which are newer is told by their order: stamps may have gone back.
        """
        stamps = self.keyframes
        places = [place for place, stamp_ns in enumerate(stamps) if stamp_ns in known]
        hoped = range(max(places, default=-1) + 1, len(stamps))[-waiting:]
        return self.among([stamps[place] for place in (*places, *hoped)])

    def followed(self, grey: ByteImage) -> _Tracks:
        """In a new image; one that shows too few of them leaves them as they were, to be found in the next."""
        unseen = replace(self, visible=np.zeros(len(self.now), bool))
        if self.grey is None or not len(self.now):
            return unseen
        if self.grey.shape != grey.shape:
            return _Tracks.none()
        now, seen = corner_flow(self.grey, grey, self.anchored, self.now)
        if seen.mean() < MIN_SURVIVING:
            now, seen = corner_flow(self.grey, grey, self.anchored, self.anchored)
        if seen.mean() < MIN_SURVIVING:
            return unseen
        there = replace(self, now=np.where(seen[:, None], now, self.now), visible=seen)
        moved = np.median(np.linalg.norm(now[seen] - self.anchored[seen], axis=1))
        if moved > REANCHOR_PX or seen.mean() < REANCHOR_SHARE:
            return there.reanchored(grey)
        return there

    def reanchored(self, grey: ByteImage) -> _Tracks:
        left = self.select(self.visible)
        return replace(left, grey=grey, anchored=left.now)

    def begun(self, grey: ByteImage, stamp_ns: int, count: int, grown: FloatArray,
              straighten: Straighten | None) -> _Tracks:  # fmt: skip
        """With a keyframe, and its corners where there are none yet; ``grown``: the original's size over ``grey``'s."""
        old = self.reanchored(grey) if self.visible.any() else _Tracks.none()
        corners = find_corners(grey, count)
        if len(old.now) and len(corners):
            gaps = np.linalg.norm(corners[:, None] - old.now[None], axis=2).min(axis=1)
            corners = corners[gaps >= SPACING_PX]
        at = np.concatenate([old.now, corners]).astype(np.float32)
        pixels = np.full((len(at), len(old.keyframes) + 1, 2), np.nan)
        pixels[: len(old.now), :-1] = old.pixels
        begun = _Tracks(grey, at, at, np.ones(len(at), bool), (*old.keyframes, stamp_ns), pixels)
        pixels[:, -1] = begun.straight(grown, straighten)
        return begun
