"""The comparison with COLMAP, on real photographs of which both know nothing."""

import json
from types import ModuleType

import pytest
from programs import ROOT, load_program

from dust3r_ros.evaluation.packs import load_pack


@pytest.fixture
def benchmark() -> ModuleType:
    return load_program(ROOT / "benchmark" / "against_colmap.py")


def test_few_images_are_spread_over_the_pack(benchmark, shared):
    pack = load_pack(shared / "data" / "strecha_fountain-P11")
    names = [frame.name for frame in pack.frames]
    assert [frame.name for frame in benchmark.some_of(pack, 3).frames] == [names[0], names[5], names[10]]
    assert benchmark.some_of(pack, 0) is pack
    assert benchmark.some_of(pack, 99) is pack


@pytest.mark.slow
def test_both_find_the_cameras_of_five_photographs(benchmark, shared, tmp_path, capsys):
    pytest.importorskip("pycolmap")
    arguments = [str(shared / "data" / "strecha_fountain-P11"), "--images", "5", "--out", str(tmp_path / "out.json")]
    assert benchmark.main(arguments) == 0
    colmap, ours = json.loads((tmp_path / "out.json").read_text())
    for figures in (colmap, ours):
        assert figures["registered"] == 5
        assert figures["rotation_error_deg"] < 1
        assert figures["auc_30"] > 0.95
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_what_is_no_pack_is_one_line(benchmark, tmp_path, capsys):
    assert benchmark.main([str(tmp_path)]) == 2
    assert "no posed pack" in capsys.readouterr().err
