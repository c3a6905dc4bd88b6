"""Corners, and where they are in the next image: pyramidal Lucas-Kanade on small grey copies, checked both ways.

Positions (N, 2) float32 are OpenCV's: pixels of the small copy, centres at integers.
"""

from __future__ import annotations

import cv2
import numpy as np

from dust3r_ros.data import BoolArray, ByteImage, FloatArray

WIDTH_PX = 240  # of the small copy's long side
SPACING_PX = 6.0
ROUND_TRIP_PX = 0.7


def small_grey(image: ByteImage) -> ByteImage:
    """The small copy of an image, (H, W, 3) uint8 RGB or (H, W) grey. Raises ValueError for another form."""
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"image must be (H, W, 3) or (H, W) uint8, got {image.shape} {image.dtype}")
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8) if image.ndim == 3 else image
    height, width = grey.shape
    scale = WIDTH_PX / max(height, width)
    if scale >= 1:
        return grey.copy() if grey is image else grey  # tracks keep it; the caller may reuse the image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def find_corners(grey: ByteImage, count: int) -> FloatArray:
    """The clearest corners (N, 2), at most ``count``."""
    found = cv2.goodFeaturesToTrack(grey, count, 0.01, SPACING_PX)
    return np.zeros((0, 2), np.float32) if found is None else np.asarray(found, dtype=np.float32).reshape(-1, 2)


def corner_flow(
    first: ByteImage, second: ByteImage, points: FloatArray, guess: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Where points (N, 2) of the first image are in the second, and which of them come back (N,)."""
    there, found = _lucas_kanade(first, second, points, guess)
    back, returned = _lucas_kanade(second, first, there, points)
    height, width = second.shape
    inside = (there >= 0).all(axis=1) & (there[:, 0] < width) & (there[:, 1] < height)
    near = np.linalg.norm(back - points, axis=1) < ROUND_TRIP_PX
    return there, found & returned & inside & near


def _lucas_kanade(
    first: ByteImage, second: ByteImage, points: FloatArray, guess: FloatArray
) -> tuple[FloatArray, BoolArray]:
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        first, second, points, guess.copy(), winSize=(13, 13), maxLevel=3, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
    )
    return np.asarray(there, dtype=np.float32), np.asarray(found).ravel().astype(bool)
