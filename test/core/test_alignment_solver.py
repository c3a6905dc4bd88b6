"""The parts of alignment: Jacobians, elimination of depth, closed-form starts, focals, depth fusion."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from alignment_scenes import make_truth, predict, predict_all, window_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment import align
from dust3r_ros.alignment.depth import OwnMap, SeenMap, fuse_depth
from dust3r_ros.alignment.initialise import pose_from_rays, robust_similarity
from dust3r_ros.alignment.intrinsics import FocalTrack, pool_focals, view_focal
from dust3r_ros.alignment.linearise import linearise_view
from dust3r_ros.alignment.model import Noise, Problem, State, make_lens
from dust3r_ros.alignment.observations import collect_sightings, grid_pixels, pixel_positions, sample_edge
from dust3r_ros.alignment.sight import own_geometry, seen_geometry
from dust3r_ros.alignment.solve import apply_step, number_columns, view_columns
from dust3r_ros.alignment.sparse import damping_diagonal, factorise, with_diagonal
from dust3r_ros.data import Intrinsics, PairState
from dust3r_ros.geometry import backproject, invert_pose, pixel_rays, transform_points

NOISE = Noise(0.03, 0.01)
QUADRATIC = 1e6  # a cutoff that makes the kernel quadratic


def small_problem(known=False, seed=5, turned=(), far=1.0):
    """Three views, all pairs, at a state away from the optimum; the ``turned`` pairs only know directions."""
    rng = np.random.default_rng(seed)
    truth = make_truth(3, size=(12, 16), focal=15.0)
    pixels = grid_pixels((12, 16), 8)
    predicted = [
        replace(e, prediction=replace(e.prediction, state=PairState.ROTATION_ONLY)) if (e.i, e.j) in turned else e
        for e in predict_all(truth, window_pairs(3, 2), noise=0.02)
    ]
    edges = [sample_edge(e, pixels, pixels, 0.0) for e in predicted]
    lens = make_lens(pixel_positions((12, 16), pixels), (12, 16), truth.intrinsics[0] if known else None, 0)
    problem = Problem(
        [collect_sightings(edges, v, len(pixels), {v: v for v in range(3)}) for v in range(3)],
        [lens] * 3, len(edges), np.array([True, False, False]), np.zeros(3, dtype=bool), False,
    )  # fmt: skip
    turns = Rotation.from_rotvec(rng.normal(0, 0.05 * far, (3, 3))).as_matrix()
    state = State(
        truth.poses[:, :3, :3] @ turns,
        truth.poses[:, :3, 3] + rng.normal(0, 0.05 * far, (3, 3)),
        rng.normal(0, 0.3, len(edges)),
        np.log([1.1]),
        [np.log(truth.depths[v].ravel()[pixels]) + rng.normal(0, 0.02, len(pixels)) for v in range(3)],
    )
    return problem, state


def whitened_model(problem, state, view, reference):
    """Modelled predictions of a view's pixels, relative to the reference state's distance and whitened as the solver
    whitens: along and across its line of sight."""
    s, rays = problem.sightings[view], problem.lenses[view].rays(state.log_focal)
    parts = []
    for at in (state, reference):
        rays = problem.lenses[view].rays(at.log_focal)
        points = rays * np.exp(at.log_depth[view])
        rotation, translation = at.relative(s.seen_from, view)
        seen = rotation @ points + (translation * s.seen_parallax[:, None])[:, :, None]
        scale = np.where(s.seen_parallax[:, None] > 0, np.exp(at.log_scale[s.seen_edge])[:, None],
                         1 / np.linalg.norm(seen, axis=1))  # fmt: skip
        seen = seen * scale[:, None]
        own = points[None] * np.exp(at.log_scale[s.own_edge])[:, None, None]
        parts.append((np.concatenate([seen, own]), np.concatenate([s.seen_weight, s.own_weight])))
    (model, weight), (base, _) = parts
    distance = np.linalg.norm(base, axis=1, keepdims=True)
    direction = base / distance
    relative = model / distance
    along = (relative * direction).sum(axis=1, keepdims=True) * direction
    root = np.sqrt(weight)[:, None]
    has_depth = np.concatenate([s.seen_parallax, np.ones(len(s.own_edge))])[:, None, None]
    return root * (has_depth * along / NOISE.radial + (relative - along) / NOISE.lateral)


@settings(max_examples=20, deadline=None)
@given(
    view=st.integers(0, 2), seed=st.integers(0, 10_000), far=st.floats(0, 30),
    turned=st.sampled_from([(), ((0, 1),), ((1, 2), (2, 1))]),
)  # fmt: skip
def test_the_normal_equations_are_those_of_numerical_derivatives(view, seed, far, turned):
    problem, state = small_problem(seed=seed, far=far, turned=turned)
    columns = number_columns(problem, state)
    system = linearise_view(problem.sightings[view], problem.lenses[view], state, view, NOISE, QUADRATIC, False)
    local = [view_columns(problem, state, columns, v) for v in range(3)]
    mapping, at = local[view]
    normal = np.zeros((columns.size, columns.size))
    normal[np.ix_(at, at)] += mapping.T @ system.normal @ mapping
    no_change = [linearise_view(s, lens, state, v, NOISE, QUADRATIC, False)
                 for v, (s, lens) in enumerate(zip(problem.sightings, problem.lenses))]  # fmt: skip
    step = 1e-5
    numeric = []
    for k in range(columns.size):
        delta = np.zeros(columns.size)
        delta[k] = step
        high, low = (apply_step(problem, state, columns, no_change, local, sign * delta) for sign in (1, -1))
        difference = whitened_model(problem, high, view, state) - whitened_model(problem, low, view, state)
        numeric.append(difference.ravel() / (2 * step))
    jacobian = np.array(numeric)
    np.testing.assert_allclose(normal, jacobian @ jacobian.T, rtol=1e-5, atol=1e-5 * normal.max())
    gradient = np.zeros(columns.size)
    gradient[at] += mapping.T @ system.gradient
    s = problem.sightings[view]
    predicted = np.concatenate([s.seen * np.exp(-state.log_scale[s.seen_edge])[:, None, None],
                                s.own * np.exp(-state.log_scale[s.own_edge])[:, None, None]])  # fmt: skip
    model = whitened_model(problem, state, view, state)
    bearing = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
    only_turned = np.concatenate([s.seen_parallax == 0, np.zeros(len(s.own_edge), dtype=bool)])
    observed = whiten_like(problem, state, view, np.where(only_turned[:, None, None], bearing, predicted))
    np.testing.assert_allclose(
        -gradient, jacobian @ (observed - model).ravel(), rtol=1e-4, atol=1e-4 * abs(gradient).max()
    )


def whiten_like(problem, state, view, predicted):
    """Predictions in world units, relative to the model's distance and whitened."""
    s, rays = problem.sightings[view], problem.lenses[view].rays(state.log_focal)
    points = rays * np.exp(state.log_depth[view])
    rotation, translation = state.relative(s.seen_from, view)
    seen = rotation @ points + (translation * s.seen_parallax[:, None])[:, :, None]
    base = np.concatenate([seen, np.repeat(points[None], len(s.own_edge), 0)])
    has_depth = np.concatenate([s.seen_parallax, np.ones(len(s.own_edge))])[:, None, None]
    distance = np.linalg.norm(base, axis=1, keepdims=True)
    direction, relative = base / distance, predicted / np.where(has_depth > 0, distance, 1)
    along = (relative * direction).sum(axis=1, keepdims=True) * direction
    root = np.sqrt(np.concatenate([s.seen_weight, s.own_weight]))[:, None]
    return root * (has_depth * along / NOISE.radial + (relative - along) / NOISE.lateral)


