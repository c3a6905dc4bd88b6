"""Poses of images as messages: in order, whoever publishes them, with covariance and speed."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.config import MapConfig, NodeConfig
from dust3r_ros.data import Intrinsics, ViewEstimate
from dust3r_ros.geometry import make_pose
from dust3r_ros.options import make_config
from dust3r_ros.ros import publishers
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.convert import pose_of
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.map_frame import MapFrame, TfEdge
from dust3r_ros.ros.odometry import OdometryBuilder, PosedImage
from dust3r_ros.ros.pose_stream import PoseStream
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.tf_buffer import TransformMissingError
from dust3r_ros.ros.tracking_statistics import PoseFate, TrackingStatistics
from dust3r_ros.tracking import TrackedPose, TrackingState

STEP_NS = 100_000_000


class Outlet:
    """A publisher that everybody reads."""

    readers = 1

    def __init__(self) -> None:
        self.sent: list = []
        self.publish = self.sendTransform = self.sent.append

    def get_subscription_count(self) -> int:
        return self.readers

    def stamps(self) -> list[int]:
        return [stamp_ns_of(message.header) // STEP_NS for message in self.sent]


class Outputs:
    def __init__(self) -> None:
        self.outlets: dict[str, Outlet] = {}

        def create(message: type, name: str, qos: object, **_: object) -> Outlet:
            return self.outlets.setdefault(name.removeprefix("~/"), Outlet())

        node = SimpleNamespace(create_publisher=create, context=SimpleNamespace(ok=lambda: True))
        self.publishers = Publishers(node)
        self.publishers._broadcaster = self.tf = Outlet()
        self.publishers.begin(MapFrame("map", publish_tf=True))


class Odometry:
    """odom -> base is known up to a time; base -> camera is fixed."""

    def __init__(self) -> None:
        self.until_ns = 0

    def lookup(self, target, source, stamp_ns, timeout_s):
        if target == "odom" and stamp_ns > self.until_ns:
            raise TransformMissingError("not yet")
        return make_pose(np.eye(3), np.array([0.0, 0.0, 1.0]))

    def parent_of(self, child):
        return ""


class Blind:
    """A tracker that is lost, unless it ``finds``."""

    def __init__(self) -> None:
        self.finds, self.lost_since_ns = False, None

    def look(self, image, stamp_ns, **_) -> TrackedPose:
        if self.finds:
            self.lost_since_ns = None
            return TrackedPose(stamp_ns, TrackingState.RELOCALISED, 50, 40, np.eye(4))
        self.lost_since_ns = stamp_ns if self.lost_since_ns is None else self.lost_since_ns
        return TrackedPose(stamp_ns, TrackingState.LOST)


def along_x(step: int) -> np.ndarray:
    return make_pose(np.eye(3), np.array([float(step), 0.0, 0.0]))


def image(step: int, frame: str = "camera", arrived: float = 0.0, covariance=None) -> PosedImage:
    return PosedImage(step * STEP_NS, TfEdge(frame, along_x(step)), arrived, covariance)


def frame(step: int, arrived: float = 1e12) -> Frame:
    return Frame("topic", "camera", np.zeros((2, 2, 3), np.uint8), step * STEP_NS, None, arrived)


def test_a_keyframe_that_is_done_late_does_not_bring_back_an_older_time():
    outputs = Outputs()
    for step, newer in ((1, True), (2, True), (3, True), (2, False), (3, False), (4, True)):
        posed = image(step)  # the keyframes of 2 and 3 are done after 3 was tracked
        outputs.publishers.transform(posed, posed.camera)
        assert outputs.publishers.pose(posed, posed.camera) is newer
    assert outputs.tf.stamps() == outputs.outlets["pose"].stamps() == outputs.outlets["odom"].stamps() == [1, 2, 3, 4]


def test_nothing_is_built_for_an_output_that_nobody_reads(monkeypatch):
    outputs = Outputs()
    for outlet in outputs.outlets.values():
        outlet.readers = 0
    for builder in ("cloud_message", "depth_message", "pose_stamped", "frusta_message"):
        monkeypatch.setattr(publishers, builder, lambda *_: pytest.fail("a message was built"))
    view = ViewEstimate(along_x(1), *np.ones((2, 3, 4), np.float32), Intrinsics.from_focal(50.0, 4, 3))
    pixels = SimpleNamespace(pixels=np.zeros((3, 4, 3), np.uint8))
    keyframe = SimpleNamespace(stamp_ns=STEP_NS, image=pixels)
    update = SimpleNamespace(keyframe=keyframe, view=view, intrinsics=view.intrinsics)
    outputs.publishers.keyframe(update, "camera", MapConfig())
    assert outputs.publishers.pose(image(1), image(1).camera)
    assert not outputs.publishers.due(0.0)
    assert {name for name, outlet in outputs.outlets.items() if outlet.sent} == {"camera_info"}  # small, and latched


def test_each_camera_has_its_own_order_and_a_shared_body_one():
    outputs = Outputs()
    for step, name in ((2, "left"), (1, "right"), (3, "right")):
        posed = image(step, name)
        assert outputs.publishers.pose(posed, posed.camera)
        outputs.publishers.transform(posed, TfEdge("base_link", posed.camera.pose))
    assert outputs.outlets["pose"].stamps() == [2, 1, 3]
    assert outputs.tf.stamps() == [2, 3]


def test_when_time_goes_back_what_came_before_is_not_published_any_more():
    outputs = Outputs()
    outputs.publishers.pose(image(50, arrived=0.0), image(50).camera)
    outputs.publishers.time_began_anew()
    assert not outputs.publishers.pose(image(51, arrived=0.0), image(51).camera)
    assert outputs.publishers.pose(image(1, arrived=1e12), image(1).camera)
    assert outputs.outlets["pose"].stamps() == [50, 1]


def test_odometry_has_the_speed_in_the_bodys_own_axes():
    turned = Rotation.from_euler("z", 90, degrees=True)
    builder = OdometryBuilder("map")
    for step in (0, 1):
        pose = make_pose((Rotation.from_euler("z", 5 * step, degrees=True) * turned).as_matrix(), along_x(step)[:3, 3])
        body = TfEdge("camera", pose)
        message = builder.build(PosedImage(step * STEP_NS, body, 0.0, 1e-4 * np.eye(6)), body)
    assert (message.header.frame_id, message.child_frame_id) == ("map", "camera")
    np.testing.assert_allclose(pose_of(message.pose.pose), pose, atol=1e-12)
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    forward = pose[:3, :3].T @ [10.0, 0.0, 0.0]  # 1 in 0.1 s
    np.testing.assert_allclose([linear.x, linear.y, linear.z], forward, atol=1e-9)
    np.testing.assert_allclose([angular.x, angular.y, angular.z], [0, 0, np.radians(50)], atol=1e-9)
    np.testing.assert_allclose(np.diag(message.twist.covariance.reshape(6, 6)), 2e-4 / 0.1**2)


def test_the_first_odometry_and_one_after_a_gap_do_not_know_the_speed():
    builder = OdometryBuilder("map")
    for step in (0, 100):
        message = builder.build(image(step), image(step).camera)
        assert message.twist.twist.linear.x == 0
        assert message.twist.covariance[0] == 1e6
        assert message.pose.covariance[0] == 1e6  # nothing is known of an aligned keyframe's


@pytest.mark.parametrize("jump", ["jumped", "cleared"])
def test_no_speed_spans_a_jump_of_the_map(jump):
    outputs, sure = Outputs(), 1e-6 * np.eye(6)

    def publish(step: int, arrived: float) -> None:
        posed = image(step, arrived=arrived, covariance=sure)
        assert outputs.publishers.pose(posed, posed.camera)

    before = time.monotonic()
    publish(0, before)
    publish(1, before)
    if jump == "jumped":
        outputs.publishers.jumped()
    else:
        outputs.publishers.cleared(0)
    publish(2, before)  # in the map before or in the one after: nobody knows
    publish(3, 1e12)
    publish(4, 1e12)
    known = [message.twist.covariance[0] < 1e6 for message in outputs.outlets["odom"].sent]
    assert known == [False, True, False, False, True]


def test_several_cameras_give_the_base_one_odometry_in_order_of_time():
    outputs = Outputs()
    for step, name in ((1, "left"), (1, "right"), (3, "left"), (2, "right"), (4, "right")):
        posed = image(step, name)
        assert outputs.publishers.pose(posed, TfEdge("base_link", posed.camera.pose))
    assert outputs.outlets["pose"].stamps() == [1, 1, 3, 2, 4]
    assert outputs.outlets["odom"].stamps() == [1, 3, 4]


def test_a_turn_of_the_camera_moves_what_carries_it():
    covariance = np.zeros((6, 6))
    covariance[5, 5] = 1e-4  # the turn about z: 0.01 rad
    base = TfEdge("base_link", make_pose(np.eye(3), np.array([2.0, 0.0, 0.0])))
    message = OdometryBuilder("map").build(image(0, covariance=covariance), base)
    spread = message.pose.covariance.reshape(6, 6)
    np.testing.assert_allclose(np.sqrt(np.diag(spread)), [0, 0.02, 0, 0, 0, 0.01], atol=1e-12)


def stream(mode: str, listener: Odometry, outputs: Outputs) -> tuple[PoseStream, TrackingStatistics]:
    config = make_config(NodeConfig, {"tf_mode": mode})
    frames, statistics = MapFrames(config, listener), TrackingStatistics()
    return PoseStream(config, frames, outputs.publishers, statistics, None, lambda camera: None), statistics


@pytest.mark.parametrize(("mode", "body"), [("camera", "camera"), ("base", "base_link"), ("odom", "camera")])
def test_odometry_is_the_bases_in_mode_base_and_else_the_cameras(mode, body):
    outputs, listener = Outputs(), Odometry()
    listener.until_ns = 10 * STEP_NS
    poses, _ = stream(mode, listener, outputs)
    assert poses._publish(frame(1), along_x(1), None)
    assert outputs.outlets["odom"].sent[0].child_frame_id == body
    assert outputs.tf.sent[0].child_frame_id == {"camera": "camera", "base": "base_link", "odom": "odom"}[mode]


def test_a_transform_that_waits_for_odometry_is_published_at_its_own_time_and_in_order():
    outputs, listener = Outputs(), Odometry()
    poses, _ = stream("odom", listener, outputs)
    for step in (1, 2, 3):
        assert poses._publish(frame(step), along_x(step), None)
    assert outputs.outlets["pose"].stamps() == [1, 2, 3]  # poses do not wait
    assert outputs.tf.stamps() == []
    listener.until_ns = 2 * STEP_NS
    poses._publish(frame(4), along_x(4), None)
    listener.until_ns = 10 * STEP_NS
    poses._publish(frame(5), along_x(5), None)
    assert outputs.tf.stamps() == [1, 2, 3, 4, 5]


def test_a_transform_that_waited_too_long_is_not_published():
    outputs, listener = Outputs(), Odometry()
    poses, _ = stream("odom", listener, outputs)
    now = time.monotonic()
    age = poses.config.pose_max_age
    for step, arrived in ((1, now - 2 * age), (2, now + 60)):
        poses._publish(frame(step, arrived), along_x(step), None)
    listener.until_ns = 10 * STEP_NS
    poses._publish(frame(3, now + 60), along_x(3), None)
    assert outputs.tf.stamps() == [2, 3]


def test_a_camera_that_stays_lost_where_keyframes_are_placed_asks_for_ever_fewer():
    outputs, asked = Outputs(), []
    poses, _ = stream("camera", Odometry(), outputs)
    poses._lost = lambda camera: asked.append(step)
    tracker = Blind()
    poses._trackers["topic"] = tracker
    for step in range(100):
        poses.look(frame(step), taken=False)
        if asked and asked[-1] == step:
            poses.keyframe(frame(step), along_x(step), np.eye(4))
    assert asked == [5, 15, 35, 75]  # tenths of a second
    tracker.finds = True
    poses.look(frame(100), taken=False)
    tracker.finds = False
    for step in range(101, 117):
        poses.look(frame(step), taken=False)
    assert asked[4:] == [106, 111, 116]  # none was placed: the map may know the next place


def test_what_would_come_too_late_is_counted_and_not_published():
    outputs = Outputs()
    poses, statistics = stream("camera", Odometry(), outputs)
    poses.look(frame(1, arrived=-1e9), taken=False)
    assert outputs.outlets["pose"].sent == []
    assert statistics.snapshot().counts == {PoseFate.STALE: 1}


def test_the_state_is_that_of_the_camera_that_is_worst_off_and_findings_again_are_counted():
    clock = iter(np.arange(0.0, 100.0, 0.5))
    statistics = TrackingStatistics(lambda: float(next(clock)))
    assert (statistics.snapshot().state, statistics.snapshot().word) == (None, "off")
    good = TrackedPose(0, TrackingState.TRACKING, 50, 40, np.eye(4))
    statistics.looked("left", good)
    statistics.looked("right", TrackedPose(0, TrackingState.LOST, 9, 3))
    found = statistics.snapshot()
    assert (found.state, found.points, found.inliers) == (TrackingState.LOST, 9, 3)
    statistics.looked("right", TrackedPose(1, TrackingState.RELOCALISED, 30, 20, np.eye(4)))
    for milliseconds in (10, 20, 90):
        statistics.note(PoseFate.PUBLISHED, 1e-3 * milliseconds)
    found = statistics.snapshot()
    assert (found.word, found.relocalisations) == ("relocalised", 1)
    assert found.counts == {PoseFate.LOST: 1, PoseFate.PUBLISHED: 3}
    assert (found.rate, found.latency_ms) == (pytest.approx(0.3), pytest.approx(20))
