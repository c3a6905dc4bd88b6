"""The network as it runs where nothing is learnt: the same function in fewer and longer operations.

Beside ``layers``, which is what is trained and stored:

- the matrices of queries, keys and values that read the same tokens are one;
- the rows of queries and keys are in an order in which the two numbers that turn together are neighbours, so that a
  rotary embedding is one complex product. Scalar products of queries and keys do not depend on the order;
- bfloat16 matrices on a CPU are kept in the layout in which oneDNN multiplies them, which otherwise copies them at
  every product; and wide hidden layers are computed in parts, because it is slow where a row of its input is long;
- what a block adds to its tokens after its first branch is added in place.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dust3r_ros.network.layers import Attention, CrossAttention, DecoderBlock, EncoderBlock, Mlp, PatchEmbed
from dust3r_ros.network.model import Dust3rNetwork
from dust3r_ros.network.rope import Rotation, neighbours, rotate_neighbours

_TYPICAL_ROWS = 256  # tokens in a product, which the layout of the matrices is chosen for
_WIDEST = 2048  # channels of a part of a hidden layer: from 4096 to 1024, two parts took 0.8 of the time of one


def for_inference(model: Dust3rNetwork) -> Dust3rNetwork:
    """A network in eval mode that computes what ``model`` does, faster, on the device and in the dtype it has now.

    Weights that need no rearranging are shared with ``model``. It can neither be trained, nor stored, nor moved, nor
    change its dtype.
    """
    fast = copy.copy(model)
    fast._modules = dict(model._modules)
    with torch.no_grad():
        for name in ("patch_embed", "enc_blocks", "decoder_embed", "dec_blocks", "dec_blocks2"):
            setattr(fast, name, _fast(getattr(model, name)))
    return fast.eval()


def _fast(module: nn.Module) -> nn.Module:
    match module:
        case Attention():
            return FastAttention(module)
        case CrossAttention():
            return FastCrossAttention(module)
        case Mlp():
            return FastMlp(module)
        case EncoderBlock():
            return FastEncoderBlock(module)
        case DecoderBlock():
            return FastDecoderBlock(module)
        case PatchEmbed():
            return FastPatchEmbed(module)
        case nn.Linear():
            return _linear((module.weight, module.bias))
    copied = copy.copy(module)
    copied._modules = {name: child and _fast(child) for name, child in module._modules.items()}
    return copied


class FastLinear(nn.Module):
    """A linear layer with its matrix in the layout that the processor multiplies best."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.packed = _packs(weight)
        self.bias = bias.detach()
        self.weight = weight.detach()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), _TYPICAL_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) in any dtype to (B, N, D) in the weights'."""
        x = x.to(self.bias.dtype)
        if self.packed:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return product
        return functional.linear(x, self.weight, self.bias)

    def _apply(self, *_: Any, **__: Any) -> FastLinear:
        raise TypeError("a network for inference cannot be moved or changed: make it anew of the one it was made of")

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        raise TypeError("a network for inference cannot be stored: store the one it was made of")


class FastAttention(nn.Module):
    """``Attention``."""

    def __init__(self, slow: Attention) -> None:
        super().__init__()
        self.heads = slow.heads
        order = neighbours(slow.heads, slow.proj.in_features)
        query, key, value = zip(slow.qkv.weight.chunk(3), slow.qkv.bias.chunk(3), strict=True)
        self.qkv = _linear(_in_order(query, order), _in_order(key, order), value)
        self.proj = _linear((slow.proj.weight, slow.proj.bias))

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        parts = self.qkv(x).unflatten(-1, (3 * self.heads, -1))  # (B, N, 3 heads, D)
        query, key = rotate_neighbours(parts[:, :, : 2 * self.heads], rotation).chunk(2, dim=2)
        return self.proj(_attend(query, key, parts[:, :, 2 * self.heads :]))