def test_eliminating_depth_gives_the_step_of_the_full_system():
    problem, state = small_problem()
    s, lens = problem.sightings[1], problem.lenses[1]
    full = linearise_view(s, lens, state, 1, NOISE, QUADRATIC, False)
    reduced = linearise_view(s, lens, state, 1, NOISE, QUADRATIC, True)
    n = len(full.gradient)
    curvature = 1 / reduced.inverse_curvature
    normal = np.block([[full.normal, full.coupling], [full.coupling.T, np.diag(curvature)]])
    ridge = 1e-3 * np.eye(n)
    normal[:n, :n] += ridge
    joint = -np.linalg.solve(normal, np.concatenate([full.gradient, full.depth_gradient]))
    step = -np.linalg.solve(reduced.normal + ridge, reduced.gradient)
    np.testing.assert_allclose(step, joint[:n], rtol=1e-5, atol=1e-7)
    depth = -reduced.inverse_curvature * (reduced.depth_gradient + step @ reduced.coupling)
    np.testing.assert_allclose(depth, joint[n:], rtol=1e-5, atol=1e-7)


def test_errors_vanish_at_the_truth():
    truth = make_truth(2, size=(12, 16), focal=15.0)
    pixels = grid_pixels((12, 16), 8)
    edges = [sample_edge(predict(truth, 0, 1, scale=2.0), pixels, pixels, 0.0)]
    lens = make_lens(pixel_positions((12, 16), pixels), (12, 16), truth.intrinsics[0], -1)
    state = State(truth.poses[:, :3, :3], truth.poses[:, :3, 3], np.log([2.0]), np.zeros(0),
                  [np.log(d.ravel()[pixels]) for d in truth.depths])  # fmt: skip
    index = {0: 0, 1: 1}
    for view, geometry in ((0, own_geometry), (1, seen_geometry)):
        seen = collect_sightings(edges, view, len(pixels), index)
        found = geometry(seen, lens.rays(state.log_focal), state, view).errors
        assert found.radial.size == len(pixels)
        assert abs(found.radial).max() < 1e-12 and found.lateral2.max() < 1e-12


