"""Bags written of frames with truth, read back with rosbags and with this package."""

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores

from dust3r_ros.data import Intrinsics, PosedFrame
from dust3r_ros.errors import ExportError
from dust3r_ros.geometry import make_pose, rotation_from_quaternion
from dust3r_ros.ros.bag import open_recording
from dust3r_ros.ros.bag_writer import IMAGE_TOPIC, INFO_TOPIC, POSE_TOPIC, write_bag

K = Intrinsics(50.0, 51.0, 24.0, 16.5, 48, 32)


def frame(number: int) -> PosedFrame:
    y, x = np.mgrid[0:32, 0:48]
    image = np.stack([x * 5, y * 7, np.full_like(x, 20 * number)], -1).astype(np.uint8)
    rotation = rotation_from_quaternion(np.array([0.1, 0.2 * number, 0.3, 1.0]))
    return PosedFrame(
        image, 1_700_000_000_123_456_789 + number * 66_666_667, K, make_pose(rotation, np.array([number, 2.0, 3.0]))
    )


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("distro", [Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY])
def test_bag_round_trip(tmp_path, storage, distro):
    frames = [frame(n) for n in range(4)]
    path = write_bag(iter(frames), tmp_path / "bag", storage=storage, distro=distro)
    seen = {IMAGE_TOPIC: 0, INFO_TOPIC: 0, POSE_TOPIC: 0}
    with AnyReader([path]) as reader:
        for connection, log_ns, raw in reader.messages():
            message, sent = reader.deserialize(raw, connection.msgtype), frames[seen[connection.topic]]
            seen[connection.topic] += 1
            assert log_ns == sent.stamp_ns == message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            if connection.topic == IMAGE_TOPIC:
                assert message.header.frame_id == "camera_optical"
                image = cv2.imdecode(message.data, cv2.IMREAD_COLOR)[..., ::-1]
                assert np.abs(image.astype(int) - sent.image).mean() < 3
            elif connection.topic == INFO_TOPIC:
                assert Intrinsics.from_matrix(message.k, message.width, message.height, centres_at_integers=True) == K
                assert message.p[:3].tolist() == message.k[:3].tolist()
            else:
                assert message.header.frame_id == "map"
                q, p = message.pose.orientation, message.pose.position
                pose = make_pose(rotation_from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))
                np.testing.assert_allclose(pose, sent.camera_to_world, atol=1e-12)
    assert set(seen.values()) == {4}


def test_the_package_reads_its_own_bags(tmp_path):
    frames = [frame(n) for n in range(3)]
    with open_recording(write_bag(frames, tmp_path / "bag")) as recording:
        read = list(recording.frames())
    assert [f.stamp_ns for f in read] == [f.stamp_ns for f in frames]
    assert all(f.intrinsics == K for f in read)


def test_refuses_an_unknown_storage_and_an_existing_folder(tmp_path):
    with pytest.raises(ValueError, match="storage must be one of mcap, sqlite3, got 'zip'"):
        write_bag([], tmp_path / "bag", storage="zip")
    (tmp_path / "bag").mkdir()
    with pytest.raises(ExportError, match="cannot write the bag"):
        write_bag([frame(0)], tmp_path / "bag")
