"""The nearest surface along many rays at once: screen tiles are paired with the shapes that can be seen in them.

A *bundle* is a handful of rays that are tested together: the pixels of one tile, or the sub-samples of one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r_ros.training.solids import Kind, Solids, TensorFields, first_hit

TILE = 8  # pixels a side
_NEAR = 1e-3
_KINDS = tuple(kind for kind in Kind if kind is not Kind.EMPTY)
_NONE = torch.iinfo(torch.int64).max
_EDGES = ((0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7), (0, 4), (1, 5), (2, 6), (3, 7))


@dataclass(frozen=True, eq=False)
class Cameras(TensorFields):
    """N pinhole cameras: ``scene`` (N,) int64 the scene each looks at, ``camera_to_world`` (N, 4, 4),
    ``intrinsics`` (N, 4) as fx, fy, cx, cy in pixels, centres at integers + 0.5.
    """

    scene: Tensor
    camera_to_world: Tensor
    intrinsics: Tensor

    def rays(self, height: int, width: int) -> Tensor:
        """Directions (N, 3, H, W) in the world of the rays with z = 1 in the camera, through pixel centres."""
        v, u = torch.meshgrid(
            torch.arange(height, device=self.scene.device) + 0.5,
            torch.arange(width, device=self.scene.device) + 0.5,
            indexing="ij",
        )
        uv1 = torch.stack([u, v, torch.ones_like(u)]).to(self.intrinsics.dtype).reshape(3, -1)
        return (self.camera_to_world[:, :3, :3] @ (self.pixel_to_ray() @ uv1)).reshape(-1, 3, height, width)

    def pixel_to_ray(self) -> Tensor:
        """Inverse of K (N, 3, 3): from (u, v, 1) to the ray with z = 1 in the camera."""
        fx, fy, cx, cy = self.intrinsics.unbind(1)
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        return torch.stack([1 / fx, zero, -cx / fx, zero, 1 / fy, -cy / fy, zero, zero, one], 1).reshape(-1, 3, 3)


@dataclass(frozen=True, eq=False)
class Hits:
    """What each ray meets: ``t`` its parameter (inf when nothing), ``shape`` the place in its scene (-1)."""

    t: Tensor
    shape: Tensor


class Caster:
    """Casts rays of many cameras into their scenes."""

    def __init__(self, solids: Solids, cameras: Cameras) -> None:
        self.solids, self.cameras = solids, cameras
        to_local = solids.world_to_local[cameras.scene]  # (N, P, 3, 4)
        rotation, centre = cameras.camera_to_world[:, None, :3, :3], cameras.camera_to_world[:, None, :3, 3:]
        self._places = solids.kind.shape[1]
        self._kind = solids.kind[cameras.scene]
        self._origin = (to_local[..., :3] @ centre + to_local[..., 3:])[..., 0].reshape(-1, 3)
        uv_to_local = to_local[..., :3] @ (rotation @ cameras.pixel_to_ray()[:, None])
        self._uv_to_local = uv_to_local.reshape(-1, 3, 3)

    def primary(self, height: int, width: int) -> Hits:
        """The hits (N, H, W) of the rays through all pixel centres; ``t`` is the z-depth."""
        rows, columns = -(-height // TILE), -(-width // TILE)
        view, shape, row, column = self._visible(rows, columns).nonzero().unbind(1)
        corner = torch.stack([column, row], 1) * TILE
        step = torch.arange(TILE, device=view.device) + 0.5
        within = torch.stack([step.repeat(TILE), step.repeat_interleave(TILE)])
        tile = (view * rows + row) * columns + column
        hits = self.bundles(view, shape, corner, within, tile, len(self._kind) * rows * columns)
        shaped = (len(self._kind), rows, columns, TILE, TILE)

        def untile(values: Tensor) -> Tensor:
            whole = values.reshape(shaped).transpose(2, 3).reshape(-1, rows * TILE, columns * TILE)
            return whole[:, :height, :width].contiguous()

        return Hits(untile(hits.t), untile(hits.shape))

    def bundles(self, view: Tensor, shape: Tensor, corner: Tensor, within: Tensor, bundle: Tensor, count: int) -> Hits:
        """Hits (count, R) of ``count`` bundles with candidate shapes given as a list.

        Candidate k tests the rays through ``corner[k] + within`` (pixels; ``within`` (2, R)) of camera ``view[k]``
        against ``shape[k]`` and counts for ``bundle[k]``. Ties go to the lower place, so results are reproducible.
        """
        dtype = self._origin.dtype
        basis = torch.cat([within, torch.ones_like(within[:1])]).to(dtype)
        best = torch.full((count, within.shape[1]), _NONE, dtype=torch.int64, device=view.device)
        place = view * self._places + shape
        kinds = self._kind.reshape(-1).index_select(0, place)
        scene_place = self.cameras.scene.index_select(0, view) * self._places + shape
        for kind in _KINDS:
            at = (kinds == kind).nonzero()[:, 0]
            if not len(at):
                continue
            uv_to_local = self._uv_to_local.index_select(0, place[at])
            start = (
                uv_to_local
                @ torch.cat([corner[at].to(dtype), corner.new_ones((len(at), 1), dtype=dtype)], 1)[..., None]
            )
            direction = torch.cat([uv_to_local[..., :2], start], dim=2) @ basis
            t = self._first_hit(kind, scene_place[at], self._origin.index_select(0, place[at]), direction)
            _keep_nearest(best, bundle[at], t, shape[at])
        return _unpack(best)

    def lit(self, points: Tensor, light: Tensor, facing: Tensor) -> Tensor:
        """Whether light reaches points: float (N, H, W), 1 where nothing lies between.

        ``points`` (N, 3, H, W) world; ``light`` (N, 3) positions; ``facing`` (N, H, W) bool, False where the
        answer is not needed (0 is returned).
        """
        count, _, height, width = points.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        pad = (0, columns * TILE - width, 0, rows * TILE - height)
        tiled = torch.nn.functional.pad(points, pad).reshape(count, 3, rows, TILE, columns, TILE)
        tiled = tiled.permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, 3, TILE * TILE)
        asked = torch.nn.functional.pad(facing, pad).reshape(count, rows, TILE, columns, TILE)
        asked = asked.transpose(2, 3).reshape(count, rows * columns, TILE * TILE)
        view, tile, shape = self._between(tiled, asked, light).nonzero().unbind(1)
        dark = self._blocked(view, tile, shape, tiled, light).reshape(count, rows, columns, TILE, TILE)
        whole = dark.transpose(2, 3).reshape(count, rows * TILE, columns * TILE)[:, :height, :width]
        return ((whole == 0) & facing).to(points.dtype)

    def _between(self, tiled: Tensor, asked: Tensor, light: Tensor) -> Tensor:
        """Which shapes (N, T, P) can lie between a tile's points and the light: cone against bounding sphere."""
        to_world = self.solids.local_to_world[self.cameras.scene]
        centre, reach = to_world[..., 3], to_world[..., :3].square().sum((-1, -2)).sqrt()
        some = asked.any(-1)
        low = torch.where(asked[:, :, None], tiled, torch.inf).amin(-1)
        high = torch.where(asked[:, :, None], tiled, -torch.inf).amax(-1)
        middle = torch.where(some[..., None], (low + high) / 2, 0.0)
        radius = torch.where(some, (high - low).square().sum(-1).sqrt() / 2, 0.0)
        axis = light[:, None] - middle  # (N, T, 3)
        offset = (middle * axis).sum(-1)[..., None]
        along = (torch.bmm(axis, centre.transpose(1, 2)) - offset) / axis.square().sum(-1)[..., None]
        along = along.clamp(0, 1)
        nearest = middle[:, :, None] + along[..., None] * axis[:, :, None]
        apart = (nearest - centre[:, None]).square().sum(-1)
        allowed = reach[:, None] + radius[..., None] * (1 - along)
        blocks = (self._kind != Kind.EMPTY) & (self._kind != Kind.ROOM)
        return (apart < allowed.square()) & some[..., None] & blocks[:, None]

    def _blocked(self, view: Tensor, tile: Tensor, shape: Tensor, tiled: Tensor, light: Tensor) -> Tensor:
        count, tiles, _, rays = tiled.shape
        dark = torch.zeros((count * tiles, rays), dtype=torch.int32, device=tiled.device)
        bundle = view * tiles + tile
        scene_place = self.cameras.scene.index_select(0, view) * self._places + shape
        kinds = self.solids.kind.reshape(-1).index_select(0, scene_place)
        to_local = self.solids.world_to_local.reshape(-1, 3, 4)
        from_light = (tiled - light[:, None, :, None]).reshape(-1, 3, rays)
        for kind in _KINDS:
            at = (kinds == kind).nonzero()[:, 0]
            if not len(at):
                continue
            affine = to_local.index_select(0, scene_place[at])
            direction = affine[..., :3] @ from_light.index_select(0, bundle[at])
            origin = (affine[..., :3] @ light[view[at], :, None] + affine[..., 3:])[..., 0]
            t = self._first_hit(kind, scene_place[at], origin, direction)
            shadow = (t < 0.999).to(torch.int32)
            dark.scatter_reduce_(0, bundle[at, None].expand_as(shadow), shadow, "amax")
        return dark

    def _first_hit(self, kind: Kind, scene_place: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
        quadric = self.solids.quadric.reshape(-1, 3).index_select(0, scene_place) if kind is Kind.QUADRIC else origin
        if kind is not Kind.POLYHEDRON:
            return first_hit(kind, origin, direction, quadric, quadric)
        planes = self.solids.planes.flatten(0, 1).index_select(0, scene_place)
        return first_hit(kind, origin, direction, quadric, planes)

    def _visible(self, rows: int, columns: int) -> Tensor:
        """Which tiles (N, P, rows, columns) the bounding boxes of the shapes touch."""
        low, high = _screen_bounds(self.solids, self.cameras)
        seen = (low <= high).all(-1) & (self._kind != Kind.EMPTY)
        seen_x = _touches(low[..., 0], high[..., 0], columns)
        seen_y = _touches(low[..., 1], high[..., 1], rows)
        return seen[..., None, None] & seen_x[:, :, None, :] & seen_y[..., None]


def _touches(low: Tensor, high: Tensor, tiles: int) -> Tensor:
    edges = torch.arange(tiles, device=low.device) * TILE
    return (low[..., None] < edges + TILE) & (high[..., None] > edges)


def _screen_bounds(solids: Solids, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Pixel bounds (N, P, 2), low and high, of the bounding boxes, exactly clipped at the near plane."""
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], device=cameras.scene.device)
    to_world = solids.local_to_world[cameras.scene]
    corners = to_world[..., :3] @ signs.T.to(to_world.dtype) + to_world[..., 3:]  # (N, P, 3, 8)
    back = cameras.camera_to_world[:, None, :3, :3].transpose(-1, -2)
    camera = back @ (corners - cameras.camera_to_world[:, None, :3, 3:])
    edges = torch.tensor(_EDGES, device=signs.device)
    one, two = camera[..., edges[:, 0]], camera[..., edges[:, 1]]  # (N, P, 3, 12)
    points = torch.cat([_clip(one, two), _clip(two, one)], dim=-1)
    front = points[:, :, 2] >= _NEAR * 0.999
    fx, fy, cx, cy = (value[:, None, None] for value in cameras.intrinsics.unbind(1))
    u = fx * points[:, :, 0] / points[:, :, 2] + cx
    v = fy * points[:, :, 1] / points[:, :, 2] + cy
    uv = torch.stack([u, v], dim=-1)
    return (
        torch.where(front[..., None], uv, torch.inf).amin(2) - 0.01,
        torch.where(front[..., None], uv, -torch.inf).amax(2) + 0.01,
    )


def _clip(start: Tensor, end: Tensor) -> Tensor:
    """``start`` (..., 3, K) moved along the edge onto the near plane where it lies behind and ``end`` before it."""
    z0, z1 = start[..., 2:, :], end[..., 2:, :]
    crosses = (z0 < _NEAR) & (z1 > _NEAR)
    share = torch.where(crosses, (_NEAR - z0) / torch.where(crosses, z1 - z0, 1.0), 0.0)
    return start + share * (end - start)


def _keep_nearest(best: Tensor, bundle: Tensor, t: Tensor, shape: Tensor) -> None:
    """Lower ``best`` to the packed (t, place) where nearer; the bits of positive floats sort like the floats."""
    bits = t.float().contiguous().view(torch.int32).to(torch.int64)
    packed = bits.mul_(1 << 32).add_(shape[:, None])
    packed.masked_fill_(~torch.isfinite(t), _NONE)
    best.scatter_reduce_(0, bundle[:, None].expand_as(packed), packed, "amin")


def _unpack(best: Tensor) -> Hits:
    missed = best == _NONE
    t = (best >> 32).to(torch.int32).view(torch.float32).masked_fill(missed, torch.inf)
    return Hits(t, (best & 0x7FFFFFFF).masked_fill(missed, -1))
