"""Batch alignment on scenes with exact truth."""

from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import changed, compare, make_truth, predict, predict_all, window_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import align
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, Intrinsics, PairState
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity, invert_pose

EXACT = 2e-5


def noisy_scene(views=5, noise=0.02, seed=1, **options):
    truth = make_truth(views, seed=seed, **options)
    return truth, predict_all(truth, window_pairs(views, 3), seed, noise)


@pytest.mark.parametrize(("views", "window"), [(2, 1), (3, 1), (6, 2), (5, 4)])
def test_exact_predictions_give_the_exact_scene(views, window):
    truth = make_truth(views)
    scene = align(predict_all(truth, window_pairs(views, window)), views)
    assert compare(truth, scene.views).worst < EXACT
    assert max(scene.edge_residual.values()) < EXACT
    assert all(v.registered for v in scene.views)


def test_the_world_is_the_first_views_frame_and_its_median_depth_the_unit():
    truth = make_truth(3)
    scene = align(predict_all(truth, window_pairs(3, 2)), 3)
    np.testing.assert_allclose(scene.views[0].camera_to_world, np.eye(4), atol=1e-12)
    assert np.median(scene.views[0].depth) == pytest.approx(1, abs=0.02)
    assert not scene.metric


def test_noise_is_averaged_over_all_predictions_of_a_pixel():
    truth, edges = noisy_scene(6, noise=0.03)
    gap = compare(truth, align(edges, 6).views)
    assert gap.depth < 0.8 * 0.03 / np.sqrt(6)  # mean absolute error of the average of at least 6
    assert gap.rotation < 0.1
    assert gap.centre < 0.02
    assert gap.focal < 1e-3


def test_views_of_different_sizes_and_orientations_are_aligned_together():
    truth = make_truth(4, size=[(24, 32), (32, 24), (24, 32), (32, 24)])
    scene = align(predict_all(truth, window_pairs(4, 3)), 4)
    assert compare(truth, scene.views).worst < EXACT
    assert scene.views[1].depth.shape == (32, 24)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(1e-3, 1e3))
def test_units_of_the_predictions_do_not_matter(seed, factor):
    _, edges = noisy_scene(3, seed=seed)
    p = edges[1].prediction
    scaled = [edges[0], changed(edges[1], points_i=p.points_i * factor, points_j=p.points_j * factor), *edges[2:]]
    same(align(edges, 3).views, align(scaled, 3).views)


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 10_000))
def test_the_order_of_views_does_not_matter(order, seed):
    _, edges = noisy_scene(4, seed=seed)
    renamed = [Edge(order[e.i], order[e.j], e.prediction) for e in edges]
    one, other = align(edges, 4).views, align(renamed[::-1], 4).views
    same(one, [other[order[v]] for v in range(4)], tolerance=1e-3)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000), turn=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    shift=st.lists(st.floats(-100, 100), min_size=3, max_size=3), unit=st.floats(1e-4, 1e4),
)  # fmt: skip
def test_the_world_of_known_poses_does_not_matter(seed, turn, shift, unit):
    truth, edges = noisy_scene(4, seed=seed)
    known = [truth.poses[0], None, None, truth.poses[3]]
    away = Similarity(unit, Rotation.from_rotvec(turn).as_matrix(), np.array(shift))
    moved = [away.apply_to_pose(p) if p is not None else None for p in known]
    one, other = align(edges, 4, poses=known).views, align(edges, 4, poses=moved).views
    same(one, other)
    assert np.median(other[1].depth) == pytest.approx(unit * np.median(one[1].depth), rel=1e-4)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(-7, -2))
def test_errors_vanish_with_the_noise(seed, noise):
    truth, edges = noisy_scene(3, seed=seed, noise=10**noise)
    gap = compare(truth, align(edges, 3).views)
    assert gap.rotation < 30 * 10**noise + 1e-4
    assert max(gap.centre, gap.focal, gap.depth) < 2 * 10**noise + 1e-5


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), which=st.integers(0, 11))
def test_an_edge_whose_confidence_vanishes_is_as_good_as_left_out(seed, which):
    _, edges = noisy_scene(4, seed=seed)
    faint = np.full((24, 32), 1e-9, np.float32)
    weak = [changed(e, conf_i=faint, conf_j=faint) if k == which else e for k, e in enumerate(edges)]
    same(align([e for k, e in enumerate(edges) if k != which], 4).views, align(weak, 4).views, tolerance=1e-3)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1e-6, 1e-3, 0.05]))
