"""rosbag2 recordings of frames with known truth, written without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys import Stores, get_typestore

from dust3r_ros.data import PosedFrame
from dust3r_ros.errors import ExportError
from dust3r_ros.geometry import quaternion_xyzw
from dust3r_ros.images import to_jpeg

IMAGE_TOPIC = "/camera/image_raw/compressed"
INFO_TOPIC = "/camera/camera_info"
POSE_TOPIC = "/ground_truth/pose"
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_JPEG_QUALITY = 95


def write_bag(
    frames: Iterable[PosedFrame], path: str | Path, *, storage: str = "mcap", distro: Stores = Stores.ROS2_JAZZY,
    camera_frame: str = "camera_optical", world_frame: str = "map",
) -> Path:  # fmt: skip
    """A bag folder with each frame's JPEG image, CameraInfo and true pose; stamps and log times are the frames'.

    Topics are ``/camera/image_raw/compressed``, ``/camera/camera_info`` and ``/ground_truth/pose`` (PoseStamped of the
    optical frame in ``world_frame``). ``distro`` chooses the message definitions. Returns the path.
    Raises ValueError for an unknown storage, ExportError when the folder exists or cannot be written.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}")
    path = Path(path)
    messages = _Messages(distro, camera_frame, world_frame)
    try:
        with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
            messages.connect(writer)
            for frame in frames:
                messages.write(writer, frame)
    except (WriterError, OSError) as error:
        raise ExportError(f"cannot write the bag {path}: {error}") from error
    return path


class _Messages:
    """Makes and writes the messages of one frame after the other."""

    def __init__(self, distro: Stores, camera_frame: str, world_frame: str) -> None:
        self._store = get_typestore(distro)
        self._types = self._store.types
        self._camera_frame, self._world_frame = camera_frame, world_frame
        self._connections: dict[str, Connection] = {}

    def connect(self, writer: Writer) -> None:
        for topic, kind in (
            (IMAGE_TOPIC, "sensor_msgs/msg/CompressedImage"),
            (INFO_TOPIC, "sensor_msgs/msg/CameraInfo"),
            (POSE_TOPIC, "geometry_msgs/msg/PoseStamped"),
        ):
            self._connections[topic] = writer.add_connection(topic, kind, typestore=self._store)

    def write(self, writer: Writer, frame: PosedFrame) -> None:
        for topic, message in (
            (INFO_TOPIC, self._info(frame)),
            (IMAGE_TOPIC, self._image(frame)),
            (POSE_TOPIC, self._pose(frame)),
        ):
            connection = self._connections[topic]
            writer.write(connection, frame.stamp_ns, self._store.serialize_cdr(message, connection.msgtype))

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._types["builtin_interfaces/msg/Time"](stamp_ns // 1_000_000_000, stamp_ns % 1_000_000_000)
        return self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)

    def _image(self, frame: PosedFrame) -> Any:
        data = to_jpeg(frame.image, _JPEG_QUALITY)
        header = self._header(frame.stamp_ns, self._camera_frame)
        return self._types["sensor_msgs/msg/CompressedImage"](header=header, format="jpeg", data=data)

    def _info(self, frame: PosedFrame) -> Any:
        k = frame.intrinsics.matrix(centres_at_integers=True)
        return self._types["sensor_msgs/msg/CameraInfo"](
            header=self._header(frame.stamp_ns, self._camera_frame),
            height=frame.intrinsics.height,
            width=frame.intrinsics.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=k.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.concatenate([k, np.zeros((3, 1))], axis=1).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=self._types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )

    def _pose(self, frame: PosedFrame) -> Any:
        pose = frame.camera_to_world
        return self._types["geometry_msgs/msg/PoseStamped"](
            header=self._header(frame.stamp_ns, self._world_frame),
            pose=self._types["geometry_msgs/msg/Pose"](
                position=self._types["geometry_msgs/msg/Point"](*pose[:3, 3].tolist()),
                orientation=self._types["geometry_msgs/msg/Quaternion"](*quaternion_xyzw(pose[:3, :3]).tolist()),
            ),
        )
