"""Solid shapes in closed form, and where rays meet them.

Every shape is written in a local frame in which it fits the cube [-1, 1]^3; an affine map places, stretches and turns
it. A ray parameter is the same in both frames, so with camera rays of z = 1 it is the exact z-depth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

PLANES = 10  # of a polyhedron, at most
_TINY = 1e-20  # keeps a ray component from being exactly 0
TensorsT = TypeVar("TensorsT", bound="TensorFields")


class TensorFields:
    """A frozen dataclass all of whose fields are tensors that share the first dimension(s)."""

    def map(self: TensorsT, function: object) -> TensorsT:
        """The same with ``function`` applied to every tensor."""
        return type(self)(**{f.name: function(getattr(self, f.name)) for f in fields(self)})  # type: ignore[operator,arg-type]

    def to(self: TensorsT, device: torch.device | str) -> TensorsT:
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def __getitem__(self: TensorsT, index: object) -> TensorsT:
        """Every tensor indexed along its first dimension."""
        return self.map(lambda tensor: tensor[index])


class Kind(IntEnum):
    """The shapes, each within [-1, 1]^3 of its local frame."""

    EMPTY = 0
    BOX = 1  # the whole cube
    QUADRIC = 2  # x^2 + y^2 <= a + b z + c z^2 and |z| <= 1: cylinder, cone, ellipsoid, bowl, barrel, hourglass
    POLYHEDRON = 3  # n . x <= h for up to PLANES planes
    TRIANGLE = 4  # (-1, -1, 0), (1, -1, 0), (-1, 1, 0)
    ROOM = 5  # the cube seen from within


@dataclass(frozen=True, eq=False)
class Solids(TensorFields):
    """B scenes of P shapes each; unused places have ``Kind.EMPTY``.

    ``kind`` (B, P) int64; ``local_to_world`` and ``world_to_local`` (B, P, 3, 4) affine, its inverse;
    ``quadric`` (B, P, 3) the a, b, c of a QUADRIC; ``planes`` (B, P, PLANES, 4) the (n, h) of a POLYHEDRON,
    unused ones (0, 0, 0, 1).
    """

    kind: Tensor
    local_to_world: Tensor
    world_to_local: Tensor
    quadric: Tensor
    planes: Tensor


def intersect_box(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube: parameters (N, R); no hit where enter > leave.

    ``origin`` (N, 3), ``direction`` (N, 3, R), both local. The slab method (Kay and Kajiya 1986).
    """
    inverse = (direction + _TINY).reciprocal_()
    middle = inverse * -origin[..., None]
    half = inverse.abs_()
    near, far = middle - half, middle.add_(half)
    return (
        torch.maximum(torch.maximum(near[:, 0], near[:, 1]), near[:, 2]),
        torch.minimum(torch.minimum(far[:, 0], far[:, 1]), far[:, 2]),
    )


def intersect_quadric(origin: Tensor, direction: Tensor, quadric: Tensor) -> tuple[Tensor, Tensor]:
    """As ``intersect_box`` for capped quadrics ``quadric`` (N, 3).

    A quadric that is not convex (an hourglass) may be met in two pieces; the first with a positive end is returned.
    """
    dx, dy, dz = direction.unbind(1)
    ox, oy, oz = (component[:, None] for component in origin.unbind(1))
    qa, qb, qc = (coefficient[:, None] for coefficient in quadric.unbind(1))
    # from the point nearest to the local origin, so that no digits are lost on a small far shape
    start = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
    ox, oy, oz = ox + start * dx, oy + start * dy, oz + start * dz
    a = dx * dx + dy * dy - qc * dz * dz
    b = ox * dx + oy * dy - (0.5 * qb + qc * oz) * dz
    c = ox * ox + oy * oy - qa - (qb + qc * oz) * oz
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt_()
    # the stable form of both roots: q / a and c / q
    q = -(b + torch.where(b >= 0, root, -root))
    one, two = q / torch.where(a == 0, _TINY, a), c / torch.where(q == 0, _TINY, q)
    first, second = torch.minimum(one, two), torch.maximum(one, two)
    inverse = (dz + _TINY).reciprocal()
    slab_near, slab_far = -oz * inverse - inverse.abs(), -oz * inverse + inverse.abs()
    inside_out = a < 0
    missed = discriminant < 0
    near = torch.where(inside_out, slab_near, torch.maximum(first, slab_near))
    far = torch.where(
        inside_out, torch.minimum(slab_far, torch.where(missed, torch.inf, first)), torch.minimum(second, slab_far)
    )
    near = torch.where(missed & ~inside_out, torch.inf, near)
    other = inside_out & ~missed & ((near > far) | (far + start <= 0))  # the first piece is empty or behind
    near = torch.where(other, torch.maximum(second, slab_near), near)
    far = torch.where(other, slab_far, far)
    return near + start, far + start