def test_views_ever_closer_together_end_as_one(seed, size):
    truth, edges = noisy_scene(3, seed=seed, noise=0.005, spacing=size)
    scene = align(edges, 3)
    assert compare(truth, scene.views).rotation < 0.2
    for view in scene.views:
        assert np.linalg.norm(view.camera_to_world[:3, 3]) < 1.5 * size + 0.01


def same(one, other, tolerance=1e-4):
    """Equal up to the choice of world and unit."""
    unit = np.median(one[0].depth) / np.median(other[0].depth)
    for a, b in zip(one, other):
        x = invert_pose(one[0].camera_to_world) @ a.camera_to_world
        y = invert_pose(other[0].camera_to_world) @ b.camera_to_world
        np.testing.assert_allclose(x[:3, :3], y[:3, :3], atol=tolerance)
        np.testing.assert_allclose(x[:3, 3], unit * y[:3, 3], atol=10 * tolerance)
        np.testing.assert_allclose(a.depth, unit * b.depth, rtol=20 * tolerance)
        assert a.intrinsics.focal_px == pytest.approx(b.intrinsics.focal_px, rel=10 * tolerance)


def test_known_intrinsics_are_honoured_exactly():
    truth, edges = noisy_scene()
    scene = align(edges, 5, intrinsics=truth.intrinsics)
    assert [v.intrinsics for v in scene.views] == truth.intrinsics
    assert compare(truth, scene.views).rotation < 0.2


def test_known_intrinsics_of_one_view_leave_the_others_to_be_estimated():
    _, edges = noisy_scene(4)
    odd = Intrinsics(31.0, 29.0, 15.0, 13.0, 32, 24)
    scene = align(edges, 4, intrinsics=[None, odd, None, None])
    assert scene.views[1].intrinsics == odd
    others = {scene.views[v].intrinsics for v in (0, 2, 3)}
    assert len(others) == 1 and others != {odd}


def test_a_principal_point_off_the_centre_is_used():
    truth = make_truth(3)
    lens = Intrinsics(33.0, 28.0, 13.0, 14.0, 32, 24)
    shifted = type(truth)(truth.poses, truth.depths, [lens] * 3)
    scene = align(predict_all(shifted, window_pairs(3, 2)), 3, intrinsics=[lens] * 3)
    assert compare(shifted, scene.views).worst < EXACT


def test_one_focal_for_each_camera_when_shared_and_for_each_view_when_not():
    a, b = make_truth(4, focal=30.0), make_truth(4, focal=40.0)
    mixed = type(a)(a.poses, a.depths, [a.intrinsics[0], b.intrinsics[1], a.intrinsics[2], b.intrinsics[3]])
    edges = predict_all(mixed, window_pairs(4, 3), noise=0.01)
    shared = align(edges, 4, cameras=["left", "right", "left", "right"])
    focals = [v.intrinsics.focal_px for v in shared.views]
    assert focals[0] == focals[2] and focals[1] == focals[3]
    assert focals == pytest.approx([30, 40, 30, 40], rel=2e-3)
    own = align(edges, 4, AlignmentConfig(share_focal=False))
    focals = [v.intrinsics.focal_px for v in own.views]
    assert len(set(focals)) == 4
    assert focals == pytest.approx([30, 40, 30, 40], rel=5e-3)


def test_pixels_that_lie_are_outvoted():
    truth, edges = noisy_scene(5, noise=0.01)
    rng = np.random.default_rng(0)
    spoiled = []
    for e in edges:
        points = e.prediction.points_j.copy()
        points[rng.random(points.shape[:2]) < 0.2] *= 3
        spoiled.append(changed(e, points_j=points))
    gap = compare(truth, align(spoiled, 5).views)
    assert gap.rotation < 0.15 and gap.centre < 0.02 and gap.depth < 0.01


@pytest.mark.parametrize("wrong", [(0, 3), (2, 1), (3, 2)])
def test_a_wrong_edge_is_outvoted_and_shows_in_its_residual(wrong):
    truth = make_truth(5)
    rng = np.random.default_rng(3)
    other = make_truth(5, seed=99, spacing=-0.7)
    edges = [predict(other if (i, j) == wrong else truth, i, j, rng, 0.01) for i, j in window_pairs(5, 3)]
    scene = align(edges, 5)
    gap = compare(truth, scene.views)
    assert gap.rotation < 0.2 and gap.centre < 0.03
    residual = dict(scene.edge_residual)
    bad = residual.pop(wrong)
    assert bad > 3 * max(residual.values())


