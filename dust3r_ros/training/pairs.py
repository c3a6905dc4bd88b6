"""Pairs of images with their exact geometry, to train on: how they are kept, turned about, and what is made of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dust3r_ros.network.heads import tiles_from
from dust3r_ros.training.cameras import sample_pairs
from dust3r_ros.training.photometric import OtherLight, degrade
from dust3r_ros.training.render import render
from dust3r_ros.training.scenes import SceneSampler
from dust3r_ros.training.solids import TensorFields
from dust3r_ros.training.textures import make_atlas

HELD_OUT_SEED = 3_000_000_000  # training seeds are below 2^31; PyTorch's CPU generator uses 32 bits of a seed
_MOST_DEPTH = 6.0e4  # metres; float16 holds no more


@dataclass(frozen=True, eq=False)
class PairBatch(TensorFields):
    """B pairs of views, small enough to be kept by the thousand.

    ``rgb`` (B, 2, H, W, 3) uint8; ``depth`` (B, 2, H, W) float16 z-depth, 0 where there is none; ``intrinsics``
    (B, 2, 4) fx, fy, cx, cy, pixel centres at integers + 0.5; ``second_to_first`` (B, 4, 4) rigid, camera to camera.
    """

    rgb: Tensor
    depth: Tensor
    intrinsics: Tensor
    second_to_first: Tensor

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rgb.shape[2], self.rgb.shape[3]

    def swapped(self) -> PairBatch:
        """The second view first."""
        back = torch.linalg.inv(self.second_to_first)
        return PairBatch(self.rgb.flip(1), self.depth.flip(1), self.intrinsics.flip(1), back)

    def mirrored(self) -> PairBatch:
        """The world as a mirror shows it: left is right."""
        signs = self.second_to_first.new_tensor([-1.0, 1.0, 1.0, 1.0])
        k = self.intrinsics.clone()
        k[..., 2] = self.size[1] - k[..., 2]
        pose = signs[:, None] * self.second_to_first * signs
        return PairBatch(self.rgb.flip(3), self.depth.flip(3), k, pose)

    def relit(self, light: OtherLight) -> PairBatch:
        """The same places in other light."""
        return PairBatch(light(self.rgb), self.depth, self.intrinsics, self.second_to_first)


@dataclass(frozen=True, eq=False)
class PairGeometry:
    """True pointmaps of B pairs in the first view's camera frame.

    ``points`` two of (B, 3, *pixels) float32, for the first and the second view; ``valid`` two of (B, *pixels) bool.
    """

    points: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]


def pair_geometry(batch: PairBatch, tile: int = 0) -> PairGeometry:
    """The pointmaps both heads are to predict (DUSt3R, equation 1).

    Pixels come tile by tile (T, tile^2), as ``tiles_from`` orders them; as an image's (H, W) where ``tile`` is 0.
    """
    v, u = _pixel_centres(batch)
    depth = batch.depth
    if tile:
        v, u, depth = (tiles_from(x, tile) for x in (v, u, depth))
    first, second = (_own_points(batch.intrinsics[:, k], u, v, depth[:, k].float()) for k in (0, 1))
    valid = depth > 0
    return PairGeometry((first, _transform(batch.second_to_first, second)), (valid[:, 0], valid[:, 1]))


def token_matches(batch: PairBatch, patch: int, *, tolerance: float = 0.05) -> Tensor:
    """For each token of the first view the token of the second that shows the same surface (B, N) int64, else -1.

    A token stands for the surface at its middle pixel. It has a match where that falls into the second image and lies
    there within ``tolerance`` of its depth of the surface seen.
    """
    height, width = batch.size
    middle = slice(patch // 2, None, patch)
    v, u = (x[middle, middle] for x in _pixel_centres(batch))
    depth = batch.depth[:, 0, middle, middle].float()
    points = _own_points(batch.intrinsics[:, 0], u, v, depth)
    x, y, z = _transform(torch.linalg.inv(batch.second_to_first), points).unbind(1)
    valid = depth > 0
    fx, fy, cx, cy = (value[:, None, None] for value in batch.intrinsics[:, 1].unbind(-1))
    safe = z.clamp(min=1e-6)
    column = (fx * x / safe + cx).floor()
    row = (fy * y / safe + cy).floor()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0)
    column, row = (place.nan_to_num(0).clamp(0, most - 1).long() for place, most in ((column, width), (row, height)))
    pixel = (row * width + column).flatten(1)
    there = batch.depth[:, 1].flatten(1).float().gather(1, pixel).view_as(z)
    seen = valid & inside & (there > 0) & ((there - z).abs() < tolerance * z)
    token = (row // patch) * (width // patch) + column // patch
    return torch.where(seen, token, -1).flatten(1)


def network_images(batch: PairBatch, generator: torch.Generator | None = None) -> Tensor:
    """Images (B, 2, 3, H, W) float32 in [-1, 1] as a network wants them.

    With a ``generator`` (on the batch's device) each is given its own random camera flaws.
    """
    images = batch.rgb.float() / 255
    if generator is not None:
        images = degrade(images, generator)
    return (images * 2 - 1).permute(0, 1, 4, 2, 3).contiguous()


def _pixel_centres(batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Row and column (H, W) of every pixel's centre."""
    height, width = batch.size
    v, u = (torch.arange(n, device=batch.rgb.device) + 0.5 for n in (height, width))
    return v[:, None].expand(batch.size), u.expand(batch.size)


def _own_points(intrinsics: Tensor, u: Tensor, v: Tensor, depth: Tensor) -> Tensor:
    """Points (B, 3, ...) in the camera's frame of pixels ``u`` and ``v`` (...) with ``depth`` (B, ...)."""
    fx, fy, cx, cy = (value[:, None, None] for value in intrinsics.unbind(-1))
    return torch.stack([(u - cx) / fx * depth, (v - cy) / fy * depth, depth], dim=1)


def _transform(pose: Tensor, points: Tensor) -> Tensor:
    """Points (B, 3, ...) through rigid transforms (B, 4, 4)."""
    return torch.baddbmm(pose[:, :3, 3:], pose[:, :3, :3], points.flatten(2)).view_as(points)


@dataclass(frozen=True)
class ChunkRequest:
    """Which pairs are wanted: the ``number`` decides their content, ``size`` is (H, W), ``baseline`` in metres."""

    number: int
    size: tuple[int, int]
    baseline: tuple[float, float]


class PairSource(Protocol):
    """Makes chunks of pairs; the same request gives the same pairs."""

    def make(self, request: ChunkRequest) -> PairBatch:
        """The pairs of a request."""


@dataclass(frozen=True)
class RenderSettings:
    """What ``RenderedPairs`` is made of; small, so that it can be sent to another process.

    ``textures`` of ``texture_size`` pixels a side, with ``photographs`` or without; ``plain`` is the share of surfaces
    without a texture; a chunk has ``scenes`` scenes with ``pairs`` pairs of views each.
    """

    seed: int = 0
    textures: int = 256
    texture_size: int = 256
    photographs: bool = False
    plain: float = 0.0
    scenes: int = 20
    pairs: int = 4
    device: str = "cpu"

    @property
    def chunk(self) -> int:
        """Pairs of a chunk."""
        return self.scenes * self.pairs


class RenderedPairs:
    """Pairs of views of random scenes, rendered."""

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        generator = torch.Generator().manual_seed(settings.seed)
        atlas = make_atlas(settings.textures, settings.texture_size, generator, photographs=settings.photographs)
        objects = zlib.crc32(f"objects {settings.seed}".encode())
        self._sampler = SceneSampler(atlas.to(settings.device), seed=objects, plain=settings.plain)

    @torch.inference_mode()
    def make(self, request: ChunkRequest) -> PairBatch:
        """``settings.chunk`` pairs in random order, on the settings' device."""
        s = self.settings
        generator = torch.Generator(s.device).manual_seed(chunk_seed(s.seed, request.number))
        scenes = self._sampler.mixed(s.scenes, generator)
        cameras = sample_pairs(scenes, s.pairs, request.size, generator, baseline=request.baseline)
        poses = cameras.camera_to_world
        views = render(scenes, poses.flatten(1, 2), cameras.intrinsics.flatten(1, 2), request.size)
        rgb = (views.rgb.clamp(0, 1) * 255).round().to(torch.uint8)
        paired = (s.chunk, 2)
        ordered = PairBatch(
            rgb.reshape(*paired, *rgb.shape[2:]),
            views.depth.clamp(max=_MOST_DEPTH).half().reshape(*paired, *request.size),
            views.intrinsics.reshape(*paired, 4),
            (torch.linalg.inv(poses[:, :, 0]) @ poses[:, :, 1]).flatten(0, 1),
        )
        return ordered[torch.randperm(s.chunk, generator=generator, device=s.device)]


def chunk_seed(seed: int, number: int) -> int:
    """The seed of a chunk's generator, of 32 bits, far from those of its neighbours."""
    return zlib.crc32(f"{seed}/{number}".encode())
