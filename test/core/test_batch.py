"""Many images in bounded memory: the result is the same, wherever predictions were kept."""

import os
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from oracle import OraclePredictor, image_of, path

from dust3r_ros import batch
from dust3r_ros.batch import reconstruct
from dust3r_ros.data import PairPrediction, PairState
from dust3r_ros.errors import AlignmentError, ExportError, ImageError
from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.images import load_image
from dust3r_ros.pipeline import SourceImage
from dust3r_ros.store import PredictionStore

VIEWS = 6


def sources(count: int = VIEWS) -> list[SourceImage]:
    images = [image_of(k, pose) for k, pose in enumerate(path(count))]
    return [SourceImage(f"{k}.png", lambda k=k: images[k]) for k in range(count)]


def prediction(seed: int, height: int = 12, width: int = 16) -> PairPrediction:
    rng = np.random.default_rng(seed)
    points = [rng.standard_normal((height, width, 3)).astype(np.float32) for _ in range(2)]
    confidence = [rng.uniform(1, 9, (height, width)).astype(np.float32) for _ in range(2)]
    return PairPrediction(points[0], confidence[0], points[1], confidence[1], PairState.PLANAR)


def same(a: PairPrediction, b: PairPrediction) -> bool:
    names = ("points_i", "conf_i", "points_j", "conf_j")
    return a.state is b.state and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_predictions_come_back_from_disk_as_they_were():
    given = [prediction(k) for k in range(5)]
    one = 2 * 4 * 12 * 16 * 4  # bytes: two views of four floats a pixel
    store = PredictionStore(memory_bytes=2 * one)
    kept = [*store.keep(given[:3]), *store.keep(given[3:])]
    assert [a is b for a, b in zip(kept, given)] == [True, True, False, False, False]
    assert store.stored_bytes == 3 * one
    assert all(same(a, b) for a, b in zip(kept, given))
    kept[4].points_i[:] = 0  # what was read belongs to the reader
    assert same(kept[4], given[4])
    with pytest.raises(AttributeError, match="colour"):
        _ = kept[4].colour


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = PredictionStore(0).keep([prediction(0)])
    assert kept[0].conf_i.shape == (12, 16)
    del kept
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(monkeypatch):
    def full(number, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dust3r_ros.store.os.write", full)
    with pytest.raises(ExportError, match=r"cannot keep predictions in .*: No space left on device; TMPDIR chooses"):
        PredictionStore(0).keep([prediction(0)])


@pytest.mark.parametrize("predictor", ["oracle", "geometric"])
def test_small_batches_and_the_disk_change_nothing(monkeypatch, predictor, shared):
    def made():
        return OraclePredictor(path(VIEWS)) if predictor == "oracle" else GeometricPredictor(256)

    given = sources()
    if predictor == "geometric":
        files = sorted((shared / "data" / "strecha_fountain-P11" / "images").iterdir())[3:7]
        given = [SourceImage(file.name, lambda file=file: load_image(file)) for file in files]
    whole = reconstruct(given, predictor=made())
    monkeypatch.setattr(batch, "_PAIRS_A_BATCH", 4)
    monkeypatch.setattr(batch, "_MEMORY_BYTES", 0)
    seen = []
    parts = reconstruct(given, predictor=made(), progress=lambda *call: seen.append(call))
    for a, b in zip(whole.scene.views, parts.scene.views, strict=True):
        np.testing.assert_allclose(a.camera_to_world, b.camera_to_world, atol=1e-9)
        np.testing.assert_allclose(a.depth, b.depth, rtol=1e-6)
    steps = [done for stage, done, _ in seen if stage == "decode"]
    assert steps == sorted(steps)
    assert len(steps) > 3


def test_memory_does_not_grow_with_the_pairs():
    """Predictions of 200 pairs of 100 kB within 1 MB, by the system's count of what this process has."""

    def resident() -> int:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):  # noqa: PTH110
        pytest.skip("no /proc")
    store = PredictionStore(1 << 20)
    store.keep([prediction(0, 160, 160)])
    before = resident()
    kept = []
    for seed in range(200):
        kept += store.keep([prediction(seed, 160, 160)])
    assert store.stored_bytes > 150e6
    assert resident() - before < 40e6
    assert same(kept[150], prediction(150, 160, 160))


def test_what_cannot_be_read_is_left_out(monkeypatch):
    def broken():
        raise ImageError("2.png: not an image in a known format")

    given = sources()
    given[2] = replace(given[2], load=broken)
    result = reconstruct(given, predictor=OraclePredictor(path(VIEWS)))
    assert result.numbers == (0, 1, 3, 4, 5)
    assert result.refused == ("2.png: not an image in a known format",)
    assert all(view.registered for view in result.scene.views)
    with pytest.raises(ImageError, match=r"2\.png: not an image .* \(and 1 more that cannot be read\)"):
        reconstruct([given[2], given[2]], predictor=OraclePredictor(path(VIEWS)))
    with pytest.raises(ImageError, match="no images"):
        reconstruct([], predictor=OraclePredictor(path(VIEWS)))


def test_one_image_with_classical_geometry_is_refused_in_one_line():
    with pytest.raises(AlignmentError, match="geometric sees no depth in a single image: take a network"):
        reconstruct(sources(1), predictor=GeometricPredictor())


def test_images_without_overlap_are_said_to_have_none():
    class Blind(OraclePredictor):
        def predict(self, pairs):
            return [replace(p, state=PairState.FAILED) for p in super().predict(pairs)]

    with pytest.raises(AlignmentError, match="none of the 6 images shares anything with another: there is no overlap"):
        reconstruct(sources(), predictor=Blind(path(VIEWS)))
