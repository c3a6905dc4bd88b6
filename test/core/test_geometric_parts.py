"""The parts of the classical predictor, each on exact input."""

import numpy as np
import pytest
from geometric_scenes import ROOM, K, pose_of, relative_pose, shoot
from scipy.spatial.transform import Rotation

from dust3r_ros.data import Intrinsics, PairState
from dust3r_ros.geometric.assemble import ReferenceDepth
from dust3r_ros.geometric.depth import DepthMap, epipolar_depth
from dust3r_ros.geometric.epipolar import _disparity_range, match_along_epipolar_lines
from dust3r_ros.geometric.focal import CANDIDATES, PRIOR_SPREAD, FocalCalibrator, SizedMatches, relative_focal
from dust3r_ros.geometric.matching import (  # fmt: skip
    Matches,
    dense_flow,
    extract_features,
    fill_holes,
    match_features,
    round_trip_error,
    target_pixels,
)
from dust3r_ros.geometric.motion import find_motion
from dust3r_ros.geometric.twoview import RelativePose, find_pose, refine_pose, sampson, tangent_plane, triangulate
from dust3r_ros.geometry import backproject, invert_pose, pixel_centres, project, rotation_angle_deg, transform_points

PIXEL = 1 / K.focal_px


def matched_rays(count=400, noise_px=0.0, outliers=0, flat=False, centre=(0.5, 0.1, 0.2), seed=0):
    """Rays of random points in two views, the true pose, and the depths in view i over the baseline."""
    rng = np.random.default_rng(seed)
    rays = rng.uniform([-0.5, -0.4], [0.5, 0.4], (count, 2))
    z = 4 + 0.5 * rays[:, 0] if flat else rng.uniform(2, 8, count)
    points = z[:, None] * np.column_stack([rays, np.ones(count)])
    rotation = Rotation.from_euler("xyz", [3, -5, 2], degrees=True).as_matrix()
    shift = -rotation @ np.array(centre)
    seen = points @ rotation.T + shift
    rays_j = seen[:, :2] / seen[:, 2:] + rng.normal(0, noise_px * PIXEL, (count, 2))
    rays_j[:outliers] = rng.uniform(-0.5, 0.5, (outliers, 2))
    length = max(np.linalg.norm(shift), 1e-12)
    return rays, rays_j, RelativePose(rotation, shift / length), z / length


def turn_deg(a, b):
    return float(rotation_angle_deg(a.rotation @ b.rotation.T))


def direction_deg(a, b):
    return float(np.degrees(np.arccos(np.clip(a.translation @ b.translation, -1, 1))))


def test_pose_from_exact_matches_is_exact():
    rays_i, rays_j, truth, depth = matched_rays()
    pose, inliers = find_pose(rays_i, rays_j, 1.5 * PIXEL, 0)
    pose = refine_pose(pose, rays_i, rays_j, 0.1 * PIXEL)
    assert inliers.all()
    assert turn_deg(pose, truth) < 1e-5 and direction_deg(pose, truth) < 1e-4
    np.testing.assert_allclose(triangulate(pose, rays_i, rays_j)[0], depth, rtol=1e-6)
    np.testing.assert_allclose(sampson(pose.essential, rays_i, rays_j), 0, atol=1e-9)


def test_pose_survives_half_outliers():
    rays_i, rays_j, truth, _ = matched_rays(noise_px=0.3, outliers=200)
    motion = find_motion(rays_i, rays_j, PIXEL, 0)
    assert motion.state is PairState.GOOD
    assert turn_deg(motion.pose, truth) < 0.2 and direction_deg(motion.pose, truth) < 2
    assert motion.inliers[:200].mean() < 0.1 and motion.inliers[200:].mean() > 0.9


def test_inverse_pose_takes_points_back():
    _, _, pose, _ = matched_rays()
    points = np.random.default_rng(0).normal(size=(5, 3))
    there = points @ pose.rotation.T + pose.translation
    back = there @ pose.inverse().rotation.T + pose.inverse().translation
    np.testing.assert_allclose(back, points, atol=1e-12)


