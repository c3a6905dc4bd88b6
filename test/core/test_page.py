"""The page of a run: one file, with everything in it."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from oracle import OraclePredictor, path
from test_exports import CONFIG, VIEWS, sources

from dust3r_ros.config import CleanConfig
from dust3r_ros.errors import ExportError
from dust3r_ros.evaluation.exports import clean
from dust3r_ros.evaluation.page import write_page
from dust3r_ros.evaluation.results import run_batch
from dust3r_ros.mapping.cloud import PointCloud


@pytest.fixture(scope="module")
def result():
    return run_batch(sources(), CONFIG, OraclePredictor(path(VIEWS)))


def page(result, folder, cleaning=CleanConfig(), **settings) -> str:  # noqa: B008
    cleaned = clean(result, CONFIG.map, cleaning)
    write_page(
        cleaned, folder / "report.html", [("model", "oracle <1>"), ("points", "12")], CONFIG, "a & b", **settings
    )
    return (folder / "report.html").read_text()


def scene_of(text: str) -> dict:
    return json.loads(re.search(r"const scene = (\{.*\});", text)[1])


def test_the_page_needs_nothing_from_outside(result, tmp_path):
    text = page(result, tmp_path)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "http" not in text
    assert "$" not in text
    assert "<title>a &amp; b</title>" in text
    assert "oracle &lt;1&gt;" in text
    for image in re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', text):
        assert base64.b64decode(image)[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")


def test_the_script_gets_every_point_where_it_is(result, tmp_path):
    scene = scene_of(page(result, tmp_path))
    steps = np.frombuffer(base64.b64decode(scene["points"]), "<u2").reshape(-1, 3)
    points = np.array(scene["box"]["low"]) + steps / 65535 * np.array(scene["box"]["span"])
    cloud = result.cloud
    assert len(points) == len(cloud)
    gaps = np.linalg.norm(points[1:] - points[:-1], axis=1)  # the axes are turned, distances are not
    np.testing.assert_allclose(gaps, np.linalg.norm(np.diff(cloud.points, axis=0), axis=1), atol=1e-3)
    colours = np.frombuffer(base64.b64decode(scene["colours"]), "u1").reshape(-1, 3)
    np.testing.assert_array_equal(colours, cloud.colours)
    lines = np.frombuffer(base64.b64decode(scene["lines"]), "<f4").reshape(-1, 3)
    assert len(lines) == 2 * (8 * VIEWS + VIEWS - 1)
    np.testing.assert_allclose(lines[-2:] @ lines[-2:].T, _gram(result.poses()[-2:, :3, 3]), atol=1e-5)


def test_all_cameras_are_in_the_first_look(result, tmp_path):
    """Few cameras far from many points: each is within what the eye sees, 0.625 of its distance each way."""
    away = [replace(v, camera_to_world=v.camera_to_world + 20 * np.eye(4, k=3) * (v.number == 0)) for v in result.views]
    scene = scene_of(page(replace(result, views=tuple(away)), tmp_path))
    lines = np.frombuffer(base64.b64decode(scene["lines"]), "<f4").reshape(-1, 3)[-2 * (VIEWS - 1) :]
    assert np.linalg.norm(lines - scene["target"], axis=1).max() < 0.625 * scene["far"]


def test_the_page_is_read_on_a_phone_and_on_a_desk(result, tmp_path, browser):
    page(result, tmp_path, CleanConfig(outliers=1.0))
    for width in (390, 1280):
        opened = browser.new_page(viewport={"width": width, "height": 844})
        wrong = []
        opened.on("pageerror", lambda error, wrong=wrong: wrong.append(error))
        opened.goto((tmp_path / "report.html").as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        figure = opened.locator("img[alt^='the cloud from above']").bounding_box()
        assert figure["width"] >= 700  # on a phone it scrolls within its frame
        facts = [box.bounding_box() for box in opened.locator("dl div").all()]
        assert len({round(box["x"]) for box in facts}) >= 2
        assert wrong == []
        opened.close()


def _gram(points: np.ndarray) -> np.ndarray:
    return points @ points.T


def test_settings_that_were_changed_stand_out_and_stages_have_times(result, tmp_path):
    text = page(result, tmp_path)
    changed = re.findall(r'<tr class="changed"><td>([^<]+)</td><td>([^<]+)</td>', text)
    assert changed == [("map.min_confidence", "0.0"), ("map.voxel_size", "0.02")]
    stages = re.findall(r'<td>([^<]+)</td><td class="n">([\d.]+) s</td>', text)
    assert [name for name, _ in stages] == ["encode", "decode", "align", "fuse"]
    assert sum(result.stage_seconds.values()) == pytest.approx(result.seconds, rel=0.1)


def test_clean_up_is_shown_before_and_after(result, tmp_path):
    assert "No further clean-up was asked for" in page(result, tmp_path)
    text = page(result, tmp_path, CleanConfig(consistency=0.05, outliers=1.0))
    assert "in front of what other views see" in text
    after = clean(result, CONFIG.map, CleanConfig(outliers=1.0)).result.cloud
    assert f"before: {len(result.cloud):,} points".replace(",", "\u202f") in text
    assert f"after: {len(after):,} points".replace(",", "\u202f") in text
    assert len(after) < len(result.cloud)


def test_truth_is_drawn_where_it_is_known(result, tmp_path):
    text = page(result, tmp_path, truth=path(VIEWS))
    assert "Blue: the true path" in text
    lines = np.frombuffer(base64.b64decode(scene_of(text)["lines"]), "<f4").reshape(-1, 3)
    assert len(lines) == 2 * (8 * VIEWS + 2 * (VIEWS - 1))


def test_a_run_without_points_has_a_page(result, tmp_path):
    views = tuple(
        replace(v, estimate=replace(v.estimate, depth=0 * v.estimate.depth, confidence=0 * v.estimate.confidence))
        for v in result.views
    )
    text = page(replace(result, views=views, cloud=PointCloud.empty()), tmp_path)
    assert "<p>0 points. Drag" in text


def test_a_page_that_cannot_be_written_is_one_clear_error(result, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ExportError, match=r"cannot write .*report\.html"):
        page(result, tmp_path)
