"""Files that are written are read back."""

import json
from pathlib import Path

import numpy as np
import pytest

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import ExportError
from dust3r_ros.files import replacing
from dust3r_ros.geometry import make_pose, rotation_from_quaternion
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import (
    CameraRecord,
    read_cloud,
    stamp_text,
    write_cameras_json,
    write_cloud,
    write_json,
    write_tum,
)


def some_cloud(count: int = 100) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.uniform(1, 9, count).astype(np.float32),
    )


def test_a_cloud_comes_back_from_ply_exactly(tmp_path):
    cloud = some_cloud()
    write_cloud(cloud, tmp_path / "deep" / "cloud.ply")
    back = read_cloud(tmp_path / "deep" / "cloud.ply")
    np.testing.assert_array_equal(back.points, cloud.points)
    np.testing.assert_array_equal(back.colours, cloud.colours)
    np.testing.assert_array_equal(back.confidence, cloud.confidence)


def test_the_ply_header_names_what_other_programs_expect(tmp_path):
    write_cloud(some_cloud(), tmp_path / "cloud.ply")
    header = (tmp_path / "cloud.ply").read_bytes().split(b"end_header")[0].decode()
    for name in ("float x", "float y", "float z", "uchar red", "uchar green", "uchar blue", "float confidence"):
        assert f"property {name}\n" in header


def test_an_empty_cloud_is_written(tmp_path):
    write_cloud(PointCloud.empty(), tmp_path / "cloud.ply")
    assert b"element vertex 0\n" in (tmp_path / "cloud.ply").read_bytes()


def test_a_ply_of_another_program_is_read(tmp_path):
    (tmp_path / "bare.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
        "end_header\n0 1 2\n3 4 5\n"
    )
    cloud = read_cloud(tmp_path / "bare.ply")
    np.testing.assert_array_equal(cloud.points, [[0, 1, 2], [3, 4, 5]])
    assert (cloud.confidence == 1).all()


def test_a_cloud_that_open3d_did_not_write_whole_is_an_error(tmp_path, monkeypatch):
    """As on a full disk: Open3D says that all is well."""
    try:
        import open3d
    except ImportError as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")
    write = open3d.io.write_point_cloud

    def broken(name: str, cloud: object) -> bool:
        write(name, cloud)
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: len(data) // 2])
        return True

    monkeypatch.setattr(open3d.io, "write_point_cloud", broken)
    with pytest.raises(ExportError, match=r"cloud\.pcd: only 0 of 100 were written"):
        write_cloud(some_cloud(), tmp_path / "cloud.pcd")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "values"), [("int", "255 128 0"), ("ushort", "255 128 0"), ("float", "1 0.5 0")])
def test_colours_of_a_ply_may_be_whole_numbers_or_shares(tmp_path, kind, values):
    names = "".join(f"property float {axis}\n" for axis in "xyz")
    names += "".join(f"property {kind} {name}\n" for name in ("red", "green", "blue"))
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 1\n{names}end_header\n1 2 3 {values}\n")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").colours, [[255, 128, 0]])


HEADER = "ply\nformat {} 1.0\nelement vertex 2\nproperty double x\nproperty double y\nproperty double z\n"


