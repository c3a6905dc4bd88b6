"""Maps are written inside one folder only."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.ros.map_frame import MapFrame
from dust3r_ros.ros.saving import folder_inside, save_map

K = Intrinsics.from_focal(500.0, 640, 480)
MAP = MapFrame("map", publish_tf=True)


def test_a_relative_folder_lies_inside_and_an_empty_one_is_named_by_the_time(tmp_path):
    assert folder_inside(str(tmp_path), "kitchen/monday") == tmp_path / "kitchen" / "monday"
    assert folder_inside(str(tmp_path), str(tmp_path / "kitchen")) == tmp_path / "kitchen"
    assert folder_inside(str(tmp_path), "").parent == tmp_path


@pytest.mark.parametrize("asked", ["..", "../elsewhere", "a/../../b", "/etc", "~/x"])
def test_folders_outside_are_refused(tmp_path, asked):
    with pytest.raises(RosError, match="path must lie inside map_folder"):
        folder_inside(str(tmp_path / "maps"), asked)


def test_a_link_that_leads_outside_is_refused(tmp_path):
    inside = tmp_path / "maps"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path)
    with pytest.raises(RosError, match="path must lie inside map_folder"):
        folder_inside(str(inside), "link/x")


def reconstructor(count: int) -> SimpleNamespace:
    cloud = PointCloud(np.ones((count, 3), np.float32), np.zeros((count, 3), np.uint8), np.ones(count, np.float32))
    return SimpleNamespace(map=SimpleNamespace(cloud=lambda: cloud), trajectory=lambda: [(10**9, np.eye(4))])


def test_a_map_is_written_with_path_and_cameras(tmp_path):
    files = save_map(reconstructor(3), MAP, K, tmp_path / "new")
    assert [file.name for file in files] == ["cloud.ply", "trajectory.tum", "cameras.json"]
    assert all(file.is_file() for file in files)
    assert len(read_cloud(files[0])) == 3
    assert json.loads(files[2].read_text())["scale"] == "arbitrary"
    metres = MapFrame("map", publish_tf=True, metric=True)
    files = save_map(reconstructor(3), metres, K, tmp_path / "metres")
    assert json.loads(files[2].read_text())["scale"] == "metric (m)"


def test_without_intrinsics_there_are_no_cameras(tmp_path):
    assert [file.name for file in save_map(reconstructor(3), MAP, None, tmp_path)] == ["cloud.ply", "trajectory.tum"]


def test_an_empty_map_is_refused(tmp_path):
    with pytest.raises(RosError, match="the map is empty"):
        save_map(reconstructor(0), MAP, K, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_map_that_began_elsewhere_and_is_larger_is_written_so(tmp_path):
    moved = MapFrame("map", publish_tf=True, from_world=Similarity(2.0, np.eye(3), np.array([1.0, 2.0, 3.0])))
    files = save_map(reconstructor(3), moved, None, tmp_path)
    np.testing.assert_allclose(read_cloud(files[0]).points[0], [3.0, 4.0, 5.0])
    assert [float(value) for value in files[1].read_text().splitlines()[-1].split()[1:4]] == [1.0, 2.0, 3.0]
