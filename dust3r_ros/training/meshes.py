"""Small closed triangle meshes: rings, vases and lumps, each of 48 flat triangles."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dust3r_ros.data import FloatArray

AROUND, ALONG = 6, 4
TRIANGLES = 2 * AROUND * ALONG
_THICKNESS = 0.01  # of the local frame's third axis; the triangle itself has none


def make_meshes(count: int, seed: int) -> Tensor:
    """Affine maps (count, TRIANGLES, 3, 4) that take ``Kind.TRIANGLE`` to the triangles of random meshes.

    Meshes stand on z = 0, about 0.3 to 1.2 m large.
    """
    rng = np.random.default_rng(seed)
    makers = (_ring, _vase, _lump)
    triangles = np.stack([_triangles(makers[k % len(makers)](rng), closed=k % len(makers) == 0) for k in range(count)])
    triangles[..., 2] -= triangles[..., 2].min(axis=(1, 2), keepdims=True)
    return torch.from_numpy(_affine(triangles).astype(np.float32))


def _ring(rng: np.random.Generator) -> FloatArray:
    """A torus: vertices (AROUND, ALONG, 3), closed both ways."""
    u, v = np.meshgrid(2 * math.pi * np.arange(AROUND) / AROUND, 2 * math.pi * np.arange(ALONG) / ALONG, indexing="ij")
    large = rng.uniform(0.25, 0.5)
    small = rng.uniform(0.06, 0.15) * rng.uniform(0.7, 1.4, u.shape)
    ring = np.stack(
        [(large + small * np.cos(v)) * np.cos(u), (large + small * np.cos(v)) * np.sin(u), small * np.sin(v)], -1
    )
    return ring @ _tilt(rng)


def _vase(rng: np.random.Generator) -> FloatArray:
    """A turned body: vertices (AROUND, ALONG + 1, 3), its ends nearly closed."""
    radius = np.concatenate([[0.02], rng.uniform(0.1, 0.45, ALONG - 1), [0.02]])
    height = np.linspace(0, rng.uniform(0.4, 1.2), ALONG + 1) + np.array([0, -0.12, 0, 0.12, 0]) * rng.uniform(0, 1)
    angle = 2 * math.pi * np.arange(AROUND)[:, None] / AROUND + rng.uniform(-0.4, 0.4) * np.arange(ALONG + 1)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.broadcast_to(height, angle.shape)], -1)


def _lump(rng: np.random.Generator) -> FloatArray:
    """A ball pushed in and out."""
    polar = np.linspace(0.06, math.pi - 0.06, ALONG + 1)
    angle = 2 * math.pi * np.arange(AROUND)[:, None] / AROUND
    radius = rng.uniform(0.25, 0.55, (AROUND, ALONG + 1)) * rng.uniform(0.6, 1.2)
    ball = [np.sin(polar) * np.cos(angle), np.sin(polar) * np.sin(angle), np.cos(polar) + 0 * angle]
    return (np.stack(ball, -1) * radius[..., None] * rng.uniform(0.6, 1.4, 3)) @ _tilt(rng)


def _tilt(rng: np.random.Generator) -> FloatArray:
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]


def _triangles(grid: FloatArray, *, closed: bool) -> FloatArray:
    """Two triangles for each cell: (TRIANGLES, 3 corners, 3)."""
    right = np.roll(grid, -1, axis=0)
    up, diagonal = (np.roll(g, -1, axis=1) if closed else g[:, 1:] for g in (grid, right))
    if not closed:
        grid, right = grid[:, :-1], right[:, :-1]
    cells = np.stack([np.stack([grid, right, up], 2), np.stack([diagonal, up, right], 2)], 2)
    return cells.reshape(TRIANGLES, 3, 3)


def _affine(triangles: FloatArray) -> FloatArray:
    a, b, c = (triangles[..., k, :] for k in range(3))
    x, y = (b - a) / 2, (c - a) / 2
    normal = np.cross(x, y)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    return np.stack([x, y, _THICKNESS * normal, (b + c) / 2], axis=-1)
