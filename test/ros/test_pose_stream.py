"""Poses at camera rate from the node in its own process: over DDS, in order, lost and found again."""

from __future__ import annotations

import numpy as np
import pytest
from camera import FRAME, stamp_of
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import Odometry
from rig import PATIENT, running
from tf2_msgs.msg import TFMessage

from dust3r_ros.ros.convert import pose_of, transform_stamped
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.qos import latched, reliable

IMAGES, HIDDEN = 30, 6
BACK = 16  # images, in which the farthest board moves by 66 pixels and the nearest by 150: too far to be followed
BEGINNING = 14  # images; the node is done with them, and its map has depth, before the others come
SPARSE = (*PATIENT, "pose_max_age:=60.0")


class Heard:
    """Odometry, and the transforms of the map's children in the order in which they came."""

    def __init__(self, rig) -> None:
        self.odometry: list[Odometry] = []
        self.transforms: list[tuple[str, int]] = []
        rig.recorder.create_subscription(Odometry, f"{rig.namespace}/dust3r/odom", self.odometry.append, reliable(1000))
        rig.recorder.create_subscription(TFMessage, f"{rig.namespace}/tf", self._on_tf, reliable(1000))
        rig.wait(lambda: rig.recorder.count_publishers(f"{rig.namespace}/dust3r/odom"))

    def _on_tf(self, message: TFMessage) -> None:
        self.transforms += [(sent.child_frame_id, stamp_ns_of(sent.header)) for sent in message.transforms]

    def assert_in_order(self, child: str) -> None:
        assert {name for name, _ in self.transforms} == {child}
        stamps = [stamp for _, stamp in self.transforms]
        assert stamps == sorted(set(stamps))


def walk(rig, images: int) -> None:
    rig.film(f"{rig.namespace}/image", ["rgb8"] * BEGINNING)
    rig.wait(lambda: rig.recorded.status.keyframes > 1)
    rig.film(f"{rig.namespace}/image", ["rgb8"] * (images - BEGINNING), "--from", str(BEGINNING))


def test_every_image_has_a_pose_and_a_lost_path_is_found_again(start):
    with running(start(*SPARSE)) as rig:
        heard = Heard(rig)
        walk(rig, IMAGES)
        recorded = rig.recorded
        rig.wait(lambda: recorded.status.tracking_state == "tracking" and len(heard.odometry) == len(recorded.poses))
        status = recorded.status
        assert 3 <= status.keyframes < 0.7 * IMAGES
        assert len(recorded.poses) > status.keyframes + 5
        assert status.poses + status.images_initialising + status.images_lost + status.images_stale == IMAGES
        assert status.images_lost == status.images_stale == status.relocalisations == 0
        assert status.tracking_points >= status.tracking_inliers >= 15
        assert status.pose_latency_ms > 0
        heard.assert_in_order(FRAME)
        assert recorded.disagreements() == []
        assert_on_the_way(recorded.poses)
        assert_moving(heard.odometry)

        rig.film(f"{rig.namespace}/image", ["snow"] * HIDDEN, "--from", str(IMAGES))
        rig.wait(lambda: recorded.status.tracking_state == "lost" and "tracking: lost" in " ".join(rig.said))
        assert recorded.status.images_lost == HIDDEN
        assert rig.diagnostics["tracking"].level == DiagnosticStatus.WARN
        for first in (IMAGES + HIDDEN, IMAGES + HIDDEN + 4):  # the second time its keyframe has been aligned
            back = ("--from", str(first), "--at", str(IMAGES - 4))
            rig.film(f"{rig.namespace}/image", ["rgb8"] * 4, *back)
        rig.wait(lambda: recorded.status.relocalisations >= 1 and recorded.status.tracking_state == "relocalised")
        rig.wait(lambda: rig.diagnostics["tracking"].level == DiagnosticStatus.OK)
        heard.assert_in_order(FRAME)


