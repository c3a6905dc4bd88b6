"""``dust3r-ros train``: train a network on rendered scenes, as long as there is time for, again and again."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_options, add_verbose, given_options, output_folder
from dust3r_ros.cli.progress import progress_bars
from dust3r_ros.config import TrainingConfig

if TYPE_CHECKING:
    from dust3r_ros.training.begin import Source
    from dust3r_ros.training.posed import PosedPairs


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
    parser.add_argument(
        "--packs", type=Path, nargs="+", metavar="PACK",
        help="learn from posed image packs with depth (folders with cameras.json) instead of rendered scenes",
    )  # fmt: skip
    add_options(parser, TrainingConfig)
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train until the time is over."""
    from dust3r_ros.evaluation.report import text_table
    from dust3r_ros.training.loop import CHECKPOINT, train
    from dust3r_ros.training.team import team_of_environment

    with output_folder(arguments.out) as out, progress_bars() as bars:
        source = _packs(arguments.packs) if arguments.packs else None
        result = train(out, given_options(arguments, TrainingConfig), source=source, report=bars)
        if not result.finished:
            bars.abandon()
    if not team_of_environment().leads:
        return 0
    rows = [("pairs", f"{result.progress.pairs} of {result.pairs}"), ("hours", f"{result.progress.seconds / 3600:.2f}"),
            ("stage", result.progress.stage)]  # fmt: skip
    if result.assessment is not None:
        m, t = result.assessment.model, result.assessment.trivial
        rows += [
            ("rotation", f"{m.rotation_deg:.2f} degrees (same pose: {t.rotation_deg:.2f})"),
            ("direction", f"{m.direction_deg:.2f} degrees (any: {t.direction_deg:.2f})"),
            ("depth AbsRel", f"{m.absrel:.3f} (plane: {t.absrel:.3f})"),
        ]
    if not result.finished:
        rows.append(("interrupted" if result.interrupted else "not finished", "the same command goes on"))
    print(text_table([*rows, ("checkpoint", str(out / CHECKPOINT))]))
    return 0


def _packs(folders: list[Path]) -> Source:
    """Pairs from packs. What is wrong with them is found here, before a process of its own reads them."""
    from dust3r_ros.training.begin import Source

    return Source(partial(_posed_pairs, folders), _posed_pairs(folders).chunk)


def _posed_pairs(folders: list[Path]) -> PosedPairs:
    from dust3r_ros.evaluation.packs import load_pack
    from dust3r_ros.training.posed import PosedPairs

    return PosedPairs([load_pack(folder).frames for folder in folders])
