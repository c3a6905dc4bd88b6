"""What an option is, and how options become command-line arguments, ROS parameters and files, and configs again."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dust3r_ros.errors import ConfigError

Value = bool | int | float | str | list[str]
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Option:
    """One option: what a ROS parameter descriptor, a ``--help`` line or a docs table says of it."""

    name: str
    type: type
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False  # may be changed while the node runs

    def check(self, value: object) -> Value:
        """``value`` as this option's type; ConfigError names the option, what was expected and what came."""
        converted = self._converted(value)
        if self.choices and converted not in self.choices:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(converted, int | float) and not isinstance(converted, bool):
            low, high = self.minimum, self.maximum
            if not ((low is None or converted >= low) and (high is None or converted <= high)):
                raise ConfigError(f"{self.name} must be {self.range_text()}, got {value!r}")
        return converted

    def range_text(self) -> str:
        """The range in words, empty when there is none."""
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"at least {self.minimum:g}"
        return f"at most {self.maximum:g}" if self.maximum is not None else ""

    def _converted(self, value: object) -> Value:
        if self.type is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if self.type is list and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return list(value)
        if self.type is not list and type(value) is self.type:
            return typing.cast(Value, value)
        expected = "a list of str" if self.type is list else f"a {self.type.__name__}"
        raise ConfigError(f"{self.name} must be {expected}, got {value!r}")


def option(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """A dataclass field that is an option. Every field of a config class is one, or a ``group``."""
    kind = list if isinstance(default, tuple) else type(default)
    shown = list(default) if isinstance(default, tuple) else default
    described = Option("", kind, shown, description, minimum, maximum, choices, live)
    return field(default=default, metadata={"option": described})


def group(config_class: type, *, flat: bool = False) -> Any:
    """A nested config. ``flat`` leaves the group's name out of its options' names."""
    return field(default_factory=config_class, metadata={"group": config_class, "flat": flat})


def options_of(config_class: type) -> dict[str, Option]:
    """Every option of a config class by its dotted name, in the order of declaration."""
    found: dict[str, Option] = {}
    for f in dataclasses.fields(config_class):
        if "option" in f.metadata:
            found[f.name] = dataclasses.replace(f.metadata["option"], name=f.name)
            continue
        for name, inner in options_of(f.metadata["group"]).items():
            full = name if f.metadata["flat"] else f"{f.name}.{name}"
            found[full] = dataclasses.replace(inner, name=full)
    return found


def flatten_config(config: object) -> dict[str, Value]:
    """The values of a config by dotted name; ``make_config`` turns them back."""
    values: dict[str, Value] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if "option" in f.metadata:
            values[f.name] = list(value) if isinstance(value, tuple) else value
            continue
        prefix = "" if f.metadata["flat"] else f"{f.name}."
        values.update({prefix + name: inner for name, inner in flatten_config(value).items()})
    return values


def make_config(config_class: type[ConfigT], values: Mapping[str, object] | None = None) -> ConfigT:
    """A config with the given options changed from their defaults.

    ``values`` may be dotted (``{"keyframes.min_overlap": 0.5}``) or nested as a parameter file is.
    Raises ConfigError for an unknown name, a wrong type or a value out of range.
    """
    options = options_of(config_class)
    given = _dotted(values or {})
    for name in given:
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"unknown option {name!r}{hint}")
    return _build(config_class, {name: options[name].check(value) for name, value in given.items()})


def _dotted(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_dotted(value, f"{prefix}{name}."))
        else:
            flat[prefix + str(name)] = value
    return flat


def _build(config_class: type[ConfigT], values: Mapping[str, Value]) -> ConfigT:
    arguments: dict[str, Any] = {}
    for f in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if "option" in f.metadata:
            if f.name in values:
                value = values[f.name]
                arguments[f.name] = tuple(value) if isinstance(value, list) else value
            continue
        inner = options_of(f.metadata["group"])
        prefix = "" if f.metadata["flat"] else f"{f.name}."
        nested = {name: values[prefix + name] for name in inner if prefix + name in values}
        arguments[f.name] = _build(f.metadata["group"], nested)
    return config_class(**arguments)
