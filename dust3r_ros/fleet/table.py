"""How all jobs ended: a line each as it happens, and tables at the end."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.files import replacing
from dust3r_ros.fleet.run import Outcome, State
from dust3r_ros.mapping.export import write_json

_HEADER = ("recording", "state", "images", "keyframes", "placed", "points", "focal px", "path error %", "s", "")
_FIGURES = ("images", "keyframes", "registered", "points", "focal_px", "ate_percent")
_COLUMNS = ("name", "source", "state", "error", "seconds", *_FIGURES, "rotation_error_deg", "left_out", "peak_bytes")


class Board:
    """What is known of every job; each ending is said at once, by ``say``, as one line."""

    def __init__(self, outcomes: Iterable[Outcome], say: Callable[[str], None]) -> None:
        self._outcomes = {outcome.job.name: outcome for outcome in outcomes}
        self._say = say
        self._whole = sum(outcome.state is not State.DONE for outcome in self._outcomes.values())
        self._ended = 0
        finished = len(self._outcomes) - self._whole
        say(f"{len(self._outcomes)} to reconstruct" + (f", {finished} of them finished before" if finished else ""))

    @property
    def outcomes(self) -> list[Outcome]:
        """In the order of the jobs."""
        return list(self._outcomes.values())

    def report(self, outcome: Outcome) -> None:
        """A job has ended."""
        self._outcomes[outcome.job.name] = outcome
        self._ended += 1
        why = f": {outcome.error}" if outcome.error else ""
        state = f"{outcome.state.value} after {outcome.seconds:.0f} s"
        self._say(f"[{self._ended}/{self._whole}] {outcome.job.name}: {state}{why}")


def text(outcomes: Sequence[Outcome]) -> str:
    """The table for the terminal."""
    return markdown_table(_HEADER, [_row(outcome) for outcome in outcomes])


def write(outcomes: Sequence[Outcome], folder: Path) -> None:
    """``batch.csv`` and ``batch.json``. Raises ExportError."""
    records = [_values(outcome) for outcome in outcomes]
    with replacing(folder / "batch.csv") as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    write_json(records, folder / "batch.json")


def _row(outcome: Outcome) -> list[str]:
    figures = [outcome.figures.get(name) for name in _FIGURES]
    note = outcome.error or ("finished before" if outcome.earlier and outcome.state is State.DONE else "")
    return [
        outcome.job.name,
        outcome.state.value,
        *("-" if f is None else f"{f:.1f}" if isinstance(f, float) else f"{f}" for f in figures),
        f"{outcome.seconds:.0f}",
        note,
    ]


def _values(outcome: Outcome) -> dict[str, Any]:
    known = {
        "name": outcome.job.name,
        "source": str(outcome.job.source),
        "state": outcome.state.value,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
    }
    return {name: known.get(name, outcome.figures.get(name)) for name in _COLUMNS}
