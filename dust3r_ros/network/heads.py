"""Heads that turn one view's tokens into a pointmap and a confidence, in float32.

Their output is planar, the channels before the pixels, and in the order of pixels that costs nothing: what is made of
it point by point is done there, and only the result is put in the order of an image (``image_from``).

``LinearHead`` predicts each token's patch of pixels at once. ``DptHead`` is the dense prediction transformer of
Ranftl et al. 2021 ("Vision Transformers for Dense Prediction", section 3): four stages of tokens are made into
feature maps of four resolutions and fused from coarse to fine. Module names are those of the published state dicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dust3r_ros.network.architecture import NetworkConfig

CHANNELS = 4  # x, y, z, confidence


def make_head(config: NetworkConfig) -> LinearHead | DptHead:
    """The head a configuration asks for."""
    return DptHead(config) if config.head == "dpt" else LinearHead(config)


def points_from(raw: Tensor) -> Tensor:
    """Points from a head's xyz channels (B, 3, ...): their direction kept, their length ``d`` made ``exp(d) - 1``.

    Smooth at zero, where the point is the camera centre.
    """
    length = raw.square().sum(dim=1, keepdim=True).clamp(min=1e-16).sqrt()
    return raw * (torch.expm1(length) / length)


def confidence_from(raw: Tensor, minimum: float, maximum: float) -> Tensor:
    """Confidence from a head's channel: ``minimum + exp(x)``, at most ``maximum`` (DUSt3R, section 3.2)."""
    return minimum + raw.exp().clamp(max=maximum - minimum)


def tiles_from(image: Tensor, tile: int) -> Tensor:
    """Pixels (..., H, W) tile by tile: (..., T, tile^2), tiles and the pixels within each in raster order."""
    rows, columns = image.shape[-2] // tile, image.shape[-1] // tile
    cut = image.unflatten(-1, (columns, tile)).unflatten(-3, (rows, tile))
    return cut.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def image_from(planar: Tensor, grid: tuple[int, int], tile: int) -> Tensor:
    """Images (B, H, W, C) of planar ones: (B, C, T, tile^2) on a (rows, columns) grid, or (B, C, H, W) for tile 0."""
    if not tile:
        return planar.permute(0, 2, 3, 1).contiguous()
    cut = planar.unflatten(3, (tile, tile)).unflatten(2, grid)  # (B, C, rows, columns, tile, tile)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


class LinearHead(nn.Module):
    """One linear layer from a token to all pixels of its patch."""

    stages: tuple[int, ...]  # outputs read: 0 is the encoder's, k the k-th decoder block's
    tile: int  # pixels come tile by tile, of this side

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stages = (config.dec_depth,)
        self.tile = config.patch
        self.proj = nn.Linear(config.dec_dim, CHANNELS * config.patch**2)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """One tensor of tokens (B, N, C) on a (rows, columns) grid to (B, 4, N, patch^2), see ``tiles_from``."""
        (last,) = tokens
        return self.proj(last.float()).unflatten(-1, (CHANNELS, -1)).transpose(1, 2)


class DptHead(nn.Module):
    """Reads the encoder's output and the decoder's after half, three quarters and all of its blocks."""

    stages: tuple[int, ...]
    tile = 0  # pixels come in the order of the image

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        depth = config.dec_depth
        self.stages = (0, depth // 2, 3 * depth // 4, depth)
        self.dpt = Dpt((config.enc_dim, config.dec_dim, config.dec_dim, config.dec_dim), config.dpt_dim)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four tensors of tokens (B, N, C_k) on a (rows, columns) grid to (B, 4, H, W)."""
        return self.dpt([t.float().transpose(1, 2).unflatten(-1, grid) for t in tokens])


class Dpt(nn.Module):
    """Reassemble, fuse, predict, on maps of tokens."""

    def __init__(self, token_dims: tuple[int, int, int, int], dim: int) -> None:
        super().__init__()
        dims = (3 * dim // 8, 3 * dim // 4, 3 * dim // 2, 3 * dim)
        self.scratch = Fusion(dims, dim)
        self.head = nn.Sequential(
            nn.Conv2d(dim, dim // 2, kernel_size=3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(dim // 2, dim // 2, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim // 2, CHANNELS, kernel_size=1),
        )
        resize = (
            nn.ConvTranspose2d(dims[0], dims[0], kernel_size=4, stride=4),
            nn.ConvTranspose2d(dims[1], dims[1], kernel_size=2, stride=2),
            nn.Identity(),
            nn.Conv2d(dims[3], dims[3], kernel_size=3, stride=2, padding=1),
        )
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv2d(token_dims[k], dims[k], kernel_size=1), resize[k]) for k in range(4)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C_k, rows, columns) to (B, 4, 16 rows, 16 columns)."""
        return self.head(self.scratch([layer(m) for layer, m in zip(self.act_postprocess, maps, strict=True)]))


class Fusion(nn.Module):
    """The fusion of the four resolutions, coarse to fine."""

    def __init__(self, dims: tuple[int, int, int, int], dim: int) -> None:
        super().__init__()
        inputs = [nn.Conv2d(d, dim, kernel_size=3, padding=1, bias=False) for d in dims]
        # Published files hold these four under two names each; of two different values the second name's counts.
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = inputs
        self.layer_rn = nn.ModuleList(inputs)
        self.refinenet1 = FusionBlock(dim)
        self.refinenet2 = FusionBlock(dim)
        self.refinenet3 = FusionBlock(dim)
        self.refinenet4 = FusionBlock(dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps at 4, 2, 1 and 1/2 times the tokens' resolution, to (B, dim, 8 rows, 8 columns)."""
        fine, medium, tokens, coarse = (layer(m) for layer, m in zip(self.layer_rn, maps, strict=True))
        path = self.refinenet4(coarse)
        path = path[:, :, : tokens.shape[2], : tokens.shape[3]]  # an odd side was rounded up when it was halved
        path = self.refinenet3(path, tokens)
        path = self.refinenet2(path, medium)
        return self.refinenet1(path, fine)


class FusionBlock(nn.Module):
    """Adds a finer map to the path so far and doubles the resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(dim, dim, kernel_size=1)
        self.resConfUnit1 = ResidualUnit(dim)
        self.resConfUnit2 = ResidualUnit(dim)

    def forward(self, path: Tensor, finer: Tensor | None = None) -> Tensor:
        """(B, C, h, w), both, to (B, C, 2 h, 2 w). Without ``finer`` the first unit is not used."""
        if finer is not None:
            path = path + self.resConfUnit1(finer)
        path = self.resConfUnit2(path)
        return self.out_conv(functional.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True))


class ResidualUnit(nn.Module):
    """Two convolutions before each of which comes a ReLU, and the input added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))
