"""The transformer blocks of CroCo v2 (Weinzaepfel et al. 2023): pre-norm ViT blocks with rotary positions.

The running sum of the residual branches stays float32; each branch computes in the dtype of its own weights,
so that a network with bfloat16 or float16 weights does not lose small updates over 36 blocks. Module names are
those of the published state dicts.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from dust3r_ros.network.rope import Rotation, rotate

NORM_EPS = 1e-6


def norm(dim: int) -> nn.LayerNorm:
    """Layer normalisation as every part of the network uses it."""
    return nn.LayerNorm(dim, eps=NORM_EPS)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class PatchEmbed(nn.Module):
    """Images to tokens, one a patch."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, C) in raster order."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with rotary positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        parts = self.qkv(x.to(self.qkv.weight.dtype)).chunk(3, dim=-1)
        query, key, value = (_split(part, self.heads) for part in parts)
        mixed = functional.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value)
        return self.proj(_merge(mixed))


class CrossAttention(nn.Module):
    """Attention of one view's tokens to the other's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """``x`` (B, N, C) asks ``memory`` (B, M, C); returns (B, N, C)."""
        x, memory = x.to(self.projq.weight.dtype), memory.to(self.projq.weight.dtype)
        query = rotate(_split(self.projq(x), self.heads), rotation)
        key = rotate(_split(self.projk(memory), self.heads), memory_rotation)
        value = _split(self.projv(memory), self.heads)
        return self.proj(_merge(functional.scaled_dot_product_attention(query, key, value)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.fc2(functional.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class EncoderBlock(nn.Module):
    """Self-attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, C) float32 to the same."""
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention to the other view, MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = Attention(dim, heads)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2 = norm(dim)
        self.norm3 = norm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.norm_y = norm(dim)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """``x`` (B, N, C) and the other view's ``memory`` (B, M, C), float32, to the new ``x``."""
        x = x + self.attn(self.norm1(x), rotation)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), rotation, memory_rotation)
        return x + self.mlp(self.norm3(x))