class FastCrossAttention(nn.Module):
    """``CrossAttention``."""

    def __init__(self, slow: CrossAttention) -> None:
        super().__init__()
        self.heads = slow.heads
        order = neighbours(slow.heads, slow.proj.in_features)
        query, key, value = ((layer.weight, layer.bias) for layer in (slow.projq, slow.projk, slow.projv))
        self.query = _linear(_in_order(query, order))
        self.key_value = _linear(_in_order(key, order), value)
        self.proj = _linear((slow.proj.weight, slow.proj.bias))

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """``x`` (B, N, C) asks ``memory`` (B, M, C); returns (B, N, C)."""
        query = rotate_neighbours(self.query(x).unflatten(-1, (self.heads, -1)), rotation)
        key, value = self.key_value(memory).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)
        return self.proj(_attend(query, rotate_neighbours(key, memory_rotation), value))


class FastMlp(nn.Module):
    """``Mlp``."""

    def __init__(self, slow: Mlp) -> None:
        super().__init__()
        up, down = slow.fc1, slow.fc2
        self.dtype = up.weight.dtype
        parts = -(-up.out_features // _WIDEST) if _packs(up.weight) else 1
        biases = [down.bias] + [torch.zeros_like(down.bias)] * (parts - 1)
        self.up = nn.ModuleList(map(FastLinear, up.weight.chunk(parts), up.bias.chunk(parts)))
        self.down = nn.ModuleList(map(FastLinear, down.weight.chunk(parts, dim=1), biases))

    def add_to(self, x: Tensor, normed: Tensor) -> Tensor:
        """Add to ``x`` (B, N, C) float32, in place, what ``Mlp`` makes of ``normed`` (B, N, C); returns ``x``."""
        normed = normed.to(self.dtype)  # once for all parts
        for up, down in zip(self.up, self.down, strict=True):
            x += down(functional.gelu(up(normed)))
        return x


class FastEncoderBlock(nn.Module):
    """``EncoderBlock``."""

    def __init__(self, slow: EncoderBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = slow.norm1, slow.norm2
        self.attn = FastAttention(slow.attn)
        self.mlp = FastMlp(slow.mlp)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, C) float32 to the same."""
        x = x + self.attn(self.norm1(x), rotation)  # a new one: the given tokens stay as they are
        return self.mlp.add_to(x, self.norm2(x))


class FastDecoderBlock(nn.Module):
    """``DecoderBlock``."""

    def __init__(self, slow: DecoderBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = slow.norm1, slow.norm2, slow.norm3, slow.norm_y
        self.attn = FastAttention(slow.attn)
        self.cross_attn = FastCrossAttention(slow.cross_attn)
        self.mlp = FastMlp(slow.mlp)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """``x`` (B, N, C) and the other view's ``memory`` (B, M, C), float32, to the new ``x``."""
        x = x + self.attn(self.norm1(x), rotation)  # a new one: the other view's block reads the given one
        x += self.cross_attn(self.norm2(x), self.norm_y(memory), rotation, memory_rotation)
        return self.mlp.add_to(x, self.norm3(x))


class FastPatchEmbed(nn.Module):
    """``PatchEmbed``: patches do not overlap, so their convolution is a linear layer."""

    def __init__(self, slow: PatchEmbed) -> None:
        super().__init__()
        assert slow.proj.bias is not None
        self.patch = slow.proj.kernel_size[0]
        self.proj = FastLinear(slow.proj.weight.flatten(1), slow.proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, C) in raster order."""
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        cut = images.to(self.proj.bias.dtype).unflatten(3, (columns, self.patch)).unflatten(2, (rows, self.patch))
        return self.proj(cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


@functools.cache
def _can_pack() -> bool:
    """Whether this PyTorch can keep bfloat16 matrices in oneDNN's layout."""
    wanted = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    there = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in wanted)
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packs(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _can_pack()


def _linear(*parts: tuple[Tensor, Tensor]) -> FastLinear:
    """One layer of the (weight, bias) of several that read the same input."""
    weights, biases = zip(*parts, strict=True)
    if len(parts) == 1:  # nothing to copy
        return FastLinear(weights[0], biases[0])
    return FastLinear(torch.cat(weights), torch.cat(biases))


def _in_order(part: tuple[Tensor, Tensor], order: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = part
    return weight[order], bias[order]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, N, heads, D) each, to (B, N, heads D)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