@pytest.mark.parametrize("direction", np.concatenate([np.eye(3), [[0.6, 0.0, 0.8]]]))
def test_tangent_plane_is_orthonormal(direction):
    basis = np.column_stack([direction, tangent_plane(direction)])
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"flat": True}, PairState.PLANAR),
        ({"centre": (0, 0, 0)}, PairState.ROTATION_ONLY),
        ({}, PairState.GOOD),
        ({"outliers": 400}, PairState.FAILED),
        ({"count": 7}, PairState.FAILED),
    ],
)
def test_kinds_of_motion(options, state):
    rays_i, rays_j, _, _ = matched_rays(noise_px=0.2, **options)
    assert find_motion(rays_i, rays_j, PIXEL, 0).state is state


@pytest.fixture(scope="module")
def shots():
    return shoot(ROOM, pose_of((0, 0, 0), (0, 0, 0))), shoot(ROOM, pose_of((2, -6, 4), (0.6, 0.1, 0.2)))


@pytest.fixture(scope="module")
def true_pose(shots):
    i_to_j = invert_pose(relative_pose(*shots))
    return RelativePose(i_to_j[:3, :3], i_to_j[:3, 3] / np.linalg.norm(i_to_j[:3, 3]))


def true_target(i, j):
    return project(transform_points(invert_pose(relative_pose(i, j)), backproject(i.depth, K)), K)


def grey(shot):
    return np.ascontiguousarray(shot.image.pixels[..., 0])


def test_depth_along_the_epipolar_line_is_exact(shots, true_pose):
    baseline = np.linalg.norm(relative_pose(*shots)[:3, 3])
    target = true_target(*shots)
    depth, slope, distance, along = epipolar_depth(true_pose, K, K, target)
    np.testing.assert_allclose(depth * baseline, shots[0].depth, rtol=1e-6)
    assert distance.max() < 1e-6
    moved, *_ = epipolar_depth(true_pose, K, K, target + 1e-3 * along)
    np.testing.assert_allclose(np.abs(np.log(moved / depth)), 1e-3 * slope, rtol=1e-2)
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1)
    off, _, distance, _ = epipolar_depth(true_pose, K, K, target + 2 * across)
    np.testing.assert_allclose(off, depth, rtol=1e-6)
    np.testing.assert_allclose(distance, 2, rtol=1e-6)


@pytest.mark.parametrize("swap", [False, True])
def test_stereo_along_epipolar_lines_finds_the_flow(shots, true_pose, swap):
    i, j = shots[::-1] if swap else shots
    pose = true_pose.inverse() if swap else true_pose
    points = pixel_centres(K.height, K.width)[::20, ::20].reshape(-1, 2)
    target = true_target(i, j)
    there = target[::20, ::20].reshape(-1, 2)
    rays = [(p - (K.cx, K.cy)) / K.fx for p in (points, there)]
    seed, back = match_along_epipolar_lines(grey(i), grey(j), K, K, pose, *rays)
    error = np.linalg.norm(target_pixels(seed.flow) - target, axis=-1)[seed.valid]
    assert seed.valid.mean() > 0.5 and back.valid.mean() > 0.5
    assert np.median(error) < 0.3 and np.quantile(error, 0.9) < 1.5


@pytest.mark.parametrize("reach", [0.1, 0.3, 0.5, 0.8])
def test_matches_as_far_apart_as_the_images_are_wide_end_well(reach):
    """OpenCV's matcher dies of a search that is wider than its images, and the whole process with it."""
    k = Intrinsics.from_focal(300.0, 48, 160)
    pixels = np.random.default_rng(0).integers(0, 255, (160, 48)).astype(np.uint8)
    pose = RelativePose(np.eye(3), np.array([-1.0, 0.0, 0.0]))
    v = np.linspace(-0.2, 0.2, 30)
    rays = [np.stack([np.full(30, side * reach / 2) + 0.01 * v, v], axis=1) for side in (1, -1)]
    seed, back = match_along_epipolar_lines(pixels, pixels, k, k, pose, *rays)
    assert seed.flow.shape == back.flow.shape == (160, 48, 2)
    assert not (reach > 0.2 and seed.valid.any())  # farther than the image is wide
    for first, count in (_disparity_range(np.linspace(low, low + 30, 50), 60) for low in range(0, 90, 7)):
        assert count % 16 == 0
        assert count == 0 or first + count < 60


