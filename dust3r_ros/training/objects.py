"""Furniture, clutter, plants, vehicles and rocks, each with random proportions."""

from __future__ import annotations

import math
from collections.abc import Callable

from dust3r_ros.training.library import (
    BARREL,
    CONE,
    CYLINDER,
    DOME,
    HOURGLASS,
    PARTS,
    SPHERE,
    Builder,
    frustum,
)


def _table(b: Builder) -> None:
    x, y, h = b.u(0.3, 0.9), b.u(0.25, 0.5), b.u(0.4, 0.9)
    if b.u(0, 1) < 0.3:
        b.round((0, 0, h), (x, x, 0.025), CYLINDER)
        b.round((0, 0, h / 2), (0.06, 0.06, h / 2), CYLINDER, 1)
        b.round((0, 0, 0.03), (x / 2, x / 2, 0.03), DOME, 1)
    else:
        b.box((0, 0, h), (x, y, 0.025))
        for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            b.box((sx * (x - 0.05), sy * (y - 0.05), h / 2), (0.03, 0.03, h / 2), 1)
    size = b.u(0.06, 0.14)
    b.box((b.u(-x, x) * 0.5, b.u(-y, y) * 0.4, h + 0.03 + size), (size * b.u(0.6, 2), size, size), 2, yaw=b.u(0, 3))
    b.round(
        (b.u(-x, x) * 0.5, b.u(-y, y) * 0.4, h + 0.12),
        (0.05, 0.05, b.u(0.08, 0.12)),
        frustum(b.u(0.5, 1), b.u(0.5, 1)),
        3,
    )


def _chair(b: Builder) -> None:
    s, h = b.u(0.2, 0.27), b.u(0.4, 0.5)
    b.box((0, 0, h), (s, s, 0.03))
    b.box((0, s - 0.02, h + 0.3), (s, 0.025, b.u(0.2, 0.32)), 1, pitch=b.u(-0.15, 0))
    for sx, sy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        b.round((sx * (s - 0.03), sy * (s - 0.03), h / 2), (0.022, 0.022, h / 2), CYLINDER, 2)


def _sofa(b: Builder) -> None:
    x, y = b.u(0.6, 1.1), b.u(0.35, 0.5)
    b.box((0, 0, 0.22), (x, y, 0.2))
    b.box((0, y - 0.1, 0.6), (x, 0.12, 0.3), pitch=-0.1)
    b.box((-x + 0.08, 0, 0.35), (0.1, y, 0.3))
    b.box((x - 0.08, 0, 0.35), (0.1, y, 0.3))
    for k in (-1, 1):
        b.box((k * x * 0.45, -0.05, 0.47), (x * 0.4, y - 0.1, 0.07), 1)
    b.rock((b.u(-x, x) * 0.6, 0.05, 0.62), (0.2, 0.1, 0.16), 2)


def _cabinet(b: Builder) -> None:
    x, y, h = b.u(0.3, 0.7), b.u(0.2, 0.32), b.u(0.3, 1.05)
    b.box((0, 0, h), (x, y, h))
    b.box((0, -y, h), (x * 0.94, 0.015, h * 0.92), 1)
    b.box((0, 0, 2 * h + 0.015), (x + 0.03, y + 0.03, 0.015), 2)
    for k in (-1, 1):
        b.round((k * 0.06, -y - 0.03, h), (0.015, 0.015, 0.08), CYLINDER, 2)
    b.box((b.u(-0.5, 0.5) * x, 0, 2 * h + 0.15), (b.u(0.08, 0.2), 0.1, 0.12), 3, yaw=b.u(0, 3))


def _shelf(b: Builder) -> None:
    x, y, h = b.u(0.35, 0.7), b.u(0.13, 0.2), b.u(0.7, 1.1)
    for k in (-1, 1):
        b.box((k * x, 0, h), (0.02, y, h))
    b.box((0, y, h), (x, 0.01, h), 1)
    for k in range(3):
        b.box((0, 0, 0.05 + k * h * 0.95), (x, y, 0.015))
    for k in range(2):
        b.box((b.u(-0.1, 0.1) * x, 0.02, 0.065 + k * h * 0.95 + 0.16), (x * b.u(0.6, 0.85), y * 0.8, 0.16), 2 + k)


