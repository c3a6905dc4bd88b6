"""What a run leaves for people: two CSV tables, of the losses and of the measured errors, and one picture of both."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dust3r_ros.errors import TrainingError
from dust3r_ros.files import replacing

LOSSES, ERRORS, PICTURE = "log.csv", "errors.csv", "curves.png"
RowT = TypeVar("RowT")
_FEW_ROWS = 30
_WIDE = 3.0  # the largest of some values is so many times the smallest: drawn as logarithms


@dataclass(frozen=True)
class LossRow:
    """Means since the row before. ``error`` is of the stage's own task: hidden patches, or scale-free points."""

    pairs: int
    steps: int
    seconds: float
    stage: str
    learning_rate: float
    loss: float
    error: float
    matching: float
    motion: float
    gradient: float
    pairs_per_second: float


@dataclass(frozen=True)
class ErrorRow:
    """Errors on held-out pairs of images ``height`` x ``width``, and those of the trivial guesses."""

    pairs: int
    seconds: float
    stage: str
    height: int
    width: int
    rotation_deg: float
    direction_deg: float
    absrel: float
    trivial_rotation_deg: float
    trivial_direction_deg: float
    trivial_absrel: float


def append_row(path: Path, row: object) -> None:
    """Add a row to a CSV file, which gets its header first when it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow([field.name for field in fields(row)])  # type: ignore[arg-type]
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in astuple(row)])  # type: ignore[call-overload]


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """The rows of a CSV file, none when there is no file. Raises TrainingError for another form of table."""
    if not path.exists():
        return []
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != list(kinds):
            raise TrainingError(f"{path} must have the columns {', '.join(kinds)}")
        try:
            return [kind(**{name: kinds[name](text) for name, text in row.items()}) for row in reader]
        except (TypeError, ValueError, KeyError) as error:
            raise TrainingError(f"{path} has a row that cannot be read: {error}") from error


_KINDS: dict[str, Any] = {"int": int, "float": float, "str": str}


def cut_after(path: Path, kind: type[LossRow] | type[ErrorRow], pairs: int) -> None:
    """Leave out what came after ``pairs``: a run goes on from a state that is older than its last row."""
    rows: Sequence[LossRow | ErrorRow] = read_rows(path, kind)
    if any(row.pairs > pairs for row in rows):
        path.unlink()
        for row in rows:
            if row.pairs <= pairs:
                append_row(path, row)


def draw_curves(folder: Path) -> None:
    """Write the picture of a run's tables; nothing where there are no rows yet."""
    losses, errors = read_rows(folder / LOSSES, LossRow), read_rows(folder / ERRORS, ErrorRow)
    if not losses:
        return
    figure = Figure(figsize=(14, 8), dpi=90, layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _draw_losses(above.subplots(1, 4), losses)
    names = (("rotation_deg", "relative rotation, median [degrees]"),
             ("direction_deg", "translation direction, median [degrees]"),
             ("absrel", "depth AbsRel"))  # fmt: skip
    for axes, (name, title) in zip(below.subplots(1, 3), names, strict=True):
        _draw_error(axes, errors, name, title)
    last = losses[-1]
    spent = f"{last.seconds / 3600:.1f} hours" if last.seconds >= 3600 else f"{last.seconds / 60:.1f} minutes"
    figure.suptitle(f"{last.pairs:,} pairs in {spent}".replace(",", " "))
    with replacing(folder / PICTURE) as scratch:
        FigureCanvasAgg(figure).print_png(str(scratch))


def _draw_losses(panels: Sequence[Any], rows: Sequence[LossRow]) -> None:
    titles = (("error", "error of the task"), ("matching", "correspondence objective"), ("motion", "motion objective"),
              ("learning_rate", "rate"))  # fmt: skip
    for axes, (name, title) in zip(panels, titles, strict=True):
        for stage in dict.fromkeys(row.stage for row in rows):
            part = [row for row in rows if row.stage == stage]
            dots = "." if len(part) < _FEW_ROWS else ""  # a line of one row would be nothing
            seen, values = [row.pairs for row in part], [getattr(row, name) for row in part]
            axes.plot(seen, values, marker=dots, label=stage, linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("pairs")
        axes.set_xlim(0, max(1, 1.03 * rows[-1].pairs))
        axes.grid(alpha=0.3)
        known = [getattr(row, name) for row in rows if getattr(row, name) > 0]
        if name == "learning_rate" or not known:
            axes.set_ylim(bottom=0)
        elif max(known) > _WIDE * min(known):
            axes.set_yscale("log")
    panels[0].legend(fontsize=8)


def _draw_error(axes: Any, rows: Sequence[ErrorRow], name: str, title: str) -> None:
    axes.set_title(f"held out: {title}", fontsize=10)
    if not rows:
        axes.text(0.5, 0.5, "not measured yet", ha="center", va="center", transform=axes.transAxes, color="grey")
        axes.set_axis_off()
        return
    seen = [row.pairs for row in rows]
    axes.plot(seen, np.array([getattr(row, name) for row in rows]), "o-", markersize=3, label="network")
    axes.plot(seen, np.array([getattr(row, f"trivial_{name}") for row in rows]), "k_--", linewidth=1, label="guess")
    axes.set_xlim(0, 1.03 * max(1, rows[-1].pairs))
    axes.set_xlabel("pairs")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
