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
    from dust3r_ros.evaluation.report import Summary
    from dust3r_ros.evaluation.results import Progress
    from dust3r_ros.pipeline import SourceImage


@dataclass(frozen=True, eq=False)
class Finished:
    """A run's result, what it is summed up by, what it was made of; ``truth`` (M, 4, 4): true poses in its world."""

    cleaned: Cleaned
    summary: Summary
    config: ReconstructorConfig
    title: str
    truth: FloatArray | None = None


def write_all(
    finished: Finished, out: Path, exports: Sequence[str], originals: Iterable[SourceImage], progress: Progress,
    *, picture: bool = False,
) -> list[str]:  # fmt: skip
    """Results, summary, exports, page and, when asked for, the picture; what of the exports could not be written."""
    from dust3r_ros.evaluation.exports import write_exports
    from dust3r_ros.evaluation.page import write_page
    from dust3r_ros.evaluation.report import summary_record, summary_rows
    from dust3r_ros.evaluation.results import write_results
    from dust3r_ros.evaluation.run import draw_result
    from dust3r_ros.mapping.export import write_json

    result = finished.cleaned.result
    write_results(result, out)
    refused = write_exports(finished.cleaned, exports, out, originals, progress)
    facts = summary_rows(finished.summary)
    write_page(finished.cleaned, out / "report.html", facts, finished.config, finished.title, finished.truth)
    if picture:
        draw_result(result, out / "report.png", truth=finished.truth, title=finished.title)
    write_json(summary_record(finished.summary), out / "summary.json")  # last: who finds it finds all
    return refused


def say(finished: Finished, out: Path, refused: Sequence[str]) -> None:
    """The table. Raises ExportError for what could not be written."""
    from dust3r_ros.evaluation.report import summary_rows, text_table

    print(text_table([*summary_rows(finished.summary), ("written", str(out))]))
    if refused:
        raise ExportError("; ".join(refused))
