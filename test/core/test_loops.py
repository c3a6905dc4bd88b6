"""Which pairs of keyframes count as a loop: made-up scenes whose truth is known."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from alignment_scenes import make_truth, predict
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.loops import Loop, _coincide, confirmed, similar, verify
from dust3r_ros.alignment.observations import grid_pixels
from dust3r_ros.alignment.places import Anchor, PlaceIndex
from dust3r_ros.data import PairState
from dust3r_ros.geometry import Similarity, backproject, invert_pose, make_pose

GRID = 24


@pytest.fixture
def scene():
    """Two cameras 0.4 apart before one wall with a step and a slope, so that their surfaces coincide."""
    truth = make_truth(2, size=(24, 32))
    pose = make_pose(Rotation.from_euler("y", 6, degrees=True).as_matrix(), [0.5, 0.1, -0.2])
    depths = []
    for camera in (np.eye(4), pose):
        rays = backproject(np.ones((24, 32)), truth.intrinsics[0]) @ camera[:3, :3].T
        along = np.linspace(0.2, 9, 4000)[:, None, None]
        x, y, z = (camera[:3, 3, None, None, None] + rays.transpose(2, 0, 1)[:, None] * along).reshape(3, 4000, 24, 32)
        depths.append(along[(z > 4 + 0.8 * (x > 0.3) + 0.3 * np.sin(2 * y)).argmax(axis=0), 0, 0])
    return replace(truth, poses=np.array([np.eye(4), pose]), depths=depths)


def anchor(truth, view, scale=1.0, pose=None):
    """A keyframe as it is known, its world ``scale`` times the truth's."""
    pixels = grid_pixels((24, 32), GRID)
    depth = (scale * truth.depths[view].ravel()[pixels]).astype(np.float32)
    camera = truth.poses[view].copy() if pose is None else pose
    camera[:3, 3] *= scale
    return Anchor("left", camera, depth, np.full(len(depth), 4.0, np.float32), truth.intrinsics[view], False, GRID)


def both(truth, noise=0.0, **change):
    rng = np.random.default_rng(0)
    pairs = [predict(truth, i, j, rng, noise, scale).prediction for i, j, scale in ((0, 1, 0.7), (1, 0, 2.0))]
    return [replace(p, **change) for p in pairs]


@pytest.mark.parametrize("known", [True, False])
def test_a_true_loop_is_measured_whatever_drift_did_to_the_units(scene, known):
    forward, backward = both(scene, noise=0.01)
    old, new = anchor(scene, 0, scale=1.0), anchor(scene, 1, scale=1.5)
    loop = verify(0, 1, forward, backward, old, new if known else None, 1e-3, 2.0)
    true = invert_pose(scene.poses[0]) @ scene.poses[1]
    unit = 1.5 if known else 2.0  # its own prediction's
    assert loop is not None
    assert loop.relative.scale == pytest.approx(1 / unit, rel=0.01)
    np.testing.assert_allclose(loop.relative.rotation, true[:3, :3], atol=5e-3)
    np.testing.assert_allclose(loop.relative.translation, true[:3, 3], atol=0.04)
    assert loop.reach == pytest.approx(unit * np.median(scene.depths[1]), rel=0.02)


@pytest.mark.parametrize("state", [PairState.FAILED, PairState.ROTATION_ONLY, PairState.PLANAR])
@pytest.mark.parametrize("which", [0, 1])
def test_a_pair_without_sure_geometry_is_no_loop(scene, state, which):
    pair = both(scene)
    pair[which] = replace(pair[which], state=state)
    assert verify(0, 1, *pair, anchor(scene, 0), anchor(scene, 1), 1e-3, 2.0) is None


def test_an_unsure_prediction_is_no_loop(scene):
    old, new = anchor(scene, 0), anchor(scene, 1)
    assert verify(0, 1, *both(scene), old, new, 1e-3, usual_confidence=3.9) is not None
    assert verify(0, 1, *both(scene), old, new, 1e-3, usual_confidence=4.1) is None


