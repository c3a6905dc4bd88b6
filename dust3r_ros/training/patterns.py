"""Procedural textures: square, tileable colour patterns with detail at many scales.

Every pattern takes a ``Brush`` and returns (S, S, 3) float32 in [0, 1] whose opposite borders match.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Brush:
    """Random numbers and noise for one texture of ``size`` pixels a side."""

    size: int
    generator: torch.Generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform random numbers."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        """One uniform random number."""
        return float(self.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """One random integer, ``low`` to ``high`` inclusive."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def grid(self) -> tuple[Tensor, Tensor]:
        """X and y of the pixel centres, each (S, S), from 0 to 1."""
        line = (torch.arange(self.size) + 0.5) / self.size
        y, x = torch.meshgrid(line, line, indexing="ij")
        return x, y

    def noise(self, slope: float = 1.0, stretch: float = 1.0, low: float = 1.0) -> Tensor:
        """Noise (S, S) from 0 to 1 whose amplitude falls as frequency^-slope from ``low`` cycles a tile.

        ``stretch`` > 1 draws it out along x, as wood grain. Periodic because it is made from its spectrum.
        """
        frequency = torch.fft.fftfreq(self.size, 1 / self.size)
        fy, fx = torch.meshgrid(frequency, frequency[: self.size // 2 + 1].abs(), indexing="ij")
        radius = ((fx * stretch) ** 2 + fy**2).sqrt()
        amplitude = radius.clamp(min=low).pow(-slope)
        amplitude[0, 0] = 0
        white = torch.randn((self.size, self.size), generator=self.generator)
        spread = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(self.size, self.size))
        return (0.5 + 0.2 * spread / spread.std()).clamp(0, 1)

    def colour(self) -> Tensor:
        """A random colour (3,), more often muted than vivid."""
        grey = self.number(0.15, 0.9)
        vivid = self.number(0.0, 1.0) ** 2 * 0.35
        warm = self.number(-0.03, 0.12) * torch.tensor([1.0, 0.2, -1.0])
        return (grey + warm + vivid * self.uniform(-1, 1, 3)).clamp(0.03, 0.97)

    def ramp(self, value: Tensor, colours: int) -> Tensor:
        """Colours (S, S, 3) for values in [0, 1] through a random palette."""
        palette = torch.stack([self.colour() for _ in range(colours)])
        place = value.clamp(0, 1) * (colours - 1)
        lower = place.floor().long().clamp(max=colours - 2)
        share = (place - lower)[..., None]
        return palette[lower] * (1 - share) + palette[lower + 1] * share

    def rough(self, image: Tensor, strength: float) -> Tensor:
        """The image with its brightness varied by fine and coarse noise."""
        grain = self.noise(self.number(0.3, 1.2)) + 0.6 * self.noise(self.number(1.2, 2.0)) - 0.8
        return (image * (1 + strength * grain[..., None])).clamp(0, 1)


def clouds(brush: Brush) -> Tensor:
    """Noise through a palette: plaster, stone, rust."""
    value = brush.noise(brush.number(0.7, 1.8), low=brush.number(1, 6))
    return brush.rough(brush.ramp(value, brush.integer(2, 5)), 0.5)


def marble(brush: Brush) -> Tensor:
    """Veins: sine waves bent by noise."""
    x, y = brush.grid()
    phase = brush.integer(1, 4) * x + brush.integer(-3, 3) * y + brush.number(0.5, 2.0) * brush.noise(1.6)
    value = (0.5 + 0.5 * torch.sin(2 * math.pi * phase)) ** brush.number(0.5, 3)
    return brush.rough(brush.ramp(value, brush.integer(2, 4)), 0.4)


def planks(brush: Brush) -> Tensor:
    """Wooden boards with grain, each of its own tone, with dark joints."""
    x, y = brush.grid()
    rows = brush.integer(3, 10)
    row = (y * rows).floor().long()
    along = (x + brush.uniform(0, 1, rows)[row]) % 1.0
    boards = brush.integer(1, 3)
    board = (along * boards).floor().long()
    tone = brush.uniform(0.75, 1.15, rows, boards)[row, board]
    grain = brush.noise(1.1, stretch=brush.number(6, 20))
    rings = 0.5 + 0.5 * torch.sin(40 * grain + 2 * math.pi * rows * y)
    wood = brush.ramp(0.6 * grain + 0.4 * rings, 3) * tone[..., None]
    joint = _near_line(y * rows, 0.03) | _near_line(along * boards, 0.006)
    return brush.rough(torch.where(joint[..., None], wood * 0.35, wood), 0.25)


def bricks(brush: Brush) -> Tensor:
    """Brickwork or tiles: cells in rows with joints, each cell of its own tone."""
    x, y = brush.grid()
    rows, columns = 2 * brush.integer(1, 8), brush.integer(2, 8)
    row = (y * rows).floor().long()
    shifted = (x * columns + brush.number(0, 1) * (row % 2)) % columns
    tone = brush.uniform(0.6, 1.2, rows, columns)[row, shifted.floor().long() % columns]
    body = brush.ramp(brush.noise(1.0), 3) * tone[..., None]
    width = brush.number(0.02, 0.09)
    joint = _near_line(y * rows, width) | _near_line(shifted, width * columns / rows)
    return brush.rough(torch.where(joint[..., None], brush.colour(), body), 0.5)


def checker(brush: Brush) -> Tensor:
    """Checks or stripes of two surfaces."""
    x, y = brush.grid()
    nx, ny = 2 * brush.integer(0, 5), 2 * brush.integer(1, 6)
    odd = ((x * nx).floor() + (y * ny).floor()) % 2 == 1
    one, two = brush.ramp(brush.noise(1.2), 2), brush.ramp(brush.noise(1.2), 2)
    return brush.rough(torch.where(odd[..., None], one, two), 0.5)


def cobbles(brush: Brush) -> Tensor:
    """Cells around random points: cobbles, cracked earth, leather (Worley 1996)."""
    count = brush.integer(12, 90)
    points, tones = brush.uniform(0, 1, count, 2), brush.uniform(0.5, 1.2, count)
    x, y = brush.grid()
    nearest, second = torch.full_like(x, 9.0), torch.full_like(x, 9.0)
    tone = torch.ones_like(x)
    for (px, py), own in zip(points.tolist(), tones.tolist()):
        dx, dy = (x - px + 0.5) % 1 - 0.5, (y - py + 0.5) % 1 - 0.5
        distance = (dx * dx + dy * dy).sqrt()
        second = torch.minimum(second, torch.maximum(distance, nearest))
        tone = torch.where(distance < nearest, own, tone)
        nearest = torch.minimum(nearest, distance)
    border = ((second - nearest) * math.sqrt(count) * brush.number(2, 8)).clamp(0, 1)
    body = brush.ramp(brush.noise(1.0), 3) * tone[..., None]
    return brush.rough(brush.colour() * (1 - border[..., None]) + body * border[..., None], 0.5)


def speckle(brush: Brush) -> Tensor:
    """Spots of several sizes on a ground: terrazzo, gravel, carpet, leaves."""
    image = brush.ramp(brush.noise(1.5), 2)
    for _ in range(brush.integer(1, 4)):
        spots = brush.noise(0.3, low=brush.number(8, 60), stretch=brush.number(0.5, 2)) > brush.number(0.6, 0.85)
        image = torch.where(spots[..., None], brush.colour(), image)
    return brush.rough(image, 0.6)


def collage(brush: Brush) -> Tensor:
    """Overlapping discs and rectangles: posters, prints, stickers."""
    x, y = brush.grid()
    image = brush.ramp(brush.noise(1.5), 2)
    for _ in range(brush.integer(15, 60)):
        cx, cy, angle = brush.number(0, 1), brush.number(0, 1), brush.number(0, math.pi)
        rx, ry = (0.012 * (15 ** brush.number(0, 1)) for _ in range(2))
        dx, dy = (x - cx + 0.5) % 1 - 0.5, (y - cy + 0.5) % 1 - 0.5
        a, b = (dx * math.cos(angle) + dy * math.sin(angle)) / rx, (dy * math.cos(angle) - dx * math.sin(angle)) / ry
        inside = a * a + b * b < 1 if brush.integer(0, 2) == 0 else (a.abs() < 1) & (b.abs() < 1)
        image = torch.where(inside[..., None], brush.colour(), image)
    return brush.rough(image, 0.35)


def lettering(brush: Brush) -> Tensor:
    """Lines of blocky random glyphs of different sizes: pages, signs, packaging."""
    image = brush.ramp(brush.noise(1.5), 2)
    image = 0.35 * image + 0.65 * brush.colour()
    top = 0
    while top < brush.size:
        cell = max(1, round(brush.size / 256 * brush.integer(1, 5)))  # pixels of a glyph's dot
        height = min(9 * cell, brush.size - top)
        glyphs = brush.size // (6 * cell)
        dots = brush.uniform(0, 1, 7, glyphs, 5) > 0.5
        dots &= (brush.uniform(0, 1, 1, glyphs, 1) > 0.18) & (top + 9 * cell <= brush.size)
        line = (
            torch.nn.functional.pad(dots, (0, 1)).reshape(7, -1).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
        )
        rows = image[top : top + height][: line.shape[0], : line.shape[1]]
        line = line[: rows.shape[0]]
        rows[line] = brush.colour()
        top += height
    return brush.rough(image, 0.25)


def spines(brush: Brush) -> Tensor:
    """Upright stripes of random widths and tones with bands: books on shelves, curtains, cladding."""
    x, y = brush.grid()
    shelves, count = brush.integer(1, 4), brush.integer(8, 40)
    edges = brush.uniform(0, 1, count).sort().values
    index = torch.bucketize(x.contiguous(), edges) % count + count * (y * shelves).floor().long()
    palette = torch.stack([brush.colour() for _ in range(count * shelves)])
    heights = brush.uniform(0.0, 0.35, count * shelves)[index]
    within = (y * shelves) % 1
    band = ((within - brush.uniform(0.3, 0.9, count * shelves)[index]).abs() < 0.04) & (within > heights)
    image = torch.where((within > heights)[..., None], palette[index], palette[index] * 0.15)
    return brush.rough(torch.where(band[..., None], 1 - image, image), 0.4)


def facade(brush: Brush) -> Tensor:
    """Windows with frames, panes and sills in a rough wall."""
    x, y = brush.grid()
    rows, columns = brush.integer(2, 4), brush.integer(2, 5)
    row, column = (y * rows).floor().long(), (x * columns).floor().long()
    u, v = (x * columns) % 1 - 0.5, (y * rows) % 1 - 0.5
    half_u, half_v, frame = brush.number(0.2, 0.36), brush.number(0.25, 0.4), brush.number(0.02, 0.06)
    wall = brush.rough(brush.ramp(brush.noise(1.2), 3), 0.6)
    glass = brush.rough(brush.colour() * brush.uniform(0.2, 1.3, rows, columns)[row, column][..., None], 0.5)
    in_frame = (u.abs() < half_u) & (v.abs() < half_v)
    in_glass = (u.abs() < half_u - frame) & (v.abs() < half_v - frame)
    bars = (u.abs() < frame / 3) | ((v + brush.number(-0.1, 0.1)).abs() < frame / 3)
    sill = (u.abs() < half_u + frame) & ((v - half_v).abs() < frame)
    image = torch.where((in_frame | sill)[..., None], brush.colour(), wall)
    return brush.rough(torch.where((in_glass & ~bars)[..., None], glass, image), 0.2)


def weave(brush: Brush) -> Tensor:
    """A few waves in random directions: fabric, wallpaper, rugs."""
    x, y = brush.grid()
    value = torch.zeros_like(x)
    for _ in range(brush.integer(3, 7)):
        kx, ky = brush.integer(-14, 14), brush.integer(-14, 14)
        value += torch.sin(2 * math.pi * (kx * x + ky * y + brush.number(0, 1)))
    sharp = torch.sigmoid(value * brush.number(0.7, 6))
    return brush.rough(brush.ramp(sharp, brush.integer(2, 4)), 0.5)


PATTERNS: tuple[Callable[[Brush], Tensor], ...] = (
    clouds, marble, planks, bricks, checker, cobbles, speckle, collage, lettering, spines, facade, weave,
)  # fmt: skip


def _near_line(value: Tensor, width: float) -> Tensor:
    """Where a coordinate is within ``width`` of an integer."""
    return (value - value.round()).abs() < width
