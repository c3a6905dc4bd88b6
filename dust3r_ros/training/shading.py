"""What colour a surface point shows: texture, light and sky."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r_ros.training.solids import Solids, TensorFields, local_normal
from dust3r_ros.training.textures import TextureAtlas

CHUNK = 16384  # points shaded at once on a CPU, so that the work stays in its cache


@dataclass(frozen=True, eq=False)
class Materials(TensorFields):
    """How the P shapes of B scenes look.

    ``to_texture`` (B, P, 3, 4): rigid, from the world to the metric frame that the textures lie in (each point takes
    the two axes across its normal's largest); ``layers`` (B, P, 2) int64 base and detail texture;
    ``tiles_per_metre`` (B, P, 2) of both; ``tint`` (B, P, 3); ``look`` (B, P, 4): saturation, strength of the
    detail, specular share, specular exponent.
    """

    to_texture: Tensor
    layers: Tensor
    tiles_per_metre: Tensor
    tint: Tensor
    look: Tensor


@dataclass(frozen=True, eq=False)
class Lighting(TensorFields):
    """Light of B scenes: one lamp or sun that casts shadows, a fill light that does not, ambient light, sky.

    ``position`` (B, 3) metres; ``colour`` (B, 3); ``reach`` (B,) metres at which the lamp gives half of what it gives
    near by (inf for a sun); ``fill_direction`` (B, 3) unit, towards the light, and ``fill_colour`` (B, 3);
    ``ambient_up`` and ``ambient_down`` (B, 3) of surfaces that face up and down; ``zenith``, ``horizon`` (B, 3) the
    sky's colours; ``cloud_layer`` (B,) int64, its texture.
    """

    position: Tensor
    colour: Tensor
    reach: Tensor
    fill_direction: Tensor
    fill_colour: Tensor
    ambient_up: Tensor
    ambient_down: Tensor
    zenith: Tensor
    horizon: Tensor
    cloud_layer: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """N visible points to shade: ``scene`` (N,) and ``shape`` (N,) (-1 is sky); ``centre`` (N, 3) the camera;
    ``ray`` (N, 3) with z = 1 in the camera; ``t`` (N,) the z-depth; ``pixel`` (N,) a pixel's size at depth 1.
    """

    scene: Tensor
    shape: Tensor
    centre: Tensor
    ray: Tensor
    t: Tensor
    pixel: Tensor

    def part(self, index: slice) -> Samples:
        """Some of them."""
        return Samples(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


class Shader:
    """Shades points of a batch of scenes."""

    def __init__(self, solids: Solids, materials: Materials, lighting: Lighting, atlas: TextureAtlas) -> None:
        self.solids, self.materials, self.lighting, self.atlas = solids, materials, lighting, atlas
        self._places = solids.kind.shape[1]
        self._table = torch.cat(
            [
                solids.world_to_local.flatten(2),
                materials.to_texture.flatten(2),
                materials.tiles_per_metre,
                materials.tint,
                materials.look,
            ],
            dim=2,
        ).flatten(0, 1)  # (B * P, 33)

    def normals(self, samples: Samples) -> Tensor:
        """Unit normals (N, 3) in the world, facing the camera; zero where there is only sky."""
        return torch.cat([self._normals(samples.part(part))[0] for part in _parts(samples)])

    def shade(self, samples: Samples, normal: Tensor, lit: Tensor, *, trilinear: bool = True) -> Tensor:
        """Colours (N, 3) in [0, 1]; ``normal`` as ``normals`` gives, ``lit`` (N,) the share of the light that arrives."""
        parts = [self._shade(samples.part(p), normal[p], lit[p], trilinear) for p in _parts(samples)]
        return torch.cat(parts)

    def _normals(self, samples: Samples) -> tuple[Tensor, Tensor]:
        place = samples.scene * self._places + samples.shape.clamp(min=0)
        affine = self._table.index_select(0, place)[:, :12].reshape(-1, 3, 4)
        t = samples.t.clamp(max=1e6)
        world = samples.centre + samples.ray * t[:, None]
        local = (affine[..., :3] * world[:, None]).sum(-1) + affine[..., 3]
        gradient = local_normal(self.solids, place, local)
        normal = torch.nn.functional.normalize((affine[..., :3] * gradient[..., None]).sum(1), dim=1)
        facing = -(normal * samples.ray).sum(1, keepdim=True).sign()
        return normal * torch.where((samples.shape < 0)[:, None], 0.0, torch.where(facing == 0, 1.0, facing)), world

    def _shade(self, samples: Samples, normal: Tensor, lit: Tensor, trilinear: bool) -> Tensor:
        place = samples.scene * self._places + samples.shape.clamp(min=0)
        row = self._table.index_select(0, place)
        t = samples.t.clamp(max=1e6)
        world = samples.centre + samples.ray * t[:, None]
        length = samples.ray.square().sum(1).sqrt()
        view = samples.ray / -length[:, None]
        slant = (normal * view).sum(1).clamp(min=0.08)
        footprint = t * samples.pixel * slant.rsqrt()
        albedo = self._albedo(place, row, world, normal, footprint, trilinear)
        colour = self._light(samples.scene, row, world, normal, view, albedo, lit)
        return self._with_sky(samples, colour).clamp_(0, 1)

    def _albedo(
        self, place: Tensor, row: Tensor, world: Tensor, normal: Tensor, footprint: Tensor, trilinear: bool
    ) -> Tensor:
        frame = row[:, 12:24].reshape(-1, 3, 4)
        metric = (frame[..., :3] * world[:, None]).sum(-1) + frame[..., 3]
        across = (frame[..., :3] * normal[:, None]).sum(-1).abs().argmax(1, keepdim=True)
        u = torch.where(across == 0, metric[:, 1:2], metric[:, :1])
        v = torch.where(across == 2, metric[:, 1:2], metric[:, 2:])
        metres = torch.cat([u, -v], dim=1)  # textures are upright on upright faces
        layers = self.materials.layers.reshape(-1, 2).index_select(0, place)
        scale = row[:, 24:26]
        level = torch.log2(scale * footprint[:, None] * self.atlas.size + 1e-9)
        base = self.atlas.sample(layers[:, 0], metres * scale[:, :1], level[:, 0], trilinear=trilinear)
        detail = self.atlas.sample(layers[:, 1], metres * scale[:, 1:], level[:, 1], trilinear=False)[:, 3:]
        saturation, strength = row[:, 29:30], row[:, 30:31]
        colour = torch.lerp(base[:, 3:], base[:, :3], saturation) * row[:, 26:29]
        return colour * (1 + strength * (detail - 0.5))

    def _light(
        self, scene: Tensor, row: Tensor, world: Tensor, normal: Tensor, view: Tensor, albedo: Tensor, lit: Tensor
    ) -> Tensor:
        light = self.lighting[scene]
        towards = light.position - world
        distance = towards.square().sum(1, keepdim=True).sqrt()
        towards = towards / distance
        fade = 1 / (1 + (distance / light.reach[:, None]).square())
        cosine = (normal * towards).sum(1, keepdim=True).clamp(min=0)
        direct = fade * lit[:, None]
        up = 0.5 + 0.5 * normal[:, 2:]
        fill = (normal * light.fill_direction).sum(1, keepdim=True).clamp(min=0)
        diffuse = (
            light.colour * (direct * cosine) + light.fill_colour * fill + torch.lerp(light.ambient_down, light.ambient_up, up)
        )
        half = torch.nn.functional.normalize(towards + view, dim=1)
        shine = (normal * half).sum(1, keepdim=True).clamp(min=1e-4).pow(row[:, 32:33])
        fresnel = (1 - (normal * view).sum(1, keepdim=True).clamp(0, 1)).pow(5)
        mirrored = 2 * (normal * view).sum(1, keepdim=True) * normal[:, 2:] - view[:, 2:]
        around = torch.lerp(light.horizon, light.zenith, (0.5 + 0.5 * mirrored).clamp(0, 1))
        specular = row[:, 31:32]
        return albedo * diffuse + specular * (light.colour * (direct * shine) + fresnel * around)

    def _with_sky(self, samples: Samples, colour: Tensor) -> Tensor:
        at = (samples.shape < 0).nonzero()[:, 0]
        if not len(at):
            return colour
        light = self.lighting[samples.scene[at]]
        ray = torch.nn.functional.normalize(samples.ray[at], dim=1)
        height = ray[:, 2:].clamp(min=0)
        sky = torch.lerp(light.horizon, light.zenith, height.sqrt())
        plane = ray[:, :2] / (ray[:, 2:].abs() + 0.25)
        level = torch.log2(samples.pixel[at] * self.atlas.size / (height[:, 0] + 0.25).square())
        cloud = self.atlas.sample(light.cloud_layer, 0.5 * plane, level)[:, 3:]
        sky = sky + 0.5 * (cloud - 0.4) * (1 - sky)
        sun = torch.nn.functional.normalize(light.position, dim=1)
        glow = (ray * sun).sum(1, keepdim=True).clamp(min=0).pow(200)
        return colour.index_copy(0, at, sky + glow)


def _parts(samples: Samples) -> list[slice]:
    count = len(samples.shape)
    step = CHUNK if samples.shape.device.type == "cpu" else max(count, 1)
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]


def fill_light_direction(azimuth: Tensor, height: Tensor) -> Tensor:
    """Unit vectors (B, 3) from azimuths (B,) in turns and heights (B,), the sine of the elevation."""
    flat = (1 - height.square()).sqrt()
    angle = 2 * math.pi * azimuth
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], dim=1)
