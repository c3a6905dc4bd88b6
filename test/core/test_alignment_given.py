"""What is known of the views beforehand: honoured exactly, and it helps."""

import numpy as np
import pytest
from alignment_scenes import changed, compare, make_truth, predict, predict_all, window_pairs
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import align, align_components
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import make_pose

EXACT = 2e-5


def somewhere(poses, scale=3.7):
    """The same cameras in another world and unit."""
    turn = Rotation.from_rotvec([0.4, -1.2, 2.0]).as_matrix()
    return np.array([make_pose(turn @ p[:3, :3], scale * turn @ p[:3, 3] + (5, -6, 7)) for p in poses])


def test_all_poses_known_are_returned_as_given_and_fix_world_and_unit():
    truth = make_truth(4)
    poses = somewhere(truth.poses)
    scene = align(predict_all(truth, window_pairs(4, 2), noise=0.01), 4, poses=list(poses))
    for view, pose, depth in zip(scene.views, poses, truth.depths):
        np.testing.assert_array_equal(view.camera_to_world, pose)
        np.testing.assert_allclose(view.depth / (3.7 * depth), 1, atol=0.05)
        assert np.median(view.depth / depth) == pytest.approx(3.7, rel=2e-3)
        np.testing.assert_array_equal(view.pose_covariance, 0)


@pytest.mark.parametrize("known", [(0, 4), (1, 2), (3, 0)])
def test_two_known_poses_put_the_others_into_their_world(known):
    truth = make_truth(5)
    poses = somewhere(truth.poses)
    given = [pose if v in known else None for v, pose in enumerate(poses)]
    scene = align(predict_all(truth, window_pairs(5, 2)), 5, poses=given)
    for v, pose in enumerate(poses):
        np.testing.assert_allclose(scene.views[v].camera_to_world, pose, atol=3.7 * EXACT)
        np.testing.assert_allclose(scene.views[v].depth, 3.7 * truth.depths[v], rtol=1e-3)
        if v in known:
            np.testing.assert_array_equal(scene.views[v].camera_to_world, pose)


def test_known_poses_make_the_others_more_exact():
    truth = make_truth(7, spacing=0.6)
    edges = predict_all(truth, window_pairs(7, 1), seed=3, noise=0.05)
    poses = list(truth.poses)
    ends = [poses[0], None, None, None, None, None, poses[6]]
    free, held = align(edges, 7).views, align(edges, 7, poses=ends).views
    assert compare(truth, held).rotation < 0.6 * compare(truth, free).rotation
    worst = max(np.linalg.norm(v.camera_to_world[:3, 3] - p[:3, 3]) for v, p in zip(held, poses))
    assert worst < 0.05


def test_one_known_pose_fixes_the_world_and_leaves_the_unit():
    truth = make_truth(3)
    pose = somewhere(truth.poses)[1]
    scene = align(predict_all(truth, window_pairs(3, 2)), 3, poses=[None, pose, None])
    np.testing.assert_array_equal(scene.views[1].camera_to_world, pose)
    assert np.median(scene.views[1].depth) == pytest.approx(1, abs=0.02)
    assert compare(truth, scene.views).worst < EXACT


def test_known_poses_of_one_place_leave_the_unit_to_the_depth():
    truth = make_truth(3)
    truth.poses[1, :3, 3] = truth.poses[0, :3, 3]
    scene = align(predict_all(truth, window_pairs(3, 2)), 3, poses=[*truth.poses[:2], None])
    for v in (0, 1):
        np.testing.assert_array_equal(scene.views[v].camera_to_world, truth.poses[v])
    assert np.median(scene.views[0].depth) == pytest.approx(1, abs=0.02)
    assert compare(truth, scene.views).worst < EXACT


def test_centres_that_differ_by_rounding_alone_do_not_set_the_unit():
    truth = make_truth(3)
    truth.poses[1, :3, 3] = truth.poses[0, :3, 3]
    given = truth.poses[:2].copy()
    given[1, :3, 3] += (1e-8, -1e-8, 0)
    scene = align(predict_all(truth, window_pairs(3, 2), noise=0.01), 3, poses=[*given, None])
    for v in (0, 1):
        np.testing.assert_array_equal(scene.views[v].camera_to_world, given[v])
    assert np.median(scene.views[0].depth) == pytest.approx(1, abs=0.02)
    assert compare(truth, scene.views).rotation < 0.5


def test_a_short_known_baseline_sets_the_unit_of_depths_far_away():
    truth = make_truth(3, spacing=0.01)  # half a percent of the depth
    scene = align(predict_all(truth, window_pairs(3, 2)), 3, poses=[truth.poses[0], None, truth.poses[2]])
    for view, depth in zip(scene.views, truth.depths):
        np.testing.assert_allclose(view.depth, depth, rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-8, 1e7])
def test_known_poses_may_be_in_any_unit(unit):
    truth = make_truth(4)
    poses = somewhere(truth.poses, unit)
    scene = align(predict_all(truth, window_pairs(4, 2)), 4, poses=[poses[0], None, None, poses[3]])
    for view, pose, depth in zip(scene.views, poses, truth.depths):
        np.testing.assert_allclose(view.depth / unit, depth, rtol=2e-3)
        assert (view.confidence > 0).all()
        np.testing.assert_allclose(view.camera_to_world[:3, 3], pose[:3, 3], atol=1e-4 * unit)


