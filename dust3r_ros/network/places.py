"""Absolute positions of tokens, for networks that are too small to work them out.

Rotary embeddings tell attention how far apart two tokens are, never where they are; a pointmap needs that, and so does
whoever compares two views. A network can infer it from where the image ends, and a large one does; a small one knows it
only to a patch or so, which is several degrees in every motion it estimates (docs/training.md has the figures).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dust3r_ros.network.tables import TableCache

_OCTAVES = (-1, 0, 1, 2)  # the finest wave is a quarter of the longer side
FEATURES = 2 + 4 * len(_OCTAVES)


class PlaceEmbed(nn.Module):
    """A vector for every place of a grid: linear in Fourier features (Tancik et al. 2020) of the patch's centre."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(FEATURES, dim)
        self._features = TableCache(place_features)

    def prepare(self, grid: tuple[int, int]) -> None:
        """Make the table of a grid."""
        self._features.get(grid, self.proj.weight.device)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(N, C) float32 for (rows, columns) of tokens, N in raster order."""
        device = self.proj.weight.device
        with torch.autocast(device.type, enabled=False):
            return self.proj(self._features.get(grid, device))


def place_features(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(N, FEATURES) float32: rows and columns of the patches' centres, from the image's centre and in halves of its
    longer side, and their sines and cosines.
    """
    half = max(grid) / 2
    rows, columns = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5 - n / 2) / half for n in grid)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    angles = [place * (math.pi * 2.0**octave) for octave in _OCTAVES]
    return torch.cat([place, *(wave for angle in angles for wave in (angle.sin(), angle.cos()))], dim=1)
