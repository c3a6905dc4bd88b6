"""What is kept of every keyframe so that its place is known again: a descriptor, and its geometry on a coarse grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.observations import Size, grid_pixels, pixel_positions
from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.geometry import Similarity


@dataclass(frozen=True, eq=False)
class Anchor:
    """The geometry of a keyframe that no longer changes by itself.

    ``camera_to_world`` (4, 4); ``depth`` (G,) float32 in world units and ``weight`` (G,) float32 (squared confidence,
    0 where the depth is unknown) at the sample pixels of a ``grid``; ``intrinsics`` for its (H, W), ``given`` or not.
    """

    camera: str
    camera_to_world: FloatArray
    depth: FloatArray
    weight: FloatArray
    intrinsics: Intrinsics
    given: bool
    grid: int

    @property
    def size(self) -> Size:
        return self.intrinsics.height, self.intrinsics.width

    def points(self) -> FloatArray:
        """Sampled points (3, G), camera frame, world units."""
        k = self.intrinsics
        positions = pixel_positions(self.size, grid_pixels(self.size, self.grid))
        rays = np.stack([(positions[:, 0] - k.cx) / k.fx, (positions[:, 1] - k.cy) / k.fy, np.ones(len(positions))])
        return rays * self.depth

    @property
    def reach(self) -> float:
        """Median known depth, world units; 1 when there is none."""
        known = self.depth[self.weight > 0]
        return float(np.median(known)) if known.size else 1.0

    def moved(self, change: Similarity) -> Anchor:
        """The same after the world around it changed."""
        pose = change.apply_to_pose(self.camera_to_world)
        return replace(self, camera_to_world=pose, depth=(self.depth * change.scale).astype(np.float32))


class PlaceIndex:
    """Descriptors of keyframes (D,), and which of them are most alike, by their cosine."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._indices: list[int] = []
        self._descriptors = np.zeros((0, 0), np.float16)

    def __len__(self) -> int:
        return len(self._indices)

    def add(self, index: int, descriptor: FloatArray) -> None:
        """Remember keyframe ``index``. Raises ValueError for a descriptor of another length than the first one's."""
        count, size = len(self._indices), len(descriptor)
        if count == 0:
            self._descriptors = np.zeros((64, size), np.float16)
        if size != self._descriptors.shape[1]:
            raise ValueError(f"descriptor must have {self._descriptors.shape[1]} values, got {size}")
        if count == len(self._descriptors):
            self._descriptors = np.concatenate([self._descriptors, np.zeros_like(self._descriptors)])
        self._descriptors[count] = descriptor / max(float(np.linalg.norm(descriptor)), 1e-12)
        self._rows[index] = count
        self._indices.append(index)

    def descriptor(self, index: int) -> FloatArray:
        """That of a remembered keyframe (D,)."""
        return self._descriptors[self._rows[index]].astype(np.float32)

    def likeness(self, descriptor: FloatArray, indices: Collection[int]) -> FloatArray:
        """Cosines (len(indices),) of a descriptor with remembered keyframes."""
        rows = [self._rows[index] for index in indices]
        norm = max(float(np.linalg.norm(descriptor)), 1e-12)
        return self._descriptors[rows].astype(np.float32) @ (descriptor / norm).astype(np.float32)

    def nearest(self, descriptor: FloatArray, among: Sequence[int], count: int, least: float) -> list[int]:
        """At most ``count`` keyframes of ``among``, the most alike first, none less than ``least``."""
        known = [index for index in among if index in self._rows]
        if not known:
            return []
        likeness = self.likeness(descriptor, known)
        order = np.argsort(-likeness, kind="stable")[:count]
        return [known[k] for k in order if likeness[k] >= least]
