"""Matches, relative pose, single images and localisation, on the ball whose truth is known, and on real images."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import FOCAL_PX, HEIGHT, INTRINSICS, WIDTH, OraclePredictor, depth_of, image_of, path
from scipy.spatial import cKDTree
from test_evaluate import write_oracle_pack

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.cli import main
from dust3r_ros.data import PairPrediction, PairState
from dust3r_ros.errors import AlignmentError, RecordingError
from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.geometry import (
    backproject,
    invert_pose,
    make_pose,
    project,
    rotation_angle_deg,
    transform_points,
)
from dust3r_ros.images import load_image
from dust3r_ros.predictor import ImageSize
from dust3r_ros.tasks.localise import Localiser, load_map
from dust3r_ros.tasks.matches import match_pixels
from dust3r_ros.tasks.pair import relate
from dust3r_ros.tasks.pose import pose_from_points, relative_pose_pnp, relative_pose_procrustes
from dust3r_ros.tasks.single import look, normals_of

VIEWS = 5


@pytest.fixture
def oracle() -> OraclePredictor:
    return OraclePredictor(path(VIEWS))


def true_motion(i: int, j: int) -> np.ndarray:
    return invert_pose(path(VIEWS)[i]) @ path(VIEWS)[j]


def direction_error_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def noisy(prediction: PairPrediction, sigma: float, wrong: float = 0.0) -> PairPrediction:
    """Relative noise on all points, and a share of points that are anywhere."""
    rng = np.random.default_rng(0)

    def shaken(points: np.ndarray) -> np.ndarray:
        changed = points * (1 + sigma * rng.standard_normal(points.shape[:2])[..., None])
        bad = rng.uniform(size=points.shape[:2]) < wrong
        changed[bad] = rng.uniform(-10, 10, (int(bad.sum()), 3))
        return changed.astype(np.float32)

    return replace(prediction, points_i=shaken(prediction.points_i), points_j=shaken(prediction.points_j))


def test_matches_are_pixels_of_the_same_point(oracle):
    matches = match_pixels(oracle.predict([(0, 2)])[0], max_gap=0.05)
    assert len(matches) > 300
    world = transform_points(path(VIEWS)[0], backproject(depth_of(path(VIEWS)[0]), INTRINSICS))
    u, v = matches.pixels_i.T
    expected = project(transform_points(invert_pose(path(VIEWS)[2]), world[v, u]), INTRINSICS)
    off = np.linalg.norm(expected - (matches.pixels_j + 0.5), axis=1)
    assert np.quantile(off, 0.99) < 1.0  # nearest pixels: half a pixel's diagonal, stretched by the slant
    assert len(np.unique(matches.pixels_j, axis=0)) == len(matches)


def test_matches_are_those_of_a_brute_force_search(oracle):
    prediction = oracle.predict([(1, 2)])[0]
    matches = match_pixels(prediction, max_gap=np.inf)
    a, b = prediction.points_i.reshape(-1, 3)[::1], prediction.points_j.reshape(-1, 3)
    gaps = np.linalg.norm(a[:, None, :].astype(float) - b[None], axis=2)
    nearest_j, nearest_i = gaps.argmin(axis=1), gaps.argmin(axis=0)
    expected = {(i, j) for i, j in enumerate(nearest_j) if nearest_i[j] == i}
    flat = lambda uv: uv[:, 1] * WIDTH + uv[:, 0]  # noqa: E731
    found = set(zip(flat(matches.pixels_i).tolist(), flat(matches.pixels_j).tolist()))
    assert found == expected


def test_unsure_and_missing_pixels_do_not_match(oracle):
    prediction = oracle.predict([(0, 1)])[0]
    confidence = prediction.conf_i.copy()
    confidence[:, :20] = 0
    confidence[:, 20:40] = 1.5
    prediction = replace(prediction, conf_i=confidence)
    assert match_pixels(prediction, 0.05).pixels_i[:, 0].min() >= 20
    sure = match_pixels(prediction, 0.05, min_confidence=2.0)
    assert sure.pixels_i[:, 0].min() >= 40
    everything = match_pixels(prediction, 0.05)
    assert (np.diff(everything.confidence) <= 0).all()
    none = replace(prediction, conf_i=0 * confidence)
    assert len(match_pixels(none)) == 0


@pytest.mark.parametrize(("sigma", "wrong", "limit_deg"), [(0.0, 0.0, 0.05), (0.02, 0.2, 1.0)])
def test_relative_pose_both_ways(oracle, sigma, wrong, limit_deg):
    forward, back = (noisy(p, sigma, wrong) for p in oracle.predict([(0, 3), (3, 0)]))
    true = true_motion(0, 3)
    for found in (relative_pose_pnp(forward, INTRINSICS), relative_pose_procrustes(forward, back)):
        pose = found.camera_to_world
        assert rotation_angle_deg(pose[:3, :3].T @ true[:3, :3]) < limit_deg
        assert direction_error_deg(pose[:3, 3], true[:3, 3]) < 2 * limit_deg
        assert found.inliers.mean() > 0.9 * (1 - wrong) ** 2


def test_pnp_says_which_points_fit():
    rng = np.random.default_rng(3)
    pose = make_pose(cv2.Rodrigues(np.array([0.1, -0.3, 0.05]))[0], np.array([0.4, -0.2, 0.3]))
    camera = rng.uniform((-2, -1.5, 3), (2, 1.5, 8), (200, 3))
    pixels = project(camera, INTRINSICS)
    pixels[150:] = rng.uniform(0, HEIGHT, (50, 2))
    found = pose_from_points(transform_points(pose, camera), pixels, INTRINSICS)
    np.testing.assert_allclose(found.camera_to_world, pose, atol=1e-5)
    assert found.inliers[:150].all()
    assert found.inliers[150:].sum() < 3


def test_a_pose_that_cannot_be_had_is_an_error():
    with pytest.raises(AlignmentError, match="at least 6 points, got 3"):
        pose_from_points(np.eye(3), np.zeros((3, 2)), INTRINSICS)
    nothing = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    none = PairPrediction(nothing, nothing[..., 0], nothing, nothing[..., 0], PairState.FAILED)
    with pytest.raises(AlignmentError, match="at least 6 points, got 0"):
        relative_pose_procrustes(none, none)
    with pytest.raises(AlignmentError, match="no point lies in front of the camera"):
        intrinsics_of_image(none, own_map_only=True)


def test_two_images_are_put_in_relation(oracle):
    found = relate(image_of(0, path(VIEWS)[0]), image_of(4, path(VIEWS)[4]), oracle)
    assert found.focals_px == pytest.approx((FOCAL_PX, FOCAL_PX), rel=1e-3)
    assert found.angle_deg(found.pnp) == pytest.approx(rotation_angle_deg(true_motion(0, 4)[:3, :3]), abs=0.1)
    values = json.loads(json.dumps(found.to_json()))
    assert values["pnp"]["inlier_share"] == 1.0
    lost = relate(image_of(0, path(VIEWS)[0]), image_of(4, path(VIEWS)[4]), replace(oracle, lost=frozenset({4})))
    assert (len(lost.matches), lost.pnp, lost.procrustes) == (0, None, None)


def test_two_images_of_one_view_tell_no_pose_and_no_focal():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (240, 320, 3)).astype(np.uint8), (0, 0), 2)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    noisy_again = np.clip(image + rng.normal(8, 3, image.shape), 0, 255).astype(np.uint8)
    for other in (image, noisy_again):
        found = relate(image, other, GeometricPredictor())
        assert found.still
        assert (found.focals_px, found.procrustes) == (None, None)
        np.testing.assert_array_equal(found.pnp.camera_to_world, np.eye(4))
        np.testing.assert_array_equal(found.matches.pixels_i, found.matches.pixels_j)
        values = json.loads(json.dumps(found.to_json()))
        assert values["one_view"] is True
        assert "focals_px" not in values
    shifted = np.roll(image, 3, axis=1)
    assert not relate(image, shifted, GeometricPredictor()).still


def test_the_focal_of_a_pair_has_its_doubt(oracle):
    """A sideways motion before a plane tells no focal: it keeps the doubt that there is of any lens."""
    rng = np.random.default_rng(1)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (300, 500, 3)).astype(np.uint8), (0, 0), 2)
    wall = cv2.normalize(wall, None, 0, 255, cv2.NORM_MINMAX)
    views = wall[:240, :320], wall[:240, 40:360]
    unknown = relate(*views, GeometricPredictor())
    assert unknown.state is PairState.PLANAR
    assert unknown.focal_spread > 0.3
    assert not unknown.tells_focal
    k = INTRINSICS.from_focal(300.0, 320, 240)
    known = relate(*views, GeometricPredictor(), intrinsics=(k, k))
    assert known.focals_px == pytest.approx((300.0, 300.0))
    assert known.focal_spread == 0
    seen = relate(image_of(0, path(VIEWS)[0]), image_of(4, path(VIEWS)[4]), oracle)  # by the pointmaps
    assert seen.focal_spread < 0.01
    assert seen.tells_focal


def test_a_camera_that_only_turned_has_no_direction():
    rng = np.random.default_rng(2)
    scene = cv2.GaussianBlur(rng.integers(0, 255, (600, 800, 3)).astype(np.uint8), (0, 0), 2)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    k = np.array([[500, 0, 400], [0, 500, 300], [0, 0, 1.0]])
    turn = cv2.Rodrigues(np.array([0.02, 0.12, 0.01]))[0]
    turned = cv2.warpPerspective(scene, k @ turn.T @ np.linalg.inv(k), (800, 600))
    views = [image[120:480, 160:640] for image in (scene, turned)]
    known = INTRINSICS.from_focal(500.0, 480, 360)
    found = relate(*views, GeometricPredictor(), intrinsics=(known, known))
    assert not found.has_baseline
    assert found.angle_deg(found.pnp) == pytest.approx(np.degrees(np.linalg.norm([0.02, 0.12, 0.01])), abs=0.1)
    assert found.to_json()["has_baseline"] is False


def test_a_single_image_has_depth_normals_and_a_focal(oracle):
    pose = path(VIEWS)[2]
    found = look(image_of(2, pose), oracle)
    ratio = found.depth / depth_of(pose)
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)
    assert found.intrinsics.focal_px == pytest.approx(FOCAL_PX, rel=1e-3)
    world = transform_points(pose, backproject(depth_of(pose), INTRINSICS))
    inward = -world * np.array([1, 1.4**2, 1])  # the gradient of the squeezed ball
    inward /= np.linalg.norm(inward, axis=-1, keepdims=True)
    cosine = (found.normals @ pose[:3, :3].T * inward).sum(axis=-1)[1:-1, 1:-1]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 1.0
    assert not found.normals[0].any()
    assert look(image_of(2, pose), oracle, INTRINSICS).intrinsics == INTRINSICS


def test_normals_next_to_unknown_points_are_unknown():
    points = backproject(np.full((HEIGHT, WIDTH), 2.0), INTRINSICS)
    known = np.ones((HEIGHT, WIDTH), bool)
    known[10, 20] = False
    normals = normals_of(points, known)
    np.testing.assert_allclose(normals[5, 5], [0, 0, -1], atol=1e-9)
    for v, u in ((9, 20), (11, 20), (10, 19), (10, 21)):
        assert not normals[v, u].any()


def test_classical_geometry_says_that_one_image_has_no_depth():
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (320, 240))
    with pytest.raises(AlignmentError, match="geometric sees no depth in a single image: take a network"):
        look(image, GeometricPredictor())


@pytest.fixture
def map_folder(tmp_path) -> Path:
    return write_oracle_pack(tmp_path / "ball", VIEWS)


@pytest.mark.parametrize("known", [None, INTRINSICS])
def test_an_image_is_placed_in_a_map(map_folder, oracle, known):
    localiser = Localiser(map_folder, oracle, neighbours=3)
    found = localiser.locate(image_of(3, path(VIEWS)[3]), known)
    error = invert_pose(path(VIEWS)[3]) @ found.camera_to_world
    assert np.linalg.norm(error[:3, 3]) < 0.02
    assert rotation_angle_deg(error[:3, :3]) < 0.2
    assert found.intrinsics_from == ("given" if known else "the map's camera")
    assert found.inliers > 0.9 * found.points > 100
    assert len(found.keyframes) == 3
    assert "images/3.png" in found.keyframes  # the image itself is its own nearest keyframe


@pytest.mark.parametrize("guess", [1.0, 1.6])
def test_another_cameras_focal_is_estimated(map_folder, oracle, monkeypatch, guess):
    """An image of another size than the map's; also where the predictor's own idea of the focal is far off."""

    def off(prediction, **options):
        found = intrinsics_of_image(prediction, **options)
        return replace(found, intrinsics=INTRINSICS.from_focal(guess * found.intrinsics.focal_px, WIDTH, HEIGHT))

    monkeypatch.setattr("dust3r_ros.tasks.localise.intrinsics_of_image", off)
    larger = cv2.resize(image_of(1, path(VIEWS)[1]), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found = Localiser(map_folder, oracle).locate(larger)
    assert found.intrinsics_from == "estimated"
    assert found.intrinsics.focal_px == pytest.approx(2 * FOCAL_PX, rel=0.05)  # of pixels of 1/64 of the image
    assert np.linalg.norm(found.camera_to_world[:3, 3] - path(VIEWS)[1][:3, 3]) < 0.2


def test_a_map_of_prepared_images_knows_the_size_of_the_originals(map_folder, oracle, tmp_path):
    """A reconstruction's folder: the keyframes with depth are smaller than the images in its cameras.json."""
    (tmp_path / "made").mkdir()
    map_folder.rename(tmp_path / "made" / "depth")
    cameras = json.loads((tmp_path / "made" / "depth" / "cameras.json").read_text())
    scale = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # pixel centres at integers
    for frame in cameras["frames"]:
        frame |= {"width": 2 * WIDTH, "height": 2 * HEIGHT, "K": (scale @ frame["K"]).tolist()}
    (tmp_path / "made" / "cameras.json").write_text(json.dumps(cameras))
    image = image_of(1, path(VIEWS)[1])
    larger = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    localiser = Localiser(tmp_path / "made", oracle)
    found = localiser.locate(larger)
    assert found.intrinsics_from == "the map's camera"
    assert found.intrinsics.matrix() == pytest.approx(INTRINSICS.matrix() * [[2], [2], [1]], abs=1e-6)
    assert localiser.locate(larger, estimate=True).intrinsics_from == "estimated"
    assert localiser.locate(image).intrinsics_from == "estimated"
    smaller = Localiser(tmp_path / "made", oracle, size=ImageSize(WIDTH // 2))  # of another preparation than the map's
    assert smaller._cameras == localiser._cameras


def test_a_size_that_two_cameras_have_tells_no_camera(map_folder, oracle):
    cameras = json.loads((map_folder / "cameras.json").read_text())
    for frame in cameras["frames"][::2]:
        frame["K"][0][0] = frame["K"][1][1] = 2 * FOCAL_PX
    (map_folder / "cameras.json").write_text(json.dumps(cameras))
    assert Localiser(map_folder, oracle)._cameras == {}


def test_an_image_of_elsewhere_is_not_placed(map_folder):
    localiser = Localiser(map_folder, OraclePredictor(path(VIEWS), lost=frozenset({4})))
    with pytest.raises(AlignmentError, match="at least 6 points, got 0"):
        localiser.locate(image_of(4, path(VIEWS)[4]))


def test_what_is_no_map_is_said(tmp_path, map_folder):
    with pytest.raises(RecordingError, match="no such folder"):
        load_map(tmp_path / "nowhere")
    with pytest.raises(RecordingError, match=r"is no map: it has neither depth/cameras\.json nor cameras\.json"):
        load_map(tmp_path)
    bare = json.loads((map_folder / "cameras.json").read_text())
    for frame in bare["frames"]:
        del frame["depth_mm"]
    (map_folder / "cameras.json").write_text(json.dumps(bare))
    with pytest.raises(RecordingError, match="reconstruct it with --export depth"):
        load_map(map_folder)


@pytest.fixture
def commands(monkeypatch, oracle, tmp_path) -> Path:
    """Every command gets the oracle; the folder of its images."""
    monkeypatch.setattr("dust3r_ros.pipeline.load_predictor", lambda config: oracle)
    for number, pose in enumerate(path(VIEWS)):
        cv2.imwrite(str(tmp_path / f"view{number}.png"), image_of(number, pose)[..., ::-1])
    return tmp_path


def test_the_commands_write_what_they_say(commands, map_folder, capsys):
    out = commands / "out"
    assert main(["match", str(commands / "view0.png"), str(commands / "view1.png"), "--out", str(out)]) == 0
    with np.load(out / "matches.npz") as matches:
        assert matches["pixels_i"].shape == matches["pixels_j"].shape == (len(matches["confidence"]), 2)
        assert matches["pixels_i"].min() == 0.0  # pixel centres at integers
    drawn = cv2.imread(str(out / "matches.jpg"))
    assert drawn.shape == (HEIGHT, 2 * WIDTH, 3)
    plain = np.hstack([image_of(k, path(VIEWS)[k])[..., ::-1] for k in (0, 1)])
    assert (np.abs(drawn.astype(int) - plain).max(axis=2) > 60).mean() > 0.3  # many lines, not one
    assert main(["match", str(commands / "view0.png"), str(commands / "view1.png"), "--out", str(out)]) == 2
    assert "holds results already" in capsys.readouterr().err
    assert main(["depth", str(commands / "view0.png"), "--out", str(out)]) == 0
    assert main(["depth", str(commands / "view0.png"), "--out", str(out)]) == 2
    assert "holds results already" in capsys.readouterr().err
    assert main(["depth", str(commands / "view1.png"), "--out", str(out), "--overwrite"]) == 0
    assert np.load(out / "normals.npy").shape == (HEIGHT, WIDTH, 3)
    assert json.loads((out / "camera.json").read_text())["K"][0][0] == pytest.approx(FOCAL_PX, rel=1e-3)
    images = [str(commands / f"view{k}.png") for k in (1, 2)]
    assert main(["localise", *images, "--map", str(map_folder), "--out", str(out)]) == 0
    frames = json.loads((out / "cameras.json").read_text())["frames"]
    for frame, k in zip(frames, (1, 2), strict=True):
        np.testing.assert_allclose(frame["cam_to_world"], path(VIEWS)[k], atol=0.02)
        assert (out / frame["file"]).samefile(commands / f"view{k}.png")
    assert capsys.readouterr().err == ""


def test_what_a_pair_does_not_tell_is_said(commands, monkeypatch, capsys):
    rng = np.random.default_rng(1)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (300, 500, 3)).astype(np.uint8), (0, 0), 2)
    wall = cv2.normalize(wall, None, 0, 255, cv2.NORM_MINMAX)
    sides = commands / "left.png", commands / "right.png"
    for side, shift in zip(sides, (0, 40)):
        cv2.imwrite(str(side), wall[:240, shift : shift + 320])
    sizes = []

    def load(config):
        sizes.append(config.image_size)
        return GeometricPredictor()

    monkeypatch.setattr("dust3r_ros.pipeline.load_predictor", load)
    match = ["match", *map(str, sides), "--overwrite", "--out", str(commands / "pair")]
    assert main([*match, "--image-size", "320"]) == 0
    said = capsys.readouterr().out
    assert "only a guess: the motion between these two does not tell it" in said
    assert "all that is seen lies in one plane" in said
    assert main([*match, "--camera", "300", "300", "159.5", "119.5", "--set", "image_size=256"]) == 0
    assert "300.0 px, 300.0 px, as given" in capsys.readouterr().out
    assert json.loads((commands / "pair" / "pose.json").read_text())["focals_px"] == pytest.approx([300, 300])
    assert sizes == [320, 256]


