"""Alignment keyframe by keyframe, against batch alignment and the truth."""

import numpy as np
import pytest
from alignment_scenes import compare, make_truth, predict, predict_all, window_pairs
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import IncrementalAligner, align, dense
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Intrinsics, PairState
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity
from dust3r_ros.updates import changed_view

CONFIG = AlignmentConfig(grid=24)


def walk(truth, edges, window, *, known=False, watch=None):
    """Add all views; the newest estimate of each, and the updates. ``watch`` is called after every one."""
    aligner = IncrementalAligner(CONFIG, window)
    estimates, updates = {}, []
    for k in range(truth.views):
        new = [e for e in edges if max(e.i, e.j) == k]
        lens = truth.intrinsics[k]
        update = aligner.add(k, new, camera="left", size=(lens.height, lens.width), intrinsics=lens if known else None)
        estimates.update({k: update.view, **update.moved})
        updates.append(update)
        if watch is not None:
            watch(aligner, update, k)
    return estimates, updates


def test_exact_predictions_give_the_exact_walk():
    truth = make_truth(9)
    estimates, updates = walk(truth, predict_all(truth, window_pairs(9, 3)), 3)
    assert compare(truth, estimates).worst < 5e-5
    assert updates[-1].focal_px == pytest.approx(30, rel=1e-5)
    assert max(updates[-1].edge_residual.values()) < 1e-4


def test_the_first_keyframe_waits_for_its_depth():
    truth = make_truth(2)
    edges = predict_all(truth, window_pairs(2, 1))
    estimates, updates = walk(truth, edges, 3)
    first = updates[0]
    assert first.view.registered and not first.view.depth.any() and not first.moved
    assert first.focal_spread_px == pytest.approx(first.focal_px)
    assert set(updates[1].moved) == {0}
    np.testing.assert_allclose(updates[1].moved[0].camera_to_world, np.eye(4), atol=1e-12)
    assert compare(truth, estimates).worst < 5e-5
    assert np.median(estimates[0].depth) == pytest.approx(1, abs=0.02)


def test_a_pair_with_itself_gives_the_first_keyframe_its_depth_at_once():
    truth = make_truth(1)
    aligner = IncrementalAligner(CONFIG, 2)
    update = aligner.add(0, [predict(truth, 0, 0)], camera="left", size=(24, 32))
    assert update.focal_px == pytest.approx(30, rel=1e-4)
    ratio = update.view.depth / truth.depths[0]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


def test_noisy_predictions_end_nearly_as_well_as_in_batch():
    truth = make_truth(12, seed=2)
    edges = predict_all(truth, window_pairs(12, 3), noise=0.03)
    estimates, _ = walk(truth, edges, 3)
    step, batch = compare(truth, estimates), compare(truth, align(edges, 12, CONFIG).views)
    assert step.centre < max(1.5 * batch.centre, 0.01)
    assert step.rotation < max(1.5 * batch.rotation, 0.05)
    assert step.depth < 1.5 * batch.depth
    assert step.focal < 2e-3


def test_the_world_does_not_move_and_only_the_window_is_revised():
    truth = make_truth(10)
    edges = predict_all(truth, window_pairs(10, 2), noise=0.02)
    units = []

    def watch(aligner, update, k):
        assert all(k - 2 <= v < k for v in update.moved)
        if k == 1:
            units.append(update.moved[0].depth)
        if 0 in update.moved:
            np.testing.assert_allclose(update.moved[0].camera_to_world, np.eye(4), atol=1e-12)
            units.append(update.moved[0].depth)

    walk(truth, edges, 2, watch=watch)
    for depth in units[1:]:
        assert np.median(depth / units[0]) == pytest.approx(1, abs=0.01)


def test_cost_and_memory_do_not_grow():
    truth = make_truth(30, size=(12, 16), focal=15.0)
    edges = predict_all(truth, window_pairs(30, 3), noise=0.02)
    residuals, held, views = [], [], []

    def watch(aligner, update, k):
        residuals.append(aligner.residuals)
        held.append(aligner.held_edges)
        views.append(aligner.held_views)

    walk(truth, edges, 3, watch=watch)
    for counts in (residuals, held, views):
        assert len(set(counts[8:])) == 1
        assert counts[8] == max(counts)
    assert views[-1] <= 6


