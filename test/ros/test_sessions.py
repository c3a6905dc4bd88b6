"""Maps that outlive a node, over DDS: saved and loaded, images placed in them, and gone on in after a crash."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from camera import STEP_X, compressed, raw, stamp_of
from layers import FOCAL_PX, HEIGHT, WIDTH, layered_view
from rig import PATIENCE_S, SMALL, running
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from dust3r_ros.data import Intrinsics
from dust3r_ros.memory import FILE_NAME
from dust3r_ros.ros.convert import camera_info_message, header_of, pose_of
from dust3r_ros.ros.recorder import spin_until
from dust3r_ros.srv import LoadMap, Localize, SaveMap

IMAGES = 6
KEPT = (*SMALL, "loops.min_separation:=2")


def film(rig, first: int, images: int, *more: str) -> None:
    rig.film(f"{rig.namespace}/image", ["rgb8"] * images, "--from", str(first), *more)


def places(path) -> dict[int, np.ndarray]:
    return {stamp: pose[:3, 3] for stamp, pose in path}


def step_of(path) -> np.ndarray:
    """How the map's camera moves from one image to the next."""
    found = places(path)
    return (found[stamp_of(IMAGES - 1)] - found[stamp_of(0)]) / (IMAGES - 1)


def assert_on_the_way(path, place: np.ndarray, step: np.ndarray, at: float) -> None:
    """A place in the map lies where image ``at`` of the first way was, or would have been, taken."""
    expected = places(path)[stamp_of(0)] + at * step
    assert np.linalg.norm(place - expected) < 0.5 * np.linalg.norm(step)


def query(at: float) -> Image:
    image = raw("rgb8", layered_view(STEP_X * at))
    image.header = header_of(stamp_of(99), "phone")
    return image


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory):
    """A node with a map, which it has saved; and the path of it."""
    with running(start(*KEPT)) as rig:
        film(rig, 0, IMAGES)
        rig.wait(rig.settled)
        answer = rig.call(SaveMap, "save_map", SaveMap.Request(path="old"))
        assert answer.success, answer.message
        assert Path(answer.files[-1]).name == FILE_NAME
        yield rig, list(rig.recorded.path)


def test_an_image_is_placed_in_the_map_with_the_pose_and_what_fits(saved):
    rig, path = saved
    focal = camera_info_message(0, "phone", Intrinsics.from_focal(FOCAL_PX, WIDTH, HEIGHT))
    jpeg = compressed("jpeg", layered_view(STEP_X * 2.5))
    jpeg.header = header_of(stamp_of(99), "phone")
    for request in (
        Localize.Request(image=query(2.5)),
        Localize.Request(image=query(2.5), camera_info=focal),
        Localize.Request(compressed=jpeg),
    ):
        found = rig.call(Localize, "localize", request)
        assert found.success, found.message
        assert found.pose.header == header_of(stamp_of(99), "map")
        assert_on_the_way(path, pose_of(found.pose.pose.pose)[:3, 3], step_of(path), 2.5)
        assert found.points >= found.inliers > 0.5 * found.points > 100
        assert found.focal_px == pytest.approx(FOCAL_PX, rel=0.05)
        assert np.linalg.eigvalsh(found.pose.pose.covariance.reshape(6, 6)).min() > 0
    assert rig.recorded.status.keyframes == IMAGES  # the map is as it was


def test_what_cannot_be_placed_is_said(saved):
    rig, _ = saved
    refused = rig.call(Localize, "localize", Localize.Request())
    assert not refused.success and refused.message == "localize needs an image, got none"
    snow = rig.call(Localize, "localize", Localize.Request(image=raw("snow", layered_view(0.0))))
    assert not snow.success and snow.message
    small = CameraInfo(width=64, height=48, k=[50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1.0])
    wrong = rig.call(Localize, "localize", Localize.Request(image=query(1), camera_info=small))
    assert not wrong.success
    assert wrong.message == f"camera_info must be for the {WIDTH}x{HEIGHT} image, got 64x48"
    broken = rig.call(Localize, "localize", Localize.Request(compressed=CompressedImage(data=bytes(range(200)))))
    assert not broken.success and broken.message


