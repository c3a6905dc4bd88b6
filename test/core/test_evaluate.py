"""Evaluation of packs with a predictor that knows the truth: no error may remain, and each fault must show."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import HEIGHT, INTRINSICS, WIDTH, OraclePredictor, depth_of, image_of, path
from programs import ROOT, load_program

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import ImageTransform, PreparedImage
from dust3r_ros.errors import AlignmentError
from dust3r_ros.evaluation.metrics import pose_errors
from dust3r_ros.evaluation.packs import Pack, load_pack
from dust3r_ros.evaluation.report import Summary, markdown_table, runs_table, summary_rows, text_table
from dust3r_ros.evaluation.results import IncrementalRun, choose_pairs, run_batch, run_incremental, write_results
from dust3r_ros.evaluation.run import Mode, at_network_pixels, evaluate, pack_sources, summarise, write_evaluation
from dust3r_ros.mapping.export import read_cloud
from dust3r_ros.options import make_config
from dust3r_ros.pairing import SceneGraph
from dust3r_ros.pipeline import Reconstructor

VIEWS = 6
EVERY_IMAGE = make_config(ReconstructorConfig, {"keyframes.every_image": True, "map.min_confidence": 0.0})


def write_oracle_pack(folder: Path, views: int = VIEWS) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    frames = []
    for number, pose in enumerate(path(views)):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image_of(number, pose)[..., ::-1])
        millimetres = np.round(1000 * depth_of(pose)).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{number}.png"), millimetres)
        frames.append(
            {
                "file": f"images/{number}.png", "width": WIDTH, "height": HEIGHT,
                "K": INTRINSICS.matrix(centres_at_integers=True).tolist(),
                "cam_to_world": pose.tolist(), "depth_mm": f"depth/{number}.png",
            }
        )  # fmt: skip
    (folder / "cameras.json").write_text(json.dumps({"scale": "metric (m)", "frames": frames}))
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return load_pack(write_oracle_pack(tmp_path_factory.mktemp("ball") / "ball"))


@pytest.mark.parametrize("intrinsics", ["estimate", "pack"])
@pytest.mark.parametrize("mode", list(Mode))
def test_true_predictions_give_no_error(pack, mode, intrinsics):
    done = evaluate(pack, EVERY_IMAGE, mode=mode, intrinsics=intrinsics, predictor=OraclePredictor(path(VIEWS)))
    m = done.metrics
    assert m.registered == 1.0
    assert (m.views, m.keyframes, m.model, m.unit) == (VIEWS, VIEWS, "oracle", "m")
    assert m.ate_percent < 0.5
    assert m.rotation_error_deg < 0.1
    assert m.translation_error_deg < 0.5
    assert m.auc_30 > 0.98
    assert m.focal_error_percent < 0.5
    assert m.depth.absrel < 0.01
    assert m.depth.delta_125 == 1.0
    assert m.depth.coverage == 1.0
    assert m.points == len(done.result.cloud) > 500


def test_the_cloud_lies_on_the_ball(pack):
    done = evaluate(pack, EVERY_IMAGE, predictor=OraclePredictor(path(VIEWS)))
    points = done.errors.to_truth.apply(done.result.cloud.points) * [1, 1.4, 1]
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 5.0, atol=0.05)


def test_a_view_without_a_pose_is_counted_missing(pack):
    m = evaluate(pack, EVERY_IMAGE, predictor=OraclePredictor(path(VIEWS), frozenset({3}))).metrics
    assert m.registered == pytest.approx(5 / 6)
    assert m.auc_30 == pytest.approx(10 / 15, abs=0.02)
    assert m.ate_percent < 0.5


def test_files_of_an_evaluation(pack, tmp_path):
    done = evaluate(pack, EVERY_IMAGE, predictor=OraclePredictor(path(VIEWS)))
    write_evaluation(pack, done, EVERY_IMAGE, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "metrics.json", "trajectory.tum", "cloud.ply", "cameras.json", "report.png"
    }  # fmt: skip
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    promised = (
        "ate_rmse ate_percent rotation_error_deg translation_error_deg auc_30 focal_error_percent registered "
        "depth_absrel depth_delta_1.25 seconds views model"
    )
    assert set(promised.split()) <= set(metrics)
    assert metrics["options"]["keyframes.every_image"] is True
    assert len(read_cloud(tmp_path / "cloud.ply")) == done.metrics.points
    trajectory = np.loadtxt(tmp_path / "trajectory.tum")
    assert trajectory.shape == (VIEWS, 8)
    cameras = json.loads((tmp_path / "cameras.json").read_text())["frames"]
    assert [camera["file"] for camera in cameras] == [frame.name for frame in pack.frames]
    assert cameras[0]["K"][0][2] == pytest.approx(WIDTH / 2 - 0.5)
    picture = cv2.imread(str(tmp_path / "report.png"))
    assert picture.shape[1] > 800
    assert picture.std() > 10


def test_nothing_placed_is_measured_and_leaves_only_the_metrics(pack, tmp_path):
    done = evaluate(
        pack, EVERY_IMAGE, mode=Mode.INCREMENTAL, predictor=OraclePredictor(path(VIEWS), frozenset(range(VIEWS)))
    )
    assert done.metrics.registered <= 1 / 6
    assert done.metrics.ate_rmse is None
    write_evaluation(pack, done, EVERY_IMAGE, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["ate_rmse"] is None
    with pytest.raises(AlignmentError, match="none of the 6 images could be placed"):
        write_results(replace(done.result, views=()), tmp_path)


def test_few_views_are_paired_completely_and_many_in_a_window():
    config = make_config(ReconstructorConfig, {"window": 2})
    assert len(choose_pairs(12, config)) == 12 * 11
    assert len(choose_pairs(13, config)) == 2 * (12 + 11)
    assert len(choose_pairs(13, config, SceneGraph.COMPLETE)) == 13 * 12


def test_progress_is_reported(pack):
    seen = []
    run_batch(pack_sources(pack), EVERY_IMAGE, OraclePredictor(path(VIEWS)), progress=lambda *call: seen.append(call))
    assert {stage for stage, _, _ in seen} == {"encode", "decode", "align", "fuse"}
    assert all(done <= whole for _, done, whole in seen)


def test_a_long_run_keeps_few_views_whole_and_every_pose(pack):
    run = IncrementalRun(Reconstructor(EVERY_IMAGE, OraclePredictor(path(VIEWS))), keep=3)
    for source in pack_sources(pack):
        assert run.add(source)
    result = run.result()
    whole = [view.number for view in result.views if view.estimate.depth.size]
    assert 2 <= len(whole) <= 3
    assert whole[-1] == VIEWS - 1
    assert pose_errors(result.poses(), pack.poses()).rotation_deg < 0.1
    assert result.focal_px == pytest.approx(INTRINSICS.fx, rel=0.01)


def test_images_of_one_stamp_keep_poses_of_their_own(pack):
    result = run_incremental(
        [replace(source, stamp_ns=7) for source in pack_sources(pack)], EVERY_IMAGE, OraclePredictor(path(VIEWS))
    )
    assert len(result.views) == VIEWS
    assert pose_errors(result.poses(), pack.poses()).rotation_deg < 0.1


def test_unknown_intrinsics_are_refused(pack):
    with pytest.raises(ValueError, match="must be 'estimate' or 'pack', got 'guess'"):
        evaluate(pack, intrinsics="guess", predictor=OraclePredictor(path(VIEWS)))


def test_truth_is_taken_at_the_centres_of_the_networks_pixels():
    """A 4 x 8 image halved and cropped by one pixel on the left: the first column is the original's third."""
    stored = np.arange(32, dtype=np.float32).reshape(4, 8)
    transform = ImageTransform(0.5, 0.5, -1.0, 0.0, 8, 4, 2, 2)
    prepared = PreparedImage(np.zeros((2, 2, 3), np.uint8), transform)
    np.testing.assert_array_equal(at_network_pixels(stored, prepared), stored[np.ix_([1, 3], [3, 5])])


