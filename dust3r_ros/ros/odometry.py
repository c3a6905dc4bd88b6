"""Poses of images as nav_msgs/Odometry: with covariances, and the speed since the image before."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseWithCovariance, Twist, TwistWithCovariance, Vector3
from nav_msgs.msg import Odometry
from scipy.spatial.transform import Rotation

from dust3r_ros.data import FloatArray
from dust3r_ros.ros.convert import header_of, pose_message
from dust3r_ros.ros.map_frame import TfEdge

_UNKNOWN = 1e6  # variance of what is not known
_LONGEST_S = 0.5  # between two images that a speed is taken from


@dataclass(frozen=True, eq=False)
class PosedImage:
    """An image's pose in the map: ``camera`` is its frame's; ``arrived`` is time.monotonic() at its callback.

    ``covariance`` (6, 6), in map units, is as ``ViewEstimate.pose_covariance``; None when unknown.
    """

    stamp_ns: int
    camera: TfEdge
    arrived: float
    covariance: FloatArray | None = None


class OdometryBuilder:
    """Odometry messages of the poses of bodies, which come in order of time."""

    def __init__(self, map_frame: str) -> None:
        self._map_frame = map_frame
        self._before: dict[str, tuple[int, FloatArray, FloatArray]] = {}
        self._since = -float("inf")

    def forget(self) -> None:
        """The map jumped: no speed is taken from an image that arrived before, wherever that has its pose."""
        self._since = time.monotonic()
        self._before.clear()

    def build(self, image: PosedImage, body: TfEdge) -> Odometry:
        """The message of a body (the camera, or what carries it) at an image's time."""
        covariance = covariance_in_map(image, body.pose)
        message = Odometry(header=header_of(image.stamp_ns, self._map_frame), child_frame_id=body.child)
        message.pose = PoseWithCovariance(pose=pose_message(body.pose), covariance=covariance.ravel())
        message.twist = self._twist(image.stamp_ns, body, covariance)
        if image.arrived >= self._since:
            self._before[body.child] = (image.stamp_ns, body.pose, covariance)
        return message

    def _twist(self, stamp_ns: int, body: TfEdge, covariance: FloatArray) -> TwistWithCovariance:
        """The mean speed since the image before, in the body's own axes; of unknown covariance without one."""
        stamp_before, before, covariance_before = self._before.get(body.child, (stamp_ns, body.pose, covariance))
        seconds = 1e-9 * (stamp_ns - stamp_before)
        if not 0 < seconds <= _LONGEST_S:
            return TwistWithCovariance(covariance=(_UNKNOWN * np.eye(6)).ravel())
        back = body.pose[:3, :3].T
        linear = back @ (body.pose[:3, 3] - before[:3, 3]) / seconds
        angular = Rotation.from_matrix(before[:3, :3].T @ body.pose[:3, :3]).as_rotvec() / seconds
        turn = np.kron(np.eye(2), back)
        spread = turn @ (covariance + covariance_before) @ turn.T / seconds**2
        vectors = [Vector3(**dict(zip("xyz", map(float, vector)))) for vector in (linear, angular)]
        twist = Twist(linear=vectors[0], angular=vectors[1])
        return TwistWithCovariance(twist=twist, covariance=np.minimum(spread, _UNKNOWN).ravel())


def covariance_in_map(image: PosedImage, body: FloatArray) -> FloatArray:
    """Covariance (6, 6) of a body's position and of its turn about the map's axes, as geometry_msgs has it."""
    if image.covariance is None:
        return _UNKNOWN * np.eye(6)
    camera = image.camera.pose
    turn = np.kron(np.eye(2), camera[:3, :3])
    x, y, z = body[:3, 3] - camera[:3, 3]
    lever = np.eye(6)
    lever[:3, 3:] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]  # a turn w of the camera moves the body by w x lever
    spread = lever @ turn @ image.covariance @ turn.T @ lever.T
    return np.asarray(np.clip(spread, -_UNKNOWN, _UNKNOWN))
