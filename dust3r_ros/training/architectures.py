"""The networks that can be trained from scratch, by name."""

from __future__ import annotations

import math

import torch
from torch import nn

from dust3r_ros.network import Dust3rNetwork, NetworkConfig
from dust3r_ros.network.heads import CHANNELS, LinearHead
from dust3r_ros.network.layers import DecoderBlock

ARCHITECTURES = {
    # Patches of 14 pixels fit 224x168, and half of it, without a rest.
    "tiny": NetworkConfig(
        img_size=(168, 224), patch=14, enc_dim=256, enc_depth=6, enc_heads=4, dec_dim=192, dec_depth=4, dec_heads=4,
        head="linear", places=True,
    ),
    "small": NetworkConfig(
        img_size=(168, 224), patch=14, enc_dim=384, enc_depth=8, enc_heads=6, dec_dim=256, dec_depth=4, dec_heads=4,
        head="linear", places=True,
    ),
    "224_linear": NetworkConfig(img_size=(224, 224), square=True, head="linear"),
    "512_dpt": NetworkConfig(img_size=(384, 512)),
}  # fmt: skip
_INITIAL_DEVIATION = 0.02
_HEAD_GAIN = 0.02


def initialised(model: Dust3rNetwork, generator: torch.Generator) -> Dust3rNetwork:
    """Start weights, drawn by a generator on the CPU: Xavier's for matrices, zero biases, a small mask token.

    The heads start near a plane one unit before the camera. The second decoder starts as the first, and each
    cross-attention asks for what looks like itself: its keys' projection starts as its queries', so that comparing
    two views need not be discovered.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                fan = module.weight[0].numel() + module.weight.shape[0]
                bound = (6 / fan) ** 0.5
                module.weight.copy_((torch.rand(module.weight.shape, generator=generator) * 2 - 1) * bound)
                if module.bias is not None:
                    module.bias.zero_()
        model.mask_token.copy_(torch.randn(model.mask_token.shape, generator=generator) * _INITIAL_DEVIATION)
        for block in model.dec_blocks:
            assert isinstance(block, DecoderBlock)
            block.cross_attn.projk.load_state_dict(block.cross_attn.projq.state_dict())
        for head in (model.downstream_head1, model.downstream_head2):
            last = head.proj if isinstance(head, LinearHead) else head.dpt.head[-1]
            assert isinstance(last, nn.Linear | nn.Conv2d)
            assert last.bias is not None
            last.weight.mul_(_HEAD_GAIN)
            last.bias.view(CHANNELS, -1)[2] = math.log(2.0)  # exp(log 2) - 1 = 1
    model.dec_blocks2.load_state_dict(model.dec_blocks.state_dict())
    return model
