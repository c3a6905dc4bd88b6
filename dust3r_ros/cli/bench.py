"""``dust3r-ros bench``: how fast the network runs here, against the machine's limit and the published way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.cli.options import add_verbose, output_folder
from dust3r_ros.config import ReconstructorConfig, TrainingConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.options import options_of

if TYPE_CHECKING:
    import torch

    from dust3r_ros.network import Dust3rNetwork, NetworkConfig

_DESCRIPTION = """How fast the network runs here: images encoded and pairs decoded in a second by precision and batch,
keyframes in a second by window, the rates as fractions of a plain matrix product's, peak memory, and a stream of
keyframes against the published way (both images of every pair encoded anew, one pair at a time, float32 or autocast).
Everything is measured in one run; times are the best of --rounds."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("bench", help="how fast the network runs here", description=_DESCRIPTION)
    options = options_of(ReconstructorConfig)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--checkpoint", default="tiny", help="'tiny', a checkpoint file or a hub name (default tiny)")
    network.add_argument(
        "--architecture", choices=options_of(TrainingConfig)["architecture"].choices,
        help="a network of this form with random weights instead: the time does not depend on what it has learnt",
    )  # fmt: skip
    parser.add_argument("--device", default=options["device"].default, help=options["device"].description)
    parser.add_argument(
        "--dtypes", nargs="+", default=["auto"], choices=options["dtype"].choices, metavar="DTYPE",
        help="precisions (default auto)",
    )  # fmt: skip
    parser.add_argument(
        "--execution", default=options["execution"].default, choices=options["execution"].choices,
        help=f"{options['execution'].description} (default {options['execution'].default})",
    )  # fmt: skip
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the images, pixels; default: the network's own")
    parser.add_argument(
        "--batches", nargs="+", type=_positive, default=[1, 2, 4, 8], metavar="NUMBER", help="of images and of pairs"
    )
    parser.add_argument("--windows", nargs="+", type=_positive, default=[1, 2, 3, 4, 5], metavar="KEYFRAMES")
    parser.add_argument("--keyframes", type=_positive, default=10, help="of the stream; default 10")
    parser.add_argument("--rounds", type=_positive, default=5, help="times everything is measured; default 5")
    parser.add_argument("--threads", type=_positive, help="of PyTorch; default: its own choice")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="figures; a plot goes beside it as .png")
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write figures and plot."""
    with output_folder(arguments.out.parent) if arguments.out is not None else nullcontext():
        _measure(arguments)
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    import torch

    from dust3r_ros.evaluation.network_report import bench_figures, draw_bench, tables
    from dust3r_ros.evaluation.network_speed import Work, measure_precision, measure_stream
    from dust3r_ros.evaluation.timing import machine
    from dust3r_ros.mapping.export import write_json
    from dust3r_ros.network.weights import resolve_device

    if arguments.execution == "compiled" and len(arguments.dtypes) > 1:  # PyTorch compiles eight shapes of a function
        raise ConfigError(f"--execution compiled takes one of --dtypes at a time, got {' '.join(arguments.dtypes)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    config, make = _network(arguments, device)
    size = _image_size(arguments.size, config)
    how = {"rounds": arguments.rounds, "execution": arguments.execution}
    speeds = [
        measure_precision(make, dtype, size, batches=arguments.batches, windows=arguments.windows, **how)
        for dtype in arguments.dtypes
    ]
    stream = measure_stream(make, arguments.dtypes, size, keyframes=arguments.keyframes, **how)
    name = arguments.architecture or arguments.checkpoint
    figures = bench_figures(name, size, Work.of(config, size), speeds, stream, machine(device))
    print(tables(figures))
    if arguments.out is not None:
        write_json(figures, arguments.out)
        draw_bench(figures, arguments.out.with_suffix(".png"))


def _network(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[NetworkConfig, Callable[[str], Dust3rNetwork]]:  # fmt: skip
    """The architecture, and what makes the network in a precision."""
    import torch

    from dust3r_ros.network import Dust3rNetwork, load_model
    from dust3r_ros.network.checkpoint import read_checkpoint
    from dust3r_ros.network.weights import DTYPES, choose_dtype, locate
    from dust3r_ros.training.architectures import ARCHITECTURES, initialised

    if not arguments.architecture:
        config = read_checkpoint(locate(arguments.checkpoint)).config
        return config, lambda dtype: load_model(arguments.checkpoint, device=str(device), dtype=dtype)
    config = ARCHITECTURES[arguments.architecture]

    def make(dtype: str) -> Dust3rNetwork:
        model = initialised(Dust3rNetwork(config), torch.Generator().manual_seed(0)).to(device).eval()
        return choose_dtype(model) if dtype == "auto" else model.set_dtype(DTYPES[dtype])

    return config, make


def _image_size(asked: tuple[int, int] | None, config: NetworkConfig) -> tuple[int, int]:
    """(H, W) asked for, or the network's own. Raises ConfigError for sides that are not whole patches."""
    size = asked or config.img_size
    if any(side % config.patch or not side for side in size):
        down, up = (tuple(max(1, way(side / config.patch)) * config.patch for side in size) for way in (floor, ceil))
        nearest = " or ".join(dict.fromkeys(f"{width}x{height}" for height, width in (down, up)))
        raise ConfigError(
            f"--size must have sides that are multiples of {config.patch} pixels, got {size[1]}x{size[0]}; "
            f"{nearest} can be had"
        )
    return size


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not (separator and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, such as 512x384, got {text!r}")
    return int(height), int(width)


def _positive(text: str) -> int:
    if not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)
