"""``dust3r-ros batch``: many recordings, each reconstructed by a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import (
    add_pipeline_options,
    add_results_options,
    config_of,
    output_folder,
    results_options,
)
from dust3r_ros.errors import FleetError

if TYPE_CHECKING:
    from dust3r_ros.config import ReconstructorConfig
    from dust3r_ros.fleet.jobs import Job
    from dust3r_ros.fleet.run import Report, Share

_CORES = 4
SOME_FAILED = 1


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "batch",
        help="reconstruct many recordings, on this machine or on a Ray cluster",
        description="Reconstruct every recording, video and folder of images that is named or found in the folders "
        "named, each as replay or reconstruct would, in a process of its own. Called again, what is finished is "
        "skipped, what broke off or failed begins again. Exit code 1 when some failed.",
    )
    parser.add_argument(
        "recordings", type=Path, nargs="+", metavar="BAGS_OR_FOLDERS",
        help="bags, videos, folders of images, and folders with any of these inside",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder for each, batch.csv and batch.json go here"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help="on a Ray cluster: auto (the one this machine is in), HOST:PORT, or local; needs dust3r_ros[fleet], and "
        "this package and the same paths on all its machines",
    )  # fmt: skip
    parser.add_argument(
        "--cores", type=int, metavar="N",
        help=f"processor cores for each; as many run at once as fit, or one a GPU where --checkpoint is a network "
        f"(default {_CORES}, or all there are)",
    )  # fmt: skip
    parser.add_argument("--topic", default="", help="image topic of the bags (default: the only one)")
    parser.add_argument("--picture", action="store_true", help="draw each result as report.png")
    add_results_options(parser)
    add_pipeline_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run what is not finished, and say how all ended. Nothing is begun before all that is asked for makes sense."""
    from dust3r_ros.evaluation.exports import parse_exports
    from dust3r_ros.fleet import table
    from dust3r_ros.fleet.jobs import find_jobs
    from dust3r_ros.fleet.run import State, outcome_of

    parse_exports(arguments.export)
    share = _share(arguments, config_of(arguments))
    options = results_options(arguments) + (["--picture"] if arguments.picture else [])
    replay = ["--topic", arguments.topic] if arguments.topic else []
    jobs = find_jobs(arguments.recordings, arguments.out, options=options, replay_options=replay)
    known = [outcome_of(job, overwrite=arguments.overwrite) for job in jobs]
    board = table.Board(known, lambda line: print(line, file=sys.stderr, flush=True))
    waiting = [outcome.job for outcome in known if outcome.state is not State.DONE]
    with output_folder(arguments.out) as out, _alone(out):
        try:
            _run(waiting, arguments.ray, share, board.report)
        finally:
            if not all(outcome.state is State.NEW for outcome in board.outcomes):
                table.write(board.outcomes, out)
    print(table.text(board.outcomes))
    return 0 if all(outcome.state is State.DONE for outcome in board.outcomes) else SOME_FAILED


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises FleetError while another call works in the folder, on this machine."""
    import fcntl  # not on Windows

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FleetError(f"{folder}: another batch is at work there") from error
    finally:
        os.close(descriptor)


def _share(arguments: argparse.Namespace, config: ReconstructorConfig) -> Share:
    """What each gets. A network's checkpoint is found here, once, and not by all of them at the same time."""
    from dust3r_ros.fleet.run import Share

    if arguments.cores is not None and arguments.cores < 1:
        raise FleetError(f"--cores must be at least 1, got {arguments.cores}")
    is_network = config.checkpoint != "geometric"
    if is_network:
        from dust3r_ros.network.weights import locate

        path = locate(config.checkpoint)
        if Path(config.checkpoint).expanduser().exists():
            arguments.checkpoint = str(path.absolute())  # where the others run is not here
    cores = arguments.cores or (_CORES if arguments.ray else min(_CORES, _own_cores()))
    if is_network and config.device.startswith("cuda:"):
        cores = max(cores, _own_cores())  # one at once: all are to use this one GPU
    return Share(cores, gpu=is_network and config.device in ("auto", "cuda"))


def _run(jobs: Sequence[Job], ray: str | None, share: Share, report: Report) -> None:
    from dust3r_ros.ros.processes import terminated_as_interrupted

    if not jobs:
        return
    with terminated_as_interrupted():
        if ray is not None:
            from dust3r_ros.fleet.on_ray import run_on_ray

            run_on_ray(jobs, ray, share, report)
        else:
            from dust3r_ros.fleet.run import run_here

            run_here(jobs, share.places(_own_cores(), _gpus() if share.gpu else ()), report)


def _own_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    count = torch.cuda.device_count()
    return visible if len(visible) == count else [str(number) for number in range(count)]
