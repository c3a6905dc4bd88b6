"""The newest keyframes' points, as alignment has them now: what images between keyframes are tracked against."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dust3r_ros.corners import small_grey
from dust3r_ros.data import BoolArray, FloatArray, Intrinsics, PreparedImage, Update, ViewEstimate
from dust3r_ros.geometric.matching import Features, extract_features
from dust3r_ros.geometry import Similarity, transform_points
from dust3r_ros.mapping.fuse import usable_pixels
from dust3r_ros.updates import changed_view

KEPT = 4  # keyframes of each camera: older ones fit less well, and cost time
DEPTH_STEP = 0.1  # a pixel whose neighbours' depths differ by more than this fraction lies on an edge
LEAST_CONFIDENCE = 0.1  # quantile of a keyframe's confidences below which its points are not used


@dataclass(frozen=True, eq=False)
class SeenKeyframe:
    """A keyframe's geometry: ``view`` in the world, for the pixels of ``image``.

    ``usable`` (H, W) are the pixels whose depth can be relied on.
    """

    index: int
    stamp_ns: int
    camera: str
    view: ViewEstimate
    image: PreparedImage
    usable: BoolArray
    _features: dict[int, Features] = field(default_factory=dict)  # of the image: it moves, they do not

    @property
    def intrinsics(self) -> Intrinsics:
        """Of the original image."""
        return self.image.transform.to_original(self.view.intrinsics)

    def points_world(self, pixels: FloatArray) -> FloatArray:
        """The points (N, 3) that original-image pixels (N, 2) show, NaN where there is none to rely on."""
        t, k = self.image.transform, self.view.intrinsics
        u, v = (pixels * (t.scale_x, t.scale_y) + (t.offset_x, t.offset_y)).T
        inside = (u >= 0) & (v >= 0) & (u < k.width) & (v < k.height)
        row, column = np.where(inside, v, 0).astype(int), np.where(inside, u, 0).astype(int)
        z = np.where(inside & self.usable[row, column], self.view.depth[row, column].astype(np.float64), np.nan)
        camera = np.stack([(u - k.cx) / k.fx * z, (v - k.cy) / k.fy * z, z], axis=1)
        return transform_points(self.view.camera_to_world, camera)

    def has_features(self, count: int) -> bool:
        """Whether they were looked for already: ``features`` then costs nothing."""
        return count in self._features

    def features(self, count: int) -> Features:
        """Of the small copy, at most about ``count``, in original-image pixels; they are looked for once."""
        if count not in self._features:
            grey, t = small_grey(self.image.pixels), self.image.transform
            found = extract_features(grey, count)
            network = found.points * (self.image.width / grey.shape[1], self.image.height / grey.shape[0])
            original = (network - (t.offset_x, t.offset_y)) / (t.scale_x, t.scale_y)
            self._features[count] = replace(found, points=original)
        return self._features[count]


class Landmarks:
    """A map's newest keyframes that have depth. One thread writes, any may read: a read sees one moment's keyframes."""

    def __init__(self) -> None:
        self._writing = threading.Lock()
        self._keyframes: Mapping[int, SeenKeyframe] = {}

    def of(self, camera: str) -> list[SeenKeyframe]:
        """A camera's keyframes, the oldest first."""
        return [keyframe for keyframe in self._keyframes.values() if keyframe.camera == camera]

    def clear(self) -> None:
        """The map begins anew."""
        with self._writing:
            self._keyframes = {}

    def take(self, update: Update) -> None:
        """A new keyframe, and how it moved older ones."""
        with self._writing:
            known = dict(self._keyframes)
            for index, view in update.moved.items():
                if index in known:
                    usable = _usable(view) if index in update.refined else known[index].usable
                    known[index] = replace(known[index], view=view, usable=usable)
            for index, change in update.corrections.items():
                if index in known and index not in update.moved:
                    known[index] = _followed(known[index], Similarity.from_matrix(change))
            if update.view.registered:
                new, view = update.keyframe, update.view
                known[new.index] = SeenKeyframe(new.index, new.stamp_ns, new.camera, view, new.image, _usable(view))
            self._keyframes = _newest(known)

    def follow(self, changes: Mapping[int, Similarity]) -> None:
        """A loop closure changed the world around keyframes."""
        with self._writing:
            known = self._keyframes
            self._keyframes = {v: _followed(k, changes[v]) if v in changes else k for v, k in known.items()}


def _newest(known: Mapping[int, SeenKeyframe]) -> dict[int, SeenKeyframe]:
    """The last ``KEPT`` of each camera, by index."""
    left: Counter[str] = Counter()
    kept = {}
    for index in sorted(known, reverse=True):
        left[known[index].camera] += 1
        if left[known[index].camera] <= KEPT:
            kept[index] = known[index]
    return dict(sorted(kept.items()))


def _followed(keyframe: SeenKeyframe, change: Similarity) -> SeenKeyframe:
    return replace(keyframe, view=changed_view(keyframe.view, change))


def _usable(view: ViewEstimate) -> BoolArray:
    """Without the depth edges: a corner there is as likely to lie on what is behind."""
    return usable_pixels(view, LEAST_CONFIDENCE, DEPTH_STEP)
