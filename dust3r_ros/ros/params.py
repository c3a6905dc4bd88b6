"""ROS parameters from the package's options: declared, checked, and changed while the node runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dust3r_ros.config import NodeConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.options import Option, flatten_config, make_config, options_of

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    list: ParameterType.PARAMETER_STRING_ARRAY,
}
_LARGEST_INTEGER = 2**63 - 1
# What rclpy declares by itself; an override of these is not ours to refuse.
_RCLPY_PARAMETERS = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def describe(option: Option) -> ParameterDescriptor:
    """The descriptor that ``ros2 param describe`` shows; in words it says which may change only while unconfigured."""
    constraints = [f"one of: {', '.join(option.choices)}"] if option.choices else []
    constraints += [] if option.live else ["only while unconfigured"]
    descriptor = ParameterDescriptor(
        name=option.name,
        type=_TYPES[option.type],
        description=option.description,
        additional_constraints="; ".join(constraints),
    )
    if option.minimum is None and option.maximum is None:
        return descriptor
    if option.type is int:
        low = -_LARGEST_INTEGER if option.minimum is None else int(option.minimum)
        high = _LARGEST_INTEGER if option.maximum is None else int(option.maximum)
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
    elif option.type is float:
        limit = sys.float_info.max
        low_value = -limit if option.minimum is None else float(option.minimum)
        high_value = limit if option.maximum is None else float(option.maximum)
        descriptor.floating_point_range = [FloatingPointRange(from_value=low_value, to_value=high_value, step=0.0)]
    return descriptor


def declare_config(node: Node) -> NodeConfig:
    """Declare every option of NodeConfig on a node and return the configuration its parameters give.

    Raises ConfigError for a value of the wrong type or out of range, and for a parameter given to the node, in a
    file or on the command line, that does not exist.
    """
    config = make_config(NodeConfig, _given(node))
    values = flatten_config(config)
    for name, option in options_of(NodeConfig).items():
        # The value is checked already, with 2 taken for 2.0, which rclpy would refuse.
        node.declare_parameter(name, values[name], describe(option), ignore_override=True)
    return config


def _given(node: Node) -> dict[str, object]:
    """The values set from outside, without those that belong to rclpy."""
    overrides: dict[str, Parameter] = node._parameter_overrides  # rclpy tells undeclared ones nowhere else
    return {name: given.value for name, given in overrides.items() if not name.startswith(_RCLPY_PARAMETERS)}


class LiveParameters:
    """Keeps a node's configuration in step with its parameters.

    A change is checked as a whole: either all the values of one request are taken over, and ``changed`` is called
    with the new configuration, or none is and the request is answered with the reason. Options that are not live
    change only while ``unconfigured`` says so.
    """

    def __init__(
        self, node: Node, config: NodeConfig, changed: Callable[[NodeConfig], None], unconfigured: Callable[[], bool]
    ) -> None:
        self.config = config
        self._changed = changed
        self._unconfigured = unconfigured
        self._options = options_of(NodeConfig)
        node.add_on_set_parameters_callback(self._on_set)

    def _on_set(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        ours = [p for p in parameters if p.name in self._options]
        if not ours:
            return SetParametersResult(successful=True)
        try:
            config = self._with(ours)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.config = config
        self._changed(config)
        return SetParametersResult(successful=True)

    def _with(self, parameters: Iterable[Parameter]) -> NodeConfig:
        values: dict[str, object] = dict(flatten_config(self.config))
        for parameter in parameters:
            if not self._options[parameter.name].live and not self._unconfigured():
                raise ConfigError(f"{parameter.name} can be changed only while the node is unconfigured")
            values[parameter.name] = parameter.value
        return make_config(NodeConfig, values)
