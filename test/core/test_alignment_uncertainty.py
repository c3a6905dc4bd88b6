"""How sure alignment says it is, what it does with wrong edges, and with input that does not tell everything."""

from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import changed, compare, make_truth, predict, predict_all, window_pairs
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import align
from dust3r_ros.alignment.uncertainty import correlation_area
from dust3r_ros.data import Edge, PairState
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import invert_pose, make_pose

SIZE = (24, 32)


def smooth_noise(rng, shape, reach):
    """Noise of unit variance whose neighbouring pixels go together over ``reach`` pixels."""
    field = rng.normal(size=shape)
    if not reach:
        return field
    field = gaussian_filter(field, reach, axes=(0, 1), mode="wrap")
    return field / field.std()


def noisy(truth, pairs, seed, noise, reach):
    rng = np.random.default_rng(seed)
    edges = []
    for i, j in pairs:
        edge = predict(truth, i, j, scale=np.exp(rng.normal(0, 0.2)))
        maps = {}
        for name in ("points_i", "points_j"):
            points = getattr(edge.prediction, name)
            distance = np.linalg.norm(points, axis=-1, keepdims=True)
            points = points * (1 + noise * smooth_noise(rng, (*SIZE, 1), reach))
            maps[name] = points + noise / 3 * distance * smooth_noise(rng, (*SIZE, 3), reach)
        edges.append(changed(edge, **maps))
    return edges


def normalised_errors(truth, scene):
    """Squared pose errors of all but the first view by their covariance, divided by the six degrees of freedom."""
    unit = np.exp(np.mean(np.log(truth.depths[0] / scene.views[0].depth)))
    found = []
    for view, pose in zip(scene.views[1:], truth.poses[1:]):
        true = invert_pose(truth.poses[0]) @ pose
        true[:3, 3] /= unit
        gap = invert_pose(view.camera_to_world) @ true
        step = np.concatenate([gap[:3, 3], Rotation.from_matrix(gap[:3, :3]).as_rotvec()])
        found.append(step @ np.linalg.solve(view.pose_covariance, step) / 6)
    return found


@pytest.mark.parametrize("reach", [0, 1.5, 2.5])
def test_errors_are_as_large_as_the_covariance_says(reach):
    truth = make_truth(4, size=SIZE)
    errors = [
        e
        for seed in range(20)
        for e in normalised_errors(truth, align(noisy(truth, window_pairs(4, 2), seed, 0.02, reach), 4))
    ]
    assert 0.5 < np.mean(errors) < 2.0


def test_the_covariance_of_the_first_view_is_none_and_of_the_others_positive():
    truth = make_truth(3, size=SIZE)
    scene = align(noisy(truth, window_pairs(3, 2), 0, 0.02, 0), 3)
    np.testing.assert_allclose(scene.views[0].pose_covariance, 0, atol=1e-15)
    for view in scene.views[1:]:
        covariance = view.pose_covariance
        np.testing.assert_allclose(covariance, covariance.T, rtol=1e-6, atol=1e-12)
        assert np.linalg.eigvalsh((covariance + covariance.T) / 2).min() > 0


def test_covariance_grows_along_a_chain_and_with_the_noise():
    truth = make_truth(6, size=SIZE)
    size = {}
    for noise in (0.01, 0.03):
        scene = align(noisy(truth, window_pairs(6, 1), 0, noise, 0), 6)
        size[noise] = [np.sqrt(np.trace(v.pose_covariance[3:, 3:])) for v in scene.views]
    assert size[0.01] == sorted(size[0.01])
    np.testing.assert_allclose(np.array(size[0.03][1:]) / size[0.01][1:], 3, rtol=0.3)


def test_covariance_is_in_the_scenes_own_unit():
    truth = make_truth(3, size=SIZE)
    edges = noisy(truth, window_pairs(3, 2), 0, 0.02, 0)
    poses = [truth.poses[0], None, truth.poses[2]]
    larger = [p if p is None else make_pose(p[:3, :3], 1e4 * p[:3, 3]) for p in poses]
    one, other = (align(edges, 3, poses=p).views[1].pose_covariance for p in (poses, larger))
    units = np.array([1e4] * 3 + [1] * 3)
    np.testing.assert_allclose(other, one * units[:, None] * units, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("reach", "area"), [(0, 1.0), (1.5, 4 * np.pi * 1.5**2), (2.5, 4 * np.pi * 2.5**2)])
def test_the_area_over_which_noise_goes_together(reach, area):
    rng = np.random.default_rng(0)
    maps = [smooth_noise(rng, (40, 50), reach) for _ in range(40)]
    assert correlation_area(maps) == pytest.approx(area, rel=0.15)
    assert correlation_area([np.zeros((4, 5))]) == 1.0
    assert correlation_area([]) == 1.0


def wrong_edge(truth, i, j):
    other = make_truth(truth.views, size=SIZE, seed=99, spacing=-0.7)
    return predict(other, i, j)


@pytest.mark.parametrize("wrong", [{(0, 3)}, {(2, 1), (4, 5)}, {(1, 3), (3, 1), (5, 2)}])
def test_planted_wrong_edges_are_named_and_do_no_harm(wrong):
    truth = make_truth(6, size=SIZE)
    good = {(e.i, e.j): e for e in predict_all(truth, window_pairs(6, 3), noise=0.01)}
    without = align([e for name, e in good.items() if name not in wrong], 6)
    scene = align([wrong_edge(truth, *name) if name in wrong else e for name, e in good.items()], 6)
    assert scene.wrong_edges == wrong
    assert not without.wrong_edges
    assert set(scene.edge_residual) == set(good)
    assert min(scene.edge_residual[name] for name in wrong) > 3 * max(without.edge_residual.values())
    gap, reference = compare(truth, scene.views), compare(truth, without.views)
    assert gap.rotation < 1.05 * reference.rotation + 1e-4
    assert gap.centre < 1.05 * reference.centre + 1e-4
    assert gap.depth < 1.05 * reference.depth


