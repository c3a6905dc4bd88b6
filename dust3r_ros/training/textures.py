"""A bank of tileable textures with mip levels, sampled like a graphics card does (Williams 1983)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.training.patterns import PATTERNS, Brush

# Photographs in scikit-image's wheel that are CC0 or in the public domain, as its documentation says of each:
# brick, gravel (CC0Textures), grass (linolafett), coffee (R. Michetti), chelsea (S. van der Walt), camera (L. Varshney),
# retina (M. Haeggstroem): CC0; rocket (SpaceX), hubble_deep_field (NASA, ESA): public domain.
PHOTOGRAPHS = ("brick", "gravel", "grass", "coffee", "chelsea", "camera", "retina", "rocket", "hubble_deep_field")


@dataclass(frozen=True, eq=False)
class TextureAtlas:
    """L textures of ``size`` x ``size`` pixels, each with all its mip levels, in one table.

    ``texels`` (L * M,) int32, each the bytes R G B and luminance; a texture's levels lie one after another,
    largest first, M texels in all. ``size`` is a power of two. The first ones are procedural, in rounds through
    ``PATTERNS``; the last ``photographs`` are photographs.
    """

    texels: Tensor
    size: int
    photographs: int = 0

    @property
    def count(self) -> int:
        """How many textures there are."""
        return len(self.texels) // _texels_each(self.size)

    @property
    def levels(self) -> int:
        """Mip levels of each texture."""
        return self.size.bit_length()

    def to(self, device: torch.device | str) -> TextureAtlas:
        """The same on another device."""
        return TextureAtlas(self.texels.to(device), self.size, self.photographs)

    def sample(self, layer: Tensor, uv: Tensor, level: Tensor, *, trilinear: bool = True) -> Tensor:
        """Filtered colour and luminance (N, 4) in [0, 1].

        ``layer`` (N,) int64; ``uv`` (N, 2) in tiles, repeating; ``level`` (N,): log2 of the texels that one sample
        covers; above the last level the texture is one colour, so nothing that is sampled can alias.
        ``trilinear`` blends two mip levels; False takes the nearest, in half the time.
        """
        level = level.clamp(0, self.levels - 1)
        if not trilinear:
            return self._bilinear(layer, uv, level.round().int())
        lower = level.floor().clamp(max=self.levels - 2)
        step = lower.int()
        one, two = self._bilinear(layer, uv, step), self._bilinear(layer, uv, step + 1)
        return torch.lerp(one, two, (level - lower)[:, None])

    def _bilinear(self, layer: Tensor, uv: Tensor, level: Tensor) -> Tensor:
        index, weight = self._corners(level, uv)
        index += (layer * _texels_each(self.size)).to(torch.int32)
        texels = self.texels.index_select(0, index.reshape(-1)).view(torch.uint8).reshape(4, -1, 4)
        mixed = texels[0] * weight[0]
        for corner in range(1, 4):
            mixed.addcmul_(texels[corner].to(uv.dtype), weight[corner])
        return mixed.mul_(1 / 255)

    def _corners(self, level: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        """Places in a texture's table (4, N) int32 and bilinear weights (4, N, 1) of the texels around uv."""
        side = torch.bitwise_right_shift(torch.full_like(level, self.size), level)
        # levels before this one hold (4 S^2 - 4 s^2) / 3 texels
        start = (4 * (self.size * self.size - side * side)).div_(3, rounding_mode="floor")
        u, v = uv.unbind(1)
        x, y = (u - u.floor()) * side - 0.5, (v - v.floor()) * side - 0.5
        low_x, low_y = x.floor(), y.floor()
        fx, fy = x - low_x, y - low_y
        x0, y0 = low_x.int() & (side - 1), low_y.int() & (side - 1)
        x1, y1 = (x0 + 1) & (side - 1), (y0 + 1) & (side - 1)
        top, bottom = start + y0 * side, start + y1 * side
        index = torch.stack([top + x0, top + x1, bottom + x0, bottom + x1])
        gx, gy = 1 - fx, 1 - fy
        return index, torch.stack([gx * gy, fx * gy, gx * fy, fx * fy])[..., None]


def make_atlas(count: int, size: int, generator: torch.Generator, *, photographs: bool = False) -> TextureAtlas:
    """An atlas of ``count`` random textures, in rounds through all patterns, on the CPU.

    ``photographs`` adds those of ``PHOTOGRAPHS`` after them (needs scikit-image); the procedural ones do not change.
    Raises ValueError for a size that is not a power of two or a count below 1.
    """
    if size < 2 or size & (size - 1):
        raise ValueError(f"size must be a power of two, got {size}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    brush = Brush(size, generator)
    images = [PATTERNS[k % len(PATTERNS)](brush) for k in range(count)]
    photos = load_photographs(size) if photographs else []
    return pack_atlas(images + photos, len(photos))


def pack_atlas(images: Sequence[Tensor], photographs: int = 0) -> TextureAtlas:
    """An atlas of images (S, S, 3) float in [0, 1], S a power of two; the last ``photographs`` are photographs."""
    size = images[0].shape[0]
    level = torch.stack([image.permute(2, 0, 1) for image in images])
    level = torch.cat([level, level.mean(1, keepdim=True)], dim=1)
    tables = []
    while True:
        tables.append(level.permute(0, 2, 3, 1).reshape(len(images), -1, 4))
        if level.shape[-1] == 1:
            break
        level = torch.nn.functional.avg_pool2d(level, 2)
    table = (torch.cat(tables, dim=1) * 255 + 0.5).clamp(0, 255).to(torch.uint8).contiguous()
    return TextureAtlas(table.view(torch.int32).reshape(-1), size, photographs)


def load_photographs(size: int) -> list[Tensor]:
    """The photographs as tileable textures (S, S, 3): a square crop, mirrored both ways. Needs scikit-image."""
    import skimage.data
    import skimage.transform

    images = []
    for name in PHOTOGRAPHS:
        photo = np.atleast_3d(getattr(skimage.data, name)())[..., :3]
        side = min(photo.shape[:2])
        small = skimage.transform.resize(photo[:side, :side], (size // 2, size // 2), anti_aliasing=True)
        quarter = torch.from_numpy(np.broadcast_to(small, (size // 2, size // 2, 3)).astype(np.float32))
        half = torch.cat([quarter, quarter.flip(0)], dim=0)
        images.append(torch.cat([half, half.flip(1)], dim=1))
    return images


def _texels_each(size: int) -> int:
    return (4 * size * size - 1) // 3
