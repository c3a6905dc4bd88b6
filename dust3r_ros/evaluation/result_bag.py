"""A reconstruction as a ROS 2 bag: what the node would have published, with the final poses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from dust3r_ros.data import BoolArray, PosedView
from dust3r_ros.errors import ExportError
from dust3r_ros.evaluation.messages import Messages
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.fuse import view_points

NODE, WORLD, CAMERA = "/dust3r", "map", "camera_optical"
_JPEG_QUALITY = 90
_KINDS = {
    "/tf": "tf2_msgs/msg/TFMessage",
    f"{NODE}/pose": "geometry_msgs/msg/PoseStamped",
    f"{NODE}/camera_info": "sensor_msgs/msg/CameraInfo",
    f"{NODE}/image/compressed": "sensor_msgs/msg/CompressedImage",
    f"{NODE}/depth": "sensor_msgs/msg/Image",
    f"{NODE}/points": "sensor_msgs/msg/PointCloud2",
    f"{NODE}/path": "nav_msgs/msg/Path",
    f"{NODE}/map": "sensor_msgs/msg/PointCloud2",
}
_LATCHED = (f"{NODE}/path", f"{NODE}/map", f"{NODE}/camera_info")


def write_result_bag(views: Sequence[PosedView], masks: Sequence[BoolArray], cloud: PointCloud, folder: Path) -> None:
    """A rosbag2 folder (MCAP, Jazzy's definitions) in place of what ``folder`` holds.

    At each view's stamp: TF and pose in ``map``, CameraInfo for the original image; where the view has pixels, the
    prepared image, and depth and points of the ``masks`` (H, W). At the last stamp: path and map. Names, types, frames
    and qualities of service are the node's defaults. Raises ExportError.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name  # the files inside are called after it
            with Writer(made, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
                _write(writer, views, masks, cloud)
            shutil.rmtree(folder, ignore_errors=True)
            made.replace(folder)
    except WriterError as error:
        raise ExportError(f"cannot write {folder}: {error}") from error
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror or error}") from error


def _write(writer: Writer, views: Sequence[PosedView], masks: Sequence[BoolArray], cloud: PointCloud) -> None:
    make = Messages()
    topics = {
        topic: make.connect(writer, topic, kind, [_qos(latched=topic in _LATCHED)]) for topic, kind in _KINDS.items()
    }
    for view, mask in sorted(zip(views, masks, strict=True), key=lambda pair: pair[0].stamp_ns):
        stamp, depth = view.stamp_ns, view.estimate.depth
        messages = {
            "/tf": make.transform(stamp, WORLD, CAMERA, view.camera_to_world),
            f"{NODE}/pose": make.pose(stamp, WORLD, view.camera_to_world),
            f"{NODE}/camera_info": make.camera_info(stamp, CAMERA, view.intrinsics),
        }
        if view.image.pixels.size and depth.size:
            confidence = view.estimate.confidence[mask].astype(np.float32)
            points = PointCloud(view_points(view.estimate, mask), view.image.pixels[mask], confidence)
            messages |= {
                f"{NODE}/image/compressed": make.jpeg(stamp, CAMERA, view.image.pixels, _JPEG_QUALITY),
                f"{NODE}/depth": make.depth(stamp, CAMERA, depth * mask),
                f"{NODE}/points": make.cloud(stamp, WORLD, points),
            }
        for topic, message in messages.items():
            make.write(writer, topics[topic], stamp, message)
    trajectory = sorted(((view.stamp_ns, view.camera_to_world) for view in views), key=lambda entry: entry[0])
    last = trajectory[-1][0]
    make.write(writer, topics[f"{NODE}/path"], last, make.path(last, WORLD, trajectory))
    make.write(writer, topics[f"{NODE}/map"], last, make.cloud(last, WORLD, cloud))


def _qos(*, latched: bool) -> Qos:
    never = QosTime(2147483647, 4294967295)
    durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
    return Qos(
        QosHistory.KEEP_LAST, 1 if latched else 10, QosReliability.RELIABLE, durability, never, never,
        QosLiveliness.AUTOMATIC, never, False,
    )  # fmt: skip
