"""The frame that everything is published in, with its place and size, and the transform that hangs it on TF."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from dust3r_ros.alignment.scale import MetricScale
from dust3r_ros.data import FloatArray
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.memory import MapMemory

log = logging.getLogger(__name__)

LEAST_CHANGE = 0.002  # of the scale: below, a better one is not worth that the whole map changes its size


@dataclass(frozen=True, eq=False)
class TfEdge:
    """A transform to publish: ``pose`` (4, 4) takes points of ``child`` to the map."""

    child: str
    pose: FloatArray


@dataclass(eq=False)
class MapFrame:
    """The map's frame. ``from_world`` takes the reconstruction's world to it: into metres while ``metric``.

    The map has one size at a time: a better scale is taken over only when it differs by more than its uncertainty.
    """

    name: str
    publish_tf: bool
    from_world: Similarity = field(default_factory=Similarity.identity)
    metric: bool = False
    _origin: FloatArray = field(default_factory=lambda: np.zeros(3))  # in the world: what stays when the size changes

    def begin(self, camera_in_map: FloatArray, camera_to_world: FloatArray) -> None:
        """Begin at a camera with these poses (4, 4) in map and world; the scale is not known yet."""
        turn = camera_in_map[:3, :3] @ camera_to_world[:3, :3].T
        self._origin = np.array(camera_to_world[:3, 3])
        self.from_world = Similarity(1.0, turn, camera_in_map[:3, 3] - turn @ self._origin)
        self.metric = False

    def remembered(self, memory: MapMemory) -> MapMemory:
        """A map's memory with its place in this frame, for ``restore``."""
        return replace(memory, world_to_map=self.from_world, origin=self._origin)

    def restore(self, memory: MapMemory) -> None:
        """Go on where a remembered map was."""
        self.from_world, self._origin = memory.world_to_map, memory.origin
        self.metric = memory.scale is not None

    def measured(self, scale: MetricScale | None) -> bool:
        """Take over what is known of the world's scale now; whether the map changes its size.

        A scale that is lost leaves the map as large as it is.
        """
        was_metric, self.metric = self.metric, scale is not None
        if scale is None:
            if was_metric:
                log.warning("the map's scale is no longer certain: it keeps its size, which may not be metres")
            return False
        change = scale.metres_per_unit / self.from_world.scale
        resized = abs(np.log(change)) > max(scale.uncertainty, LEAST_CHANGE)
        if resized:
            fixed = self.from_world.apply(self._origin)
            rotation, metres = self.from_world.rotation, scale.metres_per_unit
            self.from_world = Similarity(metres, rotation, fixed - metres * rotation @ self._origin)
        if resized or not was_metric:
            log.info(
                "the map is in metres by %d known lengths, to %.1f %%: its size changes by %+.1f %%",
                scale.samples, 100 * scale.uncertainty, 100 * (change - 1) if resized else 0.0,
            )  # fmt: skip
        return resized

    def placed(self, cloud: PointCloud) -> PointCloud:
        """A cloud of the world, in the map."""
        matrix = self.from_world.matrix().astype(np.float32)
        if np.array_equal(matrix, np.eye(4)):
            return cloud
        return PointCloud(cloud.points @ matrix[:3, :3].T + matrix[:3, 3], cloud.colours, cloud.confidence)

    def covariance(self, in_world: FloatArray) -> FloatArray:
        """The covariance (6, 6) of a camera's pose, as ``ViewEstimate.pose_covariance``, in map units."""
        unit = np.diag([self.from_world.scale] * 3 + [1.0] * 3)
        return np.asarray(unit @ in_world @ unit)

    def path(self, trajectory: list[tuple[int, FloatArray]]) -> list[tuple[int, FloatArray]]:
        """A path of the world, (stamp_ns, camera_to_world (4, 4)), in the map."""
        poses = self.from_world.apply_to_pose(np.array([pose for _, pose in trajectory]).reshape(-1, 4, 4))
        return [(stamp_ns, pose) for (stamp_ns, _), pose in zip(trajectory, poses)]
