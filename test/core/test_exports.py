"""Every export of a scene whose truth is known, read back by a reader of its own and held against the truth."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import FOCAL_PX, HEIGHT, RADIUS, WIDTH, OraclePredictor, depth_of, image_of, path
from PIL import Image
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from dust3r_ros.config import CleanConfig, MapConfig, ReconstructorConfig
from dust3r_ros.errors import ConfigError, ExportError
from dust3r_ros.evaluation.exports import EXPORTS, Cleaned, clean, image_stems, parse_exports, write_exports
from dust3r_ros.evaluation.metrics import align_centres
from dust3r_ros.evaluation.packs import load_pack
from dust3r_ros.evaluation.results import run_batch, write_results
from dust3r_ros.mapping.folders import write_exr
from dust3r_ros.mapping.tracks import find_tracks
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import SourceImage

VIEWS = 5
CONFIG = make_config(ReconstructorConfig, {"map.min_confidence": 0.0, "map.voxel_size": 0.02})


def sources() -> list[SourceImage]:
    """Images twice the size the predictor takes, named as photographs are."""
    twice = [
        cv2.resize(image_of(k, p), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for k, p in enumerate(path(VIEWS))
    ]
    return [SourceImage(f"../my photos/view {k}.png", lambda k=k: twice[k], stamp_ns=k * 10**9) for k in range(VIEWS)]


@pytest.fixture(scope="module")
def cleaned() -> Cleaned:
    result = run_batch(sources(), CONFIG, OraclePredictor(path(VIEWS)))
    return clean(result, CONFIG.map, CleanConfig())


def written(cleaned: Cleaned, folder: Path, *names: str) -> Path:
    assert write_exports(cleaned, names, folder, sources(), lambda *call: None) == []
    return folder


def on_the_ball(cleaned: Cleaned, points: np.ndarray) -> np.ndarray:
    """Distance of world points from the ball, in units of its radius."""
    to_truth = align_centres(cleaned.result.poses(), path(VIEWS))
    return np.abs(np.linalg.norm(to_truth.apply(points) * [1, 1.4, 1], axis=1) / RADIUS - 1)


def test_glb_holds_the_cloud_the_frusta_and_their_images_in_one_world(cleaned, tmp_path):
    pytest.importorskip("trimesh")
    data = (written(cleaned, tmp_path, "glb") / "scene.glb").read_bytes()
    magic, version, length, json_length, kind = struct.unpack("<4sIII4s", data[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    gltf = json.loads(data[20 : 20 + json_length])
    binary = data[28 + json_length :]
    meshes = {mesh["name"]: mesh["primitives"][0] for mesh in gltf["meshes"]}
    expected = {"cloud"} | {f"{what} {k}" for k in range(VIEWS) for what in ("camera", "image")}
    assert set(meshes) == expected
    assert len(gltf["images"]) == VIEWS

    def values(name: str, attribute: str, kind: str, width: int) -> np.ndarray:
        accessor = gltf["accessors"][meshes[name]["attributes"][attribute]]
        view = gltf["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(binary, kind, accessor["count"] * width, view.get("byteOffset", 0)).reshape(-1, width)

    np.testing.assert_array_equal(values("cloud", "POSITION", "<f4", 3), cleaned.result.cloud.points)
    np.testing.assert_array_equal(values("cloud", "COLOR_0", "u1", 4)[:, :3], cleaned.result.cloud.colours)
    assert meshes["cloud"]["mode"] == 0
    assert meshes["camera 0"]["mode"] in (1, 3)
    for k, view in enumerate(cleaned.result.views):  # the frustum's tip is the camera's centre
        tip = values(f"camera {k}", "POSITION", "<f4", 3)
        assert np.linalg.norm(tip - view.camera_to_world[:3, 3], axis=1).min() < 1e-6
    turns = {tuple(node["matrix"]) for node in gltf["nodes"] if "mesh" in node}
    assert turns == {(1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1)}  # y up


def test_kitti_rows_are_the_poses(cleaned, tmp_path):
    rows = np.loadtxt(written(cleaned, tmp_path, "kitti") / "trajectory.kitti")
    np.testing.assert_allclose(rows.reshape(-1, 3, 4), cleaned.result.poses()[:, :3], atol=1e-8)


def read_colmap_text(folder: Path) -> tuple[dict, dict, dict]:
    """COLMAP's text format, by its documentation: cameras, images with their pixels, points with their tracks."""

    def lines(name: str) -> list[list[str]]:
        text = (folder / f"{name}.txt").read_text().splitlines()
        return [line.split() for line in text if not line.startswith("#")]

    cameras = {int(w[0]): (w[1], *map(float, w[2:])) for w in lines("cameras")}
    rows = lines("images")
    images = {}
    for head, pixels in zip(rows[::2], rows[1::2]):
        qw, qx, qy, qz, *t = map(float, head[1:8])
        rotation = Rotation.from_quat([qx, qy, qz, qw]).as_matrix()
        images[int(head[0])] = (head[9], int(head[8]), rotation, np.array(t), np.array(pixels, float).reshape(-1, 3))
    points = {}
    for w in lines("points3D"):
        track = np.array(w[8:], int).reshape(-1, 2)
        points[int(w[0])] = (np.array(w[1:4], float), np.array(w[4:7], int), float(w[7]), track)
    return cameras, images, points


