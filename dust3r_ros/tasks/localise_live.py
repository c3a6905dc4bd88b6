"""Where an image was taken, in a map that is still being made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dust3r_ros.alignment.observations import grid_pixels
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.data import ByteImage, FloatArray, Intrinsics, PairPrediction, PreparedImage
from dust3r_ros.encoded import EncodedKeyframe
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import backproject, transform_points, weighted_median
from dust3r_ros.images import prepare
from dust3r_ros.pipeline import Reconstructor, predictor_image_size
from dust3r_ros.tasks.localise import MAP_CAMERA, Located, MapKeyframe, locate_among


@dataclass(frozen=True, eq=False)
class LiveLocaliser:
    """Places images in a reconstruction's map, which stays as it is; by the ``neighbours`` keyframes most alike."""

    reconstructor: Reconstructor
    neighbours: int = 4

    def locate(self, image: ByteImage, intrinsics: Intrinsics | None = None) -> Located:
        """The pose of an image (H, W, 3). ``intrinsics`` for its size where they are known; else an image of the
        nearest keyframe's size is taken to be of its camera, and any other's focal is estimated.

        Raises AlignmentError when it cannot be placed.
        """
        predictor = self.reconstructor.revisits.predictor
        prepared = prepare(image, predictor_image_size(self.reconstructor.config, predictor))
        known = prepared.transform.to_network(intrinsics) if intrinsics is not None else None
        given, encoded = known, predictor.encode(prepared, "query", known)
        near = self.reconstructor.alike(encoded, self.neighbours)
        if not near:
            raise AlignmentError("the map has no place that an image can be compared with")
        if known is None:
            known = _shared(prepared, *near[0])
        keyframes = [_anchored(old, anchor) for old, anchor in near]

        def predict(tried: Intrinsics | None) -> tuple[list[PairPrediction], list[PairPrediction]]:
            query = encoded if tried == given else predictor.encode(prepared, "query", tried)
            pairs = [pair for old, _ in near for pair in ((old.encoded, query), (query, old.encoded))]
            predictions = predictor.probe(pairs)
            return predictions[::2], predictions[1::2]

        return locate_among(keyframes, prepared, known, "given" if given is not None else MAP_CAMERA, predict)


def _shared(prepared: PreparedImage, old: EncodedKeyframe, anchor: Anchor) -> Intrinsics | None:
    """A keyframe's intrinsics, for an image that came to its size from the same original size."""
    return anchor.intrinsics if prepared.transform == old.keyframe.image.transform else None


def _anchored(old: EncodedKeyframe, anchor: Anchor) -> MapKeyframe:
    def points_world(prediction: PairPrediction) -> FloatArray:
        """The prediction's depth, as large as the keyframe's that is known on a grid."""
        z = np.where(prediction.conf_i > 0, prediction.points_i[..., 2], 0).astype(np.float64)
        on_grid = z.ravel()[grid_pixels(anchor.size, anchor.grid)]
        both = (on_grid > 0) & (anchor.weight > 0)
        if not both.any():
            return np.full((*z.shape, 3), np.nan)
        scale = weighted_median(anchor.depth[both] / on_grid[both], anchor.weight[both])
        points = transform_points(anchor.camera_to_world, backproject(scale * z, anchor.intrinsics))
        points[z <= 0] = np.nan
        return points

    return MapKeyframe(f"keyframe {old.index}", anchor.intrinsics, points_world)
