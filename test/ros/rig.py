"""The node in a process of its own, and a recorder in this one that hears it."""

from __future__ import annotations

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.publisher import Publisher
from rclpy.timer import Timer

from dust3r_ros.ros.processes import Child
from dust3r_ros.ros.publishers import OUTPUTS
from dust3r_ros.ros.qos import reliable
from dust3r_ros.ros.recorder import Recorded, Recorder, spin_until

PATIENCE_S = 120.0
HERE = Path(__file__).parent
PATIENT = ("image_size:=256", "window:=1", "queue_size:=100", "image_history:=100", "map_period:=0.1",
           "image_reliability:=reliable")  # fmt: skip
SMALL = (*PATIENT, "keyframes.every_image:=true", "tracking.enabled:=false")  # each image once, as a keyframe
NODE = "dust3r_ros.ros.node"
_numbers = itertools.count()


def _unheard() -> DiagnosticStatus:
    return DiagnosticStatus(level=DiagnosticStatus.STALE, message="not heard yet")


@dataclass
class Rig:
    """A running node, and the recorder that hears it."""

    node: Child
    recorder: Recorder
    environment: dict[str, str]
    folder: Path
    namespace: str
    module: str
    command: list[str]
    diagnostics: dict[str, DiagnosticStatus] = field(default_factory=lambda: defaultdict(_unheard))
    said: list[str] = field(default_factory=list)  # every warning and error of the diagnostics
    reports: int = 0  # that the diagnostics made, one a second of the node's
    reported: Time | None = None  # when the newest was made

    @property
    def recorded(self) -> Recorded:
        return self.recorder.recorded

    def listen(self) -> None:
        """Hear the diagnostics, by the part they are about."""

        def on_diagnostics(message: DiagnosticArray) -> None:
            for status in message.status:
                name, _, part = status.name.partition(": ")
                if name == f"{self.namespace}/dust3r".lstrip("/"):
                    self.diagnostics[part] = status
                    self.reports, self.reported = self.reports + (part == "life cycle"), message.header.stamp
                    if status.level != DiagnosticStatus.OK:
                        self.said.append(f"{part}: {status.message}")

        self.recorder.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, reliable(10))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until the condition holds; fails with what the node said when it does not."""

        def ready() -> bool:
            self.node.check_running()
            return bool(condition())

        if not spin_until(self.recorder, ready, PATIENCE_S):
            parts = {part: (status.level, status.message) for part, status in self.diagnostics.items()}
            pytest.fail(f"not in {PATIENCE_S:g} s; status {self.recorded.status}; {parts}; log {self.log()}")

    def film(self, topic: str, kinds: list[str], *more: str) -> None:
        """Run the camera and wait until the node has dealt with all its images."""
        before = self.recorded.status.frames_received
        self.publish(topic, kinds, *more)
        self.wait(lambda: self.recorded.status.frames_received == before + len(kinds) and not self.recorded.in_flight())

    def publish(self, topic: str, kinds: list[str], *more: str) -> None:
        """Run the camera until it has published all its images."""
        camera = Child("camera", [topic, ",".join(kinds), *more], self.folder / "camera.log", self.environment)
        with camera.start():
            self.wait(lambda: not camera.running)
            camera.check_finished()

    def keep_sending(self, publisher: Publisher, *messages: object) -> Timer:
        """Publish them again and again: a best-effort reader may match later than its writer does."""

        def send() -> None:
            for message in messages:
                publisher.publish(message)

        send()
        return self.recorder.create_timer(0.5, send)

    def settled(self) -> bool:
        """Whether the path and map are those of the newest keyframe."""
        newest = max(self.recorded.points, default=0)
        path = self.recorded.path
        return newest > 0 and self.recorded.cloud_stamp_ns == newest and bool(path) and path[-1][0] == newest

    def call(self, kind: type, name: str, request: object) -> Any:
        client: Client = self.recorder.create_client(kind, f"{self.namespace}/dust3r/{name}")
        self.wait(client.service_is_ready)
        answer = client.call_async(request)
        self.wait(answer.done)
        self.recorder.destroy_client(client)
        return answer.result()

    def change_state(self, name: str) -> bool:
        """Ask for a transition of the life cycle; whether it was made."""
        number = getattr(Transition, f"TRANSITION_{name.upper()}")
        request = ChangeState.Request(transition=Transition(id=number))
        return bool(self.call(ChangeState, "change_state", request).success)

    def life_cycle(self) -> str:
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def again(self) -> Rig:
        """The same node, with the same folders, to be started anew; this one must have ended."""
        return _made(self.environment, self.folder, self.namespace, self.module, self.command)

    def log(self) -> str:
        return self.node.log_file.read_text("utf-8", "replace")


Start = Callable[..., Rig]


def make_rig(environment: dict[str, str], folder: Path, *parameters: str, arguments: tuple[str, ...] = (),
             module: str = NODE, faults: str = "") -> Rig:  # fmt: skip
    """A rig whose node has these parameters and arguments; leave it by a with block over its node."""
    namespace = f"/rig{next(_numbers)}"
    given = [word for parameter in (*parameters, f"map_folder:={folder}")
             for word in ("-p", parameter.replace("NAMESPACE", namespace))]  # fmt: skip
    path = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    mapped = [word.replace("NAMESPACE", namespace) for word in arguments]
    own = {**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DUST3R_TEST_FAULTS": faults}
    return _made(own, folder, namespace, module, ["-r", f"__ns:={namespace}", *mapped, *given])


def _made(environment: dict[str, str], folder: Path, namespace: str, module: str, command: list[str]) -> Rig:
    own_tf = ["--ros-args", "-r", f"/tf:={namespace}/tf", "-r", f"/tf_static:={namespace}/tf_static"]
    node = Child(module, [*own_tf, *command], folder / "node.log", environment)
    recorder = Recorder(f"{namespace}/dust3r", cli_args=own_tf, use_global_arguments=False)
    rig = Rig(node, recorder, environment, folder, namespace, module, command)
    rig.listen()
    return rig


@contextmanager
def running(rig: Rig, stop: signal.Signals = signal.SIGINT) -> Iterator[Rig]:
    """Start the node, and see to it that it ends well."""
    with rig.node.start():
        names = [f"{rig.namespace}/dust3r/{output.name}" for output in OUTPUTS]
        rig.wait(lambda: rig.recorded.status is not None and all(map(rig.recorder.count_publishers, names)))
        yield rig
        os.kill(rig.node._started().pid, stop)
        assert spin_until(rig.recorder, lambda: not rig.node.running, PATIENCE_S)
        rig.node.check_finished()
    assert "Traceback" not in rig.log()
    rig.recorder.destroy_node()
