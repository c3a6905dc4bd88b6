"""Keyframes' depth images become one map, which follows when alignment moves a keyframe."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from dust3r_ros.config import MapConfig
from dust3r_ros.data import BoolArray, ByteImage, FloatArray, ViewEstimate
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.voxels import Contribution, VoxelGrid, VoxelState, renumbered

log = logging.getLogger(__name__)

_STILL = 0.25  # a keyframe none of whose points moved this many voxels is not fused anew
_PROBES = 16  # points along each image side by which a move is judged
_VOXEL_BYTES = 36  # what a keyframe that may move remembers for each voxel it touched


def usable_pixels(view: ViewEstimate, quantile: float, max_depth_step: float = 0.0) -> BoolArray:
    """Mask (H, W) of a view's pixels that are good enough for a map.

    They have a depth, a confidence not below the ``quantile`` of the view's, and, unless ``max_depth_step`` is 0,
    no neighbour whose depth differs by more than that fraction: the network draws a veil across depth edges.
    """
    known = (view.confidence > 0) & (view.depth > 0) & np.isfinite(view.depth) & np.isfinite(view.confidence)
    if not known.any() or not view.registered:
        return np.zeros(view.depth.shape, bool)
    keep = known & (view.confidence >= np.quantile(view.confidence[known], quantile))
    if max_depth_step > 0:
        around = np.ones((3, 3), np.uint8)
        nearest = cv2.erode(np.where(known, view.depth, np.float32(np.inf)), around)
        farthest = cv2.dilate(np.where(known, view.depth, np.float32(0.0)), around)
        keep[keep] = farthest[keep] <= nearest[keep] * (1.0 + max_depth_step)
    return keep


def view_points(view: ViewEstimate, keep: BoolArray) -> NDArray[np.float32]:
    """World points (N, 3) of the pixels in the mask ``keep`` (H, W), row by row."""
    v, u = np.nonzero(keep)
    z = view.depth[keep].astype(np.float64)
    k = view.intrinsics
    camera = np.stack([(u + 0.5 - k.cx) / k.fx * z, (v + 0.5 - k.cy) / k.fy * z, z], axis=1)
    points = camera @ view.camera_to_world[:3, :3].T + view.camera_to_world[:3, 3]
    return points.astype(np.float32)


def view_cloud(
    view: ViewEstimate, pixels: ByteImage, config: MapConfig, keep: BoolArray | None = None
) -> PointCloud:  # fmt: skip
    """The points of one view that go into a map, world frame: those of the mask ``keep`` (H, W), or where it is None
    those that ``config`` finds good enough. ``pixels`` (H, W, 3) are the view's image.
    """
    if pixels.shape != (*view.depth.shape, 3):
        raise ValueError(f"pixels must be {(*view.depth.shape, 3)} like the view's depth, got {pixels.shape}")
    if keep is None:
        keep = usable_pixels(view, config.min_confidence, config.max_depth_step)
    return PointCloud(view_points(view, keep), pixels[keep], view.confidence[keep].astype(np.float32, copy=False))


@dataclass(eq=False)
class _Fused:
    """A keyframe in the map, as long as it may move; ``pending`` is what its points were not moved by yet."""

    pixels: ByteImage
    added: Contribution | PointCloud | None
    probes: FloatArray
    pending: Similarity | None = None

    def nbytes(self) -> int:
        """Memory it takes to be able to move this keyframe, about."""
        return self.pixels.nbytes + (_VOXEL_BYTES * len(self.added) if self.added is not None else 0)


class FusedMap:
    """The map of all keyframes: voxels with the confidence-weighted mean of their points and colours.

    The voxel's edge is ``config.voxel_size`` times the median depth of the first keyframe with points. At most
    ``config.max_points`` voxels are kept. The newest keyframes can be replaced: as many as fit in the memory of
    four times that many voxels; older ones stay where they are. Not safe for use by several threads at once.
    """

    def __init__(self, config: MapConfig | None = None) -> None:
        self.config = config or MapConfig()
        self.clear()

    def clear(self) -> None:
        """Forget every point and keyframe."""
        self._grid: VoxelGrid | None = None
        self._movable: dict[int, _Fused] = {}
        self._frozen: list[PointCloud] = []
        self._newest = -1

    @property
    def voxel_edge(self) -> float:
        """Edge of a voxel in world units; 0 when every point is kept or there is none yet."""
        return self._grid.edge if self._grid is not None else 0.0

    def __len__(self) -> int:
        """Points in the map, without making the cloud."""
        return (self._grid.count() if self._grid is not None else 0) + sum(map(len, self._loose()))

    def add(self, index: int, view: ViewEstimate, pixels: ByteImage, keep: BoolArray | None = None) -> None:
        """Fuse a new keyframe. ``index`` must be larger than all before; ``pixels`` (H, W, 3) are its image.

        ``keep`` (H, W) chooses the pixels; without it the configuration does, here and in ``replace``.
        """
        if index <= self._newest:
            raise ValueError(f"index must be larger than {self._newest}, the newest keyframe's, got {index}")
        self._newest = index
        self._movable[index] = self._fuse(view, pixels, keep)
        self._bound()

    def replace(self, index: int, view: ViewEstimate) -> bool:
        """Alignment moved a keyframe: its old points go, its new ones come. Whether the map changed.

        A keyframe that hardly moved, or is too old, stays as it is.
        """
        fused = self._movable.get(index)
        if fused is None:
            log.debug("keyframe %d moved but is too old to be moved in the map", index)
            return False
        if not self._moved(fused, view):
            fused.pending = None
            return False
        if isinstance(fused.added, Contribution) and self._grid is not None:
            self._grid.subtract(fused.added)
        self._movable[index] = self._fuse(view, fused.pixels)
        self._bound()
        return True

    def follow(self, changes: Mapping[int, Similarity]) -> None:
        """The world changed around keyframes, by a loop closure: the points of those that are not too old follow."""
        for index, change in changes.items():
            self.move(index, change)
        same = Similarity.identity().matrix()
        old = [v for v, change in changes.items() if v not in self._movable and not np.allclose(change.matrix(), same)]
        if old:
            log.warning("%d keyframes are too old for their points to follow a loop closure", len(old))

    def move(self, index: int, change: Similarity) -> bool:
        """The world changed around a keyframe: its points follow. Whether the map changed.

        Points that hardly move wait until several such changes amount to something; those of a keyframe that is too
        old stay.
        """
        fused = self._movable.get(index)
        if fused is None:
            return False
        if fused.pending is not None:
            change = change.compose(fused.pending)
        probes = change.apply(fused.probes)
        if not self._differ(fused.probes, probes):
            fused.pending = change
            return False
        fused.pending = None
        if isinstance(fused.added, PointCloud):
            fused.added = replace(fused.added, points=change.apply(fused.added.points).astype(np.float32))
        elif fused.added is not None and self._grid is not None:
            fused.added = self._grid.move(fused.added, change)
        fused.probes = probes
        self._bound()
        return True

    def cloud(self) -> PointCloud:
        """The whole map."""
        loose = self._loose()
        if self._grid is None:
            return PointCloud.concatenate(loose)
        return PointCloud.concatenate([*loose, self._grid.cloud()]) if loose else self._grid.cloud()

    def state(self) -> tuple[VoxelState | None, PointCloud]:
        """What it is made of: voxels, and every point that is in none."""
        return self._grid.state if self._grid is not None else None, PointCloud.concatenate(self._loose())

    def restore(self, voxels: VoxelState | None, points: PointCloud, newest: int) -> None:
        """Become the map whose ``state`` that was; its keyframes, up to ``newest``, are too old to be replaced."""
        self.clear()
        self._grid = VoxelGrid.restored(voxels) if voxels is not None else None
        self._frozen = [points] if len(points) else []
        self._newest = newest

    def _loose(self) -> list[PointCloud]:
        """The points that are in no voxel, the oldest first: all without voxels, or those of a map made without."""
        return self._frozen + [f.added for f in self._movable.values() if isinstance(f.added, PointCloud)]

    def _fuse(self, view: ViewEstimate, pixels: ByteImage, keep: BoolArray | None = None) -> _Fused:
        cloud = view_cloud(view, pixels, self.config, keep)
        probes = _probe_points(view)
        if self.config.voxel_size > 0 and self._grid is None and len(cloud):
            known = (view.confidence > 0) & (view.depth > 0)
            self._grid = VoxelGrid(self.config.voxel_size * float(np.median(view.depth[known])))
        if not len(cloud):
            return _Fused(pixels, None, probes)
        return _Fused(pixels, self._grid.add(cloud) if self._grid is not None else cloud, probes)

    def _moved(self, fused: _Fused, view: ViewEstimate) -> bool:
        return self._differ(fused.probes, _probe_points(view))

    def _differ(self, before: FloatArray, after: FloatArray) -> bool:
        both = np.isfinite(after) & np.isfinite(before)
        if self.voxel_edge == 0 or not np.array_equal(np.isfinite(after), np.isfinite(before)):
            return True
        return bool((np.abs(after - before)[both] > _STILL * self.voxel_edge).any())

    def _bound(self) -> None:
        """Keep memory bounded: freeze the oldest keyframes, drop the voxels seen least."""
        spare = 4 * _VOXEL_BYTES * self.config.max_points - sum(f.nbytes() for f in self._movable.values())
        while spare < 0 and len(self._movable) > 1:
            oldest = self._movable.pop(min(self._movable))
            spare += oldest.nbytes()
            if isinstance(oldest.added, PointCloud):
                self._frozen.append(oldest.added)
        self._bound_loose()
        if self._grid is not None and self._grid.touched > self.config.max_points:
            numbers = self._grid.shrink(max(self.config.max_points * 9 // 10, 1))
            for fused in self._movable.values():
                if isinstance(fused.added, Contribution):
                    fused.added = renumbered(fused.added, numbers)

    def _bound_loose(self) -> None:
        """Drop the oldest of the points that are in no voxel."""
        voxels = self._grid.touched if self._grid is not None else 0
        excess = voxels + sum(map(len, self._loose())) - self.config.max_points
        while excess > 0 and self._frozen:
            oldest = self._frozen.pop(0)
            excess -= len(oldest)
            if excess < 0:  # a whole map of another session may be one piece
                self._frozen.insert(0, oldest.take(slice(len(oldest) + excess, None)))
        for fused in list(self._movable.values()):
            if excess > 0 and isinstance(fused.added, PointCloud):
                dropped = min(excess, len(fused.added))
                fused.added, excess = fused.added.take(slice(dropped, None)), excess - dropped


def _probe_points(view: ViewEstimate) -> FloatArray:
    """World points (P, 3) float32 of a coarse grid of the view's pixels, NaN where there is none."""
    height, width = view.depth.shape
    rows = np.linspace(0, height - 1, min(_PROBES, height)).astype(int)
    columns = np.linspace(0, width - 1, min(_PROBES, width)).astype(int)
    k = view.intrinsics
    z = view.depth[np.ix_(rows, columns)].astype(np.float64)
    known = (z > 0) & (view.confidence[np.ix_(rows, columns)] > 0) & view.registered
    z = np.where(known, z, np.nan)
    x = (columns[None, :] + 0.5 - k.cx) / k.fx * z
    y = (rows[:, None] + 0.5 - k.cy) / k.fy * z
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return points @ view.camera_to_world[:3, :3].T + view.camera_to_world[:3, 3]