def test_after_a_cover_the_first_image_of_a_place_far_from_the_last_has_a_pose(start):
    with running(start(*SPARSE)) as rig:
        walk(rig, IMAGES)
        rig.film(f"{rig.namespace}/image", ["snow"] * 3, "--from", str(IMAGES))  # no keyframe is asked for yet
        rig.wait(lambda: rig.recorded.status.tracking_state == "lost")
        first = IMAGES + 3
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 2, "--from", str(first), "--at", str(IMAGES - BACK))
        rig.wait(lambda: stamp_of(first) in rig.recorded.poses)
        rig.wait(lambda: rig.recorded.status.relocalisations == 1)
        assert rig.recorded.status.images_lost == 3
        poses = rig.recorded.poses
        there, before = poses[stamp_of(first)][:3, 3], poses[stamp_of(IMAGES - BACK)][:3, 3]
        way = np.linalg.norm(poses[stamp_of(IMAGES - 1)][:3, 3] - before)
        assert np.linalg.norm(there - before) < 0.1 * way


def assert_on_the_way(poses: dict[int, np.ndarray]) -> None:
    """The camera moves evenly along x."""
    stamps = np.array(sorted(poses))
    places = np.array([poses[stamp][:3, 3] for stamp in stamps])
    way, passed = places[-1] - places[0], (stamps - stamps[0]) / (stamps[-1] - stamps[0])
    np.testing.assert_allclose(places @ way / (way @ way) - places[0] @ way / (way @ way), passed, atol=0.05)


def assert_moving(odometry: list[Odometry]) -> None:
    """Frames, covariances and speed of the messages; the speed is the way's, whatever its unit."""
    first, last = (pose_of(message.pose.pose)[0, 3] for message in (odometry[0], odometry[-1]))
    seconds = 1e-9 * (stamp_ns_of(odometry[-1].header) - stamp_ns_of(odometry[0].header))
    speeds = [m.twist.twist.linear.x for m in odometry if m.twist.covariance[0] < 1e6]
    assert np.median(speeds) == pytest.approx((last - first) / seconds, rel=0.15)
    assert {(m.header.frame_id, m.child_frame_id) for m in odometry} == {("map", FRAME)}
    tracked = [m for m in odometry if m.pose.covariance[0] < 1e6]
    assert len(tracked) > 5
    assert all(np.linalg.eigvalsh(m.pose.covariance.reshape(6, 6)).min() > 0 for m in tracked)


def test_below_a_robot_the_base_gets_the_poses_and_has_one_parent(start):
    with running(start(*SPARSE, "tf_mode:=base")) as rig:
        heard = Heard(rig)
        static = rig.recorder.create_publisher(TFMessage, f"{rig.namespace}/tf_static", latched(1))
        mount = np.array([[0.0, 0.0, 1.0, 0.2], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0]])
        static.publish(TFMessage(transforms=[transform_stamped(stamp_of(0), "base_link", FRAME, mount)]))
        rig.wait(lambda: static.get_subscription_count() > 0)
        walk(rig, IMAGES - 8)
        rig.wait(lambda: len(heard.odometry) == len(rig.recorded.poses) > rig.recorded.status.keyframes)
        heard.assert_in_order("base_link")
        assert {m.child_frame_id for m in heard.odometry} == {"base_link"}
        assert len(heard.transforms) == len(heard.odometry)
        moved = [pose_of(message.pose.pose)[:3, 3] for message in (heard.odometry[0], heard.odometry[-1])]
        way = moved[1] - moved[0]  # the image's x is the robot's right
        assert way[1] < -0.95 * np.linalg.norm(way)


def test_without_tracking_each_keyframe_has_a_pose_and_no_other_image(start):
    with running(start(*SPARSE, "tracking.enabled:=false")) as rig:
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 12, "--period", "0.1")
        rig.wait(lambda: len(rig.recorded.poses) == rig.recorded.status.keyframes > 1)
        assert rig.recorded.status.tracking_state == "off"
        assert rig.recorded.status.poses == 0
        assert sorted(rig.recorded.poses) == sorted(rig.recorded.transforms)