def test_the_colmap_model_reprojects_onto_the_pixels_it_names(cleaned, tmp_path):
    pytest.importorskip("pycolmap")
    cameras, images, points = read_colmap_text(written(cleaned, tmp_path, "colmap") / "sparse" / "0")
    assert [camera[:3] for camera in cameras.values()] == [("PINHOLE", 2 * WIDTH, 2 * HEIGHT)]
    assert sorted(image[0] for image in images.values()) == [f"view_{k}.jpg" for k in range(VIEWS)]
    assert len(points) > 500
    lengths = []
    for number, (xyz, _, _, track) in points.items():
        lengths.append(len(track))
        assert len(np.unique(track[:, 0])) == len(track)  # once an image
        for image, place in track:
            _, camera, rotation, translation, pixels = images[image]
            _, _, _, fx, fy, cx, cy = cameras[camera]
            x, y, z = rotation @ xyz + translation
            u, v, point = pixels[place]
            assert point == number
            assert np.hypot(fx * x / z + cx - u, fy * y / z + cy - v) < 4  # two pixels of the predictor's
    assert min(lengths) >= 2  # COLMAP's own adjustment refuses points of one view
    assert np.mean(lengths) > 2.5
    assert on_the_ball(cleaned, np.array([xyz for xyz, *_ in points.values()])).max() < 0.02


