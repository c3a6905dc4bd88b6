"""Cameras in rendered scenes: intrinsics, pairs of views as robots and hands see them, and how much two views share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from dust3r_ros.training.render import render_depth
from dust3r_ros.training.scenes import SceneBatch
from dust3r_ros.training.solids import TensorFields

MIN_FOV_DEG, MAX_FOV_DEG = 35.0, 100.0
MIN_CLEARANCE = 0.2  # metres between a camera and any surface
_TRIES = 8
_PREVIEW = 8  # overlap is measured on images this much smaller


class Motion(IntEnum):
    """How a camera is carried."""

    HANDHELD = 0
    WHEELED = 1  # low, level, forward
    FLYING = 2
    ROTATION = 3  # in one place
    ANY_ROLL = 4  # as hand-held, rolled by any angle


MOTION_SHARE = (0.45, 0.2, 0.2, 0.05, 0.1)
#        least and most height (m), largest pitch and roll (degrees)
_STYLES = ((0.9, 1.9, 35, 15), (0.15, 1.0, 8, 1.5), (0.4, 8.0, 70, 30), (0.3, 2.0, 40, 20), (0.5, 1.9, 50, 180))


@dataclass(frozen=True, eq=False)
class CameraPairs(TensorFields):
    """N pairs of cameras in each of B scenes.

    ``camera_to_world`` (B, N, 2, 4, 4); ``intrinsics`` (B, N, 2, 4) fx, fy, cx, cy; ``overlap`` (B, N): the lesser
    share of either view that the other sees; ``motion`` (B, N) int64, a ``Motion``.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    overlap: Tensor
    motion: Tensor


def look_at(centre: Tensor, target: Tensor, roll: Tensor | None = None) -> Tensor:
    """Poses (..., 4, 4) of cameras at ``centre`` (..., 3) that look at ``target``, the world's z up in the image.

    ``roll`` (...), radians, turns the camera about its axis, clockwise. Not defined for looking straight up or down.
    """
    forward = torch.nn.functional.normalize(target - centre, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 2] = 1
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    if roll is not None:
        c, s = roll.cos()[..., None], roll.sin()[..., None]
        right, down = c * right + s * down, c * down - s * right
    pose = torch.zeros((*centre.shape[:-1], 4, 4), dtype=centre.dtype, device=centre.device)
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2], pose[..., :3, 3] = right, down, forward, centre
    pose[..., 3, 3] = 1
    return pose


