"""Predictions from files and scenes to files."""

import numpy as np
import pytest
from alignment_scenes import compare, make_truth, predict_all, window_pairs

from dust3r_ros.alignment import align
from dust3r_ros.alignment.files import load_predictions, save_scene
from dust3r_ros.errors import AlignmentError


def arrays_of(edges):
    parts = {name: np.array([getattr(e.prediction, name) for e in edges])
             for name in ("points_i", "conf_i", "points_j", "conf_j")}  # fmt: skip
    return {"edges": np.array([(e.i, e.j) for e in edges]), **parts}


@pytest.fixture
def good():
    return arrays_of(predict_all(make_truth(3), window_pairs(3, 2), dtype=np.float32))


def test_predictions_align_from_a_file_and_the_scene_is_written(tmp_path, good):
    np.savez(tmp_path / "p.npz", **good, poses=np.zeros((5, 4, 4)))
    loaded = load_predictions(tmp_path / "p.npz")
    assert loaded.views == 5 and len(loaded.edges) == 6
    scene = align(loaded.edges, loaded.views)
    save_scene(tmp_path / "s.npz", scene, 1.5)
    saved = np.load(tmp_path / "s.npz")
    assert saved["poses"].shape == (5, 4, 4) and saved["focal"].shape == (5,) and saved["depth"].shape == (5, 24, 32)
    assert saved["registered"].tolist() == [True, True, True, False, False]
    assert saved["seconds"] == 1.5
    assert compare(make_truth(3), scene.views, only=range(3)).worst < 1e-4
    np.testing.assert_array_equal(saved["depth"][1], scene.views[1].depth)


def test_views_are_counted_from_the_edges_when_the_file_does_not_say(tmp_path, good):
    np.savez(tmp_path / "p.npz", **good)
    assert load_predictions(tmp_path / "p.npz").views == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("edges", np.zeros((6, 3), int), r"edges must be \(E, 2\)"),
        ("edges", np.zeros((6, 2)), r"edges must be \(E, 2\)"),
        ("edges", -np.ones((6, 2), int), r"edges must be \(E, 2\)"),
        ("points_i", np.zeros((6, 24, 32, 2)), "points_i must be"),
        ("points_j", np.zeros((5, 24, 32, 3)), "points_j must be"),
        ("conf_i", np.zeros((6, 24, 31)), "points_i must be"),
        ("conf_j", np.zeros((6, 24)), "conf_j must be numbers in 3 dimensions"),
        ("conf_j", np.full((6, 24, 32), "x"), "conf_j must be numbers"),
        ("conf_j", None, "conf_j missing"),
        ("poses", np.zeros((3, 3, 4)), r"poses must be \(3, 4, 4\), got \(3, 3, 4\)"),
        ("cameras", np.zeros((2,), int), r"cameras must be \(3,\), got \(2,\)"),
        ("cameras", np.array(1), r"cameras must be integers in 1 dimensions, got int64 \(\)"),
        ("cameras", np.full(3, "left"), "cameras must be integers in 1 dimensions, got <U4"),
        ("cameras", np.zeros(3), "cameras must be integers in 1 dimensions, got float64"),
        ("poses", np.zeros(()), "poses must be numbers in 3 dimensions"),
        ("poses", np.full((3, 4, 4), "x"), "poses must be numbers in 3 dimensions"),
        ("views", np.array([3, 3]), r"views must be integers in 0 dimensions, got int64 \(2,\)"),
        ("views", np.array("three"), "views must be integers in 0 dimensions, got <U5"),
        ("conf_j", np.full((6, 24, 32), None), "not a readable"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, good, name, value, message):
    content = {**good, name: value} if value is not None else {k: v for k, v in good.items() if k != name}
    np.savez(tmp_path / "p.npz", **content)
    with pytest.raises(AlignmentError, match=message):
        load_predictions(tmp_path / "p.npz")


def test_a_file_that_is_no_archive_says_so(tmp_path):
    with pytest.raises(AlignmentError, match="no such file"):
        load_predictions(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(AlignmentError, match="not a readable"):
        load_predictions(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(AlignmentError, match="single array"):
        load_predictions(tmp_path / "one.npy")
    np.savez(tmp_path / "cut.npz", a=np.zeros(1000))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:500])
    with pytest.raises(AlignmentError, match="not a readable"):
        load_predictions(tmp_path / "cut.npz")


def test_a_scene_that_cannot_be_written_says_so(tmp_path, good):
    np.savez(tmp_path / "p.npz", **good)
    loaded = load_predictions(tmp_path / "p.npz")
    with pytest.raises(AlignmentError, match="cannot be written"):
        save_scene(tmp_path / "no" / "s.npz", align(loaded.edges, loaded.views), 0.0)