def test_pycolmap_reads_the_binary_model_and_finds_its_images(cleaned, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    folder = written(cleaned, tmp_path, "colmap")
    for name in (folder / "sparse" / "0").glob("*.txt"):
        name.unlink()
    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert model.num_reg_images() == VIEWS
    assert model.compute_mean_reprojection_error() < 1.5
    for image in model.images.values():
        pixels = cv2.imread(str(folder / "images" / image.name))
        assert pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        k = int(image.name[5])
        pose = image.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(pose, cleaned.result.views[k].camera_to_world[:3], atol=1e-9)
        assert model.camera(image.camera_id).focal_length_x == pytest.approx(2 * FOCAL_PX, rel=0.01)


def test_colmap_can_refine_the_model(cleaned, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    model = pycolmap.Reconstruction(str(written(cleaned, tmp_path, "colmap") / "sparse" / "0"))
    before = model.compute_mean_reprojection_error()
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < before


def test_nerfstudio_cameras_look_along_minus_z_at_what_they_saw(cleaned, tmp_path):
    folder = written(cleaned, tmp_path, "nerfstudio")
    scene = json.loads((folder / "transforms.json").read_text())
    assert (scene["w"], scene["h"], scene["ply_file_path"]) == (2 * WIDTH, 2 * HEIGHT, "cloud.ply")
    assert scene["cx"] == WIDTH
    for frame, view in zip(scene["frames"], cleaned.result.views, strict=True):
        assert (folder / frame["file_path"]).is_file()
        back = np.linalg.inv(np.array(frame["transform_matrix"]))
        v, u = 20, 41  # a pixel of the predictor's image; its point must fall on it with OpenGL's axes
        z = view.estimate.depth[v, u]
        k = view.estimate.intrinsics
        world = view.camera_to_world[:3] @ [(u + 0.5 - k.cx) / k.fx * z, (v + 0.5 - k.cy) / k.fy * z, z, 1]
        x, y, minus_z, _ = back @ [*world, 1]
        assert minus_z == pytest.approx(-z)
        assert scene["fl_x"] * x / -minus_z + scene["cx"] == pytest.approx(2 * (u + 0.5))
        assert scene["cy"] - scene["fl_y"] * y / -minus_z == pytest.approx(2 * (v + 0.5))


def test_cameras_of_their_own_are_written_with_each_frame(cleaned, tmp_path):
    view = cleaned.result.views[0]
    other = replace(view, intrinsics=replace(view.intrinsics, fx=99.0))
    mixed = replace(cleaned, result=replace(cleaned.result, views=(other, *cleaned.result.views[1:])))
    scene = json.loads((written(mixed, tmp_path, "nerfstudio") / "transforms.json").read_text())
    assert "fl_x" not in scene
    assert scene["frames"][0]["fl_x"] == 99.0


def test_depth_is_a_pack_with_true_depth(cleaned, tmp_path):
    folder = written(cleaned, tmp_path, "depth") / "depth"
    pack = load_pack(folder)
    scale = align_centres(cleaned.result.poses(), path(VIEWS)).scale
    for k, frame in enumerate(pack.frames):
        exact = np.load(folder / f"view_{k}.npy")
        np.testing.assert_allclose(scale * exact, depth_of(path(VIEWS)[k]), rtol=0.01)
        steps = np.array(Image.open(folder / f"view_{k}.png"))
        assert steps.dtype == np.uint16
        np.testing.assert_allclose(steps / 1000, exact, atol=0.0005001)
        np.testing.assert_allclose(frame.load_depth(), exact, atol=0.0006)
        assert frame.load_image().shape == (HEIGHT, WIDTH, 3)


def test_the_mesh_lies_on_the_ball(cleaned, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    try:
        import open3d  # noqa: F401
    except ImportError as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")
    mesh = trimesh.load(written(cleaned, tmp_path, "mesh") / "mesh.ply")
    assert len(mesh.faces) > 1000
    assert np.quantile(on_the_ball(cleaned, mesh.vertices), 0.99) < 0.03


def test_the_bag_is_what_the_node_would_have_published(cleaned, tmp_path):
    for _ in range(2):  # a second one takes the first one's place
        folder = written(cleaned, tmp_path, "bag") / "bag"
    got: dict[str, list] = {}
    with AnyReader([folder]) as reader:
        qos = {c.topic: c.ext.offered_qos_profiles[0].durability.name for c in reader.connections}
        for connection, log_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            got.setdefault(connection.topic, []).append((log_ns, message))
    views = cleaned.result.views
    stamps = [view.stamp_ns for view in views]
    names = {"pose", "camera_info", "image/compressed", "depth", "points"}
    assert set(got) == {"/tf", "/dust3r/path", "/dust3r/map"} | {f"/dust3r/{name}" for name in names}
    assert {topic for topic, kind in qos.items() if kind == "TRANSIENT_LOCAL"} == {
        "/dust3r/path", "/dust3r/map", "/dust3r/camera_info"
    }  # fmt: skip
    for name in names:
        assert [log_ns for log_ns, _ in got[f"/dust3r/{name}"]] == stamps
        headers = [message.header.stamp for _, message in got[f"/dust3r/{name}"]]
        assert [h.sec * 10**9 + h.nanosec for h in headers] == stamps
    for view, (_, tf), (_, posed) in zip(views, got["/tf"], got["/dust3r/pose"]):
        edge = tf.transforms[0]
        assert (edge.header.frame_id, edge.child_frame_id) == ("map", "camera_optical")
        for shift, turn in (
            (edge.transform.translation, edge.transform.rotation), (posed.pose.position, posed.pose.orientation)
        ):  # fmt: skip
            np.testing.assert_allclose([shift.x, shift.y, shift.z], view.camera_to_world[:3, 3], atol=1e-12)
            rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
            np.testing.assert_allclose(rotation, view.camera_to_world[:3, :3], atol=1e-6)
    info = got["/dust3r/camera_info"][0][1]
    assert (info.width, info.height) == (2 * WIDTH, 2 * HEIGHT)
    assert info.k[0] == pytest.approx(2 * FOCAL_PX, rel=0.01)
    assert info.k[2] == pytest.approx(WIDTH - 0.5)
    depth = got["/dust3r/depth"][1][1]
    values = depth.data.view("<f4").reshape(depth.height, depth.width)
    known = np.isfinite(values)
    np.testing.assert_array_equal(known, cleaned.masks[1])
    np.testing.assert_array_equal(values[known], views[1].estimate.depth[known])
    whole = got["/dust3r/map"][0][1]
    assert whole.width == len(cleaned.result.cloud)
    for _, message in (*got["/dust3r/points"], *got["/dust3r/map"]):
        assert [(f.name, f.offset, f.datatype) for f in message.fields][3:] == [("rgb", 12, 7), ("confidence", 16, 7)]
        columns = message.data.view("<f4").reshape(-1, 5)
        assert np.quantile(on_the_ball(cleaned, columns[:, :3].astype(float)), 0.99) < 0.02
    colours = whole.data.reshape(-1, 20)[:, [14, 13, 12]]
    np.testing.assert_array_equal(colours, cleaned.result.cloud.colours)
    assert len(got["/dust3r/path"][0][1].poses) == VIEWS
    picture = cv2.imdecode(got["/dust3r/image/compressed"][0][1].data, cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(picture.astype(int) - views[0].image.pixels).mean() < 8


def read_exr(data: bytes) -> tuple[dict[str, bytes], np.ndarray]:
    """Attributes and the one float channel of a scan line file with ZIP compression, by OpenEXR's file layout."""
    assert data[:4] == b"\x76\x2f\x31\x01"
    attributes, at = {}, 8

    def text() -> str:
        nonlocal at
        end = data.index(b"\0", at)
        found, at = data[at:end].decode(), end + 1
        return found

    while name := text():
        text()  # the attribute's type
        (size,) = struct.unpack_from("<i", data, at)
        attributes[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    assert attributes["compression"] == b"\x03"  # ZIP: blocks of 16 lines
    x0, y0, x1, y1 = struct.unpack("<4i", attributes["dataWindow"])
    rows = []
    for offset in struct.unpack_from(f"<{-(-(y1 - y0 + 1) // 16)}Q", data, at):
        _, size = struct.unpack_from("<ii", data, offset)
        packed = data[offset + 8 : offset + 8 + size]
        lines = min(16, y1 - y0 + 1 - len(rows))
        plain = packed
        if size < lines * (x1 - x0 + 1) * 4:  # else it was not worth it
            coded = np.frombuffer(zlib.decompress(packed), np.uint8).astype(np.int64)
            coded[1:] -= 128
            halves = np.cumsum(coded).astype(np.uint8)
            merged = np.empty_like(halves)
            merged[::2], merged[1::2] = halves[: (len(halves) + 1) // 2], halves[(len(halves) + 1) // 2 :]
            plain = merged.tobytes()
        rows.extend(np.frombuffer(plain, "<f4").reshape(lines, -1))
    return attributes, np.array(rows)


def test_exr_holds_the_depth_as_its_z(cleaned, tmp_path):
    pytest.importorskip("OpenEXR")
    folder = written(cleaned, tmp_path, "exr") / "exr"
    assert sorted(file.name for file in folder.iterdir()) == [f"view_{k}.exr" for k in range(VIEWS)]
    attributes, depth = read_exr((folder / "view_2.exr").read_bytes())
    assert attributes["channels"].split(b"\0")[0] == b"Z"
    np.testing.assert_array_equal(depth, cleaned.result.views[2].estimate.depth * cleaned.masks[2])
    assert (depth > 0).sum() > 1000


def test_exr_on_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    openexr = pytest.importorskip("OpenEXR")

    def full(self, name: str) -> None:
        raise RuntimeError("Failed to write pixel data. No space left on device.")

    monkeypatch.setattr(openexr.File, "write", full)
    with pytest.raises(ExportError, match=r"cannot write .*a\.exr: Failed to write .* No space left on device"):
        write_exr(np.ones((4, 5), np.float32), tmp_path / "a.exr")
    assert not any(tmp_path.iterdir())


def test_one_export_that_fails_does_not_stop_the_others(cleaned, tmp_path):
    (tmp_path / "scene.glb").mkdir()
    refused = write_exports(cleaned, ["glb", "kitti"], tmp_path, [], lambda *call: None)
    assert len(refused) == 1
    assert "is a folder" in refused[0]
    assert (tmp_path / "trajectory.kitti").is_file()


def test_nothing_to_export_is_said(cleaned, tmp_path):
    none = replace(cleaned, masks=tuple(np.zeros_like(mask) for mask in cleaned.masks))
    refused = write_exports(none, ["colmap", "depth"], tmp_path, sources(), lambda *call: None)
    assert [text.count("no view has depth") for text in refused] == [1, 1]
    with pytest.raises(ValueError, match="at least one view with usable pixels"):
        find_tracks(none.result.views, none.masks)


@pytest.mark.parametrize(("module", "name"), [("trimesh", "glb"), ("pycolmap", "colmap"), ("OpenEXR", "exr")])
def test_a_missing_library_is_named(cleaned, tmp_path, monkeypatch, module, name):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    refused = write_exports(cleaned, [name], tmp_path, sources(), lambda *call: None)
    assert f"pip install {module}" in refused[0]


def test_names_of_exports():
    assert parse_exports("all") == tuple(EXPORTS)
    assert parse_exports("mesh, glb,mesh") == ("mesh", "glb")
    assert parse_exports("") == ()
    for wrong in ("obj", "glb,all"):
        with pytest.raises(ConfigError, match="--export must be all or names of glb, pcd"):
            parse_exports(wrong)


def test_image_names_are_files_and_each_different(cleaned):
    names = ["a/IMG 1.JPG", "walk.mp4#12", "cam/image_raw/1700000000", "b/IMG 1.png"]
    views = [replace(cleaned.result.views[k], name=name) for k, name in enumerate(names)]
    assert image_stems(views) == ["000000_IMG_1", "walk_000012", "1700000000", "000003_IMG_1"]


def test_cleaning_that_takes_nothing_leaves_the_cloud_as_it_was(cleaned):
    again = clean(cleaned.result, CONFIG.map, CleanConfig(consistency=0.5))
    assert [count for _, count in again.removed] == [0, 0]
    np.testing.assert_array_equal(again.result.cloud.points, cleaned.before.points)


def test_a_stricter_map_leaves_out_the_less_sure_pixels(cleaned):
    view = cleaned.result.views[1]
    unsure = np.full_like(view.estimate.confidence, 3.0)
    unsure[:10] = 1.0
    views = list(cleaned.result.views)
    views[1] = replace(view, estimate=replace(view.estimate, confidence=unsure))
    again = clean(replace(cleaned.result, views=tuple(views)), MapConfig(min_confidence=0.25), CleanConfig(outliers=3))
    assert not again.masks[1][:10].any()
    assert again.masks[1][12:].all()
    assert again.removed[0][1] >= 10 * WIDTH


def test_results_of_a_full_disk_are_one_clear_error(cleaned, tmp_path, monkeypatch):
    def full(self, *arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ExportError, match=r"cannot write .*cloud\.ply: No space left on device"):
        write_results(cleaned.result, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["trajectory.tum"]
