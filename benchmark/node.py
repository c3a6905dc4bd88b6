"""The whole node on a recording: from an image to its cloud and transform, and keyframes a second when it must hurry.

    python benchmark/node.py [--bag BAG] [--checkpoint tiny] [--seconds 30] [--hurry 4] [--out node.json]
        [--parameters NAME:=VALUE...]

Two runs of the node in a process of its own, the recording (a rendered room when none is given) played by another.
Live: at its own rate, keyframes as the node chooses them; how long after an image arrived here its transform (of every
image that has a pose) and its cloud (of every keyframe) arrived here, and the image callback's own figure. In a hurry:
every image a keyframe, played several times as fast, everything queued; keyframes a second, and the node's processor
time for each, between the first and the last cloud. Stages are medians of the status: two threads work on them side
by side, encode and decode in one, align and fuse in the other; their shares are of the sum.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.mapping.export import write_json
from dust3r_ros.msg import Status
from dust3r_ros.ros.bag import COMPRESSED_IMAGE, open_recording
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.demo_bag import rendered_bag
from dust3r_ros.ros.processes import Child, private_environment
from dust3r_ros.ros.qos import image_qos, latched, reliable
from dust3r_ros.ros.recorder import spin_until

STAGES = ("encode_ms", "decode_ms", "align_ms", "fuse_ms")
PATIENCE_S = 120.0
IDLE_S = 2.0  # without a change of the status: everything that waited is done


@dataclass
class Judge:
    """When images, transforms and clouds arrived here, by stamp, and what the node says of itself."""

    node: Node
    topic: str
    compressed: bool
    images: dict[int, float] = field(default_factory=dict)
    transforms: dict[int, float] = field(default_factory=dict)
    clouds: dict[int, float] = field(default_factory=dict)
    stages: dict[int, list[float]] = field(default_factory=dict)  # by keyframes so far
    worked_s: list[float] = field(default_factory=list)  # the node's processor time at each cloud
    process_id: int = 0  # the node's
    callback_ms: float = 0.0
    memory_mb: float = 0.0
    status: Status | None = None
    changed_at: float = 0.0

    def __post_init__(self) -> None:
        kind = CompressedImage if self.compressed else Image
        listen = self.node.create_subscription
        listen(kind, self.topic, lambda m: self._arrived(self.images, m), image_qos("reliable", 200))
        listen(PointCloud2, "/dust3r/points", self._on_cloud, reliable(100))
        listen(TFMessage, "/tf", self._on_tf, reliable(100))
        listen(Status, "/dust3r/status", self._on_status, latched())
        listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable(10))

    @staticmethod
    def _arrived(seen: dict[int, float], message: Any) -> None:
        seen.setdefault(stamp_ns_of(message.header), time.monotonic())

    def _on_cloud(self, message: PointCloud2) -> None:
        self._arrived(self.clouds, message)
        self.worked_s.append(processor_seconds(self.process_id))

    def _on_tf(self, message: TFMessage) -> None:
        for sent in message.transforms:
            self._arrived(self.transforms, sent)

    def _on_status(self, message: Status) -> None:
        if self.status is None or message.keyframes != self.status.keyframes:
            self.stages[message.keyframes] = [getattr(message, name) for name in STAGES]
        if self.status is None or message.keyframes + message.frames_received != (
            self.status.keyframes + self.status.frames_received
        ):
            self.changed_at = time.monotonic()
        self.status = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {pair.key: pair.value for status in message.status for pair in status.values}
        self.callback_ms = max(self.callback_ms, float(values.get("image callback p99, ms", 0.0)))
        self.memory_mb = max(self.memory_mb, float(values.get("process memory, MB", 0.0)))

    def idle(self) -> bool:
        return time.monotonic() - self.changed_at > IDLE_S and self.status is not None and not self.status.queue_length

    def figures(self) -> dict[str, float]:
        """Of the run so far; keyframes a second are those between the first and the last cloud."""
        times = sorted(self.clouds.values())
        between = max(len(times) - 1, 1)
        found = {
            "images": float(len(self.images)),
            "transforms": float(len(self.transforms)),
            "keyframes": float(len(times)),
            "keyframes a second": between / (times[-1] - times[0]) if len(times) > 1 else 0.0,
            "CPU ms a keyframe": 1e3 * (self.worked_s[-1] - self.worked_s[0]) / between if times else 0.0,
            "image callback p99, ms": self.callback_ms,
            "process memory, MB": self.memory_mb,
        }
        for name, arrived in (("transform", self.transforms), ("cloud", self.clouds)):
            delays = [1e3 * (at - self.images[stamp]) for stamp, at in arrived.items() if stamp in self.images]
            for percent in (50, 99):
                found[f"image to {name} p{percent}, ms"] = float(np.percentile(delays, percent)) if delays else 0.0
        settled = [self.stages[k] for k in self.stages if k > 3] or list(self.stages.values())
        medians = np.median(settled, axis=0)
        found.update(zip(STAGES, map(float, medians), strict=True))
        shares = 100 * medians / max(float(medians.sum()), 1e-9)
        found.update(zip((name.replace("_ms", ", %") for name in STAGES), map(float, shares), strict=True))
        return found


def processor_seconds(process_id: int) -> float:
    """Processor time that a process has used, in all its threads."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError as error:
        raise RosError(f"the processor time of process {process_id} is not known here: {error.strerror}") from error
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(
    bag: Path, checkpoint: str, seconds: float, rate: float, folder: Path, parameters: Sequence[str]
) -> dict[str, float]:
    """One run of the node on the first ``seconds`` of the recording."""
    with open_recording(bag) as recording:
        image = recording.choose_image_topic()
    compressed = image.type == COMPRESSED_IMAGE
    environment = private_environment()
    rclpy.init(args=[], domain_id=int(environment["ROS_DOMAIN_ID"]))
    judge = Judge(rclpy.create_node("judge"), image.name, compressed)
    own = [f"image_topics:=['{image.name}']", f"image_transport:={'compressed' if compressed else 'raw'}",
           "image_reliability:=reliable", f"checkpoint:={checkpoint}", *parameters]  # fmt: skip
    given = ["--ros-args", *(word for parameter in own for word in ("-p", parameter))]
    playing = [str(bag), "--topics", image.name, "--rate", str(rate), "--duration", str(seconds), "--wait", "60"]
    with Child("dust3r_ros.ros.node", given, folder / "node.log", environment, PATIENCE_S) as node:
        node.start()
        judge.process_id = node.process_id
        _await(judge, node, lambda: judge.status is not None and judge.status.state == "waiting for images")
        with Child("dust3r_ros.ros.play", playing, folder / "player.log", environment) as player:
            player.start()
            _await(judge, node, lambda: not player.running, seconds / rate + PATIENCE_S)
            player.check_finished()
            _await(judge, node, judge.idle)
        node.stop()
    judge.node.destroy_node()
    rclpy.try_shutdown()
    return judge.figures()


