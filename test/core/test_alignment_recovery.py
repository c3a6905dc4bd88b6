"""Keyframes that fail or get lost: what alignment keyframe by keyframe remembers of them, which is nothing."""

import numpy as np
import pytest
from alignment_scenes import changed, compare, make_truth, predict, predict_all, window_pairs

from dust3r_ros.alignment import IncrementalAligner
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge

CONFIG = AlignmentConfig(grid=24)


def assert_same_update(update, expected):
    assert (update.focal_px, update.focal_spread_px) == (expected.focal_px, expected.focal_spread_px)
    assert update.edge_residual == expected.edge_residual
    assert update.moved.keys() == expected.moved.keys() and update.left.keys() == expected.left.keys()
    pairs = [(update.view, expected.view), *((update.moved[v], expected.moved[v]) for v in expected.moved)]
    for found, wanted in pairs:
        np.testing.assert_array_equal(found.camera_to_world, wanted.camera_to_world)
        np.testing.assert_array_equal(found.depth, wanted.depth)
        assert found.intrinsics == wanted.intrinsics


def test_a_keyframe_that_shares_nothing_is_refused_and_the_walk_goes_on():
    truth = make_truth(6)
    edges = predict_all(truth, window_pairs(6, 3))
    aligner = IncrementalAligner(CONFIG, 3)
    estimates = {}
    for k in range(6):
        new = [e for e in edges if max(e.i, e.j) == k and 3 not in (e.i, e.j)]
        if k == 3:
            nothing = np.zeros((24, 32), np.float32)
            new = [changed(e, conf_i=nothing, conf_j=nothing) for e in edges if max(e.i, e.j) == 3]
        update = aligner.add(k, new, camera="left", size=(24, 32))
        assert update.view.registered == (k != 3)
        if k == 3:
            assert not update.moved and not update.view.depth.any()
            continue
        estimates.update({k: update.view, **update.moved})
    assert compare(truth, estimates, only=[0, 1, 2, 4, 5]).worst < 5e-5


def test_a_keyframe_that_fails_leaves_nothing_behind(monkeypatch):
    truth = make_truth(6)
    edges = predict_all(truth, window_pairs(6, 3))
    aligner = IncrementalAligner(CONFIG, 3)
    estimates = {}

    def fail(*_, **__):
        raise RuntimeError("no solution")

    for k in range(6):
        new = [e for e in edges if max(e.i, e.j) == k and (k == 3 or 3 not in (e.i, e.j))]
        if k == 3:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no solution"):
                patch.setattr("dust3r_ros.alignment.incremental.solve", fail)
                aligner.add(k, new, camera="left", size=(24, 32))
            assert (aligner.held_views, aligner.held_edges) == (3, 6)
            continue
        update = aligner.add(k, new, camera="left", size=(24, 32))
        assert k not in update.moved and 3 not in update.moved
        estimates.update({k: update.view, **update.moved})
    assert compare(truth, estimates, only=[0, 1, 2, 4, 5]).worst < 5e-5


