"""Rotary position embedding in two dimensions (RoFormer, Su et al. 2021, as CroCo v2 uses it, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dust3r_ros.network.architecture import NetworkConfig
from dust3r_ros.network.tables import TableCache


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosine and sine of every token's angles: (N, 2, D / 4) float32, for row and column, N tokens in raster order."""

    cos: Tensor
    sin: Tensor

    @cached_property
    def factor(self) -> Tensor:
        """The same as complex numbers (N, 1, D / 2), first those of the rows."""
        return torch.complex(self.cos, self.sin).flatten(1)[:, None]


def make_rotation(
    grid: tuple[int, int], head_dim: int, base: float, device: torch.device, span: int | None = None
) -> Rotation:
    """The rotation of a (rows, columns) grid of tokens for heads of ``head_dim`` D (a multiple of 4) channels.

    Half of a head's channels turn with the row, half with the column; within each, D / 4 frequencies
    ``base ** (-4 k / D)``. Positions are counted in tokens; with a ``span`` they run to it along the longer side of any
    grid (position interpolation, Chen et al. 2023).
    """
    step = 1.0 if span is None else span / max(grid)
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device) * step for n in grid)
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    exponent = torch.arange(head_dim // 4, dtype=torch.float32, device=device) * (4 / head_dim)
    angle = position[:, :, None] * base**-exponent
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys ``x`` (B, heads, N, D) by their tokens' positions; same shape and dtype.

    Scalar products of two turned vectors depend only on the difference of their positions.
    """
    real, imaginary = x.unflatten(-1, (2, 2, -1)).unbind(dim=-2)
    turned_real = real * rotation.cos - imaginary * rotation.sin
    turned_imaginary = imaginary * rotation.cos + real * rotation.sin
    return torch.stack((turned_real, turned_imaginary), dim=-2).flatten(-3).to(x.dtype)


def neighbours(heads: int, dim: int) -> Tensor:
    """The order (dim,) in which the channels of every head have the two numbers that turn together side by side."""
    return torch.arange(dim).view(heads, 2, 2, -1).transpose(2, 3).flatten()


def rotate_neighbours(x: Tensor, rotation: Rotation) -> Tensor:
    """``rotate`` for ``x`` (B, N, heads, D) whose channels are in the order of ``neighbours``, computed in float32."""
    turned = torch.view_as_complex(x.to(torch.float32, copy=True).unflatten(-1, (-1, 2)))
    turned *= rotation.factor
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotation_caches(config: NetworkConfig) -> tuple[TableCache[Rotation], TableCache[Rotation]]:
    """The rotations of a network's encoder and of its decoders, as ``make_rotation`` has them."""

    def cache(head_dim: int) -> TableCache[Rotation]:
        return TableCache(lambda grid, device: make_rotation(grid, head_dim, config.rope_base, device, config.span))

    return cache(config.enc_dim // config.enc_heads), cache(config.dec_dim // config.dec_heads)
