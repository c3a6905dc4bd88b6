"""Recordings: the images, intrinsics and true poses of ROS 2 bags (SQLite, MCAP) and ROS 1 bags. Needs no ROS."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.convert.converter import migrate_bytes
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.errors import RecordingError, RosError
from dust3r_ros.geometry import make_pose, rotation_from_quaternion
from dust3r_ros.ros.decode import compressed_to_rgb, image_to_rgb, stamp_ns_of
from dust3r_ros.ros.excerpt import ALWAYS, WHOLE, Excerpt, Window
from dust3r_ros.ros.lens import Lens, lens_of, same_camera
from dust3r_ros.ros.salvage import UnfinishedMcap
from dust3r_ros.ros.storage import DAMAGE, open_storage, reason

log = logging.getLogger(__name__)

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
POSE_TYPES = frozenset(
    {
        "geometry_msgs/msg/PoseStamped",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
        "geometry_msgs/msg/TransformStamped",
        "nav_msgs/msg/Odometry",
    }
)
_TRUTH_WORDS = ("ground_truth", "groundtruth", "/gt", "vicon", "optitrack", "mocap")


@dataclass(frozen=True)
class Topic:
    """One topic of a recording, and how many messages it has."""

    name: str
    type: str
    count: int


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a recording: (H, W, 3) uint8 RGB; ``intrinsics`` for its size, None when the bag has none.

    Where the bag's CameraInfo has lens distortion, it is undone, and the intrinsics are those of the straight image.
    """

    topic: str
    stamp_ns: int
    frame_id: str
    image: ByteImage
    intrinsics: Intrinsics | None


@dataclass(frozen=True, eq=False)
class StampedPose:
    """A recorded pose (4, 4) of ``child_frame_id`` (empty when the message has none) in ``frame_id``."""

    stamp_ns: int
    frame_id: str
    child_frame_id: str
    pose: FloatArray


@dataclass(frozen=True)
class RawMessage:
    """One message as it is sent in ROS 2: its serialised form (CDR), and when it was recorded."""

    topic: Topic
    log_ns: int
    cdr: bytes