@pytest.mark.parametrize("stage", ["incremental.solve", "dense.fuse_view"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_keyframe_that_failed_can_be_added_again_as_if_nothing_had_been(monkeypatch, stage, at):
    truth = make_truth(6)
    edges = predict_all(truth, window_pairs(6, 2), noise=0.03)
    smooth, broken = (IncrementalAligner(CONFIG, 2) for _ in "ab")

    def fail(*_, **__):
        raise RuntimeError("no solution")

    for k in range(6):
        new = [e for e in edges if max(e.i, e.j) == k]
        if k == at:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no solution"):
                patch.setattr(f"dust3r_ros.alignment.{stage}", fail)
                broken.add(k, new, camera="left", size=(24, 32))
        expected = smooth.add(k, new, camera="left", size=(24, 32))
        update = broken.add(k, new, camera="left", size=(24, 32))
        assert_same_update(update, expected)
        assert broken.residuals == smooth.residuals


def test_a_keyframe_that_cannot_be_placed_teaches_no_focal():
    truth, other = make_truth(4), make_truth(4, focal=45.0)
    edges = predict_all(truth, window_pairs(4, 2), noise=0.03)
    smooth, lost = (IncrementalAligner(CONFIG, 2) for _ in "ab")
    for k in range(4):
        new = [e for e in edges if max(e.i, e.j) == k]
        if k == 3:
            alone = Edge(9, 9, predict(other, 0, 0).prediction)
            assert not lost.add(9, [alone], camera="left", size=(24, 32)).view.registered
        expected = smooth.add(k, new, camera="left", size=(24, 32))
        assert_same_update(lost.add(k, new, camera="left", size=(24, 32)), expected)


def test_a_lost_keyframe_is_placed_by_old_ones_and_the_window_goes_on_there():
    truth = make_truth(14, seed=4)
    truth.poses[10:, :3, 3] = truth.poses[:4, :3, 3] + [0.1, 0.2, 0]  # back at the beginning
    aligner = IncrementalAligner(CONFIG, 2)
    estimates, anchors = {}, {}
    edges = predict_all(truth, window_pairs(14, 2), noise=0.005)
    for k in range(10):
        update = aligner.add(k, [e for e in edges if max(e.i, e.j) == k], camera="left", size=(24, 32))
        estimates.update({k: update.view, **update.moved})
        anchors.update(update.left)
    assert sorted(anchors) == list(range(8))  # all but the window
    np.testing.assert_array_equal(anchors[3].camera_to_world, estimates[3].camera_to_world)
    assert anchors[3].intrinsics == estimates[3].intrinsics
    assert anchors[3].reach == pytest.approx(np.median(estimates[3].depth), rel=0.02)
    old = {k: anchors[k] for k in (0, 1)}
    links = predict_all(truth, [(0, 10), (10, 0), (1, 10), (10, 1)], noise=0.005)
    window = {k: aligner.anchor(k).intrinsics for k in (8, 9)}
    update = aligner.relocalise(10, links, old, camera="left", size=(24, 32))
    assert update.view.registered
    assert update.moved.keys() == update.refined == {8}  # 9 was estimated last when it was added
    np.testing.assert_array_equal(update.moved[8].camera_to_world, update.left[8].camera_to_world)
    assert {k: anchor.intrinsics for k, anchor in update.left.items()} == window  # as they were published
    estimates[10] = update.view
    for k in range(11, 14):
        near = [e for e in edges if max(e.i, e.j) == k and min(e.i, e.j) >= 10]
        update = aligner.add(k, near, camera="left", size=(24, 32))
        estimates.update({k: update.view, **update.moved})
    assert compare(truth, estimates).centre < 0.02
    assert aligner.held_views <= 3 * 2


def test_a_keyframe_that_old_ones_cannot_place_leaves_the_window_as_it_was():
    truth = make_truth(8)
    edges = predict_all(truth, window_pairs(8, 2), noise=0.03)
    aligner, smooth = (IncrementalAligner(CONFIG, 2) for _ in "ab")
    anchors = {}
    for k in range(6):
        new = [e for e in edges if max(e.i, e.j) == k]
        anchors.update(aligner.add(k, new, camera="left", size=(24, 32)).left)
        smooth.add(k, new, camera="left", size=(24, 32))
    held = aligner.held
    nothing = np.zeros((24, 32), np.float32)
    empty = [changed(e, conf_i=nothing, conf_j=nothing) for e in predict_all(truth, [(0, 6), (6, 0)])]
    empty.append(Edge(6, 6, predict(make_truth(1, focal=45.0), 0, 0).prediction))  # a focal and no relation
    update = aligner.relocalise(6, empty, {0: anchors[0]}, camera="left", size=(24, 32))
    assert not update.view.registered and not update.left
    assert aligner.held == held
    new = [e for e in edges if max(e.i, e.j) == 6]
    update = aligner.add(6, new, camera="left", size=(24, 32))
    assert update.view.registered and set(update.moved) == {4, 5}
    assert_same_update(update, smooth.add(6, new, camera="left", size=(24, 32)))
