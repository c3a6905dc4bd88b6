"""The errors of whole reconstructions on posed image packs: one table, and the figures as JSON.

    python benchmark/evaluate_packs.py PACKS... [--checkpoints geometric tiny] [--modes batch incremental]
        [--intrinsics estimate pack] [--set NAME=VALUE] [--results DIR] [--out packs.json]

PACKS are packs (folders with ``cameras.json``) or folders of packs; without any, the environment variable
DUST3R_ROS_PACKS names one. Columns: path error (RMSE after the best similarity) in percent of the path's length;
relative rotation and translation direction error, median over all pairs of views (degrees); AUC at 30 degrees of the
larger of the two; focal error (percent); views with a pose; depth AbsRel and the share of pixels within a factor of
1.25, where the pack has depth; seconds. "-" is what cannot be said.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dust3r_ros.cli.options import parse_value
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.errors import Dust3rError, RecordingError
from dust3r_ros.evaluation.packs import Pack, load_pack
from dust3r_ros.evaluation.report import markdown_table
from dust3r_ros.evaluation.run import Metrics, Mode, evaluate, write_evaluation
from dust3r_ros.mapping.export import write_json
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import load_predictor

HEADER = (
    "pack", "model", "mode", "K", "ATE %", "rot deg", "trans deg", "AUC30", "focal %", "views", "AbsRel", "d<1.25", "s",
)  # fmt: skip


def find_packs(given: list[Path]) -> list[Pack]:
    """The packs named, and those in the folders named."""
    found = []
    for path in given:
        if (path / "cameras.json").is_file():
            found.append(path)
        elif path.is_dir():
            found += sorted(folder.parent for folder in path.glob("*/cameras.json"))
        else:
            raise RecordingError(f"{path}: no such folder")
    return [load_pack(folder) for folder in found]


def row(m: Metrics) -> list[str]:
    """A line of the table."""

    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        m.pack,
        m.model,
        m.mode,
        m.intrinsics,
        text(m.ate_percent, 2),
        text(m.rotation_error_deg, 2),
        text(m.translation_error_deg, 2),
        text(m.auc_30, 3),
        text(m.focal_error_percent, 1),
        f"{round(m.registered * m.views)}/{m.views}",
        text(m.depth.absrel if m.depth else None, 3),
        text(m.depth.delta_125 if m.depth else None, 3),
        text(m.seconds, 1),
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="*", type=Path)
    parser.add_argument("--checkpoints", nargs="+", default=["geometric"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--modes", nargs="+", choices=[mode.value for mode in Mode], default=["batch", "incremental"])
    parser.add_argument("--intrinsics", nargs="+", choices=["estimate", "pack"], default=["estimate", "pack"])
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="NAME=VALUE")
    parser.add_argument("--results", type=Path, help="keep every run's files here")
    parser.add_argument("--out", type=Path, help="JSON")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> list[Metrics]:
    """Every combination, each printed as soon as it is done."""
    changes = dict(change.split("=", 1) for change in arguments.changes)
    values = {name: parse_value(name, text) for name, text in changes.items()}
    packs = find_packs(arguments.packs)
    measured: list[Metrics] = []
    for checkpoint in arguments.checkpoints:
        config = make_config(ReconstructorConfig, {**values, "checkpoint": checkpoint, "device": arguments.device})
        for pack in packs:
            for mode in map(Mode, arguments.modes):
                for intrinsics in arguments.intrinsics:
                    # A predictor pools what it learns of a camera: each run gets a new one.
                    done = evaluate(pack, config, mode=mode, intrinsics=intrinsics, predictor=load_predictor(config))
                    measured.append(done.metrics)
                    print("  ".join(row(done.metrics)), file=sys.stderr, flush=True)
                    if arguments.results:
                        name = f"{pack.name}-{done.metrics.model}-{mode.value}-{intrinsics}"
                        write_evaluation(pack, done, config, arguments.results / name)
    return measured


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if not arguments.packs and (folder := os.environ.get("DUST3R_ROS_PACKS")):
        arguments.packs = [Path(folder)]
    if not arguments.packs:
        print("no packs: name some, or set DUST3R_ROS_PACKS to a folder of packs", file=sys.stderr)
        return 0
    try:
        measured = run(arguments)
        print(markdown_table(HEADER, [row(metrics) for metrics in measured]))
        if arguments.out:
            write_json([metrics.to_json() for metrics in measured], arguments.out)
    except Dust3rError as error:
        print(f"evaluate_packs: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
