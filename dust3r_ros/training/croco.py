"""Cross-view completion (CroCo, Weinzaepfel et al. 2022; CroCo v2, 2023): the pretext task before pointmaps.

Most of the first view is hidden. Its visible patches are encoded, and one decoder that reads the whole second view
fills in the hidden ones: that can only be done by finding them in the second view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dust3r_ros.network import Dust3rNetwork
from dust3r_ros.network.rope import Rotation, rotation_caches
from dust3r_ros.training.losses import completion_loss


@dataclass(frozen=True, eq=False)
class Mask:
    """``visible`` (B, V) and ``hidden`` (B, N - V) indices of tokens, the same number for every image of a batch."""

    visible: Tensor
    hidden: Tensor

    def is_hidden(self) -> Tensor:
        """(B, N) bool."""
        count = self.visible.shape[1] + self.hidden.shape[1]
        nothing = torch.zeros(len(self.hidden), count, dtype=torch.bool, device=self.hidden.device)
        return nothing.scatter(1, self.hidden, True)


def random_mask(batch: int, tokens: int, ratio: float, generator: torch.Generator) -> Mask:
    """Hide ``ratio`` of the tokens of each image, rounded, at least one and not all; on the generator's device."""
    hidden = min(max(round(ratio * tokens), 1), tokens - 1)
    order = torch.rand(batch, tokens, generator=generator, device=generator.device).argsort(dim=1)
    return Mask(order[:, hidden:].sort(dim=1).values, order[:, :hidden].sort(dim=1).values)


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images (B, 3, H, W) as patches (B, N, 3 * patch^2), N in raster order."""
    return functional.unfold(images, kernel_size=patch, stride=patch).transpose(1, 2)


class CompletionHead(nn.Module):
    """From the decoder's tokens to the pixels of their patches; for this task only."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 3 * patch**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to (B, N, 3 * patch^2) float32."""
        return self.proj(tokens).float()


class Completion:
    """The task on a network's encoder and its first decoder."""

    def __init__(self, model: Dust3rNetwork, head: CompletionHead) -> None:
        self._model, self._head = model, head
        self._enc_rotations, self._dec_rotations = rotation_caches(model.config)

    def loss(self, images: Tensor, mask: Mask) -> Tensor:
        """The error over the hidden patches of the first of two views, images (B, 2, 3, H, W) in [-1, 1]."""
        first, second = images[:, 0], images[:, 1]
        patch = self._model.config.patch
        predicted = self.complete(first, second, mask)
        return completion_loss(predicted, patches_of(first, patch), mask.is_hidden())

    def complete(self, first: Tensor, second: Tensor, mask: Mask) -> Tensor:
        """The first view's patches (B, N, 3 * patch^2), each as ``completion_loss`` normalises it.

        ``first`` and ``second`` (B, 3, H, W). Hidden pixels of the first are not read.
        """
        model = self._model
        grid = (first.shape[2] // model.config.patch, first.shape[3] // model.config.patch)
        rotation = self._dec_rotations.get(grid, first.device)
        seen = model.decoder_embed(self._encode_visible(first, mask, grid)).float()
        memory = model.enter_decoder(model.encode(second), grid)
        tokens = model.mask_token.to(seen.dtype).repeat(len(first), grid[0] * grid[1], 1)
        x = tokens.scatter(1, mask.visible[..., None].expand(-1, -1, seen.shape[-1]), seen)
        x = x if model.dec_places is None else x + model.dec_places(grid)
        for block in model.dec_blocks:
            x = block(x, memory, rotation, rotation)
        return self._head(model.dec_norm(x))

    def _encode_visible(self, images: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        model = self._model
        table = self._enc_rotations.get(grid, images.device)
        rotation = Rotation(table.cos[mask.visible][:, None], table.sin[mask.visible][:, None])
        x = model.enter_encoder(images, grid)
        x = x.gather(1, mask.visible[..., None].expand(-1, -1, x.shape[-1]))
        for block in model.enc_blocks:
            x = block(x, rotation)
        return model.enc_norm(x)


def share_decoder(model: Dust3rNetwork) -> None:
    """Start the second decoder from the first, as DUSt3R does after this task (section 3.2)."""
    model.dec_blocks2.load_state_dict(model.dec_blocks.state_dict())