def test_known_intrinsics_are_honoured_exactly():
    truth = make_truth(5)
    odd = [Intrinsics(31.0, 29.5, 15.0, 12.5, 32, 24)] * 5
    given = type(truth)(truth.poses, truth.depths, odd)
    estimates, updates = walk(given, predict_all(given, window_pairs(5, 2)), 2, known=True)
    assert all(estimates[k].intrinsics == odd[0] for k in range(5))
    assert all(u.focal_spread_px == 0 for u in updates)
    assert compare(given, estimates).worst < 5e-5


def test_two_cameras_have_a_focal_each():
    a, b = make_truth(8, focal=30.0), make_truth(8, focal=40.0)
    lenses = [(a if k % 2 == 0 else b).intrinsics[k] for k in range(8)]
    truth = type(a)(a.poses, a.depths, lenses)
    aligner = IncrementalAligner(CONFIG, 3)
    edges = predict_all(truth, window_pairs(8, 3), noise=0.01)
    for k in range(8):
        new = [e for e in edges if max(e.i, e.j) == k]
        update = aligner.add(k, new, camera=f"camera {k % 2}", size=(24, 32))
        if k > 2:
            assert update.focal_px == pytest.approx(30 if k % 2 == 0 else 40, rel=3e-3)
            assert 0 < update.focal_spread_px < 1


def test_every_keyframe_has_a_focal_of_its_own_when_none_is_shared():
    a, b = make_truth(8, focal=30.0), make_truth(8, focal=40.0)
    truth = type(a)(a.poses, a.depths, [(a if k % 2 == 0 else b).intrinsics[k] for k in range(8)])
    aligner = IncrementalAligner(AlignmentConfig(grid=24, share_focal=False), 3)
    edges = predict_all(truth, window_pairs(8, 3), noise=0.01)
    estimates = {}
    for k in range(8):
        new = [e for e in edges if max(e.i, e.j) == k]
        update = aligner.add(k, new, camera="zoom", size=(24, 32))
        estimates.update({k: update.view, **update.moved})
    focals = [estimates[k].intrinsics.focal_px for k in range(8)]
    assert len(set(focals)) == 8
    assert focals == pytest.approx([30, 40] * 4, rel=1e-2)


def test_depth_may_begin_after_a_turn_on_the_spot():
    truth = make_truth(6)
    truth.poses[:2, :3, 3] = 0
    flat = type(truth)(truth.poses, [np.full((24, 32), 7.0)] * 6, truth.intrinsics)
    edges = [
        predict(flat, i, j, state=PairState.ROTATION_ONLY) if {i, j} == {0, 1} else predict(truth, i, j)
        for i, j in window_pairs(6, 3)
    ]
    estimates, updates = walk(truth, edges, 3)
    assert updates[1].view.registered and not updates[1].view.depth.any()
    np.testing.assert_allclose(estimates[0].camera_to_world, np.eye(4), atol=1e-9)
    assert compare(truth, estimates).worst < 1e-3


def test_landscape_and_portrait_keyframes_mix():
    truth = make_truth(5, size=[(24, 32), (32, 24), (24, 32), (32, 24), (24, 32)])
    estimates, _ = walk(truth, predict_all(truth, window_pairs(5, 2)), 2)
    assert compare(truth, estimates).worst < 5e-5
    assert estimates[1].depth.shape == (32, 24)


def test_a_wrong_edge_in_the_window_is_outvoted():
    truth, other = make_truth(8), make_truth(8, seed=99, spacing=-0.7)
    rng = np.random.default_rng(0)
    edges = [predict(other if (i, j) in {(5, 3), (4, 2)} else truth, i, j, rng, 0.01) for i, j in window_pairs(8, 3)]
    estimates, _ = walk(truth, edges, 3)
    gap = compare(truth, estimates)
    assert gap.rotation < 0.3 and gap.centre < 0.05


def test_wrong_calls_say_what_is_wrong():
    truth = make_truth(3)
    edges = predict_all(truth, window_pairs(3, 2))
    aligner = IncrementalAligner(CONFIG, 2)
    aligner.add(0, [], camera="left", size=(24, 32))
    with pytest.raises(ValueError, match="window must be at least 1"):
        IncrementalAligner(CONFIG, 0)
    with pytest.raises(ValueError, match="must touch keyframe 1"):
        aligner.add(1, [e for e in edges if 1 not in (e.i, e.j)], camera="left", size=(24, 32))
    with pytest.raises(ValueError, match="index must be new, got 0"):
        aligner.add(0, [], camera="left", size=(24, 32))
    with pytest.raises(ValueError, match="32x24 pointmaps, got 64x48"):
        aligner.add(1, [], camera="left", size=(24, 32), intrinsics=Intrinsics.from_focal(60, 64, 48))
    with pytest.raises(AlignmentError, match="keyframe 1 must be"):
        aligner.add(1, [e for e in edges if max(e.i, e.j) == 1], camera="left", size=(48, 64))
    update = aligner.add(1, [e for e in edges if max(e.i, e.j) == 1], camera="left", size=(24, 32))
    assert update.view.registered


