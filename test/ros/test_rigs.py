"""Cameras that are fixed to each other: keyframes at the same times, and the scale by their distance."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from camera import START_NS, STEP_X, described, raw, stamp_of
from layers import layered_view
from rig import SMALL, running
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from dust3r_ros.config import NodeConfig
from dust3r_ros.geometry import make_pose
from dust3r_ros.options import make_config
from dust3r_ros.ros.cameras import Frame, Shot
from dust3r_ros.ros.convert import header_of, transform_stamped
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.mapper import Mapper
from dust3r_ros.ros.qos import image_qos, latched
from dust3r_ros.ros.rigs import CameraRig
from dust3r_ros.ros.statistics import Drop, Statistics

OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
METRES = 3.0  # TF says that the rig is so many times as large as the images' scene has it
MOUNTS = {"left": 0.0, "right": -METRES * STEP_X}
MS = 1_000_000


def image(camera: str, stamp_ns: int) -> Frame:
    return Frame(camera, f"{camera}_frame", np.zeros((1, 1, 3), np.uint8), stamp_ns, None, 0.0)


def rig_of(known: set[str]) -> tuple[CameraRig, list]:
    """A rig whose cameras ``known`` TF holds together."""
    told: list = []
    rig = CameraRig(lambda a, b: 0.2 if {a, b} <= known else None, lambda *pair: told.append(pair))
    for camera in ("left", "right", "rear"):
        rig.meet(image(camera, 0))
    return rig, told


def test_the_baseline_is_told_once_when_tf_knows_it():
    frames: set[str] = set()
    rig, told = rig_of(frames)
    assert told == []
    frames |= {"left_frame", "right_frame"}
    for stamp in range(3):
        rig.meet(image("right", stamp))
    assert told == [("left", "right", 0.2)]


def test_what_the_other_cameras_took_at_the_time_of_a_keyframe_becomes_one_whichever_comes_first():
    rig, _ = rig_of({"left_frame", "right_frame"})
    early, late = image("right", 100 * MS), image("right", 201 * MS)
    assert not rig.wants(early)
    assert rig.taken(image("left", 102 * MS)) == [early]
    assert rig.taken(image("left", 103 * MS)) == []  # it is brought once
    assert rig.taken(image("left", 200 * MS)) == []
    assert rig.wants(late)
    assert not rig.wants(image("right", 300 * MS))


def test_a_camera_that_is_not_of_the_rig_goes_its_own_way():
    rig, _ = rig_of({"left_frame", "right_frame"})
    assert not rig.wants(image("rear", 100 * MS))
    assert rig.taken(image("left", 100 * MS)) == []
    assert not rig.wants(image("rear", 100 * MS))


class Lookout:
    """A mapper whose keyframes are not worked on: ``keyframes`` are their numbers, by camera."""

    def __init__(self, monkeypatch, *, rigid: bool = True) -> None:
        config = make_config(NodeConfig, {"checkpoint": "geometric"})
        frames = MapFrames(config, None)
        monkeypatch.setattr(frames, "baseline_m", lambda *_: 0.2 if rigid else None)
        self.mapper = Mapper(config, frames, None, Statistics(), lambda: None, "/dust3r")
        self.keyframes: dict[str, list[int]] = {name: [] for name in MOUNTS}
        monkeypatch.setattr(self.mapper._worker, "offer", self._offer)

    def _offer(self, taken: Frame) -> None:
        self.keyframes[taken.camera].append(taken.stamp_ns // (33 * MS))

    def look(self, camera: str, number: int, shown: np.ndarray) -> None:
        taken = Frame(camera, f"{camera}_frame", shown, number * 33 * MS, None, time.monotonic())
        self.mapper._lookout.look(Shot(taken.stamp_ns, lambda: taken))

    def walk(self, images: int) -> dict[str, list[int]]:
        for number in range(images):
            for shift, camera in enumerate(MOUNTS):
                self.look(camera, number, layered_view(STEP_X * (number / 6 - shift)))
        return self.keyframes


@pytest.fixture
def lookout(monkeypatch):
    made = []

    def make(**options: bool) -> Lookout:
        made.append(Lookout(monkeypatch, **options))
        return made[-1]

    yield make
    for each in made:
        each.mapper.close()


def test_a_rig_has_the_keyframes_that_one_of_its_cameras_needs_and_each_is_tracked_from_them(lookout):
    alone, rig = lookout(rigid=False).walk(40), lookout()
    together = rig.walk(40)
    most = max(len(numbers) for numbers in alone.values())
    assert most >= 4
    assert together["left"] == together["right"]
    assert len(together["left"]) <= most + 1
    assert rig.mapper.statistics.snapshot().dropped[Drop.NOT_NEEDED] == 80 - 2 * len(together["left"])
    for camera, numbers in together.items():
        assert rig.mapper._poses._trackers[camera]._tracks.keyframes[-1] == numbers[-1] * 33 * MS


@pytest.mark.parametrize("first", ["left", "right"])
def test_an_image_in_which_nothing_is_to_be_seen_is_nobodys_companion(lookout, first):
    seen, plain = {"left": layered_view(0.0), "right": np.full((192, 256, 3), 128, np.uint8)}, lookout()
    for camera in sorted(MOUNTS, reverse=first == "right"):
        plain.look(camera, 0, seen[camera])
    assert plain.keyframes == {"left": [0], "right": []}


def test_after_time_went_back_each_camera_has_a_keyframe_at_once(lookout, monkeypatch):
    again = lookout()
    again.walk(2)
    again.mapper._outputs = SimpleNamespace(time_began_anew=lambda: None)
    again.mapper.time_began_anew(list(MOUNTS))
    assert again.mapper._lookout.wait_idle(60.0)
    again.keyframes = {name: [] for name in MOUNTS}
    assert again.walk(1) == {"left": [0], "right": [0]}


class Pair:
    """Two cameras side by side that take their images together."""

    def __init__(self, rig, step: float) -> None:
        """``step`` is from place to place, as a share of the cameras' distance."""
        self.rig, self.step = rig, step
        create = rig.recorder.create_publisher
        self.images = {
            name: create(Image, f"{rig.namespace}/{name}/image", image_qos("reliable", 100)) for name in MOUNTS
        }
        self.infos = {
            name: create(CameraInfo, f"{rig.namespace}/{name}/camera_info", image_qos("reliable", 100))
            for name in MOUNTS
        }
        mounts = create(TFMessage, f"{rig.namespace}/tf_static", latched(1))
        mounts.publish(TFMessage(transforms=[
            transform_stamped(START_NS, "base_link", f"{name}_optical", make_pose(OPTICAL, np.array([0.0, y, 0.5])))
            for name, y in MOUNTS.items()
        ]))  # fmt: skip
        self.mounts = mounts
        rig.wait(lambda: all(p.get_subscription_count() for p in (mounts, *self.images.values(), *self.infos.values())))
        for name, infos in self.infos.items():
            rig.keep_sending(infos, described(stamp_of(0), f"{name}_optical", bent=False))
        rig.wait(lambda: all(self.calibration(name) == "pinhole" for name in MOUNTS))

    def calibration(self, name: str) -> str:
        """What the node says of a camera's CameraInfo."""
        status = self.rig.diagnostics.get(f"camera {self.rig.namespace}/{name}/image")
        return {pair.key: pair.value for pair in status.values}["camera info"] if status is not None else ""

    def take(self, place: int) -> None:
        """An image of each camera, and wait until the node has dealt with them."""
        for shift, name in enumerate(MOUNTS):
            self.infos[name].publish(described(stamp_of(place), f"{name}_optical", bent=False))
            message = raw("rgb8", layered_view(STEP_X * (self.step * place + shift)))
            message.header = header_of(stamp_of(place), f"{name}_optical")
            self.images[name].publish(message)
        status = self.rig.recorded
        self.rig.wait(lambda: status.status.frames_received == 2 * (place + 1) and not status.in_flight())


