"""Where the map hangs on TF: the arithmetic, and the node among a robot's transforms over DDS."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from camera import START_NS, STEP_NS, STEP_X, stamp_of
from diagnostic_msgs.msg import DiagnosticStatus
from layers import BOARDS
from nav_msgs.msg import Odometry
from rig import SMALL, running
from scipy.spatial.transform import Rotation
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from dust3r_ros.config import NodeConfig
from dust3r_ros.geometry import invert_pose, make_pose
from dust3r_ros.options import make_config
from dust3r_ros.ros.convert import header_of, pose_message, transform_stamped
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.qos import latched, reliable
from dust3r_ros.ros.tf_buffer import TransformMissingError
from dust3r_ros.srv import SaveMap

# The camera looks along the base's x axis, 0.2 in front of it and 0.5 above (REP-103).
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
BASE_TO_CAMERA = make_pose(OPTICAL, np.array([0.2, 0.0, 0.5]))


class Robot:
    """What a listener says, without ROS: odom -> base moves along y, base -> camera is fixed."""

    def __init__(self, parents: dict[str, str] | None = None) -> None:
        self.parents = parents or {}

    def lookup(self, target: str, source: str, stamp_ns: int, timeout_s: float) -> np.ndarray:
        if stamp_ns < 0:
            raise TransformMissingError("too old")
        base = make_pose(np.eye(3), np.array([0.0, 1e-9 * stamp_ns, 0.0]))
        return {"base_link": BASE_TO_CAMERA, "odom": base @ BASE_TO_CAMERA}[target]

    def parent_of(self, child: str) -> str:
        return self.parents.get(child, "")


def frames(mode: str, parents: dict[str, str] | None = None) -> MapFrames:
    return MapFrames(make_config(NodeConfig, {"tf_mode": mode}), Robot(parents))


def camera_pose(x: float) -> np.ndarray:
    return make_pose(Rotation.from_euler("y", 20 * x, degrees=True).as_matrix(), np.array([x, 0.1 * x, 0.0]))


def test_mode_camera_publishes_the_world_itself():
    tree = frames("camera")
    known = tree.camera_in_reference("optical", 5, 0.0)
    tree.anchor(known, np.eye(4))
    edge = tree.edge("optical", camera_pose(2.0), known)
    assert edge.child == "optical"
    np.testing.assert_array_equal(edge.pose, camera_pose(2.0))


@pytest.mark.parametrize("mode", ["base", "odom"])
def test_the_map_begins_where_the_reference_was_and_the_chain_ends_at_the_camera(mode):
    tree = frames(mode)
    first = tree.camera_in_reference("optical", 0, 0.0)
    tree.anchor(first, np.eye(4))
    start = tree.edge("optical", np.eye(4), first)
    assert start.child == {"base": "base_link", "odom": "odom"}[mode]
    np.testing.assert_allclose(start.pose, np.eye(4), atol=1e-12)
    later = tree.camera_in_reference("optical", 3_000_000_000, 0.0)
    edge = tree.edge("optical", camera_pose(2.0), later)
    np.testing.assert_allclose(edge.pose @ later, tree.map.from_world.apply_to_pose(camera_pose(2.0)), atol=1e-12)
    # z of the map is the robot's up: the image's down (y) points to -z.
    np.testing.assert_allclose(tree.map.from_world.rotation @ [0.0, 1.0, 0.0], [0.0, 0.0, -1.0], atol=1e-12)


def test_in_mode_base_the_map_is_level_where_odometry_tells_what_is_and_has_the_bases_heading():
    tilted = Rotation.from_euler("zyx", [50, 10, 20], degrees=True).as_matrix()
    tree = frames("base")
    known = tree.camera_in_reference("optical", 0, 0.0)
    tree.anchor(known, np.eye(4), make_pose(tilted, np.array([4.0, 5.0, 6.0])) @ known)
    base = tree.edge("optical", np.eye(4), known).pose
    np.testing.assert_allclose(base[:3, 3], 0.0, atol=1e-12)  # the map begins at the base
    np.testing.assert_allclose(base[2, :3], tilted[2], atol=1e-12)  # which leans as it does in odometry
    assert abs(np.arctan2(base[1, 0], base[0, 0])) < 1e-12  # and looks along x


def test_a_missing_transform_is_a_problem_and_never_the_identity():
    tree = frames("base")
    assert tree.camera_in_reference("optical", -1, 0.0) is None
    assert tree.problem == "transform base_link -> optical is missing: too old"
    assert tree.edge("optical", np.eye(4), None) is None


def test_a_camera_that_is_well_placed_does_not_hide_the_problem_of_another():
    tree = frames("base")
    known = tree.camera_in_reference("optical", 0, 0.0)
    for camera in ("other", "third"):
        assert tree.camera_in_reference(camera, -1, 0.0) is None
    assert tree.edge("optical", np.eye(4), known) is not None
    assert tree.problem == "transform base_link -> other is missing: too old"
    tree.edge("other", np.eye(4), known)
    assert tree.problem == "transform base_link -> third is missing: too old"
    tree.edge("third", np.eye(4), known)
    assert tree.problem == ""


@pytest.mark.parametrize("mode", ["camera", "base", "odom"])
def test_the_scale_comes_from_odometry_in_every_mode_and_is_not_waited_for(mode):
    tree = frames(mode)
    known = tree.camera_in_reference("optical", 2_000_000_000, 0.0)
    moved = tree.camera_in_odometry("optical", 2_000_000_000, known)
    np.testing.assert_allclose(moved[:3, 3], [0.2, 2.0, 0.5])
    assert tree.camera_in_odometry("optical", -1, None) is None
    assert tree.problem == ""
    assert MapFrames(NodeConfig(), None).camera_in_odometry("optical", 0, np.eye(4)) is None


@pytest.mark.parametrize(("mode", "child"), [("camera", "optical"), ("base", "base_link"), ("odom", "odom")])
def test_a_frame_that_hangs_from_another_gets_no_second_parent(mode, child):
    tree = frames(mode, {child: "elsewhere"})
    known = tree.camera_in_reference("optical", 0, 0.0)
    assert tree.edge("optical", np.eye(4), known) is None
    assert f"{child} has the parent elsewhere on TF, map -> {child} is not published" in tree.problem
    assert frames(mode, {"another": "elsewhere"}).edge("optical", np.eye(4), known) is not None


# Over DDS.


class Transforms:
    """A robot's publishers of transforms."""

    def __init__(self, rig) -> None:
        self.static = rig.recorder.create_publisher(TFMessage, f"{rig.namespace}/tf_static", latched(1))
        self.moving = rig.recorder.create_publisher(TFMessage, f"{rig.namespace}/tf", reliable(100))
        rig.wait(lambda: self.static.get_subscription_count() and self.moving.get_subscription_count() >= 2)

    def mount(self, parent: str = "base_link") -> None:
        sent = transform_stamped(START_NS, parent, "camera_optical", BASE_TO_CAMERA)
        self.static.publish(TFMessage(transforms=[sent]))

    def odometry(self, place: int, parent: str = "odom") -> None:
        sent = transform_stamped(stamp_of(place), parent, "base_link", base_pose(place))
        self.moving.publish(TFMessage(transforms=[sent]))


