"""A sparse voxel grid that points can be added to and taken from again, in NumPy without Python loops over points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud

_EMPTY = np.int64(-1)
_HALF_RANGE = 1 << 20  # voxels on either side of the origin along each axis
_HASH = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing, 2^64 over the golden ratio
_WEIGHT, _OFFSET, _COLOUR, _POINTS = 0, slice(1, 4), slice(4, 7), 7
_COLUMNS = 8
_LEAST_WEIGHT = np.float32(1e-6)  # a point; less is left where sums cancelled, and nothing can be divided by it


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one set of points added: ``voxels`` (M,), each once, and the sums (M, 8) added to each.

    The columns are the weight, weight * offset from the voxel's centre in voxels, weight * colour, and the points.
    """

    voxels: NDArray[np.int32]
    sums: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.voxels)


@dataclass(frozen=True, eq=False)
class VoxelState:
    """A grid's voxels: cells ``keys`` (M,), ``sums`` (M, 8) as in ``Contribution``, ``views`` (M,) that saw each."""

    edge: float
    keys: NDArray[np.int64]
    sums: NDArray[np.float32]
    views: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.keys)
        if self.keys.shape != (count,) or self.sums.shape != (count, _COLUMNS) or self.views.shape != (count,):
            shapes = f"{self.keys.shape}, {self.sums.shape} and {self.views.shape}"
            raise ValueError(f"keys, sums and views must be (M,), (M, {_COLUMNS}) and (M,), got {shapes}")


