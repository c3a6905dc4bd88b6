"""Reading posed image packs, good and bad."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import ImageError, RecordingError
from dust3r_ros.evaluation.packs import load_pack
from dust3r_ros.mapping.export import CameraRecord, write_cameras_json


def write_pack(folder: Path, *, depth: bool = False, **changes) -> Path:
    (folder / "images").mkdir(parents=True)
    frames = []
    for number in range(2):
        pixels = np.full((24, 32, 3), 40 * (number + 1), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), pixels)
        pose = np.eye(4)
        pose[0, 3] = number
        frame = {"file": f"images/{number}.png", "width": 32, "height": 24}
        frame |= {"K": [[30, 0, 15.5], [0, 31, 11.5], [0, 0, 1]], "cam_to_world": pose.tolist()}
        if depth:
            cv2.imwrite(str(folder / f"{number}.depth.png"), np.full((24, 32), 1500, np.uint16))
            frame["depth_mm"] = f"{number}.depth.png"
        frames.append(frame)
    frames[1] = {key: value for key, value in {**frames[1], **changes}.items() if value != "absent"}
    (folder / "cameras.json").write_text(json.dumps({"scale": "metric (m)", "frames": frames}))
    return folder


def test_a_pack_is_read(tmp_path):
    pack = load_pack(write_pack(tmp_path / "desk", depth=True))
    assert (pack.name, len(pack), pack.metric, pack.unit) == ("desk", 2, True, "m")
    k = pack.frames[0].intrinsics
    assert (k.fx, k.fy, k.cx, k.cy, k.width, k.height) == (30, 31, 16, 12, 32, 24)
    np.testing.assert_array_equal(pack.poses()[:, 0, 3], [0, 1])
    assert pack.frames[1].load_image()[0, 0].tolist() == [80, 80, 80]
    np.testing.assert_allclose(pack.frames[0].load_depth(), np.full((24, 32), 1.5))


def test_a_pack_without_depth_has_none(tmp_path):
    assert load_pack(write_pack(tmp_path / "p")).frames[0].load_depth() is None


def test_what_the_exporter_writes_is_a_pack(tmp_path):
    write_pack(tmp_path / "p")
    camera = CameraRecord("images/0.png", Intrinsics(30.5, 31.5, 16.25, 12, 32, 24), np.eye(4))
    write_cameras_json([camera], tmp_path / "p" / "cameras.json")
    pack = load_pack(tmp_path / "p")
    assert not pack.metric
    assert pack.frames[0].intrinsics == camera.intrinsics


BAD = {
    "no file name": ({"file": "absent"}, "frame 1: 'file' must be a text, got None"),
    "file is a number": ({"file": 3}, "frame 1: 'file' must be a text, got 3"),
    "image missing": ({"file": "images/9.png"}, "frame 1: there is no image"),
    "width zero": ({"width": 0}, "frame 1: 'width' must be a positive whole number, got 0"),
    "height a text": ({"height": "24"}, "frame 1: 'height' must be a positive whole number, got '24'"),
    "K missing": ({"K": "absent"}, "frame 1: 'K' must be 3x3 finite numbers"),
    "K ragged": ({"K": [[1, 2], [3]]}, "frame 1: 'K' must be 3x3 finite numbers"),
    "K without focal": ({"K": np.zeros((3, 3)).tolist()}, "K must have positive focal lengths, got 0 and 0"),
    "pose of 3 rows": ({"cam_to_world": np.eye(4)[:3].tolist()}, "'cam_to_world' must be 4x4 finite numbers"),
    "pose with NaN": ({"cam_to_world": (np.eye(4) * np.nan).tolist()}, "'cam_to_world' must be 4x4 finite numbers"),
    "pose scaled": ({"cam_to_world": np.diag([2, 2, 2, 1]).tolist()}, "must be a rotation and a translation"),
    "pose mirrored": ({"cam_to_world": np.diag([1, 1, -1, 1]).tolist()}, "must be a rotation and a translation"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_frame_is_named_with_its_fault(tmp_path, changes, said):
    with pytest.raises(RecordingError) as caught:
        load_pack(write_pack(tmp_path / "p", **changes))
    assert said in str(caught.value)
    assert "cameras.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"frames": []}', '{"frames": [3]}', '{"frames": "x"}'])
def test_bad_json_is_one_clear_error(tmp_path, content):
    (tmp_path / "cameras.json").write_text(content)
    with pytest.raises(RecordingError, match=r"cameras\.json"):
        load_pack(tmp_path)


def test_a_folder_that_is_no_pack(tmp_path):
    with pytest.raises(RecordingError, match="is not a posed image pack: it has no cameras"):
        load_pack(tmp_path / "nowhere")


def test_pixels_that_do_not_fit_the_pack_are_refused_when_read(tmp_path):
    pack = load_pack(write_pack(tmp_path / "a", width=31))
    with pytest.raises(RecordingError, match="the pack says 31x24, the image is 32x24"):
        pack.frames[1].load_image()
    pack = load_pack(write_pack(tmp_path / "b", depth=True, depth_mm="images/1.png"))
    with pytest.raises(RecordingError, match=r"must be uint16 \(24, 32\), got uint8 \(24, 32, 3\)"):
        pack.frames[1].load_depth()
    (tmp_path / "b" / "images" / "0.png").write_bytes(b"damaged")
    with pytest.raises(ImageError):
        pack.frames[0].load_image()


@pytest.mark.parametrize("name", ["sevenscenes_redkitchen", "strecha_fountain-P11", "lund_door", "fox", "kitti_1"])
def test_real_packs_are_read(shared, name):
    pack = load_pack(shared / "data" / name)
    frame = pack.frames[-1]
    assert frame.load_image().shape == (frame.intrinsics.height, frame.intrinsics.width, 3)
    assert np.allclose(np.linalg.det(pack.poses()[:, :3, :3]), 1)
    assert (frame.load_depth() is not None) == (name == "sevenscenes_redkitchen")
