"""The cameras: which topics, their subscriptions, their calibration, and what is wrong when nothing comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import ByteImage
from dust3r_ros.errors import ConfigError, RosError
from dust3r_ros.ros import compat
from dust3r_ros.ros.calibration import Calibration
from dust3r_ros.ros.decode import compressed_to_rgb, stamp_ns_of
from dust3r_ros.ros.lens import Lens
from dust3r_ros.ros.qos import image_qos
from dust3r_ros.ros.transforms import frame_name

log = logging.getLogger(__name__)

_COMPRESSED = "/compressed"


@dataclass(frozen=True)
class CameraTopics:
    """The topics of one camera, resolved."""

    image: str
    info: str
    compressed: bool


@dataclass(frozen=True, eq=False)
class Frame:
    """An image on its way to the worker; ``arrived`` is time.monotonic() at its callback, ``camera`` its topic."""

    camera: str
    camera_frame: str
    image: ByteImage
    stamp_ns: int
    lens: Lens | None
    arrived: float


@dataclass(frozen=True, eq=False)
class Shot:
    """An image that has arrived and has not been looked at; ``read`` makes a frame of it, or raises RosError."""

    stamp_ns: int
    read: Callable[[], Frame]


def camera_topics(config: NodeConfig, resolve: Callable[[str], str]) -> list[CameraTopics]:
    """The cameras that a configuration names; ``resolve`` applies namespace and remappings.

    Raises ConfigError for topics that are named twice or not at all.
    """
    names, infos = config.image_topics, list(config.camera_info_topics)
    if not names or not all(names):
        raise ConfigError(f"image_topics must name at least one topic, and none empty, got {list(names)}")
    if len(infos) > len(names):
        raise ConfigError(f"camera_info_topics must name at most {len(names)} topics, one a camera, got {len(infos)}")
    if config.camera_frame and len(names) > 1:
        raise ConfigError(f"camera_frame must be empty for several cameras, got {config.camera_frame!r}")
    infos += [""] * (len(names) - len(infos))
    cameras = [_camera(name, info, config, resolve) for name, info in zip(names, infos)]
    topics = [camera.image for camera in cameras]
    twice = next((topic for topic in topics if topics.count(topic) > 1), None)
    if twice is not None:
        raise ConfigError(f"image_topics must name each topic once, got {twice} twice")
    return cameras


def _camera(name: str, info: str, config: NodeConfig, resolve: Callable[[str], str]) -> CameraTopics:
    compressed = config.image_transport == "compressed" or name.endswith(_COMPRESSED)
    plain = name.removesuffix(_COMPRESSED)
    folder = plain.rpartition("/")[0]
    beside = f"{folder}/camera_info" if folder or plain.startswith("/") else "camera_info"
    # Named as image_transport does: below the plain topic, so that remapping that one moves this one too.
    image = resolve(resolve(plain) + _COMPRESSED) if compressed else resolve(plain)
    return CameraTopics(image, resolve(info or beside), compressed)


class Camera:
    """One camera's subscriptions.

    ``on_image`` is given every message in the executor's thread; ``frame`` makes it into what the worker takes, in any.
    """

    def __init__(
        self, node: Node, topics: CameraTopics, config: NodeConfig, on_image: Callable[[Camera, Any], None]
    ) -> None:
        self.topics = topics
        self._node = node
        self._frame_id = config.camera_frame
        self._to_rgb: Callable[[Any], ByteImage] = compressed_to_rgb if topics.compressed else compat.rgb_of
        self._type: type = CompressedImage if topics.compressed else Image
        self._qos = image_qos(config.image_reliability, config.image_history)
        self._calibration = Calibration(
            topics.info,
            needed=config.reconstructor.intrinsics == "given" or config.rectified,
            rectified=config.rectified,
            published=lambda: node.count_publishers(topics.info) > 0,
        )
        options = QoSOverridingOptions.with_default_policies()
        # CameraInfo first, since the executor keeps this order.
        self._subscriptions: list[Any] = [
            node.create_subscription(
                CameraInfo, topics.info, self._on_info, image_qos("best_effort", 5), qos_overriding_options=options,
            ),
            node.create_subscription(
                self._type, topics.image, lambda message: self._on_image(message, on_image), self._qos,
                qos_overriding_options=options,
            ),
        ]  # fmt: skip
        self.heard_at = time.monotonic()
        self.received = 0
        self.newest_ns = 0

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def frame(self, message: Any, arrived: float) -> Frame:
        """What the worker takes. Raises RosError for an image that cannot be used."""
        image = self._to_rgb(message)
        lens = self._calibration.for_image(*image.shape[:2])
        camera_frame = self._frame_id or frame_name(message.header.frame_id) or "camera"
        return Frame(self.topics.image, camera_frame, image, stamp_ns_of(message.header), lens, arrived)

    @property
    def calibration(self) -> str:
        """What its CameraInfo says, in words."""
        return self._calibration.known

    def silent_s(self) -> float:
        """Seconds since the last image, or since the subscription began."""
        return time.monotonic() - self.heard_at

    def mismatches(self) -> list[str]:
        """Why images of the publishers that are there cannot arrive; empty when they can, and when there are none."""
        reasons = [self._mismatch(publisher) for publisher in self._publishers()]
        return [reason for reason in reasons if reason]

    def silence(self) -> str:
        """What a silent topic's publishers are, in words: ``1 publisher, best effort, type ok``."""
        publishers = self._publishers()
        if not publishers:
            return "no publisher"
        kinds = sorted({_reliability(publisher.qos_profile) for publisher in publishers})
        wrong = self.mismatches()
        return f"{_count(publishers)}, {' and '.join(kinds)}, {'; '.join(wrong) if wrong else 'type ok'}"

    def _publishers(self) -> Sequence[Any]:
        return self._node.get_publishers_info_by_topic(self.topics.image)

    def _mismatch(self, publisher: Any) -> str:
        wanted = f"sensor_msgs/msg/{self._type.__name__}"
        if publisher.topic_type != wanted:
            return f"{publisher.node_name} publishes {publisher.topic_type}, {wanted} is expected (image_transport)"
        compatible, reason = qos_check_compatible(publisher.qos_profile, self._qos)
        if compatible == QoSCompatibility.ERROR:  # a new object each time
            offered = _reliability(publisher.qos_profile)
            wish = _reliability(self._qos)
            return (
                f"{publisher.node_name} is {offered}, {wish} is asked for (image_reliability): {reason.rstrip(';. ')}"
            )
        return ""

    def _on_image(self, message: Any, on_image: Callable[[Camera, Any], None]) -> None:
        self.heard_at = time.monotonic()
        self.received += 1
        self.newest_ns = stamp_ns_of(message.header)
        on_image(self, message)

    def _on_info(self, message: CameraInfo) -> None:
        try:
            self._calibration.update(message)
        except RosError as error:
            self._node.get_logger().warning(
                f"CameraInfo of {self.topics.info} skipped: {error}", throttle_duration_sec=5.0
            )


def _reliability(qos: QoSProfile) -> str:
    return "reliable" if qos.reliability is ReliabilityPolicy.RELIABLE else "best effort"


def _count(publishers: Sequence[Any]) -> str:
    return f"{len(publishers)} publisher{'s' if len(publishers) > 1 else ''}"
