"""Maps are written inside one folder only."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dust3r_ros.alignment.scale import MetricScale
from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.mapping.fuse import FusedMap
from dust3r_ros.memory import MapMemory, Placed
from dust3r_ros.ros.map_frame import MapFrame
from dust3r_ros.ros.saving import MapKeeper, folder_inside, map_inside, save_map

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
    placed = {0: Placed(10**9, "camera", np.eye(4))}
    memory = MapMemory("truth", 1, placed, (), (), (), None, cloud, MetricScale(2.0, 0.01, 7))
    fused = FusedMap()
    fused.restore(None, cloud, 0)
    return SimpleNamespace(
        map=fused,
        cloud=fused.cloud,
        trajectory=lambda: [(10**9, np.eye(4))],
        memory=lambda: memory,
        recall=lambda recalled: None,
    )


def test_a_map_is_written_with_path_and_cameras(tmp_path):
    files = save_map(reconstructor(3), MAP, K, tmp_path / "new")
    assert [file.name for file in files] == ["cloud.ply", "trajectory.tum", "cameras.json", "session.npz"]
    assert all(file.is_file() for file in files)
    assert len(read_cloud(files[0])) == 3
    assert json.loads(files[2].read_text())["scale"] == "arbitrary"
    metres = MapFrame("map", publish_tf=True, metric=True)
    files = save_map(reconstructor(3), metres, K, tmp_path / "metres")
    assert json.loads(files[2].read_text())["scale"] == "metric (m)"


def test_without_intrinsics_there_are_no_cameras(tmp_path):
    files = save_map(reconstructor(3), MAP, None, tmp_path)
    assert [file.name for file in files] == ["cloud.ply", "trajectory.tum", "session.npz"]


def test_an_empty_map_is_refused(tmp_path):
    with pytest.raises(RosError, match="the map is empty"):
        save_map(reconstructor(0), MAP, K, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_map_that_began_elsewhere_and_is_larger_is_written_so(tmp_path):
    moved = MapFrame("map", publish_tf=True, from_world=Similarity(2.0, np.eye(3), np.array([1.0, 2.0, 3.0])))
    files = save_map(reconstructor(3), moved, None, tmp_path)
    np.testing.assert_allclose(read_cloud(files[0]).points[0], [3.0, 4.0, 5.0])
    assert [float(value) for value in files[1].read_text().splitlines()[-1].split()[1:4]] == [1.0, 2.0, 3.0]


def keeper(folder, frame=MAP, count=3):
    return MapKeeper(reconstructor(count), frame, str(folder), "/robot/dust3r")


def test_a_loaded_map_is_where_and_as_large_as_it_was(tmp_path):
    where = Similarity(2.0, np.eye(3), np.array([1.0, 2.0, 3.0]))
    keeper(tmp_path, MapFrame("map", publish_tf=True, from_world=where, metric=True)).save(str(tmp_path), "old", None)
    frame = MapFrame("map", publish_tf=True)
    loaded = keeper(tmp_path, frame).load(map_inside(str(tmp_path), "old"))
    assert (loaded.keyframes, loaded.points, loaded.newest_ns) == (1, 3, 10**9)
    np.testing.assert_allclose(frame.from_world.matrix(), where.matrix())
    assert frame.metric
    assert not frame.measured(MetricScale(2.0, 0.01, 7))  # what the map remembers of its scale changes nothing


def test_the_map_saves_itself_when_it_changed_and_is_gone_on_in_only_after_a_crash(tmp_path):
    own = keeper(tmp_path)
    assert not own.due(0.001)
    own.changed()
    assert own.due(0.001) and not own.due(0.0)
    own.save_by_itself()
    assert not own.due(0.001)
    crashed, loaded = keeper(tmp_path), []
    crashed.resume("never", loaded.append)
    assert loaded == []
    crashed.resume("after_crash", lambda path: loaded.append(path) or crashed.load(map_inside(str(tmp_path), path)))
    assert loaded == [str(tmp_path / "autosave" / "robot.dust3r")]
    crashed.ended()
    after = keeper(tmp_path)
    after.resume("after_crash", loaded.append)
    assert len(loaded) == 1
    after.resume("always", lambda path: loaded.append(path) or after.load(map_inside(str(tmp_path), path)))
    assert len(loaded) == 2


def test_a_map_that_cannot_be_written_or_read_again_is_said_and_no_more(tmp_path, caplog):
    own = keeper(tmp_path)
    (tmp_path / "autosave").write_text("a file where the folder should be")
    own.save_by_itself()
    assert "the map was not saved: cannot write" in caplog.text
    (tmp_path / "autosave").unlink()
    own.save_by_itself()
    (tmp_path / "autosave" / "robot.dust3r" / "session.npz").write_text("damaged")
    own.resume("after_crash", lambda path: own.load(map_inside(str(tmp_path), path)))
    assert "cannot go on in the map of" in caplog.text and "is damaged" in caplog.text


def test_a_map_that_was_refused_is_set_aside_before_the_next_is_saved(tmp_path, caplog):
    keeper(tmp_path).save_by_itself()
    before = (tmp_path / "autosave" / "robot.dust3r" / "session.npz").read_bytes()

    def fails(path):
        raise IndexError("an error that nobody thought of")

    again = keeper(tmp_path)
    again.resume("after_crash", fails)
    again.save_by_itself()
    (aside,) = (tmp_path / "autosave").glob("robot.dust3r.refused_*")
    assert (aside / "session.npz").read_bytes() == before
    assert "IndexError: an error that nobody thought of; a new one begins" in caplog.text
    assert f"the map that was refused is kept in {aside}" in caplog.text
    assert keeper(tmp_path).load(map_inside(str(tmp_path), f"autosave/{aside.name}")).keyframes == 1


def test_a_saving_that_fails_is_said_counted_and_tried_again(tmp_path, caplog):
    own = keeper(tmp_path)
    good = own._reconstructor.memory

    def fails():
        raise MemoryError("no room for a copy")

    own._reconstructor.memory = fails
    own.changed()
    own.save_by_itself()
    assert "the map was not saved: MemoryError: no room for a copy" in caplog.text
    assert (own.failed_saves, own.save_failure) == (1, "MemoryError: no room for a copy")
    assert own.due(1e-9) and not own.due(60.0)
    own._reconstructor.memory = good
    own.save_by_itself()
    assert (own.failed_saves, own.save_failure) == (1, "")
    assert not own.due(1e-9)


def test_a_node_that_was_stopped_before_it_went_on_leaves_the_mark(tmp_path):
    keeper(tmp_path).save_by_itself()
    keeper(tmp_path).ended()
    loaded, again = [], keeper(tmp_path)
    again.resume("after_crash", lambda path: loaded.append(path) or again.load(map_inside(str(tmp_path), path)))
    assert len(loaded) == 1


def test_a_home_that_is_not_known_hinders_only_what_needs_it(caplog):
    own = keeper("~no_user_of_this_name/maps")
    own.resume("never", lambda path: pytest.fail("nothing is to be loaded"))
    assert caplog.text == ""
    own.resume("always", lambda path: pytest.fail("nothing is to be loaded"))
    own.save_by_itself()
    own.ended()
    assert caplog.text.count("~ means no folder, in map_folder '~no_user_of_this_name/maps'") == 2
    with pytest.raises(RosError, match="~ means no folder"):
        own.save("~no_user_of_this_name/maps", "x", None)
