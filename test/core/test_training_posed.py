"""Pairs from posed images with depth: the geometry must survive crop and zoom."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from training_pairs import pointmaps

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import TrainingError
from dust3r_ros.evaluation.packs import load_pack
from dust3r_ros.training.pairs import ChunkRequest
from dust3r_ros.training.posed import PosedPairs

K = Intrinsics(100.0, 102.0, 81.5, 58.0, 160, 120)
WALL_Z = 4.0
REQUEST = ChunkRequest(0, (56, 84), (0.0, 0.0))


@dataclass(frozen=True, eq=False)
class Frame:
    """Looks straight at a wall whose colour says the place on it: red x, green y, 40 levels a metre."""

    name: str
    camera_to_world: np.ndarray
    intrinsics: Intrinsics = K
    has_depth: bool = True

    def load_depth(self):
        depth = WALL_Z - self.camera_to_world[2, 3]
        return np.full((K.height, K.width), depth, dtype=np.float32) if self.has_depth else None

    def load_image(self):
        depth = WALL_Z - self.camera_to_world[2, 3]
        x = (np.arange(K.width) + 0.5 - K.cx) / K.fx * depth + self.camera_to_world[0, 3]
        y = (np.arange(K.height) + 0.5 - K.cy) / K.fy * depth + self.camera_to_world[1, 3]
        grid = np.stack(np.broadcast_arrays(x[None], y[:, None], 0.0), axis=-1)
        return np.clip(128 + 24 * grid, 0, 255).round().astype(np.uint8)


def frame(x: float, y: float = 0.0, z: float = 0.0, **changes) -> Frame:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return Frame(f"at {x}", pose, **changes)


def test_points_and_colours_agree_after_crop_and_zoom():
    source = PosedPairs([[frame(0.0), frame(0.5, 0.2, 0.3), frame(-0.4, 0.0, -0.5)]], chunk=12)
    assert source.count == 3
    batch = source.make(REQUEST)
    assert len(batch) == 12
    assert batch.size == (56, 84)
    geometry = pointmaps(batch)
    own = pointmaps(batch.swapped()).points[0]
    for rgb, points in ((batch.rgb[:, 0], geometry.points[0]), (batch.rgb[:, 1], own)):
        pixels = (rgb[:, 4:-4, 4:-4, :2].float() - 128) / 24  # away from the blurred border
        there = points[:, 4:-4, 4:-4, :2]
        offset = (pixels - there).flatten(1, 2)  # the camera's place, the same for all pixels of a view
        assert offset.std(1).max() < 0.03
    assert len({tuple(k) for k in batch.intrinsics.flatten(0, 1).tolist()}) > 12  # each its own crop
    z = geometry.points[0][..., 2] - geometry.points[1][..., 2]
    torch.testing.assert_close(z, torch.zeros_like(z), atol=0.01, rtol=0)  # one wall, in the first's frame


def test_the_same_request_gives_the_same_pairs():
    source = PosedPairs([[frame(0.0), frame(0.5)]])
    one, two, other = (source.make(ChunkRequest(n, (56, 84), (0, 0))) for n in (3, 3, 4))
    assert torch.equal(one.rgb, two.rgb)
    assert not torch.equal(one.intrinsics, other.intrinsics)


def test_only_frames_that_see_each_other_and_are_of_one_scene_are_paired():
    assert PosedPairs([[frame(0.0), frame(0.5), frame(50.0)]]).count == 1
    assert PosedPairs([[frame(0.0), frame(0.5)], [frame(0.0), frame(0.5)]]).count == 2
    with pytest.raises(TrainingError, match="no two frames see at least 10%"):
        PosedPairs([[frame(0.0)], [frame(0.5)]])


def test_frames_without_depth_are_refused():
    with pytest.raises(TrainingError, match=r"at 0\.5 has no depth image"):
        PosedPairs([[frame(0.0), frame(0.5, has_depth=False)]])


def test_a_real_pack_gives_pairs(shared):
    frames = load_pack(shared / "data" / "sevenscenes_redkitchen").frames[:6]
    source = PosedPairs([frames], chunk=4)
    batch = source.make(REQUEST)
    geometry = pointmaps(batch)
    assert source.count >= 5
    assert all(valid.float().mean() > 0.5 for valid in geometry.valid)
    assert 0.3 < geometry.points[0][..., 2][geometry.valid[0]].median() < 6
