"""From the package's values to ROS messages. Frames are named by the caller, stamps are the images'."""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Vector3
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from dust3r_ros.data import FloatArray, Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.geometry import make_pose, rotation_from_quaternion
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.msg import Status
from dust3r_ros.predictor import PredictorInfo
from dust3r_ros.ros import compat
from dust3r_ros.ros.statistics import Drop, Snapshot
from dust3r_ros.ros.tracking_statistics import PoseFate, TrackingSnapshot

_NS = 1_000_000_000
_POINT = np.dtype([(name, "<f4") for name in ("x", "y", "z", "rgb", "confidence")])
_FIELDS = [
    PointField(name=name, offset=_POINT.fields[name][1], datatype=PointField.FLOAT32, count=1)  # type: ignore[index]
    for name in _POINT.names or ()
]


def time_of(stamp_ns: int) -> Time:
    """A builtin_interfaces/Time from nanoseconds."""
    return Time(sec=stamp_ns // _NS, nanosec=stamp_ns % _NS)


def header_of(stamp_ns: int, frame_id: str) -> Header:
    """A std_msgs/Header."""
    return Header(stamp=time_of(stamp_ns), frame_id=frame_id)


def pose_message(pose: FloatArray) -> Pose:
    """A geometry_msgs/Pose from (4, 4)."""
    x, y, z, w = (float(value) for value in compat.quaternion_of(pose[:3, :3]))
    return Pose(position=Point(**_xyz(pose)), orientation=Quaternion(x=x, y=y, z=z, w=w))


def pose_of(message: Pose) -> FloatArray:
    """(4, 4) from a geometry_msgs/Pose."""
    p, q = message.position, message.orientation
    return make_pose(rotation_from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def pose_stamped(stamp_ns: int, frame_id: str, pose: FloatArray) -> PoseStamped:
    """A pose (4, 4), camera to ``frame_id``, with its time."""
    return PoseStamped(header=header_of(stamp_ns, frame_id), pose=pose_message(pose))


def transform_stamped(stamp_ns: int, parent: str, child: str, pose: FloatArray) -> TransformStamped:
    """The TF edge from ``parent`` to ``child``; ``pose`` (4, 4) takes the child's points to the parent."""
    rotation = pose_message(pose).orientation
    return TransformStamped(
        header=header_of(stamp_ns, parent),
        child_frame_id=child,
        transform=Transform(translation=Vector3(**_xyz(pose)), rotation=rotation),
    )


def transform_of(message: Transform) -> FloatArray:
    """(4, 4) from a geometry_msgs/Transform."""
    t, q = message.translation, message.rotation
    return make_pose(rotation_from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([t.x, t.y, t.z]))


class PathBuilder:
    """Makes a nav_msgs/Path of a growing trajectory; poses that did not change are not converted again."""

    def __init__(self, frame_id: str) -> None:
        self._frame_id = frame_id
        self._known: list[tuple[int, FloatArray, PoseStamped]] = []

    def build(self, stamp_ns: int, trajectory: Sequence[tuple[int, FloatArray]]) -> Path:
        """The whole path of (stamp_ns, camera_to_world (4, 4)); ``stamp_ns`` is the newest image's."""
        self._known = [
            (stamp, pose, self._converted(place, stamp, pose)) for place, (stamp, pose) in enumerate(trajectory)
        ]
        return Path(header=header_of(stamp_ns, self._frame_id), poses=[message for _, _, message in self._known])

    def _converted(self, place: int, stamp_ns: int, pose: FloatArray) -> PoseStamped:
        if place < len(self._known):
            known_stamp, known_pose, message = self._known[place]
            if known_stamp == stamp_ns and (known_pose is pose or np.array_equal(known_pose, pose)):
                return message
        return pose_stamped(stamp_ns, self._frame_id, pose)


def cloud_message(stamp_ns: int, frame_id: str, cloud: PointCloud) -> PointCloud2:
    """A PointCloud2 with the fields x, y, z, rgb and confidence."""
    message = PointCloud2(
        header=header_of(stamp_ns, frame_id),
        height=1,
        width=len(cloud),
        fields=_FIELDS,
        is_bigendian=False,
        point_step=_POINT.itemsize,
        row_step=_POINT.itemsize * len(cloud),
        is_dense=False,
    )
    # Written where the message has it, by columns: what is given to a message it copies, in Kilted twice, and a
    # structured array's fields take three times as long.
    data = message.data
    data.append(0)
    data *= message.row_step
    points = np.frombuffer(data, "<f4").reshape(-1, len(_FIELDS))
    for axis in range(3):
        points[:, axis] = cloud.points[:, axis]
    packed = np.zeros((len(cloud), 4), np.uint8)  # by PCL's and RViz's convention: a float's bytes are b, g, r, 0
    packed[:, :3] = cloud.colours[:, ::-1]
    points.view("<u4")[:, 3] = packed.view("<u4")[:, 0]
    points[:, 4] = cloud.confidence
    return message


def cloud_of(message: PointCloud2) -> PointCloud:
    """The points, colours and confidences of a PointCloud2; grey and 1 where it has none.

    Raises RosError when it has no x, y and z.
    """
    raw = compat.read_points(message)
    names = raw.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise RosError(f"a cloud must have the fields x, y and z, got {', '.join(names) or 'none'}")
    points = np.stack([raw["x"], raw["y"], raw["z"]], axis=1).astype(np.float32)
    colours = np.full((len(raw), 3), 128, np.uint8)
    if "rgb" in names:
        packed = np.ascontiguousarray(raw["rgb"]).view(np.uint32)
        colours = np.stack([packed >> 16, packed >> 8, packed], axis=1).astype(np.uint8)
    confidence = raw["confidence"].astype(np.float32) if "confidence" in names else np.ones(len(raw), np.float32)
    return PointCloud(points, colours, confidence)


def camera_info_message(stamp_ns: int, frame_id: str, intrinsics: Intrinsics) -> CameraInfo:
    """A CameraInfo of a pinhole without distortion, for the image of the intrinsics' size."""
    k = intrinsics.matrix(centres_at_integers=True)
    return CameraInfo(
        header=header_of(stamp_ns, frame_id),
        width=intrinsics.width,
        height=intrinsics.height,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.column_stack([k, np.zeros(3)]).ravel(),
    )


def depth_message(stamp_ns: int, frame_id: str, depth: FloatArray) -> Image:
    """A 32FC1 depth image (H, W), NaN where unknown (REP-118)."""
    values = np.where(depth > 0, depth, np.nan).astype("<f4")
    return Image(
        header=header_of(stamp_ns, frame_id),
        height=depth.shape[0],
        width=depth.shape[1],
        encoding="32FC1",
        is_bigendian=0,
        step=4 * depth.shape[1],
        data=byte_array(values),
    )


def depth_of(message: Image) -> NDArray[np.float32]:
    """Depth (H, W), NaN where unknown, of a 32FC1 image. Raises RosError for another."""
    if message.encoding != "32FC1":
        raise RosError(f"a depth image must be 32FC1, got {message.encoding!r}")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, : 4 * message.width]
    return np.ascontiguousarray(rows).view(">f4" if message.is_bigendian else "<f4").astype(np.float32)


def byte_array(values: NDArray) -> array.array[int]:
    """A message's ``data``: rclpy takes an array of bytes as it is, and checks any other sequence value by value."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).tobytes())
    return data


def state_name(snapshot: Snapshot, *, paused: bool) -> str:
    """What the node is doing, in the words of Status.msg."""
    if paused:
        return "paused"
    if not snapshot.received:
        return "waiting for images"
    if snapshot.lost:
        return "lost"
    return "mapping" if snapshot.keyframes > 1 else "starting"


def status_message(
    frame_id: str, snapshot: Snapshot, info: PredictorInfo | None, *, state: str, queue_length: int, map_points: int,
    metric: bool,
) -> Status:  # fmt: skip
    """A Status from the node's statistics; ``info`` is None while no model is loaded; ``metric`` is the map's."""
    info = info or PredictorInfo("", False, "", "")
    status = Status(
        header=header_of(snapshot.stamp_ns, frame_id),
        model=info.name,
        trained=info.trained,
        licence=info.licence,
        device=info.device,
        state=state,
        frames_received=snapshot.received,
        keyframes=snapshot.keyframes,
        queue_length=queue_length,
        keyframe_rate=snapshot.keyframe_rate,
        latency_ms=snapshot.latency_ms,
        map_points=map_points,
        metric=metric,
    )
    _put_tracking(status, snapshot.tracking)
    for drop in Drop:
        setattr(status, f"dropped_{drop.name.lower()}", snapshot.dropped.get(drop, 0))
    if (newest := snapshot.newest) is not None:
        for stage in ("encode_ms", "decode_ms", "align_ms", "fuse_ms"):
            setattr(status, stage, float(getattr(newest.times, stage)))
        status.focal_px = float(newest.intrinsics.focal_px)
        status.focal_spread_px = float(newest.focal_spread_px)
        status.edge_residual = float(newest.edge_residual)
    return status


def _put_tracking(status: Status, tracking: TrackingSnapshot) -> None:
    status.tracking_state = tracking.word
    status.tracking_points, status.tracking_inliers = tracking.points, tracking.inliers
    status.poses = tracking.counts.get(PoseFate.PUBLISHED, 0)
    for fate in (PoseFate.INITIALISING, PoseFate.LOST, PoseFate.STALE):
        setattr(status, f"images_{fate.value}", tracking.counts.get(fate, 0))
    status.relocalisations = tracking.relocalisations
    status.pose_rate, status.pose_latency_ms = tracking.rate, tracking.latency_ms


def _xyz(pose: FloatArray) -> dict[str, float]:
    return dict(zip("xyz", (float(value) for value in pose[:3, 3])))
