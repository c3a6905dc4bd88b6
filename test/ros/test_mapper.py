"""What the mapper publishes when odometry makes the map metric, against a rendered walk's truth; without DDS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import Intrinsics, Update
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.geometry import Similarity, backproject, invert_pose, make_pose, transform_points
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize
from dust3r_ros.ros import mapper as mapper_module
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.convert import cloud_of, depth_of, pose_of, transform_of
from dust3r_ros.ros.diagnostics import frames_finding
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.mapper import Mapper, Shot
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.stages import Stages
from dust3r_ros.ros.statistics import Statistics
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
    """Exact odometry of the walk, and the camera's mount."""

    def __init__(self, walk) -> None:
        self.cameras = dict(zip(walk.stamps_ns, ODOM_FROM_ROOM @ walk.camera_to_world))

    def lookup(self, target: str, source: str, stamp_ns: int, timeout_s: float) -> np.ndarray:
        return BASE_TO_CAMERA if target == "base_link" else self.cameras[stamp_ns]

    def parent_of(self, child: str) -> str:
        return ""


def level(base_in_odometry: np.ndarray) -> np.ndarray:
    """A base in the frame at its place whose z is odometry's, and whose x is the base's as seen from above."""
    ahead = np.array([*base_in_odometry[:2, 0], 0.0]) / np.linalg.norm(base_in_odometry[:2, 0])
    up = np.array([0.0, 0.0, 1.0])
    return make_pose(np.stack([ahead, np.cross(up, ahead), up]) @ base_in_odometry[:3, :3], np.zeros(3))


class Session:
    """A mapper with true predictions, on publishers that keep their messages."""

    def __init__(self, walk, mode: str, monkeypatch) -> None:
        config = make_config(
            NodeConfig,
            {
                "tf_mode": mode,
                "keyframes.every_image": True,
                "tracking.enabled": False,
                "map_period": 1e6,
                "loops.enabled": False,
            },
        )
        predictor = TruePredictor(walk, image_size=ImageSize(112))
        monkeypatch.setattr(mapper_module, "Reconstructor", lambda config: Reconstructor(config, predictor))
        self.mode, self.walk, self.robot, self.outlets = mode, walk, Robot(walk), {}

        def create(message: type, name: str, qos: object, **_: object) -> Outlet:
            return self.outlets.setdefault(name.removeprefix("~/"), Outlet())

        self.outputs = Publishers(SimpleNamespace(create_publisher=create, context=SimpleNamespace(ok=lambda: True)))
        self.outlets["tf"] = self.outputs._broadcaster = Outlet()
        self.frames = MapFrames(config, self.robot)
        self.outputs.begin(self.frames.map)
        self.statistics = Statistics()
        self.mapper = Mapper(config, self.frames, self.outputs, self.statistics, lambda: None, "/dust3r")

    def frame(self, index: int) -> Frame:
        image = self.walk.frame(index)
        return Frame("camera", "optical", image.image, image.stamp_ns, None, 0.0)

    def see(self, index: int) -> dict[str, list]:
        """Work on one frame and refresh, as the node does; what was published."""
        before = {name: len(outlet.sent) for name, outlet in self.outlets.items()}
        self.offer(index)
        self.mapper.refresh()
        assert self.mapper._worker.wait_idle(PATIENCE_S)
        assert self.mapper.failure == ""
        return {name: outlet.sent[before[name] :] for name, outlet in self.outlets.items()}

    def offer(self, index: int) -> None:
        """Work on one frame."""
        frame = self.frame(index)
        self.mapper.offer(Shot(frame.stamp_ns, lambda: frame))
        assert self.mapper._lookout.wait_idle(PATIENCE_S) and self.mapper._worker.wait_idle(PATIENCE_S)

    @property
    def metric(self) -> bool:
        """What Status says."""
        return self.frames.map.metric

    def start(self) -> np.ndarray:
        """The first camera in the map."""
        odometry = self.robot.lookup("odom", "optical", self.walk.stamps_ns[0], 0.0)
        base = level(odometry @ invert_pose(BASE_TO_CAMERA)) @ BASE_TO_CAMERA
        return {"camera": np.eye(4), "base": base, "odom": odometry}[self.mode]

    def true_pose(self, index: int) -> np.ndarray:
        """A camera in the map, exactly and in metres."""
        return self.start() @ invert_pose(self.walk.camera_to_world[0]) @ self.walk.camera_to_world[index]

    def true_points(self, index: int) -> np.ndarray:
        """What a camera sees, in the map, exactly and in metres."""
        points = backproject(self.walk.frame(index).depth, self.walk.intrinsics).reshape(-1, 3)
        return transform_points(self.true_pose(index), points)


