"""Points that several views see, with the pixels they see them at: what structure-from-motion calls tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import BoolArray, FloatArray, PosedView, ViewEstimate
from dust3r_ros.geometry import invert_pose, project, transform_points
from dust3r_ros.mapping.fuse import view_points

_SAME = 0.01  # of the distance: a pixel whose point is nearer than this shows the same point
_AROUND = [(dv, du) for dv in (0, -1, 1) for du in (0, -1, 1)]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tracks:
    """``points`` (P, 3) float64 world and ``colours`` (P, 3) uint8, and M observations of them, sorted by point.

    ``point`` (M,) and ``view`` (M,) are positions among the points and among the views; ``pixel`` (M, 2) is (u, v)
    in the view's prepared image, a pixel's centre.
    """

    points: FloatArray
    colours: NDArray[np.uint8]
    point: IntArray
    view: IntArray
    pixel: FloatArray


def find_tracks(views: Sequence[PosedView], masks: Sequence[BoolArray], most_points: int = 100_000) -> Tracks:
    """About ``most_points`` points spread evenly over the pixels of ``masks``, one (H, W) a view.

    A point starts at a pixel of one view. In every other view it is observed at the pixel, of the 3 x 3 around its
    projection, whose own point is nearest to it, if that is within 1 % of the distance. Where a point is observed,
    no other starts. Points that one view alone sees are left out, as COLMAP refuses them, unless all are such.
    """
    usable = int(sum(mask.sum() for mask in masks))
    stride = max(1, int(np.ceil(np.sqrt(usable / most_points))))
    taken = [np.zeros((mask.shape[0] // stride + 1, mask.shape[1] // stride + 1), bool) for mask in masks]
    points, colours, found = [], [], []
    begun = 0
    for at, (view, mask) in enumerate(zip(views, masks, strict=True)):
        v, u = _starts(mask, taken[at], stride)
        if not len(v):
            continue
        start = np.zeros(mask.shape, bool)
        start[v, u] = True
        world = view_points(view.estimate, start).astype(np.float64)
        points.append(world)
        colours.append(view.image.pixels[v, u])
        numbers = np.arange(begun, begun + len(world))
        found.append(_observed(numbers, at, v, u))
        for other in range(len(views)):
            if other != at and masks[other].any():
                seen, v_seen, u_seen = _seen_at(views[other].estimate, masks[other], world)
                taken[other][v_seen // stride, u_seen // stride] = True
                found.append(_observed(numbers[seen], other, v_seen, u_seen))
        begun += len(world)
    if not points:
        raise ValueError("tracks need at least one view with usable pixels")
    return _tracks(np.concatenate(points), np.concatenate(colours), np.concatenate(found))


def _tracks(points: FloatArray, colours: NDArray[np.uint8], observed: FloatArray) -> Tracks:
    """Tracks of ``observed`` (M, 4): point, view, u, v."""
    point = observed[:, 0].astype(np.int64)
    views = np.bincount(point, minlength=len(points))
    kept = views >= min(2, int(views.max()))
    number = np.cumsum(kept) - 1
    rows = np.flatnonzero(kept[point])
    rows = rows[np.argsort(point[rows], kind="stable")]
    return Tracks(
        points[kept], colours[kept], number[point[rows]], observed[rows, 1].astype(np.int64), observed[rows, 2:]
    )


def _starts(mask: BoolArray, taken: BoolArray, stride: int) -> tuple[IntArray, IntArray]:
    """Pixels (v, u) in the middle of cells that are not taken, row by row."""
    v, u = np.nonzero(
        mask[stride // 2 :: stride, stride // 2 :: stride]
        & ~taken[: _cells(mask, 0, stride), : _cells(mask, 1, stride)]
    )
    return v * stride + stride // 2, u * stride + stride // 2


def _cells(mask: BoolArray, axis: int, stride: int) -> int:
    return len(range(stride // 2, mask.shape[axis], stride))


def _observed(numbers: IntArray, view: int, v: IntArray, u: IntArray) -> FloatArray:
    return np.stack([numbers, np.full(len(numbers), view), u + 0.5, v + 0.5], axis=1)


def _seen_at(view: ViewEstimate, mask: BoolArray, world: FloatArray) -> tuple[IntArray, IntArray, IntArray]:
    """Which of the points (N, 3) a view sees, by position, and the pixels v and u it sees them at."""
    height, width = mask.shape
    camera = transform_points(invert_pose(view.camera_to_world), world)
    uv = project(camera, view.intrinsics)
    inside = np.flatnonzero(((uv >= 0) & (uv < (width, height))).all(axis=1))  # NaN, behind the camera, is not
    u0, v0 = np.floor(uv[inside]).astype(np.int64).T
    best = np.full(len(inside), _SAME) * np.linalg.norm(camera[inside], axis=1)
    best_v, best_u = np.full(len(inside), -1), np.full(len(inside), -1)
    k = view.intrinsics
    for dv, du in _AROUND:
        v, u = np.clip(v0 + dv, 0, height - 1), np.clip(u0 + du, 0, width - 1)
        z = view.depth[v, u].astype(np.float64)
        shown = np.stack([(u + 0.5 - k.cx) / k.fx * z, (v + 0.5 - k.cy) / k.fy * z, z], axis=1)
        distance = np.where(mask[v, u], np.linalg.norm(shown - camera[inside], axis=1), np.inf)
        nearer = distance < best
        best[nearer], best_v[nearer], best_u[nearer] = distance[nearer], v[nearer], u[nearer]
    seen = best_v >= 0
    return inside[seen], best_v[seen], best_u[seen]
