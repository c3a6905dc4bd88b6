"""Loops and lost paths in the whole pipeline, on a rendered walk there and back whose predictions drift or lie."""

import logging
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from revisiting import Drifting, Lying, Wrapped, every_frame, spoilt, there_and_back

from dust3r_ros.alignment.pose_graph import solve_pose_graph
from dust3r_ros.data import PairState
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.evaluation.metrics import path_length, pose_errors
from dust3r_ros.evaluation.results import IncrementalRun, Reconstruction
from dust3r_ros.geometry import Similarity
from dust3r_ros.pipeline import Reconstructor, SourceImage
from dust3r_ros.predictor import ImageSize
from dust3r_ros.training.truth import TruePredictor


@pytest.fixture(scope="module")
def walk():
    return there_and_back(16)


@pytest.fixture(scope="module")
def images(walk):
    return [(frame.image, frame.stamp_ns) for frame in walk]


@pytest.fixture(scope="module")
def truth(walk):
    return TruePredictor(walk, image_size=ImageSize(112))


def ate_percent(walk, reconstructor):
    frames = [walk.stamps_ns.index(stamp) for stamp, _ in reconstructor.trajectory()]
    true = walk.camera_to_world[frames]
    errors = pose_errors(np.array([pose for _, pose in reconstructor.trajectory()]), true)
    return 100 * errors.ate_rmse / path_length(true)


SOON = {"loops.min_separation": 8}  # a short walk


def run(images, predictor, **options):
    reconstructor = Reconstructor(every_frame(**SOON, **options), predictor)
    return reconstructor, [reconstructor.add(image, stamp) for image, stamp in images]


@pytest.fixture(scope="module")
def drifted(walk, images, truth):
    reconstructor, _ = run(images, Drifting(truth), **{"loops.enabled": False})
    return ate_percent(walk, reconstructor)


@dataclass
class Recorded:
    """A run: its end, its updates, and where every keyframe was after each of them."""

    reconstructor: Reconstructor
    updates: list
    poses: list
    result: Reconstruction


@pytest.fixture(scope="module")
def closed(images, truth):
    reconstructor = Reconstructor(every_frame(**SOON), Drifting(truth))
    add, updates, poses = reconstructor.add, [], []

    def watched(*arguments):
        updates.append(add(*arguments))
        poses.append([reconstructor.pose(k) for k in range(len(updates))])
        return updates[-1]

    reconstructor.add = watched
    incremental = IncrementalRun(reconstructor)
    for image, stamp in images:
        incremental.add(SourceImage(str(stamp), lambda image=image: image, stamp_ns=stamp))
    return Recorded(reconstructor, updates, poses, incremental.result())


def test_loops_take_the_drift_out(walk, closed, drifted):
    assert drifted > 1.0
    assert len(closed.reconstructor.revisits.loops) >= 4
    assert ate_percent(walk, closed.reconstructor) < 0.2 * drifted
    assert all(new - old >= 8 for old, new in closed.reconstructor.revisits.loops)


def test_poses_move_only_in_the_window_or_by_a_loop_and_the_update_says_which(closed):
    assert sum(bool(update.corrections) for update in closed.updates) >= 2
    for k, update in enumerate(closed.updates):
        assert all(k - 3 <= v < k for v in update.moved)
        for v, now in enumerate(closed.poses[k][:-1]):
            before = closed.poses[k - 1][v]
            if v in update.moved:
                np.testing.assert_allclose(now, update.moved[v].camera_to_world, atol=1e-12)
            elif v in update.corrections:
                expected = Similarity.from_matrix(update.corrections[v]).apply_to_pose(before)
                np.testing.assert_allclose(now, expected, atol=1e-9)
            else:
                np.testing.assert_array_equal(now, before)
        np.testing.assert_allclose(closed.poses[k][k], update.view.camera_to_world, atol=1e-12)
    np.testing.assert_allclose(closed.poses[-1][0], np.eye(4), atol=1e-9)


def test_the_map_and_the_kept_depths_follow(walk, closed):
    result = closed.result
    errors = pose_errors(np.array([v.camera_to_world for v in result.views]), walk.camera_to_world)
    for view in result.views[::6]:
        true = walk.depth(view.number, view.image.transform.to_network(walk.intrinsics))
        ratio = errors.to_truth.scale * view.estimate.depth / true
        assert np.median(np.abs(ratio - 1)) < 0.05
    points = errors.to_truth.apply(result.cloud.points.astype(float))
    assert np.median(distance_to_surfaces(walk, points)) < 0.05


