"""Keyframes as RViz draws them: the edges of what each camera sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Point, Pose, Vector3
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.geometry import transform_points
from dust3r_ros.ros.convert import header_of

_EDGES = np.array([0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1])  # of the centre, and the image's corners in turn
_LINE_WIDTH = 0.02  # of the depth
_COLOUR = (1.0, 0.67, 0.0)


def frusta_message(
    stamp_ns: int, frame_id: str, poses: Sequence[FloatArray], intrinsics: Intrinsics | None, depth: float
) -> MarkerArray:
    """One list of lines: the pyramids, ``depth`` deep, of cameras with these poses (4, 4), camera to ``frame_id``.

    Without intrinsics, or poses, there are none, and what was shown before goes.
    """
    if intrinsics is None or not len(poses):
        return MarkerArray(markers=[Marker(header=header_of(stamp_ns, frame_id), action=Marker.DELETEALL)])
    corners = _corners(intrinsics, depth)[_EDGES]
    ends = np.concatenate([transform_points(pose, corners) for pose in poses])
    marker = Marker(
        header=header_of(stamp_ns, frame_id),
        ns="keyframes",
        type=Marker.LINE_LIST,
        action=Marker.ADD,
        pose=Pose(),
        scale=Vector3(x=_LINE_WIDTH * depth),
        color=ColorRGBA(r=_COLOUR[0], g=_COLOUR[1], b=_COLOUR[2], a=1.0),
        points=[Point(x=x, y=y, z=z) for x, y, z in ends.tolist()],
    )
    return MarkerArray(markers=[marker])


def _corners(k: Intrinsics, depth: float) -> FloatArray:
    """The camera's centre and the image's four corners at a depth (5, 3), camera frame."""
    u, v = np.array([0, k.width, k.width, 0]), np.array([0, 0, k.height, k.height])
    rays = np.stack([(u - k.cx) / k.fx, (v - k.cy) / k.fy, np.ones(4)], axis=1)
    return np.concatenate([np.zeros((1, 3)), depth * rays])