def odometry_of(place: int, pose: np.ndarray) -> Odometry:
    message = Odometry(header=header_of(stamp_of(place), "odom"), child_frame_id="base_link")
    message.pose.pose = pose_message(pose)
    return message


def base_pose(place: int) -> np.ndarray:
    """The base moves to its right as the camera does, and drifts upwards."""
    return make_pose(np.eye(3), np.array([0.0, -STEP_X * place, 0.01 * place]))


METRES = 3.0  # odometry says that the rig's world is so many times as large as `layers` has it


@pytest.mark.parametrize(("mode", "source"), [("odom", "TF"), ("base", "odometry")])
def test_odometry_makes_path_cloud_depth_and_tf_metric_and_status_and_diagnostics_say_so(start, mode, source):
    odometry = "true" if source == "odometry" else "false"
    rig = start(*SMALL, f"tf_mode:={mode}", f"use_odometry:={odometry}", "intrinsics:=given", "map_period:=60.0",
                "transform_timeout:=20.0")  # fmt: skip
    film = partial(rig.film, f"{rig.namespace}/image")
    with running(rig):
        transforms = Transforms(rig)
        transforms.mount()
        publisher = rig.recorder.create_publisher(Odometry, f"{rig.namespace}/odom", reliable(10))
        moved = [make_pose(np.eye(3), np.array([0.0, -METRES * STEP_X * place, 0.0])) for place in range(9)]
        if source == "TF":
            sent = [transform_stamped(stamp_of(place), "odom", "base_link", pose) for place, pose in enumerate(moved)]
            transforms.moving.publish(TFMessage(transforms=sent))
        else:
            rig.keep_sending(publisher, *(odometry_of(place, pose) for place, pose in enumerate(moved)))
        film(["rgb8"] * 3, "--info", f"{rig.namespace}/camera_info")
        rig.wait(lambda: "no metric scale" in rig.diagnostics["frames"].message)
        assert not rig.recorded.status.metric
        film(["rgb8"] * 6, "--info", f"{rig.namespace}/camera_info", "--from", "3")
        rig.wait(lambda: len(rig.recorded.path) == 9 and stamp_of(8) in rig.recorded.transforms)
        rig.wait(lambda: rig.diagnostics["frames"].level == DiagnosticStatus.OK)
        assert rig.recorded.status.metric
        centres = np.array([pose[:3, 3] for _, pose in rig.recorded.path])
        np.testing.assert_allclose(rig.recorded.path[0][1], BASE_TO_CAMERA, atol=1e-9)
        np.testing.assert_allclose(np.diff(centres, axis=0)[:, 1], -METRES * STEP_X, rtol=0.1)
        assert np.linalg.norm(centres[-1] - centres[0]) == pytest.approx(METRES * STEP_X * 8, rel=0.03)
        # The map came with the new size, though its period is a minute.
        assert rig.recorded.cloud_stamp_ns >= stamp_of(7)
        wall = np.percentile(rig.recorded.cloud.points[:, 0] - 0.2, 75)
        assert wall == pytest.approx(METRES * BOARDS[0][0], rel=0.1)
        assert np.nanpercentile(rig.recorded.depths[stamp_of(8)], 75) == pytest.approx(METRES * BOARDS[0][0], rel=0.1)
        newest = rig.recorded.transforms[stamp_of(8)]
        way = 0.0 if mode == "odom" else METRES * STEP_X * 8  # odometry does not drift here: map and odom coincide
        np.testing.assert_allclose(newest[:3, 3], [0.0, -way, 0.0], atol=0.08)
        assert "the map is in metres by" in rig.log()
        saved = rig.call(SaveMap, "save_map", SaveMap.Request(path="metric"))
        assert saved.success
        assert json.loads((rig.folder / "metric" / "cameras.json").read_text())["scale"] == "metric (m)"


