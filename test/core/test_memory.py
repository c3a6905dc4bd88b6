"""A map that was written is gone on in by another session, in the old frame; and images are placed in a live map."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from revisiting import every_frame, spoilt, there_and_back

from dust3r_ros.errors import AlignmentError, RecordingError
from dust3r_ros.geometry import procrustes, rotation_angle_deg
from dust3r_ros.memory import FILE_NAME, read_memory, write_memory
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize
from dust3r_ros.tasks.localise_live import LiveLocaliser
from dust3r_ros.training.truth import TruePredictor

WAY = 24  # frames there; as many come back beside it


@cache
def walk():
    return there_and_back(WAY)


@cache
def predictor():
    return TruePredictor(walk(), image_size=ImageSize(112))


def session():
    return Reconstructor(every_frame(), predictor())


def film(reconstructor, indices):
    return [reconstructor.add(walk().frame(i).image, walk().stamps_ns[i]) for i in indices]


@pytest.fixture(scope="module")
def first():
    reconstructor = session()
    film(reconstructor, range(WAY))
    return reconstructor


@pytest.fixture
def file(first, tmp_path):
    write_memory(first.memory(), tmp_path / FILE_NAME)
    return tmp_path / FILE_NAME


def to_truth(reconstructor):
    """The similarity from the reconstruction's world to the walk's, by the way there."""
    trajectory = reconstructor.trajectory()[:WAY]
    true = np.array([walk().camera_to_world[walk().stamps_ns.index(stamp)] for stamp, _ in trajectory])
    return procrustes(np.array([pose[:3, 3] for _, pose in trajectory]), true[:, :3, 3])


def assert_true(world, pose, index, metres=0.05, degrees=1.0):
    found, true = world.apply_to_pose(pose), walk().camera_to_world[index]
    assert np.linalg.norm(found[:3, 3] - true[:3, 3]) < metres
    assert rotation_angle_deg(found[:3, :3].T @ true[:3, :3]) < degrees


def test_everything_is_read_as_it_was_written(first, file):
    before, after = first.memory(), read_memory(file)
    assert (after.predictor, after.next_index, len(after.places)) == ("truth", WAY, WAY)
    assert list(after.placed) == list(before.placed)
    for one, two in zip(before.placed.values(), after.placed.values()):
        assert (one.stamp_ns, one.camera) == (two.stamp_ns, two.camera)
        np.testing.assert_array_equal(one.camera_to_world, two.camera_to_world)
    for one, two in zip(before.places, after.places):
        assert (one.index, one.image.stamp_ns, one.image.camera, one.image.transform, one.image.intrinsics) == (
            two.index, two.image.stamp_ns, two.image.camera, two.image.transform, two.image.intrinsics
        )  # fmt: skip
        assert (one.parents, one.sigma, one.unit) == (two.parents, two.sigma, two.unit)
        assert one.anchor.intrinsics == two.anchor.intrinsics and one.anchor.grid == two.anchor.grid
        np.testing.assert_array_equal(one.image.jpeg, two.image.jpeg)
        np.testing.assert_array_equal(one.anchor.depth, two.anchor.depth)
        np.testing.assert_allclose(one.descriptor, two.descriptor, atol=1e-3)
    assert [(e.i, e.j, e.reach, e.sigma) for e in before.relations] == [
        (e.i, e.j, e.reach, e.sigma) for e in after.relations
    ]
    np.testing.assert_allclose(before.relations[3].relative.matrix(), after.relations[3].relative.matrix(), atol=1e-12)


def test_another_session_goes_on_in_the_old_frame(first, file):
    second = session()
    film(second, range(3))  # what it had before is forgotten
    second.recall(read_memory(file))
    assert [stamp for stamp, _ in second.trajectory()] == [stamp for stamp, _ in first.trajectory()]
    np.testing.assert_array_equal(second.map.cloud().points, first.map.cloud().points)
    world = to_truth(first)
    updates = film(second, range(WAY + 2, WAY + 10))
    assert all(update.view.registered for update in updates)
    assert updates[0].keyframe.index == WAY
    for index, update in zip(range(WAY + 2, WAY + 10), updates):
        assert_true(world, second.pose(update.keyframe.index), index)
    assert len(second.trajectory()) == WAY + 8
    assert len(second.map) > len(first.map)
    assert updates[-1].intrinsics.focal_px == pytest.approx(walk().intrinsics.focal_px, rel=0.02)


def test_a_map_that_was_gone_on_in_can_be_written_and_gone_on_in_again(first, file, tmp_path):
    second = session()
    second.recall(read_memory(file))
    film(second, range(WAY + 2, WAY + 8))
    write_memory(second.memory(), tmp_path / "again.npz")
    third = session()
    third.recall(read_memory(tmp_path / "again.npz"))
    (update,) = film(third, [WAY + 9])
    assert update.view.registered
    assert_true(to_truth(first), update.view.camera_to_world, WAY + 9)


def test_what_cannot_be_found_is_not_placed_and_the_map_stays(first, file):
    class Blind(TruePredictor):
        """Sees nothing in common between any images."""

        blind = True

        def predict(self, pairs):
            nothing = [spoilt(p) for p in super().predict(pairs)]
            return nothing if self.blind else super().predict(pairs)

    blind = Blind(walk(), image_size=ImageSize(112))
    second = Reconstructor(every_frame(), blind)
    second.recall(read_memory(file))
    updates = film(second, [WAY + 4, WAY + 5])
    assert not any(update.view.registered for update in updates)
    assert [stamp for stamp, _ in second.trajectory()] == [stamp for stamp, _ in first.trajectory()]
    blind.blind = False
    (update,) = film(second, [WAY + 5])
    assert update.view.registered
    assert_true(to_truth(first), update.view.camera_to_world, WAY + 5)


@pytest.mark.parametrize("damage", ["cut", "text", "format", "shapes", "nan", "missing"])
def test_a_file_that_is_no_map_is_refused_by_name(file, damage):
    arrays = dict(np.load(file))
    if damage == "missing":
        file.unlink()
    elif damage == "text":
        file.write_text("no map")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    else:
        if damage == "format":
            about = {**json.loads(arrays["about"].tobytes()), "format": 99}
            arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        elif damage == "shapes":
            arrays["voxel_sums"] = arrays["voxel_sums"][:, :3]
        else:
            arrays["place_pose"] = arrays["place_pose"] * np.nan
        np.savez(file, **arrays)
    said = {"missing": "it has no session.npz", "format": "has format 99, this version reads 1"}.get(damage, "damaged")
    with pytest.raises(RecordingError, match=said):
        read_memory(file)


DAMAGES = {
    "depth": (lambda a: {"place_depth": a["place_depth"][:-7]}, "keyframe 23: depth and weight must be"),
    "grid": (lambda a: {"place_grid": a["place_grid"] * 0}, "keyframe 0: grid must be at least 1, got 0"),
    "jpeg": (lambda a: {"place_jpeg": a["place_jpeg"] * 0}, "keyframe 0: a JPEG must be bytes that can be decoded"),
    "size": (lambda a: {"place_transform": a["place_transform"] + 1}, "keyframe 0: image, intrinsics and transform"),
    "given": (lambda a: {"place_given": np.ones_like(a["place_given"])}, "keyframe 0: image, intrinsics and transform"),
    "relations": (lambda a: {"relation_ends": a["relation_ends"] + 100}, "relations, loops and parents must be among"),
    "no keyframes": (lambda a: {k: v[:0] for k, v in a.items() if k.startswith("placed_")}, "placed must hold"),
    "fewer keyframes": (lambda a: {k: v[2:] for k, v in a.items() if k.startswith("placed_")}, r"not so \[0, 1\]"),
    "cameras": (lambda a: {"place_camera": a["place_camera"] - 1}, "must not be negative"),
    "place": (lambda a: {"world_to_map": a["world_to_map"] * 0}, "world_to_map must be a similarity"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_do_not_fit_together_are_refused_by_name(file, damage):
    arrays = dict(np.load(file))
    change, said = DAMAGES[damage]
    np.savez(file, **{**arrays, **change(arrays)})
    with pytest.raises(RecordingError, match=f"session.npz is damaged: ValueError: .*{said}"):
        read_memory(file)


def test_a_map_that_cannot_be_gone_on_in_leaves_the_session_as_it_was(first):
    second = session()
    film(second, range(3))
    memory = first.memory()
    unequal = replace(memory.places[1], descriptor=memory.places[1].descriptor[:-1])
    with pytest.raises(ValueError, match="descriptor must have"):
        second.recall(replace(memory, places=(memory.places[0], unequal)))
    assert len(second.trajectory()) == 3 and len(second.map) > 0
    assert all(update.view.registered for update in film(second, [3]))


def test_a_map_of_another_predictor_is_refused_and_leaves_the_session_alone(file):
    from dust3r_ros.geometric import GeometricPredictor

    other = Reconstructor(every_frame(), GeometricPredictor())
    other.add(walk().frame(0).image, 0)
    with pytest.raises(RecordingError, match="the map was made by truth: geometric cannot find its places"):
        other.recall(read_memory(file))
    assert len(other.trajectory()) == 1


def test_a_map_without_places_is_refused(tmp_path):
    reconstructor = Reconstructor(every_frame(**{"loops.enabled": False}), predictor())
    film(reconstructor, range(4))
    write_memory(reconstructor.memory(), tmp_path / FILE_NAME)
    with pytest.raises(RecordingError, match="no places to be found in"):
        session().recall(read_memory(tmp_path / FILE_NAME))


def test_an_image_is_placed_in_the_live_map_which_stays_as_it_is(first):
    before = [pose.copy() for _, pose in first.trajectory()]
    localiser = LiveLocaliser(first)
    for index, intrinsics in ((WAY + 6, None), (WAY + 12, walk().intrinsics)):
        found = localiser.locate(walk().frame(index).image, intrinsics)
        assert_true(to_truth(first), found.camera_to_world, index)
        assert found.inliers > 0.6 * found.points > 100
        assert found.intrinsics_from == ("given" if intrinsics else "the map's camera")
        assert found.intrinsics.focal_px == pytest.approx(walk().intrinsics.focal_px, rel=0.02)
        assert found.covariance.shape == (6, 6)
    for pose, (_, now) in zip(before, first.trajectory(), strict=True):
        np.testing.assert_array_equal(pose, now)


@pytest.mark.parametrize("given", [True, False])
def test_the_image_is_encoded_anew_only_with_other_intrinsics(first, given, monkeypatch):
    encode, tried = predictor().encode, []

    def counted(image, camera, intrinsics=None):
        if camera == "query":
            tried.append(intrinsics)
        return encode(image, camera, intrinsics)

    monkeypatch.setattr(predictor(), "encode", counted)
    LiveLocaliser(first).locate(walk().frame(WAY + 6).image, walk().intrinsics if given else None)
    assert len(tried) == len(set(tried)) == (1 if given else 2)


def test_in_an_empty_map_there_is_no_place():
    with pytest.raises(AlignmentError, match="the map has no place"):
        LiveLocaliser(session()).locate(walk().frame(0).image)
