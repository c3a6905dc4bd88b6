"""Errors of a pair, for motions and depths that are wrong by a known amount."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.geometry import Similarity, make_pose
from dust3r_ros.pair_errors import NO_DIRECTION_DEG, PairErrors, median_errors, pair_errors

TURN = Rotation.from_euler("xyz", [5, -20, 3], degrees=True).as_matrix()
TRUTH = make_pose(TURN, np.array([0.5, 0.1, 0.2]))
DEPTH = np.random.default_rng(0).uniform(1, 5, (12, 16))


def test_the_truth_has_no_error_at_any_scale():
    found = pair_errors(Similarity(3.0, TURN, 7 * TRUTH[:3, 3]), TRUTH, 0.3 * DEPTH, DEPTH)
    assert (found.rotation_deg, found.direction_deg, found.absrel) == pytest.approx((0, 0, 0), abs=1e-5)


def test_a_known_turn_of_pose_and_direction_is_measured():
    off = Rotation.from_euler("z", 4, degrees=True).as_matrix()
    found = pair_errors(Similarity(1.0, off @ TURN, off @ TRUTH[:3, 3]), TRUTH, DEPTH, DEPTH)
    along = np.arctan2(np.linalg.norm(np.cross(off @ TRUTH[:3, 3], TRUTH[:3, 3])), off @ TRUTH[:3, 3] @ TRUTH[:3, 3])
    assert found.rotation_deg == pytest.approx(4)
    assert found.direction_deg == pytest.approx(np.degrees(along))


def test_no_motion_found_counts_as_the_guess():
    found = pair_errors(None, TRUTH, DEPTH, DEPTH)
    assert found.rotation_deg == pytest.approx(np.degrees(Rotation.from_matrix(TURN).magnitude()))
    assert found.direction_deg == NO_DIRECTION_DEG


@pytest.mark.parametrize(("baseline", "told"), [(0.0, False), (0.019, False), (0.021, True)])
def test_a_direction_needs_a_baseline(baseline, told):
    truth = make_pose(np.eye(3), np.array([baseline * np.median(DEPTH), 0, 0]))
    found = pair_errors(Similarity(1.0, np.eye(3), np.array([0, 1.0, 0])), truth, DEPTH, DEPTH)
    assert math.isfinite(found.direction_deg) == told


def test_depth_is_judged_where_it_is_known_and_what_is_no_depth_is_wrong():
    depth, truth, known = DEPTH.copy(), DEPTH.copy(), np.ones(DEPTH.shape, bool)
    depth[0] = -1.0
    depth[1] = np.nan
    depth[2] = 99.0
    known[2] = False
    truth[3] = 0.0
    assert pair_errors(None, TRUTH, depth, truth, known).absrel == pytest.approx(2 / 10)
    assert math.isnan(pair_errors(None, TRUTH, depth, None).absrel)
    assert math.isnan(pair_errors(None, TRUTH, depth, np.zeros(DEPTH.shape)).absrel)


def test_medians_leave_out_what_is_not_known():
    nan = float("nan")
    found = median_errors([PairErrors(1, nan, 0.1), PairErrors(2, 10, nan), PairErrors(6, 30, nan)])
    assert (found.rotation_deg, found.direction_deg, found.absrel) == (2, 20, 0.1)
    assert math.isnan(found.covered)
    assert math.isnan(median_errors([]).rotation_deg)
