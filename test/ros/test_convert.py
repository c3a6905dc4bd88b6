"""The package's values as ROS messages, and back."""

import array
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2, PointField

from dust3r_ros.data import Intrinsics, StageTimes
from dust3r_ros.errors import RosError
from dust3r_ros.geometry import make_pose, transform_points
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.predictor import PredictorInfo
from dust3r_ros.ros.convert import (
    PathBuilder,
    camera_info_message,
    cloud_message,
    cloud_of,
    depth_message,
    depth_of,
    pose_of,
    pose_stamped,
    state_name,
    status_message,
    time_of,
    transform_of,
    transform_stamped,
)
from dust3r_ros.ros.decode import intrinsics_of, stamp_ns_of
from dust3r_ros.ros.statistics import Drop, Snapshot

STAMP_NS = 1_700_000_000_123_456_789


def cloud(count: int = 100) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.random(count, dtype=np.float32),
    )


def pose(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_pose(Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3))


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_time_is_exact_to_the_nanosecond(stamp_ns):
    assert stamp_ns_of(SimpleNamespace(stamp=time_of(stamp_ns))) == stamp_ns


@pytest.mark.parametrize("seed", range(5))
def test_pose_and_transform_survive_the_way_there_and_back(seed):
    sent = pose(seed)
    stamped, moved = pose_stamped(STAMP_NS, "map", sent), transform_stamped(STAMP_NS, "map", "camera", sent)
    np.testing.assert_allclose(pose_of(stamped.pose), sent, atol=1e-12)
    np.testing.assert_allclose(transform_of(moved.transform), sent, atol=1e-12)
    assert (stamped.header.frame_id, moved.header.frame_id, moved.child_frame_id) == ("map", "map", "camera")
    assert stamp_ns_of(stamped.header) == stamp_ns_of(moved.header) == STAMP_NS


def test_a_transform_takes_the_cameras_points_to_the_map():
    sent = make_pose(Rotation.from_euler("y", 90, degrees=True).as_matrix(), np.array([1.0, 2.0, 3.0]))
    received = transform_of(transform_stamped(0, "map", "camera", sent).transform)
    ahead = np.array([0.0, 0.0, 5.0])  # of a camera that looks along the map's x
    np.testing.assert_allclose(transform_points(received, ahead), [6.0, 2.0, 3.0], atol=1e-12)


def test_a_cloud_has_five_fields_of_four_bytes_and_colour_as_pcl_packs_it():
    one = PointCloud(
        np.array([[1.0, 2.0, 3.0]], np.float32), np.array([[0x11, 0x22, 0x33]], np.uint8), np.array([0.5], np.float32)
    )
    message = cloud_message(STAMP_NS, "map", one)
    assert [(f.name, f.offset, f.datatype) for f in message.fields] == [
        (name, 4 * place, PointField.FLOAT32) for place, name in enumerate(["x", "y", "z", "rgb", "confidence"])
    ]
    assert (message.width, message.height, message.point_step, message.row_step) == (1, 1, 20, 20)
    expected = np.array([1, 2, 3], "<f4").tobytes() + bytes([0x33, 0x22, 0x11, 0]) + np.array([0.5], "<f4").tobytes()
    assert bytes(message.data) == expected
    assert isinstance(message.data, array.array)  # anything else goes through rclpy value by value


@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_cloud_survives_the_way_there_and_back(count):
    sent = cloud(count)
    received = cloud_of(cloud_message(STAMP_NS, "map", sent))
    np.testing.assert_array_equal(received.points, sent.points)
    np.testing.assert_array_equal(received.colours, sent.colours)
    np.testing.assert_array_equal(received.confidence, sent.confidence)


def test_a_strangers_cloud_without_colour_is_grey_and_one_without_points_is_refused():
    fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate("xyz")]
    data = np.arange(6, dtype="<f4").tobytes()
    received = cloud_of(PointCloud2(height=1, width=2, point_step=12, row_step=24, fields=fields, data=data))
    np.testing.assert_array_equal(received.points, [[0, 1, 2], [3, 4, 5]])
    assert (received.colours == 128).all()
    assert (received.confidence == 1).all()
    with pytest.raises(RosError, match="must have the fields x, y and z, got x, y"):
        cloud_of(PointCloud2(height=1, width=1, point_step=12, row_step=12, fields=fields[:2], data=data[:12]))


