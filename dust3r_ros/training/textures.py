"""A bank of tileable textures with mip levels, sampled like a graphics card does (Williams 1983)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.training.patterns import PATTERNS, Brush

# Photographs in scikit-image's wheel that are CC0 or in the public domain, as its documentation says of each:
# brick, gravel (CC0Textures), grass (linolafett), coffee (R. Michetti), chelsea (S. van der Walt), camera
# (L. Varshney), retina (M. Haeggstroem): CC0; rocket (SpaceX), hubble_deep_field (NASA, ESA): public domain.
PHOTOGRAPHS = ("brick", "gravel", "grass", "coffee", "chelsea", "camera", "retina", "rocket", "hubble_deep_field")

_RGB = (0, 8, 16)  # where the channels lie in a texel, bits
_LUMINANCE = (24,)


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

    def colour(self, layer: Tensor, u: Tensor, v: Tensor, level: Tensor, *, trilinear: bool = True) -> Tensor:
        """Filtered colours (3, N) in [0, 1].

        ``layer`` (N,) int64; ``u`` and ``v`` (N,) in tiles, repeating; ``level`` (N,): log2 of the texels that one
        sample covers; above the last level the texture is one colour, so nothing that is sampled can alias.
        ``trilinear`` blends two mip levels; False takes the nearest, in half the time.
        """
        return self._sample(layer, u, v, level, _RGB, trilinear)

    def luminance(self, layer: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """As ``colour``, only the mean of the channels (N,), not trilinear."""
        return self._sample(layer, u, v, level, _LUMINANCE, False)[0]

    def _sample(
        self, layer: Tensor, u: Tensor, v: Tensor, level: Tensor, shifts: tuple[int, ...], trilinear: bool
    ) -> Tensor:
        level = level.clamp(0, self.levels - 1)
        u, v = u - u.floor(), v - v.floor()
        start = (layer * _texels_each(self.size)).to(torch.int32)
        if not trilinear:
            return self._bilinear(start, u, v, level.round().int(), shifts)
        lower = level.floor().clamp_(max=self.levels - 2)
        step = lower.int()
        one = self._bilinear(start, u, v, step, shifts)
        return torch.lerp(one, self._bilinear(start, u, v, step + 1, shifts), level - lower)

    def _bilinear(self, start: Tensor, u: Tensor, v: Tensor, level: Tensor, shifts: tuple[int, ...]) -> Tensor:
        shift = torch.tensor(shifts, dtype=torch.int32, device=u.device)[:, None]
        mixed = u.new_zeros(len(shifts), len(u))
        for index, weight in self._corners(start, u, v, level):
            packed = self.texels.index_select(0, index)
            channels = torch.bitwise_right_shift(packed, shift).bitwise_and_(255).to(u.dtype)
            mixed.addcmul_(channels, weight, value=1 / 255)
        return mixed

    def _corners(self, start: Tensor, u: Tensor, v: Tensor, level: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Places in the table (N,) int32 and bilinear weights (N,) of the four texels around u, v in [0, 1]."""
        side = torch.bitwise_right_shift(torch.full_like(level, self.size), level)
        # levels before this one hold (4 S^2 - 4 s^2) / 3 texels
        start = start + (self.size * self.size - side * side).mul_(4).div_(3, rounding_mode="floor")
        x, y = (u * side).sub_(0.5), (v * side).sub_(0.5)
        low_x, low_y = x.floor(), y.floor()
        fx, fy = x - low_x, y - low_y
        last = side - 1
        x0, y0 = low_x.int().bitwise_and_(last), low_y.int().bitwise_and_(last)
        x1, y1 = (x0 + 1).bitwise_and_(last), (y0 + 1).bitwise_and_(last)
        top, bottom = y0.mul_(side).add_(start), y1.mul_(side).add_(start)
        gx, gy = 1 - fx, 1 - fy
        return [(top + x0, gx * gy), (top + x1, fx * gy), (bottom + x0, gx * fy), (bottom + x1, fx * fy)]


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
    tables = []
    for image in images:
        level = torch.cat([image, image.mean(2, keepdim=True)], dim=2).permute(2, 0, 1)
        while True:
            tables.append((level.flatten(1).T * 255 + 0.5).clamp_(0, 255).to(torch.uint8))
            if level.shape[-1] == 1:
                break
            level = torch.nn.functional.avg_pool2d(level, 2)
    table = torch.cat(tables)
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
