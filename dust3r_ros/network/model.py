"""The DUSt3R network (Wang et al. 2024, section 3.1) on top of CroCo v2 (Weinzaepfel et al. 2023).

One encoder for both views; two decoders that read each other after every block; two heads, which predict both
views' points in the first view's camera frame. Encoding is separate from decoding so that an image is encoded once
for all its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dust3r_ros.network.architecture import ModelSource, NetworkConfig
from dust3r_ros.network.heads import confidence_from, image_from, make_head, points_from
from dust3r_ros.network.layers import DecoderBlock, EncoderBlock, PatchEmbed, norm
from dust3r_ros.network.places import PlaceEmbed
from dust3r_ros.network.rope import rotation_caches


@dataclass(frozen=True, eq=False)
class Pointmaps:
    """Both views' points in camera i's frame, float32, of a batch of B pairs.

    ``points_i`` (B, H, W, 3), ``conf_i`` (B, H, W), and for view j likewise at its own size.
    """

    points_i: Tensor
    conf_i: Tensor
    points_j: Tensor
    conf_j: Tensor


@dataclass(frozen=True, eq=False)
class PlanarMaps:
    """What ``Pointmaps`` holds, the coordinates first and the pixels in the heads' order (``Dust3rNetwork.tile``).

    ``points_*`` (B, 3, *pixels) and ``conf_*`` (B, *pixels), float32.
    """

    points_i: Tensor
    conf_i: Tensor
    points_j: Tensor
    conf_j: Tensor


class Dust3rNetwork(nn.Module):
    """``encode`` once an image, ``decode`` once a pair.

    The state dict has the names and shapes of the published files. ``source`` says where the weights come from.
    """

    def __init__(self, config: NetworkConfig, source: ModelSource | None = None) -> None:
        super().__init__()
        self.config = config
        self.source = source or ModelSource()
        c = config
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.dec_dim))  # of CroCo's pretext task
        self.patch_embed = PatchEmbed(c.patch, c.enc_dim)
        self.enc_blocks = nn.ModuleList(EncoderBlock(c.enc_dim, c.enc_heads, c.mlp_ratio) for _ in range(c.enc_depth))
        self.enc_norm = norm(c.enc_dim)
        self.decoder_embed = nn.Linear(c.enc_dim, c.dec_dim)
        self.dec_blocks = nn.ModuleList(DecoderBlock(c.dec_dim, c.dec_heads, c.mlp_ratio) for _ in range(c.dec_depth))
        self.dec_norm = norm(c.dec_dim)
        self.dec_blocks2 = nn.ModuleList(DecoderBlock(c.dec_dim, c.dec_heads, c.mlp_ratio) for _ in range(c.dec_depth))
        self.downstream_head1 = make_head(c)
        self.downstream_head2 = make_head(c)
        self.enc_places = PlaceEmbed(c.enc_dim) if c.places else None
        self.dec_places = PlaceEmbed(c.dec_dim) if c.places else None
        self._enc_rotations, self._dec_rotations = rotation_caches(c)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mask_token.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the transformer blocks and of the tokens; heads and outputs are float32 always."""
        return self.patch_embed.proj.weight.dtype

    @property
    def tile(self) -> int:
        """The order of pixels in ``PlanarMaps``: tile by tile (T, tile^2), see ``tiles_from``; 0 for an image's."""
        return self.downstream_head1.tile

    def set_dtype(self, dtype: torch.dtype) -> Dust3rNetwork:
        """Compute the blocks in ``dtype`` (float32, bfloat16, float16); norms and heads stay float32."""
        for part in (self.patch_embed, self.enc_blocks, self.decoder_embed, self.dec_blocks, self.dec_blocks2):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(dtype)
        return self

    def prepare(self, size: tuple[int, int]) -> None:
        """Make the tables that images (H, W) need: code compiled around the network then finds them made."""
        grid = self._grid(size)
        for rotations in (self._enc_rotations, self._dec_rotations):
            rotations.get(grid, self.device)
        for places in (self.enc_places, self.dec_places):
            if places is not None:
                places.prepare(grid)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, H, W) in [-1, 1], RGB; sides are multiples of the patch size.

        N runs in raster order; the dtype is ``self.dtype``. Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        grid = self._grid((images.shape[2], images.shape[3]))
        rotation = self._enc_rotations.get(grid, images.device)
        x = self.enter_encoder(images, grid)
        for block in self.enc_blocks:
            x = block(x, rotation)
        return self.enc_norm(x).to(self.dtype)

    def decode(
        self, tokens_i: Tensor, tokens_j: Tensor, size_i: tuple[int, int], size_j: tuple[int, int] | None = None
    ) -> Pointmaps:
        """Pointmaps of B ordered pairs from their tokens (B, N_i, C) and (B, N_j, C).

        ``size_i`` and ``size_j`` are the images' (H, W) in pixels; the second is the first's when not given.
        Raises ValueError when tokens and sizes do not fit together.
        """
        size_j = size_j or size_i
        maps = self.decode_planar(tokens_i, tokens_j, size_i, size_j)
        i, j = ((self._grid(size), self.tile) for size in (size_i, size_j))
        return Pointmaps(
            image_from(maps.points_i, *i),
            image_from(maps.conf_i[:, None], *i)[..., 0],
            image_from(maps.points_j, *j),
            image_from(maps.conf_j[:, None], *j)[..., 0],
        )

    def decode_planar(
        self, tokens_i: Tensor, tokens_j: Tensor, size_i: tuple[int, int], size_j: tuple[int, int] | None = None
    ) -> PlanarMaps:
        """As ``decode``, without putting the pixels in the order of an image."""
        grid_i, grid_j = self._grid(size_i), self._grid(size_j or size_i)
        self._check_tokens(tokens_i, grid_i, "tokens_i")
        self._check_tokens(tokens_j, grid_j, "tokens_j")
        if len(tokens_i) != len(tokens_j):
            raise ValueError(f"tokens_i and tokens_j must be as many, got {len(tokens_i)} and {len(tokens_j)}")
        features_i, features_j = self._features(tokens_i, tokens_j, grid_i, grid_j)
        with torch.autocast(self.device.type, enabled=False):
            raw_i = self.downstream_head1(features_i, grid_i)
            raw_j = self.downstream_head2(features_j, grid_j)
        _, low, high = self.config.conf_mode
        return PlanarMaps(
            points_from(raw_i[:, :3]),
            confidence_from(raw_i[:, 3], low, high),
            points_from(raw_j[:, :3]),
            confidence_from(raw_j[:, 3], low, high),
        )

    def enter_encoder(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the encoder's first block reads, (B, N, C) float32, of images (B, 3, H, W)."""
        x = self.patch_embed(images).float()
        return x if self.enc_places is None else x + self.enc_places(grid)

    def enter_decoder(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a decoder's first block reads, (B, N, D) float32, of the encoder's tokens (B, N, C)."""
        x = self.decoder_embed(tokens.to(self.decoder_embed.weight.dtype)).float()
        return x if self.dec_places is None else x + self.dec_places(grid)

    def _features(
        self, tokens_i: Tensor, tokens_j: Tensor, grid_i: tuple[int, int], grid_j: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The stages the heads read. Both decoders take each other's *previous* output at every block."""
        rotation_i = self._dec_rotations.get(grid_i, tokens_i.device)
        rotation_j = self._dec_rotations.get(grid_j, tokens_j.device)
        x, y = self.enter_decoder(tokens_i, grid_i), self.enter_decoder(tokens_j, grid_j)
        outputs = {0: (tokens_i, tokens_j)}
        stages = self.downstream_head1.stages
        for k, (block_i, block_j) in enumerate(zip(self.dec_blocks, self.dec_blocks2, strict=True), start=1):
            x, y = block_i(x, y, rotation_i, rotation_j), block_j(y, x, rotation_j, rotation_i)
            if k in stages:
                outputs[k] = (x, y)
        outputs[len(self.dec_blocks)] = (self.dec_norm(x), self.dec_norm(y))
        return [outputs[k][0] for k in stages], [outputs[k][1] for k in stages]

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        patch = self.config.patch
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"image sides must be multiples of {patch} pixels, got {height}x{width}")
        return height // patch, width // patch

    def _check_tokens(self, tokens: Tensor, grid: tuple[int, int], name: str) -> None:
        expected = (grid[0] * grid[1], self.config.enc_dim)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(f"{name} must be (B, {expected[0]}, {expected[1]}), got {tuple(tokens.shape)}")


def count_parameters(model: nn.Module) -> int:
    """Learned numbers in a model, each counted once."""
    return sum(p.numel() for p in model.parameters())