def test_a_base_that_leans_does_not_tilt_the_map(start):
    leaning = Rotation.from_euler("xy", [15, 10], degrees=True).as_matrix()
    rig = start(*SMALL, "tf_mode:=base", "use_odometry:=true", "transform_timeout:=20.0")
    with running(rig):
        Transforms(rig).mount()
        publisher = rig.recorder.create_publisher(Odometry, f"{rig.namespace}/odom", reliable(10))
        poses = [make_pose(leaning, np.array([3.0, 0.0, 0.0])) for _ in range(3)]
        rig.keep_sending(publisher, *(odometry_of(place, pose) for place, pose in enumerate(poses)))
        rig.wait(lambda: publisher.get_subscription_count() > 0)
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)
        rig.wait(rig.settled)
        base = rig.recorded.transforms[START_NS]
        np.testing.assert_allclose(base[2, :3], leaning[2], atol=1e-9)
        np.testing.assert_allclose(base[:3, 3], 0.0, atol=1e-9)


def children(rig) -> set[str]:
    return rig.recorded.camera_frames


def test_in_mode_base_images_wait_for_the_mount_which_is_named_and_then_the_base_moves_to_its_right(start):
    rig = start(*SMALL, "tf_mode:=base", "transform_timeout:=0.1")
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 2)
        assert rig.recorded.status.dropped_no_transform == 2
        rig.wait(lambda: rig.diagnostics["frames"].level == DiagnosticStatus.WARN)
        assert rig.diagnostics["frames"].message == (
            "transform base_link -> camera_optical is missing: frame base_link and frame camera_optical not on TF"
        )
        Transforms(rig).mount()
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3, "--from", "2")
        rig.wait(rig.settled)
        assert children(rig) == {"base_link"}
        first, *_, last = (rig.recorded.transforms[stamp] for stamp in sorted(rig.recorded.transforms))
        np.testing.assert_allclose(first, np.eye(4), atol=1e-9)
        way = last[:3, 3]
        assert way[1] < -0.99 * np.linalg.norm(way)  # to the right is -y
        # The path is the cameras', in the same map: the first is where the mount says.
        np.testing.assert_allclose(rig.recorded.path[0][1], BASE_TO_CAMERA, atol=1e-9)
        np.testing.assert_allclose(rig.recorded.path[-1][1], last @ BASE_TO_CAMERA, atol=1e-9)
        assert rig.recorded.newest_points.points[:, 0].min() > 0.2  # what is seen lies ahead, along x