@pytest.mark.parametrize("every_image", [True, False])
def test_two_cameras_with_static_transforms_make_the_map_metric(start, every_image):
    given = [parameter for parameter in SMALL if not parameter.startswith("keyframes")]
    rig = start(*given, f"keyframes.every_image:={every_image}".lower(), "tf_mode:=base", "intrinsics:=given",
                "image_topics:=['left/image','right/image']", "transform_timeout:=20.0")  # fmt: skip
    with running(rig):
        cameras = Pair(rig, 0.3 if every_image else 0.6)
        places = 8 if every_image else 34
        for place in range(places):
            cameras.take(place)
        rig.wait(lambda: rig.settled() and len(rig.recorded.path) == rig.recorded.status.keyframes)  # of both cameras
        assert "are a rig, 0.300 m apart" in rig.log()
        stamps = [stamp for stamp, _ in rig.recorded.path]
        assert len(stamps) == 2 * len(set(stamps)) == rig.recorded.status.keyframes  # both cameras, each time
        assert len(set(stamps)) == places if every_image else 6 < len(set(stamps)) < 10
        assert rig.recorded.status.metric
        sides = {}
        for stamp, pose in rig.recorded.path:
            sides.setdefault(stamp, []).append(pose[:3, 3])
        distances = [np.linalg.norm(one - other) for one, other in sides.values()]
        assert np.median(distances) == pytest.approx(METRES * STEP_X, rel=0.05)
