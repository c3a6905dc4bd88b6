"""``dust3r-ros align``: global alignment alone, from file to file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from dust3r_ros.cli.options import add_pipeline_options, config_of


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "align", help="align pairwise pointmaps from a file", description="Align pairwise pointmaps from a file."
    )
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS.npz",
        help="edges (E, 2), points_i and points_j (E, H, W, 3) in camera i's frame, conf_i and conf_j (E, H, W)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="SCENE.npz",
        help="poses (N, 4, 4) camera to world, focal (N,), depth (N, H, W), registered (N,), seconds",
    )  # fmt: skip
    add_pipeline_options(parser, without=("dtype", "image_size", "window", "intrinsics"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Align; the time that is written and printed is that of the alignment alone."""
    from dust3r_ros.alignment import align
    from dust3r_ros.alignment.files import load_predictions, save_scene
    from dust3r_ros.evaluation.report import text_table

    config = config_of(arguments)
    predictions = load_predictions(arguments.predictions)
    start = time.perf_counter()
    scene = align(predictions.edges, predictions.views, config.alignment)
    seconds = time.perf_counter() - start
    save_scene(arguments.out, scene, seconds)
    placed = sum(view.registered for view in scene.views)
    rows = [
        ("views", f"{len(scene.views)} ({placed} with a pose)"),
        ("directed edges", f"{len(predictions.edges)}"),
        ("time", f"{seconds:.2f} s"),
        ("written", str(arguments.out)),
    ]
    print(text_table(rows))
    return 0
