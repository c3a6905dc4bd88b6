"""The published way of running the network on a stream, as far as its method goes: what this package is compared with.

DUSt3R's section 3.1 defines the network as a function of two images, and its own code runs it so: both images of every
ordered pair are encoded anew, one pair at a time, in float32. The network is this package's, so a difference is one
of method, not of two codes; what the published code loses beyond that is not in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dust3r_ros.network import Dust3rNetwork, Pointmaps


class ReferenceRunner:
    """Pairs by a float32 network; with ``autocast`` matrix products are bfloat16, as PyTorch does it by itself."""

    def __init__(self, model: Dust3rNetwork, *, autocast: bool = False) -> None:
        if model.dtype != torch.float32:
            raise ValueError(f"model must be float32, got {model.dtype}")
        self._model = model.eval()
        self._autocast = autocast

    @torch.inference_mode()
    def pair(self, image_i: Tensor, image_j: Tensor) -> Pointmaps:
        """The pointmaps of an ordered pair of images (1, 3, H, W) in [-1, 1] of one size."""
        size = (image_i.shape[2], image_i.shape[3])
        with torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._autocast):
            return self._model.decode(self._model.encode(image_i), self._model.encode(image_j), size)


def stream_pairs(keyframes: int, window: int) -> int:
    """Ordered pairs of a stream of keyframes, each paired both ways with up to ``window`` before it."""
    return 2 * sum(min(k, window) for k in range(keyframes))
