"""How a run ends: the files in its folder, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dust3r_ros.errors import ExportError

if TYPE_CHECKING:
    from dust3r_ros.config import ReconstructorConfig
    from dust3r_ros.data import FloatArray
    from dust3r_ros.evaluation.exports import Cleaned
    from dust3r_ros.evaluation.results import Progress
    from dust3r_ros.pipeline import SourceImage


@dataclass(frozen=True, eq=False)
class Finished:
    """A run's result, the rows of its table and what it was made of; ``truth`` (M, 4, 4): true poses in its world."""

    cleaned: Cleaned
    rows: Sequence[tuple[str, str]]
    config: ReconstructorConfig
    title: str
    truth: FloatArray | None = None


def write_all(
    finished: Finished, out: Path, exports: Sequence[str], originals: Iterable[SourceImage], progress: Progress,
    *, picture: bool = False,
) -> list[str]:  # fmt: skip
    """Results, exports, page and, when asked for, the picture; what of the exports could not be written."""
    from dust3r_ros.evaluation.exports import write_exports
    from dust3r_ros.evaluation.page import write_page
    from dust3r_ros.evaluation.results import write_results
    from dust3r_ros.evaluation.run import draw_result

    result = finished.cleaned.result
    write_results(result, out)
    refused = write_exports(finished.cleaned, exports, out, originals, progress)
    write_page(finished.cleaned, out / "report.html", finished.rows, finished.config, finished.title, finished.truth)
    if picture:
        draw_result(result, out / "report.png", truth=finished.truth, title=finished.title)
    return refused


def say(finished: Finished, out: Path, refused: Sequence[str]) -> None:
    """The table. Raises ExportError for what could not be written."""
    from dust3r_ros.evaluation.report import text_table

    print(text_table([*finished.rows, ("written", str(out))]))
    if refused:
        raise ExportError("; ".join(refused))
