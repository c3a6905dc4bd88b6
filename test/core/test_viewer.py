"""The page: what is made for it, and the page itself in a real browser."""

import io
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import INTRINSICS, OraclePredictor, depth_of, image_of, path
from PIL import Image

from dust3r_ros.cli.view import load_result, viewed, watch
from dust3r_ros.config import KeyframeConfig, ReconstructorConfig
from dust3r_ros.errors import ImageError, ViewerError
from dust3r_ros.evaluation.results import run_batch, write_results
from dust3r_ros.geometry import make_pose
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.pictures import confidence_picture, depth_picture, thumbnail
from dust3r_ros.pipeline import SourceImage
from dust3r_ros.viewer.scene import (
    ViewedKeyframe,
    ViewedScene,
    graph_picture,
    quaternion_wxyz,
    scene_extent,
    scene_middle,
    scene_reach,
    shown_points,
    up_direction,
)

viser = pytest.importorskip("viser", reason="needs viser")

from dust3r_ros.viewer import RunPanel, RunSettings, Upload, Viewer  # noqa: E402
from dust3r_ros.viewer.run_panel import unpacked  # noqa: E402

VIEWS = 4
POSES = path(VIEWS)
CONFIG = ReconstructorConfig(keyframes=KeyframeConfig(every_image=True))
SOURCES = [SourceImage(f"{k}.png", lambda k=k: image_of(k, POSES[k]), stamp_ns=k) for k in range(VIEWS)]


def cloud(count: int) -> PointCloud:
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
    return PointCloud(points, rng.integers(0, 255, (count, 3), np.uint8), np.arange(1, count + 1, dtype=np.float32))


def scene(count: int = 1000, keyframes: int = 3) -> ViewedScene:
    frames = [
        ViewedKeyframe(f"image {k}", image_of(k, POSES[k]), POSES[k], INTRINSICS, depth_of(POSES[k]), np.ones((48, 64)))
        for k in range(keyframes)
    ]
    return ViewedScene(frames, cloud(count), {(0, 1): 0.01, (1, 0): 0.2})


def test_points_are_left_out_by_confidence_voxel_and_number():
    given = cloud(1000)
    surest = shown_points(given, 0.25, 0)
    assert len(surest) == 750
    assert surest.confidence.min() > 250
    coarse = shown_points(given, 0, 0.5)
    places = np.floor(coarse.points / 0.5)
    assert len(np.unique(places, axis=0)) == len(coarse) == len(np.unique(np.floor(given.points / 0.5), axis=0))
    for place, confidence in zip(places, coarse.confidence):
        there = (np.floor(given.points / 0.5) == place).all(1)
        assert confidence == given.confidence[there].max()
    assert len(shown_points(given, 0, 0, most=100)) == 100
    assert len(shown_points(PointCloud.empty(), 0.5, 0.1)) == 0


def test_up_is_where_the_cameras_say():
    turned = make_pose(np.diag([1.0, -1.0, -1.0]), np.zeros(3))  # image down is the world's up
    assert up_direction(ViewedScene([replace(scene().keyframes[0], camera_to_world=turned)])) == pytest.approx(
        [0, 1, 0]
    )
    assert up_direction(ViewedScene()) == pytest.approx([0, -1, 0])


def test_the_reach_of_a_scene_is_a_distance_in_it():
    assert scene_reach(ViewedScene()) == 1.0
    ball = cloud(2000)
    far = PointCloud(ball.points * 50, ball.colours, ball.confidence)
    assert 30 < scene_reach(ViewedScene([], far)) < 60


def test_the_extent_holds_all_cameras_and_most_points():
    ball = cloud(2000)
    poses = [make_pose(np.eye(3), np.array([x, 0.0, 0.0])) for x in (-9.0, 3.0)]
    views = [replace(scene().keyframes[0], camera_to_world=pose) for pose in poses]
    seen = ViewedScene(views, ball)
    middle = scene_middle(seen)
    assert middle == pytest.approx((np.array([-3.0, 0, 0]) + np.median(ball.points, axis=0)) / 2)
    assert scene_extent(seen, middle) == pytest.approx(np.linalg.norm(poses[0][:3, 3] - middle))
    points = np.linalg.norm(ball.points - middle, axis=1)
    assert (points <= scene_extent(seen, middle)).mean() >= 0.9
    one = ViewedScene(views[:1])
    assert (scene_middle(one), scene_extent(one, scene_middle(one))) == (pytest.approx([-9.0, 0, 0]), 1.0)


