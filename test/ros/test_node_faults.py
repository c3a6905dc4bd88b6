"""What the node does when a part of it fails, in this process with a reconstructor that fails on demand."""

import time

import numpy as np
import pytest
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

import dust3r_ros.ros.node as node_module
from dust3r_ros.keyframes import KeyframeDecision, KeyframeReason
from dust3r_ros.predictor import PredictorInfo
from dust3r_ros.ros.convert import header_of
from dust3r_ros.ros.qos import reliable
from dust3r_ros.ros.recorder import Recorder

PATIENCE_S = 30.0


class FailingReconstructor:
    """Takes every image, and fails on all of them."""

    info = PredictorInfo("failing", False, "", "cpu")

    def __init__(self, config) -> None:
        self.config = config
        self.map: list[int] = []
        self.attempts: list[int] = []

    def select(self, image, stamp_ns):
        return KeyframeDecision(True, KeyframeReason.EVERY, 0.0, 1.0, 1.0)

    def reconstruct(self, image, stamp_ns, intrinsics=None):
        self.attempts.append(stamp_ns)
        raise np.linalg.LinAlgError("singular matrix")

    def reconfigure(self, config) -> None:
        self.config = config

    def reset(self) -> None:
        self.attempts.clear()


@pytest.fixture
def pair(ros, monkeypatch):
    """A node that cannot reconstruct anything, and a recorder, in one executor."""
    monkeypatch.setattr(node_module, "Reconstructor", FailingReconstructor)
    given = [Parameter("image_reliability", value="reliable"), Parameter("queue_size", value=10)]
    node = node_module.Dust3rNode(namespace="/faults", parameter_overrides=given)
    recorder = Recorder("/faults/dust3r")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(recorder)
    yield node, recorder, executor
    assert node.close()
    executor.shutdown()
    node.destroy_node()
    recorder.destroy_node()


def spin(executor, condition) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    return condition()


def test_a_keyframe_that_raises_is_counted_and_the_node_goes_on(pair):
    node, recorder, executor = pair
    camera = recorder.create_publisher(Image, "/faults/image", reliable(10))
    assert spin(executor, lambda: camera.get_subscription_count() == 1)
    for stamp in (1, 2, 3):
        data = bytes(4 * 4 * 3)
        camera.publish(Image(header=header_of(stamp, "camera"), encoding="rgb8", height=4, width=4, step=12, data=data))
    recorded = recorder.recorded
    assert spin(executor, lambda: recorded.status is not None and recorded.status.dropped_failed == 3)
    assert node._reconstructor.attempts == [1, 2, 3]
    assert (recorded.status.frames_received, recorded.status.keyframes) == (3, 0)
    assert recorded.in_flight() == 0


def test_a_live_parameter_reaches_the_reconstructor(pair):
    node, _, _ = pair
    assert node.set_parameters([Parameter("keyframes.min_overlap", value=0.31)])[0].successful
    assert node._reconstructor.config.keyframes.min_overlap == 0.31
