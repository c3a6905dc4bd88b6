"""The node in its own process, fed by a camera in another, heard by this one: everything goes over DDS."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from camera import BAD, FRAME, stamp_of
from layers import FOCAL_PX, HEIGHT, WIDTH
from rclpy.qos import ReliabilityPolicy
from rig import PATIENCE_S, SMALL, Rig, running
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.ros.convert import cloud_of
from dust3r_ros.ros.processes import Child
from dust3r_ros.ros.qos import latched
from dust3r_ros.srv import SaveMap

MIXED = ["rgb8", "truncated", "bgr8", "unknown", "mono8", "zero", "rgba8", "mono16", "bgra8"]
GOOD = [stamp_of(place) for place, kind in enumerate(MIXED) if kind not in BAD]


@pytest.fixture(scope="module")
def mapped(start: Callable[..., Rig]) -> Iterator[Rig]:
    """A node that was sent raw images of many encodings, and broken ones between them."""
    with running(start(*SMALL)) as rig:
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
    assert [stamp for stamp, _ in recorded.path] == GOOD
    assert set(recorded.intrinsics_stamps) <= set(GOOD)  # the newest is kept for who comes late, no more
    assert recorded.intrinsics_stamps[-1] == GOOD[-1]
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
    assert [Path(file).name for file in saved.files] == ["cloud.ply", "trajectory.tum", "cameras.json", "session.npz"]
    assert len(read_cloud(Path(saved.files[0]))) == mapped.recorded.status.map_points
    refused = mapped.call(SaveMap, "save_map", SaveMap.Request(path="../elsewhere"))
    assert not refused.success
    assert "path must lie inside map_folder" in refused.message


def test_pause_and_reset(mapped):  # the last one of this node
    assert mapped.call(SetBool, "pause", SetBool.Request(data=True)).success
    mapped.wait(lambda: mapped.recorded.status.state == "paused")
    assert mapped.call(SetBool, "pause", SetBool.Request(data=False)).success
    assert mapped.call(Trigger, "reset", Trigger.Request()).success
    mapped.wait(lambda: mapped.recorded.status.state == "waiting for images")
    mapped.wait(lambda: not len(mapped.recorded.cloud) and mapped.recorded.path == [])
    refused = mapped.call(SaveMap, "save_map", SaveMap.Request(path="empty"))
    assert (refused.success, refused.message) == (False, "the map is empty: there is nothing to save")


def test_compressed_images_with_given_intrinsics_on_remapped_topics_until_sigterm(start):
    arguments = ("-r", "image:=/front/image_raw", "-r", "camera_info:=/front/camera_info")
    rig = start(*SMALL, "image_transport:=compressed", "intrinsics:=given", arguments=arguments)
    kinds = ["jpeg", "jpeg_truncated", "png", "noise", "jpeg"]
    with running(rig, signal.SIGTERM):
        rig.film("/front/image_raw/compressed", kinds, "--info", "/front/camera_info")
        status, known = rig.recorded.status, rig.recorded.intrinsics
        assert (status.frames_received, status.keyframes, status.dropped_invalid) == (5, 3, 2)
        assert known.focal_px == pytest.approx(FOCAL_PX)
        assert (known.width, known.height, status.focal_spread_px) == (WIDTH, HEIGHT, 0.0)
        assert rig.recorded.disagreements() == []


def test_interrupted_in_the_middle_of_work_it_ends_well_without_doing_what_waits(start):
    rig = start(*SMALL[1:], "image_size:=1024")
    with rig.node.start():
        rig.wait(lambda: rig.recorded.status is not None)
        kinds = ",".join(["rgb8"] * 8)
        with Child(
            "camera", [f"{rig.namespace}/image", kinds], rig.folder / "camera.log", rig.environment
        ).start() as camera:
            rig.wait(lambda: not camera.running)
        rig.wait(lambda: rig.recorded.in_flight() > 2)
        rig.node.stop()
    assert "Traceback" not in rig.log()
    assert rig.recorded.in_flight() > 1  # more than the one in hand, which takes seconds
    rig.recorder.destroy_node()


def test_keyframe_now_takes_the_next_image_even_when_nothing_moved(start):
    rig = start(*(given for given in SMALL if not given.startswith("keyframes")))
    topic = f"{rig.namespace}/image"
    with running(rig):
        rig.film(topic, ["rgb8"] * 3, "--still")
        assert (rig.recorded.status.keyframes, rig.recorded.status.dropped_not_needed) == (1, 2)
        assert rig.call(Trigger, "keyframe_now", Trigger.Request()).message == "the next image becomes a keyframe"
        rig.film(topic, ["rgb8"] * 3, "--still", "--from", "3")
        wanted = rig.recorded.status
        assert wanted.keyframes + wanted.dropped_failed == 2  # without parallax it may not find a place
        assert wanted.dropped_not_needed == 4
        assert rig.call(SetBool, "pause", SetBool.Request(data=True)).success
        assert rig.call(Trigger, "keyframe_now", Trigger.Request()).message == "the node is paused"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # rclpy's own, as the recorder's reliable depth does not fit
def test_the_quality_of_service_of_a_stream_is_a_parameter(start):
    rig = start(*SMALL, "use_odometry:=true", "qos_overrides.NAMESPACE/image.subscription.reliability:=best_effort",
                "qos_overrides.NAMESPACE/odom.subscription.reliability:=reliable",
                "qos_overrides.NAMESPACE/camera_info.subscription.reliability:=reliable",
                "qos_overrides.NAMESPACE/dust3r/depth.publisher.reliability:=best_effort")  # fmt: skip
    with running(rig):
        inputs = [f"{rig.namespace}/{name}" for name in ("image", "camera_info", "odom")]
        rig.wait(lambda: all(map(rig.recorder.count_subscribers, inputs)))
        (images,), (infos,), (odometry,) = map(rig.recorder.get_subscriptions_info_by_topic, inputs)
        (points,) = rig.recorder.get_publishers_info_by_topic(f"{rig.namespace}/dust3r/points")
        assert images.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert infos.qos_profile.reliability == odometry.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        (depth,) = rig.recorder.get_publishers_info_by_topic(f"{rig.namespace}/dust3r/depth")
        assert depth.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert points.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_a_wrong_parameter_is_one_line_and_exit_code_2(environment):
    command = [sys.executable, "-m", "dust3r_ros.ros.node", "--ros-args", "-p", "wndow:=3"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert "unknown option 'wndow'; did you mean window?" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
