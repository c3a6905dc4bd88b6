"""The camera's own intrinsics, as the node uses them."""

import logging

import pytest
from sensor_msgs.msg import CameraInfo

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.ros.calibration import Calibration

K = Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480)


def info(focal: float = 500.0, **changes) -> CameraInfo:
    return CameraInfo(width=640, height=480, k=[focal, 0.0, 319.5, 0.0, focal, 239.5, 0.0, 0.0, 1.0], **changes)


def test_intrinsics_are_used_only_when_asked_for():
    unused = Calibration("/camera_info", use=False)
    unused.update(info())
    assert unused.for_image(480, 640) is None
    used = Calibration("/camera_info", use=True)
    used.update(info())
    assert used.for_image(480, 640) == K


def test_images_before_the_first_camera_info_are_refused_with_its_topic():
    with pytest.raises(RosError, match="no CameraInfo on /cam/camera_info yet"):
        Calibration("/cam/camera_info", use=True).for_image(480, 640)


def test_another_image_size_is_refused_with_both_sizes():
    calibration = Calibration("/camera_info", use=True)
    calibration.update(info())
    with pytest.raises(RosError, match="is for 640x480 images, got one of 320x240"):
        calibration.for_image(240, 320)


def test_an_uncalibrated_camera_is_said_once_and_estimated(caplog):
    calibration = Calibration("/camera_info", use=True)
    with caplog.at_level(logging.WARNING, "dust3r_ros"):
        for _ in range(3):
            calibration.update(info(focal=0.0))
    assert calibration.for_image(480, 640) is None
    assert [record.message for record in caplog.records] == [
        "/camera_info says the camera is not calibrated (K[0] = 0): intrinsics are estimated"
    ]


def test_lens_distortion_is_said_once(caplog):
    calibration = Calibration("/camera_info", use=True)
    with caplog.at_level(logging.WARNING, "dust3r_ros"):
        for _ in range(3):
            calibration.update(info(d=[0.1, 0.0, 0.0, 0.0, 0.0]))
    assert len(caplog.records) == 1
    assert "distortion" in caplog.records[0].message
    assert calibration.for_image(480, 640) == K


def test_a_broken_matrix_leaves_the_last_good_one():
    calibration = Calibration("/camera_info", use=True)
    calibration.update(info())
    with pytest.raises(RosError, match="positive focal length"):
        calibration.update(info(focal=-1.0))
    assert calibration.for_image(480, 640) == K
