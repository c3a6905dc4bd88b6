"""``dust3r-ros evaluate``: reconstruct a posed image pack and measure the errors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_overwrite, add_pipeline_options, config_of, results_folder
from dust3r_ros.cli.progress import progress_bars

if TYPE_CHECKING:
    from dust3r_ros.evaluation.run import Metrics

GRAPHS = ("complete", "sliding-window", "log-window", "one-reference")


def add_graph(parser: argparse.ArgumentParser) -> None:
    """``--graph``."""
    parser.add_argument(
        "--graph", choices=GRAPHS, help="pairs of a batch (default: complete up to 12 images, then sliding-window)"
    )


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="measure the errors on a posed image pack",
        description="Reconstruct a posed image pack (a folder with images and cameras.json) and measure the errors.",
    )
    parser.add_argument("pack", type=Path, metavar="PACK", help="folder with images and cameras.json")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR",
        help="metrics.json, trajectory.tum, cloud.ply, cameras.json, report.html and report.png go here",
    )  # fmt: skip
    parser.add_argument("--mode", choices=("batch", "incremental"), default="batch", help="default batch")
    parser.add_argument(
        "--intrinsics", choices=("estimate", "pack"), default=None, dest="which", help="default estimate"
    )
    add_graph(parser)
    add_overwrite(parser)
    add_pipeline_options(parser, without=("intrinsics",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate one pack."""
    from dust3r_ros.config import CleanConfig
    from dust3r_ros.evaluation.exports import clean
    from dust3r_ros.evaluation.packs import load_pack
    from dust3r_ros.evaluation.page import write_page
    from dust3r_ros.evaluation.report import summary_rows, text_table
    from dust3r_ros.evaluation.run import Mode, evaluate, summarise, write_evaluation
    from dust3r_ros.pairing import SceneGraph
    from dust3r_ros.pipeline import load_predictor

    config = config_of(arguments)
    which = arguments.which or ("pack" if config.intrinsics == "given" else "estimate")
    pack = load_pack(arguments.pack)
    with results_folder(arguments, "cameras.json") as out, progress_bars() as bars:
        evaluation = evaluate(
            pack,
            config,
            mode=Mode(arguments.mode),
            intrinsics=which,
            graph=SceneGraph(arguments.graph) if arguments.graph else None,
            predictor=load_predictor(config),
            progress=bars,
        )
        write_evaluation(pack, evaluation, config, out)
        rows = summary_rows(summarise(pack, evaluation))
        if evaluation.result.views:
            to_truth = evaluation.errors.to_truth
            truth = to_truth.inverse().apply_to_pose(pack.poses()) if to_truth is not None else None
            cleaned = clean(evaluation.result, config.map, CleanConfig())
            facts = [*rows, *_more(evaluation.metrics)]
            write_page(cleaned, out / "report.html", facts, config, pack.name, truth)
    print(text_table([*rows, ("written", str(out))]))
    return 0


def _more(metrics: Metrics) -> list[tuple[str, str]]:
    """What the page says beyond the table."""
    rows = []
    if metrics.translation_error_deg is not None:
        rows.append(("direction error", f"{metrics.translation_error_deg:.2f} deg (median over pairs)"))
    if metrics.auc_30 is not None:
        rows.append(("AUC at 30 deg", f"{metrics.auc_30:.3f}"))
    if metrics.depth is not None:
        rows.append(
            ("depth error", f"{100 * metrics.depth.absrel:.1f} % of {metrics.depth.coverage:.0%} of the pixels")
        )
    return rows
