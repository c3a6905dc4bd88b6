"""What a real camera does to a perfect picture: exposure, cast, vignetting, blur, noise, JPEG; and other light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The quantisation tables of ITU-T T.81, annex K.1, at quality 50
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66,
    *(99,) * 38,
)  # fmt: skip
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF
_BLUR_REACH = 3  # pixels
_MOST_SATURATION = 1.5  # times what it was
_TINT_STOPS = 0.3  # of each channel, either way
_LIGHT_STOPS = 1.2  # in the image's upper and lower edge, either way, and half as much at its sides
_LIGHT_GRID = (4, 5)  # rows, columns


@dataclass(frozen=True)
class PhotometricRange:
    """How far each effect may go; every image draws its own strengths between none and these."""

    exposure_stops: float = 0.6
    gamma: float = 0.25  # exponent from 1 / (1 + gamma) to 1 + gamma
    cast: float = 0.12  # of each channel
    vignette: float = 0.4  # light lost in the corners
    blur_px: float = 1.0  # standard deviation
    noise: float = 0.03  # standard deviation at white
    jpeg_share: float = 0.5  # of the images
    jpeg_quality: tuple[float, float] = (30.0, 95.0)


def degrade(images: Tensor, generator: torch.Generator, limits: PhotometricRange | None = None) -> Tensor:
    """Images (..., H, W, 3) in [0, 1] as cameras with random flaws would take them, of the same form.

    Each image is treated on its own; the generator is on the images' device. H and W are multiples of 16 or are padded
    for the JPEG step. The geometry does not change.
    """
    limits = limits or PhotometricRange()
    shaped = images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)
    count = len(shaped)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return _uniform(generator, low, high, count, channels, 1, 1)

    result = _blur(shaped, limits.blur_px * uniform(0, 1) ** 2)
    result = result * _vignette(shaped.shape[-2:], images.device, limits.vignette * uniform(0, 1) ** 2)
    gain = 2 ** uniform(-limits.exposure_stops, limits.exposure_stops) * (1 + uniform(-limits.cast, limits.cast, 3))
    exponent = (1 + limits.gamma) ** uniform(-1, 1)
    result = (result * gain).clamp(min=1e-4).pow(exponent)
    grain = torch.randn(result.shape, generator=generator, device=images.device)
    strength = limits.noise * uniform(0, 1) ** 2
    result = (result + grain * strength * (0.3 + result.clamp(0, 1)).sqrt()).clamp(0, 1)
    compressed = jpeg(result, uniform(*limits.jpeg_quality).flatten())
    result = torch.where(uniform(0, 1) < limits.jpeg_share, compressed, result)
    return result.permute(0, 2, 3, 1).reshape(images.shape)


@dataclass(frozen=True, eq=False)
class OtherLight:
    """Other colours and uneven light for N pairs of views.

    ``palettes`` (N, 3, 3): matrices for RGB columns that leave grey nearly grey. ``stops`` (N, 2, h, w): how much
    brighter each view becomes, powers of two at coarse places all over the image; smooth in between.
    """

    palettes: Tensor
    stops: Tensor

    def __call__(self, rgb: Tensor) -> Tensor:
        """The pairs (N, 2, H, W, 3) uint8 in this light; what gets too bright is white."""
        pixels = (rgb.float().flatten(1, 3) @ self.palettes.transpose(-1, -2)).view(rgb.shape)
        gain = torch.nn.functional.interpolate(self.stops, rgb.shape[2:4], mode="bicubic", align_corners=True).exp2_()
        return pixels.mul_(gain[..., None]).round_().clamp_(0, 255).to(torch.uint8)


def random_light(count: int, generator: torch.Generator) -> OtherLight:
    """Light for ``count`` pairs: what is learnt of shape must not hang on colours or on what is bright.

    In rendered scenes a bright upper half is mostly sky, in the world often a lit wall.
    Hues turn mostly by little, saturation is scaled by 0 to ``_MOST_SATURATION``. Brightness rises or falls from top to
    bottom and from side to side, with bumps.
    """
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return _uniform(generator, low, high, count, *shape)

    angle = math.pi * uniform(-1, 1, 1, 1) * uniform(0, 1, 1, 1)
    grey = torch.full((3, 3), 1 / 3, device=device)
    turn = torch.linalg.cross(torch.eye(3, device=device), torch.full((3, 3), 3**-0.5, device=device))
    chroma = angle.cos() * (torch.eye(3, device=device) - grey) + angle.sin() * turn
    palettes = grey + _MOST_SATURATION * uniform(0, 1, 1, 1) * chroma
    tint = torch.exp2(_TINT_STOPS * uniform(-1, 1, 3, 1))
    down, across = (torch.linspace(-1, 1, n, device=device) for n in _LIGHT_GRID)
    slope = uniform(-1, 1, 2, 1, 1) * down[:, None] + 0.5 * uniform(-1, 1, 2, 1, 1) * across
    bumps = 0.4 * torch.randn((count, 2, *_LIGHT_GRID), generator=generator, device=device)
    return OtherLight(tint * palettes, _LIGHT_STOPS * uniform(0, 1, 2, 1, 1) * (slope + bumps))


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] after JPEG at ``quality`` (N,), 1 to 100, chroma at half resolution.

    The loss of the baseline codec (ITU-T T.81 with JFIF's colours), without the file.
    """
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = images.new_tensor(_TO_YCC)
    ycc = torch.einsum("dc,nchw->ndhw", matrix, padded * 255)
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality) / 100
    luma = _quantised(ycc[:, :1] - 128, _table(_LUMA, scale)) + 128
    small = torch.nn.functional.avg_pool2d(ycc[:, 1:], 2)
    chroma = _quantised(small, _table(_CHROMA, scale))
    chroma = torch.nn.functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    back = torch.einsum("dc,nchw->ndhw", torch.linalg.inv(matrix), torch.cat([luma, chroma], 1))
    return (back[..., :height, :width].round() / 255).clamp(0, 1)


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _table(values: tuple[int, ...], scale: Tensor) -> Tensor:
    table = scale.new_tensor(values).view(1, 1, 1, 1, 8, 8) * scale.view(-1, 1, 1, 1, 1, 1)
    return table.round().clamp(1, 255)


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """A plane (N, C, H, W) after the discrete cosine transform of 8x8 blocks is rounded to the table's steps."""
    n, c, height, width = plane.shape
    k = torch.arange(8, device=plane.device)
    basis = 0.5 * torch.cos((2 * k + 1) * k[:, None] * math.pi / 16)
    basis[0] *= math.sqrt(0.5)
    blocks = plane.reshape(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = ((basis @ blocks @ basis.T) / table).round() * table
    restored = basis.T @ coefficients @ basis
    return restored.transpose(3, 4).reshape(n, c, height, width)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation for each image (N, 1, 1, 1), pixels."""
    n, c, height, _ = images.shape
    offsets = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    padded = torch.nn.functional.pad(images, (_BLUR_REACH,) * 4, mode="replicate").reshape(
        1, n * c, height + 2 * _BLUR_REACH, -1
    )
    across = torch.nn.functional.conv2d(padded, kernel[:, None, None], groups=n * c)
    return torch.nn.functional.conv2d(across, kernel[:, None, :, None], groups=n * c).reshape(images.shape)


def _vignette(size: torch.Size, device: torch.device, strength: Tensor) -> Tensor:
    y = torch.linspace(-1, 1, size[0], device=device)[:, None]
    x = torch.linspace(-1, 1, size[1], device=device)
    return 1 - strength * (x * x + y * y) / 2