def _lamp(b: Builder) -> None:
    h, r = b.u(1.2, 1.8), b.u(0.15, 0.25)
    b.round((0, 0, 0.02), (r, r, 0.02), CYLINDER)
    b.round((0, 0, h / 2), (0.02, 0.02, h / 2), CYLINDER)
    b.round((0, 0, h), (r, r, 0.16), frustum(1.0, b.u(0.4, 0.9)), 1)


def _plant(b: Builder) -> None:
    r, h = b.u(0.13, 0.25), b.u(0.13, 0.25)
    b.round((0, 0, h), (r, r, h), frustum(b.u(0.5, 0.8), 1.0))
    b.round((0, 0, 2 * h + 0.2), (0.02, 0.02, 0.25), CYLINDER, 1)
    for _ in range(6):
        angle, tall = b.u(0, 6.3), b.u(0.1, 0.4)
        b.round(
            (0.2 * math.cos(angle), 0.2 * math.sin(angle), 2 * h + 0.3 + tall), (0.06, 0.16, tall), SPHERE, 2,
            yaw=angle, pitch=b.u(-0.8, 0.8),
        )  # fmt: skip


def _pedestal(b: Builder) -> None:
    h, r = b.u(0.3, 0.5), b.u(0.15, 0.3)
    b.prism((0, 0, h), (r * 1.2, r * 1.2, h), int(b.rng.integers(4, 9)), b.u(0.6, 1.0))
    b.round(
        (0, 0, 2 * h + 0.25), (r * 0.7, r * 0.7, 0.25), (SPHERE, BARREL, HOURGLASS, DOME)[int(b.rng.integers(4))], 1
    )
    b.round((0, 0, 2 * h + 0.58), (r * 0.4, r * 0.4, 0.08), frustum(0.5, 1.0), 2)


def _crates(b: Builder) -> None:
    h = 0.0
    for k in range(int(b.rng.integers(2, 6))):
        size = b.u(0.12, 0.32)
        b.box((b.u(-0.1, 0.1), b.u(-0.1, 0.1), h + size), (size * b.u(0.8, 1.5), size, size), k % 4, yaw=b.u(-0.5, 0.5))
        h += 2 * size


def _bin(b: Builder) -> None:
    r, h = b.u(0.15, 0.3), b.u(0.25, 0.45)
    b.round((0, 0, h), (r, r, h), (CYLINDER, BARREL, frustum(0.75, 1.0))[int(b.rng.integers(3))])
    b.round((0, 0, 2 * h), (r * 1.05, r * 1.05, 0.05), DOME, 1)


def _bed(b: Builder) -> None:
    x, y = b.u(0.5, 0.9), 1.0
    b.box((0, 0, 0.2), (x, y, 0.15))
    b.box((0, 0, 0.42), (x * 0.97, y * 0.97, 0.1), 1)
    b.box((0, y, 0.5), (x, 0.04, b.u(0.4, 0.6)))
    b.box((0, -0.3, 0.53), (x, y * 0.65, 0.03), 2)
    for k in (-1, 1):
        b.round((k * x * 0.45, y * 0.7, 0.58), (0.35 * x, 0.2, 0.09), SPHERE, 3)


def _screen(b: Builder) -> None:
    h = b.u(0.5, 0.8)
    b.box((0, 0, h), (b.u(0.5, 0.8), 0.3, 0.02))
    b.box((0, 0, h / 2), (0.4, 0.25, h / 2), 1)
    b.box((0, 0.05, h + 0.35), (b.u(0.25, 0.5), 0.02, 0.22), 2, pitch=b.u(-0.2, 0))
    b.round((0, 0.05, h + 0.08), (0.03, 0.03, 0.08), CYLINDER, 1)
    b.box((0, -0.18, h + 0.03), (0.22, 0.08, 0.012), 3)


