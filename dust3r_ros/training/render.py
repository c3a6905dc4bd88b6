"""Pictures of scenes with their exact geometry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r_ros.training.raycast import Cameras, Caster, Hits
from dust3r_ros.training.scenes import SceneBatch
from dust3r_ros.training.shading import Samples, Shader
from dust3r_ros.training.solids import TensorFields

_PIXELS_AT_ONCE = {"cpu": 160_000, "cuda": 8_000_000}
_SUB_PIXELS = ((-0.25, 0.25, -0.25, 0.25), (-0.25, -0.25, 0.25, 0.25))
_CREASE = 0.95  # cosine between neighbours' normals below which a pixel is anti-aliased


@dataclass(frozen=True, eq=False)
class Views(TensorFields):
    """V pictures of each of B scenes.

    ``rgb`` (B, V, H, W, 3) in [0, 1]; ``depth`` (B, V, H, W) exact z-depth of pixel centres in metres, 0 where there is
    only sky; ``normals`` (B, V, H, W, 3) unit, world, towards the camera, 0 for sky; ``shape`` (B, V, H, W) int64 the
    place of the shape seen, -1 for sky; ``camera_to_world`` (B, V, 4, 4); ``intrinsics`` (B, V, 4) fx, fy, cx, cy.
    """

    rgb: Tensor
    depth: Tensor
    normals: Tensor
    shape: Tensor
    camera_to_world: Tensor
    intrinsics: Tensor

    def points_camera(self) -> Tensor:
        """Points (B, V, H, W, 3) in each view's own camera frame; 0 for sky."""
        height, width = self.depth.shape[2:]
        u = torch.arange(width, device=self.depth.device) + 0.5
        v = torch.arange(height, device=self.depth.device)[:, None] + 0.5
        fx, fy, cx, cy = (value[..., None, None] for value in self.intrinsics.unbind(-1))
        return torch.stack([(u - cx) / fx * self.depth, (v - cy) / fy * self.depth, self.depth], dim=-1)

    def points_world(self) -> Tensor:
        """Points (B, V, H, W, 3) in the world; the camera's centre for sky."""
        pose = self.camera_to_world[:, :, None, None]
        return (pose[..., :3, :3] @ self.points_camera()[..., None])[..., 0] + pose[..., :3, 3]