def test_robust_similarity_ignores_a_third_of_outliers():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 200))
    turn = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
    b = 2.5 * turn @ a + np.array([[1.0], [2], [3]])
    b[:, :66] += rng.normal(0, 5, (3, 66))
    fit = robust_similarity(a, b, np.ones(200))
    assert fit.scale == pytest.approx(2.5, rel=1e-2)
    np.testing.assert_allclose(fit.rotation, turn, atol=1e-2)
    np.testing.assert_allclose(fit.translation, [1, 2, 3], atol=5e-2)
    assert robust_similarity(a, b, np.zeros(200)) is None
    assert robust_similarity(np.zeros((3, 200)), b, np.ones(200)) is None


def test_a_pose_is_found_from_rays_alone():
    truth = make_truth(2)
    rays = pixel_rays(truth.intrinsics[1]).reshape(-1, 3).T
    world = transform_points(truth.poses[1], backproject(truth.depths[1], truth.intrinsics[1])).reshape(-1, 3).T
    found = pose_from_rays(rays, world, np.ones(rays.shape[1]), rounds=300)
    np.testing.assert_allclose(found.rotation, truth.poses[1][:3, :3], atol=1e-2)
    np.testing.assert_allclose(found.translation, truth.poses[1][:3, 3], atol=5e-2)


@pytest.mark.parametrize("size", [(24, 32), (32, 24)])
def test_the_focal_of_a_view_resists_outliers(size):
    truth = make_truth(1, size=size, focal=37.0)
    points = backproject(truth.depths[0], truth.intrinsics[0]).reshape(-1, 3).T
    points[:, ::5] = np.random.default_rng(0).uniform(0.1, 5, points[:, ::5].shape)
    positions = pixel_positions(size, np.arange(points.shape[1]))
    focal = view_focal(points, np.ones(points.shape[1]), positions, size)
    assert focal * 32 == pytest.approx(37, rel=5e-3)
    assert np.isnan(view_focal(points, np.zeros(points.shape[1]), positions, size))