def distance_to_surfaces(walk, points):
    """For each world point the distance along the ray to the surface that one of the frames sees there, metres."""
    nearest = np.full(len(points), np.inf)
    for frame in range(0, len(walk) // 2, 3):
        pose, k, depth = walk.camera_to_world[frame], walk.intrinsics, walk.frame(frame).depth
        camera = (points - pose[:3, 3]) @ pose[:3, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = camera[:, 0] / camera[:, 2] * k.fx + k.cx, camera[:, 1] / camera[:, 2] * k.fy + k.cy
        seen = (camera[:, 2] > 0) & (u > 0) & (u < k.width) & (v > 0) & (v < k.height)
        gap = np.abs(camera[seen, 2] - depth[v[seen].astype(int), u[seen].astype(int)])
        nearest[seen] = np.minimum(nearest[seen], gap)
    return nearest[np.isfinite(nearest)]


def test_off_the_hot_path_gives_the_same(images, truth, closed):
    reconstructor = Reconstructor(every_frame(**SOON), Drifting(truth))
    last = next(k for k, update in enumerate(closed.updates) if update.corrections)
    for image, stamp in images[: last + 1]:
        assert not reconstructor.reconstruct(image, stamp).corrections
        reconstructor.close_loops()
    for k, pose in enumerate(closed.poses[last]):
        np.testing.assert_allclose(reconstructor.pose(k), pose, atol=1e-6)


def test_planted_wrong_loops_do_no_harm(walk, images, truth, drifted):
    liars = {0, 1, *range(22, 28)}  # the way back passes 9 to 4 there
    liar = Lying(truth, liars)
    reconstructor, _ = run(images, liar)
    assert liar.told > 0
    assert not any({old, new} <= liars for old, new in reconstructor.revisits.loops)
    assert ate_percent(walk, reconstructor) < 0.5 * drifted


class Blind(Drifting):
    """Distant pairs fail, have no parallax, or show one plane."""

    states = (PairState.FAILED, PairState.ROTATION_ONLY, PairState.PLANAR)

    def __init__(self, truth):
        super().__init__(truth)
        self.told = set()

    def change(self, a, b, prediction):
        if abs(a.frame - b.frame) <= self.reach:
            return super().change(a, b, prediction)
        state = self.states[max(a.frame, b.frame) % 3]
        self.told.add(state)
        return spoilt(prediction, state)


def test_pairs_that_fail_or_lack_parallax_are_never_loops(images, truth):
    blind = Blind(truth)
    reconstructor, updates = run(images[:28], blind)
    assert blind.told == set(Blind.states)
    assert reconstructor.revisits.loops == ()
    assert not any(update.corrections for update in updates)


class Interrupted(Wrapped):
    """From frame ``BACK`` on, nothing but the frames that see the same place share anything."""

    def change(self, a, b, prediction):
        across = (a.frame < BACK) != (b.frame < BACK)
        return spoilt(prediction) if across and abs(a.frame - b.frame) < 14 else prediction


BACK = 24  # the way back passes frame 7
CARRIED = [*range(16), *range(BACK, 32)]  # from one end of the way to its middle


def test_a_lost_path_goes_on_where_the_place_is_known(walk, images, truth, caplog):
    caplog.set_level(logging.INFO)
    reconstructor = Reconstructor(every_frame(), Interrupted(truth))
    updates = [reconstructor.add(*images[k]) for k in CARRIED]
    assert [u.view.registered for u in updates] == [True] * len(CARRIED)
    assert "was found again at keyframe" in caplog.text
    assert updates[16].moved.keys() == updates[16].refined  # whose depth was not as exact as it could be
    assert set(updates[16].moved) <= {13, 14}
    assert ate_percent(walk, reconstructor) < 0.3


def test_without_memory_a_lost_path_stays_lost(images, truth):
    reconstructor = Reconstructor(every_frame(**{"loops.enabled": False}), Interrupted(truth))
    updates = [reconstructor.add(*images[k]) for k in CARRIED[10:18]]
    assert [u.view.registered for u in updates] == [True] * 6 + [False] * 2
    assert len(reconstructor.trajectory()) == 6


def test_an_unknown_place_is_not_mistaken_for_a_known_one(images, truth):
    class Elsewhere(Wrapped):
        """What comes later lies elsewhere; pairs with it are made up, and each is made up anew."""

        def change(self, a, b, prediction):
            if (a.frame < BACK) == (b.frame < BACK):
                return prediction
            shift = np.random.default_rng(a.frame * 100 + b.frame).normal(0, 1.5, 3).astype(np.float32)
            near = abs(a.frame - b.frame) < 14
            return spoilt(prediction) if near else replace(prediction, points_j=prediction.points_j + shift)

    reconstructor = Reconstructor(every_frame(), Elsewhere(truth))
    updates = [reconstructor.add(*images[k]) for k in CARRIED[:18]]
    assert [u.view.registered for u in updates[16:]] == [False] * 2


def test_an_old_keyframe_takes_little_memory(closed):
    revisits = closed.reconstructor.revisits
    revisits.predictor = None
    assert len(pickle.dumps(revisits)) / len(closed.updates) < 50_000  # at 112x84: a fourth of 224x168


class Forgetful(Wrapped):
    """Has no descriptor of one frame, or fails to make one."""

    def __init__(self, truth, frame, error=None):
        super().__init__(truth)
        self.frame, self.error = frame, error

    def describe(self, encoded):
        if encoded.frame != self.frame:
            return super().describe(encoded)
        if self.error is not None:
            raise self.error
        return None


@pytest.mark.parametrize("error", [None, RuntimeError("no descriptor")])
def test_a_keyframe_that_cannot_be_described_harms_no_other(images, truth, error):
    reconstructor, lost = Reconstructor(every_frame(**SOON), Forgetful(truth, 5, error)), []
    for k, (image, stamp) in enumerate(images[:12]):
        try:
            assert reconstructor.add(image, stamp).view.registered
        except RuntimeError:
            lost.append(k)
    assert lost == ([] if error is None else [5])
    assert len(reconstructor.trajectory()) == len(reconstructor.map._movable) == 12 - len(lost)


class Short(Drifting):
    """The device has no memory for the pairs by which loops are found, which are only tried."""

    tried = 0

    def probe(self, pairs):
        self.tried += 1
        raise DeviceMemoryError("cpu has no memory for a pair of images")


def test_no_memory_for_a_loop_is_no_loop(images, truth, caplog):
    short = Short(truth)
    _, updates = run(images[:26], short)
    assert short.tried > 0 and all(update.view.registered for update in updates)
    assert "no memory for a pair of images: no loop was looked for" in caplog.text


def test_no_memory_to_find_a_lost_path_again_leaves_it_lost_and_nothing_else(images, truth, caplog):
    class ShortInterrupted(Interrupted):
        def probe(self, pairs):
            raise DeviceMemoryError("cpu has no memory for a pair of images")

    reconstructor = Reconstructor(every_frame(), ShortInterrupted(truth))
    updates = [reconstructor.add(*images[k]) for k in CARRIED[10:18]]
    assert [u.view.registered for u in updates] == [True] * 6 + [False] * 2
    assert "no memory for a pair of images: keyframe 7 was not looked for among old ones" in caplog.text


def test_a_keyframe_whose_search_failed_is_not_searched_again(images, truth, monkeypatch):
    reconstructor, tried = Reconstructor(every_frame(**SOON), Wrapped(truth)), []

    def search(new, aligner):
        tried.append(new.index)
        raise RuntimeError("search")

    monkeypatch.setattr(reconstructor.revisits, "search", search)
    reconstructor.reconstruct(*images[0])
    with pytest.raises(RuntimeError, match="search"):
        reconstructor.close_loops()
    assert reconstructor.close_loops() == {}
    assert tried == [0]


def test_a_limited_window_stays_limited_where_a_lost_path_goes_on(images, truth):
    class Counting(Interrupted):
        pairs = 0

        def predict(self, pairs):
            self.pairs = len(pairs)
            return super().predict(pairs)

    predictor = Counting(truth)
    reconstructor = Reconstructor(every_frame(), predictor)
    for k in CARRIED[:16]:
        reconstructor.add(*images[k])
    reconstructor.limit_window(1)
    for k in CARRIED[16:19]:
        assert reconstructor.reconstruct(*images[k]).view.registered
        reconstructor.close_loops()
    assert reconstructor.reconstruct(*images[CARRIED[19]]).view.registered
    assert predictor.pairs == 2


def test_a_solution_that_is_not_applied_leaves_the_believed_loops(closed, monkeypatch):
    revisits, aligner = closed.reconstructor.revisits, closed.reconstructor._aligner
    before = revisits.loops

    def doubting(*given):
        solution = solve_pose_graph(*given)
        return replace(solution, weights=np.zeros_like(solution.weights))

    monkeypatch.setattr("dust3r_ros.revisit.solve_pose_graph", doubting)
    assert revisits._solve([revisits._loops[-1]], aligner) == {}
    assert revisits.loops == before
