"""The camera's own calibration, as the node uses it."""

import logging

import pytest
from sensor_msgs.msg import CameraInfo

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.ros.calibration import Calibration, CalibrationMissingError

K = Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480)
BENT = {"d": [-0.2, 0.05, 0.0, 0.0, 0.0], "distortion_model": "plumb_bob"}


def info(focal: float = 500.0, **changes) -> CameraInfo:
    return CameraInfo(width=640, height=480, k=[focal, 0.0, 319.5, 0.0, focal, 239.5, 0.0, 0.0, 1.0], **changes)


def calibration(topic: str = "/camera_info", *, needed: bool = True, published: bool = True) -> Calibration:
    return Calibration(topic, needed=needed, rectified=False, published=lambda: published)


def test_the_newest_camera_info_holds():
    used = calibration()
    used.update(info(focal=400.0))
    used.update(info())
    assert used.for_image(480, 640).intrinsics == K


def test_images_before_the_first_camera_info_wait_for_it_with_its_topic():
    with pytest.raises(CalibrationMissingError, match="no usable CameraInfo on /cam/camera_info yet"):
        calibration("/cam/camera_info").for_image(480, 640)


def test_when_none_is_needed_images_wait_only_for_one_that_somebody_publishes():
    assert calibration(needed=False, published=False).for_image(480, 640) is None
    with pytest.raises(CalibrationMissingError, match="which somebody publishes"):
        calibration(needed=False, published=True).for_image(480, 640)


def test_another_image_size_is_refused_with_both_sizes():
    used = calibration()
    used.update(info())
    with pytest.raises(RosError, match="is for 640x480 images, got one of 320x240"):
        used.for_image(240, 320)


@pytest.mark.parametrize("bent", [False, True])
def test_another_image_size_matters_without_need_only_where_distortion_is_to_be_undone(bent):
    used = calibration(needed=False)
    used.update(info(**(BENT if bent else {})))
    if not bent:
        assert used.for_image(240, 320) is None
        return
    with pytest.raises(RosError, match="is for 640x480 images, got one of 320x240"):
        used.for_image(240, 320)


def test_an_uncalibrated_camera_is_said_once_and_estimated(caplog):
    used = calibration()
    with caplog.at_level(logging.WARNING, "dust3r_ros"):
        for _ in range(3):
            used.update(info(focal=0.0))
    assert used.for_image(480, 640) is None
    assert [record.message for record in caplog.records] == [
        "/camera_info says the camera is not calibrated (K[0] = 0): intrinsics are estimated"
    ]


def test_distortion_is_said_once_and_its_maps_are_made_once(caplog):
    used = calibration()
    with caplog.at_level(logging.INFO, "dust3r_ros"):
        used.update(info(**BENT))
        first = used.for_image(480, 640)
        used.update(info(**BENT))
    assert [record.message for record in caplog.records] == [
        "/camera_info has lens distortion (plumb_bob): it is undone"
    ]
    assert first.maps is not None
    assert used.for_image(480, 640) is first


def test_a_broken_matrix_leaves_the_last_good_one():
    used = calibration()
    used.update(info())
    with pytest.raises(RosError, match="positive focal length"):
        used.update(info(focal=-1.0))
    assert used.for_image(480, 640).intrinsics == K
