"""Depth, normals and intrinsics of a single image: the image is paired with itself (DUSt3R, sections 3.3 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import BoolArray, ByteImage, FloatArray, Intrinsics, PairState, PreparedImage
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import backproject
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize, PairPredictor


@dataclass(frozen=True, eq=False)
class SingleView:
    """``depth`` (H, W) z and ``confidence`` (H, W), 0 where unknown, up to scale; ``normals`` (H, W, 3) unit vectors in
    the camera's frame towards the camera, 0 where unknown; ``intrinsics`` of the prepared ``image``.
    """

    image: PreparedImage
    depth: FloatArray
    confidence: FloatArray
    normals: FloatArray
    intrinsics: Intrinsics


def look(
    image: ByteImage, predictor: PairPredictor[Any], intrinsics: Intrinsics | None = None, size: ImageSize | None = None
) -> SingleView:
    """What one image (H, W, 3) tells. ``intrinsics`` for that size where they are known; ``size`` is that of the
    predictor's image when it is not to be its own choice.

    Raises AlignmentError for a predictor that sees no depth without a second view.
    """
    prepared = prepare(image, size or predictor.image_size)
    known = prepared.transform.to_network(intrinsics) if intrinsics is not None else None
    encoded = predictor.encode(prepared, "camera", known)
    prediction = predictor.predict([(encoded, encoded)])[0]
    confidence = np.where(prediction.points_i[..., 2] > 0, prediction.conf_i, 0).astype(np.float32)
    if prediction.state is not PairState.GOOD or not (confidence > 0).any():
        raise AlignmentError(
            f"{predictor.info.name} sees no depth in a single image: take a network (--checkpoint), or two images"
        )
    k = known if known is not None else intrinsics_of_image(prediction).intrinsics
    depth = np.where(confidence > 0, prediction.points_i[..., 2], 0).astype(np.float32)
    return SingleView(prepared, depth, confidence, normals_of(backproject(depth, k), depth > 0), k)


def normals_of(points: FloatArray, known: BoolArray) -> FloatArray:
    """Unit normals (H, W, 3) of a pointmap (H, W, 3) towards the camera, from its neighbours left, right, above and
    below; 0 where one of them is not ``known`` (H, W), and at the image's border.
    """
    normals = np.zeros(points.shape)
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    normal = np.cross(down, across)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    whole = known[1:-1, 2:] & known[1:-1, :-2] & known[2:, 1:-1] & known[:-2, 1:-1] & (length[..., 0] > 0)
    unit = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    normals[1:-1, 1:-1] = np.where(whole[..., None], unit, 0)
    away = (normals * points).sum(axis=-1) > 0
    normals[away] *= -1
    return normals
