"""A coloured point cloud, as the map gives it and the exporters take it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PointCloud:
    """``points`` (N, 3) float32, world; ``colours`` (N, 3) uint8 RGB; ``confidence`` (N,) float32 > 0."""

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]
    confidence: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.points)
        if self.points.shape != (count, 3) or self.colours.shape != (count, 3) or self.confidence.shape != (count,):
            raise ValueError(
                "points, colours and confidence must be (N, 3), (N, 3) and (N,), got "
                f"{self.points.shape}, {self.colours.shape} and {self.confidence.shape}"
            )

    @classmethod
    def empty(cls) -> PointCloud:
        return cls(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.points)

    def take(self, selection: NDArray[np.bool_] | NDArray[np.intp] | slice) -> PointCloud:
        """The points a mask, indices or a slice selects."""
        return PointCloud(self.points[selection], self.colours[selection], self.confidence[selection])

    def grown(self, room: int) -> PointCloud:
        """A copy with so many points, those beyond this cloud's all zero."""
        more = room - len(self)
        return PointCloud(
            np.pad(self.points, ((0, more), (0, 0))),
            np.pad(self.colours, ((0, more), (0, 0))),
            np.pad(self.confidence, (0, more)),
        )

    @classmethod
    def concatenate(cls, clouds: list[PointCloud]) -> PointCloud:
        """All points of several clouds, in order."""
        if not clouds:
            return cls.empty()
        return cls(
            np.concatenate([c.points for c in clouds]),
            np.concatenate([c.colours for c in clouds]),
            np.concatenate([c.confidence for c in clouds]),
        )
