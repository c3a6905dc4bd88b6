"""How long the node's image callback takes while its worker has all it can do: one table, and the figures as JSON.

    python benchmark/image_callback.py [--seconds 60] [--rate 30] [--out callback.json] [--parameters NAME:=VALUE...]

Raw 640x480 images of a moving scene, from a process of their own, to the node in another. The 99th percentile is the
node's own figure, of the last 1000 images, as in /diagnostics; the worst of those it gave. Memory is the process's.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image

from dust3r_ros.ros.convert import header_of
from dust3r_ros.ros.processes import Child, private_environment
from dust3r_ros.ros.qos import image_qos, reliable
from dust3r_ros.ros.recorder import spin_until

WIDTH, HEIGHT = 640, 480
SPEEDS = (3.0, 9.0)  # of the far and the near layer, pixels an image
PATIENCE_S = 60.0


def layers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    far, near = (cv2.resize(rng.integers(0, 256, (60, 400, 3), dtype=np.uint8), (3200, HEIGHT)) for _ in range(2))
    return far, near


def view(far: np.ndarray, near: np.ndarray, number: int) -> np.ndarray:
    place = number % 250
    left, ahead = int(SPEEDS[0] * place), int(SPEEDS[1] * place)
    image = far[:, left : left + WIDTH].copy()
    image[HEIGHT // 2 :] = near[HEIGHT // 2 :, ahead : ahead + WIDTH]
    return image


def publish(rate: float) -> int:
    """In a process of its own: images until told to stop."""
    rclpy.init(args=[])
    node = rclpy.create_node("source")
    images = node.create_publisher(Image, "/image", image_qos("best_effort", 5))
    far, near = layers()
    number, began = 0, time.monotonic()
    try:
        while rclpy.ok():
            data = array.array("B", view(far, near, number).tobytes())
            images.publish(Image(header=header_of(time.time_ns(), "camera"), encoding="rgb8", height=HEIGHT,
                                 width=WIDTH, step=3 * WIDTH, data=data))  # fmt: skip
            number += 1
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
    except KeyboardInterrupt:
        pass
    return 0


def measure(seconds: float, rate: float, parameters: list[str], log_folder: Path) -> dict[str, float]:
    environment = private_environment()
    environment["PYTHONPATH"] = f"{Path(__file__).parent}:{environment.get('PYTHONPATH', '')}"
    rclpy.init(args=[], domain_id=int(environment["ROS_DOMAIN_ID"]))
    node = rclpy.create_node("judge")
    heard: list[dict[str, str]] = []
    node.create_subscription(
        DiagnosticArray, "/diagnostics",
        lambda m: heard.append({pair.key: pair.value for status in m.status for pair in status.values}), reliable(10),
    )  # fmt: skip
    given = [word for parameter in parameters for word in ("-p", parameter)]
    with Child("dust3r_ros.ros.node", ["--ros-args", *given], log_folder / "node.log", environment) as child:
        child.start()
        if not spin_until(node, lambda: bool(heard), PATIENCE_S):
            raise SystemExit("the node did not come")
        with Child("image_callback", ["--publish", "--rate", str(rate)], log_folder / "source.log", environment) as s:
            s.start()
            spin_until(node, lambda: False, seconds)
        last = heard[-1]
    node.destroy_node()
    rclpy.try_shutdown()
    worst = max(float(values.get("image callback p99, ms", 0.0)) for values in heard)
    memory = [float(values["process memory, MB"]) for values in heard if "process memory, MB" in values]
    return {
        "images sent in a second": rate,
        "images received": float(last["images"]),
        "keyframes": float(last["keyframes"]),
        **{name: float(value) for name, value in last.items() if name.startswith("dropped")},
        "image callback p99, ms": float(last["image callback p99, ms"]),
        "the worst of those": worst,
        "process memory at the middle, MB": memory[len(memory) // 2],
        "process memory at the end, MB": memory[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--parameters", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--publish", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        return publish(options.rate)
    folder = options.out.parent if options.out else Path("/tmp")
    figures = measure(options.seconds, options.rate, options.parameters, folder)
    for name, value in figures.items():
        print(f"{name:34} {value:10.1f}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