class VoxelGrid:
    """Voxels of edge ``edge`` (world units), each with the confidence-weighted mean of its points.

    Voxels are numbered in the order in which they were first touched; an open-addressing hash table with linear
    probing finds the number of a cell. ``add`` and ``subtract`` cost time by the points they are given, ``cloud`` by
    the voxels that changed since the last one, and a copy of all.
    """

    def __init__(self, edge: float) -> None:
        if not edge > 0:
            raise ValueError(f"edge must be positive, got {edge}")
        self.edge = float(edge)
        self._cloud = PointCloud.empty()  # by voxel, right where nothing changed
        self._rebuild(np.empty(0, np.int64), np.empty((0, _COLUMNS), np.float32), np.empty(0, np.int32))

    @classmethod
    def restored(cls, state: VoxelState) -> VoxelGrid:
        """The grid whose ``state`` this is."""
        grid = cls(state.edge)
        grid._rebuild(state.keys.astype(np.int64), state.sums.astype(np.float32), state.views.astype(np.int32))
        return grid

    @property
    def state(self) -> VoxelState:
        """Every voxel that holds points."""
        live = np.flatnonzero(self._views[: self._used] > 0)
        return VoxelState(self.edge, self._keys[live], self._sums[live], self._views[live])

    @property
    def touched(self) -> int:
        """Voxels in memory, empty ones included."""
        return self._used

    def add(self, cloud: PointCloud) -> Contribution:
        """Put points in; what they changed is returned, for ``subtract``. Points absurdly far away are left out."""
        grid = cloud.points.astype(np.float64) / self.edge
        cell = np.floor(grid)
        inside = np.asarray(np.all(np.abs(cell) < _HALF_RANGE, axis=1))
        if not inside.all():
            grid, cell, cloud = grid[inside], cell[inside], cloud.take(inside)
        keys = _pack(cell.astype(np.int64))
        voxels, member = self._compact(self._find_or_insert(keys))
        sums = _sums(member, len(voxels), grid - cell - 0.5, cloud)
        self._sums[voxels] += sums
        self._views[voxels] += 1
        self._changed[voxels] = True
        return Contribution(voxels, sums)

    def subtract(self, contribution: Contribution) -> None:
        """Undo an ``add``; a voxel that nothing is left in becomes empty."""
        voxels = contribution.voxels
        self._views[voxels] -= 1
        self._sums[voxels] -= contribution.sums
        self._changed[voxels] = True
        self._sums[voxels[self._views[voxels] <= 0]] = 0.0

    def move(self, contribution: Contribution, change: Similarity) -> Contribution:
        """Take a contribution out and put it in where ``change`` takes it, each voxel's points at their mean."""
        self.subtract(contribution)
        sums = contribution.sums.astype(np.float64)
        held = sums[:, _WEIGHT] > 0
        sums, voxels = sums[held], contribution.voxels[held]
        offset = np.clip(sums[:, _OFFSET] / sums[:, :1], -0.5, 0.5)
        grid = change.apply((_unpack(self._keys[voxels]) + 0.5 + offset) * self.edge) / self.edge
        cell = np.floor(grid)
        inside = np.asarray(np.all(np.abs(cell) < _HALF_RANGE, axis=1))
        grid, cell, sums = grid[inside], cell[inside], sums[inside]
        there, member = self._compact(self._find_or_insert(_pack(cell.astype(np.int64))))
        sums[:, _OFFSET] = sums[:, :1] * (grid - cell - 0.5)
        merged = np.stack([np.bincount(member, column, len(there)) for column in sums.T], axis=1).astype(np.float32)
        self._sums[there] += merged
        self._views[there] += 1
        self._changed[there] = True
        return Contribution(there, merged)

    def count(self) -> int:
        """Voxels that hold points."""
        return int(np.count_nonzero(self._views[: self._used]))

    def cloud(self) -> PointCloud:
        """One point for every voxel with points; its confidence is the mean over its points."""
        live = self._views[: self._used] > 0
        self._refresh(np.flatnonzero(live & self._changed[: self._used]))
        return self._cloud.take(np.flatnonzero(live))

    def _refresh(self, voxels: NDArray[np.intp]) -> None:
        """Bring the cloud's points of these voxels, which hold points, up to date."""
        if len(self._cloud) < self._used:
            self._cloud = self._cloud.grown(len(self._keys))
        sums = self._sums[voxels]
        weight = np.maximum(sums[:, :1], _LEAST_WEIGHT * sums[:, _POINTS:])
        offset = np.clip(sums[:, _OFFSET] / weight, -0.5, 0.5)
        self._cloud.points[voxels] = (_unpack(self._keys[voxels]) + 0.5 + offset) * self.edge
        self._cloud.colours[voxels] = np.clip(sums[:, _COLOUR] / weight + 0.5, 0, 255).astype(np.uint8)
        self._cloud.confidence[voxels] = weight[:, 0] / sums[:, _POINTS]
        self._changed[voxels] = False

    def shrink(self, limit: int) -> NDArray[np.int32]:
        """Keep at most ``limit`` voxels: empty ones go, then those seen by the fewest keyframes, the oldest first.

        Returns the new number of every old voxel, -1 where it went, for ``renumbered``.
        """
        views = self._views[: self._used]
        kept = np.flatnonzero(views > 0)
        if len(kept) > limit:
            order = np.argsort(views[kept], kind="stable")
            kept = np.sort(kept[order[len(kept) - limit :]])
        numbers = np.full(self._used, -1, np.int32)
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        self._rebuild(self._keys[kept], self._sums[kept], self._views[kept])
        return numbers

    def _rebuild(self, keys: NDArray[np.int64], sums: NDArray[np.float32], views: NDArray[np.int32]) -> None:
        self._used = 0
        self._keys = np.empty(0, np.int64)
        self._sums = np.empty((0, _COLUMNS), np.float32)
        self._views = np.empty(0, np.int32)
        self._changed = np.empty(0, np.bool_)  # since the last cloud
        self._cloud = PointCloud.empty()
        self._latest = np.empty(0, np.int32)  # scratch of _compact
        self._make_table(max(4096, 4 * len(keys)))
        self._find_or_insert(keys)
        self._sums[: len(keys)] = sums
        self._views[: len(keys)] = views
        self._changed[: len(keys)] = True

    def _make_table(self, size: int) -> None:
        bits = int(size - 1).bit_length()
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._table_keys = np.full(1 << bits, _EMPTY)
        self._table_voxels = np.full(1 << bits, -1, np.int32)

    def _reserve(self, more: int) -> None:
        """Room for ``more`` new voxels: arrays grow by doubling, the table stays at most half full."""
        needed = self._used + more
        if needed > len(self._keys):
            room = max(needed, 2 * len(self._keys), 4096)
            self._keys = _grown(self._keys, room)
            self._sums = _grown(self._sums, room)
            self._views = _grown(self._views, room)
            self._changed = _grown(self._changed, room)
            self._latest = np.empty(room, np.int32)
        if 2 * needed > len(self._table_keys):
            self._make_table(4 * needed)
            slots = self._probe(self._keys[: self._used])
            self._table_voxels[slots] = np.arange(self._used, dtype=np.int32)

    def _find_or_insert(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """The voxel's number for every key (they may repeat); unknown keys get new numbers."""
        self._reserve(len(keys))
        slots = self._probe(keys)
        voxels = self._table_voxels[slots]
        new = np.flatnonzero(voxels < 0)
        if len(new):
            # One point speaks for each new voxel: the one whose index is left in the table after all have written it.
            self._table_voxels[slots[new]] = -2 - np.arange(len(new), dtype=np.int32)
            speakers = new[self._table_voxels[slots[new]] == -2 - np.arange(len(new), dtype=np.int32)]
            numbers = np.arange(self._used, self._used + len(speakers), dtype=np.int32)
            self._table_voxels[slots[speakers]] = numbers
            self._keys[numbers] = keys[speakers]
            self._sums[numbers] = 0.0
            self._views[numbers] = 0
            self._used += len(speakers)
            voxels[new] = self._table_voxels[slots[new]]
        return voxels

    def _probe(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The table slot of every key, claiming empty ones. All keys step together; few need a second step."""
        slots = ((keys.view(np.uint64) * _HASH) >> self._shift).astype(np.int64)
        pending = np.arange(len(keys))
        while len(pending):
            wanted, at = keys[pending], slots[pending]
            empty = self._table_keys[at] == _EMPTY
            self._table_keys[at[empty]] = wanted[empty]  # where several want one slot, one of them gets it
            pending = pending[self._table_keys[at] != wanted]
            slots[pending] = (slots[pending] + 1) & self._mask
        return slots

    def _compact(self, voxels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The distinct voxels, and for every point the place of its voxel among them. Linear time, no sorting."""
        order = np.arange(len(voxels), dtype=np.int32)
        self._latest[voxels] = order
        speaks = self._latest[voxels] == order
        place = np.cumsum(speaks) - 1
        return voxels[speaks], place[self._latest[voxels]]


def renumbered(contribution: Contribution, numbers: NDArray[np.int32]) -> Contribution:
    """A contribution after ``shrink``: under the new numbers, without what went."""
    voxels = numbers[contribution.voxels]
    kept = voxels >= 0
    return replace(contribution, voxels=voxels[kept], sums=contribution.sums[kept])


def _sums(member: NDArray[np.int64], count: int, offset: NDArray[np.float64], cloud: PointCloud) -> NDArray[np.float32]:
    weight = cloud.confidence.astype(np.float64)
    sums = np.empty((count, _COLUMNS), np.float32)
    sums[:, _WEIGHT] = np.bincount(member, weight, count)
    sums[:, _POINTS] = np.bincount(member, minlength=count)
    for axis in range(3):
        sums[:, 1 + axis] = np.bincount(member, weight * offset[:, axis], count)
        sums[:, 4 + axis] = np.bincount(member, weight * cloud.colours[:, axis], count)
    return sums


def _pack(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    shifted = cell + _HALF_RANGE
    return (shifted[:, 0] << 42) | (shifted[:, 1] << 21) | shifted[:, 2]


def _unpack(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    low = (1 << 21) - 1
    return np.stack([keys >> 42, (keys >> 21) & low, keys & low], axis=1).astype(np.float64) - _HALF_RANGE


def _grown(values: NDArray[Any], room: int) -> NDArray[Any]:
    bigger = np.zeros((room, *values.shape[1:]), values.dtype)
    bigger[: len(values)] = values
    return bigger
