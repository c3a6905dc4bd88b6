"""A library of furniture, clutter, plants, vehicles and rocks, built from solids in closed form.

An object stands on z = 0, centred on the origin, its front towards -y, sizes in metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.data import FloatArray
from dust3r_ros.training.solids import PLANES, Kind, TensorFields

PARTS = 8  # solids of an object, at most
MESH_TRIANGLES = 48

CYLINDER = (1.0, 0.0, 0.0)
SPHERE = (1.0, 0.0, -1.0)
CONE = (0.25, -0.5, 0.25)
DOME = (0.5, -0.5, 0.0)
BARREL = (1.0, 0.0, -0.45)
HOURGLASS = (0.25, 0.0, 0.75)


def frustum(bottom: float, top: float) -> tuple[float, float, float]:
    """The quadric of a truncated cone with the given radii, at most 1."""
    middle, slope = (bottom + top) / 2, (top - bottom) / 2
    return (middle * middle, 2 * middle * slope, slope * slope)


@dataclass(frozen=True, eq=False)
class ObjectLibrary(TensorFields):
    """T objects: ``kind`` (T, PARTS); ``local_to_object`` (T, PARTS, 3, 4); ``quadric`` (T, PARTS, 3);
    ``planes`` (T, PARTS, PLANES, 4); ``slot`` (T, PARTS) int64, parts of one slot share a material;
    ``extent`` (T, 3) half width, half depth and height, metres.
    """

    kind: Tensor
    local_to_object: Tensor
    quadric: Tensor
    planes: Tensor
    slot: Tensor
    extent: Tensor


@dataclass(eq=False)
class _Builder:
    """Collects the parts of one object."""

    rng: np.random.Generator
    parts: list[tuple[Kind, FloatArray, tuple[float, float, float], FloatArray, int]] = field(default_factory=list)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def box(self, centre: tuple[float, float, float], half: tuple[float, float, float], slot: int = 0, **turn: float) -> None:
        self._add(Kind.BOX, centre, half, slot, SPHERE, None, **turn)

    def round(
        self, centre: tuple[float, float, float], half: tuple[float, float, float], quadric: tuple[float, float, float],
        slot: int = 0, **turn: float,
    ) -> None:  # fmt: skip
        self._add(Kind.QUADRIC, centre, half, slot, quadric, None, **turn)

    def rock(self, centre: tuple[float, float, float], half: tuple[float, float, float], slot: int = 0) -> None:
        """A random convex polyhedron."""
        normals = self.rng.normal(size=(PLANES, 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        normals[:6] = 0.35 * normals[:6] + np.concatenate([np.eye(3), -np.eye(3)])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        offsets = self.rng.uniform(0.6, 0.95, (PLANES, 1))
        offsets[:6] = 0.75
        self._add(Kind.POLYHEDRON, centre, half, slot, SPHERE, np.concatenate([normals, offsets], axis=1), yaw=self.u(0, 6))

    def prism(self, centre: tuple[float, float, float], half: tuple[float, float, float], sides: int, taper: float, slot: int = 0) -> None:
        """An upright prism of 3 to 8 sides, narrowing to ``taper`` of its width at the top."""
        angles = 2 * math.pi * (np.arange(sides) + 0.5) / sides
        slope = (1 - taper) / 2 * math.cos(math.pi / sides)
        planes = np.tile([0.0, 0.0, 0.0, 1.0], (PLANES, 1))
        planes[:sides] = np.stack(
            [np.cos(angles), np.sin(angles), np.full(sides, slope), np.full(sides, math.cos(math.pi / sides) - slope)], 1
        )
        planes[sides : sides + 2] = [[0, 0, 1, 1], [0, 0, -1, 1]]
        planes /= np.maximum(np.linalg.norm(planes[:, :3], axis=1, keepdims=True), 1e-9) ** (np.arange(PLANES)[:, None] < sides)
        self._add(Kind.POLYHEDRON, centre, half, slot, SPHERE, planes)

    def _add(
        self, kind: Kind, centre: tuple[float, float, float], half: tuple[float, float, float], slot: int,
        quadric: tuple[float, float, float], planes: FloatArray | None, yaw: float = 0.0, pitch: float = 0.0,
    ) -> None:  # fmt: skip
        cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        affine = np.concatenate([turn * np.asarray(half), np.asarray(centre)[:, None]], axis=1)
        unused = np.tile([0.0, 0.0, 0.0, 1.0], (PLANES, 1))
        self.parts.append((kind, affine, quadric, unused if planes is None else planes, slot))


def _table(b: _Builder) -> None:
    x, y, h = b.u(0.3, 0.9), b.u(0.25, 0.5), b.u(0.4, 0.9)
    if b.u(0, 1) < 0.3:
        b.round((0, 0, h), (x, x, 0.025), CYLINDER)
        b.round((0, 0, h / 2), (0.06, 0.06, h / 2), CYLINDER, 1)
        b.round((0, 0, 0.03), (x / 2, x / 2, 0.03), DOME, 1)
    else:
        b.box((0, 0, h), (x, y, 0.025))
        for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box((sx * (x - 0.05), sy * (y - 0.05), h / 2), (0.03, 0.03, h / 2), 1)
    size = b.u(0.06, 0.14)
    b.box((b.u(-x, x) * 0.5, b.u(-y, y) * 0.4, h + 0.03 + size), (size * b.u(0.6, 2), size, size), 2, yaw=b.u(0, 3))
    b.round((b.u(-x, x) * 0.5, b.u(-y, y) * 0.4, h + 0.12), (0.05, 0.05, b.u(0.08, 0.12)), frustum(b.u(0.5, 1), b.u(0.5, 1)), 3)


def _chair(b: _Builder) -> None:
    s, h = b.u(0.2, 0.27), b.u(0.4, 0.5)
    b.box((0, 0, h), (s, s, 0.03))
    b.box((0, s - 0.02, h + 0.3), (s, 0.025, b.u(0.2, 0.32)), 1, pitch=b.u(-0.15, 0))
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        b.round((sx * (s - 0.03), sy * (s - 0.03), h / 2), (0.022, 0.022, h / 2), CYLINDER, 2)


def _sofa(b: _Builder) -> None:
    x, y = b.u(0.6, 1.1), b.u(0.35, 0.5)
    b.box((0, 0, 0.22), (x, y, 0.2))
    b.box((0, y - 0.1, 0.6), (x, 0.12, 0.3), pitch=-0.1)
    b.box((-x + 0.08, 0, 0.35), (0.1, y, 0.3))
    b.box((x - 0.08, 0, 0.35), (0.1, y, 0.3))
    for k in (-1, 1):
        b.box((k * x * 0.45, -0.05, 0.47), (x * 0.4, y - 0.1, 0.07), 1)
    b.rock((b.u(-x, x) * 0.6, 0.05, 0.62), (0.2, 0.1, 0.16), 2)


def _cabinet(b: _Builder) -> None:
    x, y, h = b.u(0.3, 0.7), b.u(0.2, 0.32), b.u(0.3, 1.05)
    b.box((0, 0, h), (x, y, h))
    b.box((0, -y, h), (x * 0.94, 0.015, h * 0.92), 1)
    b.box((0, 0, 2 * h + 0.015), (x + 0.03, y + 0.03, 0.015), 2)
    for k in (-1, 1):
        b.round((k * 0.06, -y - 0.03, h), (0.015, 0.015, 0.08), CYLINDER, 2)
    b.box((b.u(-0.5, 0.5) * x, 0, 2 * h + 0.15), (b.u(0.08, 0.2), 0.1, 0.12), 3, yaw=b.u(0, 3))


def _shelf(b: _Builder) -> None:
    x, y, h = b.u(0.35, 0.7), b.u(0.13, 0.2), b.u(0.7, 1.1)
    for k in (-1, 1):
        b.box((k * x, 0, h), (0.02, y, h))
    b.box((0, y, h), (x, 0.01, h), 1)
    for k in range(3):
        b.box((0, 0, 0.05 + k * h * 0.95), (x, y, 0.015))
    for k in range(2):
        b.box((b.u(-0.1, 0.1) * x, 0.02, 0.065 + k * h * 0.95 + 0.16), (x * b.u(0.6, 0.85), y * 0.8, 0.16), 2 + k)


def _lamp(b: _Builder) -> None:
    h, r = b.u(1.2, 1.8), b.u(0.15, 0.25)
    b.round((0, 0, 0.02), (r, r, 0.02), CYLINDER)
    b.round((0, 0, h / 2), (0.02, 0.02, h / 2), CYLINDER)
    b.round((0, 0, h), (r, r, 0.16), frustum(1.0, b.u(0.4, 0.9)), 1)


def _plant(b: _Builder) -> None:
    r, h = b.u(0.13, 0.25), b.u(0.13, 0.25)
    b.round((0, 0, h), (r, r, h), frustum(b.u(0.5, 0.8), 1.0))
    b.round((0, 0, 2 * h + 0.2), (0.02, 0.02, 0.25), CYLINDER, 1)
    for _ in range(6):
        angle, tall = b.u(0, 6.3), b.u(0.1, 0.4)
        b.round(
            (0.2 * math.cos(angle), 0.2 * math.sin(angle), 2 * h + 0.3 + tall), (0.06, 0.16, tall), SPHERE, 2,
            yaw=angle, pitch=b.u(-0.8, 0.8),
        )  # fmt: skip


def _pedestal(b: _Builder) -> None:
    h, r = b.u(0.3, 0.5), b.u(0.15, 0.3)
    b.prism((0, 0, h), (r * 1.2, r * 1.2, h), int(b.rng.integers(4, 9)), b.u(0.6, 1.0))
    b.round((0, 0, 2 * h + 0.25), (r * 0.7, r * 0.7, 0.25), (SPHERE, BARREL, HOURGLASS, DOME)[int(b.rng.integers(4))], 1)
    b.round((0, 0, 2 * h + 0.58), (r * 0.4, r * 0.4, 0.08), frustum(0.5, 1.0), 2)


def _crates(b: _Builder) -> None:
    h = 0.0
    for k in range(int(b.rng.integers(2, 6))):
        size = b.u(0.12, 0.32)
        b.box((b.u(-0.1, 0.1), b.u(-0.1, 0.1), h + size), (size * b.u(0.8, 1.5), size, size), k % 4, yaw=b.u(-0.5, 0.5))
        h += 2 * size


def _bin(b: _Builder) -> None:
    r, h = b.u(0.15, 0.3), b.u(0.25, 0.45)
    b.round((0, 0, h), (r, r, h), (CYLINDER, BARREL, frustum(0.75, 1.0))[int(b.rng.integers(3))])
    b.round((0, 0, 2 * h), (r * 1.05, r * 1.05, 0.05), DOME, 1)


def _bed(b: _Builder) -> None:
    x, y = b.u(0.5, 0.9), 1.0
    b.box((0, 0, 0.2), (x, y, 0.15))
    b.box((0, 0, 0.42), (x * 0.97, y * 0.97, 0.1), 1)
    b.box((0, y, 0.5), (x, 0.04, b.u(0.4, 0.6)))
    b.box((0, -0.3, 0.53), (x, y * 0.65, 0.03), 2)
    for k in (-1, 1):
        b.round((k * x * 0.45, y * 0.7, 0.58), (0.35 * x, 0.2, 0.09), SPHERE, 3)


def _screen(b: _Builder) -> None:
    h = b.u(0.5, 0.8)
    b.box((0, 0, h), (b.u(0.5, 0.8), 0.3, 0.02))
    b.box((0, 0, h / 2), (0.4, 0.25, h / 2), 1)
    b.box((0, 0.05, h + 0.35), (b.u(0.25, 0.5), 0.02, 0.22), 2, pitch=b.u(-0.2, 0))
    b.round((0, 0.05, h + 0.08), (0.03, 0.03, 0.08), CYLINDER, 1)
    b.box((0, -0.18, h + 0.03), (0.22, 0.08, 0.012), 3)


def _rocks(b: _Builder) -> None:
    for k in range(int(b.rng.integers(2, 6))):
        s = b.u(0.12, 0.5)
        b.rock((b.u(-0.5, 0.5), b.u(-0.5, 0.5), s * 0.5), (s * b.u(0.7, 1.6), s, s), k % 2)


def _tree(b: _Builder) -> None:
    h, r = b.u(1.2, 2.5), b.u(0.08, 0.2)
    b.round((0, 0, h / 2), (r, r, h / 2), frustum(1.0, 0.6))
    conifer = b.u(0, 1) < 0.4
    for k in range(6):
        size = b.u(0.5, 0.9)
        if conifer:
            b.round((0, 0, h * 0.6 + 0.5 * k), (1.2 - 0.17 * k, 1.2 - 0.17 * k, 0.5), CONE, 1)
        else:
            b.round((b.u(-0.6, 0.6), b.u(-0.6, 0.6), h + b.u(0, 1.1)), (size, size, size * 0.8), SPHERE, 1 + k % 2)


def _car(b: _Builder) -> None:
    x = b.u(1.7, 2.3)
    b.box((0, 0, 0.55), (x, 0.85, 0.3))
    b.prism((b.u(-0.2, 0.4), 0, 1.1), (x * 0.75, 1.05, 0.3), 4, b.u(0.6, 0.85), 1)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.round((sx * x * 0.62, sy * 0.8, 0.33), (0.33, 0.33, 0.12), CYLINDER, 2, pitch=math.pi / 2)
    b.box((x, 0, 0.5), (0.04, 0.7, 0.08), 3)


def _stairs(b: _Builder) -> None:
    steps, x = int(b.rng.integers(3, 8)), b.u(0.5, 1.2)
    for k in range(steps):
        b.box((0, 0.28 * k - 0.5, 0.09 * (k + 1)), (x, 0.14, 0.09 * (k + 1)), k % 2)


def _arch(b: _Builder) -> None:
    x, h, r = b.u(0.5, 1.0), b.u(0.8, 1.3), b.u(0.08, 0.2)
    for k in (-1, 1):
        b.round((k * x, 0, h), (r, r, h), (CYLINDER, BARREL, frustum(1.0, 0.7))[int(b.rng.integers(3))])
        b.box((k * x, 0, 0.06), (r * 1.3, r * 1.3, 0.06), 1)
        b.box((k * x, 0, 2 * h), (r * 1.3, r * 1.3, 0.06), 1)
    b.box((0, 0, 2 * h + 0.15), (x + r * 1.5, r * 1.2, 0.12), 2)


def _abstract(b: _Builder) -> None:
    for k in range(int(b.rng.integers(1, PARTS + 1))):
        half = (b.u(0.05, 0.45), b.u(0.05, 0.45), b.u(0.05, 0.6))
        centre = (b.u(-0.4, 0.4), b.u(-0.4, 0.4), half[2] + b.u(0.0, 0.8))
        which, turn = int(b.rng.integers(4)), {"yaw": b.u(0, 6), "pitch": b.u(-1.5, 1.5) if b.u(0, 1) < 0.4 else 0.0}
        if which == 0:
            b.box(centre, half, k % 4, **turn)
        elif which == 1:
            b.rock(centre, half, k % 4)
        elif which == 2:
            b.prism(centre, half, int(b.rng.integers(3, 9)), b.u(0.1, 1.0), k % 4)
        else:
            shapes = (CYLINDER, SPHERE, CONE, DOME, BARREL, HOURGLASS, frustum(b.u(0.2, 1), b.u(0.2, 1)))
            b.round(centre, half, shapes[int(b.rng.integers(len(shapes)))], k % 4, **turn)


INDOOR: tuple[Callable[[_Builder], None], ...] = (
    _table, _chair, _sofa, _cabinet, _shelf, _lamp, _plant, _pedestal, _crates, _bin, _bed, _screen, _abstract, _abstract,
)  # fmt: skip
OUTDOOR: tuple[Callable[[_Builder], None], ...] = (
    _tree, _car, _rocks, _crates, _bin, _stairs, _arch, _pedestal, _abstract, _tree, _rocks, _abstract,
)  # fmt: skip


def make_library(makers: tuple[Callable[[_Builder], None], ...], count: int, seed: int) -> ObjectLibrary:
    """``count`` random variants, of each maker equally many, on the CPU."""
    rng = np.random.default_rng(seed)
    built = []
    for k in range(count):
        builder = _Builder(rng)
        makers[k % len(makers)](builder)
        built.append(builder.parts[:PARTS])
    kind = np.zeros((count, PARTS), np.int64)
    affine = np.tile(np.eye(3, 4), (count, PARTS, 1, 1))
    quadric, planes = np.ones((count, PARTS, 3)), np.tile([0.0, 0.0, 0.0, 1.0], (count, PARTS, PLANES, 1))
    slot = np.zeros((count, PARTS), np.int64)
    for t, parts in enumerate(built):
        for p, (part_kind, part_affine, part_quadric, part_planes, part_slot) in enumerate(parts):
            kind[t, p], affine[t, p], quadric[t, p] = part_kind, part_affine, part_quadric
            planes[t, p], slot[t, p] = part_planes, part_slot
    used = (kind > 0)[..., None]
    low_high = np.abs(affine[..., 3]) * [1, 1, 0] + affine[..., 3] * [0, 0, 1] + np.abs(affine[..., :3]).sum(-1)
    extent = np.where(used, low_high, 0).max(1)
    tensors = [torch.from_numpy(array.astype(np.float32)) for array in (affine, quadric, planes)]
    return ObjectLibrary(
        torch.from_numpy(kind), *tensors, torch.from_numpy(slot), torch.from_numpy(extent.astype(np.float32))
    )
