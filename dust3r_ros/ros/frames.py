"""Where the map hangs on TF (REP-105): above the cameras, the robot's base, or its odometry, as ``tf_mode`` says.

World is the reconstruction's frame, the first keyframe's camera; map is what is published. In mode ``camera`` they are
the same. In the others the map begins where the base was, or where odometry began, at the first keyframe. Its z is
odometry's up, where that is known: a base that stands on a slope or banks does not tilt the map. Odometry is metric:
the world's scale follows from it in every mode that hears it.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import FloatArray
from dust3r_ros.geometry import invert_pose, make_pose
from dust3r_ros.ros.map_frame import MapFrame, TfEdge
from dust3r_ros.ros.tf_buffer import TransformMissingError
from dust3r_ros.ros.transforms import TransformListener


class MapFrames:
    """The map's place on TF."""

    def __init__(self, config: NodeConfig, listener: TransformListener | None) -> None:
        self._mode = config.tf_mode
        self.map = MapFrame(config.map_frame, config.publish_tf)
        self._reference = {"base": config.base_frame, "odom": config.odom_frame}.get(config.tf_mode, "")
        self._odom_frame = config.odom_frame
        self._listener = listener
        self._problems: dict[str, str] = {}  # by the camera's frame

    @property
    def problem(self) -> str:
        """What hinders a camera now, the one that has been hindered longest; empty when nothing does."""
        return next(iter(self._problems.copy().values()), "")

    @property
    def needs_transforms(self) -> bool:
        """Whether a keyframe cannot be placed on TF by itself."""
        return bool(self._reference)

    def camera_in_reference(self, camera_frame: str, stamp_ns: int, timeout_s: float) -> FloatArray | None:
        """The pose (4, 4) of a camera in the base or in odometry, waited for; None, and a problem, when it is missing.

        The identity in mode ``camera``, whose reference is the camera itself.
        """
        if not self._reference or self._listener is None:
            return np.eye(4)
        try:
            return self._listener.lookup(self._reference, camera_frame, stamp_ns, timeout_s)
        except TransformMissingError as error:
            self._problems[camera_frame] = f"transform {self._reference} -> {camera_frame} is missing: {error}"
            return None

    def camera_in_reference_now(self, camera_frame: str, stamp_ns: int) -> FloatArray | None:
        """As ``camera_in_reference``, without a wait: None where it is not known yet, which is no problem."""
        if not self._reference or self._listener is None:
            return np.eye(4)
        try:
            return self._listener.lookup(self._reference, camera_frame, stamp_ns, 0.0)
        except TransformMissingError:
            return None

    def camera_in_odometry(
        self, camera_frame: str, stamp_ns: int, camera_in_reference: FloatArray | None
    ) -> FloatArray | None:
        """The pose (4, 4) of a camera in odometry, in metres; None where it is not known now: it is not waited for."""
        if self._mode == "odom":
            return camera_in_reference
        if self._listener is None:
            return None
        try:
            return self._listener.lookup(self._odom_frame, camera_frame, stamp_ns, 0.0)
        except TransformMissingError:
            return None

    def baseline_m(self, camera_frame: str, other_frame: str) -> float | None:
        """How far apart two cameras are that static transforms hold together; None when they are not."""
        pose = self._listener.fixed(camera_frame, other_frame) if self._listener is not None else None
        return float(np.linalg.norm(pose[:3, 3])) if pose is not None else None

    def anchor(
        self, camera_in_reference: FloatArray, camera_to_world: FloatArray, camera_in_odometry: FloatArray | None = None
    ) -> None:
        """Begin the map at the first keyframe of a world; level in mode ``base``, where odometry tells what is."""
        camera_in_map = camera_in_reference if self._reference else camera_to_world
        if self._mode == "base" and camera_in_odometry is not None:
            camera_in_map = _levelled(camera_in_odometry @ invert_pose(camera_in_reference)) @ camera_in_reference
        self.map.begin(camera_in_map, camera_to_world)

    def edge(
        self, camera_frame: str, camera_to_world: FloatArray, camera_in_reference: FloatArray | None
    ) -> TfEdge | None:
        """What a keyframe says of TF; None when the reference is missing or its frame hangs from another already."""
        if camera_in_reference is None:
            return None
        child = self._reference or camera_frame
        parent = self._listener.parent_of(child) if self._listener is not None else ""
        if parent:
            other = "base or odom" if self._mode == "camera" else "odom"
            advice = f": tf_mode {other} hangs the robot's own tree below it" if self._mode != "odom" else ""
            hinders = f"{child} has the parent {parent} on TF, {self.map.name} -> {child} is not published{advice}"
            self._problems[camera_frame] = hinders
            return None
        self._problems.pop(camera_frame, None)
        return TfEdge(child, self.map.from_world.apply_to_pose(camera_to_world) @ invert_pose(camera_in_reference))

    def body(self, camera: TfEdge, edge: TfEdge | None) -> TfEdge:
        """Whose odometry a pose is: the base's in mode ``base``, where its place is known, else the camera's."""
        return edge if edge is not None and self._mode == "base" else camera


def _levelled(base_in_odometry: FloatArray) -> FloatArray:
    """A base's pose (4, 4) in the frame at its place and of its heading whose z is odometry's."""
    turn = base_in_odometry[:3, :3]
    heading = Rotation.from_euler("z", np.arctan2(turn[1, 0], turn[0, 0])).as_matrix()
    return make_pose(heading.T @ turn, np.zeros(3))