class Recording:
    """An open recording; a context manager. All errors are RecordingError.

    Iteration gives what can be read of a damaged recording, then raises. ``skipped`` counts the images of the last
    ``frames`` that could not be decoded and were left out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.skipped = 0
        self._reader = open_storage(self.path)
        self._ros2 = get_typestore(Stores.LATEST)
        self._migrations: dict[str, object] = {}
        counts: dict[tuple[str, str], int] = {}
        for connection in self._reader.connections:
            key = (connection.topic, connection.msgtype)
            counts[key] = counts.get(key, 0) + connection.msgcount
        self.topics = tuple(Topic(name, kind, count) for (name, kind), count in sorted(counts.items()))

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._reader.close()

    @property
    def image_topics(self) -> tuple[Topic, ...]:
        """The topics with images that are not empty."""
        return tuple(topic for topic in self.topics if topic.type in (IMAGE, COMPRESSED_IMAGE) and topic.count)

    @property
    def duration_s(self) -> float:
        """Seconds between the first and the last message."""
        return max(self._reader.duration, 0) / 1e9

    def choose_image_topic(self, name: str = "") -> Topic:
        """The topic called ``name``, or the only one with colour or grey images when no name is given.

        Of a raw and a compressed topic with the same images the raw one is taken.
        """
        found = self.image_topics
        listed = ", ".join(f"{topic.name} ({topic.count})" for topic in found) or "none"
        if name:
            for topic in found:
                if topic.name == name:
                    return topic
            raise RecordingError(f"{self.path} has no image topic {name!r}; its image topics are: {listed}")
        names = {topic.name for topic in found}
        usable = [t for t in found if t.name.rsplit("/", 1)[0] not in names and not _is_depth(t.name)]
        if len(usable) == 1:
            return usable[0]
        if not usable:
            raise RecordingError(f"{self.path} has no image topic; its image topics are: {listed}")
        raise RecordingError(f"{self.path} has several image topics, name one of: {listed}")

    def frames(self, topic: str = "", excerpt: Excerpt = WHOLE) -> Iterator[Frame]:
        """The images of one topic in the order of recording. Images that cannot be decoded are logged and skipped."""
        chosen = self.choose_image_topic(topic)
        info_topic = self._camera_info_topic(chosen)
        self.skipped, number = 0, -1
        known, described = self._first_lens(info_topic), None
        window = excerpt.window_ns(self._reader.start_time)
        for connection, log_ns, message in self._messages({chosen.name, info_topic} - {""}, window):
            if connection.topic == info_topic:
                if described is None or not same_camera(described, message):
                    described, known = message, _lens(message) or known
                continue
            number += 1
            if number % excerpt.every:
                continue
            try:
                image = (compressed_to_rgb if chosen.type == COMPRESSED_IMAGE else image_to_rgb)(message)
            except RosError as error:
                self.skipped += 1
                log.warning("%s: image %d left out: %s", chosen.name, self.skipped, error)
                continue
            stamp_ns = stamp_ns_of(message.header) or log_ns
            lens = _fitting(known, image)
            straight = lens.undistorted(image) if lens is not None else image
            intrinsics = lens.intrinsics if lens is not None else None
            yield Frame(chosen.name, stamp_ns, str(message.header.frame_id), straight, intrinsics)

    def truth_topic(self) -> str:
        """The topic that by its type and name holds the true poses; empty when there is none."""
        for topic in self.topics:
            if topic.type in POSE_TYPES and topic.count and any(word in topic.name.lower() for word in _TRUTH_WORDS):
                return topic.name
        return ""

    def poses(self, topic: str = "") -> list[StampedPose]:
        """The poses of a topic, of ``truth_topic()`` when none is named; empty when there is neither."""
        name = topic or self.truth_topic()
        if not name:
            return []
        if not any(t.name == name and t.type in POSE_TYPES for t in self.topics):
            raise RecordingError(f"{self.path} has no topic {name!r} with poses")
        poses = []
        try:
            for _, log_ns, message in self._messages({name}):
                poses.append(_pose(message, log_ns))
        except RecordingError as error:  # ``frames`` will say it again
            log.warning("%s: %d poses were read: %s", name, len(poses), error)
        return [pose for pose in poses if pose is not None]

    def raw_messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """The messages of some topics in the order of recording, serialised as ROS 2 sends them."""
        by_key = {(topic.name, topic.type): topic for topic in self.topics}
        for connection, log_ns, data in self._raw(topics):
            topic = by_key[connection.topic, connection.msgtype]
            yield RawMessage(topic, log_ns, data if self._reader.is2 else self._ros1_to_cdr(data, topic))

    def _ros1_to_cdr(self, data: bytes, topic: Topic) -> bytes:
        """A ROS 1 message as its ROS 2 namesake: without the header's ``seq``, with ``k`` for ``K``."""
        if topic.type not in self._ros2.types:
            raise RecordingError(f"{self.path}: {topic.name} is of the type {topic.type}, which ROS 2 does not have")
        store = self._reader.typestore
        try:
            return bytes(
                migrate_bytes(
                    store, self._ros2, topic.type, topic.type, self._migrations, data, src_is2=False, dst_is2=True
                )
            )
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _camera_info_topic(self, image: Topic) -> str:
        infos = [topic.name for topic in self.topics if topic.type == CAMERA_INFO and topic.count]
        if not infos:
            return ""
        if len(infos) == 1:
            return infos[0]
        shared = {name: len(_parents(name) & _parents(image.name)) for name in infos}
        best = max(infos, key=lambda name: shared[name])
        return best if shared[best] > 0 else ""

    def _first_lens(self, info_topic: str) -> Lens | None:
        if not info_topic:
            return None
        return next((_lens(message) for _, _, message in self._messages({info_topic})), None)

    def _messages(self, topics: Collection[str], window: Window = ALWAYS) -> Iterator[tuple[Connection, int, Any]]:
        for connection, log_ns, data in self._raw(topics, window):
            try:
                message = self._reader.deserialize(data, connection.msgtype)
            except DAMAGE as error:
                raise self._damaged(error) from error
            yield connection, log_ns, message

    def _raw(self, topics: Collection[str], window: Window = ALWAYS) -> Iterator[tuple[Connection, int, bytes]]:
        connections = [connection for connection in self._reader.connections if connection.topic in topics]
        if not connections:
            return
        messages = self._reader.messages(connections, *window)
        while True:
            try:
                following = next(messages, None)
            except DAMAGE as error:
                raise self._damaged(error) from error
            if following is None:
                break
            yield following
        if window[1] is None and isinstance(self._reader.paths[-1], UnfinishedMcap):
            raise RecordingError(f"{self.path} was not closed by its recorder: only what is before the break was read")

    def _damaged(self, error: BaseException) -> RecordingError:
        return RecordingError(f"{self.path} is damaged: {reason(error)}")


def open_recording(path: str | Path) -> Recording:
    """Open a rosbag2 folder, a single ``.mcap`` or ``.db3`` file, or a ROS 1 ``.bag``.

    A bag without ``metadata.yaml`` and an MCAP file that its recorder did not close are read as far as they go.
    Raises RecordingError when there is nothing to read.
    """
    return Recording(path)


def _is_depth(name: str) -> bool:
    return "depth" in name.lower()


def _parents(name: str) -> set[str]:
    parts = name.split("/")
    return {"/".join(parts[:end]) for end in range(2, len(parts))}


def _lens(message: Any) -> Lens | None:
    try:
        return lens_of(message, rectified=False)
    except RosError as error:
        log.warning("camera info left out: %s", error)
        return None


def _fitting(known: Lens | None, image: ByteImage) -> Lens | None:
    if known is None or (known.intrinsics.height, known.intrinsics.width) != image.shape[:2]:
        return None
    return known


def _pose(message: Any, log_ns: int) -> StampedPose | None:
    body = getattr(message, "transform", None) or message.pose
    body = getattr(body, "pose", body)  # Odometry and PoseWithCovariance wrap it once more
    p = body.translation if hasattr(body, "translation") else body.position
    q = body.rotation if hasattr(body, "rotation") else body.orientation
    quaternion = np.array([q.x, q.y, q.z, q.w], dtype=np.float64)
    if not np.linalg.norm(quaternion) > 0:  # a tracker that has lost its target sends zeros
        return None
    rotation = rotation_from_quaternion(quaternion)
    child = str(getattr(message, "child_frame_id", ""))
    stamp_ns = stamp_ns_of(message.header) or log_ns
    return StampedPose(stamp_ns, str(message.header.frame_id), child, make_pose(rotation, np.array([p.x, p.y, p.z])))