@pytest.fixture(scope="module")
def walk():
    return walk_through_room(frames=FRAMES, width=160, height=120, seed=3, rate_hz=4.0, texture_px=128)


@pytest.fixture(params=["base", "odom", "camera"])
def session(request, walk, monkeypatch):
    made = Session(walk, request.param, monkeypatch)
    yield made
    made.mapper.close()


def size(path: np.ndarray, session: Session) -> float:
    """How large a path of camera poses is, relative to the truth."""
    true = np.array([session.true_pose(index) for index in range(len(path))])
    return length(path) / length(true)


def length(path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=1).sum())


def assert_near(cloud: np.ndarray, truth: np.ndarray, metres: float) -> None:
    distances, _ = cKDTree(truth).query(cloud)
    assert np.median(distances) < metres


def test_path_map_depth_and_tf_become_metric_together_and_the_map_stays_where_it_began(session, walk):
    flipped = None
    for index in range(FRAMES):
        sent = session.see(index)
        path = np.array([pose_of(pose.pose) for pose in sent["path"][-1].poses])
        np.testing.assert_allclose(path[0], session.start(), atol=1e-9)
        if not session.metric:
            assert index == 0 or abs(np.log(size(path, session))) > 0.05
            assert len(sent["map"]) == (index == 0)  # its period is not over
            continue
        if flipped is None:
            flipped = index
            truth = np.concatenate([session.true_points(seen) for seen in range(index + 1)])
            assert_near(cloud_of(sent["map"][0]).points, truth, 0.05)  # at once, whatever its period
        assert size(path, session) == pytest.approx(1.0, abs=0.03)
        assert_near(cloud_of(sent["points"][0]).points, session.true_points(index), 0.05)
        keyframe = sent["depth"][0]
        true_depth = walk.depth(index, scaled(walk.intrinsics, keyframe.width, keyframe.height))
        assert np.nanmedian(depth_of(keyframe) / true_depth) == pytest.approx(1.0, abs=0.03)
        assert_on_tf(session, index, sent)
    assert flipped is not None and flipped > 6


def test_whoever_takes_speeds_is_told_of_each_jump_of_the_map(session, monkeypatch):
    jumps = []
    monkeypatch.setattr(session.outputs._odometry, "forget", lambda: jumps.append(session.frames.map.from_world.scale))
    for index in range(FRAMES):
        session.see(index)
    sizes = list(dict.fromkeys(jumps))
    assert sizes[0] == 1.0 and sizes[-1] == session.frames.map.from_world.scale != 1.0
    before = len(jumps)
    changes = {0: Similarity.identity()}
    monkeypatch.setattr(session.mapper.reconstructor, "close_loops", lambda: changes)
    session.offer(FRAMES - 1)
    assert len(jumps) > before
    session.mapper.reset().result(PATIENCE_S)
    assert len(jumps) > before + 1


def test_a_keyframe_is_published_before_its_points_are_put_into_the_map(session, monkeypatch):
    fuse, sent = session.mapper.reconstructor.fuse, []

    def fused(update: Update) -> Update:
        sent.append({len(session.outlets[name].sent) for name in ("tf", "pose", "points", "camera_info", "depth")})
        return fuse(update)

    monkeypatch.setattr(session.mapper.reconstructor, "fuse", fused)
    for index in range(3):
        session.see(index)
    assert sent == [{1}, {2}, {3}]
    assert session.mapper.map_points == len(session.mapper.reconstructor.map) > 0


