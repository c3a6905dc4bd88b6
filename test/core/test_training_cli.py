"""``dust3r-ros train`` as a user runs it."""

import os

import pytest
from test_packs import write_pack
from training_pairs import MICRO, wall_source

from dust3r_ros.cli import main
from dust3r_ros.network import load_model
from dust3r_ros.training import architectures, begin


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", MICRO)
    monkeypatch.setattr(begin, "rendered_source", lambda settings: wall_source())


QUICK = ("--device", "cpu", "--workers", "0", "--batch", "4", "--pool", "64")


def test_a_run_says_what_it_did_and_where_the_model_is(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *QUICK, "--pairs", "24", "--assess-pairs", "0"]) == 0
    said = capsys.readouterr().out
    assert str(out / "model") in said
    assert "middle" in said
    assert load_model(out / "model", device="cpu", dtype="float32").config == MICRO
    assert main(["train", "--out", str(out), "--device", "cpu", "--workers", "0"]) == 0
    assert "24 of 24" in capsys.readouterr().out


def test_a_run_that_is_not_finished_says_how_to_go_on_and_files_follow_the_umask(tmp_path, capsys):
    out = tmp_path / "run"
    before = os.umask(0o027)
    try:
        arguments = ["train", "--out", str(out), *QUICK, "--pairs", "100000", "--assess-pairs", "0"]
        assert main([*arguments, "--minutes", "0.0001"]) == 0
    finally:
        os.umask(before)
    said = capsys.readouterr().out
    assert " of 100000" in said
    assert "not finished  the same command goes on" in said
    for name in ("state.safetensors", "model/model.safetensors", "model/config.json", "curves.png"):
        assert (out / name).stat().st_mode & 0o777 == 0o640, name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pairs", "0"], "pairs must be at least 1, got 0"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--checkpoint", "nowhere.pth"], "no model 'nowhere.pth'"),
        (["--packs", "nowhere"], "nowhere is not a posed image pack"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, given, said):
    try:
        code = main(["train", "--out", str(tmp_path), *given])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert not any(tmp_path.iterdir())
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_packs_without_depth_are_refused_before_anything_starts(tmp_path, capsys):
    write_pack(tmp_path / "pack")
    assert main(["train", "--out", str(tmp_path / "run"), "--packs", str(tmp_path / "pack")]) == 2
    assert "has no depth image: training needs one for every frame" in capsys.readouterr().err