def test_camera_info_is_for_the_images_size_with_centres_at_integers():
    k = Intrinsics(500.0, 510.0, 320.0, 240.0, 640, 480)
    message = camera_info_message(STAMP_NS, "camera", k)
    assert list(message.k) == [500, 0, 319.5, 0, 510, 239.5, 0, 0, 1]
    assert list(message.p) == [500, 0, 319.5, 0, 0, 510, 239.5, 0, 0, 0, 1, 0]
    assert (message.width, message.height, message.header.frame_id) == (640, 480, "camera")
    assert intrinsics_of(message) == k


def test_depth_is_nan_where_unknown():
    depth = np.array([[1.5, 0.0, 2.5]], np.float32)
    message = depth_message(STAMP_NS, "camera", depth)
    assert (message.encoding, message.height, message.width, message.step) == ("32FC1", 1, 3, 12)
    np.testing.assert_array_equal(depth_of(message), [[1.5, np.nan, 2.5]])
    with pytest.raises(RosError, match="must be 32FC1, got 'mono8'"):
        depth_of(Image(encoding="mono8"))


def test_a_path_is_the_newest_estimate_and_reuses_what_did_not_change():
    builder = PathBuilder("map")
    first, second, moved = pose(1), pose(2), pose(3)
    before = builder.build(20, [(10, first), (20, second)])
    after = builder.build(30, [(10, first), (20, moved), (30, pose(4))])
    assert [stamp_ns_of(p.header) for p in after.poses] == [10, 20, 30]
    assert after.poses[0] is before.poses[0]
    np.testing.assert_allclose(pose_of(after.poses[1].pose), moved, atol=1e-12)
    assert stamp_ns_of(after.header) == 30
    assert builder.build(30, []).poses == []


@pytest.mark.parametrize(
    ("snapshot", "paused", "state"),
    [
        (Snapshot(), False, "waiting for images"),
        (Snapshot(received=1), False, "starting"),
        (Snapshot(received=9, keyframes=2), False, "mapping"),
        (Snapshot(received=9, keyframes=2, lost=True), False, "lost"),
        (Snapshot(received=9, keyframes=2, lost=True), True, "paused"),
    ],
)
def test_the_state_in_words(snapshot, paused, state):
    assert state_name(snapshot, paused=paused) == state


def test_status_has_every_count_and_time():
    newest = SimpleNamespace(
        times=StageTimes(1.0, 2.0, 3.0, 4.0), intrinsics=Intrinsics.from_focal(500.0, 640, 480), focal_spread_px=2.5,
        edge_residual=0.25,
    )  # fmt: skip
    dropped = Counter({drop: number for number, drop in enumerate(Drop, start=1)})
    snapshot = Snapshot(STAMP_NS, 50, 7, dropped, 0.5, 125.0, newest)
    info = PredictorInfo("tiny", True, "Apache-2.0", "cpu")
    status = status_message("map", snapshot, info, state="mapping", queue_length=3, map_points=1000, metric=True)
    assert (status.model, status.trained, status.licence, status.device) == ("tiny", True, "Apache-2.0", "cpu")
    assert (status.frames_received, status.keyframes, status.queue_length, status.map_points) == (50, 7, 3, 1000)
    names = ("unseen", "not_needed", "blurred", "queue_full", "invalid", "no_calibration", "no_transform", "failed")
    assert [getattr(status, f"dropped_{name}") for name in names] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (status.encode_ms, status.decode_ms, status.align_ms, status.fuse_ms) == (1, 2, 3, 4)
    assert (status.focal_px, status.focal_spread_px, status.metric, status.edge_residual) == (500, 2.5, True, 0.25)
    assert (status.keyframe_rate, status.latency_ms, stamp_ns_of(status.header)) == (0.5, 125, STAMP_NS)