def test_a_keyframe_whose_messages_fail_is_in_the_map_all_the_same(session, monkeypatch):
    session.see(0)
    session.see(5)
    before = session.mapper.map_points

    def fails(message: object) -> None:
        raise RuntimeError("no room for a message")

    with monkeypatch.context() as broken:
        broken.setattr(session.outlets["points"], "publish", fails)
        session.offer(10)
    assert session.mapper.failure == "RuntimeError: no room for a message"
    assert session.mapper.map_points > before
    session.see(15)
    assert len(session.mapper.reconstructor.trajectory()) == 4
    assert len(session.outlets["points"].sent) == 3


def scaled(k: Intrinsics, width: int, height: int) -> Intrinsics:
    return Intrinsics.from_focal(k.fx * width / k.width, width, height)


def assert_on_tf(session: Session, index: int, sent: dict[str, list]) -> None:
    """The transform, the robot's own and the pose say the same, and it is true."""
    stamp_ns = session.walk.stamps_ns[index]
    known = session.frames.camera_in_reference("optical", stamp_ns, 0.0)
    pose = pose_of(sent["pose"][0].pose)
    np.testing.assert_allclose(transform_of(sent["tf"][0].transform) @ known, pose, atol=1e-9)
    assert np.linalg.norm(pose[:3, 3] - session.true_pose(index)[:3, 3]) < 0.05
    if session.mode == "odom":  # which does not drift here: it lies on the map
        np.testing.assert_allclose(transform_of(sent["tf"][0].transform)[:3, 3], 0.0, atol=0.15)


def test_a_loaded_metric_map_is_metric_before_any_keyframe_and_not_after_a_reset(session):
    mapper = session.mapper
    mapper.frames.map.restore(SimpleNamespace(world_to_map=Similarity.identity(), origin=np.zeros(3), scale=object()))
    assert frames_finding(mapper, session.statistics.snapshot()).values["scale"] == "metric"
    mapper.reset().result(PATIENCE_S)
    assert frames_finding(mapper, session.statistics.snapshot()).values["scale"] == "unknown"


def test_a_reset_begins_a_map_of_unknown_size(session):
    for index in range(14):
        session.see(index)
    assert session.metric
    session.mapper.reset().result(PATIENCE_S)
    assert session.statistics.snapshot().newest is None
    for index in range(14, 17):
        sent = session.see(index)
        assert not session.metric and session.frames.map.from_world.scale == 1.0
    assert len(sent["path"][-1].poses) == 3


def test_odometry_that_goes_back_in_time_is_left_out_and_no_keyframe_is_lost(session):
    for index in (3, 4, 0, 1, 2, 5):
        session.see(index)  # fails when the keyframe does
    assert session.statistics.snapshot().keyframes == 6


def test_a_device_without_memory_at_the_start_is_tried_again_by_the_first_keyframe(walk, monkeypatch, caplog):
    def warm_up(self, size: tuple[int, int], pairs: int) -> None:
        raise DeviceMemoryError(f"no memory for {pairs} pairs")

    monkeypatch.setattr(TruePredictor, "warm_up", warm_up)
    session = Session(walk, "camera", monkeypatch)
    assert "no memory for 6 pairs: the first keyframe will tell" in caplog.text
    session.see(0)
    assert session.mapper.reconstructor.keyframes == 1
    session.mapper.close()


@pytest.mark.parametrize(("waiting", "searches"), [(0, FRAMES), (3, FRAMES // 4)])
def test_loops_are_looked_for_less_often_while_keyframes_wait(walk, monkeypatch, waiting, searches):
    monkeypatch.setattr(Stages, "queue_length", property(lambda self: waiting))
    session, asked = Session(walk, "camera", monkeypatch), []
    monkeypatch.setattr(session.mapper.reconstructor, "close_loops", lambda: asked.append(1) or {})
    for index in range(FRAMES):
        session.offer(index)
    assert len(asked) == searches
    session.mapper.close()