def test_missing_pixels_are_filled_from_the_edges_that_have_them():
    truth = make_truth(4)
    rng = np.random.default_rng(0)
    edges = []
    for e in predict_all(truth, window_pairs(4, 3)):
        conf = [np.where(rng.random(c.shape) < 0.4, 0, c) for c in (e.prediction.conf_i, e.prediction.conf_j)]
        edges.append(changed(e, conf_i=conf[0], conf_j=conf[1]))
    scene = align(edges, 4)
    assert compare(truth, scene.views).worst < EXACT
    assert min((v.depth > 0).mean() for v in scene.views) > 0.9


def test_a_pixel_nobody_predicts_has_neither_depth_nor_confidence():
    truth = make_truth(3)
    edges = []
    for e in predict_all(truth, window_pairs(3, 2)):
        conf = {}
        for key, view in (("conf_i", e.i), ("conf_j", e.j)):
            c = getattr(e.prediction, key).copy()
            if view == 1:
                c[:6] = 0
            conf[key] = c
        edges.append(changed(e, **conf))
    view = align(edges, 3).views[1]
    assert not view.depth[:6].any() and not view.confidence[:6].any()
    assert (view.depth[6:] > 0).all() and (view.confidence[6:] > 0).all()


def test_points_that_are_not_finite_count_as_missing():
    truth = make_truth(3)
    edges = predict_all(truth, window_pairs(3, 2))
    for k, value in enumerate((np.nan, np.inf, -np.inf)):
        edges[k].prediction.points_i[::3, ::2] = value
        edges[k].prediction.points_j[1::3, :, 1] = value
        edges[k].prediction.conf_i[2, :] = np.nan
    assert compare(truth, align(edges, 3).views).worst < EXACT


@pytest.mark.parametrize("confident", [False, True])
def test_absurdly_near_far_or_sure_pixels_spoil_only_themselves(confident):
    truth = make_truth(4)
    rng = np.random.default_rng(1)
    spoiled = [np.zeros((24, 32), bool) for _ in range(4)]
    edges = []
    for e in predict_all(truth, window_pairs(4, 3), dtype=np.float32):
        p = e.prediction
        for view, points, conf in ((e.i, p.points_i, p.conf_i), (e.j, p.points_j, p.conf_j)):
            absurd = rng.random((24, 32)) < 0.02
            spoiled[view] |= absurd
            points[absurd] *= np.float32(10) ** rng.uniform(-36, 36, (absurd.sum(), 1)).astype(np.float32)
            if confident:
                conf[:] = np.float32(1e25)
        edges.append(e)
    scene = align(edges, 4)
    assert compare(truth, scene.views).rotation < 0.05
    clean = [np.where(bad, 0, view.depth) for bad, view in zip(spoiled, scene.views)]
    assert min((depth > 0).mean() for depth in clean) > 0.75
    assert compare(truth, [replace(view, depth=depth) for view, depth in zip(scene.views, clean)]).depth < 1e-3
    for view in scene.views:
        assert np.isfinite(view.depth).all() and np.isfinite(view.confidence).all()
        np.testing.assert_array_equal(view.depth > 0, view.confidence > 0)


def test_equal_confidences_of_one_are_enough():
    truth = make_truth(3)
    ones = np.ones((24, 32), np.float32)
    edges = [changed(e, conf_i=ones, conf_j=ones) for e in predict_all(truth, window_pairs(3, 2))]
    assert compare(truth, align(edges, 3).views).worst < EXACT


def test_two_identical_views_are_put_in_one_place():
    truth = make_truth(1)
    twice = type(truth)(truth.poses[[0, 0]], truth.depths * 2, truth.intrinsics * 2)
    scene = align(predict_all(twice, [(0, 1), (1, 0)], noise=0.01), 2)
    np.testing.assert_allclose(scene.views[1].camera_to_world, np.eye(4), atol=5e-3)
    assert np.isfinite(scene.views[1].depth).all() and scene.views[1].registered


def test_a_plane_seen_from_the_front_is_finite():
    truth = make_truth(3)
    flat = type(truth)(truth.poses, [np.full((24, 32), 3.0)] * 3, truth.intrinsics)
    assert compare(flat, align(predict_all(flat, window_pairs(3, 2)), 3).views).worst < EXACT


