"""Where the keyframes of a map are, newest estimates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

from dust3r_ros.data import FloatArray, Keyframe, ViewEstimate
from dust3r_ros.geometry import Similarity
from dust3r_ros.memory import Placed


class PlacedKeyframes:
    """The registered keyframes' poses, by index; they come in order."""

    def __init__(self, placed: Mapping[int, Placed] | None = None) -> None:
        self._placed = dict(placed or {})

    def __len__(self) -> int:
        return len(self._placed)

    def add(self, keyframe: Keyframe, view: ViewEstimate) -> None:
        """A new one."""
        self._placed[keyframe.index] = Placed(keyframe.stamp_ns, keyframe.camera, view.camera_to_world)

    def move(self, moved: Mapping[int, ViewEstimate]) -> None:
        """Alignment has new estimates of older ones."""
        for index, view in moved.items():
            self._placed[index] = replace(self._placed[index], camera_to_world=view.camera_to_world)

    def follow(self, changes: Mapping[int, Similarity]) -> None:
        """The world changed around keyframes, by a loop closure."""
        for index, change in changes.items():
            pose = change.apply_to_pose(self._placed[index].camera_to_world)
            self._placed[index] = replace(self._placed[index], camera_to_world=pose)

    def pose(self, index: int) -> FloatArray | None:
        """camera_to_world (4, 4); None for one that is not registered."""
        placed = self._placed.get(index)
        return placed.camera_to_world if placed is not None else None

    def all(self) -> dict[int, Placed]:
        """Every one, in order."""
        return dict(sorted(self._placed.items()))

    def trajectory(self) -> list[tuple[int, FloatArray]]:
        """(stamp_ns, camera_to_world (4, 4)) of every one, in order."""
        return [(placed.stamp_ns, placed.camera_to_world) for placed in self.all().values()]

    def cameras(self) -> list[str]:
        """Every one's camera."""
        return [placed.camera for placed in self._placed.values()]

    def recent_paths(self, count: int) -> dict[str, list[tuple[int, FloatArray]]]:
        """(stamp_ns, camera_to_world (4, 4)) of the newest ``count``, in order, by camera."""
        paths: dict[str, list[tuple[int, FloatArray]]] = defaultdict(list)
        for placed in reversed(list(islice(reversed(self._placed.values()), count))):
            paths[placed.camera].append((placed.stamp_ns, placed.camera_to_world))
        return paths
