"""How objects are put together from solids, and kept as tables of many variants.

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
class Builder:
    """Collects the parts of one object."""

    rng: np.random.Generator
    parts: list[tuple[Kind, FloatArray, tuple[float, float, float], FloatArray, int]] = field(default_factory=list)

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def box(
        self, centre: tuple[float, float, float], half: tuple[float, float, float], slot: int = 0, **turn: float
    ) -> None:
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
        self._add(
            Kind.POLYHEDRON, centre, half, slot, SPHERE, np.concatenate([normals, offsets], axis=1), yaw=self.u(0, 6)
        )

    def prism(
        self,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        sides: int,
        taper: float,
        slot: int = 0,
    ) -> None:
        """An upright prism of 3 to 8 sides, narrowing to ``taper`` of its width at the top."""
        angles = 2 * math.pi * (np.arange(sides) + 0.5) / sides
        slope = (1 - taper) / 2 * math.cos(math.pi / sides)
        planes = np.tile([0.0, 0.0, 0.0, 1.0], (PLANES, 1))
        planes[:sides] = np.stack(
            [np.cos(angles), np.sin(angles), np.full(sides, slope), np.full(sides, math.cos(math.pi / sides) - slope)],
            1,
        )
        planes[sides : sides + 2] = [[0, 0, 1, 1], [0, 0, -1, 1]]
        planes /= np.maximum(np.linalg.norm(planes[:, :3], axis=1, keepdims=True), 1e-9) ** (
            np.arange(PLANES)[:, None] < sides
        )
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


def make_library(makers: tuple[Callable[[Builder], None], ...], count: int, seed: int) -> ObjectLibrary:
    """``count`` random variants, of each maker equally many, on the CPU."""
    rng = np.random.default_rng(seed)
    built = []
    for k in range(count):
        builder = Builder(rng)
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
    floats = (torch.from_numpy(array.astype(np.float32)) for array in (affine, quadric, planes, extent))
    local_to_object, quadrics, faces, size = floats
    return ObjectLibrary(torch.from_numpy(kind), local_to_object, quadrics, faces, torch.from_numpy(slot), size)
