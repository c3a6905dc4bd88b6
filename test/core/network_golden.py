"""Weights and images anyone can rebuild, of which the golden outputs of the published implementation were made.

The rule: README of the golden data. Every weight is drawn from a generator seeded by its name.
"""

import argparse
import math
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dust3r_ros.network import Dust3rNetwork, NetworkConfig

CONFIGS = {
    "small_linear": NetworkConfig(
        enc_dim=96, enc_depth=3, enc_heads=6, dec_dim=64, dec_depth=2, dec_heads=4, head="linear"
    ),
    "small_dpt": NetworkConfig(enc_dim=96, enc_depth=4, enc_heads=6, dec_dim=64, dec_depth=12, dec_heads=4, head="dpt"),
    "vitl_linear": NetworkConfig(head="linear"),
    "vitl_512_dpt": NetworkConfig(),
}
MINI = NetworkConfig(
    img_size=(48, 64), enc_dim=32, enc_depth=2, enc_heads=2, dec_dim=16, dec_depth=4, dec_heads=2, dpt_dim=16
)


def golden_weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) >= 2:
        return noise / np.float32(math.sqrt(math.prod(shape[1:])))
    return 1 + np.float32(0.1) * noise if name.endswith(".weight") else np.float32(0.1) * noise


def golden_image(name: str, height: int, width: int) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    low = generator.standard_normal((3, height // 16, width // 16))
    fine = 0.2 * generator.standard_normal((3, height, width))
    return torch.tensor(np.tanh(0.6 * np.kron(low, np.ones((1, 16, 16))) + fine), dtype=torch.float32)[None]


def meta_model(config: NetworkConfig) -> Dust3rNetwork:
    with torch.device("meta"):
        return Dust3rNetwork(config)


def golden_state(config: NetworkConfig, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict by the golden rule, of the names that start with ``prefix``."""
    shapes = {n: tuple(v.shape) for n, v in meta_model(config).state_dict().items() if n.startswith(prefix)}
    with ThreadPoolExecutor(2) as pool:
        arrays = pool.map(golden_weight, shapes.keys(), shapes.values())
        return {name: torch.from_numpy(array) for name, array in zip(shapes, arrays, strict=True)}


def golden_model(config: NetworkConfig) -> Dust3rNetwork:
    model = meta_model(config)
    model.load_state_dict(golden_state(config), strict=True, assign=True)
    return model.eval()


def constructor(config: NetworkConfig) -> str:
    """The text in which the publisher writes an architecture."""
    return (
        f"AsymmetricCroCo3DStereo(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', "
        f"img_size={config.img_size}, head_type='{config.head}', output_mode='pts3d', "
        f"depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), enc_embed_dim={config.enc_dim}, "
        f"enc_depth={config.enc_depth}, enc_num_heads={config.enc_heads}, dec_embed_dim={config.dec_dim}, "
        f"dec_depth={config.dec_depth}, dec_num_heads={config.dec_heads})"
    )


def write_pth(path: Path, config: NetworkConfig, state: Mapping[str, torch.Tensor], text: str | None = None) -> Path:
    """A checkpoint in the publisher's form."""
    args = argparse.Namespace(model=constructor(config) if text is None else text, epochs=90, output_dir="out")
    torch.save({"args": args, "model": dict(state)}, path)
    return path
