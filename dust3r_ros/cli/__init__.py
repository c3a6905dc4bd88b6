"""The command line ``dust3r-ros``. Commands import what they need when they run, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dust3r_ros import __version__
from dust3r_ros.cli import (
    align,
    batch,
    bench,
    depth,
    evaluate,
    info,
    localise,
    match,
    reconstruct,
    replay,
    ros_commands,
    train,
    view,
)
from dust3r_ros.errors import Dust3rError

MISTAKE = 2
INTERRUPTED = 130
_SAID = ("dust3r_ros.predictors", "dust3r_ros.network.weights")  # whose warnings are for everybody, as the licence

_COMMANDS: tuple[Callable[[Any], None], ...] = (
    reconstruct.register,
    replay.register,
    batch.register,
    view.register,
    evaluate.register,
    match.register,
    depth.register,
    localise.register,
    align.register,
    ros_commands.register_node,
    ros_commands.register_play,
    ros_commands.register_record,
    ros_commands.register_demo,
    train.register,
    bench.register,
    info.register,
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and what was perhaps meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, 1, 0.75)
            hint = f", did you mean {near[0]}?" if near else ""
            self.error(f"unknown {'option' if name.startswith('-') else 'argument'} {name}{hint}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = difflib.get_close_matches(str(value), action.choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(action.choices)}"
            self.error(f"unknown command {value}, {hint}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``run`` of what it parses is the function to call."""
    parser = _Parser(
        prog="dust3r-ros", description="Dense 3D maps, camera paths and intrinsics from the images of any camera."
    )
    parser.add_argument("--version", action="version", version=f"dust3r-ros {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for register in _COMMANDS:
        register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, 2 for a user's mistake (said in one line), 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    forwarded = ros_commands.forwarded(given)
    if forwarded is not None:
        return _guarded(forwarded)
    arguments = make_parser().parse_args(given)
    _start_logging(getattr(arguments, "verbose", 0))
    return _guarded(lambda: int(arguments.run(arguments)))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except Dust3rError as error:
        _say(" ".join(str(error).split()))
        return MISTAKE
    except OSError as error:  # a folder that cannot be read, a full disk
        name = f"{error.filename}: " if error.filename else ""
        _say(f"{name}{error.strerror or error}")
        return MISTAKE
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "interrupted")
        return INTERRUPTED


def _say(message: str) -> None:
    sys.stderr.write(f"dust3r-ros: {message}\n")


def _start_logging(verbose: int) -> None:
    level = (logging.ERROR, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("dust3r_ros").setLevel(level)
    for name in _SAID:
        logging.getLogger(name).setLevel(min(level, logging.WARNING))
