"""Errors of single pairs, by a predictor that knows the truth and is made wrong by a known amount."""

import numpy as np
import pytest
from oracle import FOCAL_PX, INTRINSICS, OraclePredictor, depth_of, image_of, path
from scipy.spatial.transform import Rotation

from dust3r_ros.data import PairPrediction
from dust3r_ros.evaluation.pairs import Guess, TrueView, evaluate_pairs
from dust3r_ros.geometry import rotation_angle_deg
from dust3r_ros.pair_errors import NO_DIRECTION_DEG

POSES = path(4)
VIEWS = [TrueView(image_of(k, pose), INTRINSICS, pose, depth_of(pose)) for k, pose in enumerate(POSES)]
PAIRS = [(VIEWS[0], VIEWS[1]), (VIEWS[1], VIEWS[3])]


class Deepened(OraclePredictor):
    """The upper quarter of the first view is half as deep again."""

    def _pair(self, i: int, j: int) -> PairPrediction:
        true = super()._pair(i, j)
        points = true.points_i.copy()
        points[: len(points) // 4] *= 1.5
        return PairPrediction(points, true.conf_i, true.points_j, true.conf_j)


def test_the_truth_has_no_error():
    found = evaluate_pairs(PAIRS, OraclePredictor(POSES))
    assert (len(found.errors), found.failed) == (2, 0)
    m = found.median
    assert m.rotation_deg < 1e-3
    assert m.direction_deg < 1e-2
    assert m.absrel < 1e-5
    assert m.covered == 1
    assert abs(m.focal_percent) < 0.01


def test_a_known_turn_is_measured():
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", 5, degrees=True).as_matrix()
    turned = [POSES[0], POSES[0] @ turn @ np.linalg.inv(POSES[0]) @ POSES[1]]
    found = evaluate_pairs(PAIRS[:1], OraclePredictor(turned)).median
    assert found.rotation_deg == pytest.approx(5, abs=1e-3)
    assert found.absrel < 1e-5


def test_a_known_depth_error_is_measured():
    assert evaluate_pairs(PAIRS, Deepened(POSES)).median.absrel == pytest.approx(0.125, abs=1e-3)


def test_the_guess_has_the_error_of_the_truth_itself():
    found = evaluate_pairs(PAIRS, Guess())
    turns = [rotation_angle_deg(a.camera_to_world[:3, :3].T @ b.camera_to_world[:3, :3]) for a, b in PAIRS]
    assert found.median.rotation_deg == pytest.approx(np.median(turns), abs=1e-3)
    assert found.median.direction_deg == NO_DIRECTION_DEG
    depth = VIEWS[0].depth
    assert found.errors[0].absrel == pytest.approx(np.mean(np.abs(np.median(depth) / depth - 1)), rel=0.05)
    guessed = 0.5 * max(INTRINSICS.width, INTRINSICS.height) / np.tan(np.radians(30))
    assert found.median.focal_percent == pytest.approx(100 * (guessed / FOCAL_PX - 1), abs=0.5)


def test_a_failed_pair_counts_as_the_guess():
    found = evaluate_pairs(PAIRS[:1], OraclePredictor(POSES, lost=frozenset({1})))
    assert found.failed == 1
    assert found.median.direction_deg == NO_DIRECTION_DEG
    assert found.median.covered == 0
    assert np.isnan(found.median.absrel)


def test_views_without_depth_have_no_depth_error():
    bare = [TrueView(v.image, v.intrinsics, v.camera_to_world) for v in VIEWS[:2]]
    found = evaluate_pairs([(bare[0], bare[1])], OraclePredictor(POSES)).median
    assert np.isnan(found.absrel)
    assert found.rotation_deg < 1e-3


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one pair, got none"):
        evaluate_pairs([], Guess())
