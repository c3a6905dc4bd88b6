"""The whole pipeline after the predictor, on a rendered walk with exact truth."""

import gc
import weakref

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dust3r_ros.alignment import dense
from dust3r_ros.batch import reconstruct
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import procrustes
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.options import make_config
from dust3r_ros.pairing import SceneGraph, make_pairs
from dust3r_ros.pipeline import Reconstructor, SourceImage
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo
from dust3r_ros.training.sequences import RenderedSequence, walk_through_room
from dust3r_ros.training.truth import TruePredictor

SIZE = ImageSize(112)


@pytest.fixture(scope="module")
def walk() -> RenderedSequence:
    return walk_through_room(frames=40, width=160, height=120, seed=3, rate_hz=8.0, texture_px=128)


@pytest.fixture(scope="module")
def images(walk):
    return [(frame.image, frame.stamp_ns) for frame in walk]


@pytest.fixture(scope="module")
def truth(walk):
    return TruePredictor(walk, image_size=SIZE)


def ate_percent(walk: RenderedSequence, trajectory: list[tuple[int, np.ndarray]]) -> float:
    stamps = list(walk.stamps_ns)
    truth = np.array([walk.camera_to_world[stamps.index(stamp)][:3, 3] for stamp, _ in trajectory])
    estimate = np.array([pose[:3, 3] for _, pose in trajectory])
    error = np.linalg.norm(procrustes(estimate, truth).apply(estimate) - truth, axis=1)
    length = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return 100 * float(np.sqrt((error**2).mean())) / length


def test_true_pointmaps_give_the_true_path_and_focal(walk, images, truth):
    reconstructor = Reconstructor(ReconstructorConfig(), truth)
    updates = [u for image, stamp in images if (u := reconstructor.add(image, stamp)) is not None]
    assert len(updates) >= 10
    assert all(u.view.registered for u in updates)
    assert [stamp for stamp, _ in reconstructor.trajectory()] == [u.keyframe.stamp_ns for u in updates]
    assert ate_percent(walk, reconstructor.trajectory()) < 0.5
    assert updates[-1].intrinsics.width == 160
    assert updates[-1].intrinsics.focal_px == pytest.approx(walk.intrinsics.focal_px, rel=5e-3)


def test_the_cloud_lies_on_the_scene(walk, images, truth):
    reconstructor = Reconstructor(ReconstructorConfig(), truth)
    for image, stamp in images:
        reconstructor.add(image, stamp)
    trajectory = reconstructor.trajectory()
    stamps = list(walk.stamps_ns)
    true_poses = np.array([walk.camera_to_world[stamps.index(stamp)] for stamp, _ in trajectory])
    world = procrustes(np.array([pose[:3, 3] for _, pose in trajectory]), true_poses[:, :3, 3])
    cloud = reconstructor.map.cloud()
    points = world.apply(cloud.points.astype(np.float64))
    seen = np.concatenate([(np.linalg.inv(walk.camera_to_world[0]) @ np.c_[points, np.ones(len(points))].T).T[:, :3]])
    k = walk.intrinsics
    front = seen[seen[:, 2] > 0.1]
    u, v = front[:, 0] / front[:, 2] * k.fx + k.cx, front[:, 1] / front[:, 2] * k.fy + k.cy
    inside = (u > 0) & (u < k.width) & (v > 0) & (v < k.height)
    depth = walk.frame(0).depth[v[inside].astype(int), u[inside].astype(int)]
    on_surface = np.abs(front[inside, 2] / depth - 1) < 0.03
    behind = front[inside, 2] > 1.03 * depth  # seen by later frames only
    assert inside.sum() > 1000
    assert (on_surface | behind).mean() > 0.97
    assert on_surface.mean() > 0.5


def test_all_at_once(walk, images, truth):
    chosen = images[::4]
    sources = [SourceImage(str(stamp), lambda image=image: image, stamp_ns=stamp) for image, stamp in chosen]
    pairs = make_pairs(len(sources), SceneGraph.SLIDING_WINDOW, window=2)
    result = reconstruct(sources, predictor=truth, pairs=pairs)
    trajectory = [(stamp, v.camera_to_world) for (_, stamp), v in zip(chosen, result.scene.views)]
    assert ate_percent(walk, trajectory) < 0.5


