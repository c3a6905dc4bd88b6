"""Pairs from a user's own posed images with depth, to fine-tune a trained network on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from dust3r_ros.data import ByteImage, FloatArray, Intrinsics
from dust3r_ros.errors import TrainingError
from dust3r_ros.training.cameras import overlap
from dust3r_ros.training.pairs import ChunkRequest, PairBatch, chunk_seed

LEAST_OVERLAP = 0.1
_PREVIEW_PX = 40  # long side of the depth images that overlap is measured on
_LARGEST_ZOOM = 1.25


class PosedFrame(Protocol):
    """An image with its truth, read when asked for; the frames of ``evaluation.packs`` are such."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def intrinsics(self) -> Intrinsics:
        """Of the stored image."""

    @property
    def camera_to_world(self) -> FloatArray:
        """(4, 4)."""

    def load_image(self) -> ByteImage:
        """(H, W, 3) uint8 RGB."""

    def load_depth(self) -> FloatArray | None:
        """(H, W) z-depth in the poses' unit, 0 where unknown, or None."""


@dataclass(frozen=True, eq=False)
class _View:
    rgb: ByteImage
    depth: FloatArray
    matrix: FloatArray  # (3, 3)
    camera_to_world: FloatArray


class PosedPairs:
    """Pairs of one scene's or several scenes' frames that see enough of each other, cropped and zoomed at random.

    ``scenes`` holds the frames of each; only frames of one scene are paired. All images are kept in memory.
    Raises TrainingError for frames without depth, and when no two frames see enough of each other.
    """

    def __init__(self, scenes: Sequence[Sequence[PosedFrame]], *, chunk: int = 16, seed: int = 0) -> None:
        self.chunk, self._seed = chunk, seed
        self._views: list[_View] = []
        pairs: list[Tensor] = []
        for frames in scenes:
            views = [_load(frame) for frame in frames]
            pairs.append(_seeing_each_other(views) + len(self._views))
            self._views += views
        self._pairs = torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)
        if not len(self._pairs):
            raise TrainingError(f"no two frames see at least {LEAST_OVERLAP:.0%} of each other: nothing to learn from")

    @property
    def count(self) -> int:
        """How many pairs there are; each may also be swapped."""
        return len(self._pairs)

    def make(self, request: ChunkRequest) -> PairBatch:
        """``chunk`` pairs at random; the request's baseline is not used."""
        rng = np.random.default_rng(chunk_seed(self._seed, request.number))
        chosen = self._pairs[torch.from_numpy(rng.integers(0, len(self._pairs), self.chunk))]
        pairs = [[_resized(self._views[index], request.size, rng) for index in pair] for pair in chosen.tolist()]
        poses = torch.from_numpy(np.stack([[v.camera_to_world for v in pair] for pair in pairs]))
        return PairBatch(
            torch.from_numpy(np.stack([[v.rgb for v in pair] for pair in pairs])),
            torch.from_numpy(np.stack([[v.depth for v in pair] for pair in pairs])).half(),
            torch.from_numpy(np.stack([[_four(v.matrix) for v in pair] for pair in pairs])).float(),
            (torch.linalg.inv(poses[:, 0]) @ poses[:, 1]).float(),
        )


def _load(frame: PosedFrame) -> _View:
    depth = frame.load_depth()
    if depth is None:
        raise TrainingError(f"{frame.name} has no depth image: training needs one for every frame")
    k = frame.intrinsics
    matrix = np.array([[k.fx, 0, k.cx], [0, k.fy, k.cy], [0, 0, 1.0]])
    return _View(frame.load_image(), np.nan_to_num(depth, posinf=0.0).clip(min=0), matrix, frame.camera_to_world)


def _resized(view: _View, size: tuple[int, int], rng: np.random.Generator) -> _View:
    """A part of the view of this shape (H, W), as large as can be or up to a quarter smaller, anywhere in it."""
    height, width = view.depth.shape
    scale = max(size[0] / height, size[1] / width) * rng.uniform(1.0, _LARGEST_ZOOM)
    free = np.array([scale * width - size[1], scale * height - size[0]])
    x, y = -free * rng.uniform(0, 1, 2)
    placed = np.array([[scale, 0, x], [0, scale, y], [0, 0, 1.0]])  # pixel centres at integers + 0.5
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    warp = (shift @ placed @ np.linalg.inv(shift))[:2]  # pixel centres at integers, as OpenCV has them
    target = size[::-1]
    blurred = cv2.GaussianBlur(view.rgb, (0, 0), 0.4 / scale) if scale < 0.8 else view.rgb
    rgb = cv2.warpAffine(blurred, warp, target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    depth = cv2.warpAffine(view.depth.astype(np.float32), warp, target, flags=cv2.INTER_NEAREST)
    return _View(np.asarray(rgb, np.uint8), np.asarray(depth, np.float32), placed @ view.matrix, view.camera_to_world)


def _four(matrix: FloatArray) -> FloatArray:
    return np.array([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])


def _seeing_each_other(views: Sequence[_View]) -> Tensor:
    """Indices (P, 2), i < j, of views of which each sees enough of what the other sees."""
    if len(views) < 2:
        return torch.empty(0, 2, dtype=torch.int64)
    small = [_preview(view) for view in views]
    depth = torch.from_numpy(np.stack([v.depth for v in small])).double()
    k = torch.from_numpy(np.stack([_four(v.matrix) for v in small]))
    poses = torch.from_numpy(np.stack([v.camera_to_world for v in small]))
    found = []
    for i in range(len(views) - 1):
        rest = slice(i + 1, None)
        one = (depth[i].expand_as(depth[rest]), k[i].expand_as(k[rest]), poses[i].expand_as(poses[rest]))
        two = (depth[rest], k[rest], poses[rest])
        share = torch.minimum(overlap(*one, *two, tolerance=0.1), overlap(*two, *one, tolerance=0.1))
        other = (share >= LEAST_OVERLAP).nonzero()[:, 0] + i + 1
        found.append(torch.stack([torch.full_like(other, i), other], dim=1))
    return torch.cat(found)


def _preview(view: _View) -> _View:
    """The view small; its image is left out."""
    height, width = view.depth.shape
    scale = _PREVIEW_PX / max(height, width)
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    depth = cv2.resize(view.depth.astype(np.float32), size[::-1], interpolation=cv2.INTER_NEAREST)
    stretch = np.diag([size[1] / width, size[0] / height, 1.0])
    return _View(view.rgb[:0], np.asarray(depth, np.float32), stretch @ view.matrix, view.camera_to_world)