@pytest.mark.parametrize(("form", "order"), [("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_both_byte_orders_and_other_elements_are_read(tmp_path, form, order):
    header = HEADER.format(form) + "property uchar quality\nelement face 1\nproperty list uchar int vertex_index\n"
    kind = [("xyz", f"{order}f8", 3), ("quality", "u1")]
    rows = np.array([((0, 1, 2), 7), ((3, 4, 5), 8)], kind)
    (tmp_path / "a.ply").write_bytes((header + "end_header\n").encode() + rows.tobytes() + b"face")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").points, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_open3d_and_this_package_read_each_others_files(tmp_path, suffix):
    try:
        import open3d
    except ImportError as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")
    cloud = some_cloud()
    write_cloud(cloud, tmp_path / f"ours{suffix}")
    theirs = open3d.io.read_point_cloud(str(tmp_path / f"ours{suffix}"))
    np.testing.assert_allclose(np.asarray(theirs.points), cloud.points)
    np.testing.assert_allclose(np.asarray(theirs.colors) * 255, cloud.colours, atol=0.51)
    open3d.io.write_point_cloud(str(tmp_path / f"theirs{suffix}"), theirs)
    back = read_cloud(tmp_path / f"theirs{suffix}")
    np.testing.assert_allclose(back.points, cloud.points, atol=1e-6)
    np.testing.assert_allclose(back.colours.astype(int), cloud.colours, atol=1)


BAD_PLY = {
    "missing": None,
    "empty": b"",
    "text": b"no ply at all",
    "no end": b"ply\nformat ascii 1.0\n" * 500,
    "no vertices": b"ply\nformat ascii 1.0\nend_header\n",
    "no z": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2\n",
    "huge": (HEADER.format("binary_little_endian").replace("vertex 2", "vertex 99999999999") + "end_header\n").encode(),
    "truncated": (HEADER.format("binary_little_endian") + "end_header\n").encode() + bytes(47),
    "letters": (HEADER.format("ascii") + "end_header\n1 2 3\n1 two 3\n").encode(),
    "short": (HEADER.format("ascii") + "end_header\n1 2 3\n").encode(),
    "list": (HEADER.format("ascii") + "property list uchar int odd\nend_header\n1 2 3\n").encode(),
}


@pytest.mark.parametrize("content", BAD_PLY.values(), ids=BAD_PLY.keys())
def test_a_bad_ply_is_one_clear_error(tmp_path, content):
    path = tmp_path / "bad.ply"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"cannot read .*bad\.ply"):
        read_cloud(path)


def test_tum_lines_keep_nanoseconds_and_poses(tmp_path):
    rotation = rotation_from_quaternion(np.array([0.1, -0.2, 0.3, 0.9]))
    pose = make_pose(rotation, np.array([1.0, -2.0, 3.5]))
    write_tum([(1_700_000_000_000_000_001, np.eye(4)), (1_700_000_000_033_333_333, pose)], tmp_path / "path.tum")
    lines = (tmp_path / "path.tum").read_text().splitlines()
    assert lines[0].startswith("#")
    assert lines[1] == "1700000000.000000001 0 0 0 0 0 0 1"
    stamp, *values = lines[2].split()
    assert stamp == "1700000000.033333333"
    np.testing.assert_allclose([float(v) for v in values[:3]], [1, -2, 3.5])
    np.testing.assert_allclose(rotation_from_quaternion(np.array(values[3:], float)), rotation, atol=1e-8)


def test_stamps_of_all_sizes():
    assert stamp_text(0) == "0.000000000"
    assert stamp_text(5) == "0.000000005"
    assert stamp_text(12_000_000_000) == "12.000000000"


def test_cameras_json_puts_pixel_centres_at_integers(tmp_path):
    camera = CameraRecord("images/a.jpg", Intrinsics(500, 510, 320, 240, 640, 480), np.eye(4))
    write_cameras_json([camera], tmp_path / "cameras.json", metric=True)
    written = json.loads((tmp_path / "cameras.json").read_text())
    assert written["scale"].startswith("metric")
    frame = written["frames"][0]
    assert (frame["file"], frame["width"], frame["height"]) == ("images/a.jpg", 640, 480)
    assert frame["K"] == [[500, 0, 319.5], [0, 510, 239.5], [0, 0, 1]]
    assert frame["cam_to_world"] == np.eye(4).tolist()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "values.json"
    write_json({"a": 1}, path)
    with pytest.raises(ExportError, match="cannot write"):
        write_json({"a": float("nan")}, path)
    with pytest.raises(RuntimeError), replacing(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError("stopped in the middle")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["values.json"]


def test_unwritable_places_are_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"cannot write .*file/cloud\.ply: "):
        write_cloud(some_cloud(), tmp_path / "file" / "cloud.ply")
    with pytest.raises(ExportError, match="is a folder"):
        write_json({}, tmp_path)
    with pytest.raises(ExportError, match=r"cannot write .*cloud\.nonsense|needs Open3D, which cannot be loaded"):
        write_cloud(some_cloud(), tmp_path / "cloud.nonsense")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_files_get_the_usual_permissions(tmp_path):
    write_json({}, tmp_path / "a.json")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b").stat().st_mode
