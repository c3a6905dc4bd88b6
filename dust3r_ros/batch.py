"""All images at once: every pair of a scene graph, then one global alignment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.alignment import align, intrinsics_of_image
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import (
    Edge,
    Intrinsics,
    PairPrediction,
    PairState,
    PreparedImage,
    Scene,
    ViewEstimate,
)
from dust3r_ros.errors import AlignmentError, ImageError, RecordingError
from dust3r_ros.images import prepare
from dust3r_ros.pairing import SceneGraph, make_pairs
from dust3r_ros.pipeline import SourceImage, load_predictor, predictor_image_size
from dust3r_ros.predictor import PairPredictor, PredictorInfo
from dust3r_ros.store import PredictionStore

log = logging.getLogger(__name__)

_PAIRS_A_BATCH = 32
_MEMORY_BYTES = 1 << 30  # of predictions in memory; the rest is on disk


@dataclass(frozen=True, eq=False)
class BatchResult:
    """A scene of the images that could be read, in order; ``images`` are as the predictor saw them.

    ``numbers`` are their positions among the sources; ``refused`` says of each of the others why.
    """

    scene: Scene
    images: tuple[PreparedImage, ...]
    numbers: tuple[int, ...]
    refused: tuple[str, ...] = ()


def reconstruct(
    sources: Sequence[SourceImage],
    config: ReconstructorConfig | None = None,
    predictor: PairPredictor[Any] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BatchResult:
    """All images at once: every pair of the scene graph, then global alignment.

    ``pairs`` are directed (i, j); all pairs, both ways, when None. A single image is paired with itself. Images that
    cannot be read are left out. Pairs go through the predictor in batches; what has been predicted is kept on disk
    where it would take much memory. ``progress`` is called with a stage's name, the work done and the whole.
    Raises ImageError when no image can be read and AlignmentError when no two can be brought together.
    """
    config = config or ReconstructorConfig()
    predictor = predictor or load_predictor(config)
    report = progress or (lambda stage, done, whole: None)
    batch = _encode_all(sources, config, predictor, report)
    pairs = pairs if pairs is not None else make_pairs(len(sources), SceneGraph.COMPLETE, allow_single=True)
    place = {number: at for at, number in enumerate(batch.numbers)}
    left = [(place[i], place[j]) for i, j in pairs if i in place and j in place]
    if len(place) == 1:
        left = [(0, 0)]
    edges = _predict_all(batch.encoded, left, predictor, report)
    report("align", 0, 1)
    try:
        if len(place) == 1:
            scene = _scene_of_one(edges[0].prediction, batch.known[0], predictor.info)
        else:
            scene = align(edges, len(place), config.alignment, intrinsics=batch.known, cameras=batch.cameras)
    except AlignmentError as error:
        if not batch.refused:
            raise
        raise AlignmentError(f"{error}; {len(batch.refused)} could not be read: {batch.refused[0]}") from error
    report("align", 1, 1)
    if not any((view.depth > 0).any() for view in scene.views):
        log.warning("no point could be placed: the images show no parallax between them")
    return BatchResult(scene, tuple(batch.prepared), tuple(batch.numbers), tuple(batch.refused))


@dataclass(eq=False)
class _EncodedBatch:
    """The images of a batch that could be read, one entry each in all lists but ``refused``."""

    numbers: list[int] = field(default_factory=list)
    prepared: list[PreparedImage] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    known: list[Intrinsics | None] = field(default_factory=list)
    encoded: list[Any] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def _encode_all(
    sources: Sequence[SourceImage], config: ReconstructorConfig, predictor: PairPredictor[Any],
    report: Callable[[str, int, int], None],
) -> _EncodedBatch:  # fmt: skip
    batch, size = _EncodedBatch(), predictor_image_size(config, predictor)
    for done, source in enumerate(sources):
        report("encode", done, len(sources))
        try:
            image = prepare(source.load(), size)
        except (ImageError, RecordingError) as error:
            batch.refused.append(str(error) if Path(source.name).name in str(error) else f"{source.name}: {error}")
            log.warning("left out: %s", error)
            continue
        use = source.intrinsics if config.intrinsics != "estimate" else None
        known = image.transform.to_network(use) if use is not None else None
        camera = f"{source.camera} {image.transform.original_width}x{image.transform.original_height}"
        batch.numbers.append(done)
        batch.prepared.append(image)
        batch.cameras.append(camera)
        if known is not None and config.intrinsics == "guess":
            predictor.guess(camera, known)
            known = None
        batch.known.append(known)
        batch.encoded.append(predictor.encode(image, camera, batch.known[-1]))
    if not batch.numbers:
        others = f" (and {len(batch.refused) - 1} more that cannot be read)" if len(batch.refused) > 1 else ""
        raise ImageError(f"{batch.refused[0]}{others}" if batch.refused else "no images")
    return batch


def _predict_all(
    encoded: Sequence[Any], pairs: Sequence[tuple[int, int]], predictor: PairPredictor[Any],
    report: Callable[[str, int, int], None],
) -> list[Edge]:  # fmt: skip
    """The edges of all pairs, batch by batch."""
    report("decode", 0, len(pairs))
    predictor.announce([(encoded[i], encoded[j]) for i, j in pairs])
    store = PredictionStore(_MEMORY_BYTES)
    edges: list[Edge] = []
    for start in range(0, len(pairs), _PAIRS_A_BATCH):
        some = pairs[start : start + _PAIRS_A_BATCH]
        predictions = store.keep(predictor.predict([(encoded[i], encoded[j]) for i, j in some]))
        edges += [Edge(i, j, prediction) for (i, j), prediction in zip(some, predictions, strict=True)]
        report("decode", len(edges), len(pairs))
    if len(encoded) > 1 and all(edge.prediction.state is PairState.FAILED for edge in edges):
        raise AlignmentError(f"none of the {len(encoded)} images shares anything with another: there is no overlap")
    if store.stored_bytes:
        log.info("%.1f GB of predictions are on disk", store.stored_bytes / 1e9)
    return edges


def _scene_of_one(prediction: PairPrediction, known: Intrinsics | None, info: PredictorInfo) -> Scene:
    """The world of a single image, paired with itself: its own-frame pointmap, in the unit of its median depth."""
    depth = np.where(prediction.conf_i > 0, prediction.points_i[..., 2], 0).astype(np.float32)
    depth = np.maximum(depth, 0)
    if prediction.state is not PairState.GOOD or not depth.any():
        raise AlignmentError(
            f"{info.name} sees no depth in a single image: take a network (--checkpoint), or two images"
        )
    intrinsics = known if known is not None else intrinsics_of_image(prediction).intrinsics
    depth /= np.median(depth[depth > 0])
    return Scene((ViewEstimate(np.eye(4), depth, prediction.conf_i, intrinsics),))
