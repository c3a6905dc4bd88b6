"""Command-line options that are made from the configuration, and from there back into one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r_ros.config import CleanConfig, NodeConfig, ReconstructorConfig
from dust3r_ros.errors import ConfigError, ExportError, ImageError
from dust3r_ros.options import Option, Value, flatten_config, make_config, options_of

if TYPE_CHECKING:
    from dust3r_ros.data import Intrinsics

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """``-v``."""
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv says everything")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint`` and ``--device``."""
    group = parser.add_argument_group("model")
    for name in ("checkpoint", "device"):
        _add(group, options_of(ReconstructorConfig)[name])


def add_pipeline_options(parser: argparse.ArgumentParser, *, without: tuple[str, ...] = ()) -> None:
    """An option for every top-level one of the pipeline, ``--set`` for any other, and ``--params``."""
    add_model_options(parser)
    group = parser.add_argument_group("pipeline")
    for name, option in options_of(ReconstructorConfig).items():
        if "." not in name and name not in ("checkpoint", "device", *without):
            _add(group, option)
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="change any option, such as keyframes.min_overlap=0.5 (dust3r-ros info --options lists them)",
    )  # fmt: skip
    group.add_argument(
        "--params", type=Path, metavar="FILE", help="options from a YAML file, also a ROS parameter file"
    )
    add_verbose(parser)


def add_single_options(parser: argparse.ArgumentParser) -> None:
    """``add_pipeline_options`` for a command that looks at images one by one or two by two, with no window of them."""
    add_pipeline_options(parser, without=("window", "intrinsics"))


def add_camera(parser: argparse.ArgumentParser) -> None:
    """``--camera``."""
    parser.add_argument(
        "--camera", type=float, nargs=4, metavar=("FX", "FY", "CX", "CY"),
        help="the images' pinhole, pixels, pixel centres at integers as in CameraInfo, used as it is",
    )  # fmt: skip


def camera_of(arguments: argparse.Namespace, height: int, width: int) -> Intrinsics | None:
    """The pinhole that ``--camera`` gives for images of a size; None where it is not given."""
    from dust3r_ros.data import Intrinsics

    if arguments.camera is None:
        return None
    fx, fy, cx, cy = arguments.camera
    if not (fx > 0 and fy > 0):
        raise ImageError(f"--camera must have positive focal lengths, got {fx:g} and {fy:g}")
    return Intrinsics(fx, fy, cx + 0.5, cy + 0.5, width, height)


def add_options(parser: argparse.ArgumentParser, config_class: type) -> None:
    """An option for every one of a config class."""
    for option in options_of(config_class).values():
        _add(parser, option)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, for ``results_folder``."""
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are in DIR already")


def add_results_options(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, ``--export``, and an option for every step of the clean-up."""
    add_overwrite(parser)
    parser.add_argument(
        "--export", default="", metavar="NAMES",
        help="more files in DIR: all, or names with commas between: glb (cloud, cameras), pcd, kitti (poses), colmap "
        "(model, images), nerfstudio (transforms.json, images), depth (images with depth), exr (depth), mesh, "
        "bag (ROS 2)",
    )  # fmt: skip
    group = parser.add_argument_group("clean-up of the result")
    for option in options_of(CleanConfig).values():
        _add(group, option)


def results_options(arguments: argparse.Namespace) -> list[str]:
    """The options of a command line with ``add_results_options`` and ``add_pipeline_options``, for another such one.

    ``--overwrite`` is not among them. Values are checked here. Raises ConfigError.
    """
    defaults = flatten_config(ReconstructorConfig())
    config = flatten_config(config_of(arguments))
    changed = [f"{name}={_text(value)}" for name, value in config.items() if value != defaults[name]]
    options = [part for change in changed for part in ("--set", change)]
    for name, value in given_options(arguments, CleanConfig).items():
        flag = name.replace("_", "-")
        options += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", f"{value}"]
    return options + (["--export", arguments.export] if arguments.export else [])