def intersect_polyhedron(origin: Tensor, direction: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
    """As ``intersect_box`` for the intersection of half-spaces ``planes`` (N, PLANES, 4) (Haines 1991)."""
    slope = planes[..., :3] @ direction
    gap = planes[..., 3:] - planes[..., :3] @ origin[..., None]
    t = gap / slope
    entering = slope < 0
    near = torch.where(entering, t, -torch.inf).amax(1)
    # a ray along a plane (slope 0) leaves at +inf when it runs inside and at -inf when it runs outside
    far = torch.where(entering, torch.inf, t).amin(1)
    return near, far


def intersect_triangle(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """As ``intersect_box`` for the triangle in the plane z = 0; enter and leave coincide."""
    t = -origin[:, 2:] / (direction[:, 2] + _TINY)
    x, y = origin[:, :1] + t * direction[:, 0], origin[:, 1:2] + t * direction[:, 1]
    hit = (x >= -1) & (y >= -1) & (x + y <= 0)
    return torch.where(hit, t, torch.inf), torch.where(hit, t, -torch.inf)


def first_hit(kind: Kind, origin: Tensor, direction: Tensor, quadric: Tensor, planes: Tensor) -> Tensor:
    """The parameter (N, R) > 0 at which rays first meet N shapes of one kind from outside; inf where they miss.

    A ROOM is met where the ray leaves it. A ray that starts inside another solid does not meet it.
    """
    if kind is Kind.QUADRIC:
        near, far = intersect_quadric(origin, direction, quadric)
    elif kind is Kind.POLYHEDRON:
        near, far = intersect_polyhedron(origin, direction, planes)
    elif kind is Kind.TRIANGLE:
        near, far = intersect_triangle(origin, direction)
    else:
        near, far = intersect_box(origin, direction)
    if kind is Kind.ROOM:
        return torch.where((near <= far) & (far > 0), far, torch.inf)
    return torch.where((near <= far) & (near > 0), near, torch.inf)


def local_normal(solids: Solids, place: Tensor, point: Tensor) -> Tensor:
    """Outward normals (3, N), not unit, at local surface points (3, N).

    ``place`` (N,) counts shapes through all scenes, ``scene * P + shape``. Of a ROOM the normal points inwards.
    """
    kind = solids.kind.reshape(-1).index_select(0, place)
    size = point.abs()
    largest = size == size.amax(0)
    normal = point.sign().mul_(largest).mul_(1.0 - 2.0 * (kind == Kind.ROOM))
    for special, make in (
        (Kind.TRIANGLE, lambda at: point.new_tensor([[0.0], [0.0], [1.0]]).expand(3, len(at))),
        (Kind.QUADRIC, lambda at: _quadric_normal(point[:, at], solids.quadric.reshape(-1, 3)[place[at]])),
        (Kind.POLYHEDRON, lambda at: _polyhedron_normal(point[:, at], solids.planes.flatten(0, 1)[place[at]])),
    ):
        at = (kind == special).nonzero()[:, 0]
        if len(at):
            normal.index_copy_(1, at, make(at))
    return normal


def _quadric_normal(point: Tensor, quadric: Tensor) -> Tensor:
    x, y, z = point
    a, b, c = quadric.unbind(1)
    side = 0.5 * (x * x + y * y - a - (b + c * z) * z)
    zero = torch.zeros_like(z)
    cap = z.abs() - 1 > side
    return torch.where(cap, torch.stack([zero, zero, z.sign()]), torch.stack([x, y, -0.5 * b - c * z]))


def _polyhedron_normal(point: Tensor, planes: Tensor) -> Tensor:
    distance = (planes[..., :3] @ point.T[..., None])[..., 0] - planes[..., 3]
    face = distance.argmax(dim=1)
    return planes[torch.arange(len(face), device=face.device), face, :3].T


def invert_affine(affine: Tensor) -> Tensor:
    """Inverse of affine maps (..., 3, 4)."""
    linear = torch.linalg.inv(affine[..., :3])
    return torch.cat([linear, -(linear @ affine[..., 3:])], dim=-1)
