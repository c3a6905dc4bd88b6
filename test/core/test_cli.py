"""The command line: what it writes, what it says, and its exit codes. The predictor knows the truth."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import FOCAL_PX, HEIGHT, WIDTH, OraclePredictor, depth_of, image_of, path
from test_bag import write_bag
from test_evaluate import write_oracle_pack

from dust3r_ros.cli import main
from dust3r_ros.cli.options import parse_value
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.cli.ros_commands import _node_arguments, ros_parameters
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.errors import ConfigError, RosError
from dust3r_ros.evaluation.report import focal_text
from dust3r_ros.evaluation.results import IncrementalRun
from dust3r_ros.options import make_config

VIEWS = 5
EVERY = ("--set", "keyframes.every_image=true")
CAMERA = ("--camera", str(FOCAL_PX), str(FOCAL_PX), str(WIDTH / 2 - 0.5), str(HEIGHT / 2 - 0.5))


@pytest.fixture(autouse=True)
def predictor(monkeypatch):
    """Every command gets the oracle; what it was configured with is kept."""
    configs = []

    def load(config):
        configs.append(config)
        return OraclePredictor(path(VIEWS))

    monkeypatch.setattr("dust3r_ros.pipeline.load_predictor", load)
    return configs


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, pose in enumerate(path(VIEWS)):
        cv2.imwrite(str(folder / f"view{8 + number}.png"), image_of(number, pose)[..., ::-1])  # 8, 9, 10, 11, 12
    return folder


def refused(capsys, *arguments: str) -> str:
    """Run a command that must fail with exit code 2 and exactly one line; that line."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as exit_:
        code = exit_.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    return lines[0]


def trajectory(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "trajectory.tum")


@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_reconstruct_writes_the_scene_in_natural_order(images, tmp_path, capsys, mode):
    out = tmp_path / "deep" / "out"
    assert main(["reconstruct", str(images), "--out", str(out), "--mode", mode, *EVERY]) == 0
    expected = {"trajectory.tum", "cloud.ply", "cameras.json", "report.html", "summary.json"}
    assert {file.name for file in out.iterdir()} == expected | ({"frames.tum"} if mode == "incremental" else set())
    found = trajectory(out)
    np.testing.assert_array_equal(found[:, 0], np.arange(VIEWS))
    true = path(VIEWS)[:, :3, 3] - path(VIEWS)[0, :3, 3]
    scale = np.linalg.norm(true[-1]) / np.linalg.norm(found[-1, 1:4])
    np.testing.assert_allclose(scale * found[:, 1:4], true, atol=0.02)
    cameras = json.loads((out / "cameras.json").read_text())["frames"]
    assert cameras[0]["file"] == "../../images/view8.png"
    assert (out / cameras[2]["file"]).samefile(images / "view10.png")
    assert cameras[0]["K"][0][0] == pytest.approx(FOCAL_PX, rel=0.01)
    said = capsys.readouterr()
    assert f"{VIEWS} ({VIEWS} with a pose)\n" in said.out
    assert said.err == ""


def test_reconstruct_takes_a_given_camera_and_draws(images, tmp_path, predictor):
    out = tmp_path / "out"
    assert main(["reconstruct", str(images), "--out", str(out), *CAMERA, "--picture"]) == 0
    assert predictor[0].intrinsics == "given"
    assert (out / "report.png").stat().st_size > 10_000
    k = json.loads((out / "cameras.json").read_text())["frames"][1]["K"]
    np.testing.assert_allclose(k, [[FOCAL_PX, 0, WIDTH / 2 - 0.5], [0, FOCAL_PX, HEIGHT / 2 - 0.5], [0, 0, 1]])


EXPORTED = (
    "scene.glb", "cloud.pcd", "trajectory.kitti", "sparse/0/points3D.bin", "transforms.json", "mesh.ply",
    "exr/view8.exr", "bag/metadata.yaml",
)  # fmt: skip