def test_an_edge_that_alone_ties_a_view_to_the_others_is_never_left_out():
    truth = make_truth(4, size=SIZE)
    edges = predict_all(truth, window_pairs(3, 2), noise=0.01)
    scene = align([*edges, wrong_edge(truth, 2, 3)], 4)
    assert scene.views[3].registered and not scene.wrong_edges
    assert compare(truth, scene.views, only=[0, 1, 2]).rotation < 0.3


def finite(scene):
    for view in scene.views:
        assert np.isfinite(view.camera_to_world).all() and np.isfinite(view.depth).all()
        assert np.isfinite(view.confidence).all() and np.isfinite(view.intrinsics.focal_px)
        np.testing.assert_allclose(view.camera_to_world[:3, :3] @ view.camera_to_world[:3, :3].T, np.eye(3), atol=1e-9)
        assert view.pose_covariance is None or not np.isnan(view.pose_covariance).any()
    return scene


def test_identical_views_are_in_one_place_and_surely_so():
    truth = make_truth(1, size=SIZE)
    twice = type(truth)(truth.poses[[0, 0]], truth.depths * 2, truth.intrinsics * 2)
    view = finite(align(noisy(twice, [(0, 1), (1, 0)], 0, 0.01, 0), 2)).views[1]
    np.testing.assert_allclose(view.camera_to_world, np.eye(4), atol=5e-3)
    assert np.sqrt(np.diag(view.pose_covariance)).max() < 0.01


def test_a_camera_that_only_turned_with_full_predictions():
    truth = make_truth(3, size=SIZE)
    truth.poses[:, :3, 3] = 0
    scene = finite(align(noisy(truth, window_pairs(3, 2), 0, 0.01, 0), 3))
    assert compare(truth, scene.views).rotation < 0.2
    assert max(np.linalg.norm(v.camera_to_world[:3, 3]) for v in scene.views) < 0.01


def test_translation_that_nothing_determines_is_said_to_be_unknown():
    truth = make_truth(3, size=SIZE)
    truth.poses[:, :3, 3] = 0
    edges = [predict(truth, i, j, state=PairState.ROTATION_ONLY) for i, j in window_pairs(3, 2)]
    for view in finite(align(edges, 3, intrinsics=truth.intrinsics)).views[1:]:
        assert np.isinf(np.diag(view.pose_covariance)[:3]).all()
        assert (np.diag(view.pose_covariance)[3:] < 1e-3).all()
        assert not view.depth.any()


@pytest.mark.parametrize("slant", [0.0, 0.4])
def test_a_plane(slant):
    truth = make_truth(3, size=SIZE)
    depths = []
    for pose, lens in zip(truth.poses, truth.intrinsics):
        v, u = np.mgrid[0:24, 0:32] + 0.5
        rays = np.stack([(u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy, np.ones_like(u)], axis=-1)
        normal = np.array([slant, 0.1, 1.0])
        depths.append((5 - normal @ pose[:3, 3]) / (rays @ pose[:3, :3].T @ normal))
    flat = replace(truth, depths=depths)
    scene = finite(align(noisy(flat, window_pairs(3, 2), 0, 0.01, 0), 3))
    assert compare(flat, scene.views).rotation < 0.3
    assert compare(flat, scene.views).focal < 0.01


def test_everything_wrong_at_once_is_still_finite():
    truth = make_truth(3, size=SIZE)
    rng = np.random.default_rng(0)
    edges = []
    for e in predict_all(truth, window_pairs(3, 2), dtype=np.float32):
        maps = {}
        for name in ("points_i", "points_j"):
            points = rng.normal(0, 1, (*SIZE, 3)).astype(np.float32)
            points[rng.random(SIZE) < 0.3] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e30])
            maps[name] = points
        edges.append(changed(e, conf_i=np.ones(SIZE, np.float32), conf_j=np.ones(SIZE, np.float32), **maps))
    scene = finite(align(edges, 3))
    assert min(scene.edge_residual.values()) > 0.1


def test_points_all_in_one_place_or_without_confidence_are_refused_or_left_out():
    truth = make_truth(3, size=SIZE)
    edges = predict_all(truth, window_pairs(3, 2))
    point = np.ones((*SIZE, 3))
    spoiled = [changed(e, points_i=point, points_j=point) if 2 in (e.i, e.j) else e for e in edges]
    scene = finite(align(spoiled, 3))
    assert scene.views[0].registered and scene.views[1].registered
    lost = finite(align([changed(e, points_i=point, points_j=point) for e in edges], 3))
    assert all(np.isinf(v.pose_covariance).any() for v in lost.views[1:])
    assert min(lost.edge_residual.values()) > 0.1
    nothing = [changed(e, conf_i=np.zeros(SIZE, np.float32)) for e in edges]
    with pytest.raises(AlignmentError, match="none of 6 edges"):
        align(nothing, 3)


def test_a_self_pair_among_others_changes_nothing_but_the_depth():
    truth = make_truth(3, size=SIZE)
    edges = predict_all(truth, window_pairs(3, 2), noise=0.01)
    selves = [Edge(1, 1, predict(truth, 1, 1).prediction)]
    one, other = align(edges, 3), finite(align([*edges, *selves], 3))
    assert compare(truth, other.views).depth <= compare(truth, one.views).depth
    assert compare(truth, other.views).rotation < 0.3
