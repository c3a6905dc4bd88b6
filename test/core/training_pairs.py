"""Pairs for tests of the training: walls seen from known places, and a source that makes them."""

from __future__ import annotations

import torch

from dust3r_ros.network import NetworkConfig
from dust3r_ros.training.pairs import ChunkRequest, PairBatch, PairGeometry, pair_geometry

PATCH, BLOCK = 14, 7
MICRO = NetworkConfig(
    img_size=(56, 84), patch=PATCH, enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=2, dec_heads=2,
    head="linear", places=True,
)  # fmt: skip


def walls(count: int, size: tuple[int, int] = (56, 84), *, depth: float = 4.0, move=(0.0, 0.0, 0.0), seed: int = 0):
    """Both cameras look straight at a wall at ``depth``; the second is at ``move`` in the first's frame.

    Its texture is random squares of 7 pixels; the second view shows it moved by whole pixels, so ``move`` should be
    of whole pixels too.
    """
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    focal = float(width)
    shift = [round(focal * m / depth) for m in move[:2]]
    blocks = torch.randint(0, 256, (count, 3 * height // BLOCK, 3 * width // BLOCK, 3), generator=generator)
    wall = blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)

    def seen(x: int, y: int) -> torch.Tensor:
        return wall[:, height + y : 2 * height + y, width + x : 2 * width + x]

    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, :3, 3] = torch.tensor(move)
    z = torch.full((count, 2, height, width), depth)
    z[:, 1] -= move[2]
    k = torch.tensor([focal, focal, width / 2, height / 2]).expand(count, 2, 4).clone()
    return PairBatch(torch.stack([seen(0, 0), seen(*shift)], 1).to(torch.uint8), z.half(), k, pose)


class WallSource:
    """Chunks of 12 pairs of walls, the second camera beside the first; content by the request's number."""

    def make(self, request: ChunkRequest) -> PairBatch:
        return walls(12, request.size, move=(4 * 7 / request.size[1], 0.0, 0.0), seed=request.number)


class FailingSource:
    """Cannot make anything."""

    def make(self, request: ChunkRequest) -> PairBatch:
        raise ArithmeticError(f"no chunk {request.number}")


def wall_source() -> WallSource:
    return WallSource()


def failing_source() -> FailingSource:
    return FailingSource()


def pointmaps(batch: PairBatch) -> PairGeometry:
    """``pair_geometry`` with the coordinates last: points (B, H, W, 3)."""
    geometry = pair_geometry(batch)
    one, two = (points.movedim(1, -1) for points in geometry.points)
    return PairGeometry((one, two), geometry.valid)
