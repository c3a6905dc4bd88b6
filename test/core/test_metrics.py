"""Every metric on cases small enough to work out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dust3r_ros.evaluation.metrics import (
    associate,
    depth_errors,
    focal_error_percent,
    path_length,
    pose_errors,
    relative_errors_deg,
)
from dust3r_ros.geometry import Similarity, make_pose


def turned(axis: str, degrees: float) -> np.ndarray:
    return Rotation.from_euler(axis, degrees, degrees=True).as_matrix()


def poses(*centres: tuple[float, float, float]) -> np.ndarray:
    return np.stack([make_pose(np.eye(3), np.array(c, float)) for c in centres])


SQUARE = poses((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1))


def test_ate_of_a_bent_square():
    """Corners lie sqrt(1/2) from the middle; raised and lowered by 0.1 the best scale is 0.5 / 0.51."""
    bent = SQUARE.copy()
    bent[[0, 2], 1, 3] += 0.1
    bent[[1, 3], 1, 3] -= 0.1
    got = pose_errors(bent, SQUARE)
    assert got.to_truth.scale == pytest.approx(0.5 / 0.51)
    assert got.ate_rmse == pytest.approx(np.sqrt(0.5 - 0.5**2 / 0.51))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.05, 20))
def test_another_world_frame_and_scale_are_no_error(seed, scale):
    rng = np.random.default_rng(seed)
    truth = np.stack([make_pose(Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)) for _ in range(5)])
    world = Similarity(scale, Rotation.random(rng=rng).as_matrix(), rng.normal(size=3))
    got = pose_errors(world.apply_to_pose(truth), truth)
    assert got.ate_rmse < 1e-9
    assert got.rotation_deg < 1e-6
    assert got.translation_deg < 1e-6
    assert got.auc_30 > 1 - 1e-6


def test_one_turned_camera_of_three():
    """Turning camera 2 by 6 degrees spoils pairs (0, 2) and (1, 2) in rotation; directions are seen from camera i."""
    truth = poses((0, 0, 0), (1, 0, 0), (0, 0, 2))
    wrong = truth.copy()
    wrong[2, :3, :3] = turned("y", 6)
    rotation, translation = relative_errors_deg(wrong, truth)
    np.testing.assert_allclose(rotation, [0, 6, 6], atol=1e-9)
    np.testing.assert_allclose(translation, [0, 0, 0], atol=1e-6)
    got = pose_errors(wrong, truth)
    assert got.rotation_deg == pytest.approx(6)
    assert got.auc_30 == pytest.approx((1 + 0.8 + 0.8) / 3)


def test_turning_the_first_camera_turns_the_directions_it_sees():
    truth = poses((0, 0, 0), (0, 0, 1), (0, 0, 3))
    wrong = truth.copy()
    wrong[0, :3, :3] = turned("x", 15)
    rotation, translation = relative_errors_deg(wrong, truth)
    np.testing.assert_allclose(rotation, [15, 15, 0], atol=1e-6)
    np.testing.assert_allclose(translation, [15, 15, 0], atol=1e-6)


def test_opposite_and_missing_directions_are_180_degrees():
    truth = poses((0, 0, 0), (1, 0, 0))
    assert relative_errors_deg(poses((0, 0, 0), (-1, 0, 0)), truth)[1] == pytest.approx([180])
    assert relative_errors_deg(poses((5, 5, 5), (5, 5, 5)), truth)[1] == pytest.approx([180])


def test_pairs_without_a_true_baseline_have_no_direction_error_but_count_their_rotation():
    truth = poses((0, 0, 0), (0, 0, 0), (1, 0, 0))
    wrong = poses((0, 0, 0), (0, 0.3, 0), (1, 0, 0))
    wrong[1, :3, :3] = turned("z", 3)
    rotation, translation = relative_errors_deg(wrong, truth)
    np.testing.assert_array_equal(np.isnan(translation), [True, False, False])
    assert rotation[0] == pytest.approx(3)
    seen_from_1 = np.degrees(np.arctan(0.3)) + 3
    assert pose_errors(wrong, truth).auc_30 == pytest.approx((0.9 + 1 + (1 - seen_from_1 / 30)) / 3)


def test_views_without_a_pose_lower_auc_only():
    truth = poses((0, 0, 0), (1, 0, 0), (0, 0, 2))
    got = pose_errors(truth, truth, tried=4)
    assert got.auc_30 == pytest.approx(3 / 6)
    assert got.rotation_deg == pytest.approx(0)
    with pytest.raises(ValueError, match="tried must be at least the 3 views"):
        pose_errors(truth, truth, tried=2)


def test_what_cannot_be_said_is_none():
    nothing = pose_errors(np.empty((0, 4, 4)), np.empty((0, 4, 4)), tried=5)
    assert (nothing.ate_rmse, nothing.rotation_deg, nothing.auc_30) == (None, None, 0.0)
    one = pose_errors(SQUARE[:1], SQUARE[:1])
    assert (one.ate_rmse, one.auc_30) == (None, None)
    two = pose_errors(SQUARE[:2], SQUARE[:2])
    assert two.ate_rmse is None
    assert two.auc_30 == pytest.approx(1)
    still = poses((1, 1, 1), (1, 1, 1), (1, 1, 1))
    assert pose_errors(still, SQUARE[:3]).ate_rmse is None
    assert pose_errors(still, still).translation_deg is None


def test_a_straight_path_has_an_ate():
    """KITTI: the centres lie on a line, about which the Sim(3) may turn without changing them."""
    truth = poses(*[(0, 0, z) for z in range(5)])
    wrong = truth.copy()
    wrong[2, 2, 3] += 0.5
    assert 0.1 < pose_errors(wrong, truth).ate_rmse < 0.5


def test_misshaped_poses_are_refused():
    with pytest.raises(ValueError, match=r"must both be \(N, 4, 4\)"):
        pose_errors(SQUARE[:2], SQUARE)


def test_path_length_and_focal():
    assert path_length(SQUARE) == pytest.approx(3)
    assert path_length(SQUARE[:1]) == 0
    assert focal_error_percent([525, 475], [500, 500]) == pytest.approx(5)
    assert focal_error_percent([], []) is None


def test_depth_errors_by_hand():
    """Ratios truth / estimate are 2, 2, 2, 1: k = 2; then three pixels are right and one is twice too far."""
    estimated = [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, np.nan]])]
    truth = [np.array([[2.0, 4.0]]), np.array([[6.0, 4.0], [5.0, 5.0]])]
    got = depth_errors(estimated, truth)
    assert got.scale == pytest.approx(2)
    assert got.absrel == pytest.approx(0.25)
    assert got.delta_125 == pytest.approx(0.75)
    assert got.coverage == pytest.approx(4 / 6)


def test_depth_errors_ignore_the_scale_and_pixels_without_truth():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, (20, 30))
    estimate = 0.37 * truth
    estimate[:5] = 100
    truth[:5] = 0
    got = depth_errors([estimate], [truth])
    assert got.absrel < 1e-12
    assert got.coverage == 1


def test_depth_without_overlap_is_none_and_other_sizes_an_error():
    assert depth_errors([np.zeros((2, 2))], [np.ones((2, 2))]) is None
    assert depth_errors([], []) is None
    with pytest.raises(ValueError, match="must have the truth's size"):
        depth_errors([np.ones((2, 2))], [np.ones((2, 3))])


def test_stamps_are_matched_to_the_nearest_truth_within_the_gap():
    base = 1_700_000_000_000_000_000
    truth = [base + 100, base + 0, base + 200]
    got = associate([base + 95, base + 10, base + 149, base + 400], truth, max_gap_ns=60)
    assert got == [(0, 0), (1, 1), (2, 0)]
    assert associate([1], [], 10) == []