def test_pooled_focals():
    pooled = pool_focals([1.0, 1.1, np.nan, 0.9, 50.0])
    assert pooled.focal == pytest.approx(np.sqrt(1.1), rel=0.1)
    assert np.isinf(pool_focals([float("nan")]).spread)


def test_a_focal_track_gives_a_keyframe_that_is_far_off_little_weight():
    track = FocalTrack(0.0)
    track.note(np.exp(np.random.default_rng(0).normal(0, 0.01, 50)))
    assert track.relative_spread == pytest.approx(0.01, rel=0.4)
    for value in (0.0, 0.005, -0.005):
        track.absorb(value, 1.0)
    track.absorb(1.0, 1.0)
    assert abs(track.mean) < 0.02
    before = track.information
    track.absorb(0.3, 0.0)
    assert track.information == before


def test_fused_depth_is_exact_from_either_kind_of_map_and_better_from_both():
    truth = make_truth(2)
    lens = truth.intrinsics[1]
    own = backproject(truth.depths[1], lens).reshape(-1, 3).T
    into = invert_pose(truth.poses[0]) @ truth.poses[1]
    seen = into[:3, :3] @ own + into[:3, 3:]
    ones = np.ones(own.shape[1], np.float32)
    as_own, as_seen = OwnMap(own, ones), SeenMap(seen, ones, into[:3, :3], into[:3, 3])
    for maps in (([as_own], []), ([], [as_seen]), ([as_own], [as_seen])):
        np.testing.assert_allclose(fuse_depth(*maps, lens, NOISE).depth, truth.depths[1], rtol=1e-4)
    rng = np.random.default_rng(0)
    noisy_own = OwnMap(own * (1 + rng.normal(0, 0.03, own.shape[1])), ones)
    noisy_seen = SeenMap(seen * (1 + rng.normal(0, 0.03, own.shape[1])), ones, into[:3, :3], into[:3, 3])
    error = {
        name: np.abs(fuse_depth(*maps, lens, NOISE).depth / truth.depths[1] - 1).mean()
        for name, maps in (
            ("own", ([noisy_own], [])),
            ("seen", ([], [noisy_seen])),
            ("both", ([noisy_own], [noisy_seen])),
        )
    }
    assert error["both"] < 0.8 * min(error["own"], error["seen"])


def test_fused_depth_outvotes_one_map_of_three():
    truth = make_truth(1)
    lens: Intrinsics = truth.intrinsics[0]
    own = backproject(truth.depths[0], lens).reshape(-1, 3).T
    ones = np.ones(own.shape[1], np.float32)
    maps = [OwnMap(own * f, ones) for f in (1.0, 1.01, 1.0, 1.01, 1.6)]
    fused = fuse_depth(maps, [], lens, Noise(0.02, 0.01))
    np.testing.assert_allclose(fused.depth, 1.005 * truth.depths[0], rtol=0.02)
    assert fused.confidence.max() < np.sqrt(4.5)


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_what_nothing_observes_stays_and_the_rest_is_solved(damping):
    normal = scipy.sparse.csc_matrix(np.array([[4.0, 1, 0], [1, 9, 0], [0, 0, 0]]))
    step = factorise(with_diagonal(normal, damping_diagonal(normal.diagonal(), damping))).solve(np.array([1.0, 2, 0]))
    expected = np.linalg.solve(normal.toarray()[:2, :2] + damping * np.diag([4.0, 9]), [1, 2])
    np.testing.assert_allclose(step, [*expected, 0], atol=1e-8)


def test_a_solution_does_not_depend_on_whether_the_geometry_is_kept_between_steps(monkeypatch):
    truth = make_truth(5, seed=2)
    edges = predict_all(truth, window_pairs(5, 3), noise=0.03)
    kept = align(edges, 5).views
    monkeypatch.setattr("dust3r_ros.alignment.solve.KEPT_RESIDUALS", 0)
    for one, other in zip(kept, align(edges, 5).views, strict=True):
        np.testing.assert_array_equal(one.camera_to_world, other.camera_to_world)
        np.testing.assert_array_equal(one.depth, other.depth)