def test_a_map_is_loaded_from_its_folder_alone(saved):
    rig, _ = saved
    for path, said in (("../elsewhere", "path must lie inside map_folder"), ("", "path must name the folder"),
                       ("nothing", "nothing is no map to go on in: it has no session.npz")):  # fmt: skip
        refused = rig.call(LoadMap, "load_map", LoadMap.Request(path=path))
        assert not refused.success and said in refused.message
    (rig.folder / "bad").mkdir(exist_ok=True)
    (rig.folder / "bad" / FILE_NAME).write_bytes(b"PK\x03\x04 not a map")
    refused = rig.call(LoadMap, "load_map", LoadMap.Request(path="bad"))
    assert not refused.success and "is damaged" in refused.message
    assert rig.recorded.status.keyframes == IMAGES  # all of that changed nothing


def test_the_session_goes_on_in_the_loaded_maps_frame(saved):  # the last one of this node
    rig, path = saved
    assert rig.call(Trigger, "reset", Trigger.Request()).success
    rig.wait(lambda: rig.recorded.status.frames_received == 0)
    film(rig, 20, 2, "--at", "3")  # another map, in another frame
    rig.wait(lambda: len(rig.recorded.path) == 2)
    loaded = rig.call(LoadMap, "load_map", LoadMap.Request(path="old"))
    assert loaded.success, loaded.message
    assert loaded.message.startswith(f"{IMAGES} keyframes, ")
    rig.wait(lambda: len(rig.recorded.path) == IMAGES and len(rig.recorded.cloud) > 1000)
    for stamp, place in places(path).items():
        np.testing.assert_allclose(places(rig.recorded.path)[stamp], place, atol=1e-9)
    rig.wait(lambda: rig.recorded.status.frames_received == 0)
    film(rig, 30, 3, "--at", "2")
    rig.wait(lambda: len(rig.recorded.path) == IMAGES + 3)
    for number in range(3):
        assert_on_the_way(path, places(rig.recorded.path)[stamp_of(30 + number)], step_of(path), 2 + number)
    assert rig.recorded.status.state == "mapping"


def test_a_killed_node_goes_on_in_its_own_map(start):
    first = start(*KEPT, "autosave_period:=0.2", "resume:=after_crash")
    autosave = first.folder / "autosave" / f"{first.namespace.strip('/')}.dust3r"
    with first.node.start():
        first.wait(lambda: first.recorded.status is not None)
        film(first, 0, IMAGES)
        first.wait(first.settled)
        path = list(first.recorded.path)
        written = (autosave / FILE_NAME).stat().st_mtime_ns
        first.wait(lambda: (autosave / "running").is_file() and (autosave / FILE_NAME).stat().st_mtime_ns >= written)
        first.call(Trigger, "keyframe_now", Trigger.Request())  # one more turn of its executor and its timers
        os.kill(first.node._started().pid, signal.SIGKILL)
        assert spin_until(first.recorder, lambda: not first.node.running, PATIENCE_S)
    first.recorder.destroy_node()
    again = first.again()
    with running(again) as rig:
        assert "going on in the map of" in rig.log()
        rig.wait(lambda: len(rig.recorded.path) >= IMAGES - 1)
        film(rig, 30, 2, "--at", "2")
        rig.wait(lambda: stamp_of(31) in places(rig.recorded.path))
        for number in range(2):
            assert_on_the_way(path, places(rig.recorded.path)[stamp_of(30 + number)], step_of(path), 2 + number)
    assert not (autosave / "running").exists()  # that one ended in order:
    with running(again.again()) as rig:
        film(rig, 50, 2)
        rig.wait(lambda: len(rig.recorded.path) == 2)  # and so the next begins anew
        assert "going on" not in rig.log()


def test_a_map_that_does_not_change_is_not_saved_again(start):
    with running(start(*KEPT, "autosave_period:=0.1")) as rig:
        film(rig, 0, 3)
        file = rig.folder / "autosave" / f"{rig.namespace.strip('/')}.dust3r" / FILE_NAME
        rig.wait(file.is_file)
        film(rig, 3, 2)
        rig.wait(rig.settled)
        for _ in range(3):  # its timer turns ten times a second
            assert rig.call(Trigger, "keyframe_now", Trigger.Request()).success
        stamp = rig.recorded.status.header.stamp
        rig.wait(lambda: time.time() - file.stat().st_mtime > 1)  # ten turns of its timer: the last change is saved
        before = file.stat().st_mtime_ns
        rig.recorded.status = None
        rig.wait(lambda: rig.recorded.status is not None)
        assert rig.recorded.status.header.stamp == stamp
        assert file.stat().st_mtime_ns == before