def clean_config(arguments: argparse.Namespace) -> CleanConfig:
    """The clean-up that a command line with ``add_results_options`` asks for."""
    return make_config(CleanConfig, given_options(arguments, CleanConfig))


def given_options(arguments: argparse.Namespace, config_class: type) -> dict[str, Value]:
    """Those of a config class that a command line with ``add_options`` names, checked."""
    options = options_of(config_class).items()
    given = {name: getattr(arguments, name) for name, _ in options if getattr(arguments, name) is not None}
    return {name: option.check(given[name]) for name, option in options if name in given}


def config_of(arguments: argparse.Namespace) -> ReconstructorConfig:
    """The configuration a command line asks for: the parameter file, then the options, then ``--set``.

    Raises ConfigError for what is unknown, of the wrong type or out of range.
    """
    values: dict[str, object] = dict(_from_file(arguments.params)) if arguments.params is not None else {}
    for name in options_of(ReconstructorConfig):
        given = getattr(arguments, name, None) if "." not in name else None
        if given is not None:
            values[name] = given
    for change in arguments.changes:
        name, separator, text = change.partition("=")
        if not separator:
            raise ConfigError(f"--set expects NAME=VALUE, got {change!r}")
        values[name] = parse_value(name.strip(), text.strip())
    return make_config(NodeConfig, values).reconstructor


def with_given_intrinsics(config: ReconstructorConfig) -> ReconstructorConfig:
    """The same, using the intrinsics that come with the images, unless they are to be a guess."""
    return config if config.intrinsics == "guess" else replace(config, intrinsics="given")


def parse_value(name: str, text: str) -> Value:
    """A value written on the command line as the type of the option ``name``; the range is checked later."""
    option = options_of(NodeConfig).get(name)
    if option is None:
        make_config(NodeConfig, {name: text})  # raises, with the closest name
        raise ConfigError(f"unknown option {name!r}")
    try:
        if option.type is bool:
            return _parse_bool(text)
        if option.type is list:
            return [part.strip() for part in text.split(",") if part.strip()]
        converted: Value = option.type(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {_type_text(option)}, got {text!r}") from error
    return converted


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """The folder results go to, made when it is missing: before the long work, not after.

    When the block raises and has left nothing in it, what was made is taken away again. Raises ExportError.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write to {path}: {error.strerror or error}") from error
    try:
        yield path
    except BaseException:
        with suppress(OSError):  # something is in it
            for folder in made:
                folder.rmdir()
        raise


def results_folder(arguments: argparse.Namespace, *results: str) -> AbstractContextManager[Path]:
    """``--out`` as ``output_folder``.

    Raises ExportError when one of the files ``results`` is there already, unless ``--overwrite`` is given.
    """
    folder: Path = arguments.out
    if not arguments.overwrite and any((folder / name).exists() for name in results):
        raise ExportError(f"{folder} holds results already: choose another folder, or give --overwrite")
    return output_folder(folder)


def _add(group: argparse._ActionsContainer, option: Option) -> None:
    choices = {"choices": option.choices} if option.choices else {"metavar": option.name.upper()}
    shown = f"{option.description} (default {option.default})".replace("%", "%%")
    settings: dict[str, Any] = {"help": shown, "default": None, "dest": option.name}
    settings |= {"action": argparse.BooleanOptionalAction} if option.type is bool else {"type": option.type, **choices}
    group.add_argument(f"--{option.name.replace('_', '-')}", **settings)


def _text(value: Value) -> str:
    """What ``parse_value`` reads as the value."""
    return ",".join(value) if isinstance(value, list) else f"{value}"


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _type_text(option: Option) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(option.type, option.type.__name__)


def _from_file(path: Path) -> Mapping[str, object]:
    """The options in a YAML file; of a ROS parameter file those under ``ros__parameters``."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    while isinstance(content, Mapping) and len(content) == 1:
        inner = next(iter(content.values()))
        if not isinstance(inner, Mapping) or set(content) & set(_groups()):
            break
        content = inner
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold names and values, got {type(content).__name__}")
    return content


def _groups() -> set[str]:
    return {name.split(".")[0] for name in options_of(NodeConfig) if "." in name}
