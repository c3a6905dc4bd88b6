"""rosbag2 recordings of frames with known truth, written without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys import Stores

from dust3r_ros.data import PosedFrame
from dust3r_ros.errors import ExportError
from dust3r_ros.evaluation.messages import Messages

IMAGE_TOPIC = "/camera/image_raw/compressed"
INFO_TOPIC = "/camera/camera_info"
POSE_TOPIC = "/ground_truth/pose"
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
_KINDS = {
    INFO_TOPIC: "sensor_msgs/msg/CameraInfo",
    IMAGE_TOPIC: "sensor_msgs/msg/CompressedImage",
    POSE_TOPIC: "geometry_msgs/msg/PoseStamped",
}
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
    try:
        with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
            _write(writer, frames, Messages(distro), camera_frame, world_frame)
    except (WriterError, OSError) as error:
        raise ExportError(f"cannot write the bag {path}: {error}") from error
    return path


def _write(writer: Writer, frames: Iterable[PosedFrame], make: Messages, camera_frame: str, world_frame: str) -> None:
    info, image, pose = (make.connect(writer, topic, kind) for topic, kind in _KINDS.items())
    for frame in frames:
        stamp = frame.stamp_ns
        make.write(writer, info, stamp, make.camera_info(stamp, camera_frame, frame.intrinsics))
        make.write(writer, image, stamp, make.jpeg(stamp, camera_frame, frame.image, _JPEG_QUALITY))
        make.write(writer, pose, stamp, make.pose(stamp, world_frame, frame.camera_to_world))
