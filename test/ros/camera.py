"""A camera driver for the tests, a process of its own: publishes a list of good and bad images, then ends.

python camera.py TOPIC KIND[,KIND...] [--info TOPIC] [--period S] [--from N] [--at N] [--still]
                 [--reliability NAME] [--frame FRAME] [--bent]
"""

from __future__ import annotations

import argparse
import array
import sys
import time

import cv2
import numpy as np
import rclpy
from layers import FOCAL_PX, HEIGHT, WIDTH, layered_view
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dust3r_ros.data import Intrinsics
from dust3r_ros.ros.convert import camera_info_message, header_of
from dust3r_ros.ros.qos import image_qos

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
STEP_X = 0.1
FRAME = "camera_optical"
DISTORTION = [-0.3, 0.08, 0.0, 0.0, 0.0]
BAD = {"truncated", "unknown", "zero", "jpeg_truncated", "noise"}
COMPRESSED = {"jpeg", "png", "jpeg_truncated", "noise"}
PATIENCE_S = 60.0


def stamp_of(place: int) -> int:
    return START_NS + place * STEP_NS


def raw(kind: str, rgb: np.ndarray) -> Image:
    """An image of one encoding, or broken in one way; "snow" shows nothing of the scene."""
    if kind == "snow":
        return raw("rgb8", np.random.default_rng(0).integers(0, 255, rgb.shape, dtype=np.uint8))
    opaque = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    pixels = {
        "bgr8": rgb[..., ::-1],
        "rgba8": np.concatenate([rgb, opaque], axis=2),
        "bgra8": np.concatenate([rgb[..., ::-1], opaque], axis=2),
        "mono8": grey,
        "mono16": grey.astype(np.uint16) * 16,  # a camera of 12 bits
    }.get(kind, rgb)
    data = array.array("B", np.ascontiguousarray(pixels).tobytes())
    step = len(data) // HEIGHT
    if kind == "truncated":
        return Image(encoding="rgb8", height=HEIGHT, width=WIDTH, step=step, data=data[: len(data) // 2])
    if kind == "zero":
        return Image(encoding="rgb8")
    return Image(encoding="nv99" if kind == "unknown" else kind, height=HEIGHT, width=WIDTH, step=step, data=data)


def compressed(kind: str, rgb: np.ndarray) -> CompressedImage:
    """A compressed image, or one that cannot be decoded."""
    _, encoded = cv2.imencode(".png" if kind == "png" else ".jpg", rgb[..., ::-1])
    data = encoded.tobytes()
    if kind == "jpeg_truncated":
        data = data[: len(data) // 2]
    if kind == "noise":
        data = bytes(range(256))
    return CompressedImage(format="png" if kind == "png" else "jpeg", data=array.array("B", data))


def described(stamp_ns: int, frame: str, *, bent: bool) -> CameraInfo:
    """The camera's own CameraInfo."""
    info = camera_info_message(stamp_ns, frame, Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT))
    if bent:
        info.distortion_model, info.d = "plumb_bob", DISTORTION
    return info


def through_lens(straight: np.ndarray) -> np.ndarray:
    """What a lens with barrel distortion makes of a pinhole's image."""
    k = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT).matrix(centres_at_integers=True)
    u, v = np.meshgrid(np.arange(WIDTH, dtype=np.float64), np.arange(HEIGHT, dtype=np.float64))
    rays = cv2.undistortPoints(np.stack([u, v], axis=-1).reshape(-1, 1, 2), k, np.array(DISTORTION), P=k)
    source = np.asarray(rays, np.float32).reshape(HEIGHT, WIDTH, 2)
    return cv2.remap(straight, source[..., 0], source[..., 1], cv2.INTER_LINEAR)


_GREETINGS = 20
_CAMERAS = 3


def heard(arguments: argparse.Namespace) -> tuple[Node, Publisher, Publisher | None]:
    """A camera that the node has found: its ROS node, its images and its CameraInfo.

    DDS was seen to leave two processes of one machine strangers for a minute; then a new camera is tried, as a driver
    would be started again.
    """
    kind = CompressedImage if arguments.kinds[0] in COMPRESSED else Image
    for _ in range(_CAMERAS):
        rclpy.init(args=[])
        node = rclpy.create_node("camera")
        images, infos = node.create_publisher(kind, arguments.topic, image_qos(arguments.reliability, 100)), None
        if arguments.info:
            infos = node.create_publisher(CameraInfo, arguments.info, image_qos("reliable", 100))
        publishers = [images] if infos is None else [images, infos]
        deadline = time.monotonic() + PATIENCE_S / _CAMERAS
        while time.monotonic() < deadline:
            if all(publisher.get_subscription_count() for publisher in publishers):
                return node, images, infos
            rclpy.spin_once(node, timeout_sec=0.05)
        node.destroy_node()
        rclpy.shutdown()
    raise TimeoutError(f"nobody subscribed to {arguments.topic}, to any of {_CAMERAS} cameras")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("kinds", type=lambda text: text.split(","))
    parser.add_argument("--info", default="")
    parser.add_argument("--period", type=float, default=0.05)
    parser.add_argument("--from", type=int, default=0, dest="first", help="place of the first image on the way")
    parser.add_argument("--at", type=int, help="where the first image is taken (default: as --from)")
    parser.add_argument("--still", action="store_true", help="all from one place")
    parser.add_argument("--reliability", default="reliable")
    parser.add_argument("--frame", default=FRAME)
    parser.add_argument("--bent", action="store_true", help="the lens has distortion")
    arguments = parser.parse_args()
    node, images, infos = heard(arguments)
    if infos is not None and arguments.kinds[0] != "jpeg_truncated":
        for _ in range(_GREETINGS):  # the node may have matched this publisher later than the images'
            infos.publish(described(stamp_of(arguments.first), arguments.frame, bent=arguments.bent))
            rclpy.spin_once(node, timeout_sec=arguments.period)
    shift = 0 if arguments.at is None else arguments.at - arguments.first
    for place, name in enumerate(arguments.kinds, arguments.first):
        if infos is not None and name != "jpeg_truncated":
            infos.publish(described(stamp_of(place), arguments.frame, bent=arguments.bent))
        rclpy.spin_once(node, timeout_sec=arguments.period)
        view = layered_view(0.0 if arguments.still else STEP_X * (place + shift))
        if arguments.bent:
            view = through_lens(view)
        message = (compressed if name in COMPRESSED else raw)(name, view)
        message.header = header_of(stamp_of(place), arguments.frame)
        images.publish(message)
    images.wait_for_all_acked(Duration(seconds=PATIENCE_S))
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