def test_views_without_edges_are_left_out_and_said_so():
    truth = make_truth(6)
    edges = predict_all(truth, [*window_pairs(3, 2), (4, 5), (5, 4)])
    scene = align(edges, 6)
    assert [v.registered for v in scene.views] == [True, True, True, False, False, False]
    assert compare(truth, scene.views, only=[0, 1, 2]).worst < EXACT
    np.testing.assert_array_equal(scene.views[4].camera_to_world, np.eye(4))
    assert not scene.views[4].depth.any()
    assert set(scene.edge_residual) == set(window_pairs(3, 2))


def test_failed_edges_are_not_used():
    truth = make_truth(4)
    edges = predict_all(truth, window_pairs(3, 2))
    rubbish = make_truth(4, seed=5)
    edges += [predict(rubbish, 2, 3, state=PairState.FAILED), predict(rubbish, 3, 2, state=PairState.FAILED)]
    scene = align(edges, 4)
    assert [v.registered for v in scene.views] == [True, True, True, False]


def test_one_direction_of_each_pair_is_enough():
    truth = make_truth(4)
    scene = align(predict_all(truth, [(0, 1), (1, 2), (2, 3), (0, 2)]), 4)
    assert compare(truth, scene.views, only=[0, 1, 2]).worst < EXACT
    assert scene.views[3].registered
    assert compare(truth, scene.views).worst < 1e-3


def test_an_edge_without_parallax_gives_rotation_and_leaves_depth_to_others():
    truth = make_truth(4)
    truth.poses[3, :3, 3] = truth.poses[2, :3, 3]
    flat = type(truth)(truth.poses, [np.full((24, 32), 7.0)] * 4, truth.intrinsics)
    edges = predict_all(truth, window_pairs(3, 2))
    edges += [predict(flat, i, j, state=PairState.ROTATION_ONLY) for i, j in ((2, 3), (3, 2))]
    scene = align(edges, 4)
    assert scene.views[3].registered
    gap = compare(truth, scene.views)
    assert gap.rotation < 1e-2 and gap.centre < 1e-2
    assert compare(truth, scene.views, only=[0, 1, 2]).depth < EXACT


def test_a_camera_that_only_turns_gets_rotations_and_no_depth():
    truth = make_truth(3)
    truth.poses[:, :3, 3] = 0
    flat = type(truth)(truth.poses, [np.full((24, 32), 7.0)] * 3, truth.intrinsics)
    edges = [predict(flat, i, j, state=PairState.ROTATION_ONLY) for i, j in window_pairs(3, 2)]
    scene = align(edges, 3, intrinsics=truth.intrinsics)
    for v in range(3):
        expected = truth.poses[0, :3, :3].T @ truth.poses[v, :3, :3]
        np.testing.assert_allclose(scene.views[v].camera_to_world[:3, :3], expected, atol=1e-3)
        assert scene.views[v].registered and not scene.views[v].depth.any()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_depth_fused_by_torch_is_that_of_numpy(device):
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    _, edges = noisy_scene(4)
    edges[0].prediction.points_i[3:5] = np.nan
    edges[1].prediction.points_j[:, 7] *= 1e20
    for e in edges:
        if e.i == 2:
            e.prediction.conf_i[:, 20:] = 0
    for a, b in zip(align(edges, 4).views, align(edges, 4, device=device).views):
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-5)
        np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-3)
        np.testing.assert_array_equal(a.camera_to_world, b.camera_to_world)
        assert b.depth.dtype == b.confidence.dtype == np.float32


def test_a_wrong_call_says_what_is_wrong():
    truth = make_truth(2)
    edges = predict_all(truth, [(0, 1), (1, 0)])
    with pytest.raises(AlignmentError, match="at least one edge"):
        align([], 2)
    with pytest.raises(ValueError, match="views 0 to 0"):
        align(edges, 1)
    with pytest.raises(ValueError, match="one entry for each of 2 views, got 1"):
        align(edges, 2, cameras=["left"])
    with pytest.raises(AlignmentError, match="32x24 predictions, got 64x48"):
        align(edges, 2, intrinsics=[None, Intrinsics.from_focal(60, 64, 48)])
    with pytest.raises(AlignmentError, match=r"confidence \(H, W\)"):
        align([changed(edges[0], conf_i=np.ones((3, 3)))], 2)
    with pytest.raises(AlignmentError, match="one size"):
        align([edges[0], predict(make_truth(2, size=(32, 24)), 1, 0)], 2)
    nothing = [changed(e, conf_i=np.zeros((24, 32), np.float32)) for e in edges]
    with pytest.raises(AlignmentError, match="none of 2 edges"):
        align(nothing, 2)
