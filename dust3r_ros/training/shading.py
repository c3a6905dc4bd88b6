"""What colour a surface point shows: texture, light and sky."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dust3r_ros.training.solids import Solids, TensorFields, local_normal
from dust3r_ros.training.textures import TextureAtlas

CHUNK = 16384  # points shaded at once on a CPU, so that the work stays in its cache
_SHOULDER = 0.7


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
    """N visible points to shade: ``scene`` (N,) and ``shape`` (N,) (-1 is sky); ``centre`` (3, N) the camera;
    ``ray`` (3, N) with z = 1 in the camera; ``t`` (N,) the z-depth; ``pixel`` (N,) a pixel's size at depth 1.
    """

    scene: Tensor
    shape: Tensor
    centre: Tensor
    ray: Tensor
    t: Tensor
    pixel: Tensor

    def part(self, index: slice) -> Samples:
        """Some of them."""
        return Samples(*(getattr(self, name)[..., index] for name in self.__dataclass_fields__))

    def points(self) -> Tensor:
        """The points (3, N) in the world; something far away for sky."""
        return self.centre + self.ray * self.t.clamp(max=1e6)


class Shader:
    """Shades points of a batch of scenes. Inside, vectors are (3, N): that is what a CPU is fast with."""

    def __init__(self, solids: Solids, materials: Materials, lighting: Lighting, atlas: TextureAtlas) -> None:
        self.solids, self.atlas = solids, atlas
        self._places = solids.kind.shape[1]
        self._to_local = _columns(solids.world_to_local.flatten(2))
        self._surface = _columns(
            torch.cat(
                [materials.to_texture.flatten(2), materials.tiles_per_metre, materials.tint, materials.look], dim=2
            )
        )
        self._layers = _columns(materials.layers)
        self._light = torch.cat(
            [
                lighting.position, lighting.colour, lighting.reach[:, None], lighting.fill_direction,
                lighting.fill_colour, lighting.ambient_up, lighting.ambient_down, lighting.zenith, lighting.horizon,
            ],
            dim=1,
        ).T.contiguous()  # fmt: skip
        self._cloud_layer = lighting.cloud_layer

    def normals(self, samples: Samples) -> Tensor:
        """Unit normals (3, N) in the world, facing the camera; zero where there is only sky."""
        return torch.cat([self._normals(samples.part(part)) for part in _parts(samples)], dim=1)

    def shade(self, samples: Samples, normal: Tensor, lit: Tensor, *, trilinear: bool = True) -> Tensor:
        """Colours (3, N) in [0, 1]; ``normal`` as ``normals`` gives, ``lit`` (N,) the share of light arriving."""
        parts = [self._shade(samples.part(p), normal[:, p], lit[p], trilinear) for p in _parts(samples)]
        return torch.cat(parts, dim=1)

    def _place(self, samples: Samples) -> Tensor:
        return samples.shape.clamp(min=0).add_(samples.scene, alpha=self._places)

    def _normals(self, samples: Samples) -> Tensor:
        place = self._place(samples)
        affine = self._to_local.index_select(1, place).unflatten(0, (3, 4))
        gradient = local_normal(self.solids, place, _apply(affine, samples.points()))
        normal = (affine[:, :3] * gradient[:, None]).sum(0)
        sign = torch.where(_dot(normal, samples.ray) > 0, -1.0, 1.0).masked_fill_(samples.shape < 0, 0.0)
        return normal * (sign / _dot(normal, normal).sqrt_().clamp_(min=1e-20))

    def _shade(self, samples: Samples, normal: Tensor, lit: Tensor, trilinear: bool) -> Tensor:
        place = self._place(samples)
        surface = self._surface.index_select(1, place)
        point = samples.points()
        view = samples.ray * -_dot(samples.ray, samples.ray).rsqrt()
        slant = _dot(normal, view)
        footprint = samples.t.clamp(max=1e6) * samples.pixel * slant.clamp(min=0.08).rsqrt_()
        albedo = self._albedo(place, surface, point, normal, footprint, trilinear)
        colour = self._reflect(samples.scene, surface, point, normal, view, slant, albedo, lit)
        return _exposed(self._with_sky(samples, colour))

    def _albedo(
        self, place: Tensor, surface: Tensor, point: Tensor, normal: Tensor, footprint: Tensor, trilinear: bool
    ) -> Tensor:
        frame = surface[:12].unflatten(0, (3, 4))
        x, y, z = _apply(frame, point)
        turned = (frame[:, :3] * normal).sum(1).abs_()
        along_x, along_z = (turned[0] >= turned[1]) & (turned[0] >= turned[2]), turned[2] > turned[1]
        u = torch.where(along_x, y, x)
        v = torch.where(along_z & ~along_x, y, -z)  # textures are upright on upright faces
        base_layer, detail_layer = self._layers.index_select(1, place)
        base_scale, detail_scale = surface[12], surface[13]
        level = (footprint * self.atlas.size).add_(1e-9).log2_()
        base = self.atlas.colour(
            base_layer, u * base_scale, v * base_scale, level + base_scale.log2(), trilinear=trilinear
        )
        detail = self.atlas.luminance(detail_layer, u * detail_scale, v * detail_scale, level + detail_scale.log2())
        tint, saturation, strength = surface[14:17], surface[17], surface[18]
        return torch.lerp(base.mean(0), base, saturation) * tint * (1 + strength * (detail - 0.5))

    def _reflect(
        self, scene: Tensor, surface: Tensor, point: Tensor, normal: Tensor, view: Tensor, slant: Tensor,
        albedo: Tensor, lit: Tensor,
    ) -> Tensor:  # fmt: skip
        """Diffuse and ambient light, a highlight, and the surroundings mirrored at grazing angles (Schlick 1994)."""
        light = self._light.index_select(1, scene)
        colour, fill_direction, fill_colour, up, down, zenith, horizon = (
            light[k : k + 3] for k in (3, 7, 10, 13, 16, 19, 22)
        )
        towards = light[:3] - point
        square = _dot(towards, towards)
        towards = towards * square.rsqrt()
        direct = colour * (lit / (1 + square / light[6].square()))
        cosine, fill = _dot(normal, towards).clamp_(min=0), _dot(normal, fill_direction).clamp_(min=0)
        diffuse = direct * cosine + fill_colour * fill + torch.lerp(down, up, 0.5 + 0.5 * normal[2])
        half = towards + view
        shine = (_dot(normal, half) * _dot(half, half).clamp_(min=1e-9).rsqrt_()).clamp_(min=1e-4).pow(surface[20])
        grazing = (1 - slant.clamp(0, 1)).square()
        mirrored = (0.5 + slant * normal[2] - 0.5 * view[2]).clamp_(0, 1)
        around = torch.lerp(horizon, zenith, mirrored) * (grazing * grazing)
        return albedo * diffuse + (direct * shine + around) * surface[19]

    def _with_sky(self, samples: Samples, colour: Tensor) -> Tensor:
        at = (samples.shape < 0).nonzero()[:, 0]
        if not len(at):
            return colour
        scene = samples.scene[at]
        light = self._light.index_select(1, scene)
        ray = torch.nn.functional.normalize(samples.ray[:, at], dim=0)
        height = ray[2].clamp(min=0)
        sky = torch.lerp(light[22:25], light[19:22], height.sqrt())
        x, y = 0.5 * ray[:2] / (ray[2].abs() + 0.25)
        level = torch.log2(samples.pixel[at] * self.atlas.size / (height + 0.25).square())
        cloud = self.atlas.luminance(self._cloud_layer[scene], x, y, level)
        sky = sky + 0.5 * (cloud - 0.4) * (1 - sky)
        glow = _dot(ray, torch.nn.functional.normalize(light[:3], dim=0)).clamp_(min=0).pow(200)
        return colour.index_copy(1, at, sky + glow)


def _exposed(light: Tensor) -> Tensor:
    """Light as a camera records it: linear up to 0.7, then bending towards white."""
    return torch.where(
        light < _SHOULDER, light, 1 - (1 - _SHOULDER) * ((_SHOULDER - light) / (1 - _SHOULDER)).exp()
    ).clamp_(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _apply(affine: Tensor, point: Tensor) -> Tensor:
    """Points (3, N) through affine maps (3, 4, N)."""
    return (affine[:, :3] * point).sum(1).add_(affine[:, 3])


def _columns(table: Tensor) -> Tensor:
    """(B, P, F) as (F, B * P)."""
    return table.flatten(0, 1).T.contiguous()


def _parts(samples: Samples) -> list[slice]:
    count = len(samples.shape)
    step = CHUNK if samples.shape.device.type == "cpu" else max(count, 1)
    return [slice(start, start + step) for start in range(0, max(count, 1), step)]


def fill_light_direction(azimuth: Tensor, height: Tensor) -> Tensor:
    """Unit vectors (B, 3) from azimuths (B,) in turns and heights (B,), the sine of the elevation."""
    flat = (1 - height.square()).sqrt()
    angle = 2 * math.pi * azimuth
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], dim=1)