def test_quaternions_begin_with_w():
    assert quaternion_wxyz(np.eye(3)) == pytest.approx([1, 0, 0, 0])


def test_pictures_show_what_is_known():
    depth = np.tile(np.linspace(1, 5, 60, dtype=np.float32), (40, 1))
    depth[:, :5] = 0
    picture = depth_picture(depth)
    assert picture.shape == (40, 60, 3)
    assert (picture[:, :5] == 0).all()
    assert picture[0, 6, 0] > picture[0, -1, 0]  # near is red
    assert confidence_picture(np.zeros((4, 5))).max() == 0
    matrix = graph_picture(3, {(0, 1): 0.0, (1, 0): 1.0, (7, 8): 1.0})
    cell = len(matrix) // 3
    agrees, differs = matrix[0, cell], matrix[cell, 0]
    assert agrees[1] > agrees[0]  # green
    assert differs[0] > differs[1]  # red
    assert (matrix[0, 0] == 40).all()
    assert thumbnail(np.zeros((600, 300, 3), np.uint8), 100).shape == (100, 50, 3)


def test_a_result_folder_is_shown_as_it_was_written(tmp_path):
    result = run_batch(SOURCES, CONFIG, OraclePredictor(POSES))
    write_results(result, tmp_path)
    direct, loaded = viewed(result), load_result(tmp_path)
    assert len(direct.edges) == VIEWS * (VIEWS - 1)
    assert [k.name for k in loaded.keyframes] == [k.name for k in direct.keyframes]
    np.testing.assert_allclose(loaded.keyframes[2].camera_to_world, direct.keyframes[2].camera_to_world, atol=1e-6)
    assert len(loaded.cloud) == len(direct.cloud) > 100


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ViewerError, match=f"cannot listen on 127.0.0.1:{port}"):
            Viewer(port=port)


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    made = Viewer(port=0, title="test")
    yield made
    made.close()


@pytest.fixture
def open_page(browser: Any, viewer: Viewer) -> Iterator[Callable[..., Any]]:
    pages = []

    def open_it(width: int = 1280, height: int = 800) -> Any:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.goto(viewer.url)
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.close()


def type_into(page: Any, label: str, value: str) -> None:
    """A slider's number field."""
    box = page.locator("div", has_text=label).last.locator("xpath=ancestor::*[.//input][1]//input").last
    box.fill(value)
    box.press("Enter")


def test_sliders_change_what_is_shown_and_the_points_can_be_saved(viewer, open_page, tmp_path):
    viewer.show(scene(1000))
    page = open_page()
    page.get_by_text("1 000 of 1 000 points, up to scale").wait_for()
    type_into(page, "Least confidence", "90")
    page.get_by_text("100 of 1 000 points").wait_for()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Save points").click()
    file = tmp_path / "saved.ply"
    downloading.value.save_as(file)
    assert len(read_cloud(file)) == 100
    viewer.show(scene(2000))
    page.get_by_text("200 of 2 000 points").wait_for()


def test_keyframes_and_pairs_have_their_tabs(viewer, open_page):
    viewer.show(scene())
    page = open_page(400, 850)  # a telephone
    page.get_by_role("tab", name="Keyframe").click()
    page.get_by_text("image 0: 64 x 48, focal 55 px").wait_for()
    type_into(page, "Keyframe", "2")
    page.get_by_text("image 2: 64 x 48").wait_for()
    page.get_by_role("button", name="Look through this camera").click()
    page.get_by_role("tab", name="Pairs").click()
    page.get_by_text("2 directed pairs of 3 views").wait_for()


