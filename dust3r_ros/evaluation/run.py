"""Reconstruct a posed image pack and measure the result against its truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros import __version__
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import FloatArray, PreparedImage
from dust3r_ros.evaluation import figure
from dust3r_ros.evaluation.metrics import (
    DepthErrors,
    PoseErrors,
    depth_errors,
    focal_error_percent,
    path_length,
    pose_errors,
)
from dust3r_ros.evaluation.packs import Pack
from dust3r_ros.evaluation.report import Summary
from dust3r_ros.evaluation.results import (
    PosedView,
    Progress,
    Reconstruction,
    run_batch,
    run_incremental,
    write_results,
)
from dust3r_ros.mapping.export import write_json
from dust3r_ros.options import flatten_config
from dust3r_ros.pairing import SceneGraph
from dust3r_ros.pipeline import SourceImage, load_predictor
from dust3r_ros.predictor import PairPredictor

_DEPTHS_DRAWN = 6
_FRAME_PERIOD_NS = 100_000_000  # packs have no stamps; their order is what counts


class Mode(Enum):
    """How a pack is reconstructed."""

    BATCH = "batch"
    INCREMENTAL = "incremental"


@dataclass(frozen=True)
class Metrics:
    """The figures of one evaluation; None for what cannot be said. Lengths are in the pack's unit.

    The errors are explained at ``PoseErrors`` and ``DepthErrors``. ``registered`` is the share of the given images
    that have a pose: in incremental mode only keyframes can.
    """

    pack: str
    mode: str
    intrinsics: str
    model: str
    trained: bool
    views: int
    keyframes: int
    registered: float
    seconds: float
    points: int
    unit: str
    path_length: float
    ate_rmse: float | None
    ate_percent: float | None
    rotation_error_deg: float | None
    translation_error_deg: float | None
    auc_30: float | None
    focal_error_percent: float | None
    depth: DepthErrors | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "depth"}
        if self.depth is not None:
            values["depth_absrel"] = self.depth.absrel
            values["depth_delta_1.25"] = self.depth.delta_125
            values["depth_coverage"] = self.depth.coverage
        return {**values, "version": __version__}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics and what they were taken of."""

    metrics: Metrics
    result: Reconstruction
    errors: PoseErrors