@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_reconstruct_exports_what_is_asked_for(images, tmp_path, mode, capsys):
    pytest.importorskip("pycolmap")
    pytest.importorskip("trimesh")
    pytest.importorskip("OpenEXR")
    try:
        import open3d  # noqa: F401
    except ImportError as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")
    out = tmp_path / "out"
    arguments = ["reconstruct", str(images), "--out", str(out), "--mode", mode, "--export", "all", "--outliers", "3"]
    assert main([*arguments, *EVERY]) == 0
    for name in (*EXPORTED, "images/view8.jpg", "images/view12.jpg", "depth/cameras.json", "depth/view10.npy"):
        assert (out / name).is_file(), name
    assert main([*arguments, *EVERY, "--overwrite"]) == 0


def test_one_image_is_paired_with_itself(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(images / "view9.png"), "--out", str(out), "--export", "depth,colmap,glb"]) == 0
    assert "1 (1 with a pose)" in capsys.readouterr().out
    depth = np.load(out / "depth" / "view9.npy")
    true = depth_of(path(VIEWS)[1])
    known = depth > 0
    np.testing.assert_allclose((depth / true)[known], np.median(depth / true), rtol=0.01)
    assert json.loads((out / "cameras.json").read_text())["frames"][0]["K"][0][0] == pytest.approx(FOCAL_PX, rel=0.01)


@pytest.mark.parametrize("mode", ["batch", "incremental"])
def test_an_image_that_cannot_be_read_is_left_out_and_named(images, tmp_path, capsys, mode):
    (images / "view10.png").write_text("a text file")
    out = tmp_path / "out"
    assert main(["reconstruct", str(images), "--out", str(out), "--mode", mode, "--export", "depth", *EVERY]) == 0
    said = capsys.readouterr().out
    assert "images left out  1 that cannot be read: " in said
    assert "view10.png: not an image in a known format" in said
    names = [Path(frame["file"]).name for frame in json.loads((out / "cameras.json").read_text())["frames"]]
    assert names == ["view8.png", "view9.png", "view11.png", "view12.png"]


def test_what_is_left_when_most_cannot_be_read_is_said_with_them(images, tmp_path, capsys, monkeypatch):
    (images / "view10.png").write_text("a text file")
    lost = OraclePredictor(path(VIEWS), lost=frozenset(range(VIEWS)))
    monkeypatch.setattr("dust3r_ros.pipeline.load_predictor", lambda config: lost)
    line = refused(capsys, "reconstruct", str(images), "--out", str(tmp_path / "out"))
    assert "can be placed; 1 could not be read: " in line
    assert "view10.png: not an image in a known format" in line


