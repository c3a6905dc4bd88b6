"""Several cameras, raw or compressed, with and without calibration."""

from __future__ import annotations

import pytest
from camera import FRAME, described, stamp_of
from layers import FOCAL_PX
from rig import SMALL, running
from sensor_msgs.msg import CameraInfo

from dust3r_ros.config import NodeConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.options import make_config
from dust3r_ros.ros.cameras import camera_topics
from dust3r_ros.ros.lens import lens_of
from dust3r_ros.ros.qos import image_qos


def resolved(**given):
    config = make_config(NodeConfig, given)
    cameras = camera_topics(config, lambda name: name if name.startswith("/") else f"/ns/{name}")
    return [(camera.image, camera.info, camera.compressed) for camera in cameras]


def test_topics_are_found_from_the_parameters():
    assert resolved() == [("/ns/image", "/ns/camera_info", False)]
    assert resolved(image_transport="compressed") == [("/ns/image/compressed", "/ns/camera_info", True)]
    assert resolved(
        image_topics=["/front/image_raw", "rear/image_raw/compressed", "/top"], camera_info_topics=["", "/rear_info"]
    ) == [
        ("/front/image_raw", "/front/camera_info", False),
        ("/ns/rear/image_raw/compressed", "/rear_info", True),
        ("/top", "/camera_info", False),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image_topics": []}, "image_topics must name at least one topic"),
        ({"image_topics": ["a", ""]}, "image_topics must name at least one topic, and none empty"),
        ({"image_topics": ["a", "/ns/a"]}, "image_topics must name each topic once, got /ns/a twice"),
        ({"camera_info_topics": ["a", "b"]}, "camera_info_topics must name at most 1 topics, one a camera, got 2"),
        ({"image_topics": ["a", "b"], "camera_frame": "x"}, "camera_frame must be empty for several cameras, got 'x'"),
    ],
)
def test_wrong_topics_are_refused_by_name(given, said):
    with pytest.raises(ConfigError, match=said):
        resolved(**given)


def test_two_cameras_one_raw_one_compressed_make_one_map_and_a_frame_each(start):
    rig = start(*SMALL, "image_topics:=['left/image','right/image/compressed']")
    left, right = f"{rig.namespace}/left/image", f"{rig.namespace}/right/image/compressed"
    with running(rig):
        rig.film(left, ["rgb8"] * 2, "--frame", "left_optical")
        rig.film(right, ["jpeg"] * 2, "--from", "2", "--frame", "right_optical")
        rig.film(left, ["mono8"], "--from", "4", "--frame", "/left_optical")
        rig.wait(rig.settled)
        assert [stamp for stamp, _ in rig.recorded.path] == [stamp_of(place) for place in range(5)]
        assert rig.recorded.camera_frames == {"left_optical", "right_optical"}
        rig.wait(lambda: rig.diagnostics.get(f"camera {right}") is not None)
        received = {f"camera {topic}": value for topic, value in ((left, "3"), (right, "2"))}
        rig.wait(lambda: all(rig.diagnostics[part].values[0].value == value for part, value in received.items()))


def test_distortion_is_undone_and_the_published_intrinsics_are_the_straight_images(start):
    rig = start(*SMALL, "intrinsics:=given")
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3, "--info", f"{rig.namespace}/camera_info", "--bent")
        assert rig.recorded.status.keyframes == 3
        assert "has lens distortion (plumb_bob): it is undone" in rig.log()
        known = lens_of(described(0, FRAME, bent=True), rectified=False).intrinsics
        assert rig.recorded.intrinsics.focal_px == pytest.approx(known.focal_px, rel=1e-6)
        assert known.focal_px < 0.95 * FOCAL_PX  # the straight image shows more
        rig.wait(rig.settled)
        places = [pose[:3, 3] for _, pose in rig.recorded.path]
        ways = [later - places[0] for later in places[1:]]
        assert all(abs(way[0]) > 0.99 * (way @ way) ** 0.5 for way in ways)
        assert ways[1][0] / ways[0][0] == pytest.approx(2.0, rel=0.1)


def test_a_camera_info_as_first_guess_is_where_the_estimate_begins(start):
    rig = start(*SMALL, "intrinsics:=guess")
    topic = f"{rig.namespace}/camera_info"
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"], "--info", topic)
        assert rig.recorded.intrinsics.focal_px == pytest.approx(FOCAL_PX)  # and not the view of 53 degrees
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3, "--info", topic, "--from", "1")
        assert rig.recorded.intrinsics.focal_px != FOCAL_PX
        assert rig.recorded.intrinsics.focal_px == pytest.approx(FOCAL_PX, rel=0.05)
        assert rig.recorded.status.focal_spread_px > 0


def test_images_before_their_calibration_are_counted_by_that_reason(start):
    rig = start(*SMALL)  # intrinsics are estimated, but somebody publishes a CameraInfo
    topic = f"{rig.namespace}/camera_info"
    with running(rig):
        publisher = rig.recorder.create_publisher(CameraInfo, topic, image_qos("reliable", 5))
        rig.wait(lambda: publisher.get_subscription_count() == 1)
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 2)
        assert rig.recorded.status.dropped_no_calibration == 2
        assert f"no usable CameraInfo on {topic} yet, which somebody publishes" in rig.log()
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 2, "--info", topic, "--from", "2")
        assert (rig.recorded.status.keyframes, rig.recorded.status.dropped_no_calibration) == (2, 2)