def _rocks(b: Builder) -> None:
    for k in range(int(b.rng.integers(2, 6))):
        s = b.u(0.12, 0.5)
        b.rock((b.u(-0.5, 0.5), b.u(-0.5, 0.5), s * 0.5), (s * b.u(0.7, 1.6), s, s), k % 2)


def _tree(b: Builder) -> None:
    h, r = b.u(1.2, 2.5), b.u(0.08, 0.2)
    b.round((0, 0, h / 2), (r, r, h / 2), frustum(1.0, 0.6))
    conifer = b.u(0, 1) < 0.4
    for k in range(6):
        size = b.u(0.5, 0.9)
        if conifer:
            b.round((0, 0, h * 0.6 + 0.5 * k), (1.2 - 0.17 * k, 1.2 - 0.17 * k, 0.5), CONE, 1)
        else:
            b.round((b.u(-0.6, 0.6), b.u(-0.6, 0.6), h + b.u(0, 1.1)), (size, size, size * 0.8), SPHERE, 1 + k % 2)


def _car(b: Builder) -> None:
    x = b.u(1.7, 2.3)
    b.box((0, 0, 0.55), (x, 0.85, 0.3))
    b.prism((b.u(-0.2, 0.4), 0, 1.1), (x * 0.75, 1.05, 0.3), 4, b.u(0.6, 0.85), 1)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.round((sx * x * 0.62, sy * 0.8, 0.33), (0.33, 0.33, 0.12), CYLINDER, 2, pitch=math.pi / 2)
    b.box((x, 0, 0.5), (0.04, 0.7, 0.08), 3)


def _stairs(b: Builder) -> None:
    steps, x = int(b.rng.integers(3, 8)), b.u(0.5, 1.2)
    for k in range(steps):
        b.box((0, 0.28 * k - 0.5, 0.09 * (k + 1)), (x, 0.14, 0.09 * (k + 1)), k % 2)


def _arch(b: Builder) -> None:
    x, h, r = b.u(0.5, 1.0), b.u(0.8, 1.3), b.u(0.08, 0.2)
    for k in (-1, 1):
        b.round((k * x, 0, h), (r, r, h), (CYLINDER, BARREL, frustum(1.0, 0.7))[int(b.rng.integers(3))])
        b.box((k * x, 0, 0.06), (r * 1.3, r * 1.3, 0.06), 1)
        b.box((k * x, 0, 2 * h), (r * 1.3, r * 1.3, 0.06), 1)
    b.box((0, 0, 2 * h + 0.15), (x + r * 1.5, r * 1.2, 0.12), 2)


def _abstract(b: Builder) -> None:
    for k in range(int(b.rng.integers(1, PARTS + 1))):
        half = (b.u(0.05, 0.45), b.u(0.05, 0.45), b.u(0.05, 0.6))
        centre = (b.u(-0.4, 0.4), b.u(-0.4, 0.4), half[2] + b.u(0.0, 0.8))
        which, turn = int(b.rng.integers(4)), {"yaw": b.u(0, 6), "pitch": b.u(-1.5, 1.5) if b.u(0, 1) < 0.4 else 0.0}
        if which == 0:
            b.box(centre, half, k % 4, **turn)
        elif which == 1:
            b.rock(centre, half, k % 4)
        elif which == 2:
            b.prism(centre, half, int(b.rng.integers(3, 9)), b.u(0.1, 1.0), k % 4)
        else:
            shapes = (CYLINDER, SPHERE, CONE, DOME, BARREL, HOURGLASS, frustum(b.u(0.2, 1), b.u(0.2, 1)))
            b.round(centre, half, shapes[int(b.rng.integers(len(shapes)))], k % 4, **turn)


INDOOR: tuple[Callable[[Builder], None], ...] = (
    _table, _chair, _sofa, _cabinet, _shelf, _lamp, _plant, _pedestal, _crates, _bin, _bed, _screen, _abstract,
    _abstract,
)  # fmt: skip
OUTDOOR: tuple[Callable[[Builder], None], ...] = (
    _tree, _car, _rocks, _crates, _bin, _stairs, _arch, _pedestal, _abstract, _tree, _rocks, _abstract,
)  # fmt: skip
