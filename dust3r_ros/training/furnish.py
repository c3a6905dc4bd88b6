"""Random choices for whole batches of scenes: where objects stand and what surfaces look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r_ros.training.library import ObjectLibrary
from dust3r_ros.training.patterns import PATTERNS
from dust3r_ros.training.shading import Materials
from dust3r_ros.training.solids import PLANES, Kind, TensorFields
from dust3r_ros.training.textures import TextureAtlas

_NAMES = tuple(pattern.__name__ for pattern in PATTERNS)
WALLS = ("clouds", "bricks", "weave", "marble", "checker", "planks", "spines", "cobbles", "speckle")
FLOORS = ("planks", "bricks", "checker", "marble", "weave", "speckle", "cobbles")
CEILINGS = ("clouds", "speckle", "checker", "planks")
PICTURES = ("collage", "lettering", "spines", "facade", "marble", "weave")
GROUNDS = ("speckle", "cobbles", "clouds", "bricks")
FACADES = ("facade", "facade", "bricks", "spines", "lettering")
_CANDIDATES = 12
_SLOTS = 4  # materials of one object
_COUNTLESS = 1e4  # tiles a metre


class Draw:
    """Random numbers for a batch of ``count`` scenes on one device; ``plain`` is the share of untextured surfaces."""

    def __init__(self, generator: torch.Generator, atlas: TextureAtlas, count: int, plain: float = 0.0) -> None:
        self.generator, self.atlas, self.count, self.plain = generator, atlas, count, plain
        self.device = atlas.texels.device
        self._rounds = (atlas.count - atlas.photographs) // len(PATTERNS)
        if self._rounds < 1:
            raise ValueError(f"the atlas needs at least {len(PATTERNS)} procedural textures, got {atlas.count}")

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers (B, *shape)."""
        return low + (high - low) * torch.rand((self.count, *shape), generator=self.generator, device=self.device)

    def between(self, low: Sequence[float], high: Sequence[float], *shape: int) -> Tensor:
        """Uniform vectors (B, *shape, K) between two corners."""
        a, b = self.generator_tensor(low), self.generator_tensor(high)
        return torch.lerp(a, b, self.uniform(0, 1, *shape, len(low)))

    def generator_tensor(self, values: Sequence[float]) -> Tensor:
        """A constant on the scenes' device."""
        return torch.tensor(values, device=self.device, dtype=torch.float32)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers (B, *shape) from 0 to ``high`` - 1."""
        return torch.randint(high, (self.count, *shape), generator=self.generator, device=self.device)

    def sign(self, *shape: int) -> Tensor:
        """+1 or -1 (B, *shape)."""
        return self.integers(2, *shape).float() * 2 - 1

    def layers(self, families: Sequence[str], shape: Sequence[int], *, photographs: float = 0.0) -> Tensor:
        """Textures (B, *shape) of the given patterns, with a share of photographs where the atlas has any."""
        of = torch.tensor([_NAMES.index(name) for name in families], device=self.device)
        layer = of[self.integers(len(families), *shape)] + len(PATTERNS) * self.integers(self._rounds, *shape)
        wanted = self.uniform(0, 1, *shape) < photographs
        if not self.atlas.photographs:
            return layer
        photo = self.atlas.count - 1 - self.integers(self.atlas.photographs, *shape)
        return torch.where(wanted, photo, layer)


@dataclass(frozen=True, eq=False)
class Placed(TensorFields):
    """Parts of all placed objects (B, K ...): as in ``Solids``; ``slot`` (B, K) numbers the materials."""

    kind: Tensor
    to_world: Tensor
    quadric: Tensor
    planes: Tensor
    slot: Tensor

    def with_meshes(self, meshes: Placed) -> Placed:
        """These parts and those of meshes, with materials of their own."""
        first = int(self.slot.max()) + 1
        return Placed(
            torch.cat([self.kind, meshes.kind], 1),
            torch.cat([self.to_world, meshes.to_world], 1),
            torch.cat([self.quadric, meshes.quadric], 1),
            torch.cat([self.planes, meshes.planes], 1),
            torch.cat([self.slot, meshes.slot + first], 1),
        )


@dataclass(frozen=True, eq=False)
class SurfaceChoice:
    """Materials of the structure, to which those of the objects are added."""

    layers: Tensor
    tiles_per_metre: Tensor
    tint: Tensor
    look: Tensor

    def partly_plain(self, draw: Draw) -> SurfaceChoice:
        """The same with a share ``draw.plain`` of surfaces of one colour, as paint and plastic are, black to white.

        Scenes differ: some have few of them, some hardly anything else. A texture of countless tiles is one colour.
        """
        if not draw.plain:
            return self
        count = self.tint.shape[1]
        plain = (draw.uniform(0, 1, count) < 2 * draw.plain * draw.uniform(0, 1, 1))[..., None]
        chroma = draw.uniform(0, 0.8, count, 3) * draw.uniform(0, 1, count, 1)
        colour = 0.25 * 9 ** draw.uniform(0, 1, count, 1) * (1 - chroma)  # of the texture's mean, about a half
        tiles, look = self.tiles_per_metre.clone(), self.look.clone()
        tiles[..., :1].masked_fill_(plain, _COUNTLESS)
        look[..., 1:2] *= torch.where(plain, draw.uniform(0, 0.4, count, 1), 1.0)
        return SurfaceChoice(self.layers, tiles, torch.where(plain, colour, self.tint), look)

    def extended(self, placed: Placed, draw: Draw, kind: Tensor, to_world: Tensor) -> Materials:
        """Materials of structure and objects; ``kind`` (B, P) and ``to_world`` (B, P, 3, 4) of all solids.

        Textures lie in each solid's own frame, those of triangles in the world's, so that they run on over a mesh.
        """
        slots = int(placed.slot.max()) + 1
        chosen = _object_surfaces(draw, slots)

        def of(values: Tensor) -> Tensor:
            index = placed.slot.reshape(*placed.slot.shape, *(1,) * (values.ndim - 2))
            return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

        axes = torch.nn.functional.normalize(to_world[..., :3], dim=2).transpose(-1, -2)
        shift = draw.uniform(-3, 3, to_world.shape[1], 3, 1) - axes @ to_world[..., 3:]
        flat = (kind == Kind.TRIANGLE)[..., None, None]
        axes, shift = torch.where(flat, torch.eye(3, device=kind.device), axes), torch.where(flat, 0.0, shift)
        return Materials(
            torch.cat([axes, shift], dim=-1),
            torch.cat([self.layers, of(chosen.layers)], 1),
            torch.cat([self.tiles_per_metre, of(chosen.tiles_per_metre)], 1),
            torch.cat([self.tint, of(chosen.tint)], 1),
            torch.cat([self.look, of(chosen.look)], 1),
        )


def place_objects(draw: Draw, library: ObjectLibrary, half: Tensor, count: int, *, narrow: bool) -> Placed:
    """Up to ``count`` objects a scene on the floor -half..half (B, 2), most against a wall, few overlapping.

    Each tries a dozen places and takes the first that touches no earlier object; where there is none it is left out.
    """
    chosen = draw.integers(len(library.kind), count)
    stretch = draw.uniform(0.8, 1.25, count) * (0.75 if narrow else 1.0)
    extent = library.extent[chosen] * stretch[..., None]
    radius = extent[..., :2].square().sum(-1).sqrt()
    places: list[Tensor] = []
    turns: list[Tensor] = []
    gaps = torch.full((draw.count, count), -torch.inf, device=draw.device)
    for k in range(count):
        by_wall = narrow or k % 3 != 2
        place, turn = _candidates(draw, half, extent[:, k], radius[:, k], by_wall=by_wall)
        gap = torch.full(place.shape[:2], 9.0, device=draw.device)
        for earlier in range(k):
            apart = (place - places[earlier][:, None]).square().sum(-1).sqrt()
            touch = 0.6 * (radius[:, k] + radius[:, earlier])[:, None]
            gap = torch.minimum(gap, torch.where(gaps[:, earlier, None] > 0, apart - touch, 9.0))
        best = gap.clamp(max=0.15).argmax(1)
        rows = torch.arange(draw.count, device=draw.device)
        places.append(place[rows, best])
        turns.append(turn[rows, best])
        gaps[:, k] = gap[rows, best]
    crowd = 0.25 * (4 * half.prod(1, keepdim=True)).clamp(max=60) + 3
    present = (gaps > 0) & (torch.arange(count, device=draw.device) < crowd)
    return _put(library, chosen, torch.stack(places, 1), torch.stack(turns, 1), stretch, present)


def _candidates(draw: Draw, half: Tensor, extent: Tensor, radius: Tensor, *, by_wall: bool) -> tuple[Tensor, Tensor]:
    """Places (B, C, 2) and yaws (B, C) to try."""
    if not by_wall:
        inner = (half - radius[:, None]).clamp(min=0.1)
        return draw.uniform(-1, 1, _CANDIDATES, 2) * inner[:, None], draw.uniform(0, 2 * math.pi, _CANDIDATES)
    wall = draw.integers(4, _CANDIDATES)
    across = wall % 2  # the axis the wall stands across
    length = torch.gather(half, 1, 1 - across)
    reach = torch.gather(half, 1, across)
    along = draw.uniform(-1, 1, _CANDIDATES) * (length - extent[:, :1]).clamp(min=0.05)
    inset = (reach - extent[:, 1:2] - 0.03).clamp(min=0.05) * torch.where(wall < 2, 1.0, -1.0)
    place = torch.where((across == 0)[..., None], torch.stack([inset, along], -1), torch.stack([along, inset], -1))
    back = torch.where(across == 0, torch.where(wall < 2, -0.5, 0.5), torch.where(wall < 2, 0.0, 1.0))
    return place, math.pi * back + draw.uniform(-0.06, 0.06, _CANDIDATES)


def _put(
    library: ObjectLibrary, chosen: Tensor, place: Tensor, turn: Tensor, stretch: Tensor, present: Tensor
) -> Placed:
    parts = library[chosen]
    c, s, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    yaw = torch.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], -1).unflatten(-1, (3, 3))
    linear = (yaw * stretch[..., None, None])[:, :, None]  # (B, O, 1, 3, 3)
    to_world = linear @ parts.local_to_object
    to_world[..., :2, 3] += place[:, :, None]
    numbers = torch.arange(chosen.shape[1], device=chosen.device)[:, None] * _SLOTS
    return Placed(
        torch.where(present[..., None], parts.kind, Kind.EMPTY).flatten(1, 2),
        to_world.flatten(1, 2),
        parts.quadric.flatten(1, 2),
        parts.planes.flatten(1, 2),
        (parts.slot + numbers).flatten(1, 2),
    )


def place_meshes(draw: Draw, meshes: Tensor, half: Tensor, height: Tensor, count: int, *, share: float) -> Placed:
    """``count`` meshes a scene from a library (T, K, 3, 4), each present with probability ``share``.

    They stand on the floor or hang in the air up to ``height`` (B,), within -half..half (B, 2).
    """
    chosen = meshes[draw.integers(len(meshes), count)]  # (B, M, K, 3, 4)
    turn, size = draw.uniform(0, 2 * math.pi, count), draw.uniform(0.6, 1.6, count)
    c, s, zero = size * turn.cos(), size * turn.sin(), torch.zeros_like(turn)
    linear = torch.stack([c, -s, zero, s, c, zero, zero, zero, size], -1).unflatten(-1, (3, 3))
    raised = draw.uniform(0, 1, count) * height[:, None] * (draw.uniform(0, 1, count) < 0.5)
    place = torch.cat([draw.uniform(-0.85, 0.85, count, 2) * half[:, None], raised[..., None]], -1)
    to_world = linear[:, :, None] @ chosen
    to_world[..., 3] += place[:, :, None]
    present = (draw.uniform(0, 1, count) < share)[..., None].expand(to_world.shape[:3])
    kind = torch.where(present, int(Kind.TRIANGLE), int(Kind.EMPTY)).flatten(1, 2)
    unused = to_world.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*kind.shape, PLANES, 4)
    slot = torch.arange(count, device=draw.device)[:, None].expand(present.shape).flatten(1, 2)
    return Placed(kind, to_world.flatten(1, 2), to_world.new_ones(*kind.shape, 3), unused, slot)


def _object_surfaces(draw: Draw, slots: int) -> SurfaceChoice:
    layers = torch.stack(
        [
            draw.layers(_NAMES, (slots,), photographs=0.15),
            draw.layers(("clouds", "speckle", "weave", "collage"), (slots,)),
        ],
        -1,
    )
    scale = torch.stack([1 / draw.uniform(0.35, 1.6, slots), 1 / draw.uniform(0.12, 0.5, slots)], -1)
    choice = SurfaceChoice(layers, scale, _tint(draw, slots), _look(draw, slots, shiny=0.35))
    return choice.partly_plain(draw)


def structure_materials(draw: Draw, boxes: Tensor, *, indoor: bool) -> SurfaceChoice:
    """Surfaces of room, floor, ceiling, rug and what hangs on the walls; or ground, path and buildings."""
    count = boxes.shape[1]
    families = (WALLS, FLOORS, CEILINGS, FLOORS) if indoor else (GROUNDS, GROUNDS)
    rest = PICTURES if indoor else FACADES
    first = torch.stack([draw.layers(family, ()) for family in families], 1)
    others = draw.layers(rest, (count - len(families),), photographs=0.35 if indoor else 0.0)
    detail = draw.layers(("clouds", "speckle", "collage", "cobbles", "weave"), (count,))
    tile = draw.uniform(1.2, 4.0, count) if indoor else draw.uniform(3.0, 9.0, count)
    if indoor:  # a picture is one tile of its texture
        tile[:, 4:] = boxes[:, 4:, :, :3].abs().sum((-1, -2)) * 2 + 0.2
    scale = torch.stack([1 / tile, 1 / draw.uniform(0.2, 0.9, count)], -1)
    look = _look(draw, count, shiny=0.2)
    layers = torch.stack([torch.cat([first, others], 1), detail], -1)
    return SurfaceChoice(layers, scale, _tint(draw, count), look).partly_plain(draw)


def _tint(draw: Draw, count: int) -> Tensor:
    return draw.uniform(0.75, 1.25, count, 1) * draw.uniform(0.88, 1.12, count, 3)


def _look(draw: Draw, count: int, *, shiny: float) -> Tensor:
    gloss = draw.uniform(0, shiny, count) * (draw.uniform(0, 1, count) < 0.5)
    exponent = 8 * 20 ** draw.uniform(0, 1, count)
    return torch.stack([draw.uniform(0.2, 1.0, count), draw.uniform(0.4, 1.3, count), gloss, exponent], -1)
