"""What is known of the views before they are aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.initialise import Layout
from dust3r_ros.alignment.observations import Size
from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity

RIGID = 1e-3  # how far a given rotation may be from orthonormal
LEAST_BASELINE = 0.01  # of the depth; between centres closer than that, what is given tells nothing of the unit
ROUNDING = 1e-9  # relative; a difference below it is none


@dataclass(frozen=True, eq=False)
class Given:
    """One entry a view; None where it is to be estimated.

    ``intrinsics`` are for the size of the view's pointmaps, ``principal_points`` (cx, cy) are in its pixels and leave
    the focal free, ``poses`` (4, 4) are camera to world; ``cameras`` names the view's physical camera.
    """

    intrinsics: Sequence[Intrinsics | None]
    principal_points: Sequence[tuple[float, float] | None]
    poses: Sequence[FloatArray | None]
    cameras: Sequence[int | str]

    @classmethod
    def for_views(
        cls, views: int, intrinsics: Sequence[Intrinsics | None] | None = None,
        principal_points: Sequence[tuple[float, float] | None] | None = None,
        poses: Sequence[FloatArray | None] | None = None, cameras: Sequence[int | str] | None = None,
    ) -> Given:  # fmt: skip
        """Lists that were left out are filled; raises ValueError for those that do not fit."""
        lists = {"intrinsics": intrinsics, "principal_points": principal_points, "poses": poses, "cameras": cameras}
        for name, given in lists.items():
            if given is not None and len(given) != views:
                raise ValueError(f"{name} must have one entry for each of {views} views, got {len(given)}")
        nothing = [None] * views
        points = principal_points if principal_points is not None else nothing
        k = intrinsics if intrinsics is not None else nothing
        for view in range(views):
            if k[view] is not None and points[view] is not None:
                raise ValueError(f"view {view} must have intrinsics or a principal point, got both")
        known = [rigid_pose(p, view) for view, p in enumerate(poses if poses is not None else nothing)]
        return cls(k, points, known, cameras if cameras is not None else [0] * views)

    def check_sizes(self, sizes: Mapping[int, Size]) -> None:
        """Raises AlignmentError where intrinsics or a principal point are for another image than (H, W)."""
        for view, (height, width) in sizes.items():
            k, point = self.intrinsics[view], self.principal_points[view]
            if k is not None and (k.height, k.width) != (height, width):
                raise AlignmentError(
                    f"intrinsics of view {view} must be for its {width}x{height} predictions, got {k.width}x{k.height}"
                )
            if point is not None and not (0 < point[0] < width and 0 < point[1] < height):
                raise AlignmentError(
                    f"principal point of view {view} must lie in its {width}x{height} predictions, got {point}"
                )

    def known_poses(self) -> dict[int, FloatArray]:
        """The given poses by view."""
        return {view: pose for view, pose in enumerate(self.poses) if pose is not None}


def rigid_pose(pose: FloatArray | None, view: int) -> FloatArray | None:
    """A given pose as float64; raises ValueError unless it is a rigid transform (4, 4)."""
    if pose is None:
        return None
    found = np.asarray(pose, dtype=np.float64)
    good = found.shape == (4, 4) and np.isfinite(found).all() and np.abs(found[3] - (0, 0, 0, 1)).max() < RIGID
    turn = found[:3, :3] if good else np.eye(3)
    if not good or np.abs(turn @ turn.T - np.eye(3)).max() > RIGID or np.linalg.det(turn) < 0:
        raise ValueError(f"pose of view {view} must be a rigid transform (4, 4), got {np.array2string(found)}")
    return found


@dataclass(frozen=True, eq=False)
class KnownWorld:
    """The world of given poses: ``similarity`` takes views as placed into it, and into its unit when that is known."""

    similarity: Similarity
    unit_known: bool


def known_world(layout: Layout, poses: Mapping[int, FloatArray]) -> KnownWorld:
    """The world of known poses (4, 4) of some of the placed views; the layout's own when there are none.

    Rotation by the views' mean rotation, so that two known poses are enough; unit and shift by medians.
    """
    if not poses:
        return KnownWorld(Similarity.identity(), False)
    given = np.array(list(poses.values()))
    placed = np.array([layout.placed[v].pose for v in poses])
    turn = _nearest_rotation((given[:, :3, :3] @ np.swapaxes(placed[:, :3, :3], 1, 2)).sum(axis=0))
    source, target = placed[:, :3, 3] @ turn.T, given[:, :3, 3]
    depth = float(np.exp(np.median([np.median(layout.placed[v].log_depth) for v in poses])))
    known = _unit_is_known(source / depth, target)
    scale = _relative_size(source, target) if known else 1.0
    return KnownWorld(Similarity(scale, turn, np.median(target - scale * source, axis=0)), known)


def _unit_is_known(placed: FloatArray, given: FloatArray) -> bool:
    """Whether given centres (N, 3) tell the unit, for views that were placed with their median depth as the unit.

    They do when the views as placed are apart, or when they themselves are too far apart for that unit; they do not
    when they are one place but for rounding.
    """
    distance = float(np.ptp(given, axis=0).max())
    apart = max(float(np.ptp(placed, axis=0).max()), distance) > LEAST_BASELINE
    return apart and distance > ROUNDING * float(np.abs(given).max())


def _nearest_rotation(matrix: FloatArray) -> FloatArray:
    u, _, vt = np.linalg.svd(matrix)
    return (u * (1, 1, np.sign(np.linalg.det(u @ vt)))) @ vt


def _relative_size(source: FloatArray, target: FloatArray) -> float:
    """The median factor from distances between points (N, 3) to those between others; 1 where there is none."""
    first, second = np.triu_indices(len(source), 1)
    before, after = (np.linalg.norm(p[first] - p[second], axis=1) for p in (source, target))
    apart = (before > ROUNDING * before.max(initial=0.0)) & (after > ROUNDING * after.max(initial=0.0))
    return float(np.median(after[apart] / before[apart])) if apart.any() else 1.0