def test_given_intrinsics_are_used_exactly(walk, images, truth):
    config = make_config(ReconstructorConfig, {"intrinsics": "given"})
    reconstructor = Reconstructor(config, truth)
    updates = [reconstructor.add(image, stamp, intrinsics=walk.intrinsics) for image, stamp in images[:12]]
    last = [u for u in updates if u is not None][-1]
    np.testing.assert_allclose(last.intrinsics.matrix(), walk.intrinsics.matrix(), rtol=1e-9)
    assert last.focal_spread_px == 0


def test_a_guess_of_the_intrinsics_is_where_the_estimate_begins_and_is_outweighed(walk, images, truth):
    focal = walk.intrinsics.focal_px
    guess = Intrinsics.from_focal(1.08 * focal, walk.intrinsics.width, walk.intrinsics.height)
    config = make_config(ReconstructorConfig, {"intrinsics": "guess", "keyframes.every_image": True})
    reconstructor = Reconstructor(config, truth)
    updates = [reconstructor.add(image, stamp, intrinsics=guess) for image, stamp in images[:6]]
    assert updates[0].intrinsics.focal_px == pytest.approx(guess.focal_px)  # one image tells nothing yet
    assert updates[-1].intrinsics.focal_px == pytest.approx(focal, rel=0.005)


def test_standing_still_adds_nothing(walk, images, truth):
    reconstructor = Reconstructor(ReconstructorConfig(), truth)
    image, stamp = images[0]
    assert reconstructor.add(image, stamp) is not None
    assert all(reconstructor.add(image, stamp + k) is None for k in range(1, 10))
    assert len(reconstructor.trajectory()) == 1


def test_reset_begins_anew(walk, images, truth):
    reconstructor = Reconstructor(ReconstructorConfig(), truth)
    for image, stamp in images[:12]:
        reconstructor.add(image, stamp)
    first = reconstructor.trajectory()
    reconstructor.reset()
    assert reconstructor.trajectory() == []
    assert len(reconstructor.map.cloud().points) == 0
    for image, stamp in images[:12]:
        reconstructor.add(image, stamp)
    for (stamp, pose), (stamp_again, pose_again) in zip(first, reconstructor.trajectory(), strict=True):
        assert stamp == stamp_again
        np.testing.assert_allclose(pose, pose_again, atol=1e-9)


def test_after_a_reset_the_same_images_give_the_same_focal_and_path(images):
    reconstructor, runs = Reconstructor(make_config(ReconstructorConfig, {"keyframes.every_image": True})), []
    for _ in range(2):
        updates = [reconstructor.add(image, stamp) for image, stamp in images[:4]]
        runs.append([update.intrinsics.focal_px for update in updates])
        reconstructor.reset()
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1  # it is learnt from keyframe to keyframe


def test_old_keyframes_are_forgotten_but_for_their_place(walk, images, truth):
    reconstructor = every_frame(truth, set())
    keyframes = [weakref.ref(reconstructor.add(image, stamp).keyframe) for image, stamp in images[:16:2]]
    gc.collect()
    window = reconstructor.config.window
    assert [keyframe() is not None for keyframe in keyframes] == [False] * (8 - window) + [True] * window
    assert [stamp for stamp, _ in reconstructor.trajectory()] == [stamp for _, stamp in images[:16:2]]
    np.testing.assert_array_equal(reconstructor.pose(3), reconstructor.trajectory()[3][1])
    assert reconstructor.pose(8) is None


