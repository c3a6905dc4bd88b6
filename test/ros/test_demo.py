"""The demo over DDS: player, node and subscriber in three processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layers import FOCAL_PX, HEIGHT, WIDTH, layered_view

pytest.importorskip("rclpy", reason="no ROS 2")
pytest.importorskip("dust3r_ros.msg", reason="the workspace is not built or sourced: make build, . tools/env.sh")

from dust3r_ros.data import Intrinsics, PosedFrame
from dust3r_ros.errors import RecordingError, RosError
from dust3r_ros.images import load_image
from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.ros import demo
from dust3r_ros.ros.bag_writer import write_bag

QUICK = ("image_size:=256", "window:=2", "map_period:=0.2")


@pytest.fixture(autouse=True)
def own_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))


@pytest.fixture
def no_child_left() -> Iterator[None]:
    yield
    listed = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    assert not [line for line in listed.stdout.splitlines() if "dust3r_ros" in line]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    k = Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT)
    frames = [PosedFrame(layered_view(0.05 * i), 10**18 + i * 10**8, k, placed(0.05 * i), None) for i in range(20)]
    return write_bag(frames, tmp_path_factory.mktemp("bag") / "walk")


def placed(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def still(image: np.ndarray, count: int) -> Iterator[PosedFrame]:
    frame = PosedFrame(image, 10**18, Intrinsics.from_focal(300, image.shape[1], image.shape[0]), np.eye(4), None)
    return (replace(frame, stamp_ns=10**18 + i * 10**8) for i in range(count))


@pytest.mark.usefixtures("no_child_left")
def test_a_recording_becomes_a_map_a_path_and_a_picture(walk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = demo.run_demo(walk, tmp_path / "out", demo.DemoOptions(rate=1.0, parameters=QUICK), said.append)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "cloud.ply", "trajectory.tum", "cameras.json", "reconstruction.png", "node.log", "player.log",
    }  # fmt: skip
    recorded = result.recorded
    assert recorded.status is not None
    assert recorded.status.frames_received == 20
    assert len(recorded.path) >= 3
    assert recorded.disagreements() == []
    assert {stamp for stamp, _ in recorded.path} <= {stamp for stamp, _ in result.played.truth}
    assert len(read_cloud(tmp_path / "out" / "cloud.ply")) == len(recorded.cloud) > 1000
    lines = (tmp_path / "out" / "trajectory.tum").read_text().splitlines()
    assert len(lines) == 1 + len(recorded.path)
    assert load_image(tmp_path / "out" / "reconstruction.png").shape[1] == 1600
    assert result.errors is not None
    assert result.errors.rotation_deg is not None
    assert result.errors.rotation_deg < 3.0
    table = result.table()
    for name in ("frames received  20 of 20", "keyframes", "rate", "points", "focal", "error", "all agree"):
        assert name in table
    assert any("playing" in line for line in said)


@pytest.mark.usefixtures("no_child_left")
def test_a_camera_that_stands_still_gives_a_clear_line(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    bag = write_bag(still(image, 4), tmp_path / "still")
    with pytest.raises(RosError, match="no map was received: no two images could be brought together"):
        demo.run_demo(bag, tmp_path / "out", demo.DemoOptions(rate=1.0, parameters=QUICK))


@pytest.mark.usefixtures("no_child_left")
def test_a_node_that_does_not_start_is_quoted(walk: Path, tmp_path: Path) -> None:
    options = demo.DemoOptions(parameters=("checkpoint:=nothing/here.pth",))
    with pytest.raises(RosError, match=r"node ended by itself with exit code 2 \(see .*node.log\): .*here\.pth"):
        demo.run_demo(walk, tmp_path / "out", options)


@pytest.mark.usefixtures("no_child_left")
def test_a_recording_that_cannot_be_played_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such recording"):
        demo.run_demo(tmp_path / "none.mcap", tmp_path / "out")
    with pytest.raises(RosError, match=r"must be positive, got 0"):
        demo.DemoOptions(rate=0)


def test_a_short_recording_is_played_slowly_and_a_long_one_as_it_was() -> None:
    options = demo.DemoOptions()
    assert options.rate_for(1.0) == demo.SLOWEST
    assert options.rate_for(demo.USUAL_PLAY_S / 2) == 0.5
    assert options.rate_for(1000.0) == 1.0
    assert demo.DemoOptions(rate=3.0).rate_for(1.0) == 3.0


STARTED = """
import sys
from pathlib import Path
from dust3r_ros.ros.demo import DemoOptions, run_demo
run_demo(Path(sys.argv[1]), Path(sys.argv[2]), DemoOptions(rate=0.1), lambda line: print(line, flush=True))
"""


def test_a_demo_told_to_stop_takes_its_children_along(walk: Path, tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    started = [(starting(walk, tmp_path / n.name, 1 + (os.getpid() + int(n)) % 100), n) for n in numbers]
    left: list[int] = []
    for process, number in started:
        with process:
            assert process.stdout is not None
            assert "playing" in process.stdout.readline()
            children = _children(process.pid)
            assert len(children) >= 1  # the node; the player follows
            left += children
            process.send_signal(number)
            assert process.wait(60) != 0
    deadline = time.monotonic() + 60.0
    while left := [pid for pid in left if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def starting(bag: Path, out: Path, domain: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTED, str(bag), str(out)],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]