def test_images_of_different_sizes_have_focals_of_their_own(images, tmp_path):
    big = cv2.imread(str(images / "view10.png"))
    cv2.imwrite(str(images / "view10.png"), cv2.resize(big, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    assert main(["reconstruct", str(images), "--out", str(tmp_path / "out")]) == 0
    frames = json.loads((tmp_path / "out" / "cameras.json").read_text())["frames"]
    focals = [frame["K"][0][0] for frame in frames]
    np.testing.assert_allclose(focals, [FOCAL_PX, FOCAL_PX, 2 * FOCAL_PX, FOCAL_PX, FOCAL_PX], rtol=0.01)


def test_heic_photographs_are_reconstructed_and_exported_as_jpeg(images, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for file in sorted(images.iterdir()):
        pixels = cv2.imread(str(file))[..., ::-1]
        heif.from_bytes("RGB", (WIDTH, HEIGHT), pixels.tobytes()).save(
            file.with_suffix(".heic"), quality=-1, chroma=444, matrix_coefficients=0
        )
        file.unlink()
    assert main(["reconstruct", str(images), "--out", str(tmp_path / "out"), "--export", "nerfstudio"]) == 0
    assert (tmp_path / "out" / "images" / "view10.jpg").is_file()


def test_the_peak_of_memory_is_said(images, tmp_path, capsys):
    assert main(["reconstruct", str(images), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert 0.05 < float(said.split("memory at most")[1].split()[0]) < 64


def test_an_export_that_fails_is_said_after_all_else_was_written(images, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "scene.glb").mkdir(parents=True)
    assert main(["reconstruct", str(images), "--out", str(out), "--export", "glb,kitti"]) == 2
    said = capsys.readouterr()
    assert "written" in said.out
    assert len(said.err.strip().splitlines()) == 1
    assert "scene.glb: is a folder" in said.err
    assert (out / "trajectory.kitti").is_file()
    assert (out / "report.html").is_file()


def test_reconstruct_a_video(tmp_path):
    video = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"FFV1"), 10, (WIDTH, HEIGHT))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write lossless video")
    for number, pose in enumerate(path(VIEWS)):
        writer.write(image_of(number, pose)[..., ::-1])
    writer.release()
    assert main(["reconstruct", str(video), "--out", str(tmp_path / "out"), "--export", "nerfstudio", *EVERY]) == 0
    assert sorted(file.name for file in (tmp_path / "out" / "images").iterdir()) == [
        f"walk_{k:06d}.jpg" for k in range(VIEWS)
    ]
    np.testing.assert_allclose(trajectory(tmp_path / "out")[:, 0], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-3)


def test_evaluate_writes_metrics(tmp_path, capsys):
    pack = write_oracle_pack(tmp_path / "pack", VIEWS)
    assert main(["evaluate", str(pack), "--out", str(tmp_path / "out"), "--intrinsics", "pack"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["ate_percent"] < 0.5
    report = (tmp_path / "out" / "report.html").read_text()
    for fact in ("path error (RMSE)", "direction error", "AUC at 30 deg", "depth error", "Blue: the true path"):
        assert fact in report
    assert (metrics["mode"], metrics["intrinsics"]) == ("batch", "pack")
    assert "path error (RMSE)" in capsys.readouterr().out


def oracle_bag(folder: Path, monkeypatch) -> Path:
    """A bag of the ball's views."""
    changes = {}
    for number, pose in enumerate(path(VIEWS)):
        pixels = image_of(number, pose)
        changes[number] = {"height": HEIGHT, "width": WIDTH, "step": 3 * WIDTH, "data": pixels.reshape(-1)}
    return write_bag(folder, "mcap", changes=changes)


def test_replay_reconstructs_every_frame_and_keeps_its_stamps(tmp_path, monkeypatch, capsys):
    bag = oracle_bag(tmp_path, monkeypatch)
    arguments = ["replay", str(bag), "--out", str(tmp_path / "out"), "--picture", "--export", "nerfstudio,depth"]
    assert main([*arguments, *EVERY]) == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == VIEWS
    assert "Blue: the true path" in (tmp_path / "out" / "report.html").read_text()
    stamps = [line.split()[0] for line in (tmp_path / "out" / "trajectory.tum").read_text().splitlines()[1:]]
    assert stamps == [f"1700000000.{k}00000000" for k in range(VIEWS)]
    said = capsys.readouterr().out
    assert f"frames seen        {VIEWS}" in said
    assert "path error (RMSE)" in said  # against the bag's poses, which are not the ball's
    assert (tmp_path / "out" / "report.png").is_file()


def test_replay_of_an_unfinished_recording_writes_what_there_is_and_says_so(tmp_path, monkeypatch, capsys):
    file = next(oracle_bag(tmp_path, monkeypatch).glob("*.mcap"))
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(file.read_bytes()[:-100])
    assert main(["replay", str(cut), "--out", str(tmp_path / "out"), *EVERY]) == 2
    assert len(trajectory(tmp_path / "out")) == VIEWS
    assert capsys.readouterr().err.count("was not closed by its recorder") == 1


def test_replay_takes_a_part(tmp_path, monkeypatch, capsys):
    arguments = ["replay", str(oracle_bag(tmp_path, monkeypatch)), *EVERY]
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out), "--start", "0.1", "--every", "3", "--export", "nerfstudio"]) == 0
    stamps = [line.split()[0] for line in (out / "trajectory.tum").read_text().splitlines()[1:]]
    assert stamps == ["1700000000.100000000", "1700000000.400000000"]
    for picture, number in zip(sorted((out / "images").iterdir()), (1, 4), strict=True):
        shown = cv2.imread(str(picture))[..., ::-1].astype(int)
        assert np.abs(shown - image_of(number, path(VIEWS)[number])).mean() < 10
    parts = []
    for part in ((), ("--start", "0.1")):
        assert main([*arguments, "--out", str(tmp_path / f"part{len(part)}"), *part]) == 0
        parts.append(re.search(r"% of ([\d.]+) m", capsys.readouterr().out)[1])
    assert float(parts[1]) == pytest.approx(0.75 * float(parts[0]), abs=0.02)  # the true path of three of four steps
    nothing = refused(capsys, *arguments, "--out", str(tmp_path / "none"), "--start", "9")
    assert "has no image in the part that is asked for; it lasts" in nothing
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupted_replay_writes_what_it_has(tmp_path, monkeypatch, capsys, after):
    """Ctrl-C while an image is looked at."""
    whole = IncrementalRun.add
    offered = []

    def add(run, source):
        offered.append(source)
        if len(offered) == max(after, 1):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # at the same moment: no second one, but the first passed on
            if not after:
                time.sleep(0.6)
                os.kill(os.getpid(), signal.SIGINT)  # a second one ends it at once
        return whole(run, source)

    monkeypatch.setattr(IncrementalRun, "add", add)
    bag, out = oracle_bag(tmp_path, monkeypatch), tmp_path / "out"
    assert main(["replay", str(bag), "--out", str(out), *EVERY]) == 130
    said = capsys.readouterr()
    if after:
        assert len(trajectory(out)) == 3
        assert said.err == "dust3r-ros: interrupted after 3 images: what there was by then is written\n"
        assert "frames seen        3" in said.out
        assert (out / "report.html").is_file()
        assert json.loads((out / "summary.json").read_text())["ended_early"].startswith("interrupted after 3 images")
    else:
        assert said.err == "dust3r-ros: interrupted\n"
        assert not out.exists()


def test_align_reads_predictions_and_writes_the_scene(tmp_path):
    poses = path(3)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    made = OraclePredictor(poses).predict(pairs)
    arrays = {name: np.stack([getattr(p, name) for p in made]) for name in ("points_i", "conf_i", "points_j", "conf_j")}
    np.savez(tmp_path / "in.npz", edges=np.array(pairs), **arrays)
    assert main(["align", str(tmp_path / "in.npz"), "--out", str(tmp_path / "scene.npz")]) == 0
    with np.load(tmp_path / "scene.npz") as scene:
        assert scene["poses"].shape == (3, 4, 4)
        assert scene["depth"].shape == (3, HEIGHT, WIDTH)
        assert scene["seconds"] > 0
        np.testing.assert_allclose(scene["focal"], FOCAL_PX, rtol=0.01)


def test_align_honours_what_is_known(tmp_path, capsys):
    poses = path(3)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    made = OraclePredictor(poses).predict(pairs)
    arrays = {name: np.stack([getattr(p, name) for p in made]) for name in ("points_i", "conf_i", "points_j", "conf_j")}
    np.savez(tmp_path / "in.npz", edges=np.array(pairs), **arrays, poses=np.array(poses), cameras=np.array([4, 4, 7]))
    files = [str(tmp_path / "in.npz"), "--out", str(tmp_path / "scene.npz")]
    assert main(["align", *files, "--keep-poses", "0", "2", "--focal", str(FOCAL_PX)]) == 0
    with np.load(tmp_path / "scene.npz") as scene:
        np.testing.assert_array_equal(scene["poses"][[0, 2]], np.array(poses)[[0, 2]])
        np.testing.assert_allclose(scene["poses"][1], poses[1], atol=1e-2)
        np.testing.assert_allclose(scene["focal"], FOCAL_PX)
        assert scene["covariance"].shape == (3, 6, 6) and not len(scene["wrong_edges"])
    assert main(["align", *files, "--keep-poses", "--principal-point", str(WIDTH / 2), str(HEIGHT / 2)]) == 0
    with np.load(tmp_path / "scene.npz") as scene:
        np.testing.assert_array_equal(scene["poses"], poses)
        assert scene["focal"][0] == scene["focal"][1] != scene["focal"][2]
    capsys.readouterr()
    assert "keep-poses expects views 0 to 2, got [3]" in refused(capsys, "align", *files, "--keep-poses", "3")
    assert "--focal expects a positive number" in refused(capsys, "align", *files, "--focal", "nan")
    np.savez(tmp_path / "in.npz", edges=np.array(pairs), **arrays, poses=np.zeros((3, 4, 4)))
    assert "pose of view 0 must be a rigid transform" in refused(capsys, "align", *files, "--keep-poses")
    np.savez(tmp_path / "in.npz", edges=np.array(pairs), **arrays)
    assert "expects poses (N, 4, 4) in the file, got none" in refused(capsys, "align", *files, "--keep-poses")


MISTAKES = {
    "no command": ([], "dust3r-ros: the following arguments are required: COMMAND"),
    "unknown command": (["fly"], "unknown command fly, there are reconstruct, replay, batch"),
    "misspelt command": (["reconstrct", "x"], "unknown command reconstrct, did you mean reconstruct?; see dust3r-ros"),
    "tiny images": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--image-size", "10"],
        "image_size must be from 64 to 8192 pixels, or 0 for the predictor's own choice, got 10"
    ),
    "huge images": (["info", "--set", "image_size=9000"], "image_size must be from 0 to 8192, got 9000"),
    "no out": (["reconstruct", "x"], "the following arguments are required: --out"),
    "no images": (["reconstruct", "{tmp}/nowhere", "--out", "{tmp}/o"], "nowhere: no such file or folder"),
    "empty folder": (["reconstruct", "{tmp}/empty", "--out", "{tmp}/o"], "empty: no images in this folder"),
    "two videos": (["reconstruct", "{tmp}/a.mp4", "{tmp}/b.mp4", "--out", "{tmp}/o"], "a video must be given alone"),
    "damaged images": (
        ["reconstruct", "{tmp}/bad.png", "{tmp}/text.jpg", "--out", "{tmp}/o"],
        "bad.png: not an image in a known format (and 1 more that cannot be read)"
    ),
    "damaged images, incremental": (
        ["reconstruct", "{tmp}/bad.png", "{tmp}/text.jpg", "--out", "{tmp}/o", "--mode", "incremental"],
        "bad.png: not an image in a known format"
    ),
    "results are there": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/done"], "done holds results already: choose another folder"
    ),
    "misspelt option": (
        ["depth", "x", "--out", "y", "--chekpoint=tiny"], "unknown option --chekpoint, did you mean --checkpoint?"
    ),
    "nothing like it": (["info", "--zzz"], "dust3r-ros info: unknown option --zzz; see dust3r-ros info --help"),
    "too much": (["replay", "a", "b", "--out", "y"], "unknown argument b"),
    "no such reference": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--reference", "5"], "number from 0 to 4, got 5"
    ),
    "unknown export": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--export", "obj"], "--export must be all or names of glb"
    ),
    "clean-up out of range": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--consistency", "2"], "consistency must be from 0 to 1"
    ),
    "every 0": (["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--every", "0"], "--every must be at least 1"),
    "given without camera": (
        ["reconstruct", "{tmp}/images", "--out", "{tmp}/o", "--intrinsics", "given"], "needs --camera FX FY CX CY"
    ),
    "out is a file": (["reconstruct", "{tmp}/images", "--out", "{tmp}/one.png"], "cannot write to"),
    "window 0": (["evaluate", "{tmp}/empty", "--out", "{tmp}/o", "--window", "0"], "window must be from 1 to 50"),
    "no pack": (["evaluate", "{tmp}/empty", "--out", "{tmp}/o"], "is not a posed image pack"),
    "no bag": (["replay", "{tmp}/nowhere", "--out", "{tmp}/o"], "no such recording"),
    "no bag either": (["replay", "{tmp}/one.png", "--out", "{tmp}/o"], "is not a recording"),
    "no image": (["replay", "x.bag", "--out", "{tmp}/o", "--every", "0"], "every must be at least 1, got 0"),
    "no predictions": (["align", "{tmp}/nowhere.npz", "--out", "{tmp}/o.npz"], "nowhere.npz: no such file"),
    "unknown option": (["info", "--set", "keyframes.min_overlapp=1"], "did you mean keyframes.min_overlap?"),
    "no value": (["info", "--set", "window"], "--set expects NAME=VALUE, got 'window'"),
    "wrong type": (["info", "--set", "window=two"], "window must be a whole number, got 'two'"),
    "out of range": (["info", "--set", "window=99"], "window must be from 1 to 50, got 99"),
    "no parameter file": (["info", "--params", "{tmp}/nowhere.yaml"], "nowhere.yaml cannot be read"),
    "broken parameter file": (["info", "--params", "{tmp}/broken.yaml"], "broken.yaml is not YAML"),
    "list of parameters": (["info", "--params", "{tmp}/list.yaml"], "list.yaml must hold names and values, got list"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_clear_line_and_exit_code_2(images, tmp_path, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.png").write_bytes((images / "view8.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "text.jpg").write_text("a shopping list")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "cameras.json").write_text("{}")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    line = refused(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert said in line
    assert line.startswith("dust3r-ros")
    assert not (tmp_path / "o").exists()  # what is refused leaves nothing behind


def test_a_device_that_is_not_used_is_said(images, tmp_path, monkeypatch):
    """In a process of its own: what is written is what the logging of the command shows."""
    command = [sys.executable, "-m", "dust3r_ros", "match", str(images / "view8.png"), str(images / "view8.png")]
    done = subprocess.run(
        [*command, "--device", "cuda", "--out", str(tmp_path / "pair")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.endswith("geometric runs on the processor (CPU): device cuda is not used")


def test_an_interrupt_ends_cleanly(images, tmp_path, capsys, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("dust3r_ros.pipeline.load_predictor", interrupt)
    assert main(["reconstruct", str(images), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "dust3r-ros: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_a_pack_is_not_overwritten_by_its_own_evaluation(tmp_path, capsys):
    pack = write_oracle_pack(tmp_path / "ball")
    before = (pack / "cameras.json").read_bytes()
    assert "holds results already" in refused(capsys, "evaluate", str(pack), "--out", str(pack))
    assert (pack / "cameras.json").read_bytes() == before


def test_long_work_without_a_terminal_says_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("dust3r_ros.cli.progress.time.monotonic", lambda: now[0])
    with progress_bars() as bars:
        for done in range(0, 200, 10):
            now[0] += 10
            bars("decode", done, 200 if done < 100 else 0)
    assert capsys.readouterr().err == "decode: 50 of 200\ndecode: 110\ndecode: 170\n"


def test_a_focal_that_no_lens_has_is_doubted():
    assert focal_text(500.0, 640) == "500.0 px"
    assert focal_text(20.0, 640) == "20.0 px, not plausible: a field of view of 173 degrees"
    assert focal_text(9000.0, 640) == "9000.0 px, not plausible: a field of view of 4 degrees"
    assert focal_text(9000.0, 0) == "9000.0 px"


def test_options_come_from_the_file_then_the_line_then_set(images, tmp_path, predictor):
    (tmp_path / "robot.yaml").write_text(
        "/**:\n  ros__parameters:\n    window: 2\n    image_size: 128\n    map_frame: world\n"
        "    map:\n      max_points: 5000\n    keyframes.min_overlap: 0.5\n"
    )
    arguments = ["reconstruct", str(images), "--out", str(tmp_path / "out"), "--params", str(tmp_path / "robot.yaml")]
    assert main([*arguments, "--window", "4", "--set", "image_size=64", "--set", "map.max_points=6000"]) == 0
    config = predictor[0]
    assert (config.window, config.image_size, config.map.max_points) == (4, 64, 6000)
    assert config.keyframes.min_overlap == 0.5


def test_a_file_with_one_group_is_not_taken_for_a_node(images, tmp_path, predictor):
    (tmp_path / "map.yaml").write_text("map:\n  max_points: 7000\n")
    main(["reconstruct", str(images), "--out", str(tmp_path / "out"), "--params", str(tmp_path / "map.yaml")])
    assert predictor[0].map.max_points == 7000


def test_values_are_parsed_by_their_options_type():
    assert parse_value("keyframes.every_image", "Yes") is True
    assert parse_value("keyframes.every_image", "off") is False
    assert parse_value("map.voxel_size", "0.5") == 0.5
    with pytest.raises(ConfigError, match="must be true or false, got 'maybe'"):
        parse_value("keyframes.every_image", "maybe")


def test_info_says_which_device_and_model(capsys):
    assert main(["info", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for part in ("dust3r-ros  ", "torch", "device                  cpu", "oracle", "ROS  "):
        assert part in said


def test_info_lists_every_option(capsys):
    assert main(["info", "--options"]) == 0
    said = capsys.readouterr().out
    assert "keyframes.min_overlap" in said
    assert "map_frame" in said


def test_node_options_become_ros_parameters():
    given = ["--checkpoint", "512_dpt", "--ros-args", "-r", "image:=/cam"]
    assert _node_arguments(given) == ["--ros-args", "-p", "checkpoint:='512_dpt'", "-r", "image:=/cam"]
    assert _node_arguments([]) == ["--ros-args"]
    with pytest.raises(RosError, match="node does not know --fast"):
        _node_arguments(["--fast"])


def test_the_demos_node_gets_what_differs_from_the_defaults():
    config = make_config(ReconstructorConfig, {"window": 5, "keyframes.every_image": True, "checkpoint": "tiny"})
    assert ros_parameters(config) == ("checkpoint:='tiny'", "window:=5", "keyframes.every_image:=true")
    assert ros_parameters(ReconstructorConfig()) == ()


@pytest.mark.parametrize("command", ["node", "play", "demo"])
def test_commands_that_need_ros_say_so_where_it_is_missing(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    for name in [name for name in sys.modules if name.startswith("dust3r_ros.ros.")]:
        if name.rsplit(".", 1)[-1] in ("node", "play", "demo"):
            monkeypatch.delitem(sys.modules, name)
    arguments = {"node": [], "play": [str(tmp_path)], "demo": ["--out", str(tmp_path)]}[command]
    assert "this command needs ROS 2, and rclpy" in refused(capsys, command, *arguments)


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from dust3r_ros.cli import main; sys.exit(main())", *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip


def test_help_is_quick_because_it_imports_nothing_heavy():
    program = (
        "import sys; from dust3r_ros.cli import make_parser; make_parser().format_help();"
        "print([m for m in ('torch', 'numpy', 'cv2', 'rclpy', 'rosbags') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert ran.stdout == "[]\n"
    before = os.times().children_user
    assert "reconstruct" in run_program("--help").stdout
    assert os.times().children_user - before < 0.5


@pytest.mark.parametrize("command", ["reconstruct", "replay", "evaluate", "align", "node", "demo", "info"])
def test_every_command_has_help_with_checkpoint_and_device(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--checkpoint" in said
    assert "--device" in said
