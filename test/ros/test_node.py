"""The node in its own process, fed by a camera in another, heard by this one: everything goes over DDS."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from camera import BAD, FRAME, stamp_of
from layers import FOCAL_PX, HEIGHT, WIDTH
from rclpy.client import Client
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.ros.convert import cloud_of
from dust3r_ros.ros.processes import Child
from dust3r_ros.ros.publishers import OUTPUTS
from dust3r_ros.ros.qos import latched
from dust3r_ros.ros.recorder import Recorded, Recorder, spin_until
from dust3r_ros.srv import SaveMap

PATIENCE_S = 120.0
HERE = Path(__file__).parent
SMALL = ("image_size:=256", "window:=1", "queue_size:=100", "image_history:=100", "keyframes.every_image:=true",
         "map_period:=0.1", "image_reliability:=reliable")  # fmt: skip


@dataclass
class Rig:
    """A running node, and the recorder that hears it."""

    node: Child
    recorder: Recorder
    environment: dict[str, str]
    folder: Path
    namespace: str

    @property
    def recorded(self) -> Recorded:
        return self.recorder.recorded

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds; fails with what the node said when it does not."""

        def ready() -> bool:
            self.node.check_running()
            return condition()

        if not spin_until(self.recorder, ready, PATIENCE_S):
            pytest.fail(f"not in {PATIENCE_S:g} s; status {self.recorded.status}; log {self.log()}")

    def film(self, topic: str, kinds: list[str], *more: str) -> None:
        """Run the camera and wait until the node has dealt with all its images."""
        before = self.recorded.status.frames_received
        camera = Child("camera", [topic, ",".join(kinds), *more], self.folder / "camera.log", self.environment)
        with camera.start():
            self.wait(lambda: not camera.running)
            camera.check_finished()
        self.wait(lambda: self.recorded.status.frames_received == before + len(kinds) and not self.recorded.in_flight())

    def settled(self) -> bool:
        """Whether the path and map are those of the newest keyframe."""
        newest = max(self.recorded.transforms, default=0)
        path = self.recorded.path
        return newest > 0 and self.recorded.cloud_stamp_ns == newest and bool(path) and path[-1][0] == newest

    def call(self, kind: type, name: str, request: object) -> object:
        client: Client = self.recorder.create_client(kind, f"{self.namespace}/dust3r/{name}")
        self.wait(client.service_is_ready)
        answer = client.call_async(request)
        self.wait(answer.done)
        self.recorder.destroy_client(client)
        return answer.result()

    def log(self) -> str:
        return self.node.log_file.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def start(ros: None, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rig]:
    """Makes a rig whose node has these parameters and arguments; leave it by a with block over its node."""

    names = (f"/rig{number}" for number in itertools.count())

    def make(*parameters: str, arguments: tuple[str, ...] = ()) -> Rig:
        folder, namespace = tmp_path_factory.mktemp("node"), next(names)
        own_tf = ["--ros-args", "-r", f"/tf:={namespace}/tf"]
        given = [word for parameter in (*parameters, f"map_folder:={folder}") for word in ("-p", parameter)]
        path = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
        own = {**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        log_file = folder / "node.log"
        node = Child("dust3r_ros.ros.node", [*own_tf, "-r", f"__ns:={namespace}", *arguments, *given], log_file, own)
        recorder = Recorder(f"{namespace}/dust3r", cli_args=own_tf, use_global_arguments=False)
        return Rig(node, recorder, own, folder, namespace)

    return make


def running(rig: Rig, stop: signal.Signals = signal.SIGINT) -> Iterator[Rig]:
    with rig.node.start():
        names = [f"{rig.namespace}/dust3r/{output.name}" for output in OUTPUTS]
        rig.wait(lambda: rig.recorded.status is not None and all(map(rig.recorder.count_publishers, names)))
        yield rig
        os.kill(rig.node._started().pid, stop)
        assert spin_until(rig.recorder, lambda: not rig.node.running, PATIENCE_S)
        rig.node.check_finished()
    assert "Traceback" not in rig.log()
    rig.recorder.destroy_node()


MIXED = ["rgb8", "truncated", "bgr8", "unknown", "mono8", "zero", "rgba8", "mono16", "bgra8"]
GOOD = [stamp_of(place) for place, kind in enumerate(MIXED) if kind not in BAD]


@pytest.fixture(scope="module")
def mapped(start: Callable[..., Rig]) -> Iterator[Rig]:
    """A node that was sent raw images of many encodings, and broken ones between them."""
    for rig in running(start(*SMALL)):
        rig.film(f"{rig.namespace}/image", MIXED)
        rig.wait(rig.settled)
        yield rig


def test_every_good_image_is_mapped_and_every_bad_one_counted(mapped):
    status = mapped.recorded.status
    assert (status.frames_received, status.keyframes, status.dropped_invalid) == (9, 6, 3)
    assert (status.state, status.model, status.device) == ("mapping", "geometric", "cpu")
    assert status.map_points == len(mapped.recorded.cloud) > 1000
    assert "image skipped: rgb8 image of 256x192 with step 768 needs 147456 bytes, got 73728" in mapped.log()


def test_every_output_has_the_stamps_of_the_good_images(mapped):
    recorded = mapped.recorded
    for outputs in (recorded.transforms, recorded.poses, recorded.points, recorded.depths):
        assert sorted(outputs) == GOOD
    assert [stamp for stamp, _ in recorded.path] == recorded.intrinsics_stamps == GOOD
    assert recorded.camera_frame == FRAME
    assert recorded.disagreements() == []


def test_the_path_is_the_cameras_and_the_focal_is_found(mapped):
    recorded = mapped.recorded
    places = np.array([pose[:3, 3] for _, pose in recorded.path])
    way = places[-1] - places[0]
    moved = np.array(GOOD) - GOOD[0]
    np.testing.assert_allclose(places @ way / (way @ way), moved / moved[-1], atol=0.05)
    assert abs(way[0]) > 0.99 * np.linalg.norm(way)
    assert (recorded.intrinsics.width, recorded.intrinsics.height) == (WIDTH, HEIGHT)
    assert recorded.intrinsics.focal_px == pytest.approx(FOCAL_PX, rel=0.1)


def test_the_cloud_lies_where_the_depth_says(mapped):
    nearest, farthest = np.nanpercentile(mapped.recorded.depths[GOOD[-1]], [1, 99])
    z = mapped.recorded.newest_points.points[:, 2]
    assert 0.9 * nearest < z.min() < z.max() < 1.1 * farthest
    assert farthest / nearest == pytest.approx(5.0 / 2.2, rel=0.2)  # the boards' depths


def test_a_late_subscriber_gets_the_map(mapped):
    received: list[PointCloud2] = []
    late = mapped.recorder.create_subscription(
        PointCloud2, f"{mapped.namespace}/dust3r/map", received.append, latched()
    )
    mapped.wait(lambda: bool(received))
    mapped.recorder.destroy_subscription(late)
    assert len(cloud_of(received[-1])) == len(mapped.recorded.cloud)


def test_the_map_is_saved_inside_its_folder_and_nowhere_else(mapped):
    saved = mapped.call(SaveMap, "save_map", SaveMap.Request(path="first"))
    assert saved.success, saved.message
    assert [Path(file).name for file in saved.files] == ["cloud.ply", "trajectory.tum", "cameras.json"]
    assert len(read_cloud(Path(saved.files[0]))) == mapped.recorded.status.map_points
    refused = mapped.call(SaveMap, "save_map", SaveMap.Request(path="../elsewhere"))
    assert not refused.success
    assert "path must lie inside map_folder" in refused.message


def test_pause_and_reset(mapped):  # the last one of this node
    assert mapped.call(SetBool, "pause", SetBool.Request(data=True)).success
    mapped.wait(lambda: mapped.recorded.status.state == "paused")
    assert mapped.call(SetBool, "pause", SetBool.Request(data=False)).success
    assert mapped.call(Trigger, "reset", Trigger.Request()).success
    mapped.wait(lambda: mapped.recorded.status.state == "waiting for images" and not len(mapped.recorded.cloud))
    assert mapped.recorded.path == []
    refused = mapped.call(SaveMap, "save_map", SaveMap.Request(path="empty"))
    assert (refused.success, refused.message) == (False, "the map is empty: there is nothing to save")


def test_compressed_images_with_given_intrinsics_on_remapped_topics_until_sigterm(start):
    arguments = ("-r", "image:=/front/image_raw", "-r", "camera_info:=/front/camera_info")
    rig = start(*SMALL, "image_transport:=compressed", "intrinsics:=given", arguments=arguments)
    kinds = ["jpeg", "jpeg_truncated", "png", "noise", "jpeg"]
    for started in running(rig, signal.SIGTERM):
        started.film("/front/image_raw/compressed", kinds, "--info", "/front/camera_info")
        status, known = started.recorded.status, started.recorded.intrinsics
        assert (status.frames_received, status.keyframes, status.dropped_invalid) == (5, 3, 2)
        assert known.focal_px == pytest.approx(FOCAL_PX)
        assert (known.width, known.height, status.focal_spread_px) == (WIDTH, HEIGHT, 0.0)
        assert started.recorded.disagreements() == []


def test_interrupted_in_the_middle_of_work_it_ends_well_within_two_seconds(start):
    rig = start(*SMALL[1:], "image_size:=1024")
    with rig.node.start():
        rig.wait(lambda: rig.recorded.status is not None)
        kinds = ",".join(["rgb8"] * 8)
        with Child(
            "camera", [f"{rig.namespace}/image", kinds], rig.folder / "camera.log", rig.environment
        ).start() as camera:
            rig.wait(lambda: not camera.running)
        rig.wait(lambda: rig.recorded.in_flight() > 2)
        began = time.monotonic()
        rig.node.stop()
        assert time.monotonic() - began < 2.0
    assert "Traceback" not in rig.log()
    assert rig.recorded.in_flight() > 0
    rig.recorder.destroy_node()


def test_a_wrong_parameter_is_one_line_and_exit_code_2(environment):
    command = [sys.executable, "-m", "dust3r_ros.ros.node", "--ros-args", "-p", "wndow:=3"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert "unknown option 'wndow'; did you mean window?" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
