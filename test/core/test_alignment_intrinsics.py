"""The focal of a single image, from its prediction paired with itself."""

import numpy as np
import pytest
from alignment_scenes import changed, make_truth, predict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from dust3r_ros.alignment.intrinsics import intrinsics_of_image
from dust3r_ros.data import Intrinsics, PairState
from dust3r_ros.errors import AlignmentError

SIZE = (48, 64)


def prediction(focal=70.0, size=SIZE, reach=None, seed=0, noise=0.01, lens=None):
    truth = make_truth(1, size=size, focal=focal)
    if lens is not None:
        truth = type(truth)(truth.poses, truth.depths, [lens])
    edge = predict(truth, 0, 0)
    if reach is None:
        return edge.prediction
    rng = np.random.default_rng(seed)
    maps = {}
    for name in ("points_i", "points_j"):
        points = getattr(edge.prediction, name)
        field = gaussian_filter(rng.normal(size=points.shape), reach, axes=(0, 1), mode="wrap")
        maps[name] = points + noise * np.linalg.norm(points, axis=-1, keepdims=True) * field / field.std()
    return changed(edge, **maps).prediction


@settings(max_examples=25, deadline=None)
@given(focal=st.floats(20, 300), upright=st.booleans())
def test_an_exact_prediction_gives_the_exact_focal_and_no_spread(focal, upright):
    size = SIZE[::-1] if upright else SIZE
    found = intrinsics_of_image(prediction(focal, size))
    assert found.intrinsics.fx == found.intrinsics.fy == pytest.approx(focal, rel=1e-9)
    assert (found.intrinsics.cx, found.intrinsics.cy) == (size[1] / 2, size[0] / 2)
    assert (found.intrinsics.width, found.intrinsics.height) == (size[1], size[0])
    assert found.focal_spread_px < 1e-9 * focal


@pytest.mark.parametrize("reach", [0.0, 2.0, 6.0])
def test_the_spread_is_as_large_as_the_error(reach):
    found = [intrinsics_of_image(prediction(reach=reach, seed=seed)) for seed in range(30)]
    error = np.sqrt(np.mean([(f.intrinsics.fx - 70) ** 2 for f in found]))
    spread = np.sqrt(np.mean([f.focal_spread_px**2 for f in found]))
    assert 0.6 * error < spread < 1.6 * error


def test_a_third_of_wrong_pixels_is_outvoted():
    p = prediction(reach=0.0)
    wrong = np.random.default_rng(1).random(SIZE) < 0.3
    p.points_i[wrong] = np.random.default_rng(2).uniform(0.1, 5, (wrong.sum(), 3))
    assert intrinsics_of_image(p).intrinsics.fx == pytest.approx(70, rel=0.01)


def test_a_principal_point_off_the_centre_is_used():
    lens = Intrinsics(70.0, 70.0, 25.0, 30.0, 64, 48)
    found = intrinsics_of_image(prediction(lens=lens), principal_point=(25.0, 30.0))
    assert (found.intrinsics.cx, found.intrinsics.cy) == (25.0, 30.0)
    assert found.intrinsics.fx == pytest.approx(70, rel=1e-9)


def test_missing_and_infinite_pixels_are_left_out():
    p = prediction()
    p.points_i[::2], p.points_j[:, ::3] = np.nan, np.inf
    p.conf_i[1::4] = 0
    assert intrinsics_of_image(p).intrinsics.fx == pytest.approx(70, rel=1e-9)


def test_the_own_map_of_a_pair_is_enough():
    truth = make_truth(2, size=[SIZE, SIZE[::-1]], focal=70.0)
    found = intrinsics_of_image(predict(truth, 0, 1).prediction, own_map_only=True)
    assert found.intrinsics.fx == pytest.approx(70, rel=1e-9)
    assert found.focal_spread_px < 1e-7


def test_twice_the_confidence_counts_twice():
    p = prediction()
    wrong = np.random.default_rng(1).random(SIZE) < 0.6
    for points, confidence in ((p.points_i, p.conf_i), (p.points_j, p.conf_j)):
        points[wrong, :2] *= 1.5
        confidence[:] = np.where(wrong, 1.0, 2.0)
    for own_map_only in (True, False):
        found = intrinsics_of_image(p, own_map_only=own_map_only)
        assert found.intrinsics.fx == pytest.approx(70, rel=1e-9)


def test_what_has_no_focal_is_refused():
    truth = make_truth(1, size=SIZE)
    with pytest.raises(AlignmentError, match="needs a prediction with depth, got 'rotation only'"):
        intrinsics_of_image(predict(truth, 0, 0, state=PairState.ROTATION_ONLY).prediction)
    behind = changed(predict(truth, 0, 0, scale=-1.0)).prediction
    with pytest.raises(AlignmentError, match="no point lies in front of the camera"):
        intrinsics_of_image(behind)