def test_a_prediction_of_another_shape_is_no_loop(scene):
    other = replace(scene, depths=[d + 3 * np.sin(np.arange(32) / 2) for d in scene.depths])
    forward, backward = both(other)
    assert verify(0, 1, forward, backward, anchor(scene, 0), anchor(scene, 1), 1e-3, 2.0) is None


def test_directions_that_contradict_each_other_are_no_loop(scene):
    turned = replace(scene, poses=scene.poses.copy())
    turned.poses[1, :3, :3] = Rotation.from_euler("y", 20, degrees=True).as_matrix()
    forward, backward = both(scene)[0], both(turned)[1]
    assert verify(0, 1, forward, backward, anchor(scene, 0), anchor(scene, 1), 1e-3, 2.0) is None


def test_consistent_lies_are_found_out_by_surfaces_that_do_not_coincide(scene):
    """Both directions say the cameras stand side by side, with the true shapes: but those shapes differ."""
    hall = replace(scene, depths=[scene.depths[0], 2.5 + 2 * np.tile(np.linspace(0, 1, 32), (24, 1))])
    lie = replace(hall, poses=np.array([np.eye(4), make_pose(np.eye(3), np.array([0.1, 0, 0]))]))
    forward, backward = both(lie)
    assert verify(0, 1, forward, backward, anchor(hall, 0), anchor(hall, 1), 1e-3, 2.0) is None
    forward, backward = both(scene)  # the same call with the truth passes
    assert verify(0, 1, forward, backward, anchor(scene, 0), anchor(scene, 1), 1e-3, 2.0) is not None


def test_a_loop_needs_another_that_agrees():
    rng = np.random.default_rng(1)
    world = {k: Similarity.from_matrix(make_pose(Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix(),
                                                 rng.normal(0, 1, 3))) for k in (1, 2, 30, 31)}  # fmt: skip
    drift = Similarity(1.3, Rotation.from_rotvec([0, 0.4, 0]).as_matrix(), np.array([1.0, 0, -2]))

    def loop(old, new, extra=None):
        relative = world[old].inverse().compose(drift).compose(world[new])
        return Loop(old, new, relative.compose(extra) if extra else relative, 0.01, 3.0)

    wrong = Similarity(1.0, Rotation.from_rotvec([0, 0.3, 0]).as_matrix(), np.zeros(3))
    good = [loop(1, 30), loop(2, 31)]
    assert confirmed(good, world) == good
    assert confirmed(good[:1], world) == []
    assert confirmed([good[0], good[0]], world) == []
    assert confirmed([good[0], loop(2, 31, wrong)], world) == []
    assert confirmed([*good, loop(2, 30, wrong)], world) == good
    assert similar(good[0].relative, good[0].relative, 3.0)


def test_places_are_found_by_likeness():
    rng = np.random.default_rng(2)
    index, places = PlaceIndex(), rng.normal(0, 1, (100, 64))
    for k in range(100):
        index.add(k, places[k])
    again = places[42] + rng.normal(0, 0.2, 64)
    assert index.nearest(again, range(100), 3, least=0.8) == [42]
    assert index.nearest(again, range(50, 100), 3, least=0.8) == []
    found = index.nearest(again, [41, 42, 43, 1000], 2, least=-1.0)
    assert len(found) == 2 and found[0] == 42
    assert index.likeness(again, [42])[0] == pytest.approx(
        again @ places[42] / np.linalg.norm(again) / np.linalg.norm(places[42]), abs=2e-3
    )
    with pytest.raises(ValueError, match="64 values, got 3"):
        index.add(101, np.ones(3))


def test_fine_grids_take_little_memory():
    grid = grid_pixels((288, 384), 96)
    rng = np.random.default_rng(0)
    rays = np.stack([grid % 384 / 384 - 0.5, grid // 384 / 384 - 0.4, np.ones(len(grid))])
    shape = rays * rng.uniform(1, 2, len(grid))
    tracemalloc.start()
    assert _coincide(Similarity.identity(), shape, shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert not _coincide(Similarity.identity(), shape, 2 * shape)
