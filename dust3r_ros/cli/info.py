"""``dust3r-ros info``: what is installed, and which device and model would be used."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from dust3r_ros import __version__
from dust3r_ros.cli.options import add_pipeline_options, config_of
from dust3r_ros.config import NodeConfig
from dust3r_ros.options import options_of

_PACKAGES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "torch",
    "rosbags",
    "matplotlib",
    "open3d",
    "open3d-cpu",
    "pycolmap",
    "trimesh",
)


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        help="what is installed, which device and model would be used",
        description="What is installed, and which device and model would be used.",
    )
    parser.add_argument("--options", action="store_true", help="list every option, with its default and range")
    add_pipeline_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print."""
    from dust3r_ros.evaluation.report import text_table

    if arguments.options:
        print(text_table(_options()))
        return 0
    config = config_of(arguments)
    rows = [("dust3r-ros", __version__), ("Python", f"{platform.python_version()} on {platform.platform()}")]
    rows += [(name, version) for name in _PACKAGES if (version := _version(name))]
    rows += _devices(config.device)
    rows += _model(config)
    rows.append(("ROS", _ros()))
    print(text_table(rows))
    return 0


def _options() -> list[tuple[str, str]]:
    rows = []
    for name, option in options_of(NodeConfig).items():
        allowed = ", ".join(option.choices) or option.range_text()
        rows.append((name, f"{option.default!r}{f' ({allowed})' if allowed else ''}: {option.description}"))
    return rows


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices(asked: str) -> list[tuple[str, str]]:
    import torch

    from dust3r_ros.network.weights import resolve_device

    device = resolve_device(asked)
    cuda = "not available"
    if torch.cuda.is_available():
        cuda = f"{torch.version.cuda}, {torch.cuda.get_device_name(device if device.type == 'cuda' else 0)}"
    return [("CUDA", cuda), ("device", f"{device}{'' if asked != 'auto' else ' (chosen)'}")]


def _model(config: Any) -> list[tuple[str, str]]:
    from dust3r_ros.pipeline import load_predictor

    info = load_predictor(config).info
    kind = "trained" if info.trained else "not trained"
    return [("model", f"{info.name} on {info.device}, {kind}"), ("licence", info.licence)]


def _ros() -> str:
    if importlib.util.find_spec("rclpy") is None:
        return "not found: the commands node, play and demo need it"
    distribution = os.environ.get("ROS_DISTRO", "")
    return f"found{f', {distribution}' if distribution else ''}"
