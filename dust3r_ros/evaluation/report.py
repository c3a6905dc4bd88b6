"""Tables for the terminal and for documents."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dust3r_ros.evaluation.metrics import PoseErrors
from dust3r_ros.evaluation.results import Reconstruction

_LEAST_ANGLE_DEG, _MOST_ANGLE_DEG = 8.0, 140.0  # fields of view of lenses that people use


@dataclass(frozen=True)
class Summary:
    """What a run is summed up by; None for what is not known. Lengths are in the unit of truth, ``unit``.

    ``image_px`` is the images' longer side. ``refused`` says of every image that cannot be read why; ``undecodable``
    images of a recording could not be decoded.
    ``tracked`` images have a pose, keyframes included, where all were tracked; ``tracked_ate`` is the error of theirs.
    """

    model: str
    frames: int
    keyframes: int
    registered: int
    seconds: float
    points: int
    focal_px: float | None = None
    image_px: int = 0
    true_focal_px: float | None = None
    errors: PoseErrors | None = None
    path_length: float | None = None
    unit: str = ""
    refused: tuple[str, ...] = ()
    undecodable: int = 0
    tracked: int = 0
    tracked_ate: float | None = None
    peak_bytes: int = 0
    ended_early: str = ""

    @classmethod
    def of(
        cls, result: Reconstruction, *, true_focal_px: float | None = None, errors: PoseErrors | None = None,
        path_length: float | None = None, unit: str = "",
    ) -> Summary:  # fmt: skip
        """The summary of a reconstruction, with what is known of the truth."""
        return cls(
            model=result.info.name,
            frames=result.images,
            keyframes=result.tried,
            registered=len(result.views),
            seconds=result.seconds,
            points=len(result.cloud),
            focal_px=result.focal_px,
            image_px=max((max(v.intrinsics.width, v.intrinsics.height) for v in result.views), default=0),
            true_focal_px=true_focal_px,
            errors=errors,
            path_length=path_length,
            unit=unit,
            refused=result.refused,
            tracked=len(result.frames),
            peak_bytes=peak_memory_bytes(),
        )


def peak_memory_bytes() -> int:
    """The most memory this process ever had, by the system; 0 where it does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def focal_text(focal_px: float, image_px: int) -> str:
    """A focal, and a doubt where no usual lens has it; ``image_px`` is the image's longer side, 0 where not known."""
    text = f"{focal_px:.1f} px"
    if not image_px:
        return text
    angle = math.degrees(2 * math.atan(image_px / (2 * focal_px)))
    if _LEAST_ANGLE_DEG <= angle <= _MOST_ANGLE_DEG:
        return text
    return f"{text}, not plausible: a field of view of {angle:.0f} degrees"


def summary_rows(summary: Summary) -> list[tuple[str, str]]:
    """A summary as (what, value), errors against truth only where it is known."""
    s = summary
    rate = s.frames / s.seconds if s.seconds > 0 else 0.0
    rows = [
        ("model", s.model),
        ("frames seen", f"{s.frames}"),
        ("keyframes", f"{s.keyframes} ({s.registered} with a pose)"),
        ("time", f"{s.seconds:.1f} s, {rate:.1f} frames/s"),
        ("points", f"{s.points}"),
    ]
    if s.focal_px is not None:
        off = f", {100 * abs(s.focal_px / s.true_focal_px - 1):.1f} % from the true" if s.true_focal_px else ""
        rows.append(("focal", f"{focal_text(s.focal_px, s.image_px)}{off}"))
    if s.undecodable:
        rows.insert(2, ("images left out", f"{s.undecodable} that cannot be decoded"))
    if s.refused:
        rows.insert(2, ("images left out", f"{len(s.refused)} that cannot be read: {s.refused[0]}"))
    if s.ended_early:
        rows.insert(2, ("ended early", s.ended_early))
    if s.peak_bytes:
        rows.append(("memory at most", f"{s.peak_bytes / 1e9:.2f} GB"))
    errors = s.errors
    if errors is not None and errors.ate_rmse is not None:
        share = f", {100 * errors.ate_rmse / s.path_length:.2f} % of {s.path_length:.2f}" if s.path_length else ""
        rows.append(("path error (RMSE)", f"{errors.ate_rmse:.3g}{share} {s.unit}".rstrip()))
    if s.tracked:
        off = f", path error (RMSE) {s.tracked_ate:.3g} {s.unit}".rstrip() if s.tracked_ate is not None else ""
        rows.append(("poses tracked", f"{s.tracked} of {s.frames}{off}"))
    if errors is not None and errors.rotation_deg is not None:
        rows.append(("rotation error", f"{errors.rotation_deg:.2f} deg (median over pairs)"))
    return rows


def summary_record(summary: Summary) -> dict[str, Any]:
    """A summary as plain values for ``summary.json``, None for what is not known; lengths in the unit of truth."""
    s, errors = summary, summary.errors
    ate = errors.ate_rmse if errors is not None else None
    return {
        "model": s.model,
        "images": s.frames,
        "keyframes": s.keyframes,
        "registered": s.registered,
        "left_out": len(s.refused) + s.undecodable,
        "points": s.points,
        "focal_px": s.focal_px,
        "seconds": s.seconds,
        "peak_bytes": s.peak_bytes or None,
        "ended_early": s.ended_early or None,
        "ate_rmse": ate,
        "ate_percent": 100 * ate / s.path_length if ate is not None and s.path_length else None,
        "tracked": s.tracked or None,
        "tracked_ate_rmse": s.tracked_ate,
        "rotation_error_deg": errors.rotation_deg if errors is not None else None,
    }


def text_table(rows: Sequence[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source too."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def runs_table(
    names: Sequence[str], runs: Sequence[Mapping[str, float | str]], leave_out: Collection[str] = ()
) -> str:  # fmt: skip
    """A Markdown table with a column for each run, and a row for each figure of the first; "-" where one is missing."""

    def text(value: float | str) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[figure, *(text(run.get(figure, "-")) for run in runs)] for figure in runs[0] if figure not in leave_out]
    return markdown_table(["", *names], rows)