@pytest.mark.parametrize("source", ["TF", "odometry"])
def test_in_mode_odom_the_chain_from_map_over_odom_ends_at_the_cameras_pose(start, source):
    odometry = "true" if source == "odometry" else "false"
    rig = start(*SMALL, "tf_mode:=odom", "transform_timeout:=20.0", f"use_odometry:={odometry}")
    with running(rig):
        transforms = Transforms(rig)
        transforms.mount()
        if source == "TF":
            for place in range(4):
                transforms.odometry(place)
        else:
            publisher = rig.recorder.create_publisher(Odometry, f"{rig.namespace}/odom", reliable(10))
            rig.keep_sending(publisher, *(odometry_of(place, base_pose(place)) for place in range(4)))
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 4)
        rig.wait(rig.settled)
        ours = {stamp: pose for stamp, pose in rig.recorded.transforms.items() if stamp in dict(rig.recorded.path)}
        assert sorted(ours) == [stamp_of(place) for place in range(4)]
        assert "odom" in children(rig)
        for place in range(4):
            chain = ours[stamp_of(place)] @ base_pose(place) @ BASE_TO_CAMERA
            np.testing.assert_allclose(rig.recorded.poses[stamp_of(place)], chain, atol=1e-9)
        np.testing.assert_allclose(ours[START_NS], np.eye(4), atol=1e-9)


def test_a_late_transform_is_waited_for_and_its_absence_holds_back_only_tf(start):
    rig = start(*SMALL, "tf_mode:=odom", "transform_timeout:=1.0")
    with running(rig):
        transforms = Transforms(rig)
        transforms.mount()
        transforms.odometry(0)
        transforms.odometry(1)
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)  # nothing is known of the third's time
        rig.wait(rig.settled)
        assert len(rig.recorded.path) == 3
        assert sorted(rig.recorded.transforms) == [stamp_of(0), stamp_of(1)]
        known = f"odom -> base_link is known from {1e-9 * START_NS:.3f} s to {1e-9 * (START_NS + STEP_NS):.3f} s"
        rig.wait(lambda: known in rig.diagnostics["frames"].message)
        assert rig.diagnostics["frames"].level == DiagnosticStatus.WARN


@pytest.mark.parametrize(("mode", "advice"), [("camera", "tf_mode base or odom"), ("base", "tf_mode odom")])
def test_a_frame_of_the_robots_tree_never_gets_a_second_parent(start, mode, advice):
    rig = start(*SMALL, f"tf_mode:={mode}")
    with running(rig):
        transforms = Transforms(rig)
        transforms.mount()
        transforms.odometry(0)
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 2)
        assert rig.recorded.status.keyframes == 2  # the map is made
        assert rig.recorded.transforms == {}
        child, parent = ("camera_optical", "base_link") if mode == "camera" else ("base_link", "odom")
        rig.wait(lambda: rig.diagnostics["frames"].level == DiagnosticStatus.WARN)
        message = rig.diagnostics["frames"].message
        assert message.startswith(f"{child} has the parent {parent} on TF, map -> {child} is not published")
        assert advice in message


@pytest.mark.parametrize(("on_jump", "keyframes"), [("reset", 3), ("reanchor", 8)])
def test_a_recording_that_starts_again_begins_a_new_map_or_goes_on_in_the_old_one(start, on_jump, keyframes):
    rig = start(*SMALL, f"on_time_jump:={on_jump}")
    topic = f"{rig.namespace}/image"
    with running(rig):
        rig.film(topic, ["rgb8"] * 4, "--from", "20")
        rig.wait(rig.settled)
        before = rig.recorded.path
        rig.publish(topic, ["rgb8"] * 4, "--from", "0", "--at", "20")  # the same places, two seconds earlier
        # A new map forgets what waited, too: an image that came with the first one may be among it.
        fewest = keyframes - 1 if on_jump == "reset" else keyframes
        rig.wait(lambda: fewest <= rig.recorded.status.keyframes <= keyframes and not rig.recorded.in_flight())
        rig.wait(lambda: len(rig.recorded.path) == rig.recorded.status.keyframes)
        assert "the images went back in time by 2.3 s" in rig.log()
        kept = rig.recorded.path[: len(before)] if on_jump == "reanchor" else []
        assert [stamp for stamp, _ in kept] == ([stamp for stamp, _ in before] if on_jump == "reanchor" else [])
        assert rig.call(Trigger, "reset", Trigger.Request()).success


def test_the_inverse_of_the_mount_is_used_and_not_the_mount():  # guards the tests above against symmetry
    assert not np.allclose(BASE_TO_CAMERA, invert_pose(BASE_TO_CAMERA))
