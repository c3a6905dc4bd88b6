"""What ROS 2's Python packages offer, and the same few functions of our own where such a package is missing.

The wheels of PyPI have rclpy and messages, but neither ``sensor_msgs_py``, ``cv_bridge``, ``tf_transformations`` nor
``tf2_ros``. This is the only module that knows which of them are there; all others call the functions below.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import Image, PointCloud2, PointField
from tf2_msgs.msg import TFMessage

from dust3r_ros.data import ByteImage, FloatArray
from dust3r_ros.geometry import make_pose, quaternion_xyzw, rotation_from_quaternion
from dust3r_ros.ros.decode import image_to_rgb
from dust3r_ros.ros.tf_buffer import TransformBuffer, TransformMissingError

ByteOrder = Literal["<", ">"]

_NUMPY_TYPE = {
    PointField.INT8: np.int8,
    PointField.UINT8: np.uint8,
    PointField.INT16: np.int16,
    PointField.UINT16: np.uint16,
    PointField.INT32: np.int32,
    PointField.UINT32: np.uint32,
    PointField.FLOAT32: np.float32,
    PointField.FLOAT64: np.float64,
}
# Bytes a pixel of the encodings that cv_bridge turns into rgb8 as we do. It scales 16 bits by another rule.
_BRIDGE_ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


class Broadcaster(Protocol):
    """What tf2_ros.TransformBroadcaster does."""

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:  # noqa: N802
        """Publish one transform or several."""


class Transforms(Protocol):
    """What tf2_ros.Buffer does, with poses (4, 4) that take points of the child (source) to the parent (target)."""

    def set(self, parent: str, child: str, stamp_ns: int, pose: FloatArray, *, static: bool) -> None:
        """Remember a transform."""

    def lookup(self, target: str, source: str, stamp_ns: int) -> FloatArray:
        """The pose at a time. Raises TransformMissingError."""

    def clear(self) -> None:
        """Forget all but the static transforms."""


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def available() -> dict[str, bool]:
    """Which of the optional ROS packages are installed and can be loaded."""
    return {
        "sensor_msgs_py": _optional("sensor_msgs_py.point_cloud2") is not None,
        "cv_bridge": _optional("cv_bridge.boost.cv_bridge_boost") is not None,
        "tf_transformations": _optional("tf_transformations") is not None,
        "tf2_ros": _optional("tf2_ros.transform_broadcaster") is not None,
    }


def rgb_of(message: Image) -> ByteImage:
    """The pixels (H, W, 3) uint8 RGB of a sensor_msgs/Image, by cv_bridge where it can do it.

    Raises RosError naming the encoding, the size and the bytes expected and got.
    """
    if not _bridge_can_read(message):
        return image_to_rgb(message)
    pixels = importlib.import_module("cv_bridge").CvBridge().imgmsg_to_cv2(message, "rgb8")
    return np.array(pixels, dtype=np.uint8, order="C")


def _bridge_can_read(message: Image) -> bool:
    """cv_bridge shifts rows whose padding is no whole pixel, and does not say what is wrong with a short message."""
    row = message.width * _BRIDGE_ENCODINGS.get(message.encoding, 0)
    whole = 0 < row == message.step and 0 < row * message.height == len(message.data)
    # Its compiled half cannot be loaded where it was built for another NumPy.
    return whole and _optional("cv_bridge.boost.cv_bridge_boost") is not None


def read_points(cloud: PointCloud2) -> NDArray[np.void]:
    """The points (N,) of a cloud as a structured array with the names of its fields."""
    theirs = _optional("sensor_msgs_py.point_cloud2")
    if theirs is not None:
        return theirs.read_points(cloud)
    order: ByteOrder = ">" if cloud.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": [f.name for f in cloud.fields],
            "formats": [_field_type(f, order) for f in cloud.fields],
            "offsets": [f.offset for f in cloud.fields],
            "itemsize": cloud.point_step,
        }
    )
    count = cloud.width * cloud.height
    packed = cloud.width * cloud.point_step
    if cloud.height > 1 and cloud.row_step != packed:
        rows = np.frombuffer(cloud.data, np.uint8).reshape(cloud.height, cloud.row_step)
        return np.ascontiguousarray(rows[:, :packed]).view(dtype).reshape(-1)
    return np.frombuffer(cloud.data, dtype=dtype, count=count)


def _field_type(field: PointField, order: ByteOrder) -> Any:
    scalar = np.dtype(_NUMPY_TYPE[field.datatype]).newbyteorder(order)
    return scalar if field.count <= 1 else (scalar, (field.count,))


def quaternion_of(rotation: FloatArray) -> FloatArray:
    """The unit quaternion (4,) as x, y, z, w, with w >= 0, of a rotation (3, 3)."""
    theirs = _optional("tf_transformations")
    if theirs is None:
        xyzw = quaternion_xyzw(rotation)
    else:
        matrix = np.eye(4)
        matrix[:3, :3] = rotation
        xyzw = np.asarray(theirs.quaternion_from_matrix(matrix), dtype=np.float64)
    return -xyzw if xyzw[3] < 0 else xyzw


class _TransformBroadcaster:
    """Publishes on /tf, or latched on /tf_static, with the quality of service that tf2 listeners expect."""

    def __init__(self, node: Node, topic: str, qos: QoSProfile) -> None:
        self._publisher = node.create_publisher(TFMessage, topic, qos)
        self._latched: dict[str, TransformStamped] | None = {} if topic == "/tf_static" else None

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:  # noqa: N802
        sent = [transform] if isinstance(transform, TransformStamped) else list(transform)
        if self._latched is not None:  # a late listener gets the last message only: it must hold all
            self._latched.update({t.child_frame_id: t for t in sent})
            sent = list(self._latched.values())
        self._publisher.publish(TFMessage(transforms=sent))


def transform_broadcaster(node: Node) -> Broadcaster:
    """What publishes moving transforms on /tf."""
    theirs = _optional("tf2_ros.transform_broadcaster")
    if theirs is not None:
        return theirs.TransformBroadcaster(node)
    return _TransformBroadcaster(node, "/tf", _tf_qos(100, DurabilityPolicy.VOLATILE))


def static_transform_broadcaster(node: Node) -> Broadcaster:
    """What publishes fixed transforms on /tf_static, for late listeners too."""
    theirs = _optional("tf2_ros.static_transform_broadcaster")
    if theirs is not None:
        return theirs.StaticTransformBroadcaster(node)
    return _TransformBroadcaster(node, "/tf_static", _tf_qos(1, DurabilityPolicy.TRANSIENT_LOCAL))


def _tf_qos(depth: int, durability: DurabilityPolicy) -> QoSProfile:
    return QoSProfile(
        depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE, durability=durability
    )


class _Tf2Transforms:
    """tf2's own buffer."""

    def __init__(self, tf2_ros: ModuleType) -> None:
        self._buffer = tf2_ros.Buffer()
        self._errors = (tf2_ros.LookupException, tf2_ros.ConnectivityException, tf2_ros.ExtrapolationException)

    def set(self, parent: str, child: str, stamp_ns: int, pose: FloatArray, *, static: bool) -> None:
        sent = TransformStamped(child_frame_id=child)
        sent.header.frame_id = parent
        sent.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        place, turn = sent.transform.translation, sent.transform.rotation
        place.x, place.y, place.z = (float(value) for value in pose[:3, 3])
        turn.x, turn.y, turn.z, turn.w = (float(value) for value in quaternion_of(pose[:3, :3]))
        (self._buffer.set_transform_static if static else self._buffer.set_transform)(sent, "dust3r")

    def lookup(self, target: str, source: str, stamp_ns: int) -> FloatArray:
        try:
            found = self._buffer.lookup_transform_core(target, source, Time(nanoseconds=stamp_ns)).transform
        except self._errors as error:
            raise TransformMissingError(str(error)) from error
        turn, place = found.rotation, found.translation
        rotation = rotation_from_quaternion(np.array([turn.x, turn.y, turn.z, turn.w]))
        return make_pose(rotation, np.array([place.x, place.y, place.z]))

    def clear(self) -> None:
        self._buffer.clear()


def transform_buffer() -> Transforms:
    """What keeps a robot's transforms and looks them up."""
    theirs = _optional("tf2_ros")
    return TransformBuffer() if theirs is None else _Tf2Transforms(theirs)
