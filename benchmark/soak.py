"""A long run of the node with faults thrown in: memory, exceptions, and results before and after, as one table.

    python benchmark/soak.py [--bag BAG] [--minutes 20] [--out soak.json] [--parameters NAME:=VALUE...]

The recording (a rendered room when none is given) is played in a loop, so that time jumps back at each end. Every few
seconds one fault: damaged images, the player stopped and started again, a service called, a parameter changed or
refused, the node deactivated and activated. Before and after, the recording is played once to an empty map.
Memory is the process's own figure in /diagnostics; its slope is fitted after a warm-up of a fifth of the time, over all
of it, which goes up and down with the map, and over what is left after each reset, when nothing is mapped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.ros.bag import COMPRESSED_IMAGE, open_recording
from dust3r_ros.ros.demo_bag import rendered_bag
from dust3r_ros.ros.processes import Child, private_environment
from dust3r_ros.ros.qos import image_qos, reliable
from dust3r_ros.ros.recorder import Recorder, spin_until
from dust3r_ros.srv import SaveMap

PATIENCE_S = 120.0
DRAIN_S = 600.0
PAUSE_S = 4.0  # between two faults
PLAY_S = 5.0  # of the recording, before and after


@dataclass
class Soak:
    """A node under test, the player that feeds it, and what was seen of both."""

    bag: Path
    topic: str
    compressed: bool
    folder: Path
    environment: dict[str, str]
    node: Child
    recorder: Recorder
    memory: list[tuple[float, float]] = field(default_factory=list)  # time.monotonic(), MB
    floor: list[tuple[float, float]] = field(default_factory=list)  # the same after each reset
    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    player: Child | None = None
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.recorder.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, reliable(10))
        kind = CompressedImage if self.compressed else Image
        self._broken = self.recorder.create_publisher(kind, self.topic, image_qos("reliable", 10))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {pair.key: pair.value for status in message.status for pair in status.values}
        if "process memory, MB" in values:
            self.memory.append((time.monotonic(), float(values["process memory, MB"])))

    def wait(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
        def ready() -> bool:
            self.node.check_running()
            return condition()

        return spin_until(self.recorder, ready, patience_s)

    def rest(self, seconds: float) -> None:
        self.wait(lambda: False, seconds)

    def play(self, *arguments: str) -> Child:
        given = [str(self.bag), "--clock", "0", "--topics", self.topic, "--wait", "60", *arguments]
        self.player = Child("dust3r_ros.ros.play", given, self.folder / "player.log", self.environment)
        return self.player.start()

    def stop_player(self) -> None:
        if self.player is not None and self.player.running:
            self.player.stop()

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self.recorder.create_client(kind, f"/dust3r/{name}")
        answer = client.call_async(request)
        if not self.wait(answer.done):
            self.failed.append(f"no answer from {name}")
            return None
        self.recorder.destroy_client(client)
        return answer.result()

    # What is thrown in.

    def damaged_images(self) -> None:
        header = self.recorder.recorded.status.header  # of the newest image: no time jump is meant here
        for size in (0, 7, 1000):
            data = bytes(size)
            message = (
                CompressedImage(header=header, format="jpeg", data=data)
                if self.compressed
                else Image(header=header, encoding="rgb8", width=640, height=480, step=1920, data=data)
            )
            self._broken.publish(message)

    def player_again(self) -> None:
        self.stop_player()
        self.rest(2.0)
        self.play("--loop")

    def pause_and_go_on(self) -> None:
        for paused in (True, False):
            self._expect(self.call(SetBool, "pause", SetBool.Request(data=paused)), "pause")
            self.rest(1.0)

    def keyframe_now(self) -> None:
        self._expect(self.call(Trigger, "keyframe_now", Trigger.Request()), "keyframe_now")

    def reset(self) -> None:
        self._expect(self.call(Trigger, "reset", Trigger.Request()), "reset")
        count = len(self.memory)
        self.wait(lambda: len(self.memory) > count)
        self.floor.append(self.memory[-1])

    def save(self) -> None:
        answer = self.call(SaveMap, "save_map", SaveMap.Request(path="soak"))
        if answer is not None and not answer.success and "the map is empty" not in answer.message:
            self.failed.append(f"save_map: {answer.message}")

    def save_outside(self) -> None:
        answer = self.call(SaveMap, "save_map", SaveMap.Request(path="../../elsewhere"))
        if answer is None or answer.success:
            self.failed.append("save_map wrote outside its folder")

    def reconfigure(self) -> None:
        for value, wanted in ((self.rng.uniform(0.5, 0.9), True), (7.0, False)):
            given = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
            request = SetParameters.Request(parameters=[Parameter(name="keyframes.min_overlap", value=given)])
            answer = self.call(SetParameters, "set_parameters", request)
            if answer is not None and answer.results[0].successful is not wanted:
                self.failed.append(f"min_overlap {value}: {answer.results[0].reason}")

    def deactivate_and_activate(self) -> None:
        for number in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=number))
            self._expect(self.call(ChangeState, "change_state", request), f"transition {number}")

    def _expect(self, answer: Any, what: str) -> None:
        if answer is not None and not answer.success:
            self.failed.append(f"{what}: {getattr(answer, 'message', 'refused')}")

    def throw_faults(self, seconds: float) -> None:
        faults = (self.damaged_images, self.player_again, self.pause_and_go_on, self.keyframe_now, self.reset,
                  self.save, self.save_outside, self.reconfigure, self.deactivate_and_activate)  # fmt: skip
        end, order = time.monotonic() + seconds, list(faults)
        while time.monotonic() < end:
            self.rng.shuffle(order)
            for fault in order:
                if time.monotonic() >= end:
                    break
                fault()
                self.done[fault.__name__] += 1
                self.rest(PAUSE_S)

    def result(self) -> dict[str, float]:
        """An empty map, the beginning of the recording once, and what came of it."""
        self.reset()
        given = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=0.7)
        self.call(SetParameters, "set_parameters",
                  SetParameters.Request(parameters=[Parameter(name="keyframes.min_overlap", value=given)]))  # fmt: skip
        recorded = self.recorder.recorded
        self.wait(lambda: recorded.status.frames_received == 0)
        player = self.play("--duration", str(PLAY_S), "--rate", "0.25")
        self.wait(lambda: not player.running, 4 * PLAY_S + PATIENCE_S)
        if not self.wait(lambda: recorded.idle_for_s() > 2.0, DRAIN_S):
            self.failed.append(f"still busy {DRAIN_S:g} s after the last image")
        status = recorded.status
        return {
            "images": float(status.frames_received), "keyframes": float(status.keyframes),
            "map points": float(status.map_points), "focal, px": float(status.focal_px),
            "residual": float(status.edge_residual),
        }  # fmt: skip


def slope_mb_per_min(memory: list[tuple[float, float]], begin: float, end: float) -> float:
    kept = np.array([(at / 60, mb) for at, mb in memory if begin <= at <= end])
    return float(np.polyfit(kept[:, 0] - kept[0, 0], kept[:, 1], 1)[0]) if len(kept) > 2 else float("nan")


def soak(bag: Path, minutes: float, folder: Path, parameters: list[str]) -> dict[str, Any]:
    with open_recording(bag) as recording:
        image = recording.choose_image_topic()
    compressed = image.type == COMPRESSED_IMAGE
    environment = private_environment()
    rclpy.init(args=[], domain_id=int(environment["ROS_DOMAIN_ID"]))
    own = [f"image_topics:=['{image.name}']", "image_reliability:=reliable", f"map_folder:={folder / 'maps'}",
           f"image_transport:={'compressed' if compressed else 'raw'}", "image_history:=100", "queue_size:=100",
           "image_size:=256", *parameters]  # fmt: skip
    given = ["--ros-args", *(word for parameter in own for word in ("-p", parameter))]
    node = Child("dust3r_ros.ros.node", given, folder / "node.log", environment)
    run = Soak(bag, image.name, compressed, folder, environment, node, Recorder())
    with node.start():
        if not run.wait(lambda: run.recorder.recorded.status is not None):
            raise SystemExit("the node did not come")
        try:
            before = run.result()
            began = time.monotonic()
            run.play("--loop")
            run.throw_faults(60 * minutes)
            ended = time.monotonic()
            run.stop_player()
            after = run.result()
        finally:
            run.stop_player()
        node.stop()
    run.recorder.destroy_node()
    rclpy.try_shutdown()
    log = node.log_file.read_text("utf-8", "replace")
    warm = began + (ended - began) / 5
    return {
        "minutes": (ended - began) / 60,
        "faults": dict(run.done),
        "failed": run.failed,
        "exceptions": log.count("Traceback"),
        "errors on the log": log.count("[ERROR]"),
        "time jumps": log.count("went back in time"),
        "memory, MB": [mb for _, mb in run.memory][:: max(1, len(run.memory) // 20)],
        "memory slope, MB/min": slope_mb_per_min(run.memory, warm, ended),
        "memory after resets, MB": [mb for _, mb in run.floor],
        "after resets, MB/min": slope_mb_per_min(run.floor, warm, ended),
        "before": before,
        "after": after,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bag", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--parameters", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("out/soak/soak.json"))
    options = parser.parse_args()
    folder = options.out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    bag = options.bag or rendered_bag(folder, print)
    figures = soak(bag, options.minutes, folder, options.parameters)
    for name in ("minutes", "exceptions", "errors on the log", "time jumps", "memory slope, MB/min",
                 "after resets, MB/min"):  # fmt: skip
        print(f"{name:24} {figures[name]:10.2f}")
    print(f"{'memory, first and last':24} {figures['memory, MB'][0]:10.0f} {figures['memory, MB'][-1]:.0f}")
    for name, count in figures["faults"].items():
        print(f"{name:24} {count:10}")
    for line in figures["failed"]:
        print(f"failed: {line}")
    for name, value in figures["before"].items():
        print(f"{name + ', before and after':34} {value:10.3f} {figures['after'][name]:10.3f}")
    options.out.write_text(json.dumps(figures, indent=1))
    return 1 if figures["failed"] or figures["exceptions"] else 0


if __name__ == "__main__":
    sys.exit(main())
