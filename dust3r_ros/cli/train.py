"""``dust3r-ros train``: train a network on rendered scenes, as long as there is time for, again and again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dust3r_ros.cli.options import add_options, add_verbose, given_options, output_folder
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.config import TrainingConfig


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        help="train a network on rendered scenes",
        description="Train a network on rendered scenes. Called again with the same folder, the run goes on where it "
        "was, with the options it was begun with; those given now change. Ctrl-C saves, too.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="the run's folder: state.safetensors, model/ (to use), log.csv, errors.csv, curves.png",
    )  # fmt: skip
    add_options(parser, TrainingConfig)
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train until the time is over."""
    from dust3r_ros.evaluation.report import text_table
    from dust3r_ros.training.loop import CHECKPOINT, train

    out = output_folder(arguments.out)
    with progress_bars() as bars:
        result = train(out, given_options(arguments, TrainingConfig), report=bars)
        if not result.finished:
            bars.abandon()
    rows = [("pairs", str(result.progress.pairs)), ("hours", f"{result.progress.seconds / 3600:.2f}"),
            ("stage", result.progress.stage)]  # fmt: skip
    if result.assessment is not None:
        m, t = result.assessment.model, result.assessment.trivial
        rows += [
            ("rotation", f"{m.rotation_deg:.2f} degrees (same pose: {t.rotation_deg:.2f})"),
            ("direction", f"{m.direction_deg:.2f} degrees (any: {t.direction_deg:.2f})"),
            ("depth AbsRel", f"{m.absrel:.3f} (plane: {t.absrel:.3f})"),
        ]
    if result.interrupted:
        rows.append(("interrupted", "the same command goes on"))
    print(text_table([*rows, ("checkpoint", str(out / CHECKPOINT))]))
    return 0