def render(
    scenes: SceneBatch,
    camera_to_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    antialias: bool = True,
    shadows: bool = True,
) -> Views:
    """Pictures of B scenes from V cameras each, on the scenes' device.

    ``camera_to_world`` (B, V, 4, 4), z forward and y down; ``intrinsics`` (4,), (V, 4) or (B, V, 4): fx, fy, cx, cy in
    pixels, centres at integers + 0.5; ``size`` is (H, W). ``antialias`` takes four samples in pixels where shapes or
    faces meet (textures are band-limited by their mip levels and need none). Deterministic.
    Raises ValueError where shapes do not fit.
    """
    cameras = _flatten(scenes, camera_to_world, intrinsics)
    count = cameras.scene.numel()
    step = max(1, _PIXELS_AT_ONCE["cuda" if scenes.device.type == "cuda" else "cpu"] // (size[0] * size[1]))
    parts = []
    for start in range(0, count, step):
        part = cameras[start : start + step]
        parts.append(_render(scenes, part, size, antialias, shadows))
    shaped = camera_to_world.shape[:2]
    rgb, depth, normals, shape = (torch.cat(values).unflatten(0, shaped) for values in zip(*parts))
    k = cameras.intrinsics.unflatten(0, shaped)
    return Views(rgb, depth, normals, shape, camera_to_world, k)


def render_depth(scenes: SceneBatch, camera_to_world: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Only the exact z-depth (B, V, H, W), 0 for sky; arguments as ``render``."""
    cameras = _flatten(scenes, camera_to_world, intrinsics)
    depth = Caster(scenes.solids, cameras).primary(*size).t
    return depth.masked_fill(depth.isinf(), 0).unflatten(0, camera_to_world.shape[:2])


def _flatten(scenes: SceneBatch, camera_to_world: Tensor, intrinsics: Tensor) -> Cameras:
    batch = len(scenes)
    if camera_to_world.ndim != 4 or camera_to_world.shape[0] != batch or camera_to_world.shape[2:] != (4, 4):
        raise ValueError(f"camera_to_world must be ({batch}, V, 4, 4), got {tuple(camera_to_world.shape)}")
    views = camera_to_world.shape[1]
    if intrinsics.shape not in ((4,), (views, 4), (batch, views, 4)):
        raise ValueError(
            f"intrinsics must be (4,), ({views}, 4) or ({batch}, {views}, 4), got {tuple(intrinsics.shape)}"
        )
    scene = torch.arange(batch, device=scenes.device).repeat_interleave(views)
    k = intrinsics.to(scenes.device, torch.float32).expand(batch, views, 4).reshape(-1, 4)
    return Cameras(scene, camera_to_world.to(scenes.device, torch.float32).flatten(0, 1), k)


def _render(
    scenes: SceneBatch, cameras: Cameras, size: tuple[int, int], antialias: bool, shadows: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    caster = Caster(scenes.solids, cameras)
    shader = Shader(scenes.solids, scenes.materials, scenes.lighting, scenes.atlas)
    hits = caster.primary(*size)
    rays = cameras.rays(*size)
    samples = _samples(cameras, hits, rays)
    normals = shader.normals(samples)
    lit = _lit(scenes, cameras, caster, hits, rays, normals) if shadows else torch.ones_like(hits.t)
    around = _around(hits.shape)
    lit = _mean_of_same(around, _around(lit), hits.shape[..., None])[..., 0]
    rgb = shader.shade(samples, normals, lit.reshape(-1)).reshape(3, *hits.shape.shape).permute(1, 2, 3, 0).contiguous()
    shaped = normals.reshape(3, *hits.shape.shape).permute(1, 2, 3, 0).contiguous()
    if antialias:
        rgb = _antialias(cameras, caster, shader, rgb, hits, shaped, around, lit)
    return rgb, hits.t.masked_fill(hits.t.isinf(), 0), shaped, hits.shape


def _samples(cameras: Cameras, hits: Hits, rays: Tensor) -> Samples:
    pixels = hits.t[0].numel()
    return Samples(
        cameras.scene.repeat_interleave(pixels),
        hits.shape.reshape(-1),
        cameras.camera_to_world[:, :3, 3].T.repeat_interleave(pixels, 1),
        rays.transpose(0, 1).reshape(3, -1),
        hits.t.reshape(-1),
        (1 / cameras.intrinsics[:, 0]).repeat_interleave(pixels),
    )


def _lit(scenes: SceneBatch, cameras: Cameras, caster: Caster, hits: Hits, rays: Tensor, normals: Tensor) -> Tensor:
    """The share of light that arrives (N, H, W)."""
    light = scenes.lighting.position[cameras.scene]
    depth = hits.t.masked_fill(hits.t.isinf(), 0)
    points = cameras.camera_to_world[:, :3, 3, None, None] + rays * depth[:, None]
    facing = normals.reshape(3, *hits.t.shape).transpose(0, 1)
    towards = light[..., None, None] - points
    return caster.lit(points, light, ((towards * facing).sum(1) > 0) & (hits.shape >= 0))


def _around(values: Tensor) -> Tensor:
    """A pixel's own and its four neighbours' values (N, H, W, 5); the border repeats."""
    kind = values.dtype
    padded = torch.nn.functional.pad(values.float()[:, None], (1, 1, 1, 1), mode="replicate")[:, 0].to(kind)
    centre = padded[:, 1:-1, 1:-1]
    return torch.stack(
        [centre, padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]], dim=-1
    )


def _mean_of_same(shapes: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Mean (..., K) over ``values`` (..., 5) of those neighbours whose shape is the ``wanted`` (..., K) one."""
    total, weight = torch.zeros_like(wanted, dtype=values.dtype), torch.zeros_like(wanted, dtype=values.dtype)
    for k in range(shapes.shape[-1]):
        same = (shapes[..., k : k + 1] == wanted).to(values.dtype)
        total += same * values[..., k : k + 1]
        weight += same
    return total / weight.clamp(min=1)


def _antialias(
    cameras: Cameras,
    caster: Caster,
    shader: Shader,
    rgb: Tensor,
    hits: Hits,
    normals: Tensor,
    around: Tensor,
    lit: Tensor,
) -> Tensor:
    """Replace pixels on borders and creases by the mean of four samples.

    The samples are tested against the shapes that the pixel and its neighbours show, and take their light.
    """
    view, row, column = _borders(around, normals).nonzero().unbind(1)
    if not len(view):
        return rgb
    shapes = around[view, row, column]  # (E, 5)
    candidate = shapes >= 0
    for k in range(1, 5):
        candidate[:, k] &= (shapes[:, k : k + 1] != shapes[:, :k]).all(1)
    pixel, which = candidate.nonzero().unbind(1)
    corner = torch.stack([column, row], 1)
    within = torch.tensor(_SUB_PIXELS, device=rgb.device) + 0.5
    sub = caster.bundles(view[pixel], shapes[pixel, which], corner[pixel], within, pixel, len(view))
    share = _mean_of_same(shapes, _around(lit)[view, row, column], sub.shape)
    uv1 = torch.cat([corner[:, :, None] + within, torch.ones_like(within[:1]).expand(len(view), 1, -1)], dim=1)
    to_world = cameras.camera_to_world[:, :3, :3] @ cameras.pixel_to_ray()
    rays = (to_world[view] @ uv1).transpose(0, 1).reshape(3, -1)
    many = view.repeat_interleave(within.shape[1])
    samples = Samples(
        cameras.scene[many],
        sub.shape.reshape(-1),
        cameras.camera_to_world[many, :3, 3].T.contiguous(),
        rays,
        sub.t.reshape(-1),
        1 / cameras.intrinsics[many, 0],
    )
    colours = shader.shade(samples, shader.normals(samples), share.reshape(-1), trilinear=False)
    rgb[view, row, column] = colours.reshape(3, len(view), -1).mean(2).T
    return rgb


def _borders(around: Tensor, normals: Tensor) -> Tensor:
    """Pixels (N, H, W) whose neighbours show another shape or a face turned away."""
    border = (around[..., 1:] != around[..., :1]).any(-1)
    for axis in (1, 2):
        size = normals.shape[axis] - 1
        one, two = normals.narrow(axis, 0, size), normals.narrow(axis, 1, size)
        crease = ((one * two).sum(-1) < _CREASE) & (one != 0).any(-1)
        border.narrow(axis, 0, size).logical_or_(crease)
        border.narrow(axis, 1, size).logical_or_(crease)
    return border
