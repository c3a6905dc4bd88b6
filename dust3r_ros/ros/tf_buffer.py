"""The transforms of a robot over time: looked up between any two connected frames, interpolated in time.

Follows tf2's rules: transforms are kept for ten seconds, static ones always; a time between two samples is
interpolated, a time outside them is missing. Used where tf2_ros is not installed (``compat.transform_buffer``).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from dust3r_ros.data import FloatArray
from dust3r_ros.errors import RosError
from dust3r_ros.geometry import invert_pose, make_pose

KEPT_NS = 10_000_000_000


class TransformMissingError(RosError):
    """Two frames are not connected, or not at the time asked for."""


@dataclass(eq=False)
class _Edge:
    """The transforms of one child: stamps in order, and the poses that take its points to ``parent``."""

    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    poses: list[FloatArray] = field(default_factory=list)

    def add(self, stamp_ns: int, pose: FloatArray) -> None:
        if self.static:
            self.stamps, self.poses = [stamp_ns], [pose]
            return
        place = bisect.bisect_left(self.stamps, stamp_ns)
        if place < len(self.stamps) and self.stamps[place] == stamp_ns:
            self.poses[place] = pose
            return
        self.stamps.insert(place, stamp_ns)
        self.poses.insert(place, pose)
        old = bisect.bisect_left(self.stamps, self.stamps[-1] - KEPT_NS)
        del self.stamps[:old], self.poses[:old]

    def at(self, stamp_ns: int, child: str) -> FloatArray:
        if self.static:
            return self.poses[0]
        place = bisect.bisect_left(self.stamps, stamp_ns)
        if place < len(self.stamps) and self.stamps[place] == stamp_ns:
            return self.poses[place]
        if 0 < place < len(self.stamps):
            share = (stamp_ns - self.stamps[place - 1]) / (self.stamps[place] - self.stamps[place - 1])
            return _between(self.poses[place - 1], self.poses[place], share)
        raise TransformMissingError(
            f"{self.parent} -> {child} is known from {1e-9 * self.stamps[0]:.3f} s to {1e-9 * self.stamps[-1]:.3f} s, "
            f"not at {1e-9 * stamp_ns:.3f} s"
        )


class TransformBuffer:
    """Transforms by child frame. Not safe for several threads by itself: the listener holds a lock."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}

    def set(self, parent: str, child: str, stamp_ns: int, pose: FloatArray, *, static: bool) -> None:
        """``pose`` (4, 4) takes the child's points to the parent."""
        edge = self._edges.get(child)
        if edge is None or (edge.parent, edge.static) != (parent, static):
            edge = self._edges[child] = _Edge(parent, static)
        edge.add(stamp_ns, pose)

    def clear(self) -> None:
        """Forget all but the static transforms."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def lookup(self, target: str, source: str, stamp_ns: int) -> FloatArray:
        """The pose (4, 4) that takes points of ``source`` to ``target`` at a time.

        Raises TransformMissingError naming what is not there.
        """
        up_from_target, up_from_source = self._chain(target), self._chain(source)
        shared = next((frame for frame in up_from_source if frame in up_from_target), None)
        if shared is None:
            raise TransformMissingError(self._unconnected(target, source))
        down = self._to_ancestor(up_from_target[: up_from_target.index(shared) + 1], stamp_ns)
        up = self._to_ancestor(up_from_source[: up_from_source.index(shared) + 1], stamp_ns)
        return invert_pose(down) @ up

    def _chain(self, frame: str) -> list[str]:
        """A frame and its ancestors."""
        chain = [frame]
        while (edge := self._edges.get(chain[-1])) is not None and edge.parent not in chain:
            chain.append(edge.parent)
        return chain

    def _to_ancestor(self, chain: list[str], stamp_ns: int) -> FloatArray:
        """Takes points of the chain's first frame to its last."""
        pose = np.eye(4)
        for child, _ in pairwise(chain):
            pose = self._edges[child].at(stamp_ns, child) @ pose
        return pose

    def _unconnected(self, target: str, source: str) -> str:
        known = {name for child, edge in self._edges.items() for name in (child, edge.parent)}
        unknown = [name for name in dict.fromkeys((target, source)) if name not in known]
        if unknown:
            return " and ".join(f"frame {name}" for name in unknown) + " not on TF"
        return f"frames {target} and {source} are on TF and not connected"


def _between(first: FloatArray, second: FloatArray, share: float) -> FloatArray:
    rotations = Rotation.from_matrix(np.stack([first[:3, :3], second[:3, :3]]))
    rotation = Slerp([0.0, 1.0], rotations)([share]).as_matrix()[0]
    return make_pose(rotation, (1.0 - share) * first[:3, 3] + share * second[:3, 3])