def test_live_options_count_from_the_next_image_on(walk, images, truth):
    reconstructor = every_frame(truth, set())
    for image, stamp in images[:4:2]:
        assert reconstructor.add(image, stamp) is not None
    before = len(reconstructor.map)
    calm = {"keyframes.every_image": False, "keyframes.min_parallax": 1.0, "keyframes.min_overlap": 0.1}
    reconstructor.reconfigure(make_config(ReconstructorConfig, calm))
    assert reconstructor.add(*images[4]) is None
    strict = {"keyframes.every_image": True, "map.min_confidence": 1.0, "map.max_depth_step": 1e-9}
    reconstructor.reconfigure(make_config(ReconstructorConfig, strict))
    assert reconstructor.add(*images[4]).view.registered
    assert len(reconstructor.map) < 1.05 * before


class Unreliable(PairPredictor):
    """The truth, but for frames whose pairs all fail."""

    def __init__(self, truth: TruePredictor, broken: set[int]) -> None:
        self.truth, self.broken = truth, broken

    @property
    def info(self) -> PredictorInfo:
        return self.truth.info

    @property
    def image_size(self) -> ImageSize:
        return self.truth.image_size

    def encode(self, image: PreparedImage, camera: str, intrinsics=None):
        return self.truth.encode(image, camera, intrinsics)

    def predict(self, pairs):
        return [self._spoil(p) if {a.frame, b.frame} & self.broken else p
                for (a, b), p in zip(pairs, self.truth.predict(pairs))]  # fmt: skip

    @staticmethod
    def _spoil(p: PairPrediction) -> PairPrediction:
        return PairPrediction(p.points_i, 0 * p.conf_i, p.points_j, 0 * p.conf_j, PairState.FAILED)


def every_frame(truth: TruePredictor, broken: set[int]) -> Reconstructor:
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    return Reconstructor(config, Unreliable(truth, broken))


def test_a_keyframe_without_a_pair_is_left_out_and_the_path_goes_on(walk, images, truth, caplog):
    reconstructor = every_frame(truth, {10, 11})
    updates = [reconstructor.add(image, stamp) for image, stamp in images[:20:2]]
    assert [u.view.registered for u in updates] == [k != 5 for k in range(10)]  # frame 10
    assert "shares nothing with the map" in caplog.text
    assert len(reconstructor.trajectory()) == 9
    assert ate_percent(walk, reconstructor.trajectory()) < 0.5


def test_a_useless_first_image_does_not_block_the_map(walk, images, truth):
    reconstructor = every_frame(truth, {0})
    updates = [reconstructor.add(image, stamp) for image, stamp in images[:12:2]]
    assert updates[-1].view.registered
    assert [stamp for stamp, _ in reconstructor.trajectory()] == [stamp for _, stamp in images[2:12:2]]


def test_nothing_to_align_is_an_error(walk, images, truth):
    sources = [SourceImage(str(k), lambda k=k: images[k][0]) for k in (0, 4)]
    with pytest.raises(AlignmentError):
        reconstruct(sources, predictor=Unreliable(truth, {0}))


class CountingTruth(TruePredictor):
    """Remembers how many pairs each keyframe was predicted with."""

    def __init__(self, *given, **options) -> None:
        super().__init__(*given, **options)
        self.pairs: list[int] = []

    def predict(self, pairs):
        self.pairs.append(len(pairs))
        return super().predict(pairs)


def test_a_limited_window_pairs_with_fewer_keyframes_until_the_next_reset(walk, images):
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True, "window": 3})
    predictor = CountingTruth(walk, image_size=SIZE)
    reconstructor = Reconstructor(config, predictor)
    spread = images[::5]
    for image, stamp in spread[:4]:
        assert reconstructor.add(image, stamp).view.registered
    reconstructor.limit_window(1)
    for image, stamp in spread[4:7]:
        assert reconstructor.add(image, stamp).view.registered
    assert predictor.pairs == [2, 4, 6, 2, 2, 2]
    assert ate_percent(walk, reconstructor.trajectory()) < 1.0
    reconstructor.reset()
    for image, stamp in spread[:4]:
        reconstructor.add(image, stamp)
    assert predictor.pairs[6:] == [2, 4, 6]


