"""The walk that ``benchmark/growth.py`` measures: its pointmaps must be true, or alignment would do other work."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
from programs import ROOT, load_program

from dust3r_ros.geometry import invert_pose, transform_points


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    return load_program(ROOT / "benchmark" / "growth.py")


@pytest.mark.parametrize("number", [0, 25, 1999])
def test_every_point_is_on_a_wall(growth, number):
    pose = growth.pose_of(number)
    points = growth.points_of(pose)
    world = transform_points(pose, points)
    near = points[..., 2] < growth.FARTHEST
    distance = np.abs(np.abs(world[near][:, :2]) - growth.WALLS).min(axis=1)
    assert near.mean() > 0.4
    assert distance.max() < 1e-6
    assert (np.abs(world[near][:, :2]) <= growth.WALLS + 1e-6).all()


def test_pairs_are_in_the_first_cameras_frame_and_have_scales_of_their_own(growth):
    predictor = growth.TunnelPredictor()
    forward, again = predictor.predict([(3, 5), (5, 3)])
    to_first = invert_pose(growth.pose_of(3)) @ growth.pose_of(5)
    other = transform_points(to_first, growth.points_of(growth.pose_of(5)))
    scale = np.median(forward.points_i / growth.points_of(growth.pose_of(3)))
    np.testing.assert_allclose(forward.points_j, scale * other, rtol=1e-4, atol=1e-3)
    assert np.median(again.points_i / growth.points_of(growth.pose_of(5))) != pytest.approx(scale)


def test_neighbours_look_alike_and_others_do_not(growth):
    near, next_to_it, far = (growth.TunnelPredictor().describe(k) for k in (50, 51, 90))
    assert near @ next_to_it > 0.6
    assert abs(near @ far) < 0.3


def test_growth_is_that_of_the_second_half(growth):
    blocks = [
        growth.Block(100 * k, 0.0, 0.0, 0.0, 0.0, total=10.0 if k < 3 else 12.0, memory_mb=50.0 + k, map_points=9)
        for k in range(1, 5)
    ]
    found = growth.growth(blocks)
    assert found["time, last block / first"] == pytest.approx(1.2)
    assert found["time, second half / first"] == pytest.approx(1.2)
    assert found["kB a keyframe, second half"] == pytest.approx(1024 * 1.0 / 100)


def test_it_walks_exactly_and_writes_figures_and_plot(growth, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "FIRST", 2)
    monkeypatch.setattr(growth, "BLOCKS", 4)
    out = tmp_path / "growth.json"
    assert growth.main(["--keyframes", "10", "--map-points", "2000", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert [block["keyframes"] for block in figures["blocks"]] == [4, 6, 8, 10]
    assert all(0 < block["map_points"] <= 2000 for block in figures["blocks"])
    assert figures["error of the last ways, steps"] < 1e-2
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "keyframes" in capsys.readouterr().out


def test_mistakes_are_said(growth, capsys):
    assert growth.main(["--set", "windw=3"]) == 2
    assert "unknown option 'windw'; did you mean window?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        growth.main(["--keyframes", "50"])
    assert "--keyframes must be at least 120, got 50" in capsys.readouterr().err