def test_the_summary_says_what_is_known_and_no_more(pack):
    bare = Summary("tiny", frames=10, keyframes=4, registered=3, seconds=2.0, points=7)
    rows = dict(summary_rows(bare))
    assert rows["keyframes"] == "4 (3 with a pose)"
    assert rows["time"] == "2.0 s, 5.0 frames/s"
    assert not {"focal", "path error (RMSE)", "rotation error"} & set(rows)
    done = evaluate(pack, EVERY_IMAGE, predictor=OraclePredictor(path(VIEWS)))
    rows = dict(summary_rows(summarise(pack, done)))
    assert "% from the true" in rows["focal"]
    assert rows["path error (RMSE)"].endswith(" m")
    still = replace(bare, errors=pose_errors(path(2), path(2)), seconds=0.0)
    assert "path error (RMSE)" not in dict(summary_rows(still))


def test_tables_are_aligned():
    assert text_table([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
    assert text_table([]) == ""
    assert markdown_table(["x", "wide"], [["1", "2"]]) == "| x | wide |\n|---|------|\n| 1 | 2    |"


def test_the_benchmark_measures_every_combination(pack, tmp_path, monkeypatch, capsys):
    benchmark = load_program(ROOT / "benchmark" / "evaluate_packs.py")
    monkeypatch.setattr(benchmark, "load_predictor", lambda config: OraclePredictor(path(VIEWS)))
    write_oracle_pack(tmp_path / "packs" / "ball")
    out = tmp_path / "table.json"
    arguments = [str(tmp_path / "packs"), "--intrinsics", "estimate", "--set", "keyframes.every_image=1"]
    assert benchmark.main([*arguments, "--out", str(out), "--results", str(tmp_path / "results")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:]] == ["batch", "incremental"]
    assert len({len(line) for line in lines}) == 1
    assert [run["registered"] for run in json.loads(out.read_text())] == [1.0, 1.0]
    assert (tmp_path / "results" / "ball-oracle-batch-estimate" / "report.png").is_file()
    assert benchmark.main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_table_of_runs_has_a_column_for_each_and_says_what_is_missing():
    runs = [{"tracker": "one", "ATE, m": 1.23456, "images": 3}, {"tracker": "two", "images": 40}]
    assert runs_table(["one", "two"], runs, leave_out=("tracker",)).splitlines() == [
        "|        | one  | two |",
        "|--------|------|-----|",
        "| ATE, m | 1.23 | -   |",
        "| images | 3    | 40  |",
    ]
