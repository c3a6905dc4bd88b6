"""ROS messages made without ROS, by rosbags: what goes into bags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection, Qos
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.geometry import quaternion_xyzw
from dust3r_ros.images import to_jpeg
from dust3r_ros.mapping.cloud import PointCloud

_NS = 1_000_000_000
_FLOAT32 = 7  # sensor_msgs/PointField
_BLUE = 12  # the float "rgb" has the bytes blue, green, red, 0
_FIELDS = ("x", "y", "z", "rgb", "confidence")


class Messages:
    """Makes messages of a distribution's definitions. Poses (4, 4) take the child's points to the parent."""

    def __init__(self, distro: Stores = Stores.ROS2_JAZZY) -> None:
        self._store = get_typestore(distro)
        self._types = self._store.types

    def connect(self, writer: Writer, topic: str, kind: str, qos: Sequence[Qos] = ()) -> Connection:
        """A topic of a bag that is being written."""
        return writer.add_connection(topic, kind, typestore=self._store, offered_qos_profiles=qos)

    def write(self, writer: Writer, connection: Connection, stamp_ns: int, message: Any) -> None:
        """One message, recorded at its stamp."""
        writer.write(connection, stamp_ns, self._store.serialize_cdr(message, connection.msgtype))

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._types["builtin_interfaces/msg/Time"](stamp_ns // _NS, stamp_ns % _NS)
        return self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def jpeg(self, stamp_ns: int, frame_id: str, image: ByteImage, quality: int) -> Any:
        """A CompressedImage."""
        header = self.header(stamp_ns, frame_id)
        return self._types["sensor_msgs/msg/CompressedImage"](header, "jpeg", to_jpeg(image, quality))

    def depth(self, stamp_ns: int, frame_id: str, depth: FloatArray) -> Any:
        """An Image of 32FC1, NaN where the depth (H, W) is 0 (REP-118)."""
        values = np.where(depth > 0, depth, np.nan).astype("<f4")
        height, width = depth.shape
        header = self.header(stamp_ns, frame_id)
        return self._types["sensor_msgs/msg/Image"](header, height, width, "32FC1", 0, 4 * width, _bytes(values))

    def camera_info(self, stamp_ns: int, frame_id: str, intrinsics: Intrinsics) -> Any:
        """A pinhole without distortion."""
        k = intrinsics.matrix(centres_at_integers=True)
        return self._types["sensor_msgs/msg/CameraInfo"](
            header=self.header(stamp_ns, frame_id),
            height=intrinsics.height,
            width=intrinsics.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=k.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.concatenate([k, np.zeros((3, 1))], axis=1).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )

    def pose(self, stamp_ns: int, frame_id: str, pose: FloatArray) -> Any:
        """A PoseStamped."""
        point = self._types["geometry_msgs/msg/Point"](*pose[:3, 3].tolist())
        body = self._types["geometry_msgs/msg/Pose"](point, self._quaternion(pose))
        return self._types["geometry_msgs/msg/PoseStamped"](self.header(stamp_ns, frame_id), body)

    def path(self, stamp_ns: int, frame_id: str, trajectory: Sequence[tuple[int, FloatArray]]) -> Any:
        """A Path of (stamp_ns, pose)."""
        poses = [self.pose(stamp, frame_id, pose) for stamp, pose in trajectory]
        return self._types["nav_msgs/msg/Path"](self.header(stamp_ns, frame_id), poses)

    def transform(self, stamp_ns: int, parent: str, child: str, pose: FloatArray) -> Any:
        """A TFMessage of one transform."""
        shift = self._types["geometry_msgs/msg/Vector3"](*pose[:3, 3].tolist())
        body = self._types["geometry_msgs/msg/Transform"](shift, self._quaternion(pose))
        stamped = self._types["geometry_msgs/msg/TransformStamped"](self.header(stamp_ns, parent), child, body)
        return self._types["tf2_msgs/msg/TFMessage"]([stamped])

    def cloud(self, stamp_ns: int, frame_id: str, cloud: PointCloud) -> Any:
        """A PointCloud2 with the fields of the node's: x, y, z, rgb, confidence."""
        values = np.zeros((len(cloud), len(_FIELDS)), "<f4")
        values[:, :3] = cloud.points
        values[:, 4] = cloud.confidence
        values.view(np.uint8)[:, _BLUE : _BLUE + 3] = cloud.colours[:, ::-1]
        field = self._types["sensor_msgs/msg/PointField"]
        return self._types["sensor_msgs/msg/PointCloud2"](
            header=self.header(stamp_ns, frame_id),
            height=1,
            width=len(cloud),
            fields=[field(name, 4 * place, _FLOAT32, 1) for place, name in enumerate(_FIELDS)],
            is_bigendian=False,
            point_step=values.itemsize * len(_FIELDS),
            row_step=values.nbytes,
            data=_bytes(values),
            is_dense=False,
        )

    def _quaternion(self, pose: FloatArray) -> Any:
        return self._types["geometry_msgs/msg/Quaternion"](*quaternion_xyzw(pose[:3, :3]).tolist())


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
