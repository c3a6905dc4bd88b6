"""A small scene with exact truth: textured boards at several depths, seen by a camera that moves sideways."""

from __future__ import annotations

import cv2
import numpy as np

WIDTH, HEIGHT, FOCAL_PX = 256, 192, 220.0
BOARDS = ((5.0, (0, 0, 900, 500)), (3.5, (120, 60, 160, 130)), (2.8, (420, 220, 150, 160)), (2.2, (300, 90, 90, 90)))


def layered_view(x: float, y: float = 0.0) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB of a camera at (x, y, 0) that looks along z."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, (depth, (left, top, width, height)) in enumerate(BOARDS):
        texture = _texture(number, width, height)
        shift = np.array([left - 300 - FOCAL_PX * x / depth, top - 140 - FOCAL_PX * y / depth])
        matrix = np.array([[1, 0, shift[0] + WIDTH / 2 - 50], [0, 1, shift[1] + HEIGHT / 2 - 30]], np.float64)
        drawn = cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT))
        mask = cv2.warpAffine(np.full((height, width), 255, np.uint8), matrix, (WIDTH, HEIGHT)) > 127
        image[mask] = drawn[mask]
    return image


def _texture(seed: int, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(40, 215, (height // 16 + 2, width // 16 + 2, 3)), (width, height))
    fine = cv2.resize(rng.uniform(-40, 40, (height // 3 + 2, width // 3 + 2, 3)), (width, height))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)
