"""Transforms over time, by tf2's rules; tf2's own buffer is put to the same tests where it is installed."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.geometry import invert_pose, make_pose
from dust3r_ros.ros import compat
from dust3r_ros.ros.tf_buffer import TransformBuffer, TransformMissingError

S = 1_000_000_000


def pose(x: float, yaw_deg: float = 0.0) -> np.ndarray:
    return make_pose(Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix(), np.array([x, 2.0 * x, -x]))


@pytest.fixture(params=["ours", "theirs"])
def buffer(request):
    if request.param == "ours":
        return TransformBuffer()
    if not compat.available()["tf2_ros"]:
        pytest.skip("tf2_ros is not installed")
    return compat.transform_buffer()


def robot(buffer) -> None:
    """odom -> base moves and turns, base -> camera is fixed, base -> arm is fixed."""
    for second in range(3):
        buffer.set("odom", "base", second * S, pose(second, 90.0 * second), static=False)
    buffer.set("base", "camera", 0, pose(0.3, 45.0), static=True)
    buffer.set("base", "arm", 0, pose(-0.2, 10.0), static=True)


def test_a_chain_is_followed_up_down_and_across(buffer):
    robot(buffer)
    up = pose(1, 90.0) @ pose(0.3, 45.0)
    np.testing.assert_allclose(buffer.lookup("odom", "camera", S), up, atol=1e-12)
    np.testing.assert_allclose(buffer.lookup("camera", "odom", S), invert_pose(up), atol=1e-12)
    across = invert_pose(pose(-0.2, 10.0)) @ pose(0.3, 45.0)
    np.testing.assert_allclose(buffer.lookup("arm", "camera", 99 * S), across, atol=1e-12)
    np.testing.assert_allclose(buffer.lookup("base", "base", S), np.eye(4), atol=1e-12)


def test_between_two_samples_place_and_rotation_are_interpolated(buffer):
    robot(buffer)
    np.testing.assert_allclose(buffer.lookup("odom", "base", S + S // 4), pose(1.25, 112.5), atol=1e-9)


@pytest.mark.parametrize("stamp", [2 * S + 1, 60 * S])
def test_a_time_outside_the_samples_is_missing_not_guessed(buffer, stamp):
    robot(buffer)
    with pytest.raises(TransformMissingError):
        buffer.lookup("odom", "camera", stamp)


def test_old_transforms_are_forgotten_and_static_ones_kept(buffer):
    robot(buffer)
    for second in (15, 16):
        buffer.set("odom", "base", second * S, pose(second), static=False)
    with pytest.raises(TransformMissingError):
        buffer.lookup("odom", "base", 2 * S)
    buffer.clear()
    with pytest.raises(TransformMissingError):
        buffer.lookup("odom", "base", 15 * S)
    np.testing.assert_allclose(buffer.lookup("base", "camera", 15 * S), pose(0.3, 45.0), atol=1e-12)


def test_samples_may_come_out_of_order_and_twice(buffer):
    for second in (2, 0, 1, 1):
        buffer.set("odom", "base", second * S, pose(second), static=False)
    np.testing.assert_allclose(buffer.lookup("odom", "base", S // 2), pose(0.5), atol=1e-9)


def test_ours_says_what_is_missing_by_name():
    buffer = TransformBuffer()
    robot(buffer)
    buffer.set("world", "table", 0, pose(1), static=True)
    for target, source, said in (
        ("base", "gripper", "frame gripper not on TF"),
        ("a", "b", "frame a and frame b not on TF"),
        ("odom", "table", "frames odom and table are on TF and not connected"),
    ):
        with pytest.raises(TransformMissingError, match=said):
            buffer.lookup(target, source, 0)
    with pytest.raises(TransformMissingError, match=r"odom -> base is known from 0.000 s to 2.000 s, not at 5.000 s"):
        buffer.lookup("odom", "camera", 5 * S)


def test_a_loop_of_parents_ends():
    buffer = TransformBuffer()
    buffer.set("a", "b", 0, pose(1), static=True)
    buffer.set("b", "a", 0, pose(2), static=True)
    with pytest.raises(TransformMissingError):
        buffer.lookup("c", "a", 0)