def _await(judge: Judge, node: Child, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    def ready() -> bool:
        node.check_running()
        return condition()

    while not spin_until(judge.node, ready, patience_s):
        if time.monotonic() - judge.changed_at < patience_s:  # it is slow, but gets on
            continue
        raise SystemExit(f"the node did not get on within {patience_s:g} s: see {node.log_file}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", type=Path)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the recording (default 30)")
    parser.add_argument("--hurry", type=float, default=4.0, help="times its own rate in the second run (default 4)")
    parser.add_argument("--parameters", nargs="*", default=[], metavar="NAME:=VALUE")
    parser.add_argument("--out", type=Path, default=Path("out/bench/node.json"))
    options = parser.parse_args(argv)
    folder = options.out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    everything = ["keyframes.every_image:=true", "image_history:=1000", "queue_size:=100"]
    try:
        bag = options.bag or rendered_bag(folder, print)
        live = run(bag, options.checkpoint, options.seconds, 1.0, folder, options.parameters)
        hurry = run(bag, options.checkpoint, options.seconds, options.hurry, folder, [*everything, *options.parameters])
    except Dust3rError as error:
        print(f"node: {error}", file=sys.stderr)
        return 2
    print(markdown_table(("", "live", "in a hurry"), [(k, f"{live[k]:.1f}", f"{hurry[k]:.1f}") for k in live]))
    write_json({"checkpoint": options.checkpoint, "live": live, "in a hurry": hurry}, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