def test_a_change_of_the_world_is_followed_and_the_walk_goes_on():
    truth = make_truth(8)
    edges = predict_all(truth, window_pairs(8, 2))
    aligner = IncrementalAligner(CONFIG, 2)
    change = Similarity(1.7, Rotation.from_rotvec([0.2, -0.5, 1.0]).as_matrix(), np.array([3.0, 1, -2]))
    estimates = {}
    for k in range(8):
        update = aligner.add(k, [e for e in edges if max(e.i, e.j) == k], camera="left", size=(24, 32))
        estimates.update({k: update.view, **update.moved})
        if k == 4:
            aligner.move(change)
            estimates = {v: changed_view(view, change) for v, view in estimates.items()}
    assert compare(truth, estimates).worst < 1e-4


def newest(truth, edges, monkeypatch, still):
    """The estimates after a walk of which every keyframe was estimated anew that moved by ``still`` or more."""
    aligner, estimates, updates = IncrementalAligner(CONFIG, 3), {}, []
    monkeypatch.setattr(dense, "STILL", still)
    for k in range(truth.views):
        new = [e for e in edges if max(e.i, e.j) == k]
        updates.append(aligner.add(k, new, camera="left", size=(24, 32)))
        estimates.update({k: updates[-1].view, **updates[-1].moved})
    return {**estimates, **aligner.settle()}, updates


def test_keyframes_that_hardly_moved_are_estimated_anew_when_they_leave_and_end_as_if_they_always_were(monkeypatch):
    truth = make_truth(9, seed=3)
    edges = predict_all(truth, window_pairs(9, 3), noise=0.03)
    lazy, updates = newest(truth, edges, monkeypatch, dense.STILL)
    eager, every = newest(truth, edges, monkeypatch, 0.0)
    assert [len(update.refined) for update in every] == [len(update.moved) for update in every]
    assert sum(len(update.refined) for update in updates) < 0.6 * sum(len(update.refined) for update in every)
    assert all(update.left.keys() <= update.refined for update in updates)
    for k in range(9):
        np.testing.assert_array_equal(lazy[k].camera_to_world, eager[k].camera_to_world)
        np.testing.assert_array_equal(lazy[k].depth, eager[k].depth)
        np.testing.assert_array_equal(lazy[k].confidence, eager[k].confidence)


def test_a_keyframe_that_hardly_moved_has_its_depth_to_the_present_scale_at_its_present_pose(monkeypatch):
    truth = make_truth(9, seed=3)
    edges = predict_all(truth, window_pairs(9, 3), noise=0.03)
    _, updates = newest(truth, edges, monkeypatch, dense.STILL)
    _, every = newest(truth, edges, monkeypatch, 0.0)
    carried = [(k, v) for k, update in enumerate(updates) for v in update.moved.keys() - update.refined]
    assert len(carried) > 6
    for k, v in carried:
        lazy, eager = updates[k].moved[v], every[k].moved[v]
        np.testing.assert_array_equal(lazy.camera_to_world, eager.camera_to_world)
        assert lazy.intrinsics == eager.intrinsics
        assert np.median(lazy.depth / eager.depth) == pytest.approx(1, abs=2e-3)
        assert np.median(abs(lazy.depth / eager.depth - 1)) < 0.02


def test_a_keyframe_that_moved_is_estimated_anew_at_once(monkeypatch):
    truth, other = make_truth(6, seed=3), make_truth(6, seed=99, spacing=-0.7)
    good = predict_all(truth, window_pairs(6, 3), noise=0.01)
    edges = [predict(other, 3, 2) if (e.i, e.j) == (3, 2) else e for e in good]  # keyframe 3 begins at a wrong place
    _, updates = newest(truth, edges, monkeypatch, dense.STILL)
    assert updates[1].refined == {0}  # it had no depth
    calm = newest(truth, good, monkeypatch, dense.STILL)[1]
    early, usual = ([update.refined - update.left.keys() for update in walk[2:]] for walk in (updates, calm))
    assert any(early) and not any(usual)
