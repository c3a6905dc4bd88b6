"""Loops and lost paths in the whole pipeline, on a rendered walk there and back whose predictions drift or lie."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
from revisiting import Drifting, Lying, Wrapped, every_frame, spoilt, there_and_back

from dust3r_ros.data import PairState
from dust3r_ros.evaluation.metrics import path_length, pose_errors
from dust3r_ros.evaluation.results import IncrementalRun
from dust3r_ros.geometry import Similarity
from dust3r_ros.pipeline import Reconstructor, SourceImage
from dust3r_ros.predictor import ImageSize
from dust3r_ros.training.truth import TruePredictor


@pytest.fixture(scope="module")
def walk():
    return there_and_back()


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


def run(images, predictor, **options):
    reconstructor = Reconstructor(every_frame(**options), predictor)
    return reconstructor, [reconstructor.add(image, stamp) for image, stamp in images]


@pytest.fixture(scope="module")
def drifted(walk, images, truth):
    reconstructor, _ = run(images, Drifting(truth), **{"loops.enabled": False})
    return ate_percent(walk, reconstructor)


@pytest.fixture(scope="module")
def closed(images, truth):
    return run(images, Drifting(truth))


def test_loops_take_the_drift_out(walk, closed, drifted):
    reconstructor, _ = closed
    assert drifted > 2.0
    assert len(reconstructor.revisits.loops) >= 4
    assert ate_percent(walk, reconstructor) < 0.1 * drifted
    assert all(new - old >= 15 for old, new in reconstructor.revisits.loops)


def test_poses_move_only_in_the_window_or_by_a_loop_and_the_update_says_which(images, truth):
    reconstructor = Reconstructor(every_frame(), Drifting(truth))
    before = {}
    closures = 0
    for k, (image, stamp) in enumerate(images):
        update = reconstructor.add(image, stamp)
        closures += bool(update.corrections)
        assert all(k - 3 <= v < k for v in update.moved)
        for v, pose in before.items():
            now = reconstructor.pose(v)
            if v in update.corrections and v not in update.moved:
                expected = Similarity.from_matrix(update.corrections[v]).apply_to_pose(pose)
                np.testing.assert_allclose(now, expected, atol=1e-9)
            elif v not in update.moved:
                np.testing.assert_array_equal(now, pose)
        for v, view in {**update.moved, k: update.view}.items():
            np.testing.assert_allclose(reconstructor.pose(v), view.camera_to_world, atol=1e-12)
        before = {v: reconstructor.pose(v) for v in range(k + 1)}
    assert closures >= 2
    np.testing.assert_allclose(reconstructor.pose(0), np.eye(4), atol=1e-9)


def test_the_map_and_the_kept_depths_follow(walk, images, truth):
    run = IncrementalRun(Reconstructor(every_frame(), Drifting(truth)))
    for image, stamp in images:
        run.add(SourceImage(str(stamp), lambda image=image: image, stamp_ns=stamp))
    result = run.result()
    errors = pose_errors(np.array([v.camera_to_world for v in result.views]), walk.camera_to_world)
    for view in result.views[::6]:
        true = walk.depth(view.number, view.image.transform.to_network(walk.intrinsics))
        ratio = errors.to_truth.scale * view.estimate.depth / true
        assert np.median(np.abs(ratio - 1)) < 0.05
    points = errors.to_truth.apply(result.cloud.points.astype(float))
    assert np.median(distance_to_surfaces(walk, points)) < 0.02


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


def test_off_the_hot_path_gives_the_same(walk, images, truth, closed):
    reconstructor = Reconstructor(every_frame(), Drifting(truth))
    for image, stamp in images:
        update = reconstructor.reconstruct(image, stamp)
        assert not update.corrections
        reconstructor.close_loops()
    expected, _ = closed
    assert reconstructor.revisits.loops == expected.revisits.loops
    for (_, one), (_, two) in zip(reconstructor.trajectory(), expected.trajectory(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_planted_wrong_loops_do_no_harm(walk, images, truth, drifted):
    liars = {4, 5, 27, 28, 29}  # the way back passes 4 and 5 at 42 and 43
    liar = Lying(truth, liars)
    reconstructor, _ = run(images, liar)
    assert liar.told > 0
    assert not any({old, new} <= liars for old, new in reconstructor.revisits.loops)
    assert ate_percent(walk, reconstructor) < 0.15 * drifted


class Blind(Drifting):
    """Distant pairs fail, or have no parallax."""

    def __init__(self, truth, state):
        super().__init__(truth)
        self.state, self.asked = state, 0

    def change(self, a, b, prediction):
        if abs(a.frame - b.frame) <= self.reach:
            return super().change(a, b, prediction)
        self.asked += 1
        return spoilt(prediction, self.state)


@pytest.mark.parametrize("state", [PairState.FAILED, PairState.ROTATION_ONLY, PairState.PLANAR])
def test_failed_pairs_and_turns_on_the_spot_are_never_loops(images, truth, state):
    blind = Blind(truth, state)
    reconstructor, updates = run(images[:36], blind)
    assert blind.asked > 0
    assert reconstructor.revisits.loops == ()
    assert not any(update.corrections for update in updates)


class Interrupted(Wrapped):
    """Neighbours across ``cut`` share nothing, as when the camera was covered and carried elsewhere."""

    def __init__(self, truth, cut):
        super().__init__(truth)
        self.cut = cut

    def change(self, a, b, prediction):
        across = (a.frame < self.cut) != (b.frame < self.cut)
        return spoilt(prediction) if across and abs(a.frame - b.frame) < 20 else prediction


def test_a_lost_path_goes_on_where_the_place_is_known(walk, images, truth, caplog):
    caplog.set_level(logging.INFO)
    reconstructor = Reconstructor(every_frame(), Interrupted(truth, 36))
    chosen = [*range(24), *range(36, 48)]  # carried from one end of the way to its middle
    updates = [reconstructor.add(*images[k]) for k in chosen]
    assert [u.view.registered for u in updates] == [True] * len(chosen)
    assert "was found again at keyframe" in caplog.text
    assert set(updates[24].moved) == set()
    assert ate_percent(walk, reconstructor) < 0.3


def test_without_memory_a_lost_path_stays_lost(images, truth):
    reconstructor = Reconstructor(every_frame(**{"loops.enabled": False}), Interrupted(truth, 36))
    updates = [reconstructor.add(*images[k]) for k in [*range(24), *range(36, 40)]]
    assert [u.view.registered for u in updates[24:]] == [False] * 4
    assert len(reconstructor.trajectory()) == 24


def test_an_unknown_place_is_not_mistaken_for_a_known_one(images, truth):
    class Elsewhere(Wrapped):
        """What comes after frame 36 lies elsewhere; pairs with it are made up, and each is made up anew."""

        def change(self, a, b, prediction):
            if (a.frame < 36) == (b.frame < 36):
                return prediction
            if abs(a.frame - b.frame) < 20:
                return spoilt(prediction)
            shift = np.random.default_rng(a.frame * 100 + b.frame).normal(0, 1.5, 3).astype(np.float32)
            return replace(prediction, points_j=prediction.points_j + shift)

    reconstructor = Reconstructor(every_frame(), Elsewhere(truth))
    updates = [reconstructor.add(*images[k]) for k in [*range(24), *range(36, 40)]]
    assert [u.view.registered for u in updates[24:]] == [False] * 4


def test_an_old_keyframe_takes_little_memory(closed):
    reconstructor, _ = closed
    assert revisits_bytes(reconstructor) / 48 < 200_000


def revisits_bytes(reconstructor):
    reconstructor.revisits.predictor = None
    return len(pickle.dumps(reconstructor.revisits))
