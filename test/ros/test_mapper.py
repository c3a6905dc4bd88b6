"""What the mapper publishes when odometry makes the map metric, against a rendered walk's truth; without DDS."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.config import NodeConfig, make_config
from dust3r_ros.geometry import backproject, invert_pose, make_pose, transform_points
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize
from dust3r_ros.ros import mapper as mapper_module
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.convert import cloud_of, depth_of, pose_of, transform_of
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.mapper import Mapper, Shot
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.statistics import Statistics
from dust3r_ros.ros.tf_buffer import TransformMissingError
from dust3r_ros.training.sequences import walk_through_room
from dust3r_ros.training.truth import TruePredictor

BASE_TO_CAMERA = make_pose(Rotation.from_euler("xz", [-90, -90], degrees=True).as_matrix(), np.array([0.2, 0, 0.5]))
ODOM_FROM_ROOM = make_pose(Rotation.from_euler("z", 40, degrees=True).as_matrix(), np.array([3.0, -1.0, 0.0]))
FRAMES = 24
PATIENCE_S = 120.0


class Outlet:
    """A publisher that everybody reads; it keeps what is published."""

    def __init__(self) -> None:
        self.sent: list = []
        self.publish = self.sent.append

    sendTransform = property(lambda self: self.publish)  # noqa: N815  # tf2's name

    def get_subscription_count(self) -> int:
        return 1


class Robot:
    """Exact odometry of the walk, until its time is over."""

    def __init__(self, walk) -> None:
        self.cameras = dict(zip(walk.stamps_ns, ODOM_FROM_ROOM @ walk.camera_to_world))
        self.ends_ns = walk.stamps_ns[-1]

    def lookup(self, target: str, source: str, stamp_ns: int, timeout_s: float) -> np.ndarray:
        if target == "base_link":
            return BASE_TO_CAMERA
        if stamp_ns > self.ends_ns:
            raise TransformMissingError("odometry has ended")
        return self.cameras[stamp_ns]

    def parent_of(self, child: str) -> str:
        return ""


class Session:
    """A mapper with true predictions, on publishers that keep their messages."""

    def __init__(self, walk, mode: str, monkeypatch) -> None:
        config = make_config(
            NodeConfig, {"tf_mode": mode, "keyframes.every_image": True, "map_period": 1e6, "loops.enabled": False}
        )
        predictor = TruePredictor(walk, image_size=ImageSize(112))
        monkeypatch.setattr(mapper_module, "Reconstructor", lambda config: Reconstructor(config, predictor))
        self.walk, self.robot, self.outlets = walk, Robot(walk), {}

        def create(message: type, name: str, qos: object, **_: object) -> Outlet:
            return self.outlets.setdefault(name.removeprefix("~/"), Outlet())

        self.outputs = Publishers(SimpleNamespace(create_publisher=create, context=SimpleNamespace(ok=lambda: True)))
        self.outlets["tf"] = self.outputs._broadcaster = Outlet()
        self.frames = MapFrames(config, self.robot)
        self.outputs.begin(self.frames.map)
        self.statistics = Statistics()
        self.mapper = Mapper(config, self.frames, self.outputs, self.statistics, lambda: None)

    def see(self, index: int) -> dict[str, list]:
        """Work on one frame and refresh, as the node does; what was published."""
        before = {name: len(outlet.sent) for name, outlet in self.outlets.items()}
        image = self.walk.frame(index)
        frame = Frame("camera", "optical", image.image, image.stamp_ns, None, 0.0)
        self.mapper.offer(Shot(image.stamp_ns, lambda: frame))
        assert self.mapper._lookout.wait_idle(PATIENCE_S) and self.mapper._worker.wait_idle(PATIENCE_S)
        self.mapper.refresh()
        assert self.mapper._worker.wait_idle(PATIENCE_S)
        assert self.mapper.failure == ""
        return {name: outlet.sent[before[name] :] for name, outlet in self.outlets.items()}

    @property
    def metric(self) -> bool:
        return self.statistics.snapshot().newest.metric


@pytest.fixture(scope="module")
def walk():
    return walk_through_room(frames=FRAMES, width=160, height=120, seed=3, rate_hz=4.0, texture_px=128)


@pytest.fixture(params=["base", "odom", "camera"])
def session(request, walk, monkeypatch):
    made = Session(walk, request.param, monkeypatch)
    yield made
    made.mapper.close()


def test_path_cloud_depth_and_tf_become_metric_together_and_the_map_stays_where_it_began(session, walk):
    start = {"base": BASE_TO_CAMERA, "odom": ODOM_FROM_ROOM @ walk.camera_to_world[0], "camera": np.eye(4)}
    start = start[session.frames._reference and session.frames._mode or "camera"]
    room_to_map = start @ invert_pose(walk.camera_to_world[0])
    flipped, first = None, {}
    for index in range(FRAMES):
        sent = session.see(index)
        path = [pose_of(pose.pose) for pose in sent["path"][-1].poses]
        assert len(path) == index + 1
        np.testing.assert_allclose(path[0], start, atol=1e-9)
        first.setdefault(session.metric, path)
        if session.metric and flipped is None:
            flipped = index
            assert len(sent["map"]) == 1  # though its period is not over
        elif not session.metric:
            assert len(sent["map"]) == (index == 0)
        if session.metric:
            assert_metric(sent, index, room_to_map, walk, session)
    assert flipped is not None and flipped > 6
    grown = np.linalg.norm(first[True][5][:3, 3] - start[:3, 3]) / np.linalg.norm(first[False][0][:3, 3] - start[:3, 3])
    assert grown != 1
