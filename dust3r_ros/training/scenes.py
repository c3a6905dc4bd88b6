"""Random scenes in batches: rooms, corridors and outdoor places, full of things.

The world is z up, metres, with the floor at z = 0. Everything random comes from one generator: a seed gives the same
scenes again on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dust3r_ros.training import objects
from dust3r_ros.training.furnish import Draw, Placed, place_meshes, place_objects, structure_materials
from dust3r_ros.training.library import ObjectLibrary, make_library
from dust3r_ros.training.meshes import make_meshes
from dust3r_ros.training.shading import Lighting, Materials, fill_light_direction
from dust3r_ros.training.solids import Kind, Solids, invert_affine
from dust3r_ros.training.textures import TextureAtlas

FITTINGS = 13  # boxes on walls, floor and ground, or buildings
OBJECTS = 10
MESHES = 1
_MESH_SHARE = 0.4  # of the scenes
_SUN_DISTANCE = 60.0


class SceneKind(Enum):
    """What a scene shows."""

    ROOM = "room"
    CORRIDOR = "corridor"
    OUTDOOR = "outdoor"


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes with room for P shapes each.

    ``free`` (B, 2, 3): low and high corner of the box that cameras may move in, objects apart;
    ``atlas`` the textures all scenes use.
    """

    solids: Solids
    materials: Materials
    lighting: Lighting
    free: Tensor
    atlas: TextureAtlas

    def __len__(self) -> int:
        return len(self.free)

    @property
    def device(self) -> torch.device:
        """Where the scenes are."""
        return self.free.device

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same on another device."""
        return SceneBatch(
            self.solids.to(device), self.materials.to(device), self.lighting.to(device), self.free.to(device),
            self.atlas.to(device),
        )  # fmt: skip

    def select(self, index: Tensor | slice) -> SceneBatch:
        """Some of the scenes, or one more than once."""
        return SceneBatch(self.solids[index], self.materials[index], self.lighting[index], self.free[index], self.atlas)

    def clearance(self, points: Tensor) -> Tensor:
        """Least distance (B, N) in metres from points (B, N, 3) to any surface, never too large.

        Shapes are taken as their bounding boxes, triangles as spheres around them; inside one the answer is 0 or less.
        A room's walls count, as does the border of the free box outdoors.
        """
        kind = self.solids.kind
        linear, centre = self.solids.local_to_world[..., :3], self.solids.local_to_world[..., 3]
        half = linear.square().sum(2).sqrt()  # (B, P, 3)
        axes = linear / half[:, :, None]
        offset = points[:, :, None] - centre[:, None]  # (B, N, P, 3)
        local = torch.einsum("bnpi,bpij->bnpj", offset, axes)
        beyond = local.abs() - half[:, None]
        distance = beyond.clamp(min=0).square().sum(-1).sqrt() + beyond.amax(-1).clamp(max=0)
        sphere = offset.square().sum(-1).sqrt() - half[:, None, :, :2].sum(-1)
        distance = torch.where((kind == Kind.TRIANGLE)[:, None], sphere, distance)
        solid = ((kind != Kind.EMPTY) & (kind != Kind.ROOM))[:, None]
        nearest = torch.where(solid, distance, torch.inf).amin(-1)
        border = torch.minimum(points - self.free[:, None, 0], self.free[:, None, 1] - points).amin(-1)
        return torch.minimum(nearest, border)


def concatenate(batches: Sequence[SceneBatch]) -> SceneBatch:
    """One batch of all the scenes; they must share one atlas."""
    if any(batch.atlas is not batches[0].atlas for batch in batches):
        raise ValueError("batches must share one texture atlas")

    def join(parts: Sequence[Solids] | Sequence[Materials] | Sequence[Lighting]) -> dict[str, Tensor]:
        return {name: torch.cat([getattr(p, name) for p in parts]) for name in parts[0].__dataclass_fields__}

    return SceneBatch(
        Solids(**join([b.solids for b in batches])),
        Materials(**join([b.materials for b in batches])),
        Lighting(**join([b.lighting for b in batches])),
        torch.cat([b.free for b in batches]),
        batches[0].atlas,
    )


class SceneSampler:
    """Draws scenes from a texture atlas and libraries of objects; keep one and sample from it again and again.

    ``plain`` is the share of surfaces without a texture.
    """

    def __init__(self, atlas: TextureAtlas, *, variants: int = 420, seed: int = 0, plain: float = 0.0) -> None:
        self.atlas, self.plain = atlas, plain
        device = atlas.texels.device
        self.indoor: ObjectLibrary = make_library(objects.INDOOR, variants, seed).to(device)
        self.outdoor: ObjectLibrary = make_library(objects.OUTDOOR, variants, seed + 1).to(device)
        self.meshes: Tensor = make_meshes(variants, seed + 2).to(device)

    def sample(
        self, kind: SceneKind, count: int, generator: torch.Generator, *, size: tuple[float, float, float] | None = None
    ) -> SceneBatch:
        """``count`` scenes of one kind. ``generator`` is on the atlas's device.

        ``size`` fixes length (x), width (y) and height of rooms and corridors, metres; random when None.
        """
        draw = Draw(generator, self.atlas, count, self.plain)
        if kind is SceneKind.OUTDOOR:
            return self._outdoor(draw)
        low, high = (
            ((3.0, 3.0, 2.3), (9.0, 7.0, 3.6)) if kind is SceneKind.ROOM else ((7.0, 1.8, 2.2), (18.0, 3.2, 3.2))
        )
        extent = draw.between(low, high) if size is None else draw.generator_tensor(size).expand(count, 3)
        return self._indoor(draw, extent, kind)

    def mixed(self, count: int, generator: torch.Generator) -> SceneBatch:
        """A batch of all kinds: half rooms, a fifth corridors, the rest outdoors, in this order."""
        corridors, outdoors = count // 5, (3 * count) // 10
        counts = {
            SceneKind.ROOM: count - corridors - outdoors,
            SceneKind.CORRIDOR: corridors,
            SceneKind.OUTDOOR: outdoors,
        }
        return concatenate([self.sample(kind, n, generator) for kind, n in counts.items() if n])

    def _indoor(self, draw: Draw, extent: Tensor, kind: SceneKind) -> SceneBatch:
        half = extent / 2
        boxes = _indoor_boxes(draw, half)
        kinds = torch.where(boxes[..., :3].abs().sum((-1, -2)) > 0, Kind.BOX, Kind.EMPTY)
        kinds[:, 0] = Kind.ROOM
        placed = place_objects(draw, self.indoor, half[:, :2], OBJECTS, narrow=kind is SceneKind.CORRIDOR)
        meshes = place_meshes(draw, self.meshes, half[:, :2], half[:, 2], MESHES, share=_MESH_SHARE)
        free = torch.stack([-half, half], dim=1)
        free[:, 0, 2], free[:, 1, 2] = 0, extent[:, 2]
        return self._assemble(
            draw, kinds, boxes, placed.with_meshes(meshes), _indoor_light(draw, half), free, indoor=True
        )

    def _outdoor(self, draw: Draw) -> SceneBatch:
        half = draw.between((8.0, 8.0), (16.0, 16.0))
        boxes = _outdoor_boxes(draw, half)
        kinds = torch.where(boxes[..., :3].abs().sum((-1, -2)) > 0, Kind.BOX, Kind.EMPTY)
        placed = place_objects(draw, self.outdoor, half * 0.9, OBJECTS, narrow=False)
        meshes = place_meshes(draw, self.meshes, half, 0 * half[:, 0] + 2, MESHES, share=_MESH_SHARE)
        low = torch.cat([-half, torch.zeros_like(half[:, :1])], 1)
        free = torch.stack([low, torch.cat([half, torch.full_like(half[:, :1], 8.0)], 1)], dim=1)
        return self._assemble(draw, kinds, boxes, placed.with_meshes(meshes), _outdoor_light(draw), free, indoor=False)

    def _assemble(
        self,
        draw: Draw,
        kinds: Tensor,
        boxes: Tensor,
        placed: Placed,
        lighting: Lighting,
        free: Tensor,
        *,
        indoor: bool,
    ) -> SceneBatch:
        structure = structure_materials(draw, boxes, indoor=indoor)
        to_world = torch.cat([boxes, placed.to_world], dim=1)
        kind = torch.cat([kinds, placed.kind], dim=1)
        to_world = torch.where((kind == Kind.EMPTY)[..., None, None], torch.eye(3, 4, device=free.device), to_world)
        blank = placed.quadric.new_ones(boxes.shape[0], boxes.shape[1], 3)
        unused = placed.planes.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*boxes.shape[:2], *placed.planes.shape[2:])
        solids = Solids(
            kind, to_world, invert_affine(to_world), torch.cat([blank, placed.quadric], 1),
            torch.cat([unused, placed.planes], 1),
        )  # fmt: skip
        return SceneBatch(solids, structure.extended(placed, draw, kind, to_world), lighting, free, self.atlas)


def _boxes(low: Tensor, high: Tensor) -> Tensor:
    """Affine maps (..., 3, 4) of boxes given by opposite corners (..., 3)."""
    return torch.cat([torch.diag_embed((high - low) / 2), ((high + low) / 2)[..., None]], dim=-1)


def _indoor_boxes(draw: Draw, half: Tensor) -> Tensor:
    """The room, floor, ceiling, a rug and what hangs on the walls (B, FITTINGS, 3, 4); all zero where absent."""
    x, y, z = half[:, 0], half[:, 1], 2 * half[:, 2]
    zero = torch.zeros_like(x)

    def corners(*values: Tensor) -> Tensor:
        return torch.stack(values, dim=1)

    room = _boxes(corners(-x, -y, zero - 0.04), corners(x, y, z + 0.04))
    floor = _boxes(corners(-x - 0.1, -y - 0.1, zero - 0.1), corners(x + 0.1, y + 0.1, zero))
    ceiling = _boxes(corners(-x - 0.1, -y - 0.1, z), corners(x + 0.1, y + 0.1, z + 0.1))
    centre, size = draw.uniform(-0.4, 0.4, 2) * half[:, :2], draw.uniform(0.25, 0.5, 2) * half[:, :2]
    thin = zero + 0.012
    rug = _boxes(corners(*(centre - size).unbind(1), zero - 0.01), corners(*(centre + size).unbind(1), thin))
    hung = torch.stack([_hung(draw, half, k) for k in range(FITTINGS - 4)], dim=1)
    return torch.cat([torch.stack([room, floor, ceiling, rug], 1), hung], dim=1)


def _hung(draw: Draw, half: Tensor, number: int) -> Tensor:
    """A picture, board, window or door on a wall (B, 3, 4)."""
    axis = (
        draw.uniform(0, 1) < half[:, 0] / (half[:, 0] + half[:, 1])
    ).long()  # 1: a wall across y, more often if longer
    rows = torch.arange(len(half), device=half.device)
    along, tall = half[rows, 1 - axis], 2 * half[:, 2]
    width, height = draw.uniform(0.12, 0.55), draw.uniform(0.15, 0.5)
    place = draw.uniform(-1, 1) * (along - width).clamp(min=0.1)
    middle = 0.55 * tall + draw.uniform(-0.12, 0.15) * tall
    if number < 2:  # doors and windows reach down
        width, height = width + 0.25, 0.4 * tall
        middle = height + draw.uniform(0, 0.08) * tall
    thick = draw.uniform(0.01, 0.04)
    wall = half[rows, axis] * draw.sign()
    centre = torch.where(
        axis[:, None] == 1, torch.stack([place, wall, middle], 1), torch.stack([wall, place, middle], 1)
    )
    size = torch.where(
        axis[:, None] == 1, torch.stack([width, thick, height], 1), torch.stack([thick, width, height], 1)
    )
    present = (draw.uniform(0, 1) < 0.85).float()[:, None, None]
    return _boxes(centre - size, centre + size) * present


def _outdoor_boxes(draw: Draw, half: Tensor) -> Tensor:
    """Ground, a path and buildings around (B, FITTINGS, 3, 4); all zero where absent."""
    far = torch.full_like(half[:, :1], 80.0)
    ground = _boxes(torch.cat([-far, -far, 0 * far - 0.5], 1), torch.cat([far, far, 0 * far], 1))
    wide, offset = draw.uniform(0.8, 2.5), draw.uniform(-2, 2)
    path = _boxes(
        torch.stack([-far[:, 0], offset - wide, far[:, 0] * 0 - 0.1], 1),
        torch.stack([far[:, 0], offset + wide, far[:, 0] * 0 + 0.01], 1),
    )
    buildings = []
    for k in range(FITTINGS - 2):
        angle = (k + draw.uniform(-0.4, 0.4)) / (FITTINGS - 2)
        direction = fill_light_direction(angle, torch.zeros_like(angle))
        size = draw.between((2.0, 2.0, 1.5), (6.0, 6.0, 7.0))
        reach = half.amax(1) + size[:, :2].amax(1) + draw.uniform(0, 6)
        centre = direction * reach[:, None]
        centre[:, 2] = size[:, 2] - 0.2
        present = (draw.uniform(0, 1) < 0.75).float()[:, None, None]
        buildings.append(_boxes(centre - size, centre + size) * present)
    return torch.cat([torch.stack([ground, path], 1), torch.stack(buildings, 1)], dim=1)


def _indoor_light(draw: Draw, half: Tensor) -> Lighting:
    place = draw.uniform(-0.6, 0.6, 2) * half[:, :2]
    position = torch.cat([place, (2 * half[:, 2:] - draw.uniform(0.15, 0.5)[:, None])], dim=1)
    ambient = draw.uniform(0.4, 0.75)[:, None] * draw.uniform(0.88, 1.05, 3)
    return Lighting(
        position,
        draw.uniform(0.6, 1.2)[:, None] * draw.uniform(0.88, 1.08, 3),
        draw.uniform(2.5, 7.0),
        fill_light_direction(draw.uniform(0, 1), draw.uniform(0.0, 0.6)),
        draw.uniform(0.05, 0.3)[:, None] * draw.uniform(0.8, 1.1, 3),
        ambient * draw.uniform(0.9, 1.2)[:, None],
        ambient * draw.uniform(0.6, 1.0)[:, None],
        draw.uniform(0.5, 0.9, 3),
        draw.uniform(0.2, 0.6, 3),
        draw.layers(("clouds",), ()),
    )


def _outdoor_light(draw: Draw) -> Lighting:
    sun = fill_light_direction(draw.uniform(0, 1), draw.uniform(0.3, 0.95))
    ambient = draw.uniform(0.4, 0.65)[:, None]
    sky = torch.lerp(
        draw.uniform(0.5, 0.9)[:, None].expand(-1, 3),
        ambient.new_tensor([0.25, 0.45, 0.8]),
        draw.uniform(0, 1)[:, None],
    )
    return Lighting(
        sun * _SUN_DISTANCE,
        draw.uniform(0.3, 1.1)[:, None] * draw.between((1.0, 0.92, 0.8), (1.1, 1.0, 1.0)),
        torch.full_like(sun[:, 0], torch.inf),
        fill_light_direction(draw.uniform(0, 1), draw.uniform(0.0, 0.6)),
        draw.uniform(0.05, 0.2)[:, None].expand(-1, 3).contiguous(),
        ambient * torch.lerp(torch.ones_like(sky), sky, 0.4) * 1.2,
        ambient * draw.uniform(0.5, 0.9)[:, None].expand(-1, 3),
        sky,
        draw.uniform(0.7, 0.95)[:, None] * draw.uniform(0.95, 1.0, 3),
        draw.layers(("clouds",), ()),
    )
