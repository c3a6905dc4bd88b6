"""A camera driver for the tests, a process of its own: publishes a list of good and bad images, then ends.

python camera.py TOPIC KIND[,KIND...] [--info TOPIC] [--period S]
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
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from dust3r_ros.data import Intrinsics
from dust3r_ros.ros.convert import camera_info_message, header_of
from dust3r_ros.ros.qos import image_qos

START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
STEP_X = 0.1
FRAME = "camera_optical"
BAD = {"truncated", "unknown", "zero", "jpeg_truncated", "noise"}
COMPRESSED = {"jpeg", "png", "jpeg_truncated", "noise"}
PATIENCE_S = 60.0


def stamp_of(place: int) -> int:
    return START_NS + place * STEP_NS


def raw(kind: str, rgb: np.ndarray) -> Image:
    """An image of one encoding, or broken in one way."""
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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("topic")
    parser.add_argument("kinds", type=lambda text: text.split(","))
    parser.add_argument("--info", default="")
    parser.add_argument("--period", type=float, default=0.05)
    arguments = parser.parse_args()
    rclpy.init(args=[])
    node = rclpy.create_node("camera")
    kind = CompressedImage if arguments.kinds[0] in COMPRESSED else Image
    images = node.create_publisher(kind, arguments.topic, image_qos("reliable", 100))
    infos = node.create_publisher(CameraInfo, arguments.info, image_qos("reliable", 100)) if arguments.info else None
    publishers = [images] if infos is None else [images, infos]
    deadline = time.monotonic() + PATIENCE_S
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody subscribed to {arguments.topic}")
        rclpy.spin_once(node, timeout_sec=0.05)
    k = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT)
    for place, name in enumerate(arguments.kinds):
        if infos is not None and name != "jpeg_truncated":
            infos.publish(camera_info_message(stamp_of(place), FRAME, k))
        rclpy.spin_once(node, timeout_sec=arguments.period)
        message = (compressed if name in COMPRESSED else raw)(name, layered_view(STEP_X * place))
        message.header = header_of(stamp_of(place), FRAME)
        images.publish(message)
    images.wait_for_all_acked(Duration(seconds=PATIENCE_S))
    rclpy.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