def test_images_dropped_into_the_page_are_reconstructed(viewer, open_page):
    asked: list[RunSettings] = []

    def run(files, settings, progress) -> ViewedScene:
        asked.append(settings)
        if any(file.name.endswith(".txt") for file in files):
            raise ImageError(f"{files[-1].name} is not an image")
        progress("decode", 1, 2)
        return replace(scene(321, len(files)), edges={})

    RunPanel(viewer, run, ("complete", "one-reference"), 3)
    page = open_page()
    page.get_by_role("tab", name="Run").click()
    for k in range(2):
        encoded = io.BytesIO()
        Image.fromarray(image_of(k, POSES[k])).save(encoded, "PNG")
        file = {"name": f"photo{k}.png", "mimeType": "image/png", "buffer": encoded.getvalue()}
        page.locator("input[type=file]").first.set_input_files(file)
        page.get_by_text(f"photo{k}.png").first.wait_for()
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("Done.").wait_for()
    page.get_by_role("tab", name="Map").click()
    page.get_by_text("321 of 321 points").wait_for()
    assert asked == [RunSettings("automatic", 3)]
    page.get_by_role("tab", name="Run").click()
    archive = {"name": "album.zip", "mimeType": "application/zip", "buffer": zipped(20)}
    page.locator("input[type=file]").first.set_input_files(archive)
    page.get_by_text("22 files in all").wait_for()
    archive["buffer"] = b"no archive"
    page.locator("input[type=file]").first.set_input_files(archive)
    page.get_by_text("album.zip was not added").wait_for()
    page.get_by_text("22 files in all").wait_for()
    page.locator("input[type=file]").first.set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no"}
    )
    page.get_by_text("notes.txt").first.wait_for()
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("notes.txt is not an image").wait_for()


def zipped(count: int) -> bytes:
    """A .zip of images as phones and desktops make them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for k in reversed(range(count)):
            archive.writestr(f"album/view{k}.JPG", b"%d" % k)
        archive.writestr("__MACOSX/album/._view1.JPG", b"")
        archive.writestr("album/notes.txt", b"")
    return buffer.getvalue()


def test_a_zip_gives_its_images_in_natural_order():
    found = unpacked(Upload("Album.ZIP", zipped(11)))
    assert [file.name for file in found] == [f"album/view{k}.JPG" for k in range(11)]
    assert found[10].content == b"10"
    photo = Upload("photo.png", b"anything")
    assert unpacked(photo) == [photo]


def test_a_zip_that_cannot_be_used_is_said(monkeypatch):
    with pytest.raises(ImageError, match=r"this .zip cannot be read"):
        unpacked(Upload("a.zip", b"not one"))
    with pytest.raises(ImageError, match=r"this .zip cannot be read"):
        unpacked(Upload("a.zip", zipped(3).replace(b"1", b"7")))
    with pytest.raises(ImageError, match="no images are in this"):
        unpacked(Upload("a.zip", zipped(0)))
    monkeypatch.setattr("dust3r_ros.viewer.run_panel._MOST_UNPACKED", 2)
    with pytest.raises(ImageError, match="more than"):
        unpacked(Upload("a.zip", zipped(3)))


def test_a_request_for_the_head_alone_is_no_traceback(viewer, caplog):
    host, port = viewer.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as asking:
        asking.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        while asking.recv(1000):  # until the server has closed it
            pass
    assert "handshake" not in caplog.text


def test_a_long_recording_keeps_the_pixels_of_few_keyframes_and_a_small_picture_of_all(monkeypatch):
    monkeypatch.setattr("dust3r_ros.cli.view.KEPT_VIEWS", 2)
    monkeypatch.setattr("dust3r_ros.viewer.scene.FRUSTUM_PX", 16)

    class Shown(list):
        show = list.append

    shown = Shown()
    watch(shown, SOURCES, CONFIG, OraclePredictor(POSES), lambda *_: None)
    last = shown[-1].keyframes
    assert [keyframe.name for keyframe in last] == [source.name for source in SOURCES]
    full = [keyframe for keyframe in last if keyframe.depth is not None]
    assert 1 <= len(full) <= 2
    assert {k.image.shape for k in last if k.depth is None} == {(12, 16, 3)}
    assert len(shown) <= 2  # not after each keyframe


def test_images_none_of_which_can_be_read_are_an_error(viewer):
    def broken() -> None:
        raise ImageError("text.jpg: not an image in a known format")

    with pytest.raises(ImageError, match=r"none of the 2 images can be read; the first: text\.jpg"):
        watch(viewer, [SourceImage("text.jpg", broken)] * 2, CONFIG, OraclePredictor(POSES), lambda *_: None)


def test_the_page_follows_a_reconstruction(viewer, open_page):
    page = open_page()
    watch(viewer, SOURCES, CONFIG, OraclePredictor(POSES), lambda stage, done, whole: None)
    page.get_by_role("tab", name="Keyframe").click()
    page.get_by_text("0.png: 64 x 48").wait_for()
    type_into(page, "Keyframe", str(VIEWS - 1))
    page.get_by_text(f"{VIEWS - 1}.png: 64 x 48").wait_for()
