"""One form for what a reconstruction gave, batch or incremental, and the files that are written of it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.batch import reconstruct
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import FloatArray, PosedView, PreparedImage, ViewEstimate
from dust3r_ros.errors import AlignmentError, Dust3rError, ImageError, RecordingError
from dust3r_ros.evaluation.frame_poses import FramePoses
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import CameraRecord, write_cameras_json, write_cloud, write_tum
from dust3r_ros.mapping.fuse import FusedMap
from dust3r_ros.pairing import SceneGraph, make_pairs
from dust3r_ros.pipeline import Reconstructor, SourceImage
from dust3r_ros.predictor import PairPredictor, PredictorInfo
from dust3r_ros.updates import changed_view

COMPLETE_UP_TO = 12  # views; more are paired in a sliding window unless the user says otherwise

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the work done and the whole (0 when it is not known)."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came of some images.

    ``views`` are those with a pose, in order; of ``images`` given, ``tried`` were to get one (in an incremental run
    the keyframes); ``seconds`` is the wall time with reading the images and without loading the model, and
    ``stage_seconds`` how it divides; ``refused`` says of every image that cannot be read why; ``edges`` maps directed
    pairs of image numbers to the residual of their alignment, for a batch; ``frames`` has (stamp_ns, camera_to_world)
    of every image that was tracked, keyframes included, in order.
    """

    views: tuple[PosedView, ...]
    cloud: PointCloud
    images: int
    tried: int
    seconds: float
    info: PredictorInfo
    metric: bool = False
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    edges: Mapping[tuple[int, int], float] = field(default_factory=dict)
    frames: tuple[tuple[int, FloatArray], ...] = ()

    @property
    def focal_px(self) -> float | None:
        """Median focal over the views, pixels of the original images."""
        return float(np.median([view.intrinsics.focal_px for view in self.views])) if self.views else None

    def trajectory(self) -> list[tuple[int, FloatArray]]:
        """(stamp_ns, camera_to_world) of every view."""
        return [(view.stamp_ns, view.camera_to_world) for view in self.views]

    def poses(self) -> FloatArray:
        """Camera to world of every view, (N, 4, 4)."""
        return np.stack([view.camera_to_world for view in self.views]) if self.views else np.empty((0, 4, 4))