def test_an_image_is_taken_anew_whether_or_not_anything_moved(images, truth):
    reconstructor = Reconstructor(ReconstructorConfig(), truth)
    image, stamp = images[0]
    taken = [reconstructor.select(image, stamp, anew=anew).take for anew in (False, False, True, False)]
    assert taken == [True, False, True, False]


def test_a_map_that_begins_anew_says_so_and_keeps_to_a_limited_window(walk, images):
    predictor = CountingTruth(walk, image_size=SIZE)
    reconstructor = every_frame(predictor, {0})
    spread = images[::5]
    reconstructor.add(*spread[0])
    reconstructor.limit_window(1)
    anew = reconstructor.add(*spread[1])
    assert anew.view.registered
    np.testing.assert_array_equal(reconstructor.pose(anew.keyframe.index), anew.view.camera_to_world)
    for image, stamp in spread[2:5]:
        assert reconstructor.add(image, stamp).view.registered
    assert predictor.pairs == [2, 2, 2, 2]


class Apart(Unreliable):
    """Two cameras that see nothing in common."""

    def __init__(self, truth: TruePredictor) -> None:
        super().__init__(truth, set())
        self.camera_of: dict[int, str] = {}

    def encode(self, image: PreparedImage, camera: str, intrinsics=None):
        encoded = super().encode(image, camera, intrinsics)
        self.camera_of[encoded.frame] = camera
        return encoded

    def predict(self, pairs):
        return [p if self.camera_of[a.frame] == self.camera_of[b.frame] else self._spoil(p)
                for (a, b), p in zip(pairs, self.truth.predict(pairs))]  # fmt: skip


def test_two_cameras_without_a_common_view_do_not_begin_the_map_anew_in_turns(images, truth):
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    reconstructor = Reconstructor(config, Apart(truth))
    cameras = ["left", "right"] * 4
    updates = [reconstructor.add(*image, camera) for image, camera in zip(images[::2], cameras)]
    assert [u.view.registered for u in updates] == [camera == "left" for camera in cameras]


class Rough(TruePredictor):
    """The truth with errors, as large as a network's."""

    def predict(self, pairs):
        return [self._rough(p, 100 * a.frame + b.frame) for (a, b), p in zip(pairs, super().predict(pairs))]

    @staticmethod
    def _rough(p: PairPrediction, seed: int) -> PairPrediction:
        rng = np.random.default_rng(seed)
        points = [
            (q * (1 + 0.04 * rng.standard_normal((*q.shape[:2], 1)))).astype(np.float32)
            for q in (p.points_i, p.points_j)
        ]
        return PairPrediction(points[0], p.conf_i, points[1], p.conf_j, p.state)


def settled(walk, images, monkeypatch, still: float) -> tuple[PointCloud, int]:
    """The map when every keyframe was put in anew that moved by ``still`` or more, and how often that was."""
    monkeypatch.setattr(dense, "STILL", still)
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    reconstructor, again = Reconstructor(config, Rough(walk, image_size=SIZE)), []
    replace = reconstructor.map.replace
    monkeypatch.setattr(reconstructor.map, "replace", lambda index, view: again.append(replace(index, view)))
    for image, stamp in images[:32:4]:
        assert reconstructor.add(image, stamp).view.registered
    reconstructor.settle()
    assert reconstructor.settle() == {}
    return reconstructor.map.cloud(), sum(again)


def test_a_settled_map_is_what_it_is_when_all_that_moves_is_put_in_anew(walk, images, monkeypatch):
    lazy, seldom = settled(walk, images, monkeypatch, dense.STILL)
    eager, often = settled(walk, images, monkeypatch, 0.0)
    assert len(lazy) == len(eager)
    distances, _ = cKDTree(lazy.points).query(eager.points)
    assert np.percentile(distances, 99.9) < 1e-5
    assert seldom < 0.7 * often


def test_a_map_is_remembered_as_exact_as_it_can_be(walk, images):
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    reconstructor = Reconstructor(config, Rough(walk, image_size=SIZE))
    for image, stamp in images[:16:4]:
        reconstructor.add(image, stamp)
    reconstructor.memory()
    assert reconstructor.settle() == {}