def evaluate(
    pack: Pack,
    config: ReconstructorConfig | None = None,
    *,
    mode: Mode = Mode.BATCH,
    intrinsics: str = "estimate",
    graph: SceneGraph | None = None,
    predictor: PairPredictor[Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Reconstruct a pack's images, in batch (all of them, one scene graph) or incrementally, and measure.

    ``intrinsics`` is "estimate", or "pack" to give the pack's to the predictor and to the alignment.
    """
    if intrinsics not in ("estimate", "pack"):
        raise ValueError(f"intrinsics must be 'estimate' or 'pack', got {intrinsics!r}")
    config = replace(config or ReconstructorConfig(), intrinsics="given" if intrinsics == "pack" else "estimate")
    predictor = predictor or load_predictor(config)
    sources = pack_sources(pack)
    if mode is Mode.BATCH:
        result = run_batch(sources, config, predictor, graph, progress)
    else:
        result = run_incremental(sources, config, predictor, progress, len(sources))
    return measure(pack, result, mode, intrinsics)


def pack_sources(pack: Pack) -> list[SourceImage]:
    """A pack's frames as the pipeline takes them: one camera, numbered stamps."""
    return [
        SourceImage(frame.name, frame.load_image, intrinsics=frame.intrinsics, stamp_ns=number * _FRAME_PERIOD_NS)
        for number, frame in enumerate(pack.frames)
    ]


def measure(pack: Pack, result: Reconstruction, mode: Mode, intrinsics: str) -> Evaluation:
    """The errors of a reconstruction of a pack's images."""
    truth = pack.poses()
    numbers = [view.number for view in result.views]
    errors = pose_errors(result.poses(), truth[numbers], result.tried)
    length = path_length(truth)
    true_focals = [pack.frames[number].intrinsics.focal_px for number in numbers]
    metrics = Metrics(
        pack=pack.name,
        mode=mode.value,
        intrinsics=intrinsics,
        model=result.info.name,
        trained=result.info.trained,
        views=result.images,
        keyframes=result.tried,
        registered=len(result.views) / len(pack),
        seconds=result.seconds,
        points=len(result.cloud),
        unit=pack.unit,
        path_length=length,
        ate_rmse=errors.ate_rmse,
        ate_percent=100 * errors.ate_rmse / length if errors.ate_rmse is not None and length > 0 else None,
        rotation_error_deg=errors.rotation_deg,
        translation_error_deg=errors.translation_deg,
        auc_30=errors.auc_30,
        focal_error_percent=focal_error_percent([v.intrinsics.focal_px for v in result.views], true_focals),
        depth=_depth(pack, result.views),
    )
    return Evaluation(metrics, result, errors)


def summarise(pack: Pack, evaluation: Evaluation) -> Summary:
    """What is printed after an evaluation."""
    result = evaluation.result
    focals = [pack.frames[view.number].intrinsics.focal_px for view in result.views]
    return Summary.of(
        result,
        true_focal_px=float(np.median(focals)) if focals else None,
        errors=evaluation.errors,
        path_length=evaluation.metrics.path_length,
        unit=pack.unit,
    )


def write_evaluation(pack: Pack, evaluation: Evaluation, config: ReconstructorConfig, folder: Path) -> None:
    """``metrics.json``, ``report.png`` and, when any image was placed, the results, into a folder."""
    write_json({**evaluation.metrics.to_json(), "options": flatten_config(config)}, folder / "metrics.json")
    if not evaluation.result.views:
        return
    write_results(evaluation.result, folder)
    _draw(pack, evaluation, folder / "report.png")


def _depth(pack: Pack, views: Sequence[PosedView]) -> DepthErrors | None:
    estimated, truth = [], []
    for view in views:
        stored = pack.frames[view.number].load_depth()
        if stored is None or view.estimate.depth.shape != view.image.pixels.shape[:2]:
            continue
        known = view.estimate.confidence > 0
        estimated.append(np.where(known, view.estimate.depth, 0.0))
        truth.append(at_network_pixels(stored, view.image))
    return depth_errors(estimated, truth)


def at_network_pixels(stored: FloatArray, image: PreparedImage) -> FloatArray:
    """Values of an original image (H, W) at the centres of the prepared image's pixels, nearest neighbour."""
    transform = image.transform
    u = (np.arange(image.width) + 0.5 - transform.offset_x) / transform.scale_x
    v = (np.arange(image.height) + 0.5 - transform.offset_y) / transform.scale_y
    columns = np.clip(np.floor(u).astype(int), 0, stored.shape[1] - 1)
    rows = np.clip(np.floor(v).astype(int), 0, stored.shape[0] - 1)
    return stored[np.ix_(rows, columns)]


def _draw(pack: Pack, evaluation: Evaluation, path: Path) -> None:
    metrics, to_truth = evaluation.metrics, evaluation.errors.to_truth
    ate = f"path error {metrics.ate_percent:.2f} %" if metrics.ate_percent is not None else "no path error"
    draw_result(
        evaluation.result,
        path,
        truth=to_truth.inverse().apply_to_pose(pack.poses()) if to_truth is not None else None,
        title=f"{pack.name}: {metrics.model}, {metrics.mode}, {metrics.intrinsics} intrinsics",
        caption=f"{len(evaluation.result.views)} of {len(pack)} views, {ate}",
    )


def draw_result(
    result: Reconstruction, path: Path, *, truth: FloatArray | None = None, title: str = "", caption: str = "",
    dark: bool = False,
) -> None:  # fmt: skip
    """The picture of a reconstruction with views; ``truth`` (M, 4, 4) are true poses in its world; ``dark``: its
    ground.
    """
    views = [view for view in result.views if view.estimate.depth.size]
    chosen = sorted({round(place) for place in np.linspace(0, len(views) - 1, _DEPTHS_DRAWN)}) if views else []
    begin_ns = result.views[0].stamp_ns if result.views else 0
    depths = [
        figure.DepthView(_depth_title(view, begin_ns), np.where(view.estimate.confidence > 0, view.estimate.depth, 0.0))
        for view in (views[place] for place in chosen)
    ]
    what = figure.Reconstruction(result.cloud, result.poses(), depths, truth)
    figure.draw_reconstruction(what, path, title=title, caption=caption, dark=dark)


def _depth_title(view: PosedView, begin_ns: int) -> str:
    """The image's file; for one of a recording, which has only a stamp, the time since the first view."""
    name = Path(view.name).name
    return f"{1e-9 * (view.stamp_ns - begin_ns):.1f} s" if name == str(view.stamp_ns) else name
