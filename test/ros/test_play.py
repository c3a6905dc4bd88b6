"""Playing a recording: what arrives is what was recorded, in its time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from layers import FOCAL_PX, HEIGHT, WIDTH, layered_view
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage

from dust3r_ros.data import Intrinsics, PosedFrame
from dust3r_ros.errors import RecordingError, RosError
from dust3r_ros.ros.bag import open_recording
from dust3r_ros.ros.bag_writer import IMAGE_TOPIC, INFO_TOPIC, POSE_TOPIC, write_bag
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.play import Player, PlayOptions, message_class
from dust3r_ros.ros.processes import Child
from dust3r_ros.ros.qos import reliable
from dust3r_ros.ros.recorder import spin_until

PATIENCE_S = 60.0
START_NS = 1_600_000_000_000_000_000
STEP_NS = 100_000_000
STAMPS = [START_NS + place * STEP_NS for place in range(6)]


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    k = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT)
    frames = []
    for place, stamp in enumerate(STAMPS):
        pose = np.eye(4)
        pose[0, 3] = 0.1 * place
        frames.append(PosedFrame(layered_view(0.1 * place), stamp, k, pose, None))
    return write_bag(frames, tmp_path_factory.mktemp("play") / "bag")


def test_another_process_plays_it_unchanged_on_remapped_topics_with_clock(node, environment, bag, tmp_path):
    images: list[CompressedImage] = []
    infos: list[CameraInfo] = []
    poses: list[PoseStamped] = []
    clock: list[int] = []
    node.create_subscription(CompressedImage, "/front/compressed", images.append, reliable(100))
    node.create_subscription(CameraInfo, INFO_TOPIC, infos.append, reliable(100))
    node.create_subscription(PoseStamped, POSE_TOPIC, poses.append, reliable(100))
    node.create_subscription(Clock, "/clock", lambda m: clock.append(nanoseconds(m)), reliable(1000))
    remap = ["--ros-args", "-r", f"{IMAGE_TOPIC}:=/front/compressed"]
    arguments = [str(bag), "--wait", str(PATIENCE_S), "--rate", "2", *remap]
    with Child("dust3r_ros.ros.play", arguments, tmp_path / "play.log", environment).start() as player:
        assert spin_until(node, lambda: not player.running, PATIENCE_S)
        player.check_finished()
    assert spin_until(node, lambda: len(images) == len(infos) == len(poses) == len(STAMPS), PATIENCE_S)
    assert [stamp_ns_of(message.header) for message in images] == STAMPS
    with open_recording(bag) as recording:
        recorded = [message.cdr for message in recording.raw_messages([IMAGE_TOPIC])]
    assert all(bytes(message.data) in cdr for message, cdr in zip(images, recorded))
    assert poses[-1].pose.position.x == pytest.approx(0.5)
    assert clock == sorted(clock)
    assert START_NS <= clock[0] < clock[-1] == STAMPS[-1]
    assert len(clock) > 2 * len(STAMPS)


def nanoseconds(message: Clock) -> int:
    return message.clock.sec * 10**9 + message.clock.nanosec


def play(node, bag, **options):
    with open_recording(bag) as recording:
        return Player(node, recording, PlayOptions(**options), threading.Event()).run()


def test_the_rate_is_kept(node, bag):
    began = time.monotonic()
    report = play(node, bag, rate=1.0)
    assert time.monotonic() - began >= 0.5
    assert (report.messages, report.loops) == (3 * len(STAMPS), 1)


def test_a_part_and_chosen_topics(node, bag):
    report = play(node, bag, rate=100.0, topics=(INFO_TOPIC,), start_s=0.1, duration_s=0.2, clock_hz=0.0)
    assert report.messages == 3


def test_a_loop_goes_on_until_it_is_stopped(node, bag):
    stop = threading.Event()

    def enough(seconds: float) -> None:
        played.append(seconds)
        if len(played) == 40:
            stop.set()

    played: list[float] = []
    with open_recording(bag) as recording:
        report = Player(node, recording, PlayOptions(rate=100.0, loop=True), stop).run(enough)
    assert report.messages == 40
    assert report.loops == 3
    assert played[18] < played[17]


def test_nobody_there_and_unknown_topics_are_said(node, bag):
    with pytest.raises(RosError, match=r"nobody subscribed within 0\.1 s to any of .*/camera/image_raw/compressed"):
        play(node, bag, wait_s=0.1)
    with pytest.raises(RecordingError, match=r"has no topic /nothing; it has .*/camera/camera_info"):
        play(node, bag, topics=("/nothing",))


@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("rate", -1.0), ("clock_hz", -1.0), ("start_s", -1.0)])
def test_options_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        PlayOptions(**{name: value})


def test_message_types_are_found_by_name_and_unknown_ones_are_none():
    assert message_class("sensor_msgs/msg/CameraInfo") is CameraInfo
    assert message_class("nobody_msgs/msg/Nothing") is None
    assert message_class("sensor_msgs/msg/Nothing") is None


@pytest.mark.parametrize("arguments", [["/no/such/bag"], ["--rate", "-1", "BAG"]])
def test_a_users_mistake_is_one_line_and_exit_code_2(environment, bag, arguments):
    command = [sys.executable, "-m", "dust3r_ros.ros.play", *[str(bag) if a == "BAG" else a for a in arguments]]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("dust3r-ros play: ")
    assert len(ended.stderr.strip().splitlines()) == 1
