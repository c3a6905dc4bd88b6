"""Our stand-ins for ROS's Python packages, against those packages where they are installed."""

import array

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from dust3r_ros.errors import RosError
from dust3r_ros.ros import compat
from dust3r_ros.ros.qos import latched, reliable
from dust3r_ros.ros.recorder import spin_until

PATIENCE_S = 60.0

FIELDS = [
    PointField(name="x", offset=0, datatype=PointField.FLOAT32, count=1),
    PointField(name="n", offset=4, datatype=PointField.UINT16, count=1),
    PointField(name="t", offset=6, datatype=PointField.FLOAT64, count=1),
]
LAYOUT = np.dtype({"names": ["x", "n", "t"], "formats": ["<f4", "<u2", "<f8"], "offsets": [0, 4, 6], "itemsize": 14})


def points(count: int = 5) -> np.ndarray:
    values = np.zeros(count, LAYOUT)
    values["x"], values["n"], values["t"] = np.arange(count) / 3, np.arange(count), -np.arange(count)
    return values


def cloud_of(values: np.ndarray) -> PointCloud2:
    size = values.dtype.itemsize
    return PointCloud2(header=Header(frame_id="map"), height=1, width=len(values), fields=FIELDS, point_step=size,
                       row_step=size * len(values), data=array.array("B", values.tobytes()))  # fmt: skip


@pytest.fixture
def ours(monkeypatch):
    """As if none of ROS's packages were installed."""
    monkeypatch.setattr(compat, "_optional", lambda name: None)


def theirs(package: str) -> None:
    if not compat.available()[package]:
        pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("count", [0, 5])
def test_points_come_back_from_a_cloud(ours, count):
    np.testing.assert_array_equal(compat.read_points(cloud_of(points(count))), points(count))


def test_an_organised_cloud_with_padded_rows_and_the_other_byte_order_is_read(ours):
    swapped = points(6).astype(LAYOUT.newbyteorder(">"))
    cloud = cloud_of(swapped)
    rows = np.frombuffer(bytes(cloud.data), np.uint8).reshape(2, 42)
    cloud.data = array.array("B", np.pad(rows, ((0, 0), (0, 9))).tobytes())
    cloud.height, cloud.width, cloud.row_step, cloud.is_bigendian = 2, 3, 51, True
    read = compat.read_points(cloud)
    for name in ("x", "n", "t"):
        np.testing.assert_array_equal(read[name], points(6)[name])


def test_clouds_are_those_of_sensor_msgs_py(monkeypatch):
    theirs("sensor_msgs_py")
    made = cloud_of(points())
    read = compat.read_points(made)
    monkeypatch.setattr(compat, "_optional", lambda name: None)
    np.testing.assert_array_equal(compat.read_points(made), read)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1.0, np.pi - 1e-6, 4.0])
def test_quaternions_are_unit_with_positive_w_and_give_the_rotation_back(ours, angle):
    rotation = Rotation.from_rotvec(angle * np.array([0.6, 0.0, 0.8])).as_matrix()
    xyzw = compat.quaternion_of(rotation)
    assert xyzw[3] >= 0
    assert np.linalg.norm(xyzw) == pytest.approx(1.0)
    np.testing.assert_allclose(Rotation.from_quat(xyzw).as_matrix(), rotation, atol=1e-12)


def test_quaternions_are_those_of_tf_transformations(monkeypatch):
    theirs("tf_transformations")
    rotations = Rotation.random(100, random_state=0).as_matrix()
    expected = [compat.quaternion_of(rotation) for rotation in rotations]
    monkeypatch.setattr(compat, "_optional", lambda name: None)
    np.testing.assert_allclose([compat.quaternion_of(rotation) for rotation in rotations], expected, atol=1e-9)


def test_images_are_those_of_cv_bridge(monkeypatch):
    theirs("cv_bridge")
    encodings = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
    messages = [image(encoding, channels) for encoding, channels in encodings.items()]
    expected = [compat.rgb_of(message) for message in messages]
    monkeypatch.setattr(compat, "_optional", lambda name: None)
    np.testing.assert_array_equal([compat.rgb_of(message) for message in messages], expected)


def test_images_that_cv_bridge_would_get_wrong_are_not_given_to_it(monkeypatch):
    def never(name: str) -> None:
        raise AssertionError(f"{name} was asked for")

    monkeypatch.setattr(compat, "_optional", never)
    padded = image("rgb8", 3)
    padded.step += 1
    padded.data = np.pad(np.frombuffer(padded.data, np.uint8).reshape(4, 18), ((0, 0), (0, 1))).ravel().tolist()
    np.testing.assert_array_equal(compat.rgb_of(padded)[0, 0], [0, 1, 2])
    short = image("rgb8", 3)
    short.data = short.data[:-1]
    with pytest.raises(RosError, match="needs 72 bytes, got 71"):
        compat.rgb_of(short)


def image(encoding: str, channels: int) -> Image:
    data = array.array("B", bytes(range(4 * 6 * channels)))
    return Image(encoding=encoding, height=4, width=6, step=6 * channels, data=data)


def transform(child: str) -> TransformStamped:
    sent = TransformStamped(header=Header(frame_id="map"), child_frame_id=child)
    sent.transform.rotation.w = 1.0
    return sent


@pytest.mark.parametrize("which", ["ours", "tf2_ros"])
def test_transforms_are_received_as_tf2_listeners_do(node, monkeypatch, which):
    if which == "tf2_ros":
        theirs("tf2_ros")
    else:
        monkeypatch.setattr(compat, "_optional", lambda name: None)
    received: list[TransformStamped] = []
    node.create_subscription(TFMessage, "/tf", lambda m: received.extend(m.transforms), reliable(100))
    broadcaster = compat.transform_broadcaster(node)
    assert spin_until(node, lambda: node.count_publishers("/tf") > 0, PATIENCE_S)
    info = node.get_publishers_info_by_topic("/tf")[0].qos_profile
    assert (info.reliability, info.durability) == (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE)

    def arrived() -> bool:
        broadcaster.sendTransform(transform("camera"))
        broadcaster.sendTransform([transform("left"), transform("right")])
        return {"camera", "left", "right"} <= {t.child_frame_id for t in received}

    assert spin_until(node, arrived, PATIENCE_S)


@pytest.mark.parametrize("which", ["ours", "tf2_ros"])
def test_a_late_listener_gets_all_fixed_transforms(node, monkeypatch, which):
    if which == "tf2_ros":
        theirs("tf2_ros")
    else:
        monkeypatch.setattr(compat, "_optional", lambda name: None)
    broadcaster = compat.static_transform_broadcaster(node)
    broadcaster.sendTransform(transform("left"))
    broadcaster.sendTransform([transform("right"), transform("left")])
    received: list[TransformStamped] = []
    node.create_subscription(TFMessage, "/tf_static", lambda m: received.extend(m.transforms), latched())
    assert spin_until(node, lambda: {"left", "right"} == {t.child_frame_id for t in received}, PATIENCE_S)