def sample_intrinsics(shape: tuple[int, ...], size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Intrinsics (*shape, 4) as fx, fy, cx, cy for images (H, W): field of view of the long side uniform over
    35 to 100 degrees, square pixels, principal point in the centre.
    """
    height, width = size
    spread = torch.rand(shape, generator=generator, device=generator.device)
    fov = torch.deg2rad(MIN_FOV_DEG + (MAX_FOV_DEG - MIN_FOV_DEG) * spread)
    focal = 0.5 * max(size) / torch.tan(fov / 2)
    return torch.stack([focal, focal, torch.full_like(focal, width / 2), torch.full_like(focal, height / 2)], dim=-1)


def overlap(
    depth_i: Tensor, intrinsics_i: Tensor, pose_i: Tensor, depth_j: Tensor, intrinsics_j: Tensor, pose_j: Tensor,
    *, tolerance: float = 0.05,
) -> Tensor:  # fmt: skip
    """The share (...) of view i's surface points that view j sees.

    ``depth_i`` (..., H, W) z-depth, 0 where there is none; ``intrinsics_i`` (..., 4); ``pose_i`` (..., 4, 4) camera to
    world; j's likewise. A point is seen when it falls into image j and its depth there differs from ``depth_j`` at the
    pixel it falls on by less than ``tolerance`` of its depth. 0 when view i has no points.
    """
    u, v, z = _into(depth_i, intrinsics_i, torch.linalg.inv(pose_j) @ pose_i, intrinsics_j)
    height, width = depth_j.shape[-2:]
    column, row = u.floor(), v.floor()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 0)
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).nan_to_num(0).long()
    there = depth_j.flatten(-2).gather(-1, index.flatten(-2)).view_as(z)
    valid = depth_i > 0
    seen = valid & inside & (there > 0) & ((there - z).abs() < tolerance * z)
    return seen.sum((-1, -2)) / valid.sum((-1, -2)).clamp(min=1)


def _into(depth: Tensor, intrinsics: Tensor, to_other: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels u, v and depth z, each (..., H, W), of a view's points in another view."""
    height, width = depth.shape[-2:]
    fx, fy, cx, cy = (value[..., None, None] for value in intrinsics.unbind(-1))
    x = (torch.arange(width, device=depth.device) + 0.5 - cx) / fx * depth
    y = (torch.arange(height, device=depth.device)[:, None] + 0.5 - cy) / fy * depth
    points = torch.stack([x, y, depth], dim=-1)
    moved = (to_other[..., None, None, :3, :3] @ points[..., None])[..., 0] + to_other[..., None, None, :3, 3]
    gx, gy, hx, hy = (value[..., None, None] for value in other.unbind(-1))
    z = moved[..., 2]
    safe = z.clamp(min=1e-6)
    return gx * moved[..., 0] / safe + hx, gy * moved[..., 1] / safe + hy, z


def sample_pairs(
    scenes: SceneBatch, count: int, size: tuple[int, int], generator: torch.Generator, *,
    baseline: tuple[float, float] = (0.03, 2.0), little_overlap: float = 0.15, candidates: int = 4,
) -> CameraPairs:  # fmt: skip
    """``count`` pairs in each scene, for images of ``size`` (H, W).

    Motions come in the shares of ``MOTION_SHARE``; ``baseline`` bounds the distance of the two cameras, metres, drawn
    log-uniformly. Of several ``candidates`` the first with the wanted overlap is taken, at least 0.3 for most and 0.05
    to 0.3 for a share ``little_overlap``; where none has it, the one that comes nearest.
    """
    many = count * candidates
    device = scenes.device
    share = torch.tensor(MOTION_SHARE, device=device)
    motion = torch.multinomial(share, len(scenes) * many, replacement=True, generator=generator).view(len(scenes), many)
    poses = _pair_poses(scenes, motion, baseline, generator)
    k = sample_intrinsics((len(scenes), many), size, generator)[:, :, None].expand(-1, -1, 2, -1)
    both, median = _preview_overlap(scenes, poses, k, size)
    wanted = torch.rand((len(scenes), count, 1), generator=generator, device=device) < little_overlap
    low, high = torch.where(wanted, 0.05, 0.3), torch.where(wanted, 0.3, 1.0)
    grouped = both.view(len(scenes), count, candidates)
    miss = (low - grouped).clamp(min=0) + (grouped - high).clamp(min=0)
    miss += (0.5 - median.view_as(grouped)).clamp(min=0)  # a wall right before the camera
    best = miss.argmin(-1) + torch.arange(count, device=device) * candidates
    rows = torch.arange(len(scenes), device=device)[:, None]
    return CameraPairs(poses[rows, best], k[rows, best], both[rows, best], motion[rows, best])


def _preview_overlap(scenes: SceneBatch, poses: Tensor, k: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The lesser overlap and the lesser median depth (B, M) of candidate pairs, from small depth images."""
    small = (max(8, size[0] // _PREVIEW), max(8, size[1] // _PREVIEW))
    ratio = k.new_tensor([small[1] / size[1], small[0] / size[0]]).repeat(2)
    k = k * ratio
    depth = render_depth(scenes, poses.flatten(1, 2), k.flatten(1, 2), small).unflatten(1, poses.shape[1:3])
    one, two = (depth[:, :, 0], k[:, :, 0], poses[:, :, 0]), (depth[:, :, 1], k[:, :, 1], poses[:, :, 1])
    lesser = torch.minimum(overlap(*one, *two, tolerance=0.1), overlap(*two, *one, tolerance=0.1))
    median = torch.where(depth > 0, depth, 50.0).flatten(-2).median(-1).values
    return lesser, median.amin(-1)


def _pair_poses(
    scenes: SceneBatch, motion: Tensor, baseline: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Candidate poses (B, M, 2, 4, 4)."""
    batch, many = motion.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((batch, many, *shape), generator=generator, device=scenes.device)

    least, most, pitch_limit, roll_limit = torch.tensor(_STYLES, device=scenes.device)[motion].unbind(-1)
    low, high = scenes.free[:, None, None, 0], scenes.free[:, None, None, 1]
    place = low + uniform(0.08, 0.92, _TRIES, 3) * (high - low)
    top = torch.minimum(most, high[..., 0, 2] - 0.3)
    place[..., 2] = torch.lerp(torch.minimum(least, top), top, uniform(0, 1))[..., None]
    first = _clearest(scenes, place)
    to_middle = (low + high)[:, :, 0] / 2 - first
    yaw = torch.atan2(to_middle[..., 1], to_middle[..., 0]) + uniform(-1, 1) * math.pi * uniform(0, 1)
    pitch = torch.deg2rad(pitch_limit) * uniform(-1, 0.7)
    ahead = _direction(yaw, pitch)
    distance = baseline[0] * (baseline[1] / baseline[0]) ** uniform(0, 1)
    distance = torch.where(motion == Motion.ROTATION, 0.0, distance)
    step = torch.nn.functional.normalize(
        torch.randn((batch, many, _TRIES, 3), generator=generator, device=scenes.device), dim=-1
    )
    step[..., 2] *= 0.4
    forward = (motion == Motion.WHEELED)[..., None, None] | (uniform(0, 1) < 0.15)[..., None, None]
    step = torch.where(forward, ahead[:, :, None] * step[..., :1].sign() + 0.25 * step, step)
    step[..., 2] *= (motion != Motion.WHEELED)[..., None]
    step = torch.nn.functional.normalize(step, dim=-1) * distance[..., None, None]
    second = _clearest(scenes, first[:, :, None] + step)
    target = first + ahead * uniform(1.5, 6.0)[..., None]
    wander = (0.12 + 0.35 * uniform(0, 1)) * (target - first).square().sum(-1).sqrt()
    other_target = target + uniform(-1, 1, 3) * wander[..., None] + (second - first) * uniform(0, 1)[..., None]
    roll = torch.deg2rad(roll_limit) * uniform(-1, 1)
    turn = torch.deg2rad(roll_limit.clamp(max=20)) * uniform(-1, 1)
    return torch.stack([look_at(first, target, roll), look_at(second, other_target, roll + turn)], dim=2)


def _clearest(scenes: SceneBatch, places: Tensor) -> Tensor:
    """Of some places (B, M, T, 3) the first that is clear of everything, else the clearest."""
    clear = scenes.clearance(places.flatten(1, 2)).unflatten(1, places.shape[1:3])
    best = clear.clamp(max=MIN_CLEARANCE).argmax(-1)
    return places.gather(2, best[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]


def _direction(yaw: Tensor, pitch: Tensor) -> Tensor:
    return torch.stack([yaw.cos() * pitch.cos(), yaw.sin() * pitch.cos(), pitch.sin()], dim=-1)