def test_a_known_principal_point_leaves_the_focal_to_be_found():
    truth = make_truth(3)
    lens = Intrinsics(30.0, 30.0, 12.0, 14.5, 32, 24)
    shifted = type(truth)(truth.poses, truth.depths, [lens] * 3)
    edges = predict_all(shifted, window_pairs(3, 2))
    scene = align(edges, 3, principal_points=[(12.0, 14.5)] * 3)
    assert compare(shifted, scene.views).worst < EXACT
    assert all((v.intrinsics.cx, v.intrinsics.cy) == (12.0, 14.5) for v in scene.views)
    assert compare(shifted, align(edges, 3).views).worst > 100 * EXACT


def test_a_known_focal_is_kept_and_the_principal_point_is_the_centre():
    truth = make_truth(3, focal=41.0)
    known = Intrinsics.from_focal(41.0, 32, 24)
    scene = align(predict_all(truth, window_pairs(3, 2), noise=0.02), 3, intrinsics=[known] * 3)
    assert [v.intrinsics for v in scene.views] == [known] * 3
    assert compare(truth, scene.views).rotation < 0.3


def test_a_wrong_known_pose_shows_in_the_residuals():
    truth = make_truth(4)
    edges = predict_all(truth, window_pairs(4, 3), noise=0.01)
    poses = list(truth.poses)
    right = align(edges, 4, poses=poses).edge_residual
    poses[2] = poses[2] @ make_pose(np.eye(3), [1.5, 0, 0])
    wrong = align(edges, 4, poses=poses)
    assert max(wrong.edge_residual.values()) > 5 * max(right.values())
    np.testing.assert_array_equal(wrong.views[2].camera_to_world, poses[2])


def test_separate_sets_of_views_become_separate_scenes():
    one, other = make_truth(3), make_truth(2, seed=8)
    edges = predict_all(one, window_pairs(3, 2))
    for e in predict_all(other, window_pairs(2, 1)):
        edges.append(type(e)(e.i + 4, e.j + 4, e.prediction))
    first, second = align_components(edges, 7)
    assert [v.registered for v in first.views] == [True, True, True, False, False, False, False]
    assert [v.registered for v in second.views] == [False, False, False, False, True, True, False]
    assert compare(one, first.views, only=[0, 1, 2]).worst < EXACT
    assert compare(other, second.views[4:6]).worst < EXACT
    assert set(first.edge_residual).isdisjoint(second.edge_residual)
    same = align(edges, 7)
    np.testing.assert_array_equal(same.views[1].camera_to_world, first.views[1].camera_to_world)


def test_separate_sets_with_known_poses_share_a_world():
    truth = make_truth(6)
    edges = predict_all(truth, [*window_pairs(3, 2), (3, 4), (4, 3), (4, 5), (5, 4)])
    poses = [truth.poses[0], None, truth.poses[2], truth.poses[3], truth.poses[4], None]
    for scene in align_components(edges, 6, poses=poses):
        for view, pose in zip(scene.views, truth.poses):
            if view.registered:
                np.testing.assert_allclose(view.camera_to_world, pose, atol=1e-4)


def test_one_focal_for_all_views_is_the_default():
    truth = make_truth(4)
    edges = predict_all(truth, window_pairs(4, 3), noise=0.02)
    assert len({v.intrinsics.focal_px for v in align(edges, 4).views}) == 1
    assert len({v.intrinsics.focal_px for v in align(edges, 4, AlignmentConfig(share_focal=False)).views}) == 4


def test_what_is_known_but_cannot_be_is_refused_by_name():
    truth = make_truth(2)
    edges = predict_all(truth, [(0, 1), (1, 0)])
    with pytest.raises(ValueError, match="poses must have one entry for each of 2 views, got 1"):
        align(edges, 2, poses=[np.eye(4)])
    for bad in (np.eye(3), np.diag([1.0, 1, -1, 1]), 2 * np.eye(4), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match=r"pose of view 1 must be a rigid transform \(4, 4\)"):
            align(edges, 2, poses=[None, bad])
    with pytest.raises(ValueError, match="view 0 must have intrinsics or a principal point, got both"):
        align(edges, 2, intrinsics=truth.intrinsics, principal_points=[(16, 12), None])
    with pytest.raises(AlignmentError, match="principal point of view 1 must lie in its 32x24 predictions"):
        align(edges, 2, principal_points=[None, (32, 40)])


def test_edges_between_views_of_unusable_predictions_do_not_connect():
    truth = make_truth(4)
    edges = predict_all(truth, [(0, 1), (1, 0), (1, 2), (2, 3), (3, 2)])
    edges[2] = changed(edges[2], conf_j=np.zeros((24, 32), np.float32))
    assert [sum(v.registered for v in scene.views) for scene in align_components(edges, 4)] == [2, 2]


def test_a_view_paired_with_itself_gets_depth_and_a_focal():
    truth = make_truth(1)
    scene = align([predict(truth, 0, 0)], 2)
    assert [v.registered for v in scene.views] == [True, False]
    ratio = scene.views[0].depth / truth.depths[0]
    np.testing.assert_allclose(ratio / np.median(ratio), 1, rtol=1e-4)
    assert scene.views[0].intrinsics.focal_px == pytest.approx(30, rel=1e-4)
