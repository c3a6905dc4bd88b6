"""Help for the cross-attention: what a token asks for is to look like the token that shows the same surface.

Left to the pointmaps alone, a network learns the depth of single views long before it learns to compare two; rendered
pairs say which tokens belong together, and this objective, used in training only, brings that forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dust3r_ros.network import Dust3rNetwork
from dust3r_ros.network.layers import CrossAttention, DecoderBlock
from dust3r_ros.training.losses import matching_loss

TEMPERATURE = 0.1


class AttentionProbe:
    """Keeps queries and keys of the cross-attentions of the decoders' middle blocks, of the last forward pass.

    It hangs on to the model until ``close``: hooks that stay are compiled with the model.
    """

    def __init__(self, model: Dust3rNetwork) -> None:
        depth = len(model.dec_blocks)
        chosen = sorted({depth // 4, depth // 2, (3 * depth) // 4})
        self._attentions = [
            [_cross_attention(decoder[k]) for k in chosen] for decoder in (model.dec_blocks, model.dec_blocks2)
        ]
        self._seen: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._keep)
            for decoder in self._attentions
            for attention in decoder
            for layer in (attention.projq, attention.projk)
        ]

    def close(self) -> None:
        """Let go of the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def loss(self, match_ij: Tensor, match_ji: Tensor) -> Tensor:
        """Mean matching loss of the last forward pass, given both directions' matches (B, N) as ``token_matches``."""
        losses = [
            matching_loss(self._seen[id(a.projq)].float(), self._seen[id(a.projk)].float(), match, TEMPERATURE)
            for decoder, match in zip(self._attentions, (match_ij, match_ji), strict=True)
            for a in decoder
        ]
        self._seen.clear()
        return torch.stack(losses).mean()

    def _keep(self, layer: Any, inputs: Any, output: Tensor) -> None:
        self._seen[id(layer)] = output


def _cross_attention(block: nn.Module) -> CrossAttention:
    assert isinstance(block, DecoderBlock)
    return block.cross_attn