def test_localise_says_whose_focal_it_took(commands, map_folder, capsys):
    command = ["localise", str(commands / "view1.png"), "--map", str(map_folder)]
    assert main(command) == 0
    assert "px, the map's camera" in capsys.readouterr().out
    assert main([*command, "--estimate-focal"]) == 0
    assert "px, estimated" in capsys.readouterr().out
    assert main([*command, "--estimate-focal", "--camera", "55", "55", "31.5", "23.5"]) == 2
    assert "choose one" in capsys.readouterr().err


def test_identical_images_are_said_to_be(commands, capsys):
    image = str(commands / "view0.png")
    assert main(["match", image, image, "--out", str(commands / "same")]) == 0
    assert "both images are of one view: the direction and the focal are undefined" in capsys.readouterr().out
    assert json.loads((commands / "same" / "pose.json").read_text())["one_view"] is True


def test_images_that_share_nothing_are_said(commands, oracle, map_folder, capsys):
    oracle.lost = frozenset({3})
    assert main(["match", str(commands / "view0.png"), str(commands / "view3.png"), "--out", str(commands / "o")]) == 2
    assert "share nothing" in capsys.readouterr().err
    assert not (commands / "o").exists()
    images = [str(commands / f"view{k}.png") for k in (3, 1)]
    assert main(["localise", *images, "--map", str(map_folder)]) == 0  # one of two could be placed
    assert "got 0" in capsys.readouterr().out
    assert main(["localise", images[0], "--map", str(map_folder)]) == 2
    assert "none of the 1 images could be placed" in capsys.readouterr().err
    (commands / "text.jpg").write_text("no image")
    assert main(["localise", str(commands / "text.jpg"), images[1], "--map", str(map_folder)]) == 0
    assert "text.jpg: not an image in a known format" in capsys.readouterr().out


