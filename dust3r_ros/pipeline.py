"""From images to a map, incrementally, keyframe by keyframe. All images at once: ``batch``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dust3r_ros.alignment import AlignmentUpdate, IncrementalAligner
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.alignment.scale import RECENT, MetricReference, MetricScale
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import ByteImage, Edge, FloatArray, Intrinsics, Update, ViewEstimate
from dust3r_ros.data import SourceImage as SourceImage
from dust3r_ros.encoded import EncodedKeyframe
from dust3r_ros.errors import RecordingError
from dust3r_ros.geometry import Similarity
from dust3r_ros.keyframes import KeyframeDecision, KeyframeSelector
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.fuse import FusedMap
from dust3r_ros.memory import MapMemory
from dust3r_ros.paired import PairedKeyframe, Pairing, predict_edges
from dust3r_ros.placed import PlacedKeyframes
from dust3r_ros.predictor import PairPredictor, PredictorInfo, SharedPredictor
from dust3r_ros.predictors import load_predictor as load_predictor
from dust3r_ros.predictors import predictor_image_size as predictor_image_size
from dust3r_ros.revisit import Revisits
from dust3r_ros.stopwatch import Stopwatch
from dust3r_ros.updates import corrected

log = logging.getLogger(__name__)


class Reconstructor:
    """Incremental reconstruction of the images of one or several cameras.

    ``add`` does everything for one image. A node calls its parts instead: ``select`` for every image, which is cheap,
    in one thread; for those that were taken ``pair`` in another, and ``place``, ``fuse`` and ``close_loops`` in a third
    one, to which everything else belongs too that asks for the map, the path or a pose. ``reconfigure`` may be called
    from any thread; ``reset`` and ``recall`` must not run at the same time as any other method.
    """

    def __init__(self, config: ReconstructorConfig | None = None, predictor: PairPredictor[Any] | None = None) -> None:
        self.config = config or ReconstructorConfig()
        self._predictor = SharedPredictor(predictor or load_predictor(self.config))
        self._image_size = predictor_image_size(self.config, self._predictor)
        self.reset()

    def reset(self) -> None:
        """Forget the map, the path, every keyframe and what was learnt of the cameras; the model stays loaded."""
        self._predictor.forget()
        self._selectors: dict[str, KeyframeSelector] = {}
        self._metres = MetricReference()
        self._pairing = Pairing(self._predictor, self._image_size, self.config.window)
        self._begin()

    def _begin(self) -> None:
        self.map = FusedMap(self.config.map)
        self._aligner = IncrementalAligner(self.config.alignment, self.config.window)
        self._placed = PlacedKeyframes()
        self.revisits = Revisits(self.config.loops, self.config.alignment, self._predictor)
        self._pairing.cameras = {}
        self._unsearched: EncodedKeyframe | None = None
        self._lost = 0

    def warm_up(self) -> None:
        """Do beforehand what the first keyframes would wait for, as far as it can be told without an image.

        Raises what ``reconstruct`` does for a device with too little memory, ConfigError for what it cannot run.
        """
        self._pairing.warm_up()

    def reconfigure(self, config: ReconstructorConfig) -> None:
        """Take over the options that may change while running (``Option.live``); the others must be as before.

        They count from the next image and the next keyframe on.
        """
        self.config = config

    @property
    def info(self) -> PredictorInfo:
        """What predicts the pointmaps."""
        return self._predictor.info

    def add(
        self, image: ByteImage, stamp_ns: int, camera: str = "camera", intrinsics: Intrinsics | None = None
    ) -> Update | None:
        """Offer an image (H, W, 3) uint8 RGB; an Update when it became a keyframe, else None.

        ``intrinsics`` are for this image's own size; the configuration says what they are used for.
        """
        if not self.select(image, stamp_ns, camera).take:
            return None
        update = self.reconstruct(image, stamp_ns, camera, intrinsics)
        watch = Stopwatch()
        with watch.stage("loops"):
            changes = self.close_loops()
        return corrected(replace(update, times=replace(update.times, **watch.milliseconds)), changes)

    def limit_window(self, keyframes: int) -> None:
        """Pair new keyframes with at most so many older ones until the next reset, where memory is short."""
        self._pairing.window.shorten(keyframes)

    def select(
        self, image: ByteImage, stamp_ns: int, camera: str = "camera", *, anew: bool = False
    ) -> KeyframeDecision:
        """Whether an image (H, W, 3) uint8 RGB should become a keyframe; costs a few milliseconds.

        ``anew`` forgets the images before: it is taken if it shows anything.
        """
        if anew:
            self._selectors.pop(camera, None)
        selector = self._selectors.setdefault(camera, KeyframeSelector())
        selector.config = self.config.keyframes
        return selector.consider(image, stamp_ns)

    def taken(self, image: ByteImage, camera: str = "camera") -> None:
        """An image that ``select`` left out becomes a keyframe all the same: later ones are compared with it."""
        self._selectors[camera].take(image)

    def reconstruct(
        self, image: ByteImage, stamp_ns: int, camera: str = "camera", intrinsics: Intrinsics | None = None
    ) -> Update:
        """Make an image a keyframe: ``pair``, ``place`` and ``fuse`` it. Loops are left to ``close_loops``."""
        return self.fuse(self.place(self.pair(image, stamp_ns, camera, intrinsics)))

    def pair(
        self, image: ByteImage, stamp_ns: int, camera: str = "camera", intrinsics: Intrinsics | None = None
    ) -> PairedKeyframe:
        """Encode an image and pair it with the window, in which keyframes that are still to be placed count as placed.

        Every keyframe is to be given to ``place`` next, in order, or to be forgotten by ``reset``.
        """
        return self._pairing.pair(image, stamp_ns, camera, intrinsics, self.config.intrinsics, self.revisits.described)

    def place(self, paired: PairedKeyframe) -> Update:
        """Align a keyframe with the window; its points are left to ``fuse``.

        A keyframe that shares nothing with the window is looked for among the old ones, and the window goes on
        there. When that fails too it is not registered: the Update says so in ``view.registered``, the map stays as it
        is and the next image is paired with the same window. Only while the map has a single keyframe it begins anew
        from such an image of the same camera. Where the window is not the one it was paired with, because a keyframe
        before it was not placed or was found elsewhere, what is missing is predicted first.
        """
        new, watch = paired.new, paired.watch
        try:
            with watch.stage("decode"):
                edges = predict_edges(new, self._pairing.window.placed(), self._predictor, paired.edges)
            with watch.stage("align"):
                if paired.guess is not None:
                    self._aligner.guess(new.keyframe.camera, paired.guess)
                aligned = self._place(new, edges)
                self._remember(new, aligned)
        finally:
            self._pairing.window.leave_out(new)
        self._metres.update(self._placed.recent_paths(RECENT))
        scale, prepared = self.metric_scale, new.keyframe.image
        return Update(
            keyframe=new.keyframe,
            view=aligned.view,
            intrinsics=prepared.transform.to_original(aligned.view.intrinsics),
            focal_spread_px=aligned.focal_spread_px / prepared.transform.scale_x,
            moved=aligned.moved,
            refined=aligned.refined,
            times=watch.times(),
            metric=scale is not None,
            edge_residual=float(np.mean(list(aligned.edge_residual.values()) or [0.0])),
            metres_per_unit=scale.metres_per_unit if scale is not None else 1.0,
        )

    def fuse(self, update: Update) -> Update:
        """Put the points of the keyframe that was placed last into the map, and move those that moved with it.

        Returns the update with the time it took.
        """
        watch = Stopwatch()
        with watch.stage("fuse"):
            if update.view.registered:
                self.map.config = self.config.map
                self.map.add(update.keyframe.index, update.view, update.keyframe.image.pixels)
                for index in sorted(update.refined):
                    self.map.replace(index, update.moved[index])
        return replace(update, times=replace(update.times, **watch.milliseconds))

    def settle(self) -> Mapping[int, ViewEstimate]:
        """Make the map as exact as it can be: the newest keyframes, which may still move, are otherwise put into it
        anew only where they moved by more than is known of them. Returns their estimates, where they changed.
        """
        found = self._aligner.settle()
        for index, view in found.items():
            self.map.replace(index, view)
        return found

    def close_loops(self) -> Mapping[int, Similarity]:
        """Look for old keyframes that see what the last one sees, and close the loops that are confirmed.

        Returns how the world changed around each keyframe; empty when nothing was closed. Costs a few pairs when there
        are candidates, and a solve over all keyframes when a loop was confirmed.
        """
        new, self._unsearched = self._unsearched, None
        if new is not None:
            self.revisits.search(new, self._aligner)
        changes = self.revisits.close(self._aligner)
        self._placed.follow(changes)
        self.map.follow(changes)
        return changes

    def add_odometry(self, stamp_ns: int, camera_to_metric: FloatArray, camera: str = "camera") -> None:
        """A metric pose (4, 4) of a camera, in any frame, from any thread; each camera's come in order of time.

        From the ways between that camera's keyframes the world's scale follows: ``metric_scale``, and ``metric`` of
        the updates. Raises ValueError for a pose that is not later than the camera's last one, or not finite.
        """
        self._metres.add(stamp_ns, camera_to_metric, camera)

    def add_baseline(self, first: str, second: str, baseline_m: float) -> None:
        """Two cameras are fixed to each other, so far apart: the scale follows by their keyframes of one time."""
        self._metres.add_baseline(first, second, baseline_m)

    @property
    def metric_scale(self) -> MetricScale | None:
        """Metres per world unit, once they are sure enough; the map, the path and the updates stay in world units."""
        return self._metres.metric

    @property
    def keyframes(self) -> int:
        """How many keyframes are registered."""
        return len(self._placed)

    def cloud(self) -> PointCloud:
        """The map, as exact as it can be: ``settle``, then ``map.cloud``."""
        self.settle()
        return self.map.cloud()

    def trajectory(self) -> list[tuple[int, FloatArray]]:
        """(stamp_ns, camera_to_world (4, 4)) of every registered keyframe, newest estimates, in order."""
        return self._placed.trajectory()

    def pose(self, index: int) -> FloatArray | None:
        """The newest camera_to_world (4, 4) of a keyframe by its index; None when it has no place in the map."""
        return self._placed.pose(index)

    def alike(self, encoded: Any, count: int) -> list[tuple[EncodedKeyframe, Anchor]]:
        """The keyframes that look most like an encoded image, and how they lie in the map now."""
        descriptor = self._predictor.describe(encoded)
        return self.revisits.alike(descriptor, count, self._aligner) if descriptor is not None else []

    def memory(self) -> MapMemory:
        """The whole map, for ``recall`` in another session."""
        self.settle()
        places, graph, state = self.revisits.places(self._aligner), self.revisits.graph(), self.map.state()
        index = self._pairing.next_index
        return MapMemory(self.info.name, index, self._placed.all(), places, *graph, *state, self.metric_scale)

    def check_recallable(self, memory: MapMemory) -> None:
        """Raise RecordingError for a map of another predictor, or one that no keyframe can be found in."""
        if memory.predictor != self.info.name:
            raise RecordingError(f"the map was made by {memory.predictor}: {self.info.name} cannot find its places")
        if len(memory.places) < 2 or not self.config.loops.enabled:
            raise RecordingError("the map has no places to be found in: both sessions need loops.enabled")

    def recall(self, memory: MapMemory) -> None:
        """Forget everything, and go on in a map that is known: the next keyframe is looked for in it.

        The cameras' intrinsics stay as the map has them. Raises RecordingError as ``check_recallable`` does; then
        everything is as before.
        """
        self.check_recallable(memory)
        fused = FusedMap(self.config.map)
        fused.restore(memory.voxels, memory.points, memory.next_index - 1)
        revisits = Revisits(self.config.loops, self.config.alignment, self._predictor)
        revisits.restore(memory.places, memory.relations, memory.loops)
        aligner = IncrementalAligner(self.config.alignment, self.config.window)
        newest = memory.places[-1]
        aligner.resume({newest.index: newest.anchor})
        self.reset()  # only now that nothing can fail any more
        self.map, self.revisits, self._aligner = fused, revisits, aligner
        self._pairing.next_index = memory.next_index
        self._placed = PlacedKeyframes(memory.placed)
        self._metres = MetricReference(memory.scale)
        self._pairing.cameras = {place.image.camera: place.anchor.intrinsics for place in memory.places}

    def _place(self, new: EncodedKeyframe, edges: Sequence[Edge]) -> AlignmentUpdate:
        """Align with the window; else with old keyframes; else, while nothing is mapped yet, begin anew."""
        aligned = self._align(new, edges)
        if not aligned.view.registered and (found := self.revisits.reunite(new, self._aligner)) is not None:
            self._pairing.window.go_on_at(found.keyframes[::-1])  # the least alike go first
            return found.aligned
        return aligned if aligned.view.registered else self._lose(new) or aligned

    def _align(self, new: EncodedKeyframe, edges: Sequence[Edge]) -> AlignmentUpdate:
        return self._aligner.add(new.index, edges, camera=new.keyframe.camera, size=new.size, intrinsics=new.intrinsics)

    def _lose(self, new: EncodedKeyframe) -> AlignmentUpdate | None:
        """Note that a keyframe found no place; where a single one is mapped, begin the map anew instead."""
        self._lost += 1
        log.warning(
            "keyframe %d shares nothing with the map (%d in a row): moved too far since the last one, or a plain view; "
            "the map goes on where the camera sees it again", new.index, self._lost,
        )  # fmt: skip
        if self._placed.cameras() != [new.keyframe.camera]:
            return None  # another camera's first keyframe may be as good as this one
        log.warning("starting the map anew from this keyframe")
        self._pairing.window.go_on_at(())
        self._begin()
        return self._align(new, [])

    def _remember(self, new: EncodedKeyframe, aligned: AlignmentUpdate) -> None:
        if not aligned.view.registered:
            return
        self._lost = 0
        self._pairing.window.place(new)
        self._placed.add(new.keyframe, aligned.view)
        self._placed.move(aligned.moved)
        self.revisits.remember(new, aligned, self._aligner)
        self._unsearched = new
