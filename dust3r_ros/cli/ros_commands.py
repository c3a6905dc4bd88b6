"""``dust3r-ros node``, ``play``, ``record`` and ``demo``: the commands that need ROS."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dust3r_ros.cli.options import add_pipeline_options, config_of, output_folder
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.errors import RosError
from dust3r_ros.options import flatten_config

_GENERATED = ("dust3r_ros.msg", "dust3r_ros.srv")  # what colcon builds
_FORWARDED = {"node": "dust3r_ros.ros.node", "play": "dust3r_ros.ros.play", "record": "dust3r_ros.ros.recorder"}


def forwarded(given: Sequence[str]) -> Callable[[], int] | None:
    """The call for a command whose arguments ROS parses itself; None for any other command line."""
    if not given or given[0] not in _FORWARDED or (given[0] == "node" and {"-h", "--help"} & set(given[1:])):
        return None
    command, rest = given[0], list(given[1:])

    def call() -> int:
        module = ros_module(_FORWARDED[command])
        return int(module.main(_node_arguments(rest) if command == "node" else rest))

    return call


def register_node(commands: Any) -> None:
    """Add ``node``; here only for its help."""
    parser = commands.add_parser(
        "node",
        help="run the ROS node",
        description="Run the ROS node dust3r. What follows --ros-args goes to ROS: parameters (-p name:=value), "
        "parameter files (--params-file FILE), remappings (-r old:=new). dust3r-ros info --options lists parameters.",
    )
    parser.add_argument("--checkpoint", help="same as -p checkpoint:=...")
    parser.add_argument("--device", help="same as -p device:=...")
    parser.add_argument("--ros-args", nargs=argparse.REMAINDER, help="ROS arguments")


def register_play(commands: Any) -> None:
    """Add ``play``; here only for the list of commands."""
    commands.add_parser("play", help="publish a recording on its topics, with /clock", add_help=False)


def register_record(commands: Any) -> None:
    """Add ``record``; here only for the list of commands."""
    commands.add_parser("record", help="write the map, path and cameras that a running node publishes", add_help=False)


def register_demo(commands: Any) -> None:
    """Add ``demo``."""
    parser = commands.add_parser(
        "demo",
        help="player, node and subscriber in three processes; writes the map and a picture",
        description="Play a recording (a rendered one when none is given) to the node over ROS, in three processes, "
        "and write what arrives: cloud.ply, trajectory.tum, cameras.json and a picture.",
    )
    parser.add_argument("bag", type=Path, nargs="?", metavar="BAG", help="rosbag2 folder, .mcap, .db3, or ROS 1 .bag")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results go here")
    parser.add_argument("--topic", default="", help="image topic (default: the only one)")
    parser.add_argument("--rate", type=float, help="recorded seconds a second (default: 1, less for a short recording)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="play so long at most (default: what ends within three minutes)"
    )
    add_pipeline_options(parser)
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    config = config_of(arguments)
    demo = ros_module("dust3r_ros.ros.demo")
    options = demo.DemoOptions(
        rate=arguments.rate,
        play_s=arguments.seconds,
        image_topic=arguments.topic,
        parameters=ros_parameters(config),
    )
    with output_folder(arguments.out) as out:
        result = demo.run_demo(arguments.bag, out, options, _report)
    print(result.table())
    return 0


def ros_parameters(config: ReconstructorConfig) -> tuple[str, ...]:
    """What differs from the defaults, as the node's parameters ``name:=value``."""
    defaults = flatten_config(ReconstructorConfig())
    changed = {name: value for name, value in flatten_config(config).items() if value != defaults[name]}
    return tuple(f"{name}:={_yaml(value)}" for name, value in changed.items())


def _node_arguments(given: list[str]) -> list[str]:
    """``--checkpoint`` and ``--device`` as parameters, before what the user gives to ROS himself."""
    split = given.index("--ros-args") if "--ros-args" in given else len(given)
    parser = argparse.ArgumentParser(prog="dust3r-ros node", add_help=False)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device")
    known, unknown = parser.parse_known_args(given[:split])
    if unknown:
        raise RosError(f"node does not know {' '.join(unknown)}: ROS arguments come after --ros-args")
    named = {"checkpoint": known.checkpoint, "device": known.device}
    parameters = [part for name, value in named.items() if value for part in ("-p", f"{name}:={_yaml(value)}")]
    return ["--ros-args", *parameters, *given[split + 1 :]]


def _yaml(value: object) -> str:
    """A value as ROS reads it on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(f"'{part}'" for part in value) + "]"
    return f"'{value}'" if isinstance(value, str) else f"{value}"


def ros_module(name: str) -> Any:
    """A module that needs ROS. Raises RosError, saying what is missing, where there is none."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or ""
        if missing.startswith("dust3r_ros.") and not missing.startswith(_GENERATED):
            raise
        raise RosError(
            f"this command needs ROS 2, and {error.name or error} cannot be imported: source your ROS 2 workspace"
        ) from error


def _report(line: str) -> None:
    logging.getLogger(__name__).info(line)
    sys.stderr.write(f"{line}\n")