def test_real_images_by_classical_geometry(shared):
    """Two photographs of a fountain, 25 cm apart: the true pose is known."""
    folder = shared / "data" / "strecha_fountain-P11"
    frames = json.loads((folder / "cameras.json").read_text())["frames"]
    i, j = frames[4], frames[6]
    images = [load_image(folder / frame["file"]) for frame in (i, j)]
    found = relate(*images, GeometricPredictor())
    true = invert_pose(np.array(i["cam_to_world"])) @ np.array(j["cam_to_world"])
    for pose in (found.pnp, found.procrustes):
        assert rotation_angle_deg(pose.camera_to_world[:3, :3].T @ true[:3, :3]) < 2
        assert direction_error_deg(pose.camera_to_world[:3, 3], true[:3, 3]) < 3
    k_i, k_j = (np.array(frame["K"]) for frame in (i, j))
    back = np.linalg.inv(true)
    skew = np.cross(np.eye(3), back[:3, 3])
    fundamental = np.linalg.inv(k_j).T @ skew.T @ back[:3, :3] @ np.linalg.inv(k_i)
    t = found.images[0].transform
    uv = [(m + 0.5 - (t.offset_x, t.offset_y)) / (t.scale_x, t.scale_y) - 0.5 for m in
          (found.matches.pixels_i, found.matches.pixels_j)]  # fmt: skip
    homogeneous = [np.column_stack([p, np.ones(len(p))]) for p in uv]
    lines = homogeneous[0] @ fundamental.T
    off = np.abs((homogeneous[1] * lines).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)
    assert len(off) > 10_000
    assert np.median(off) < 2  # pixels of the photograph, half of the predictor's
    assert cKDTree(uv[0]).query(uv[0], 2)[0][:, 1].min() > 0
