"""How long a cloud takes to become a message and be published: one table, and the figures as JSON.

    python benchmark/cloud_message.py [--points 300000] [--repeats 20] [--out cloud.json]

Build is from arrays to the PointCloud2, publish until rclpy returns, with a subscriber in another process; delay until
that subscriber has it. Milliseconds: the best, which other programs disturb least, the median and the worst. Work is
the processor time of this process, its DDS threads included: what building and publishing take where nothing disturbs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import UInt64

from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.ros.convert import cloud_message
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.processes import Child, private_environment
from dust3r_ros.ros.qos import reliable
from dust3r_ros.ros.recorder import spin_until

PATIENCE_S = 30.0


def random_cloud(count: int) -> PointCloud:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    return PointCloud(rng.normal(size=(count, 3)).astype(np.float32), colours, np.ones(count, np.float32))


def subscribe() -> int:
    """In a process of its own: answer each cloud with its stamp."""
    rclpy.init(args=[])
    node = rclpy.create_node("reader")
    answers = node.create_publisher(UInt64, "/answer", reliable(10))
    node.create_subscription(
        PointCloud2, "/cloud", lambda m: answers.publish(UInt64(data=stamp_ns_of(m.header))), reliable(5)
    )
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        rclpy.try_shutdown()
    return 0


def measure(points: int, repeats: int, log_folder: Path) -> dict[str, float]:
    environment = private_environment()
    environment["PYTHONPATH"] = f"{Path(__file__).parent}:{environment.get('PYTHONPATH', '')}"
    rclpy.init(args=[], domain_id=int(environment["ROS_DOMAIN_ID"]))
    node = rclpy.create_node("writer")
    publisher = node.create_publisher(PointCloud2, "/cloud", reliable(5))
    answered: list[int] = []
    node.create_subscription(UInt64, "/answer", lambda m: answered.append(m.data), reliable(10))
    cloud, build, publish, delay, work = random_cloud(points), [], [], [], []
    with Child("cloud_message", ["--subscribe"], log_folder / "reader.log", environment) as reader:
        reader.start()
        if not spin_until(node, lambda: publisher.get_subscription_count() > 0, PATIENCE_S):
            raise SystemExit("the reader did not come")
        for number in range(1, repeats + 1):
            start, working = time.perf_counter(), time.process_time()
            message = cloud_message(number, "map", cloud)
            built = time.perf_counter()
            publisher.publish(message)
            published = time.perf_counter()
            work.append(1e3 * (time.process_time() - working))
            if not spin_until(node, lambda n=number: n in answered, PATIENCE_S):
                raise SystemExit(f"cloud {number} did not arrive")
            build.append(1e3 * (built - start))
            publish.append(1e3 * (published - built))
            delay.append(1e3 * (time.perf_counter() - published))
    node.destroy_node()
    rclpy.try_shutdown()
    both = list(np.array(build) + np.array(publish))
    figures: dict[str, float] = {"points": points}
    series = {"build": build, "publish": publish, "build and publish": both, "work": work, "delay": delay}
    for name, times in series.items():
        for kind, value in (("best", np.min), ("median", np.median), ("worst", np.max)):
            figures[f"{name}, {kind}"] = float(value(times))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--subscribe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subscribe:
        return subscribe()
    figures = measure(options.points, options.repeats, options.out.parent if options.out else Path("/tmp"))
    for name, value in figures.items():
        print(f"{name:28} {value:10.1f}" if name != "points" else f"{name:28} {value:10}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
