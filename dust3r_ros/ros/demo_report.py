"""What a demo showed: a table, and the map, the path and the picture as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dust3r_ros.data import FloatArray
from dust3r_ros.evaluation.figure import DepthView, Reconstruction, draw_reconstruction
from dust3r_ros.evaluation.metrics import PoseErrors, associate, path_length, pose_errors
from dust3r_ros.geometry import Similarity
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.ros.recorder import Recorded, write_recorded

MAX_GAP_NS = 20_000_000  # between an image and its true pose
DEPTHS_SHOWN, LEAST_DEPTH = 4, 0.1  # images, and the share of pixels they must have


@dataclass(frozen=True, eq=False)
class Played:
    """What was played: ``rate`` recorded seconds in one; ``truth`` (stamp_ns, camera to world) and focal if known."""

    path: Path
    rate: float
    frames: int
    truth: Sequence[tuple[int, FloatArray]]
    focal_px: float | None


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What arrived at the subscriber, and how it compares with the recording's truth where it has any."""

    played: Played
    seconds: float
    recorded: Recorded
    errors: PoseErrors | None
    true_path: FloatArray | None
    files: Sequence[Path]

    def rows(self) -> list[tuple[str, str]]:
        """The table: names and values as text."""
        recorded = self.recorded
        status = recorded.status
        assert status is not None  # a result has one
        left = f"{status.dropped_queue_full} skipped while busy, {status.dropped_failed} not placed"
        left += f", {status.queue_length} not reached in time" if status.queue_length else ""
        return [
            ("recording", f"{self.played.path}, played at {self.played.rate:.2g} times its speed"),
            ("model", f"{status.model} on {status.device}{'' if status.trained else ' (not trained)'}"),
            ("frames received", f"{status.frames_received} of {self.played.frames}"),
            ("keyframes", f"{status.keyframes} ({left})"),
            ("rate", self._rate_text()),
            ("points", f"{len(recorded.cloud)} in the map, {sum(recorded.points.values())} in keyframe clouds"),
            ("focal", self._focal_text()),
            ("error", self._error_text()),
            ("messages", self._agreement_text()),
            ("written", ", ".join(str(file) for file in self.files)),
            ("time", f"{self.seconds:.0f} s"),
        ]

    def table(self) -> str:
        """The rows as lines of text."""
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _rate_text(self) -> str:
        path, status = self.recorded.path, self.recorded.status
        assert status is not None
        recorded_s = 1e-9 * (path[-1][0] - path[0][0])
        text = f"{(len(path) - 1) / recorded_s:.1f} keyframes in a recorded second, " if recorded_s > 0 else ""
        return f"{text}the last ready {1e-3 * status.latency_ms:.1f} s after its image"

    def _focal_text(self) -> str:
        status = self.recorded.status
        assert status is not None
        text = f"{status.focal_px:.1f} px (spread {status.focal_spread_px:.1f})"
        if self.played.focal_px is None:
            return text
        error = 100 * (status.focal_px / self.played.focal_px - 1)
        return f"{text}, the recording's CameraInfo says {self.played.focal_px:.1f} px: {error:+.1f} %"

    def _error_text(self) -> str:
        if self.errors is None or self.true_path is None:
            return "unknown: the recording has no true poses"
        if self.errors.ate_rmse is None or self.errors.rotation_deg is None:
            return "unknown: fewer than three keyframes have a true pose"
        length = path_length(self.true_path)
        percent = 100 * self.errors.ate_rmse / max(length, 1e-9)
        text = f"ATE {self.errors.ate_rmse:.3f} m, {percent:.1f} % of the {length:.1f} m path"
        return f"{text}; rotation {self.errors.rotation_deg:.1f} deg"

    def _agreement_text(self) -> str:
        recorded = self.recorded
        counts = f"{len(recorded.transforms)} TF, {len(recorded.poses)} poses, {len(recorded.points)} clouds"
        counts += f", {len(recorded.depths)} depths, {len(recorded.intrinsics_stamps)} camera infos"
        wrong = recorded.disagreements()
        return f"{counts}; {'all agree' if not wrong else f'{len(wrong)} disagree, first: {wrong[0]}'}"


def conclude(played: Played, recorded: Recorded, out: Path, seconds: float) -> DemoResult:
    """Compare what was recorded with the truth and write all files to ``out``. Raises ExportError."""
    poses = np.stack([pose for _, pose in recorded.path])
    matched = associate([stamp for stamp, _ in recorded.path], [stamp for stamp, _ in played.truth], MAX_GAP_NS)
    errors, true_path = None, None
    if matched:
        errors = pose_errors(poses[[i for i, _ in matched]], np.stack([played.truth[j][1] for _, j in matched]))
        last = max(j for _, j in matched)
        true_path = np.stack([pose for _, pose in played.truth[: last + 1]])
    picture = out / "reconstruction.png"
    result = DemoResult(
        played=played,
        seconds=seconds,
        recorded=recorded,
        errors=errors,
        true_path=true_path,
        files=[*write_recorded(recorded, out), picture],
    )
    _draw(result, poses, picture)
    return result


def _draw(result: DemoResult, poses: FloatArray, picture: Path) -> None:
    recorded = result.recorded
    to_truth = result.errors.to_truth if result.errors is not None else None
    move = to_truth or Similarity.identity()
    cloud = PointCloud(
        move.apply(recorded.cloud.points).astype(np.float32), recorded.cloud.colours, recorded.cloud.confidence
    )
    stamps = sorted(stamp for stamp, depth in recorded.depths.items() if np.mean(depth > 0) > LEAST_DEPTH)
    chosen = [stamps[i] for i in np.linspace(0, len(stamps) - 1, min(DEPTHS_SHOWN, len(stamps))).round().astype(int)]
    begin = recorded.path[0][0]
    depths = [
        DepthView(f"depth of the keyframe at {1e-9 * (stamp - begin):.1f} s", move.scale * recorded.depths[stamp])
        for stamp in chosen
    ]
    what = Reconstruction(
        cloud,
        move.apply_to_pose(poses),
        depths,
        result.true_path if to_truth is not None else None,
        "m" if to_truth is not None else "map units",
    )
    rows = dict(result.rows())
    draw_reconstruction(
        what,
        picture,
        title=f"{result.played.path.name}: {rows['frames received']} frames, {len(poses)} keyframes",
        caption=f"focal {rows['focal']}\n{rows['error']}",
    )