def test_flow_there_and_back_agree_where_both_see(shots):
    flow, back = dense_flow(grey(shots[0]), grey(shots[0])), dense_flow(grey(shots[0]), grey(shots[0]))
    assert np.median(round_trip_error(flow, back)) < 0.1
    outside = np.full_like(flow, 1000.0)
    assert round_trip_error(outside, back).min() > 100


def test_holes_are_filled_smoothly():
    truth = np.stack(np.meshgrid(np.linspace(0, 10, 64), np.linspace(5, 8, 48)), axis=-1).astype(np.float32)
    valid = np.ones((48, 64), dtype=bool)
    valid[15:30, 20:40] = False
    filled = fill_holes(np.where(valid[..., None], truth, 999).astype(np.float32), valid)
    np.testing.assert_array_equal(filled[valid], truth[valid])
    assert np.abs(filled - truth).max() < 1.5
    assert not fill_holes(truth, np.zeros_like(valid)).any()


def test_features_match_themselves(shots):
    features = extract_features(grey(shots[0]), 500)
    matches = match_features(features, features, 0.85)
    assert len(matches) > 100
    np.testing.assert_allclose(matches.points_i, matches.points_j)
    none = extract_features(np.zeros((64, 64), np.uint8), 500)
    assert len(match_features(features, none, 0.85)) == 0


def test_focal_prior_alone():
    mean, spread = relative_focal(np.zeros(len(CANDIDATES)))
    assert mean == pytest.approx(0, abs=0.02)
    assert spread == pytest.approx(PRIOR_SPREAD, rel=0.02)


@pytest.mark.parametrize("guess", [0.0, 1.1])
@pytest.mark.parametrize("focal_px", [220.0, 300.0, 520.0])
def test_focal_from_matches(focal_px, guess):
    calibrator, rng = FocalCalibrator(0), np.random.default_rng(1)
    if guess:
        calibrator.guess("a", guess * focal_px / np.sqrt(320 * 240))
        assert calibrator.focal("a", 320, 240).focal_px == pytest.approx(guess * focal_px, rel=0.001)
    pairs = []
    for n in range(6):
        rays_i, rays_j, _, _ = matched_rays(noise_px=0.0, centre=rng.normal(0, 0.4, 3), seed=n)
        points = [focal_px * r + (160, 120) + rng.normal(0, 0.3, r.shape) for r in (rays_i, rays_j)]
        pairs.append(SizedMatches(Matches(*points), (320, 240), (320, 240)))
    calibrator.observe("a", pairs)
    found = calibrator.focal("a", 320, 240)
    assert found.focal_px == pytest.approx(focal_px, rel=0.04)
    assert calibrator.focal("a", 640, 480).focal_px == pytest.approx(2 * found.focal_px)
    assert calibrator.focal("b", 320, 240).spread_px > 5 * found.spread_px


def test_focal_of_pure_translation_stays_with_the_prior():
    calibrator, rng = FocalCalibrator(0), np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-0.5, 0.5, (300, 2)), np.ones(300)]) * rng.uniform(2, 8, (300, 1))
    seen = points - (0.05, 0.02, 0.6)
    pixels = [400 * p[:, :2] / p[:, 2:] + (160, 120) for p in (points, seen)]
    calibrator.observe("a", [SizedMatches(Matches(*pixels), (320, 240), (320, 240))])
    assert calibrator.relative("a")[0] == pytest.approx(1, rel=0.1)
    assert calibrator.relative("a")[1] > 0.25


def test_reference_depth_keeps_one_scale():
    reference, depth = ReferenceDepth(), np.random.default_rng(0).uniform(2, 6, (40, 50))
    full = DepthMap(depth, np.ones((40, 50), np.float32))
    first = reference.scale_of(full)
    assert first == pytest.approx(1 / np.median(depth))
    reference.extend(first * depth, full.confidence > 0)
    half = DepthMap(np.where(np.arange(50) < 25, 7 * depth, 0), np.where(np.arange(50) < 25, np.ones((40, 50)), 0))
    assert reference.scale_of(half) == pytest.approx(first / 7, rel=1e-5)
