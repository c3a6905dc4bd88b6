"""Pictures for people, of values and images: one scale of colours for depth wherever it is shown."""

from __future__ import annotations

import cv2
import numpy as np

from dust3r_ros.data import BoolArray, ByteImage, FloatArray

_RANGE = (0.02, 0.98)  # quantiles of the values that have the first and the last colour


def thumbnail(image: ByteImage, long_side: int) -> ByteImage:
    """An image (H, W, 3) no larger than ``long_side`` pixels."""
    scale = long_side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def depth_picture(depth: FloatArray) -> ByteImage:
    """Depth (H, W) as colours (H, W, 3), near is red, evenly in its inverse; black where it is 0 or not finite."""
    known = np.isfinite(depth) & (depth > 0)
    return coloured(np.divide(1.0, depth, out=np.zeros(depth.shape), where=known), known, cv2.COLORMAP_TURBO)


def confidence_picture(confidence: FloatArray) -> ByteImage:
    """Confidence (H, W) as colours (H, W, 3), sure is bright; black where there is none."""
    known = np.isfinite(confidence) & (confidence > 0)
    return coloured(np.log(np.where(known, confidence, 1.0)), known, cv2.COLORMAP_VIRIDIS)


def coloured(values: FloatArray, known: BoolArray, colours: int) -> ByteImage:
    """Values (H, W) in a colour map of OpenCV's, (H, W, 3) RGB, over the range of nearly all; black where not known."""
    shown = cv2.applyColorMap((255 * shares(values, known)).astype(np.uint8), colours)[..., ::-1]
    return np.where(known[..., None], shown, 0).astype(np.uint8)


def shares(values: FloatArray, known: BoolArray) -> FloatArray:
    """Where each value lies in the range of nearly all that are ``known``, 0 to 1; 0 for the others."""
    if not known.any():
        return np.zeros(values.shape)
    low, high = np.quantile(values[known], _RANGE)
    return np.where(known, np.clip((values - low) / max(float(high - low), 1e-12), 0, 1), 0.0)