class StageClock:
    """Passes progress on, and keeps how long each stage took."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._stage = ""
        self._since = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, stage: str, done: int, whole: int) -> None:
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now
        if self._progress is not None:
            self._progress(stage, done, whole)


def choose_pairs(
    views: int, config: ReconstructorConfig, graph: SceneGraph | None = None, reference: int = 0
) -> list[tuple[int, int]]:  # fmt: skip
    """The directed pairs of a batch: all for few views, else a sliding window of ``config.window``.

    ``reference`` is the one reference of that graph.
    """
    if graph is None:
        graph = SceneGraph.COMPLETE if views <= COMPLETE_UP_TO else SceneGraph.SLIDING_WINDOW
    return make_pairs(views, graph, window=config.window, reference=reference, allow_single=True)


def run_batch(
    sources: Sequence[SourceImage],
    config: ReconstructorConfig,
    predictor: PairPredictor[Any],
    graph: SceneGraph | None = None,
    progress: Progress | None = None,
    reference: int = 0,
) -> Reconstruction:
    """Every image a view; all pairs of the scene graph; one global alignment."""
    start = time.perf_counter()
    pairs = choose_pairs(len(sources), config, graph, reference)
    clock = StageClock(progress)
    result = reconstruct(sources, config, predictor, pairs, clock)
    clock("fuse", 0, 1)
    fused = FusedMap(config.map)
    views = []
    for number, view, image in zip(result.numbers, result.scene.views, result.images, strict=True):
        if not view.registered:
            continue
        source = sources[number]
        fused.add(number, view, image.pixels)
        original = image.transform.to_original(view.intrinsics)
        views.append(PosedView(number, source.name, source.stamp_ns, view.camera_to_world, original, view, image))
    cloud = fused.cloud()
    clock("fuse", 1, 1)
    return Reconstruction(
        views=tuple(views),
        cloud=cloud,
        images=len(sources),
        tried=len(result.images),
        seconds=time.perf_counter() - start,
        info=predictor.info,
        metric=result.scene.metric,
        stage_seconds=dict(clock.seconds),
        refused=result.refused,
        edges={
            (result.numbers[i], result.numbers[j]): residual for (i, j), residual in result.scene.edge_residual.items()
        },
    )


class IncrementalRun:
    """Images into a ``Reconstructor`` one after the other, as the node does, with nothing dropped.

    ``keep`` bounds how many views keep their depth and pixels (all when None): a long recording has many keyframes.
    Then only every second, fourth, ... has them; the others' are empty.
    """

    def __init__(self, reconstructor: Reconstructor, keep: int | None = None) -> None:
        self._reconstructor = reconstructor
        self._keep = keep
        self._views: dict[int, PosedView] = {}
        self._frames = FramePoses(reconstructor)
        self._stride = 1
        self._images = 0
        self._tried = 0
        self._refused: list[str] = []
        self._stages: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    def add(self, source: SourceImage) -> bool:
        """Offer an image; whether it became a keyframe."""
        number, self._images = self._images, self._images + 1
        try:
            image = source.load()
        except ImageError as error:
            self.refuse(error)
            return False
        update = self._reconstructor.add(image, source.stamp_ns, source.camera, source.intrinsics)
        self._frames.add(image, source.stamp_ns, source.camera, update)
        if update is None:
            return False
        self._tried += 1
        for name, milliseconds in asdict(update.times).items():
            self._stages[name.removesuffix("_ms")] += milliseconds / 1000
        key, view, prepared = update.keyframe.index, update.view, update.keyframe.image
        self._views[key] = PosedView(
            number, source.name, source.stamp_ns, view.camera_to_world, update.intrinsics, view, prepared
        )
        for moved, estimate in update.moved.items():
            if moved in self._views:
                self._views[moved] = _moved(self._views[moved], estimate)
        for index, change in update.corrections.items():
            if index in self._views and index != key and index not in update.moved:
                self._views[index] = _corrected(self._views[index], change)
        self._thin()
        return True

    @property
    def newest(self) -> PosedView | None:
        """The view of the newest keyframe, with its pixels."""
        return next(reversed(self._views.values()), None)

    def refuse(self, error: Dust3rError) -> None:
        """Note that something could not be read, and why."""
        self._refused.append(str(error))
        log.warning("left out: %s", error)

    def result(self) -> Reconstruction:
        """What there is so far, with the newest pose of every keyframe that has one."""
        seconds = time.perf_counter() - self._start
        for index, estimate in self._reconstructor.settle().items():
            if index in self._views:
                self._views[index] = _moved(self._views[index], estimate)
        poses = ((view, self._reconstructor.pose(index)) for index, view in sorted(self._views.items()))
        views = [_moved(view, replace(view.estimate, camera_to_world=pose)) for view, pose in poses if pose is not None]
        cloud, scale = self._reconstructor.map.cloud(), self._reconstructor.metric_scale
        frames = self._frames.poses()
        if scale is not None:
            larger = Similarity(scale.metres_per_unit, np.eye(3), np.zeros(3))
            frames = [(stamp_ns, larger.apply_to_pose(pose)) for stamp_ns, pose in frames]
            views = [_corrected(view, larger.matrix()) for view in views]
            cloud = replace(cloud, points=cloud.points * np.float32(scale.metres_per_unit))
        return Reconstruction(
            views=tuple(views),
            cloud=cloud,
            images=self._images,
            tried=self._tried,
            seconds=seconds,
            info=self._reconstructor.info,
            metric=scale is not None,
            refused=tuple(self._refused),
            stage_seconds={
                **self._stages,
                "track": self._frames.seconds,
                "read and select": max(seconds - sum(self._stages.values()) - self._frames.seconds, 0.0),
            },
            frames=tuple(frames),
        )

    def _thin(self) -> None:
        full = [key for key, view in self._views.items() if view.estimate.depth.size]
        if self._keep is None or len(full) <= self._keep:
            return
        self._stride *= 2
        for key in full[:-1]:  # the newest may still move
            if key % self._stride:
                self._views[key] = _without_pixels(self._views[key])


def run_incremental(
    sources: Iterable[SourceImage],
    config: ReconstructorConfig,
    predictor: PairPredictor[Any],
    progress: Progress | None = None,
    whole: int = 0,
) -> Reconstruction:
    """Images through the incremental pipeline, in order. ``whole`` is their number, for ``progress``."""
    run = IncrementalRun(Reconstructor(config, predictor))
    report = progress or (lambda stage, done, whole: None)
    try:
        for done, source in enumerate(sources):
            report("reconstruct", done, whole)
            run.add(source)
    except RecordingError as error:  # a video that breaks off: what came before stays
        run.refuse(error)
    report("reconstruct", whole, whole)
    return run.result()


def write_results(result: Reconstruction, folder: Path) -> None:
    """``trajectory.tum``, ``cloud.ply`` and ``cameras.json`` into a folder, and ``frames.tum`` with the poses of all
    images where they were tracked.

    Raises ExportError, and AlignmentError or ImageError when there is nothing to write.
    """
    if not result.views:
        if result.refused and result.tried == 0:
            raise ImageError(result.refused[0])
        raise AlignmentError(f"none of the {result.images} images could be placed: there is nothing to write")
    write_tum(result.trajectory(), folder / "trajectory.tum")
    if result.frames:
        write_tum(result.frames, folder / "frames.tum")
    write_cloud(result.cloud, folder / "cloud.ply")
    cameras = [CameraRecord(view.name, view.intrinsics, view.camera_to_world) for view in result.views]
    write_cameras_json(cameras, folder / "cameras.json", metric=result.metric)


def _moved(view: PosedView, estimate: ViewEstimate) -> PosedView:
    intrinsics = view.image.transform.to_original(estimate.intrinsics)
    moved = replace(view, camera_to_world=estimate.camera_to_world, intrinsics=intrinsics, estimate=estimate)
    return moved if view.estimate.depth.size else _without_pixels(moved)


def _corrected(view: PosedView, change: FloatArray) -> PosedView:
    """The view after a loop closure moved its keyframe: ``change`` (4, 4) takes its points along."""
    estimate = changed_view(view.estimate, Similarity.from_matrix(change))
    return replace(view, camera_to_world=estimate.camera_to_world, estimate=estimate)


def _without_pixels(view: PosedView) -> PosedView:
    nothing = np.empty((0, 0), np.float32)
    bare = replace(view.estimate, depth=nothing, confidence=nothing)
    image = PreparedImage(np.empty((0, 0, 3), np.uint8), view.image.transform)
    return replace(view, estimate=bare, image=image)
