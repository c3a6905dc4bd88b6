"""The frame that everything is published in, and the transform that hangs it on TF."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dust3r_ros.data import FloatArray
from dust3r_ros.mapping.cloud import PointCloud


@dataclass(frozen=True, eq=False)
class TfEdge:
    """A transform to publish: ``pose`` (4, 4) takes points of ``child`` to the map."""

    child: str
    pose: FloatArray


@dataclass(eq=False)
class MapFrame:
    """The map's frame. ``from_world`` (4, 4), rigid, takes points of the reconstruction's world to it."""

    name: str
    publish_tf: bool
    from_world: FloatArray = field(default_factory=lambda: np.eye(4))

    def placed(self, cloud: PointCloud) -> PointCloud:
        """A cloud of the world, in the map."""
        if np.array_equal(self.from_world, np.eye(4)):
            return cloud
        pose = self.from_world.astype(np.float32)
        return PointCloud(cloud.points @ pose[:3, :3].T + pose[:3, 3], cloud.colours, cloud.confidence)
